//! Where the bytes come from: a folder of named files that can be listed and read by range.
//!
//! [`LocalFolder`] is the only implementation here; `pmill_engine::snapshots` has that of an object store.

use crate::error::SnapshotError;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

/// One file of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Name inside the folder, without slashes.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// Changes whenever the content does: the modification time of a local file, the ETag of an object.
    pub version: String,
}

/// A folder whose files are read by byte range.
///
/// Errors are plain `io::Error`; this crate adds the location and the file's name. A backend that is
/// away for a while should say `TimedOut`, `ConnectionRefused` or the like, so that callers know that
/// trying again helps.
pub trait RangeSource: Send + Sync + std::fmt::Debug {
    /// The folder as people write it: a path or a URI.
    fn location(&self) -> String;

    /// The regular files directly in the folder, in any order.
    ///
    /// # Errors
    /// Whatever the backend says.
    fn list(&self) -> io::Result<Vec<SourceFile>>;

    /// Size and version of one file.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    fn stat(&self, name: &str) -> io::Result<SourceFile>;

    /// Fills `buffer` from `offset` of the file `name`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before the buffer is full, or is another one than `stat` told of.
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The length of a read that pays for its latency: small for a local file (the copy should stay in
    /// the processor's cache), megabytes for an object store.
    fn preferred_read_bytes(&self) -> usize {
        256 << 10
    }

    /// How many reads should be under way for each thread that computes: 1 for a local file, whose
    /// reads seldom wait; more for an object store.
    fn reads_per_thread(&self) -> usize {
        1
    }
}

/// A folder of the local file system.
#[derive(Debug)]
pub struct LocalFolder {
    folder: PathBuf,
    open: Mutex<HashMap<String, Arc<File>>>,
}

/// Handles kept per folder; a merge of 64 snapshots stays below the usual limit of 1,024.
const OPEN_FILES: usize = 8;

impl LocalFolder {
    /// A folder; nothing is read yet.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            open: Mutex::default(),
        }
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        let mut open = self
            .open
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(file) = open.get(name) {
            return Ok(Arc::clone(file));
        }
        if open.len() >= OPEN_FILES {
            open.clear();
        }
        let file = Arc::new(File::open(self.folder.join(name))?);
        open.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

fn stamp(name: String, meta: &std::fs::Metadata) -> SourceFile {
    let modified = meta
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |age| age.as_nanos());
    SourceFile {
        name,
        size: meta.len(),
        version: format!("mtime-{modified}"),
    }
}

impl RangeSource for LocalFolder {
    fn location(&self) -> String {
        self.folder.display().to_string()
    }

    fn list(&self) -> io::Result<Vec<SourceFile>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            // Hub caches hold symbolic links to blobs, so links are followed; a dangling one is no file.
            let Ok(meta) = std::fs::metadata(entry.path()) else {
                continue;
            };
            if let (true, Ok(name)) = (meta.is_file(), entry.file_name().into_string()) {
                files.push(stamp(name, &meta));
            }
        }
        Ok(files)
    }

    fn stat(&self, name: &str) -> io::Result<SourceFile> {
        let meta = std::fs::metadata(self.folder.join(name))?;
        if !meta.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "not a regular file",
            ));
        }
        Ok(stamp(name.to_owned(), &meta))
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file(name)?.read_exact_at(buffer, offset)
    }
}

/// A snapshot as it was named: a folder, or one file in it.
#[derive(Debug, Clone)]
pub struct SnapshotPath {
    pub(crate) source: Arc<dyn RangeSource>,
    pub(crate) file: Option<String>,
}

impl SnapshotPath {
    /// A snapshot on the local file system: a folder, one `.safetensors` file, or an
    /// `*.safetensors.index.json` file.
    ///
    /// # Errors
    /// When nothing is there.
    pub fn local(path: impl AsRef<Path>) -> Result<Self, SnapshotError> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path)
            .map_err(|source| SnapshotError::read(path.display(), source))?;
        if meta.is_dir() {
            return Ok(Self::new(Arc::new(LocalFolder::new(path)), None));
        }
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| SnapshotError::Settings {
                what: format!("`{}` has no file name in UTF-8", path.display()),
            })?;
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok(Self::new(
            Arc::new(LocalFolder::new(folder)),
            Some(name.to_owned()),
        ))
    }

    /// A snapshot behind any source: `file` names one file in it, `None` means the whole folder.
    #[must_use]
    pub fn new(source: Arc<dyn RangeSource>, file: Option<String>) -> Self {
        Self { source, file }
    }

    /// The place as people write it.
    #[must_use]
    pub fn location(&self) -> String {
        match &self.file {
            Some(file) => join(&self.source.location(), file),
            None => self.source.location(),
        }
    }
}

/// `folder/name`, with one slash.
pub(crate) fn join(folder: &str, name: &str) -> String {
    format!("{}/{name}", folder.trim_end_matches('/'))
}

/// Reads a small whole file, up to `limit_bytes`.
pub(crate) fn read_small(
    source: &dyn RangeSource,
    name: &str,
    limit_bytes: u64,
) -> Result<Vec<u8>, SnapshotError> {
    let place = || join(&source.location(), name);
    let size = source
        .stat(name)
        .map_err(|error| SnapshotError::read(place(), error))?
        .size;
    if size > limit_bytes {
        return Err(SnapshotError::TooLarge {
            path: place(),
            size_bytes: size,
            limit_bytes,
        });
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    source
        .read_at(name, 0, &mut bytes)
        .map_err(|error| SnapshotError::read(place(), error))?;
    Ok(bytes)
}
