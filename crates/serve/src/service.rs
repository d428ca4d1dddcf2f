//! The query service that all protocols share: a statement in, a bounded stream of rows out.
//!
//! Planning and running happen on threads of their own, so that a heavy query delays no handshake and
//! no health check. Rows come through a channel of `AHEAD` batches: a client that reads slowly slows
//! its query down and nothing else, and its time goes on running.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::ParamValues;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use futures::{Stream, StreamExt};
use pmill_engine::memory::ByteSize;
use pmill_store::Warehouse;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use crate::auth::User;
use crate::error::ServeError;
use crate::guard;
use crate::heavy::{self, Closing, Cluster};
use crate::library::{Dialect, Library, Snapshot};
use crate::limits::QueryPool;
use crate::metrics::Metrics;
use crate::pairs;
use crate::postgres::catalog::PgParts;
use crate::settings::Limits;
use crate::shared::Shared;
use crate::traces::{Parent, Trace, Traces};

/// Batches that a query may be ahead of its client.
const AHEAD: usize = 2;
/// Stack of a thread that plans: statements nest.
const STACK_BYTES: usize = 64 << 20;

/// Who asks, and how.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The user.
    pub user: User,
    /// `flight_sql`, `postgres` or `web`.
    pub protocol: &'static str,
    /// The client's span that this belongs to.
    pub parent: Option<Parent>,
}

/// Runs queries for all protocols.
pub struct Service {
    library: Arc<Library>,
    limits: Limits,
    cluster: Option<Cluster>,
    /// Where queries are planned for the cluster.
    aside: Shared<SessionContext>,
    metrics: Arc<Metrics>,
    traces: Traces,
    compute: Option<Runtime>,
    pool: Arc<dyn MemoryPool>,
    users: Mutex<HashMap<User, Arc<Semaphore>>>,
    stopping: AtomicBool,
    running: watch::Sender<usize>,
    ids: AtomicU64,
}

/// A statement that was looked at: it only reads, and every table in it has a version.
#[derive(Clone)]
pub struct Prepared {
    /// The snapshot that it was planned in.
    pub snapshot: Arc<Snapshot>,
    /// Its plan, with parameters still open.
    pub plan: Shared<LogicalPlan>,
    dialect: Dialect,
    source: Source,
}

/// What a plan was made of.
#[derive(Clone)]
enum Source {
    Text(Arc<str>),
    Parsed(Shared<ast::Statement>),
}

impl Prepared {
    /// The statement as text.
    #[must_use]
    pub fn text(&self) -> String {
        match &self.source {
            Source::Text(text) => text.to_string(),
            Source::Parsed(statement) => statement.to_string(),
        }
    }
}

impl Service {
    /// Opens a warehouse.
    ///
    /// # Errors
    /// When the location is none, or threads cannot start.
    pub fn open(
        warehouse: &str,
        limits: Limits,
        cluster: Option<Cluster>,
        traces: Traces,
    ) -> Result<Arc<Self>, ServeError> {
        let warehouse = Warehouse::open(warehouse)?;
        let compute = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(limits.threads.max(1))
            .thread_name("query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|error| ServeError::Bug(format!("threads do not start: {error}")))?;
        let plain = pmill_engine::session::context(limits.threads, limits.memory, None)?;
        let pool = plain.runtime_env().memory_pool.clone();
        let postgres = SessionContext::new_with_state(plain.state());
        let pg = PgParts::install(&postgres)?;
        Ok(Arc::new(Self {
            cluster,
            aside: Shared::new(plain.clone()),
            library: Library::new(warehouse, plain, postgres, pg, limits.files),
            limits,
            metrics: Arc::new(Metrics::new()?),
            traces,
            compute: Some(compute),
            pool,
            users: Mutex::default(),
            stopping: AtomicBool::new(false),
            running: watch::Sender::new(0),
            ids: AtomicU64::new(0),
        }))
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The warehouse.
    #[must_use]
    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// The figures.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Where spans go.
    #[must_use]
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// Memory that running queries have reserved, in bytes.
    #[must_use]
    pub fn reserved_bytes(&self) -> usize {
        self.pool.reserved()
    }

    /// Threads for work that takes long.
    #[must_use]
    pub fn compute(&self) -> Handle {
        match &self.compute {
            Some(runtime) => runtime.handle().clone(),
            None => Handle::current(),
        }
    }

    /// From now on no query starts.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Whether it was told to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Waits until no query runs.
    pub async fn idle(&self) {
        let mut running = self.running.subscribe();
        // The sender lives as long as `self`.
        let _ = running.wait_for(|running| *running == 0).await;
    }

    /// Queries that run.
    #[must_use]
    pub fn running(&self) -> usize {
        *self.running.borrow()
    }

    /// Every job at its newest version.
    ///
    /// # Errors
    /// When the warehouse cannot be listed.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>, ServeError> {
        self.library.snapshot().await
    }

    /// Reads the indexes of the scores there are, so that the first look-ups find them. Gives back
    /// when all jobs of the snapshot have been looked at.
    pub async fn warm(&self, snapshot: &Snapshot) {
        let environment = snapshot.context(Dialect::Plain).runtime_env();
        for (name, job) in snapshot.jobs() {
            if self.is_stopping() {
                return;
            }
            let began = Instant::now();
            match job.warm(&environment).await {
                Ok(terms) => tracing::info!(
                    job = %name,
                    terms,
                    seconds = began.elapsed().as_secs_f64(),
                    "scores indexed"
                ),
                Err(error) => tracing::warn!(
                    job = %name,
                    error = error.strip_backtrace(),
                    "scores not indexed"
                ),
            }
        }
    }

    /// Plans a statement in the newest snapshot.
    ///
    /// # Errors
    /// When it does not parse or plan, or does more than read.
    pub async fn prepare(
        self: &Arc<Self>,
        dialect: Dialect,
        sql: &str,
        parent: Option<&Parent>,
    ) -> Result<Prepared, ServeError> {
        guard::check_text(sql, self.limits.statement_bytes)?;
        let snapshot = self.snapshot().await?;
        if let Some(plan) = snapshot.plan(dialect, sql) {
            return Ok(Prepared {
                snapshot,
                plan,
                dialect,
                source: Source::Text(sql.into()),
            });
        }
        let source = Source::Text(sql.into());
        let sql = sql.to_owned();
        let kept = (sql.clone(), source);
        let trace = self.traces.begin("plan", parent);
        self.plan(snapshot, dialect, kept, trace, async move |context| {
            let state = context.state();
            let dialect = state.config().options().sql_parser.dialect;
            let statement = state.sql_to_statement(&sql, &dialect)?;
            state.statement_to_plan(statement).await
        })
        .await
    }

    /// Plans a statement that has been parsed; `sql` is its text.
    ///
    /// # Errors
    /// When it does not plan, or does more than read.
    pub async fn prepare_statement(
        self: &Arc<Self>,
        dialect: Dialect,
        sql: String,
        statement: Shared<ast::Statement>,
    ) -> Result<Prepared, ServeError> {
        let snapshot = self.snapshot().await?;
        if let Some(plan) = snapshot.plan(dialect, &sql) {
            return Ok(Prepared {
                snapshot,
                plan,
                dialect,
                source: Source::Parsed(statement),
            });
        }
        let kept = (sql, Source::Parsed(statement.clone()));
        // PostgreSQL's protocol knows no spans of clients.
        let trace = self.traces.begin("plan", None);
        self.plan(snapshot, dialect, kept, trace, async move |context| {
            let statement = Statement::Statement(Box::new((*statement).clone()));
            context.state().statement_to_plan(statement).await
        })
        .await
    }

    async fn plan<F, W>(
        self: &Arc<Self>,
        snapshot: Arc<Snapshot>,
        dialect: Dialect,
        (sql, source): (String, Source),
        trace: Trace,
        work: F,
    ) -> Result<Prepared, ServeError>
    where
        F: FnOnce(SessionContext) -> W + Send + 'static,
        W: Future<Output = datafusion::error::Result<LogicalPlan>> + Send + 'static,
    {
        if self.is_stopping() {
            return Err(ServeError::Stopping);
        }
        let context = snapshot.context(dialect).clone();
        let limit = self.limits.query_memory.to_string();
        let known = self.clone();
        let kept = snapshot.clone();
        let task = self.compute().spawn(async move {
            let plan = work(context)
                .await
                .map_err(|error| known.explain(&kept, ServeError::from_engine(error, &limit)))
                .and_then(|plan| guard::check_plan(&plan).map(|()| Shared::new(plan)))
                .inspect_err(|error| trace.fail(error.sql_state()))?;
            kept.keep_plan(dialect, &sql, plan.clone());
            Ok::<_, ServeError>(plan)
        });
        let plan = finished(task.await)??;
        Ok(Prepared {
            snapshot,
            plan,
            dialect,
            source,
        })
    }

    /// Adds the nearest table to "table not found".
    fn explain(&self, snapshot: &Snapshot, error: ServeError) -> ServeError {
        let ServeError::Query(text) = error else {
            return error;
        };
        if !(text.contains("not found") || text.contains("failed to resolve schema")) {
            return ServeError::Query(text);
        }
        let jobs: Vec<String> = snapshot.jobs().map(|(name, _)| name.to_string()).collect();
        let jobs = match jobs.len() {
            0 => "none".to_owned(),
            _ => jobs.join(", "),
        };
        ServeError::Query(format!(
            "{text} (tables are JOB.vocab, JOB.pairs, JOB.sources and JOB.pmi; jobs: {jobs})"
        ))
    }

    /// Starts a query.
    ///
    /// # Errors
    /// When the user runs too many, the parameters do not fit, or it cannot be planned.
    pub async fn run(
        self: &Arc<Self>,
        asker: &Asker,
        prepared: &Prepared,
        parameters: Option<ParamValues>,
    ) -> Result<Rows, ServeError> {
        let mut turn = self.turn(asker)?;
        let deadline = Instant::now() + self.limits.query_time;
        let (sender, receiver) = mpsc::channel(AHEAD);
        let (schema_sender, schema) = tokio::sync::oneshot::channel();
        let ending = Arc::new(Mutex::new(Ending::Running));
        turn.rows_open = Some((ending.clone(), sender.clone()));
        let task = Task {
            service: self.clone(),
            prepared: prepared.clone(),
            parameters,
            sender,
            sent: Sent::default(),
            trace: turn.trace.clone(),
        };
        let record = ending.clone();
        let seconds = self.limits.query_time.as_secs();
        let handle = self.compute().spawn(async move {
            let sent = task.sent.clone();
            let outcome = tokio::time::timeout_at(deadline.into(), task.run(schema_sender)).await;
            let outcome = outcome.unwrap_or(Err(ServeError::Time { seconds }));
            turn.outcome = match &outcome {
                Ok(()) => "ok",
                Err(ServeError::Cancelled) => "cancelled",
                Err(error) => {
                    turn.trace.fail(error.sql_state());
                    "error"
                }
            };
            turn.rows = sent.rows.load(Ordering::Relaxed);
            *record.lock().unwrap_or_else(PoisonError::into_inner) = match outcome {
                Ok(()) => Ending::Done,
                Err(error) => Ending::Failed(error),
            };
            drop(turn);
        });
        let mut rows = Rows {
            schema: Arc::new(datafusion::arrow::datatypes::Schema::empty()),
            receiver,
            ending,
            ended: false,
            task: handle.abort_handle(),
        };
        match schema.await {
            Ok(schema) => rows.schema = schema,
            // The task ended before it had a schema: it says why, or died.
            Err(_) => {
                finished(handle.await)?;
                return Err(rows.take_failure().unwrap_or(ServeError::Cancelled));
            }
        }
        Ok(rows)
    }

    fn turn(self: &Arc<Self>, asker: &Asker) -> Result<Turn, ServeError> {
        if self.is_stopping() {
            return Err(ServeError::Stopping);
        }
        let semaphore = {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            if users.len() > 10_000 {
                let limit = self.limits.user_queries;
                users.retain(|_, turns| turns.available_permits() < limit);
            }
            users
                .entry(asker.user.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(self.limits.user_queries)))
                .clone()
        };
        let permit = semaphore
            .try_acquire_owned()
            .map_err(|_| ServeError::Busy {
                user: asker.user.0.to_string(),
                limit: self.limits.user_queries,
            })?;
        self.running.send_modify(|running| *running += 1);
        self.metrics.running.inc();
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let trace = self.traces.begin("query", asker.parent.as_ref());
        trace.note("pmill.query", i64::try_from(id).unwrap_or(i64::MAX));
        trace.note("network.protocol.name", asker.protocol);
        trace.note("user.name", asker.user.0.to_string());
        Ok(Turn {
            service: self.clone(),
            id,
            asker: asker.clone(),
            began: Instant::now(),
            outcome: "cancelled",
            rows: 0,
            rows_open: None,
            trace,
            _permit: permit,
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A runtime must not be dropped inside another.
        if let Some(runtime) = self.compute.take() {
            runtime.shutdown_background();
        }
    }
}

/// The result of a task; a panic in it becomes an error of this query alone.
fn finished<T>(result: Result<T, tokio::task::JoinError>) -> Result<T, ServeError> {
    result.map_err(|error| match error.is_cancelled() {
        true => ServeError::Cancelled,
        false => ServeError::Bug("the query's thread ended unexpectedly".to_owned()),
    })
}

/// One running query: counted, logged and given back however it ends.
struct Turn {
    service: Arc<Service>,
    id: u64,
    asker: Asker,
    began: Instant,
    outcome: &'static str,
    rows: u64,
    /// Keeps the channel of rows open until how it ended has been written down.
    rows_open: Option<(Arc<Mutex<Ending>>, mpsc::Sender<RecordBatch>)>,
    trace: Trace,
    _permit: OwnedSemaphorePermit,
}

/// How a query ended. `Running` with a closed channel means that it was stopped from outside.
enum Ending {
    Running,
    Done,
    Failed(ServeError),
}

impl Drop for Turn {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some((ending, _)) = &self.rows_open
        {
            self.outcome = "error";
            self.trace.fail("XX000");
            *ending.lock().unwrap_or_else(PoisonError::into_inner) = Ending::Failed(
                ServeError::Bug("the query's thread ended unexpectedly".to_owned()),
            );
        }
        let seconds = self.began.elapsed().as_secs_f64();
        let metrics = &self.service.metrics;
        let protocol = self.asker.protocol;
        metrics.running.dec();
        metrics
            .queries
            .with_label_values(&[protocol, self.outcome])
            .inc();
        metrics
            .seconds
            .with_label_values(&[protocol])
            .observe(seconds);
        metrics.rows.inc_by(self.rows);
        let rows = i64::try_from(self.rows).unwrap_or(i64::MAX);
        self.trace.note("db.response.returned_rows", rows);
        self.trace.note("pmill.outcome", self.outcome);
        // Who waits for the last query to end sends the last spans then.
        self.trace.end();
        tracing::info!(
            query = self.id,
            protocol,
            user = %self.asker.user.0,
            outcome = self.outcome,
            rows = self.rows,
            seconds,
            "query finished"
        );
        self.service.running.send_modify(|running| *running -= 1);
    }
}

#[derive(Clone, Default)]
struct Sent {
    rows: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

struct Task {
    service: Arc<Service>,
    prepared: Prepared,
    parameters: Option<ParamValues>,
    sender: mpsc::Sender<RecordBatch>,
    sent: Sent,
    trace: Trace,
}

impl Task {
    async fn run(self, schema: tokio::sync::oneshot::Sender<SchemaRef>) -> Result<(), ServeError> {
        let limits = &self.service.limits;
        let memory = limits.query_memory.to_string();
        let failed = |error| ServeError::from_engine(error, &memory);
        let state = self
            .prepared
            .snapshot
            .context(self.prepared.dialect)
            .state();
        let part = self.trace.part("optimize");
        let logical = match &self.parameters {
            None => (*self.prepared.plan).clone(),
            Some(values) => (*self.prepared.plan)
                .clone()
                .replace_params_with_values(values)
                .map_err(failed)?,
        };
        // What was promised when the statement was planned: the stream may know more of its columns
        // (that they hold no nulls), and clients compare the two.
        let promised: SchemaRef = Arc::new(logical.schema().as_arrow().clone());
        let plan = state
            .optimize(&logical)
            .and_then(pairs::narrow)
            .map_err(failed)?;
        let physical = state
            .query_planner()
            .create_physical_plan(&plan, &state)
            .await
            .map_err(failed)?;
        drop(part);
        // From here on it can be cancelled: a cluster may take its time.
        if schema.send(promised.clone()).is_err() {
            return Err(ServeError::Cancelled);
        }
        let heavy = match &self.service.cluster {
            None => None,
            Some(cluster) => {
                let part = self.trace.part("cluster");
                let answer = heavy::answer(
                    cluster,
                    &self.service.aside,
                    &self.prepared,
                    self.parameters.as_ref(),
                    (&logical, &physical),
                    limits.query_time.as_secs().max(1),
                )
                .await?;
                part.note("pmill.on_cluster", answer.is_some());
                answer
            }
        };
        let _part = self.trace.part("execute");
        let physical = heavy.as_ref().and_then(Closing::plan).unwrap_or(physical);
        let physical = yielding(physical).map_err(failed)?;
        let pool = QueryPool::new(self.service.pool.clone(), limits.query_memory);
        let environment = RuntimeEnvBuilder::from_runtime_env(state.runtime_env())
            .with_memory_pool(Arc::new(pool))
            .build_arc()
            .map_err(failed)?;
        let context = TaskContext::from(&state).with_runtime(environment);
        let mut stream = execute_stream(physical, Arc::new(context)).map_err(failed)?;
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(failed)?;
            if batch.num_rows() == 0 {
                continue;
            }
            let batch = batch
                .with_schema(promised.clone())
                .map_err(|error| ServeError::Bug(error.to_string()))?;
            let rows = batch.num_rows() as u64;
            let rows = self.sent.rows.fetch_add(rows, Ordering::Relaxed) + rows;
            if rows > limits.result_rows {
                return Err(ServeError::TooLarge {
                    limit: format!("{} rows", limits.result_rows),
                });
            }
            let bytes = batch.get_array_memory_size() as u64;
            let bytes = self.sent.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if bytes > limits.result_bytes.0 {
                return Err(ServeError::TooLarge {
                    limit: ByteSize(limits.result_bytes.0).to_string(),
                });
            }
            if self.sender.send(batch).await.is_err() {
                return Err(ServeError::Cancelled);
            }
        }
        Ok(())
    }
}

/// The plan with places to stop in. DataFusion makes its sources stop now and then, but a join makes
/// many rows of few, and what reads it would go on for hours without looking up: neither its time
/// limit nor its end would be seen.
fn yielding(plan: Arc<dyn ExecutionPlan>) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
    let changed = plan.transform_up(|node| {
        if node.children().len() < 2 {
            return Ok(Transformed::no(node));
        }
        Ok(Transformed::yes(Arc::new(CooperativeExec::new(node))))
    })?;
    Ok(changed.data)
}

/// The rows of a running query. Dropping it stops the query.
pub struct Rows {
    schema: SchemaRef,
    receiver: mpsc::Receiver<RecordBatch>,
    ending: Arc<Mutex<Ending>>,
    ended: bool,
    task: AbortHandle,
}

impl Rows {
    /// Columns.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// A handle that stops the query from elsewhere.
    #[must_use]
    pub fn stopper(&self) -> AbortHandle {
        self.task.clone()
    }

    /// All rows.
    ///
    /// # Errors
    /// As the query's.
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>, ServeError> {
        let mut batches = Vec::new();
        while let Some(batch) = self.next().await {
            batches.push(batch?);
        }
        Ok(batches)
    }

    /// Why there are no more rows, if that is not their end.
    fn take_failure(&self) -> Option<ServeError> {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *ending, Ending::Done) {
            Ending::Running => Some(ServeError::Cancelled),
            Ending::Done => None,
            Ending::Failed(error) => Some(error),
        }
    }
}

impl Stream for Rows {
    type Item = Result<RecordBatch, ServeError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.receiver.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(batch)) => Poll::Ready(Some(Ok(batch))),
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(self.take_failure().map(Err))
            }
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.task.abort();
    }
}
