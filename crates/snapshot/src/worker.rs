//! Computes one slice of a plan: reads a piece of every input, averages it, hands it on.
//!
//! Held: a piece of every input and output, within the worker's share of the memory limit (a stacked adapter
//! tensor is held whole).

use crate::digest::{self, Digest, Hasher};
use crate::dtype::{DType, Float};
use crate::error::SnapshotError;
use crate::kernel::{BLOCK, Kernel, Seen, Weights};
use crate::plan::{Kind, MergePlan, Slice};
use crate::staging::Record;
use crate::vector::Lane;

pub(crate) type Sink<'a> = &'a mut dyn FnMut(usize, u64, &[u8]) -> Result<(), SnapshotError>;

/// One thread's buffers.
pub(crate) struct Worker<'a> {
    plan: &'a MergePlan,
    weights: &'a [Weights],
    kernel: Kernel,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
    pub copy: Vec<u8>,
    /// Bytes that all buffers of this worker may take.
    budget: usize,
}

impl<'a> Worker<'a> {
    pub fn new(plan: &'a MergePlan, weights: &'a [Weights], workers: usize) -> Self {
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

    pub fn slice(&mut self, slice: &Slice, sink: Sink<'_>) -> Result<Record, SnapshotError> {
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

        let digests = plan.settings.digests;
        let mut input_hashers: Vec<Option<Hasher>> = plan
            .inputs
            .iter()
            .map(|_| digests.of_inputs().map(Hasher::new))
            .collect();
        let mut output_hashers: Vec<Hasher> = plan
            .outputs
            .iter()
            .map(|_| Hasher::new(digests.of_outputs()))
            .collect();
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
                // While the bytes are in the cache that they were copied to.
                if let Some(hasher) = hasher {
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
        record.inputs = input_hashers
            .iter_mut()
            .map(|hasher| hasher.as_mut().map(Hasher::finish))
            .collect();
        record.outputs = output_hashers.iter_mut().map(Hasher::finish).collect();
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
        let algorithm = plan.settings.digests.of_outputs();
        let of_inputs = plan.settings.digests.of_inputs().is_some();
        let mut record = Record {
            slice: slice.index,
            inputs: vec![None; plan.inputs.len()],
            outputs: vec![Digest::zero(algorithm); plan.outputs.len()],
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
            let mut hasher = Hasher::new(algorithm);
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
            let digest = hasher.finish();
            record.inputs[source] = of_inputs.then_some(digest);
            readers
                .iter()
                .for_each(|output| record.outputs[*output] = digest);
        }
        // Without a rule the inputs agree, as the plan has checked, so one digest is that of all.
        if from.is_none() && of_inputs {
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
            let digests = plan.settings.digests.of_inputs();
            record
                .inputs
                .push(digests.map(|algorithm| digest::of_tensor(&bytes, tensor.dtype, algorithm)));
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
                if let (Some(element), false) = (seen.overflow, plan.settings.allow_nonfinite) {
                    return Err(SnapshotError::Overflow {
                        tensor: info.name.clone(),
                        index: element as u64,
                        dtype: info.dtype,
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
            let algorithm = plan.settings.digests.of_outputs();
            record.outputs.push(digest::of(&whole, algorithm));
            record
                .whole
                .push(digest::of_tensor(&whole, info.dtype, algorithm));
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
