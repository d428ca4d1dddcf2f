//! Rows of several slices read by one worker: each slice has a dictionary and a chunk of its own, and
//! the worker's own two are those of the slice at hand.

use std::collections::HashMap;

use super::{Source, Worker, collect, poisoned, store};
use crate::error::EngineError;
use crate::slices::{MOST_SLICES, SliceFacts, SliceKey, too_many};
use crate::tokens::{CHUNK_TOKENS, Chunk};

/// One slice of a worker.
struct Lane {
    key: SliceKey,
    /// The number of its chunks; that of its dictionary, when terms are collected.
    number: u32,
    source: Source,
    chunk: Chunk,
    rows: u64,
    tokens: u64,
}

/// The slices that a worker has met.
#[derive(Default)]
pub(super) struct Lanes {
    list: Vec<Lane>,
    by_key: HashMap<SliceKey, usize>,
    /// The one at hand.
    active: usize,
    /// Tokens in all chunks.
    held: usize,
}

impl Worker<'_> {
    /// What comes next is of this slice.
    pub(super) fn begin_slice(&mut self, key: Option<&str>) -> Result<(), EngineError> {
        let Some(lanes) = &mut self.lanes else {
            return Ok(());
        };
        let key: SliceKey = key.map(str::to_owned);
        let place = match lanes.by_key.get(&key) {
            Some(place) => *place,
            None => {
                if lanes.list.len() == MOST_SLICES {
                    return Err(too_many());
                }
                lanes.by_key.insert(key.clone(), lanes.list.len());
                lanes.list.push(Lane {
                    key,
                    number: u32::MAX,
                    source: Source::Parked,
                    chunk: Chunk::default(),
                    rows: 0,
                    tokens: 0,
                });
                lanes.list.len() - 1
            }
        };
        self.park();
        self.take_up(place)
    }

    /// Puts dictionary and chunk of the slice at hand aside.
    fn park(&mut self) {
        let Some(lanes) = &mut self.lanes else { return };
        let Some(lane) = lanes.list.get_mut(lanes.active) else {
            return;
        };
        if lane.number == u32::MAX {
            return;
        }
        std::mem::swap(&mut lane.chunk, &mut self.chunk);
        // What looks terms up is the same for all slices.
        if matches!(self.source, Source::Collect { .. }) {
            std::mem::swap(&mut lane.source, &mut self.source);
        }
    }

    fn take_up(&mut self, place: usize) -> Result<(), EngineError> {
        let Some(lanes) = &mut self.lanes else {
            return Ok(());
        };
        lanes.active = place;
        let lane = &mut lanes.list[place];
        if lane.number == u32::MAX {
            match &self.source {
                Source::LookUp(_) => {
                    let mut tallies = self.shared.slices.lock().map_err(|_| poisoned())?;
                    lane.number = tallies.len() as u32;
                    tallies.push(SliceFacts::default());
                }
                // The one that a worker begins with.
                Source::Collect { number, .. } => lane.number = *number,
                Source::Parked => {
                    lane.source = collect(self.job, self.shared)?;
                    if let Source::Collect { number, .. } = &lane.source {
                        lane.number = *number;
                    }
                }
            }
            lane.chunk.dictionary = lane.number;
        }
        std::mem::swap(&mut lane.chunk, &mut self.chunk);
        if matches!(self.source, Source::Parked) {
            std::mem::swap(&mut lane.source, &mut self.source);
        }
        Ok(())
    }

    /// Takes note of rows of the slice at hand; hands over all chunks when they are enough.
    pub(super) fn sliced(&mut self, rows: usize, tokens: usize) -> Result<(), EngineError> {
        let Some(lanes) = &mut self.lanes else {
            return Ok(());
        };
        let Some(lane) = lanes.list.get_mut(lanes.active) else {
            return Err(EngineError::Bug("a row came without a slice".into()));
        };
        lane.rows += rows as u64;
        lane.tokens += tokens as u64;
        lanes.held += tokens;
        if lanes.held < CHUNK_TOKENS {
            return Ok(());
        }
        let active = lanes.active;
        self.hand_over_slices(false)?;
        self.take_up(active)
    }

    /// Hands over the chunks of all slices, and their dictionaries when they are too large, or the
    /// last. Afterwards no slice is at hand.
    pub(super) fn hand_over_slices(&mut self, last: bool) -> Result<(), EngineError> {
        self.park();
        let Some(lanes) = &mut self.lanes else {
            return Ok(());
        };
        lanes.held = 0;
        let mut dictionaries = 0;
        for lane in &mut lanes.list {
            let next = Chunk {
                dictionary: lane.number,
                ..Chunk::default()
            };
            let chunk = std::mem::replace(&mut lane.chunk, next);
            if !chunk.row_ends.is_empty() {
                self.shared.tokens.push(chunk, self.job.budget.tokens)?;
            }
            if let Source::Collect { builder, .. } = &lane.source {
                dictionaries += builder.held_bytes() as u64;
            }
        }
        let too_large = dictionaries > self.job.budget.dictionary;
        if !last && !too_large {
            return Ok(());
        }
        for lane in &mut lanes.list {
            if lane.number == u32::MAX {
                continue;
            }
            let tally = SliceFacts {
                slice: lane.key.clone(),
                rows: std::mem::take(&mut lane.rows),
                tokens: std::mem::take(&mut lane.tokens),
            };
            let source = std::mem::replace(&mut lane.source, Source::Parked);
            let looks_up = matches!(self.source, Source::LookUp(_));
            store(self.job, self.unit, self.shared, source, !last)?;
            let mut tallies = self.shared.slices.lock().map_err(|_| poisoned())?;
            if let Some(slot) = tallies.get_mut(lane.number as usize) {
                *slot = tally;
            }
            if !looks_up {
                lane.number = u32::MAX;
            }
        }
        Ok(())
    }
}
