//! Model snapshots by path or URI: on a file system, or in an object store (`s3://BUCKET/KEY`).
//!
//! What is read and averaged, and how, is `pmill_snapshot`'s; here is only where the bytes lie. Object stores
//! are reached as in [`pmill_store::remote`]: credentials come from the `AWS_*` variables.

#[cfg(feature = "s3")]
mod bucket;

use std::path::Path;
use std::sync::Arc;

use pmill_snapshot::{MergePlan, ObjectFolder, SnapshotError, SnapshotPath};
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

/// Whether something is at a place: a file or object, or something in a folder.
///
/// # Errors
/// Those of [`at_its_target`]; a store that is away.
pub fn is_taken(place: &Path) -> Result<bool, SnapshotError> {
    let Some(uri) = place.to_str().filter(|uri| uri.contains("://")) else {
        return Ok(match std::fs::read_dir(place) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => std::fs::symlink_metadata(place).is_ok(),
        });
    };
    let store = store_of(uri)?;
    let name = uri
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let read = |source| SnapshotError::Read {
        path: uri.to_owned(),
        source,
    };
    Ok(store.stat(name).map_err(read)?.is_some()
        || !store.list(&format!("{name}/")).map_err(read)?.is_empty())
}

fn store_of(uri: &str) -> Result<Arc<dyn ObjectFolder>, SnapshotError> {
    #[cfg(feature = "s3")]
    if remote::is_remote(uri) {
        return bucket::target(uri);
    }
    Err(SnapshotError::Settings {
        what: format!(
            "`{uri}`: expected a path, or a URI of a store that this build writes (s3://BUCKET/KEY)"
        ),
    })
}

/// Has a plan whose target is a URI write to its object store.
///
/// # Errors
/// A URI without a bucket or a name; a store that the environment does not say enough of.
pub fn at_its_target(plan: MergePlan) -> Result<MergePlan, SnapshotError> {
    let target = plan.target().to_owned();
    match target.to_str() {
        Some(uri) if uri.contains("://") => Ok(plan.onto(store_of(uri)?)),
        _ => Ok(plan),
    }
}
