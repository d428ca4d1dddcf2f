//! Small state files: written beside their place, synced, then renamed, so that a reader sees all or nothing.

use super::error::MergeServiceError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::Path;

fn storage(action: &'static str, path: &Path, source: std::io::Error) -> MergeServiceError {
    MergeServiceError::Storage {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Writes a record and returns when it is on the disk under its name.
pub(super) fn put<T: Serialize>(path: &Path, record: &T) -> Result<(), MergeServiceError> {
    let mut bytes =
        serde_json::to_vec_pretty(record).map_err(|error| MergeServiceError::Internal {
            what: error.to_string(),
        })?;
    bytes.push(b'\n');
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let staged = folder.join(format!(".{name}.part"));
    let written = File::create(&staged)
        .and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&staged, path));
    written.map_err(|source| storage("write", path, source))?;
    sync_folder(folder)
}

/// Brings the names in a folder to the disk.
pub(super) fn sync_folder(folder: &Path) -> Result<(), MergeServiceError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| storage("write", folder, source))
}

/// Makes a folder, and its name durable.
pub(super) fn make_folder(folder: &Path) -> Result<(), MergeServiceError> {
    fs::create_dir_all(folder).map_err(|source| storage("write", folder, source))?;
    sync_folder(folder.parent().unwrap_or(Path::new(".")))
}

/// Reads a record; `None` when there is no such file.
pub(super) fn get<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, MergeServiceError> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| MergeServiceError::Format {
                    path: path.to_owned(),
                    source,
                })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(storage("read", path, source)),
    }
}

/// The names of the folders in a folder, sorted; those with a leading dot are left out.
pub(super) fn folders(folder: &Path) -> Result<Vec<String>, MergeServiceError> {
    let read = |source| storage("read", folder, source);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        if let (true, Ok(name)) = (entry.path().is_dir(), entry.file_name().into_string())
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Holds a lock file until the handle is dropped or the process ends.
pub(super) fn lock(path: &Path) -> Result<File, MergeServiceError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|source| storage("write", path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(MergeServiceError::Locked {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(storage("write", path, source)),
    }
}
