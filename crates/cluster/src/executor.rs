//! `pmill executor`: polls the scheduler for units, runs as many at once as it has slots.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ballista_core::BALLISTA_PROTOCOL_VERSION;
use ballista_core::serde::protobuf::executor_resource::Resource;
use ballista_core::serde::protobuf::{
    ExecutorRegistration, ExecutorResource, ExecutorSpecification, ExecutorStoppedParams,
};
use ballista_core::serde::{BallistaCodec, BallistaLogicalExtensionCodec};
use ballista_core::utils::default_config_producer;
use ballista_executor::execution_loop::poll_loop;
use ballista_executor::executor::Executor;
use ballista_executor::health::ExecutorHealth;
use ballista_executor::metrics::LoggingMetricsCollector;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use pmill_engine::job::distributed::{UnitWorker, WorkerLimits};
use pmill_engine::memory::ByteSize;
use tokio::sync::Semaphore;

use crate::codec::UnitCodec;
use crate::error::ClusterError;
use crate::guard::UnitsOnly;
use crate::http;
use crate::net::{ClientSecurity, SchedulerClient};
use crate::scheduler::termination;
use crate::unit_exec::Units;

/// The file in an executor's folder that it holds locked while it lives.
const LOCK: &str = "lock";

/// How an executor runs.
#[derive(Debug, Clone)]
pub struct ExecutorConfig {
    /// The scheduler's URL.
    pub scheduler: String,
    /// How it shows who it is.
    pub security: ClientSecurity,
    /// Units at once.
    pub slots: usize,
    /// Memory for all units together.
    pub memory: ByteSize,
    /// Folder for temporary files; it makes one of its own inside, and removes it at its end.
    pub scratch: PathBuf,
    /// Folders that units may name; none: all.
    pub allowed: Vec<PathBuf>,
    /// Where health and metrics are asked for.
    pub http: SocketAddr,
    /// How long running units may go on after SIGTERM; then they are handed back.
    pub drain: Duration,
    /// How long the scheduler may be away at the start.
    pub patience: Duration,
}

/// Runs until SIGTERM or Ctrl-C, then drains: takes nothing new, lets units end within
/// [`ExecutorConfig::drain`], hands back the rest. Tells `ready` its name and HTTP address once the
/// scheduler knows it.
///
/// # Errors
/// When the scheduler refuses or does not come; when temporary files cannot be made.
pub async fn run_executor(
    config: ExecutorConfig,
    ready: impl FnOnce(&str, SocketAddr),
) -> Result<(), ClusterError> {
    let mut client = SchedulerClient::new(&config.scheduler, &config.security)?;
    meet(&mut client, config.patience).await?;
    let id = uuid::Uuid::new_v4().to_string();
    let io = |error: std::io::Error| ClusterError::File {
        path: config.scratch.display().to_string(),
        reason: error.to_string(),
    };
    std::fs::create_dir_all(&config.scratch).map_err(io)?;
    sweep_dead(&config.scratch);
    let scratch = tempfile::Builder::new()
        .prefix("pmill-executor-")
        .tempdir_in(&config.scratch)
        .map_err(io)?;
    let lock = std::fs::File::create(scratch.path().join(LOCK)).map_err(io)?;
    lock.try_lock()
        .map_err(|error| io(std::io::Error::other(error.to_string())))?;
    let slots = config.slots.max(1);
    let worker = UnitWorker::new(WorkerLimits {
        memory: ByteSize(config.memory.0 / slots as u64),
        threads: 1,
        scratch: scratch.path().join("units"),
        allowed: config.allowed.clone(),
        on_stuck: None,
    })?;
    let units = Arc::new(Units::new(worker, slots));
    // What units share holds a runtime, which must not be dropped on another one: a task may be the
    // last to let go of it. So it lives as long as the process.
    std::mem::forget(units.clone());
    let ballista_folder = scratch.path().join("ballista");
    std::fs::create_dir_all(&ballista_folder).map_err(io)?;
    let executor = Arc::new(Executor::new(
        registration(&id, slots),
        &ballista_folder.display().to_string(),
        Arc::new(|_| Ok(Arc::new(RuntimeEnv::default()))),
        Arc::new(default_config_producer),
        Arc::default(),
        Arc::new(LoggingMetricsCollector::default()),
        slots,
        Arc::new(UnitsOnly),
    ));
    let codec: BallistaCodec<LogicalPlanNode, PhysicalPlanNode> = BallistaCodec::new(
        Arc::new(BallistaLogicalExtensionCodec::default()),
        Arc::new(UnitCodec::new(Some(units.clone()))),
    );
    let health = ExecutorHealth::new();
    let draining = Arc::new(AtomicBool::new(false));
    let (seen, ends) = (health.clone(), draining.clone());
    let is_ready = Arc::new(move || seen.is_ready() && !ends.load(Ordering::Acquire));
    let http = http::serve(config.http, is_ready).await?;
    // What the scheduler is told is free; taking all of it is how draining begins.
    let offered = units.offered.clone();
    let polling = tokio::spawn(poll_loop(
        client.ballista.clone(),
        executor.clone(),
        codec,
        None,
        Some(offered.clone()),
        health.clone(),
    ));
    let until = Instant::now() + config.patience;
    while !health.is_ready() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ready(&id, http);
    tracing::info!(executor = %id, %http, slots, "executor ready");
    let ended = tokio::select! {
        () = termination() => None,
        () = all_stuck(&units, slots) => Some(format!(
            "all {slots} units hold their threads beyond their time; it ends, so that a supervisor starts it anew"
        )),
        result = polling => Some(match result {
            Ok(Ok(())) => "the poll loop ended".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        }),
    };
    draining.store(true, Ordering::Release);
    if let Some(reason) = ended {
        units.stop.set();
        return Err(ClusterError::Stopped {
            what: "the executor",
            reason,
        });
    }
    tracing::info!(executor = %id, running = slots - units.slots.available_permits(), "executor drains");
    drain(&offered, &units, slots, config.drain).await;
    let stopped = ExecutorStoppedParams {
        executor_id: id.clone(),
        reason: "it was asked to end".into(),
    };
    let told = tokio::time::timeout(
        Duration::from_secs(5),
        client.ballista.executor_stopped(stopped),
    );
    if !matches!(told.await, Ok(Ok(_))) {
        tracing::warn!(executor = %id, "the scheduler was not told that this executor ends");
    }
    tracing::info!(executor = %id, "executor ends");
    Ok(())
}

/// Waits for the scheduler. Refusals are final.
async fn meet(client: &mut SchedulerClient, patience: Duration) -> Result<(), ClusterError> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(100);
    loop {
        match client.hello("executor").await {
            Ok(_) => return Ok(()),
            Err(error @ ClusterError::Away { .. }) if Instant::now() < deadline => {
                tracing::warn!(%error, "waiting for the scheduler");
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Returns when no slot is left that could run a unit.
async fn all_stuck(units: &Units, slots: usize) {
    while units.stuck.load(Ordering::Acquire) < slots {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Offers nothing more, and waits for what runs; past `patience` it is told to stop.
async fn drain(offered: &Arc<Semaphore>, units: &Arc<Units>, slots: usize, patience: Duration) {
    // Closing would end the poll loop with an error; taking the permits lets it report to the end.
    let taking = offered.clone();
    let free = slots.saturating_sub(units.stuck.load(Ordering::Acquire));
    let all = u32::try_from(free).unwrap_or(u32::MAX);
    let took = tokio::spawn(async move {
        if let Ok(permits) = taking.acquire_many_owned(all).await {
            permits.forget();
        }
    });
    if tokio::time::timeout(patience, took).await.is_err() {
        units.stop.set();
        let until = Instant::now() + Duration::from_secs(5);
        while units.slots.available_permits() < slots && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn registration(id: &str, slots: usize) -> ExecutorRegistration {
    ExecutorRegistration {
        id: id.to_owned(),
        // Nothing is ever fetched from an executor: it has no address to come to.
        host: Some(format!("pmill-{}", std::process::id())),
        port: 0,
        grpc_port: 0,
        specification: Some(ExecutorSpecification {
            resources: vec![ExecutorResource {
                resource: Some(Resource::Vcores(u32::try_from(slots).unwrap_or(u32::MAX))),
            }],
        }),
        os_info: Some(Default::default()),
        ballista_protocol_version: BALLISTA_PROTOCOL_VERSION,
    }
}

/// Removes what executors that were killed left in the folder for temporary files: those whose lock
/// nobody holds.
fn sweep_dead(scratch: &std::path::Path) {
    let Ok(entries) = std::fs::read_dir(scratch) else {
        return;
    };
    for entry in entries.flatten() {
        let ours = entry
            .file_name()
            .to_string_lossy()
            .starts_with("pmill-executor-");
        let Ok(lock) = std::fs::File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if ours && lock.try_lock().is_ok() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
