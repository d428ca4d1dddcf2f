//! Model snapshots by path or URI: on a file system, or in an object store (`s3://BUCKET/KEY`).
//!
//! What is read and averaged, and how, is `pmill_snapshot`'s; here is only where the bytes lie. Object stores
//! are reached as in [`pmill_store::remote`]: credentials come from the `AWS_*` variables.

#[cfg(feature = "s3")]
mod bucket;

use std::path::Path;

use pmill_snapshot::{MergePlan, SnapshotError, SnapshotPath};
use pmill_store::remote;

/// Whether a place is in an object store that this build knows.
#[must_use]
pub fn is_remote(place: &Path) -> bool {
    place.to_str().is_some_and(remote::is_remote)
}

/// A snapshot: a path, or a URI of a folder, a `.safetensors` object or an index. Nothing in a store is looked
/// at yet.
///
/// # Errors
/// When nothing is at a path; a URI without a bucket; a store that the environment does not say enough of.
pub fn open(place: &Path) -> Result<SnapshotPath, SnapshotError> {
    match place.to_str() {
        #[cfg(feature = "s3")]
        Some(uri) if remote::is_remote(uri) => bucket::snapshot(uri),
        Some(uri) if uri.contains("://") => Err(SnapshotError::Settings {
            what: format!(
                "`{uri}`: expected a path, or a URI of a store that this build reads (s3://BUCKET/KEY)"
            ),
        }),
        _ => SnapshotPath::local(place),
    }
}

/// Opens all places.
///
/// # Errors
/// Those of [`open`].
pub fn open_all(places: &[impl AsRef<Path>]) -> Result<Vec<SnapshotPath>, SnapshotError> {
    places.iter().map(|place| open(place.as_ref())).collect()
}

/// Has a plan whose target is a URI write to its object store.
///
/// # Errors
/// A URI without a bucket or a name; a store that the environment does not say enough of.
pub fn at_its_target(plan: MergePlan) -> Result<MergePlan, SnapshotError> {
    let target = plan.target().to_owned();
    match target.to_str() {
        #[cfg(feature = "s3")]
        Some(uri) if remote::is_remote(uri) => Ok(plan.onto(bucket::target(uri)?)),
        Some(uri) if uri.contains("://") => Err(SnapshotError::Settings {
            what: format!(
                "`{uri}`: expected a path, or a URI of a store that this build writes (s3://BUCKET/KEY)"
            ),
        }),
        _ => Ok(plan),
    }
}
