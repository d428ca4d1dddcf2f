//! The operator that runs units. Its input's rows are unit specs; it runs whatever rows it is
//! given and never looks at its partition's number. It gives no rows: what was done is told by
//! manifests.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
use pmill_engine::EngineError;
use pmill_engine::job::distributed::{self, GRACE, UnitSpec, UnitWorker};
use pmill_engine::progress::StopFlag;
use tokio::sync::Semaphore;

use crate::metrics::METRICS;

/// Stands before what another attempt will not change.
pub const FINAL: &str = "(final) ";
/// Stands behind it: Ballista puts what it is told between brackets and quotes.
pub const FINAL_END: &str = " (end)";

/// The reason in Ballista's word of a failed job, when another attempt will not change it.
pub fn final_reason(text: &str) -> Option<String> {
    let (_, reason) = text.split_once(FINAL)?;
    let reason = reason
        .split_once(FINAL_END)
        .map_or(reason, |(reason, _)| reason);
    Some(reason.replace("\\\"", "\"").replace("\\n", "\n"))
}

/// How long a unit waits for a slot that the scheduler thought was free.
const SLOT: Duration = Duration::from_secs(30);
/// A unit runs, was given up, or has ended.
const RUNS: u8 = 0;
const GIVEN_UP: u8 = 1;
const ENDED: u8 = 2;

/// What runs units in this process.
pub struct Units {
    /// Runs them.
    pub worker: UnitWorker,
    /// As many at once as there are slots, whatever the scheduler thinks.
    pub slots: Arc<Semaphore>,
    /// Ends all of them.
    pub stop: Arc<StopFlag>,
    /// What the scheduler is told is free.
    pub offered: Arc<Semaphore>,
    /// Units that failed here in a row, for a reason that may pass.
    pub failed: AtomicU32,
    /// Units that were given up and still hold their thread.
    pub stuck: AtomicUsize,
}

impl Units {
    /// Runs units with `worker`, `slots` at once.
    pub fn new(worker: UnitWorker, slots: usize) -> Self {
        Self {
            worker,
            slots: Arc::new(Semaphore::new(slots)),
            stop: Arc::default(),
            offered: Arc::new(Semaphore::new(slots)),
            failed: AtomicU32::new(0),
            stuck: AtomicUsize::new(0),
        }
    }

    /// Takes the slot of a unit that holds its thread from what is offered.
    fn give_up(&self) {
        self.stuck.fetch_add(1, Ordering::AcqRel);
        let offered = self.offered.clone();
        tokio::spawn(async move {
            if let Ok(permit) = offered.acquire_owned().await {
                permit.forget();
            }
        });
    }

    /// The thread ended after all.
    fn take_back(&self) {
        self.stuck.fetch_sub(1, Ordering::AcqRel);
        self.offered.add_permits(1);
    }

    /// An executor on which units fail (its disk is full, its store is away) fails faster than others
    /// work, and would take unit after unit. So it rests with its slot before it takes the next one:
    /// the reason is written down already, and the unit goes elsewhere.
    fn rest_after(&self, result: &Result<bool, EngineError>, cancel: &StopFlag) {
        let rests = match result {
            Ok(_) => {
                self.failed.store(0, Ordering::Relaxed);
                return;
            }
            Err(error) => distributed::may_pass(error),
        };
        if !rests || cancel.is_set() {
            return;
        }
        let times = self.failed.fetch_add(1, Ordering::Relaxed).min(5);
        let until = Instant::now() + Duration::from_secs(1 << times);
        while Instant::now() < until && !cancel.is_set() && !self.stop.is_set() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
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
    let slot = tokio::time::timeout(SLOT, units.slots.clone().acquire_owned()).await;
    let slot = slot.map_err(|_| {
        DataFusionError::Execution(format!(
            "no slot came free for {} s: {} units hold their threads beyond their time",
            SLOT.as_secs(),
            units.stuck.load(Ordering::Acquire)
        ))
    })?;
    let slot = slot.map_err(closed)?;
    let cancel = Arc::new(StopFlag::default());
    let guard = CancelOnDrop(cancel.clone());
    // A unit that holds its thread longer is given up; its slot stays taken until the thread ends.
    let limit = Duration::from_secs(spec.limit_seconds).saturating_add(GRACE);
    let (name, folder) = (spec.work.name(), spec.folder.display().to_string());
    let began = Instant::now();
    tracing::info!(unit = %name, plan = %folder, %task, "unit begun");
    METRICS.running.inc();
    let (report, done) = tokio::sync::oneshot::channel();
    let shared = units.clone();
    let state = Arc::new(AtomicU8::new(RUNS));
    let ends = state.clone();
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
                    while !ended.load(Ordering::Acquire) {
                        if ending.is_set() {
                            cancel.set();
                            return;
                        }
                        std::thread::park_timeout(Duration::from_millis(200));
                    }
                });
                let result = shared.worker.run(&spec, cancel);
                // Nothing is wrong here when the plan has ended meanwhile.
                if result.is_ok() || !distributed::is_gone(&spec) {
                    shared.rest_after(&result, cancel);
                }
                ended.store(true, Ordering::Release);
                watch.thread().unpark();
                result
            });
            METRICS.running.dec();
            drop(slot);
            if ends.swap(ENDED, Ordering::AcqRel) == GIVEN_UP {
                shared.take_back();
            }
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
        Ok(Ok(Err(error))) if distributed::may_pass(&error) => fail(error.to_string()),
        Ok(Ok(Err(error))) => fail(format!("{FINAL}{error}{FINAL_END}")),
        Ok(Err(_)) => fail(format!("unit `{name}` panicked")),
        Err(_) => {
            if state.swap(GIVEN_UP, Ordering::AcqRel) == RUNS {
                units.give_up();
            }
            fail(format!("unit `{name}` holds its thread beyond its time"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_reason_comes_back_without_what_stands_around_it() {
        let told = format!("{FINAL}no column `a`{FINAL_END}");
        let wrapped = format!("Job failed: Execution({told:?}))\n");
        assert_eq!(final_reason(&wrapped).as_deref(), Some("no column `a`"));
        assert_eq!(final_reason("executor lost"), None);
    }
}
