//! Small snapshots on disk.

use pmill_snapshot::{
    MergePlan, MergeReport, MergeSettings, SnapshotError, SnapshotPath, merge, plan_merge,
};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// One tensor to write.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

pub fn f32s(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    Tensor {
        name: name.into(),
        dtype: Dtype::F32,
        shape: shape.into(),
        bytes,
    }
}

pub fn bf16s(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = values
        .iter()
        .flat_map(|value| half::bf16::from_f32(*value).to_le_bytes())
        .collect();
    Tensor {
        name: name.into(),
        dtype: Dtype::BF16,
        shape: shape.into(),
        bytes,
    }
}

pub fn f16s(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = values
        .iter()
        .flat_map(|value| half::f16::from_f32(*value).to_le_bytes())
        .collect();
    Tensor {
        name: name.into(),
        dtype: Dtype::F16,
        shape: shape.into(),
        bytes,
    }
}

pub fn i64s(name: &str, values: &[i64]) -> Tensor {
    let bytes = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    Tensor {
        name: name.into(),
        dtype: Dtype::I64,
        shape: vec![values.len()],
        bytes,
    }
}

/// Writes one weight file.
pub fn write_file(path: &Path, tensors: &[Tensor]) {
    let views: Vec<(String, TensorView<'_>)> = tensors
        .iter()
        .map(|tensor| {
            (
                tensor.name.clone(),
                TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap(),
            )
        })
        .collect();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize_to_file(views, Some(metadata), path).unwrap();
}

/// A folder that holds `model.safetensors` and other files.
pub fn folder(root: &Path, name: &str, tensors: &[Tensor], others: &[(&str, &str)]) -> PathBuf {
    let folder = root.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    write_file(&folder.join("model.safetensors"), tensors);
    for (name, text) in others {
        std::fs::write(folder.join(name), text).unwrap();
    }
    folder
}

/// A folder with one file for each group of tensors, and an index.
pub fn sharded(root: &Path, name: &str, groups: &[Vec<Tensor>], total_size: u64) -> PathBuf {
    let folder = root.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let mut map = BTreeMap::new();
    for (position, group) in groups.iter().enumerate() {
        let file = format!(
            "model-{:05}-of-{:05}.safetensors",
            position + 1,
            groups.len()
        );
        write_file(&folder.join(&file), group);
        map.extend(
            group
                .iter()
                .map(|tensor| (tensor.name.clone(), file.clone())),
        );
    }
    let index = serde_json::json!({"metadata": {"total_size": total_size}, "weight_map": map});
    std::fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    folder
}

/// Every tensor of every weight file in a folder (or of one file): type, shape and bytes.
pub fn read_all(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let files: Vec<PathBuf> = if path.is_dir() {
        let mut files: Vec<_> = std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.retain(|file| {
            file.extension()
                .is_some_and(|extension| extension == "safetensors")
        });
        files
    } else {
        vec![path.to_owned()]
    };
    let mut tensors = BTreeMap::new();
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            tensors.insert(
                name,
                (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
            );
        }
    }
    tensors
}

pub fn read_f32(path: &Path, name: &str) -> Vec<f32> {
    let (dtype, _, bytes) = read_all(path).remove(name).unwrap();
    assert_eq!(dtype, Dtype::F32);
    bytes
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

pub fn paths(places: &[PathBuf]) -> Vec<SnapshotPath> {
    places
        .iter()
        .map(|place| SnapshotPath::local(place).unwrap())
        .collect()
}

/// Settings for tests: no waiting for the disk.
pub fn settings() -> MergeSettings {
    MergeSettings {
        sync: false,
        ..MergeSettings::default()
    }
}

pub fn plan(
    places: &[PathBuf],
    output: &Path,
    settings: &MergeSettings,
) -> Result<MergePlan, SnapshotError> {
    plan_merge(&paths(places), output, settings)
}

pub fn run(
    places: &[PathBuf],
    output: &Path,
    settings: &MergeSettings,
) -> Result<MergeReport, SnapshotError> {
    merge(&plan(places, output, settings)?, &|_| true)
}

/// The message of the refusal that must come.
pub fn refusal(places: &[PathBuf], output: &Path, settings: &MergeSettings) -> String {
    let error = run(places, output, settings).unwrap_err();
    assert!(!output.exists(), "a refused merge left an output");
    error.to_string()
}

/// Pseudo-random numbers for test data.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Numbers like trained weights, around zero.
    pub fn weights(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| {
                let mut unit = || (self.next() >> 40) as f32 / (1_u32 << 24) as f32 - 0.5;
                (unit() + unit() + unit()) * 0.05
            })
            .collect()
    }
}
