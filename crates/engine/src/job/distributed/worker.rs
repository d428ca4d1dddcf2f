//! Runs units: whatever spec it is given, on a shared folder, within its limits.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pmill_store::{Job, JobName, Warehouse, killpoint};
use pmill_text::{FeatureExtractor, Vocabulary};

use super::annotate::{AnnotateHeader, LoadedAnnotation};
use super::drive::Signed;
use super::folder::{PlanFolder, io, is_over};
use super::kept::Kept;
use super::matrix::{LoadedMatrix, MatrixHeader, is_of_matrix};
use super::merge::{LoadedMerge, MergeHeader, is_merging};
use super::place::is_remote;
use super::plan::{PlanHeader, attempt, check_protocol};
use super::query::LoadedQuery;
use super::score::{LoadedScoring, is_scoring};
use super::spec::{TermsDone, UnitSpec, VOCABULARY, VocabularyDone, Work};
use super::vocabulary::read_vocabulary;
use crate::budget::Budget;
use crate::error::EngineError;
use crate::job::base::{Base, Subsample};
use crate::job::prepared::Prepared;
use crate::job::run::Run;
use crate::job::{CountJob, Facts};
use crate::memory::ByteSize;
use crate::pairs_table::PairsTable;
use crate::progress::{Quiet, StopFlag};
use crate::scan::{CorpusFile, Scanner};
use crate::session::Session;
use crate::settings::{OnBadFile, RecordedSettings};
use crate::tables::TableFolder;

/// How often a running unit looks whether it should stop.
const LOOK: Duration = Duration::from_millis(200);

/// How often it asks an object store.
const ASK: Duration = Duration::from_secs(5);

/// What a worker may use.
#[derive(Debug, Clone)]
pub struct WorkerLimits {
    /// Memory for one unit.
    pub memory: ByteSize,
    /// Threads of one unit.
    pub threads: usize,
    /// Folder for temporary files.
    pub scratch: PathBuf,
    /// Folders, and URIs of stores, that units may name; none: all.
    pub allowed: Vec<PathBuf>,
    /// Called with the name of a unit that holds its thread [`GRACE`] beyond its time: there is no
    /// way to end it but to end the process. `None`: somebody else watches.
    pub on_stuck: Option<fn(&str)>,
}

/// How long a unit that was told to stop may go on.
pub const GRACE: Duration = Duration::from_secs(10);

/// Runs units, one or several at once; keeps what they share (dictionaries of lemmas, vocabulary).
pub struct UnitWorker {
    pub(super) limits: WorkerLimits,
    loaded: Mutex<Option<Arc<Loaded>>>,
    pub(super) scoring: Mutex<Option<Arc<LoadedScoring>>>,
    pub(super) annotation: Kept<LoadedAnnotation>,
    pub(super) matrix: Kept<LoadedMatrix>,
    pub(super) merging: Kept<LoadedMerge>,
    querying: Kept<LoadedQuery>,
}

/// A plan as a worker has it.
pub(super) struct Loaded {
    root: PathBuf,
    header: PlanHeader,
    job: CountJob,
    name: JobName,
    pub(super) warehouse: Warehouse,
    prepared: Prepared,
    pub(super) given: Option<Arc<Vocabulary>>,
    vocabulary: Mutex<Option<Arc<Known>>>,
    base: Mutex<Option<Arc<Job>>>,
}

/// What all units know once the vocabulary is there.
pub(super) struct Known {
    pub(super) vocabulary: Vocabulary,
    pub(super) facts: Facts,
    pub(super) subsample: Option<Subsample>,
}

impl Loaded {
    /// The version of the job that the plan adds to.
    fn base_version(&self) -> Result<Option<Arc<Job>>, EngineError> {
        let Some(version) = self.header.base else {
            return Ok(None);
        };
        let poisoned = |_| EngineError::Bug("a unit panicked while it opened the job".into());
        let mut kept = self.base.lock().map_err(poisoned)?;
        if let Some(job) = &*kept {
            return Ok(Some(job.clone()));
        }
        let opened = Job::open_existing_at(&self.warehouse, &self.name, Some(version));
        let job = Arc::new(self.prepared.session.wait(opened)?);
        Ok(Some(kept.insert(job).clone()))
    }

    /// What that version holds.
    pub(super) fn base(&self) -> Result<Option<Base>, EngineError> {
        self.base_version()?
            .map(|job| Base::of(&self.prepared.session, &self.warehouse, (*job).clone()))
            .transpose()
    }

    /// The pairs of that version, as a source of rows.
    pub(super) fn base_pairs(&self, terms: u32) -> Result<Option<PairsTable>, EngineError> {
        let runtime = self.prepared.session.handle();
        self.base_version()?
            .map(|job| PairsTable::new(&self.warehouse, &job, terms, runtime))
            .transpose()
    }
}

impl UnitWorker {
    /// A worker within its limits.
    ///
    /// # Errors
    /// When its folder for temporary files cannot be made.
    pub fn new(limits: WorkerLimits) -> Result<Self, EngineError> {
        std::fs::create_dir_all(&limits.scratch)
            .map_err(|source| io("create", &limits.scratch, source))?;
        Ok(Self {
            limits,
            loaded: Mutex::new(None),
            scoring: Mutex::new(None),
            annotation: Kept::default(),
            matrix: Kept::default(),
            merging: Kept::default(),
            querying: Kept::default(),
        })
    }

    /// Runs a unit, unless it is done. `false` when somebody else had done it.
    ///
    /// Blocks; call it from a thread that may. `cancel` ends it within a second or so.
    ///
    /// # Errors
    /// Whatever is wrong with the input, the store or the limits. It is also written to the plan's
    /// folder, where the driver finds it.
    pub fn run(&self, spec: &UnitSpec, cancel: &StopFlag) -> Result<bool, EngineError> {
        check_protocol(spec.protocol, "another version")?;
        self.check_allowed(&spec.folder)?;
        if let Work::Average { range, .. } = &spec.work {
            return self.run_average(spec, range, cancel);
        }
        for file in match &spec.work {
            Work::Terms { unit, .. } => &unit.files[..],
            _ => &[],
        } {
            match file.input.path() {
                Some(path) => self.check_allowed(&path)?,
                // As a path `s3://bucket/key` has the parts `s3:`, `bucket` and `key`.
                None => self.check_allowed(Path::new(&file.input.uri))?,
            }
        }
        let folder = PlanFolder::open(&spec.folder)?;
        let name = spec.work.name();
        if folder.has(&name) {
            return Ok(false);
        }
        let attempt = attempt();
        let result = (|| {
            if let Work::Annotate { number } = spec.work {
                let open = || LoadedAnnotation::open(&folder, self);
                let annotation = self.annotation.get(folder.path(), open)?;
                let _mark = folder.begin(spec, &attempt)?;
                return self.attempt(spec, &name, cancel, |_, stop| {
                    annotation.run(self, &folder, number, &attempt, stop)
                });
            }
            if let Work::Query { .. } = spec.work {
                let open = || LoadedQuery::open(&folder, self);
                let query = self.querying.get(folder.path(), open)?;
                let _mark = folder.begin(spec, &attempt)?;
                return self.attempt(spec, &name, cancel, |scratch, stop| {
                    let means = (&attempt[..], scratch.path(), self.limits.memory.0);
                    query.run(&folder, &spec.work, means, stop)
                });
            }
            if is_merging(&spec.work) {
                let _mark = folder.begin(spec, &attempt)?;
                return self.attempt(spec, &name, cancel, |scratch, stop| {
                    self.run_merge(&folder, &spec.work, (&attempt, scratch.path()), stop)
                });
            }
            if is_of_matrix(&spec.work) {
                let _mark = folder.begin(spec, &attempt)?;
                return self.attempt(spec, &name, cancel, |scratch, stop| {
                    self.run_matrix(&folder, &spec.work, (&attempt, scratch.path()), stop)
                });
            }
            if is_scoring(spec) {
                let scoring = self.load_scoring(&folder)?;
                let _mark = folder.begin(spec, &attempt)?;
                return self.attempt(spec, &name, cancel, |_, stop| {
                    scoring.run(&folder, &spec.work, &attempt, stop)
                });
            }
            let loaded = self.load(&folder)?;
            let _mark = match folder.begin(spec, &attempt) {
                Ok(mark) => mark,
                Err(poison @ EngineError::Poison { .. }) => {
                    return skip_poison(spec, &folder, &loaded.header, poison);
                }
                Err(error) => return Err(error),
            };
            self.attempt(spec, &name, cancel, |scratch, stop| {
                let running = Running {
                    worker: self,
                    folder: &folder,
                    header: &loaded.header,
                    loaded: &loaded,
                    attempt: &attempt,
                    name: &name,
                    scratch,
                    stop,
                };
                running.work(&spec.work)
            })
        })();
        if let Err(error) = &result {
            if !matches!(error, EngineError::Interrupted) {
                folder.failed(spec, &attempt, error, self.inputs(&folder, spec));
            }
            // What the attempt wrote is named by nobody.
            remove_attempt(&folder, &attempt);
        }
        result
    }

    /// The files that a unit reads, for a person: of the input, or of the table. None where it
    /// reads what other units left of all files.
    fn inputs(&self, folder: &PlanFolder, spec: &UnitSpec) -> Vec<String> {
        let found = match &spec.work {
            Work::Terms { .. } => return spec.work.inputs(),
            Work::Count { number, .. } => unit_inputs(folder, *number),
            Work::Sum { number } | Work::Score { number } => {
                self.load_scoring(folder).map(|s| s.input(*number))
            }
            Work::Annotate { number } => folder
                .need_header::<AnnotateHeader>()
                .map(|h| h.input(*number)),
            Work::Remap { number } => folder
                .need_header::<MergeHeader>()
                .map(|h| h.input(*number)),
            Work::Merge { .. } => folder.need_header::<MergeHeader>().map(|h| h.inputs()),
            Work::Turn { .. } | Work::Rows { .. } => {
                folder.need_header::<MatrixHeader>().map(|h| h.inputs())
            }
            Work::Average { .. }
            | Work::Fold { .. }
            | Work::Combine { .. }
            | Work::Query { .. }
            | Work::Reduce { .. } => return Vec::new(),
        };
        // The failure itself is what has to be told.
        found.unwrap_or_default()
    }

    /// Does the work of a unit within its limits.
    fn attempt(
        &self,
        spec: &UnitSpec,
        name: &str,
        cancel: &StopFlag,
        work: impl Fn(&tempfile::TempDir, &StopFlag) -> Result<bool, EngineError>,
    ) -> Result<bool, EngineError> {
        let scratch = self.temporary()?;
        let stop = StopFlag::default();
        let (ended, reason) = (AtomicBool::new(false), Mutex::new(None));
        let plans = spec.folder.parent().unwrap_or(&spec.folder);
        let deadline = Instant::now() + Duration::from_secs(spec.limit_seconds);
        let result = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                // A store is asked less often: there may be thousands of units.
                let pause = if is_remote(plans) { ASK } else { LOOK };
                let mut next = Instant::now();
                while !ended.load(Ordering::Acquire) {
                    let ask = Instant::now() >= next;
                    if ask {
                        next = Instant::now() + pause;
                    }
                    let why = if cancel.is_set() {
                        Some(EngineError::Interrupted)
                    } else if ask && is_over(&spec.folder, spec.epoch) {
                        Some(EngineError::NotNow(
                            "a driver that started later has taken the job over, or it has ended"
                                .into(),
                        ))
                    } else if Instant::now() > deadline {
                        Some(EngineError::NotNow(format!(
                            "unit `{name}` took longer than its {} s",
                            spec.limit_seconds
                        )))
                    } else {
                        None
                    };
                    if let Some(why) = why {
                        if let Ok(mut reason) = reason.lock() {
                            reason.get_or_insert(why);
                        }
                        stop.set();
                        break;
                    }
                    std::thread::park_timeout(LOOK);
                }
                let told = Instant::now();
                while let Some(on_stuck) = self.limits.on_stuck
                    && !ended.load(Ordering::Acquire)
                {
                    if told.elapsed() > GRACE {
                        on_stuck(name);
                        return;
                    }
                    std::thread::park_timeout(LOOK);
                }
            });
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                killpoint::unit(name);
                work(&scratch, &stop)
            }))
            .unwrap_or_else(|_| Err(EngineError::Bug(format!("unit `{name}` panicked"))));
            ended.store(true, Ordering::Release);
            watcher.thread().unpark();
            result
        });
        match result {
            Err(EngineError::Interrupted) => Err(reason
                .into_inner()
                .ok()
                .flatten()
                .unwrap_or(EngineError::Interrupted)),
            other => other,
        }
    }

    /// Makes the vocabulary of a plan; `spec` tells its folder.
    pub(super) fn vocabulary(
        &self,
        spec: &UnitSpec,
        names: &Signed,
        bad: &[(usize, String)],
    ) -> Result<(), EngineError> {
        let folder = PlanFolder::open(&spec.folder)?;
        let loaded = self.load(&folder)?;
        let scratch = self.temporary()?;
        let stop = StopFlag::default();
        let running = Running {
            worker: self,
            folder: &folder,
            header: &loaded.header,
            loaded: &loaded,
            attempt: "",
            name: VOCABULARY,
            scratch: &scratch,
            stop: &stop,
        };
        running.make_vocabulary(names, bad)
    }

    fn temporary(&self) -> Result<tempfile::TempDir, EngineError> {
        tempfile::Builder::new()
            .prefix("unit-")
            .tempdir_in(&self.limits.scratch)
            .map_err(|source| io("create", &self.limits.scratch, source))
    }

    pub(super) fn check_allowed(&self, path: &Path) -> Result<(), EngineError> {
        let inside = self.limits.allowed.is_empty()
            || (!path
                .components()
                .any(|c| c == std::path::Component::ParentDir)
                && self
                    .limits
                    .allowed
                    .iter()
                    .any(|root| path.starts_with(root)));
        if inside {
            return Ok(());
        }
        Err(EngineError::Setting(format!(
            "this executor may not use `{}`: it is in no folder and no store given to it by --allow",
            path.display()
        )))
    }

    pub(super) fn check_warehouse(&self, warehouse: &Warehouse) -> Result<(), EngineError> {
        match warehouse.local() {
            Some(root) => self.check_allowed(root),
            None => self.check_allowed(Path::new(warehouse.url().as_str())),
        }
    }

    fn load(&self, folder: &PlanFolder) -> Result<Arc<Loaded>, EngineError> {
        let poisoned = |_| EngineError::Bug("a unit panicked while it loaded its plan".into());
        let mut kept = self.loaded.lock().map_err(poisoned)?;
        if let Some(loaded) = &*kept
            && loaded.root == folder.path()
        {
            return Ok(loaded.clone());
        }
        let header = folder.need_header::<PlanHeader>()?;
        let job = header.job(self.limits.memory, self.limits.threads);
        let extractor = Arc::new(FeatureExtractor::new(&job.settings.features)?);
        let mut recorded = RecordedSettings::resolve(&job.settings, &extractor)?;
        recorded.given = header.recorded.given.clone();
        let differences = recorded.differences(&header.recorded);
        if !differences.is_empty() {
            return Err(EngineError::Setting(format!(
                "a file that the job's settings name is another one on this machine\n  {}",
                differences.join("\n  ")
            )));
        }
        let warehouse = Warehouse::open(&header.warehouse)?;
        self.check_warehouse(&warehouse)?;
        let given = match &job.settings.vocabulary.file {
            Some(path) => Some(Arc::new(Vocabulary::from_file(path)?)),
            None => None,
        };
        let loaded = Arc::new(Loaded {
            root: folder.path().to_owned(),
            name: JobName::new(&header.name)?,
            prepared: Prepared {
                session: Session::new(
                    self.limits.threads,
                    self.limits.memory,
                    Some(&self.limits.scratch),
                )?,
                extractor,
                recorded: header.recorded.clone(),
            },
            warehouse,
            given,
            job,
            header,
            vocabulary: Mutex::new(None),
            base: Mutex::new(None),
        });
        *kept = Some(loaded.clone());
        Ok(loaded)
    }
}

/// One attempt at one unit.
pub(super) struct Running<'a> {
    pub(super) worker: &'a UnitWorker,
    pub(super) folder: &'a PlanFolder,
    pub(super) header: &'a PlanHeader,
    pub(super) loaded: &'a Loaded,
    pub(super) attempt: &'a str,
    name: &'a str,
    pub(super) scratch: &'a tempfile::TempDir,
    pub(super) stop: &'a StopFlag,
}

impl<'a> Running<'a> {
    fn work(&self, work: &Work) -> Result<bool, EngineError> {
        match work {
            Work::Average { .. } => Err(EngineError::Bug("an average is not of a count".into())),
            Work::Terms { unit, leave_out } => {
                let done = self.terms(unit, leave_out)?;
                self.finish(&done)
            }
            Work::Fold { parts, .. } => {
                let done = self.fold(parts)?;
                self.finish(&done)
            }
            Work::Count { terms, .. } => {
                let done = self.count(terms)?;
                self.finish(&done)
            }
            Work::Combine { parts, .. } => {
                let done = self.combine(parts)?;
                self.finish(&done)
            }
            Work::Reduce { number, range } => {
                let done = self.reduce(*number, range)?;
                self.finish(&done)
            }
            Work::Sum { .. }
            | Work::Score { .. }
            | Work::Annotate { .. }
            | Work::Remap { .. }
            | Work::Merge { .. }
            | Work::Turn { .. }
            | Work::Rows { .. }
            | Work::Query { .. } => Err(EngineError::Bug(format!(
                "`{}` is not of a count",
                work.name()
            ))),
        }
    }

    fn finish(&self, manifest: &impl serde::Serialize) -> Result<bool, EngineError> {
        self.folder.send(self.scratch.path())?;
        finish(self.folder, self.name, self.attempt, self.stop, manifest)
    }

    pub(super) fn check_stop(&self) -> Result<(), EngineError> {
        if self.stop.is_set() {
            return Err(EngineError::Interrupted);
        }
        Ok(())
    }

    /// What files of this attempt are called.
    pub(super) fn attempt_name(&self) -> String {
        format!("{}-{}", self.attempt, self.name)
    }

    pub(super) fn prepared(&self) -> &'a Prepared {
        &self.loaded.prepared
    }

    pub(super) fn scanner(&self) -> Scanner {
        Scanner::new(
            self.prepared().session.context().clone(),
            self.loaded.job.settings.rows(),
            // What is too large was decided when the job was planned, not by this machine.
            self.header.scan_limit,
        )
    }

    pub(super) fn budget(&self, files: &[CorpusFile]) -> Result<Budget, EngineError> {
        self.prepared().budget(&self.loaded.job, files, 1)
    }

    /// The run as the steps in one process see it.
    pub(super) fn run<'b>(&self, budget: Budget, base: Option<&'b Base>) -> Run<'b>
    where
        'a: 'b,
    {
        Run {
            job: &self.loaded.job,
            name: &self.loaded.name,
            warehouse: &self.loaded.warehouse,
            prepared: &self.loaded.prepared,
            progress: &Quiet,
            stop: self.stop,
            budget,
            files: &[],
            taken: &[],
            rows: Vec::new(),
            base,
            job_folder: &self.loaded.root,
        }
    }

    /// The vocabulary and the totals, read once a process.
    pub(super) fn vocabulary(&self) -> Result<Arc<Known>, EngineError> {
        let poisoned = |_| EngineError::Bug("a unit panicked while it read the vocabulary".into());
        let mut kept = self.loaded.vocabulary.lock().map_err(poisoned)?;
        if let Some(known) = &*kept {
            return Ok(known.clone());
        }
        let done: VocabularyDone = self.folder.need(VOCABULARY)?;
        let known = Known {
            vocabulary: read_vocabulary(self.folder, &done, self.scratch.path())?,
            facts: done.facts,
            subsample: done.subsample,
        };
        Ok(kept.insert(Arc::new(known)).clone())
    }

    /// Where finished table files wait for the commit.
    pub(super) fn table_folder(&self, table: &str) -> TableFolder<'a> {
        let (warehouse, runtime) = (&self.loaded.warehouse, self.prepared().session.handle());
        if is_remote(self.folder.path()) {
            return TableFolder::new(warehouse, &self.loaded.name, table, runtime);
        }
        TableFolder::at(warehouse, self.folder.tables(), runtime)
    }

    /// A data file as a file of this machine.
    pub(super) fn fetch(&self, name: &str) -> Result<PathBuf, EngineError> {
        self.folder.fetch(name, self.scratch.path())
    }

    /// Where data files are made.
    pub(super) fn outbox(&self) -> Result<PathBuf, EngineError> {
        self.folder.outbox(self.scratch.path())
    }
}

/// The manifest comes last. When somebody else was first, what this attempt wrote is removed.
pub(super) fn finish(
    folder: &PlanFolder,
    name: &str,
    attempt: &str,
    stop: &StopFlag,
    manifest: &impl serde::Serialize,
) -> Result<bool, EngineError> {
    if stop.is_set() {
        return Err(EngineError::Interrupted);
    }
    let first = folder.put(name, manifest)?;
    if !first {
        remove_attempt(folder, attempt);
    }
    Ok(first)
}

fn unit_inputs(folder: &PlanFolder, number: usize) -> Result<Vec<String>, EngineError> {
    let header = folder.header::<PlanHeader>()?;
    let units = header.map(|header| header.units(folder)).transpose()?;
    let unit = units.and_then(|units| units.into_iter().nth(number));
    let files = unit.into_iter().flat_map(|unit| unit.files);
    Ok(files.map(|file| file.input.display()).collect())
}

/// A unit whose reading ends every process: its files are left out where bad files are skipped.
fn skip_poison(
    spec: &UnitSpec,
    folder: &PlanFolder,
    header: &PlanHeader,
    poison: EngineError,
) -> Result<bool, EngineError> {
    let Work::Terms { unit, leave_out } = &spec.work else {
        return Err(poison);
    };
    if header.on_bad_file != OnBadFile::Skip || header.is_taken(unit.number) {
        return Err(poison);
    }
    let files = unit.files.iter();
    let bad = files
        .filter(|file| !leave_out.contains(&file.index))
        .map(|file| (file.index, poison.to_string()));
    let done = TermsDone {
        bad: bad.collect(),
        ..TermsDone::default()
    };
    folder.put(&spec.work.name(), &done)
}

/// Removes the files of an attempt that failed or came second. What cannot be removed goes away
/// with the plan's folder.
pub(super) fn remove_attempt(folder: &PlanFolder, attempt: &str) {
    if is_remote(folder.path()) {
        // Looking through all objects of a large job would cost more than what lies there for a while.
        return;
    }
    for place in [folder.data(), folder.tables()] {
        for name in super::folder::names(&place).unwrap_or_default() {
            if name.contains(attempt) {
                let _ = std::fs::remove_file(place.join(name));
            }
        }
    }
}

/// Moves a file, perhaps to another file system, and makes it durable.
pub(super) fn bring(from: &Path, to: &Path) -> Result<(), EngineError> {
    let copy = || -> std::io::Result<()> {
        std::fs::copy(from, to)?;
        std::fs::File::open(to)?.sync_all()?;
        std::fs::remove_file(from)
    };
    copy().map_err(|source| io("write", to, source))
}
