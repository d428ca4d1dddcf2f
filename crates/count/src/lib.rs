//! The counting kernel: token ids in, sorted sparse rows of pair counts out.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod accumulator;
mod block;
mod error;
mod index;
mod kernel;
mod prepared;
mod run;
mod settings;
mod sink;
mod subsample;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use accumulator::Accumulator;
pub use block::{NARROW_VOCABULARY, TokenBlock};
pub use error::{CountError, ErrorKind, Result};
pub use prepared::PreparedBlock;
pub use run::{Compression, RunReader, RunSource, RunSummary, RunWriter, SeekSource, merge_runs};
pub use settings::{
    Context, CountSettings, LARGEST_HARMONIC_WINDOW, LARGEST_VOCABULARY, LARGEST_WINDOW,
    OUT_OF_VOCABULARY, OutOfVocabulary, Side, Weight, Window, weight_unit,
};
pub use sink::{PairColumns, PairTally, RowSink};
pub use subsample::{keep_probability, subsample_row};
