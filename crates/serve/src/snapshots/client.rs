//! A client that blocks: each call has a deadline, and is tried again while the service is away.
//!
//! All calls may be repeated: the service answers a repeated announcement or publication as it did the first.

use pmill_engine::error::chain;

use super::error::MergeServiceError;
use super::proto;
use super::proto::merging_client::MergingClient;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

/// How a service is reached.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Such as `http://127.0.0.1:7070`, or `https://` with TLS.
    pub server: String,
    /// Token to send.
    pub token: Option<String>,
    /// Authority that signed the service's certificate, in PEM.
    pub tls_ca: Option<PathBuf>,
    /// Own certificate in PEM, for mTLS.
    pub tls_cert: Option<PathBuf>,
    /// Its private key in PEM.
    pub tls_key: Option<PathBuf>,
    /// How long one call may take, attempts and pauses included.
    pub timeout: Duration,
}

#[derive(Debug, Clone)]
struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

type Inner = MergingClient<InterceptedService<Channel, Token>>;

/// A client of the merge service.
#[derive(Debug)]
pub struct Client {
    runtime: tokio::runtime::Runtime,
    inner: Inner,
    settings: ClientSettings,
}

fn read(path: &PathBuf) -> Result<Vec<u8>, MergeServiceError> {
    std::fs::read(path).map_err(|source| MergeServiceError::Storage {
        action: "read",
        path: path.clone(),
        source,
    })
}

fn endpoint(settings: &ClientSettings) -> Result<Endpoint, MergeServiceError> {
    let wrong = |why: String| {
        MergeServiceError::invalid(format!(
            "`{}` is not the address of a service, expected http://HOST:PORT or https://HOST:PORT: {why}",
            settings.server
        ))
    };
    let secure = settings.server.starts_with("https://");
    if !secure && !settings.server.starts_with("http://") {
        return Err(wrong("no scheme".to_owned()));
    }
    let mut endpoint = Endpoint::from_shared(settings.server.clone())
        .map_err(|error| wrong(chain(&error)))?
        .connect_timeout(Duration::from_secs(5).min(settings.timeout))
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_while_idle(true);
    if secure {
        let mut tls = ClientTlsConfig::new();
        match &settings.tls_ca {
            Some(authority) => tls = tls.ca_certificate(Certificate::from_pem(read(authority)?)),
            None => {
                return Err(MergeServiceError::invalid(
                    "https needs the authority that signed the service's certificate: give --tls-ca",
                ));
            }
        }
        match (&settings.tls_cert, &settings.tls_key) {
            (Some(cert), Some(key)) => {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            (None, None) => {}
            _ => {
                return Err(MergeServiceError::invalid(
                    "a client certificate needs both --tls-cert and --tls-key",
                ));
            }
        }
        endpoint = endpoint
            .tls_config(tls)
            .map_err(|error| MergeServiceError::invalid(format!("TLS: {}", chain(&error))))?;
    }
    Ok(endpoint)
}

impl Client {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// An address, token or TLS file that cannot be used.
    pub fn new(settings: ClientSettings) -> Result<Self, MergeServiceError> {
        let token = match &settings.token {
            Some(token) => Some(format!("Bearer {token}").parse().map_err(|_| {
                MergeServiceError::invalid("the token holds letters that cannot be sent")
            })?),
            None => None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| MergeServiceError::Internal {
                what: format!("no runtime: {error}"),
            })?;
        super::choose_cryptography();
        let endpoint = endpoint(&settings)?;
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Ok(Self {
            inner: MergingClient::with_interceptor(channel, Token(token)),
            runtime,
            settings,
        })
    }

    fn away(&self, what: String) -> MergeServiceError {
        MergeServiceError::Away {
            server: self.settings.server.clone(),
            seconds: self.settings.timeout.as_secs(),
            what,
        }
    }

    /// Calls until there is an answer, with growing pauses while the service is away.
    fn call<T, F: Future<Output = Result<tonic::Response<T>, Status>>>(
        &self,
        call: impl Fn(Inner) -> F,
    ) -> Result<T, MergeServiceError> {
        let until = Instant::now() + self.settings.timeout;
        let mut pause = Duration::from_millis(100);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let attempt = async { tokio::time::timeout(left, call(self.inner.clone())).await };
            let status = match self.runtime.block_on(attempt) {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => return Err(self.away("no answer in time".to_owned())),
            };
            if !is_away(&status) {
                return Err(MergeServiceError::Remote {
                    code: status.code(),
                    message: status.message().to_owned(),
                });
            }
            if Instant::now() + pause >= until {
                return Err(self.away(told(&status)));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// Opens a run.
    ///
    /// # Errors
    /// What the service answers, or that it is away.
    pub fn announce(
        &self,
        request: &proto::AnnounceRequest,
    ) -> Result<proto::Run, MergeServiceError> {
        self.call(|mut inner| {
            let request = request.clone();
            async move { inner.announce(request).await }
        })
    }

    /// Hands a snapshot in.
    ///
    /// # Errors
    /// What the service answers, or that it is away.
    pub fn publish(
        &self,
        request: &proto::PublishRequest,
    ) -> Result<proto::PublishReply, MergeServiceError> {
        self.call(|mut inner| {
            let request = request.clone();
            async move { inner.publish(request).await }
        })
    }

    /// A run as it stands.
    ///
    /// # Errors
    /// What the service answers, or that it is away.
    pub fn get(&self, run: &str) -> Result<proto::Run, MergeServiceError> {
        self.call(|mut inner| {
            let run = run.to_owned();
            async move { inner.get(proto::GetRequest { run }).await }
        })
    }

    /// All runs.
    ///
    /// # Errors
    /// What the service answers, or that it is away.
    pub fn list(&self) -> Result<Vec<proto::Run>, MergeServiceError> {
        let reply = self.call(|mut inner| async move { inner.list(proto::ListRequest {}).await });
        Ok(reply?.runs)
    }

    /// Who mixes with whom in a round.
    ///
    /// # Errors
    /// What the service answers, or that it is away.
    pub fn peers(&self, run: &str, round: u64) -> Result<proto::PeerTable, MergeServiceError> {
        self.call(|mut inner| {
            let run = run.to_owned();
            async move { inner.peers(proto::PeersRequest { run, round }).await }
        })
    }

    /// Follows a run to its end and gives its last state; `on_change` is told each state and says whether to go
    /// on. A service that restarts meanwhile is found again; the timeout is for the whole watch.
    ///
    /// # Errors
    /// What the service answers, that it is away, [`MergeServiceError::Stopped`], and no end in time.
    pub fn watch(
        &self,
        run: &str,
        go_on: &dyn Fn() -> bool,
        on_change: &mut dyn FnMut(&proto::Run),
    ) -> Result<proto::Run, MergeServiceError> {
        use proto::run::Phase;
        let until = Instant::now() + self.settings.timeout;
        let mut last: Option<proto::Run> = None;
        let mut what = "the run has not ended".to_owned();
        let mut pause = Duration::from_millis(100);
        loop {
            let followed = async {
                let request = proto::GetRequest {
                    run: run.to_owned(),
                };
                let mut stream = self.inner.clone().watch(request).await?.into_inner();
                while let Some(state) = stream.message().await? {
                    if last.as_ref() != Some(&state) {
                        on_change(&state);
                    }
                    let over = matches!(state.phase(), Phase::Merged | Phase::Failed);
                    last = Some(state);
                    if over {
                        break;
                    }
                }
                Ok::<(), Status>(())
            };
            let stopped = async {
                while go_on() && Instant::now() < until {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let seen = self.runtime.block_on(async {
                tokio::select! {
                    seen = followed => Some(seen),
                    () = stopped => None,
                }
            });
            match seen {
                Some(Ok(())) => {
                    if let Some(state) =
                        last.take_if(|state| matches!(state.phase(), Phase::Merged | Phase::Failed))
                    {
                        return Ok(state);
                    }
                }
                Some(Err(status)) if is_away(&status) => what = told(&status),
                Some(Err(status)) => {
                    return Err(MergeServiceError::Remote {
                        code: status.code(),
                        message: status.message().to_owned(),
                    });
                }
                None if !go_on() => return Err(MergeServiceError::Stopped),
                None => {}
            }
            if Instant::now() + pause >= until {
                if let Some(state) = &last {
                    what = state.message.clone();
                }
                return Err(MergeServiceError::Remote {
                    code: Code::DeadlineExceeded,
                    message: format!(
                        "run `{run}` did not end within {} s: {what}",
                        self.settings.timeout.as_secs()
                    ),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }
}

/// Whether the service is away: it says so, or the connection broke (only then is there a cause).
fn is_away(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

/// A status in words; the transport's own causes are below it.
fn told(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), chain(source)),
        None => status.message().to_owned(),
    }
}
