//! Sums sources of rows. In: k of them, runs or tables. Out: rows in order. Held: one accumulator.

use std::ops::Range;

use super::reader::{RunReader, RunSource};
use crate::accumulator::Accumulator;
use crate::error::Result;
use crate::prepared::check_range;
use crate::sink::RowSink;

/// A row, or a part of one: the next piece may have the same left id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Right ids, strictly rising; not empty.
    pub right: &'a [u32],
    /// One count above 0 for each, in weight units.
    pub counts: &'a [u64],
    /// Whether the row is known to be all here.
    pub whole: bool,
}

/// Rows in rising order of left id that can be read by ranges: a run, or a table that has been
/// written before.
pub trait RowSource {
    /// The vocabulary size that the ids stay below.
    fn vocabulary_size(&self) -> u32;

    /// Whether a merge takes these rows away instead of adding them.
    fn is_subtracted(&self) -> bool;

    /// Starts reading the rows of `range`.
    ///
    /// # Errors
    /// Whatever keeps the source from being read.
    fn seek(&mut self, range: Range<u32>) -> Result<()>;

    /// The left id of the piece at hand, `None` behind the range.
    fn left(&self) -> Option<u32>;

    /// The piece at hand.
    fn piece(&self) -> Option<Piece<'_>>;

    /// Goes to the next piece.
    ///
    /// # Errors
    /// Whatever keeps the source from being read.
    fn advance(&mut self) -> Result<()>;
}

impl<S: RunSource> RowSource for RunReader<S> {
    fn vocabulary_size(&self) -> u32 {
        self.vocabulary_size()
    }

    fn is_subtracted(&self) -> bool {
        self.is_subtracted()
    }

    fn seek(&mut self, range: Range<u32>) -> Result<()> {
        self.seek(range)
    }

    fn left(&self) -> Option<u32> {
        self.left()
    }

    fn piece(&self) -> Option<Piece<'_>> {
        self.piece()
    }

    fn advance(&mut self) -> Result<()> {
        self.advance()
    }
}

/// Sums the rows of `left_range` of all sources and hands every row with a pair left to `sink`.
///
/// Sources that are subtracted (as by [`RunReader::subtracting`]) are taken away after all others of the same row are
/// added, so their place in `readers` does not matter; pairs that come to zero are left out.
/// Any number of sources, none included; their order does not change the result.
///
/// # Errors
/// [`CountError::SumOverflow`](crate::CountError::SumOverflow) and [`CountError::NegativeCount`](crate::CountError::NegativeCount) name the pair;
/// [`CountError::RunCorrupt`](crate::CountError::RunCorrupt) and [`CountError::RunRead`](crate::CountError::RunRead) the run; also
/// [`CountError::LeftRange`](crate::CountError::LeftRange), [`CountError::AccumulatorSize`](crate::CountError::AccumulatorSize) (a run of another vocabulary), and
/// those of the sink. The accumulator can be used again after an error.
pub fn merge_runs<S: RowSource>(
    readers: &mut [S],
    left_range: Range<u32>,
    accumulator: &mut Accumulator,
    sink: &mut impl RowSink,
) -> Result<()> {
    check_range(&left_range, accumulator.vocabulary_size())?;
    for reader in readers.iter_mut() {
        accumulator.check(reader.vocabulary_size())?;
        reader.seek(left_range.clone())?;
    }
    let result = merge(readers, accumulator, sink);
    if result.is_err() {
        accumulator.reset();
    }
    result
}

fn merge<S: RowSource>(
    readers: &mut [S],
    accumulator: &mut Accumulator,
    sink: &mut impl RowSink,
) -> Result<()> {
    while let Some(left) = readers.iter().filter_map(S::left).min() {
        let mut holders = readers
            .iter_mut()
            .filter(|reader| reader.left() == Some(left));
        let (first, second) = (holders.next(), holders.next());
        if let (Some(reader), None) = (first, second)
            && !reader.is_subtracted()
            && let Some(piece) = reader.piece()
            && piece.whole
        {
            sink.row(left, piece.right, piece.counts)?;
            reader.advance()?;
            continue;
        }
        for subtract in [false, true] {
            for reader in readers
                .iter_mut()
                .filter(|reader| reader.is_subtracted() == subtract)
            {
                while reader.left() == Some(left) {
                    if let Some(piece) = reader.piece() {
                        accumulator.add_row(left, piece.right, piece.counts, subtract)?;
                    }
                    reader.advance()?;
                }
            }
        }
        let (right, counts) = accumulator.take_wide_row();
        if !right.is_empty() {
            sink.row(left, right, counts)?;
        }
    }
    Ok(())
}
