//! The health port: is it alive, is it ready, figures.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::auth::Gate;
use crate::error::ServeError;
use crate::listen::{self, Connection, Doorman};
use crate::service::Service;

/// What the pages are made from.
#[derive(Clone)]
pub struct Shown {
    /// Answers questions.
    pub service: Arc<Service>,
    /// Lets in.
    pub gate: Arc<Gate>,
}

/// Serves until `stop` says so.
///
/// # Errors
/// When the transport fails as a whole.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    shown: Shown,
    page: bool,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let limits = shown.service.limits();
    let doorman = Doorman::new("web", shown.service.metrics().clone(), limits.connections);
    let fail = |source| ServeError::Listen {
        address: "the health port".to_owned(),
        source,
    };
    let address = listener.local_addr().map_err(fail)?;
    let connections = listen::connections(listener, tls, doorman);
    let mut pages = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    if page {
        pages = pages.merge(crate::web::pages());
    }
    let pages = pages.with_state(shown);
    axum::serve(
        Connections {
            connections,
            address,
        },
        pages.into_make_service_with_connect_info::<Client>(),
    )
    .with_graceful_shutdown(async move {
        // Either way it is time to stop.
        let _ = stop.wait_for(|stop| *stop).await;
    })
    .await
    .map_err(fail)
}

/// Address of a client.
#[derive(Debug, Clone, Copy)]
pub struct Client(pub SocketAddr);

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Connections>>
    for Client
{
    fn connect_info(stream: axum::serve::IncomingStream<'_, Connections>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// Accepted connections, for axum.
pub struct Connections {
    connections: mpsc::Receiver<Connection>,
    address: SocketAddr,
}

impl axum::serve::Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.connections.recv().await {
            Some(connection) => {
                let peer = connection.peer();
                (connection, peer)
            }
            // Nothing comes any more: wait for the shutdown.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn ready(State(shown): State<Shown>) -> (StatusCode, String) {
    if shown.service.is_stopping() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    match shown.service.snapshot().await {
        Ok(_) => (StatusCode::OK, "ready\n".to_owned()),
        Err(error) => {
            tracing::warn!(error = error.chain(), "warehouse cannot be read");
            let text = "the warehouse cannot be read\n".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

async fn metrics(State(shown): State<Shown>) -> (StatusCode, String) {
    let service = &shown.service;
    match service.metrics().text(service.reserved_bytes()) {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.chain()),
    }
}
