//! The gRPC server: takes calls in, lets the registry work on threads that may block, tells watchers.

use super::checks::Places;
use super::convert;
use super::error::MergeServiceError;
use super::merging::Merger;
use super::proto;
use super::proto::merging_server::{Merging, MergingServer};
use super::record::{Outcome, RunState};
use super::registry::{Limits, Registry, now_unix_ms};
use futures::stream::BoxStream;
use pmill_engine::error::chain;
use pmill_snapshot::ErrorKind;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, watch};
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// Snapshots that are checked at the same time; each check reads with all threads.
const CHECKS: usize = 2;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often a merge is tried again when storage is away, before the run fails.
const MERGE_ATTEMPTS: u32 = 8;
/// The longest that one call may take; a publication of hundreds of gigabytes is read within it.
const CALL_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long running calls may take after a stop.
const DRAIN: Duration = Duration::from_secs(20);

/// What a service is started with.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The warehouse folder in which runs and merged snapshots are kept.
    pub warehouse: String,
    /// Folders below which agents may publish.
    pub roots: Vec<PathBuf>,
    /// Prefixes of object stores below which runs may have their merged snapshots appear.
    pub output_roots: Vec<PathBuf>,
    /// Address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// File with one token a line; `#` begins a comment.
    pub token_file: Option<PathBuf>,
    /// Certificate chain in PEM.
    pub tls_cert: Option<PathBuf>,
    /// Its private key in PEM.
    pub tls_key: Option<PathBuf>,
    /// Authority whose client certificates are asked for (mTLS), in PEM.
    pub tls_client_ca: Option<PathBuf>,
    /// Serve addresses other than loopback without TLS and authentication.
    pub insecure: bool,
    /// Threads and memory of checks and merges.
    pub limits: Limits,
    /// Where merges run.
    pub merger: Arc<dyn Merger>,
}

fn read(path: &PathBuf) -> Result<Vec<u8>, MergeServiceError> {
    std::fs::read(path).map_err(|source| MergeServiceError::Storage {
        action: "read",
        path: path.clone(),
        source,
    })
}

/// The tokens of a file, which only its owner may read.
///
/// # Errors
/// A file that others may read, that holds no token, or one with spaces or other letters than ASCII.
pub fn read_tokens(path: &PathBuf) -> Result<Vec<String>, MergeServiceError> {
    use std::os::unix::fs::PermissionsExt;
    let bytes = read(path)?;
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode());
    if mode & 0o077 != 0 {
        return Err(MergeServiceError::invalid(format!(
            "others may read the token file `{}` (mode {:o}); run chmod 600 on it",
            path.display(),
            mode & 0o777
        )));
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let token = line.split('#').next().unwrap_or_default().trim();
        if token.is_empty() {
            continue;
        }
        if token.len() < 16 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(MergeServiceError::invalid(format!(
                "`{}` line {}: a token has at least 16 printable ASCII letters and no space",
                path.display(),
                number + 1
            )));
        }
        tokens.push(token.to_owned());
    }
    if tokens.is_empty() {
        return Err(MergeServiceError::invalid(format!(
            "`{}` holds no token, expected one a line",
            path.display()
        )));
    }
    Ok(tokens)
}

/// Lets calls with one of the tokens through; all when there are none.
#[derive(Debug, Clone)]
struct Auth(Option<Arc<Vec<String>>>);

impl Interceptor for Auth {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(tokens) = &self.0 else {
            return Ok(request);
        };
        let given = request
            .metadata()
            .get("authorization")
            .map(MetadataValue::as_bytes)
            .and_then(|value| value.strip_prefix(b"Bearer "))
            .unwrap_or_default();
        // All are compared, so that time tells nothing.
        let known = tokens.iter().fold(subtle::Choice::from(0), |known, token| {
            known | token.as_bytes().ct_eq(given)
        });
        if bool::from(known) {
            return Ok(request);
        }
        Err(Status::unauthenticated(
            "no valid token: send `authorization: Bearer TOKEN` with a token that the service knows",
        ))
    }
}

impl ServerSettings {
    fn tls(&self) -> Result<Option<ServerTlsConfig>, MergeServiceError> {
        let (cert, key) = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => (read(cert)?, read(key)?),
            (None, None) if self.tls_client_ca.is_none() => return Ok(None),
            _ => {
                return Err(MergeServiceError::invalid(
                    "TLS needs a certificate and its key: give both --tls-cert and --tls-key",
                ));
            }
        };
        let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(cert, key));
        if let Some(authority) = &self.tls_client_ca {
            tls = tls.client_ca_root(Certificate::from_pem(read(authority)?));
        }
        Ok(Some(tls))
    }

    /// Checks the settings without listening.
    ///
    /// # Errors
    /// An address beyond loopback without TLS and authentication, files that cannot be used.
    pub fn check(&self) -> Result<(), MergeServiceError> {
        let authenticated = self.token_file.is_some() || self.tls_client_ca.is_some();
        let open = !self.listen.ip().is_loopback() && !self.insecure;
        if open && (self.tls_cert.is_none() || !authenticated) {
            return Err(MergeServiceError::invalid(format!(
                "{} can be reached by others: give --tls-cert, --tls-key and --token-file (or --tls-client-ca), or --insecure when the network is trusted",
                self.listen
            )));
        }
        self.tls()?;
        if let Some(file) = &self.token_file {
            read_tokens(file)?;
        }
        Places::new(&self.roots)?;
        Places::of_outputs(&self.output_roots)?;
        Ok(())
    }
}

/// Serves until `stop` is set, then lets running calls end, stops a running merge where it can go on, and
/// returns.
///
/// `ready` is told the URL once calls are taken.
///
/// # Errors
/// Settings that cannot be used, a port that is taken, another service on the same warehouse.
pub fn serve(
    settings: &ServerSettings,
    stop: Arc<AtomicBool>,
    ready: &dyn Fn(&str),
) -> Result<(), MergeServiceError> {
    super::choose_cryptography();
    settings.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()
        .map_err(|error| MergeServiceError::Internal {
            what: format!("no runtime: {error}"),
        })?;
    let served = runtime.block_on(run(settings, stop, ready));
    // A check that still reads is left behind: it has written nothing, and its caller tries again.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn run(
    settings: &ServerSettings,
    stop: Arc<AtomicBool>,
    ready: &dyn Fn(&str),
) -> Result<(), MergeServiceError> {
    let places = Places::new(&settings.roots)?;
    let registry = Arc::new(Registry::open(
        &settings.warehouse,
        places,
        Places::of_outputs(&settings.output_roots)?,
        settings.limits,
        Arc::clone(&settings.merger),
    )?);
    let tokens = settings.token_file.as_ref().map(read_tokens).transpose()?;
    let address = settings.listen;
    let incoming = TcpIncoming::bind(address).map_err(|error| {
        MergeServiceError::invalid(format!(
            "cannot listen on {address}: {error}; choose another address, or port 0 for a free one"
        ))
    })?;
    let bound = incoming.local_addr().unwrap_or(address);
    let mut server = Server::builder()
        .timeout(CALL_TIMEOUT)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .concurrency_limit_per_connection(256);
    let tls = settings.tls()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    if let Some(tls) = tls {
        server = server
            .tls_config(tls)
            .map_err(|error| MergeServiceError::invalid(format!("TLS: {}", chain(&error))))?;
    }
    let (stopping, stopped) = watch::channel(false);
    let service = Service {
        registry: Arc::clone(&registry),
        checks: Arc::new(Semaphore::new(CHECKS)),
        stopped: stopped.clone(),
    };
    let auth = Auth(tokens.map(Arc::new));
    let router = server.add_service(MergingServer::with_interceptor(service, auth));
    let clock = tokio::spawn(clock(Arc::clone(&registry), stopped.clone()));
    let merger = tokio::spawn(merger(
        Arc::clone(&registry),
        Arc::clone(&stop),
        stopped.clone(),
    ));
    ready(&format!("{scheme}://{bound}"));
    tracing::info!(address = %bound, "merge service ready");
    let until_stop = async move {
        while !stop.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Watchers are let go, or the server would wait for them.
        stopping.send_replace(true);
    };
    let mut drained = stopped;
    let too_long = async move {
        // An error means that nobody can stop the service any more, which is a stop too.
        let _ = drained.wait_for(|stopped| *stopped).await;
        tokio::time::sleep(DRAIN).await;
    };
    let served = tokio::select! {
        served = router.serve_with_incoming_shutdown(incoming, until_stop) => served,
        () = too_long => {
            tracing::warn!("calls were left unanswered");
            Ok(())
        }
    };
    let panicked = |error: tokio::task::JoinError| MergeServiceError::Internal {
        what: format!("a task ended early: {error}"),
    };
    clock.await.map_err(panicked)?;
    merger.await.map_err(panicked)?;
    served.map_err(|error| MergeServiceError::Internal {
        what: chain(&error),
    })
}

/// Sees to deadlines.
async fn clock(registry: Arc<Registry>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        let registry = Arc::clone(&registry);
        match tokio::task::spawn_blocking(move || registry.tick(now_unix_ms())).await {
            Ok(Ok(())) => {}
            // Tried again at the next tick.
            Ok(Err(error)) => tracing::error!(error = %chain(&error), "cannot decide a run"),
            Err(error) => tracing::error!(%error, "the clock failed"),
        }
    }
}

/// Runs the merges that are decided, one after the other; those of an earlier process first.
async fn merger(
    registry: Arc<Registry>,
    stop: Arc<AtomicBool>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut attempts: HashMap<String, u32> = HashMap::new();
    loop {
        let mut pause = None;
        for run in registry.waiting_for_merge() {
            if stop.load(Ordering::Acquire) {
                return;
            }
            let tried = attempts.entry(run.clone()).or_insert(0);
            *tried += 1;
            let attempt = *tried;
            let (work, name, flag) = (Arc::clone(&registry), run.clone(), Arc::clone(&stop));
            let done = tokio::task::spawn_blocking(move || {
                let go_on = || !flag.load(Ordering::Acquire);
                match work.merge(&name, &go_on) {
                    Err(error) if attempt >= MERGE_ATTEMPTS && go_on() => {
                        let message =
                            format!("given up after {attempt} attempts: {}", chain(&error));
                        work.fail(&name, message)
                    }
                    other => other,
                }
            });
            match done.await {
                Ok(Ok(Outcome::Merged { .. })) => tracing::info!(run, "merged"),
                Ok(Ok(Outcome::Failed { message })) => tracing::warn!(run, message, "run failed"),
                Ok(Err(error)) => {
                    tracing::warn!(run, attempt, error = %chain(&error), "merge put off");
                    pause = Some(Duration::from_secs(1 << attempt.min(6)));
                }
                Err(error) => {
                    let message = format!("the merge broke off: {error}");
                    tracing::error!(run, message, "merge");
                    let work = Arc::clone(&registry);
                    let _ = tokio::task::spawn_blocking(move || work.fail(&run, message)).await;
                }
            }
        }
        let again = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = registry.merge_wanted.notified() => {}
            () = again => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}

struct Service {
    registry: Arc<Registry>,
    checks: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
}

fn status(error: MergeServiceError) -> Status {
    if error.kind() == ErrorKind::Bug {
        tracing::error!(error = %chain(&error), "call");
    }
    error.status()
}

impl Service {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Registry) -> Result<T, MergeServiceError> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let registry = Arc::clone(&self.registry);
        match tokio::task::spawn_blocking(move || work(&registry)).await {
            Ok(done) => done.map(Response::new).map_err(status),
            Err(error) => Err(Status::internal(format!("the call broke off: {error}"))),
        }
    }

    /// The same for work that reads or computes much: few at a time.
    async fn heavy<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Registry) -> Result<T, MergeServiceError> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let permit = Arc::clone(&self.checks).acquire_owned().await;
        let permit = permit.map_err(|_| Status::unavailable("the service stops; try again"))?;
        self.blocking(move |registry| {
            // Held until the work ends, also when the caller has gone.
            let _permit = permit;
            work(registry)
        })
        .await
    }
}

#[tonic::async_trait]
impl Merging for Service {
    type WatchStream = BoxStream<'static, Result<proto::Run, Status>>;

    async fn announce(
        &self,
        request: Request<proto::AnnounceRequest>,
    ) -> Result<Response<proto::Run>, Status> {
        let announcement = convert::announcement(request.into_inner()).map_err(status)?;
        self.blocking(move |registry| {
            let state = registry.announce(announcement, now_unix_ms())?;
            Ok(convert::run(&state))
        })
        .await
    }

    async fn publish(
        &self,
        request: Request<proto::PublishRequest>,
    ) -> Result<Response<proto::PublishReply>, Status> {
        let publication = convert::publication(request.into_inner()).map_err(status)?;
        self.heavy(move |registry| {
            let (receipt, record, state) = registry.publish(&publication, now_unix_ms())?;
            tracing::info!(
                run = publication.run,
                agent = publication.agent,
                step = publication.step,
                ?receipt,
                "published"
            );
            Ok(convert::reply(receipt, &record, &state))
        })
        .await
    }

    async fn get(
        &self,
        request: Request<proto::GetRequest>,
    ) -> Result<Response<proto::Run>, Status> {
        let run = request.into_inner().run;
        self.blocking(move |registry| Ok(convert::run(&registry.get(&run)?)))
            .await
    }

    async fn list(
        &self,
        _: Request<proto::ListRequest>,
    ) -> Result<Response<proto::ListReply>, Status> {
        self.blocking(|registry| {
            let runs: Vec<RunState> = registry.list();
            Ok(proto::ListReply {
                runs: runs.iter().map(convert::run).collect(),
            })
        })
        .await
    }

    async fn watch(
        &self,
        request: Request<proto::GetRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let name = request.into_inner().run;
        let mut changes = self.registry.changes(&name).map_err(status)?;
        changes.mark_changed();
        let start = (Arc::clone(&self.registry), changes, self.stopped.clone());
        let stream = futures::stream::try_unfold(Some(start), move |held| {
            let name = name.clone();
            async move {
                let Some((registry, mut changes, mut stopped)) = held else {
                    return Ok(None);
                };
                tokio::select! {
                    changed = changes.changed() => {
                        changed.map_err(|_| Status::internal("the run is gone"))?;
                    }
                    _ = stopped.wait_for(|stopped| *stopped) => {
                        return Err(Status::unavailable("the service stops; watch again when it is back"));
                    }
                }
                let state = registry.get(&name).map_err(status)?;
                let over = state.outcome.is_some();
                let next = (!over).then_some((registry, changes, stopped));
                Ok(Some((convert::run(&state), next)))
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn peers(
        &self,
        request: Request<proto::PeersRequest>,
    ) -> Result<Response<proto::PeerTable>, Status> {
        let proto::PeersRequest { run, round } = request.into_inner();
        self.heavy(move |registry| {
            let announcement = registry.get(&run)?.announcement;
            let Some(mixing) = &announcement.mixing else {
                return Err(MergeServiceError::invalid(format!(
                    "run `{run}` was announced without mixing, so it has no peer table"
                )));
            };
            let matrix = mixing.matrix(announcement.agents.len(), round)?;
            Ok(convert::peers(&announcement.agents, round, &matrix))
        })
        .await
    }
}
