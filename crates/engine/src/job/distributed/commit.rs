//! The end: every unit and range has its manifest, and the tables become visible as one version.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use pmill_store::{Job, JobName, Warehouse};

use super::drive::terms_names;
use super::folder::{PlanFolder, io};
use super::plan::{PlanHeader, PlanUnit};
use super::spec::{RUNS, RunsList, TermsDone, VOCABULARY, VocabularyDone};
use super::vocabulary::read_vocabulary;
use crate::budget::Budget;
use crate::counting::RangeFile;
use crate::error::EngineError;
use crate::input::InputFile;
use crate::job::existing::already_counted;
use crate::job::prepared::Prepared;
use crate::job::run::Run;
use crate::job::{CountJob, CountSummary, Facts, Status};
use crate::memory::{ByteSize, peak_rss};
use crate::progress::{Progress, StopFlag};
use crate::read::FileTally;
use crate::session::Session;
use crate::settings::RecordedSettings;
use crate::sources::SourceRow;

/// Commits a job whose shards have done all units.
///
/// # Errors
/// When no shard has begun; when units are missing (then it says how many, and trying again later
/// helps); when shards with different inputs or settings made different plans.
pub fn commit(
    warehouse: &str,
    name: &str,
    memory_limit: ByteSize,
    threads: usize,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<CountSummary, EngineError> {
    let started = Instant::now();
    let job_name = JobName::new(name)?;
    let opened = Warehouse::open(warehouse)?;
    let plans = PlanFolder::of_job(&opened, &job_name)?;
    let all = PlanFolder::all(&plans)?;
    let Some(folder) = all.first() else {
        let session = Session::new(1, memory_limit, None)?;
        if let Some(job) = session.wait(Job::open(&opened, &job_name))? {
            return committed(&session, &job, started);
        }
        return Err(EngineError::Setting(format!(
            "there is nothing to commit: no shard of job `{name}` has begun in `{}`",
            opened.display()
        )));
    };
    if all.len() > 1 {
        return Err(EngineError::Setting(format!(
            "the shards of job `{name}` did not agree: {} plans lie in `{}`, as happens when the inputs or the flags changed in between; remove that folder and run the shards again",
            all.len(),
            plans.display()
        )));
    }
    let header = PlanHeader::read(folder)?
        .ok_or_else(|| EngineError::NotNow("the plan has not been written yet".into()))?;
    let mut job = header.job(memory_limit, threads);
    job.warehouse = warehouse.to_owned();
    commit_plan(folder, &job, progress, stop, started)
}

/// The job had been committed: nothing changes.
fn committed(session: &Session, job: &Job, started: Instant) -> Result<CountSummary, EngineError> {
    let recorded: RecordedSettings = crate::job::parse(&job.settings()?)?;
    let extractor = pmill_text::FeatureExtractor::new(&pmill_text::FeatureSpec::default())?;
    let rows = session.wait(crate::sources::read(session.context(), job))?;
    let inputs: Vec<InputFile> = rows
        .into_iter()
        .map(|row| InputFile {
            uri: row.uri,
            size: row.size,
            etag: row.etag,
        })
        .collect();
    let prepared = Prepared {
        session: Session::new(1, crate::memory::SMALLEST_LIMIT, None)?,
        extractor: std::sync::Arc::new(extractor),
        recorded,
    };
    already_counted(&prepared, job, &inputs, started)
}

/// What all units left, checked to be whole.
struct Gathered {
    vocabulary: VocabularyDone,
    runs: RunsList,
    ranges: Vec<RangeFile>,
    tallies: HashMap<usize, FileTally>,
}

fn gather(folder: &PlanFolder, units: &[PlanUnit]) -> Result<Gathered, EngineError> {
    let there = folder.done()?;
    let missing = |what: &str, done: usize, all: usize| {
        EngineError::NotNow(format!(
            "the job is not done: {done} of {all} {what} are there; run the missing shards, then commit again"
        ))
    };
    let count = |prefix: &str| there.iter().filter(|name| name.starts_with(prefix)).count();
    let Some(vocabulary) = folder.get::<VocabularyDone>(VOCABULARY)? else {
        return Err(missing("units of terms", count("terms-"), units.len()));
    };
    let Some(runs) = folder.get::<RunsList>(RUNS)? else {
        return Err(missing("units of counts", count("count-"), units.len()));
    };
    let mut ranges = Vec::with_capacity(vocabulary.ranges.len());
    for number in 0..vocabulary.ranges.len() {
        match folder.get::<RangeFile>(&format!("range-{number:05}"))? {
            Some(range) => ranges.push(range),
            None => {
                return Err(missing("ranges", count("range-"), vocabulary.ranges.len()));
            }
        }
    }
    let mut tallies: HashMap<usize, FileTally> = HashMap::new();
    for name in terms_names(units, &vocabulary.bad) {
        for (file, tally) in folder.need::<TermsDone>(&name)?.files {
            let sum = tallies.entry(file).or_default();
            sum.rows += tally.rows;
            sum.tokens += tally.tokens;
        }
    }
    let rows: u64 = tallies.values().map(|tally| tally.rows).sum();
    if rows != vocabulary.rows {
        return Err(EngineError::Bug(format!(
            "the vocabulary was made from {} rows, and the units have {rows}",
            vocabulary.rows
        )));
    }
    Ok(Gathered {
        vocabulary,
        runs,
        ranges,
        tallies,
    })
}

pub(super) fn commit_plan(
    folder: &PlanFolder,
    job: &CountJob,
    progress: &dyn Progress,
    stop: &StopFlag,
    started: Instant,
) -> Result<CountSummary, EngineError> {
    let header = PlanHeader::read(folder)?
        .ok_or_else(|| EngineError::NotNow("the plan has not been written yet".into()))?;
    let name = JobName::new(&header.name)?;
    let warehouse = Warehouse::open(&job.warehouse)?;
    let units = header.units(folder)?;
    let lock = warehouse.lock(&name)?;
    let session = Session::new(job.threads, job.memory_limit, None)?;
    let existing = session.wait(Job::open(&warehouse, &name))?;
    let summary = match existing {
        Some(existing) => committed(&session, &existing, started)?,
        None => {
            let gathered = gather(folder, &units)?;
            let bring = || move_tables(folder, &warehouse, &name, &gathered.ranges);
            bring()?;
            if stop.is_set() {
                return Err(EngineError::Interrupted);
            }
            let commit = Commit {
                folder,
                header: &header,
                job,
                name: &name,
                warehouse: &warehouse,
                units: &units,
            };
            commit.make(session, &gathered, progress, stop, started)?
        }
    };
    let session = Session::new(1, crate::memory::SMALLEST_LIMIT, None)?;
    session.wait(warehouse.sweep(&name, &lock))?;
    if let Some(plans) = folder.path().parent() {
        remove(plans)?;
    }
    Ok(summary)
}

/// Moves the finished files into the table. A file that an earlier commit moved is there already.
fn move_tables(
    folder: &PlanFolder,
    warehouse: &Warehouse,
    name: &JobName,
    ranges: &[RangeFile],
) -> Result<(), EngineError> {
    let Some(target) = warehouse.table_folder(name, "pairs").1 else {
        return Err(EngineError::Bug(
            "the warehouse is not on this machine".into(),
        ));
    };
    std::fs::create_dir_all(&target).map_err(|source| io("create", &target, source))?;
    for range in ranges {
        let (from, to) = (
            folder.tables().join(&range.file.name),
            target.join(&range.file.name),
        );
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io("move", &from, error));
            }
            _ => {}
        }
        let found = std::fs::metadata(&to).map_err(|source| io("find", &to, source))?;
        if found.len() != range.file.size {
            return Err(EngineError::Bug(format!(
                "`{}` has {} bytes where {} were written",
                to.display(),
                found.len(),
                range.file.size
            )));
        }
    }
    Ok(())
}

fn remove(plans: &Path) -> Result<(), EngineError> {
    match std::fs::remove_dir_all(plans) {
        // A unit that still ran may have written while the folder went away; the next run clears it.
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io("remove", plans, error))
        }
        _ => Ok(()),
    }
}

struct Commit<'a> {
    folder: &'a PlanFolder,
    header: &'a PlanHeader,
    job: &'a CountJob,
    name: &'a JobName,
    warehouse: &'a Warehouse,
    units: &'a [PlanUnit],
}

impl Commit<'_> {
    fn make(
        &self,
        session: Session,
        gathered: &Gathered,
        progress: &dyn Progress,
        stop: &StopFlag,
        started: Instant,
    ) -> Result<CountSummary, EngineError> {
        let prepared = Prepared {
            session,
            extractor: std::sync::Arc::new(pmill_text::FeatureExtractor::new(
                &pmill_text::FeatureSpec::default(),
            )?),
            recorded: self.header.recorded.clone(),
        };
        let vocabulary = read_vocabulary(self.folder, &gathered.vocabulary)?;
        let sources = self.sources(gathered);
        let pairs = || gathered.ranges.iter();
        let facts = Facts {
            rows: gathered.vocabulary.rows,
            tokens: gathered.vocabulary.tokens,
            types: gathered.vocabulary.types,
            terms: vocabulary.len() as u64,
            pairs: pairs().map(|file| file.pairs).sum(),
            units: pairs()
                .map(|file| file.units.parse::<u128>().unwrap_or(0))
                .sum::<u128>()
                .to_string(),
            weight_unit: self.header.recorded.weight_unit,
            dropped_features: gathered.runs.dropped_features,
        };
        let run = Run {
            job: self.job,
            name: self.name,
            warehouse: self.warehouse,
            prepared: &prepared,
            progress,
            stop,
            budget: Budget::new(self.job.memory_limit, self.job.threads, 0)?,
            files: &[],
            job_folder: self.folder.path(),
            started,
        };
        let version = run.commit(
            &vocabulary,
            &sources,
            gathered.ranges.clone(),
            &facts,
            &self.header.digest,
        )?;
        let skipped = sources.iter().filter(|row| row.message.is_some()).count() as u64;
        let mut notes: Vec<String> = sources
            .iter()
            .filter_map(|row| row.message.as_deref())
            .map(|message| format!("skipped: {message}"))
            .collect();
        let files = sources.len() as u64 - skipped;
        if facts.pairs == 0 {
            notes.push("no pair was met: the tables are empty".into());
        }
        Ok(CountSummary {
            status: Status::Counted,
            job: self.name.to_string(),
            version,
            files,
            skipped,
            rows: facts.rows,
            tokens: facts.tokens,
            types: facts.types,
            terms: facts.terms,
            pairs: facts.pairs,
            dropped_features: facts.dropped_features,
            units: self.units.len() as u64,
            spilled_bytes: gathered.runs.runs.iter().map(|run| run.bytes).sum(),
            seconds: started.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_rss().map(|size| size.0),
            notes,
        })
    }

    /// Rows of `sources`: every file that was named, in the order of its URI.
    fn sources(&self, gathered: &Gathered) -> Vec<SourceRow> {
        let bad: HashMap<usize, &String> = gathered
            .vocabulary
            .bad
            .iter()
            .map(|(file, reason)| (*file, reason))
            .collect();
        let mut inputs: HashMap<usize, &InputFile> = HashMap::new();
        for file in self.units.iter().flat_map(|unit| &unit.files) {
            inputs.insert(file.index, &file.input);
        }
        let mut rows: Vec<SourceRow> = self
            .header
            .skipped
            .iter()
            .map(|(file, reason)| SourceRow::skipped(file, reason.clone()))
            .collect();
        rows.extend(
            self.header
                .empty
                .iter()
                .map(|file| SourceRow::counted(file, FileTally::default())),
        );
        for (index, input) in inputs {
            rows.push(match bad.get(&index) {
                Some(reason) => SourceRow::skipped(input, (*reason).clone()),
                None => {
                    let tally = gathered.tallies.get(&index).copied().unwrap_or_default();
                    SourceRow::counted(input, tally)
                }
            });
        }
        rows.sort_by(|a, b| a.uri.cmp(&b.uri));
        rows
    }
}
