//! Sums runs row by row. In: k open runs. Out: rows in order. Held: one accumulator.

use std::ops::Range;

use super::reader::{RunReader, RunSource};
use crate::accumulator::Accumulator;
use crate::error::Result;
use crate::prepared::check_range;
use crate::sink::RowSink;

/// Sums the rows of `left_range` of all runs and hands every row with a pair left to `sink`.
///
/// Runs marked by [`RunReader::subtracting`] are taken away after all others of the same row are
/// added, so their place in `readers` does not matter; pairs that come to zero are left out.
/// Any number of runs, none included; the order of the runs does not change the result.
///
/// # Errors
/// [`CountError::SumOverflow`](crate::CountError::SumOverflow) and [`CountError::NegativeCount`](crate::CountError::NegativeCount) name the pair;
/// [`CountError::RunCorrupt`](crate::CountError::RunCorrupt) and [`CountError::RunRead`](crate::CountError::RunRead) the run; also
/// [`CountError::LeftRange`](crate::CountError::LeftRange), [`CountError::AccumulatorSize`](crate::CountError::AccumulatorSize) (a run of another vocabulary), and
/// those of the sink. The accumulator can be used again after an error.
pub fn merge_runs<S: RunSource>(
    readers: &mut [RunReader<S>],
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

fn merge<S: RunSource>(
    readers: &mut [RunReader<S>],
    accumulator: &mut Accumulator,
    sink: &mut impl RowSink,
) -> Result<()> {
    while let Some(left) = readers.iter().filter_map(RunReader::left).min() {
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
