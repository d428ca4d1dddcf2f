//! What a server is told: where to listen, whom to let in, how much each query may use.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pmill_engine::memory::ByteSize;

use crate::error::ServeError;
use crate::heavy::Cluster;

/// Settings of `pmill serve`.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// The warehouse's location.
    pub warehouse: String,
    /// Address of Flight SQL.
    pub flight_sql: Option<SocketAddr>,
    /// Address of the PostgreSQL protocol.
    pub postgres: Option<SocketAddr>,
    /// Address of health, metrics and the web page.
    pub health: Option<SocketAddr>,
    /// Users and their hashed secrets; without it everybody may read.
    pub users: Option<PathBuf>,
    /// Certificate chain and key (PEM).
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Clients must show a certificate of this authority (PEM).
    pub client_ca: Option<PathBuf>,
    /// Listen beyond this machine without secrets or without TLS.
    pub insecure: bool,
    /// Limits.
    pub limits: Limits,
    /// Where heavy queries run; without it, here.
    pub cluster: Option<Cluster>,
    /// URL of the collector that takes traces.
    pub otlp: Option<String>,
}

/// How much may be used.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Memory of all queries together.
    pub memory: ByteSize,
    /// Memory of one query.
    pub query_memory: ByteSize,
    /// Threads that run queries.
    pub threads: usize,
    /// From the start of a query until its last row has been taken.
    pub query_time: Duration,
    /// Rows of a result.
    pub result_rows: u64,
    /// Bytes of a result in memory.
    pub result_bytes: ByteSize,
    /// Queries of one user at a time.
    pub user_queries: usize,
    /// Connections of each protocol.
    pub connections: usize,
    /// Bytes of a statement, and of any one message of a client.
    pub statement_bytes: usize,
    /// How long running queries may take to finish once the server was told to stop.
    pub grace: Duration,
    /// Whether Parquet files on the server's disk can be named in `FROM`.
    pub files: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: ByteSize(1 << 30),
            query_memory: ByteSize(1 << 28),
            threads: 1,
            query_time: Duration::from_secs(300),
            result_rows: 1_000_000_000,
            result_bytes: ByteSize(64 << 30),
            user_queries: 64,
            connections: 1000,
            statement_bytes: 4 << 20,
            grace: Duration::from_secs(30),
            files: false,
        }
    }
}

impl ServeSettings {
    /// Refuses what would let anybody in.
    ///
    /// # Errors
    /// An address beyond this machine without secrets and TLS; nothing to listen on.
    pub fn check(&self) -> Result<(), ServeError> {
        let wrong = |text: String| Err(ServeError::Setting(text));
        if self.client_ca.is_some() && self.tls.is_none() {
            return wrong("--tls-client-ca needs --tls-cert and --tls-key".to_owned());
        }
        for (flag, address) in [
            ("--flight-sql", self.flight_sql),
            ("--postgres", self.postgres),
        ] {
            let Some(address) = address else { continue };
            if address.ip().is_loopback() || self.insecure {
                continue;
            }
            if !self.asks_who() {
                return wrong(format!(
                    "{flag} {address} can be reached from other machines, and nobody is asked who \
                     they are: give --users FILE (pmill serve hash-password makes its lines) or \
                     --tls-client-ca FILE, or listen on 127.0.0.1, or say --insecure"
                ));
            }
            if self.tls.is_none() {
                return wrong(format!(
                    "{flag} {address} can be reached from other machines, and passwords would \
                     travel unencrypted: give --tls-cert and --tls-key, or listen on 127.0.0.1, or \
                     say --insecure"
                ));
            }
        }
        if self.flight_sql.is_none() && self.postgres.is_none() && self.health.is_none() {
            return wrong(
                "nothing to serve: give --flight-sql, --postgres or --health ADDRESS".to_owned(),
            );
        }
        Ok(())
    }

    /// Whether clients must say who they are.
    #[must_use]
    pub fn asks_who(&self) -> bool {
        self.users.is_some() || self.client_ca.is_some()
    }

    /// Whether the health port also shows data: only to this machine, or to those who say who they
    /// are over TLS.
    #[must_use]
    pub fn page(&self) -> bool {
        self.insecure
            || self
                .health
                .is_some_and(|address| address.ip().is_loopback())
            || (self.asks_who() && self.tls.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(address: &str) -> ServeSettings {
        ServeSettings {
            warehouse: "wh".to_owned(),
            flight_sql: Some(address.parse().unwrap()),
            postgres: None,
            health: None,
            users: None,
            tls: None,
            client_ca: None,
            insecure: false,
            limits: Limits::default(),
            cluster: None,
            otlp: None,
        }
    }

    #[test]
    fn only_this_machine_is_served_without_secrets_and_tls() {
        assert!(settings("127.0.0.1:0").check().is_ok());
        assert!(settings("[::1]:0").check().is_ok());
        let mut open = settings("0.0.0.0:0");
        let refused = open.check().unwrap_err().to_string();
        assert!(
            refused.contains("nobody is asked who they are"),
            "{refused}"
        );
        open.users = Some("users".into());
        let refused = open.check().unwrap_err().to_string();
        assert!(refused.contains("unencrypted"), "{refused}");
        open.tls = Some(("cert".into(), "key".into()));
        assert!(open.check().is_ok());
        let mut told = settings("0.0.0.0:0");
        told.insecure = true;
        assert!(told.check().is_ok());
    }
}
