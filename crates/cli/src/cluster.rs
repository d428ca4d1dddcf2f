//! `pmill scheduler`, `pmill executor`, `pmill jobs`, and `--cluster URL`.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use pmill_cluster::{
    ClientSecurity, ClusterError, ClusterRunner, ExecutorConfig, Patience, SchedulerSettings,
    ServerSecurity, cluster_state, run_executor, run_scheduler,
};
use pmill_engine::EngineError;
use pmill_engine::annotate::{AnnotateJob, AnnotateSummary};
use pmill_engine::job::distributed::{
    AnnotateDrive, Answer, Drive, MergeDrive, PlanFolder, PlanState, Planned, QueryDrive,
    QueryPlan, QueryRequest, Runner, ScoreDrive, Sees, UnitWorker, WorkerLimits,
};
#[cfg(feature = "matrix")]
use pmill_engine::job::distributed::{MatrixDrive, MatrixRows};
use pmill_engine::job::{CountJob, Recount, RetractJob, RetractSummary};
use pmill_engine::memory::ByteSize;
use pmill_engine::merge_tables::{MergeJob, MergeSummary};
#[cfg(feature = "serve")]
use pmill_engine::progress::Quiet;
use pmill_engine::progress::StopFlag;
#[cfg(feature = "matrix")]
use pmill_engine::rows::{Orientation, TableRows, Value};
use pmill_engine::score::{ScoreSettings, ScoreSummary};
use pmill_engine::session::Session;
use pmill_engine::store::{JobName, Warehouse};

use crate::count::{describe, json};
use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};
use crate::progress::{Bar, stop_flag};
use crate::sql::{Format, write_rows};
use crate::units::{CommonArgs, Scratch, SizeArgs};

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Self::Error(error.kind(), crate::outcome::chain(&error))
    }
}

/// How a client of the scheduler shows who it is.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Cluster")]
pub struct ClientArgs {
    /// TLS: file of certificates (PEM) that the scheduler must have one of
    #[arg(long, value_name = "FILE", env = "PMILL_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// Mutual TLS: own certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "PMILL_TLS_CLIENT_CERT",
        requires = "tls_client_key"
    )]
    tls_client_cert: Option<PathBuf>,
    /// Mutual TLS: key of the own certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "PMILL_TLS_CLIENT_KEY",
        requires = "tls_client_cert"
    )]
    tls_client_key: Option<PathBuf>,
    /// File of the token that the scheduler asks for
    #[arg(long, value_name = "FILE", env = "PMILL_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

impl ClientArgs {
    fn security(&self) -> ClientSecurity {
        ClientSecurity {
            ca: self.tls_ca.clone(),
            certificate: self
                .tls_client_cert
                .clone()
                .zip(self.tls_client_key.clone()),
            token_file: self.token_file.clone(),
        }
    }
}

/// Flags of commands that can run on a cluster.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Run the units on a cluster: the scheduler's URL, http://HOST:PORT or https://HOST:PORT
    #[arg(long, value_name = "URL", env = "PMILL_CLUSTER")]
    cluster: Option<String>,
    /// Give up (exit code 75) when nothing has come from the cluster for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    cluster_patience: u64,
    #[command(flatten)]
    client: ClientArgs,
}

impl ClusterArgs {
    /// Whether a cluster was named.
    pub fn is_asked_for(&self) -> bool {
        self.cluster.is_some()
    }

    fn connect<'a>(
        &self,
        common: &CommonArgs,
        bar: &'a Bar,
    ) -> Result<ClusterRunner<'a>, ClusterError> {
        let url = self.cluster.clone().unwrap_or_default();
        let patience = Patience {
            nothing: Duration::from_secs(self.cluster_patience),
            attempts: common.unit_attempts,
        };
        ClusterRunner::connect(&url, &self.client.security(), patience, bar)
    }

    /// Annotates on the cluster.
    pub fn annotate(
        &self,
        mut job: AnnotateJob,
        common: &CommonArgs,
        global: &Global,
    ) -> Result<AnnotateSummary, Failure> {
        job.output = std::path::absolute(&job.output)?;
        let bar = Bar::new(global);
        let stop = stop_flag();
        let mut runner = self.connect(common, &bar)?;
        let drive = AnnotateDrive {
            job: &job,
            limit_seconds: common.unit_timeout,
            most_attempts: common.unit_attempts,
            progress: &bar,
            stop: &stop,
        };
        let result = drive.run(&mut runner);
        bar.clear();
        Ok(result?)
    }

    /// Scores on the cluster.
    pub fn score(
        &self,
        (warehouse, name): (&str, &str),
        settings: &ScoreSettings,
        common: &CommonArgs,
        global: &Global,
    ) -> Result<ScoreSummary, Failure> {
        let bar = Bar::new(global);
        let stop = stop_flag();
        let mut runner = self.connect(common, &bar)?;
        let scratch = Scratch(common.scratch()?);
        let worker = worker(global.memory_limit(), global.threads(), &scratch)?;
        let drive = ScoreDrive {
            warehouse,
            name,
            settings,
            threads: global.threads(),
            memory_limit: global.memory_limit(),
            limit_seconds: common.unit_timeout,
            most_attempts: common.unit_attempts,
            worker: &worker,
            progress: &bar,
            stop: &stop,
        };
        let result = drive.run(&mut runner);
        bar.clear();
        Ok(result?)
    }

    /// Sums tables on the cluster.
    pub fn merge(
        &self,
        job: &MergeJob,
        common: &CommonArgs,
        global: &Global,
    ) -> Result<MergeSummary, Failure> {
        let bar = Bar::new(global);
        let stop = stop_flag();
        let mut runner = self.connect(common, &bar)?;
        let drive = MergeDrive {
            job,
            limit_seconds: common.unit_timeout,
            most_attempts: common.unit_attempts,
            progress: &bar,
            stop: &stop,
        };
        let result = drive.run(&mut runner);
        bar.clear();
        Ok(result?)
    }

    /// Has a matrix made on the cluster.
    #[cfg(feature = "matrix")]
    pub fn rows(
        &self,
        (table, value, orientations): (&TableRows, &Value, &[Orientation]),
        common: &CommonArgs,
        bar: &Bar,
        stop: &StopFlag,
    ) -> Result<MadeRows, Failure> {
        let mut runner = self.connect(common, bar)?;
        let scratch = Scratch(common.scratch()?);
        std::fs::create_dir_all(&scratch.0)?;
        let drive = MatrixDrive {
            table,
            value,
            orientations,
            limit_seconds: common.unit_timeout,
            most_attempts: common.unit_attempts,
            scratch: &scratch.0,
            progress: bar,
            stop,
        };
        let rows = drive.run(&mut runner)?;
        Ok(MadeRows {
            rows,
            _scratch: scratch,
        })
    }

    /// The cluster for heavy queries of a server; each of them connects anew.
    #[cfg(feature = "serve")]
    pub fn for_queries(
        &self,
        least_bytes: u64,
    ) -> Result<Option<pmill_serve::heavy::Cluster>, Failure> {
        /// Times that a unit may fail.
        const ATTEMPTS: u32 = 5;
        let Some(url) = self.cluster.clone() else {
            return Ok(None);
        };
        let security = self.client.security();
        let patience = Patience {
            nothing: Duration::from_secs(self.cluster_patience),
            attempts: ATTEMPTS,
        };
        let connect = move || -> Result<Box<dyn Runner>, EngineError> {
            let away = |error: &ClusterError| {
                EngineError::NotNow(format!(
                    "the cluster does not answer, and this query is too heavy for the server alone; try again ({})",
                    crate::outcome::chain(error)
                ))
            };
            let state = cluster_state(&url, &security).map_err(|error| away(&error))?;
            if state.executors.is_empty() {
                return Err(EngineError::NotNow(
                    "the cluster has no executor now, and this query is too heavy for the server alone; try again".into(),
                ));
            }
            let runner = ClusterRunner::connect(&url, &security, patience, &Quiet);
            Ok(Box::new(runner.map_err(|error| away(&error))?))
        };
        Ok(Some(pmill_serve::heavy::Cluster {
            least_bytes,
            attempts: ATTEMPTS,
            connect: Arc::new(connect),
        }))
    }

    /// Asks a query of a warehouse on the cluster, some jobs of it at a version. `None` when it is for
    /// this process: also when it is wrong, which is told there.
    pub fn query(
        &self,
        (warehouse, versions, sql): (&str, &[(JobName, u64)], &str),
        least_bytes: u64,
        common: &CommonArgs,
        global: &Global,
    ) -> Result<Option<Asked>, Failure> {
        let warehouse = Warehouse::open(warehouse)?;
        let session = Session::new(global.threads(), global.memory_limit(), None)?;
        let request = QueryRequest {
            warehouse: &warehouse,
            sees: Sees::Newest(versions),
            sql,
            parameters: None,
            least_bytes,
        };
        let plan = session.wait(QueryPlan::make(&request, session.context()))?;
        let plan = match plan {
            Planned::Cluster(plan) => plan,
            Planned::Here(reason) => {
                tracing::info!(reason, "the query runs here");
                return Ok(None);
            }
        };
        let bar = Bar::new(global);
        let stop = stop_flag();
        let mut runner = self.connect(common, &bar)?;
        let drive = QueryDrive {
            limit_seconds: common.unit_timeout,
            most_attempts: common.unit_attempts,
            scratch: common.scratch.as_deref(),
            progress: &bar,
            stop: &stop,
        };
        let answer = drive.run(&plan, &mut runner);
        bar.clear();
        Ok(Some(Asked {
            session,
            answer: answer?,
            stop,
        }))
    }

    /// Takes files or rows out on the cluster.
    pub fn retract(
        &self,
        retract: &RetractJob,
        size: &SizeArgs,
        common: &CommonArgs,
        global: &Global,
    ) -> Result<RetractSummary, Failure> {
        let job = retract.counting()?;
        self.drive(&job, size, common, global, |drive, runner| {
            drive.retract(retract, runner)
        })
    }

    fn drive<T>(
        &self,
        job: &CountJob,
        size: &SizeArgs,
        common: &CommonArgs,
        global: &Global,
        run: impl FnOnce(&Drive<'_>, &mut dyn Runner) -> Result<T, EngineError>,
    ) -> Result<T, Failure> {
        let bar = Bar::new(global);
        let stop = stop_flag();
        let mut runner = self.connect(common, &bar)?;
        let scratch = Scratch(common.scratch()?);
        let worker = worker(job.memory_limit, job.threads, &scratch)?;
        let drive = Drive {
            job,
            unit_bytes: size.unit_size.0,
            limit_seconds: common.unit_timeout,
            most_attempts: common.unit_attempts,
            drives: true,
            worker: &worker,
            progress: &bar,
            stop: &stop,
        };
        let result = run(&drive, &mut runner);
        bar.clear();
        Ok(result?)
    }

    /// Counts on the cluster.
    pub fn count(
        &self,
        job: &CountJob,
        recounts: &[Recount],
        size: &SizeArgs,
        common: &CommonArgs,
        global: &Global,
    ) -> Outcome {
        let result = self.drive(job, size, common, global, |drive, runner| {
            drive.run(recounts, runner)
        })?;
        let Some(summary) = result else {
            return Err(EngineError::Bug("the driver did not commit".into()).into());
        };
        Ok(Output::Summary {
            json: json(&summary),
            text: describe(&summary),
        })
    }
}

/// A query whose units are done.
pub struct Asked {
    session: Session,
    answer: Answer,
    stop: Arc<StopFlag>,
}

impl Asked {
    /// Runs the rest of it here, and writes its rows.
    pub fn write(self, format: Format, output: Option<PathBuf>) -> Outcome {
        let context = self.session.context().task_ctx();
        let rows = {
            let _inside = self.session.handle().enter();
            self.answer.stream(context)
        };
        let rows = rows.map_err(pmill_engine::session::query)?;
        let written = write_rows(&self.session, rows, format, output, &self.stop);
        self.answer.close();
        written
    }
}

/// A matrix that a cluster made.
#[cfg(feature = "matrix")]
pub struct MadeRows {
    /// Its rows.
    pub rows: MatrixRows,
    /// Where they are brought to.
    _scratch: Scratch,
}

/// What runs the driver's own steps.
fn worker(memory: ByteSize, threads: usize, scratch: &Scratch) -> Result<UnitWorker, Failure> {
    Ok(UnitWorker::new(WorkerLimits {
        memory,
        threads,
        scratch: scratch.0.clone(),
        allowed: Vec::new(),
        on_stuck: None,
    })?)
}

/// Run a cluster's scheduler.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pmill scheduler
  pmill scheduler --listen 0.0.0.0:50050 --tls-cert s.pem --tls-key s.key --token-file token

When it is ready it prints one line with its addresses on stdout. SIGTERM ends it; drivers submit
again what was queued when it is back.")]
pub struct SchedulerArgs {
    /// Where executors and drivers come; port 0 takes a free one
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:50050",
        env = "PMILL_LISTEN"
    )]
    listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are asked for
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:0",
        env = "PMILL_HTTP"
    )]
    http: SocketAddr,
    /// TLS: certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "PMILL_TLS_CERT",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,
    /// TLS: key of the certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "PMILL_TLS_KEY",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,
    /// Mutual TLS: certificates (PEM) that clients must have one of
    #[arg(long, value_name = "FILE", env = "PMILL_TLS_CLIENT_CA")]
    tls_client_ca: Option<PathBuf>,
    /// File of a token that executors and drivers must know
    #[arg(long, value_name = "FILE", env = "PMILL_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Listen beyond loopback without TLS and without asking who comes
    #[arg(long)]
    insecure: bool,
    /// Take an executor for dead that is silent for so long (it polls every 5 s at least)
    #[arg(long, value_name = "SECONDS", default_value_t = 20, env = "PMILL_EXECUTOR_TIMEOUT",
          value_parser = clap::value_parser!(u64).range(8..=3600))]
    executor_timeout: u64,
}

/// Run an executor of a cluster.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pmill executor --scheduler http://127.0.0.1:50050
  pmill executor --scheduler https://sched:50050 --tls-ca ca.pem --token-file token --allow /data

It needs to see the same files as the driver: inputs and warehouse, under the same paths. It
listens on nothing but --http. SIGTERM drains it: units that run may end, others go elsewhere.
--memory-limit is shared by all slots.")]
pub struct ExecutorArgs {
    /// The scheduler's URL
    #[arg(long, value_name = "URL", env = "PMILL_CLUSTER")]
    scheduler: String,
    /// Units at once [default: all cores]
    #[arg(long, value_name = "N", env = "PMILL_SLOTS")]
    slots: Option<std::num::NonZeroUsize>,
    /// Folder for temporary files [default: the system's]
    #[arg(long, value_name = "FOLDER", env = "PMILL_SCRATCH")]
    scratch: Option<PathBuf>,
    /// Folders that units may read and write; without it, all that this user may
    #[arg(
        long,
        value_name = "FOLDER",
        num_args = 1..,
        env = "PMILL_ALLOW",
        value_delimiter = ':'
    )]
    allow: Vec<PathBuf>,
    /// Where /healthz, /readyz and /metrics are asked for
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:0",
        env = "PMILL_HTTP"
    )]
    http: SocketAddr,
    /// After SIGTERM: how long units may go on before they are handed back
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 25,
        env = "PMILL_DRAIN_TIMEOUT"
    )]
    drain_timeout: u64,
    /// How long the scheduler may be away at the start
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 120,
        env = "PMILL_PATIENCE"
    )]
    patience: u64,
    #[command(flatten)]
    client: ClientArgs,
}

/// See a warehouse's jobs that are under way, and the cluster's executors; cancel a job.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pmill jobs --warehouse wh
  pmill jobs --warehouse wh --cluster http://127.0.0.1:50050 --json
  pmill jobs --warehouse wh --cancel web")]
pub struct JobsArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// End a job's driver and its units; what is done stays, and the next run goes on from there
    #[arg(long, value_name = "JOB")]
    cancel: Option<String>,
    /// The scheduler, to see its executors
    #[arg(long, value_name = "URL", env = "PMILL_CLUSTER")]
    cluster: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

fn serve<T>(work: impl Future<Output = Result<T, ClusterError>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(work)?;
    // A unit that holds its thread must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(result)
}

/// The line that says that a role is ready; scripts read the port from it.
fn say(global: &Global, object: &serde_json::Value, text: &str) {
    let mut stdout = std::io::stdout().lock();
    let line = if global.json {
        object.to_string()
    } else {
        text.to_owned()
    };
    // Nobody reads it when stdout is closed.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

impl SchedulerArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let settings = SchedulerSettings {
            listen: self.listen,
            http: self.http,
            security: ServerSecurity {
                certificate: self.tls_cert.zip(self.tls_key),
                client_ca: self.tls_client_ca,
                token_file: self.token_file,
                insecure: self.insecure,
            },
            executor_timeout: Duration::from_secs(self.executor_timeout),
        };
        let ready = |listen: SocketAddr, http: SocketAddr| {
            let object = serde_json::json!({
                "role": "scheduler",
                "listen": listen.to_string(),
                "http": http.to_string(),
            });
            let text = format!("scheduler listens on {listen}, health and metrics on {http}");
            say(global, &object, &text);
        };
        serve(run_scheduler(settings, ready))?;
        Ok(Output::Done)
    }
}

impl ExecutorArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let mut allowed = Vec::new();
        for folder in &self.allow {
            // An URI is no path of this machine.
            if folder.to_string_lossy().contains("://") {
                allowed.push(folder.clone());
            } else {
                allowed.push(std::path::absolute(folder)?);
            }
        }
        let config = ExecutorConfig {
            scheduler: self.scheduler.clone(),
            security: self.client.security(),
            slots: self
                .slots
                .map_or_else(|| global.threads(), std::num::NonZero::get),
            memory: global.memory_limit(),
            scratch: self.scratch.unwrap_or_else(std::env::temp_dir),
            allowed,
            http: self.http,
            drain: Duration::from_secs(self.drain_timeout),
            patience: Duration::from_secs(self.patience),
        };
        let slots = config.slots;
        let ready = |id: &str, http: SocketAddr| {
            let object = serde_json::json!({
                "role": "executor",
                "id": id,
                "slots": slots,
                "http": http.to_string(),
            });
            let text =
                format!("executor {id} takes {slots} units at once, health and metrics on {http}");
            say(global, &object, &text);
        };
        serve(run_executor(config, ready))?;
        Ok(Output::Done)
    }
}

impl JobsArgs {
    /// Runs the command.
    pub fn run(self, _global: &Global) -> Outcome {
        let warehouse = Warehouse::open(&self.warehouse)?;
        if let Some(name) = &self.cancel {
            let name = JobName::new(name)?;
            let mut states = PlanState::all(&warehouse)?;
            states.retain(|state| state.job == name.as_str());
            if states.is_empty() {
                return Err(Failure::user(format!(
                    "job `{name}` is not under way in `{}`",
                    warehouse.display()
                )));
            }
            for state in states {
                PlanFolder::open(Path::new(&state.folder))?.end_all()?;
            }
            return Ok(Output::Summary {
                json: serde_json::json!({ "job": name.as_str(), "status": "cancelled" }),
                text: format!(
                    "{name}: its driver and units end; what is done stays, and the next run goes on\n"
                ),
            });
        }
        let states = PlanState::all(&warehouse)?;
        let cluster = match &self.cluster {
            Some(url) => Some(cluster_state(url, &self.client.security())?),
            None => None,
        };
        let executors: Vec<serde_json::Value> = cluster
            .iter()
            .flat_map(|reply| &reply.executors)
            .map(|executor| {
                serde_json::json!({
                    "id": executor.id,
                    "host": executor.host,
                    "slots": executor.slots,
                    "silent_seconds": executor.silent_seconds,
                })
            })
            .collect();
        let mut text = String::new();
        if states.is_empty() {
            text += "no job is under way\n";
        }
        for state in &states {
            text += &state.describe();
        }
        if let Some(reply) = &cluster {
            let slots: u32 = reply.executors.iter().map(|e| e.slots).sum();
            text += &format!(
                "cluster: {} executors, {slots} slots\n",
                reply.executors.len()
            );
            for executor in &reply.executors {
                text += &format!(
                    "  {} ({} slots, heard {} s ago)\n",
                    executor.id, executor.slots, executor.silent_seconds
                );
            }
        }
        Ok(Output::Summary {
            json: serde_json::json!({ "jobs": states, "executors": executors }),
            text,
        })
    }
}

impl ClusterArgs {
    /// What runs units that may fail `attempts` times.
    pub fn runner<'a>(&self, attempts: u32, bar: &'a Bar) -> Result<ClusterRunner<'a>, Failure> {
        let url = self.cluster.clone().unwrap_or_default();
        let patience = Patience {
            nothing: Duration::from_secs(self.cluster_patience),
            attempts,
        };
        Ok(ClusterRunner::connect(
            &url,
            &self.client.security(),
            patience,
            bar,
        )?)
    }
}
