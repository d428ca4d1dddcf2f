//! Counting: one block straight into table files, several into runs that are merged.

use std::path::PathBuf;
use std::sync::Arc;

use pmill_count::TokenBlock;
use pmill_text::Vocabulary;
use serde::{Deserialize, Serialize};

use super::reading::Corpus;
use super::run::Run;
use crate::counting::{Counting, RangeFile, RunFile};
use crate::error::EngineError;
use crate::progress::Unit as Steps;
use crate::units::Unit;
use crate::work::WorkFolder;

/// What counting a unit left, as its manifest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct RunsManifest {
    pub(super) runs: Vec<RunFile>,
    pub(super) dropped_features: u64,
}

pub(super) struct Counted {
    pub(super) files: Vec<RangeFile>,
    pub(super) dropped_features: u64,
    pub(super) spilled_bytes: u64,
}

impl Run<'_> {
    pub(super) fn count(
        &self,
        counting: &Counting<'_>,
        units: &[Unit],
        corpus: &mut Corpus,
        vocabulary: &Arc<Vocabulary>,
        given_map: Option<Vec<u32>>,
        work: &WorkFolder,
    ) -> Result<Counted, EngineError> {
        let (mut runs, mut dropped_features, mut spilled_bytes) = (Vec::new(), 0, 0);
        let several = units.len() > 1;
        if several {
            self.progress
                .phase("count", units.len() as u64, Steps::Parts);
        }
        for unit in units {
            let manifest = format!("unit-{:05}.json", unit.number);
            if several && let Some(done) = work.get::<RunsManifest>(&manifest)? {
                dropped_features += done.dropped_features;
                runs.extend(done.runs);
                self.progress.advance(1, 0);
                continue;
            }
            let read = &mut corpus.units[unit.number];
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
                (None, _) => (self.read_again(unit, corpus, vocabulary, work)?, Vec::new()),
            };
            spilled_bytes += tokens.spilled_bytes()?;
            if !several {
                // The maps are all that is needed of them.
                corpus.dictionaries = Vec::new();
            }
            let mut blocks = Blocks {
                run: self,
                counting,
                work,
                unit: unit.number,
                done: RunsManifest::default(),
                number: 0,
            };
            let last = counting.fill(tokens, &maps, |block| blocks.flush(block))?;
            if !several && blocks.number == 0 {
                let dropped_features = last.dropped_features();
                let prepared = last.prepare(self.job.threads)?;
                self.progress
                    .phase("count", counting.ranges.len() as u64, Steps::Parts);
                let files = counting.write_tables(&prepared)?;
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
                work.put(&manifest, &done)?;
                self.progress.advance(1, 0);
            }
            dropped_features += done.dropped_features;
            runs.extend(done.runs);
        }
        spilled_bytes += runs.iter().map(|run| run.bytes).sum::<u64>();
        let paths: Vec<PathBuf> = runs.iter().map(|run| work.path().join(&run.name)).collect();
        self.progress
            .phase("merge", counting.ranges.len() as u64, Steps::Parts);
        let (_, local) = self.warehouse.table_folder(self.name, "pairs");
        let files = counting.merge(
            &paths,
            |number| {
                let done: RangeFile = work.get(&format!("range-{number:05}.json")).ok()??;
                let path = local.as_ref()?.join(&done.file.name);
                (std::fs::metadata(path).ok()?.len() == done.file.size).then_some(done)
            },
            |number, file| {
                if several {
                    work.put(&format!("range-{number:05}.json"), file)
                } else {
                    Ok(())
                }
            },
        )?;
        Ok(Counted {
            files,
            dropped_features,
            spilled_bytes,
        })
    }
}

/// Writes the full blocks of one unit as runs.
pub(super) struct Blocks<'a> {
    run: &'a Run<'a>,
    counting: &'a Counting<'a>,
    work: &'a WorkFolder,
    unit: usize,
    done: RunsManifest,
    number: usize,
}

impl Blocks<'_> {
    pub(super) fn flush(&mut self, block: TokenBlock) -> Result<TokenBlock, EngineError> {
        self.done.dropped_features += block.dropped_features();
        let prepared = block.prepare(self.run.job.threads)?;
        let prefix = format!("unit-{:05}-{:03}", self.unit, self.number);
        self.number += 1;
        self.done.runs.extend(
            self.counting
                .write_runs(&prepared, self.work.path(), &prefix)?,
        );
        Ok(prepared.recycle())
    }
}
