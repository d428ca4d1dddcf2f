//! A table's Delta log, commit by commit: which versions can be read, when each was made, and which
//! files each names.
//!
//! Every entry is read once, whatever the number of versions. Older entries may have been cleared
//! away; the oldest that is left then has a checkpoint, and what it holds comes from there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use deltalake_core::ObjectStore;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path as ObjectPath;
use serde::Deserialize;

use crate::delta::TableState;
use crate::error::StoreError;
use crate::job::JobName;
use crate::warehouse::Warehouse;

/// Log entries that are fetched at once.
const AT_ONCE: usize = 16;

/// One version of a table.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) version: u64,
    /// When it was made, by the clock of the machine that made it, in milliseconds since 1970.
    pub(crate) time_ms: i64,
    pub(crate) properties: HashMap<String, String>,
    added: Vec<String>,
    removed: Vec<String>,
}

#[cfg(test)]
impl Commit {
    /// A commit of no files.
    pub(crate) fn at(version: u64, time_ms: i64) -> Self {
        Self {
            version,
            time_ms,
            properties: HashMap::new(),
            added: Vec::new(),
            removed: Vec::new(),
        }
    }
}

/// The versions of a table that can be read, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) commits: Vec<Commit>,
    /// Files of the oldest version that an entry before it added.
    before: Vec<String>,
}

impl History {
    /// Reads the log of a table; no commits when there is no table.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) async fn read(
        warehouse: &Warehouse,
        job: &JobName,
        table: &str,
    ) -> Result<Self, StoreError> {
        let entries = entries(warehouse, job, table).await?;
        let Some(&oldest) = entries.keys().next() else {
            return Ok(Self::default());
        };
        let reads = entries.into_iter().map(|(version, path)| {
            let store = warehouse.store().clone();
            Entry::read(store, version, path).boxed()
        });
        let read: Vec<Entry> = futures::stream::iter(reads.collect::<Vec<_>>())
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let (mut properties, mut before) = (HashMap::new(), Vec::new());
        if oldest > 0 {
            let url = warehouse.table_url(job, table)?;
            let state = TableState::open(&format!("{job}.{table}"), &url, Some(oldest)).await?;
            if let Some(state) = state {
                properties = state.properties()?;
                before = state.files()?.into_iter().map(|file| file.name).collect();
            }
        }
        let commits = read
            .into_iter()
            .map(|entry| {
                if let Some(newer) = entry.properties {
                    properties = newer;
                }
                Commit {
                    version: entry.version,
                    time_ms: entry.time_ms,
                    properties: properties.clone(),
                    added: entry.added,
                    removed: entry.removed,
                }
            })
            .collect();
        Ok(Self { commits, before })
    }

    /// Names of all files that some version names.
    pub(crate) fn files(&self) -> HashSet<&str> {
        let added = self.commits.iter().flat_map(|commit| &commit.added);
        let removed = self.commits.iter().skip(1);
        // What a later version removes was in the version before it.
        let removed = removed.flat_map(|commit| &commit.removed);
        let names = self.before.iter().chain(added).chain(removed);
        names.map(String::as_str).collect()
    }

    /// Names of the files that versions before `oldest` name, and no version from there on.
    pub(crate) fn only_before(&self, oldest: u64) -> HashSet<String> {
        let mut live: HashSet<&str> = self.before.iter().map(String::as_str).collect();
        let (mut old, mut kept) = (live.clone(), HashSet::new());
        for commit in &self.commits {
            for name in &commit.removed {
                live.remove(name.as_str());
            }
            live.extend(commit.added.iter().map(String::as_str));
            if commit.version < oldest {
                old.extend(live.iter().copied());
            } else {
                kept.extend(live.iter().copied());
            }
        }
        old.difference(&kept)
            .map(|name| (*name).to_owned())
            .collect()
    }
}

impl Warehouse {
    /// When the entries of a table's log were written, by the clock of the store, in milliseconds.
    pub(crate) async fn log_times(
        &self,
        job: &JobName,
        table: &str,
    ) -> Result<Vec<i64>, StoreError> {
        let folder = self.table_folder(job, table).0.join("_delta_log");
        let listed = self.store().list(Some(&folder));
        listed
            .map_ok(|meta| meta.last_modified.timestamp_millis())
            .try_collect()
            .await
            .map_err(|source| StoreError::Object {
                action: "list",
                path: folder.to_string(),
                source,
            })
    }
}

/// The log entries of a table without gaps, by version.
async fn entries(
    warehouse: &Warehouse,
    job: &JobName,
    table: &str,
) -> Result<BTreeMap<u64, ObjectPath>, StoreError> {
    let (folder, _) = warehouse.table_folder(job, table);
    let folder = folder.join("_delta_log");
    let listed: Vec<ObjectPath> = warehouse
        .store()
        .list(Some(&folder))
        .map_ok(|meta| meta.location)
        .try_collect()
        .await
        .map_err(|source| StoreError::Object {
            action: "list",
            path: folder.to_string(),
            source,
        })?;
    let mut found: BTreeMap<u64, ObjectPath> = listed
        .into_iter()
        .filter_map(|path| {
            let digits = path.filename()?.strip_suffix(".json")?;
            let whole = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
            Some((whole.then(|| digits.parse().ok())??, path))
        })
        .collect();
    // A clean-up that was cut short leaves gaps; what is before the last gap cannot be read.
    let mut first = None;
    for version in found.keys().rev() {
        if first.is_none_or(|first| version + 1 == first) {
            first = Some(*version);
        } else {
            break;
        }
    }
    Ok(found.split_off(&first.unwrap_or(0)))
}

/// The oldest and the newest version that a table's log holds; `None` when there is no table.
///
/// # Errors
/// When the log cannot be listed.
pub(crate) async fn readable(
    warehouse: &Warehouse,
    job: &JobName,
    table: &str,
) -> Result<Option<(u64, u64)>, StoreError> {
    let entries = entries(warehouse, job, table).await?;
    let first = entries.first_key_value().map(|(version, _)| *version);
    let last = entries.last_key_value().map(|(version, _)| *version);
    Ok(first.zip(last))
}

struct Entry {
    version: u64,
    time_ms: i64,
    properties: Option<HashMap<String, String>>,
    added: Vec<String>,
    removed: Vec<String>,
}

impl Entry {
    async fn read(
        store: Arc<dyn ObjectStore>,
        version: u64,
        path: ObjectPath,
    ) -> Result<Self, StoreError> {
        let object = |source| StoreError::Object {
            action: "read",
            path: path.to_string(),
            source,
        };
        let bytes = store.get(&path).await.map_err(object)?;
        let bytes = bytes.bytes().await.map_err(object)?;
        let mut entry = Self {
            version,
            time_ms: 0,
            properties: None,
            added: Vec::new(),
            removed: Vec::new(),
        };
        for line in serde_json::Deserializer::from_slice(&bytes).into_iter::<Line>() {
            let line = line.map_err(|source| StoreError::Io {
                action: "read",
                path: path.to_string(),
                source: source.into(),
            })?;
            entry.time_ms = line
                .commit_info
                .map_or(entry.time_ms, |info| info.timestamp);
            entry.properties = line
                .meta_data
                .map(|meta| meta.configuration)
                .or(entry.properties);
            entry.added.extend(line.add.map(|file| file.path));
            entry.removed.extend(line.remove.map(|file| file.path));
        }
        Ok(entry)
    }
}

/// What is read of a line of the log; it holds one of these, or something else.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    commit_info: Option<Info>,
    meta_data: Option<Meta>,
    add: Option<NamedFile>,
    remove: Option<NamedFile>,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    timestamp: i64,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    configuration: HashMap<String, String>,
}

#[derive(Deserialize)]
struct NamedFile {
    path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(version: u64, added: &[&str], removed: &[&str]) -> Commit {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Commit {
            added: names(added),
            removed: names(removed),
            ..Commit::at(version, 0)
        }
    }

    #[test]
    fn files_of_dropped_versions_go_unless_a_kept_version_names_them() {
        let history = History {
            commits: vec![
                commit(3, &["b"], &["a"]),
                commit(4, &["c"], &["b"]),
                commit(5, &["d"], &[]),
                // A file that comes back.
                commit(6, &["b"], &["c", "d"]),
            ],
            before: vec!["b".into(), "x".into()],
        };
        let only = |oldest| {
            let mut names: Vec<_> = history.only_before(oldest).into_iter().collect();
            names.sort();
            names
        };
        assert_eq!(only(3), [""; 0]);
        // `x` lives on from before; `b` is in version 3 and again in 6.
        assert_eq!(only(4), [""; 0]);
        assert_eq!(only(6), ["c", "d"]);
        let mut all: Vec<_> = history.files().into_iter().collect();
        all.sort_unstable();
        assert_eq!(all, ["b", "c", "d", "x"]);
    }
}
