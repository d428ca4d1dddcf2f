//! The counting kernel: token ids in, sorted sparse rows of pair counts out.
//!
//! ```text
//! rows of ids ─▶ TokenBlock ─ prepare ─▶ PreparedBlock ─ count_rows(range) ─▶ RowSink
//!                                                                               │ RunWriter
//!                               RowSink ◀─ merge_runs(range) ◀─ RunReader ◀─ run files
//! ```
//!
//! A [`TokenBlock`] takes rows until the caller's byte budget is used; [`TokenBlock::prepare`]
//! sorts its positions by token; [`PreparedBlock::count_rows`] emits the rows of a range of left
//! ids, each sorted, and several threads may do so at once with one [`Accumulator`] each. A sink
//! keeps the rows ([`PairColumns`]) or writes a run file ([`RunWriter`]); [`merge_runs`] sums run files
//! row by row. All arithmetic is on integers (see [`weight_unit`]), so any split into blocks,
//! ranges, threads and merges gives the same table.
//!
//! ```
//! use pmill_count::*;
//! let settings = CountSettings { context: Context::Document { max_features: None }, vocabulary_size: 3 };
//! let mut block = TokenBlock::new(&settings)?;
//! block.push_row(&[2, 0, 2])?;
//! block.push_row(&[0, 1, 2])?;
//! let prepared = block.prepare(1)?;
//! let mut pairs = PairColumns::default();
//! prepared.count_rows(0..3, &mut Accumulator::new(3), &mut pairs)?;
//! assert_eq!((pairs.left, pairs.right, pairs.counts), (vec![0, 0, 1], vec![1, 2, 2], vec![1, 2, 1]));
//! # Ok::<(), CountError>(())
//! ```
//!
//! A [`Tail`] before the sink takes the pairs of rarer terms into a sketch, for tables that cannot be held.
//!
//! # Memory
//! A block takes [`TokenBlock::bytes_per_token`] (6 or 8) bytes a token and 12 an id of the vocabulary,
//! index included; an accumulator 24 an id; an open run about 1.5 MiB at most. Nothing else grows with the data.
//!
//! # How it was made fast, and what did not help
//! Measured with the example `rate` on two shared cores of an AMD EPYC (Zen 4) in CPU seconds, window 10, harmonic
//! weights, vocabulary 50,000, other jobs running beside; run it for figures of your machine.
//!
//! * Position by position into 64-bit sums, both ways, partners below the left id skipped by a
//!   branch: 35 M events/s (10 M tokens).
//! * The same with partners gathered by AVX-512 compare and compress from one load of 32 slots of
//!   16 bits, 32-bit sums, rows read out by vectors: 187 M events/s on that corpus, 234 to 271 M on
//!   100 M tokens. This is why `pmill-simd` exists. Its safe twin runs where AVX-512 is missing: 59 M
//!   against 222 M events/s on 40 M tokens; for documents of captions 80 M against 138 M.
//! * A symmetric table is counted by looking both ways and keeping the partners not below the left
//!   id, 32 looks in one compare. Transposing a forward half, and streams of rarer words only, were
//!   not built: the profile shows waiting for memory, and few instructions.
//! * Slots of 16 bits up to a vocabulary of [`NARROW_VOCABULARY`] halve the lines touched. Beyond it
//!   the same job does about 105 M events/s (vocabulary 400,000), with twice the slots, two loads
//!   a side and an accumulator beyond the second-level cache.
//! * Row ends are slots of their own (code 0), found by the same vector compare: no second
//!   array, no top bit.
//! * Sums stay 32 bits: a row that could outgrow them is flushed to 64-bit sums every so many
//!   positions (290,000 for window 10). When that would be too often (harmonic windows
//!   above 12) the rows concerned use 64-bit sums throughout.
//! * Short rows are read out by flags of 32 sums each, in order; no list, no sort. Reading 64 flags
//!   at a time made a vocabulary of 400,000 a tenth faster (4.6 to 4.2 s).
//! * Distance and kind of prefetch (12 to 64 positions; to first or second level) and batches
//!   of 8 to 100 positions: within noise of one another.
//! * Huge pages for slots and positions: within noise at vocabulary 50,000, a sixth faster at
//!   400,000 (89 to 105 M events/s), preparing a third faster. So they are asked for.
//!
//! What bounds it now: about 30 ns a position whatever the word, most of it waiting for the
//! lines of the slots.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod accumulator;
mod block;
mod error;
mod index;
mod kernel;
mod pieces;
mod prepared;
mod rows;
mod run;
mod settings;
mod sink;
mod subsample;
mod tail;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use accumulator::Accumulator;
pub use block::{NARROW_VOCABULARY, TokenBlock};
pub use error::{CountError, ErrorKind, Result};
pub use pieces::{BlockPiece, PieceTally};
pub use prepared::PreparedBlock;
pub use run::{
    Compression, Piece, RowSource, RunReader, RunSource, RunSummary, RunWriter, SeekSource,
    merge_runs,
};
pub use settings::{
    Context, CountSettings, LARGEST_HARMONIC_WINDOW, LARGEST_VOCABULARY, LARGEST_WINDOW,
    OUT_OF_VOCABULARY, OutOfVocabulary, Side, Weight, Window, weight_unit,
};
pub use sink::{PairColumns, PairTally, RowSink};
pub use subsample::{keep_probability, subsample_row};
pub use tail::{Distinct, HashRow, Tail, TailSettings, TailSplit, TailSums};
