//! Counting: one block straight into table files, several into runs that are merged.

use std::sync::Arc;

use pmill_count::{CountError, Tail, TokenBlock};
use pmill_store::killpoint;
use pmill_text::Vocabulary;
use serde::{Deserialize, Serialize};

use super::reading::Corpus;
use super::run::Run;
use super::tails::Tails;
use crate::counting::{Counting, Parts, RangeFile, RunFile};
use crate::error::EngineError;
use crate::pairs_table::Blocks;
use crate::progress::Unit as Steps;
use crate::slices::{Slices, pairs_left, shown};
use crate::units::Unit;
use crate::work::WorkFolder;

/// What counting a unit left, as its manifest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct RunsManifest {
    pub(super) runs: Vec<RunFile>,
    pub(super) dropped_features: u64,
}

/// From provisional ids to those of a vocabulary that was given; counts by slice; sketches.
type Given<'a> = (Option<Vec<u32>>, Option<&'a Slices>, Option<&'a mut Tails>);

pub(super) struct Counted {
    pub(super) files: Vec<RangeFile>,
    /// Features dropped in what is added, and in what is taken.
    pub(super) dropped_features: [u64; 2],
    pub(super) spilled_bytes: u64,
}

impl Run<'_> {
    pub(super) fn count(
        &self,
        counting: &Counting<'_>,
        units: &[Unit],
        corpus: &mut Corpus,
        vocabulary: &Arc<Vocabulary>,
        (given_map, slices, mut tails): Given<'_>,
        work: &WorkFolder,
    ) -> Result<Counted, EngineError> {
        let (mut runs, mut dropped_features, mut spilled_bytes) = (Vec::new(), [0; 2], 0);
        let mut run_bytes = 0;
        let several = units.len() > 1;
        if several {
            self.progress
                .phase("count", units.len() as u64, Steps::Parts);
        }
        let mut finished = |done: RunsManifest, taken: bool| {
            dropped_features[usize::from(taken)] += done.dropped_features;
            run_bytes += done.runs.iter().map(|run| run.bytes).sum::<u64>();
            let paths = done.runs.iter().map(|run| work.path().join(&run.name));
            runs.extend(paths.map(|path| (path, taken)));
        };
        // The last unit of an earlier try.
        let mut done_before = None;
        for unit in units {
            let taken = self.is_taken(unit);
            let manifest = format!("unit-{:05}.json", unit.number);
            if several && let Some(done) = work.get::<RunsManifest>(&manifest)? {
                finished(done, taken);
                done_before = Some(unit.number);
                self.progress.advance(1, 0);
                continue;
            }
            if let (Some(tails), Some(before)) = (&mut tails, done_before.take()) {
                tails.go_on(work, before)?;
            }
            let read = &mut corpus.units[unit.number];
            let mut in_it = corpus.slices.get(read.dictionaries.clone());
            let again;
            let (tokens, maps) = match (read.tokens.take(), &given_map) {
                (Some(tokens), Some(map)) => (tokens, vec![map.clone()]),
                (Some(tokens), None) => {
                    let maps = corpus.dictionaries[read.dictionaries.clone()]
                        .iter()
                        .map(|dictionary| dictionary.remap(vocabulary))
                        .collect::<Result<_, _>>()?;
                    (tokens, maps)
                }
                // Read by a process that died: read again, now that the vocabulary is known.
                (None, _) => {
                    let (tokens, slices) = self.read_again(unit, corpus, vocabulary, work)?;
                    again = slices;
                    in_it = Some(&again);
                    (tokens, Vec::new())
                }
            };
            let offsets: Vec<Option<u32>> = match (slices, in_it) {
                (Some(slices), Some(in_it)) => in_it
                    .iter()
                    .map(|slice| Some(slices.place(&slice.slice)? * vocabulary.len() as u32))
                    .collect(),
                _ => Vec::new(),
            };
            spilled_bytes += tokens.spilled_bytes()?;
            if !several {
                // The maps are all that is needed of them.
                corpus.dictionaries = Vec::new();
            }
            let mut blocks = UnitBlocks {
                run: self,
                counting,
                work,
                tail: tails.as_ref().map(|tails| tails.of(taken)),
                unit: unit.number,
                done: RunsManifest::default(),
                number: 0,
            };
            let last =
                counting.fill_slices(tokens, &maps, &offsets, |block| blocks.flush(block))?;
            if !several && blocks.number == 0 && self.base.is_none() {
                let dropped_features = [last.dropped_features(), 0];
                let prepared = last.prepare(self.job.threads)?;
                self.progress
                    .phase("count", counting.ranges.len() as u64, Steps::Parts);
                let tail = tails.as_ref().map(|tails| tails.of(taken));
                let files = counting.write_tables(&prepared, tail)?;
                return Ok(Counted {
                    files,
                    dropped_features,
                    spilled_bytes,
                });
            }
            if !last.is_empty() {
                blocks.flush(last)?;
            }
            let done = blocks.done;
            if several {
                if let Some(tails) = &mut tails {
                    tails.keep(work, unit.number)?;
                    killpoint::reach("a sketch is kept");
                }
                work.put(&manifest, &done)?;
                killpoint::reach("a unit is counted");
                if tails.is_some() {
                    Tails::forget_before(work, unit.number)?;
                }
                self.progress.advance(1, 0);
            }
            finished(done, taken);
        }
        if let (Some(tails), Some(before)) = (tails, done_before) {
            tails.go_on(work, before)?;
        }
        spilled_bytes += run_bytes;
        let before = match self.base {
            None => None,
            Some(base) => {
                let pairs = base.pairs(self.warehouse, self.prepared.session.handle())?;
                Some(match (slices, &base.slices) {
                    (Some(now), Some(before)) => pairs.moved(Blocks::of(before, now)?),
                    _ => pairs,
                })
            }
        };
        let parts = Parts {
            runs,
            tables: before.iter().collect(),
        };
        if let Some(slices) = slices {
            // The table has no room for what should not be there, so it is looked for.
            let gone = slices.ids()?..slices.ids_with_gone()?;
            let left = if gone.is_empty() {
                None
            } else {
                counting
                    .first_left(&parts, gone)
                    .map_err(|error| name_pair(error, vocabulary, Some(slices)))?
            };
            if let Some(left) = left {
                return Err(pairs_left(slices.key(left)));
            }
        }
        self.progress
            .phase("merge", counting.ranges.len() as u64, Steps::Parts);
        let (_, local) = self.warehouse.table_folder(self.name, "pairs");
        let merged = counting.merge(
            &parts,
            |number| {
                let done: RangeFile = work.get(&format!("range-{number:05}.json")).ok()??;
                let path = local.as_ref()?.join(&done.file.name);
                (std::fs::metadata(path).ok()?.len() == done.file.size).then_some(done)
            },
            |number, file| {
                if several {
                    work.put(&format!("range-{number:05}.json"), file)?;
                }
                killpoint::reach("a range is merged");
                Ok(())
            },
        );
        let files = merged.map_err(|error| name_pair(error, vocabulary, slices))?;
        Ok(Counted {
            files,
            dropped_features,
            spilled_bytes,
        })
    }
}

/// Tells a pair that would go below zero by its terms.
pub(crate) fn name_pair(
    error: EngineError,
    vocabulary: &Vocabulary,
    slices: Option<&Slices>,
) -> EngineError {
    match error {
        EngineError::Count(CountError::NegativeCount {
            left,
            right,
            count,
            subtract,
        }) => {
            let terms = vocabulary.len() as u32;
            let slice = slices
                .and_then(|slices| slices.key(left))
                .map(|key| format!(" of {}", shown(key)))
                .unwrap_or_default();
            EngineError::Setting(format!(
                "the pair (`{}`, `{}`){slice} has count {count} in weight units, and {subtract} would be taken out: what is to be taken out was never counted; nothing was changed",
                vocabulary.term(left % terms),
                vocabulary.term(right % terms)
            ))
        }
        error => error,
    }
}

/// Writes the full blocks of one unit as runs.
pub(super) struct UnitBlocks<'a, 'c> {
    run: &'a Run<'a>,
    counting: &'a Counting<'c>,
    work: &'a WorkFolder,
    tail: Option<&'a Tail>,
    unit: usize,
    done: RunsManifest,
    number: usize,
}

impl UnitBlocks<'_, '_> {
    pub(super) fn flush(&mut self, block: TokenBlock) -> Result<TokenBlock, EngineError> {
        self.done.dropped_features += block.dropped_features();
        let prepared = block.prepare(self.run.job.threads)?;
        let prefix = format!("unit-{:05}-{:03}", self.unit, self.number);
        self.number += 1;
        self.done.runs.extend(self.counting.write_runs(
            &prepared,
            self.work.path(),
            &prefix,
            self.tail,
        )?);
        Ok(prepared.recycle())
    }
}
