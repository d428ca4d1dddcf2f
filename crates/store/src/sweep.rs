//! Takes away what a dead process left: table files that no version names.
//!
//! Only files that pmill wrote (`part-*.parquet`) are touched, and only while the caller holds the
//! job's lock, so that nobody is writing them. An object store has no such lock: there, a file must
//! have been lying for a day, by the clock of the store.

use object_store::ObjectStoreExt;
use object_store::path::Path as ObjectPath;

use crate::error::StoreError;
use crate::history::History;
use crate::job::JobName;
use crate::warehouse::{JobLock, Warehouse};

/// All tables that a job may have.
pub(crate) const TABLES: [&str; 6] = ["vocab", "outside", "tail", "sources", "pairs", "pmi"];

/// No upload takes longer, so an object that no version names by then belongs to nobody.
const ABANDONED_MS: i64 = 24 * 60 * 60 * 1000;

/// What a sweep removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// Files removed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A table file that no version names.
pub(crate) struct Orphan {
    pub(crate) path: ObjectPath,
    pub(crate) bytes: u64,
}

impl Warehouse {
    /// Removes orphaned files of a job's tables. Files of older versions stay (time travel). In an
    /// object store it does nothing: [`Self::vacuum`] takes abandoned objects there.
    ///
    /// # Errors
    /// When a table cannot be read or a file cannot be removed.
    pub async fn sweep(&self, job: &JobName, _lock: &JobLock) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        if self.local().is_none() {
            return Ok(swept);
        }
        for table in TABLES {
            for orphan in self.orphans(job, table).await? {
                self.remove(&orphan.path).await?;
                swept.files += 1;
                swept.bytes += orphan.bytes;
            }
            self.sweep_log(job, table, &mut swept)?;
        }
        Ok(swept)
    }

    /// Takes away what a commit was written to before it got its name.
    fn sweep_log(&self, job: &JobName, table: &str, swept: &mut Swept) -> Result<(), StoreError> {
        let log = match self.table_folder(job, table).1 {
            Some(folder) => folder.join("_delta_log"),
            None => return Ok(()),
        };
        if !log.exists() {
            return Ok(());
        }
        let io = |source| StoreError::Io {
            action: "sweep",
            path: log.display().to_string(),
            source,
        };
        for entry in std::fs::read_dir(&log).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.file_name().to_string_lossy().contains(".json#") {
                swept.bytes += entry.metadata().map_err(io)?.len();
                swept.files += 1;
                std::fs::remove_file(entry.path()).map_err(io)?;
            }
        }
        Ok(())
    }

    /// Files in a table's folder that no version names, and that nobody is writing.
    pub(crate) async fn orphans(
        &self,
        job: &JobName,
        table: &str,
    ) -> Result<Vec<Orphan>, StoreError> {
        let (folder, local) = self.table_folder(job, table);
        if local.as_ref().is_some_and(|path| !path.exists()) {
            return Ok(Vec::new());
        }
        // Listed before the log is read: what a commit names in between is then not seen as orphaned.
        let list = |source| StoreError::Object {
            action: "list",
            path: folder.to_string(),
            source,
        };
        let listed = self.store().list_with_delimiter(Some(&folder)).await;
        let mut files = listed.map_err(list)?.objects;
        files.retain(|file| {
            let name = file.location.filename().unwrap_or_default();
            name.starts_with("part-") && name.ends_with(".parquet")
        });
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let history = History::read(self, job, table).await?;
        let named = history.files();
        files.retain(|file| {
            let name = file.location.filename().unwrap_or_default();
            !named.contains(name)
        });
        if local.is_none() && !files.is_empty() {
            let now = self.store_time_ms(job).await?;
            files.retain(|file| now - file.last_modified.timestamp_millis() > ABANDONED_MS);
        }
        Ok(files
            .into_iter()
            .map(|file| Orphan {
                path: file.location,
                bytes: file.size,
            })
            .collect())
    }

    pub(crate) async fn remove(&self, path: &ObjectPath) -> Result<(), StoreError> {
        match self.store().delete(path).await {
            // Someone else was faster.
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::Object {
                action: "remove",
                path: path.to_string(),
                source,
            }),
        }
    }

    /// What time it is for the store: our own clock may be wrong.
    async fn store_time_ms(&self, job: &JobName) -> Result<i64, StoreError> {
        let path = ObjectPath::from(format!(".pmill/{job}/clock"));
        let object = |source| StoreError::Object {
            action: "write",
            path: path.to_string(),
            source,
        };
        let store = self.store();
        store.put(&path, "".into()).await.map_err(object)?;
        let meta = store.head(&path).await.map_err(object)?;
        self.remove(&path).await?;
        Ok(meta.last_modified.timestamp_millis())
    }
}
