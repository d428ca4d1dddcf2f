//! The tables that a query sees when it is cut into units: the driver's and the executors' alike.
//!
//! A scan lists a version's files by name and cuts them by bytes into so many partitions as the plan
//! has: whoever plans the same query at the same versions gets the same partitions.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{
    CatalogProvider, MemorySchemaProvider, SchemaProvider, Session, TableProvider,
};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, Statistics};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{
    FileGroup, FileGroupPartitioner, FileScanConfigBuilder, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use object_store::ObjectStore;
use pmill_store::{Job, JobName, TableState, Warehouse};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::time_travel;

/// Bytes of a table that are not worth a partition of their own.
const SMALL_BYTES: u64 = 64 << 10;

/// The versions at which a job is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobVersions {
    /// The schema that the query names: the job, or `job@version`.
    pub schema: String,
    /// The job.
    pub job: String,
    /// The version of `pairs`.
    pub pairs: u64,
    /// The version of `pmi`, if the job is seen with one.
    pub pmi: Option<u64>,
}

/// Which version of a job is asked for.
#[derive(Debug, Clone, Copy)]
enum At {
    Newest,
    Version(u64),
    Exactly(u64, Option<u64>),
}

/// The jobs of one warehouse, each opened when a query first names it.
#[derive(Debug)]
pub(super) struct QueryCatalog {
    warehouse: Warehouse,
    /// Jobs that may be opened at their newest version, or at one that is named.
    jobs: Vec<JobName>,
    schemas: Mutex<BTreeMap<String, Arc<QuerySchema>>>,
    public: Arc<MemorySchemaProvider>,
}

const PUBLIC: &str = "public";

impl QueryCatalog {
    /// All jobs of a warehouse, some of them at a version.
    pub(super) async fn open(
        warehouse: &Warehouse,
        versions: &[(JobName, u64)],
    ) -> std::result::Result<Self, pmill_store::StoreError> {
        let catalog = Self {
            warehouse: warehouse.clone(),
            jobs: warehouse.jobs().await?,
            schemas: Mutex::default(),
            public: Arc::new(MemorySchemaProvider::new()),
        };
        for (job, version) in versions {
            catalog.add(job.as_str(), job, At::Version(*version));
        }
        Ok(catalog)
    }

    /// Jobs at these versions, and no others.
    pub(super) fn exactly(
        warehouse: &Warehouse,
        versions: &[JobVersions],
    ) -> std::result::Result<Self, pmill_store::StoreError> {
        let catalog = Self {
            warehouse: warehouse.clone(),
            jobs: Vec::new(),
            schemas: Mutex::default(),
            public: Arc::new(MemorySchemaProvider::new()),
        };
        for version in versions {
            let job = JobName::new(&version.job)?;
            let at = At::Exactly(version.pairs, version.pmi);
            catalog.add(&version.schema, &job, at);
        }
        Ok(catalog)
    }

    fn add(&self, schema: &str, job: &JobName, at: At) -> Arc<QuerySchema> {
        let mut schemas = self.schemas.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(QuerySchema {
                warehouse: self.warehouse.clone(),
                name: job.clone(),
                at,
                job: OnceCell::new(),
                tables: Mutex::default(),
            })
        };
        schemas.entry(schema.to_owned()).or_insert_with(new).clone()
    }

    /// What was opened, and at which versions.
    pub(super) fn versions(&self) -> Vec<JobVersions> {
        let schemas = self.schemas.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = schemas
            .iter()
            .filter_map(|(name, schema)| Some((name, schema.job.get()?)));
        opened
            .map(|(name, job)| JobVersions {
                schema: name.clone(),
                job: job.name.to_string(),
                pairs: job.pairs.version(),
                pmi: job.pmi.as_ref().map(TableState::version),
            })
            .collect()
    }
}

impl CatalogProvider for QueryCatalog {
    fn schema_names(&self) -> Vec<String> {
        let jobs = self.jobs.iter().map(ToString::to_string);
        jobs.chain([PUBLIC.to_owned()]).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if name == PUBLIC {
            return Some(self.public.clone());
        }
        let known = {
            let schemas = self.schemas.lock().unwrap_or_else(PoisonError::into_inner);
            schemas.get(name).cloned()
        };
        if let Some(schema) = known {
            return Some(schema);
        }
        let (job, at) = match time_travel::parse_schema_name(name) {
            Some((job, version)) => (job, At::Version(version)),
            None => (name, At::Newest),
        };
        let job = self.jobs.iter().find(|known| known.as_str() == job)?;
        Some(self.add(name, job, at))
    }
}

#[derive(Debug)]
struct QuerySchema {
    warehouse: Warehouse,
    name: JobName,
    at: At,
    job: OnceCell<Job>,
    tables: Mutex<HashMap<String, Arc<ScanTable>>>,
}

const TABLES: [&str; 6] = ["outside", "pairs", "pmi", "sources", "tail", "vocab"];

impl QuerySchema {
    async fn job(&self) -> Result<&Job> {
        let (warehouse, name) = (&self.warehouse, &self.name);
        let open = async || match self.at {
            At::Newest => Job::open_existing(warehouse, name).await,
            At::Version(version) => Job::open_existing_at(warehouse, name, Some(version)).await,
            At::Exactly(pairs, pmi) => Job::open_exactly(warehouse, name, pairs, pmi).await,
        };
        self.job.get_or_try_init(open).await.map_err(external)
    }

    async fn open(&self, name: &str, state: &TableState) -> Result<ScanTable> {
        if !state.is_plain().map_err(external)? {
            return Err(DataFusionError::Plan(format!(
                "`{}.{name}` is more than its Parquet files",
                self.name
            )));
        }
        let (folder, _) = self.warehouse.table_folder(&self.name, name);
        let mut files = Vec::new();
        let mut rows = 0;
        for file in state.files().map_err(external)? {
            let path = folder.clone().join(file.name);
            files.push((path.to_string(), file.size));
            rows += file.rows;
        }
        let provider = state.provider().await.map_err(external)?;
        let store = self.warehouse.store().clone();
        Ok(ScanTable::of(provider.schema(), store, files, rows))
    }
}

fn external(error: pmill_store::StoreError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

#[async_trait]
impl SchemaProvider for QuerySchema {
    fn table_names(&self) -> Vec<String> {
        let names = TABLES.into_iter().filter(|name| self.table_exist(name));
        names.map(str::to_owned).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let job = self.job().await?;
        let state = match name {
            "vocab" => Some(&job.vocab),
            "pairs" => Some(&job.pairs),
            "sources" => Some(&job.sources),
            "pmi" => job.pmi.as_ref(),
            "outside" => job.outside.as_ref(),
            "tail" => job.tail.as_ref(),
            _ => None,
        };
        let Some(state) = state else { return Ok(None) };
        let kept = || self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = kept().get(name) {
            return Ok(Some(table.clone()));
        }
        let table = Arc::new(self.open(name, state).await?);
        kept().insert(name.to_owned(), table.clone());
        Ok(Some(table))
    }

    fn table_exist(&self, name: &str) -> bool {
        match (name, self.job.get()) {
            ("pmi", Some(job)) => job.pmi.is_some(),
            ("outside", Some(job)) => job.outside.is_some(),
            ("tail", Some(job)) => job.tail.is_some(),
            (name, _) => TABLES.contains(&name),
        }
    }
}

/// The rows of a version's Parquet files.
#[derive(Debug)]
pub(super) struct ScanTable {
    schema: SchemaRef,
    /// Rooted at the warehouse, as the files' paths are.
    store: Arc<dyn ObjectStore>,
    files: Vec<PartitionedFile>,
    rows: u64,
}

impl ScanTable {
    /// A table of files (path in the store and bytes) with so many rows together.
    pub(super) fn of(
        schema: SchemaRef,
        store: Arc<dyn ObjectStore>,
        files: Vec<(String, u64)>,
        rows: u64,
    ) -> Self {
        let files = files.into_iter();
        let files = files.map(|(path, bytes)| PartitionedFile::new(path, bytes));
        Self {
            schema,
            store,
            files: files.collect(),
            rows,
        }
    }

    /// The files in `partitions` parts of about the same bytes, or in fewer when they are small.
    fn groups(&self, partitions: usize) -> Vec<FileGroup> {
        let whole = vec![FileGroup::new(self.files.clone())];
        let bytes: u64 = self.files.iter().map(|file| file.object_meta.size).sum();
        let most = usize::try_from(bytes.div_ceil(SMALL_BYTES)).unwrap_or(usize::MAX);
        let partitions = partitions.min(most);
        if partitions < 2 {
            return whole;
        }
        FileGroupPartitioner::new()
            .with_target_partitions(partitions)
            .with_repartition_file_min_size(0)
            .repartition_file_groups(&whole)
            .unwrap_or(whole)
    }
}

#[async_trait]
impl TableProvider for ScanTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if self.files.is_empty() {
            let schema = match projection {
                Some(columns) => Arc::new(self.schema.project(columns)?),
                None => self.schema.clone(),
            };
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let cache = state.runtime_env().cache_manager.get_file_metadata_cache();
        let readers = CachedParquetFileReaderFactory::new(self.store.clone(), cache);
        let mut source = ParquetSource::new(self.schema.clone())
            .with_table_parquet_options(state.default_table_options().parquet)
            .with_parquet_file_reader_factory(Arc::new(readers))
            .with_pushdown_filters(true);
        if let Some(filter) = conjunction(filters.iter().cloned()) {
            let schema = DFSchema::try_from(self.schema.as_ref().clone())?;
            source = source.with_predicate(state.create_physical_expr(filter, &schema)?);
        }
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = Precision::Exact(usize::try_from(self.rows).unwrap_or(usize::MAX));
        // The store is the reader's: the URL only has to be one that every session knows.
        let url = ObjectStoreUrl::local_filesystem();
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(self.groups(state.config().target_partitions()))
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            // A filter above may still drop rows.
            .with_limit(limit.filter(|_| filters.is_empty()))
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}
