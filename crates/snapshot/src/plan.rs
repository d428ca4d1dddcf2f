//! Plans a merge: opens the inputs, checks everything that can be checked before a byte is written, and lays
//! the output out.
//!
//! The plan fixes the slices of work (2^20 elements of one tensor each), so that neither threads nor memory
//! change the result.

use crate::checks;
use crate::digest::{self, Algorithm, Digest};
use crate::dtype::Float;
use crate::error::SnapshotError;
use crate::header::TensorInfo;
use crate::inspect::{InspectSettings, inspect_with};
use crate::layout::{self, PlannedShard};
use crate::lowrank;
use crate::manifest::MergeReport;
use crate::objects::ObjectFolder;
use crate::resolve::Planner;
use crate::settings::{Action, Digests, LowRank, MergeSettings};
use crate::snapshot::Snapshot;
use crate::source::{SnapshotPath, join};
use crate::weights::Row;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the bytes of an output tensor come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The weighted mean of all inputs, in this format.
    Mean(Float),
    /// The bytes of one input; without one, of the output's own input.
    Copy(Option<usize>),
    /// All inputs side by side along an axis, each times its weight when `weighted`.
    Stack {
        axis: usize,
        weighted: bool,
        float: Float,
    },
}

/// One tensor of the output.
#[derive(Debug, Clone)]
pub(crate) struct PlannedTensor {
    /// Name, type, shape, and offsets inside its shard.
    pub info: TensorInfo,
    pub kind: Kind,
    pub shard: usize,
}

/// One output of the plan: a merge has one, a mixing round one for each agent.
#[derive(Debug, Clone)]
pub(crate) struct PlannedOutput {
    /// Folder under the target, empty for the target itself.
    pub folder: String,
    pub row: Row,
    /// The input that copied tensors, config and tokenizer come from.
    pub own_input: usize,
    /// Files written beside the weights, with their content.
    pub side_files: Vec<(String, Vec<u8>)>,
}

/// A piece of work: some elements of one tensor, for all outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Position in the plan.
    pub index: usize,
    pub(crate) tensor: usize,
    /// First byte inside the output tensor, and their number.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

/// A checked merge that has not begun.
#[derive(Debug)]
pub struct MergePlan {
    pub(crate) inputs: Vec<Snapshot>,
    pub(crate) settings: MergeSettings,
    /// The folder or file that is to appear.
    pub(crate) target: PathBuf,
    /// The prefix that holds the target, when it is in an object store.
    pub(crate) store: Option<Arc<dyn ObjectFolder>>,
    /// What the inputs' digests must be; empty when anything will do.
    pub(crate) expected: Vec<Digest>,
    pub(crate) outputs: Vec<PlannedOutput>,
    pub(crate) tensors: Vec<PlannedTensor>,
    pub(crate) shards: Vec<PlannedShard>,
    pub(crate) slices: Vec<Slice>,
    pub(crate) fingerprint: Digest,
    /// What the user should know although it stops nothing.
    pub warnings: Vec<String>,
    /// Tensors to recalibrate on data: running statistics taken from the first input.
    pub recalibrate: Vec<String>,
    /// Tensors left out by a rule or because they repeat a tied one.
    pub skipped: Vec<String>,
}

impl MergePlan {
    /// The inputs, opened.
    #[must_use]
    pub fn inputs(&self) -> &[Snapshot] {
        &self.inputs
    }

    /// What is to appear.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Has the output written to an object store: `store` is the prefix under which the target's last name
    /// appears.
    #[must_use]
    pub fn onto(mut self, store: Arc<dyn ObjectFolder>) -> Self {
        self.store = Some(store);
        self
    }

    /// Has the merge refuse inputs with other digests than these, one for each input, before anything appears.
    #[must_use]
    pub fn expecting(mut self, digests: Vec<Digest>) -> Self {
        self.expected = digests;
        self
    }

    /// Compares the inputs' digests with those that were expected; what the merge did not digest is read again.
    pub(crate) fn check_expected(&self, report: &MergeReport) -> Result<(), SnapshotError> {
        for ((expected, input), record) in
            self.expected.iter().zip(&self.inputs).zip(&report.inputs)
        {
            let same_kind = |digest: &Digest| digest.algorithm() == expected.algorithm();
            let found = match record.digest.filter(same_kind) {
                Some(digest) => digest,
                None => {
                    let settings = InspectSettings {
                        read_data: true,
                        algorithm: expected.algorithm(),
                        threads: self.settings.threads,
                    };
                    let digest = inspect_with(input.path(), settings)?.digest;
                    digest.ok_or_else(|| SnapshotError::Internal {
                        what: "the data was read, but there is no digest".to_owned(),
                    })?
                }
            };
            if found != *expected {
                return Err(SnapshotError::Unexpected {
                    snapshot: input.location(),
                    found: found.to_string(),
                    expected: expected.to_string(),
                });
            }
        }
        Ok(())
    }

    /// The weights of each output, with the folder it goes to (empty for a plain merge).
    pub fn rows(&self) -> impl Iterator<Item = (&str, &Row)> {
        self.outputs
            .iter()
            .map(|output| (output.folder.as_str(), &output.row))
    }

    /// The independent pieces of work; their order does not matter.
    #[must_use]
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// Changes whenever inputs, weights, rules or anything else that the output's bytes depend on does.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// Bytes of tensor data that one output will have.
    #[must_use]
    pub fn output_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.info.bytes()).sum()
    }

    /// Bytes that will be read from the inputs.
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        let size = |input: &Snapshot, name: &str| {
            input.tensor(name).map_or(0, |(_, tensor)| tensor.bytes())
        };
        self.tensors
            .iter()
            .map(|tensor| match tensor.kind {
                Kind::Copy(_) => tensor.info.bytes(),
                _ => self
                    .inputs
                    .iter()
                    .map(|input| size(input, &tensor.info.name))
                    .sum(),
            })
            .sum()
    }

    /// Whether the target is a single file rather than a folder.
    pub(crate) fn is_file(&self) -> bool {
        is_file(&self.target)
    }
}

pub(crate) fn is_file(target: &Path) -> bool {
    target
        .extension()
        .is_some_and(|extension| extension == "safetensors")
}

/// Whether a weight file of an input is the target or lies in it.
fn holds(target: &Path, input: &Snapshot) -> bool {
    // What is not there, or is a URI, is compared as it is written.
    let whole = |path: &Path| {
        std::fs::canonicalize(path)
            .or_else(|_| std::path::absolute(path))
            .unwrap_or_else(|_| path.to_owned())
    };
    let target = whole(target);
    input.shards.iter().any(|shard| {
        let file = join(&input.source().location(), &shard.file.name);
        whole(Path::new(&file)).starts_with(&target)
    })
}

/// Plans the merge of some snapshots into a folder, or into one file when `output` ends in `.safetensors`.
///
/// # Errors
/// Unreadable inputs, contradictory settings, an output that is to be replaced and holds an input, and
/// [`SnapshotError::Refused`] with every problem found.
pub fn plan_merge(
    inputs: &[SnapshotPath],
    output: &Path,
    settings: &MergeSettings,
) -> Result<MergePlan, SnapshotError> {
    let row = settings.weights.row(inputs.len())?;
    let own_input = settings.side_files_from.unwrap_or(0);
    plan_rows(
        inputs,
        output,
        settings,
        vec![(String::new(), row, own_input)],
    )
}

/// Plans several outputs from the same inputs; each input is still read once.
pub(crate) fn plan_rows(
    paths: &[SnapshotPath],
    output: &Path,
    settings: &MergeSettings,
    rows: Vec<(String, Row, usize)>,
) -> Result<MergePlan, SnapshotError> {
    if paths.is_empty() {
        return Err(SnapshotError::Settings {
            what: "no snapshot was given".to_owned(),
        });
    }
    let inputs = paths
        .iter()
        .map(Snapshot::open)
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(dtype) = settings.output_dtype
        && dtype.float().is_none()
    {
        return Err(SnapshotError::Settings {
            what: format!("the output type {dtype} is not a float type"),
        });
    }
    if settings.overwrite
        && let Some(input) = inputs.iter().find(|input| holds(output, input))
    {
        return Err(SnapshotError::Settings {
            what: format!(
                "`{}` is to be replaced, but the input `{}` is there; choose another output",
                output.display(),
                input.location()
            ),
        });
    }
    for input in settings
        .side_files_from
        .iter()
        .chain(settings.rules.iter().filter_map(|rule| match &rule.action {
            Action::Copy(input) => Some(input),
            _ => None,
        }))
    {
        if *input >= inputs.len() {
            return Err(SnapshotError::Settings {
                what: format!(
                    "input {input} was named, but there are {} (counted from 0)",
                    inputs.len()
                ),
            });
        }
    }

    let mut planner = Planner::new(&inputs, settings, &rows)?;
    if !settings.allow_same {
        planner.problems.extend(checks::same_twice(&inputs)?);
    }
    let (problems, mut warnings) = checks::configs(&inputs);
    if settings.allow_config_differences {
        warnings.extend(problems.iter().map(ToString::to_string));
    } else {
        planner.problems.extend(problems);
    }
    if settings.side_files_from.is_none() {
        planner.problems.extend(checks::tokenizers(&inputs)?);
    }
    planner.tied()?;
    planner.tensors()?;
    for input in &inputs {
        if !input.stray_files.is_empty() {
            warnings.push(format!(
                "`{}` holds weight files that are not part of the snapshot and were not read: {}",
                input.location(),
                input.stray_files.join(", ")
            ));
        }
        if let Some(total) = input
            .index_total_bytes
            .filter(|total| *total != input.tensor_bytes())
        {
            warnings.push(format!(
                "the index of `{}` says {total} bytes, but its tensors have {}; the output's index will say what is true",
                input.location(),
                input.tensor_bytes()
            ));
        }
    }
    let adapter = if settings.low_rank == LowRank::Products && planner.stacked {
        match lowrank::adapter_config(&inputs) {
            Ok((config, warning)) => {
                warnings.extend(warning);
                config
            }
            Err(problem) => {
                planner.problems.push(problem);
                None
            }
        }
    } else {
        None
    };
    let Planner {
        problems,
        kinds,
        recalibrate,
        skipped,
        ..
    } = planner;
    if !problems.is_empty() {
        return Err(SnapshotError::Refused { problems });
    }

    let metadata = layout::common_metadata(&inputs, &mut warnings);
    let (tensors, shards) = layout::shards(
        &inputs[0],
        kinds,
        &metadata,
        settings.max_shard_bytes,
        output,
        is_file(output),
    )?;
    let mut outputs = Vec::new();
    for (folder, row, own_input) in rows {
        let side_files = if is_file(output) {
            Vec::new()
        } else {
            layout::side_files(
                &inputs[own_input],
                settings.output_dtype,
                adapter.as_deref(),
                &mut warnings,
            )?
        };
        outputs.push(PlannedOutput {
            folder,
            row,
            own_input,
            side_files,
        });
    }
    let slices = cut(&tensors);
    let fingerprint = fingerprint(&inputs, settings, &outputs, &tensors, &shards);
    warnings.sort();
    warnings.dedup();
    Ok(MergePlan {
        inputs,
        settings: settings.clone(),
        target: output.to_owned(),
        store: None,
        expected: Vec::new(),
        outputs,
        tensors,
        shards,
        slices,
        fingerprint,
        warnings,
        recalibrate,
        skipped,
    })
}

fn cut(tensors: &[PlannedTensor]) -> Vec<Slice> {
    let mut slices = Vec::new();
    for (tensor, planned) in tensors.iter().enumerate() {
        let length = planned.info.bytes();
        let step = match planned.kind {
            Kind::Stack { .. } => length.max(1),
            _ => digest::slice_bytes(planned.info.dtype),
        };
        let mut start = 0;
        while start < length {
            let bytes = step.min(length - start);
            slices.push(Slice {
                index: slices.len(),
                tensor,
                start,
                bytes,
            });
            start += bytes;
        }
    }
    slices
}

/// Plans are told apart by BLAKE3.
fn plan_digest(bytes: &[u8]) -> Digest {
    digest::of(bytes, Algorithm::Blake3)
}

fn fingerprint(
    inputs: &[Snapshot],
    settings: &MergeSettings,
    outputs: &[PlannedOutput],
    tensors: &[PlannedTensor],
    shards: &[PlannedShard],
) -> Digest {
    // Whatever the output's bytes depend on; threads, memory, sync and overwriting do not matter.
    let inputs: Vec<_> = inputs
        .iter()
        .map(|input| {
            let shards: Vec<_> = input
                .shards
                .iter()
                .map(|shard| {
                    (
                        &shard.file.name,
                        shard.file.size,
                        &shard.file.version,
                        plan_digest(&shard.header.raw),
                    )
                })
                .collect();
            (input.location(), shards)
        })
        .collect();
    let outputs: Vec<_> = outputs
        .iter()
        .map(|output| {
            let files: BTreeMap<_, _> = output
                .side_files
                .iter()
                .map(|(name, bytes)| (name, plan_digest(bytes)))
                .collect();
            let numbers: Vec<_> = output
                .row
                .numbers()
                .iter()
                .map(ToString::to_string)
                .collect();
            (&output.folder, numbers, output.own_input, files)
        })
        .collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|tensor| {
            (
                &tensor.info.name,
                tensor.info.dtype,
                &tensor.info.shape,
                format!("{:?}", tensor.kind),
                tensor.shard,
                tensor.info.start,
            )
        })
        .collect();
    let shards: Vec<_> = shards
        .iter()
        .map(|shard| (&shard.file, plan_digest(&shard.header)))
        .collect();
    // As it was written when BLAKE3 was all there was, so that what was begun then goes on.
    let digests = match settings.digests {
        Digests::All(Algorithm::Blake3) => serde_json::Value::Bool(true),
        other => serde_json::json!(other),
    };
    let text = serde_json::json!({
        "format": 1, "inputs": inputs, "outputs": outputs, "tensors": tensors, "shards": shards,
        "allow_nonfinite": settings.allow_nonfinite, "digests": digests,
    });
    plan_digest(text.to_string().as_bytes())
}
