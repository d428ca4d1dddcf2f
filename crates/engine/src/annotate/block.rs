//! Look-ups of many documents at once, as the counting kernel counts: sorted by left id, so that for
//! each left id its row of the table is spread over a dense array that stays in cache, and all right
//! ids are read from there. One cache miss for each term of a document rather than one for each pair.
//!
//! In: *runs*, each a left id and some rising right ids; every run has its own slots, in the order of
//! asking. Out: one answer a slot. Memory: 8 bytes a slot, 28 bytes a run, 4 bytes a right id and 8
//! bytes a term of the vocabulary.

use std::ops::Range;

use pmill_simd::{prefer_huge_pages, prefetch};

use super::lookup::{NONE, Pair, PairTable, Row};

/// A row of at most so many pairs for each that is asked is spread; in a longer one they are searched.
const SPREAD: usize = 32;

/// Runs that are fetched ahead.
const AHEAD: usize = 16;

/// Pairs of one left id that are looked for together, so that they wait for memory together.
const TOGETHER: usize = 128;

/// Right ids of one left id, and where their answers go.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    /// Place of the first right id.
    first: u32,
    length: u32,
    /// Slot of the first answer.
    slot: u32,
}

/// What is asked of the table, and its answers.
#[derive(Debug)]
pub(super) struct Block {
    most_slots: usize,
    rights: Vec<u32>,
    lefts: Vec<u32>,
    runs: Vec<Run>,
    slots: usize,
    answers: Vec<Pair>,
    /// Where the runs of each left id end among the sorted ones.
    ends: Vec<u32>,
    sorted: Vec<Run>,
    places: Places,
}

/// For each right id its place in the table, less `base`, as of the row that was spread last. What an
/// earlier row left there lies outside the places of a later one, so nothing is ever cleared.
#[derive(Debug, Default)]
struct Places {
    base: usize,
    of: Vec<u32>,
}

impl Block {
    /// A block that is full from `most_slots` on.
    pub(super) fn new(most_slots: usize) -> Self {
        Self {
            most_slots,
            rights: Vec::new(),
            lefts: Vec::new(),
            runs: Vec::new(),
            slots: 0,
            answers: Vec::new(),
            ends: Vec::new(),
            sorted: Vec::new(),
            places: Places::default(),
        }
    }

    /// Right ids that runs may name; the place of the first.
    pub(super) fn add_rights(&mut self, rights: impl Iterator<Item = u32>) -> u32 {
        let first = self.rights.len() as u32;
        self.rights.extend(rights);
        first
    }

    /// Asks for the pairs of `left` with `length` right ids from the place `first` on.
    #[inline]
    pub(super) fn ask(&mut self, left: u32, first: u32, length: usize) {
        self.lefts.push(left);
        self.runs.push(Run {
            first,
            length: length as u32,
            slot: self.slots as u32,
        });
        self.slots += length;
    }

    /// Whether it should be answered before more is asked. Places and slots are 32 bits: beyond what
    /// makes a block full there is room for one more document.
    pub(super) fn is_full(&self) -> bool {
        self.slots >= self.most_slots || self.rights.len() >= 1 << 30
    }

    /// Number of runs, and of slots.
    pub(super) fn ends(&self) -> (usize, usize) {
        (self.runs.len(), self.slots)
    }

    /// The answers, slot by slot.
    pub(super) fn answers(&self) -> &[Pair] {
        &self.answers[..self.slots]
    }

    /// Left and right id of a slot, which belongs to one of these runs.
    pub(super) fn pair(&self, runs: Range<usize>, slot: usize) -> (u32, u32) {
        let after = self.runs[runs.clone()].partition_point(|run| run.slot as usize <= slot);
        // The last of those that begin at or before the slot: runs without right ids come first.
        let index = runs.start + after.saturating_sub(1);
        let run = self.runs[index];
        let right = self.rights[run.first as usize + slot - run.slot as usize];
        (self.lefts[index], right)
    }

    /// Forgets what was asked.
    pub(super) fn clear(&mut self) {
        self.rights.clear();
        self.lefts.clear();
        self.runs.clear();
        self.slots = 0;
    }

    /// Fills the slots.
    pub(super) fn answer(&mut self, table: &PairTable) {
        self.sort(table.terms());
        lengthen(&mut self.answers, self.slots, NONE);
        self.places.reset(table.terms());
        let mut start = 0;
        for left in 0..table.terms() as u32 {
            let runs = start..self.ends[left as usize] as usize;
            if runs.is_empty() {
                continue;
            }
            start = runs.end;
            self.answer_row(runs, table.row(left));
        }
    }

    /// Sorts the runs by their left ids.
    fn sort(&mut self, terms: usize) {
        self.ends.clear();
        self.ends.resize(terms + 1, 0);
        for left in &self.lefts {
            self.ends[*left as usize + 1] += 1;
        }
        for term in 0..terms {
            self.ends[term + 1] += self.ends[term];
        }
        // Each is where the runs of a left id begin, and moves to where they end.
        lengthen(&mut self.sorted, self.runs.len(), Run::default());
        for (left, run) in self.lefts.iter().zip(&self.runs) {
            let place = &mut self.ends[*left as usize];
            self.sorted[*place as usize] = *run;
            *place += 1;
        }
    }

    /// Answers the runs of one left id.
    fn answer_row(&mut self, runs: Range<usize>, row: Row<'_>) {
        let asked: usize = self.sorted[runs.clone()]
            .iter()
            .map(|run| run.length as usize)
            .sum();
        let spread = row.rights.len() <= SPREAD * asked;
        let from = spread.then(|| self.places.spread(row));
        let (mut rights, mut slots) = ([0; TOGETHER], [0; TOGETHER]);
        let mut held = 0;
        for index in runs {
            if let Some(ahead) = self.sorted.get(index + AHEAD) {
                prefetch(&self.rights, ahead.first as usize);
                prefetch(&self.answers, ahead.slot as usize);
            }
            let run = self.sorted[index];
            let mut done = 0;
            while done < run.length {
                let more = (run.length - done).min((TOGETHER - held) as u32);
                let first = (run.first + done) as usize;
                for (step, right) in (0..more).zip(&self.rights[first..]) {
                    rights[held] = *right;
                    slots[held] = run.slot + done + step;
                    held += 1;
                }
                done += more;
                if held == TOGETHER {
                    self.answer_some(row, from, &rights, &slots);
                    held = 0;
                }
            }
        }
        self.answer_some(row, from, &rights[..held], &slots[..held]);
    }

    /// Answers slots of one row. `from` is its first place when it is spread, else it is searched.
    fn answer_some(&mut self, row: Row<'_>, from: Option<u32>, rights: &[u32], slots: &[u32]) {
        let mut places = [0; TOGETHER];
        let places = &mut places[..rights.len()];
        match from {
            Some(from) => {
                for (place, right) in places.iter_mut().zip(rights) {
                    *place = self.places.of[*right as usize].wrapping_sub(from);
                }
            }
            None => search(row.rights, rights, places),
        }
        for place in &*places {
            prefetch(row.numbers, *place as usize);
        }
        for (place, slot) in places.iter().zip(slots) {
            self.answers[*slot as usize] = row.pair(*place as usize);
        }
    }
}

/// Makes a list that is read and written at random at least so long; what it held is lost.
fn lengthen<T: Copy>(list: &mut Vec<T>, length: usize, item: T) {
    if list.len() < length {
        list.clear();
        list.reserve_exact(length);
        prefer_huge_pages(list);
        list.resize(length, item);
    }
}

/// Where these right ids stand in a row, or `u32::MAX`; one step of all searches after the other, as
/// none of them waits for another's memory.
fn search(row: &[u32], rights: &[u32], places: &mut [u32]) {
    places.fill(0);
    let mut size = row.len() as u32;
    while size > 1 {
        let half = size / 2;
        for (place, right) in places.iter_mut().zip(rights) {
            let middle = *place + half;
            if row[middle as usize] <= *right {
                *place = middle;
            }
        }
        size -= half;
    }
    for (place, right) in places.iter_mut().zip(rights) {
        if row.get(*place as usize) != Some(right) {
            *place = u32::MAX;
        }
    }
}

impl Places {
    /// Forgets all rows.
    fn reset(&mut self, terms: usize) {
        self.base = 0;
        self.of.clear();
        self.of.resize(terms, u32::MAX);
    }

    /// Spreads a row behind those before it; its first place.
    fn spread(&mut self, row: Row<'_>) -> u32 {
        let end = row.start + row.rights.len();
        if end - self.base >= u32::MAX as usize {
            self.reset(self.of.len());
            self.base = row.start;
        }
        let from = (row.start - self.base) as u32;
        for (place, right) in (from..).zip(row.rights) {
            self.of[*right as usize] = place;
        }
        from
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::lookup::tests::table;
    use super::*;

    proptest! {
        /// Blocks that are used again, with few runs (rows are searched) and many (rows are spread).
        #[test]
        fn answers_are_those_of_a_map(
            all in prop::collection::btree_map((0_u32..30, 0_u32..30), 0_u16..999, 0..200),
            blocks in prop::collection::vec(
                prop::collection::vec((0_u32..30, prop::collection::btree_set(0_u32..30, 0..12)), 0..40),
                1..4,
            ),
            cut in 1_usize..50,
        ) {
            let pair = |number: &u16| Pair { score: f32::from(*number), count: f32::from(*number) + 1.0 };
            let all: BTreeMap<(u32, u32), Pair> =
                all.iter().map(|(ids, number)| (*ids, pair(number))).collect();
            let rows: Vec<_> = all.iter().map(|(ids, pair)| (ids.0, ids.1, *pair)).collect();
            let table = table(30, &rows, cut);
            let mut block = Block::new(1);
            for runs in blocks {
                block.clear();
                let mut asked = Vec::new();
                for (left, rights) in runs {
                    let rights: Vec<u32> = rights.into_iter().collect();
                    let first = block.add_rights(rights.iter().copied());
                    block.ask(left, first, rights.len());
                    asked.extend(rights.into_iter().map(|right| (left, right)));
                }
                prop_assert_eq!(block.is_full(), !asked.is_empty());
                block.answer(&table);
                prop_assert_eq!(block.answers().len(), asked.len());
                let runs = block.ends().0;
                for (slot, ids) in asked.iter().enumerate() {
                    let answer = Some(block.answers()[slot]).filter(|pair| !pair.score.is_nan());
                    prop_assert_eq!(answer, all.get(ids).copied());
                    prop_assert_eq!(block.pair(0..runs, slot), *ids);
                }
            }
        }
    }

    /// What waits for more of its row is answered though none comes.
    #[test]
    fn a_last_run_without_right_ids_leaves_no_other_unanswered() {
        let held = Pair {
            score: 1.0,
            count: 2.0,
        };
        let table = table(3, &[(0, 1, held)], 1);
        let mut block = Block::new(1);
        for right in [1, 2] {
            block.clear();
            let first = block.add_rights([right].into_iter());
            block.ask(0, first, 1);
            block.ask(0, first, 0);
            block.answer(&table);
            assert_eq!(block.answers()[0].score.is_nan(), right == 2);
        }
    }

    #[test]
    fn places_begin_again_before_they_leave_32_bits() {
        let mut places = Places::default();
        places.reset(3);
        let row = |start| Row {
            start,
            rights: &[0, 2],
            numbers: &[[0.0; 2]; 2],
        };
        assert_eq!(places.spread(row(7)), 7);
        assert_eq!(places.of, [7, u32::MAX, 8]);
        let far = u32::MAX as usize - 3;
        assert_eq!(places.spread(row(far)), far as u32);
        assert_eq!(places.spread(row(far + 2)), 0);
        assert_eq!(places.of, [0, u32::MAX, 1]);
    }
}
