//! Takes files, or rows of them, out of a job again: they are counted and subtracted.

use std::time::Instant;

use pmill_store::{Job, JobName, Warehouse};
use serde::Serialize;

use super::base::Base;
use super::existing::{Batch, Known};
use super::taken::{Taken, gone};
use super::{Applied, CountJob, apply, parse};
use crate::error::EngineError;
use crate::input::{self, InputFile};
use crate::memory::{ByteSize, peak_rss};
use crate::progress::{Progress, StopFlag};
use crate::row_choice::{RowChoice, choose};
use crate::session::Session;
use crate::settings::{OnBadFile, RecordedSettings};
use crate::sources::SourceStatus;

/// What to take out of which job.
#[derive(Debug, Clone)]
pub struct RetractJob {
    /// Warehouse location.
    pub warehouse: String,
    /// Job name.
    pub name: String,
    /// Files that were counted: paths, globs, folders, URIs.
    pub inputs: Vec<String>,
    /// Where the bytes of the one input are that were counted, when the file has changed since.
    pub old: Option<String>,
    /// Which rows of them.
    pub rows: RowChoice,
    /// Memory limit.
    pub memory_limit: ByteSize,
    /// Threads.
    pub threads: usize,
}

/// What a retraction would take.
#[derive(Debug, Clone, Serialize)]
pub struct RetractPlan {
    /// Job name.
    pub job: String,
    /// Files, and how many rows of each; `None`: all that is in the counts.
    pub files: Vec<(String, Option<u64>)>,
    /// What was taken out before, or does not match.
    pub notes: Vec<String>,
}

/// The closing summary; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct RetractSummary {
    /// `retracted`, or `unchanged` when there was nothing to take.
    pub status: &'static str,
    /// Job name.
    pub job: String,
    /// Version of `pairs` that holds the result.
    pub version: u64,
    /// Files that rows were taken of.
    pub files: u64,
    /// Rows taken out.
    pub rows: u64,
    /// Features taken out.
    pub tokens: u64,
    /// Pairs that are left.
    pub pairs: u64,
    /// Rows that are left.
    pub total_rows: u64,
    /// Seconds.
    pub seconds: f64,
    /// Most memory held, if the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl RetractJob {
    /// The count job whose settings are those of the table.
    ///
    /// # Errors
    /// When there is no such job.
    pub fn counting(&self) -> Result<CountJob, EngineError> {
        let warehouse = Warehouse::open(&self.warehouse)?;
        let session = Session::new(1, self.memory_limit, None)?;
        let job = session.wait(Job::open_existing(&warehouse, &JobName::new(&self.name)?))?;
        let recorded: RecordedSettings = parse(&job.settings()?)?;
        Ok(CountJob {
            warehouse: self.warehouse.clone(),
            name: self.name.clone(),
            inputs: self.inputs.clone(),
            settings: recorded.given,
            on_bad_file: OnBadFile::Fail,
            memory_limit: self.memory_limit,
            threads: self.threads,
        })
    }

    /// What is in the job, where its bytes are, and which rows of it are meant.
    fn find(&self, base: &Base, notes: &mut Vec<String>) -> Result<Vec<Taken>, EngineError> {
        // Choosing rows streams one column or few.
        let session = Session::new(1, self.memory_limit, None)?;
        let known = Known::of(base);
        let mut taken = Vec::new();
        for (file, at) in self.files()? {
            let shown = file.display();
            let Some(row) = known.find(&file.uri) else {
                if base.sources.iter().any(|row| row.uri == file.uri) {
                    notes.push(format!("`{shown}` was taken out before"));
                    continue;
                }
                return Err(EngineError::Setting(format!(
                    "`{shown}` is not in job `{}`; SELECT uri FROM {}.sources tells what is",
                    base.job.name, base.job.name
                )));
            };
            if row.status == SourceStatus::Skipped {
                return Err(EngineError::Setting(format!(
                    "`{shown}` was skipped when job `{}` was counted, so there is nothing of it to take out",
                    base.job.name
                )));
            }
            if self.old.is_none() && !row.is(&file) {
                return Err(EngineError::Setting(format!(
                    "`{shown}` has changed since it was counted ({} bytes, {} then; {} now), and counts can only be taken out by counting the same bytes again: give --old COPY, where COPY holds them",
                    row.size,
                    row.etag,
                    file.identity()
                )));
            }
            let all = Taken::whole(base, row, at.clone())?;
            if self.rows == RowChoice::All {
                taken.push(all);
                continue;
            }
            let chosen = choose(&session, &at, &self.rows)?;
            let left = chosen.minus(&gone(base, &row.uri));
            if chosen.is_empty() {
                notes.push(format!("no row of `{shown}` matches"));
            } else if left.len() < chosen.len() {
                notes.push(format!(
                    "{} of the {} rows of `{shown}` that match were taken out before",
                    chosen.len() - left.len(),
                    chosen.len()
                ));
            }
            if !left.is_empty() {
                taken.push(Taken::rows(row, at, left));
            }
        }
        Ok(taken)
    }

    /// The files by their name in the job, and where their bytes are.
    fn files(&self) -> Result<Vec<(InputFile, InputFile)>, EngineError> {
        let Some(old) = &self.old else {
            let files = input::expand(&self.inputs)?;
            return Ok(files.into_iter().map(|file| (file.clone(), file)).collect());
        };
        let [file] = &self.inputs[..] else {
            return Err(EngineError::Setting(
                "--old goes with one --input: it tells where the bytes of that file are now".into(),
            ));
        };
        let at = input::one(old)?;
        let named = InputFile {
            uri: input::uri(file)?,
            ..at.clone()
        };
        Ok(vec![(named, at)])
    }
}

/// Says what [`retract`] would take out. Writes nothing.
///
/// # Errors
/// As [`retract`], up to the point where counting begins.
pub fn plan_retract(job: &RetractJob) -> Result<RetractPlan, EngineError> {
    let warehouse = Warehouse::open(&job.warehouse)?;
    let session = Session::new(1, job.memory_limit, None)?;
    let stored = session.wait(Job::open_existing(&warehouse, &JobName::new(&job.name)?))?;
    let base = Base::of(&session, &warehouse, stored)?;
    let mut notes = Vec::new();
    let taken = job.find(&base, &mut notes)?;
    Ok(RetractPlan {
        job: job.name.clone(),
        files: taken
            .iter()
            .map(|taken| {
                let rows = taken.rows.as_ref().filter(|_| !taken.whole);
                (
                    taken.source.display(),
                    rows.map(crate::row_set::RowSet::len),
                )
            })
            .collect(),
        notes,
    })
}

/// Counts what is to be taken out, with the job's own settings, and subtracts it, as one version.
///
/// # Errors
/// A file that is not in the job or has changed, a condition that is none, what would leave a count
/// below zero (naming the term or the pair); nothing is committed then. Also as [`super::count`].
pub fn retract(
    job: &RetractJob,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<RetractSummary, EngineError> {
    let counting = job.counting()?;
    let mut retracting = Retracting::new(job);
    let applied = apply(&counting, progress, stop, |base| retracting.decide(base))?;
    Ok(retracting.summary(applied))
}

/// A retraction under way.
pub(super) struct Retracting<'a> {
    job: &'a RetractJob,
    started: Instant,
    files: u64,
    notes: Vec<String>,
}

impl<'a> Retracting<'a> {
    pub(super) fn new(job: &'a RetractJob) -> Self {
        Self {
            job,
            started: Instant::now(),
            files: 0,
            notes: Vec::new(),
        }
    }

    /// What leaves the job.
    pub(super) fn decide(&mut self, base: Option<&Base>) -> Result<Batch, EngineError> {
        let Some(base) = base else {
            return Err(EngineError::Bug("the job is gone".into()));
        };
        let taken = self.job.find(base, &mut self.notes)?;
        self.files = taken.len() as u64;
        Ok(Batch {
            add: Vec::new(),
            taken,
        })
    }

    pub(super) fn summary(self, applied: Applied) -> RetractSummary {
        let mut notes = self.notes;
        let (status, version, facts, taken) = match applied {
            Applied::Unchanged { version, facts } => {
                notes.push("there was nothing to take out; nothing changed".into());
                ("unchanged", version, facts, Default::default())
            }
            Applied::Changed(done) => {
                notes.extend(done.notes);
                ("retracted", done.version, done.facts, done.taken)
            }
        };
        RetractSummary {
            status,
            job: self.job.name.clone(),
            version,
            files: self.files,
            rows: taken.rows,
            tokens: taken.tokens,
            pairs: facts.pairs,
            total_rows: facts.rows,
            seconds: self.started.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_rss().map(|size| size.0),
            notes,
        }
    }
}
