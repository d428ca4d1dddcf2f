//! Takes away what a dead process left: table files that no version names.
//!
//! Only files that pmill wrote (`part-*.parquet`) are touched, and only while the caller holds the
//! job's lock, so that nobody is writing them.

use std::collections::HashSet;

use crate::delta::TableState;
use crate::error::StoreError;
use crate::job::JobName;
use crate::warehouse::{JobLock, Warehouse};

/// What a sweep removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// Files removed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Warehouse {
    /// Removes orphaned files of a job's tables. Files of older versions stay (time travel).
    ///
    /// # Errors
    /// When a table cannot be read or a file cannot be removed.
    pub async fn sweep(&self, job: &JobName, _lock: &JobLock) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for table in ["vocab", "outside", "sources", "pairs", "pmi"] {
            let Some(folder) = self.table_folder(job, table).1.filter(|path| path.exists()) else {
                continue;
            };
            let url = self.table_url(job, table)?;
            let state = TableState::open(&format!("{job}.{table}"), &url, None).await?;
            let mut named = HashSet::new();
            if let Some(newest) = state {
                for version in 0..=newest.version() {
                    // A version may be gone after log clean-up; its files are then not kept.
                    let Ok(Some(state)) =
                        TableState::open(&format!("{job}.{table}"), &url, Some(version)).await
                    else {
                        continue;
                    };
                    named.extend(state.files()?.into_iter().map(|file| file.name));
                }
            }
            let io = |source| StoreError::Io {
                action: "sweep",
                path: folder.display().to_string(),
                source,
            };
            for entry in std::fs::read_dir(&folder).map_err(io)? {
                let entry = entry.map_err(io)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let ours = name.starts_with("part-") && name.ends_with(".parquet");
                if ours && !named.contains(&name) {
                    swept.bytes += entry.metadata().map_err(io)?.len();
                    swept.files += 1;
                    std::fs::remove_file(entry.path()).map_err(io)?;
                }
            }
        }
        Ok(swept)
    }
}
