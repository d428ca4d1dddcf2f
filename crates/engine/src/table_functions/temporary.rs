//! A folder for the length of a query. A process that dies leaves its folder; the next one takes it away.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::EngineError;

const PREFIX: &str = "pmill-query-";
const LOCK: &str = "lock";

/// A folder that goes with this value. Its lock tells other processes that it is in use.
#[derive(Debug)]
pub(super) struct TemporaryFolder {
    folder: tempfile::TempDir,
    _lock: File,
}

impl TemporaryFolder {
    /// Makes a folder in `parent`, after taking away those of dead processes there.
    pub(super) fn new(parent: &Path) -> Result<Self, EngineError> {
        sweep(parent);
        let io = |source| EngineError::Io {
            action: "create a temporary folder in",
            path: parent.display().to_string(),
            source,
        };
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(parent)
            .map_err(io)?;
        let lock = File::create(folder.path().join(LOCK)).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(source)) => return Err(io(source)),
            // A sweeper looked in just now; it finds the file without a lock only if it comes first.
            Err(TryLockError::WouldBlock) => lock.lock().map_err(io)?,
        }
        if !folder.path().join(LOCK).exists() {
            // The sweeper won: this folder is gone.
            return Self::new(parent);
        }
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Takes away folders whose process is dead. What cannot be read or removed is left: it is not ours.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    let ours = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(PREFIX))
    };
    for path in entries.flatten().map(|entry| entry.path()).filter(ours) {
        let Ok(lock) = File::options().write(true).open(path.join(LOCK)) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_folder_goes_and_a_living_one_stays() {
        let parent = tempfile::tempdir().unwrap();
        let living = TemporaryFolder::new(parent.path()).unwrap();
        let dead = parent.path().join(format!("{PREFIX}dead"));
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join(LOCK), b"").unwrap();
        std::fs::write(dead.join("pairs"), b"x").unwrap();
        let other = parent.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join(LOCK), b"").unwrap();
        let next = TemporaryFolder::new(parent.path()).unwrap();
        assert!(!dead.exists());
        assert!(living.path().join(LOCK).exists() && next.path().exists() && other.exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }
}
