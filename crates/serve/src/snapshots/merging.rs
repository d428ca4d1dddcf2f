//! The one merge of a run: averages what was decided, and makes sure that it is what was checked.

use super::error::MergeServiceError;
use super::files;
use super::record::{Announcement, Decision, Outcome, Weighting};
use super::registry::Limits;
use pmill_engine::{error::chain, snapshots};
use pmill_snapshot::{
    ErrorKind, InspectSettings, MergeReport, MergeSettings, SnapshotPath, Weight, Weights,
    inspect_with, plan_merge,
};
use std::path::{Path, PathBuf};

/// Runs the one merge of a run, somewhere.
pub trait Merger: Send + Sync + std::fmt::Debug {
    /// Averages `inputs` (paths or URIs) into the folder `output`, which appears whole or not at all; goes on
    /// where an earlier call stopped. `go_on` is asked now and then.
    ///
    /// # Errors
    /// Those of [`pmill_snapshot::merge`]; [`MergeServiceError::NotNow`] for what may pass.
    fn merge(
        &self,
        inputs: &[PathBuf],
        output: &Path,
        settings: &MergeSettings,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<MergeReport, MergeServiceError>;
}

/// Merges in this process.
#[derive(Debug, Clone, Copy)]
pub struct InProcess;

impl Merger for InProcess {
    fn merge(
        &self,
        inputs: &[PathBuf],
        output: &Path,
        settings: &MergeSettings,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<MergeReport, MergeServiceError> {
        let plan = plan_merge(&snapshots::open_all(inputs)?, output, settings)?;
        Ok(pmill_snapshot::merge(&plan, &|_| go_on())?)
    }
}

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
    merger: &dyn Merger,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Result<Outcome, MergeServiceError> {
    match merge_checked(folder, announcement, decision, limits, merger, go_on) {
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
    merger: &dyn Merger,
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
    let inputs: Vec<PathBuf> = decision
        .merged
        .iter()
        .map(|record| PathBuf::from(&record.uri))
        .collect();
    let unchecked = folder.join("unchecked");
    let report = match merger.merge(&inputs, &unchecked, &settings, go_on) {
        Err(error) if unchecked.exists() && error.kind() == ErrorKind::User => {
            // Of a plan that no longer holds: the inputs have changed since, and will be found out.
            remove(&unchecked)?;
            merger.merge(&inputs, &unchecked, &settings, go_on)?
        }
        other => other?,
    };
    let inputs = snapshots::open_all(&inputs)?;
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
