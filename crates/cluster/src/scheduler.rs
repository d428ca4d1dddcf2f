//! `pmill scheduler`: Ballista's scheduler behind pmill's door. Its jobs are in memory: a driver
//! submits again what was lost with it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::serde::BallistaLogicalExtensionCodec;
use ballista_core::serde::protobuf::scheduler_grpc_server::SchedulerGrpcServer;
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::create_scheduler;
use ballista_scheduler::scheduler_server::SchedulerServer;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use pmill_engine::job::distributed::PROTOCOL;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::PROGRAM;
use crate::codec::UnitCodec;
use crate::error::ClusterError;
use crate::http;
use crate::net::{MESSAGE_BYTES, ServerSecurity};
use crate::proto::cluster_server::{Cluster, ClusterServer};
use crate::proto::{Executor, HelloReply, HelloRequest};

/// How a scheduler runs.
#[derive(Debug, Clone)]
pub struct SchedulerSettings {
    /// Where executors and drivers come.
    pub listen: SocketAddr,
    /// Where health and metrics are asked for.
    pub http: SocketAddr,
    /// Who may come.
    pub security: ServerSecurity,
    /// An executor that is silent for so long is taken for dead.
    pub executor_timeout: Duration,
}

type BallistaScheduler = SchedulerServer<LogicalPlanNode, PhysicalPlanNode>;

struct Door {
    scheduler: BallistaScheduler,
    timeout: Duration,
}

#[tonic::async_trait]
impl Cluster for Door {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let request = request.into_inner();
        if request.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "the scheduler is {PROGRAM} with unit protocol {PROTOCOL}, the {} is {} with protocol {}; run the same version everywhere",
                request.role, request.program, request.protocol
            )));
        }
        let state = self
            .scheduler
            .state
            .executor_manager
            .get_executors_state()
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let executors = state
            .into_iter()
            .filter_map(|(executor, seen, _)| {
                let silent = now.saturating_sub(seen?);
                (silent <= self.timeout).then_some(Executor {
                    id: executor.id,
                    host: executor.host,
                    slots: executor.specification.vcores,
                    silent_seconds: silent.as_secs(),
                })
            })
            .collect();
        Ok(Response::new(HelloReply {
            protocol: PROTOCOL,
            program: PROGRAM.to_owned(),
            executors,
        }))
    }
}

/// Runs until SIGTERM or Ctrl-C; tells `ready` its addresses (gRPC, HTTP).
///
/// # Errors
/// When it may not or cannot listen.
pub async fn run_scheduler(
    settings: SchedulerSettings,
    ready: impl FnOnce(SocketAddr, SocketAddr),
) -> Result<(), ClusterError> {
    settings.security.check(settings.listen)?;
    let (tls, gate) = (settings.security.tls()?, settings.security.gate()?);
    let stopped = |reason: String| ClusterError::Stopped {
        what: "the scheduler",
        reason,
    };
    let seconds = settings.executor_timeout.as_secs().max(2);
    let config = SchedulerConfig {
        scheduling_policy: TaskSchedulingPolicy::PullStaged,
        override_logical_codec: Some(Arc::new(BallistaLogicalExtensionCodec::default())),
        override_physical_codec: Some(Arc::new(UnitCodec::default())),
        executor_timeout_seconds: seconds,
        expire_dead_executor_interval_seconds: 1,
        no_executors_grace_period_seconds: seconds * 2,
        finished_job_state_clean_up_interval_seconds: 300,
        finished_job_data_clean_up_interval_seconds: 300,
        grpc_server_max_decoding_message_size: MESSAGE_BYTES as u32,
        grpc_server_max_encoding_message_size: MESSAGE_BYTES as u32,
        grpc_client_max_message_size: MESSAGE_BYTES as u32,
        disable_rest_api: true,
        ..SchedulerConfig::default()
    };
    let cluster = BallistaCluster::new_from_config(&config)
        .await
        .map_err(|error| stopped(error.to_string()))?;
    let scheduler: BallistaScheduler = create_scheduler(cluster, Arc::new(config))
        .await
        .map_err(|error| stopped(error.to_string()))?;
    let listen = |source| ClusterError::Listen {
        address: settings.listen.to_string(),
        source,
    };
    let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let asked = scheduler.clone();
    let http = http::serve(settings.http, Arc::new(move || asked.is_ready())).await?;
    let ballista = SchedulerGrpcServer::new(scheduler.clone())
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let door = ClusterServer::new(Door {
        scheduler,
        timeout: settings.executor_timeout,
    });
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)));
    if let Some(tls) = tls {
        server = server
            .tls_config(tls)
            .map_err(|error| ClusterError::Setting(format!("TLS: {error}")))?;
    }
    ready(address, http);
    tracing::info!(%address, %http, "scheduler ready");
    use tonic::service::interceptor::InterceptedService;
    let serving = server
        .add_service(InterceptedService::new(ballista, gate.clone()))
        .add_service(InterceptedService::new(door, gate))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::select! {
        result = serving => result.map_err(|error| stopped(error.to_string())),
        () = termination() => {
            // Jobs are drivers' to submit again; connections are cut, which they take for what it is.
            tracing::info!("scheduler ends");
            Ok(())
        }
    }
}

/// Returns at SIGTERM or Ctrl-C.
pub async fn termination() {
    let mut terminate =
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(signal) => signal,
            Err(error) => {
                tracing::warn!(%error, "no handler for SIGTERM");
                return std::future::pending().await;
            }
        };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
