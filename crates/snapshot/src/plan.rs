//! Plans a merge: opens the inputs, checks everything that can be checked before a byte is written, and lays
//! the output out.
//!
//! The plan fixes the slices of work (2^20 elements of one tensor each), so that neither threads nor memory
//! change the result.

use crate::checks::{self, first_difference};
use crate::digest::{self, Digest};
use crate::dtype::{DType, Float};
use crate::error::{Problem, SnapshotError};
use crate::header::TensorInfo;
use crate::layout::{self, PlannedShard};
use crate::lowrank;
use crate::settings::{Action, LowRank, MergeSettings};
use crate::snapshot::Snapshot;
use crate::source::SnapshotPath;
use crate::weights::Row;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

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

fn is_file(target: &Path) -> bool {
    target
        .extension()
        .is_some_and(|extension| extension == "safetensors")
}

/// Plans the merge of some snapshots into a folder, or into one file when `output` ends in `.safetensors`.
///
/// # Errors
/// Unreadable inputs, contradictory settings, and [`SnapshotError::Refused`] with every problem found.
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

struct Planner<'a> {
    inputs: &'a [Snapshot],
    settings: &'a MergeSettings,
    rules: Vec<(glob::Pattern, bool)>,
    /// Whether every output is one of the inputs unchanged, so that nothing is averaged.
    nothing_averaged: bool,
    problems: Vec<Problem>,
    /// Heads that repeat a tied embedding and that some inputs leave out.
    repeated: HashSet<String>,
    kinds: Vec<(TensorInfo, Kind)>,
    recalibrate: Vec<String>,
    skipped: Vec<String>,
    low_rank_seen: bool,
    stacked: bool,
}

impl<'a> Planner<'a> {
    fn new(
        inputs: &'a [Snapshot],
        settings: &'a MergeSettings,
        rows: &[(String, Row, usize)],
    ) -> Result<Self, SnapshotError> {
        let rules = settings
            .rules
            .iter()
            .map(|rule| {
                glob::Pattern::new(&rule.pattern)
                    .map(|pattern| (pattern, false))
                    .map_err(|error| SnapshotError::Settings {
                        what: format!("`{}` is not a glob: {error}", rule.pattern),
                    })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            inputs,
            settings,
            rules,
            nothing_averaged: rows.iter().all(|(_, row, own)| row.only() == Some(*own)),
            problems: Vec::new(),
            repeated: HashSet::new(),
            kinds: Vec::new(),
            recalibrate: Vec::new(),
            skipped: Vec::new(),
            low_rank_seen: false,
            stacked: false,
        })
    }

    fn rule(&mut self, name: &str) -> Option<Action> {
        let position = self
            .rules
            .iter()
            .position(|(pattern, _)| pattern.matches(name))?;
        self.rules[position].1 = true;
        Some(self.settings.rules[position].action)
    }

    /// Tied tensors: equal where both are stored; a head that some inputs leave out is left out.
    fn tied(&mut self) -> Result<(), SnapshotError> {
        for input in self.inputs {
            let Some((embedding, head)) = checks::tied_pair(input) else {
                continue;
            };
            if self
                .settings
                .rules
                .iter()
                .any(|rule| glob::Pattern::new(&rule.pattern).is_ok_and(|p| p.matches(&head)))
            {
                continue;
            }
            let (Some((_, first)), Some((_, second))) =
                (input.tensor(&embedding), input.tensor(&head))
            else {
                continue;
            };
            let equal = first.dtype == second.dtype
                && first.shape == second.shape
                && first_difference((input, &embedding), (input, &head), first.bytes())?.is_none();
            if !equal {
                self.problems.push(Problem::Untied {
                    snapshot: input.location(),
                    first: embedding,
                    second: head,
                });
            } else if self
                .inputs
                .iter()
                .any(|other| other.tensor(&head).is_none())
            {
                self.repeated.insert(head);
            }
        }
        Ok(())
    }

    fn tensors(&mut self) -> Result<(), SnapshotError> {
        let mut names: Vec<&str> = self.inputs[0]
            .tensors()
            .map(|tensor| tensor.name.as_str())
            .collect();
        let mut seen: HashSet<&str> = names.iter().copied().collect();
        for input in &self.inputs[1..] {
            names.extend(
                input
                    .tensors()
                    .map(|tensor| tensor.name.as_str())
                    .filter(|name| seen.insert(name)),
            );
        }
        for name in names {
            self.tensor(name)?;
        }
        for ((pattern, used), rule) in self.rules.iter().zip(&self.settings.rules) {
            // A pattern that an earlier one hides is still a match.
            if !used && !seen.iter().any(|name| pattern.matches(name)) {
                self.problems.push(Problem::UnusedRule {
                    pattern: rule.pattern.clone(),
                });
            }
        }
        Ok(())
    }

    fn tensor(&mut self, name: &str) -> Result<(), SnapshotError> {
        let action = self.rule(name);
        match action {
            Some(Action::Skip) => {
                self.skipped.push(name.to_owned());
                return Ok(());
            }
            Some(Action::Copy(input)) => {
                self.copy(name, input);
                return Ok(());
            }
            Some(Action::Recalibrate) => {
                self.recalibrate.push(name.to_owned());
                self.copy(name, 0);
                return Ok(());
            }
            Some(Action::Mean) | None => {}
        }
        if self.repeated.contains(name) {
            self.skipped.push(name.to_owned());
            return Ok(());
        }
        let Some((reference, first)) = self.present(name) else {
            return Ok(());
        };
        if action.is_none() && !self.nothing_averaged && checks::is_running_statistic(name) {
            self.problems.push(Problem::RunningStatistics {
                tensor: name.to_owned(),
            });
            return Ok(());
        }
        let factor = lowrank::factor(name).filter(|_| action.is_none() && !self.nothing_averaged);
        if let Some(factor) = factor {
            match self.settings.low_rank {
                LowRank::Refuse => {
                    if !std::mem::replace(&mut self.low_rank_seen, true) {
                        self.problems.push(Problem::LowRank {
                            tensor: name.to_owned(),
                        });
                    }
                    return Ok(());
                }
                LowRank::Products => {
                    self.stacked = true;
                    match lowrank::stack(self.inputs, name, factor, self.settings.output_dtype) {
                        Ok((info, kind)) => self.kinds.push((info, kind)),
                        Err(problem) => self.problems.push(problem),
                    }
                    return Ok(());
                }
                LowRank::Factors => {}
            }
        }
        let mut agree = true;
        for input in self.inputs {
            let Some((_, tensor)) = input.tensor(name) else {
                continue;
            };
            if tensor.shape != first.shape {
                agree = false;
                self.problems.push(Problem::Shape {
                    tensor: name.to_owned(),
                    snapshot: input.location(),
                    found: tensor.shape.clone(),
                    reference: reference.location(),
                    expected: first.shape.clone(),
                });
            } else if tensor.dtype != first.dtype {
                let both_float = tensor
                    .dtype
                    .lanes()
                    .zip(first.dtype.lanes())
                    .is_some_and(|(a, b)| a.1 == b.1);
                if !both_float || self.settings.output_dtype.is_none() {
                    agree = false;
                    self.problems.push(Problem::Type {
                        tensor: name.to_owned(),
                        snapshot: input.location(),
                        found: tensor.dtype,
                        reference: reference.location(),
                        expected: first.dtype,
                    });
                }
            }
        }
        if !agree {
            return Ok(());
        }
        match first.dtype.lanes() {
            Some((float, lanes)) => {
                // Complex numbers keep their type: there is no other complex one.
                let dtype = self
                    .settings
                    .output_dtype
                    .filter(|_| lanes == 1)
                    .unwrap_or(first.dtype);
                let float = dtype.float().unwrap_or(float);
                let mut info = first.clone();
                info.dtype = dtype;
                self.kinds.push((info, Kind::Mean(float)));
            }
            None => {
                if action.is_some() {
                    return Err(SnapshotError::Settings {
                        what: format!(
                            "a rule asks for the mean of `{name}`, but {} cannot be averaged",
                            first.dtype
                        ),
                    });
                }
                if !self.nothing_averaged {
                    for input in self.inputs {
                        if std::ptr::eq(input, reference) {
                            continue;
                        }
                        if let Some(byte) =
                            first_difference((reference, name), (input, name), first.bytes())?
                        {
                            self.problems.push(Problem::Disagree {
                                tensor: name.to_owned(),
                                dtype: first.dtype,
                                snapshot: input.location(),
                                reference: reference.location(),
                                byte,
                            });
                        }
                    }
                }
                self.kinds.push((first.clone(), Kind::Copy(None)));
            }
        }
        Ok(())
    }

    fn copy(&mut self, name: &str, input: usize) {
        match self.inputs[input].tensor(name) {
            Some((_, tensor)) => self.kinds.push((tensor.clone(), Kind::Copy(Some(input)))),
            None => {
                let reference = self
                    .inputs
                    .iter()
                    .find(|other| other.tensor(name).is_some());
                self.problems.push(Problem::Missing {
                    tensor: name.to_owned(),
                    snapshot: self.inputs[input].location(),
                    reference: reference.map(Snapshot::location).unwrap_or_default(),
                    hint: "; the rule for it copies from there",
                });
            }
        }
    }

    /// The tensor in the first input that has it, when all have it; otherwise says which do not.
    fn present(&mut self, name: &str) -> Option<(&'a Snapshot, &'a TensorInfo)> {
        let inputs = self.inputs;
        let reference = inputs.iter().find(|input| input.tensor(name).is_some())?;
        let missing: Vec<_> = inputs
            .iter()
            .filter(|input| input.tensor(name).is_none())
            .collect();
        for input in &missing {
            let tied = input
                .config
                .as_ref()
                .and_then(|config| config.get("tie_word_embeddings")?.as_bool())
                == Some(true);
            let hint = if tied
                && (name.ends_with("lm_head.weight") || name.ends_with("embed_out.weight"))
            {
                "; its config ties the head to the embedding, so the others are not tied"
            } else {
                "; add a rule for it (copy or skip) or leave a snapshot out"
            };
            self.problems.push(Problem::Missing {
                tensor: name.to_owned(),
                snapshot: input.location(),
                reference: reference.location(),
                hint,
            });
        }
        let (_, tensor) = reference.tensor(name)?;
        missing.is_empty().then_some((reference, tensor))
    }
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
                        digest::of(&shard.header.raw),
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
                .map(|(name, bytes)| (name, digest::of(bytes)))
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
        .map(|shard| (&shard.file, digest::of(&shard.header)))
        .collect();
    let text = serde_json::json!({
        "format": 1, "inputs": inputs, "outputs": outputs, "tensors": tensors, "shards": shards,
        "allow_nonfinite": settings.allow_nonfinite, "digests": settings.digests,
    });
    digest::of(text.to_string().as_bytes())
}

/// The types that the inputs have for a tensor, in their order.
pub(crate) fn input_types(inputs: &[Snapshot], name: &str) -> Vec<DType> {
    inputs
        .iter()
        .filter_map(|input| input.tensor(name).map(|(_, tensor)| tensor.dtype))
        .collect()
}
