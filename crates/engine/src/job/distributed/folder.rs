//! The folder of a plan, on a file system that all processes see, or in an object store (see [`place`](super::place)).
//!
//! ```text
//! WAREHOUSE/.pmill/JOB.units/
//!   epoch-00000003        one a start of a driver; the newest driver wins
//!   plan-DIGEST/
//!     plan.json           settings and where the units stand
//!     done/               manifests: what has one is done
//!     data/               what they name: dictionaries, tokens, runs, the vocabulary
//!     tables/             finished files of `pairs`, moved into the table by the commit
//!     attempts/           one file a unit that was begun and has not ended
//!     failures/           why attempts failed
//! ```
//!
//! Files under `data` and `tables` have a name of their own for each attempt, so that two processes
//! with the same unit never write one file.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use pmill_store::{DataFile, JobName, Warehouse};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::place::{self, is_remote};
pub(super) use super::place::{
    exists, io, make_folder, names, put_new, read, remove_all as remove,
};
use super::plan::{attempt, check_protocol};
use super::spec::UnitSpec;
use crate::error::EngineError;

/// What a plan is read from.
pub(super) const PLAN: &str = "plan.json";
/// Where manifests lie.
const DONE: &str = "done";
/// Subfolders of a plan.
const FOLDERS: [&str; 5] = [DONE, "data", "tables", "attempts", "failures"];

/// The folder of one plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanFolder {
    root: PathBuf,
}

impl PlanFolder {
    /// The folder that holds a job's plans.
    ///
    /// # Errors
    /// When the warehouse is not on a file system.
    pub fn of_job(warehouse: &Warehouse, job: &JobName) -> Result<PathBuf, EngineError> {
        Ok(Self::root_of(warehouse).join(format!("{job}.units")))
    }

    /// The folder that holds the plans of all jobs.
    #[must_use]
    pub fn root_of(warehouse: &Warehouse) -> PathBuf {
        match warehouse.local() {
            Some(root) => root.join(".pmill"),
            None => PathBuf::from(format!("{}.pmill", warehouse.url())),
        }
    }

    /// Makes the folder of a plan, if it is not there yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(plans: &Path, digest: &str) -> Result<Self, EngineError> {
        let root = plans.join(format!("plan-{digest}"));
        for folder in FOLDERS {
            make_folder(&root.join(folder))?;
        }
        Ok(Self { root })
    }

    /// A folder that somebody else made.
    ///
    /// # Errors
    /// When it is not there: the job was committed, or another plan took its place.
    pub fn open(root: &Path) -> Result<Self, EngineError> {
        let root = root.to_owned();
        if Self::is_there(&root)? {
            Ok(Self { root })
        } else {
            Err(gone(&root))
        }
    }

    fn is_there(root: &Path) -> Result<bool, EngineError> {
        // In an object store there are no folders.
        exists(&root.join(if is_remote(root) { PLAN } else { DONE }))
    }

    /// The plans of a job.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn all(plans: &Path) -> Result<Vec<Self>, EngineError> {
        let mut found = Vec::new();
        for name in names(plans)? {
            let root = plans.join(&name);
            if name.starts_with("plan-") && exists(&root.join(PLAN))? {
                found.push(Self { root });
            }
        }
        found.sort_by(|a, b| a.root.cmp(&b.root));
        Ok(found)
    }

    /// Whether a driver that started later than `epoch` has claimed the job, or the folder is gone.
    #[must_use]
    pub fn superseded(&self, epoch: u64) -> bool {
        is_over(&self.root, epoch)
    }

    /// Ends whoever drives the job, and the units that run for it: as if a newer driver had come.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn end_all(&self) -> Result<u64, EngineError> {
        claim_epoch(self.root.parent().unwrap_or(&self.root))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where attempt-unique files go.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Where data files are made: there, or on this machine until they are sent.
    pub(super) fn outbox(&self, scratch: &Path) -> Result<PathBuf, EngineError> {
        if is_remote(&self.root) {
            return place::outbox(scratch);
        }
        Ok(self.data())
    }

    /// Sends what was made in the outbox.
    pub(super) fn send(&self, scratch: &Path) -> Result<(), EngineError> {
        if !is_remote(&self.root) {
            return Ok(());
        }
        let outbox = place::outbox(scratch)?;
        for name in names(&outbox)? {
            let from = outbox.join(&name);
            place::send(&from, &self.data().join(&name))?;
            place::remove_file(&from)?;
        }
        Ok(())
    }

    /// A data file as a file of this machine.
    pub(super) fn fetch(&self, name: &str, scratch: &Path) -> Result<PathBuf, EngineError> {
        let from = self.data().join(name);
        if !is_remote(&self.root) {
            return Ok(from);
        }
        let to = scratch.join(name);
        if !to.exists() {
            place::fetch(&from, &to)?;
        }
        Ok(to)
    }

    /// Where finished table files wait for the commit. In an object store they are written to the
    /// table's own folder: no version names them yet.
    #[must_use]
    pub fn tables(&self) -> PathBuf {
        self.root.join("tables")
    }

    pub(super) fn attempts(&self) -> PathBuf {
        self.root.join("attempts")
    }

    pub(super) fn failures(&self) -> PathBuf {
        self.root.join("failures")
    }

    /// The manifests that are there.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn done(&self) -> Result<HashSet<String>, EngineError> {
        let names = names(&self.root.join(DONE))?;
        Ok(names
            .into_iter()
            .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
            .collect())
    }

    /// What all units of the plan share; `None` when it has not been written yet.
    ///
    /// # Errors
    /// When it is another version's, or cannot be read.
    pub(super) fn header<T: DeserializeOwned>(&self) -> Result<Option<T>, EngineError> {
        #[derive(Deserialize)]
        struct Version {
            protocol: u32,
            program: String,
        }
        let path = self.root.join(PLAN);
        let Some(version) = read::<Version>(&path)? else {
            return Ok(None);
        };
        check_protocol(version.protocol, &version.program)?;
        read(&path)
    }

    /// The same, which must be there.
    ///
    /// # Errors
    /// As [`Self::header`]; when it is not there.
    pub(super) fn need_header<T: DeserializeOwned>(&self) -> Result<T, EngineError> {
        self.header()?.ok_or_else(|| {
            EngineError::NotNow(format!("`{}` has no plan yet", self.root.display()))
        })
    }

    /// Whether a manifest is there.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        // Done again is better than not done.
        exists(&self.manifest(name)).unwrap_or(false)
    }

    /// Reads a manifest; `None` when it is not there.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, EngineError> {
        read(&self.manifest(name))
    }

    /// Reads a manifest that must be there.
    ///
    /// # Errors
    /// When it is not, or cannot be read.
    pub fn need<T: DeserializeOwned>(&self, name: &str) -> Result<T, EngineError> {
        self.get(name)?.ok_or_else(|| {
            EngineError::NotNow(format!(
                "`{name}` has not been done yet in `{}`",
                self.root.display()
            ))
        })
    }

    /// Puts a manifest, whole or not at all, if it is not there yet. `false` when somebody was
    /// first, which is success too: theirs stands for the same work.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, name: &str, manifest: &impl Serialize) -> Result<bool, EngineError> {
        let first = put_new(&self.root.join(DONE), &format!("{name}.json"), manifest)?;
        if is_remote(&self.root) && !exists(&self.root.join(PLAN))? {
            // A folder that is removed takes no file any more; a store does.
            place::remove_file(&self.manifest(name))?;
            return Err(gone(&self.root));
        }
        Ok(first)
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.root.join(DONE).join(format!("{name}.json"))
    }
}

fn gone(root: &Path) -> EngineError {
    EngineError::NotNow(format!(
        "the work folder `{}` is not there: the job was committed, a newer run took its place, or this machine does not see the shared file system",
        root.display()
    ))
}

/// Moves a finished file of a plan into its table. A file that an earlier commit moved is there
/// already.
pub(super) fn bring(
    plan: &PlanFolder,
    file: &DataFile,
    target: Option<&Path>,
) -> Result<(), EngineError> {
    // In an object store it was written to where it belongs.
    let Some(target) = target else { return Ok(()) };
    std::fs::create_dir_all(target).map_err(|source| io("create", target, source))?;
    let (from, to) = (plan.tables().join(&file.name), target.join(&file.name));
    match std::fs::rename(&from, &to) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io("move", &from, error)),
        _ => {}
    }
    let found = std::fs::metadata(&to).map_err(|source| io("find", &to, source))?;
    if found.len() == file.size {
        return Ok(());
    }
    Err(EngineError::Bug(format!(
        "`{}` has {} bytes where {} were written",
        to.display(),
        found.len(),
        file.size
    )))
}

const EPOCH: &str = "epoch-";

/// Claims the next epoch of a job: whoever has the newest one drives it.
pub(super) fn claim_epoch(plans: &Path) -> Result<u64, EngineError> {
    make_folder(plans)?;
    let who = attempt();
    loop {
        let next = newest_epoch(plans)? + 1;
        if put_new(plans, &format!("{EPOCH}{next:08}"), &who)? {
            return Ok(next);
        }
    }
}

/// Whether a driver that started later has claimed the job.
pub(super) fn superseded(plans: &Path, epoch: u64) -> bool {
    let newer = plans.join(format!("{EPOCH}{:08}", epoch + 1));
    // A store that does not answer says nothing.
    epoch > 0 && exists(&newer).unwrap_or(false)
}

/// Whether units of a plan run for nobody: a newer driver has the job, or the plan's folder is gone.
pub(super) fn is_over(root: &Path, epoch: u64) -> bool {
    let plans = root.parent().unwrap_or(root);
    superseded(plans, epoch) || !PlanFolder::is_there(root).unwrap_or(true)
}

/// Whether the plan of a unit has ended, on a machine that sees where plans lie.
#[must_use]
pub fn is_gone(spec: &UnitSpec) -> bool {
    let root = &spec.folder;
    let sees = is_remote(root) || root.ancestors().nth(2).is_some_and(Path::exists);
    sees && matches!(PlanFolder::is_there(root), Ok(false))
}

fn newest_epoch(plans: &Path) -> Result<u64, EngineError> {
    Ok(names(plans)?
        .iter()
        .filter_map(|name| name.strip_prefix(EPOCH)?.parse().ok())
        .max()
        .unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_put_once_whoever_comes_second() {
        let plans = tempfile::tempdir().unwrap();
        let folder = PlanFolder::make(plans.path(), "a").unwrap();
        assert!(folder.put("count-00001", &1).unwrap());
        assert!(!folder.put("count-00001", &2).unwrap());
        assert_eq!(folder.need::<i32>("count-00001").unwrap(), 1);
        let done = folder.done().unwrap();
        assert_eq!(done.into_iter().collect::<Vec<_>>(), ["count-00001"]);
        assert!(folder.need::<i32>("count-00002").is_err());
    }

    #[test]
    fn of_many_claims_each_gets_its_own_epoch_and_the_newest_stands() {
        let plans = tempfile::tempdir().unwrap();
        let mut claimed: Vec<u64> = std::thread::scope(|scope| {
            let claims: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| claim_epoch(plans.path()).unwrap()))
                .collect();
            claims.into_iter().map(|c| c.join().unwrap()).collect()
        });
        claimed.sort_unstable();
        assert_eq!(claimed, (1..=8).collect::<Vec<_>>());
        assert!(superseded(plans.path(), 7));
        assert!(!superseded(plans.path(), 8));
        assert!(!superseded(plans.path(), 0));
    }

    #[test]
    fn a_folder_that_is_gone_is_not_made_again() {
        let plans = tempfile::tempdir().unwrap();
        let folder = PlanFolder::make(plans.path(), "a").unwrap();
        std::fs::remove_dir_all(folder.path()).unwrap();
        assert!(folder.put("count-00001", &1).is_err());
        let error = PlanFolder::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is not there"), "{error}");
    }
}
