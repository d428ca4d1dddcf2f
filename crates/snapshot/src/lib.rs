//! Model snapshots in the safetensors format: read, checked, compared, averaged exactly, and mixed.
//!
//! The way of a merge: [`plan_merge`] opens the inputs ([`Snapshot`]), checks everything that can be checked
//! before a byte is written, and lays the output out; [`merge`] streams the inputs through the averaging
//! kernel slice by slice, stages the output beside its target, and publishes it with one rename. Memory is a
//! few buffers, whatever the model's size. [`distance`] says beforehand how far apart the snapshots are,
//! [`interpolate`] writes models between them, and [`mix`] runs one gossip round.
//!
//! Every element of an averaged tensor is the exact value `(sum of k_i * x_i) / K` rounded once, to nearest
//! with ties to even, where the whole numbers `k_i` and their sum `K` stand for the weights ([`Weight`]).
//!
//! ```
//! use pmill_snapshot::{MergeSettings, SnapshotPath, merge, plan_merge};
//! # use pmill_snapshot::{DType, TensorInfo, write_header};
//! # let root = tempfile::tempdir()?;
//! # for (name, value) in [("a", 1_f32), ("b", 2_f32)] {
//! #     let info = TensorInfo { name: "w".into(), dtype: DType::F32, shape: vec![1], start: 0, end: 4 };
//! #     let mut bytes = write_header(&[info], &Default::default());
//! #     bytes.extend(value.to_le_bytes());
//! #     std::fs::create_dir(root.path().join(name))?;
//! #     std::fs::write(root.path().join(name).join("model.safetensors"), bytes)?;
//! # }
//! # let place = |name: &str| root.path().join(name);
//! let inputs = [SnapshotPath::local(place("a"))?, SnapshotPath::local(place("b"))?];
//! let plan = plan_merge(&inputs, &place("merged"), &MergeSettings::default())?;
//! let report = merge(&plan, &|_progress| true)?;
//! assert_eq!(report.outputs[0].weights, ["1/2", "1/2"]);
//! let bytes = std::fs::read(place("merged").join("model.safetensors"))?;
//! assert_eq!(bytes[bytes.len() - 4..], 1.5_f32.to_le_bytes());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod checks;
mod collect;
mod digest;
mod distance;
mod distance_report;
mod dtype;
mod error;
mod exact;
#[cfg(test)]
mod exactness;
mod fetch;
mod header;
mod inspect;
mod kernel;
mod layout;
mod lowrank;
mod manifest;
mod matrix;
mod merge;
mod mix;
mod narrow;
mod objects;
mod parts;
mod plan;
mod resolve;
mod settings;
mod snapshot;
mod source;
mod staging;
mod topology;
mod upload;
mod vector;
mod weights;
mod worker;

pub use digest::{Algorithm, Digest, SLICE_ELEMENTS};
pub use distance::{DistanceSettings, distance};
pub use distance_report::{
    DistanceReport, LIKELY_COSINE, TensorDistance, UNLIKELY_COSINE, Verdict,
};
pub use dtype::{DType, Float};
pub use error::{ErrorKind, HeaderFault, Problem, SnapshotError};
pub use fetch::fetch;
pub use header::{
    Header, MAX_HEADER_BYTES, TensorInfo, byte_length, header_length, parse_header, read_header,
    write_header,
};
pub use inspect::{InspectSettings, Inventory, TensorEntry, inspect, inspect_with};
pub use manifest::{InputRecord, MergeReport, OutputRecord};
pub use matrix::{MAX_AGENTS, MatrixReport, MixingMatrix};
pub use merge::{OnProgress, Progress, discard_staging, merge, published};
pub use mix::{MAX_POINTS, Points, interpolate, mix, plan_interpolate, plan_mix};
pub use objects::ObjectFolder;
pub use parts::{assemble, average_slice, part_file};
pub use plan::{MergePlan, Slice, plan_merge};
pub use settings::{Action, Digests, LowRank, MergeSettings, TensorRule, Weights};
pub use snapshot::{Shard, Snapshot};
pub use source::{LocalFolder, RangeSource, SnapshotPath, SourceFile};
pub use topology::{Schedule, Topology};
pub use upload::{begin_upload, discard_upload, upload_group, upload_merged};
pub use weights::{Row, SUM_TOLERANCE, Weight};
