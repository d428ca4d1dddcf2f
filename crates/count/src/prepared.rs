//! A block with its positions sorted by token, ready to be counted row by row.

use std::ops::Range;

use pmill_simd::{LARGEST_WINDOW, WindowLanes};

use crate::accumulator::Accumulator;
use crate::block::{FIRST_CODE, LARGEST_SLOTS, Slots, TokenBlock};
use crate::error::{CountError, Result};
use crate::index::Index;
use crate::settings::{
    Context, CountSettings, LARGEST_HARMONIC_WINDOW, Side, Window, distance_units,
};
use crate::sink::RowSink;

/// A block ready to be counted; several threads may count disjoint ranges of left ids at once.
#[derive(Debug)]
pub struct PreparedBlock {
    pub(crate) block: TokenBlock,
    pub(crate) index: Index,
    pub(crate) plan: Plan,
}

/// How the rows of the block are counted.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Everything behind the position in its row, once each (documents, bipartite rows).
    Follow,
    /// Windows that the vector loops take.
    Narrow(WindowPlan, WindowLanes<u16>),
    /// The same with 32-bit slots.
    Wide(WindowPlan, WindowLanes<u32>),
    /// Windows larger than that.
    Large(WindowPlan),
}

/// What all window plans know.
#[derive(Debug)]
pub(crate) struct WindowPlan {
    pub(crate) side: Side,
    /// The units of each distance, `[0]` for distance 1.
    pub(crate) units: Vec<u32>,
    /// The lanes carry distances, to be looked up in `[0, units...]`, as units do not fit them.
    pub(crate) by_distance: bool,
    /// The most units that one position can add to one pair.
    pub(crate) most_units: u64,
}

impl WindowPlan {
    /// The lowest code that partners ahead may have; those behind must be above it.
    pub(crate) fn floor(&self, left: u32) -> u32 {
        match self.side {
            Side::Symmetric => left + FIRST_CODE,
            Side::Right => FIRST_CODE,
            Side::Left => FIRST_CODE - 1,
        }
    }

    pub(crate) fn forward(&self) -> bool {
        self.side != Side::Left
    }

    pub(crate) fn backward(&self) -> bool {
        self.side != Side::Right
    }
}

impl Plan {
    fn new(settings: &CountSettings, slots: &Slots) -> Result<Self> {
        let Context::Window(window) = &settings.context else {
            return Ok(Self::Follow);
        };
        let mut plan = window_plan(window)?;
        if window.size as usize > LARGEST_WINDOW {
            return Ok(Self::Large(plan));
        }
        let (forward, backward) = (plan.forward(), plan.backward());
        let distances: Vec<u32> = (1..=window.size).collect();
        Ok(match slots {
            Slots::Wide(_) => match WindowLanes::new(&plan.units, forward, backward) {
                Some(lanes) => Self::Wide(plan, lanes),
                None => Self::Large(plan),
            },
            Slots::Narrow(_) => {
                if let Some(lanes) = WindowLanes::new(&plan.units, forward, backward) {
                    return Ok(Self::Narrow(plan, lanes));
                }
                plan.by_distance = true;
                match WindowLanes::new(&distances, forward, backward) {
                    Some(lanes) => Self::Narrow(plan, lanes),
                    None => Self::Large(plan),
                }
            }
        })
    }
}

fn window_plan(window: &Window) -> Result<WindowPlan> {
    let units = distance_units(window)?;
    let one_side: u64 = units.iter().map(|&unit| u64::from(unit)).sum();
    let sides = if window.side == Side::Symmetric { 2 } else { 1 };
    if (one_side * sides)
        .checked_mul(LARGEST_SLOTS as u64)
        .is_none()
    {
        return Err(CountError::WeightUnit {
            size: window.size,
            largest: LARGEST_HARMONIC_WINDOW,
        });
    }
    Ok(WindowPlan {
        side: window.side,
        units,
        by_distance: false,
        most_units: one_side * sides,
    })
}

impl TokenBlock {
    /// Sorts the positions by token with up to `threads` threads.
    ///
    /// # Errors
    /// [`CountError::Panicked`].
    pub fn prepare(mut self, threads: usize) -> Result<PreparedBlock> {
        self.close();
        let spare = self.take_spare();
        let index = Index::new(&self, threads, spare)?;
        let plan = Plan::new(&self.settings, &self.slots)?;
        Ok(PreparedBlock {
            block: self,
            index,
            plan,
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

    /// How many positions the row of a left id has in the block: for windows the tokens with that id in
    /// rows of at least two tokens, for documents the rows of at least two distinct ids that hold it. 0 beyond
    /// the vocabulary.
    #[must_use]
    pub fn occurrences(&self, id: u32) -> u32 {
        let (id, starts) = (id as usize, &self.index.starts);
        match (starts.get(id), starts.get(id + 1)) {
            (Some(start), Some(end)) => end - start,
            _ => 0,
        }
    }

    /// Gives the emptied block back, so that its memory is used again.
    #[must_use]
    pub fn recycle(self) -> TokenBlock {
        let mut block = self.block;
        block.clear();
        block.give_spare(self.index.positions);
        block
    }

    /// Cuts all left ids into at most `parts` ranges of about the same work, in order, none empty.
    ///
    /// Work is the estimated number of pair events, a little for every position and less for
    /// every id. Ask for more parts than threads (16 times as many) and hand them out in order.
    #[must_use]
    pub fn plan_ranges(&self, parts: usize) -> Vec<Range<u32>> {
        let vocabulary_size = self.block.settings.vocabulary_size;
        let positions = self.index.positions.len() as f64;
        let half = match &self.plan {
            Plan::Follow => true,
            Plan::Narrow(plan, _) | Plan::Wide(plan, _) | Plan::Large(plan) => {
                plan.side == Side::Symmetric
            }
        };
        let reach = self.events_a_position();
        let mut seen = 0.0;
        let mut work = |id: u32| {
            let here = f64::from(self.occurrences(id));
            // In a half table the partners of an id are those not more frequent than it.
            let share = if half {
                1.0 - seen / positions.max(1.0)
            } else {
                1.0
            };
            seen += here;
            here * (4.0 + reach * share) + 8.0
        };
        let each: Vec<f64> = (0..vocabulary_size).map(&mut work).collect();
        let total: f64 = each.iter().sum();
        let parts = parts.max(1) as f64;
        let (mut ranges, mut start, mut done) = (Vec::new(), 0, 0.0);
        for (end, work) in (1..).zip(&each) {
            done += work;
            if done * parts >= total * (ranges.len() as f64 + 1.0) || end == vocabulary_size {
                ranges.push(start..end);
                start = end;
            }
        }
        ranges
    }

    /// Partners that a position has at most, or on average for whole rows.
    fn events_a_position(&self) -> f64 {
        match &self.plan {
            Plan::Follow => self.block.mean_row(),
            Plan::Narrow(plan, _) | Plan::Wide(plan, _) | Plan::Large(plan) => {
                let sides = u8::from(plan.forward()) + u8::from(plan.backward());
                plan.units.len() as f64 * f64::from(sides)
            }
        }
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
        let result = self.rows(left_range, accumulator, sink);
        if result.is_err() {
            accumulator.reset();
        }
        result
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
