//! The scores of pairs by their ids, for tens of millions of look-ups a second.
//!
//! Pairs of the most frequent terms, which are most of those that a text holds, lie in a dense
//! square. The others lie in buckets of one cache line, by a hash of both ids. A look-up is asked
//! first and answered later: in between, its line is on the way from memory. Memory: 19 bytes a pair
//! and 32 MiB for the square.

use pmill_simd::{prefer_huge_pages, prefetch};

use crate::error::EngineError;

/// Terms of the dense square.
const DENSE: usize = 2048;

/// Pairs of one bucket.
const SLOTS: usize = 4;

/// Pairs of one bucket on average, times 10: full buckets overflow to the next one.
const FILL_TENTHS: u64 = 34;

/// Look-ups that are asked before they are answered.
const QUEUE: usize = 256;

/// No key: two ids of 2^32 − 1, which no vocabulary has.
const EMPTY: u64 = u64::MAX;

/// Score and natural count of one pair, in single precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pair {
    pub(super) score: f32,
    pub(super) count: f32,
}

/// No such pair.
const NONE: Pair = Pair {
    score: f32::NAN,
    count: 0.0,
};

/// Filled from the front; the search for a pair ends at a bucket that has room.
#[derive(Clone)]
#[repr(align(64))]
struct Bucket {
    keys: [u64; SLOTS],
    pairs: [Pair; SLOTS],
}

/// Pairs by the ids of their left and right terms.
pub(super) struct Lookup {
    dense_terms: usize,
    dense: Vec<Pair>,
    buckets: Vec<Bucket>,
}

/// Look-ups that were asked and not answered yet.
#[derive(Debug, Default)]
pub(super) struct Queue {
    asked: Vec<(u64, usize)>,
}

/// Bytes of a table of `terms` terms and `pairs` pairs.
pub(super) fn bytes(terms: usize, pairs: u64) -> u64 {
    let dense = terms.min(DENSE) as u64;
    buckets(pairs) * size_of::<Bucket>() as u64 + dense * dense * size_of::<Pair>() as u64
}

fn buckets(pairs: u64) -> u64 {
    pairs.saturating_mul(10) / FILL_TENTHS + 1
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Lookup {
    pub(super) fn new(terms: usize, pairs: u64) -> Self {
        let dense_terms = terms.min(DENSE);
        let empty = Bucket {
            keys: [EMPTY; SLOTS],
            pairs: [NONE; SLOTS],
        };
        let number = usize::try_from(buckets(pairs)).unwrap_or(usize::MAX);
        let mut buckets = Vec::with_capacity(number);
        prefer_huge_pages(&mut buckets);
        buckets.resize(number, empty);
        Self {
            dense_terms,
            dense: vec![NONE; dense_terms * dense_terms],
            buckets,
        }
    }

    /// Where a pair is looked for: in the square, or behind it in the buckets.
    #[inline]
    fn place(&self, key: u64) -> usize {
        let (left, right) = ((key >> 32) as usize, key as u32 as usize);
        if left < self.dense_terms && right < self.dense_terms {
            return left * self.dense_terms + right;
        }
        // The two halves of a 128-bit product, of which every bit depends on every bit of the key.
        let product = u128::from(key ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        let hash = (product >> 64) as u64 ^ product as u64;
        let bucket = (u128::from(hash) * self.buckets.len() as u128) >> 64;
        self.dense.len() + bucket as usize
    }

    /// Takes these pairs, each given once.
    pub(super) fn push(
        &mut self,
        pairs: impl Iterator<Item = (u32, u32, Pair)>,
    ) -> Result<(), EngineError> {
        let mut batch = Vec::with_capacity(QUEUE);
        let mut pairs = pairs.peekable();
        while pairs.peek().is_some() {
            batch.clear();
            for (left, right, pair) in pairs.by_ref().take(QUEUE) {
                let key = key(left, right);
                let place = self.place(key);
                if let Some(bucket) = place.checked_sub(self.dense.len()) {
                    prefetch(&self.buckets, bucket);
                }
                batch.push((key, place, pair));
            }
            for (key, place, pair) in &batch {
                match place.checked_sub(self.dense.len()) {
                    None => self.dense[*place] = *pair,
                    Some(bucket) => self.put(bucket, *key, *pair)?,
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, first: usize, key: u64, pair: Pair) -> Result<(), EngineError> {
        let (before, from) = self.buckets.split_at_mut(first);
        for bucket in from.iter_mut().chain(before) {
            if let Some(slot) = bucket.keys.iter().position(|other| *other == EMPTY) {
                (bucket.keys[slot], bucket.pairs[slot]) = (key, pair);
                return Ok(());
            }
        }
        Err(EngineError::Bug("a job has more pairs than it says".into()))
    }

    /// Asks for a pair; `found` gets the answer now or with a later call, in the order of asking:
    /// left, right, and `None` for a pair that the table does not hold.
    #[inline]
    pub(super) fn ask(
        &self,
        left: u32,
        right: u32,
        queue: &mut Queue,
        found: impl FnMut(u32, u32, Option<Pair>),
    ) {
        let key = key(left, right);
        let place = self.place(key);
        match place.checked_sub(self.dense.len()) {
            None => prefetch(&self.dense, place),
            Some(bucket) => prefetch(&self.buckets, bucket),
        }
        queue.asked.push((key, place));
        if queue.asked.len() == QUEUE {
            self.answer(queue, found);
        }
    }

    /// Answers what is still asked.
    pub(super) fn answer(&self, queue: &mut Queue, mut found: impl FnMut(u32, u32, Option<Pair>)) {
        for (key, place) in queue.asked.drain(..) {
            let pair = match place.checked_sub(self.dense.len()) {
                None => Some(self.dense[place]).filter(|pair| !pair.score.is_nan()),
                Some(bucket) => self.get(bucket, key),
            };
            found((key >> 32) as u32, key as u32, pair);
        }
    }

    #[inline]
    fn get(&self, first: usize, key: u64) -> Option<Pair> {
        let (before, from) = self.buckets.split_at(first);
        for bucket in from.iter().chain(before) {
            for slot in 0..SLOTS {
                if bucket.keys[slot] == key {
                    return Some(bucket.pairs[slot]);
                }
            }
            if bucket.keys[SLOTS - 1] == EMPTY {
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Every pair of `terms × terms` around the square's edge, as a map says it and as asked.
    fn compare(terms: u32, all: &BTreeMap<(u32, u32), Pair>) {
        let mut lookup = Lookup::new(terms as usize, all.len() as u64);
        let pairs = all
            .iter()
            .map(|((left, right), pair)| (*left, *right, *pair));
        lookup.push(pairs).unwrap();
        let (mut queue, mut asked, mut answers) = (Queue::default(), Vec::new(), Vec::new());
        let near = (0..40).chain(DENSE as u32 - 40..DENSE as u32 + 40);
        let near: Vec<u32> = near.filter(|id| *id < terms).collect();
        for left in &near {
            for right in &near {
                asked.push((*left, *right));
                lookup.ask(*left, *right, &mut queue, |left, right, pair| {
                    answers.push((left, right, pair));
                });
            }
        }
        lookup.answer(&mut queue, |left, right, pair| {
            answers.push((left, right, pair));
        });
        assert_eq!(answers.len(), asked.len());
        let mut hits = 0;
        for ((left, right), answer) in asked.into_iter().zip(answers) {
            assert_eq!(answer, (left, right, all.get(&(left, right)).copied()));
            hits += usize::from(answer.2.is_some());
        }
        assert_eq!(hits, all.len());
    }

    #[test]
    fn every_pair_is_found_and_no_other() {
        let mut all = BTreeMap::new();
        for place in 0..9000_u64 {
            let number = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            let near = |x: u64| {
                let id = x % 120;
                (if id < 40 { id } else { DENSE as u64 - 80 + id }) as u32
            };
            let pair = Pair {
                score: place as f32 - 2000.0,
                count: place as f32 + 1.0,
            };
            all.insert((near(number), near(number >> 13)), pair);
        }
        compare(DENSE as u32 + 60, &all);
    }

    #[test]
    fn few_terms_and_no_pairs() {
        compare(3, &BTreeMap::new());
        let one = Pair {
            score: -0.5,
            count: 2.0,
        };
        compare(3, &BTreeMap::from([((0, 2), one), ((2, 2), one)]));
        compare(DENSE as u32 + 60, &BTreeMap::new());
    }

    #[test]
    fn more_pairs_than_were_promised_are_an_error() {
        let mut lookup = Lookup::new(0, 0);
        let pair = |left| (left, 1, NONE);
        lookup.push((0..SLOTS as u32).map(pair)).unwrap();
        assert!(lookup.push([pair(9)].into_iter()).is_err());
    }
}
