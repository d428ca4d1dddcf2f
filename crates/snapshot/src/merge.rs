//! Runs a plan: reads slices of all inputs, averages them, and writes the slices of the outputs.
//!
//! Each worker reads a piece of a slice from every input, averages it while it is in the processor's cache and
//! writes it; workers share nothing but the number of the next slice. Held: for each worker a piece of every
//! input and output.

use crate::collect::Collector;
use crate::error::SnapshotError;
use crate::kernel::Weights;
use crate::manifest::{self, MergeReport};
use crate::parts::read_part;
use crate::plan::{MergePlan, Slice};
use crate::settings::thread_count;
use crate::staging::{self, Record, Staging};
use crate::worker::Worker;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

/// Bytes written between two syncs of a part.
const SYNC_BYTES: u64 = 128 << 20;

/// How far a merge or comparison has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of one output finished, also by an earlier run.
    pub done_bytes: u64,
    /// Bytes of one output in all.
    pub total_bytes: u64,
}

/// Called after each slice, from any thread; the work stops when it returns `false`.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) -> bool + Sync);

/// Runs a merge to its end and publishes the output; goes on where an earlier run of the same plan stopped.
///
/// An output that this same plan has already published is left alone and reported.
///
/// # Errors
/// Reading, writing, NaN and infinity, overflow of a narrower type, changed inputs, an output that exists.
/// After an error that lies in the inputs nothing stays behind; after others the next run goes on.
pub fn merge(plan: &MergePlan, on_progress: OnProgress<'_>) -> Result<MergeReport, SnapshotError> {
    if let Some(store) = &plan.store {
        return crate::upload::merge(plan, store.as_ref(), on_progress);
    }
    merge_parts(plan, None, on_progress)
}

/// The report of an output that this very plan has published already; `None` when nothing stands there.
///
/// # Errors
/// [`SnapshotError::Exists`] when something else does, unless it is to be replaced; a store that is away.
pub fn published(plan: &MergePlan) -> Result<Option<MergeReport>, SnapshotError> {
    match &plan.store {
        Some(store) => crate::upload::published(plan, store.as_ref()),
        None => manifest::published(plan),
    }
}

/// The same; with a folder of parts the slices are read from there instead of being computed.
pub(crate) fn merge_parts(
    plan: &MergePlan,
    parts: Option<&Path>,
    on_progress: OnProgress<'_>,
) -> Result<MergeReport, SnapshotError> {
    let started = Instant::now();
    if let Some(report) = manifest::published(plan)? {
        return Ok(report);
    }
    let staging = Staging::open(plan)?;
    let run = Run {
        plan,
        parts,
        staging: &staging,
        weights: plan
            .outputs
            .iter()
            .map(|output| Weights::new(&output.row))
            .collect(),
        next: AtomicUsize::new(0),
        last: AtomicUsize::new(usize::MAX),
        stopped: AtomicBool::new(false),
        done_bytes: AtomicU64::new(0),
        resumed: AtomicUsize::new(0),
        collector: Mutex::new(Collector::new(plan)),
        failure: Mutex::new(None),
        on_progress,
    };
    let lanes = plan
        .inputs
        .iter()
        .map(|input| input.source().reads_per_thread())
        .max()
        .unwrap_or(1);
    let workers =
        (thread_count(plan.settings.threads) * lanes.max(1)).min(plan.slices.len().max(1));
    std::thread::scope(|scope| {
        // Brings finished parts to the disk meanwhile, so that little is left to wait for at the end.
        let (sync, asked) = channel();
        if plan.settings.sync {
            scope.spawn(|| {
                for shard in asked {
                    for output in 0..plan.outputs.len() {
                        // An error here comes back from the last sync, which counts.
                        let _ = staging.sync_part(plan, output, shard);
                    }
                }
            });
        }
        for _ in 1..workers {
            let sync = sync.clone();
            let run = &run;
            scope.spawn(move || run.work(workers, &sync));
        }
        run.work(workers, &sync);
        drop(sync);
    });
    let Run {
        failure,
        collector,
        resumed,
        ..
    } = run;
    if let Some((_, error)) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        if matches!(
            error,
            SnapshotError::NonFinite { .. } | SnapshotError::Overflow { .. }
        ) {
            // The same inputs give the same error, so what is staged helps nobody.
            staging.discard()?;
        }
        return Err(error);
    }
    for input in &plan.inputs {
        input.check_unchanged()?;
    }
    let collected = collector
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .finish()?;
    let mut report = manifest::report(plan, &collected);
    if let Err(error) = plan.check_expected(&report) {
        staging.discard()?;
        return Err(error);
    }
    let text = manifest::manifest(plan, &report)?;
    staging.publish(plan, &text)?;
    report.resumed_slices = resumed.into_inner();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

struct Run<'a> {
    plan: &'a MergePlan,
    parts: Option<&'a Path>,
    staging: &'a Staging,
    weights: Vec<Weights>,
    next: AtomicUsize,
    /// No slice after this one is begun: it failed. Slices are begun in order, so the earliest failure is
    /// found whatever the threads do.
    last: AtomicUsize,
    stopped: AtomicBool,
    done_bytes: AtomicU64,
    resumed: AtomicUsize,
    collector: Mutex<Collector<'a>>,
    failure: Mutex<Option<(usize, SnapshotError)>>,
    on_progress: OnProgress<'a>,
}

impl Run<'_> {
    fn work(&self, workers: usize, sync: &Sender<usize>) {
        let mut worker = Worker::new(self.plan, &self.weights, workers);
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(slice) = self.plan.slices.get(index) else {
                return;
            };
            if index > self.last.load(Ordering::Acquire) || self.stopped.load(Ordering::Acquire) {
                return;
            }
            match self.slice(&mut worker, slice) {
                Ok(record) => {
                    self.collector
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .put(record);
                    let done_bytes =
                        self.done_bytes.fetch_add(slice.bytes, Ordering::Relaxed) + slice.bytes;
                    if done_bytes / SYNC_BYTES != (done_bytes - slice.bytes) / SYNC_BYTES {
                        // Nobody listens when syncing is off.
                        let _ = sync.send(self.plan.tensors[slice.tensor].shard);
                    }
                    let progress = Progress {
                        done_bytes,
                        total_bytes: self.plan.output_bytes(),
                    };
                    if !(self.on_progress)(progress) && done_bytes < progress.total_bytes {
                        self.stopped.store(true, Ordering::Release);
                        self.fail(usize::MAX, SnapshotError::Stopped);
                    }
                }
                Err(error) => self.fail(index, error),
            }
        }
    }

    fn fail(&self, index: usize, error: SnapshotError) {
        self.last.fetch_min(index, Ordering::AcqRel);
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref().is_none_or(|(first, _)| index < *first) {
            *failure = Some((index, error));
        }
    }

    fn slice(&self, worker: &mut Worker<'_>, slice: &Slice) -> Result<Record, SnapshotError> {
        if let Some(record) = self.staging.earlier(slice.index)
            && self
                .staging
                .verify(self.plan, slice, &record, &mut worker.copy)?
        {
            self.resumed.fetch_add(1, Ordering::Relaxed);
            return Ok(record);
        }
        let mut sink = |output: usize, at: u64, bytes: &[u8]| {
            self.staging.write(self.plan, output, slice, at, bytes)
        };
        let record = match self.parts {
            Some(folder) => read_part(self.plan, slice, folder, &mut sink)?,
            None => worker.slice(slice, &mut sink)?,
        };
        self.staging.note(&record)?;
        Ok(record)
    }
}

/// Removes what an unfinished merge into this target left behind.
///
/// # Errors
/// [`SnapshotError::Busy`] when another process is at work there.
pub fn discard_staging(target: &Path) -> Result<(), SnapshotError> {
    let root = staging::staging_folder(target);
    if !root.exists() {
        return Ok(());
    }
    let lock = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(root.join("lock"));
    let lock = lock.map_err(|error| SnapshotError::write(&root, error))?;
    if lock.try_lock().is_err() {
        return Err(SnapshotError::Busy {
            path: root.display().to_string(),
        });
    }
    std::fs::remove_dir_all(&root).map_err(|error| SnapshotError::write(&root, error))
}
