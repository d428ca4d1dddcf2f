//! A block of rows: token ids as they come, held ready for counting.
//!
//! In: rows of token ids. Held: one *slot* a token and one a row end, 2 bytes each while the
//! vocabulary fits ([`NARROW_VOCABULARY`]), else 4. What a context ignores is taken out at once:
//! tokens outside the vocabulary (unless they hold a window's place), repeated ids of a
//! document, rows that cannot hold a pair. [`TokenBlock::prepare`] adds 4 bytes a token for the
//! index of positions; [`TokenBlock::held_bytes`] counts these from the start.
//!
//! A slot is 0 for a row end, 1 for a place held by a token outside the vocabulary, and id + 2
//! otherwise, so that "a partner with an id of at least x" is one comparison.

use pmill_simd::{Lane, MARGIN};

use crate::accumulator::{Accumulator, Partners, Sums};
use crate::error::{CountError, Result};
use crate::rows::{self, Tally, distinct};
use crate::settings::{Context, CountSettings, OUT_OF_VOCABULARY};

/// The largest vocabulary whose slots take 2 bytes.
pub const NARROW_VOCABULARY: u32 = 65_536 - FIRST_CODE;

pub(crate) const ROW_END: u32 = 0;
pub(crate) const GAP: u32 = 1;
pub(crate) const FIRST_CODE: u32 = 2;
/// Positions are 32 bits, and the top bit stays free.
pub(crate) const LARGEST_SLOTS: usize = 1 << 31;

/// The slots, as narrow as the vocabulary allows.
#[derive(Debug)]
pub(crate) enum Slots {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

macro_rules! each {
    ($slots:expr, $vec:ident => $body:expr) => {
        match $slots {
            Slots::Narrow($vec) => $body,
            Slots::Wide($vec) => $body,
        }
    };
}
pub(crate) use each;

impl Slots {
    fn new(vocabulary_size: u32) -> Self {
        if vocabulary_size <= NARROW_VOCABULARY {
            Self::Narrow(Vec::new())
        } else {
            Self::Wide(Vec::new())
        }
    }

    pub(crate) fn len(&self) -> usize {
        each!(self, slots => slots.len())
    }

    fn capacity_bytes(&self) -> usize {
        match self {
            Self::Narrow(slots) => slots.capacity() * 2,
            Self::Wide(slots) => slots.capacity() * 4,
        }
    }

    fn reserve_exact(&mut self, slots: usize) {
        each!(self, vec => {
            vec.reserve_exact(slots);
            pmill_simd::prefer_huge_pages(vec);
        });
    }

    fn clear(&mut self) {
        each!(self, vec => vec.clear());
    }

    fn truncate(&mut self, len: usize) {
        each!(self, vec => vec.truncate(len));
    }

    fn margin(&mut self) {
        let len = self.len() + MARGIN;
        each!(self, vec => vec.resize(len, 0));
    }
}

/// A slot type, `u16` or `u32`, and the accumulator's lists of that type.
pub(crate) trait Slot: Lane + Send + Sync + 'static {
    fn partners(accumulator: &mut Accumulator) -> &mut Partners<Self>;
    fn split(accumulator: &mut Accumulator) -> (&Partners<Self>, &mut Sums<u32>, &mut Sums<u64>);

    #[inline(always)]
    fn from_code(code: u32) -> Self {
        Self::from_u32(code)
    }
    #[inline(always)]
    fn code(self) -> u32 {
        self.to_u32()
    }
}

macro_rules! slot {
    ($lane:ty, $partners:ident) => {
        impl Slot for $lane {
            #[inline(always)]
            fn partners(accumulator: &mut Accumulator) -> &mut Partners<Self> {
                &mut accumulator.$partners
            }

            #[inline(always)]
            fn split(
                accumulator: &mut Accumulator,
            ) -> (&Partners<Self>, &mut Sums<u32>, &mut Sums<u64>) {
                (
                    &accumulator.$partners,
                    &mut accumulator.sums,
                    &mut accumulator.wide_sums,
                )
            }
        }
    };
}

slot!(u16, narrow_partners);
slot!(u32, wide_partners);

/// Rows of token ids, waiting to be counted.
#[derive(Debug)]
pub struct TokenBlock {
    pub(crate) settings: CountSettings,
    pub(crate) slots: Slots,
    /// Context `row` only: the left ids, and where in `slots` each one's right list starts.
    pub(crate) lefts: Vec<u32>,
    pub(crate) left_starts: Vec<u32>,
    pub(crate) tally: Tally,
    capacity_slots: usize,
    scratch: Vec<u32>,
    /// Memory of an earlier block's positions.
    spare: Vec<u32>,
}

impl TokenBlock {
    /// An empty block that grows as it is filled.
    ///
    /// # Errors
    /// Those of [`CountSettings::validate`].
    pub fn new(settings: &CountSettings) -> Result<Self> {
        settings.validate()?;
        let mut block = Self {
            settings: settings.clone(),
            slots: Slots::new(settings.vocabulary_size),
            lefts: Vec::new(),
            left_starts: Vec::new(),
            tally: Tally::default(),
            capacity_slots: 0,
            scratch: Vec::new(),
            spare: Vec::new(),
        };
        block.slots.margin();
        Ok(block)
    }

    /// An empty block with all of its memory reserved at once, so that it never holds more than
    /// `budget_bytes` while [`has_room`](Self::has_room) is asked before each row. A budget too
    /// small for one token gives a block that has room only while it is empty.
    ///
    /// # Errors
    /// Those of [`CountSettings::validate`].
    pub fn with_budget(settings: &CountSettings, budget_bytes: usize) -> Result<Self> {
        let mut block = Self::new(settings)?;
        let for_tokens = budget_bytes.saturating_sub(block.fixed_bytes());
        let slots = for_tokens / Self::bytes_per_token(settings);
        block.capacity_slots = slots.min(LARGEST_SLOTS - 2 * MARGIN);
        if settings.context == Context::Row {
            // Of each 12 + slot bytes, one left id and one right id.
            block.lefts.reserve_exact(block.capacity_slots);
            block.left_starts.reserve_exact(block.capacity_slots);
        }
        block.slots.reserve_exact(block.capacity_slots + 2 * MARGIN);
        Ok(block)
    }

    /// Bytes that one token takes at most in a block, its share of the prepared index included:
    /// 6 with a vocabulary up to [`NARROW_VOCABULARY`], else 8; for context `row` 14 or 16 a left
    /// and a right id together. A row end takes the slot's 2 or 4.
    #[must_use]
    pub fn bytes_per_token(settings: &CountSettings) -> usize {
        let slot = if settings.vocabulary_size <= NARROW_VOCABULARY {
            2
        } else {
            4
        };
        match settings.context {
            Context::Row => slot + 12,
            _ => slot + 4,
        }
    }

    /// Bytes of a block whatever it holds: the index by id that [`prepare`](Self::prepare) makes
    /// (for two threads) and the margins.
    fn fixed_bytes(&self) -> usize {
        (self.settings.vocabulary_size as usize + 1) * 4 * 3 + 4 * 4 * MARGIN
    }

    /// Bytes held now, plus the bytes that [`prepare`](Self::prepare) will add with two threads
    /// (4 more a vocabulary id for each thread beyond).
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.fixed_bytes()
            + self.slots.capacity_bytes()
            + (self.lefts.capacity() + self.left_starts.capacity() + self.scratch.capacity()) * 4
            + self.indexed().max(self.spare.capacity()) * 4
    }

    /// Slots of the longest row, its end not counted.
    pub(crate) fn longest_row(&self) -> usize {
        self.tally.longest_row
    }

    /// Tokens a row, on average over the rows that can hold a pair.
    pub(crate) fn mean_row(&self) -> f64 {
        self.tally.tokens as f64 / (self.tally.kept_rows as f64).max(1.0)
    }

    pub(crate) fn take_spare(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.spare)
    }

    pub(crate) fn give_spare(&mut self, spare: Vec<u32>) {
        self.spare = spare;
    }

    /// How many positions the index will hold.
    pub(crate) fn indexed(&self) -> usize {
        match self.settings.context {
            Context::Row => self.lefts.len(),
            _ => self.tally.tokens,
        }
    }

    /// Token slots held, row ends not counted.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tally.tokens
    }

    /// Rows pushed, empty ones too.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.tally.rows
    }

    /// Distinct ids dropped by `max_features`.
    #[must_use]
    pub fn dropped_features(&self) -> u64 {
        self.tally.dropped_features
    }

    /// Tokens outside the vocabulary that were pushed.
    #[must_use]
    pub fn out_of_vocabulary(&self) -> u64 {
        self.tally.out_of_vocabulary
    }

    /// Whether no token is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tally.tokens == 0 && self.lefts.is_empty()
    }

    /// Whether a row of so many tokens fits the budget given to [`with_budget`](Self::with_budget).
    /// Always true for an empty block, so that every row can be counted, and for a block
    /// without a budget as long as positions fit.
    #[must_use]
    pub fn has_room(&self, row_tokens: usize) -> bool {
        let limit = if self.capacity_slots == 0 {
            LARGEST_SLOTS
        } else {
            self.capacity_slots + MARGIN
        };
        self.is_empty() || self.slots.len().max(self.lefts.len()) + row_tokens < limit
    }

    /// The settings the block was made with.
    #[must_use]
    pub fn settings(&self) -> &CountSettings {
        &self.settings
    }

    /// Empties the block and keeps its memory.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.slots.margin();
        self.lefts.clear();
        self.left_starts.clear();
        self.tally = Tally::default();
    }

    /// Adds one row. Windows and documents never reach beyond their row.
    ///
    /// # Errors
    /// [`CountError::IdOutOfRange`], [`CountError::BlockFull`] (the block is as before the call),
    /// [`CountError::WrongContext`] for context `row`.
    pub fn push_row(&mut self, ids: &[u32]) -> Result<()> {
        if self.settings.context == Context::Row {
            return Err(CountError::WrongContext {
                call: "push_row",
                context: "row",
            });
        }
        self.check_room(ids.len())?;
        let Self {
            settings,
            slots,
            scratch,
            tally,
            ..
        } = self;
        each!(slots, slots => {
            let start = slots.len();
            slots.resize(start + ids.len() + 1, 0);
            let written = rows::write(settings, ids, &mut slots[start..], scratch, tally);
            slots.truncate(start + written.as_ref().map_or(0, |&slots| slots));
            written.map(|_| ())
        })
    }

    /// Adds many rows: row `i` is `ids[row_ends[i - 1]..row_ends[i]]`, the first from 0.
    ///
    /// # Errors
    /// Those of [`push_row`](Self::push_row) and [`CountError::RowEnds`]; the rows before the bad
    /// one stay in the block.
    pub fn push_rows(&mut self, ids: &[u32], row_ends: &[usize]) -> Result<()> {
        let mut start = 0;
        for (index, &row_end) in row_ends.iter().enumerate() {
            let row = ids.get(start..row_end).ok_or(CountError::RowEnds {
                index,
                row_end,
                ids: ids.len(),
            })?;
            self.push_row(row)?;
            start = row_end;
        }
        Ok(())
    }

    /// Adds one row of context `row`; repeated ids of a list count once, ids outside the
    /// vocabulary are left out.
    ///
    /// # Errors
    /// As [`push_row`](Self::push_row); [`CountError::WrongContext`] for other contexts.
    pub fn push_row_pair(&mut self, left: &[u32], right: &[u32]) -> Result<()> {
        if self.settings.context != Context::Row {
            return Err(CountError::WrongContext {
                call: "push_row_pair",
                context: self.settings.context.name(),
            });
        }
        self.check_room(right.len())?;
        // Followers of the slot before the list are the list itself.
        let start = self.slots.len() as u32;
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = (|| {
            distinct(right, self.settings.vocabulary_size, &mut scratch)?;
            let rights = scratch.len();
            self.append_codes(&scratch);
            if let Err(error) = distinct(left, self.settings.vocabulary_size, &mut scratch) {
                self.slots.truncate(start as usize);
                return Err(error);
            }
            if rights == 0 || scratch.is_empty() {
                self.slots.truncate(start as usize);
                return Ok(());
            }
            self.end_row(rights);
            self.lefts.extend_from_slice(&scratch);
            self.left_starts
                .extend(std::iter::repeat_n(start - 1, scratch.len()));
            Ok(())
        })();
        self.scratch = scratch;
        result?;
        let outside = |ids: &[u32]| ids.iter().filter(|&&id| id == OUT_OF_VOCABULARY).count();
        self.tally.out_of_vocabulary += (outside(left) + outside(right)) as u64;
        self.tally.rows += 1;
        Ok(())
    }

    pub(crate) fn check_room(&self, row_tokens: usize) -> Result<()> {
        if self.slots.len() + row_tokens + 2 * MARGIN > LARGEST_SLOTS {
            return Err(CountError::BlockFull {
                slots: self.slots.len(),
                row_tokens,
            });
        }
        Ok(())
    }

    fn append_codes(&mut self, ids: &[u32]) {
        fn append<S: Slot>(slots: &mut Vec<S>, ids: &[u32]) {
            slots.extend(ids.iter().map(|&id| S::from_code(id + FIRST_CODE)));
        }
        each!(&mut self.slots, slots => append(slots, ids));
    }

    fn end_row(&mut self, tokens: usize) {
        self.tally.tokens += tokens;
        self.tally.kept_rows += 1;
        self.tally.longest_row = self.tally.longest_row.max(tokens);
        each!(&mut self.slots, slots => slots.push(ROW_END as _));
    }

    pub(crate) fn close(&mut self) {
        self.slots.margin();
    }
}
