//! A block filled by several threads at once: each has pieces of it to itself.
//!
//! A piece is as long as its rows could need; what they leave free stays zero, which is the end of
//! a row like any other and holds no token.

use pmill_simd::MARGIN;

use crate::block::{LARGEST_SLOTS, Slots, TokenBlock};
use crate::error::{CountError, Result};
use crate::rows::{self, Tally};
use crate::settings::{Context, CountSettings};

/// A part of a block that one thread fills.
#[derive(Debug)]
pub struct BlockPiece<'a> {
    settings: &'a CountSettings,
    slots: PieceSlots<'a>,
    filled: usize,
    scratch: Vec<u32>,
    tally: Tally,
}

#[derive(Debug)]
enum PieceSlots<'a> {
    Narrow(&'a mut [u16]),
    Wide(&'a mut [u32]),
}

/// What a filled piece holds; for [`TokenBlock::close_pieces`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceTally(Tally);

impl BlockPiece<'_> {
    /// Adds one row, as [`TokenBlock::push_row`] does.
    ///
    /// # Errors
    /// [`CountError::IdOutOfRange`]; [`CountError::BlockFull`] when the rows are larger than was said.
    pub fn push_row(&mut self, ids: &[u32]) -> Result<()> {
        let Self {
            settings,
            filled,
            scratch,
            tally,
            ..
        } = self;
        let full = CountError::BlockFull {
            slots: *filled,
            row_tokens: ids.len(),
        };
        let room = *filled..*filled + ids.len() + 1;
        *filled += match &mut self.slots {
            PieceSlots::Narrow(slots) => {
                let slots = slots.get_mut(room).ok_or(full)?;
                let written = rows::write(settings, ids, slots, scratch, tally)?;
                slots[written..].fill(0);
                written
            }
            PieceSlots::Wide(slots) => {
                let slots = slots.get_mut(room).ok_or(full)?;
                let written = rows::write(settings, ids, slots, scratch, tally)?;
                slots[written..].fill(0);
                written
            }
        };
        Ok(())
    }

    /// What the piece holds.
    #[must_use]
    pub fn finish(self) -> PieceTally {
        PieceTally(self.tally)
    }
}

impl TokenBlock {
    /// Empties the block and cuts it into pieces; `slots[i]` is the tokens and rows of piece `i`
    /// together. When all are filled, [`close_pieces`](Self::close_pieces) must be told.
    ///
    /// # Errors
    /// [`CountError::BlockFull`] when there are more slots than a block can have;
    /// [`CountError::WrongContext`] for context `row`.
    pub fn pieces(&mut self, slots: &[usize]) -> Result<Vec<BlockPiece<'_>>> {
        if self.settings.context == Context::Row {
            return Err(CountError::WrongContext {
                call: "pieces",
                context: "row",
            });
        }
        self.clear();
        let all = slots
            .iter()
            .fold(0_usize, |sum, &slots| sum.saturating_add(slots));
        if all > LARGEST_SLOTS - 4 * MARGIN {
            return Err(CountError::BlockFull {
                slots: 0,
                row_tokens: all,
            });
        }
        let settings = &self.settings;
        let piece = |slots| BlockPiece {
            settings,
            slots,
            filled: 0,
            scratch: Vec::new(),
            tally: Tally::default(),
        };
        // Zeroed by the system, page by page as the threads come to them.
        Ok(match &mut self.slots {
            Slots::Narrow(held) => cut(zeroed(held, all), slots)
                .map(|slots| piece(PieceSlots::Narrow(slots)))
                .collect(),
            Slots::Wide(held) => cut(zeroed(held, all), slots)
                .map(|slots| piece(PieceSlots::Wide(slots)))
                .collect(),
        })
    }

    /// Takes note of what the pieces were filled with.
    pub fn close_pieces(&mut self, tallies: &[PieceTally]) {
        for tally in tallies {
            self.tally.add(&tally.0);
        }
    }
}

/// So many zeros behind the margin.
fn zeroed<S: Clone + Default>(held: &mut Vec<S>, slots: usize) -> &mut [S] {
    *held = vec![S::default(); slots + 2 * MARGIN];
    pmill_simd::prefer_huge_pages(held);
    // The margin behind is added when the block is closed, and has its place already.
    held.truncate(slots + MARGIN);
    &mut held[MARGIN..]
}

fn cut<'a, S>(mut rest: &'a mut [S], lengths: &[usize]) -> impl Iterator<Item = &'a mut [S]> {
    lengths.iter().map(move |&length| {
        let (piece, after) = std::mem::take(&mut rest).split_at_mut(length);
        rest = after;
        piece
    })
}
