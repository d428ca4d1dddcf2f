//! The dense accumulator of one thread: one row of the table at a time.
//!
//! Sums are addressed by slot code (id + 2, see module `block`). There are 32-bit sums for the
//! inner loops, which are half the cache, and 64-bit ones for rows that can outgrow them.
//! Beside them stands one flag for every 32 sums, so that a short row is read out by its touched
//! groups, in order, without a sort. Between rows all sums and flags are zero.

use pmill_simd::{Lane, Sum, TOUCHED_SHIFT};

use crate::block::FIRST_CODE;
use crate::error::{CountError, Result};

/// Partners gathered at a time: two lists of 2 or 4 bytes each stay in the first-level cache.
const BATCH_PARTNERS: usize = 640;

/// Sums of one row; made once a thread and used for every row.
#[derive(Debug)]
pub struct Accumulator {
    vocabulary_size: u32,
    pub(crate) sums: Sums<u32>,
    pub(crate) wide_sums: Sums<u64>,
    pub(crate) row: Row,
    pub(crate) narrow_partners: Partners<u16>,
    pub(crate) wide_partners: Partners<u32>,
}

/// A dense row of sums and its touched flags.
#[derive(Debug)]
pub(crate) struct Sums<S> {
    sums: Vec<S>,
    touched: Vec<u8>,
}

/// A finished row.
#[derive(Debug)]
pub(crate) struct Row {
    right: Vec<u32>,
    counts: Vec<u64>,
    filled: usize,
}

/// The partners of some positions: codes and weights.
#[derive(Debug, Default)]
pub(crate) struct Partners<L> {
    pub(crate) codes: Vec<L>,
    pub(crate) weights: Vec<L>,
}

impl<L: Lane> Partners<L> {
    /// Makes both lists at least so long.
    pub(crate) fn ensure(&mut self, room: usize) {
        if self.codes.len() < room {
            self.codes.resize(room, L::default());
            self.weights.resize(room, L::default());
        }
    }

    /// How many positions of a window fit one batch.
    pub(crate) fn batch(window_size: usize) -> usize {
        (BATCH_PARTNERS / (2 * window_size)).max(8)
    }
}

impl<S: Sum> Sums<S> {
    fn new(groups: usize) -> Self {
        Self {
            sums: vec![S::default(); groups << TOUCHED_SHIFT],
            touched: vec![0; groups],
        }
    }

    /// The sums by code.
    #[inline(always)]
    pub(crate) fn dense(&mut self) -> &mut [S] {
        &mut self.sums
    }

    /// The sums by code, and the flag of each 32 of them.
    #[inline(always)]
    pub(crate) fn flagged(&mut self) -> (&mut [S], &mut [u8]) {
        (&mut self.sums, &mut self.touched)
    }

    /// Moves the sums from `from_code` on to `row`.
    pub(crate) fn take_dense(&mut self, from_code: u32, row: &mut Row) {
        let from = (from_code >> TOUCHED_SHIFT << TOUCHED_SHIFT) as usize;
        row.filled = pmill_simd::drain(
            &mut self.sums[from..],
            (from as u32).wrapping_sub(FIRST_CODE),
            &mut row.right,
            &mut row.counts,
        );
    }

    /// Moves the sums of touched groups to `row`, from the group of `from_code` on.
    pub(crate) fn take_flagged(&mut self, from_code: u32, row: &mut Row) {
        let group = (from_code >> TOUCHED_SHIFT) as usize;
        let from = group << TOUCHED_SHIFT;
        row.filled = pmill_simd::drain_touched(
            &mut self.sums[from..],
            &mut self.touched[group..],
            (from as u32).wrapping_sub(FIRST_CODE),
            &mut row.right,
            &mut row.counts,
        );
    }

    fn held_bytes(&self) -> usize {
        self.sums.capacity() * size_of::<S>() + self.touched.capacity()
    }

    fn reset(&mut self) {
        self.sums.fill(S::default());
        self.touched.fill(0);
    }
}

impl Row {
    /// Right ids, rising, and their counts.
    pub(crate) fn columns(&self) -> (&[u32], &[u64]) {
        (&self.right[..self.filled], &self.counts[..self.filled])
    }
}

impl Accumulator {
    /// An accumulator for ids below `vocabulary_size`.
    #[must_use]
    pub fn new(vocabulary_size: u32) -> Self {
        let groups = groups(vocabulary_size);
        let row = (groups << TOUCHED_SHIFT) + 16;
        Self {
            vocabulary_size,
            sums: Sums::new(groups),
            wide_sums: Sums::new(groups),
            row: Row {
                right: vec![0; row],
                counts: vec![0; row],
                filled: 0,
            },
            narrow_partners: Partners::default(),
            wide_partners: Partners::default(),
        }
    }

    /// Bytes that an accumulator takes: 24 an id and about 50 KiB. Counting documents or rows adds the
    /// longest row twice.
    #[must_use]
    pub fn bytes_for(vocabulary_size: u32) -> usize {
        let sums = groups(vocabulary_size) << TOUCHED_SHIFT;
        sums * 24 + sums / 16 + 16 * 12 + (50 << 10)
    }

    /// Bytes held now.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.sums.held_bytes()
            + self.wide_sums.held_bytes()
            + self.row.right.capacity() * 4
            + self.row.counts.capacity() * 8
            + (self.narrow_partners.codes.capacity() + self.narrow_partners.weights.capacity()) * 2
            + (self.wide_partners.codes.capacity() + self.wide_partners.weights.capacity()) * 4
    }

    /// The number of ids it holds.
    #[must_use]
    pub fn vocabulary_size(&self) -> u32 {
        self.vocabulary_size
    }

    pub(crate) fn check(&self, vocabulary_size: u32) -> Result<()> {
        if self.vocabulary_size != vocabulary_size {
            return Err(CountError::AccumulatorSize {
                accumulator: self.vocabulary_size,
                data: vocabulary_size,
            });
        }
        Ok(())
    }

    /// Adds all 32-bit sums from `from_code` on to the 64-bit ones and clears them.
    pub(crate) fn flush_to_wide(&mut self, from_code: u32) {
        let from = from_code as usize;
        let wide_sums = &mut self.wide_sums.sums[from..];
        for (wide, sum) in wide_sums.iter_mut().zip(&mut self.sums.sums[from..]) {
            *wide += u64::from(std::mem::take(sum));
        }
    }

    /// Adds a whole sorted row of counts to the row `left`, or takes it away.
    pub(crate) fn add_row(
        &mut self,
        left: u32,
        right: &[u32],
        counts: &[u64],
        subtract: bool,
    ) -> Result<()> {
        if let Some(&id) = right.last()
            && id >= self.vocabulary_size
        {
            return Err(CountError::IdOutOfRange {
                id,
                vocabulary_size: self.vocabulary_size,
            });
        }
        let (sums, touched) = self.wide_sums.flagged();
        let mut failed = false;
        for (&right, &count) in right.iter().zip(counts) {
            let code = (right + FIRST_CODE) as usize;
            let (sum, over) = if subtract {
                sums[code].overflowing_sub(count)
            } else {
                sums[code].overflowing_add(count)
            };
            sums[code] = sum;
            touched[code >> TOUCHED_SHIFT] = 1;
            failed |= over;
        }
        if !failed {
            return Ok(());
        }
        // A wrapped sum tells which pair it was: undo it and look.
        for (&right, &count) in right.iter().zip(counts) {
            let sum = sums[(right + FIRST_CODE) as usize];
            if subtract && sum.overflowing_add(count).1 {
                return Err(CountError::NegativeCount {
                    left,
                    right,
                    count: sum.wrapping_add(count),
                    subtract: count,
                });
            }
            if !subtract && sum < count {
                return Err(CountError::SumOverflow { left, right });
            }
        }
        Ok(())
    }

    /// The row of the 64-bit sums; they are zero again afterwards.
    pub(crate) fn take_wide_row(&mut self) -> (&[u32], &[u64]) {
        self.wide_sums.take_flagged(0, &mut self.row);
        self.row.columns()
    }

    /// Forgets an unfinished row, after an error.
    pub(crate) fn reset(&mut self) {
        self.sums.reset();
        self.wide_sums.reset();
    }
}

/// Flags for a vocabulary: one for 32 codes.
fn groups(vocabulary_size: u32) -> usize {
    ((u64::from(vocabulary_size) + u64::from(FIRST_CODE)) >> TOUCHED_SHIFT) as usize + 1
}
