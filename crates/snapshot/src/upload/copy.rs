//! A model that was merged to disk, onto the store that its plan names.

use super::groups::Group;
use super::stage::Stage;
use super::{store_of, sweep};
use crate::error::SnapshotError;
use crate::layout::PlannedShard;
use crate::merge::{OnProgress, Progress};
use crate::plan::MergePlan;
use crate::settings::thread_count;
use crate::staging::manifest_name;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Uploads `model`, which a plan of the same merge has written to disk, to where `plan` writes: in parts, and so
/// that nothing loads before all is there, as [`crate::merge`] does. Its manifest comes along as it is.
///
/// Held: a part for each thread.
///
/// # Errors
/// A model that is not of this plan; an output that exists; whatever the store says. After an error nothing that
/// loads is there, and the next call begins anew.
pub fn upload_merged(
    plan: &MergePlan,
    model: &Path,
    on_progress: OnProgress<'_>,
) -> Result<(), SnapshotError> {
    let store = store_of(plan)?;
    let manifest_path = match plan.is_file() {
        true => model.with_file_name(manifest_name(model)),
        false => model.join(manifest_name(model)),
    };
    let manifest = std::fs::read(&manifest_path)
        .map_err(|error| SnapshotError::read(manifest_path.display(), error))?;
    let report: Option<crate::MergeReport> = serde_json::from_slice(&manifest).ok();
    if report.is_none_or(|report| report.fingerprint != plan.fingerprint) {
        return Err(SnapshotError::Settings {
            what: format!("`{}` is not the model of this merge", model.display()),
        });
    }
    let files = open_all(plan, model)?;
    let stage = Stage::open(plan, store, true)?;
    let completed = stage.completed()?;
    let starts = starts(&stage.groups);
    let (next, done_bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let parts = Mutex::new(vec![Vec::new(); stage.groups.len()]);
    let failure = Mutex::new(None);
    let stopped = || {
        failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    };
    let work = || {
        while !stopped() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(group) = stage.groups.get(index) else {
                return;
            };
            let result = (|| {
                let mut names = Vec::with_capacity(files.len());
                for (output, files) in files.iter().enumerate() {
                    if completed[output][group.shard] {
                        names.push(String::new());
                        continue;
                    }
                    let (path, file) = &files[group.shard];
                    let mut bytes = vec![0; usize::try_from(group.bytes).unwrap_or(usize::MAX)];
                    file.read_exact_at(&mut bytes, starts[index])
                        .map_err(|error| SnapshotError::read(path.display(), error))?;
                    names.push(stage.put_part(output, group, bytes)?);
                }
                let progress = Progress {
                    done_bytes: done_bytes.fetch_add(group.bytes, Ordering::Relaxed) + group.bytes,
                    total_bytes: plan.output_bytes(),
                };
                match on_progress(progress) {
                    true => Ok(names),
                    false => Err(SnapshotError::Stopped),
                }
            })();
            match result {
                Ok(names) => parts.lock().unwrap_or_else(PoisonError::into_inner)[index] = names,
                Err(error) => {
                    failure
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        // A worker waits while it uploads.
        for _ in 1..thread_count(plan.settings.threads) * 2 {
            scope.spawn(work);
        }
        work();
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        // While the store is away nothing can be removed; the next run finds what is left.
        let _ = sweep(plan, store);
        return Err(error);
    }
    let parts = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
    stage.publish(manifest, &parts)
}

/// The weight files of each output.
fn open_all(plan: &MergePlan, model: &Path) -> Result<Vec<Vec<(PathBuf, File)>>, SnapshotError> {
    let open = |folder: &str, shard: &PlannedShard| {
        let path = match plan.is_file() {
            true => model.to_owned(),
            false => model.join(folder).join(&shard.file),
        };
        match File::open(&path) {
            Ok(file) => Ok((path, file)),
            Err(error) => Err(SnapshotError::read(path.display(), error)),
        }
    };
    let of_output = |output: &crate::plan::PlannedOutput| {
        let shards = plan.shards.iter();
        shards.map(|shard| open(&output.folder, shard)).collect()
    };
    plan.outputs.iter().map(of_output).collect()
}

/// Where each group begins in its file.
fn starts(groups: &[Group]) -> Vec<u64> {
    let mut at = 0;
    let mut starts = Vec::with_capacity(groups.len());
    for group in groups {
        if group.part == 0 {
            at = 0;
        }
        starts.push(at);
        at += group.bytes;
    }
    starts
}
