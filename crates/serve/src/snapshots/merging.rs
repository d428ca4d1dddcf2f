//! The one merge of a run: averages what was decided, and makes sure that it is what was checked.

use super::error::MergeServiceError;
use super::files;
use super::record::{Announcement, Decision, Outcome, Weighting};
use super::registry::Limits;
use pmill_engine::error::chain;
use pmill_snapshot::{
    ErrorKind, InspectSettings, MergeReport, MergeSettings, SnapshotError, SnapshotPath, Weight,
    Weights, inspect_with, plan_merge,
};
use std::path::Path;

/// Merges into `folder/merged`, which appears whole or not at all.
///
/// The merge grows in `folder/unchecked`, so that a run whose inputs changed after they were published never
/// shows a model.
///
/// # Errors
/// Only what trying again may help with.
pub(super) fn merge(
    folder: &Path,
    announcement: &Announcement,
    decision: &Decision,
    limits: Limits,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Result<Outcome, MergeServiceError> {
    match merge_checked(folder, announcement, decision, limits, go_on) {
        Err(error) if error.kind() != ErrorKind::NotNow => {
            // What is staged helps nobody any more.
            pmill_snapshot::discard_staging(&folder.join("unchecked"))?;
            Ok(Outcome::Failed {
                message: chain(&error),
            })
        }
        other => other,
    }
}

fn merge_checked(
    folder: &Path,
    announcement: &Announcement,
    decision: &Decision,
    limits: Limits,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Result<Outcome, MergeServiceError> {
    let merged = folder.join("merged");
    if let Some(report) = files::get::<MergeReport>(&merged.join("pmill-merge.json"))? {
        // Renamed and then killed before the outcome was written.
        return outcome(&merged, &report);
    }
    let mut settings = announcement.settings.clone();
    settings.threads = limits.threads;
    if let Some(bytes) = limits.memory_limit_bytes {
        settings.memory_limit_bytes = bytes;
    }
    settings.digests = true;
    settings.sync = true;
    settings.weights = match announcement.weighting {
        Weighting::Uniform => Weights::Uniform,
        Weighting::Examples => Weights::Examples(
            decision
                .merged
                .iter()
                .map(|record| Weight::from(record.examples))
                .collect(),
        ),
    };
    let inputs = decision
        .merged
        .iter()
        .map(|record| SnapshotPath::local(&record.uri))
        .collect::<Result<Vec<_>, _>>()?;
    let unchecked = folder.join("unchecked");
    let plan = plan_merge(&inputs, &unchecked, &settings)?;
    let report = match pmill_snapshot::merge(&plan, &|_| go_on()) {
        Ok(report) => report,
        Err(SnapshotError::Exists { .. }) => {
            // Of a plan that no longer holds: the inputs have changed since, and will be found out.
            remove(&unchecked)?;
            pmill_snapshot::merge(&plan, &|_| go_on())?
        }
        Err(error) => return Err(error.into()),
    };
    if let Err(error) = same_as_published(decision, &inputs, &report, &settings) {
        remove(&unchecked)?;
        return Err(error);
    }
    std::fs::rename(&unchecked, &merged).map_err(|source| MergeServiceError::Storage {
        action: "write",
        path: merged.clone(),
        source,
    })?;
    files::sync_folder(folder)?;
    outcome(&merged, &report)
}

fn remove(folder: &Path) -> Result<(), MergeServiceError> {
    std::fs::remove_dir_all(folder).map_err(|source| MergeServiceError::Storage {
        action: "write",
        path: folder.to_owned(),
        source,
    })
}

fn outcome(merged: &Path, report: &MergeReport) -> Result<Outcome, MergeServiceError> {
    let output = report
        .outputs
        .first()
        .ok_or_else(|| MergeServiceError::Internal {
            what: "a merge without an output".to_owned(),
        })?;
    Ok(Outcome::Merged {
        uri: merged.display().to_string(),
        digest: output.digest,
        weights: output.weights.clone(),
    })
}

/// Refuses a merge of other bytes than those that were checked on arrival.
fn same_as_published(
    decision: &Decision,
    inputs: &[SnapshotPath],
    report: &MergeReport,
    settings: &MergeSettings,
) -> Result<(), MergeServiceError> {
    for ((record, input), merged) in decision.merged.iter().zip(inputs).zip(&report.inputs) {
        let digest = match merged.digest {
            Some(digest) => Some(digest),
            // A rule left some tensors unread, so the merge has no digest of the whole.
            None => {
                let inspect = InspectSettings {
                    read_data: true,
                    threads: settings.threads,
                };
                inspect_with(input, inspect)?.digest
            }
        };
        if digest != Some(record.digest) {
            return Err(MergeServiceError::invalid(format!(
                "`{}` of agent `{}` changed after it was published with the digest {}; announce a new run and leave published snapshots alone",
                record.uri, record.agent, record.digest
            )));
        }
    }
    Ok(())
}
