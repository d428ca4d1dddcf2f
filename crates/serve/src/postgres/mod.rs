//! The PostgreSQL protocol: messages by `pgwire`, dialect, types and `pg_catalog` by
//! `datafusion-postgres`, queries by our own [`crate::service::Service`].

pub mod catalog;
mod handlers;
pub(crate) mod rewrite;
mod savepoints;
mod socket;
mod startup;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use datafusion_postgres::pgwire::api::cancel::CancelHandler;
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError};
use datafusion_postgres::pgwire::messages::cancel::CancelRequest;
use datafusion_postgres::pgwire::messages::startup::SecretKey;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::auth::Gate;
use crate::error::ServeError;
use crate::listen::{self, Doorman};
use crate::service::Service;

use handlers::Handlers;
use startup::Startup;

/// Name of the protocol in logs and figures.
pub const PROTOCOL: &str = "postgres";
/// How long a client may take to say who it is.
const STARTUP: Duration = Duration::from_secs(20);

/// Serves connections until `stop` says so and all of them are closed.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    service: Arc<Service>,
    gate: Arc<Gate>,
    mut stop: watch::Receiver<bool>,
) {
    let doorman = Doorman::new(
        PROTOCOL,
        service.metrics().clone(),
        service.limits().connections,
    );
    let shared = Arc::new(Shared {
        handlers: Arc::new(Handlers::new(service.clone())),
        startup: Arc::new(Startup::new(gate, service.clone())),
        acceptor: tls.map(tokio_rustls::TlsAcceptor::from),
        most_bytes: service.limits().statement_bytes,
    });
    let mut open = JoinSet::new();
    loop {
        let stopped = async {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let (stream, _) = tokio::select! {
            accepted = listen::accept(&listener) => accepted,
            () = stopped => break,
            // Finished connections are forgotten.
            Some(_) = open.join_next(), if !open.is_empty() => continue,
        };
        let Some(place) = doorman.place() else {
            continue;
        };
        let (shared, stop) = (shared.clone(), stop.clone());
        open.spawn(async move {
            let _place = place;
            // The protocol library panics on some frames that are not of the protocol.
            match pmill_engine::unwind::guard(socket::serve(stream, &shared, stop)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "connection ended"),
                Err(panic) => tracing::warn!(%panic, "connection ended by a malformed message"),
            }
        });
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

struct Shared {
    handlers: Arc<Handlers>,
    startup: Arc<Startup>,
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    most_bytes: usize,
}

/// The running query of one connection, for cancel requests.
#[derive(Default)]
pub(crate) struct Running(Mutex<Option<AbortHandle>>);

impl Running {
    pub(crate) fn set(&self, query: AbortHandle) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(query);
    }
}

/// Who may cancel what: process number → its key and its query.
#[derive(Default)]
pub(crate) struct Cancels(Mutex<HashMap<i32, (SecretKey, Arc<Running>)>>);

impl Cancels {
    fn add(self: &Arc<Self>, number: i32, key: SecretKey) -> (Arc<Running>, Registered) {
        let running = Arc::new(Running::default());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(number, (key, running.clone()));
        let registered = Registered {
            all: self.clone(),
            number,
        };
        (running, registered)
    }
}

/// Takes a connection out of the list when it ends.
pub(crate) struct Registered {
    all: Arc<Cancels>,
    number: i32,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.number);
    }
}

#[async_trait]
impl CancelHandler for Cancels {
    async fn on_cancel_request(&self, request: CancelRequest) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, running)) = all.get(&request.pid)
            // The same key reads as a number or as bytes, by the version of the protocol.
            && key.eq_value(&request.secret_key)
            && let Some(query) = running
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
        {
            query.abort();
        }
    }
}

/// An error as PostgreSQL's clients read it.
fn pg_error(error: &ServeError) -> PgWireError {
    let severity = match error {
        ServeError::Denied | ServeError::Throttled { .. } | ServeError::Stopping => "FATAL",
        _ => "ERROR",
    };
    PgWireError::UserError(Box::new(ErrorInfo::new(
        severity.to_owned(),
        error.sql_state().to_owned(),
        error.chain(),
    )))
}
