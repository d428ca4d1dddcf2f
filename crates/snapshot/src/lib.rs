#![cfg_attr(test, allow(clippy::unwrap_used))]
//! pmill snapshot
mod checks;
mod digest;
mod distance;
mod distance_report;
mod dtype;
mod error;
mod exact;
mod header;
mod inspect;
mod kernel;
mod layout;
mod lowrank;
mod manifest;
mod merge;
mod mix;
mod plan;
mod settings;
mod staging;
#[cfg(test)]
mod exactness;
mod snapshot;
mod source;
mod topology;
mod weights;
pub use dtype::{DType, Float};
pub use error::{ErrorKind, HeaderFault, Problem, SnapshotError};
pub use header::{Header, MAX_HEADER_BYTES, TensorInfo, byte_length, header_length, parse_header, read_header, write_header};
pub use snapshot::{Shard, Snapshot};
pub use source::{LocalFolder, RangeSource, SnapshotPath, SourceFile};
pub use weights::{Row, SUM_TOLERANCE, Weight};

pub use digest::{Digest, SLICE_ELEMENTS};
pub use manifest::{InputRecord, MergeReport, OutputRecord};
pub use merge::{OnProgress, Progress, discard_staging, merge};
pub use plan::{MergePlan, Slice, plan_merge};
pub use settings::{Action, LowRank, MergeSettings, TensorRule, Weights};
pub use distance::{DistanceSettings, distance};
pub use distance_report::{DistanceReport, LIKELY_COSINE, TensorDistance, UNLIKELY_COSINE, Verdict};
pub use inspect::{InspectSettings, Inventory, TensorEntry, inspect, inspect_with};
pub use mix::{MAX_POINTS, Points, interpolate, mix, plan_interpolate, plan_mix};
pub use topology::{MAX_AGENTS, MatrixReport, MixingMatrix, Schedule, Topology};
