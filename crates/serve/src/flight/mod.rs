//! Arrow Flight SQL: messages by `arrow-flight`, queries by our own [`crate::service::Service`].

mod lists;
mod sql;
mod statements;
pub(crate) mod ticket;

use std::net::IpAddr;
use std::sync::Arc;

use arrow_flight::flight_service_server::FlightServiceServer;
use futures::StreamExt;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::auth::{Credentials, Gate};
use crate::error::ServeError;
use crate::listen::{self, Doorman, Peer};
use crate::service::{Asker, Service};
use crate::traces::Parent;

use statements::Statements;

/// Name of the protocol in logs and figures.
pub const PROTOCOL: &str = "flight_sql";

/// The Flight SQL service.
pub struct Flight {
    service: Arc<Service>,
    gate: Arc<Gate>,
    statements: Statements,
}

impl Flight {
    /// Who sent a request.
    async fn asker<T>(&self, request: &Request<T>) -> Result<Asker, Status> {
        // The request itself cannot be held while waiting: its body may not be shared.
        let (address, credentials) = shown(request)?;
        let parent = Parent::read(|name| request.metadata().get(name)?.to_str().ok());
        let asker = self.let_in(address, credentials).await?;
        Ok(Asker { parent, ..asker })
    }

    async fn let_in(
        &self,
        address: IpAddr,
        credentials: Option<Credentials>,
    ) -> Result<Asker, Status> {
        match self.gate.check(address, credentials.as_ref()).await {
            Ok(user) => Ok(Asker {
                user,
                protocol: PROTOCOL,
                parent: None,
            }),
            Err(error) => {
                self.service.metrics().denied.inc();
                tracing::warn!(protocol = PROTOCOL, %address, "denied");
                Err(error.status())
            }
        }
    }
}

fn shown<T>(request: &Request<T>) -> Result<(IpAddr, Option<Credentials>), Status> {
    let address = request
        .extensions()
        .get::<Peer>()
        .map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.ip());
    Ok((address, credentials(request.metadata())?))
}

fn credentials(metadata: &MetadataMap) -> Result<Option<Credentials>, Status> {
    let Some(header) = metadata.get("authorization") else {
        return Ok(None);
    };
    Credentials::parse(header.as_bytes())
        .map(Some)
        .map_err(|error: ServeError| error.status())
}

/// Serves connections until `stop` says so and all requests have been answered.
///
/// # Errors
/// When the transport fails as a whole.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    service: Arc<Service>,
    gate: Arc<Gate>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let limits = service.limits();
    let doorman = Doorman::new(PROTOCOL, service.metrics().clone(), limits.connections);
    let incoming =
        tokio_stream::wrappers::ReceiverStream::new(listen::connections(listener, tls, doorman))
            .map(Ok::<_, std::io::Error>);
    // Parameters come in batches, which may be larger than a statement.
    let most = limits.statement_bytes.saturating_mul(4);
    let flight = Flight {
        service: service.clone(),
        gate,
        statements: Statements::default(),
    };
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(std::time::Duration::from_secs(20)))
        .max_concurrent_streams(Some(256))
        .add_service(FlightServiceServer::new(flight).max_decoding_message_size(most))
        .serve_with_incoming_shutdown(incoming, async move {
            // Either way it is time to stop.
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
        .map_err(|error| ServeError::Bug(format!("flight sql: {error}")))
}
