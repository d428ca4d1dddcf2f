//! The work folder of a job: manifests of what is done, so that a killed job goes on.
//!
//! A manifest is written beside its name, synced and renamed, after everything that it names; so
//! what has a manifest is done, and whatever else lies here is done again. The folder's name is a
//! digest of the plan: another plan never finds it.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::EngineError;

/// The folder in a job's folder that holds temporary files of the process that has the lock.
pub const SCRATCH: &str = "scratch";

/// A folder of manifests.
#[derive(Debug, Clone)]
pub struct WorkFolder {
    path: PathBuf,
}

impl WorkFolder {
    /// Opens (or makes) the folder of a plan inside a job's folder, and removes what other plans
    /// and dead processes left there. The caller holds the job's lock.
    ///
    /// # Errors
    /// When the folder cannot be made or cleaned.
    pub fn open(job_folder: &Path, plan: &str) -> Result<Self, EngineError> {
        let path = job_folder.join(format!("plan-{plan}"));
        clear(job_folder, Some(&path))?;
        std::fs::create_dir_all(&path).map_err(|source| io("create", &path, source))?;
        Ok(Self { path })
    }

    /// A folder that is there already.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a manifest; `None` when it is not there.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, EngineError> {
        let path = self.path.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| io("read", &path, error.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("read", &path, error)),
        }
    }

    /// Writes a manifest, whole or not at all.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn put(&self, name: &str, manifest: &impl Serialize) -> Result<(), EngineError> {
        let bytes = serde_json::to_vec(manifest);
        let bytes = bytes.map_err(|error| io("write", &self.path.join(name), error.into()))?;
        self.put_with(name, |file| {
            let written = file.write_all(&bytes);
            written.map_err(|source| pmill_count::CountError::RunWrite { source })
        })
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// When the disk is full; those of `write`.
    pub fn put_with(
        &self,
        name: &str,
        write: impl FnOnce(&mut BufWriter<&std::fs::File>) -> pmill_count::Result<()>,
    ) -> Result<(), EngineError> {
        let path = self.path.join(name);
        let fail = |source: std::io::Error| io("write", &path, source);
        let staged = tempfile::NamedTempFile::new_in(&self.path).map_err(fail)?;
        let mut buffered = BufWriter::with_capacity(1 << 20, staged.as_file());
        match write(&mut buffered) {
            Err(pmill_count::CountError::RunWrite { source }) => return Err(fail(source)),
            written => written?,
        }
        buffered.flush().map_err(fail)?;
        drop(buffered);
        staged.as_file().sync_all().map_err(fail)?;
        staged.persist(&path).map_err(|error| fail(error.error))?;
        Ok(())
    }

    /// Takes a manifest away again.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), EngineError> {
        let path = self.path.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(io("remove", &path, error))
            }
            _ => Ok(()),
        }
    }
}

/// Removes everything in a job's folder but its lock and `keep`.
///
/// # Errors
/// When something cannot be removed.
pub fn clear(job_folder: &Path, keep: Option<&Path>) -> Result<(), EngineError> {
    let entries = match std::fs::read_dir(job_folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("read", job_folder, error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| io("read", job_folder, error))?.path();
        if keep == Some(&path)
            || path
                .file_name()
                .is_some_and(|name| name == "lock" || name == SCRATCH)
        {
            continue;
        }
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(|error| io("remove", &path, error))?;
    }
    Ok(())
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Io {
        action,
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_plan_finds_nothing_and_leaves_nothing() {
        let job = tempfile::tempdir().unwrap();
        std::fs::write(job.path().join("lock"), "").unwrap();
        let first = WorkFolder::open(job.path(), "a").unwrap();
        first.put("unit-0.json", &vec![1, 2]).unwrap();
        assert_eq!(
            first.get::<Vec<i32>>("unit-0.json").unwrap(),
            Some(vec![1, 2])
        );
        let again = WorkFolder::open(job.path(), "a").unwrap();
        assert_eq!(
            again.get::<Vec<i32>>("unit-0.json").unwrap(),
            Some(vec![1, 2])
        );
        again.remove("unit-0.json").unwrap();
        again.remove("unit-0.json").unwrap();
        assert_eq!(again.get::<Vec<i32>>("unit-0.json").unwrap(), None);
        WorkFolder::open(job.path(), "b").unwrap();
        let left: Vec<_> = std::fs::read_dir(job.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
