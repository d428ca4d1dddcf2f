//! What stands where an output is to appear.

use super::stage::{Stage, failed, name_of};
use crate::checks::MANIFEST;
use crate::error::SnapshotError;
use crate::manifest::MergeReport;
use crate::objects::ObjectFolder;
use crate::plan::MergePlan;

pub(super) fn manifest_key(plan: &MergePlan, name: &str) -> String {
    if plan.is_file() {
        format!("{name}.{MANIFEST}")
    } else {
        format!("{name}/{MANIFEST}")
    }
}

/// What stands where the output is to appear.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Nothing,
    /// This plan's output, or the beginnings of it.
    Ours,
    Other,
}

pub(super) fn standing(
    plan: &MergePlan,
    store: &dyn ObjectFolder,
    name: &str,
) -> Result<Standing, SnapshotError> {
    if let Some(report) = manifest_of(plan, store, name)?
        && report.fingerprint == plan.fingerprint
    {
        return Ok(Standing::Ours);
    }
    let taken = if plan.is_file() {
        store
            .stat(name)
            .map_err(|error| failed(store, name)(error))?
            .is_some()
    } else {
        let prefix = format!("{name}/");
        let found = store.list(&prefix);
        !found
            .map_err(|error| failed(store, &prefix)(error))?
            .is_empty()
    };
    Ok(if taken {
        Standing::Other
    } else {
        Standing::Nothing
    })
}

fn manifest_of(
    plan: &MergePlan,
    store: &dyn ObjectFolder,
    name: &str,
) -> Result<Option<MergeReport>, SnapshotError> {
    let key = manifest_key(plan, name);
    let found = store
        .get(&key)
        .map_err(|error| failed(store, &key)(error))?;
    Ok(found.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Removes what stands at the target, weight files first, so that what is left does not load. What lies deeper
/// than a model's files is not this merge's to remove.
pub(super) fn remove(
    plan: &MergePlan,
    store: &dyn ObjectFolder,
    name: &str,
) -> Result<(), SnapshotError> {
    let mut names = Vec::new();
    if plan.is_file() {
        names.push(name.to_owned());
    } else {
        let prefix = format!("{name}/");
        let found = store.list(&prefix);
        for file in found.map_err(|error| failed(store, &prefix)(error))? {
            let inside = &file.name[prefix.len()..];
            let folder = inside.rsplit_once('/').map_or("", |(folder, _)| folder);
            if folder.is_empty() || plan.outputs.iter().any(|output| output.folder == folder) {
                names.push(file.name);
            }
        }
    }
    names.sort_by_key(|name| !name.ends_with(".safetensors"));
    for name in names {
        store
            .delete(&name)
            .map_err(|error| failed(store, &name)(error))?;
    }
    Ok(())
}

/// The report of an output that this very plan has published whole.
pub(crate) fn published(
    plan: &MergePlan,
    store: &dyn ObjectFolder,
) -> Result<Option<MergeReport>, SnapshotError> {
    let name = name_of(plan)?;
    if standing(plan, store, &name)? == Standing::Other && !plan.settings.overwrite {
        return Err(SnapshotError::Exists {
            path: plan.target.display().to_string(),
        });
    }
    let Some(report) = manifest_of(plan, store, &name)? else {
        return Ok(None);
    };
    if report.fingerprint != plan.fingerprint {
        return Ok(None);
    }
    for names in Stage::objects(plan, &name) {
        for (name, shard) in names.iter().zip(&plan.shards) {
            let found = store
                .stat(name)
                .map_err(|error| failed(store, name)(error))?;
            if found.is_none_or(|found| found.size != shard.bytes) {
                return Ok(None);
            }
        }
    }
    Ok(Some(MergeReport {
        target: plan.target.display().to_string(),
        warnings: plan.warnings.clone(),
        ..report
    }))
}
