//! `pmill serve`.

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use pmill_engine::memory::ByteSize;
use pmill_serve::ServeError;
use pmill_serve::auth::{self, Secret};
use pmill_serve::server::{self, Addresses};
use pmill_serve::settings::{Limits, ServeSettings};

use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};

/// Serve a warehouse to SQL clients.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Port 0 takes a free port; --json prints the addresses once they are open.
SIGTERM stops: no query starts any more, running ones may finish within --grace, exit 0.

Examples:
  pmill serve --warehouse wh --flight-sql 127.0.0.1:8815 --postgres 127.0.0.1:5432 --health 127.0.0.1:8080
  echo -n SECRET | pmill serve hash-password ann >> users
  pmill serve --warehouse wh --postgres 0.0.0.0:5432 --users users --tls-cert cert.pem --tls-key key.pem
  psql 'host=127.0.0.1 port=5432 dbname=wh' -c 'SELECT * FROM captions.pmi ORDER BY npmi DESC LIMIT 20'"
)]
pub struct ServeArgs {
    #[command(subcommand)]
    command: Option<Command>,
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE", required = true)]
    warehouse: Option<String>,
    /// Listen for Arrow Flight SQL
    #[arg(long, value_name = "ADDRESS")]
    flight_sql: Option<SocketAddr>,
    /// Listen for the PostgreSQL protocol
    #[arg(long, value_name = "ADDRESS")]
    postgres: Option<SocketAddr>,
    /// Listen for /healthz, /readyz, /metrics and the web page
    #[arg(long, value_name = "ADDRESS")]
    health: Option<SocketAddr>,
    /// Who may in: lines made by `pmill serve hash-password`
    #[arg(long, value_name = "FILE")]
    users: Option<PathBuf>,
    /// Certificate chain (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Clients must show a certificate of this authority (PEM)
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Listen beyond this machine without users or without TLS
    #[arg(long)]
    insecure: bool,
    /// Parquet files on this machine can be named in FROM
    #[arg(long)]
    allow_files: bool,
    /// Memory of one query [default: a quarter of --memory-limit]
    #[arg(long, value_name = "SIZE")]
    query_memory: Option<ByteSize>,
    /// Seconds from a query's start until its last row was taken
    #[arg(long, value_name = "SECONDS", default_value = "300")]
    query_time: u64,
    /// Rows of a result
    #[arg(long, value_name = "N", default_value = "1000000000")]
    result_rows: u64,
    /// Bytes of a result in memory
    #[arg(long, value_name = "SIZE", default_value = "64GiB")]
    result_bytes: ByteSize,
    /// Queries of one user at a time
    #[arg(long, value_name = "N", default_value = "128")]
    user_queries: usize,
    /// Connections of each protocol
    #[arg(long, value_name = "N", default_value = "1000")]
    connections: usize,
    /// Bytes of a statement
    #[arg(long, value_name = "SIZE", default_value = "4MiB")]
    statement_bytes: ByteSize,
    /// Seconds that running queries may take to finish after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    grace: u64,
    /// Send traces of queries to this OpenTelemetry collector, by OTLP over gRPC
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp: Option<String>,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    cluster: crate::cluster::ClusterArgs,
    /// Run queries on the cluster that scan so much: bytes of the needed columns, as they are stored
    #[cfg(feature = "cluster")]
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "256MiB",
        help_heading = "Cluster"
    )]
    cluster_bytes: ByteSize,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a line of the users file from a password on stdin, or a new token
    HashPassword {
        /// User name: letters, digits or _ @ -
        name: String,
        /// Make a new token instead; it is shown once, on stderr (--json: on stdout)
        #[arg(long)]
        token: bool,
    },
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        Self::Error(error.kind(), error.chain())
    }
}

impl ServeArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        if let Some(Command::HashPassword { name, token }) = &self.command {
            return hash(name, *token, global);
        }
        let memory = global.memory_limit();
        let bytes = usize::try_from(self.statement_bytes.0).unwrap_or(usize::MAX);
        let settings = ServeSettings {
            warehouse: self.warehouse.unwrap_or_default(),
            flight_sql: self.flight_sql,
            postgres: self.postgres,
            health: self.health,
            users: self.users,
            tls: self.tls_cert.zip(self.tls_key),
            client_ca: self.tls_client_ca,
            insecure: self.insecure,
            limits: Limits {
                memory,
                query_memory: self.query_memory.unwrap_or(ByteSize(memory.0 / 4)),
                threads: global.threads(),
                query_time: Duration::from_secs(self.query_time.max(1)),
                result_rows: self.result_rows,
                result_bytes: self.result_bytes,
                user_queries: self.user_queries.max(1),
                connections: self.connections.max(1),
                statement_bytes: bytes.clamp(1 << 10, 1 << 30),
                grace: Duration::from_secs(self.grace),
                files: self.allow_files,
            },
            #[cfg(feature = "cluster")]
            cluster: self.cluster.for_queries(self.cluster_bytes.0)?,
            #[cfg(not(feature = "cluster"))]
            cluster: None,
            otlp: self.otlp.filter(|url| !url.is_empty()),
        };
        let mut told = Ok(());
        server::serve(settings, |addresses| told = tell(addresses, global))?;
        told?;
        Ok(Output::Done)
    }
}

/// Says where the server listens.
fn tell(addresses: &Addresses, global: &Global) -> Result<(), Failure> {
    use std::io::Write;
    if global.json {
        let line =
            serde_json::to_string(addresses).map_err(|error| Failure::user(error.to_string()))?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        return Ok(out.flush()?);
    }
    if global.quiet {
        return Ok(());
    }
    let mut err = std::io::stderr().lock();
    for (name, address, scheme) in [
        ("Flight SQL", addresses.flight_sql, ["grpc", "grpc+tls"]),
        (
            "PostgreSQL",
            addresses.postgres,
            ["postgresql", "postgresql"],
        ),
        (
            "web page, health and metrics",
            addresses.health,
            ["http", "https"],
        ),
    ] {
        if let Some(address) = address {
            let scheme = scheme[usize::from(addresses.tls)];
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(err, "{name}: {scheme}://{address}");
        }
    }
    Ok(())
}

fn hash(name: &str, token: bool, global: &Global) -> Outcome {
    let (line, token) = if token {
        let token = format!("{name}.{}", auth::random_secret());
        (auth::line(name, Secret::Token, &token)?, Some(token))
    } else {
        let mut secret = String::new();
        std::io::stdin()
            .read_to_string(&mut secret)
            .map_err(|error| {
                Failure::user(format!("cannot read the password from stdin: {error}"))
            })?;
        let secret = secret.strip_suffix('\n').unwrap_or(&secret);
        let secret = secret.strip_suffix('\r').unwrap_or(secret);
        (auth::line(name, Secret::Password, secret)?, None)
    };
    if global.json {
        let json = serde_json::json!({ "line": line, "token": token });
        return Ok(Output::Bytes(format!("{json}\n").into_bytes()));
    }
    if let Some(token) = token {
        eprintln!("token (not shown again): {token}");
    }
    Ok(Output::Bytes(format!("{line}\n").into_bytes()))
}
