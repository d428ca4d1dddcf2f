//! The files of the output: which tensor goes where, headers, metadata, config and tokenizer files.

use crate::checks;
use crate::dtype::DType;
use crate::error::SnapshotError;
use crate::header::{TensorInfo, byte_length, write_header};
use crate::plan::{Kind, PlannedTensor};
use crate::snapshot::Snapshot;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One weight file of the output.
#[derive(Debug, Clone)]
pub(crate) struct PlannedShard {
    pub file: String,
    /// The first bytes of the file: length and JSON object.
    pub header: Vec<u8>,
    /// Length of the whole file.
    pub bytes: u64,
}

/// The metadata that all inputs agree on; what differs (an agent's number, say) is left out with a warning.
pub(crate) fn common_metadata(
    inputs: &[Snapshot],
    warnings: &mut Vec<String>,
) -> BTreeMap<String, String> {
    let of = |input: &Snapshot| -> BTreeMap<String, String> {
        input
            .shards
            .iter()
            .flat_map(|shard| shard.header.metadata.clone())
            .collect()
    };
    let mut common = of(&inputs[0]);
    let mut dropped = BTreeSet::new();
    for input in &inputs[1..] {
        let other = of(input);
        common.retain(|key, value| {
            let keep = other.get(key) == Some(value);
            if !keep {
                dropped.insert(key.clone());
            }
            keep
        });
        dropped.extend(other.into_keys().filter(|key| !common.contains_key(key)));
    }
    if !dropped.is_empty() {
        let keys: Vec<_> = dropped.into_iter().collect();
        warnings.push(format!(
            "metadata that differs between the inputs was left out: {}",
            keys.join(", ")
        ));
    }
    common
}

/// Places the tensors in files: those of the first input, or new ones of at most `max_shard_bytes` each.
pub(crate) fn shards(
    first: &Snapshot,
    kinds: Vec<(TensorInfo, Kind)>,
    metadata: &BTreeMap<String, String>,
    max_shard_bytes: Option<u64>,
    output: &Path,
    one_file: bool,
) -> Result<(Vec<PlannedTensor>, Vec<PlannedShard>), SnapshotError> {
    // Offsets are those of the output: types and shapes may have changed.
    let mut groups: Vec<(String, Vec<(TensorInfo, Kind)>)> = Vec::new();
    if let (Some(limit), false) = (max_shard_bytes, one_file) {
        let mut open = 0;
        for (info, kind) in kinds {
            let bytes = length(&info)?;
            if groups.is_empty() || (open + bytes > limit && open > 0) {
                groups.push((String::new(), Vec::new()));
                open = 0;
            }
            open += bytes;
            if let Some((_, group)) = groups.last_mut() {
                group.push((info, kind));
            }
        }
        let count = groups.len();
        for (position, (file, _)) in groups.iter_mut().enumerate() {
            *file = if count == 1 {
                "model.safetensors".to_owned()
            } else {
                format!("model-{:05}-of-{count:05}.safetensors", position + 1)
            };
        }
    } else if one_file {
        let name = output
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("model.safetensors");
        groups.push((name.to_owned(), kinds));
    } else {
        groups = first
            .shards
            .iter()
            .map(|shard| (shard.file.name.clone(), Vec::new()))
            .collect();
        for (info, kind) in kinds {
            let home = first
                .tensor(&info.name)
                .map(|(shard, _)| shard.file.name.clone());
            // A tensor that only a copy rule brings in goes to the last file.
            let position = home
                .and_then(|home| groups.iter().position(|(file, _)| *file == home))
                .unwrap_or(groups.len() - 1);
            groups[position].1.push((info, kind));
        }
        groups.retain(|(_, tensors)| !tensors.is_empty());
    }
    if groups.iter().all(|(_, tensors)| tensors.is_empty()) {
        return Err(SnapshotError::Settings {
            what: "the output would hold no tensor".to_owned(),
        });
    }

    let mut planned = Vec::new();
    let mut files = Vec::new();
    for (position, (file, group)) in groups.into_iter().enumerate() {
        let mut infos = Vec::with_capacity(group.len());
        let mut end = 0;
        for (mut info, kind) in group {
            let bytes = length(&info)?;
            (info.start, info.end) = (end, end + bytes);
            end += bytes;
            infos.push(info.clone());
            planned.push(PlannedTensor {
                info,
                kind,
                shard: position,
            });
        }
        // The first input's header as it is where it says the same, so that a copy is a copy.
        let same = first
            .shards
            .iter()
            .find(|shard| shard.header.tensors == infos && shard.header.metadata == *metadata);
        let header = match same {
            Some(shard) => {
                let raw = &shard.header.raw;
                [&(raw.len() as u64).to_le_bytes(), raw.as_slice()].concat()
            }
            None => write_header(&infos, metadata),
        };
        let bytes = header.len() as u64 + end;
        files.push(PlannedShard {
            file,
            header,
            bytes,
        });
    }
    Ok((planned, files))
}

fn length(info: &TensorInfo) -> Result<u64, SnapshotError> {
    byte_length(info.dtype, &info.shape).ok_or_else(|| SnapshotError::Internal {
        what: format!(
            "tensor `{}` of shape {:?} has no length",
            info.name, info.shape
        ),
    })
}

/// Files that come along: config, tokenizer, generation settings and the like.
pub(crate) fn side_files(
    input: &Snapshot,
    output_dtype: Option<DType>,
    adapter: Option<&[u8]>,
    warnings: &mut Vec<String>,
) -> Result<Vec<(String, Vec<u8>)>, SnapshotError> {
    let mut files = Vec::new();
    let mut left = Vec::new();
    for file in &input.side_files {
        if !checks::comes_along(&file.name) {
            if Some(&file.name) != input.index_file.as_ref()
                && !file.name.starts_with('.')
                && file.name != checks::MANIFEST
            {
                left.push(file.name.as_str());
            }
            continue;
        }
        let Some(mut bytes) = input.side_file(&file.name)? else {
            continue;
        };
        if file.name == "config.json"
            && let Some(name) = output_dtype.and_then(DType::config_name)
            && let Some(config) = &input.config
        {
            // A config that goes on naming the old type would make loaders convert the weights back.
            let mut config = config.clone();
            for key in ["torch_dtype", "dtype"] {
                if let Some(value) = config.get_mut(key) {
                    *value = name.into();
                }
            }
            bytes = pretty(&serde_json::Value::Object(config));
        }
        if let (true, Some(adapter)) = (file.name == "adapter_config.json", adapter) {
            bytes = adapter.to_vec();
        }
        files.push((file.name.clone(), bytes));
    }
    if !left.is_empty() {
        warnings.push(format!(
            "left behind in `{}`: {}",
            input.location(),
            left.join(", ")
        ));
    }
    Ok(files)
}

/// JSON as people read it, with a line end.
pub(crate) fn pretty(value: &serde_json::Value) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}

/// The index file of the output, when it has several weight files.
pub(crate) fn index(
    tensors: &[PlannedTensor],
    shards: &[PlannedShard],
) -> Option<(String, Vec<u8>)> {
    if shards.len() < 2 {
        return None;
    }
    let total: u64 = tensors.iter().map(|tensor| tensor.info.bytes()).sum();
    let map: BTreeMap<&str, &str> = tensors
        .iter()
        .map(|tensor| {
            (
                tensor.info.name.as_str(),
                shards[tensor.shard].file.as_str(),
            )
        })
        .collect();
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
    // Adapter shards have an index of their own name, so the name follows the files.
    let stem = shards[0]
        .file
        .split("-0")
        .next()
        .filter(|stem| !stem.contains('.'))
        .unwrap_or("model");
    Some((format!("{stem}.safetensors.index.json"), pretty(&index)))
}
