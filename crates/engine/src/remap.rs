//! A table's ids in the ids of another vocabulary, and its pairs in that order.
//!
//! In: two vocabularies; a table of pairs. Out: runs, each sorted by the new ids. Held: one buffer of
//! pairs, which is sorted and written when it is full.

use std::fs::File;
use std::io::BufWriter;
use std::ops::Range;
use std::path::Path;

use pmill_count::{Compression, RowSink, RowSource, RunWriter};
use pmill_text::Vocabulary;
use serde::{Deserialize, Serialize};

use crate::counting::RunFile;
use crate::error::EngineError;
use crate::pairs_table::PairsTable;
use crate::progress::StopFlag;
use crate::tables::unwrap_sink;

/// Bytes of a pair in the buffer.
pub(crate) const PAIR_BYTES: usize = 16;

/// How one vocabulary stands to another.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// The same terms with the same ids.
    Same,
    /// By id here: the id there.
    Reordered(Vec<Option<u32>>),
    /// The same, but so many terms of one are not in the other.
    Different {
        map: Vec<Option<u32>>,
        only_here: u64,
        only_there: u64,
    },
}

impl Relation {
    pub(crate) fn of(here: &Vocabulary, there: &Vocabulary) -> Self {
        let ids = 0..u32::try_from(here.len()).unwrap_or(u32::MAX);
        let map: Vec<Option<u32>> = ids.clone().map(|id| there.lookup(here.term(id))).collect();
        let only_here = map.iter().filter(|id| id.is_none()).count() as u64;
        let only_there = there.len() as u64 - (here.len() as u64 - only_here);
        if only_here > 0 || only_there > 0 {
            return Self::Different {
                map,
                only_here,
                only_there,
            };
        }
        if ids.zip(&map).all(|(id, to)| *to == Some(id)) {
            return Self::Same;
        }
        Self::Reordered(map)
    }

    /// By id here: the id there, if it is another.
    pub(crate) fn map(&self) -> Option<&[Option<u32>]> {
        match self {
            Self::Same => None,
            Self::Reordered(map) | Self::Different { map, .. } => Some(map),
        }
    }
}

/// Runs of a table with new ids, as its manifest.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Remapped {
    pub(crate) runs: Vec<RunFile>,
    /// Pairs that had a term without a new id, and the sum of their counts, as text.
    pub(crate) dropped_pairs: u64,
    pub(crate) dropped_units: String,
}

/// Writes the pairs of a range of a table's left ids as runs in the order of new ids, which are
/// below `to_size`. `symmetric`: a pair stands once, with the smaller id on the left.
pub(crate) fn remap(
    table: &PairsTable,
    (range, to_size): (Range<u32>, u32),
    map: &[Option<u32>],
    symmetric: bool,
    buffer_bytes: usize,
    (folder, prefix): (&Path, &str),
    stop: &StopFlag,
) -> Result<Remapped, EngineError> {
    let room = (buffer_bytes / PAIR_BYTES).max(1 << 16);
    let mut done = Remapped::default();
    let mut dropped_units = 0_u128;
    let mut buffer: Vec<(u64, u64)> = Vec::new();
    let mut rows = table.rows();
    rows.seek(range).map_err(unwrap_sink)?;
    while let Some(left) = rows.left() {
        if stop.is_set() {
            return Err(EngineError::Interrupted);
        }
        let Some(piece) = rows.piece() else { break };
        for (right, count) in piece.right.iter().zip(piece.counts) {
            let Some((mut left, mut right)) = map[left as usize].zip(map[*right as usize]) else {
                done.dropped_pairs += 1;
                dropped_units += u128::from(*count);
                continue;
            };
            if symmetric && left > right {
                (left, right) = (right, left);
            }
            buffer.push(((u64::from(left) << 32) | u64::from(right), *count));
        }
        if buffer.len() >= room {
            write_run(&mut buffer, to_size, folder, prefix, &mut done.runs)?;
        }
        rows.advance().map_err(unwrap_sink)?;
    }
    if !buffer.is_empty() {
        write_run(&mut buffer, to_size, folder, prefix, &mut done.runs)?;
    }
    done.dropped_units = dropped_units.to_string();
    Ok(done)
}

/// Sorts pairs (the left id in the upper half of a number) with their counts, and writes them as the next
/// of `runs`.
pub(crate) fn write_run(
    buffer: &mut Vec<(u64, u64)>,
    vocabulary_size: u32,
    folder: &Path,
    prefix: &str,
    runs: &mut Vec<RunFile>,
) -> Result<(), EngineError> {
    buffer.sort_unstable_by_key(|(pair, _)| *pair);
    let name = format!("{prefix}-{:05}.run", runs.len());
    let path = folder.join(&name);
    let io = |source| EngineError::Io {
        action: "write",
        path: path.display().to_string(),
        source,
    };
    let file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(io)?);
    let mut writer = RunWriter::new(file, vocabulary_size, Compression::default())?;
    let (mut right, mut counts) = (Vec::new(), Vec::new());
    for row in buffer.chunk_by(|(a, _), (b, _)| a >> 32 == b >> 32) {
        right.clear();
        counts.clear();
        right.extend(row.iter().map(|(pair, _)| *pair as u32));
        counts.extend(row.iter().map(|(_, count)| *count));
        writer.row((row[0].0 >> 32) as u32, &right, &counts)?;
    }
    let (file, summary) = writer.finish()?;
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    buffer.clear();
    runs.push(RunFile {
        name,
        bytes: summary.bytes,
        pairs: summary.pairs,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabularies_are_the_same_reordered_or_different() {
        let of = |terms: &[&str]| {
            let rows = terms.iter().map(|term| {
                Ok::<_, EngineError>(pmill_text::TermCount {
                    term: (*term).to_owned(),
                    tokens: 1,
                    documents: 1,
                })
            });
            Vocabulary::from_rows(rows).unwrap()
        };
        let there = of(&["cat", "dog"]);
        assert_eq!(Relation::of(&of(&["cat", "dog"]), &there), Relation::Same);
        assert_eq!(
            Relation::of(&of(&["dog", "cat"]), &there),
            Relation::Reordered(vec![Some(1), Some(0)])
        );
        assert_eq!(
            Relation::of(&of(&["dog", "hen", "cow"]), &there),
            Relation::Different {
                map: vec![Some(1), None, None],
                only_here: 2,
                only_there: 1
            }
        );
        assert_eq!(Relation::of(&of(&[]), &of(&[])), Relation::Same);
    }
}
