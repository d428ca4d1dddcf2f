//! Distinct terms in one arena, numbered in the order of arrival.
//!
//! The index is an open-addressing table of its own, because a lookup of a rare term is a wait for
//! memory: a slot says all but the term's bytes, so that a hit costs two cache misses, and
//! [`Terms::touch`] can start the first of them early.

use crate::TextError;
use crate::hash::hash_bytes;

/// The largest number of terms: ids above are kept for marks such as "outside the vocabulary".
pub(crate) const TERM_LIMIT: u32 = u32::MAX - 16;

/// One place of the index.
#[derive(Clone, Copy)]
struct Slot {
    /// The part of the hash that decides the place, and keeps wrong candidates from being compared.
    hash: u32,
    index: u32,
    /// Start of the term in the arena and its length, as `start << LENGTH_BITS | length`.
    place: u64,
}

const LENGTH_BITS: u32 = 24;
/// Stands for this length and any longer one.
const LONG: usize = (1 << LENGTH_BITS) - 1;
const EMPTY: Slot = Slot {
    hash: 0,
    index: u32::MAX,
    place: 0,
};

fn short_hash(term: &[u8]) -> u32 {
    let hash = hash_bytes(term);
    (hash >> 32) as u32 ^ hash as u32
}

/// Interned terms.
#[derive(Clone, Default)]
pub(crate) struct Terms {
    arena: String,
    ends: Vec<usize>,
    /// Empty, or a power of two with at least 3/8 of the slots empty.
    slots: Vec<Slot>,
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

    fn place(&self, hash: u32) -> usize {
        // Slots are asked by the high bits of a product: the low bits of a hash may be poor.
        let spread = u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (spread >> 32) as usize & (self.slots.len() - 1)
    }

    fn holds(&self, slot: Slot, term: &str) -> bool {
        let length = slot.place as usize & LONG;
        if length == LONG {
            return self.term(slot.index) == term;
        }
        let start = (slot.place >> LENGTH_BITS) as usize;
        length == term.len() && &self.arena.as_bytes()[start..start + length] == term.as_bytes()
    }

    /// The number of a term, or the empty place where it belongs. There must be slots.
    fn find(&self, hash: u32, term: &str) -> Result<u32, usize> {
        let mut place = self.place(hash);
        loop {
            let slot = self.slots[place];
            if slot.index == EMPTY.index {
                return Err(place);
            }
            if slot.hash == hash && self.holds(slot, term) {
                return Ok(slot.index);
            }
            place = (place + 1) & (self.slots.len() - 1);
        }
    }

    /// Touches the place of a term, so that it is in the cache when it is asked for.
    pub(crate) fn touch(&self, term: &[u8]) -> u32 {
        if self.slots.is_empty() {
            return 0;
        }
        self.slots[self.place(short_hash(term))].hash
    }

    pub(crate) fn get(&self, term: &str) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        self.find(short_hash(term.as_bytes()), term).ok()
    }

    /// The term's number, a new one if it was not there.
    pub(crate) fn insert(&mut self, term: &str) -> Result<u32, TextError> {
        if self.len() >= self.slots.len() / 8 * 5 {
            self.grow();
        }
        let hash = short_hash(term.as_bytes());
        let place = match self.find(hash, term) {
            Ok(index) => return Ok(index),
            Err(place) => place,
        };
        let start = self.arena.len() as u64;
        let index = self.append(term)?;
        self.slots[place] = Slot {
            hash,
            index,
            place: start << LENGTH_BITS | term.len().min(LONG) as u64,
        };
        Ok(index)
    }

    /// The number of a term that is not there yet and that nobody will look for: it gets no place in the index.
    pub(crate) fn append(&mut self, term: &str) -> Result<u32, TextError> {
        let index = u32::try_from(self.len())
            .ok()
            .filter(|&index| index < TERM_LIMIT)
            .ok_or(TextError::TooManyTerms { limit: TERM_LIMIT })?;
        self.arena.push_str(term);
        self.ends.push(self.arena.len());
        Ok(index)
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(16);
        let before = std::mem::replace(&mut self.slots, vec![EMPTY; size]);
        for slot in before.into_iter().filter(|slot| slot.index != EMPTY.index) {
            self.put(slot);
        }
    }

    /// Bytes on the heap.
    pub(crate) fn held_bytes(&self) -> usize {
        self.arena.capacity()
            + self.ends.capacity() * size_of::<usize>()
            + self.slots.capacity() * size_of::<Slot>()
    }

    /// The same terms with an index, a new one if it was freed.
    pub(crate) fn with_index(self) -> Self {
        if !self.slots.is_empty() || self.ends.is_empty() {
            return self;
        }
        let mut size = 16;
        while self.len() > size / 8 * 5 {
            size *= 2;
        }
        let mut slots = Self {
            slots: vec![EMPTY; size],
            ..Self::default()
        };
        let mut start = 0;
        for (index, &end) in (0..).zip(&self.ends) {
            let term = &self.arena[start..end];
            let hash = short_hash(term.as_bytes());
            let slot = Slot {
                hash,
                index,
                place: (start as u64) << LENGTH_BITS | term.len().min(LONG) as u64,
            };
            slots.put(slot);
            start = end;
        }
        Self {
            slots: slots.slots,
            ..self
        }
    }

    /// Puts a slot of a new term to the first empty place of its own. There must be one.
    fn put(&mut self, slot: Slot) {
        let mut place = self.place(slot.hash);
        while self.slots[place].index != EMPTY.index {
            place = (place + 1) & (self.slots.len() - 1);
        }
        self.slots[place] = slot;
    }

    /// Frees the index: the terms stay, [`Terms::get`] finds nothing any more.
    pub(crate) fn without_index(mut self) -> Self {
        self.slots = Vec::new();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_keep_their_numbers_while_the_table_grows() {
        let mut terms = Terms::default();
        assert_eq!((terms.get(""), terms.touch(b"")), (None, 0));
        let term = |number: u32| match number {
            0 => String::new(),
            1 => "x".repeat(LONG),
            2 => "x".repeat(LONG + 1),
            _ => number.to_string(),
        };
        for number in 0..10_000 {
            assert_eq!(terms.get(&term(number)), None);
            assert_eq!(terms.insert(&term(number)).unwrap(), number);
            assert_eq!(terms.insert(&term(number / 2)).unwrap(), number / 2);
        }
        for number in 0..10_000 {
            assert_eq!(terms.get(&term(number)), Some(number));
            assert_eq!(terms.term(number), term(number));
        }
        assert_eq!(terms.get("10000"), None);
        let terms = terms.without_index();
        assert_eq!((terms.get("7"), terms.term(9_999)), (None, "9999"));
        let mut terms = terms.with_index();
        for number in 0..10_000 {
            assert_eq!(terms.get(&term(number)), Some(number));
        }
        assert_eq!(terms.insert("10000").unwrap(), 10_000);
        assert_eq!(terms.with_index().get("10000"), Some(10_000));
    }
}
