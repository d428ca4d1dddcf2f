//! A merge of snapshots as units: consecutive slices of the plan, computed by any process that sees the inputs.
//!
//! ```text
//! plan_merge ─ merge.json ─▶ slices(unit) … ─▶ parts ─▶ the one output
//! ```
//!
//! Every process plans the merge for itself from `merge.json`, and the plans' fingerprints must be equal. Onto a
//! file system, a unit writes its slices as part files under `data` and the driver makes the output of them;
//! onto an object store, a unit uploads its parts and the driver completes the uploads. A unit that runs twice
//! writes the same bytes twice. Held in memory: what `pmill_snapshot` says, for each unit.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pmill_snapshot::{
    Digest, ErrorKind, MergePlan, MergeReport, MergeSettings, SnapshotError, assemble,
    average_slice, begin_upload, discard_upload, plan_merge, published, upload_group,
};
use pmill_store::killpoint;
use serde::{Deserialize, Serialize};

use super::drive::{Phase, Runner, clear_others, taken_over};
use super::folder::{PlanFolder, claim_epoch, io, put_new, read, superseded};
use super::plan::{PROTOCOL, attempt, check_protocol};
use super::spec::{UnitSpec, Work};
use super::worker::UnitWorker;
use crate::error::{EngineError, chain};
use crate::progress::{Progress, StopFlag, Unit as Steps};
use crate::snapshots;

/// The plan's file.
const PLAN: &str = "merge.json";

impl From<SnapshotError> for EngineError {
    fn from(error: SnapshotError) -> Self {
        let text = chain(&error);
        match error.kind() {
            ErrorKind::User => Self::Setting(text),
            ErrorKind::NotNow => Self::NotNow(text),
            ErrorKind::Bug => Self::Bug(text),
        }
    }
}

/// What all units of a merge share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct MergeFile {
    protocol: u32,
    program: String,
    /// Absolute paths or URIs.
    inputs: Vec<PathBuf>,
    output: PathBuf,
    settings: MergeSettings,
    fingerprint: String,
}

impl MergeFile {
    fn plan(&self) -> Result<MergePlan, EngineError> {
        let inputs = snapshots::open_all(&self.inputs)?;
        let plan = plan_merge(&inputs, &self.output, &self.settings)?;
        Ok(snapshots::at_its_target(plan)?)
    }
}

/// What a unit of slices leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct AverageDone {
    /// The unit's slices, or groups of slices of an output in a store.
    range: Range<usize>,
}

/// A merge and how it is driven.
pub struct AverageDrive<'a> {
    /// Snapshots: paths or URIs that all processes see alike.
    pub inputs: &'a [PathBuf],
    /// What is to appear.
    pub output: &'a Path,
    /// How to merge.
    pub settings: &'a MergeSettings,
    /// The digests that the inputs are known by, in their order; none when nothing is expected.
    pub expected: &'a [Digest],
    /// Folder for the plan, the manifests and the parts, which all processes see; beside the output by default,
    /// which must then be on a file system.
    pub units_folder: Option<&'a Path>,
    /// Bytes that a unit reads.
    pub unit_bytes: u64,
    /// Seconds that a unit may take.
    pub limit_seconds: u64,
    /// Attempts that may die with their process before a unit is taken for poison.
    pub most_attempts: u32,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Whether to stop.
    pub stop: &'a StopFlag,
}

impl AverageDrive<'_> {
    /// The folder of the merge's plans.
    fn plans(&self) -> Result<PathBuf, EngineError> {
        let name = self.output.file_name().unwrap_or_default();
        let name = format!(".{}.pmill-units", name.to_string_lossy());
        match self.units_folder {
            Some(folder) => absolute(&folder.join(name)),
            None if snapshots::is_remote(self.output) => Err(EngineError::Setting(format!(
                "`{}` is in an object store: name a folder that all processes see, for the plan and the manifests (--units-folder)",
                self.output.display()
            ))),
            None => Ok(absolute(self.output)?.with_file_name(name)),
        }
    }

    /// Runs the merge to its end; goes on with what an earlier run left.
    ///
    /// # Errors
    /// Those of [`pmill_snapshot::merge`]; whatever is wrong with units; a driver that started later.
    pub fn run(&self, runner: &mut dyn Runner) -> Result<MergeReport, EngineError> {
        let mut file = MergeFile {
            protocol: PROTOCOL,
            program: concat!("pmill ", env!("CARGO_PKG_VERSION")).to_owned(),
            inputs: self
                .inputs
                .iter()
                .map(|place| absolute(place))
                .collect::<Result<_, _>>()?,
            output: absolute(self.output)?,
            settings: self.settings.clone(),
            fingerprint: String::new(),
        };
        let plan = file.plan()?.expecting(self.expected.to_vec());
        file.fingerprint = plan.fingerprint().hex();
        if let Some(report) = published(&plan)? {
            return Ok(report);
        }
        let plans = self.plans()?;
        let epoch = claim_epoch(&plans)?;
        let folder = PlanFolder::make(&plans, &file.fingerprint[..16])?;
        clear_others(&plans, folder.path())?;
        folder.forget_attempts()?;
        put_new(folder.path(), PLAN, &file)?;
        let result = self.map_and_publish(&plan, &folder, &plans, epoch, runner);
        match &result {
            // What an error of the inputs left helps nobody: the next run would find the same.
            Err(EngineError::Setting(_)) => {
                discard_upload(&plan)?;
                remove(&plans);
            }
            Ok(_) => remove(&plans),
            Err(_) => {}
        }
        result
    }

    fn map_and_publish(
        &self,
        plan: &MergePlan,
        folder: &PlanFolder,
        plans: &Path,
        epoch: u64,
        runner: &mut dyn Runner,
    ) -> Result<MergeReport, EngineError> {
        let remote = snapshots::is_remote(plan.target());
        let steps = if remote {
            match begin_upload(plan)? {
                Some(groups) => groups,
                None => return Ok(pmill_snapshot::merge(plan, &|_| true)?),
            }
        } else {
            plan.slices().len()
        };
        let each = plan.input_bytes() / steps.max(1) as u64;
        let length = usize::try_from(self.unit_bytes / each.max(1)).unwrap_or(usize::MAX);
        let works = cut(steps, length.max(1));
        let there = folder.done()?;
        self.progress
            .phase(Phase::Average.name(), works.len() as u64, Steps::Parts);
        let mut missing = Vec::new();
        for work in works {
            if there.contains(&work.name()) {
                self.progress.advance(1, 0);
                continue;
            }
            missing.push(UnitSpec {
                protocol: PROTOCOL,
                folder: folder.path().to_owned(),
                epoch,
                limit_seconds: self.limit_seconds,
                most_attempts: self.most_attempts,
                work,
            });
        }
        if !missing.is_empty() {
            let mut done = |_: &UnitSpec| self.progress.advance(1, 0);
            runner.run(folder, Phase::Average, missing, &mut done, self.stop)?;
        }
        if superseded(plans, epoch) {
            return Err(taken_over());
        }
        self.progress
            .phase("assemble", plan.output_bytes(), Steps::Bytes);
        let told = std::sync::atomic::AtomicU64::new(0);
        let on_progress = |progress: pmill_snapshot::Progress| {
            let before = told.fetch_max(progress.done_bytes, std::sync::atomic::Ordering::Relaxed);
            self.progress
                .advance(progress.done_bytes.saturating_sub(before), 0);
            !self.stop.is_set()
        };
        Ok(if remote {
            pmill_snapshot::merge(plan, &on_progress)?
        } else {
            assemble(plan, &folder.data(), &on_progress)?
        })
    }
}

/// A path from the root; a URI stays.
fn absolute(place: &Path) -> Result<PathBuf, EngineError> {
    if snapshots::is_remote(place) {
        return Ok(place.to_owned());
    }
    std::path::absolute(place).map_err(|source| io("find", place, source))
}

/// Units of `length` steps each.
fn cut(steps: usize, length: usize) -> Vec<Work> {
    (0..steps.div_ceil(length))
        .map(|number| Work::Average {
            number,
            range: number * length..steps.min((number + 1) * length),
        })
        .collect()
}

/// Removes the work folder. A unit that still runs may write into it meanwhile, and then ends.
fn remove(plans: &Path) {
    for _ in 0..50 {
        match std::fs::remove_dir_all(plans) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                std::thread::sleep(Duration::from_millis(100));
            }
            _ => return,
        }
    }
}

/// The plan that this process used last: units of one merge come one after the other.
static LAST: Mutex<Option<(PathBuf, Arc<MergePlan>)>> = Mutex::new(None);

impl UnitWorker {
    /// Runs a unit of a merge of snapshots, unless it is done.
    pub(super) fn run_average(
        &self,
        spec: &UnitSpec,
        range: &Range<usize>,
        cancel: &StopFlag,
    ) -> Result<bool, EngineError> {
        let folder = &PlanFolder::open(&spec.folder)?;
        let name = spec.work.name();
        if folder.has(&name) {
            return Ok(false);
        }
        let attempt = attempt();
        let result = (|| {
            let plan = self.merge_plan(folder)?;
            let _mark = folder.begin(spec, &attempt)?;
            killpoint::unit(&name);
            let plans = spec.folder.parent().unwrap_or(&spec.folder);
            let deadline = Instant::now() + Duration::from_secs(spec.limit_seconds);
            for slice in range.clone() {
                if cancel.is_set() {
                    return Err(EngineError::Interrupted);
                }
                if superseded(plans, spec.epoch) {
                    return Err(taken_over());
                }
                if Instant::now() > deadline {
                    return Err(EngineError::NotNow(format!(
                        "unit `{name}` took longer than its {} s",
                        spec.limit_seconds
                    )));
                }
                if snapshots::is_remote(plan.target()) {
                    upload_group(&plan, slice)?;
                } else {
                    average_slice(&plan, slice, &folder.data())?;
                }
            }
            folder.put(
                &name,
                &AverageDone {
                    range: range.clone(),
                },
            )
        })();
        if let Err(error) = &result
            && !matches!(error, EngineError::Interrupted)
        {
            // The error names the snapshot itself.
            folder.failed(spec, &attempt, error, Vec::new());
        }
        result
    }

    fn merge_plan(&self, folder: &PlanFolder) -> Result<Arc<MergePlan>, EngineError> {
        {
            let last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((root, plan)) = &*last
                && root == folder.path()
            {
                return Ok(plan.clone());
            }
        }
        let mut file: MergeFile = read(&folder.path().join(PLAN))?.ok_or_else(|| {
            EngineError::NotNow(format!("`{}` has no plan yet", folder.path().display()))
        })?;
        check_protocol(file.protocol, &file.program)?;
        for place in file.inputs.iter().chain([&file.output]) {
            self.check_allowed(place)?;
        }
        file.settings.threads = Some(self.limits.threads);
        file.settings.memory_limit_bytes = self.limits.memory.0;
        let plan = Arc::new(file.plan()?);
        if plan.fingerprint().hex() != file.fingerprint {
            return Err(EngineError::Setting(format!(
                "the inputs of `{}` have changed since the merge was planned, or this machine sees others; run it again when they are written whole",
                file.output.display()
            )));
        }
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((folder.path().to_owned(), plan.clone()));
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::distributed::WorkerLimits;
    use crate::memory::ByteSize;
    use crate::progress::Quiet;
    use pmill_snapshot::{DType, TensorInfo, write_header};

    /// Runs units in this process, the second half first, some twice.
    struct Here<'a>(&'a UnitWorker, usize);

    impl Runner for Here<'_> {
        fn run(
            &mut self,
            _: &PlanFolder,
            phase: Phase,
            mut units: Vec<UnitSpec>,
            done: &mut dyn FnMut(&UnitSpec),
            stop: &StopFlag,
        ) -> Result<(), EngineError> {
            assert_eq!(phase, Phase::Average);
            let half = units.len() / 2;
            units.rotate_left(half);
            for unit in &units {
                assert!(self.0.run(unit, stop)?);
                assert!(!self.0.run(unit, stop)?);
                self.1 += 1;
                done(unit);
            }
            Ok(())
        }
    }

    fn snapshot(root: &Path, name: &str, value: f32) -> PathBuf {
        let elements = (1 << 20) * 2 + 5;
        let info = TensorInfo {
            name: "w".into(),
            dtype: DType::F32,
            shape: vec![elements],
            start: 0,
            end: elements * 4,
        };
        let mut bytes = write_header(&[info], &Default::default());
        for element in 0..elements {
            bytes.extend((value + element as f32).to_le_bytes());
        }
        std::fs::create_dir(root.join(name)).unwrap();
        std::fs::write(root.join(name).join("model.safetensors"), bytes).unwrap();
        root.join(name)
    }

    #[test]
    fn units_in_any_order_make_the_bytes_of_a_merge_in_process() {
        let root = tempfile::tempdir().unwrap();
        let inputs = [0.25, 0.5, 7.0].map(|value| snapshot(root.path(), &value.to_string(), value));
        let settings = MergeSettings {
            sync: false,
            ..MergeSettings::default()
        };
        let worker = UnitWorker::new(WorkerLimits {
            memory: ByteSize(64 << 20),
            threads: 1,
            scratch: root.path().join("scratch"),
            allowed: vec![root.path().to_owned()],
            on_stuck: None,
        })
        .unwrap();
        let (here, there) = (root.path().join("here"), root.path().join("there"));
        let stop = StopFlag::default();
        let drive = |output, inputs| AverageDrive {
            inputs,
            output,
            settings: &settings,
            expected: &[],
            units_folder: None,
            unit_bytes: 1,
            limit_seconds: 60,
            most_attempts: 3,
            progress: &Quiet,
            stop: &stop,
        };
        let mut runner = Here(&worker, 0);
        let report = drive(&there, &inputs).run(&mut runner).unwrap();
        assert_eq!(runner.1, 3);
        let opened = snapshots::open_all(&inputs).unwrap();
        let plan = plan_merge(&opened, &here, &settings).unwrap();
        let expected = pmill_snapshot::merge(&plan, &|_| true).unwrap();
        assert_eq!(report.outputs, expected.outputs);
        for file in ["model.safetensors", "pmill-merge.json"] {
            let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
            assert!(read(&here) == read(&there), "{file}");
        }
        assert!(!root.path().join(".there.pmill-units").exists());
        // Again it is there, and no unit runs.
        drive(&there, &inputs).run(&mut runner).unwrap();
        assert_eq!(runner.1, 3);
        // A worker that may not read an input says so.
        let narrow = UnitWorker::new(WorkerLimits {
            allowed: vec![
                root.path().join("elsewhere"),
                root.path().join(".other.pmill-units"),
            ],
            ..worker.limits.clone()
        })
        .unwrap();
        let other = root.path().join("other");
        let refused = drive(&other, &inputs[..2]).run(&mut Here(&narrow, 0));
        assert!(refused.unwrap_err().to_string().contains("--allow"));
        assert!(!other.exists());
    }

    #[test]
    fn units_cover_all_steps_once() {
        for (steps, length) in [(0, 1), (1, 1), (7, 3), (9, 3), (5, 100)] {
            let covered: Vec<usize> = cut(steps, length)
                .into_iter()
                .flat_map(|work| match work {
                    Work::Average { range, .. } => range,
                    _ => 0..0,
                })
                .collect();
            assert_eq!(covered, (0..steps).collect::<Vec<_>>());
        }
    }
}
