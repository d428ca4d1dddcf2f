//! The operator that runs units. Its input's rows are unit specs; it runs whatever rows it is
//! given and never looks at its partition's number. It gives no rows: what was done is told by
//! manifests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use futures::{StreamExt, TryStreamExt};
use pmill_engine::job::distributed::{UnitSpec, UnitWorker};
use pmill_engine::progress::StopFlag;
use tokio::sync::Semaphore;

use crate::metrics::METRICS;

/// Seconds that a unit may go on after its time is over and it was told to stop. A unit that holds
/// its thread longer is given up; its slot stays taken until the thread ends.
const GRACE: Duration = Duration::from_secs(10);

/// What runs units in this process.
pub struct Units {
    /// Runs them.
    pub worker: UnitWorker,
    /// As many at once as there are slots, whatever the scheduler thinks.
    pub slots: Arc<Semaphore>,
    /// Ends all of them.
    pub stop: Arc<StopFlag>,
}

impl fmt::Debug for Units {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Units")
    }
}

/// The operator.
#[derive(Debug)]
pub struct UnitExec {
    input: Arc<dyn ExecutionPlan>,
    units: Option<Arc<Units>>,
    properties: Arc<PlanProperties>,
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("spec", DataType::Utf8, false)]))
}

impl UnitExec {
    /// Runs the specs of `input` with `units`; without them it can be planned and sent only.
    pub fn new(input: Arc<dyn ExecutionPlan>, units: Option<Arc<Units>>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema()),
            input.output_partitioning().clone(),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self {
            input,
            units,
            properties: Arc::new(properties),
        }
    }

    /// A plan that runs one unit.
    pub fn plan(spec: &UnitSpec) -> Result<Arc<dyn ExecutionPlan>> {
        let text =
            serde_json::to_string(spec).map_err(|error| DataFusionError::External(error.into()))?;
        let rows = RecordBatch::try_new(schema(), vec![Arc::new(StringArray::from(vec![text]))])?;
        let input = MemorySourceConfig::try_new_exec(&[vec![rows]], schema(), None)?;
        Ok(Arc::new(Self::new(input, None)))
    }
}

impl DisplayAs for UnitExec {
    fn fmt_as(&self, _: DisplayFormatType, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("UnitExec")
    }
}

impl ExecutionPlan for UnitExec {
    fn name(&self) -> &str {
        "UnitExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[_; 1]>::try_from(children)
            .map_err(|_| DataFusionError::Plan("UnitExec has one input".into()))?;
        Ok(Arc::new(Self::new(input, self.units.clone())))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let units = self
            .units
            .clone()
            .ok_or_else(|| DataFusionError::Plan("units run on executors only".into()))?;
        let task = context.task_id().unwrap_or_default();
        let specs = self.input.execute(partition, context)?;
        let work = async move {
            let batches: Vec<RecordBatch> = specs.try_collect().await?;
            for batch in batches {
                for text in batch.column(0).as_string::<i32>().iter().flatten() {
                    run_unit(&units, text, &task).await?;
                }
            }
            Ok(RecordBatch::new_empty(schema()))
        };
        let stream = futures::stream::once(work).boxed();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema(), stream)))
    }
}

/// Ends the unit when the task that waits for it is dropped.
struct CancelOnDrop(Arc<StopFlag>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

async fn run_unit(units: &Arc<Units>, text: &str, task: &str) -> Result<()> {
    let spec: UnitSpec = serde_json::from_str(text).map_err(|error| {
        DataFusionError::Execution(format!(
            "a unit of another version of pmill: {error}; run the same version everywhere"
        ))
    })?;
    let closed = |_| DataFusionError::Execution("the executor is ending".into());
    let slot = units.slots.clone().acquire_owned().await.map_err(closed)?;
    let cancel = Arc::new(StopFlag::default());
    let guard = CancelOnDrop(cancel.clone());
    let limit = Duration::from_secs(spec.limit_seconds).saturating_add(GRACE);
    let (name, folder) = (spec.work.name(), spec.folder.display().to_string());
    let began = std::time::Instant::now();
    tracing::info!(unit = %name, plan = %folder, %task, "unit begun");
    METRICS.running.inc();
    let (report, done) = tokio::sync::oneshot::channel();
    let shared = units.clone();
    // A thread of its own, not the runtime's: a unit blocks, and starts a runtime itself.
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            let ending = &shared.stop;
            let ended = &std::sync::atomic::AtomicBool::new(false);
            let cancel = &cancel;
            let result = std::thread::scope(|scope| {
                // The executor's end is the unit's too.
                let watch = scope.spawn(move || {
                    while !ended.load(std::sync::atomic::Ordering::Acquire) {
                        if ending.is_set() {
                            cancel.set();
                            return;
                        }
                        std::thread::park_timeout(Duration::from_millis(200));
                    }
                });
                let result = shared.worker.run(&spec, cancel);
                ended.store(true, std::sync::atomic::Ordering::Release);
                watch.thread().unpark();
                result
            });
            METRICS.running.dec();
            drop(slot);
            // Nobody listens when the task was given up.
            let _ = report.send(result);
        })
        .map_err(|error| DataFusionError::Execution(format!("cannot start a thread: {error}")))?;
    let result = tokio::time::timeout(limit, done).await;
    drop(guard);
    let seconds = began.elapsed().as_secs_f64();
    METRICS.seconds.observe(seconds);
    let fail = |reason: String| {
        METRICS.failed.inc();
        tracing::warn!(unit = %name, plan = %folder, %task, seconds, %reason, "unit failed");
        // Not an I/O error: the driver decides what is tried again, and counts.
        Err(DataFusionError::Execution(reason))
    };
    match result {
        Ok(Ok(Ok(ran))) => {
            METRICS.done.inc();
            tracing::info!(unit = %name, plan = %folder, %task, seconds, ran, "unit done");
            Ok(())
        }
        Ok(Ok(Err(error))) => fail(error.to_string()),
        Ok(Err(_)) => fail(format!("unit `{name}` panicked")),
        Err(_) => fail(format!("unit `{name}` holds its thread beyond its time")),
    }
}
