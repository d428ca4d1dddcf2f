//! One Delta table: open at a version, list its files, commit a new set of files.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use deltalake_core::kernel::transaction::CommitBuilder;
use deltalake_core::kernel::transaction::{CommitProperties, TransactionError};
use deltalake_core::kernel::{Action, Add, MetadataExt, Transaction};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::{DeltaTable, DeltaTableBuilder, DeltaTableError};
use url::Url;

use crate::error::StoreError;
use crate::schema;

/// A file written into a table's folder, not visible before it is committed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DataFile {
    /// Name inside the table's folder.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Rows.
    pub rows: u64,
    /// Delta's statistics as JSON.
    pub stats: String,
}

/// A table as one version shows it.
#[derive(Debug, Clone)]
pub struct TableState {
    name: String,
    table: DeltaTable,
    version: u64,
}

impl TableState {
    /// Opens the newest version, or the named one. `None` when there is no table.
    pub(crate) async fn open(
        name: &str,
        url: &Url,
        version: Option<u64>,
    ) -> Result<Option<Self>, StoreError> {
        let fail = |source: DeltaTableError| StoreError::Delta {
            action: "open",
            table: name.to_owned(),
            source: Box::new(source),
        };
        let mut builder = DeltaTableBuilder::from_url(url.clone()).map_err(fail)?;
        if let Some(version) = version {
            builder = builder.with_version(version);
        }
        let mut table = builder.build().map_err(fail)?;
        if !table.verify_deltatable_existence().await.map_err(fail)? {
            return Ok(None);
        }
        match version {
            Some(version) => table.load_version(version).await.map_err(fail)?,
            None => table.load().await.map_err(fail)?,
        }
        let version = table.version().unwrap_or(0);
        Ok(Some(Self {
            name: name.to_owned(),
            table,
            version,
        }))
    }

    /// The version that this is.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A table property that pmill wrote.
    ///
    /// # Errors
    /// When the table has no such property.
    pub fn property(&self, key: &'static str) -> Result<String, StoreError> {
        self.properties()?
            .remove(key)
            .ok_or_else(|| StoreError::Property {
                table: self.name.clone(),
                property: key,
            })
    }

    fn properties(&self) -> Result<HashMap<String, String>, StoreError> {
        let snapshot = self
            .table
            .snapshot()
            .map_err(|source| self.fail("read", source))?;
        Ok(snapshot.metadata().configuration().clone())
    }

    /// The table's files, in the order of their names.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn files(&self) -> Result<Vec<DataFile>, StoreError> {
        let snapshot = self
            .table
            .snapshot()
            .map_err(|source| self.fail("read", source))?;
        let mut files: Vec<DataFile> = snapshot
            .log_data()
            .iter()
            .map(|view| {
                let stats = view.stats();
                DataFile {
                    name: view.path().into_owned(),
                    size: u64::try_from(view.size()).unwrap_or(0),
                    rows: rows_of(stats.as_deref()),
                    stats: stats.unwrap_or_default(),
                }
            })
            .collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// A DataFusion table that reads this version.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>, StoreError> {
        self.table
            .table_provider()
            .await
            .map_err(|source| self.fail("read", source.into()))
    }

    fn fail(&self, action: &'static str, source: DeltaTableError) -> StoreError {
        StoreError::Delta {
            action,
            table: self.name.clone(),
            source: Box::new(source),
        }
    }
}

fn rows_of(stats: Option<&str>) -> u64 {
    stats
        .and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok())
        .and_then(|value| value.get("numRecords").and_then(serde_json::Value::as_u64))
        .unwrap_or(0)
}

/// What the next version of a table holds.
pub(crate) struct NextVersion<'a> {
    /// Name for messages: `job.pairs`.
    pub name: &'a str,
    /// The table's folder.
    pub url: &'a Url,
    /// Its columns, for a table that does not exist yet.
    pub schema: &'a SchemaRef,
    /// Files of the present version that stay, by name.
    pub keep: HashSet<String>,
    /// New files.
    pub add: Vec<DataFile>,
    /// Table properties to set.
    pub properties: Vec<(&'static str, String)>,
    /// Application transaction: names the batch.
    pub batch: &'a str,
    /// The version that the writer read; a newer one in the log is a conflict. `None`: whatever
    /// is there is replaced (the order of commits makes that safe, see the crate docs).
    pub expected: Option<Option<u64>>,
}

/// Commits it; gives the version that it became.
pub(crate) async fn commit(next: NextVersion<'_>) -> Result<u64, StoreError> {
    let present = TableState::open(next.name, next.url, None).await?;
    if let Some(expected) = next.expected
        && expected != present.as_ref().map(TableState::version)
    {
        return Err(StoreError::Conflict {
            table: next.name.to_owned(),
        });
    }
    let result = match &present {
        None => create(&next).await,
        Some(present) => replace(&next, present).await,
    };
    result.map_err(|source| match source {
        DeltaTableError::VersionAlreadyExists(_)
        | DeltaTableError::Transaction {
            source:
                TransactionError::VersionAlreadyExists(_)
                | TransactionError::CommitConflict(_)
                | TransactionError::MaxCommitAttempts(_),
        } => StoreError::Conflict {
            table: next.name.to_owned(),
        },
        source => StoreError::Delta {
            action: "commit to",
            table: next.name.to_owned(),
            source: Box::new(source),
        },
    })
}

async fn create(next: &NextVersion<'_>) -> Result<u64, DeltaTableError> {
    let columns = schema::delta_columns(next.schema)
        .ok_or_else(|| DeltaTableError::Generic("a column type has no Delta type".to_owned()))?;
    let log_store = DeltaTableBuilder::from_url(next.url.clone())?
        .build()?
        .log_store();
    let table = CreateBuilder::new()
        .with_log_store(log_store)
        .with_columns(columns)
        .with_raise_if_key_not_exists(false)
        .with_configuration(
            next.properties
                .iter()
                .map(|(key, value)| (key.to_string(), Some(value.clone()))),
        )
        .with_commit_properties(
            CommitProperties::default()
                .with_max_retries(0)
                .with_application_transaction(Transaction::new(next.batch, 1)),
        )
        .with_actions(next.add.iter().map(|file| Action::Add(add_action(file))))
        .await?;
    Ok(table.version().unwrap_or(0))
}

async fn replace(next: &NextVersion<'_>, present: &TableState) -> Result<u64, DeltaTableError> {
    let snapshot = present.table.snapshot()?;
    let mut metadata = snapshot.metadata().clone();
    for (key, value) in &next.properties {
        metadata = metadata.add_config_key((*key).to_owned(), value.clone())?;
    }
    let mut actions = vec![Action::Metadata(metadata)];
    // A file that a killed process committed and the same batch brings again is not removed:
    // removing and adding one path in one commit would leave open which of them counts.
    let again = |path: &str| next.add.iter().any(|file| file.name == path);
    for view in snapshot.log_data().iter() {
        let path = view.path();
        if !next.keep.contains(path.as_ref()) && !again(path.as_ref()) {
            actions.push(Action::Remove(view.remove_action(true)));
        }
    }
    actions.extend(next.add.iter().map(|file| Action::Add(add_action(file))));
    let commit = CommitBuilder::from(
        CommitProperties::default()
            .with_max_retries(0)
            .with_application_transaction(Transaction::new(next.batch, 1)),
    )
    .with_actions(actions)
    .build(
        Some(snapshot),
        present.table.log_store(),
        DeltaOperation::Write {
            mode: SaveMode::Overwrite,
            partition_by: None,
            predicate: None,
        },
    )
    .await?;
    Ok(commit.version())
}

fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .ok()
        .and_then(|elapsed| i64::try_from(elapsed.as_millis()).ok())
        .unwrap_or(0)
}

fn add_action(file: &DataFile) -> Add {
    Add {
        path: file.name.clone(),
        size: i64::try_from(file.size).unwrap_or(i64::MAX),
        modification_time: now_ms(),
        data_change: true,
        stats: Some(file.stats.clone()),
        partition_values: HashMap::new(),
        tags: None,
        deletion_vector: None,
        base_row_id: None,
        default_row_commit_version: None,
        clustering_provider: None,
    }
}
