//! The inner loops: one row of the table after the other.
//!
//! For a left id: walk its positions, gather the partners of some hundred positions into a short
//! list (`pmill_simd`), add the list to the accumulator, and at the end read the row out in order.
//! A symmetric table is counted by looking both ways and keeping only partners whose id is not
//! below the left one, so that no second pass has to put two halves together.
//!
//! Sums of one block cannot leave 64 bits: [`WindowPlan`] is made only if 2³¹ positions, more than
//! a block holds, with the most units that one can add stay below 2⁶⁴.

use std::ops::{AddAssign, Range};

use pmill_simd::{Sum, TOUCHED_SHIFT, WindowLanes};

use crate::accumulator::{Accumulator, Partners, Row, Sums};
use crate::block::{FIRST_CODE, GAP, ROW_END, Slot, Slots};
use crate::error::Result;
use crate::prepared::{Plan, PreparedBlock, WindowPlan};
use crate::settings::Context;
use crate::sink::RowSink;

/// A row with at least one partner for so many ids of the vocabulary is read out whole.
const DENSE_SHARE: u64 = 8;

/// 32-bit sums pay, even with a flush after so many positions.
const FLUSH_POSITIONS: u64 = 16_384;

impl PreparedBlock {
    pub(crate) fn rows(
        &self,
        range: Range<u32>,
        accumulator: &mut Accumulator,
        sink: &mut impl RowSink,
    ) -> Result<()> {
        match (&self.plan, &self.block.slots) {
            (Plan::Narrow(plan, lanes), Slots::Narrow(slots)) => {
                self.window_rows(plan, lanes, slots, range, accumulator, sink)
            }
            (Plan::Wide(plan, lanes), Slots::Wide(slots)) => {
                self.window_rows(plan, lanes, slots, range, accumulator, sink)
            }
            (Plan::Large(plan), Slots::Narrow(slots)) => {
                self.large_window_rows(plan, slots, range, accumulator, sink)
            }
            (Plan::Large(plan), Slots::Wide(slots)) => {
                self.large_window_rows(plan, slots, range, accumulator, sink)
            }
            (_, Slots::Narrow(slots)) => self.follow_rows(slots, range, accumulator, sink),
            (_, Slots::Wide(slots)) => self.follow_rows(slots, range, accumulator, sink),
        }
    }

    /// The positions from those of `left` on, and how many of them are its own.
    fn positions_from(&self, left: u32) -> (&[u32], usize) {
        let start = self.index.starts[left as usize] as usize;
        let end = self.index.starts[left as usize + 1] as usize;
        (&self.index.positions[start..], end - start)
    }

    fn window_rows<L: Slot>(
        &self,
        plan: &WindowPlan,
        lanes: &WindowLanes<L>,
        slots: &[L],
        range: Range<u32>,
        accumulator: &mut Accumulator,
        sink: &mut impl RowSink,
    ) -> Result<()> {
        let batch = Partners::<L>::batch(plan.units.len());
        L::partners(accumulator).ensure(lanes.room(batch));
        // Behind index 0, so that a distance looks itself up.
        let by_distance: Vec<u32> = std::iter::once(0)
            .chain(plan.units.iter().copied())
            .collect();
        let flush_after = u64::from(u32::MAX) / plan.most_units;
        for left in range {
            let (positions, count) = self.positions_from(left);
            if count == 0 {
                continue;
            }
            let floor = plan.floor(left);
            let row_floor = if plan.forward() && plan.backward() {
                floor
            } else {
                FIRST_CODE
            };
            let fits = count as u64 <= flush_after;
            let escape = !fits && flush_after < FLUSH_POSITIONS;
            let width = u64::from(self.block.settings.vocabulary_size + FIRST_CODE - row_floor);
            let dense = count as u64 * plan.units.len() as u64 * DENSE_SHARE >= width;
            let mut done = 0;
            let mut unflushed = 0_u64;
            while done < count {
                let take = batch.min(count - done);
                let partners = L::partners(accumulator);
                let found = pmill_simd::collect(
                    slots,
                    &positions[done..],
                    take,
                    lanes,
                    L::from_code(floor),
                    &mut partners.codes,
                    &mut partners.weights,
                );
                done += take;
                let (partners, sums, wide) = L::split(accumulator);
                let codes = &partners.codes[..found];
                let weights = &partners.weights[..found];
                let code = |at: usize| codes[at].to_u32() as usize;
                let weight = |at: usize| weights[at].to_u32();
                let unit = |at: usize| by_distance[weight(at) as usize];
                match (escape, plan.by_distance, dense) {
                    (false, false, true) => add_dense(sums, found, code, weight),
                    (false, false, false) => add_flagged(sums, found, code, weight),
                    (false, true, true) => add_dense(sums, found, code, unit),
                    (false, true, false) => add_flagged(sums, found, code, unit),
                    (true, false, true) => add_dense(wide, found, code, weight),
                    (true, false, false) => add_flagged(wide, found, code, weight),
                    (true, true, true) => add_dense(wide, found, code, unit),
                    (true, true, false) => add_flagged(wide, found, code, unit),
                }
                unflushed += take as u64;
                if !fits && !escape && unflushed + batch as u64 > flush_after {
                    accumulator.flush_to_wide(row_floor);
                    unflushed = 0;
                }
            }
            let Accumulator {
                sums,
                wide_sums,
                row,
                ..
            } = &mut *accumulator;
            if fits {
                take(sums, dense, row_floor, row);
            } else if escape {
                take(wide_sums, dense, row_floor, row);
            } else {
                accumulator.flush_to_wide(row_floor);
                let Accumulator { wide_sums, row, .. } = &mut *accumulator;
                wide_sums.take_dense(row_floor, row);
            }
            emit(left, &accumulator.row, sink)?;
        }
        Ok(())
    }

    /// Windows beyond the vector loops: position by position.
    fn large_window_rows<S: Slot>(
        &self,
        plan: &WindowPlan,
        slots: &[S],
        range: Range<u32>,
        accumulator: &mut Accumulator,
        sink: &mut impl RowSink,
    ) -> Result<()> {
        for left in range {
            let (positions, count) = self.positions_from(left);
            let floor = plan.floor(left);
            let (sums, touched) = accumulator.wide_sums.flagged();
            let mut add = |code: u32, unit: u32| {
                sums[code as usize] += u64::from(unit);
                touched[(code >> TOUCHED_SHIFT) as usize] = 1;
            };
            for &position in &positions[..count] {
                let position = position as usize;
                if plan.forward() {
                    for (slot, &unit) in slots[position + 1..].iter().zip(&plan.units) {
                        let code = slot.code();
                        if code == ROW_END {
                            break;
                        }
                        if code >= floor && code != GAP {
                            add(code, unit);
                        }
                    }
                }
                if plan.backward() {
                    for (slot, &unit) in slots[..position].iter().rev().zip(&plan.units) {
                        let code = slot.code();
                        if code == ROW_END {
                            break;
                        }
                        if code > floor && code != GAP {
                            add(code, unit);
                        }
                    }
                }
            }
            let (right, counts) = accumulator.take_wide_row();
            if !right.is_empty() {
                sink.row(left, right, counts)?;
            }
        }
        Ok(())
    }

    /// Documents and bipartite rows: everything behind a position, one unit each.
    fn follow_rows<L: Slot>(
        &self,
        slots: &[L],
        range: Range<u32>,
        accumulator: &mut Accumulator,
        sink: &mut impl RowSink,
    ) -> Result<()> {
        let longest = self.block.longest_row();
        L::partners(accumulator).ensure(longest + 4_096);
        let half = matches!(self.block.settings.context, Context::Document { .. });
        let mean = self.block.mean_row() as u64 + 1;
        for left in range {
            let (positions, count) = self.positions_from(left);
            if count == 0 {
                continue;
            }
            let row_floor = if half { left + FIRST_CODE } else { FIRST_CODE };
            let width = u64::from(self.block.settings.vocabulary_size + FIRST_CODE - row_floor);
            let dense = count as u64 * mean * DENSE_SHARE >= width;
            let mut rest = &positions[..count];
            while !rest.is_empty() {
                let partners = L::partners(accumulator);
                let (taken, found) =
                    pmill_simd::followers(slots, rest, longest, &mut partners.codes);
                rest = &rest[taken..];
                // A position adds at most 1 to a pair, and a block has less than 2^31.
                let (partners, sums, _) = L::split(accumulator);
                let codes = &partners.codes[..found];
                if dense {
                    let sums = sums.dense();
                    for &code in codes {
                        sums[code.code() as usize] += 1;
                    }
                } else {
                    let (sums, touched) = sums.flagged();
                    for &code in codes {
                        sums[code.code() as usize] += 1;
                        touched[(code.code() >> TOUCHED_SHIFT) as usize] = 1;
                    }
                }
            }
            take(
                &mut accumulator.sums,
                dense,
                row_floor,
                &mut accumulator.row,
            );
            emit(left, &accumulator.row, sink)?;
        }
        Ok(())
    }
}

fn take<S: Sum>(sums: &mut Sums<S>, dense: bool, row_floor: u32, row: &mut Row) {
    if dense {
        sums.take_dense(row_floor, row);
    } else {
        sums.take_flagged(row_floor, row);
    }
}

fn emit(left: u32, row: &Row, sink: &mut impl RowSink) -> Result<()> {
    let (right, counts) = row.columns();
    if right.is_empty() {
        return Ok(());
    }
    sink.row(left, right, counts)
}

#[inline(always)]
fn add_dense<S: Sum + From<u32> + AddAssign>(
    sums: &mut Sums<S>,
    found: usize,
    code: impl Fn(usize) -> usize,
    unit: impl Fn(usize) -> u32,
) {
    let sums = sums.dense();
    for at in 0..found {
        sums[code(at)] += S::from(unit(at));
    }
}

#[inline(always)]
fn add_flagged<S: Sum + From<u32> + AddAssign>(
    sums: &mut Sums<S>,
    found: usize,
    code: impl Fn(usize) -> usize,
    unit: impl Fn(usize) -> u32,
) {
    let (sums, touched) = sums.flagged();
    for at in 0..found {
        sums[code(at)] += S::from(unit(at));
        touched[code(at) >> TOUCHED_SHIFT] = 1;
    }
}
