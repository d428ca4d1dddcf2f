//! Figures for Prometheus. Labels come from short fixed lists: never a user, a term or a path.

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::error::ServeError;

/// All figures of a server.
pub struct Metrics {
    registry: Registry,
    /// Queries by protocol and outcome.
    pub queries: IntCounterVec,
    /// Seconds from statement to last row, by protocol.
    pub seconds: HistogramVec,
    /// Rows sent.
    pub rows: IntCounter,
    /// Queries running.
    pub running: IntGauge,
    /// Connections by protocol.
    pub connections: IntGaugeVec,
    /// Connections refused because there were too many, by protocol.
    pub refused: IntCounterVec,
    /// Wrong secrets.
    pub denied: IntCounter,
    /// Memory that queries have reserved.
    reserved: IntGauge,
    /// Memory of the process.
    resident: IntGauge,
}

impl Metrics {
    /// New figures, all zero.
    ///
    /// # Errors
    /// When two have the same name.
    pub fn new() -> Result<Self, ServeError> {
        let bug = |error: prometheus::Error| ServeError::Bug(error.to_string());
        let registry = Registry::new();
        macro_rules! add {
            ($metric:expr) => {{
                let metric = $metric.map_err(bug)?;
                registry.register(Box::new(metric.clone())).map_err(bug)?;
                metric
            }};
        }
        let queries = add!(IntCounterVec::new(
            Opts::new("pmill_queries_total", "Queries finished"),
            &["protocol", "outcome"]
        ));
        let seconds = add!(HistogramVec::new(
            HistogramOpts::new(
                "pmill_query_seconds",
                "From the statement to the last row taken"
            )
            .buckets(vec![
                0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0
            ]),
            &["protocol"]
        ));
        let rows = add!(IntCounter::new(
            "pmill_rows_total",
            "Rows handed to clients"
        ));
        let running = add!(IntGauge::new("pmill_queries_running", "Queries running"));
        let connections = add!(IntGaugeVec::new(
            Opts::new("pmill_connections", "Connections open"),
            &["protocol"]
        ));
        let refused = add!(IntCounterVec::new(
            Opts::new(
                "pmill_connections_refused_total",
                "Connections beyond the limit"
            ),
            &["protocol"]
        ));
        let denied = add!(IntCounter::new(
            "pmill_denied_total",
            "Wrong names, passwords and tokens"
        ));
        let reserved = add!(IntGauge::new(
            "pmill_memory_reserved_bytes",
            "Memory that running queries have reserved"
        ));
        let resident = add!(IntGauge::new(
            "pmill_resident_bytes",
            "Memory of the process in RAM"
        ));
        Ok(Self {
            registry,
            queries,
            seconds,
            rows,
            running,
            connections,
            refused,
            denied,
            reserved,
            resident,
        })
    }

    /// The figures as text.
    ///
    /// # Errors
    /// When they cannot be encoded.
    pub fn text(&self, reserved_bytes: usize) -> Result<String, ServeError> {
        self.reserved
            .set(i64::try_from(reserved_bytes).unwrap_or(i64::MAX));
        if let Some(bytes) = resident_bytes() {
            self.resident.set(bytes);
        }
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .map_err(|error| ServeError::Bug(error.to_string()))?;
        String::from_utf8(text).map_err(|error| ServeError::Bug(error.to_string()))
    }
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
