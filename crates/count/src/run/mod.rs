//! Sorted rows as compressed files, and their sum.
//!
//! A run file holds rows in rising order of left id. It is a header, chunks of at most
//! [`CHUNK_PAIRS`] pairs, an index of the chunks and a trailer (module `format`). Every byte is
//! under a CRC-32, so a flipped bit, a cut file or a foreign file is an error and never a wrong
//! row. The index lets a reader fetch only the chunks of a range of left ids.
//!
//! Memory: a writer holds one chunk (about 400 KiB); a reader one chunk, encoded and decoded
//! (about 400 KiB), and 24 bytes of index a chunk; a merge its readers and one accumulator.

mod format;
mod merge;
mod packed;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use format::Compression;
pub use merge::{Piece, RowSource, merge_runs};
pub use reader::{RunReader, RunSource, SeekSource};
pub use writer::{RunSummary, RunWriter};
