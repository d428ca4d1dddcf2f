//! Annotating in units: each input file becomes its shard by whoever is free.
//!
//! ```text
//! plan ─▶ annotate(file) … ─▶ publish
//! ```
//!
//! The plan lies beside the growing output, whose lock the driver holds. Each executor reads the
//! scored table once, for all of its units.

use std::path::{Path, PathBuf};
use std::time::Instant;

use pmill_store::Warehouse;
use serde::{Deserialize, Serialize};

use super::drive::{Phase, Phases, Runner, clear_others, taken_over};
use super::folder::{PLAN, PlanFolder, claim_epoch, io, put_new, remove, superseded};
use super::place::remove_file;
use super::plan::PROTOCOL;
use super::spec::Work;
use super::worker::{UnitWorker, finish};
use crate::annotate::{
    AnnotateJob, AnnotatePlan, AnnotateSummary, Annotation, Begun, Shard, Shared, Staged,
};
use crate::error::EngineError;
use crate::input::{self, InputFile};
use crate::progress::{Progress, Quiet, StopFlag};

/// What all units of an annotation share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct AnnotateHeader {
    protocol: u32,
    program: String,
    pub(super) job: AnnotateJob,
    pub(super) plan: AnnotatePlan,
}

/// What a unit left: its file, and the shard that it becomes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct AnnotateDone {
    file: String,
    pub(super) shard: Shard,
}

impl AnnotateHeader {
    /// The file that a unit reads.
    pub(super) fn input(&self, number: usize) -> Vec<String> {
        let input = self.plan.inputs.get(number);
        input.map(InputFile::display).into_iter().collect()
    }
}

/// An annotation as a worker has it.
pub(super) struct LoadedAnnotation {
    annotation: Annotation,
    shared: Shared,
}

impl LoadedAnnotation {
    pub(super) fn open(folder: &PlanFolder, worker: &UnitWorker) -> Result<Self, EngineError> {
        let header = folder.need_header::<AnnotateHeader>()?;
        worker.check_warehouse(&Warehouse::open(&header.job.warehouse)?)?;
        let job = AnnotateJob {
            memory_limit: worker.limits.memory,
            threads: worker.limits.threads,
            ..header.job
        };
        let annotation = Annotation::open(&job, header.plan.inputs.clone())?;
        if annotation.plan != header.plan {
            return Err(EngineError::NotNow(format!(
                "job `{}` has changed since its annotation was begun; run the same command again",
                job.name
            )));
        }
        Ok(Self {
            shared: annotation.shared(&Quiet, &StopFlag::default())?,
            annotation,
        })
    }

    /// Annotates one file; `attempt` names what is written.
    pub(super) fn run(
        &self,
        worker: &UnitWorker,
        folder: &PlanFolder,
        number: usize,
        attempt: &str,
        stop: &StopFlag,
    ) -> Result<bool, EngineError> {
        let Some(input) = self.annotation.plan.inputs.get(number) else {
            return Err(EngineError::Bug(format!("there is no input {number}")));
        };
        match input.path() {
            Some(path) => worker.check_allowed(&path)?,
            None => worker.check_allowed(Path::new(&input.uri))?,
        }
        let file = format!("{attempt}-{number:05}.parquet");
        let threads = worker.limits.threads;
        let annotator = self
            .annotation
            .annotator(&self.shared, threads, &Quiet, stop);
        let name = self.annotation.shard_name(number);
        let shard = annotator.shard(input, &folder.tables().join(&file), name)?;
        let done = AnnotateDone { file, shard };
        finish(
            folder,
            &Work::Annotate { number }.name(),
            attempt,
            stop,
            &done,
        )
    }
}

/// How an annotation is driven.
pub struct AnnotateDrive<'a> {
    /// What to annotate.
    pub job: &'a AnnotateJob,
    /// Seconds that a unit may take.
    pub limit_seconds: u64,
    /// Attempts that may die with their process before a unit is taken for poison.
    pub most_attempts: u32,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Whether to stop.
    pub stop: &'a StopFlag,
}

impl AnnotateDrive<'_> {
    /// Annotates, each file by whoever `runner` finds.
    ///
    /// # Errors
    /// As [`crate::annotate::annotate`]; when a unit cannot be done.
    pub fn run(&self, runner: &mut dyn Runner) -> Result<AnnotateSummary, EngineError> {
        let started = Instant::now();
        let annotation = Annotation::open(self.job, input::expand(&self.job.inputs)?)?;
        annotation.check_inputs()?;
        let plan = &annotation.plan;
        let staged = match Staged::begin(&self.job.output, plan, self.job.overwrite)? {
            Begun::Done(done) => return Ok(annotation.unchanged(done, started)),
            Begun::Open(staged) => staged,
        };
        let plans = staged.units();
        let epoch = claim_epoch(&plans)?;
        let text = serde_json::to_vec(plan).map_err(|error| EngineError::Bug(error.to_string()))?;
        let _signpost = Signpost::set(self.job, &plans);
        let folder = PlanFolder::make(&plans, &blake3::hash(&text).to_hex()[..16])?;
        let warehouse = Warehouse::open(&self.job.warehouse)?;
        let header = AnnotateHeader {
            protocol: PROTOCOL,
            program: plan.program.clone(),
            job: AnnotateJob {
                warehouse: warehouse.url().as_str().to_owned(),
                inputs: Vec::new(),
                ..self.job.clone()
            },
            plan: plan.clone(),
        };
        put_new(folder.path(), PLAN, &header)?;
        clear_others(&plans, folder.path())?;
        folder.forget_attempts()?;
        let (mut works, mut resumed) = (Vec::new(), 0);
        for number in 0..plan.inputs.len() {
            match staged.done(number)? {
                Some(_) => resumed += 1,
                None => works.push(Work::Annotate { number }),
            }
        }
        let phases = Phases {
            folder: &folder,
            epoch,
            limit_seconds: self.limit_seconds,
            most_attempts: self.most_attempts,
            progress: self.progress,
            stop: self.stop,
        };
        let began = Instant::now();
        phases.run(runner, Phase::Annotate, works)?;
        if superseded(&plans, epoch) {
            return Err(taken_over());
        }
        let mut shards = Vec::with_capacity(plan.inputs.len());
        for number in 0..plan.inputs.len() {
            shards.push(match staged.done(number)? {
                Some(shard) => shard,
                None => take(&staged, &folder, number)?,
            });
        }
        remove(&plans)?;
        annotation.publish(staged, shards, resumed, (started, began))
    }
}

/// Tells `pmill jobs` in the warehouse where the plan lies; taken away at the end.
struct Signpost(Option<PathBuf>);

impl Signpost {
    /// Where the warehouse cannot be written, nothing is listed there.
    fn set(job: &AnnotateJob, plans: &Path) -> Self {
        let place = || {
            let warehouse = Warehouse::open(&job.warehouse).ok()?;
            let folder = PlanFolder::root_of(&warehouse);
            let digest = blake3::hash(plans.as_os_str().as_encoded_bytes()).to_hex();
            let name = format!("{}.{}.elsewhere", job.name, &digest[..12]);
            put_new(&folder, &name, &plans).ok()?;
            Some(folder.join(name))
        };
        Self(place())
    }
}

impl Drop for Signpost {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // One that stays points nowhere, which is seen when it is followed.
            let _ = remove_file(path);
        }
    }
}

/// Moves what a unit wrote into the output.
fn take(staged: &Staged, folder: &PlanFolder, number: usize) -> Result<Shard, EngineError> {
    let done: AnnotateDone = folder.need(&Work::Annotate { number }.name())?;
    let (from, to) = (
        folder.tables().join(&done.file),
        staged.path(&done.shard.name),
    );
    match std::fs::rename(&from, &to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io("move", &from, error));
        }
        // A driver that died here may have moved it.
        _ => {}
    }
    let found = std::fs::metadata(&to).map_err(|source| io("find", &to, source))?;
    if found.len() != done.shard.bytes {
        return Err(wrong_size(&to, found.len(), done.shard.bytes));
    }
    staged.finish(number, &done.shard)?;
    Ok(done.shard)
}

fn wrong_size(path: &Path, found: u64, written: u64) -> EngineError {
    EngineError::Bug(format!(
        "`{}` has {found} bytes where {written} were written",
        path.display()
    ))
}
