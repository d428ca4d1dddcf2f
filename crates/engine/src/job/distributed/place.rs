//! The files of a plan, wherever it lies: on a file system that all processes see, or in an object
//! store (`s3://BUCKET/KEY` as a path).
//!
//! A file is put whole or not at all, and only if its name is not taken: by a hard link, or by a
//! conditional put. Who lost the answer to his own put is not told that somebody else was first: the
//! content decides.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, WriteMultipart};
use pmill_count::RunSource;
use pmill_store::{StoreError, remote};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::folder::PLAN;
use crate::error::EngineError;
use crate::remote_input::wait;

/// An object, or a prefix of objects.
pub(crate) struct Object {
    store: Arc<dyn ObjectStore>,
    path: ObjectPath,
}

/// The object that a path names; `None` when it is a path of a file system.
pub(crate) fn object(path: &Path) -> Result<Option<Object>, EngineError> {
    let Some(location) = path.to_str().filter(|path| remote::is_remote(path)) else {
        return Ok(None);
    };
    let wrong = |reason: String| {
        EngineError::Store(StoreError::Location {
            location: location.to_owned(),
            reason,
        })
    };
    let url = Url::parse(location).map_err(|error| wrong(error.to_string()))?;
    let path = ObjectPath::from_url_path(url.path()).map_err(|error| wrong(error.to_string()))?;
    Ok(Some(Object {
        store: remote::bucket(&url)?,
        path,
    }))
}

/// Whether a path is of an object store.
pub(crate) fn is_remote(path: &Path) -> bool {
    path.to_str().is_some_and(remote::is_remote)
}

impl Object {
    fn failed(&self, action: &'static str, source: object_store::Error) -> EngineError {
        StoreError::Object {
            action,
            path: self.path.to_string(),
            source,
        }
        .into()
    }

    fn exists(&self) -> Result<bool, EngineError> {
        let (store, path) = (self.store.clone(), self.path.clone());
        match wait(async move { store.head(&path).await })? {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.failed("look at", source)),
        }
    }

    fn read(&self) -> Result<Option<Vec<u8>>, EngineError> {
        let (store, path) = (self.store.clone(), self.path.clone());
        let got = wait(async move { store.get(&path).await?.bytes().await })?;
        match got {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed("read", source)),
        }
    }

    /// `false` when the name is taken.
    fn put_new(&self, bytes: Vec<u8>) -> Result<bool, EngineError> {
        let (store, path) = (self.store.clone(), self.path.clone());
        let options = PutMode::Create.into();
        let put = wait(async move {
            let payload = PutPayload::from(bytes);
            store.put_opts(&path, payload, options).await
        })?;
        match put {
            Ok(_) => Ok(true),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(false),
            Err(source) => Err(self.failed("write", source)),
        }
    }

    fn write_over(&self, bytes: Vec<u8>) -> Result<(), EngineError> {
        let (store, path) = (self.store.clone(), self.path.clone());
        let put = wait(async move { store.put(&path, PutPayload::from(bytes)).await })?;
        put.map(|_| ())
            .map_err(|source| self.failed("write", source))
    }

    fn names(&self) -> Result<Vec<String>, EngineError> {
        let (store, path) = (self.store.clone(), self.path.clone());
        let listed = wait(async move { store.list_with_delimiter(Some(&path)).await })?;
        let listed = listed.map_err(|source| self.failed("list", source))?;
        let files = listed.objects.iter().map(|object| &object.location);
        let all = files.chain(&listed.common_prefixes);
        Ok(all
            .filter_map(|path| path.filename().map(str::to_owned))
            .collect())
    }

    fn remove(&self) -> Result<(), EngineError> {
        let (store, path) = (self.store.clone(), self.path.clone());
        match wait(async move { store.delete(&path).await })? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.failed("remove", source)),
        }
    }

    /// Plans go first: who puts a manifest after that sees that its plan is gone, and takes it back
    /// ([`PlanFolder::put`](super::folder::PlanFolder::put)).
    fn remove_all(&self) -> Result<(), EngineError> {
        let (store, path) = (self.store.clone(), self.path.clone());
        let removed = wait(async move {
            for plans_only in [true, false] {
                let found = store.list(Some(&path)).map_ok(|meta| meta.location);
                let found = found.try_filter(move |path| {
                    let is_plan = path.filename() == Some(PLAN);
                    std::future::ready(is_plan || !plans_only)
                });
                let mut removed = store.delete_stream(found.boxed());
                while let Some(one) = removed.next().await {
                    match one {
                        Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Ok(())
        })?;
        removed.map_err(|source| self.failed("remove", source))
    }

    /// Sends a file of this machine.
    fn send(&self, from: &Path) -> Result<(), EngineError> {
        /// Bytes of a part.
        const PART: usize = 8 << 20;
        let (store, path, file) = (self.store.clone(), self.path.clone(), from.to_owned());
        let sent = wait(async move {
            // Reading a disk holds a thread that serves requests only, and not for long.
            let mut file = File::open(&file).map_err(local)?;
            if file.metadata().map_err(local)?.len() <= PART as u64 {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).map_err(local)?;
                store.put(&path, PutPayload::from(bytes)).await?;
                return Ok(());
            }
            let upload = store.put_multipart(&path).await?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
            let mut buffer = vec![0; 1 << 20];
            loop {
                let read = file.read(&mut buffer).map_err(local)?;
                if read == 0 {
                    break;
                }
                upload.wait_for_capacity(4).await?;
                upload.write(&buffer[..read]);
            }
            upload.finish().await?;
            Ok(())
        })?;
        sent.map_err(|source: object_store::Error| self.failed("write", source))
    }

    /// Brings it to this machine.
    fn fetch(&self, to: &Path) -> Result<(), EngineError> {
        let (store, path, file) = (self.store.clone(), self.path.clone(), to.to_owned());
        let came = wait(async move {
            let mut bytes = store.get(&path).await?.into_stream();
            let mut file = File::create(&file).map_err(local)?;
            while let Some(some) = bytes.next().await {
                file.write_all(&some?).map_err(local)?;
            }
            Ok(())
        })?;
        came.map_err(|source| self.failed("read", source))
    }
}

/// An error of this machine's disk on the way to or from a store; its text keeps the system's number,
/// so that it is known as one that may pass.
fn local(source: std::io::Error) -> object_store::Error {
    object_store::Error::Generic {
        store: "local disk",
        source: Box::new(source),
    }
}

/// Puts a file of JSON under a name that is not taken, whole or not at all. `false` when the name is
/// taken by other content.
pub(super) fn put_new(
    folder: &Path,
    name: &str,
    content: &impl Serialize,
) -> Result<bool, EngineError> {
    let path = folder.join(name);
    let bytes = serde_json::to_vec(content).map_err(|error| io("write", &path, error.into()))?;
    let first = match object(&path)? {
        Some(object) => object.put_new(bytes.clone())?,
        None => link_new(folder, &path, &bytes)?,
    };
    Ok(first || read_bytes(&path)?.is_some_and(|there| there == bytes))
}

/// Written and synced beside its name, then linked.
fn link_new(folder: &Path, path: &Path, bytes: &[u8]) -> Result<bool, EngineError> {
    let fail = |source: std::io::Error| io("write", path, source);
    let mut staged = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(folder)
        .map_err(fail)?;
    staged.write_all(bytes).map_err(fail)?;
    staged.as_file().sync_all().map_err(fail)?;
    match std::fs::hard_link(staged.path(), path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(fail(error)),
    }
}

/// Reads a file of JSON; `None` when it is not there.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, EngineError> {
    let Some(bytes) = read_bytes(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| io("read", path, error.into()))
}

/// Reads a file; `None` when it is not there.
pub(super) fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, EngineError> {
    if let Some(object) = object(path)? {
        return object.read();
    }
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path, error)),
    }
}

/// Writes a file under a name that nobody else has, and makes it durable.
pub(super) fn write_bytes(path: &Path, bytes: Vec<u8>) -> Result<(), EngineError> {
    if let Some(object) = object(path)? {
        // The name is of this attempt only: one that is there is this one, whose answer was lost.
        object.put_new(bytes)?;
        return Ok(());
    }
    let write = || -> std::io::Result<()> {
        std::fs::write(path, bytes)?;
        std::fs::File::open(path)?.sync_all()
    };
    write().map_err(|source| io("write", path, source))
}

/// Writes a small file that only one process writes, over the one before.
pub(super) fn write_over(path: &Path, text: String) -> Result<(), EngineError> {
    if let Some(object) = object(path)? {
        return object.write_over(text.into_bytes());
    }
    std::fs::write(path, text).map_err(|source| io("write", path, source))
}

/// Names in a folder; none when it is not there.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, EngineError> {
    if let Some(object) = object(folder)? {
        return object.names();
    }
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io("read", folder, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| io("read", folder, error))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Whether a file is there.
pub(super) fn exists(path: &Path) -> Result<bool, EngineError> {
    match object(path)? {
        Some(object) => object.exists(),
        None => Ok(path.exists()),
    }
}

/// Makes a folder, where there are folders.
pub(super) fn make_folder(path: &Path) -> Result<(), EngineError> {
    if is_remote(path) {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|source| io("create", path, source))
}

/// Removes a file. One that is not there is removed.
pub(super) fn remove_file(path: &Path) -> Result<(), EngineError> {
    if let Some(object) = object(path)? {
        return object.remove();
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Removes a folder and all in it.
pub(super) fn remove_all(path: &Path) -> Result<(), EngineError> {
    if let Some(object) = object(path)? {
        return object.remove_all();
    }
    match std::fs::remove_dir_all(path) {
        // A unit that still ran may have written while the folder went away; the next run clears it.
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Sends a file of this machine to where it is called `to`.
pub(super) fn send(from: &Path, to: &Path) -> Result<(), EngineError> {
    match object(to)? {
        Some(object) => object.send(from),
        None => Err(EngineError::Bug(format!(
            "`{}` is not in an object store",
            to.display()
        ))),
    }
}

/// Brings a file to this machine, as `to`.
pub(super) fn fetch(from: &Path, to: &Path) -> Result<(), EngineError> {
    match object(from)? {
        Some(object) => object.fetch(to),
        None => Err(EngineError::Bug(format!(
            "`{}` is not in an object store",
            from.display()
        ))),
    }
}

pub(super) fn io(action: &'static str, path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Io {
        action,
        path: path.display().to_string(),
        source,
    }
}

/// An object that is read by ranges, as runs are: what follows what was asked for comes with it.
pub(crate) struct Ranges {
    object: Object,
    size: Option<u64>,
    /// What was read last, and where it begins.
    held: Vec<u8>,
    at: u64,
}

/// Bytes that are read at once at least.
const AHEAD: u64 = 256 << 10;

impl Ranges {
    pub(crate) fn of(object: Object) -> Self {
        Self {
            object,
            size: None,
            held: Vec::new(),
            at: 0,
        }
    }
}

impl RunSource for Ranges {
    fn size(&mut self) -> std::io::Result<u64> {
        if let Some(size) = self.size {
            return Ok(size);
        }
        let (store, path) = (self.object.store.clone(), self.object.path.clone());
        let head = wait(async move { store.head(&path).await }).map_err(std::io::Error::other)?;
        let size = head.map_err(std::io::Error::other)?.size;
        Ok(*self.size.insert(size))
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let (size, length) = (self.size()?, buffer.len() as u64);
        if offset + length > size {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let held = self.at..self.at + self.held.len() as u64;
        if offset < held.start || offset + length > held.end {
            let range = offset..(offset + length.max(AHEAD)).min(size);
            let (store, path) = (self.object.store.clone(), self.object.path.clone());
            let read = wait(async move { store.get_range(&path, range).await });
            let read = read.map_err(std::io::Error::other)?;
            self.held = read.map_err(std::io::Error::other)?.to_vec();
            self.at = offset;
        }
        let start = usize::try_from(offset - self.at).map_err(std::io::Error::other)?;
        let bytes = self.held.get(start..start + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A folder of this machine in which files are made that are then sent.
pub(super) fn outbox(scratch: &Path) -> Result<PathBuf, EngineError> {
    let path = scratch.join("out");
    std::fs::create_dir_all(&path).map_err(|source| io("create", &path, source))?;
    Ok(path)
}
