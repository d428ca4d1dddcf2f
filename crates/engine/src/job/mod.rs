//! The count job, from inputs to one commit.
//!
//! 1. see what the job has, open the footers of what is new, cut units;
//! 2. read every unit (decode, tokenize), collect its terms; the first commit chooses the vocabulary;
//! 3. count: one block goes straight into table files; several, and the pairs that the job has,
//!    are merged by ranges of left ids;
//! 4. commit `vocab`, `outside`, `sources` and `pairs` as one version.
//!
//! A batch may take files out, too ([`recount`], [`retract`]): their units are counted as all
//! others and subtracted in the merge. A table is a function of what is in it, not of the way there.
//!
//! A job of several units keeps manifests in its work folder and goes on after a kill.

mod aside;
pub(crate) mod base;
pub(crate) mod cleanup;
pub(crate) mod commit;
pub(crate) mod count_units;
pub mod distributed;
pub(crate) mod existing;
mod prepared;
mod reading;
mod retract;
pub(crate) mod run;
mod summary;
mod tails;
mod taken;
pub(crate) mod totals;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pmill_store::{JobName, Warehouse};
use pmill_text::FeatureExtractor;
use serde::{Deserialize, Serialize};

use self::base::Base;
use self::cleanup::{after, clean_up, renew};
use self::existing::Batch;
pub use self::existing::Recount;
use self::prepared::Prepared;
pub use self::retract::{RetractJob, RetractPlan, RetractSummary, plan_retract, retract};
use self::run::{Done, Run};
use crate::error::EngineError;
use crate::input::{self, InputFile};
use crate::memory::ByteSize;
use crate::progress::{Progress, StopFlag};
use crate::session::Session;
use crate::settings::{CountSettings, OnBadFile, RecordedSettings};
use crate::slices::SliceFacts;
use crate::tail::TailFacts;
use crate::units;
use crate::work::SCRATCH;

/// What to count, into which job, and within which means.
#[derive(Debug, Clone)]
pub struct CountJob {
    /// Warehouse location.
    pub warehouse: String,
    /// Job name.
    pub name: String,
    /// Paths, globs, folders, URIs.
    pub inputs: Vec<String>,
    /// What is counted and how.
    pub settings: CountSettings,
    /// What happens at a bad file.
    pub on_bad_file: OnBadFile,
    /// Memory limit.
    pub memory_limit: ByteSize,
    /// Threads.
    pub threads: usize,
}

/// What a job did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Files were counted and committed.
    Counted,
    /// Everything had been counted before; nothing changed.
    Unchanged,
}

/// The closing summary of a count job; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct CountSummary {
    /// What was done.
    pub status: Status,
    /// Job name.
    pub job: String,
    /// Version of `pairs` that holds the result.
    pub version: u64,
    /// Files counted.
    pub files: u64,
    /// Files skipped.
    pub skipped: u64,
    /// Rows counted by this run; when nothing changed, those in the counts.
    pub rows: u64,
    /// Features met in them.
    pub tokens: u64,
    /// Distinct features of the whole job.
    pub types: u64,
    /// Terms of the vocabulary.
    pub terms: u64,
    /// Pairs stored.
    pub pairs: u64,
    /// The sketched pairs, when the job has a sketch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sketched: Option<TailFacts>,
    /// Rows of all files in the counts.
    pub total_rows: u64,
    /// Rows taken out again, of files that were counted again.
    pub retracted_rows: u64,
    /// Features met by this run that are outside the vocabulary.
    pub outside_tokens: u64,
    /// Features dropped by `max-features-per-document`.
    pub dropped_features: u64,
    /// Units that the job was cut into.
    pub units: u64,
    /// Bytes of temporary files.
    pub spilled_bytes: u64,
    /// Seconds.
    pub seconds: f64,
    /// Most memory held, if the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What a dry run found: inputs, plan and outputs; nothing was written.
#[derive(Debug, Clone, Serialize)]
pub struct CountPlan {
    /// Job name.
    pub job: String,
    /// Files to count, with their bytes.
    pub inputs: Vec<(String, u64)>,
    /// Files that would be skipped, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Rows in the footers.
    pub rows: u64,
    /// Bytes of the text column as stored.
    pub compressed_bytes: u64,
    /// Bytes of the text column, decompressed.
    pub text_bytes: u64,
    /// Row groups.
    pub row_groups: u64,
    /// Units.
    pub units: u64,
    /// Threads.
    pub threads: u64,
    /// Memory limit in bytes.
    pub memory_limit: ByteSize,
    /// Tables that would be written.
    pub outputs: Vec<String>,
    /// Settings as they would be recorded.
    pub settings: CountSettings,
}

/// What is known of a counted job; kept with its table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Rows, those without text too: the N of the context `document`.
    pub rows: u64,
    /// Features met.
    pub tokens: u64,
    /// Distinct features met.
    pub types: u64,
    /// Terms of the vocabulary.
    pub terms: u64,
    /// Pairs stored.
    pub pairs: u64,
    /// Sum of the stored counts in weight units, as text.
    pub units: String,
    /// Weight units in a natural count of 1.
    pub weight_unit: u64,
    /// Features dropped by `max-features-per-document`.
    pub dropped_features: u64,
    /// The slices in their order, when the job is counted by slice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<SliceFacts>,
    /// The sketched pairs, when the job has a sketch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<TailFacts>,
}

impl Facts {
    /// Rows of `vocab`, whose ids the pairs have: the terms, once for each slice.
    #[must_use]
    pub fn ids(&self) -> u64 {
        self.terms * self.slices.len().max(1) as u64
    }
}

/// Says what a job would do. Writes nothing.
///
/// # Errors
/// As [`count`], up to the point where reading begins.
pub fn plan(job: &CountJob, progress: &dyn Progress) -> Result<CountPlan, EngineError> {
    let name = JobName::new(&job.name)?;
    let warehouse = Warehouse::open(&job.warehouse)?;
    let prepared = Prepared::new(job, None)?;
    let mut inputs = input::expand(&job.inputs)?;
    if let Some(base) = Base::open(&prepared.session, &warehouse, &name)? {
        existing::same_settings(name.as_str(), &prepared.recorded, &base.recorded)?;
        inputs = existing::batch(&base, &inputs, &[])?.add;
    }
    let (files, bad) = prepared.open_all(job, &inputs, progress)?;
    let budget = prepared.budget(job, &files, 1)?;
    let groups = || files.iter().flat_map(|file| &file.row_groups);
    let root = warehouse.display();
    Ok(CountPlan {
        job: job.name.clone(),
        inputs: files
            .iter()
            .map(|file| (file.input.display(), file.input.size))
            .collect(),
        skipped: bad
            .iter()
            .map(|(file, error)| (file.display(), error.to_string()))
            .collect(),
        rows: groups().map(|group| group.rows).sum(),
        compressed_bytes: groups().map(|group| group.compressed).sum(),
        text_bytes: groups().map(|group| group.uncompressed).sum(),
        row_groups: groups().count() as u64,
        units: units::plan(&files, budget.unit_bytes()).len() as u64,
        threads: job.threads as u64,
        memory_limit: job.memory_limit,
        outputs: ["vocab", "pairs", "sources"]
            .into_iter()
            .chain(job.settings.sketch.as_ref().map(|_| "tail"))
            .map(|table| {
                Path::new(&root)
                    .join(name.as_str())
                    .join(table)
                    .display()
                    .to_string()
            })
            .collect(),
        settings: job.settings.clone(),
    })
}

/// Counts the files that the job does not have yet, and commits them as one version.
///
/// # Errors
/// Whatever is wrong with settings, inputs, memory, disk or warehouse; nothing is committed then.
pub fn count(
    job: &CountJob,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<CountSummary, EngineError> {
    recount(job, &[], progress, stop)
}

/// As [`count`], and takes out what some files held when they were counted before, in the same
/// version.
///
/// # Errors
/// As [`count`]; also when the old content of a file is not given, or is not what was counted.
pub fn recount(
    job: &CountJob,
    recounts: &[Recount],
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<CountSummary, EngineError> {
    let started = Instant::now();
    let mut named = job.inputs.clone();
    named.extend(recounts.iter().map(|recount| recount.file.clone()));
    let inputs = input::expand(&named)?;
    let applied = apply(job, progress, stop, |base| match base {
        Some(base) => existing::batch(base, &inputs, recounts),
        None if !recounts.is_empty() => Err(existing::nothing_to_recount(&job.name)),
        None => Ok(Batch {
            add: inputs.clone(),
            taken: Vec::new(),
        }),
    })?;
    Ok(CountSummary::of(&job.name, applied, inputs.len(), started))
}

/// What [`apply`] came to.
enum Applied {
    Unchanged { version: u64, facts: Facts },
    Changed(Box<Done>),
}

/// Makes the next version of a job: takes its lock, asks `decide` what to add and what to take,
/// counts it, commits, and clears away what is left, also of processes that died.
fn apply(
    job: &CountJob,
    progress: &dyn Progress,
    stop: &StopFlag,
    decide: impl FnOnce(Option<&Base>) -> Result<Batch, EngineError>,
) -> Result<Applied, EngineError> {
    let name = JobName::new(&job.name)?;
    let warehouse = Warehouse::open(&job.warehouse)?;
    // Settings are checked before anything is written.
    let extractor = Arc::new(FeatureExtractor::new(&job.settings.features)?);
    let recorded = RecordedSettings::resolve(&job.settings, &extractor)?;
    let Some(job_folder) = warehouse.work_folder(&name) else {
        return Err(EngineError::Setting(
            "this build writes warehouses on local disk only".into(),
        ));
    };
    let fresh = !job_folder.exists();
    let lock = warehouse.lock(&name)?;
    let scratch = job_folder.join(SCRATCH);
    let result = (|| {
        renew(&scratch)?;
        let prepared = Prepared {
            session: Session::new(job.threads, job.memory_limit, Some(&scratch))?,
            extractor,
            recorded,
        };
        let base = Base::open(&prepared.session, &warehouse, &name)?;
        if let Some(base) = &base {
            existing::same_settings(name.as_str(), &prepared.recorded, &base.recorded)?;
        }
        let batch = decide(base.as_ref())?;
        if let Some(base) = &base
            && batch.is_empty()
        {
            clean_up(&prepared.session, &warehouse, &name, &job_folder, &lock)?;
            return Ok(Applied::Unchanged {
                version: base.job.pairs.version(),
                facts: base.facts.clone(),
            });
        }
        let (mut files, bad) = prepared.open_all(job, &batch.add, progress)?;
        let mut rows = vec![None; files.len()];
        let strict = CountJob {
            on_bad_file: OnBadFile::Fail,
            ..job.clone()
        };
        let old: Vec<InputFile> = batch.taken.iter().map(|taken| taken.at.clone()).collect();
        files.extend(prepared.open_all(&strict, &old, progress)?.0);
        rows.extend(batch.taken.iter().map(|taken| taken.rows.clone()));
        let run = Run {
            job,
            name: &name,
            warehouse: &warehouse,
            prepared: &prepared,
            progress,
            stop,
            budget: prepared.budget(job, &files, 1 + u64::from(!batch.taken.is_empty()))?,
            files: &files,
            taken: &batch.taken,
            rows,
            base: base.as_ref(),
            job_folder: &job_folder,
        };
        let done = run.run(bad)?;
        clean_up(&prepared.session, &warehouse, &name, &job_folder, &lock)?;
        Ok(Applied::Changed(Box::new(done)))
    })();
    let _ = std::fs::remove_dir_all(&scratch);
    after(&result, fresh, &warehouse, &name, &job_folder, &lock);
    result
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, EngineError> {
    serde_json::from_str(json).map_err(|error| {
        EngineError::Query(format!(
            "the table's metadata was written by another version of pmill: {error}"
        ))
    })
}
