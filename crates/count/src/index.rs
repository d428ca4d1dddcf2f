//! The positions of a block, sorted by id: a counting sort.
//!
//! Memory: 4 bytes a position, and 4 an id for each thread and once more. Each thread counts the
//! ids of its own piece of the block and then writes their positions to places that no other
//! thread writes to; the places of different threads lie among each other, so they are written
//! as relaxed atomics, which cost the same as plain stores.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::block::{FIRST_CODE, Slot, Slots, TokenBlock, each};
use crate::error::{CountError, Result};
use crate::settings::Context;

/// `positions[starts[id]..starts[id + 1]]` are the slots of `id`, rising.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) starts: Vec<u32>,
    pub(crate) positions: Vec<u32>,
}

impl Index {
    /// Sorts the positions of a block with up to `threads` threads, in the memory of `spare`.
    pub(crate) fn new(block: &TokenBlock, threads: usize, spare: Vec<u32>) -> Result<Self> {
        let ids = block.settings.vocabulary_size as usize;
        if block.settings.context == Context::Row {
            let places = LeftPlaces {
                ids: &block.lefts,
                starts: &block.left_starts,
            };
            return sort(&places, ids, block.indexed(), threads, spare);
        }
        each!(&block.slots, slots => sort(&SlotPlaces(slots), ids, block.indexed(), threads, spare))
    }
}

/// What is sorted: ids, each with a position.
trait Places: Sync {
    fn len(&self) -> usize;
    fn for_each(&self, range: Range<usize>, each: impl FnMut(u32, u32));
}

/// Every slot that holds an id.
struct SlotPlaces<'a, S>(&'a [S]);

impl<S: Slot> Places for SlotPlaces<'_, S> {
    fn len(&self) -> usize {
        self.0.len()
    }

    #[inline(always)]
    fn for_each(&self, range: Range<usize>, mut each: impl FnMut(u32, u32)) {
        for (position, slot) in (range.start as u32..).zip(&self.0[range]) {
            if slot.code() >= FIRST_CODE {
                each(slot.code() - FIRST_CODE, position);
            }
        }
    }
}

/// The left ids of bipartite rows, each with the place before its right list.
struct LeftPlaces<'a> {
    ids: &'a [u32],
    starts: &'a [u32],
}

impl Places for LeftPlaces<'_> {
    fn len(&self) -> usize {
        self.ids.len()
    }

    #[inline(always)]
    fn for_each(&self, range: Range<usize>, mut each: impl FnMut(u32, u32)) {
        for (&id, &start) in self.ids[range.clone()].iter().zip(&self.starts[range]) {
            each(id, start);
        }
    }
}

fn sort(
    places: &impl Places,
    ids: usize,
    indexed: usize,
    threads: usize,
    mut spare: Vec<u32>,
) -> Result<Index> {
    // A thread is not worth its table of counts below some thousand places an id.
    let threads = threads.clamp(1, (places.len() >> 16).max(1));
    let cut = |part: usize| (places.len() as u128 * part as u128 / threads as u128) as usize;
    let pieces: Vec<Range<usize>> = (0..threads).map(|part| cut(part)..cut(part + 1)).collect();
    let mut tables = in_threads(&pieces, |_, piece| {
        let mut counts = vec![0_u32; ids];
        places.for_each(piece, |id, _| counts[id as usize] += 1);
        counts
    })?;

    // From counts to first places: id by id, and within an id thread by thread.
    let mut starts = vec![0_u32; ids + 1];
    let mut next = 0;
    for id in 0..ids {
        starts[id] = next;
        for table in &mut tables {
            next += std::mem::replace(&mut table[id], next);
        }
    }
    starts[ids] = next;
    debug_assert_eq!(next as usize, indexed, "every token has a place");

    if spare.capacity() < indexed {
        // Zeroed by the system, page by page as the threads come to them.
        spare = pmill_simd::zeros(next as usize);
    } else {
        spare.clear();
        spare.resize(next as usize, 0);
    }
    if let [table] = tables.as_mut_slice() {
        places.for_each(0..places.len(), |id, position| {
            let place = &mut table[id as usize];
            spare[*place as usize] = position;
            *place += 1;
        });
        return Ok(Index {
            starts,
            positions: spare,
        });
    }
    let shared: Vec<AtomicU32> = spare.into_iter().map(AtomicU32::new).collect();
    let tables = std::sync::Mutex::new(tables.into_iter().map(Some).collect::<Vec<_>>());
    in_threads(&pieces, |part, piece| {
        let table = match tables.lock() {
            Ok(mut tables) => tables[part].take(),
            Err(_) => None,
        };
        let mut table = table.unwrap_or_default();
        places.for_each(piece, |id, position| {
            let place = &mut table[id as usize];
            shared[*place as usize].store(position, Ordering::Relaxed);
            *place += 1;
        });
    })?;
    Ok(Index {
        starts,
        positions: shared.into_iter().map(AtomicU32::into_inner).collect(),
    })
}

/// Runs `work` on every piece in a thread of its own; the results in order.
fn in_threads<T: Send>(
    pieces: &[Range<usize>],
    work: impl Fn(usize, Range<usize>) -> T + Sync,
) -> Result<Vec<T>> {
    if let [piece] = pieces {
        return Ok(vec![work(0, piece.clone())]);
    }
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = pieces
            .iter()
            .enumerate()
            .map(|(part, piece)| scope.spawn(move || work(part, piece.clone())))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| CountError::Panicked))
            .collect()
    })
}
