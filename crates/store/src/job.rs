//! One job: its four tables at one consistent version, and the commit that makes the next.

use std::collections::HashSet;
use std::fmt;

use arrow::datatypes::SchemaRef;

use crate::delta::{self, DataFile, NextVersion, TableState};
use crate::error::StoreError;
use crate::killpoint;
use crate::schema;
use crate::warehouse::Warehouse;

const VOCAB_VERSION: &str = "pmill.vocab_version";
const SOURCES_VERSION: &str = "pmill.sources_version";
const PAIRS_VERSION: &str = "pmill.pairs_version";
const SETTINGS: &str = "pmill.settings";
const FACTS: &str = "pmill.facts";
const FORMAT: &str = "pmill.format";
const OUTSIDE_VERSION: &str = "pmill.outside_version";
const SUBSAMPLE: &str = "pmill.subsample";

/// A job's name; also a schema's name in SQL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobName(String);

impl JobName {
    /// Lower-case letters, digits and `_`, starting with a letter, at most 64 of them.
    ///
    /// # Errors
    /// For anything else, and for SQL's own `information_schema` and `public`.
    pub fn new(name: &str) -> Result<Self, StoreError> {
        let fits = name.len() <= 64
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !["information_schema", "public"].contains(&name);
        if fits {
            Ok(Self(name.to_owned()))
        } else {
            Err(StoreError::JobName {
                name: name.to_owned(),
            })
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A job's tables, all of one commit.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name.
    pub name: JobName,
    /// `vocab` as the commit of `pairs` names it.
    pub vocab: TableState,
    /// `pairs`.
    pub pairs: TableState,
    /// `sources` as the commit of `pairs` names it.
    pub sources: TableState,
    /// `pmi`, when the job has been scored.
    pub pmi: Option<TableState>,
    /// `outside` as the commit of `pairs` names it: terms outside the vocabulary. A job whose
    /// vocabulary was given has none.
    pub outside: Option<TableState>,
}

impl Job {
    /// Opens the newest commit. `None` when the job has never been committed.
    ///
    /// # Errors
    /// When the store cannot be read, or a table is not one of pmill's.
    pub async fn open(warehouse: &Warehouse, name: &JobName) -> Result<Option<Self>, StoreError> {
        let open = async |table: &str, version: Option<u64>| {
            let url = warehouse.table_url(name, table)?;
            TableState::open(&format!("{name}.{table}"), &url, version).await
        };
        if warehouse
            .local()
            .is_some_and(|root| !root.join(name.as_str()).join("pairs").exists())
        {
            return Ok(None);
        }
        let Some(pairs) = open("pairs", None).await? else {
            return Ok(None);
        };
        let format: u32 = parse(&pairs, FORMAT)?;
        if format > schema::FORMAT_VERSION {
            return Err(StoreError::Property {
                table: format!("{name}.pairs"),
                property: FORMAT,
            });
        }
        let missing = |table: &'static str, property| StoreError::Property {
            table: format!("{name}.{table}"),
            property,
        };
        let vocab = open("vocab", Some(parse(&pairs, VOCAB_VERSION)?))
            .await?
            .ok_or_else(|| missing("vocab", VOCAB_VERSION))?;
        let sources = open("sources", Some(parse(&pairs, SOURCES_VERSION)?))
            .await?
            .ok_or_else(|| missing("sources", SOURCES_VERSION))?;
        let outside = match pairs.property(OUTSIDE_VERSION) {
            Err(_) => None,
            Ok(_) => open("outside", Some(parse(&pairs, OUTSIDE_VERSION)?)).await?,
        };
        let has_pmi = warehouse
            .local()
            .is_none_or(|root| root.join(name.as_str()).join("pmi").exists());
        let pmi = if has_pmi {
            open("pmi", None).await?
        } else {
            None
        };
        Ok(Some(Self {
            name: name.clone(),
            vocab,
            pairs,
            sources,
            pmi,
            outside,
        }))
    }

    /// Opens the newest commit of a job that must exist.
    ///
    /// # Errors
    /// [`StoreError::NoJob`] names the jobs that exist.
    pub async fn open_existing(warehouse: &Warehouse, name: &JobName) -> Result<Self, StoreError> {
        match Self::open(warehouse, name).await? {
            Some(job) => Ok(job),
            None => Err(StoreError::NoJob {
                warehouse: warehouse.display(),
                job: name.to_string(),
                known: warehouse
                    .jobs()
                    .await?
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            }),
        }
    }

    /// The settings that the job was counted with, as JSON.
    ///
    /// # Errors
    /// When the table was not written by pmill.
    pub fn settings(&self) -> Result<String, StoreError> {
        self.pairs.property(SETTINGS)
    }

    /// What the counting found (rows, tokens, weight unit, …), as JSON.
    ///
    /// # Errors
    /// When the table was not written by pmill.
    pub fn facts(&self) -> Result<String, StoreError> {
        self.pairs.property(FACTS)
    }

    /// What subsampling was decided by at the first commit, as JSON; `None` for a job that does not
    /// subsample.
    #[must_use]
    pub fn subsample(&self) -> Option<String> {
        self.pairs.property(SUBSAMPLE).ok()
    }

    /// The settings that `pmi` was scored with, and the version of `pairs` that it was made from.
    ///
    /// # Errors
    /// When the table was not written by pmill.
    pub fn pmi_settings(&self) -> Result<Option<(String, u64)>, StoreError> {
        self.pmi
            .as_ref()
            .map(|pmi| Ok((pmi.property(SETTINGS)?, parse(pmi, PAIRS_VERSION)?)))
            .transpose()
    }
}

fn parse<T: std::str::FromStr>(
    table: &TableState,
    property: &'static str,
) -> Result<T, StoreError> {
    table
        .property(property)?
        .parse()
        .map_err(|_| StoreError::Property {
            table: "pairs".to_owned(),
            property,
        })
}

/// A batch's files, ready to become visible.
#[derive(Debug)]
pub struct JobCommit {
    /// The job.
    pub name: JobName,
    /// The version of `pairs` that the writer started from, if the job existed.
    pub base: Option<u64>,
    /// Names the batch: equal batches have equal names.
    pub batch: String,
    /// Settings as JSON; tables merge only if they agree.
    pub settings: String,
    /// Facts as JSON.
    pub facts: String,
    /// All files of the new `vocab`.
    pub vocab: Vec<DataFile>,
    /// All files of the new `sources`.
    pub sources: Vec<DataFile>,
    /// All files of the new `pairs`.
    pub pairs: Vec<DataFile>,
    /// All files of the new `outside`; `None` for a job that has no such table.
    pub outside: Option<Vec<DataFile>>,
    /// What subsampling is decided by, as JSON; set at the first commit and kept.
    pub subsample: Option<String>,
}

impl JobCommit {
    /// Makes the batch visible: `vocab`, `outside`, `sources`, then `pairs`, whose commit counts.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when someone else committed `pairs` since `base`.
    pub async fn commit(self, warehouse: &Warehouse) -> Result<u64, StoreError> {
        let vocab = self
            .next(
                warehouse,
                "vocab",
                &schema::VOCAB,
                self.vocab.clone(),
                Vec::new(),
                None,
            )
            .await?;
        killpoint::reach("vocab is committed");
        let outside = match &self.outside {
            None => None,
            Some(files) => Some(
                self.next(
                    warehouse,
                    "outside",
                    &schema::OUTSIDE,
                    files.clone(),
                    Vec::new(),
                    None,
                )
                .await?,
            ),
        };
        killpoint::reach("outside is committed");
        let sources = self
            .next(
                warehouse,
                "sources",
                &schema::SOURCES,
                self.sources.clone(),
                Vec::new(),
                None,
            )
            .await?;
        killpoint::reach("sources is committed");
        let mut properties = vec![
            (FORMAT, schema::FORMAT_VERSION.to_string()),
            (VOCAB_VERSION, vocab.to_string()),
            (SOURCES_VERSION, sources.to_string()),
            (SETTINGS, self.settings.clone()),
            (FACTS, self.facts.clone()),
        ];
        properties.extend(outside.map(|version| (OUTSIDE_VERSION, version.to_string())));
        properties.extend(self.subsample.clone().map(|json| (SUBSAMPLE, json)));
        let version = self
            .next(
                warehouse,
                "pairs",
                &schema::PAIRS,
                self.pairs.clone(),
                properties,
                Some(self.base),
            )
            .await?;
        killpoint::reach("pairs is committed");
        Ok(version)
    }

    async fn next(
        &self,
        warehouse: &Warehouse,
        table: &str,
        schema: &SchemaRef,
        add: Vec<DataFile>,
        properties: Vec<(&'static str, String)>,
        expected: Option<Option<u64>>,
    ) -> Result<u64, StoreError> {
        let url = warehouse.table_url(&self.name, table)?;
        if let Some(path) = warehouse.table_folder(&self.name, table).1 {
            std::fs::create_dir_all(&path).map_err(|source| StoreError::Io {
                action: "create",
                path: path.display().to_string(),
                source,
            })?;
        }
        delta::commit(NextVersion {
            name: &format!("{}.{table}", self.name),
            url: &url,
            schema,
            keep: HashSet::new(),
            add,
            properties,
            batch: &self.batch,
            expected,
        })
        .await
    }
}

/// A scored table, ready to become visible.
#[derive(Debug)]
pub struct PmiCommit {
    /// The job.
    pub name: JobName,
    /// The version of `pmi` that the writer started from, if there was one.
    pub base: Option<u64>,
    /// The version of `pairs` that was scored.
    pub pairs_version: u64,
    /// Names the scoring: equal scorings have equal names.
    pub batch: String,
    /// Settings as JSON.
    pub settings: String,
    /// Columns.
    pub schema: SchemaRef,
    /// All files of the new `pmi`.
    pub files: Vec<DataFile>,
}

impl PmiCommit {
    /// Makes the scores visible in place of the ones before.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when someone else committed since `base`.
    pub async fn commit(self, warehouse: &Warehouse) -> Result<u64, StoreError> {
        let url = warehouse.table_url(&self.name, "pmi")?;
        delta::commit(NextVersion {
            name: &format!("{}.pmi", self.name),
            url: &url,
            schema: &self.schema,
            keep: HashSet::new(),
            add: self.files,
            properties: vec![
                (FORMAT, schema::FORMAT_VERSION.to_string()),
                (PAIRS_VERSION, self.pairs_version.to_string()),
                (SETTINGS, self.settings),
            ],
            batch: &self.batch,
            expected: Some(self.base),
        })
        .await
    }
}
