//! What a merge is told: one typed struct, read from flags, pipeline files or JSON alike.

use crate::dtype::DType;
use crate::error::SnapshotError;
use crate::weights::{Row, Weight};
use serde::{Deserialize, Serialize};

/// How much each input counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Weights {
    /// All alike.
    #[default]
    Uniform,
    /// Fractions that sum to 1 within 10^-6; they are divided by their exact sum.
    Fractions(Vec<Weight>),
    /// In proportion to the training examples that each input saw; any sum.
    Examples(Vec<Weight>),
}

impl Weights {
    /// Whole-number weights for `inputs` inputs.
    ///
    /// # Errors
    /// Another number of weights than inputs, fractions that do not sum to 1, all zero.
    pub fn row(&self, inputs: usize) -> Result<Row, SnapshotError> {
        let list = match self {
            Self::Uniform => return Ok(Row::uniform(inputs)),
            Self::Fractions(list) | Self::Examples(list) => list,
        };
        if list.len() != inputs {
            return Err(SnapshotError::Settings {
                what: format!("{} weights were given for {inputs} snapshots", list.len()),
            });
        }
        match self {
            Self::Fractions(_) => Row::fractions(list),
            _ => Row::relative(list),
        }
    }
}

/// What to do with the tensors that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Average, also what would be refused without a rule, such as running statistics.
    Mean,
    /// Take the bytes of this input (from 0).
    Copy(usize),
    /// Leave out of the output.
    Skip,
    /// Take the bytes of the first input and list the tensor as one to recalibrate on data.
    Recalibrate,
}

/// A rule for the tensors whose name a glob matches; the first rule that matches decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRule {
    /// A glob over tensor names: `*` matches any run of characters, dots included.
    pub pattern: String,
    /// What to do.
    pub action: Action,
}

impl std::str::FromStr for TensorRule {
    type Err = SnapshotError;

    /// Reads `PATTERN=mean`, `PATTERN=skip`, `PATTERN=recalibrate` or `PATTERN=copy:K`.
    fn from_str(text: &str) -> Result<Self, SnapshotError> {
        let wrong = || SnapshotError::Settings {
            what: format!(
                "`{text}` is not a rule: expected PATTERN=mean, PATTERN=skip, PATTERN=recalibrate or PATTERN=copy:K with K from 0"
            ),
        };
        let (pattern, action) = text.rsplit_once('=').ok_or_else(wrong)?;
        let action = match action.split_once(':') {
            Some(("copy", input)) => Action::Copy(input.parse().map_err(|_| wrong())?),
            None if action == "mean" => Action::Mean,
            None if action == "skip" => Action::Skip,
            None if action == "recalibrate" => Action::Recalibrate,
            _ => return Err(wrong()),
        };
        Ok(Self {
            pattern: pattern.to_owned(),
            action,
        })
    }
}

/// What to do with the factors of low-rank adapters (LoRA).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LowRank {
    /// Refuse: the mean of the factors is not the mean of their products.
    #[default]
    Refuse,
    /// Average the factors all the same, as for checkpoints of one run.
    Factors,
    /// Average the products: the output is an adapter whose rank is the sum of the ranks.
    Products,
}

/// Settings of a merge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MergeSettings {
    /// How much each input counts.
    pub weights: Weights,
    /// The type of all averaged tensors in the output; without it they keep theirs, and inputs must agree.
    pub output_dtype: Option<DType>,
    /// Rules by tensor name; the first that matches decides.
    pub rules: Vec<TensorRule>,
    /// Average NaN and infinity by the rules of arithmetic instead of refusing them.
    pub allow_nonfinite: bool,
    /// Low-rank adapters.
    pub low_rank: LowRank,
    /// The input (from 0) whose config and tokenizer files come along; without it the first, and then
    /// tokenizers must agree.
    pub side_files_from: Option<usize>,
    /// Merge although config.json says that the architectures differ.
    pub allow_config_differences: bool,
    /// Merge although one snapshot is given more than once.
    pub allow_same: bool,
    /// Cut the output anew into files of at most this many bytes of data; without it the first input's files.
    pub max_shard_bytes: Option<u64>,
    /// Replace an output that is there already.
    pub overwrite: bool,
    /// Have the output on the disk before it gets its name. Without it a power cut may lose a finished merge.
    pub sync: bool,
    /// Digest every input while it is read, for the manifest.
    pub digests: bool,
    /// Threads that compute; `None` is one per processor.
    pub threads: Option<usize>,
    /// Bytes that the buffers of all threads may take.
    pub memory_limit_bytes: u64,
}

impl Default for MergeSettings {
    fn default() -> Self {
        Self {
            weights: Weights::Uniform,
            output_dtype: None,
            rules: Vec::new(),
            allow_nonfinite: false,
            low_rank: LowRank::Refuse,
            side_files_from: None,
            allow_config_differences: false,
            allow_same: false,
            max_shard_bytes: None,
            overwrite: false,
            sync: true,
            digests: true,
            threads: None,
            memory_limit_bytes: 128 << 20,
        }
    }
}

/// Threads that a setting of `None` means.
pub(crate) fn thread_count(threads: Option<usize>) -> usize {
    threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_from_text() {
        let rule: TensorRule = "bn.*=copy:2".parse().unwrap();
        assert_eq!(
            rule,
            TensorRule {
                pattern: "bn.*".into(),
                action: Action::Copy(2)
            }
        );
        assert!("bn.*".parse::<TensorRule>().is_err());
        assert!("bn.*=average".parse::<TensorRule>().is_err());
    }

    #[test]
    fn settings_refuse_unknown_keys_and_read_back() {
        assert!(serde_json::from_str::<MergeSettings>(r#"{"wieghts": "uniform"}"#).is_err());
        let settings: MergeSettings = serde_json::from_str(
            r#"{"weights": {"fractions": [0.25, "3/4"]}, "rules": [{"pattern": "a", "action": {"copy": 1}}], "output_dtype": "BF16"}"#,
        )
        .unwrap();
        assert_eq!(settings.weights.row(2).unwrap().numbers(), [1, 3]);
        assert!(settings.weights.row(3).is_err());
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(
            serde_json::from_str::<MergeSettings>(&text).unwrap(),
            settings
        );
    }
}
