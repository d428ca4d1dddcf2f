//! One run: units in, one version out.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use pmill_count::CountSettings as KernelSettings;
use pmill_store::{JobName, Warehouse};
use pmill_text::Vocabulary;

use super::base::{Base, Subsample};
use super::commit::Changes;
use super::prepared::{Prepared, Skipped};
use super::reading::Corpus;
use super::taken::Taken;
use super::totals::OutsidePlace;
use super::{CountJob, Facts};
use crate::budget::Budget;
use crate::counting::{Aside, Counting, RangeFile};
use crate::error::EngineError;
use crate::input::InputFile;
use crate::progress::{Progress, StopFlag};
use crate::read::FileTally;
use crate::row_set::RowSet;
use crate::scan::CorpusFile;
use crate::settings::{ContextKind, ContextSettings};
use crate::slices::Slices;
use crate::sources::{SourceRow, SourceStatus};
use crate::tables::{TableFolder, sliced_ranges, table_ranges};
use crate::tail::{TailFacts, sums_bytes};
use crate::units::{self, Unit};
use crate::work::WorkFolder;

/// One run: a first count, or a batch that adds to a job and takes out of it.
pub(super) struct Run<'a> {
    pub(super) job: &'a CountJob,
    pub(super) name: &'a JobName,
    pub(super) warehouse: &'a Warehouse,
    pub(super) prepared: &'a Prepared,
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a StopFlag,
    pub(super) budget: Budget,
    /// What is added, then what is taken.
    pub(super) files: &'a [CorpusFile],
    /// The last of the files, as what they are taken out.
    pub(super) taken: &'a [Taken],
    /// By file: the rows that are read; `None` for all.
    pub(super) rows: Vec<Option<RowSet>>,
    /// The job as it is; `None` for a first count.
    pub(super) base: Option<&'a Base>,
    pub(super) job_folder: &'a Path,
}

/// What a run came to.
pub(super) struct Done {
    pub(super) version: u64,
    pub(super) facts: Facts,
    pub(super) files: u64,
    pub(super) skipped: u64,
    pub(super) added: FileTally,
    pub(super) taken: FileTally,
    /// Features added that are outside the vocabulary.
    pub(super) outside: u64,
    pub(super) dropped_features: u64,
    pub(super) units: u64,
    pub(super) spilled_bytes: u64,
    pub(super) notes: Vec<String>,
}

impl Run<'_> {
    pub(super) fn run(&self, bad: Skipped) -> Result<Done, EngineError> {
        let units = self.plan_units();
        let digest = self.digest(&units);
        let work = WorkFolder::open(self.job_folder, &digest)?;
        let given = match (&self.job.settings.vocabulary.file, self.base) {
            (Some(_), Some(base)) => Some(base.vocabulary.clone()),
            (Some(path), None) => Some(Arc::new(Vocabulary::from_file(path)?)),
            (None, _) => None,
        };
        // Counts by slice are summed from the terms of each, whoever chose them.
        let looked_up = given.as_ref().filter(|_| !self.sliced());
        let mut corpus = self.read(&units, &work, looked_up)?;
        let (added, taken) = self.tallies(&corpus)?;
        let place = OutsidePlace {
            folder: self.folder("outside"),
            name: format!("part-00000-{digest}.parquet"),
        };
        let mut totals = self.totals(given.as_deref(), &mut corpus, &place)?;
        let mut facts = self.facts_before();
        facts.rows = change("rows", facts.rows, added.rows, taken.rows)?;
        facts.tokens = change("tokens", facts.tokens, added.tokens, taken.tokens)?;
        facts.types = totals.types;
        facts.terms = totals.vocabulary.len() as u64;
        facts.slices = totals
            .slices
            .as_ref()
            .map(Slices::facts)
            .unwrap_or_default();
        let subsample = self.subsample(&totals.vocabulary, &facts)?;
        let outside = (totals.outside.take(), totals.held_outside.take());
        let slices = totals.slices.as_ref();
        let mut counting = self.sliced_counting(
            &totals.vocabulary,
            slices,
            &facts,
            subsample.as_ref(),
            &digest,
        )?;
        let vocab_file = self.vocab_aside(&mut counting, &totals.vocabulary, &digest);
        let outside_file = self.outside_aside(&mut counting, outside, place)?;
        let mut tails = self.tails(&totals.vocabulary)?;
        let counted = self.count(
            &counting,
            &units,
            &mut corpus,
            &totals.vocabulary,
            (totals.given_map, slices, tails.as_mut()),
            &work,
        )?;
        let mut tail = match tails {
            None => None,
            Some(tails) => Some(self.settle(tails, &totals.vocabulary)?),
        };
        let before = facts.tail.take();
        facts.tail = tail.as_mut().map(|tail| {
            // A maximum cannot be taken back.
            let taken = before.is_some_and(|tail| tail.distinct_is_upper_bound);
            TailFacts::of(tail, taken || !self.taken.is_empty())
        });
        facts.pairs = counted.files.iter().map(|file| file.pairs).sum();
        facts.units = units_of(&counted.files).to_string();
        let [dropped, taken_dropped] = counted.dropped_features;
        facts.dropped_features = change(
            "dropped features",
            facts.dropped_features,
            dropped,
            taken_dropped,
        )?;
        let mut sources = self.sources(&bad, &corpus, &digest);
        let (mut skipped, mut notes) = (0, Vec::new());
        if let Some(base) = self.base {
            let added = self.files[..self.added_files()].iter();
            notes = come_again(base, added.map(|file| &file.input));
        }
        for row in &sources {
            if row.batch == digest && row.status == SourceStatus::Skipped {
                skipped += 1;
                let reason = row.message.as_deref().unwrap_or_default();
                notes.push(format!("skipped: {reason}"));
            }
        }
        let files = (self.added_files() + bad.len()) as u64 - skipped;
        if facts.rows == 0 || facts.tokens == 0 {
            notes.push(why_empty(self.base.is_some(), files, &facts));
        }
        let outside = added.tokens - totals.tokens_inside.min(added.tokens);
        let version = self.commit(
            Changes {
                vocabulary: &totals.vocabulary,
                slices: totals.slices.as_ref(),
                sources: &mut sources,
                pairs: counted.files,
                vocab: vocab_file.map(|file| file.take()).transpose()?,
                outside: outside_file.map(|file| file.take()).transpose()?,
                tail,
                facts: &facts,
                subsample: subsample.as_ref(),
            },
            &digest,
        )?;
        Ok(Done {
            version,
            facts,
            files,
            skipped,
            added,
            taken,
            outside,
            dropped_features: dropped,
            units: units.len() as u64,
            spilled_bytes: counted.spilled_bytes,
            notes,
        })
    }

    /// Whether the job is counted by slice.
    pub(super) fn sliced(&self) -> bool {
        self.job.settings.slice.is_some()
    }

    pub(super) fn added_files(&self) -> usize {
        self.files.len() - self.taken.len()
    }

    /// Whether a unit is taken out; no unit is half of it.
    pub(super) fn is_taken(&self, unit: &Unit) -> bool {
        unit.slices
            .first()
            .is_some_and(|slice| slice.file >= self.added_files())
    }

    /// Units of what is added; those of what is taken come behind them.
    pub(super) fn added_units(&self) -> usize {
        units::plan(&self.files[..self.added_files()], self.budget.unit_bytes()).len()
    }

    fn plan_units(&self) -> Vec<Unit> {
        let (add, take) = self.files.split_at(self.added_files());
        units::plan_both(add, take, self.budget.unit_bytes()).0
    }

    /// Names the plan: the same inputs, settings and cut, on the same version, have the same name.
    pub(super) fn digest(&self, units: &[Unit]) -> String {
        let inputs: Vec<&InputFile> = self.files.iter().map(|file| &file.input).collect();
        let plan = (&self.prepared.recorded, inputs, units);
        let text = match self.base {
            None => serde_json::to_vec(&plan),
            Some(base) => {
                let taken: Vec<_> = self.taken.iter().map(Taken::identity).collect();
                serde_json::to_vec(&(plan, base.job.pairs.version(), taken))
            }
        };
        blake3::hash(&text.unwrap_or_default()).to_hex()[..16].to_owned()
    }

    /// Rows and tokens that are added, and that are taken.
    fn tallies(&self, corpus: &Corpus) -> Result<(FileTally, FileTally), EngineError> {
        let mut sums = [FileTally::default(); 2];
        for (file, tally) in corpus.tallies.iter().enumerate() {
            let taken = file.checked_sub(self.added_files());
            if let Some(taken) = taken {
                self.taken[taken].check(*tally)?;
            }
            if corpus.bad[file].is_none() {
                let sum = &mut sums[usize::from(taken.is_some())];
                sum.rows += tally.rows;
                sum.tokens += tally.tokens;
            }
        }
        Ok((sums[0], sums[1]))
    }

    pub(super) fn facts_before(&self) -> Facts {
        match self.base {
            Some(base) => base.facts.clone(),
            None => Facts {
                rows: 0,
                tokens: 0,
                types: 0,
                terms: 0,
                pairs: 0,
                units: "0".to_owned(),
                weight_unit: self.prepared.recorded.weight_unit,
                dropped_features: 0,
                slices: Vec::new(),
                tail: None,
            },
        }
    }

    /// The rows of `sources` after this run.
    fn sources(&self, bad: &Skipped, corpus: &Corpus, digest: &str) -> Vec<SourceRow> {
        let mut rows = self
            .base
            .map(|base| base.sources.clone())
            .unwrap_or_default();
        for (index, taken) in self.taken.iter().enumerate() {
            let tally = corpus.tallies[self.added_files() + index];
            taken.record(&mut rows, tally, digest);
        }
        let mut new: Vec<SourceRow> = bad
            .iter()
            .map(|(file, error)| SourceRow::skipped(file, error.to_string(), digest))
            .collect();
        for (index, file) in self.files[..self.added_files()].iter().enumerate() {
            new.push(match &corpus.bad[index] {
                Some(message) => SourceRow::skipped(&file.input, message.clone(), digest),
                None => SourceRow::counted(&file.input, corpus.tallies[index], digest),
            });
        }
        // A file that comes (again) stands in place of what was known of it.
        let come: HashSet<&str> = new.iter().map(|row| row.uri.as_str()).collect();
        rows.retain(|row| !come.contains(row.uri.as_str()));
        rows.extend(new);
        rows
    }

    pub(super) fn subsample(
        &self,
        vocabulary: &Vocabulary,
        facts: &Facts,
    ) -> Result<Option<Subsample>, EngineError> {
        let Some(threshold) = self.job.settings.context.subsample else {
            return Ok(None);
        };
        match self.base {
            None => Ok(Some(Subsample::freeze(threshold, vocabulary, facts.tokens))),
            Some(base) => match &base.subsample {
                Some(frozen) => Ok(Some(frozen.clone())),
                None => Err(EngineError::Setting(format!(
                    "job `{}` subsamples and was counted by a version of pmill that did not keep the chances; count into another job",
                    self.name
                ))),
            },
        }
    }

    pub(super) fn counting(
        &self,
        vocabulary: &Vocabulary,
        facts: &Facts,
        subsample: Option<&Subsample>,
        digest: &str,
    ) -> Result<Counting<'_>, EngineError> {
        self.sliced_counting(vocabulary, None, facts, subsample, digest)
    }

    pub(super) fn sliced_counting(
        &self,
        vocabulary: &Vocabulary,
        slices: Option<&Slices>,
        facts: &Facts,
        subsample: Option<&Subsample>,
        digest: &str,
    ) -> Result<Counting<'_>, EngineError> {
        let context = &self.job.settings.context;
        let size = match slices {
            None => u32::try_from(vocabulary.len()).map_err(|_| {
                EngineError::Setting("the vocabulary has more than 2^32 terms".into())
            })?,
            Some(slices) => slices.ids_with_gone()?,
        };
        let kernel = KernelSettings {
            context: context.to_context()?,
            vocabulary_size: size,
        };
        let reach = reach(context, facts);
        let sums = match self.job.settings.sketch {
            None => 0,
            Some(_) => sums_bytes(vocabulary.len(), self.sketches()),
        };
        let held = vocabulary.held_bytes() as u64 + slices.map_or(0, Slices::held_bytes) + sums;
        Ok(Counting {
            block_bytes: self.budget.block(&kernel, held)?,
            kernel,
            keep: subsample.map(Subsample::keep),
            threads: self.job.threads,
            ranges: match slices {
                None => table_ranges(vocabulary, reach),
                Some(slices) => sliced_ranges(slices, reach)?,
            },
            folder: self.folder("pairs"),
            batch: digest.to_owned(),
            progress: self.progress,
            stop: self.stop,
            aside: Aside::default(),
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

/// Says which files had been taken out as a whole and are counted again.
pub(super) fn come_again<'f>(
    base: &Base,
    added: impl Iterator<Item = &'f InputFile>,
) -> Vec<String> {
    let gone: HashSet<&str> = base
        .sources
        .iter()
        .filter(|row| row.status == SourceStatus::Retracted && row.message.is_none())
        .map(|row| row.uri.as_str())
        .collect();
    added
        .filter(|file| gone.contains(file.uri.as_str()))
        .map(|file| {
            format!(
                "`{}` had been retracted and is counted again",
                file.display()
            )
        })
        .collect()
}

/// Says why tables are empty.
pub(super) fn why_empty(is_batch: bool, files: u64, facts: &Facts) -> String {
    let why = if is_batch {
        "nothing is left"
    } else if files == 0 {
        "no file was counted"
    } else if facts.rows == 0 {
        "the input has no rows"
    } else {
        "no row has a feature"
    };
    format!("{why}: the tables are empty")
}

/// How many others a token meets, for the plan of the table's files: a function of the totals
/// alone, so that the files do not depend on the way that led to them.
pub(crate) fn reach(context: &ContextSettings, facts: &Facts) -> u64 {
    match context.kind {
        ContextKind::Document => (facts.tokens / facts.rows.max(1)).max(1),
        ContextKind::Window => 2 * u64::from(context.window),
    }
}

/// The sum of all counts, in weight units.
pub(crate) fn units_of(files: &[RangeFile]) -> u128 {
    files
        .iter()
        .map(|file| file.units.parse().unwrap_or(0))
        .sum()
}

pub(super) fn change(what: &str, had: u64, more: u64, less: u64) -> Result<u64, EngineError> {
    had.checked_add(more)
        .and_then(|sum| sum.checked_sub(less))
        .ok_or_else(|| {
            EngineError::Setting(format!(
                "the job has {had} {what}, and {less} would be taken out: what is to be taken out was never counted; nothing was changed"
            ))
        })
}
