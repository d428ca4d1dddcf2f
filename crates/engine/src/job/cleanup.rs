//! What a run leaves behind, taken away: its own, and a dead process's.

use std::path::Path;

use pmill_store::{JobLock, JobName, Warehouse, killpoint};

use crate::error::EngineError;
use crate::memory::SMALLEST_LIMIT;
use crate::session::Session;
use crate::work::clear;

/// Takes away the work in progress and orphaned table files: this run's, or a dead process's.
pub(crate) fn clean_up(
    session: &Session,
    warehouse: &Warehouse,
    name: &JobName,
    job_folder: &Path,
    lock: &JobLock,
) -> Result<(), EngineError> {
    clear(job_folder, None)?;
    killpoint::reach("the work folder is clear");
    session.wait(warehouse.sweep(name, lock))?;
    Ok(())
}

/// After a change that failed: takes away what nobody can go on from. What was refused for its content
/// will be refused again, so its work goes; other work stays for the next try.
pub(crate) fn after<T>(
    result: &Result<T, EngineError>,
    fresh: bool,
    warehouse: &Warehouse,
    name: &JobName,
    job_folder: &Path,
    lock: &JobLock,
) {
    let Err(error) = result else { return };
    if matches!(error, EngineError::Setting(_)) {
        // The error at hand is the one to tell; what cannot be removed goes at the next run.
        let _ = clear(job_folder, None);
        if let Ok(session) = Session::new(1, SMALLEST_LIMIT, None) {
            let _ = session.wait(warehouse.sweep(name, lock));
        }
    }
    if fresh {
        leave_nothing(warehouse, name, job_folder, lock);
    }
}

/// After a failed first try: takes away what it made, as far as nothing in it can be used again. A
/// folder with manifests stays, so that the next try goes on.
fn leave_nothing(warehouse: &Warehouse, name: &JobName, job_folder: &Path, lock: &JobLock) {
    let has_manifests = std::fs::read_dir(job_folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            entry.path().is_dir()
                && std::fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_some())
        })
    });
    if has_manifests {
        return;
    }
    // The error that brought us here is the one to tell; what cannot be removed is left.
    if let Ok(session) = Session::new(1, SMALLEST_LIMIT, None) {
        let _ = session.wait(warehouse.sweep(name, lock));
    }
    let _ = std::fs::remove_dir_all(job_folder);
    let Some(root) = warehouse.local() else {
        return;
    };
    let job = root.join(name.as_str());
    let tables = ["vocab", "outside", "tail", "sources", "pairs"].map(|table| job.join(table));
    for folder in tables
        .into_iter()
        .chain([job, root.join(".pmill"), root.to_owned()])
    {
        // Removes empty folders only.
        let _ = std::fs::remove_dir(folder);
    }
}

pub(crate) fn renew(folder: &Path) -> Result<(), EngineError> {
    let io = |source| EngineError::Io {
        action: "create",
        path: folder.display().to_string(),
        source,
    };
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(io)?;
    }
    std::fs::create_dir_all(folder).map_err(io)
}
