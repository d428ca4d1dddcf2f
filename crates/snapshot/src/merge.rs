//! Runs a plan: reads slices of all inputs, averages them, and writes the slices of the outputs.
//!
//! Each worker reads a piece of a slice from every input, averages it while it is in the processor's cache and
//! writes it; workers share nothing but the number of the next slice. Held: for each worker a piece of every
//! input and output.

use crate::digest::{self, Digest};
use crate::dtype::{DType, Float};
use crate::error::SnapshotError;
use crate::kernel::{BLOCK, Kernel, Lane, Seen, Weights};
use crate::manifest::{self, MergeReport};
use crate::plan::{Kind, MergePlan, Slice};
use crate::settings::thread_count;
use crate::staging::{self, Record, Staging};
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
    let started = Instant::now();
    if let Some(report) = manifest::published(plan)? {
        return Ok(report);
    }
    let staging = Staging::open(plan)?;
    let run = Run {
        plan,
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
        records: Mutex::new(vec![None; plan.slices.len()]),
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
        records,
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
    let records: Option<Vec<Record>> = records
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .into_iter()
        .collect();
    let records = records.ok_or_else(|| SnapshotError::Internal {
        what: "a slice was neither done nor failed".to_owned(),
    })?;
    let mut report = manifest::report(plan, &records);
    let text = manifest::manifest(plan, &report)?;
    staging.publish(plan, &text)?;
    report.resumed_slices = resumed.into_inner();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

struct Run<'a> {
    plan: &'a MergePlan,
    staging: &'a Staging,
    weights: Vec<Weights>,
    next: AtomicUsize,
    /// No slice after this one is begun: it failed. Slices are begun in order, so the earliest failure is
    /// found whatever the threads do.
    last: AtomicUsize,
    stopped: AtomicBool,
    done_bytes: AtomicU64,
    resumed: AtomicUsize,
    records: Mutex<Vec<Option<Record>>>,
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
                    self.records.lock().unwrap_or_else(PoisonError::into_inner)[index] =
                        Some(record);
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
        if let Some(record) = self.staging.done.get(&slice.index)
            && self
                .staging
                .verify(self.plan, slice, record, &mut worker.copy)?
        {
            self.resumed.fetch_add(1, Ordering::Relaxed);
            return Ok(record.clone());
        }
        let record = worker.slice(slice, &mut |output, at, bytes| {
            self.staging.write(self.plan, output, slice, at, bytes)
        })?;
        self.staging.note(&record)?;
        Ok(record)
    }
}

type Sink<'a> = &'a mut dyn FnMut(usize, u64, &[u8]) -> Result<(), SnapshotError>;

/// One thread's buffers.
struct Worker<'a> {
    plan: &'a MergePlan,
    weights: &'a [Weights],
    kernel: Kernel,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
    copy: Vec<u8>,
    /// Bytes that all buffers of this worker may take.
    budget: usize,
}

impl<'a> Worker<'a> {
    fn new(plan: &'a MergePlan, weights: &'a [Weights], workers: usize) -> Self {
        Self {
            plan,
            weights,
            kernel: Kernel::new(),
            inputs: vec![Vec::new(); plan.inputs.len()],
            outputs: vec![Vec::new(); plan.outputs.len()],
            copy: Vec::new(),
            budget: usize::try_from(plan.settings.memory_limit_bytes).unwrap_or(usize::MAX)
                / workers,
        }
    }

    fn slice(&mut self, slice: &Slice, sink: Sink<'_>) -> Result<Record, SnapshotError> {
        match self.plan.tensors[slice.tensor].kind {
            Kind::Mean(float) => self.mean(slice, float, sink),
            Kind::Copy(input) => self.copy(slice, input, sink),
            Kind::Stack {
                axis,
                weighted,
                float,
            } => self.stack(slice, axis, weighted, float, sink),
        }
    }

    fn read_bytes(&self) -> usize {
        self.plan
            .inputs
            .iter()
            .map(|input| input.source().preferred_read_bytes())
            .max()
            .unwrap_or(1 << 18)
    }

    fn mean(&mut self, slice: &Slice, out: Float, sink: Sink<'_>) -> Result<Record, SnapshotError> {
        let plan = self.plan;
        let info = &plan.tensors[slice.tensor].info;
        let floats: Vec<Float> = plan
            .inputs
            .iter()
            .map(|input| {
                input
                    .tensor(&info.name)
                    .and_then(|(_, tensor)| tensor.dtype.float())
            })
            .collect::<Option<_>>()
            .ok_or_else(|| SnapshotError::Internal {
                what: format!("`{}` was planned as a float", info.name),
            })?;
        let count = slice.bytes / out.bytes() as u64;
        let first = slice.start / out.bytes() as u64;
        let widest = floats.iter().map(|float| float.bytes()).max().unwrap_or(8);
        let element_bytes: usize = floats.iter().map(|float| float.bytes()).sum::<usize>()
            + plan.outputs.len() * out.bytes();
        // A multiple of the block, so that blocks are the same whatever the buffers are.
        let step = (self.read_bytes() / widest).min(self.budget / element_bytes) / BLOCK * BLOCK;
        let step = step.max(BLOCK);
        // An output that is one input unchanged is copied, so that even the bits of a NaN stay.
        let copies: Vec<Option<usize>> = plan
            .outputs
            .iter()
            .map(|output| output.row.only().filter(|input| floats[*input] == out))
            .collect();
        let averaged: Vec<usize> = (0..plan.outputs.len())
            .filter(|output| copies[*output].is_none())
            .collect();

        let mut input_hashers: Vec<_> = plan.inputs.iter().map(|_| blake3::Hasher::new()).collect();
        let mut output_hashers: Vec<_> =
            plan.outputs.iter().map(|_| blake3::Hasher::new()).collect();
        let mut record = Record {
            slice: slice.index,
            inputs: Vec::new(),
            outputs: Vec::new(),
            whole: Vec::new(),
            nonfinite: 0,
            exact: 0,
        };
        let mut at = 0_u64;
        while at < count {
            let elements = step.min(usize::try_from(count - at).unwrap_or(step));
            for ((input, buffer), (float, hasher)) in plan
                .inputs
                .iter()
                .zip(&mut self.inputs)
                .zip(floats.iter().zip(&mut input_hashers))
            {
                buffer.resize(step * float.bytes(), 0);
                let buffer = &mut buffer[..elements * float.bytes()];
                input.read_tensor(&info.name, (first + at) * float.bytes() as u64, buffer)?;
                if plan.settings.digests {
                    hasher.update(buffer);
                }
            }
            let lanes: Vec<Lane<'_>> = self
                .inputs
                .iter()
                .zip(&floats)
                .map(|(buffer, float)| Lane {
                    bytes: &buffer[..elements * float.bytes()],
                    float: *float,
                })
                .collect();
            let mut views = Vec::with_capacity(averaged.len());
            let mut weights = Vec::with_capacity(averaged.len());
            for (output, buffer) in self.outputs.iter_mut().enumerate() {
                if copies[output].is_none() {
                    buffer.resize(step * out.bytes(), 0);
                    views.push(&mut buffer[..elements * out.bytes()]);
                    weights.push(&self.weights[output]);
                }
            }
            let seen = self
                .kernel
                .mean(&lanes, &weights, out, elements, &mut views);
            self.judge(&seen, slice, first + at, info.dtype)?;
            record.nonfinite += seen.nonfinite_count;
            record.exact += seen.exact_count;
            for (output, hasher) in output_hashers.iter_mut().enumerate() {
                let bytes = match copies[output] {
                    Some(input) => lanes[input].bytes,
                    None => &self.outputs[output][..elements * out.bytes()],
                };
                hasher.update(bytes);
                sink(output, at * out.bytes() as u64, bytes)?;
            }
            at += elements as u64;
        }
        let finish = |hasher: &blake3::Hasher| Digest(*hasher.finalize().as_bytes());
        record.inputs = input_hashers
            .iter()
            .map(|hasher| plan.settings.digests.then(|| finish(hasher)))
            .collect();
        record.outputs = output_hashers.iter().map(finish).collect();
        Ok(record)
    }

    /// Refuses what the settings do not allow; `offset` is the run's first element in the tensor.
    fn judge(
        &self,
        seen: &Seen,
        slice: &Slice,
        offset: u64,
        dtype: DType,
    ) -> Result<(), SnapshotError> {
        if self.plan.settings.allow_nonfinite {
            return Ok(());
        }
        let name = &self.plan.tensors[slice.tensor].info.name;
        let lanes = dtype.lanes().map_or(1, |(_, lanes)| lanes);
        if let Some((element, input)) = seen.nonfinite {
            let snapshot = &self.plan.inputs[input];
            let index = offset + element as u64;
            return Err(SnapshotError::NonFinite {
                snapshot: snapshot.location(),
                tensor: name.clone(),
                index: index / lanes,
                value: nonfinite_value(snapshot, name, index)?,
            });
        }
        if let Some(element) = seen.overflow {
            let index = (offset + element as u64) / lanes;
            return Err(SnapshotError::Overflow {
                tensor: name.clone(),
                index,
                dtype,
            });
        }
        Ok(())
    }

    fn copy(
        &mut self,
        slice: &Slice,
        from: Option<usize>,
        sink: Sink<'_>,
    ) -> Result<Record, SnapshotError> {
        let plan = self.plan;
        let name = &plan.tensors[slice.tensor].info.name;
        let mut record = Record {
            slice: slice.index,
            inputs: vec![None; plan.inputs.len()],
            outputs: vec![Digest([0; 32]); plan.outputs.len()],
            whole: Vec::new(),
            nonfinite: 0,
            exact: 0,
        };
        let source_of = |output: usize| from.unwrap_or(plan.outputs[output].own_input);
        let piece = self.read_bytes().min(self.budget).max(1 << 12);
        for (source, input) in plan.inputs.iter().enumerate() {
            let readers: Vec<usize> = (0..plan.outputs.len())
                .filter(|output| source_of(*output) == source)
                .collect();
            if readers.is_empty() {
                continue;
            }
            self.copy.resize(piece.max(self.copy.len()), 0);
            let mut hasher = blake3::Hasher::new();
            let mut at = 0;
            while at < slice.bytes {
                let length = piece.min(usize::try_from(slice.bytes - at).unwrap_or(piece));
                let buffer = &mut self.copy[..length];
                input.read_tensor(name, slice.start + at, buffer)?;
                hasher.update(buffer);
                for output in &readers {
                    sink(*output, at, buffer)?;
                }
                at += length as u64;
            }
            let digest = Digest(*hasher.finalize().as_bytes());
            record.inputs[source] = plan.settings.digests.then_some(digest);
            readers
                .iter()
                .for_each(|output| record.outputs[*output] = digest);
        }
        // Without a rule the inputs agree, as the plan has checked, so one digest is that of all.
        if from.is_none() && plan.settings.digests {
            let digest = record.inputs.iter().flatten().next().copied();
            record
                .inputs
                .iter_mut()
                .for_each(|input| *input = input.or(digest));
        }
        Ok(record)
    }

    /// Adapters are small, so their factors are held whole.
    fn stack(
        &mut self,
        slice: &Slice,
        axis: usize,
        weighted: bool,
        out: Float,
        sink: Sink<'_>,
    ) -> Result<Record, SnapshotError> {
        let plan = self.plan;
        let info = &plan.tensors[slice.tensor].info;
        let mut record = Record {
            slice: slice.index,
            inputs: Vec::new(),
            outputs: Vec::new(),
            whole: Vec::new(),
            nonfinite: 0,
            exact: 0,
        };
        let mut blocks = Vec::new();
        for input in &plan.inputs {
            let (_, tensor) = input
                .tensor(&info.name)
                .ok_or_else(|| SnapshotError::Internal {
                    what: format!("`{}` was planned", info.name),
                })?;
            let mut bytes = vec![0; usize::try_from(tensor.bytes()).unwrap_or(usize::MAX)];
            input.read_tensor(&info.name, 0, &mut bytes)?;
            record.inputs.push(
                plan.settings
                    .digests
                    .then(|| digest::of_tensor(&bytes, tensor.dtype)),
            );
            let float = tensor.dtype.float().unwrap_or(out);
            blocks.push((bytes, float, tensor.shape.clone()));
        }
        for (output, planned) in plan.outputs.iter().enumerate() {
            let mut scaled = Vec::new();
            for (input, (bytes, float, shape)) in blocks.iter().enumerate() {
                let elements = bytes.len() / float.bytes();
                let mut block = vec![0; elements * out.bytes()];
                let weights = if weighted {
                    Weights::one_of(&planned.row, input)
                } else {
                    Weights::new(&crate::weights::Row::uniform(1))
                };
                let lane = Lane {
                    bytes,
                    float: *float,
                };
                let seen = self
                    .kernel
                    .mean(&[lane], &[&weights], out, elements, &mut [&mut block]);
                if let (Some((element, _)), false) = (seen.nonfinite, plan.settings.allow_nonfinite)
                {
                    let snapshot = &plan.inputs[input];
                    return Err(SnapshotError::NonFinite {
                        snapshot: snapshot.location(),
                        tensor: info.name.clone(),
                        index: element as u64,
                        value: nonfinite_value(snapshot, &info.name, element as u64)?,
                    });
                }
                record.nonfinite += seen.nonfinite_count;
                record.exact += seen.exact_count;
                scaled.push((block, shape[1] as usize * out.bytes()));
            }
            let mut whole = Vec::with_capacity(usize::try_from(slice.bytes).unwrap_or(0));
            if axis == 0 {
                scaled
                    .iter()
                    .for_each(|(block, _)| whole.extend_from_slice(block));
            } else {
                for row in 0..info.shape[0] as usize {
                    for (block, width) in &scaled {
                        whole.extend_from_slice(&block[row * width..(row + 1) * width]);
                    }
                }
            }
            record.outputs.push(digest::of(&whole));
            record.whole.push(digest::of_tensor(&whole, info.dtype));
            sink(output, 0, &whole)?;
        }
        Ok(record)
    }
}

/// Reads one element again to say what it is.
fn nonfinite_value(
    snapshot: &crate::snapshot::Snapshot,
    name: &str,
    index: u64,
) -> Result<&'static str, SnapshotError> {
    let float = snapshot
        .tensor(name)
        .and_then(|(_, tensor)| tensor.dtype.float());
    let float = float.ok_or_else(|| SnapshotError::Internal {
        what: format!("`{name}` is no float"),
    })?;
    let mut bytes = [0; 8];
    snapshot.read_tensor(
        name,
        index * float.bytes() as u64,
        &mut bytes[..float.bytes()],
    )?;
    Ok(
        match crate::exact::decode(float, u64::from_le_bytes(bytes)) {
            crate::exact::Value::Infinite { negative: true } => "-Inf",
            crate::exact::Value::Infinite { negative: false } => "+Inf",
            _ => "NaN",
        },
    )
}

/// Removes what an unfinished merge into this target left behind.
///
/// # Errors
/// [`SnapshotError::Busy`] when another process is at work there.
pub fn discard_staging(target: &std::path::Path) -> Result<(), SnapshotError> {
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
