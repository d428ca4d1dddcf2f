//! The dense accumulator of one thread: one row of the table at a time.
//!
//! Memory: 12 bytes an id of the vocabulary for the sums (4 for 32-bit sums, 8 for 64-bit ones),
//! 12 more for the finished row. Between rows all sums are zero.

use crate::error::{CountError, Result};

/// Ids that share one touched flag, as a power of two.
const GROUP_SHIFT: u32 = 5;

/// Sums of one row; made once a thread and used for every row.
#[derive(Debug)]
pub struct Accumulator {
    vocabulary_size: u32,
    wide: Vec<u64>,
    touched: Vec<u8>,
    rights: Vec<u32>,
    counts: Vec<u64>,
}

impl Accumulator {
    /// An accumulator for ids below `vocabulary_size`.
    #[must_use]
    pub fn new(vocabulary_size: u32) -> Self {
        let groups = (vocabulary_size >> GROUP_SHIFT) as usize + 1;
        Self {
            vocabulary_size,
            wide: vec![0; groups << GROUP_SHIFT],
            touched: vec![0; groups],
            rights: Vec::new(),
            counts: Vec::new(),
        }
    }

    /// Bytes that an accumulator takes at most: 24 an id and a little.
    #[must_use]
    pub fn bytes_for(vocabulary_size: u32) -> usize {
        let ids = (vocabulary_size as usize + 64).next_multiple_of(64);
        ids * 25
    }

    /// Bytes held now.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.wide.capacity() * 8
            + self.touched.capacity()
            + self.rights.capacity() * 4
            + self.counts.capacity() * 8
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

    /// Adds to one pair of the row `left`.
    #[inline]
    pub(crate) fn add(&mut self, left: u32, right: u32, units: u64) -> Result<()> {
        let sum = &mut self.wide[right as usize];
        *sum = sum
            .checked_add(units)
            .ok_or(CountError::SumOverflow { left, right })?;
        self.touched[(right >> GROUP_SHIFT) as usize] = 1;
        Ok(())
    }

    /// Takes from one pair of the row `left`.
    #[inline]
    pub(crate) fn subtract(&mut self, left: u32, right: u32, units: u64) -> Result<()> {
        let sum = &mut self.wide[right as usize];
        *sum = sum.checked_sub(units).ok_or(CountError::NegativeCount {
            left,
            right,
            count: *sum,
            subtract: units,
        })?;
        Ok(())
    }

    /// The finished row, sorted, zero sums left out; the sums are zero again afterwards.
    pub(crate) fn take_row(&mut self) -> (&[u32], &[u64]) {
        self.rights.clear();
        self.counts.clear();
        for (group, touched) in self.touched.iter_mut().enumerate() {
            if *touched == 0 {
                continue;
            }
            *touched = 0;
            let start = group << GROUP_SHIFT;
            for (offset, sum) in self.wide[start..start + (1 << GROUP_SHIFT)]
                .iter_mut()
                .enumerate()
            {
                if *sum != 0 {
                    self.rights.push((start + offset) as u32);
                    self.counts.push(*sum);
                    *sum = 0;
                }
            }
        }
        (&self.rights, &self.counts)
    }

    /// Forgets an unfinished row, after an error.
    pub(crate) fn reset(&mut self) {
        self.wide.fill(0);
        self.touched.fill(0);
    }
}
