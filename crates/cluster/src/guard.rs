//! Plans are not code: an executor runs stages of [`UnitExec`](crate::unit_exec::UnitExec) over rows
//! in the message, and nothing else, whatever it is sent.

use std::sync::Arc;

use ballista_core::JobId;
use ballista_executor::execution_engine::{
    DefaultExecutionEngine, ExecutionEngine, QueryStageExecutor,
};
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;

/// Ballista's engine behind a look at the plan.
#[derive(Default)]
pub struct UnitsOnly(DefaultExecutionEngine);

impl ExecutionEngine for UnitsOnly {
    fn create_query_stage_exec(
        &self,
        job_id: JobId,
        stage_id: usize,
        task_id: usize,
        partitions: Vec<usize>,
        plan: Arc<dyn ExecutionPlan>,
        work_dir: &str,
        config: &SessionConfig,
    ) -> Result<Arc<dyn QueryStageExecutor>> {
        check(&plan)?;
        self.0.create_query_stage_exec(
            job_id, stage_id, task_id, partitions, plan, work_dir, config,
        )
    }
}

/// A writer, then units, then rows in memory.
fn check(plan: &Arc<dyn ExecutionPlan>) -> Result<()> {
    let mut names = Vec::new();
    let mut at = plan;
    loop {
        names.push(at.name().to_owned());
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
    if known { Ok(()) } else { Err(refuse(&names)) }
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
