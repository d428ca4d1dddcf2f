//! Heavy queries: their scans run as units on a cluster, the rest here.
//!
//! A query is planned here first, as all are. When its scans read much, it is planned once more as
//! the executors see it (the engine's [`QueryPlan`]) at the versions of its snapshot. Where the two plans do
//! not mean the same, letter by letter (functions of `pg_catalog`, files in `FROM`), it runs here.

use std::fmt;
use std::sync::Arc;

use datafusion::common::ParamValues;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use pmill_engine::EngineError;
use pmill_engine::job::distributed::{
    Answer, JobVersions, Planned, QueryDrive, QueryPlan, QueryRequest, Runner, Sees, scanned_bytes,
};
use pmill_engine::progress::{Quiet, StopFlag};

use crate::error::ServeError;
use crate::library::Snapshot;
use crate::service::Prepared;
use crate::table::selected_part;

/// Finds what runs units, or says why there is nothing.
pub type Connect = dyn Fn() -> Result<Box<dyn Runner>, EngineError> + Send + Sync;

/// A cluster for heavy queries.
#[derive(Clone)]
pub struct Cluster {
    /// Bytes of the needed columns, as stored, that make a query heavy.
    pub least_bytes: u64,
    /// Attempts that may die with their process before a query fails.
    pub attempts: u32,
    /// Called for each heavy query, on a thread that may block.
    pub connect: Arc<Connect>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Cluster")
            .field("least_bytes", &self.least_bytes)
            .finish_non_exhaustive()
    }
}

/// Ends the units when nobody waits for them any more.
struct StopOnDrop(Arc<StopFlag>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// An answer whose folder goes away with it, on a thread that may block.
pub(crate) struct Closing(Option<Answer>);

impl Closing {
    /// The plan that is left.
    pub(crate) fn plan(&self) -> Option<Arc<dyn ExecutionPlan>> {
        Some(self.0.as_ref()?.plan().clone())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            std::thread::spawn(move || answer.close());
        }
    }
}

/// Has the scans of a query run on the cluster, if they read enough. `logical` is what the query means,
/// with the values of its parameters; `physical` is how it would run here.
pub(crate) async fn answer(
    cluster: &Cluster,
    context: &SessionContext,
    prepared: &Prepared,
    parameters: Option<&ParamValues>,
    (logical, physical): (&LogicalPlan, &Arc<dyn ExecutionPlan>),
    unit_seconds: u64,
) -> Result<Option<Closing>, ServeError> {
    let part = |file: &PartitionedFile| selected_part(file);
    // Where a footer cannot be read, the query itself will say so.
    let bytes = scanned_bytes(physical, &part, cluster.least_bytes).await;
    if bytes.unwrap_or(0) < cluster.least_bytes {
        return Ok(None);
    }
    let versions = versions(&prepared.snapshot);
    let sql = prepared.text();
    let request = QueryRequest {
        warehouse: prepared.snapshot.warehouse(),
        sees: Sees::Exactly(&versions),
        sql: &sql,
        parameters,
        least_bytes: cluster.least_bytes,
    };
    let plan = match QueryPlan::make(&request, context).await? {
        Planned::Cluster(plan) => plan,
        Planned::Here(_) => return Ok(None),
    };
    if plan.logical().display_indent().to_string() != logical.display_indent().to_string() {
        return Ok(None);
    }
    let stop = Arc::new(StopFlag::default());
    let guard = StopOnDrop(stop.clone());
    let (cluster, (sender, receiver)) = (cluster.clone(), tokio::sync::oneshot::channel());
    let work = move || {
        let mut runner = (cluster.connect)()?;
        let drive = QueryDrive {
            limit_seconds: unit_seconds,
            most_attempts: cluster.attempts,
            scratch: None,
            progress: &Quiet,
            stop: &stop,
        };
        drive.run(&plan, runner.as_mut())
    };
    std::thread::Builder::new()
        .name("cluster".to_owned())
        // When nobody waits any more, the answer is dropped here and its folder removed.
        .spawn(move || drop(sender.send(work().map(|answer| Closing(Some(answer))))))
        .map_err(|error| ServeError::Bug(format!("a thread does not start: {error}")))?;
    let done = receiver.await;
    drop(guard);
    match done {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(EngineError::Interrupted)) => Err(ServeError::Cancelled),
        Ok(Err(EngineError::Query(text))) => Err(ServeError::Query(text)),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(ServeError::Bug(
            "the query's thread ended unexpectedly".into(),
        )),
    }
}

fn versions(snapshot: &Snapshot) -> Vec<JobVersions> {
    let jobs = snapshot.jobs();
    jobs.map(|(name, job)| JobVersions {
        schema: name.to_string(),
        job: name.to_string(),
        pairs: job.mark().pairs,
        pmi: job.mark().pmi,
    })
    .collect()
}
