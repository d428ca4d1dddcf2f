//! A warehouse as SQL sees it: each job is a schema with the tables `vocab`, `pairs`, `sources`, perhaps `outside`
//! and `tail`, and, once scored, `pmi`. A job is opened when a query first names it, and stays at that
//! version for the life of the catalog: one query, one version.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::prelude::SessionContext;
use pmill_store::{Job, JobName, StoreError, Warehouse};
use tokio::sync::OnceCell;

use crate::error::EngineError;
use crate::table_functions::Jobs;
use crate::time_travel;

/// Makes the jobs of a warehouse the schemas of the session's default catalog, and adds the table functions.
///
/// # Errors
/// When the warehouse cannot be listed.
pub async fn register(context: &SessionContext, warehouse: &Warehouse) -> Result<(), EngineError> {
    register_at(context, warehouse, &[]).await
}

/// As [`register`], with some jobs as a version shows them.
///
/// # Errors
/// When the warehouse cannot be listed, or has no such job or version.
pub async fn register_at(
    context: &SessionContext,
    warehouse: &Warehouse,
    versions: &[(JobName, u64)],
) -> Result<(), EngineError> {
    let mut jobs = Vec::new();
    for name in warehouse.jobs().await? {
        let schema = JobSchema::new(warehouse, &name, None);
        jobs.push((name, Arc::new(schema)));
    }
    for (name, version) in versions {
        let schema = JobSchema::new(warehouse, name, Some(*version));
        // Opened here, so that what is wrong with it is told for sure.
        schema.open().await?;
        jobs.retain(|(job, _)| job != name);
        jobs.push((name.clone(), Arc::new(schema)));
    }
    jobs.sort_by(|(a, _), (b, _)| a.cmp(b));
    let name = context
        .copied_config()
        .options()
        .catalog
        .default_catalog
        .clone();
    let catalog = Arc::new(WarehouseCatalog {
        warehouse: warehouse.clone(),
        jobs,
        older: Mutex::new(HashMap::new()),
        public: Arc::new(MemorySchemaProvider::new()),
    });
    let jobs: Arc<dyn Jobs> = catalog.clone();
    crate::table_functions::register(context, &jobs, true).map_err(crate::session::query)?;
    context.register_catalog(name, catalog);
    Ok(())
}

/// The jobs of one warehouse.
#[derive(Debug)]
pub struct WarehouseCatalog {
    warehouse: Warehouse,
    jobs: Vec<(JobName, Arc<JobSchema>)>,
    /// Versions that queries have named, by their schema (`captions@3`).
    older: Mutex<HashMap<String, Arc<JobSchema>>>,
    public: Arc<MemorySchemaProvider>,
}

impl WarehouseCatalog {
    /// The schema that a name with a version means, as `captions@3`.
    fn older(&self, name: &str) -> Option<Arc<JobSchema>> {
        let (job, version) = time_travel::parse_schema_name(name)?;
        let (job, schema) = self.jobs.iter().find(|(name, _)| name.as_str() == job)?;
        let mut older = self.older.lock().ok()?;
        let schema = older
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(JobSchema::new(&schema.warehouse, job, Some(version))));
        Some(schema.clone())
    }
}

#[async_trait]
impl Jobs for WarehouseCatalog {
    async fn job(&self, name: &str) -> Result<Option<Job>> {
        if time_travel::parse_schema_name(name).is_some() {
            return match self.older(name) {
                Some(schema) => schema.job().await.map(|job| Some(job.clone())),
                None => Ok(None),
            };
        }
        match self.jobs.iter().find(|(job, _)| job.as_str() == name) {
            Some((_, schema)) => schema.job().await.map(|job| Some(job.clone())),
            None => Ok(None),
        }
    }

    fn job_names(&self) -> Vec<String> {
        self.jobs.iter().map(|(name, _)| name.to_string()).collect()
    }

    fn warehouse(&self) -> &Warehouse {
        &self.warehouse
    }
}

const PUBLIC: &str = "public";

impl CatalogProvider for WarehouseCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.jobs
            .iter()
            .map(|(name, _)| name.to_string())
            .chain([PUBLIC.to_owned()])
            .collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if name == PUBLIC {
            return Some(self.public.clone());
        }
        if time_travel::parse_schema_name(name).is_some() {
            return self
                .older(name)
                .map(|schema| schema as Arc<dyn SchemaProvider>);
        }
        let (_, schema) = self.jobs.iter().find(|(job, _)| job.as_str() == name)?;
        Some(schema.clone())
    }
}

#[derive(Debug)]
struct JobSchema {
    warehouse: Warehouse,
    name: JobName,
    /// The version of `pairs`; the newest when it is first asked for, if none.
    version: Option<u64>,
    job: OnceCell<Job>,
}

impl JobSchema {
    fn new(warehouse: &Warehouse, name: &JobName, version: Option<u64>) -> Self {
        Self {
            warehouse: warehouse.clone(),
            name: name.clone(),
            version,
            job: OnceCell::new(),
        }
    }

    async fn open(&self) -> Result<&Job, StoreError> {
        self.job
            .get_or_try_init(|| Job::open_existing_at(&self.warehouse, &self.name, self.version))
            .await
    }

    async fn job(&self) -> Result<&Job> {
        self.open()
            .await
            .map_err(|error| DataFusionError::External(Box::new(error)))
    }
}

#[async_trait]
impl SchemaProvider for JobSchema {
    fn table_names(&self) -> Vec<String> {
        ["outside", "pairs", "pmi", "sources", "tail", "vocab"]
            .into_iter()
            .filter(|name| self.table_exist(name))
            .map(str::to_owned)
            .collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let job = self.job().await?;
        let state = match name {
            "vocab" => &job.vocab,
            "pairs" => &job.pairs,
            "sources" => &job.sources,
            "pmi" => match &job.pmi {
                Some(pmi) => pmi,
                None => return Ok(None),
            },
            "outside" => match &job.outside {
                Some(outside) => outside,
                None => return Ok(None),
            },
            "tail" => match &job.tail {
                Some(tail) => tail,
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let provider = state
            .provider()
            .await
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(Some(provider))
    }

    fn table_exist(&self, name: &str) -> bool {
        match name {
            "vocab" | "pairs" | "sources" => true,
            "pmi" | "outside" | "tail" => match self.job.get() {
                Some(job) if name == "pmi" => job.pmi.is_some(),
                Some(job) if name == "tail" => job.tail.is_some(),
                Some(job) => job.outside.is_some(),
                None => {
                    let (_, local) = self.warehouse.table_folder(&self.name, name);
                    local.is_none_or(|path| path.join("_delta_log").exists())
                }
            },
            _ => false,
        }
    }
}
