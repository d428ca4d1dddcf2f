//! What an executor counts, beside what Ballista's scheduler counts of itself.

use std::sync::LazyLock;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, TextEncoder};

/// Counters of the units in this process.
pub struct Metrics {
    /// Units that run.
    pub running: IntGauge,
    /// Units done.
    pub done: IntCounter,
    /// Units failed.
    pub failed: IntCounter,
    /// How long they took.
    pub seconds: Histogram,
}

/// The process's.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let registry = prometheus::default_registry();
    let counter = |name: &str, help: &str| {
        let counter = IntCounter::new(name, help).expect("the name is a constant");
        let _ = registry.register(Box::new(counter.clone()));
        counter
    };
    let running =
        IntGauge::new("pmill_units_running", "Units that run now").expect("the name is a constant");
    let _ = registry.register(Box::new(running.clone()));
    let buckets = vec![
        0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
    ];
    let seconds = Histogram::with_opts(
        HistogramOpts::new("pmill_unit_seconds", "Seconds of a unit").buckets(buckets),
    )
    .expect("the buckets are constants");
    let _ = registry.register(Box::new(seconds.clone()));
    Metrics {
        running,
        done: counter("pmill_units_total", "Units done"),
        failed: counter("pmill_unit_failures_total", "Units failed"),
        seconds,
    }
});

/// All metrics of the process as text.
pub fn text() -> String {
    LazyLock::force(&METRICS);
    TextEncoder::new()
        .encode_to_string(&prometheus::gather())
        .unwrap_or_default()
}
