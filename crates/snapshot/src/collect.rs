//! Gathers the records of slices, which come in any order, into digests of tensors.
//!
//! Held: two digests for each tensor and input or output, and the records of the tensor at hand and of slices
//! that came early; never those of the whole model.

use crate::digest::{self, Digest};
use crate::error::SnapshotError;
use crate::plan::{Kind, MergePlan};
use crate::staging::Record;
use std::collections::BTreeMap;

/// The digests of one output tensor and of the inputs' tensors behind it.
#[derive(Debug, Clone, Default)]
pub(crate) struct TensorDigests {
    /// `None` for an input whose bytes were not read, or when digests are not wanted.
    pub inputs: Vec<Option<Digest>>,
    pub outputs: Vec<Digest>,
}

/// What all slices together say.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// In the order of the plan's tensors.
    pub tensors: Vec<TensorDigests>,
    pub nonfinite: u64,
    pub exact: u64,
}

pub(crate) struct Collector<'a> {
    plan: &'a MergePlan,
    next: usize,
    waiting: BTreeMap<usize, Record>,
    /// Records of the tensor that the next slice belongs to.
    current: Vec<Record>,
    collected: Collected,
}

impl<'a> Collector<'a> {
    pub fn new(plan: &'a MergePlan) -> Self {
        // A tensor without elements has no slice; its digest is that of no bytes.
        let of_nothing = |algorithm| digest::of_slices(&[], algorithm);
        let digests = plan.settings.digests;
        let empty = TensorDigests {
            inputs: vec![digests.of_inputs().map(of_nothing); plan.inputs.len()],
            outputs: vec![of_nothing(digests.of_outputs()); plan.outputs.len()],
        };
        let collected = Collected {
            tensors: vec![empty; plan.tensors.len()],
            ..Collected::default()
        };
        Self {
            plan,
            next: 0,
            waiting: BTreeMap::new(),
            current: Vec::new(),
            collected,
        }
    }

    pub fn put(&mut self, record: Record) {
        self.waiting.insert(record.slice, record);
        while let Some(record) = self.waiting.remove(&self.next) {
            let tensor = self.plan.slices[self.next].tensor;
            self.collected.nonfinite += record.nonfinite;
            self.collected.exact += record.exact;
            self.current.push(record);
            self.next += 1;
            let following = self.plan.slices.get(self.next).map(|slice| slice.tensor);
            if following != Some(tensor) {
                self.collected.tensors[tensor] = self.close(tensor);
                self.current.clear();
            }
        }
    }

    fn close(&self, tensor: usize) -> TensorDigests {
        let algorithm = self.plan.settings.digests.of_outputs();
        let of = |slices: &[Digest]| match (&self.plan.tensors[tensor].kind, slices) {
            // A stacked tensor is one slice of any length, whose record holds digests of whole tensors.
            (Kind::Stack { .. }, [whole]) => *whole,
            _ => digest::of_slices(slices, algorithm),
        };
        let input = |position: usize| {
            let slices: Option<Vec<Digest>> = self
                .current
                .iter()
                .map(|record| record.inputs[position])
                .collect();
            slices.map(|slices| of(&slices))
        };
        let output = |position: usize| {
            let slice = |record: &Record| {
                let whole = record.whole.get(position);
                *whole.unwrap_or(&record.outputs[position])
            };
            of(&self.current.iter().map(slice).collect::<Vec<_>>())
        };
        TensorDigests {
            inputs: (0..self.plan.inputs.len()).map(input).collect(),
            outputs: (0..self.plan.outputs.len()).map(output).collect(),
        }
    }

    /// What was collected, when every slice has come.
    pub fn finish(self) -> Result<Collected, SnapshotError> {
        if self.next != self.plan.slices.len() {
            return Err(SnapshotError::Internal {
                what: format!("slice {} was neither done nor failed", self.next),
            });
        }
        Ok(self.collected)
    }
}
