//! What a snapshot holds, with or without reading its data.

use crate::digest::{self, Algorithm, Digest, Hasher};
use crate::dtype::DType;
use crate::error::SnapshotError;
use crate::exact::{Value, decode, read_bits};
use crate::header::TensorInfo;
use crate::settings::thread_count;
use crate::snapshot::Snapshot;
use crate::source::SnapshotPath;
use crate::vector::has_nonfinite;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One tensor of an inventory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Bytes of its data.
    pub bytes: u64,
    /// The file that holds it.
    pub file: String,
    /// Content digest; `None` when the data was not read.
    pub digest: Option<Digest>,
    /// Values that are not a number; `None` when the data was not read or is of no float type.
    pub nan: Option<u64>,
    /// Infinite values; `None` as for `nan`.
    pub infinite: Option<u64>,
}

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// Where it is.
    pub location: String,
    /// Weight files and their lengths in bytes.
    pub files: BTreeMap<String, u64>,
    /// The index file, when there is one.
    pub index: Option<String>,
    /// `__metadata__` of the weight files.
    pub metadata: BTreeMap<String, String>,
    /// The tensors in the order of their data.
    pub tensors: Vec<TensorEntry>,
    /// Elements in all.
    pub elements: u64,
    /// Bytes of tensor data in all.
    pub bytes: u64,
    /// Number of tensors of each type.
    pub dtypes: BTreeMap<String, u64>,
    /// Digest of the whole content; `None` when the data was not read.
    pub digest: Option<Digest>,
    /// Config, tokenizer and other files beside the weights.
    pub side_files: Vec<String>,
    /// Weight files that are not part of the snapshot.
    pub stray_files: Vec<String>,
    /// `model_type` of config.json.
    pub model_type: Option<String>,
    /// What looks wrong but stops nothing.
    pub warnings: Vec<String>,
}

/// Settings of [`inspect_with`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InspectSettings {
    /// Read all data for digests and for counts of NaN and infinity.
    pub read_data: bool,
    /// How the data is digested.
    pub algorithm: Algorithm,
    /// Threads; `None` is one per processor.
    pub threads: Option<usize>,
}

/// Reads the headers of a snapshot.
///
/// # Errors
/// Those of [`Snapshot::open`].
pub fn inspect(path: &SnapshotPath) -> Result<Inventory, SnapshotError> {
    inspect_with(path, InspectSettings::default())
}

/// Reads a snapshot as the settings say.
///
/// # Errors
/// Those of [`Snapshot::open`], and of reading the data.
pub fn inspect_with(
    path: &SnapshotPath,
    settings: InspectSettings,
) -> Result<Inventory, SnapshotError> {
    let snapshot = Snapshot::open(path)?;
    let scans = if settings.read_data {
        Some(scan(&snapshot, settings)?)
    } else {
        None
    };
    let mut tensors = Vec::new();
    let mut dtypes: BTreeMap<String, u64> = BTreeMap::new();
    for shard in &snapshot.shards {
        for tensor in &shard.header.tensors {
            let seen = scans.as_ref().map(|scans| &scans[tensors.len()]);
            let is_float = tensor.dtype.float().is_some();
            *dtypes.entry(tensor.dtype.name().to_owned()).or_default() += 1;
            tensors.push(TensorEntry {
                name: tensor.name.clone(),
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                bytes: tensor.bytes(),
                file: shard.file.name.clone(),
                digest: seen.map(|seen| seen.digest),
                nan: seen.filter(|_| is_float).map(|seen| seen.nan),
                infinite: seen.filter(|_| is_float).map(|seen| seen.infinite),
            });
        }
    }
    let mut warnings = Vec::new();
    if let Some(total) = snapshot
        .index_total_bytes
        .filter(|total| *total != snapshot.tensor_bytes())
    {
        warnings.push(format!(
            "the index says {total} bytes, but the tensors have {}",
            snapshot.tensor_bytes()
        ));
    }
    if !snapshot.stray_files.is_empty() {
        warnings.push(format!(
            "weight files that are not part of the snapshot: {}",
            snapshot.stray_files.join(", ")
        ));
    }
    let digest = scans.as_ref().map(|scans| {
        let entries = tensors
            .iter()
            .zip(scans)
            .map(|(t, seen)| (t.name.as_str(), t.dtype, t.shape.as_slice(), seen.digest));
        digest::of_tensors(entries, settings.algorithm)
    });
    Ok(Inventory {
        location: snapshot.location(),
        files: snapshot
            .shards
            .iter()
            .map(|shard| (shard.file.name.clone(), shard.file.size))
            .collect(),
        index: snapshot.index_file.clone(),
        metadata: snapshot
            .shards
            .iter()
            .flat_map(|shard| shard.header.metadata.clone())
            .collect(),
        elements: snapshot.tensors().map(TensorInfo::elements).sum(),
        bytes: snapshot.tensor_bytes(),
        tensors,
        dtypes,
        digest,
        side_files: snapshot
            .side_files
            .iter()
            .map(|file| file.name.clone())
            .collect(),
        stray_files: snapshot.stray_files.clone(),
        model_type: snapshot
            .config
            .as_ref()
            .and_then(|config| Some(config.get("model_type")?.as_str()?.to_owned())),
        warnings,
    })
}

struct Scan {
    digest: Digest,
    nan: u64,
    infinite: u64,
}

fn scan(snapshot: &Snapshot, settings: InspectSettings) -> Result<Vec<Scan>, SnapshotError> {
    let tensors: Vec<_> = snapshot.tensors().collect();
    let next = AtomicUsize::new(0);
    let scans: Mutex<Vec<Option<Result<Scan, SnapshotError>>>> =
        Mutex::new(tensors.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..thread_count(settings.threads) {
            scope.spawn(|| {
                let mut buffer = vec![0; 1 << 18];
                let arch = pulp::Arch::new();
                loop {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    let Some(tensor) = tensors.get(position) else {
                        return;
                    };
                    let result =
                        scan_tensor(snapshot, tensor, settings.algorithm, arch, &mut buffer);
                    scans.lock().unwrap_or_else(PoisonError::into_inner)[position] = Some(result);
                }
            });
        }
    });
    let scans = scans.into_inner().unwrap_or_else(PoisonError::into_inner);
    let missing = || SnapshotError::Internal {
        what: "a tensor was not scanned".to_owned(),
    };
    scans
        .into_iter()
        .map(|scan| scan.unwrap_or_else(|| Err(missing())))
        .collect()
}

fn scan_tensor(
    snapshot: &Snapshot,
    tensor: &TensorInfo,
    algorithm: Algorithm,
    arch: pulp::Arch,
    buffer: &mut [u8],
) -> Result<Scan, SnapshotError> {
    let mut slices = Vec::new();
    let (mut nan, mut infinite) = (0, 0);
    let (dtype, bytes) = (tensor.dtype, tensor.bytes());
    let slice_bytes = digest::slice_bytes(dtype);
    let mut hasher = Hasher::new(algorithm);
    let mut at = 0;
    while at < bytes {
        let in_slice = slice_bytes - at % slice_bytes;
        let length = (buffer.len() as u64).min(in_slice).min(bytes - at) as usize;
        let piece = &mut buffer[..length];
        snapshot.read_tensor(&tensor.name, at, piece)?;
        hasher.update(piece);
        if let Some(float) = dtype.float()
            && has_nonfinite(arch, float, piece)
        {
            for value in piece.chunks_exact(float.bytes()) {
                match decode(float, read_bits(float, value)) {
                    Value::Nan => nan += 1,
                    Value::Infinite { .. } => infinite += 1,
                    Value::Finite { .. } => {}
                }
            }
        }
        at += length as u64;
        if at % slice_bytes == 0 || at == bytes {
            slices.push(hasher.finish());
        }
    }
    Ok(Scan {
        digest: digest::of_slices(&slices, algorithm),
        nan,
        infinite,
    })
}

impl Inventory {
    /// A readable table for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{}: {} tensors, {} elements, {} bytes in {} file(s)",
            self.location,
            self.tensors.len(),
            self.elements,
            self.bytes,
            self.files.len()
        );
        if let Some(digest) = &self.digest {
            let _ = writeln!(text, "digest {digest}");
        }
        for (key, value) in &self.metadata {
            let _ = writeln!(text, "metadata {key} = {value}");
        }
        let width = self
            .tensors
            .iter()
            .map(|tensor| tensor.name.chars().count())
            .max()
            .unwrap_or(0)
            .min(60);
        for tensor in &self.tensors {
            let _ = write!(
                text,
                "  {:width$}  {:8} {:?}",
                tensor.name,
                tensor.dtype.name(),
                tensor.shape
            );
            if let (Some(nan), Some(infinite)) = (tensor.nan, tensor.infinite)
                && nan + infinite > 0
            {
                let _ = write!(text, "  NaN {nan}, Inf {infinite}");
            }
            text.push('\n');
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        text
    }
}
