//! A merge whose output is in an object store: parts of multipart uploads, and one small object for each.
//!
//! ```text
//! .NAME.pmill-staging/plan.json        fingerprint of the plan, names of the uploads; put if not there yet
//! .NAME.pmill-staging/group-00000007   what group 7 left: records of its slices, names of its parts
//! ```
//!
//! A group is some consecutive slices of one weight file, which are one part of its upload (for each output).
//! What has its object is done, by whomever; a group that is done twice has put the same bytes twice. So a
//! merge goes on where another was killed, on any machine, and several processes may share one.
//!
//! The end: what stood there before is removed, weights first; the manifest is put, then config, tokenizer and
//! index; then the uploads are completed. Until the last of them is, no weight file or not all that the index
//! names are there, so that nothing loads. Held: for each worker a group of every output.

mod copy;
mod groups;
mod stage;
mod standing;

pub use copy::upload_merged;
pub(crate) use standing::published;

use crate::collect::Collector;
use crate::error::SnapshotError;
use crate::kernel::Weights;
use crate::manifest::{self, MergeReport};
use crate::merge::{OnProgress, Progress};
use crate::objects::ObjectFolder;
use crate::plan::MergePlan;
use crate::settings::thread_count;
use crate::worker::Worker;
use groups::Group;
use stage::{Done, Stage, clear, sweep};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Runs a merge onto the plan's store; goes on where another run of the same plan stopped.
pub(crate) fn merge(
    plan: &MergePlan,
    store: &dyn ObjectFolder,
    on_progress: OnProgress<'_>,
) -> Result<MergeReport, SnapshotError> {
    let started = Instant::now();
    if let Some(report) = published(plan, store)? {
        sweep(plan, store)?;
        return Ok(report);
    }
    let stage = Stage::open(plan, store, true)?;
    let there = stage.there()?;
    let workers = workers(plan, &stage.groups)?;
    let run = Run {
        stage: &stage,
        there,
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
        collected: Mutex::new((Collector::new(plan), vec![Vec::new(); stage.groups.len()])),
        failure: Mutex::new(None),
        on_progress,
    };
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(|| run.work(workers));
        }
        run.work(workers);
    });
    let Run {
        failure,
        collected,
        resumed,
        ..
    } = run;
    if let Some((_, error)) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        if matches!(
            error,
            SnapshotError::NonFinite { .. } | SnapshotError::Overflow { .. }
        ) {
            // The same inputs give the same error, so what is staged helps nobody.
            clear(store, &stage.prefix, Some(&stage.begun))?;
        }
        return Err(error);
    }
    for input in &plan.inputs {
        input.check_unchanged()?;
    }
    let (collector, parts) = collected
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let mut report = manifest::report(plan, &collector.finish()?);
    if let Err(error) = plan.check_expected(&report) {
        clear(store, &stage.prefix, Some(&stage.begun))?;
        return Err(error);
    }
    stage.publish(manifest::manifest(plan, &report)?, &parts)?;
    report.resumed_slices = resumed.into_inner();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Workers whose groups fit half of the memory limit.
fn workers(plan: &MergePlan, groups: &[Group]) -> Result<usize, SnapshotError> {
    let largest = groups.iter().map(|group| group.bytes).max().unwrap_or(1);
    let each = largest.saturating_mul(plan.outputs.len() as u64).max(1);
    let limit = plan.settings.memory_limit_bytes;
    if each > limit {
        return Err(SnapshotError::Settings {
            what: format!(
                "{} outputs at once onto an object store need a memory limit of {} MiB, but it is {} MiB; raise it, or write to a local folder",
                plan.outputs.len(),
                each.div_ceil(1 << 20),
                limit >> 20
            ),
        });
    }
    let lanes = plan
        .inputs
        .iter()
        .map(|input| input.source().reads_per_thread())
        .max()
        .unwrap_or(1);
    // A worker waits while it uploads, so there are two for each thread at least.
    let wanted = thread_count(plan.settings.threads) * lanes.max(2);
    let fit = usize::try_from(limit / 2 / each).unwrap_or(usize::MAX);
    Ok(wanted.min(fit).min(groups.len()).max(1))
}

struct Run<'a> {
    stage: &'a Stage<'a>,
    there: Vec<bool>,
    weights: Vec<Weights>,
    next: AtomicUsize,
    /// No group after this one is begun: it failed.
    last: AtomicUsize,
    stopped: AtomicBool,
    done_bytes: AtomicU64,
    resumed: AtomicUsize,
    collected: Mutex<(Collector<'a>, Vec<Vec<String>>)>,
    failure: Mutex<Option<(usize, SnapshotError)>>,
    on_progress: OnProgress<'a>,
}

impl Run<'_> {
    fn work(&self, workers: usize) {
        let plan = self.stage.plan;
        // The other half of the memory is the groups'.
        let mut worker = Worker::new(plan, &self.weights, workers * 2);
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(group) = self.stage.groups.get(index) else {
                return;
            };
            if index > self.last.load(Ordering::Acquire) || self.stopped.load(Ordering::Acquire) {
                return;
            }
            match self.group(&mut worker, group) {
                Ok(done) => {
                    let mut collected = self
                        .collected
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    done.records
                        .into_iter()
                        .for_each(|record| collected.0.put(record));
                    collected.1[index] = done.parts;
                    drop(collected);
                    let bytes: u64 = plan.slices[group.slices.clone()]
                        .iter()
                        .map(|slice| slice.bytes)
                        .sum();
                    let progress = Progress {
                        done_bytes: self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes,
                        total_bytes: plan.output_bytes(),
                    };
                    if !(self.on_progress)(progress) && progress.done_bytes < progress.total_bytes {
                        self.stopped.store(true, Ordering::Release);
                        self.fail(usize::MAX, SnapshotError::Stopped);
                    }
                }
                Err(error) => self.fail(index, error),
            }
        }
    }

    fn group(&self, worker: &mut Worker<'_>, group: &Group) -> Result<Done, SnapshotError> {
        if self.there[group.index]
            && let Some(done) = self.stage.finished(group.index)?
        {
            self.resumed
                .fetch_add(group.slices.len(), Ordering::Relaxed);
            return Ok(done);
        }
        self.stage.upload(worker, group, false)
    }

    fn fail(&self, index: usize, error: SnapshotError) {
        self.last.fetch_min(index, Ordering::AcqRel);
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref().is_none_or(|(first, _)| index < *first) {
            *failure = Some((index, error));
        }
    }
}

/// Begins the uploads of a plan that goes to a store, for processes that share it, and gives the number of its
/// groups; `None` when the output is there whole.
///
/// # Errors
/// Those of [`crate::merge`] that have to do with the store; a plan without a store.
pub fn begin_upload(plan: &MergePlan) -> Result<Option<usize>, SnapshotError> {
    let store = store_of(plan)?;
    if published(plan, store)?.is_some() {
        return Ok(None);
    }
    Ok(Some(Stage::open(plan, store, true)?.groups.len()))
}

/// Gives the uploads of a plan up and removes what they left; nothing is done for a plan without a store.
///
/// # Errors
/// Whatever the store says.
pub fn discard_upload(plan: &MergePlan) -> Result<(), SnapshotError> {
    match &plan.store {
        Some(store) => sweep(plan, store.as_ref()),
        None => Ok(()),
    }
}

/// Computes one group (from 0) of a plan whose uploads have begun, unless it is done; gives whether it had to.
/// [`crate::merge`] finds what is done, and ends the merge.
///
/// # Errors
/// No such group; reading, NaN and infinity, overflow of a narrower type, inputs that changed since the plan;
/// uploads that have not begun or were given up ([`SnapshotError::Busy`]).
pub fn upload_group(plan: &MergePlan, group: usize) -> Result<bool, SnapshotError> {
    let stage = Stage::open(plan, store_of(plan)?, false)?;
    let Some(group) = stage.groups.get(group) else {
        return Err(SnapshotError::Settings {
            what: format!(
                "group {group} was asked for, but the plan has {} (counted from 0)",
                stage.groups.len()
            ),
        });
    };
    if stage.finished(group.index)?.is_some() {
        return Ok(false);
    }
    let weights: Vec<Weights> = plan
        .outputs
        .iter()
        .map(|output| Weights::new(&output.row))
        .collect();
    stage.upload(&mut Worker::new(plan, &weights, 2), group, true)?;
    Ok(true)
}

fn store_of(plan: &MergePlan) -> Result<&dyn ObjectFolder, SnapshotError> {
    plan.store
        .as_deref()
        .ok_or_else(|| SnapshotError::Settings {
            what: format!("`{}` is not in an object store", plan.target.display()),
        })
}
