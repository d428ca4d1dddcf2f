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

use crate::checks::MANIFEST;
use crate::collect::Collector;
use crate::digest::Digest;
use crate::error::SnapshotError;
use crate::kernel::Weights;
use crate::layout;
use crate::manifest::{self, MergeReport};
use crate::merge::{OnProgress, Progress};
use crate::objects::ObjectFolder;
use crate::plan::MergePlan;
use crate::settings::thread_count;
use crate::source::join;
use crate::staging::Record;
use crate::worker::Worker;
use serde::{Deserialize, Serialize};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// More parts than this are not planned for one object; S3 takes 10,000.
const MOST_PARTS: u64 = 9_000;

/// Slices of one weight file that are one part of its upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub index: usize,
    pub shard: usize,
    pub part: usize,
    pub slices: Range<usize>,
    /// Bytes of the part, for one output; the first of a file holds its header too.
    pub bytes: u64,
}

/// Cuts a plan into groups of at least `part_bytes`.
pub(crate) fn groups(plan: &MergePlan, part_bytes: u64) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut next = 0;
    for (position, shard) in plan.shards.iter().enumerate() {
        let least = part_bytes.max(shard.bytes / MOST_PARTS);
        let mut open = Group {
            index: groups.len(),
            shard: position,
            part: 0,
            slices: next..next,
            bytes: shard.header.len() as u64,
        };
        while let Some(slice) = plan.slices.get(next)
            && plan.tensors[slice.tensor].shard == position
        {
            if open.bytes >= least {
                let following = Group {
                    index: open.index + 1,
                    part: open.part + 1,
                    slices: next..next,
                    bytes: 0,
                    ..open
                };
                groups.push(std::mem::replace(&mut open, following));
            }
            open.bytes += slice.bytes;
            next += 1;
            open.slices.end = next;
        }
        groups.push(open);
    }
    groups
}

/// What a finished group left.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    fingerprint: Digest,
    records: Vec<Record>,
    /// The part's name for each output.
    parts: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct PlanObject {
    format: u32,
    fingerprint: Digest,
    part_bytes: u64,
    /// Names of the objects and of their uploads, by output, then weight file.
    objects: Vec<Vec<(String, String)>>,
}

/// The state of a merge in its store.
struct Stage<'a> {
    plan: &'a MergePlan,
    store: &'a dyn ObjectFolder,
    /// The target's name in the store's prefix.
    name: String,
    prefix: String,
    begun: PlanObject,
    groups: Vec<Group>,
}

fn name_of(plan: &MergePlan) -> Result<String, SnapshotError> {
    let name = plan.target.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| SnapshotError::Settings {
            what: format!("`{}` has no name at its end", plan.target.display()),
        })
}

fn text(value: &impl Serialize) -> Result<Vec<u8>, SnapshotError> {
    serde_json::to_vec(value).map_err(|error| SnapshotError::Internal {
        what: error.to_string(),
    })
}

impl<'a> Stage<'a> {
    fn failed(&self, name: &str) -> impl FnOnce(io::Error) -> SnapshotError + use<> {
        failed(self.store, name)
    }

    /// The objects of the output: for each output its folder, and the names of its weight files.
    fn objects(plan: &MergePlan, name: &str) -> Vec<Vec<String>> {
        let object = |folder: &str, file: &str| match (plan.is_file(), folder) {
            (true, _) => name.to_owned(),
            (false, "") => format!("{name}/{file}"),
            (false, folder) => format!("{name}/{folder}/{file}"),
        };
        plan.outputs
            .iter()
            .map(|output| {
                plan.shards
                    .iter()
                    .map(|shard| object(&output.folder, &shard.file))
                    .collect()
            })
            .collect()
    }

    /// Goes on with what is there of this plan, or begins; `begin` is false for one who only helps.
    fn open(
        plan: &'a MergePlan,
        store: &'a dyn ObjectFolder,
        begin: bool,
    ) -> Result<Self, SnapshotError> {
        let name = name_of(plan)?;
        let prefix = format!(".{name}.pmill-staging/");
        let key = format!("{prefix}plan.json");
        loop {
            let found = store.get(&key).map_err(failed(store, &key))?;
            let found = found.and_then(|bytes| serde_json::from_slice::<PlanObject>(&bytes).ok());
            match found {
                Some(begun) if begun.format == 1 && begun.fingerprint == plan.fingerprint => {
                    return Ok(Self {
                        groups: groups(plan, begun.part_bytes),
                        plan,
                        store,
                        name,
                        prefix,
                        begun,
                    });
                }
                _ if !begin => {
                    return Err(SnapshotError::Busy {
                        path: join(&store.location(), &prefix),
                    });
                }
                // Of another plan: it is given up, as the newest merge into a target counts.
                found => clear(store, &prefix, found.as_ref())?,
            }
            let mut objects = Vec::new();
            for names in Self::objects(plan, &name) {
                let mut output = Vec::new();
                for name in names {
                    let upload = store.begin(&name).map_err(failed(store, &name))?;
                    output.push((name, upload));
                }
                objects.push(output);
            }
            let begun = PlanObject {
                format: 1,
                fingerprint: plan.fingerprint,
                part_bytes: store.part_bytes(),
                objects,
            };
            let put = store.put_new(&key, text(&begun)?);
            if !put.map_err(failed(store, &key))? {
                // Somebody was first, perhaps with the same plan: its uploads count.
                abort(store, &begun)?;
            }
        }
    }

    fn group_key(&self, group: usize) -> String {
        format!("{}group-{group:08}", self.prefix)
    }

    fn finished(&self, group: usize) -> Result<Option<Done>, SnapshotError> {
        let key = self.group_key(group);
        let found = self.store.get(&key).map_err(self.failed(&key))?;
        let done = found.and_then(|bytes| serde_json::from_slice::<Done>(&bytes).ok());
        Ok(done.filter(|done| {
            done.fingerprint == self.plan.fingerprint
                && done.parts.len() == self.plan.outputs.len()
                && done.records.len() == self.groups[group].slices.len()
        }))
    }

    /// Groups that have left their object.
    fn there(&self) -> Result<Vec<bool>, SnapshotError> {
        let listed = self.store.list(&self.prefix);
        let listed = listed.map_err(self.failed(&self.prefix))?;
        let mut there = vec![false; self.groups.len()];
        for file in listed {
            let number = file
                .name
                .strip_prefix(&self.prefix)
                .and_then(|name| name.strip_prefix("group-")?.parse::<usize>().ok());
            if let Some(found) = number.and_then(|number| there.get_mut(number)) {
                *found = true;
            }
        }
        Ok(there)
    }

    /// Computes a group and uploads its parts; `check` says that no one looks for changed inputs afterwards.
    fn upload(
        &self,
        worker: &mut Worker<'_>,
        group: &Group,
        check: bool,
    ) -> Result<Done, SnapshotError> {
        let plan = self.plan;
        let length = usize::try_from(group.bytes).unwrap_or(usize::MAX);
        let mut parts: Vec<Vec<u8>> = Vec::with_capacity(plan.outputs.len());
        for _ in &plan.outputs {
            let mut part = Vec::with_capacity(length);
            if group.part == 0 {
                part.extend_from_slice(&plan.shards[group.shard].header);
            }
            part.resize(length, 0);
            parts.push(part);
        }
        let first = if group.part == 0 {
            plan.shards[group.shard].header.len()
        } else {
            0
        };
        let mut records = Vec::with_capacity(group.slices.len());
        let mut start = first;
        for slice in &plan.slices[group.slices.clone()] {
            let mut sink = |output: usize, at: u64, bytes: &[u8]| {
                let at = start + usize::try_from(at).unwrap_or(usize::MAX);
                parts[output][at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            };
            records.push(worker.slice(slice, &mut sink)?);
            start += usize::try_from(slice.bytes).unwrap_or(usize::MAX);
        }
        if check {
            for input in &plan.inputs {
                input.check_unchanged()?;
            }
        }
        let mut names = Vec::with_capacity(parts.len());
        for (output, bytes) in parts.into_iter().enumerate() {
            let (name, upload) = &self.begun.objects[output][group.shard];
            let put = self.store.put_part(name, upload, group.part, bytes);
            names.push(put.map_err(|error| self.lost(name, error))?);
        }
        let done = Done {
            fingerprint: plan.fingerprint,
            records,
            parts: names,
        };
        let key = self.group_key(group.index);
        let put = self.store.put(&key, text(&done)?);
        put.map_err(self.failed(&key))?;
        Ok(done)
    }

    /// What a failed call of an upload means. One that is gone was given up by another merge into the target
    /// or by the store's own rules: the next run begins anew.
    fn lost(&self, name: &str, error: io::Error) -> SnapshotError {
        if error.kind() != io::ErrorKind::NotFound {
            return self.failed(name)(error);
        }
        let key = format!("{}plan.json", self.prefix);
        let ours = self
            .store
            .get(&key)
            .ok()
            .flatten()
            .and_then(|bytes| serde_json::from_slice::<PlanObject>(&bytes).ok())
            .is_some_and(|found| found == self.begun);
        if ours && let Err(error) = clear(self.store, &self.prefix, Some(&self.begun)) {
            return error;
        }
        SnapshotError::Busy {
            path: join(&self.store.location(), name),
        }
    }

    /// Puts what stands beside the weights, and completes the uploads.
    fn publish(&self, manifest: Vec<u8>, parts: &[Vec<String>]) -> Result<(), SnapshotError> {
        let (plan, store) = (self.plan, self.store);
        if standing(plan, store, &self.name)? == Standing::Other {
            if !plan.settings.overwrite {
                return Err(SnapshotError::Exists {
                    path: plan.target.display().to_string(),
                });
            }
            remove(plan, store, &self.name)?;
        }
        let put = |name: String, bytes: Vec<u8>| {
            store
                .put(&name, bytes)
                .map_err(|error| failed(store, &name)(error))
        };
        put(manifest_key(plan, &self.name), manifest)?;
        if !plan.is_file() {
            let index = layout::index(&plan.tensors, &plan.shards);
            for output in &plan.outputs {
                let folder = match output.folder.as_str() {
                    "" => self.name.clone(),
                    folder => format!("{}/{folder}", self.name),
                };
                for (name, bytes) in output.side_files.iter().chain(&index) {
                    put(format!("{folder}/{name}"), bytes.clone())?;
                }
            }
        }
        for (output, objects) in self.begun.objects.iter().enumerate() {
            for (position, (name, upload)) in objects.iter().enumerate() {
                let parts: Vec<String> = self
                    .groups
                    .iter()
                    .filter(|group| group.shard == position)
                    .map(|group| parts[group.index][output].clone())
                    .collect();
                self.complete(name, upload, &parts, plan.shards[position].bytes)?;
            }
        }
        clear(store, &self.prefix, None)
    }

    fn complete(
        &self,
        name: &str,
        upload: &str,
        parts: &[String],
        bytes: u64,
    ) -> Result<(), SnapshotError> {
        let stat = || self.store.stat(name).map_err(self.failed(name));
        let whole = |found: Option<crate::source::SourceFile>| {
            found.is_some_and(|found| found.size == bytes)
        };
        // Completed before the process died: what stood there before this plan has been removed.
        if whole(stat()?) {
            return Ok(());
        }
        match self.store.complete(name, upload, parts) {
            // Completed, and the answer was lost; or by another process at the same merge.
            Err(error) if error.kind() == io::ErrorKind::NotFound && whole(stat()?) => Ok(()),
            other => other.map_err(|error| self.lost(name, error)),
        }
    }
}

fn failed(store: &dyn ObjectFolder, name: &str) -> impl FnOnce(io::Error) -> SnapshotError + use<> {
    let path = join(&store.location(), name);
    move |source| SnapshotError::Write { path, source }
}

fn abort(store: &dyn ObjectFolder, begun: &PlanObject) -> Result<(), SnapshotError> {
    for (name, upload) in begun.objects.iter().flatten() {
        store.abort(name, upload).map_err(failed(store, name))?;
    }
    Ok(())
}

/// Removes a staging prefix, and gives its uploads up; the plan goes last, as it names them.
fn clear(
    store: &dyn ObjectFolder,
    prefix: &str,
    begun: Option<&PlanObject>,
) -> Result<(), SnapshotError> {
    if let Some(begun) = begun {
        abort(store, begun)?;
    }
    let mut names: Vec<String> = store
        .list(prefix)
        .map_err(failed(store, prefix))?
        .into_iter()
        .map(|file| file.name)
        .collect();
    names.sort_by_key(|name| name.ends_with("plan.json"));
    for name in names {
        store.delete(&name).map_err(failed(store, &name))?;
    }
    Ok(())
}

fn manifest_key(plan: &MergePlan, name: &str) -> String {
    if plan.is_file() {
        format!("{name}.{MANIFEST}")
    } else {
        format!("{name}/{MANIFEST}")
    }
}

/// What stands where the output is to appear.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Nothing,
    /// This plan's output, or the beginnings of it.
    Ours,
    Other,
}

fn standing(
    plan: &MergePlan,
    store: &dyn ObjectFolder,
    name: &str,
) -> Result<Standing, SnapshotError> {
    if let Some(report) = manifest_of(plan, store, name)?
        && report.fingerprint == plan.fingerprint
    {
        return Ok(Standing::Ours);
    }
    let taken = if plan.is_file() {
        store
            .stat(name)
            .map_err(|error| failed(store, name)(error))?
            .is_some()
    } else {
        let prefix = format!("{name}/");
        let found = store.list(&prefix);
        !found
            .map_err(|error| failed(store, &prefix)(error))?
            .is_empty()
    };
    Ok(if taken {
        Standing::Other
    } else {
        Standing::Nothing
    })
}

fn manifest_of(
    plan: &MergePlan,
    store: &dyn ObjectFolder,
    name: &str,
) -> Result<Option<MergeReport>, SnapshotError> {
    let key = manifest_key(plan, name);
    let found = store
        .get(&key)
        .map_err(|error| failed(store, &key)(error))?;
    Ok(found.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Removes what stands at the target, weight files first, so that what is left does not load.
fn remove(plan: &MergePlan, store: &dyn ObjectFolder, name: &str) -> Result<(), SnapshotError> {
    let mut names = if plan.is_file() {
        vec![name.to_owned()]
    } else {
        let prefix = format!("{name}/");
        let found = store.list(&prefix);
        let found = found.map_err(|error| failed(store, &prefix)(error))?;
        found.into_iter().map(|file| file.name).collect()
    };
    names.sort_by_key(|name| !name.ends_with(".safetensors"));
    for name in names {
        store
            .delete(&name)
            .map_err(|error| failed(store, &name)(error))?;
    }
    Ok(())
}

/// The report of an output that this very plan has published whole.
fn published(
    plan: &MergePlan,
    store: &dyn ObjectFolder,
) -> Result<Option<MergeReport>, SnapshotError> {
    let name = name_of(plan)?;
    if standing(plan, store, &name)? == Standing::Other && !plan.settings.overwrite {
        return Err(SnapshotError::Exists {
            path: plan.target.display().to_string(),
        });
    }
    let Some(report) = manifest_of(plan, store, &name)? else {
        return Ok(None);
    };
    if report.fingerprint != plan.fingerprint {
        return Ok(None);
    }
    for names in Stage::objects(plan, &name) {
        for (name, shard) in names.iter().zip(&plan.shards) {
            let found = store
                .stat(name)
                .map_err(|error| failed(store, name)(error))?;
            if found.is_none_or(|found| found.size != shard.bytes) {
                return Ok(None);
            }
        }
    }
    Ok(Some(MergeReport {
        target: plan.target.display().to_string(),
        warnings: plan.warnings.clone(),
        ..report
    }))
}

/// Runs a merge onto the plan's store; goes on where another run of the same plan stopped.
pub(crate) fn merge(
    plan: &MergePlan,
    store: &dyn ObjectFolder,
    on_progress: OnProgress<'_>,
) -> Result<MergeReport, SnapshotError> {
    let started = Instant::now();
    if let Some(report) = published(plan, store)? {
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
        collected: Mutex::new((
            Collector::new(plan),
            vec![Vec::new(); stage.groups.len()],
        )),
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
