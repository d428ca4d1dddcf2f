//! The count job, from inputs to one commit.
//!
//! 1. expand the inputs, open every footer, cut units;
//! 2. read every unit (decode, tokenize), collect its terms, choose the vocabulary;
//! 3. count: one block goes straight into table files; several become runs, merged by ranges;
//! 4. commit `vocab`, `sources` and `pairs` as one version.
//!
//! A job of several units keeps manifests in its work folder and goes on after a kill.

mod cleanup;
mod commit;
mod count_units;
pub mod distributed;
mod existing;
mod prepared;
mod reading;
mod run;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pmill_store::{Job, JobName, Warehouse};
use pmill_text::FeatureExtractor;
use serde::{Deserialize, Serialize};

use self::cleanup::{clean_up, leave_nothing, renew};
use self::existing::already_counted;
use self::prepared::Prepared;
use self::run::Run;
use crate::error::EngineError;
use crate::input;
use crate::memory::ByteSize;
use crate::progress::{Progress, StopFlag};
use crate::session::Session;
use crate::settings::{CountSettings, OnBadFile, RecordedSettings};
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
    /// Rows read.
    pub rows: u64,
    /// Features met.
    pub tokens: u64,
    /// Distinct features met.
    pub types: u64,
    /// Terms of the vocabulary.
    pub terms: u64,
    /// Pairs stored.
    pub pairs: u64,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// Says what a job would do. Writes nothing.
///
/// # Errors
/// As [`count`], up to the point where reading begins.
pub fn plan(job: &CountJob, progress: &dyn Progress) -> Result<CountPlan, EngineError> {
    let name = JobName::new(&job.name)?;
    let warehouse = Warehouse::open(&job.warehouse)?;
    let prepared = Prepared::new(job, None)?;
    let inputs = input::expand(&job.inputs)?;
    let (files, bad) = prepared.open_all(job, &inputs, progress)?;
    let budget = prepared.budget(job, &files)?;
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
            .iter()
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

/// Counts the files that the job has not counted yet, and commits them as one version.
///
/// # Errors
/// Whatever is wrong with settings, inputs, memory, disk or warehouse; nothing is committed then.
pub fn count(
    job: &CountJob,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<CountSummary, EngineError> {
    let started = Instant::now();
    let name = JobName::new(&job.name)?;
    let warehouse = Warehouse::open(&job.warehouse)?;
    let inputs = input::expand(&job.inputs)?;
    // Settings and inputs are checked before anything is written.
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
        let existing = prepared.session.wait(Job::open(&warehouse, &name))?;
        if let Some(existing) = &existing {
            let summary = already_counted(&prepared, existing, &inputs, started)?;
            clean_up(&prepared, &warehouse, &name, &job_folder, &lock)?;
            return Ok(summary);
        }
        let (files, bad) = prepared.open_all(job, &inputs, progress)?;
        let run = Run {
            job,
            name: &name,
            warehouse: &warehouse,
            prepared: &prepared,
            progress,
            stop,
            budget: prepared.budget(job, &files)?,
            files: &files,
            job_folder: &job_folder,
            started,
        };
        let summary = run.run(bad)?;
        clean_up(&prepared, &warehouse, &name, &job_folder, &lock)?;
        Ok(summary)
    })();
    let _ = std::fs::remove_dir_all(&scratch);
    if result.is_err() && fresh {
        leave_nothing(&warehouse, &name, &job_folder, &lock);
    }
    result
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, EngineError> {
    serde_json::from_str(json).map_err(|error| {
        EngineError::Query(format!(
            "the table's metadata was written by another version of pmill: {error}"
        ))
    })
}
