//! Distinct terms in one arena, numbered in the order of arrival.

use hashbrown::HashTable;

use crate::TextError;
use crate::hash::hash_bytes;

/// The largest number of terms: ids above are kept for marks such as "outside the vocabulary".
pub(crate) const TERM_LIMIT: u32 = u32::MAX - 16;

/// One entry of the index. 32 bits of the hash are kept so that growing needs no second look at the
/// arena and a wrong candidate is seldom compared.
#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    index: u32,
}

/// Spreads a kept hash over 64 bits: the table takes its place from the low and its tag from the
/// high bits.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn short_hash(term: &str) -> u32 {
    let hash = hash_bytes(term.as_bytes());
    (hash >> 32) as u32 ^ hash as u32
}

/// Interned terms.
#[derive(Clone, Default)]
pub(crate) struct Terms {
    arena: String,
    ends: Vec<usize>,
    index: HashTable<Slot>,
}

impl Terms {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The term with a number below [`Terms::len`].
    pub(crate) fn term(&self, index: u32) -> &str {
        let index = index as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.arena[start..self.ends[index]]
    }

    pub(crate) fn get(&self, term: &str) -> Option<u32> {
        let hash = short_hash(term);
        self.index
            .find(spread(hash), |slot| {
                slot.hash == hash && self.term(slot.index) == term
            })
            .map(|slot| slot.index)
    }

    /// The term's number, a new one if it was not there.
    pub(crate) fn insert(&mut self, term: &str) -> Result<u32, TextError> {
        if let Some(index) = self.get(term) {
            return Ok(index);
        }
        let index = u32::try_from(self.len())
            .ok()
            .filter(|&index| index < TERM_LIMIT)
            .ok_or(TextError::TooManyTerms { limit: TERM_LIMIT })?;
        self.arena.push_str(term);
        self.ends.push(self.arena.len());
        let hash = short_hash(term);
        self.index
            .insert_unique(spread(hash), Slot { hash, index }, |slot| spread(slot.hash));
        Ok(index)
    }

    /// Bytes on the heap.
    pub(crate) fn held_bytes(&self) -> usize {
        self.arena.capacity()
            + self.ends.capacity() * size_of::<usize>()
            + self.index.allocation_size()
    }

    /// Frees the index: the terms stay, [`Terms::get`] finds nothing any more.
    pub(crate) fn without_index(mut self) -> Self {
        self.index = HashTable::new();
        self
    }
}
