//! The end: every unit and range has its manifest, and the tables become visible as one version.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use pmill_store::{Job, JobName, Warehouse};

use super::drive::terms_names;
use super::folder::{PlanFolder, bring, io, remove};
use super::plan::{PlanHeader, PlanUnit, UnitFile};
use super::spec::{RUNS, RunsList, TermsDone, VOCABULARY, VocabularyDone};
use super::vocabulary::read_vocabulary;
use crate::budget::Budget;
use crate::counting::RangeFile;
use crate::error::EngineError;
use crate::input::InputFile;
use crate::job::base::Base;
use crate::job::commit::Changes;
use crate::job::existing::Known;
use crate::job::prepared::Prepared;
use crate::job::run::{Done, Run, change, come_again, units_of, why_empty};
use crate::job::{Applied, CountJob, CountSummary};
use crate::memory::ByteSize;
use crate::progress::{Progress, StopFlag};
use crate::read::FileTally;
use crate::session::Session;
use crate::sources::{SourceRow, SourceStatus};

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
    let session = Session::new(1, memory_limit, None)?;
    let base = session.wait(Job::open(&opened, &job_name))?;
    let version = base.as_ref().map(|job| job.pairs.version());
    // Plans of an earlier version of the job are out of date: they count when there is no other.
    let mut live = Vec::new();
    for folder in &all {
        if folder
            .header::<PlanHeader>()?
            .is_some_and(|header| header.base == version)
        {
            live.push(folder);
        }
    }
    let folder = match (&live[..], all.first()) {
        ([folder], _) => folder,
        ([], Some(folder)) => folder,
        ([], None) => {
            return match base {
                Some(job) => {
                    let base = Base::of(&session, &opened, job)?;
                    let counted = |row: &&SourceRow| row.status != SourceStatus::Retracted;
                    let files = base.sources.iter().filter(counted).count();
                    Ok(CountSummary::of(name, committed(&base), files, started))
                }
                None => Err(EngineError::Setting(format!(
                    "there is nothing to commit: no shard of job `{name}` has begun in `{}`",
                    opened.display()
                ))),
            };
        }
        (several, _) => {
            return Err(EngineError::Setting(format!(
                "the shards of job `{name}` did not agree: {} plans lie in `{}`, as happens when the inputs or the flags changed in between; remove that folder and run the shards again",
                several.len(),
                plans.display()
            )));
        }
    };
    let header = folder
        .header::<PlanHeader>()?
        .ok_or_else(|| EngineError::NotNow("the plan has not been written yet".into()))?;
    let mut job = header.job(memory_limit, threads);
    job.warehouse = warehouse.to_owned();
    let applied = commit_plan(folder, &job, progress, stop)?;
    Ok(CountSummary::of(name, applied, header.files, started))
}

/// The job had been committed: nothing changes.
fn committed(base: &Base) -> Applied {
    Applied::Unchanged {
        version: base.job.pairs.version(),
        facts: base.facts.clone(),
    }
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
    let made_from = vocabulary.added.rows + vocabulary.taken.rows;
    if rows != made_from {
        return Err(EngineError::Bug(format!(
            "the vocabulary was made from {made_from} rows, and the units have {rows}"
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
) -> Result<Applied, EngineError> {
    let header = folder
        .header::<PlanHeader>()?
        .ok_or_else(|| EngineError::NotNow("the plan has not been written yet".into()))?;
    let name = JobName::new(&header.name)?;
    let warehouse = Warehouse::open(&job.warehouse)?;
    let units = header.units(folder)?;
    let lock = warehouse.lock(&name)?;
    let session = Session::new(job.threads, job.memory_limit, None)?;
    let base = Base::open(&session, &warehouse, &name)?;
    let version = base.as_ref().map(|base| base.job.pairs.version());
    let applied = match &base {
        Some(base) if version != header.base => {
            if !is_in(base, &header, &units) {
                return Err(EngineError::NotNow(format!(
                    "job `{name}` has changed since its units were planned (version {}, then {}); run the same command again, it counts what is new",
                    base.job.pairs.version(),
                    header
                        .base
                        .map_or("none".into(), |version| version.to_string()),
                )));
            }
            committed(base)
        }
        _ => {
            let gathered = gather(folder, &units)?;
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
                base: base.as_ref(),
            };
            commit.move_tables(&gathered)?;
            Applied::Changed(Box::new(commit.make(session, gathered, progress, stop)?))
        }
    };
    let session = Session::new(1, crate::memory::SMALLEST_LIMIT, None)?;
    session.wait(warehouse.sweep(&name, &lock))?;
    if let Some(plans) = folder.path().parent() {
        remove(plans)?;
    }
    Ok(applied)
}

/// Whether all files of a plan are in the job, and what it takes is out: then it was this plan that
/// was committed.
fn is_in(base: &Base, header: &PlanHeader, units: &[PlanUnit]) -> bool {
    let known = Known::of(base);
    let skipped = header.skipped.iter().map(|(file, _)| file);
    let files = units.iter().flat_map(|unit| &unit.files);
    let added = files
        .filter(|file| file.index < header.files)
        .map(|file| &file.input)
        .chain(skipped)
        .chain(&header.empty)
        .all(|file| known.find(&file.uri).is_some_and(|row| row.is(file)));
    // The rows that tell of it bear the plan's name. One may stand under a file that came again.
    let batches: HashSet<&str> = base.sources.iter().map(|row| row.batch.as_str()).collect();
    added && (header.taken.is_empty() || batches.contains(header.digest.as_str()))
}

struct Commit<'a> {
    folder: &'a PlanFolder,
    header: &'a PlanHeader,
    job: &'a CountJob,
    name: &'a JobName,
    warehouse: &'a Warehouse,
    units: &'a [PlanUnit],
    base: Option<&'a Base>,
}

impl Commit<'_> {
    /// Moves the finished files into the tables.
    fn move_tables(&self, gathered: &Gathered) -> Result<(), EngineError> {
        let pairs = gathered.ranges.iter().map(|range| ("pairs", &range.file));
        let outside = gathered.vocabulary.outside.iter();
        for (table, file) in pairs.chain(outside.map(|file| ("outside", file))) {
            let target = self.warehouse.table_folder(self.name, table).1;
            bring(self.folder, file, target.as_deref())?;
        }
        Ok(())
    }

    fn make(
        &self,
        session: Session,
        gathered: Gathered,
        progress: &dyn Progress,
        stop: &StopFlag,
    ) -> Result<Done, EngineError> {
        let prepared = Prepared {
            session,
            extractor: std::sync::Arc::new(pmill_text::FeatureExtractor::new(
                &pmill_text::FeatureSpec::default(),
            )?),
            recorded: self.header.recorded.clone(),
        };
        let mut sources = self.sources(&gathered);
        let digest = &self.header.digest;
        let skipped: Vec<&str> = sources
            .iter()
            .filter(|row| row.batch == *digest && row.status == SourceStatus::Skipped)
            .filter_map(|row| row.message.as_deref())
            .collect();
        let made = gathered.vocabulary;
        let scratch =
            tempfile::tempdir().map_err(|source| io("create", &std::env::temp_dir(), source))?;
        let vocabulary = read_vocabulary(self.folder, &made, scratch.path())?;
        let [dropped_features, taken_dropped] = gathered.runs.dropped_features;
        let mut facts = made.facts;
        facts.pairs = gathered.ranges.iter().map(|file| file.pairs).sum();
        facts.units = units_of(&gathered.ranges).to_string();
        facts.dropped_features = change(
            "dropped features",
            facts.dropped_features,
            dropped_features,
            taken_dropped,
        )?;
        let files = self.inputs().count() as u64 - skipped.len() as u64;
        let mut notes = match self.base {
            Some(base) => come_again(base, self.inputs()),
            None => Vec::new(),
        };
        notes.extend(skipped.iter().map(|reason| format!("skipped: {reason}")));
        if facts.rows == 0 || facts.tokens == 0 {
            notes.push(why_empty(self.base.is_some(), files, &facts));
        }
        let skipped = skipped.len() as u64;
        let runs = gathered.runs.runs.iter().chain(&gathered.runs.taken);
        let run = Run {
            job: self.job,
            name: self.name,
            warehouse: self.warehouse,
            prepared: &prepared,
            progress,
            stop,
            budget: Budget::new(self.job.memory_limit, self.job.threads, 0)?,
            files: &[],
            taken: &[],
            rows: Vec::new(),
            base: self.base,
            job_folder: self.folder.path(),
        };
        let changes = Changes {
            vocab: None,
            slices: None,
            vocabulary: &vocabulary,
            sources: &mut sources,
            pairs: gathered.ranges,
            outside: made.outside,
            tail: None,
            facts: &facts,
            subsample: made.subsample.as_ref(),
        };
        Ok(Done {
            version: run.commit(changes, digest)?,
            facts,
            files,
            skipped,
            added: made.added,
            taken: made.taken,
            outside: made.added.tokens - made.inside.min(made.added.tokens),
            dropped_features,
            units: self.units.len() as u64,
            spilled_bytes: runs.map(|run| run.bytes).sum(),
            notes,
        })
    }

    /// The parts of files that the plan adds.
    fn added_files(&self) -> impl Iterator<Item = &UnitFile> {
        let files = self.units.iter().flat_map(|unit| &unit.files);
        files.filter(|file| file.index < self.header.files)
    }

    /// The files that the plan adds, each once.
    fn inputs(&self) -> impl Iterator<Item = &InputFile> {
        let files = self.added_files();
        let read: BTreeMap<usize, &InputFile> =
            files.map(|file| (file.index, &file.input)).collect();
        let skipped = self.header.skipped.iter().map(|(file, _)| file);
        read.into_values().chain(skipped).chain(&self.header.empty)
    }

    /// Rows of `sources`: those of the job, and the files of the plan in the place of what was known
    /// of them.
    fn sources(&self, gathered: &Gathered) -> Vec<SourceRow> {
        let digest = &self.header.digest;
        let skipped = self.header.skipped.iter();
        let bad: HashMap<usize, &String> = gathered
            .vocabulary
            .bad
            .iter()
            .map(|(file, reason)| (*file, reason))
            .collect();
        let mut new: HashMap<&str, SourceRow> = skipped
            .map(|(file, reason)| {
                let row = SourceRow::skipped(file, reason.clone(), digest);
                (file.uri.as_str(), row)
            })
            .collect();
        for file in &self.header.empty {
            let row = SourceRow::counted(file, FileTally::default(), digest);
            new.insert(&file.uri, row);
        }
        for file in self.added_files() {
            new.entry(&file.input.uri)
                .or_insert_with(|| match bad.get(&file.index) {
                    Some(reason) => SourceRow::skipped(&file.input, (*reason).clone(), digest),
                    None => {
                        let tally = gathered.tallies.get(&file.index);
                        SourceRow::counted(&file.input, tally.copied().unwrap_or_default(), digest)
                    }
                });
        }
        let mut rows = self
            .base
            .map(|base| base.sources.clone())
            .unwrap_or_default();
        for (index, taken) in self.header.taken.iter().enumerate() {
            let tally = gathered.tallies.get(&(self.header.files + index));
            taken.record(&mut rows, tally.copied().unwrap_or_default(), digest);
        }
        // A file that comes (again) stands in place of what was known of it.
        rows.retain(|row| !new.contains_key(row.uri.as_str()));
        rows.extend(new.into_values());
        rows
    }
}
