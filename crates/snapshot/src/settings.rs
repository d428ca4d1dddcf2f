//! What a merge is told: one typed struct, read from flags, pipeline files or JSON alike.

use crate::digest::Algorithm;
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

/// What is digested, and how: `xxh3-128`, `blake3` or `none`.
///
/// The output is digested in any case, so that a merge that was killed can go on; with `none` by XXH3. Where a
/// switch stood before, `true` means the default and `false` none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digests {
    /// The inputs are not digested.
    None,
    /// Every input is digested while it is read.
    All(Algorithm),
}

impl Default for Digests {
    fn default() -> Self {
        Self::All(Algorithm::default())
    }
}

impl Digests {
    /// How inputs are digested, if at all.
    #[must_use]
    pub fn of_inputs(self) -> Option<Algorithm> {
        match self {
            Self::None => None,
            Self::All(algorithm) => Some(algorithm),
        }
    }

    /// How outputs are.
    #[must_use]
    pub fn of_outputs(self) -> Algorithm {
        self.of_inputs().unwrap_or_default()
    }
}

impl Serialize for Digests {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.of_inputs().map_or("none", Algorithm::name))
    }
}

impl<'de> Deserialize<'de> for Digests {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Switch(bool),
            Name(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Switch(true) => Ok(Self::default()),
            Written::Switch(false) => Ok(Self::None),
            Written::Name(name) => name.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl std::str::FromStr for Digests {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            name => name
                .parse()
                .map(Self::All)
                .map_err(|_| format!("`{name}`: expected the digests xxh3-128, blake3 or none")),
        }
    }
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
    /// The digests of inputs and output in the manifest.
    pub digests: Digests,
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
            digests: Digests::default(),
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
        assert_eq!(settings.digests, Digests::All(Algorithm::Xxh3));
        assert!(settings.weights.row(3).is_err());
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(
            serde_json::from_str::<MergeSettings>(&text).unwrap(),
            settings
        );
    }
    #[test]
    fn digests_read_by_name_and_as_the_switch_they_were() {
        let read = |text: &str| {
            let settings: MergeSettings = serde_json::from_str(&format!("{{\"digests\": {text}}}"))
                .map_err(|e| e.to_string())?;
            Ok::<_, String>(settings.digests)
        };
        assert_eq!(read("true"), Ok(Digests::All(Algorithm::Xxh3)));
        assert_eq!(read("false"), Ok(Digests::None));
        assert_eq!(read("\"none\""), Ok(Digests::None));
        assert_eq!(read("\"xxh3\""), Ok(Digests::All(Algorithm::Xxh3)));
        for digests in [
            Digests::None,
            Digests::All(Algorithm::Xxh3),
            Digests::All(Algorithm::Blake3),
        ] {
            assert_eq!(read(&serde_json::to_string(&digests).unwrap()), Ok(digests));
        }
        let wrong = read("\"md5\"").unwrap_err();
        assert!(
            wrong.contains("`md5`: expected the digests xxh3-128, blake3 or none"),
            "{wrong}"
        );
    }
}
