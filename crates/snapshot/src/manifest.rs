//! What a merge leaves beside its weights, and what it reports.

use crate::collect::Collected;
use crate::digest::{self, Digest};
use crate::dtype::DType;
use crate::error::SnapshotError;
use crate::plan::MergePlan;
use crate::settings::TensorRule;
use crate::staging;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One input of a merge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputRecord {
    /// Where it was.
    pub location: String,
    /// Its content digest; `None` when digests were not wanted or not all of its tensors were read.
    pub digest: Option<Digest>,
    /// Its weight files with their lengths in bytes.
    pub files: BTreeMap<String, u64>,
}

/// One output of a merge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputRecord {
    /// Folder under the target, empty for the target itself.
    pub folder: String,
    /// The exact weight of each input, as `k/K`.
    pub weights: Vec<String>,
    /// Its content digest.
    pub digest: Digest,
    /// Content digest of each tensor.
    pub tensors: BTreeMap<String, Digest>,
}

/// What was merged, and how. The manifest file holds the same without the last five fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// `pmill-merge/2`; in `pmill-merge/1` digests were BLAKE3 and had no name before them.
    pub format: String,
    /// Name and version of the program.
    pub program: String,
    /// Fingerprint of the plan.
    pub fingerprint: Digest,
    /// The inputs in their order.
    pub inputs: Vec<InputRecord>,
    /// The outputs.
    pub outputs: Vec<OutputRecord>,
    /// The rules given.
    pub rules: Vec<TensorRule>,
    /// The output type asked for.
    pub output_dtype: Option<DType>,
    /// Tensors to recalibrate on data.
    pub recalibrate: Vec<String>,
    /// Tensors left out.
    pub skipped: Vec<String>,
    /// NaN and infinite values in the inputs, which were allowed.
    pub nonfinite_values: u64,
    /// Elements that needed whole-number arithmetic.
    pub exact_elements: u64,
    /// Where the output is.
    #[serde(default)]
    pub target: String,
    /// What the user should know.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Bytes of tensor data read and written.
    #[serde(default)]
    pub bytes: (u64, u64),
    /// Slices that an earlier run had finished.
    #[serde(default)]
    pub resumed_slices: usize,
    /// Wall time; 0 when the output was there already.
    #[serde(default)]
    pub seconds: f64,
}

pub(crate) fn report(plan: &MergePlan, collected: &Collected) -> MergeReport {
    let algorithm = plan.settings.digests.of_outputs();
    let named = || plan.tensors.iter().zip(&collected.tensors);
    let inputs = plan.inputs.iter().enumerate().map(|(position, input)| {
        let tensors: Option<Vec<_>> = named()
            .map(|(planned, digests)| {
                let (_, tensor) = input.tensor(&planned.info.name)?;
                let shape = tensor.shape.as_slice();
                Some((
                    tensor.name.as_str(),
                    tensor.dtype,
                    shape,
                    digests.inputs[position]?,
                ))
            })
            .collect();
        // Tensors that were left out were not read, so there is no digest of the whole.
        let digest = tensors
            .filter(|tensors| tensors.len() == input.tensors().count())
            .map(|tensors| digest::of_tensors(tensors.into_iter(), algorithm));
        let sizes = input
            .shards
            .iter()
            .map(|shard| (shard.file.name.clone(), shard.file.size));
        InputRecord {
            location: input.location(),
            digest,
            files: sizes.collect(),
        }
    });
    let inputs = inputs.collect();
    let outputs = plan.outputs.iter().enumerate().map(|(position, output)| {
        let total = output.row.total();
        let tensors = named().map(|(planned, digests)| {
            let info = &planned.info;
            (
                info.name.as_str(),
                info.dtype,
                info.shape.as_slice(),
                digests.outputs[position],
            )
        });
        OutputRecord {
            folder: output.folder.clone(),
            weights: output
                .row
                .numbers()
                .iter()
                .map(|number| format!("{number}/{total}"))
                .collect(),
            tensors: tensors
                .clone()
                .map(|(name, _, _, digest)| (name.to_owned(), digest))
                .collect(),
            digest: digest::of_tensors(tensors, algorithm),
        }
    });
    let outputs = outputs.collect();
    MergeReport {
        format: "pmill-merge/2".to_owned(),
        program: concat!("pmill ", env!("CARGO_PKG_VERSION")).to_owned(),
        fingerprint: plan.fingerprint,
        inputs,
        outputs,
        rules: plan.settings.rules.clone(),
        output_dtype: plan.settings.output_dtype,
        recalibrate: plan.recalibrate.clone(),
        skipped: plan.skipped.clone(),
        nonfinite_values: collected.nonfinite,
        exact_elements: collected.exact,
        target: plan.target.display().to_string(),
        warnings: plan.warnings.clone(),
        bytes: (
            plan.input_bytes(),
            plan.output_bytes() * plan.outputs.len() as u64,
        ),
        resumed_slices: 0,
        seconds: 0.0,
    }
}

/// The manifest: the report without what differs between two runs of one plan.
pub(crate) fn manifest(plan: &MergePlan, report: &MergeReport) -> Result<Vec<u8>, SnapshotError> {
    let internal = |error: serde_json::Error| SnapshotError::Internal {
        what: error.to_string(),
    };
    let mut value = serde_json::to_value(report).map_err(internal)?;
    if let Some(object) = value.as_object_mut() {
        for key in ["target", "warnings", "bytes", "resumed_slices", "seconds"] {
            object.remove(key);
        }
        object.insert(
            "low_rank".to_owned(),
            serde_json::to_value(plan.settings.low_rank).map_err(internal)?,
        );
    }
    Ok(crate::layout::pretty(&value))
}

/// The report of an output that this very plan has published already.
pub(crate) fn published(plan: &MergePlan) -> Result<Option<MergeReport>, SnapshotError> {
    if !staging::is_taken(&plan.target) {
        return Ok(None);
    }
    let path = staging::manifest_path(plan);
    let found = std::fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<MergeReport>(&bytes).ok());
    match found {
        Some(report)
            if report.fingerprint == plan.fingerprint
                && plan.shards.iter().all(|shard| whole(plan, shard)) =>
        {
            Ok(Some(MergeReport {
                target: plan.target.display().to_string(),
                warnings: plan.warnings.clone(),
                ..report
            }))
        }
        _ if plan.settings.overwrite => Ok(None),
        _ => Err(SnapshotError::Exists {
            path: plan.target.display().to_string(),
        }),
    }
}

fn whole(plan: &MergePlan, shard: &crate::layout::PlannedShard) -> bool {
    plan.outputs.iter().all(|output| {
        let path = if plan.is_file() {
            plan.target.clone()
        } else {
            plan.target.join(&output.folder).join(&shard.file)
        };
        std::fs::metadata(path).is_ok_and(|meta| meta.len() == shard.bytes)
    })
}
