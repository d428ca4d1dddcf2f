//! A warehouse: a folder on disk (or, with the `s3` feature, in an object store) that holds jobs.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use deltalake_core::{DeltaTableBuilder, ObjectStore};
use object_store::path::Path as ObjectPath;
use url::Url;

use crate::error::StoreError;
use crate::job::JobName;
use crate::remote;

static WORK_FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Says where work in progress on warehouses in object stores is kept. The first call counts.
pub fn set_work_folder(folder: PathBuf) {
    // A second call changes nothing.
    let _ = WORK_FOLDER.set(folder);
}

fn cache_folder() -> Option<PathBuf> {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    named("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| named("HOME").map(|home| PathBuf::from(home).join(".cache")))
}

/// Where jobs live.
#[derive(Debug, Clone)]
pub struct Warehouse {
    url: Url,
    store: Arc<dyn ObjectStore>,
    local: Option<PathBuf>,
}

impl Warehouse {
    /// Opens a warehouse at a path, `file://` or `s3://` URI; it need not exist yet.
    ///
    /// # Errors
    /// When the location is not a folder or its scheme is not in this build.
    pub fn open(location: &str) -> Result<Self, StoreError> {
        let refuse = |reason: String| StoreError::Location {
            location: location.to_owned(),
            reason,
        };
        let url = match Url::parse(location) {
            Ok(url) if url.scheme().len() > 1 => url,
            _ => {
                let path = std::path::absolute(location).map_err(|e| refuse(e.to_string()))?;
                Url::from_directory_path(&path)
                    .map_err(|()| refuse("it is not an absolute path".to_owned()))?
            }
        };
        let local = if url.scheme() == "file" {
            // Collecting the components drops the slash at the end.
            let path: PathBuf = url
                .to_file_path()
                .map_err(|()| refuse("it is not a path on this machine".to_owned()))?
                .components()
                .collect();
            if path.exists() && !path.is_dir() {
                return Err(refuse("it is a file; give a folder".to_owned()));
            }
            Some(path)
        } else if remote::is_remote(location) {
            remote::register();
            // What is wrong with the environment is told before anything is tried.
            remote::bucket(&url)?;
            None
        } else {
            return Err(refuse(format!(
                "scheme `{}` is not in this build (paths{} and file:// are)",
                url.scheme(),
                if cfg!(feature = "s3") { ", s3://" } else { "" }
            )));
        };
        let mut url = url;
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let store = DeltaTableBuilder::from_url(url.clone())
            .and_then(|builder| builder.build_storage())
            .map_err(|error| refuse(error.to_string()))?
            .object_store(None);
        Ok(Self { url, store, local })
    }

    /// The warehouse's URL, ending in `/`.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The warehouse as people read it: a path when it is one.
    #[must_use]
    pub fn display(&self) -> String {
        self.local
            .as_ref()
            .map_or_else(|| self.url.to_string(), |path| path.display().to_string())
    }

    /// The store, rooted at the warehouse.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The folder on this machine, when it is one.
    #[must_use]
    pub fn local(&self) -> Option<&Path> {
        self.local.as_deref()
    }

    pub(crate) fn table_url(&self, job: &JobName, table: &str) -> Result<Url, StoreError> {
        self.url
            .join(&format!("{job}/{table}/"))
            .map_err(|error| StoreError::Location {
                location: self.display(),
                reason: error.to_string(),
            })
    }

    /// A file of a table, as DataFusion reads it.
    ///
    /// # Errors
    /// When the name is no part of a URL.
    pub fn file_url(&self, job: &JobName, table: &str, file: &str) -> Result<Url, StoreError> {
        self.table_url(job, table)?
            .join(file)
            .map_err(|error| StoreError::Location {
                location: self.display(),
                reason: error.to_string(),
            })
    }

    /// The folder of a table, as the store and as this machine name it.
    #[must_use]
    pub fn table_folder(&self, job: &JobName, table: &str) -> (ObjectPath, Option<PathBuf>) {
        (
            ObjectPath::from(format!("{job}/{table}")),
            self.local
                .as_ref()
                .map(|root| root.join(job.as_str()).join(table)),
        )
    }

    /// The jobs that have been committed, by name.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn jobs(&self) -> Result<Vec<JobName>, StoreError> {
        if self.local.as_ref().is_some_and(|path| !path.exists()) {
            return Ok(Vec::new());
        }
        let list = |source| StoreError::Object {
            action: "list",
            path: self.display(),
            source,
        };
        let mut jobs = Vec::new();
        for prefix in self
            .store
            .list_with_delimiter(None)
            .await
            .map_err(list)?
            .common_prefixes
        {
            let Some(name) = prefix.filename().and_then(|name| JobName::new(name).ok()) else {
                continue;
            };
            let log = ObjectPath::from(format!("{name}/pairs/_delta_log"));
            let entries = self
                .store
                .list_with_delimiter(Some(&log))
                .await
                .map_err(list)?;
            if !entries.objects.is_empty() {
                jobs.push(name);
            }
        }
        jobs.sort();
        Ok(jobs)
    }

    /// The folder for work in progress on a job: in the warehouse when it is on this machine, else in
    /// the work folder that the user named ([`set_work_folder`]) or the user's cache. `None` when
    /// there is no such place.
    #[must_use]
    pub fn work_folder(&self, job: &JobName) -> Option<PathBuf> {
        if let Some(root) = &self.local {
            return Some(root.join(".pmill").join(job.as_str()));
        }
        let root = match WORK_FOLDER.get() {
            Some(given) => given.clone(),
            None => cache_folder()?.join("pmill").join("work"),
        };
        let bucket = root.join(self.url.host_str().unwrap_or_default());
        let keys = self.url.path().split('/').filter(|part| !part.is_empty());
        Some(
            keys.fold(bucket, |path, part| path.join(part))
                .join(job.as_str()),
        )
    }

    /// Takes the right to write a job, until the lock is dropped or the process ends.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it.
    pub fn lock(&self, job: &JobName) -> Result<JobLock, StoreError> {
        let Some(folder) = self.work_folder(job) else {
            return Ok(JobLock { _file: None });
        };
        let io = |source| StoreError::Io {
            action: "create",
            path: folder.display().to_string(),
            source,
        };
        std::fs::create_dir_all(&folder).map_err(io)?;
        let file = File::create(folder.join("lock")).map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(JobLock { _file: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
                job: job.as_str().to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }
}

/// The right to write a job. The operating system gives it back when the process dies.
#[derive(Debug)]
pub struct JobLock {
    _file: Option<File>,
}
