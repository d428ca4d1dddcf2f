//! `/healthz`, `/readyz`, `/metrics`: what supervisors and Prometheus ask. Nothing of a job's
//! content is told here, so it needs no secret.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::error::ClusterError;

/// Says whether the role can work.
pub type Ready = Arc<dyn Fn() -> bool + Send + Sync>;

/// Serves until the process ends; gives the address.
pub async fn serve(address: SocketAddr, ready: Ready) -> Result<SocketAddr, ClusterError> {
    let listen = |source| ClusterError::Listen {
        address: address.to_string(),
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    let readyz = move || {
        let ready = ready();
        async move {
            if ready {
                (StatusCode::OK, "ready\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
            }
        }
    };
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(|| async { crate::metrics::text() }));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "http stopped");
        }
    });
    Ok(bound)
}
