//! A prefix of an S3 bucket, to read snapshots from and to write them to.
//!
//! Held: the ETags of what was looked at. A range is asked for with the ETag that was seen, so an object that
//! is replaced meanwhile is an error and never a mixture.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures::TryStreamExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload,
};
use pmill_snapshot::{ObjectFolder, RangeSource, SnapshotError, SnapshotPath, SourceFile};
use pmill_store::remote;
use url::Url;

/// Bytes of one read: long enough to pay for a request's latency.
const READ_BYTES: usize = 4 << 20;
/// Reads under way for each thread that computes.
const READS: usize = 4;

/// A prefix of a bucket.
pub(super) struct Folder {
    store: Arc<dyn ObjectStore>,
    uploads: Arc<dyn MultipartStore>,
    /// As people write it, without a slash at its end.
    uri: String,
    prefix: ObjectPath,
    seen: Mutex<HashMap<String, String>>,
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("Folder").field(&self.uri).finish()
    }
}

/// The bucket's name and the key, which may be empty.
fn split(uri: &str) -> Result<(&str, &str), SnapshotError> {
    let rest = uri.strip_prefix("s3://").unwrap_or_default();
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(SnapshotError::Settings {
            what: format!("`{uri}`: expected s3://BUCKET/KEY"),
        });
    }
    Ok((bucket, key.trim_matches('/')))
}

/// The snapshot at a URI.
pub(super) fn snapshot(uri: &str) -> Result<SnapshotPath, SnapshotError> {
    let (bucket, key) = split(uri)?;
    let is_file = key.ends_with(".safetensors") || key.ends_with(".safetensors.index.json");
    if !is_file {
        return Ok(SnapshotPath::new(
            Arc::new(Folder::open(bucket, key)?),
            None,
        ));
    }
    let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
    Ok(SnapshotPath::new(
        Arc::new(Folder::open(bucket, folder)?),
        Some(name.to_owned()),
    ))
}

/// The prefix under which the last name of a URI is to appear.
pub(super) fn target(uri: &str) -> Result<Arc<dyn ObjectFolder>, SnapshotError> {
    let (bucket, key) = split(uri)?;
    if key.is_empty() {
        return Err(SnapshotError::Settings {
            what: format!("`{uri}` is a whole bucket; name a folder in it (s3://BUCKET/NAME)"),
        });
    }
    let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder);
    Ok(Arc::new(Folder::open(bucket, folder)?))
}

fn io_error(error: Error) -> io::Error {
    let kind = match &error {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        // Asked for by readers only: another object than was looked at.
        Error::Precondition { .. } => io::ErrorKind::UnexpectedEof,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            io::ErrorKind::PermissionDenied
        }
        Error::InvalidPath { .. } => io::ErrorKind::InvalidInput,
        _ => io::ErrorKind::TimedOut,
    };
    io::Error::new(kind, error)
}

fn wait<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> io::Result<T> {
    remote::wait(work)
        .map_err(io::Error::other)?
        .map_err(io_error)
}

/// `None` for what is not there.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

impl Folder {
    fn open(bucket: &str, key: &str) -> Result<Self, SnapshotError> {
        let uri = match key {
            "" => format!("s3://{bucket}"),
            key => format!("s3://{bucket}/{key}"),
        };
        let refuse = |reason: String| SnapshotError::Settings {
            what: format!("`{uri}`: {reason}"),
        };
        let root = Url::parse(&format!("s3://{bucket}/"))
            .map_err(|_| refuse("not a bucket's name".into()))?;
        let chain = |error: pmill_store::StoreError| refuse(crate::error::chain(&error));
        Ok(Self {
            store: remote::bucket(&root).map_err(chain)?,
            uploads: remote::uploads(&root).map_err(chain)?,
            prefix: ObjectPath::from(key),
            seen: Mutex::default(),
            uri,
        })
    }

    fn path(&self, name: &str) -> ObjectPath {
        let parts = self.prefix.parts();
        let own = name.split('/').filter(|part| !part.is_empty());
        ObjectPath::from_iter(parts.chain(own.map(Into::into)))
    }

    /// As a file of this folder; `None` when it lies elsewhere.
    fn file(&self, meta: ObjectMeta) -> Option<SourceFile> {
        let parts = meta.location.prefix_match(&self.prefix)?;
        let name: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
        let version = meta
            .e_tag
            .unwrap_or_else(|| format!("mtime-{}", meta.last_modified.timestamp_millis()));
        Some(SourceFile {
            name: name.join("/"),
            size: meta.size,
            version,
        })
    }

    fn head(&self, name: &str) -> io::Result<SourceFile> {
        let (store, path) = (self.store.clone(), self.path(name));
        let meta = wait(async move { store.head(&path).await })?;
        let file = self
            .file(meta)
            .ok_or_else(|| io::Error::other("the store told of another object"))?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(name.to_owned(), file.version.clone());
        Ok(file)
    }
}

impl RangeSource for Folder {
    fn location(&self) -> String {
        self.uri.clone()
    }

    fn list(&self) -> io::Result<Vec<SourceFile>> {
        let (store, prefix) = (self.store.clone(), self.prefix.clone());
        let listed = wait(async move { store.list_with_delimiter(Some(&prefix)).await })?;
        Ok(listed
            .objects
            .into_iter()
            .filter_map(|meta| self.file(meta))
            .filter(|file| !file.name.is_empty())
            .collect())
    }

    fn stat(&self, name: &str) -> io::Result<SourceFile> {
        self.head(name)
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let version = self
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .filter(|version| !version.starts_with("mtime-"))
            .cloned();
        let options = GetOptions {
            range: Some(GetRange::Bounded(offset..offset + buffer.len() as u64)),
            if_match: version,
            ..GetOptions::default()
        };
        let (store, path) = (self.store.clone(), self.path(name));
        let bytes = wait(async move { store.get_opts(&path, options).await?.bytes().await })?;
        if bytes.len() != buffer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.copy_from_slice(&bytes);
        Ok(())
    }

    fn preferred_read_bytes(&self) -> usize {
        READ_BYTES
    }

    fn reads_per_thread(&self) -> usize {
        READS
    }
}

impl ObjectFolder for Folder {
    fn location(&self) -> String {
        self.uri.clone()
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<SourceFile>> {
        // Stores list by whole path segments here; the rest of the name is compared.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let (store, below) = (self.store.clone(), self.path(folder));
        let metas = wait(async move { store.list(Some(&below)).try_collect::<Vec<_>>().await })?;
        Ok(metas
            .into_iter()
            .filter_map(|meta| self.file(meta))
            .filter(|file| file.name.starts_with(prefix))
            .collect())
    }

    fn stat(&self, name: &str) -> io::Result<Option<SourceFile>> {
        found(self.head(name))
    }

    fn get(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let (store, path) = (self.store.clone(), self.path(name));
        let bytes = wait(async move { store.get(&path).await?.bytes().await });
        Ok(found(bytes)?.map(Into::into))
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        let (store, path) = (self.store.clone(), self.path(name));
        wait(async move { store.put(&path, bytes.into()).await }).map(|_| ())
    }

    fn put_new(&self, name: &str, bytes: Vec<u8>) -> io::Result<bool> {
        let (store, path) = (self.store.clone(), self.path(name));
        let work = async move {
            let options = PutOptions::from(PutMode::Create);
            match store.put_opts(&path, bytes.into(), options).await {
                Ok(_) => Ok(true),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        wait(work)
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        let (store, path) = (self.store.clone(), self.path(name));
        found(wait(async move { store.delete(&path).await })).map(|_| ())
    }

    fn begin(&self, name: &str) -> io::Result<String> {
        let (uploads, path) = (self.uploads.clone(), self.path(name));
        wait(async move { uploads.create_multipart(&path).await })
    }

    fn put_part(
        &self,
        name: &str,
        upload: &str,
        part: usize,
        bytes: Vec<u8>,
    ) -> io::Result<String> {
        let (uploads, path, id) = (self.uploads.clone(), self.path(name), upload.to_owned());
        let payload = PutPayload::from(bytes);
        let put = wait(async move { uploads.put_part(&path, &id, part, payload).await })?;
        Ok(put.content_id)
    }

    fn complete(&self, name: &str, upload: &str, parts: &[String]) -> io::Result<()> {
        let (uploads, path, id) = (self.uploads.clone(), self.path(name), upload.to_owned());
        let part = |name: &String| PartId {
            content_id: name.clone(),
        };
        let parts = parts.iter().map(part).collect();
        wait(async move { uploads.complete_multipart(&path, &id, parts).await }).map(|_| ())
    }

    fn abort(&self, name: &str, upload: &str) -> io::Result<()> {
        let (uploads, path, id) = (self.uploads.clone(), self.path(name), upload.to_owned());
        found(wait(
            async move { uploads.abort_multipart(&path, &id).await },
        ))
        .map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_a_bucket_and_a_key() {
        assert_eq!(split("s3://b/k/x/").unwrap(), ("b", "k/x"));
        assert_eq!(split("s3://b").unwrap(), ("b", ""));
        assert!(split("s3:///k").is_err());
        assert!(target("s3://b/").is_err());
    }
}
