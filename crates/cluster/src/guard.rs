//! Plans are not code: an executor runs stages of [`UnitExec`](crate::unit_exec::UnitExec) over rows
//! in the message, and nothing else, whatever it is sent.
//!
//! Units leave their results in the plan's folder, so a stage has no output of its own: Ballista's
//! writer around it is left out, and an executor needs no disk for it.

use std::fmt;
use std::sync::Arc;

use ballista_core::JobId;
use ballista_core::serde::protobuf::ShuffleWritePartition;
use ballista_executor::execution_engine::{ExecutionEngine, QueryStageExecutor};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::SessionConfig;
use futures::TryStreamExt;

/// Runs units, and refuses all else.
#[derive(Default)]
pub struct UnitsOnly;

impl ExecutionEngine for UnitsOnly {
    fn create_query_stage_exec(
        &self,
        _: JobId,
        _: usize,
        _: usize,
        _: Vec<usize>,
        plan: Arc<dyn ExecutionPlan>,
        _: &str,
        _: &SessionConfig,
    ) -> Result<Arc<dyn QueryStageExecutor>> {
        Ok(Arc::new(UnitStage {
            units: check(&plan)?,
        }))
    }
}

/// The operators of a stage: a writer, units, rows.
const OPERATORS: usize = 3;

/// A stage of units.
#[derive(Debug)]
struct UnitStage {
    units: Arc<dyn ExecutionPlan>,
}

impl fmt::Display for UnitStage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("UnitStage")
    }
}

#[tonic::async_trait]
impl QueryStageExecutor for UnitStage {
    async fn execute_query_stage(
        &self,
        _: usize,
        context: Arc<TaskContext>,
    ) -> Result<Vec<ShuffleWritePartition>> {
        for partition in 0..self.units.output_partitioning().partition_count() {
            let mut rows = self.units.execute(partition, context.clone())?;
            while rows.try_next().await?.is_some() {}
        }
        Ok(Vec::new())
    }

    fn collect_plan_metrics(&self) -> Vec<MetricsSet> {
        // Nothing is measured here, but the scheduler complains at every unit when the lengths differ.
        vec![MetricsSet::new(); OPERATORS]
    }
}

/// A writer, then units, then rows in memory: gives the units.
fn check(plan: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let mut names = Vec::new();
    let (mut at, mut units) = (plan, plan);
    loop {
        names.push(at.name().to_owned());
        if names.len() == 2 {
            units = at;
        }
        match at.children()[..] {
            [] => break,
            [child] => at = child,
            _ => return Err(refuse(&names)),
        }
    }
    let known = match &names[..] {
        [writer, units, rows] => {
            matches!(
                writer.as_str(),
                "ShuffleWriterExec" | "SortShuffleWriterExec"
            ) && units == "UnitExec"
                && rows == "DataSourceExec"
                && is_memory(at)
        }
        _ => false,
    };
    if known {
        Ok(units.clone())
    } else {
        Err(refuse(&names))
    }
}

fn is_memory(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.downcast_ref::<datafusion::datasource::source::DataSourceExec>()
        .is_some_and(|source| {
            source
                .data_source()
                .downcast_ref::<datafusion::datasource::memory::MemorySourceConfig>()
                .is_some()
        })
}

fn refuse(names: &[String]) -> DataFusionError {
    DataFusionError::Plan(format!(
        "this executor runs pmill's units only, and was sent {}",
        names.join(" over ")
    ))
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;

    #[tokio::test]
    async fn a_query_is_refused() {
        let context = SessionContext::new();
        let plan = context.sql("SELECT 1").await.unwrap();
        let plan = plan.create_physical_plan().await.unwrap();
        let error = check(&plan).unwrap_err().to_string();
        assert!(error.contains("units only"), "{error}");
    }
}
