//! One run: units in, one version out.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pmill_count::{CountSettings as KernelSettings, keep_probability};
use pmill_store::{JobName, Warehouse};
use pmill_text::Vocabulary;

use super::prepared::{Prepared, Skipped};
use super::reading::Corpus;
use super::{CountJob, CountSummary, Facts, Status};
use crate::budget::Budget;
use crate::counting::Counting;
use crate::error::EngineError;
use crate::input::InputFile;
use crate::memory::peak_rss;
use crate::progress::{Progress, StopFlag};
use crate::scan::CorpusFile;
use crate::settings::ContextKind;
use crate::sources::SourceRow;
use crate::tables::{TableFolder, table_ranges};
use crate::units::{self, Unit};
use crate::vocabulary;
use crate::work::WorkFolder;

/// One run of a job that does not exist yet.
pub(super) struct Run<'a> {
    pub(super) job: &'a CountJob,
    pub(super) name: &'a JobName,
    pub(super) warehouse: &'a Warehouse,
    pub(super) prepared: &'a Prepared,
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a StopFlag,
    pub(super) budget: Budget,
    pub(super) files: &'a [CorpusFile],
    pub(super) job_folder: &'a Path,
    pub(super) started: Instant,
}

impl Run<'_> {
    pub(super) fn run(&self, bad: Skipped) -> Result<CountSummary, EngineError> {
        let units = units::plan(self.files, self.budget.unit_bytes());
        let digest = self.digest(&units);
        let work = WorkFolder::open(self.job_folder, &digest)?;
        let given = match &self.job.settings.vocabulary.file {
            Some(path) => Some(Arc::new(Vocabulary::from_file(path)?)),
            None => None,
        };
        let mut corpus = self.read(&units, &work, given.as_ref())?;
        let (vocabulary, types, given_map) = self.vocabulary(given.as_deref(), &mut corpus)?;
        let vocabulary = Arc::new(vocabulary);
        let counting = self.counting(&vocabulary, &corpus, &digest)?;
        let counted = self.count(
            &counting,
            &units,
            &mut corpus,
            &vocabulary,
            given_map,
            &work,
        )?;

        let mut notes = Vec::new();
        let (mut rows, mut tokens) = (0, 0);
        let mut source_rows: Vec<SourceRow> = bad
            .iter()
            .map(|(file, error)| SourceRow::skipped(file, error.to_string()))
            .collect();
        for (index, file) in self.files.iter().enumerate() {
            let tally = corpus.tallies[index];
            source_rows.push(match &corpus.bad[index] {
                Some(message) => SourceRow::skipped(&file.input, message.clone()),
                None => {
                    rows += tally.rows;
                    tokens += tally.tokens;
                    SourceRow::counted(&file.input, tally)
                }
            });
        }
        source_rows.sort_by(|a, b| a.uri.cmp(&b.uri));
        let skipped = source_rows
            .iter()
            .filter(|row| row.message.is_some())
            .count() as u64;
        for row in source_rows.iter().filter(|row| row.message.is_some()) {
            notes.push(format!(
                "skipped: {}",
                row.message.as_deref().unwrap_or_default()
            ));
        }
        let files = source_rows.len() as u64 - skipped;
        if files == 0 {
            notes.push("no file was counted: the tables are empty".into());
        } else if rows == 0 {
            notes.push("the input has no rows: the tables are empty".into());
        } else if tokens == 0 {
            notes.push("no row has a feature: the tables are empty".into());
        }
        let units_sum: u128 = counted
            .files
            .iter()
            .map(|file| file.units.parse().unwrap_or(0))
            .sum();
        let facts = Facts {
            rows,
            tokens,
            types,
            terms: vocabulary.len() as u64,
            pairs: counted.files.iter().map(|file| file.pairs).sum(),
            units: units_sum.to_string(),
            weight_unit: self.prepared.recorded.weight_unit,
            dropped_features: counted.dropped_features,
        };
        let version = self.commit(&vocabulary, &source_rows, counted.files, &facts, &digest)?;
        Ok(CountSummary {
            status: Status::Counted,
            job: self.name.to_string(),
            version,
            files,
            skipped,
            rows,
            tokens,
            types,
            terms: facts.terms,
            pairs: facts.pairs,
            dropped_features: facts.dropped_features,
            units: units.len() as u64,
            spilled_bytes: counted.spilled_bytes,
            seconds: self.started.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_rss().map(|size| size.0),
            notes,
        })
    }

    /// Names the plan: the same inputs, settings and cut have the same name.
    pub(super) fn digest(&self, units: &[Unit]) -> String {
        let inputs: Vec<&InputFile> = self.files.iter().map(|file| &file.input).collect();
        let text =
            serde_json::to_vec(&(&self.prepared.recorded, inputs, units)).unwrap_or_default();
        blake3::hash(&text).to_hex()[..16].to_owned()
    }

    /// The vocabulary, the number of distinct terms met, and the way from provisional ids to its
    /// ids when the terms were given.
    pub(super) fn vocabulary(
        &self,
        given: Option<&Vocabulary>,
        corpus: &mut Corpus,
    ) -> Result<(Vocabulary, u64, Option<Vec<u32>>), EngineError> {
        match (given, &corpus.counts) {
            (Some(given), Some((tokens, documents))) => {
                let types = tokens.iter().filter(|count| **count > 0).count() as u64;
                let (vocabulary, map) = given.recount(tokens, documents)?;
                Ok((vocabulary, types, Some(map)))
            }
            _ => {
                let rule = self.job.settings.vocabulary.rule();
                let chosen = vocabulary::choose(&mut corpus.dictionaries, &rule, &self.budget)?;
                Ok((chosen.vocabulary, chosen.types, None))
            }
        }
    }

    pub(super) fn counting(
        &self,
        vocabulary: &Vocabulary,
        corpus: &Corpus,
        digest: &str,
    ) -> Result<Counting<'_>, EngineError> {
        let context = &self.job.settings.context;
        let kernel = KernelSettings {
            context: context.to_context()?,
            vocabulary_size: u32::try_from(vocabulary.len()).map_err(|_| {
                EngineError::Setting("the vocabulary has more than 2^32 terms".into())
            })?,
        };
        let tokens: u64 = corpus.tallies.iter().map(|tally| tally.tokens).sum();
        let rows: u64 = corpus.tallies.iter().map(|tally| tally.rows).sum();
        let reach = match context.kind {
            ContextKind::Document => (tokens / rows.max(1)).max(1),
            ContextKind::Window => 2 * u64::from(context.window),
        };
        let keep = context.subsample.map(|threshold| {
            (0..kernel.vocabulary_size)
                .map(|id| keep_probability(threshold, vocabulary.tokens(id), tokens))
                .collect()
        });
        Ok(Counting {
            block_bytes: self.budget.block(&kernel, vocabulary.held_bytes() as u64)?,
            kernel,
            keep,
            threads: self.job.threads,
            ranges: table_ranges(vocabulary, reach),
            folder: self.folder("pairs"),
            batch: digest.to_owned(),
            progress: self.progress,
            stop: self.stop,
        })
    }

    pub(super) fn folder(&self, table: &str) -> TableFolder<'_> {
        TableFolder::new(
            self.warehouse,
            self.name,
            table,
            self.prepared.session.handle(),
        )
    }
}
