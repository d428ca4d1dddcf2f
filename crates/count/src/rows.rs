//! Rows of ids to slots: what a context ignores is left out.

use crate::block::{FIRST_CODE, GAP, ROW_END, Slot};
use crate::error::{CountError, Result};
use crate::settings::{Context, CountSettings, OUT_OF_VOCABULARY, OutOfVocabulary};

/// What the rows of a block, or of a piece of one, came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Slots that hold an id of the vocabulary.
    pub(crate) tokens: usize,
    /// Rows pushed.
    pub(crate) rows: u64,
    /// Rows that can hold a pair.
    pub(crate) kept_rows: u64,
    /// Slots of the longest of them, its end not counted.
    pub(crate) longest_row: usize,
    pub(crate) dropped_features: u64,
    pub(crate) out_of_vocabulary: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.rows += other.rows;
        self.kept_rows += other.kept_rows;
        self.longest_row = self.longest_row.max(other.longest_row);
        self.dropped_features += other.dropped_features;
        self.out_of_vocabulary += other.out_of_vocabulary;
    }
}

/// Writes a row of context window or document and its end to the start of `slots`, which has room
/// for one slot more than `ids`; how many slots it took, 0 when the row cannot hold a pair. Slots
/// behind may be anything. An error leaves the tally as it was.
pub(crate) fn write<S: Slot>(
    settings: &CountSettings,
    ids: &[u32],
    slots: &mut [S],
    scratch: &mut Vec<u32>,
    tally: &mut Tally,
) -> Result<usize> {
    let (filled, tokens, outside, dropped) = match settings.context {
        Context::Document { max_features } => {
            let outside = distinct(ids, settings.vocabulary_size, scratch)?;
            let most = max_features.map_or(usize::MAX, |most| most as usize);
            let dropped = scratch.len().saturating_sub(most);
            scratch.truncate(most);
            for (slot, &id) in slots.iter_mut().zip(scratch.iter()) {
                *slot = S::from_code(id + FIRST_CODE);
            }
            (scratch.len(), scratch.len(), outside, dropped)
        }
        Context::Window(ref window) => {
            let gaps = window.out_of_vocabulary == OutOfVocabulary::Gap;
            let (filled, outside) = write_window(settings.vocabulary_size, ids, gaps, slots)
                .ok_or_else(|| out_of_range(ids, settings.vocabulary_size))?;
            (filled, ids.len() - outside, outside, 0)
        }
        Context::Row => {
            return Err(CountError::WrongContext {
                call: "push_row",
                context: "row",
            });
        }
    };
    tally.rows += 1;
    tally.out_of_vocabulary += outside as u64;
    tally.dropped_features += dropped as u64;
    if tokens < 2 {
        return Ok(0);
    }
    slots[filled] = S::from_code(ROW_END);
    tally.tokens += tokens;
    tally.kept_rows += 1;
    tally.longest_row = tally.longest_row.max(filled);
    Ok(filled + 1)
}

/// Slots filled, and ids outside the vocabulary; `None` on a bad id.
fn write_window<S: Slot>(
    vocabulary_size: u32,
    ids: &[u32],
    gaps: bool,
    slots: &mut [S],
) -> Option<(usize, usize)> {
    let slots = &mut slots[..=ids.len()];
    let (mut filled, mut outside, mut bad) = (0, 0, false);
    for &id in ids {
        let known = id < vocabulary_size;
        bad |= !known & (id != OUT_OF_VOCABULARY);
        outside += usize::from(!known);
        slots[filled] = S::from_code(if known { id + FIRST_CODE } else { GAP });
        filled += usize::from(known | gaps);
    }
    (!bad).then_some((filled, outside))
}

/// Rows up to so many ids are sorted by counting, for each id, the smaller ones.
const RANKED: usize = 16;

/// The distinct ids of the vocabulary, rising, into `out`; how many ids were outside of it.
pub(crate) fn distinct(ids: &[u32], vocabulary_size: u32, out: &mut Vec<u32>) -> Result<usize> {
    let outside = ids.iter().filter(|&&id| id == OUT_OF_VOCABULARY).count();
    out.clear();
    if ids.len() <= RANKED {
        distinct_ranked(ids, out);
    } else {
        out.extend(ids.iter().filter(|&&id| id != OUT_OF_VOCABULARY));
        out.sort_unstable();
        out.dedup();
    }
    match out.last() {
        Some(&id) if id >= vocabulary_size => Err(CountError::IdOutOfRange {
            id,
            vocabulary_size,
        }),
        _ => Ok(outside),
    }
}

/// A short row without branches on its ids: captions have a dozen words, and a sort guesses wrong
/// at each of them. An id goes to the place that is the number of smaller ids, its twins to the
/// same one; places left over hold the mark of ids outside, and are taken out.
fn distinct_ranked(ids: &[u32], out: &mut Vec<u32>) {
    // With the top bit turned, ids compare as signed integers, which is one vector instruction.
    let mut keys = [i32::MAX; RANKED];
    for (key, &id) in keys.iter_mut().zip(ids) {
        *key = (id ^ 1 << 31) as i32;
    }
    let mut ranks = [0_u32; RANKED];
    for &smaller in &keys[..ids.len()] {
        for (rank, &key) in ranks.iter_mut().zip(&keys) {
            *rank += u32::from(smaller < key);
        }
    }
    let mut places = [OUT_OF_VOCABULARY; RANKED];
    for (&rank, &id) in ranks.iter().zip(ids) {
        places[rank as usize % RANKED] = id;
    }
    out.resize(RANKED + 1, 0);
    let mut filled = 0;
    for &id in &places[..ids.len()] {
        out[filled] = id;
        filled += usize::from(id != OUT_OF_VOCABULARY);
    }
    out.truncate(filled);
}

fn out_of_range(ids: &[u32], vocabulary_size: u32) -> CountError {
    let bad = |id: &&u32| **id >= vocabulary_size && **id != OUT_OF_VOCABULARY;
    CountError::IdOutOfRange {
        id: ids.iter().find(bad).copied().unwrap_or(OUT_OF_VOCABULARY),
        vocabulary_size,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_short_row_is_sorted_as_a_long_one_is(
            ids in proptest::collection::vec(prop_oneof![4 => 0_u32..20, 1 => any::<u32>(), 1 => Just(OUT_OF_VOCABULARY), 1 => Just(1 << 31)], 0..=RANKED),
        ) {
            let mut expected: Vec<u32> = ids.iter().copied().filter(|&id| id != OUT_OF_VOCABULARY).collect();
            expected.sort_unstable();
            expected.dedup();
            let mut out = vec![9; 3];
            out.clear();
            distinct_ranked(&ids, &mut out);
            prop_assert_eq!(out, expected);
        }
    }
}
