//! A table that is a query over the session's own tables, written when the table is scanned: only then can the job
//! that it names be opened.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{internal_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::SessionContext;
use pmill_store::Job;

use super::Jobs;
use crate::error::nearest_name;

/// Writes the query of a table; the columns must be those of the table, by name and in order.
#[async_trait]
pub(super) trait Query: std::fmt::Debug + Send + Sync + 'static {
    async fn sql(&self, context: &SessionContext) -> Result<String>;
}

#[derive(Debug)]
pub(super) struct PlannedTable<Q> {
    schema: SchemaRef,
    query: Q,
}

impl<Q> PlannedTable<Q> {
    pub(super) fn new(columns: Vec<(String, DataType)>, query: Q) -> Self {
        let fields: Vec<Field> = columns
            .into_iter()
            .map(|(name, kind)| Field::new(name, kind, true))
            .collect();
        Self {
            schema: Arc::new(Schema::new(fields)),
            query,
        }
    }
}

/// A session of its own with what the query's has.
pub(super) fn context_of(state: &dyn Session) -> Result<SessionContext> {
    match state.as_any().downcast_ref::<SessionState>() {
        Some(state) => Ok(SessionContext::new_with_state(state.clone())),
        None => internal_err!("the session of a table function is of an unknown kind"),
    }
}

/// The columns that are asked for, by their places.
pub(super) fn places(projection: Option<&Vec<usize>>, schema: &Schema) -> Vec<usize> {
    match projection {
        Some(places) => places.clone(),
        None => (0..schema.fields().len()).collect(),
    }
}

#[async_trait]
impl<Q: Query> TableProvider for PlannedTable<Q> {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let context = context_of(state)?;
        let frame = context.sql(&self.query.sql(&context).await?).await?;
        // Types as declared, whatever the sums and casts of the query made of them.
        let kept: Vec<Expr> = places(projection, &self.schema)
            .iter()
            .map(|place| {
                let field = self.schema.field(*place);
                datafusion::logical_expr::cast(
                    datafusion::prelude::ident(field.name()),
                    field.data_type().clone(),
                )
                .alias(field.name())
            })
            .collect();
        let plan = frame.select(kept)?.create_physical_plan().await?;
        let schema = plan.schema();
        let parts = (0..plan.output_partitioning().partition_count())
            .map(|number| -> Arc<dyn PartitionStream> {
                Arc::new(Part {
                    schema: schema.clone(),
                    plan: plan.clone(),
                    number,
                })
            })
            .collect();
        let sealed = StreamingTableExec::try_new(schema, parts, None, [], false, None)?;
        Ok(Arc::new(sealed))
    }
}

/// One partition of a finished plan. The rules of the outer query must not see the plan: some of them refuse one that
/// they have been over before (a hash join with its dynamic filter in place cannot swap its sides again).
#[derive(Debug)]
struct Part {
    schema: SchemaRef,
    plan: Arc<dyn ExecutionPlan>,
    number: usize,
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, task: Arc<TaskContext>) -> SendableRecordBatchStream {
        match self.plan.execute(self.number, task) {
            Ok(stream) => stream,
            Err(error) => Box::pin(RecordBatchStreamAdapter::new(
                self.schema.clone(),
                futures::stream::once(async { Err(error) }),
            )),
        }
    }
}

/// A job of the warehouse, at the version that its tables have in this session.
pub(super) async fn job(jobs: &dyn Jobs, function: &str, name: &str) -> Result<Job> {
    if let Some(job) = jobs.job(name).await? {
        return Ok(job);
    }
    let names = jobs.job_names();
    let nearest = nearest_name(name, names.iter().map(String::as_str))
        .map(|name| format!(" (did you mean `{name}`?)"))
        .unwrap_or_default();
    let known = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    plan_err!("{function}: no job `{name}`{nearest}; the warehouse has: {known}")
}

/// An error of the engine, as DataFusion hands it on.
pub(super) fn external(error: impl Into<crate::EngineError>) -> DataFusionError {
    DataFusionError::External(Box::new(error.into()))
}
