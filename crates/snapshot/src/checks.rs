//! Comparisons of inputs that need their bytes: agreement of integers, tied tensors, the same snapshot twice,
//! tokenizers and configs. All run before a byte of output is written.

use crate::digest::{self, Algorithm, Digest, Hasher};
use crate::error::{Problem, SnapshotError};
use crate::snapshot::Snapshot;
use serde_json::Value;
use std::collections::HashMap;

const PIECE: usize = 1 << 20;

/// The first byte at which two tensors differ; `None` when they are equal. Their lengths are equal.
pub(crate) fn first_difference(
    a: (&Snapshot, &str),
    b: (&Snapshot, &str),
    bytes: u64,
) -> Result<Option<u64>, SnapshotError> {
    let length = PIECE.min(usize::try_from(bytes).unwrap_or(PIECE));
    let (mut left, mut right) = (vec![0; length], vec![0; length]);
    let mut at = 0;
    while at < bytes {
        let length = length.min(usize::try_from(bytes - at).unwrap_or(PIECE));
        let (left, right) = (&mut left[..length], &mut right[..length]);
        a.0.read_tensor(a.1, at, left)?;
        b.0.read_tensor(b.1, at, right)?;
        if left != right {
            let place = left
                .iter()
                .zip(right.iter())
                .position(|(l, r)| l != r)
                .unwrap_or(0);
            return Ok(Some(at + place as u64));
        }
        at += length as u64;
    }
    Ok(None)
}

/// A hash of names, types, shapes and up to 4 KiB at both ends of every tensor: equal for equal snapshots.
fn sample(snapshot: &Snapshot) -> Result<Digest, SnapshotError> {
    const END: u64 = 4096;
    let mut buffer = [0; END as usize];
    let mut tensors = Vec::new();
    for tensor in snapshot.tensors() {
        let mut hasher = Hasher::new(Algorithm::Xxh3);
        let length = END.min(tensor.bytes()) as usize;
        for offset in [0, tensor.bytes() - length as u64] {
            snapshot.read_tensor(&tensor.name, offset, &mut buffer[..length])?;
            hasher.update(&buffer[..length]);
        }
        tensors.push((tensor, hasher.finish()));
    }
    let entries = tensors
        .iter()
        .map(|(t, digest)| (t.name.as_str(), t.dtype, t.shape.as_slice(), *digest));
    Ok(digest::of_tensors(entries, Algorithm::Xxh3))
}

/// Inputs whose tensors are equal, byte for byte. All bytes are compared only when the samples agree.
pub(crate) fn same_twice(inputs: &[Snapshot]) -> Result<Vec<Problem>, SnapshotError> {
    let mut first: HashMap<Digest, usize> = HashMap::new();
    let mut problems = Vec::new();
    for (position, input) in inputs.iter().enumerate() {
        let sample = sample(input)?;
        let Some(&other) = first.get(&sample) else {
            first.insert(sample, position);
            continue;
        };
        let reference = &inputs[other];
        let mut differs = false;
        for tensor in reference.tensors() {
            if first_difference(
                (reference, &tensor.name),
                (input, &tensor.name),
                tensor.bytes(),
            )?
            .is_some()
            {
                differs = true;
                break;
            }
        }
        if !differs {
            problems.push(Problem::Twice {
                snapshot: input.location(),
                reference: reference.location(),
            });
        }
    }
    Ok(problems)
}

/// Keys of `config.json` that say what the tensors mean. Others (names, versions, caches) may differ.
const ARCHITECTURE_KEYS: [&str; 25] = [
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rope_theta",
    "rope_scaling",
    "tie_word_embeddings",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "n_embd",
    "n_layer",
    "n_head",
    "num_labels",
    "quantization_config",
];

/// Differences of architecture, and the other keys that differ (for a warning).
pub(crate) fn configs(inputs: &[Snapshot]) -> (Vec<Problem>, Vec<String>) {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let Some(reference) = inputs.iter().find(|input| input.config.is_some()) else {
        return (problems, warnings);
    };
    let Some(expected) = &reference.config else {
        return (problems, warnings);
    };
    for input in inputs {
        let Some(config) = &input.config else {
            warnings.push(format!(
                "`{}` has no config.json, so its architecture was not compared",
                input.location()
            ));
            continue;
        };
        let mut keys: Vec<&String> = expected.keys().chain(config.keys()).collect();
        keys.sort();
        keys.dedup();
        let mut minor = Vec::new();
        for key in keys {
            let (there, here) = (
                expected.get(key).unwrap_or(&Value::Null),
                config.get(key).unwrap_or(&Value::Null),
            );
            if there == here {
                continue;
            }
            if ARCHITECTURE_KEYS.contains(&key.as_str()) {
                problems.push(Problem::Config {
                    key: key.clone(),
                    snapshot: input.location(),
                    found: here.to_string(),
                    reference: reference.location(),
                    expected: there.to_string(),
                });
            } else {
                minor.push(key.as_str());
            }
        }
        if !minor.is_empty() {
            warnings.push(format!(
                "config.json of `{}` differs from the first in {}",
                input.location(),
                minor.join(", ")
            ));
        }
    }
    (problems, warnings)
}

/// Whether a file maps text to token ids.
fn is_vocabulary(name: &str) -> bool {
    matches!(
        name,
        "tokenizer.json" | "vocab.json" | "vocab.txt" | "merges.txt" | "added_tokens.json"
    ) || name.ends_with(".tiktoken")
        || name.ends_with(".model")
}

/// Tokenizer files that differ between inputs that have them.
pub(crate) fn tokenizers(inputs: &[Snapshot]) -> Result<Vec<Problem>, SnapshotError> {
    let mut problems = Vec::new();
    let mut first: HashMap<&str, (&Snapshot, u64, Option<Vec<u8>>)> = HashMap::new();
    for input in inputs {
        for file in input
            .side_files
            .iter()
            .filter(|file| is_vocabulary(&file.name))
        {
            let Some((reference, size, content)) = first.get_mut(file.name.as_str()) else {
                first.insert(&file.name, (input, file.size, None));
                continue;
            };
            let mut equal = *size == file.size;
            if equal {
                if content.is_none() {
                    *content = reference.side_file(&file.name)?;
                }
                equal = *content == input.side_file(&file.name)?;
            }
            if !equal {
                problems.push(Problem::Tokenizer {
                    file: file.name.clone(),
                    snapshot: input.location(),
                    reference: reference.location(),
                });
            }
        }
    }
    Ok(problems)
}

/// Whether a file beside the weights belongs to the model and comes along with a merge.
pub(crate) fn comes_along(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    if lower.starts_with('.') || lower.ends_with(".index.json") || lower == MANIFEST {
        return false;
    }
    // Training state is not the merged model's.
    if [
        "trainer_state",
        "optimizer",
        "scheduler",
        "rng_state",
        "training_args",
    ]
    .iter()
    .any(|state| lower.starts_with(state))
    {
        return false;
    }
    let ends = [".json", ".jinja", ".tiktoken", ".model", ".py", ".vocab"];
    let starts = [
        "vocab",
        "merges",
        "tokenizer",
        "license",
        "licence",
        "notice",
        "chat_template",
    ];
    ends.iter().any(|end| lower.ends_with(end))
        || starts.iter().any(|start| lower.starts_with(start)) && !lower.ends_with(".bin")
}

/// Name of the manifest beside the merged weights.
pub(crate) const MANIFEST: &str = "pmill-merge.json";

/// The output head of a language model and the embedding it may be tied to.
pub(crate) fn tied_pair(snapshot: &Snapshot) -> Option<(String, String)> {
    let tied = snapshot
        .config
        .as_ref()?
        .get("tie_word_embeddings")?
        .as_bool()?;
    if !tied {
        return None;
    }
    let ends = |name: &str, ends: &[&str]| {
        ends.iter()
            .any(|end| name == *end || name.ends_with(&format!(".{end}")))
    };
    let find = |list: &[&str]| {
        snapshot
            .tensors()
            .find(|tensor| ends(&tensor.name, list))
            .map(|tensor| tensor.name.clone())
    };
    let embedding = find(&[
        "embed_tokens.weight",
        "wte.weight",
        "word_embeddings.weight",
        "embed_in.weight",
        "shared.weight",
    ])?;
    let head = find(&["lm_head.weight", "embed_out.weight"])?;
    Some((embedding, head))
}

/// Whether the tensor holds running statistics of a normalisation layer.
pub(crate) fn is_running_statistic(name: &str) -> bool {
    [
        "running_mean",
        "running_var",
        "num_batches_tracked",
        "moving_mean",
        "moving_variance",
    ]
    .iter()
    .any(|end| name == *end || name.ends_with(&format!(".{end}")))
}
