//! One job: its tables at one consistent version, and the commit that makes the next.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::RangeInclusive;

use arrow::datatypes::SchemaRef;

use crate::delta::{self, DataFile, NextVersion, TableState};
use crate::error::StoreError;
use crate::history::{self, History};
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
const TAIL_VERSION: &str = "pmill.tail_version";
/// Of `tail`: what its sketches are and how far they may be off, as JSON.
const SKETCH: &str = "pmill.sketch";
/// Set by a compaction: the version of `pairs` whose rows these are, in other files. Empty in a
/// version that brought rows of its own.
const ROWS_OF: &str = "pmill.rows_of_version";

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
    /// `tail` as the commit of `pairs` names it: the sketch of the pairs that are not in `pairs`. Only a
    /// job with a sketch has it.
    pub tail: Option<TableState>,
}

impl Job {
    /// Opens the newest commit. `None` when the job has never been committed.
    ///
    /// # Errors
    /// When the store cannot be read, or a table is not one of pmill's.
    pub async fn open(warehouse: &Warehouse, name: &JobName) -> Result<Option<Self>, StoreError> {
        Self::open_at(warehouse, name, None).await
    }

    /// Opens one version of `pairs`, and of the other tables what belongs to it: `pmi` is the newest
    /// scoring of the rows of that version. `None` for the version is the newest, with the newest
    /// `pmi` there is. The result is `None` when the job has never been committed.
    ///
    /// # Errors
    /// [`StoreError::NoVersion`] when there never was such a version, or it was vacuumed; as
    /// [`Self::open`] else.
    pub async fn open_at(
        warehouse: &Warehouse,
        name: &JobName,
        version: Option<u64>,
    ) -> Result<Option<Self>, StoreError> {
        let scores = match version {
            None => Scores::Newest,
            Some(_) => Scores::OfRows,
        };
        Self::open_with(warehouse, name, version, scores).await
    }

    /// Opens exactly these versions of `pairs` and `pmi` (`None`: without `pmi`), and of the other
    /// tables what belongs to that version of `pairs`: as somebody else saw the job.
    ///
    /// # Errors
    /// [`StoreError::NoVersion`] when it was vacuumed; as [`Self::open_existing`] else.
    pub async fn open_exactly(
        warehouse: &Warehouse,
        name: &JobName,
        pairs: u64,
        pmi: Option<u64>,
    ) -> Result<Self, StoreError> {
        let opened = Self::open_with(warehouse, name, Some(pairs), Scores::Exactly(pmi)).await?;
        Self::existing(warehouse, name, opened).await
    }

    async fn open_with(
        warehouse: &Warehouse,
        name: &JobName,
        version: Option<u64>,
        scores: Scores,
    ) -> Result<Option<Self>, StoreError> {
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
        if let Some(version) = version {
            match history::readable(warehouse, name, "pairs").await? {
                None => return Ok(None),
                Some((oldest, newest)) if version < oldest || version > newest => {
                    return Err(StoreError::NoVersion {
                        job: name.to_string(),
                        version,
                        oldest,
                        newest,
                    });
                }
                Some(_) => {}
            }
        }
        let Some(pairs) = open("pairs", version).await? else {
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
        let tail = match pairs.property(TAIL_VERSION) {
            Err(_) => None,
            Ok(_) => {
                let tail = open("tail", Some(parse(&pairs, TAIL_VERSION)?)).await?;
                // Without it, the pairs would pass for all there are.
                Some(tail.ok_or_else(|| missing("tail", TAIL_VERSION))?)
            }
        };
        let has_pmi = warehouse
            .local()
            .is_none_or(|root| root.join(name.as_str()).join("pmi").exists());
        let scored = match scores {
            _ if !has_pmi => None,
            Scores::Newest => Some(None),
            Scores::OfRows => scoring_of(warehouse, name, &pairs).await?.map(Some),
            Scores::Exactly(version) => version.map(Some),
        };
        let pmi = match scored {
            None => None,
            Some(version) => open("pmi", version).await?,
        };
        Ok(Some(Self {
            name: name.clone(),
            vocab,
            pairs,
            sources,
            pmi,
            outside,
            tail,
        }))
    }

    /// Opens the newest commit of a job that must exist.
    ///
    /// # Errors
    /// [`StoreError::NoJob`] names the jobs that exist.
    pub async fn open_existing(warehouse: &Warehouse, name: &JobName) -> Result<Self, StoreError> {
        Self::open_existing_at(warehouse, name, None).await
    }

    /// Opens a version of a job that must exist, as [`Self::open_at`].
    ///
    /// # Errors
    /// [`StoreError::NoJob`] names the jobs that exist, [`StoreError::NoVersion`] the versions.
    pub async fn open_existing_at(
        warehouse: &Warehouse,
        name: &JobName,
        version: Option<u64>,
    ) -> Result<Self, StoreError> {
        let opened = Self::open_at(warehouse, name, version).await?;
        Self::existing(warehouse, name, opened).await
    }

    async fn existing(
        warehouse: &Warehouse,
        name: &JobName,
        opened: Option<Self>,
    ) -> Result<Self, StoreError> {
        match opened {
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

    /// Whether `pmi` holds scores of other rows than those of `pairs`.
    ///
    /// # Errors
    /// When the table was not written by pmill.
    pub fn pmi_is_stale(&self) -> Result<bool, StoreError> {
        let Some(pmi) = &self.pmi else {
            return Ok(false);
        };
        Ok(!same_rows(&self.pairs)?.contains(&parse(pmi, PAIRS_VERSION)?))
    }

    /// Whether `pairs` was compacted since its rows last changed.
    ///
    /// # Errors
    /// When the table was not written by pmill.
    pub fn is_compact(&self) -> Result<bool, StoreError> {
        Ok(*same_rows(&self.pairs)?.start() != self.pairs.version())
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

/// Which `pmi` goes with a version of `pairs`.
#[derive(Debug, Clone, Copy)]
enum Scores {
    /// The newest there is.
    Newest,
    /// The newest of the rows of that version.
    OfRows,
    /// This one, or none.
    Exactly(Option<u64>),
}

/// The versions of `pairs`, up to this one, that hold the same rows.
fn same_rows(pairs: &TableState) -> Result<RangeInclusive<u64>, StoreError> {
    let first = match pairs.property(ROWS_OF) {
        // Tables of versions of pmill that did not compact have no such property.
        Err(_) => pairs.version(),
        Ok(text) if text.is_empty() => pairs.version(),
        Ok(_) => parse(pairs, ROWS_OF)?,
    };
    Ok(first..=pairs.version())
}

/// The newest version of `pmi` that was made from the rows of this version of `pairs`.
async fn scoring_of(
    warehouse: &Warehouse,
    name: &JobName,
    pairs: &TableState,
) -> Result<Option<u64>, StoreError> {
    let rows = same_rows(pairs)?;
    let history = History::read(warehouse, name, "pmi").await?;
    let made_from = |properties: &HashMap<String, String>| -> Option<u64> {
        properties.get(PAIRS_VERSION)?.parse().ok()
    };
    Ok(history
        .commits
        .iter()
        .rev()
        .find(|commit| made_from(&commit.properties).is_some_and(|from| rows.contains(&from)))
        .map(|commit| commit.version))
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
    /// Columns of `vocab`.
    pub vocab_schema: SchemaRef,
    /// All files of the new `sources`.
    pub sources: Vec<DataFile>,
    /// All files of the new `pairs`.
    pub pairs: Vec<DataFile>,
    /// All files of the new `outside`; `None` for a job that has no such table.
    pub outside: Option<Vec<DataFile>>,
    /// All files of the new `tail`, and what the sketches in it are, as JSON; `None` for a job that has no
    /// such table.
    pub tail: Option<(Vec<DataFile>, String)>,
    /// What subsampling is decided by, as JSON; set at the first commit and kept.
    pub subsample: Option<String>,
}

impl JobCommit {
    /// Makes the batch visible: `vocab`, `outside`, `tail`, `sources`, then `pairs`, whose commit counts.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when someone else committed `pairs` since `base`.
    pub async fn commit(self, warehouse: &Warehouse) -> Result<u64, StoreError> {
        let vocab = self
            .next(
                warehouse,
                "vocab",
                &self.vocab_schema,
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
        let tail = match &self.tail {
            None => None,
            Some((files, sketch)) => {
                let properties = vec![(SKETCH, sketch.clone())];
                let (table, schema) = ("tail", &schema::TAIL);
                let next = self.next(warehouse, table, schema, files.clone(), properties, None);
                let version = next.await?;
                killpoint::reach("tail is committed");
                Some(version)
            }
        };
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
            (ROWS_OF, String::new()),
        ];
        properties.extend(outside.map(|version| (OUTSIDE_VERSION, version.to_string())));
        properties.extend(tail.map(|version| (TAIL_VERSION, version.to_string())));
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
            rows_change: true,
        })
        .await
    }
}

/// The pairs of a version in other files, ready to become visible.
#[derive(Debug)]
pub struct CompactCommit<'a> {
    /// The job at the version that was rewritten.
    pub job: &'a Job,
    /// Names the compaction.
    pub batch: String,
    /// All files of the new `pairs`.
    pub pairs: Vec<DataFile>,
}

impl CompactCommit<'_> {
    /// Makes the files visible in place of the ones before.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when someone else committed `pairs` since.
    pub async fn commit(self, warehouse: &Warehouse) -> Result<u64, StoreError> {
        let Job { name, pairs, .. } = self.job;
        let version = delta::commit(NextVersion {
            name: &format!("{name}.pairs"),
            url: &warehouse.table_url(name, "pairs")?,
            schema: &schema::PAIRS,
            keep: HashSet::new(),
            add: self.pairs,
            properties: vec![(ROWS_OF, same_rows(pairs)?.start().to_string())],
            batch: &self.batch,
            expected: Some(Some(pairs.version())),
            rows_change: false,
        })
        .await?;
        killpoint::reach("compacted pairs are committed");
        Ok(version)
    }
}

/// One version of a job that can be read.
#[derive(Debug, Clone)]
pub struct JobVersion {
    /// The version of `pairs`.
    pub version: u64,
    /// When it was committed, by the clock of the machine that did, in milliseconds since 1970.
    pub time_ms: i64,
    /// What the counting had found by then, as JSON; `None` when the table does not say.
    pub facts: Option<String>,
    /// The version whose rows these are, when this is a compaction.
    pub rows_of: Option<u64>,
}

impl Job {
    /// The versions that can be read, oldest first.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn versions(
        warehouse: &Warehouse,
        name: &JobName,
    ) -> Result<Vec<JobVersion>, StoreError> {
        let history = History::read(warehouse, name, "pairs").await?;
        let versions = history.commits.into_iter().map(|mut commit| JobVersion {
            version: commit.version,
            time_ms: commit.time_ms,
            facts: commit.properties.remove(FACTS),
            rows_of: commit
                .properties
                .get(ROWS_OF)
                .and_then(|text| text.parse().ok()),
        });
        Ok(versions.collect())
    }
}

/// The oldest version of each table that belongs to a version of `pairs` from `oldest` on.
pub(crate) async fn oldest_of_tables(
    warehouse: &Warehouse,
    name: &JobName,
    pairs: &History,
    oldest: u64,
) -> Result<Vec<(&'static str, History, u64)>, StoreError> {
    let kept = || {
        pairs
            .commits
            .iter()
            .filter(move |commit| commit.version >= oldest)
    };
    let mut tables = Vec::new();
    for (table, property) in [
        ("vocab", VOCAB_VERSION),
        ("outside", OUTSIDE_VERSION),
        ("tail", TAIL_VERSION),
        ("sources", SOURCES_VERSION),
    ] {
        let named = kept().filter_map(|commit| commit.properties.get(property)?.parse().ok());
        if let Some(version) = named.min() {
            tables.push((table, History::read(warehouse, name, table).await?, version));
        }
    }
    let scores = History::read(warehouse, name, "pmi").await?;
    if let Some(newest) = scores.commits.last() {
        // Rows of a compacted version may be those of an older one.
        let first_rows = kept()
            .map(|commit| {
                let of = commit.properties.get(ROWS_OF);
                of.and_then(|text| text.parse().ok())
                    .unwrap_or(commit.version)
            })
            .min()
            .unwrap_or(oldest);
        let needed = scores.commits.iter().filter(|commit| {
            let from = commit.properties.get(PAIRS_VERSION);
            from.and_then(|text| text.parse::<u64>().ok())
                .is_some_and(|from| from >= first_rows)
        });
        let version = needed
            .map(|commit| commit.version)
            .min()
            .unwrap_or(newest.version);
        tables.push(("pmi", scores.clone(), version));
    }
    Ok(tables)
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
            rows_change: true,
        })
        .await
    }
}
