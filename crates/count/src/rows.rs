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

/// The distinct ids of the vocabulary, rising, into `out`; how many ids were outside of it.
pub(crate) fn distinct(ids: &[u32], vocabulary_size: u32, out: &mut Vec<u32>) -> Result<usize> {
    let outside = ids.iter().filter(|&&id| id == OUT_OF_VOCABULARY).count();
    pmill_simd::distinct(ids, out);
    match out.last() {
        Some(&id) if id >= vocabulary_size => Err(CountError::IdOutOfRange {
            id,
            vocabulary_size,
        }),
        _ => Ok(outside),
    }
}

fn out_of_range(ids: &[u32], vocabulary_size: u32) -> CountError {
    let bad = |id: &&u32| **id >= vocabulary_size && **id != OUT_OF_VOCABULARY;
    CountError::IdOutOfRange {
        id: ids.iter().find(bad).copied().unwrap_or(OUT_OF_VOCABULARY),
        vocabulary_size,
    }
}
