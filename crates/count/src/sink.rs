//! Where counted rows go.

use crate::error::Result;

/// Takes finished rows in rising order of left id.
pub trait RowSink {
    /// One non-empty row: `right` strictly rising, `counts[i] > 0` units for the pair `(left, right[i])`.
    ///
    /// # Errors
    /// Whatever the sink cannot do; counting stops and hands the error on.
    fn row(&mut self, left: u32, right: &[u32], counts: &[u64]) -> Result<()>;
}

/// Keeps the pairs as three columns in memory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PairColumns {
    /// Left ids, rising.
    pub left: Vec<u32>,
    /// Right ids, rising within one left id.
    pub right: Vec<u32>,
    /// Counts in weight units.
    pub counts: Vec<u64>,
}

impl PairColumns {
    /// Number of pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.left.len()
    }

    /// Whether there is no pair.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Forgets the pairs and keeps the memory.
    pub fn clear(&mut self) {
        self.left.clear();
        self.right.clear();
        self.counts.clear();
    }
}

impl RowSink for PairColumns {
    fn row(&mut self, left: u32, right: &[u32], counts: &[u64]) -> Result<()> {
        self.left.extend(std::iter::repeat_n(left, right.len()));
        self.right.extend_from_slice(right);
        self.counts.extend_from_slice(counts);
        Ok(())
    }
}

/// Counts rows and pairs and keeps nothing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PairTally {
    /// Non-empty rows seen.
    pub rows: u64,
    /// Pairs seen.
    pub pairs: u64,
    /// Sum of all counts, modulo 2⁶⁴.
    pub units: u64,
}

impl RowSink for PairTally {
    fn row(&mut self, _left: u32, right: &[u32], counts: &[u64]) -> Result<()> {
        self.rows += 1;
        self.pairs += right.len() as u64;
        self.units = counts
            .iter()
            .fold(self.units, |sum, &count| sum.wrapping_add(count));
        Ok(())
    }
}

impl<S: RowSink + ?Sized> RowSink for &mut S {
    fn row(&mut self, left: u32, right: &[u32], counts: &[u64]) -> Result<()> {
        (**self).row(left, right, counts)
    }
}
