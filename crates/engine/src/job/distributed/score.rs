//! Scoring in units: each file of `pairs` is summed, and then scored, by whoever is free.
//!
//! ```text
//! plan ─▶ sum(file) … ─▶ totals ─▶ score(file) … ─▶ commit
//! ```
//!
//! The sums are needed for marginals of pairs only. A plan belongs to one version of `pairs`; its
//! driver holds the job's lock, so the version stays the newest to the commit.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use pmill_store::{DataFile, JobName, Warehouse};
use serde::{Deserialize, Serialize};

use super::drive::{Phase, Phases, Runner, clear_others};
use super::folder::{PLAN, PlanFolder, bring, claim_epoch, io, put_new, superseded};
use super::place::{self, is_remote, write_bytes};
use super::plan::{PROTOCOL, attempt};
use super::spec::{UnitSpec, Work};
use super::worker::{UnitWorker, finish};
use crate::error::EngineError;
use crate::memory::ByteSize;
use crate::progress::{Progress, Quiet, StopFlag};
use crate::score::{RecordedScore, ScoreSettings, ScoreSummary, Scoring, Sums, Terms, Totals};
use crate::tables::TableFolder;

/// What all units of a scoring share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ScoreHeader {
    protocol: u32,
    program: String,
    digest: String,
    warehouse: String,
    pub(super) name: String,
    /// The version of `pairs`.
    version: u64,
    recorded: RecordedScore,
    /// Files of `pairs`.
    pub(super) files: usize,
}

/// What summing a file left: the name of the sums.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SumDone {
    file: String,
}

/// The manifest of the totals.
const TOTALS: &str = "totals";

impl ScoreHeader {
    /// Whether files are summed first.
    pub(super) fn sums(&self) -> bool {
        self.recorded.needs_sums()
    }
}

/// A scoring as a worker has it.
pub(super) struct LoadedScoring {
    pub(super) root: PathBuf,
    header: ScoreHeader,
    scoring: Scoring,
    terms: Terms,
    totals: Mutex<Option<Arc<Totals>>>,
}

impl LoadedScoring {
    pub(super) fn open(folder: &PlanFolder, worker: &UnitWorker) -> Result<Self, EngineError> {
        let header = folder.need_header::<ScoreHeader>()?;
        worker.check_warehouse(&Warehouse::open(&header.warehouse)?)?;
        let limits = &worker.limits;
        let scoring = Scoring::at(
            &header.warehouse,
            &header.name,
            header.version,
            header.recorded.clone(),
            (
                limits.threads,
                limits.memory,
                Some(limits.scratch.as_path()),
            ),
        )?;
        Ok(Self {
            root: folder.path().to_owned(),
            terms: scoring.terms()?,
            header,
            scoring,
            totals: Mutex::new(None),
        })
    }

    /// The file of `pairs` that a unit reads.
    pub(super) fn input(&self, number: usize) -> Vec<String> {
        self.scoring.file_name(number).into_iter().collect()
    }

    fn totals(&self, folder: &PlanFolder) -> Result<Arc<Totals>, EngineError> {
        let poisoned = |_| EngineError::Bug("a unit panicked while it read the totals".into());
        let mut kept = self.totals.lock().map_err(poisoned)?;
        if let Some(totals) = &*kept {
            return Ok(totals.clone());
        }
        let totals = match self.scoring.document_totals(&self.terms) {
            Some(totals) => totals,
            None => {
                let done: SumDone = folder.need(TOTALS)?;
                let path = folder.data().join(&done.file);
                Totals::from_bytes(&read_bytes(&path)?).ok_or_else(|| short(&path))?
            }
        };
        Ok(kept.insert(Arc::new(totals)).clone())
    }

    /// Runs a unit; `attempt` names its files.
    pub(super) fn run(
        &self,
        folder: &PlanFolder,
        work: &Work,
        attempt: &str,
        stop: &StopFlag,
    ) -> Result<bool, EngineError> {
        let name = work.name();
        let scorer = self.scoring.scorer(1, &Quiet, stop);
        match work {
            Work::Sum { number } => {
                let sums = scorer.sum_file(*number, self.terms.len())?;
                let file = format!("{attempt}-{name}.sums");
                write_bytes(&folder.data().join(&file), sums.to_bytes())?;
                finish(folder, &name, attempt, stop, &SumDone { file })
            }
            Work::Score { number } => {
                let runtime = self.scoring.session().handle();
                let (warehouse, job) = (self.scoring.warehouse(), self.scoring.name());
                let tables = if is_remote(folder.path()) {
                    TableFolder::new(warehouse, job, "pmi", runtime)
                } else {
                    TableFolder::at(warehouse, folder.tables(), runtime)
                };
                let file = format!("part-{number:05}-{}-{attempt}.parquet", self.header.digest);
                let totals = self.totals(folder)?;
                let done = scorer.write_file(*number, &file, &tables, &self.terms, &totals)?;
                finish(folder, &name, attempt, stop, &done)
            }
            _ => Err(EngineError::Bug(format!("`{name}` is not of a scoring"))),
        }
    }

    /// Sums the sums of all files.
    fn make_totals(&self, folder: &PlanFolder) -> Result<(), EngineError> {
        let mut all = Sums::of(self.terms.len());
        for number in 0..self.header.files {
            let done: SumDone = folder.need(&Work::Sum { number }.name())?;
            let path = folder.data().join(&done.file);
            all.add_bytes(&read_bytes(&path)?)
                .ok_or_else(|| short(&path))?;
        }
        let totals = self.scoring.totals_of(all)?;
        let file = format!("totals-{}", attempt());
        write_bytes(&folder.data().join(&file), totals.to_bytes())?;
        folder.put(TOTALS, &SumDone { file })?;
        Ok(())
    }
}

fn short(path: &Path) -> EngineError {
    io(
        "read",
        path,
        std::io::Error::other("it is not as long as it was written"),
    )
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, EngineError> {
    let gone = || io("read", path, std::io::ErrorKind::NotFound.into());
    place::read_bytes(path)?.ok_or_else(gone)
}

/// How a scoring is driven.
pub struct ScoreDrive<'a> {
    /// Warehouse location.
    pub warehouse: &'a str,
    /// Job name.
    pub name: &'a str,
    /// How it is scored.
    pub settings: &'a ScoreSettings,
    /// Threads of this process.
    pub threads: usize,
    /// Memory of this process.
    pub memory_limit: ByteSize,
    /// Seconds that a unit may take.
    pub limit_seconds: u64,
    /// Attempts that may die with their process before a unit is taken for poison.
    pub most_attempts: u32,
    /// Makes the totals.
    pub worker: &'a UnitWorker,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Whether to stop.
    pub stop: &'a StopFlag,
}

impl ScoreDrive<'_> {
    /// Scores a job, each file of `pairs` by whoever `runner` finds.
    ///
    /// # Errors
    /// As [`crate::score::score`]; when a unit cannot be done.
    pub fn run(&self, runner: &mut dyn Runner) -> Result<ScoreSummary, EngineError> {
        let started = Instant::now();
        let means = (self.threads, self.memory_limit, None);
        let scoring = Scoring::open(self.warehouse, self.name, self.settings, means)?;
        let name = JobName::new(self.name)?;
        let plans = PlanFolder::of_job(scoring.warehouse(), &name)?.with_extension("scores");
        let lock = scoring.warehouse().lock(&name)?;
        scoring.sweep(&lock)?;
        if let Some(summary) = scoring.unchanged(started)? {
            remove(&plans)?;
            return Ok(summary);
        }
        let epoch = claim_epoch(&plans)?;
        let header = ScoreHeader {
            protocol: PROTOCOL,
            program: concat!("pmill ", env!("CARGO_PKG_VERSION")).to_owned(),
            digest: scoring.digest(),
            warehouse: scoring.warehouse().url().as_str().to_owned(),
            name: self.name.to_owned(),
            version: scoring.version(),
            recorded: scoring.recorded().clone(),
            files: scoring.files(),
        };
        let folder = PlanFolder::make(&plans, &header.digest)?;
        put_new(folder.path(), PLAN, &header)?;
        clear_others(&plans, folder.path())?;
        folder.forget_attempts()?;
        let phases = Phases {
            folder: &folder,
            epoch,
            limit_seconds: self.limit_seconds,
            most_attempts: self.most_attempts,
            progress: self.progress,
            stop: self.stop,
        };
        if scoring.needs_sums() && !folder.has(TOTALS) {
            let works = (0..header.files).map(|number| Work::Sum { number });
            phases.run(runner, Phase::Sum, works.collect())?;
            LoadedScoring::open(&folder, self.worker)?.make_totals(&folder)?;
        }
        let works = (0..header.files).map(|number| Work::Score { number });
        phases.run(runner, Phase::Score, works.collect())?;
        if superseded(&plans, epoch) {
            return Err(super::drive::taken_over());
        }
        let mut written: Vec<DataFile> = Vec::with_capacity(header.files);
        for number in 0..header.files {
            written.push(folder.need(&Work::Score { number }.name())?);
        }
        let target = scoring.warehouse().table_folder(&name, "pmi").1;
        for file in &written {
            bring(&folder, file, target.as_deref())?;
        }
        let summary = scoring.commit(written, started)?;
        scoring.sweep(&lock)?;
        remove(&plans)?;
        Ok(summary)
    }
}

impl UnitWorker {
    pub(super) fn load_scoring(
        &self,
        folder: &PlanFolder,
    ) -> Result<Arc<LoadedScoring>, EngineError> {
        let poisoned = |_| EngineError::Bug("a unit panicked while it loaded its plan".into());
        let mut kept = self.scoring.lock().map_err(poisoned)?;
        if let Some(loaded) = &*kept
            && loaded.root == folder.path()
        {
            return Ok(loaded.clone());
        }
        Ok(kept
            .insert(Arc::new(LoadedScoring::open(folder, self)?))
            .clone())
    }
}

fn remove(plans: &Path) -> Result<(), EngineError> {
    super::folder::remove(plans)
}

/// A spec of a scoring's unit is not one of a count.
pub(super) fn is_scoring(spec: &UnitSpec) -> bool {
    matches!(spec.work, Work::Sum { .. } | Work::Score { .. })
}
