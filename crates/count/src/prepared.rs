//! A block with its positions sorted by token, ready to be counted row by row.

use std::ops::Range;

use crate::accumulator::Accumulator;
use crate::block::{FIRST_CODE, GAP, ROW_END, Slot, Slots, TokenBlock, each};
use crate::error::{CountError, Result};
use crate::settings::{Context, CountSettings, Side, distance_units};
use crate::sink::RowSink;

/// A counted-out block; several threads may count disjoint ranges of left ids at once.
#[derive(Debug)]
pub struct PreparedBlock {
    block: TokenBlock,
    /// `positions[starts[id]..starts[id + 1]]` are the slots that hold `id`, rising.
    starts: Vec<u32>,
    positions: Vec<u32>,
    units: Vec<u32>,
}

impl TokenBlock {
    /// Sorts the positions by token with up to `threads` threads.
    ///
    /// # Errors
    /// [`CountError::Panicked`].
    pub fn prepare(mut self, threads: usize) -> Result<PreparedBlock> {
        let _ = threads;
        self.close();
        let vocabulary_size = self.settings.vocabulary_size as usize;
        let mut starts = vec![0_u32; vocabulary_size + 1];
        let mut positions = vec![0_u32; self.indexed()];
        let ids: Vec<(u32, u32)> = match self.settings.context {
            Context::Row => self
                .lefts
                .iter()
                .copied()
                .zip(self.left_starts.iter().copied())
                .collect(),
            _ => each!(&self.slots, slots => slots.iter().enumerate()
                .filter(|(_, slot)| slot.code() >= FIRST_CODE)
                .map(|(position, slot)| (slot.code() - FIRST_CODE, position as u32)).collect()),
        };
        for &(id, _) in &ids {
            starts[id as usize + 1] += 1;
        }
        for id in 0..vocabulary_size {
            starts[id + 1] += starts[id];
        }
        let mut next = starts.clone();
        for (id, position) in ids {
            positions[next[id as usize] as usize] = position;
            next[id as usize] += 1;
        }
        let units = match &self.settings.context {
            Context::Window(window) => distance_units(window)?,
            _ => vec![1],
        };
        Ok(PreparedBlock {
            block: self,
            starts,
            positions,
            units,
        })
    }
}

impl PreparedBlock {
    /// The settings of the block.
    #[must_use]
    pub fn settings(&self) -> &CountSettings {
        &self.block.settings
    }

    /// Bytes held, the index included.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.block.held_bytes()
    }

    /// How often each id of the vocabulary stands in the block as a left id's position; for
    /// documents the number of its rows with at least two distinct ids.
    #[must_use]
    pub fn occurrences(&self, id: u32) -> u32 {
        let id = id as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(start), Some(end)) => end - start,
            _ => 0,
        }
    }

    /// Gives the emptied block back, so that its memory is used again.
    #[must_use]
    pub fn recycle(self) -> TokenBlock {
        let mut block = self.block;
        block.clear();
        block
    }

    /// Cuts all left ids into at most `parts` ranges of about the same work, in order, none empty.
    #[must_use]
    pub fn plan_ranges(&self, parts: usize) -> Vec<Range<u32>> {
        let vocabulary_size = self.block.settings.vocabulary_size;
        if vocabulary_size == 0 {
            return Vec::new();
        }
        let total = self.positions.len() as u64 + u64::from(vocabulary_size);
        let parts = parts.max(1) as u64;
        let mut ranges = Vec::new();
        let (mut start, mut done) = (0, 0_u64);
        for id in 0..vocabulary_size {
            done += 1 + u64::from(self.occurrences(id));
            if done * parts >= total * (ranges.len() as u64 + 1) {
                ranges.push(start..id + 1);
                start = id + 1;
            }
        }
        if start < vocabulary_size {
            ranges.push(start..vocabulary_size);
        }
        ranges
    }

    /// Counts the rows of `left_range`, in order, and hands every non-empty one to `sink`.
    ///
    /// # Errors
    /// [`CountError::LeftRange`], [`CountError::AccumulatorSize`], [`CountError::SumOverflow`],
    /// and those of the sink. The accumulator can be used again after an error.
    pub fn count_rows(
        &self,
        left_range: Range<u32>,
        accumulator: &mut Accumulator,
        sink: &mut impl RowSink,
    ) -> Result<()> {
        let vocabulary_size = self.block.settings.vocabulary_size;
        check_range(&left_range, vocabulary_size)?;
        accumulator.check(vocabulary_size)?;
        let result = match &self.block.slots {
            Slots::Narrow(slots) => self.rows(slots, left_range, accumulator, sink),
            Slots::Wide(slots) => self.rows(slots, left_range, accumulator, sink),
        };
        if result.is_err() {
            accumulator.reset();
        }
        result
    }

    fn rows<S: Slot>(
        &self,
        slots: &[S],
        left_range: Range<u32>,
        accumulator: &mut Accumulator,
        sink: &mut impl RowSink,
    ) -> Result<()> {
        for left in left_range {
            let positions = &self.positions
                [self.starts[left as usize] as usize..self.starts[left as usize + 1] as usize];
            if positions.is_empty() {
                continue;
            }
            for &position in positions {
                self.add_position(slots, left, position as usize, accumulator)?;
            }
            let (right, counts) = accumulator.take_row();
            if !right.is_empty() {
                sink.row(left, right, counts)?;
            }
        }
        Ok(())
    }

    fn add_position<S: Slot>(
        &self,
        slots: &[S],
        left: u32,
        position: usize,
        accumulator: &mut Accumulator,
    ) -> Result<()> {
        let (forward, backward, floor) = match &self.block.settings.context {
            Context::Document { .. } => (true, false, 0),
            Context::Row => {
                for slot in slots[position..]
                    .iter()
                    .take_while(|slot| slot.code() != ROW_END)
                {
                    accumulator.add(left, slot.code() - FIRST_CODE, 1)?;
                }
                return Ok(());
            }
            Context::Window(window) => match window.side {
                Side::Symmetric => (true, true, left + FIRST_CODE),
                Side::Right => (true, false, 0),
                Side::Left => (false, true, 0),
            },
        };
        let document = matches!(self.block.settings.context, Context::Document { .. });
        let unit = |distance: usize| {
            if document {
                Some(1)
            } else {
                self.units.get(distance - 1).map(|&unit| u64::from(unit))
            }
        };
        if forward {
            for distance in 1.. {
                let code = slots[position + distance].code();
                let (false, Some(unit)) = (code == ROW_END, unit(distance)) else {
                    break;
                };
                if code != GAP && code >= floor {
                    accumulator.add(left, code - FIRST_CODE, unit)?;
                }
            }
        }
        if backward {
            for distance in 1.. {
                let code = slots[position - distance].code();
                let (false, Some(unit)) = (code == ROW_END, unit(distance)) else {
                    break;
                };
                if code != GAP && (code > floor || floor == 0) {
                    accumulator.add(left, code - FIRST_CODE, unit)?;
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn check_range(range: &Range<u32>, vocabulary_size: u32) -> Result<()> {
    if range.start > range.end || range.end > vocabulary_size {
        return Err(CountError::LeftRange {
            start: range.start,
            end: range.end,
            vocabulary_size,
        });
    }
    Ok(())
}
