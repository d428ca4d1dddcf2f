//! How fast the functions are beside DataFusion's own arithmetic and aggregates on the same columns, in one run.
//!
//! `cargo run --release -p pmill-stats --example rate -- [ROWS]` (10 million by default; 48 bytes a row in memory).
//! One partition; CPU seconds (user) of each query, the best of three; a fixed seed makes the columns.
#![expect(clippy::print_stdout, reason = "the result belongs on stdout")]

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use datafusion::datasource::MemTable;
use datafusion::error::Result;
use datafusion::prelude::{SessionConfig, SessionContext};

/// A measure and the same formula in DataFusion's arithmetic.
const SCORES: [(&str, &str); 8] = [
    ("pmi(n_xy, n_x, n_y, n)", "ln(n_xy * n / (n_x * n_y))"),
    (
        "npmi(n_xy, n_x, n_y, n)",
        "ln(n_xy * n / (n_x * n_y)) / -ln(n_xy / n)",
    ),
    (
        "ppmi(n_xy, n_x, n_y, n)",
        "greatest(0.0, ln(n_xy * n / (n_x * n_y)))",
    ),
    (
        "lmi(n_xy, n_x, n_y, n)",
        "n_xy * ln(n_xy * n / (n_x * n_y))",
    ),
    (
        "log_dice(n_xy, n_x, n_y, n)",
        "14.0 + log2(2.0 * n_xy / (n_x + n_y))",
    ),
    (
        "t_score(n_xy, n_x, n_y, n)",
        "(n_xy - n_x * n_y / n) / sqrt(n_xy)",
    ),
    (
        "chi_squared(n_xy, n_x, n_y, n)",
        "n * power(n_xy * n - n_x * n_y, 2.0) / (n_x * n_y * (n - n_x) * (n - n_y))",
    ),
    (
        "log_likelihood_ratio(n_xy, n_x, n_y, n)",
        "2.0 * (n_xy * ln(n_xy * n / (n_x * n_y)) + (n_x - n_xy) * ln((n_x - n_xy) * n / (n_x * (n - n_y))) \
         + (n_y - n_xy) * ln((n_y - n_xy) * n / ((n - n_x) * n_y)) \
         + (n - n_x - n_y + n_xy) * ln((n - n_x - n_y + n_xy) * n / ((n - n_x) * (n - n_y))))",
    ),
];

const AGGREGATES: [&str; 12] = [
    "entropy(c)",
    "entropy(n_x)",
    "kl_divergence(n_x, n_y)",
    "js_divergence(c, c + 1)",
    "cauchy_schwarz_divergence(n_x, n_y)",
    "pearson(n_x, n_y)",
    "mutual_information(x, y)",
    "mutual_information(x, y, c)",
    "mutual_information(c, y)",
    "conditional_entropy(x, y)",
    "conditional_mutual_information(x, y, z)",
    "cramers_v(x, y)",
];

fn table(rows: usize) -> Result<MemTable> {
    const BATCH: usize = 8192;
    let mut state = 42_u64;
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let n = 1e7;
    let mut batches = Vec::new();
    let mut left = rows;
    while left > 0 {
        let size = BATCH.min(left);
        left -= size;
        let mut floats: [Vec<f64>; 4] = Default::default();
        let mut integers: [Vec<i64>; 4] = Default::default();
        for _ in 0..size {
            // Margins over four decades; pairs around chance, up to ten times as often.
            let margin = |bits: u64| 10_f64.powf(2.0 + 4.0 * (bits >> 11) as f64 / 9e15).floor();
            let (n_x, n_y) = (margin(next()), margin(next()));
            let chance = n_x * n_y / n;
            let n_xy = (chance * (next() >> 54) as f64 / 100.0)
                .floor()
                .clamp(1.0, n_x.min(n_y) - 1.0);
            floats[0].push(n_xy);
            floats[1].push(n_x);
            floats[2].push(n_y);
            floats[3].push(n);
            let bits = next();
            let x = (bits & 0xffff) % 100;
            integers[0].push(x as i64);
            integers[1].push((((bits >> 16) & 0xffff) % 50 + x / 10) as i64);
            integers[2].push(((bits >> 32) & 3) as i64);
            // Counts with a long tail.
            integers[3].push((1e5 / (1.0 + ((bits >> 34) & 0xffff) as f64)) as i64 + 1);
        }
        let names = ["n_xy", "n_x", "n_y", "n", "x", "y", "z", "c"];
        let columns = floats
            .into_iter()
            .map(|column| Arc::new(Float64Array::from(column)) as ArrayRef)
            .chain(
                integers
                    .into_iter()
                    .map(|column| Arc::new(Int64Array::from(column)) as ArrayRef),
            );
        batches.push(RecordBatch::try_from_iter(names.into_iter().zip(columns))?);
    }
    MemTable::try_new(batches[0].schema(), vec![batches])
}

/// CPU seconds of this process in user mode so far.
fn cpu_seconds() -> f64 {
    // Fields after the command's closing bracket; utime is the twelfth, in hundredths of a second.
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default();
    fields
        .split_whitespace()
        .nth(11)
        .and_then(|ticks| ticks.parse::<f64>().ok())
        .unwrap_or(0.0)
        / 100.0
}

async fn seconds(session: &SessionContext, columns: &str) -> Result<f64> {
    let sql = format!("SELECT {columns} FROM t");
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = cpu_seconds();
        session.sql(&sql).await?.collect().await?;
        best = best.min(cpu_seconds() - start);
    }
    Ok(best)
}

#[tokio::main]
async fn main() -> Result<()> {
    let rows = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(10_000_000);
    let mut session =
        SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    pmill_stats::register_all(&mut session)?;
    session.register_table("t", Arc::new(table(rows)?))?;
    println!("{rows} rows; CPU seconds; speed = time of the other side / time of pmill's");

    let (mut own, mut arithmetic) = (0.0, 0.0);
    for (function, formula) in SCORES {
        let (a, b) = (
            seconds(&session, &format!("sum({function})")).await?,
            seconds(&session, &format!("sum({formula})")).await?,
        );
        println!(
            "{function:45} {a:7.2} arithmetic {b:7.2} speed {:5.2}",
            b / a
        );
        own += a;
        arithmetic += b;
    }
    println!(
        "{:45} {own:7.2} arithmetic {arithmetic:7.2} speed {:5.2}",
        "eight queries",
        arithmetic / own
    );
    let all = |side: fn(&(&'static str, &'static str)) -> &'static str| {
        let sums: Vec<String> = SCORES
            .iter()
            .map(|pair| format!("sum({})", side(pair)))
            .collect();
        sums.join(", ")
    };
    let a = seconds(&session, &all(|pair| pair.0)).await?;
    let b = seconds(&session, &all(|pair| pair.1)).await?;
    println!(
        "{:45} {a:7.2} arithmetic {b:7.2} speed {:5.2}",
        "one query (the engine shares its logarithms)",
        b / a
    );

    let variance = seconds(&session, "var_pop(n_x)").await?;
    let correlation = seconds(&session, "corr(n_x, n_y)").await?;
    println!("var_pop(n_x) {variance:.2}, corr(n_x, n_y) {correlation:.2}");
    for aggregate in AGGREGATES {
        let a = seconds(&session, aggregate).await?;
        println!(
            "{aggregate:45} {a:7.2} = {:5.2} x var_pop, {:5.2} x corr",
            a / variance,
            a / correlation
        );
    }
    Ok(())
}
