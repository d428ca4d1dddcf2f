//! Drives a job from its plan to its commit: finds what has no manifest yet, and has it run.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmill_store::{DataFile, JobName, Warehouse};
use pmill_text::FeatureExtractor;

use super::annotate::AnnotateDone;
use super::commit::commit_plan;
use super::fold::FAN_IN;
use super::folder::{PlanFolder, claim_epoch, names, remove, superseded};
use super::matrix::RowsDone;
use super::plan::{self, NewPlan, PROTOCOL, PlanHeader, PlanUnit};
use super::query::QueryDone;
use super::reduce::{COMBINED, MOST_RUNS};
use super::spec::{
    CountDone, RUNS, RunsList, TermsDone, UnitSpec, VOCABULARY, VocabularyDone, Work, terms_name,
};
use super::worker::UnitWorker;
use crate::counting::RangeFile;
use crate::error::EngineError;
use crate::input;
use crate::job::base::Base;
use crate::job::existing::{self, Batch, Recount, nothing_to_recount};
use crate::job::prepared::Prepared;
use crate::job::retract::Retracting;
use crate::job::{Applied, CountJob, CountSummary, RetractJob, RetractSummary};
use crate::progress::{Progress, StopFlag, Unit as Steps};
use crate::read::FileTally;
use crate::session::Session;
use crate::settings::RecordedSettings;

/// The phases of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Slices of snapshots are averaged.
    Average,
    /// Units are read.
    Terms,
    /// The terms of many units are summed.
    Fold,
    /// Units are counted.
    Count,
    /// The runs of many units are summed.
    Combine,
    /// Ranges are summed.
    Reduce,
    /// Files of pairs are summed.
    Sum,
    /// Files of pairs are scored.
    Score,
    /// Input files are annotated.
    Annotate,
    /// Pairs of tables are brought to other ids.
    Remap,
    /// Tables are summed.
    Merge,
    /// A table is read, and pairs change their sides.
    Turn,
    /// Values of rows are computed.
    Rows,
    /// Parts of a query's plan are run.
    Query,
}

impl Phase {
    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Average => "average",
            Self::Terms => "terms",
            Self::Fold => "fold",
            Self::Count => "count",
            Self::Combine => "combine",
            Self::Reduce => "reduce",
            Self::Sum => "sum",
            Self::Score => "score",
            Self::Annotate => "annotate",
            Self::Remap => "remap",
            Self::Merge => "merge",
            Self::Turn => "turn",
            Self::Rows => "rows",
            Self::Query => "query",
        }
    }
}

/// Has units run: in this process, on a cluster, or by other shards.
pub trait Runner {
    /// Returns when all units have their manifests; tells `done` of each as it is seen.
    ///
    /// # Errors
    /// When a unit cannot be done, or `stop` was set.
    fn run(
        &mut self,
        folder: &PlanFolder,
        phase: Phase,
        units: Vec<UnitSpec>,
        done: &mut dyn FnMut(&UnitSpec),
        stop: &StopFlag,
    ) -> Result<(), EngineError>;

    /// Whether this process makes what all units wait for (the plan, the vocabulary). If not, it
    /// waits so long for somebody else, and makes it then.
    fn leads(&self) -> Option<Duration> {
        None
    }

    /// Whether a phase's end is not waited for, because this process has done its share.
    fn ends_after(&self, _phase: Phase) -> bool {
        false
    }
}

/// How a job is driven.
pub struct Drive<'a> {
    /// The job.
    pub job: &'a CountJob,
    /// Bytes of text of a unit.
    pub unit_bytes: u64,
    /// Seconds that a unit may take.
    pub limit_seconds: u64,
    /// Attempts that may die with their process before a unit is taken for poison.
    pub most_attempts: u32,
    /// Whether this is the job's one driver: it claims the job and commits it.
    pub drives: bool,
    /// Runs what this process runs itself.
    pub worker: &'a UnitWorker,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Whether to stop.
    pub stop: &'a StopFlag,
}

impl Drive<'_> {
    /// Counts to the commit (or, when it does not drive, to the end of its share: `None`); what
    /// some files held when they were counted before is taken out.
    ///
    /// # Errors
    /// Whatever is wrong with settings, inputs or units; a driver that started later.
    pub fn run(
        &self,
        recounts: &[Recount],
        runner: &mut dyn Runner,
    ) -> Result<Option<CountSummary>, EngineError> {
        let started = Instant::now();
        let job = self.job;
        let mut named = job.inputs.clone();
        named.extend(recounts.iter().map(|recount| recount.file.clone()));
        let inputs = input::expand(&named)?;
        let applied = self.apply(runner, |base| match base {
            Some(base) => existing::batch(base, &inputs, recounts),
            None if !recounts.is_empty() => Err(nothing_to_recount(&job.name)),
            None => Ok(Batch {
                add: inputs.clone(),
                taken: Vec::new(),
            }),
        })?;
        Ok(applied.map(|applied| CountSummary::of(&job.name, applied, inputs.len(), started)))
    }

    /// Takes files, or rows of them, out of the job, as [`retract`](crate::job::retract()); the
    /// settings of [`Self::job`] are those of the table ([`RetractJob::counting`]).
    ///
    /// # Errors
    /// As [`retract`](crate::job::retract()), and as [`Self::run`].
    pub fn retract(
        &self,
        retract: &RetractJob,
        runner: &mut dyn Runner,
    ) -> Result<RetractSummary, EngineError> {
        let mut taking = Retracting::new(retract);
        let applied = self.apply(runner, |base| taking.decide(base))?;
        let applied =
            applied.ok_or_else(|| EngineError::Bug("the driver did not commit".into()))?;
        Ok(taking.summary(applied))
    }

    /// Makes the next version of the job from what `decide` says, as the function of the same name
    /// does in process. `None`: the share of a process that does not drive is done.
    fn apply(
        &self,
        runner: &mut dyn Runner,
        decide: impl FnOnce(Option<&Base>) -> Result<Batch, EngineError>,
    ) -> Result<Option<Applied>, EngineError> {
        let job = self.job;
        let name = JobName::new(&job.name)?;
        let warehouse = Warehouse::open(&job.warehouse)?;
        let extractor = Arc::new(FeatureExtractor::new(&job.settings.features)?);
        let recorded = RecordedSettings::resolve(&job.settings, &extractor)?;
        let prepared = Prepared {
            session: Session::new(
                job.threads,
                job.memory_limit,
                Some(&self.worker.limits.scratch),
            )?,
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
            let version = base.job.pairs.version();
            if self.drives {
                clear_committed(&warehouse, &name, version, &prepared.session)?;
            }
            return Ok(Some(Applied::Unchanged {
                version,
                facts: base.facts.clone(),
            }));
        }
        let base = base.map(|base| base.job.pairs.version());
        let plans = PlanFolder::of_job(&warehouse, &name)?;
        let epoch = if self.drives { claim_epoch(&plans)? } else { 0 };
        if let Some(patience) = runner.leads() {
            self.wait_for(patience, || Ok(!PlanFolder::all(&plans)?.is_empty()))?;
        }
        let new = NewPlan {
            job,
            prepared: &prepared,
            batch: &batch,
            unit_bytes: self.unit_bytes,
            warehouse: warehouse.url().as_str(),
            base,
            progress: self.progress,
        };
        let folder = plan::make(&new, &plans)?;
        let header = folder
            .header::<PlanHeader>()?
            .ok_or_else(|| EngineError::Bug("the plan was not written".into()))?;
        if self.drives {
            clear_others(&plans, folder.path())?;
            folder.forget_attempts()?;
        }
        drop(prepared);
        let steps = Stages {
            drive: self,
            units: header.units(&folder)?,
            header,
            plans,
            folder,
            epoch,
        };
        if !steps.map_and_reduce(runner)? || !self.drives {
            return Ok(None);
        }
        if superseded(&steps.plans, epoch) {
            return Err(taken_over());
        }
        commit_plan(&steps.folder, job, self.progress, self.stop).map(Some)
    }

    /// Waits until something is there, but no longer than `patience`.
    fn wait_for(
        &self,
        patience: Duration,
        there: impl Fn() -> Result<bool, EngineError>,
    ) -> Result<bool, EngineError> {
        let deadline = Instant::now() + patience;
        loop {
            if there()? {
                return Ok(true);
            }
            if self.stop.is_set() {
                return Err(EngineError::Interrupted);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Takes away what a driver left that died behind its commit: its plan, and files of no version.
fn clear_committed(
    warehouse: &Warehouse,
    name: &JobName,
    version: u64,
    session: &Session,
) -> Result<(), EngineError> {
    let plans = PlanFolder::of_job(warehouse, name)?;
    let all = PlanFolder::all(&plans)?;
    let mut under_way = false;
    for folder in &all {
        under_way |= folder
            .header::<PlanHeader>()?
            .is_some_and(|header| header.base == Some(version));
    }
    // Another driver's work, or another writer's.
    let Ok(lock) = warehouse.lock(name) else {
        return Ok(());
    };
    if under_way {
        return Ok(());
    }
    session.wait(warehouse.sweep(name, &lock))?;
    remove(&plans)
}

pub(super) fn taken_over() -> EngineError {
    EngineError::NotNow("a run of this job that started later has taken it over".into())
}

/// Has the units of phases run, for one driver of a plan.
pub(super) struct Phases<'a> {
    pub(super) folder: &'a PlanFolder,
    pub(super) epoch: u64,
    pub(super) limit_seconds: u64,
    pub(super) most_attempts: u32,
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a StopFlag,
}

impl Phases<'_> {
    /// Has the units of a phase run that have no manifest. `false` when this process has done its
    /// share and does not wait for the others.
    pub(super) fn run(
        &self,
        runner: &mut dyn Runner,
        phase: Phase,
        works: Vec<Work>,
    ) -> Result<bool, EngineError> {
        let there = self.folder.done()?;
        self.progress
            .phase(phase.name(), works.len() as u64, Steps::Parts);
        let mut missing = Vec::new();
        for work in works {
            if there.contains(&work.name()) {
                self.progress.advance(1, self.rows(&work));
            } else {
                missing.push(self.spec(work));
            }
        }
        if !missing.is_empty() {
            let mut done = |spec: &UnitSpec| self.progress.advance(1, self.rows(&spec.work));
            runner.run(self.folder, phase, missing, &mut done, self.stop)?;
        }
        if self.stop.is_set() {
            return Err(EngineError::Interrupted);
        }
        Ok(!runner.ends_after(phase))
    }

    /// Rows of a unit that is done, for the rate: of the input, or of the table written.
    fn rows(&self, work: &Work) -> u64 {
        if !self.progress.is_watched() {
            return 0;
        }
        rows_of(self.folder, work).ok().flatten().unwrap_or(0)
    }

    fn spec(&self, work: Work) -> UnitSpec {
        UnitSpec {
            protocol: PROTOCOL,
            folder: self.folder.path().to_owned(),
            epoch: self.epoch,
            limit_seconds: self.limit_seconds,
            most_attempts: self.most_attempts,
            work,
        }
    }
}

fn rows_of(folder: &PlanFolder, work: &Work) -> Result<Option<u64>, EngineError> {
    let name = match work {
        Work::Count { terms, .. } => terms.clone(),
        other => other.name(),
    };
    Ok(match work {
        Work::Terms { .. } | Work::Count { .. } => folder
            .get::<TermsDone>(&name)?
            .map(|done| done.files.iter().map(|(_, tally)| tally.rows).sum()),
        Work::Reduce { .. } | Work::Merge { .. } => {
            folder.get::<RangeFile>(&name)?.map(|done| done.pairs)
        }
        Work::Score { .. } => folder.get::<DataFile>(&name)?.map(|done| done.rows),
        Work::Annotate { .. } => folder
            .get::<AnnotateDone>(&name)?
            .map(|done| done.shard.rows),
        Work::Rows { .. } => folder.get::<RowsDone>(&name)?.map(|done| done.entries),
        Work::Query { .. } => folder.get::<QueryDone>(&name)?.map(|done| done.rows),
        Work::Average { .. }
        | Work::Fold { .. }
        | Work::Combine { .. }
        | Work::Sum { .. }
        | Work::Remap { .. }
        | Work::Turn { .. } => None,
    })
}

/// Manifests of units, or of groups of them.
#[derive(Debug, Default)]
pub(super) struct Signed {
    /// Of what is added.
    pub(super) added: Vec<String>,
    /// Of what is taken out.
    pub(super) taken: Vec<String>,
}

impl Signed {
    /// Makes groups of `size`, none of them of both signs, whose manifests take the place of their
    /// parts'.
    fn grouped(&mut self, size: usize, work: impl Fn(usize, Vec<String>) -> Work) -> Vec<Work> {
        let added = self.added.chunks(size);
        let first_taken = added.len();
        let parts = added.chain(self.taken.chunks(size)).enumerate();
        let works: Vec<Work> = parts
            .map(|(number, parts)| work(number, parts.to_vec()))
            .collect();
        self.added = works.iter().map(Work::name).collect();
        self.taken = self.added.split_off(first_taken);
        works
    }
}

struct Stages<'a> {
    drive: &'a Drive<'a>,
    header: PlanHeader,
    units: Vec<PlanUnit>,
    plans: PathBuf,
    folder: PlanFolder,
    epoch: u64,
}

impl Stages<'_> {
    /// All that comes before the commit. `false` when this process ended after its share.
    fn map_and_reduce(&self, runner: &mut dyn Runner) -> Result<bool, EngineError> {
        if !self.folder.has(VOCABULARY) {
            let Some((mut names, bad)) = self.terms(runner)? else {
                return Ok(false);
            };
            let mut round = 0;
            while names.added.len().max(names.taken.len()) > FAN_IN {
                let works = names.grouped(FAN_IN, |number, parts| Work::Fold {
                    number,
                    round,
                    parts,
                });
                if !self.phase(runner, Phase::Fold, works)? {
                    return Ok(false);
                }
                round += 1;
            }
            let step = |unit: &UnitSpec| self.drive.worker.vocabulary(unit, &names, &bad);
            self.lead(runner, VOCABULARY, step)?;
        }
        if runner.ends_after(Phase::Terms) {
            return Ok(false);
        }
        let vocabulary: VocabularyDone = self.folder.need(VOCABULARY)?;
        let bad: Vec<usize> = vocabulary.bad.iter().map(|(file, _)| *file).collect();
        let counts: Vec<Work> = self
            .units
            .iter()
            .map(|unit| Work::Count {
                number: unit.number,
                terms: terms_name(unit.number, &leave_out(unit, &bad)),
            })
            .collect();
        if !self.folder.has(RUNS) {
            let mut names: Vec<String> = counts.iter().map(Work::name).collect();
            if !self.phase(runner, Phase::Count, counts)? {
                return Ok(false);
            }
            let taken = names.split_off(self.header.added_units.min(names.len()));
            let mut names = Signed {
                added: names,
                taken,
            };
            if names.added.len().max(names.taken.len()) > MOST_RUNS {
                let works =
                    names.grouped(COMBINED, |number, parts| Work::Combine { number, parts });
                if !self.phase(runner, Phase::Combine, works)? {
                    return Ok(false);
                }
            }
            self.lead(runner, RUNS, |_| self.list_runs(&names))?;
        }
        if runner.ends_after(Phase::Count) {
            return Ok(false);
        }
        let ranges = vocabulary
            .ranges
            .iter()
            .enumerate()
            .map(|(number, range)| Work::Reduce {
                number,
                range: range.clone(),
            })
            .collect();
        self.phase(runner, Phase::Reduce, ranges)
    }

    /// Reads all units, again without the files that turn out bad, until no file does. Gives the
    /// manifests and the files left out.
    #[expect(clippy::type_complexity, reason = "two lists")]
    fn terms(
        &self,
        runner: &mut dyn Runner,
    ) -> Result<Option<(Signed, Vec<(usize, String)>)>, EngineError> {
        let mut bad: Vec<(usize, String)> = Vec::new();
        loop {
            let files: Vec<usize> = bad.iter().map(|(file, _)| *file).collect();
            let works: Vec<Work> = self
                .units
                .iter()
                .map(|unit| Work::Terms {
                    unit: unit.clone(),
                    leave_out: leave_out(unit, &files),
                })
                .collect();
            let mut names: Vec<String> = works.iter().map(Work::name).collect();
            if !self.phase(runner, Phase::Terms, works)? {
                return Ok(None);
            }
            let before = bad.len();
            let mut taken = vec![FileTally::default(); self.header.taken.len()];
            for name in &names {
                let done: TermsDone = self.folder.need(name)?;
                for (file, tally) in &done.files {
                    if let Some(index) = file.checked_sub(self.header.files)
                        && let Some(sum) = taken.get_mut(index)
                    {
                        sum.rows += tally.rows;
                        sum.tokens += tally.tokens;
                    }
                }
                for (file, reason) in done.bad {
                    if !bad.iter().any(|(known, _)| *known == file) {
                        bad.push((file, reason));
                    }
                }
            }
            bad.sort();
            if bad.len() == before {
                for (file, tally) in self.header.taken.iter().zip(&taken) {
                    file.check(*tally)?;
                }
                let taken = names.split_off(self.header.added_units.min(names.len()));
                let names = Signed {
                    added: names,
                    taken,
                };
                return Ok(Some((names, bad)));
            }
        }
    }

    fn phase(
        &self,
        runner: &mut dyn Runner,
        phase: Phase,
        works: Vec<Work>,
    ) -> Result<bool, EngineError> {
        self.phases().run(runner, phase, works)
    }

    fn phases(&self) -> Phases<'_> {
        Phases {
            folder: &self.folder,
            epoch: self.epoch,
            limit_seconds: self.drive.limit_seconds,
            most_attempts: self.drive.most_attempts,
            progress: self.drive.progress,
            stop: self.drive.stop,
        }
    }

    /// Makes what all wait for, or waits for who leads and makes it when nobody does.
    fn lead(
        &self,
        runner: &mut dyn Runner,
        name: &str,
        make: impl FnOnce(&UnitSpec) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        if self.folder.has(name) {
            return Ok(());
        }
        if superseded(&self.plans, self.epoch) {
            return Err(taken_over());
        }
        if let Some(patience) = runner.leads()
            && self
                .drive
                .wait_for(patience, || Ok(self.folder.has(name)))?
        {
            return Ok(());
        }
        self.drive.progress.phase("gather", 1, Steps::Parts);
        // The spec tells the folder and the limits; what is made is not a unit of the plan.
        make(&self.phases().spec(Work::Count {
            number: 0,
            terms: String::new(),
        }))?;
        self.drive.progress.advance(1, 0);
        Ok(())
    }

    fn list_runs(&self, names: &Signed) -> Result<(), EngineError> {
        let mut list = RunsList::default();
        for name in &names.added {
            let done: CountDone = self.folder.need(name)?;
            list.dropped_features[0] += done.dropped_features;
            list.runs.extend(done.runs);
        }
        for name in &names.taken {
            let done: CountDone = self.folder.need(name)?;
            list.dropped_features[1] += done.dropped_features;
            list.taken.extend(done.runs);
        }
        self.folder.put(RUNS, &list)?;
        Ok(())
    }
}

/// The bad files that a unit reads.
fn leave_out(unit: &PlanUnit, bad: &[usize]) -> Vec<usize> {
    let known: HashSet<usize> = bad.iter().copied().collect();
    let mut files: Vec<usize> = unit
        .files
        .iter()
        .map(|file| file.index)
        .filter(|index| known.contains(index))
        .collect();
    files.sort_unstable();
    files
}

/// Removes other plans of the job: the newest driver's plan is the job's.
pub(super) fn clear_others(plans: &Path, keep: &Path) -> Result<(), EngineError> {
    for name in names(plans)? {
        let path = plans.join(&name);
        if name.starts_with("plan-") && path != keep {
            remove(&path)?;
        }
    }
    Ok(())
}

/// The manifests of terms that the vocabulary was made from.
pub(super) fn terms_names(units: &[PlanUnit], bad: &[(usize, String)]) -> Vec<String> {
    let files: Vec<usize> = bad.iter().map(|(file, _)| *file).collect();
    units
        .iter()
        .map(|unit| terms_name(unit.number, &leave_out(unit, &files)))
        .collect()
}
