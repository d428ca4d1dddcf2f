//! What is read and checked when a snapshot is published.
//!
//! In: a place that an agent named. Out: the snapshot's content digest, or what is wrong with it. The headers
//! and the architecture come first, so that a wrong snapshot is refused before its data is read.

use super::error::MergeServiceError;
use pmill_engine::snapshots::is_remote;
use pmill_snapshot::{
    Action, Algorithm, Digest, InspectSettings, MergeSettings, SnapshotError, SnapshotPath,
    TensorRule, Weights, inspect_with, plan_merge,
};
use std::path::{Component, Path, PathBuf};

/// How the service digests what agents publish and what it makes of it: others may write where the snapshots are.
pub(super) const ALGORITHM: Algorithm = Algorithm::Blake3;

/// The folders below which agents may publish: paths that exist, and URIs of an object store.
#[derive(Debug, Clone)]
pub struct Places {
    roots: Vec<PathBuf>,
}

/// A URI as it is compared: without empty parts, and without `.` and `..`, which mean nothing in a store.
fn plain_uri(uri: &str) -> Option<PathBuf> {
    let (scheme, rest) = uri.split_once("://")?;
    let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() || parts.iter().any(|part| [".", ".."].contains(part)) {
        return None;
    }
    Some(format!("{scheme}://{}", parts.join("/")).into())
}

impl Places {
    /// Folders that exist; at least one.
    ///
    /// # Errors
    /// No folder, or one that is not there.
    pub fn new(roots: &[PathBuf]) -> Result<Self, MergeServiceError> {
        if roots.is_empty() {
            return Err(MergeServiceError::invalid(
                "no root was given: name the folders below which agents publish their snapshots",
            ));
        }
        let whole = |root: &PathBuf| {
            if is_remote(root) {
                return plain_uri(&root.to_string_lossy()).ok_or_else(|| {
                    MergeServiceError::invalid(format!(
                        "the root `{}` is no s3://BUCKET/KEY",
                        root.display()
                    ))
                });
            }
            root.canonicalize()
                .map_err(|source| MergeServiceError::Storage {
                    action: "read",
                    path: root.clone(),
                    source,
                })
        };
        Ok(Self {
            roots: roots.iter().map(whole).collect::<Result<_, _>>()?,
        })
    }

    /// Prefixes of object stores in which merged snapshots may appear; none is no error.
    ///
    /// # Errors
    /// A place that is no URI of a store that this build writes.
    pub fn of_outputs(roots: &[PathBuf]) -> Result<Self, MergeServiceError> {
        if let Some(local) = roots.iter().find(|root| !is_remote(root)) {
            return Err(MergeServiceError::invalid(format!(
                "the output root `{}` is no s3://BUCKET/KEY; without one merged snapshots appear in the warehouse",
                local.display()
            )));
        }
        match roots {
            [] => Ok(Self { roots: Vec::new() }),
            roots => Self::new(roots),
        }
    }

    /// The URI at which a run's merged snapshot is to appear: below a root, not the root itself.
    ///
    /// # Errors
    /// No URI of a store, or one outside of the roots.
    pub fn output(&self, uri: &str) -> Result<String, MergeServiceError> {
        if self.roots.is_empty() {
            return Err(MergeServiceError::invalid(format!(
                "output `{uri}`: this service writes to its warehouse only; start it with --output-root s3://BUCKET/KEY, or announce the run without an output"
            )));
        }
        let place = plain_uri(uri).filter(|place| is_remote(place));
        let below = |place: &PathBuf| {
            let mut roots = self.roots.iter();
            roots.any(|root| place.starts_with(root) && place != root)
        };
        match place.filter(below) {
            Some(place) => Ok(place.display().to_string()),
            None => {
                let roots: Vec<_> = self
                    .roots
                    .iter()
                    .map(|root| root.display().to_string())
                    .collect();
                Err(MergeServiceError::invalid(format!(
                    "output `{uri}`: expected s3://BUCKET/KEY below {}",
                    roots.join(" or ")
                )))
            }
        }
    }

    /// The path that a URI names: absolute, `file://`, or relative to the first root that is a path. Links are
    /// followed, and where they lead must lie below a root too. A URI of an object store stays one.
    ///
    /// # Errors
    /// Another scheme, a path outside of the roots, nothing there.
    pub fn resolve(&self, uri: &str) -> Result<PathBuf, MergeServiceError> {
        let outside = || {
            let roots: Vec<String> = self
                .roots
                .iter()
                .map(|root| root.display().to_string())
                .collect();
            MergeServiceError::invalid(format!(
                "`{uri}` is outside of the folders that this service reads: {}",
                roots.join(", ")
            ))
        };
        let below = |path: &Path| self.roots.iter().any(|root| path.starts_with(root));
        let path = match uri.split_once("://") {
            Some(_) if is_remote(Path::new(uri)) => {
                // As a path `s3://bucket/key` has the parts `s3:`, `bucket` and `key`.
                return plain_uri(uri)
                    .filter(|place| below(place))
                    .ok_or_else(outside);
            }
            Some(("file", path)) if path.starts_with('/') => path,
            Some((scheme, _)) => {
                return Err(MergeServiceError::invalid(format!(
                    "`{uri}`: the merge service reads paths, file:///PATH and s3://BUCKET/KEY, not `{scheme}`"
                )));
            }
            None => uri,
        };
        if path.is_empty() {
            return Err(MergeServiceError::invalid("the URI is empty"));
        }
        let first = self.roots.iter().find(|root| !is_remote(root));
        let given = first.ok_or_else(outside)?.join(path);
        match given.canonicalize() {
            Ok(path) if below(&path) => Ok(path),
            Ok(_) => Err(outside()),
            // Whether something outside exists is nobody's business.
            Err(_) if !below(&given) || given.components().any(|c| c == Component::ParentDir) => {
                Err(outside())
            }
            Err(source) => Err(SnapshotError::Read {
                path: given.display().to_string(),
                source,
            }
            .into()),
        }
    }
}

/// A published snapshot whose checks have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Its content digest.
    pub digest: Digest,
}

/// Checks a snapshot against the run's settings and, when there is one, another snapshot of the run.
///
/// # Errors
/// Everything that would make the merge fail, a digest other than `claimed`, NaN and infinity unless allowed.
pub fn arrival(
    path: &SnapshotPath,
    claimed: Option<Digest>,
    reference: Option<&SnapshotPath>,
    settings: &MergeSettings,
) -> Result<Checked, MergeServiceError> {
    let settings = MergeSettings {
        weights: Weights::Uniform,
        rules: settings.rules.iter().map(for_two).collect(),
        ..settings.clone()
    };
    let inputs: Vec<SnapshotPath> = reference.into_iter().chain([path]).cloned().collect();
    // Only planned: nothing is written, so any name will do.
    let plan = plan_merge(&inputs, Path::new("merged"), &settings)?;
    let inventory = inspect_with(
        path,
        InspectSettings {
            read_data: true,
            algorithm: ALGORITHM,
            threads: settings.threads,
        },
    )?;
    let digest = inventory
        .digest
        .ok_or_else(|| MergeServiceError::Internal {
            what: "the data was read, but there is no digest".to_owned(),
        })?;
    if let Some(claimed) = claimed.filter(|claimed| *claimed != digest) {
        return Err(MergeServiceError::invalid(format!(
            "`{}` has the digest {digest}, but {claimed} was published; publish when the snapshot is written whole",
            path.location()
        )));
    }
    if !settings.allow_nonfinite {
        for tensor in &inventory.tensors {
            let (nan, infinite) = (tensor.nan.unwrap_or(0), tensor.infinite.unwrap_or(0));
            if nan + infinite > 0 && !plan.skipped.contains(&tensor.name) {
                return Err(MergeServiceError::invalid(format!(
                    "tensor `{}` of `{}` holds {nan} NaN and {infinite} infinite values; publish a sound snapshot, or announce the run with allow_nonfinite",
                    tensor.name,
                    path.location()
                )));
            }
        }
    }
    Ok(Checked { digest })
}

/// A rule as it applies to two snapshots: copies come from the first.
fn for_two(rule: &TensorRule) -> TensorRule {
    TensorRule {
        pattern: rule.pattern.clone(),
        action: match rule.action {
            Action::Copy(_) => Action::Copy(0),
            other => other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_the_roots_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("models");
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::create_dir(folder.path().join("secret")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret"), root.join("link")).unwrap();
        let places = Places::new(std::slice::from_ref(&root)).unwrap();
        let expected = root.canonicalize().unwrap().join("a");
        assert_eq!(places.resolve("a").unwrap(), expected);
        let absolute = expected.display().to_string();
        assert_eq!(places.resolve(&absolute).unwrap(), expected);
        assert_eq!(
            places.resolve(&format!("file://{absolute}")).unwrap(),
            expected
        );
        for outside in [
            "../secret",
            "link",
            "../nothing",
            "a/../../secret",
            "/etc/passwd",
            "/none/x",
        ] {
            let error = places.resolve(outside).unwrap_err().to_string();
            assert!(
                error.contains("outside of the folders"),
                "{outside}: {error}"
            );
        }
        assert!(places.resolve("b").unwrap_err().to_string().contains("/b"));
        let scheme = places.resolve("http://host/x").unwrap_err().to_string();
        assert!(scheme.contains("not `http`"), "{scheme}");
        assert!(Places::new(&[]).is_err());
    }

    #[test]
    fn outputs_lie_below_the_output_roots() {
        let none = Places::of_outputs(&[]).unwrap();
        assert!(
            none.output("s3://b/x")
                .unwrap_err()
                .to_string()
                .contains("--output-root")
        );
        assert!(Places::of_outputs(&["/models".into()]).is_err());
        if !is_remote(Path::new("s3://b/x")) {
            return; // a build without stores
        }
        let places = Places::of_outputs(&["s3://b/out/".into()]).unwrap();
        assert_eq!(places.output("s3://b/out//run").unwrap(), "s3://b/out/run");
        for outside in [
            "s3://b/out",
            "s3://b/output/x",
            "s3://b/out/../x",
            "s3://c/out/x",
            "/out/x",
            "out/x",
        ] {
            let error = places.output(outside).unwrap_err().to_string();
            assert!(error.contains("below s3://b/out"), "{outside}: {error}");
        }
    }
}
