//! How far snapshots are from each other and from their mean, in one pass over their data.
//!
//! In: N snapshots with the same float tensors. Out: a [`DistanceReport`]. With the mean `c` and the deviations
//! `d_i = x_i - c` of every element, the pass sums `d_i * d_j`, `c * d_i` and `c * c`; everything else follows
//! from these. Distances come from deviations and not from raw products, so snapshots that nearly agree do
//! not lose their digits. Held: for each thread a piece of every input and a block of deviations, and
//! `N^2` sums for each tensor.
//!
//! The sums do not depend on threads: each slice is summed in a fixed order and slices are added in order.

use crate::digest::SLICE_ELEMENTS;
use crate::distance_report::{self, DistanceReport};
use crate::dtype::Float;
use crate::error::{Problem, SnapshotError};
use crate::exact::{Value, decode, read_bits};
use crate::merge::{OnProgress, Progress};
use crate::settings::thread_count;
use crate::snapshot::Snapshot;
use crate::source::SnapshotPath;
use crate::vector::{self, Lane};
use pulp::Arch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Settings of [`distance`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistanceSettings {
    /// Only tensors that this glob matches; `None` means all.
    pub tensors: Option<String>,
    /// Threads; `None` is one per processor.
    pub threads: Option<usize>,
}

/// Sums over some elements.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sums {
    pub elements: u64,
    /// `d_i * d_j` for `i <= j`, row by row.
    pub deviations: Vec<f64>,
    /// `c * d_i`.
    pub mean_deviation: Vec<f64>,
    /// `c * c`.
    pub mean_square: f64,
    /// Elements in which i and j have the same sign, for `i < j`, row by row; zero is a sign of its own.
    pub same_sign: Vec<u64>,
    /// Elements in which all have the same sign.
    pub unanimous: u64,
}

impl Sums {
    pub fn new(inputs: usize) -> Self {
        Self {
            elements: 0,
            deviations: vec![0.0; inputs * (inputs + 1) / 2],
            mean_deviation: vec![0.0; inputs],
            mean_square: 0.0,
            same_sign: vec![0; inputs * (inputs - 1) / 2],
            unanimous: 0,
        }
    }

    pub fn add(&mut self, other: &Sums) {
        self.elements += other.elements;
        self.deviations
            .iter_mut()
            .zip(&other.deviations)
            .for_each(|(sum, part)| *sum += part);
        self.mean_deviation
            .iter_mut()
            .zip(&other.mean_deviation)
            .for_each(|(sum, part)| *sum += part);
        self.mean_square += other.mean_square;
        self.same_sign
            .iter_mut()
            .zip(&other.same_sign)
            .for_each(|(sum, part)| *sum += part);
        self.unanimous += other.unanimous;
    }
}

/// Compares snapshots.
///
/// # Errors
/// Fewer than two snapshots, missing tensors or shapes that differ (by name), NaN or infinity (with tensor
/// and index), unreadable files.
pub fn distance(
    paths: &[SnapshotPath],
    settings: &DistanceSettings,
    on_progress: OnProgress<'_>,
) -> Result<DistanceReport, SnapshotError> {
    if paths.len() < 2 {
        return Err(SnapshotError::Settings {
            what: format!(
                "a distance needs two snapshots or more, {} given",
                paths.len()
            ),
        });
    }
    let inputs = paths
        .iter()
        .map(Snapshot::open)
        .collect::<Result<Vec<_>, _>>()?;
    let pattern = match &settings.tensors {
        Some(glob) => Some(
            glob::Pattern::new(glob).map_err(|error| SnapshotError::Settings {
                what: format!("`{glob}` is not a glob: {error}"),
            })?,
        ),
        None => None,
    };
    let (tensors, skipped) = comparable(&inputs, |name| {
        pattern.as_ref().is_none_or(|pattern| pattern.matches(name))
    })?;
    let slices: Vec<(usize, u64)> = tensors
        .iter()
        .enumerate()
        .flat_map(|(tensor, (_, count))| {
            (0..count.div_ceil(SLICE_ELEMENTS)).map(move |slice| (tensor, slice * SLICE_ELEMENTS))
        })
        .collect();
    let total_bytes = tensors.iter().map(|(_, count)| count).sum::<u64>();

    let next = AtomicUsize::new(0);
    let done = AtomicU64::new(0);
    let stopped = AtomicBool::new(false);
    let fold = Mutex::new(Fold {
        next: 0,
        waiting: BTreeMap::new(),
        sums: tensors.iter().map(|_| Sums::new(inputs.len())).collect(),
    });
    let failure: Mutex<Option<(usize, SnapshotError)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..thread_count(settings.threads).min(slices.len().max(1)) {
            scope.spawn(|| {
                let mut worker = Worker::new(&inputs);
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(&(tensor, first)), false) =
                        (slices.get(index), stopped.load(Ordering::Acquire))
                    else {
                        return;
                    };
                    let (name, count) = &tensors[tensor];
                    let length = SLICE_ELEMENTS.min(count - first);
                    match worker.slice(name, first, length) {
                        Ok(sums) => {
                            fold.lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .put(index, tensor, sums);
                            let done_bytes = done.fetch_add(length, Ordering::Relaxed) + length;
                            if on_progress(Progress {
                                done_bytes,
                                total_bytes,
                            }) {
                                continue;
                            }
                            failure
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .get_or_insert((usize::MAX, SnapshotError::Stopped));
                        }
                        Err(error) => {
                            let mut failure =
                                failure.lock().unwrap_or_else(PoisonError::into_inner);
                            if failure.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
                                *failure = Some((index, error));
                            }
                        }
                    }
                    // Slices begin in order, so what began before this one still ends and may fail earlier.
                    stopped.store(true, Ordering::Release);
                    return;
                }
            });
        }
    });
    if let Some((_, error)) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let sums = fold
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .sums;
    let named = tensors
        .iter()
        .map(|(name, _)| {
            (
                name.clone(),
                inputs[0]
                    .tensor(name)
                    .map(|(_, tensor)| tensor.shape.clone())
                    .unwrap_or_default(),
            )
        })
        .zip(sums)
        .collect();
    Ok(distance_report::build(
        inputs.iter().map(Snapshot::location).collect(),
        named,
        skipped,
    ))
}

/// The float tensors that all inputs share, with their number of floats, and the names of the others.
#[expect(clippy::type_complexity, reason = "two lists")]
fn comparable(
    inputs: &[Snapshot],
    wanted: impl Fn(&str) -> bool,
) -> Result<(Vec<(String, u64)>, Vec<String>), SnapshotError> {
    let (mut tensors, mut skipped, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    let mut names: Vec<(&Snapshot, &str)> = Vec::new();
    for (position, input) in inputs.iter().enumerate() {
        let new = input.tensors().filter(|tensor| {
            inputs[..position]
                .iter()
                .all(|earlier| earlier.tensor(&tensor.name).is_none())
        });
        names.extend(new.map(|tensor| (input, tensor.name.as_str())));
    }
    for (reference, name) in names.into_iter().filter(|(_, name)| wanted(name)) {
        let Some((_, first)) = reference.tensor(name) else {
            continue;
        };
        let problem_count = problems.len();
        for input in inputs {
            match input.tensor(name) {
                None => problems.push(Problem::Missing {
                    tensor: name.to_owned(),
                    snapshot: input.location(),
                    reference: reference.location(),
                    hint: "; name the tensors to compare or leave a snapshot out",
                }),
                Some((_, tensor)) if tensor.shape != first.shape => problems.push(Problem::Shape {
                    tensor: name.to_owned(),
                    snapshot: input.location(),
                    found: tensor.shape.clone(),
                    reference: reference.location(),
                    expected: first.shape.clone(),
                }),
                Some((_, tensor))
                    if tensor.dtype.lanes().map(|(_, lanes)| lanes)
                        != first.dtype.lanes().map(|(_, lanes)| lanes) =>
                {
                    problems.push(Problem::Type {
                        tensor: name.to_owned(),
                        snapshot: input.location(),
                        found: tensor.dtype,
                        reference: reference.location(),
                        expected: first.dtype,
                    });
                }
                Some(_) => {}
            }
        }
        match first.dtype.lanes() {
            Some((_, lanes)) if problems.len() == problem_count => {
                tensors.push((name.to_owned(), first.elements() * lanes))
            }
            Some(_) => {}
            None => skipped.push(name.to_owned()),
        }
    }
    if !problems.is_empty() {
        return Err(SnapshotError::Refused { problems });
    }
    if tensors.is_empty() {
        return Err(SnapshotError::Settings {
            what: "the snapshots share no float tensor to compare".to_owned(),
        });
    }
    Ok((tensors, skipped))
}

/// Adds the slices in their order, whatever order they come in.
struct Fold {
    next: usize,
    waiting: BTreeMap<usize, (usize, Sums)>,
    sums: Vec<Sums>,
}

impl Fold {
    fn put(&mut self, index: usize, tensor: usize, sums: Sums) {
        self.waiting.insert(index, (tensor, sums));
        while let Some((tensor, sums)) = self.waiting.remove(&self.next) {
            self.sums[tensor].add(&sums);
            self.next += 1;
        }
    }
}

/// Elements of a block of deviations.
const BLOCK: usize = 512;
/// Partial sums of one product, so that the order of additions is the same for every vector width.
const PARTS: usize = 8;

struct Worker<'a> {
    inputs: &'a [Snapshot],
    arch: Arch,
    buffers: Vec<Vec<u8>>,
    /// One block of each input: values, then deviations.
    values: Vec<f64>,
    signs: Vec<i8>,
    mean: Vec<f64>,
}

impl<'a> Worker<'a> {
    fn new(inputs: &'a [Snapshot]) -> Self {
        Self {
            inputs,
            arch: Arch::new(),
            buffers: vec![Vec::new(); inputs.len()],
            values: vec![0.0; inputs.len() * BLOCK],
            signs: vec![0; inputs.len() * BLOCK],
            mean: vec![0.0; BLOCK],
        }
    }

    fn slice(&mut self, name: &str, first: u64, count: u64) -> Result<Sums, SnapshotError> {
        let inputs = self.inputs;
        let mut sums = Sums::new(inputs.len());
        // A piece of every input at a time, within 32 MiB for each thread.
        let step = ((32 << 20) / (8 * inputs.len())).clamp(BLOCK, 1 << 16) / BLOCK * BLOCK;
        let floats: Vec<Float> = inputs
            .iter()
            .map(|input| {
                input
                    .tensor(name)
                    .and_then(|(_, tensor)| tensor.dtype.float())
            })
            .collect::<Option<_>>()
            .ok_or_else(|| SnapshotError::Internal {
                what: format!("`{name}` is no float tensor"),
            })?;
        let mut at = 0;
        while at < count {
            let elements = step.min((count - at) as usize);
            for ((input, buffer), float) in inputs.iter().zip(&mut self.buffers).zip(&floats) {
                buffer.resize(step * float.bytes(), 0);
                let bytes = &mut buffer[..elements * float.bytes()];
                input.read_tensor(name, (first + at) * float.bytes() as u64, bytes)?;
                if vector::has_nonfinite(self.arch, *float, bytes) {
                    return Err(nonfinite(input, name, *float, first + at, bytes));
                }
            }
            for start in (0..elements).step_by(BLOCK) {
                let length = BLOCK.min(elements - start);
                // The rest of the last block counts as zeros, which add nothing to any product.
                self.values.fill(0.0);
                for (position, float) in floats.iter().enumerate() {
                    let lane = Lane {
                        bytes: &self.buffers[position],
                        float: *float,
                    };
                    let block = &mut self.values[position * BLOCK..position * BLOCK + length];
                    vector::decode_into(self.arch, lane, start, block);
                }
                let finite = self.arch.dispatch(Accumulate {
                    values: &mut self.values,
                    signs: &mut self.signs,
                    mean: &mut self.mean,
                    inputs: inputs.len(),
                    length,
                    sums: &mut sums,
                });
                if !finite {
                    return Err(SnapshotError::Settings {
                        what: format!(
                            "the values of `{name}` are too large: their squares are beyond a double"
                        ),
                    });
                }
            }
            at += elements as u64;
        }
        sums.elements = count;
        Ok(sums)
    }
}

fn nonfinite(
    input: &Snapshot,
    name: &str,
    float: Float,
    offset: u64,
    bytes: &[u8],
) -> SnapshotError {
    let lanes = input
        .tensor(name)
        .and_then(|(_, tensor)| tensor.dtype.lanes())
        .map_or(1, |(_, lanes)| lanes);
    for (element, bytes) in bytes.chunks_exact(float.bytes()).enumerate() {
        let value = match decode(float, read_bits(float, bytes)) {
            Value::Finite { .. } => continue,
            Value::Nan => "NaN",
            Value::Infinite { negative: true } => "-Inf",
            Value::Infinite { negative: false } => "+Inf",
        };
        let index = (offset + element as u64) / lanes;
        return SnapshotError::NonFinite {
            snapshot: input.location(),
            tensor: name.to_owned(),
            index,
            value,
        };
    }
    SnapshotError::Internal {
        what: format!("`{name}` was said to hold a value that is not finite"),
    }
}

struct Accumulate<'a> {
    values: &'a mut [f64],
    signs: &'a mut [i8],
    mean: &'a mut [f64],
    inputs: usize,
    length: usize,
    sums: &'a mut Sums,
}

#[inline(always)]
fn product(a: &[f64], b: &[f64]) -> f64 {
    let mut parts = [0.0; PARTS];
    for (a, b) in a.chunks_exact(PARTS).zip(b.chunks_exact(PARTS)) {
        for part in 0..PARTS {
            parts[part] += a[part] * b[part];
        }
    }
    parts.iter().sum()
}

/// Four products with one left side, which is then read once.
#[inline(always)]
fn four_products(a: &[f64], b: [&[f64]; 4]) -> [f64; 4] {
    let mut parts = [[0.0; PARTS]; 4];
    let [b0, b1, b2, b3] = b.map(|b| b.chunks_exact(PARTS));
    for ((((a, b0), b1), b2), b3) in a.chunks_exact(PARTS).zip(b0).zip(b1).zip(b2).zip(b3) {
        for part in 0..PARTS {
            parts[0][part] += a[part] * b0[part];
            parts[1][part] += a[part] * b1[part];
            parts[2][part] += a[part] * b2[part];
            parts[3][part] += a[part] * b3[part];
        }
    }
    parts.map(|parts| parts.iter().sum())
}

impl pulp::NullaryFnOnce for Accumulate<'_> {
    /// Whether all sums are finite.
    type Output = bool;

    #[inline(always)]
    fn call(self) -> bool {
        let Self {
            values,
            signs,
            mean,
            inputs,
            length,
            sums,
        } = self;
        mean.fill(0.0);
        for (values, signs) in values
            .chunks_exact(BLOCK)
            .zip(signs.chunks_exact_mut(BLOCK))
        {
            for ((mean, value), sign) in mean.iter_mut().zip(values).zip(signs) {
                *mean += value;
                *sign = i8::from(*value > 0.0) - i8::from(*value < 0.0);
            }
        }
        let count = inputs as f64;
        mean.iter_mut().for_each(|mean| *mean /= count);
        for values in values.chunks_exact_mut(BLOCK) {
            values
                .iter_mut()
                .zip(mean.iter())
                .for_each(|(value, mean)| *value -= mean);
        }
        let block = |input: usize| &values[input * BLOCK..(input + 1) * BLOCK];
        sums.mean_square += product(mean, mean);
        let mut place = 0;
        for i in 0..inputs {
            sums.mean_deviation[i] += product(mean, block(i));
            let mut j = i;
            while j < inputs {
                if j + 4 <= inputs {
                    let four = four_products(
                        block(i),
                        [block(j), block(j + 1), block(j + 2), block(j + 3)],
                    );
                    sums.deviations[place..place + 4]
                        .iter_mut()
                        .zip(four)
                        .for_each(|(sum, part)| *sum += part);
                    (j, place) = (j + 4, place + 4);
                } else {
                    sums.deviations[place] += product(block(i), block(j));
                    (j, place) = (j + 1, place + 1);
                }
            }
        }
        let sign = |input: usize| &signs[input * BLOCK..input * BLOCK + length];
        let mut place = 0;
        for i in 0..inputs {
            for j in i + 1..inputs {
                let same: u32 = sign(i)
                    .iter()
                    .zip(sign(j))
                    .map(|(a, b)| u32::from(a == b))
                    .sum();
                sums.same_sign[place] += u64::from(same);
                place += 1;
            }
        }
        let mut differing = [0_i8; BLOCK];
        for input in 1..inputs {
            for ((differing, first), other) in differing.iter_mut().zip(sign(0)).zip(sign(input)) {
                *differing |= first ^ other;
            }
        }
        sums.unanimous += differing[..length]
            .iter()
            .map(|bits| u64::from(*bits == 0))
            .sum::<u64>();
        (sums.mean_square + sums.deviations.iter().sum::<f64>()).is_finite()
    }
}
