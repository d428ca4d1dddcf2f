//! A query as units: the parts of its plan below the first exchange, partition by partition.
//!
//! ```text
//! SQL ─▶ plan ─▶ query(fragment, partition) … ─▶ the rest of the plan, in the driver
//! ```
//!
//! Driver and executors plan the same SQL at the same versions of the same tables with the same
//! number of partitions, and so get the same physical plan. A unit is named by the number of its
//! [fragment](fragments) and of its partition; it runs that, leaves the rows as a file, and then its
//! manifest. A digest of the fragment as it is displayed goes along: who plans otherwise refuses. The
//! driver reads the files where the fragments stood. So what travels is text and numbers, and who
//! dies is replaced as in every other plan.
//!
//! Queries that cannot be planned so run in the driver: those that name a file or a table function,
//! that ask for the time or for random numbers, or that scan too little to be worth it.

mod drive;
mod fragments;
mod rows;
mod tables;
mod unit;

use std::sync::Arc;

use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::{CatalogProviderList, MemoryCatalogProviderList};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::{SessionConfig, SessionContext};
use pmill_store::{JobName, Warehouse};
use serde::{Deserialize, Serialize};

pub(super) use drive::clear_dead;
pub use drive::{Answer, QueryDrive};
pub(super) use rows::QueryDone;
pub use tables::JobVersions;
use tables::QueryCatalog;
pub(super) use unit::LoadedQuery;

use super::plan::PROTOCOL;
use crate::error::EngineError;
use crate::session::query;
use crate::sql::read_only;
use crate::time_travel;

/// Bytes that one unit reads, about.
const UNIT_BYTES: u64 = 64 << 20;
/// Partitions of a plan: enough to be shared out, not so many that the driver drowns in them.
const PARTITIONS: std::ops::RangeInclusive<u64> = 4..=256;
/// Rows of a table that is read whole by each unit rather than exchanged.
const SMALL_ROWS: usize = 1 << 20;
/// A fragment that reads less than this part of what makes a query heavy is left to the driver.
const LEAST_PART: u64 = 16;

/// Which jobs a query sees.
#[derive(Debug, Clone)]
pub enum Sees<'a> {
    /// All of the warehouse at their newest versions, but for those that are named here.
    Newest(&'a [(JobName, u64)]),
    /// These, at these versions.
    Exactly(&'a [JobVersions]),
}

/// A query that may be worth a cluster.
#[derive(Debug, Clone)]
pub struct QueryRequest<'a> {
    /// The warehouse.
    pub warehouse: &'a Warehouse,
    /// What it sees of it.
    pub sees: Sees<'a>,
    /// The statement.
    pub sql: &'a str,
    /// Values of its parameters `$1`, `$2`, ….
    pub parameters: Option<&'a ParamValues>,
    /// Bytes of the needed columns that a query must scan at least; fewer run in process.
    pub least_bytes: u64,
}

/// What all units of a query share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct QueryHeader {
    pub(super) protocol: u32,
    pub(super) program: String,
    warehouse: String,
    versions: Vec<JobVersions>,
    sql: String,
    /// Values of parameters as one row, an Arrow IPC stream.
    parameters: Option<Vec<u8>>,
    /// Partitions that scans are cut into.
    partitions: usize,
    pub(super) fragments: Vec<SentFragment>,
}

/// A fragment that goes to the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SentFragment {
    /// Its number among the fragments of the plan.
    number: usize,
    /// Names what it does.
    digest: String,
    pub(super) partitions: usize,
}

/// Where a query is to run.
pub enum Planned {
    /// Parts of it on a cluster.
    Cluster(Box<QueryPlan>),
    /// In process, for this reason: it has to, or is as well off there. Also when it is wrong, which is
    /// then told there.
    Here(String),
}

/// A planned query with at least one fragment to send.
pub struct QueryPlan {
    warehouse: Warehouse,
    header: QueryHeader,
    logical: LogicalPlan,
    plan: Arc<dyn ExecutionPlan>,
}

impl QueryPlan {
    /// Plans a query for a cluster, in a session with the settings of `context`.
    ///
    /// # Errors
    /// When the warehouse cannot be listed.
    pub async fn make(
        request: &QueryRequest<'_>,
        context: &SessionContext,
    ) -> Result<Planned, EngineError> {
        let here = |reason: &str| Ok(Planned::Here(reason.to_owned()));
        let catalog = Arc::new(match request.sees {
            Sees::Newest(versions) => QueryCatalog::open(request.warehouse, versions).await?,
            Sees::Exactly(versions) => QueryCatalog::exactly(request.warehouse, versions)?,
        });
        let parameters = match request.parameters.map(to_bytes) {
            None => None,
            Some(Some(bytes)) => Some(bytes),
            Some(None) => return here("its parameters have names"),
        };
        let sql = match time_travel::rewrite(request.sql) {
            Ok(sql) => sql,
            Err(reason) => return Ok(Planned::Here(reason)),
        };
        // In process it fails too, with the message that belongs there, or it runs.
        let planned = Self::planned(request, context, &catalog, sql, parameters).await;
        Ok(planned.unwrap_or_else(|error| Planned::Here(error.strip_backtrace())))
    }

    async fn planned(
        request: &QueryRequest<'_>,
        context: &SessionContext,
        catalog: &Arc<QueryCatalog>,
        sql: String,
        parameters: Option<Vec<u8>>,
    ) -> Result<Planned> {
        let here = |reason: String| Ok(Planned::Here(reason));
        let fewest = usize::try_from(*PARTITIONS.start()).unwrap_or(1);
        let state = state(context, catalog, fewest);
        let logical = logical(&state, &sql, parameters.as_deref()).await?;
        if !can_be_planned_twice(&logical)? {
            return here("it would not give the same rows whenever and wherever it ran".into());
        }
        let plan = physical(&state, &logical).await?;
        let (mut all, mut sent) = (0, Vec::new());
        for (number, fragment) in fragments::find(&plan).iter().enumerate() {
            let bytes = fragments::bytes(fragment).await?;
            all += bytes;
            if bytes.saturating_mul(LEAST_PART) >= request.least_bytes {
                sent.push((number, bytes));
            }
        }
        if sent.is_empty() || all < request.least_bytes {
            return here(format!("the parts that could be sent scan {all} bytes"));
        }
        // The largest scan says how finely all are cut; the plan's shape stays as it is.
        let most = sent.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        let partitions = most
            .div_ceil(UNIT_BYTES)
            .clamp(*PARTITIONS.start(), *PARTITIONS.end());
        let partitions = usize::try_from(partitions).unwrap_or(fewest);
        let plan = if partitions == fewest {
            plan
        } else {
            let state = self::state(context, catalog, partitions);
            physical(&state, &logical).await?
        };
        let found = fragments::find(&plan);
        let fragments = sent.iter().filter_map(|(number, _)| {
            let fragment = found.get(*number)?;
            Some(SentFragment {
                number: *number,
                digest: fragments::digest(fragment),
                partitions: fragment.output_partitioning().partition_count(),
            })
        });
        let header = QueryHeader {
            protocol: PROTOCOL,
            program: concat!("pmill ", env!("CARGO_PKG_VERSION")).to_owned(),
            warehouse: request.warehouse.url().as_str().to_owned(),
            versions: catalog.versions(),
            sql,
            parameters,
            partitions,
            fragments: fragments.collect(),
        };
        Ok(Planned::Cluster(Box::new(Self {
            warehouse: request.warehouse.clone(),
            header,
            logical,
            plan,
        })))
    }

    /// The plan before it was made faster, with the values of its parameters: what the query means.
    #[must_use]
    pub fn logical(&self) -> &LogicalPlan {
        &self.logical
    }

    /// Units that it will have.
    #[must_use]
    pub fn units(&self) -> usize {
        self.header.fragments.iter().map(|f| f.partitions).sum()
    }
}

/// Bytes of the needed columns that the Parquet scans of a plan read; an index that chose rows
/// (`selected` gives the part of them) counts.
///
/// # Errors
/// When a footer cannot be read.
pub async fn scanned_bytes(
    plan: &Arc<dyn ExecutionPlan>,
    selected: &(dyn Fn(&datafusion::datasource::listing::PartitionedFile) -> f64 + Sync),
    enough: u64,
) -> Result<u64> {
    let mut scans = Vec::new();
    plan.apply(|node| {
        if fragments::scan(node).is_some() {
            scans.push(node.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let mut all = 0;
    for node in scans {
        let Some((config, source)) = fragments::scan(&node) else {
            continue;
        };
        let files = || config.file_groups.iter().flat_map(|group| group.iter());
        let whole: u64 = files().map(|file| file.effective_size()).sum();
        let chosen: f64 = files()
            .map(|file| file.effective_size() as f64 * selected(file))
            .sum();
        // Footers are not looked at for what is small anyway.
        if config.limit.is_some() || (chosen as u64) < enough / LEAST_PART {
            continue;
        }
        let needed = fragments::scan_bytes(config, source).await?;
        all += (needed as f64 * (chosen / (whole as f64).max(1.0))) as u64;
    }
    Ok(all)
}

/// A session in which a query is planned the same way wherever that is done.
fn state(context: &SessionContext, catalog: &Arc<QueryCatalog>, partitions: usize) -> SessionState {
    let config = planning(context.copied_config(), partitions);
    let name = config.options().catalog.default_catalog.clone();
    let catalogs = MemoryCatalogProviderList::new();
    catalogs.register_catalog(name, catalog.clone());
    SessionStateBuilder::new_from_existing(context.state())
        .with_config(config)
        .with_catalog_list(Arc::new(catalogs))
        .build()
}

/// The settings that a query is planned with.
fn planning(config: SessionConfig, partitions: usize) -> SessionConfig {
    let mut config = config
        .with_target_partitions(partitions)
        // The catalog is the query's.
        .with_create_default_catalog_and_schema(false);
    let options = config.options_mut();
    // Scans are cut as they are to be.
    options.optimizer.enable_round_robin_repartition = false;
    options.optimizer.repartition_file_scans = false;
    // Small tables are read by each unit.
    options.optimizer.hash_join_single_partition_threshold_rows = SMALL_ROWS;
    options.optimizer.hash_join_single_partition_threshold = 64 << 20;
    // A value that is worked out beside the plan would not be there for a unit.
    options
        .optimizer
        .enable_physical_uncorrelated_scalar_subquery = false;
    config
}

/// How a query is run: the same whenever it is asked for, down to the names that the planner makes up.
async fn physical(state: &SessionState, logical: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
    let mut state = state.clone();
    // These names are counted on from here.
    state.mark_start_execution();
    state.create_physical_plan(logical).await
}

/// What a statement means; it only reads.
async fn logical(
    state: &SessionState,
    sql: &str,
    parameters: Option<&[u8]>,
) -> Result<LogicalPlan> {
    let plan = state.create_logical_plan(sql).await?;
    read_only().verify_plan(&plan)?;
    match parameters {
        None => Ok(plan),
        Some(bytes) => plan.replace_params_with_values(&from_bytes(bytes)?),
    }
}

/// Whether a plan gives the same rows whenever and wherever it runs, and is a query at all.
fn can_be_planned_twice(plan: &LogicalPlan) -> Result<bool> {
    let mut same = true;
    plan.apply_with_subqueries(|node| {
        same &= !matches!(
            node,
            LogicalPlan::Explain(_)
                | LogicalPlan::Analyze(_)
                | LogicalPlan::Statement(_)
                | LogicalPlan::Ddl(_)
                | LogicalPlan::Dml(_)
                | LogicalPlan::Copy(_)
                | LogicalPlan::DescribeTable(_)
                | LogicalPlan::RecursiveQuery(_)
                | LogicalPlan::Extension(_)
        );
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                same &= !matches!(part, Expr::ScalarFunction(function)
                    if function.func.signature().volatility != Volatility::Immutable);
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(same)
}

/// Values by their place as one row; `None` for values with names.
fn to_bytes(values: &ParamValues) -> Option<Vec<u8>> {
    let ParamValues::List(values) = values else {
        return None;
    };
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let column = value.value.to_array().ok()?;
        fields.push(Field::new(
            index.to_string(),
            column.data_type().clone(),
            true,
        ));
        columns.push(column);
    }
    if columns.is_empty() {
        return None;
    }
    let row = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).ok()?;
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &row.schema()).ok()?;
    writer.write(&row).ok()?;
    writer.finish().ok()?;
    drop(writer);
    Some(bytes)
}

fn from_bytes(bytes: &[u8]) -> Result<ParamValues> {
    let mut reader = StreamReader::try_new(bytes, None)?;
    let row = reader
        .next()
        .ok_or_else(|| DataFusionError::Plan("the query's parameters are not there".into()))??;
    let values: Vec<ScalarValue> = row
        .columns()
        .iter()
        .map(|column| ScalarValue::try_from_array(column, 0))
        .collect::<Result<_>>()?;
    Ok(ParamValues::from(values))
}

/// An error of planning on an executor, where the driver had none.
fn refused(error: DataFusionError) -> EngineError {
    match query(error) {
        EngineError::Query(text) => EngineError::Setting(format!(
            "this executor cannot plan the query as its driver did: {text}"
        )),
        other => other,
    }
}

#[cfg(test)]
mod tests;
