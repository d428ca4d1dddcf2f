//! The warehouse as queries see it: one [`Snapshot`] is every job at one version, shared by all
//! queries until somebody commits. What is costly to find out (Delta logs, footers, the index of
//! terms, logical plans) is kept with the version that it belongs to.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProviderList, MemorySchemaProvider,
    SchemaProvider, TableProvider,
};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use pmill_engine::table_functions::{self, Jobs};
use pmill_store::{Job, JobName, TableState, Warehouse};
use tokio::sync::OnceCell;

use crate::error::ServeError;
use crate::postgres::catalog::PgParts;
use crate::shared::Shared;
use crate::table::{FileTable, TableFile};

/// Versions of a job's `pairs` and `pmi`; the other tables follow `pairs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    /// Newest commit of `pairs`.
    pub pairs: u64,
    /// Newest commit of `pmi`.
    pub pmi: Option<u64>,
    /// Whether terms outside the vocabulary are kept.
    pub outside: bool,
    /// Whether there is a sketch.
    pub tail: bool,
}

type Marks = BTreeMap<JobName, Mark>;

/// Which functions and system tables a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// As `pmill sql`.
    Plain,
    /// With `pg_catalog`.
    Postgres,
}

/// How long the list of a warehouse in an object store is believed.
const REMOTE_LIST: Duration = Duration::from_secs(1);
/// Bytes of a statement whose plan is kept, at most.
const LONGEST_KEPT: usize = 4096;
/// Logical plans kept for one snapshot.
const PLANS: usize = 512;

/// The warehouse, and what is known of it.
pub struct Library {
    warehouse: Warehouse,
    plain: Shared<SessionContext>,
    postgres: Shared<SessionContext>,
    catalog: String,
    pg: PgParts,
    /// Whether files can be named in `FROM`.
    files: bool,
    newest: Mutex<Option<(Arc<Snapshot>, Instant)>>,
    logs: Logs,
}

/// The newest versions of tables in local folders. A log that has not been touched is not listed again:
/// this is asked for every query.
#[derive(Default)]
struct Logs(Mutex<HashMap<(JobName, &'static str), Listed>>);

/// When a log was touched last, and the newest version that a listing after that found.
type Listed = (SystemTime, Option<u64>);

/// Clocks of file systems tick slowly: a folder that changed within this long may have changed again
/// without a new time.
const TICK: Duration = Duration::from_secs(2);

impl Logs {
    fn newest(&self, job: &JobName, table: &'static str, log: &std::path::Path) -> Option<u64> {
        let modified = std::fs::metadata(log).and_then(|found| found.modified());
        let modified = modified.ok()?;
        let key = (job.clone(), table);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = modified.elapsed().is_ok_and(|age| age > TICK);
        if old
            && let Some((at, version)) = known.get(&key)
            && *at == modified
        {
            return *version;
        }
        let version = std::fs::read_dir(log)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| version_of(entry.file_name().to_str()?))
            .max();
        // A listing within the tick may miss what comes in the rest of it: it is not kept.
        if old {
            known.insert(key, (modified, version));
        }
        version
    }
}

impl Library {
    /// Opens a warehouse for queries whose contexts look like `plain` and `postgres`; with `files`, they
    /// can name files on this machine.
    #[must_use]
    pub fn new(
        warehouse: Warehouse,
        plain: SessionContext,
        postgres: SessionContext,
        pg: PgParts,
        files: bool,
    ) -> Arc<Self> {
        let catalog = plain
            .copied_config()
            .options()
            .catalog
            .default_catalog
            .clone();
        Arc::new(Self {
            warehouse,
            plain: Shared::new(plain),
            postgres: Shared::new(postgres),
            catalog,
            pg,
            files,
            newest: Mutex::new(None),
            logs: Logs::default(),
        })
    }

    /// The warehouse.
    #[must_use]
    pub fn warehouse(&self) -> &Warehouse {
        &self.warehouse
    }

    /// Name of the catalog that holds the jobs.
    #[must_use]
    pub fn catalog(&self) -> &str {
        &self.catalog
    }

    /// Every job at its newest version.
    ///
    /// # Errors
    /// When the warehouse cannot be listed.
    pub async fn snapshot(self: &Arc<Self>) -> std::result::Result<Arc<Snapshot>, ServeError> {
        let known = self.newest().clone();
        if self.warehouse.local().is_none()
            && let Some((snapshot, at)) = &known
            && at.elapsed() < REMOTE_LIST
        {
            return Ok(snapshot.clone());
        }
        let marks = self.marks().await?;
        if let Some((snapshot, _)) = known
            && snapshot.marks == marks
        {
            *self.newest() = Some((snapshot.clone(), Instant::now()));
            return Ok(snapshot);
        }
        let before = self.newest().clone().map(|(snapshot, _)| snapshot);
        let snapshot = Snapshot::new(self, marks, before.as_deref())
            .map_err(|error| ServeError::Bug(error.strip_backtrace()))?;
        let snapshot = Arc::new(snapshot);
        *self.newest() = Some((snapshot.clone(), Instant::now()));
        Ok(snapshot)
    }

    fn newest(&self) -> MutexGuard<'_, Option<(Arc<Snapshot>, Instant)>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn marks(&self) -> std::result::Result<Marks, ServeError> {
        let mut marks = Marks::new();
        if let Some(root) = self.warehouse.local() {
            let Ok(entries) = std::fs::read_dir(root) else {
                // As `Warehouse::jobs`: a warehouse that is not there yet is empty.
                return Ok(marks);
            };
            for entry in entries.flatten() {
                let Some(name) = entry
                    .file_name()
                    .to_str()
                    .and_then(|n| JobName::new(n).ok())
                else {
                    continue;
                };
                let newest = |table| {
                    let log = entry.path().join(table).join("_delta_log");
                    self.logs.newest(&name, table, &log)
                };
                if let Some(pairs) = newest("pairs") {
                    let pmi = newest("pmi");
                    let outside = newest("outside").is_some();
                    let tail = newest("tail").is_some();
                    marks.insert(
                        name,
                        Mark {
                            pairs,
                            pmi,
                            outside,
                            tail,
                        },
                    );
                }
            }
            return Ok(marks);
        }
        for name in self.warehouse.jobs().await? {
            let newest =
                async |table: &str| {
                    let log = self
                        .warehouse
                        .table_folder(&name, table)
                        .0
                        .join("_delta_log");
                    let mut newest = None;
                    let mut entries = self.warehouse.store().list(Some(&log));
                    while let Some(entry) = entries.try_next().await.map_err(|source| {
                        pmill_store::StoreError::Object {
                            action: "list",
                            path: log.to_string(),
                            source,
                        }
                    })? {
                        newest = newest.max(entry.location.filename().and_then(version_of));
                    }
                    Ok::<_, ServeError>(newest)
                };
            if let Some(pairs) = newest("pairs").await? {
                let pmi = newest("pmi").await?;
                let outside = newest("outside").await?.is_some();
                let tail = newest("tail").await?.is_some();
                marks.insert(
                    name,
                    Mark {
                        pairs,
                        pmi,
                        outside,
                        tail,
                    },
                );
            }
        }
        Ok(marks)
    }
}

/// The version that a file of a Delta log is the commit of.
fn version_of(file: &str) -> Option<u64> {
    file.strip_suffix(".json")?.parse().ok()
}

/// Every job of the warehouse at one version.
pub struct Snapshot {
    marks: Marks,
    warehouse: Warehouse,
    schemas: BTreeMap<JobName, Arc<JobSchema>>,
    plain: Shared<SessionContext>,
    postgres: Shared<SessionContext>,
    plans: Mutex<HashMap<(Dialect, String), Shared<LogicalPlan>>>,
}

impl Snapshot {
    fn new(library: &Arc<Library>, marks: Marks, before: Option<&Self>) -> Result<Self> {
        let schemas: BTreeMap<JobName, Arc<JobSchema>> = marks
            .iter()
            .map(|(name, mark)| {
                let same = before
                    .and_then(|before| before.schemas.get(name))
                    .filter(|schema| schema.mark == *mark);
                let schema = match same {
                    Some(schema) => schema.clone(),
                    None => Arc::new(JobSchema {
                        warehouse: library.warehouse.clone(),
                        name: name.clone(),
                        mark: *mark,
                        job: OnceCell::new(),
                        tables: Default::default(),
                        file_table: OnceLock::new(),
                    }),
                };
                (name.clone(), schema)
            })
            .collect();
        let jobs: Arc<dyn Jobs> = Arc::new(Known(schemas.clone(), library.warehouse.clone()));
        let context = |template: &SessionContext, pg: Option<Arc<dyn SchemaProvider>>| {
            let catalogs = MemoryCatalogProviderList::new();
            catalogs.register_catalog(
                library.catalog.clone(),
                Arc::new(Catalog {
                    schemas: schemas.clone(),
                    public: Arc::new(MemorySchemaProvider::new()),
                    pg,
                }),
            );
            let state = SessionStateBuilder::new_from_existing(template.state())
                .with_catalog_list(Arc::new(catalogs))
                .build();
            let context = SessionContext::new_with_state(state);
            table_functions::register(&context, &jobs, library.files)?;
            Ok::<_, DataFusionError>(Shared::new(match library.files {
                true => context.enable_url_table(),
                false => context,
            }))
        };
        let plain = context(&library.plain, None)?;
        let postgres = context(&library.postgres, Some(library.pg.schema(plain.clone())))?;
        Ok(Self {
            marks,
            warehouse: library.warehouse.clone(),
            schemas,
            plain,
            postgres,
            plans: Mutex::default(),
        })
    }

    /// A context that sees this snapshot.
    #[must_use]
    pub fn context(&self, dialect: Dialect) -> &SessionContext {
        match dialect {
            Dialect::Plain => &self.plain,
            Dialect::Postgres => &self.postgres,
        }
    }

    /// The warehouse.
    #[must_use]
    pub fn warehouse(&self) -> &Warehouse {
        &self.warehouse
    }

    /// The jobs.
    pub fn jobs(&self) -> impl Iterator<Item = (&JobName, &Arc<JobSchema>)> {
        self.schemas.iter()
    }

    /// A job by name.
    #[must_use]
    pub fn job(&self, name: &str) -> Option<&Arc<JobSchema>> {
        self.schemas.get(&JobName::new(name).ok()?)
    }

    /// What was kept under this statement.
    #[must_use]
    pub fn plan(&self, dialect: Dialect, sql: &str) -> Option<Shared<LogicalPlan>> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.get(&(dialect, sql.to_owned())).cloned()
    }

    /// Keeps the plan of a statement for the life of the snapshot, unless the statement is long: it
    /// brings its data along, and will hardly come again.
    pub fn keep_plan(&self, dialect: Dialect, sql: &str, plan: Shared<LogicalPlan>) {
        if sql.len() > LONGEST_KEPT {
            return;
        }
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= PLANS {
            plans.clear();
        }
        plans.insert((dialect, sql.to_owned()), plan);
    }
}

/// The jobs as table functions ask for them.
#[derive(Debug)]
struct Known(BTreeMap<JobName, Arc<JobSchema>>, Warehouse);

#[async_trait]
impl Jobs for Known {
    async fn job(&self, name: &str) -> Result<Option<Job>> {
        match JobName::new(name).ok().and_then(|name| self.0.get(&name)) {
            Some(schema) => schema.job().await.map(|job| Some(job.clone())),
            None => Ok(None),
        }
    }

    fn job_names(&self) -> Vec<String> {
        self.0.keys().map(ToString::to_string).collect()
    }

    fn warehouse(&self) -> &Warehouse {
        &self.1
    }
}

#[derive(Debug)]
struct Catalog {
    schemas: BTreeMap<JobName, Arc<JobSchema>>,
    public: Arc<MemorySchemaProvider>,
    pg: Option<Arc<dyn SchemaProvider>>,
}

const PUBLIC: &str = "public";
const PG_CATALOG: &str = "pg_catalog";

impl CatalogProvider for Catalog {
    fn schema_names(&self) -> Vec<String> {
        self.schemas
            .keys()
            .map(ToString::to_string)
            .chain([PUBLIC.to_owned()])
            .chain(self.pg.as_ref().map(|_| PG_CATALOG.to_owned()))
            .collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        match name {
            PUBLIC => Some(self.public.clone()),
            PG_CATALOG => self.pg.clone(),
            name => {
                let schema = self.schemas.get(&JobName::new(name).ok()?)?;
                Some(schema.clone())
            }
        }
    }
}

/// One job at one version, opened when a query first names it.
#[derive(Debug)]
pub struct JobSchema {
    warehouse: Warehouse,
    name: JobName,
    mark: Mark,
    job: OnceCell<Job>,
    tables: [OnceCell<Arc<dyn TableProvider>>; TABLES.len()],
    /// `pmi` once it is open, for its index.
    file_table: OnceLock<Arc<FileTable>>,
}

const TABLES: [&str; 6] = ["outside", "pairs", "pmi", "sources", "tail", "vocab"];
const PMI: usize = 2;

impl JobSchema {
    /// The job.
    ///
    /// # Errors
    /// When its tables cannot be opened.
    pub async fn job(&self) -> Result<&Job> {
        self.job
            .get_or_try_init(|| Job::open_existing(&self.warehouse, &self.name))
            .await
            .map_err(outside)
    }

    /// The versions that it is seen at.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Whether there are scores.
    #[must_use]
    pub fn is_scored(&self) -> bool {
        self.mark.pmi.is_some()
    }

    /// Opens `pmi` and reads its index. Gives the number of left terms, `None` when there is no index.
    ///
    /// # Errors
    /// When the table or one of its files cannot be read.
    pub async fn warm(&self, environment: &RuntimeEnv) -> Result<Option<usize>> {
        if self.table("pmi").await?.is_none() {
            return Ok(None);
        }
        match self.file_table.get() {
            Some(table) => table.index(environment).await,
            None => Ok(None),
        }
    }

    async fn open(&self, index: usize) -> Result<Arc<dyn TableProvider>> {
        let job = self.job().await?;
        let state = match (TABLES[index], &job.pmi) {
            ("vocab", _) => &job.vocab,
            ("pairs", _) => &job.pairs,
            ("sources", _) => &job.sources,
            ("pmi", Some(pmi)) => pmi,
            ("tail", _) if let Some(tail) = &job.tail => tail,
            ("outside", _) if let Some(outside) = &job.outside => outside,
            (table, _) => {
                return Err(DataFusionError::Plan(format!(
                    "job `{}` has no table `{table}`",
                    self.name
                )));
            }
        };
        let delta = state.provider().await.map_err(outside)?;
        if index != PMI || !state.is_plain().map_err(outside)? {
            return Ok(delta);
        }
        let table = Arc::new(self.file_table(state, &delta)?);
        let _ = self.file_table.set(table.clone());
        Ok(table)
    }

    fn file_table(&self, state: &TableState, delta: &Arc<dyn TableProvider>) -> Result<FileTable> {
        let (folder, _) = self.warehouse.table_folder(&self.name, TABLES[PMI]);
        let files = state
            .files()
            .map_err(outside)?
            .into_iter()
            .map(|file| TableFile {
                path: folder.clone().join(file.name),
                size: file.size,
                rows: file.rows,
            })
            .collect();
        let url = ObjectStoreUrl::local_filesystem();
        Ok(FileTable::new(
            delta.schema(),
            self.warehouse.store().clone(),
            url,
            files,
        ))
    }
}

fn outside(error: pmill_store::StoreError) -> DataFusionError {
    ServeError::from(error).into()
}

#[async_trait]
impl SchemaProvider for JobSchema {
    fn table_names(&self) -> Vec<String> {
        TABLES
            .into_iter()
            .filter(|name| self.table_exist(name))
            .map(str::to_owned)
            .collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let index = TABLES.iter().position(|table| *table == name);
        let Some(index) = index.filter(|_| self.table_exist(name)) else {
            return Ok(None);
        };
        let table = self.tables[index]
            .get_or_try_init(|| self.open(index))
            .await?;
        Ok(Some(table.clone()))
    }

    fn table_exist(&self, name: &str) -> bool {
        match name {
            "pmi" => self.is_scored(),
            "outside" => self.mark.outside,
            "tail" => self.mark.tail,
            name => TABLES.contains(&name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_listed_again_once_it_was_touched() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path();
        let (logs, job) = (Logs::default(), JobName::new("a").unwrap());
        let newest = || logs.newest(&job, "pairs", log);
        assert_eq!(newest(), None);
        // Within one tick of the clock too.
        for version in 0..5_u64 {
            std::fs::write(log.join(format!("{version:020}.json")), "").unwrap();
            assert_eq!(newest(), Some(version));
        }
        let before = SystemTime::now() - Duration::from_secs(60);
        std::fs::File::open(log)
            .unwrap()
            .set_modified(before)
            .unwrap();
        assert_eq!((newest(), newest()), (Some(4), Some(4)));
        std::fs::write(log.join(format!("{:020}.json", 5)), "").unwrap();
        assert_eq!(newest(), Some(5));
        assert_eq!(logs.newest(&job, "pmi", &log.join("none")), None);
    }
}
