//! The whole server: listens, lets in, stops.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::auth::{Gate, Users};
use crate::error::ServeError;
use crate::health::{self, Shown};
use crate::service::Service;
use crate::settings::ServeSettings;
use crate::traces::Traces;
use crate::{flight, listen, postgres, tls};

/// Where a server listens; field names are a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Addresses {
    /// Flight SQL.
    pub flight_sql: Option<SocketAddr>,
    /// PostgreSQL.
    pub postgres: Option<SocketAddr>,
    /// Health, metrics, web page.
    pub health: Option<SocketAddr>,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Whether clients must say who they are.
    pub authentication: bool,
}

/// Serves until it is told to stop. Blocking: call it from a thread outside any runtime. `listening`
/// is told the addresses once every port is open.
///
/// # Errors
/// Wrong settings, a port that is taken, a warehouse that cannot be opened.
pub fn serve(
    settings: ServeSettings,
    listening: impl FnOnce(&Addresses),
) -> Result<(), ServeError> {
    settings.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.limits.threads.clamp(2, 8))
        .thread_name("network")
        .enable_all()
        .build()
        .map_err(|error| ServeError::Bug(format!("threads do not start: {error}")))?;
    let result = runtime.block_on(run(settings, listening));
    runtime.shutdown_background();
    result
}

async fn run(
    settings: ServeSettings,
    listening: impl FnOnce(&Addresses),
) -> Result<(), ServeError> {
    let users = settings.users.as_deref().map(Users::read).transpose()?;
    let gate = Arc::new(Gate::new(users)?);
    let service = Service::open(
        &settings.warehouse,
        settings.limits.clone(),
        settings.cluster.clone(),
        match &settings.otlp {
            None => Traces::default(),
            Some(collector) => Traces::open(collector)?,
        },
    )?;
    // An error in the warehouse's location is told before a port is opened.
    let snapshot = service.snapshot().await?;
    let (stop, stopped) = watch::channel(false);
    let mut servers: JoinSet<Result<(), ServeError>> = JoinSet::new();
    let mut addresses = Addresses {
        flight_sql: None,
        postgres: None,
        health: None,
        tls: settings.tls.is_some(),
        authentication: settings.asks_who(),
    };
    let mut listeners = (None, None, None);
    if let Some(address) = settings.flight_sql {
        let (listener, bound) = listen::bind(address).await?;
        addresses.flight_sql = Some(bound);
        listeners.0 = Some((listener, tls::config(&settings, &["h2"])?));
    }
    if let Some(address) = settings.postgres {
        let (listener, bound) = listen::bind(address).await?;
        addresses.postgres = Some(bound);
        listeners.1 = Some((listener, tls::config(&settings, &["postgresql"])?));
    }
    if let Some(address) = settings.health {
        let (listener, bound) = listen::bind(address).await?;
        addresses.health = Some(bound);
        listeners.2 = Some((listener, tls::config(&settings, &["http/1.1"])?));
    }
    if let Some((listener, tls)) = listeners.0 {
        let (service, gate, stopped) = (service.clone(), gate.clone(), stopped.clone());
        servers.spawn(flight::serve(listener, tls, service, gate, stopped));
    }
    if let Some((listener, tls)) = listeners.1 {
        let (service, gate, stopped) = (service.clone(), gate.clone(), stopped.clone());
        servers.spawn(async move {
            postgres::serve(listener, tls, service, gate, stopped).await;
            Ok(())
        });
    }
    if let Some((listener, tls)) = listeners.2 {
        let shown = Shown {
            service: service.clone(),
            gate: gate.clone(),
        };
        servers.spawn(health::serve(
            listener,
            tls,
            shown,
            settings.page(),
            stopped.clone(),
        ));
    }
    let mut signals = Signals::new()?;
    tracing::info!(
        flight_sql = addresses.flight_sql.map(|address| address.to_string()),
        postgres = addresses.postgres.map(|address| address.to_string()),
        health = addresses.health.map(|address| address.to_string()),
        tls = addresses.tls,
        authentication = addresses.authentication,
        "listening"
    );
    listening(&addresses);
    let warming = {
        let service = service.clone();
        service
            .clone()
            .compute()
            .spawn(async move { service.warm(&snapshot).await })
    };
    let outcome = tokio::select! {
        () = signals.next() => Ok(()),
        // A server that ends on its own has failed.
        Some(ended) = servers.join_next() => ended
            .unwrap_or_else(|error| Err(ServeError::Bug(error.to_string())))
            .and(Err(ServeError::Bug("a server ended on its own".to_owned()))),
    };
    service.stop();
    tracing::info!(queries = service.running(), "stopping");
    // Receivers live in the servers.
    let _ = stop.send(true);
    let finishing = async {
        // Opening a table is not torn apart: its reader has a thread that waits for it.
        let _ = warming.await;
        service.idle().await;
        while servers.join_next().await.is_some() {}
    };
    tokio::select! {
        () = finishing => {}
        () = tokio::time::sleep(settings.limits.grace) => {
            tracing::warn!(queries = service.running(), "time to finish is over");
        }
        // Told twice: now.
        () = signals.next() => {}
    }
    servers.abort_all();
    // It waits for its own thread, which this runtime serves.
    let _ = tokio::task::spawn_blocking(move || service.traces().close()).await;
    tracing::info!("stopped");
    outcome
}

/// SIGTERM and Ctrl-C.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, ServeError> {
        Ok(Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
                .map_err(|error| ServeError::Bug(format!("no signals: {error}")))?,
        })
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        #[cfg(not(unix))]
        {
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}
