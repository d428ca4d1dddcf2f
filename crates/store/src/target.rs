//! Where the bytes of a table file go: a file on local disk, or an upload to an object store.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use deltalake_core::ObjectStore;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStoreExt};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::error::StoreError;

/// Bytes of a part, and parts that are on their way at once.
const PART_BYTES: usize = 8 << 20;
const PARTS_AT_ONCE: usize = 4;
/// A store that is away is not waited for once more to take an upload back.
const ABORT_SECONDS: u64 = 10;

/// A file of a table, being written.
pub(crate) enum Target {
    Closed,
    Local {
        file: BufWriter<File>,
        path: PathBuf,
    },
    Remote(Upload),
}

/// An upload in parts. If it does not come to its end, what was sent is taken back: the store would keep
/// it, and charge for it, where nobody sees it.
pub(crate) struct Upload {
    /// `None` once it is complete.
    upload: Option<Box<dyn MultipartUpload>>,
    sent: JoinSet<object_store::Result<()>>,
    part: Vec<u8>,
    path: String,
    runtime: Handle,
}

impl Upload {
    /// Sends the part at hand, when there is room for one more on the way.
    fn send(&mut self) -> object_store::Result<()> {
        let part = std::mem::take(&mut self.part);
        if let Some(upload) = &mut self.upload {
            let sending = upload.put_part(part.into());
            self.sent.spawn_on(sending, &self.runtime);
        }
        self.settle(PARTS_AT_ONCE)
    }

    /// Waits until at most so many parts are on their way.
    fn settle(&mut self, most: usize) -> object_store::Result<()> {
        while self.sent.len() > most {
            match self.runtime.block_on(self.sent.join_next()) {
                None => break,
                Some(Ok(sent)) => sent?,
                Some(Err(source)) => return Err(object_store::Error::JoinError { source }),
            }
        }
        Ok(())
    }

    fn complete(&mut self) -> object_store::Result<()> {
        if !self.part.is_empty() {
            self.send()?;
        }
        self.settle(0)?;
        if let Some(upload) = &mut self.upload {
            self.runtime.block_on(upload.complete())?;
        }
        self.upload = None;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else {
            return;
        };
        let sent = &mut self.sent;
        let abort = async {
            sent.shutdown().await;
            upload.abort().await
        };
        let limit = std::time::Duration::from_secs(ABORT_SECONDS);
        // What went wrong before is told by the writer; a store that is away keeps the parts.
        let _ = self
            .runtime
            .block_on(async { tokio::time::timeout(limit, abort).await });
    }
}

impl Target {
    /// Starts a file `name` in the table folder `folder` (relative to `store`'s root). `local` is
    /// the same folder on this machine's disk, when the warehouse is there.
    pub(crate) fn create(
        store: &Arc<dyn ObjectStore>,
        folder: &ObjectPath,
        local: Option<PathBuf>,
        name: &str,
        runtime: &Handle,
    ) -> Result<Self, StoreError> {
        match local {
            Some(folder) => {
                let path = folder.join(name);
                let io = |source| StoreError::Io {
                    action: "create",
                    path: path.display().to_string(),
                    source,
                };
                std::fs::create_dir_all(&folder).map_err(io)?;
                Ok(Self::Local {
                    file: BufWriter::with_capacity(1 << 20, File::create(&path).map_err(io)?),
                    path,
                })
            }
            None => {
                let path = folder.clone().join(name);
                let upload = runtime
                    .block_on(store.put_multipart(&path))
                    .map_err(|source| StoreError::Object {
                        action: "create",
                        path: path.to_string(),
                        source,
                    })?;
                Ok(Self::Remote(Upload {
                    upload: Some(upload),
                    sent: JoinSet::new(),
                    part: Vec::new(),
                    path: path.to_string(),
                    runtime: runtime.clone(),
                }))
            }
        }
    }

    /// Makes the file durable; nothing can be written after.
    pub(crate) fn close(&mut self) -> Result<(), StoreError> {
        match std::mem::replace(self, Self::Closed) {
            Self::Local { file, path } => {
                let io = |source| StoreError::Io {
                    action: "write",
                    path: path.display().to_string(),
                    source,
                };
                let file = file.into_inner().map_err(|error| io(error.into_error()))?;
                file.sync_all().map_err(io)
            }
            Self::Remote(mut upload) => upload.complete().map_err(|source| StoreError::Object {
                action: "write",
                path: upload.path.clone(),
                source,
            }),
            Self::Closed => Ok(()),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Local { file, .. } => file.write(bytes),
            Self::Remote(upload) => {
                let room = PART_BYTES - upload.part.len();
                let taken = bytes.len().min(room);
                upload.part.extend_from_slice(&bytes[..taken]);
                if upload.part.len() == PART_BYTES {
                    upload.send().map_err(std::io::Error::other)?;
                }
                Ok(taken)
            }
            Self::Closed => Err(std::io::Error::other("the file is closed")),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Local { file, .. } => file.flush(),
            Self::Remote(_) | Self::Closed => Ok(()),
        }
    }
}
