//! Where the bytes of a table file go: a file on local disk, or an upload to an object store.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use deltalake_core::ObjectStore;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, WriteMultipart};
use tokio::runtime::Handle;

use crate::error::StoreError;

/// A file of a table, being written.
pub(crate) enum Target {
    Closed,
    Local {
        file: BufWriter<File>,
        path: PathBuf,
    },
    Remote {
        upload: WriteMultipart,
        path: String,
        runtime: Handle,
    },
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
                Ok(Self::Remote {
                    upload: WriteMultipart::new_with_chunk_size(upload, 8 << 20),
                    path: path.to_string(),
                    runtime: runtime.clone(),
                })
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
            Self::Remote {
                upload,
                path,
                runtime,
            } => runtime
                .block_on(upload.finish())
                .map(|_| ())
                .map_err(|source| StoreError::Object {
                    action: "write",
                    path,
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
            Self::Remote {
                upload, runtime, ..
            } => {
                let _inside = runtime.enter();
                runtime
                    .block_on(upload.wait_for_capacity(4))
                    .map_err(std::io::Error::other)?;
                upload.write(bytes);
                Ok(bytes.len())
            }
            Self::Closed => Err(std::io::Error::other("the file is closed")),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Local { file, .. } => file.flush(),
            Self::Remote { .. } | Self::Closed => Ok(()),
        }
    }
}
