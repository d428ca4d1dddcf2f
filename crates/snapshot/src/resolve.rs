//! Decides for every tensor what becomes of it: mean, copy, stack or nothing, with a problem for each that
//! cannot be decided.
//!
//! In: opened inputs and rules. Out: a list of output tensors, and everything that stands in the way.

use crate::checks::{self, first_difference};
use crate::dtype::DType;
use crate::error::{Problem, SnapshotError};
use crate::header::TensorInfo;
use crate::lowrank;
use crate::plan::Kind;
use crate::settings::{Action, LowRank, MergeSettings};
use crate::snapshot::Snapshot;
use crate::weights::Row;
use std::collections::HashSet;

pub(crate) struct Planner<'a> {
    inputs: &'a [Snapshot],
    settings: &'a MergeSettings,
    rules: Vec<(glob::Pattern, bool)>,
    /// Whether every output is one of the inputs unchanged, so that nothing is averaged.
    nothing_averaged: bool,
    pub problems: Vec<Problem>,
    /// Heads that repeat a tied embedding and that some inputs leave out.
    repeated: HashSet<String>,
    pub kinds: Vec<(TensorInfo, Kind)>,
    pub recalibrate: Vec<String>,
    pub skipped: Vec<String>,
    low_rank_seen: bool,
    pub stacked: bool,
}

impl<'a> Planner<'a> {
    pub fn new(
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
    pub fn tied(&mut self) -> Result<(), SnapshotError> {
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

    pub fn tensors(&mut self) -> Result<(), SnapshotError> {
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

/// The types that the inputs have for a tensor, in their order.
pub(crate) fn input_types(inputs: &[Snapshot], name: &str) -> Vec<DType> {
    inputs
        .iter()
        .filter_map(|input| input.tensor(name).map(|(_, tensor)| tensor.dtype))
        .collect()
}
