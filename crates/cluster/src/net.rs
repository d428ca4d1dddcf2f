//! Who may talk to whom: TLS, certificates of both sides, a shared token; loopback unless these are
//! set.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use subtle::ConstantTimeEq;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig,
};
use tonic::{Request, Status};

use crate::error::ClusterError;
use crate::proto::cluster_client::ClusterClient;
use crate::proto::{HelloReply, HelloRequest};

/// Largest message; a spec names all files of its unit.
pub const MESSAGE_BYTES: usize = 64 << 20;

/// How a server keeps strangers out.
#[derive(Debug, Clone, Default)]
pub struct ServerSecurity {
    /// Certificate and key, PEM.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Certificates that clients must have one of: mutual TLS.
    pub client_ca: Option<PathBuf>,
    /// File of the token that clients must know.
    pub token_file: Option<PathBuf>,
    /// Listen anywhere without any of it.
    pub insecure: bool,
}

/// How a client shows who it is.
#[derive(Debug, Clone, Default)]
pub struct ClientSecurity {
    /// Certificates that the server must have one of, PEM.
    pub ca: Option<PathBuf>,
    /// Own certificate and key, for mutual TLS.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// File of the token.
    pub token_file: Option<PathBuf>,
}

/// Chooses the cryptography of TLS for the whole process: other crates bring a second one in, and
/// rustls then refuses to guess.
fn choose_cryptography() {
    // An error says that it was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn read(path: &Path) -> Result<Vec<u8>, ClusterError> {
    std::fs::read(path).map_err(|error| ClusterError::File {
        path: path.display().to_string(),
        reason: error.to_string(),
    })
}

fn read_token(path: Option<&Path>) -> Result<Option<String>, ClusterError> {
    let Some(path) = path else { return Ok(None) };
    let text = String::from_utf8_lossy(&read(path)?).trim().to_owned();
    let usable = text.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !usable {
        return Err(ClusterError::File {
            path: path.display().to_string(),
            reason: "expected a token of 16 or more printable characters".into(),
        });
    }
    Ok(Some(text))
}

impl ServerSecurity {
    /// Whether this may listen on `address`: loopback always, elsewhere with TLS and a check of who
    /// comes.
    ///
    /// # Errors
    /// When it may not.
    pub fn check(&self, address: SocketAddr) -> Result<(), ClusterError> {
        let closed =
            self.certificate.is_some() && (self.client_ca.is_some() || self.token_file.is_some());
        if address.ip().is_loopback() || closed || self.insecure {
            return Ok(());
        }
        Err(ClusterError::Setting(format!(
            "{address} can be reached from other machines: give --tls-cert and --tls-key, and --tls-client-ca or --token-file, so that only yours may come; or --insecure to let everybody in"
        )))
    }

    pub(crate) fn tls(&self) -> Result<Option<ServerTlsConfig>, ClusterError> {
        let Some((certificate, key)) = &self.certificate else {
            if self.client_ca.is_some() {
                return Err(ClusterError::Setting(
                    "--tls-client-ca goes with --tls-cert and --tls-key".into(),
                ));
            }
            return Ok(None);
        };
        choose_cryptography();
        let mut config =
            ServerTlsConfig::new().identity(Identity::from_pem(read(certificate)?, read(key)?));
        if let Some(ca) = &self.client_ca {
            config = config.client_ca_root(Certificate::from_pem(read(ca)?));
        }
        Ok(Some(config))
    }

    pub(crate) fn gate(&self) -> Result<Gate, ClusterError> {
        Ok(Gate {
            token: read_token(self.token_file.as_deref())?.map(|token| format!("Bearer {token}")),
        })
    }
}

/// Lets in who knows the token.
#[derive(Clone)]
pub struct Gate {
    token: Option<String>,
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(expected) = &self.token else {
            return Ok(request);
        };
        let given = request
            .metadata()
            .get("authorization")
            .map_or(&[][..], |value| value.as_bytes());
        if bool::from(given.ct_eq(expected.as_bytes())) {
            Ok(request)
        } else {
            Err(Status::unauthenticated(
                "the token is missing or wrong; give --token-file",
            ))
        }
    }
}

/// Shows the token.
#[derive(Clone)]
pub struct Pass {
    token: Option<MetadataValue<tonic::metadata::Ascii>>,
}

impl Interceptor for Pass {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A connection to the scheduler; it connects again by itself.
pub type Connection = InterceptedService<Channel, Pass>;

/// The scheduler as a client sees it.
#[derive(Clone)]
pub struct SchedulerClient {
    /// Its URL, for messages.
    pub url: String,
    /// Ballista's calls.
    pub ballista: SchedulerGrpcClient<Connection>,
    cluster: ClusterClient<Connection>,
    /// TLS without a certificate of its own: a server that asks for one just hangs up.
    may_lack_certificate: bool,
}

impl SchedulerClient {
    /// Prepares a connection to `http(s)://HOST:PORT`; connects at the first call.
    ///
    /// # Errors
    /// When the URL or a file is wrong.
    pub fn new(url: &str, security: &ClientSecurity) -> Result<Self, ClusterError> {
        let wrong = |reason: String| {
            ClusterError::Setting(format!(
                "`{url}` is not a scheduler's URL: {reason}; write http://HOST:PORT, or https:// with TLS"
            ))
        };
        let parsed = url::Url::parse(url).map_err(|error| wrong(error.to_string()))?;
        let tls = match parsed.scheme() {
            "https" => true,
            "http" => false,
            other => return Err(wrong(format!("scheme `{other}`"))),
        };
        if parsed.port().is_none() {
            return Err(wrong("it has no port".into()));
        }
        let mut endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|error| wrong(error.to_string()))?
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(20))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        if tls {
            choose_cryptography();
            let mut config = ClientTlsConfig::new();
            let Some(ca) = &security.ca else {
                return Err(ClusterError::Setting(format!(
                    "{url} speaks TLS: give --tls-ca, the certificates that it must have one of"
                )));
            };
            config = config.ca_certificate(Certificate::from_pem(read(ca)?));
            if let Some((certificate, key)) = &security.certificate {
                config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            endpoint = endpoint
                .tls_config(config)
                .map_err(|error| wrong(error.to_string()))?;
        } else if security.certificate.is_some() || security.ca.is_some() {
            return Err(ClusterError::Setting(format!(
                "certificates were given, and {url} does not use them; write https://"
            )));
        }
        let token = match read_token(security.token_file.as_deref())? {
            None => None,
            Some(token) => {
                let value = format!("Bearer {token}").parse().map_err(|_| {
                    ClusterError::Setting("the token cannot be sent as it is".into())
                })?;
                Some(value)
            }
        };
        let pass = Pass { token };
        let channel = endpoint.connect_lazy();
        let ballista = SchedulerGrpcClient::with_interceptor(channel.clone(), pass.clone())
            .max_encoding_message_size(MESSAGE_BYTES)
            .max_decoding_message_size(MESSAGE_BYTES);
        Ok(Self {
            url: url.to_owned(),
            ballista,
            cluster: ClusterClient::with_interceptor(channel, pass),
            may_lack_certificate: tls && security.certificate.is_none(),
        })
    }

    /// Whether the two can work together, and what the cluster has.
    ///
    /// # Errors
    /// When the scheduler is away, or refuses.
    pub async fn hello(&mut self, role: &str) -> Result<HelloReply, ClusterError> {
        let request = HelloRequest {
            protocol: pmill_engine::job::distributed::PROTOCOL,
            program: crate::PROGRAM.to_owned(),
            role: role.to_owned(),
        };
        match self.cluster.hello(request).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(self.explain(&status)),
        }
    }

    /// What a failed call means.
    pub fn explain(&self, status: &Status) -> ClusterError {
        use tonic::Code;
        let mut reason = status.message().to_owned();
        let mut cause = std::error::Error::source(status);
        while let Some(inner) = cause {
            let more = inner.to_string();
            if !reason.contains(&more) {
                reason = format!("{reason}: {more}");
            }
            cause = inner.source();
        }
        let url = self.url.clone();
        // Of rustls: who shows the wrong certificate, or none, will not do better the next time.
        if reason.to_lowercase().contains("certificate") {
            return ClusterError::Refused { url, reason };
        }
        match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Unimplemented => ClusterError::Refused { url, reason },
            _ if self.may_lack_certificate => {
                let hint = "if it asks for certificates of clients, give --tls-client-cert and --tls-client-key";
                ClusterError::Away {
                    url,
                    reason: format!("{reason} ({hint})"),
                }
            }
            _ => ClusterError::Away { url, reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_listens_beyond_loopback_only_when_strangers_are_kept_out() {
        let open: SocketAddr = "0.0.0.0:1".parse().unwrap();
        let loopback: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let with = |change: fn(&mut ServerSecurity)| {
            let mut security = ServerSecurity::default();
            change(&mut security);
            (
                security.check(loopback).is_ok(),
                security.check(open).is_ok(),
            )
        };
        let pair = || Some(("c".into(), "k".into()));
        assert_eq!(with(|_| ()), (true, false));
        assert_eq!(with(|s| s.token_file = Some("t".into())), (true, false));
        assert_eq!(
            with(|s| s.certificate = Some(("c".into(), "k".into()))),
            (true, false)
        );
        assert_eq!(with(|s| s.insecure = true), (true, true));
        let closed = ServerSecurity {
            certificate: pair(),
            token_file: Some("t".into()),
            ..ServerSecurity::default()
        };
        assert!(closed.check(open).is_ok());
    }

    #[test]
    fn who_does_not_know_the_token_stays_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let mut gate = ServerSecurity {
            token_file: Some(path.clone()),
            ..ServerSecurity::default()
        }
        .gate()
        .unwrap();
        let ask = |value: Option<&'static str>| {
            let mut request = Request::new(());
            if let Some(value) = value {
                let value = MetadataValue::from_static(value);
                request.metadata_mut().insert("authorization", value);
            }
            request
        };
        assert!(gate.call(ask(None)).is_err());
        assert!(gate.call(ask(Some("Bearer 0123456789abcdeX"))).is_err());
        assert!(gate.call(ask(Some("Bearer 0123456789abcdef"))).is_ok());
        std::fs::write(&path, "short").unwrap();
        assert!(read_token(Some(&path)).is_err());
    }
}
