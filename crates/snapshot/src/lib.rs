#![cfg_attr(test, allow(clippy::unwrap_used))]
//! pmill snapshot
mod dtype;
mod error;
mod exact;
mod header;
mod kernel;
#[cfg(test)]
mod exactness;
mod snapshot;
mod source;
mod weights;
pub use dtype::{DType, Float};
pub use error::{ErrorKind, HeaderFault, Problem, SnapshotError};
pub use header::{Header, MAX_HEADER_BYTES, TensorInfo, byte_length, header_length, parse_header, read_header, write_header};
pub use snapshot::{Shard, Snapshot};
pub use source::{LocalFolder, RangeSource, SnapshotPath, SourceFile};
pub use weights::{Row, SUM_TOLERANCE, Weight};
