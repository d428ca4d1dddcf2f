//! Where an output grows until it is whole: `.NAME.pmill-part` beside `NAME`.
//!
//! At the end every file is synced and listed in `SHA256SUMS` (which `sha256sum -c` checks), and one
//! rename makes the folder visible. What a killed process left is taken away by the next one that
//! writes the same output; a lock keeps two of them apart.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::MatrixError;

/// The list of checksums in an output folder.
pub const SUMS: &str = "SHA256SUMS";

/// A folder on its way to become visible.
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    part: PathBuf,
    lock: Option<File>,
    overwrite: bool,
}

/// A file of a published folder.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct StagedFile {
    /// Name inside the folder, with `/`.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

fn sibling(target: &Path, ending: &str) -> PathBuf {
    let name = target
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    target.with_file_name(format!(".{name}.pmill-{ending}"))
}

/// Whether something stands at `target`; an empty folder does not count.
fn is_taken(target: &Path) -> bool {
    match fs::read_dir(target) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => fs::symlink_metadata(target).is_ok(),
    }
}

impl Staging {
    /// Begins an output. Nothing is at `target` before [`Staging::publish`].
    ///
    /// # Errors
    /// [`MatrixError::Exists`] when the target is taken and may not be replaced,
    /// [`MatrixError::Busy`] when another process writes it.
    pub fn begin(target: &Path, overwrite: bool) -> Result<Self, MatrixError> {
        let target = std::path::absolute(target).map_err(MatrixError::io("find", target))?;
        let target: PathBuf = target.components().collect();
        if target.file_name().is_none() {
            return Err(MatrixError::Setting(format!(
                "`{}` cannot be an output; give the name of a new folder",
                target.display()
            )));
        }
        if is_taken(&target) && !overwrite {
            return Err(MatrixError::Exists(target.display().to_string()));
        }
        let part = sibling(&target, "part");
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(MatrixError::io("create", parent))?;
        }
        let lock_path = sibling(&target, "lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(MatrixError::io("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(MatrixError::Busy(target.display().to_string()));
            }
            Err(TryLockError::Error(error)) => {
                return Err(MatrixError::io("lock", &lock_path)(error));
            }
        }
        if part.exists() {
            fs::remove_dir_all(&part).map_err(MatrixError::io("remove", &part))?;
        }
        fs::create_dir_all(&part).map_err(MatrixError::io("create", &part))?;
        Ok(Self {
            target,
            part,
            lock: Some(lock),
            overwrite,
        })
    }

    /// The folder that files are written into.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.part
    }

    /// Starts a file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(&self, name: &str) -> Result<BufWriter<File>, MatrixError> {
        create(&self.part, name)
    }

    /// Syncs everything, lists it in `SHA256SUMS`, and makes the folder visible.
    ///
    /// # Errors
    /// When a file cannot be read again, or the folder not be renamed; nothing is visible then.
    pub fn publish(mut self) -> Result<Vec<StagedFile>, MatrixError> {
        let mut names = Vec::new();
        walk(&self.part, "", &mut names)?;
        names.sort();
        let mut files = Vec::new();
        let mut list = String::new();
        for name in names {
            let (bytes, sha256) = digest(&self.part.join(&name))?;
            list.push_str(&format!("{sha256}  {name}\n"));
            files.push(StagedFile {
                name,
                bytes,
                sha256,
            });
        }
        let path = self.part.join(SUMS);
        let mut sums = File::create(&path).map_err(MatrixError::io("create", &path))?;
        sums.write_all(list.as_bytes())
            .and_then(|()| sums.sync_all())
            .map_err(MatrixError::io("write", &path))?;
        let old = sibling(&self.target, "old");
        if is_taken(&self.target) {
            if !self.overwrite {
                return Err(MatrixError::Exists(self.target.display().to_string()));
            }
            remove(&old)?;
            fs::rename(&self.target, &old).map_err(MatrixError::io("replace", &self.target))?;
        }
        fs::rename(&self.part, &self.target).map_err(MatrixError::io("publish", &self.target))?;
        remove(&old)?;
        if let Some(parent) = self.target.parent()
            && let Ok(folder) = File::open(parent)
        {
            // A rename that is not yet on disk is the file system's affair; nothing is half there.
            let _ = folder.sync_all();
        }
        self.unlock();
        Ok(files)
    }

    fn unlock(&mut self) {
        if self.lock.take().is_some() {
            // Left behind it does no harm: the lock itself went with the process.
            let _ = fs::remove_file(sibling(&self.target, "lock"));
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.lock.is_some() {
            let _ = fs::remove_dir_all(&self.part);
            self.unlock();
        }
    }
}

pub(crate) fn create(folder: &Path, name: &str) -> Result<BufWriter<File>, MatrixError> {
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(MatrixError::io("create", parent))?;
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(MatrixError::io("create", &path))?;
    Ok(BufWriter::with_capacity(1 << 20, file))
}

fn remove(path: &Path) -> Result<(), MatrixError> {
    if path.is_dir() {
        fs::remove_dir_all(path).map_err(MatrixError::io("remove", path))
    } else if fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path).map_err(MatrixError::io("remove", path))
    } else {
        Ok(())
    }
}

fn walk(folder: &Path, prefix: &str, names: &mut Vec<String>) -> Result<(), MatrixError> {
    for entry in fs::read_dir(folder).map_err(MatrixError::io("read", folder))? {
        let entry = entry.map_err(MatrixError::io("read", folder))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            walk(&entry.path(), &format!("{name}/"), names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}

/// Bytes and SHA-256 of a file; the file is on disk after.
fn digest(path: &Path) -> Result<(u64, String), MatrixError> {
    let mut file = File::open(path).map_err(MatrixError::io("read", path))?;
    file.sync_all().map_err(MatrixError::io("write", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file
            .read(&mut buffer)
            .map_err(MatrixError::io("read", path))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
    let hex = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((bytes, hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_seen_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("deep/out");
        let staging = Staging::begin(&target, false).unwrap();
        staging
            .create("data/a.txt")
            .unwrap()
            .write_all(b"abc")
            .unwrap();
        assert!(!target.exists());
        assert!(matches!(
            Staging::begin(&target, false),
            Err(MatrixError::Busy(_))
        ));
        let files = staging.publish().unwrap();
        assert_eq!(files[0].name, "data/a.txt");
        // The digest of "abc" in FIPS 180-4.
        assert!(
            files[0]
                .sha256
                .starts_with("ba7816bf8f01cfea414140de5dae2223")
        );
        assert!(
            fs::read_to_string(target.join(SUMS))
                .unwrap()
                .ends_with("  data/a.txt\n")
        );
        assert!(matches!(
            Staging::begin(&target, false),
            Err(MatrixError::Exists(_))
        ));
        drop(Staging::begin(&target, true).unwrap());
        assert!(
            target.join("data/a.txt").exists(),
            "given up, so nothing was replaced"
        );
        let again = Staging::begin(&target, true).unwrap();
        again.create("b").unwrap();
        again.publish().unwrap();
        assert!(!target.join("data").exists());
        let beside: Vec<_> = fs::read_dir(target.parent().unwrap()).unwrap().collect();
        assert_eq!(beside.len(), 1, "{beside:?}");
    }

    #[test]
    fn what_a_dead_process_left_goes_away() {
        let root = tempfile::tempdir().unwrap();
        let part = root.path().join(".out.pmill-part");
        fs::create_dir_all(part.join("data")).unwrap();
        fs::write(part.join("data/half"), "x").unwrap();
        let staging = Staging::begin(&root.path().join("out"), false).unwrap();
        assert!(!part.join("data").exists());
        assert!(staging.publish().unwrap().is_empty());
    }
}
