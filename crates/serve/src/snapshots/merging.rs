//! The one merge of a run: averages what was decided, and makes sure that it is what was checked.

use super::checks::ALGORITHM;
use super::error::MergeServiceError;
use super::files;
use super::record::{Announcement, Decision, Outcome, Weighting};
use super::registry::Limits;
use pmill_engine::{error::chain, snapshots};
use pmill_snapshot::{
    Digest, Digests, ErrorKind, MergeReport, MergeSettings, SnapshotError, Weight, Weights,
    discard_upload, plan_merge,
};
use std::path::{Path, PathBuf};

/// A merge that was decided.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// Paths or URIs.
    pub inputs: &'a [PathBuf],
    /// Their digests, as they were checked on arrival.
    pub digests: &'a [Digest],
    /// The folder or object that is to appear.
    pub output: &'a Path,
    /// A local folder of this run alone, for what a merge needs meanwhile.
    pub folder: &'a Path,
    /// How to merge.
    pub settings: &'a MergeSettings,
}

/// Runs the one merge of a run, somewhere.
pub trait Merger: Send + Sync + std::fmt::Debug {
    /// Averages the inputs into the output, which appears whole or not at all, and not when an input has another
    /// digest; goes on where an earlier call stopped. `go_on` is asked now and then.
    ///
    /// # Errors
    /// Those of [`pmill_snapshot::merge`]; [`MergeServiceError::NotNow`] for what may pass.
    fn merge(
        &self,
        job: Job<'_>,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<MergeReport, MergeServiceError>;
}

/// Merges in this process.
#[derive(Debug, Clone, Copy)]
pub struct InProcess;

impl Merger for InProcess {
    fn merge(
        &self,
        job: Job<'_>,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<MergeReport, MergeServiceError> {
        let inputs = snapshots::open_all(job.inputs)?;
        let plan = snapshots::at_its_target(plan_merge(&inputs, job.output, job.settings)?)?;
        let plan = plan.expecting(job.digests.to_vec());
        match pmill_snapshot::merge(&plan, &|_| go_on()) {
            Err(error) if error.kind() == ErrorKind::User => {
                // What is staged helps nobody any more.
                discard_upload(&plan)?;
                Err(error.into())
            }
            other => Ok(other?),
        }
    }
}

/// Merges to where the run was announced to go, or into `folder/merged`; the model appears whole or not at all, and
/// not when an input has changed since it was checked.
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
    let merged = folder.join("merged");
    match merge_checked(
        folder,
        &merged,
        announcement,
        decision,
        limits,
        merger,
        go_on,
    ) {
        Err(error) if error.kind() != ErrorKind::NotNow => {
            pmill_snapshot::discard_staging(&merged)?;
            let message = match changed(decision, &error) {
                Some(message) => message,
                None => chain(&error),
            };
            Ok(Outcome::Failed { message })
        }
        other => other,
    }
}

/// What a run says whose snapshot is no longer the one that was published.
fn changed(decision: &Decision, error: &MergeServiceError) -> Option<String> {
    let MergeServiceError::Snapshot(SnapshotError::Unexpected { snapshot, .. }) = error else {
        return None;
    };
    let record = decision
        .merged
        .iter()
        .find(|record| record.uri == *snapshot)?;
    Some(format!(
        "`{}` of agent `{}` changed after it was published with the digest {}; announce a new run and leave published snapshots alone",
        record.uri, record.agent, record.digest
    ))
}

fn merge_checked(
    folder: &Path,
    merged: &Path,
    announcement: &Announcement,
    decision: &Decision,
    limits: Limits,
    merger: &dyn Merger,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Result<Outcome, MergeServiceError> {
    if let Some(report) = files::get::<MergeReport>(&merged.join("pmill-merge.json"))? {
        // Merged and then killed before the outcome was written.
        return outcome(merged, &report);
    }
    let mut settings = announcement.settings.clone();
    settings.threads = limits.threads;
    if let Some(bytes) = limits.memory_limit_bytes {
        settings.memory_limit_bytes = bytes;
    }
    settings.digests = Digests::All(ALGORITHM);
    settings.sync = true;
    settings.weights = match announcement.weighting {
        Weighting::Uniform => Weights::Uniform,
        Weighting::Examples => {
            let examples = decision
                .merged
                .iter()
                .map(|record| Weight::from(record.examples));
            Weights::Examples(examples.collect())
        }
    };
    let records = decision.merged.iter();
    let inputs: Vec<PathBuf> = records
        .clone()
        .map(|record| PathBuf::from(&record.uri))
        .collect();
    let digests: Vec<Digest> = records.map(|record| record.digest).collect();
    let output = announcement.output.as_ref().map_or(merged, Path::new);
    let report = merger.merge(
        Job {
            inputs: &inputs,
            digests: &digests,
            output,
            folder,
            settings: &settings,
        },
        go_on,
    )?;
    outcome(output, &report)
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
