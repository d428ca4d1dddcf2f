//! Any split of the rows gives the same bits: one partition, eight, and rows dealt out at random.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, Float64Array, Int64Array, ListArray, RecordBatch, StringArray,
};
use datafusion::arrow::datatypes::Float64Type;
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};

const ROWS: usize = 20_000;

fn batch() -> RecordBatch {
    let mut state = 12_345_u64;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut column =
        |modulus: u64| -> Vec<i64> { (0..ROWS).map(|_| (next() % modulus) as i64).collect() };
    let x = column(40);
    let y: Vec<i64> = column(7)
        .iter()
        .zip(&x)
        .map(|(y, x)| (y + x) % 11)
        .collect();
    let z = column(3);
    let count = column(3000);
    let noise = column(1_000_003);
    let value: Vec<f64> = noise
        .iter()
        .zip(&x)
        .map(|(n, x)| *n as f64 / 1e7 + *x as f64 * 1e-3 + 1e6)
        .collect();
    let other: Vec<f64> = column(1_000_003)
        .iter()
        .zip(&x)
        .map(|(n, x)| *n as f64 / 3e6 - *x as f64)
        .collect();
    let weight: Vec<f64> = count.iter().map(|count| *count as f64 / 2520.0).collect();
    let text: Vec<String> = y.iter().map(|y| format!("label-{y}")).collect();
    let vectors = noise.iter().map(|n| {
        let p = *n as f64 / 1_000_003.0;
        Some(vec![Some(p / 2.0), Some(p / 2.0), Some(1.0 - p)])
    });
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("x", Arc::new(Int64Array::from(x))),
        ("y", Arc::new(StringArray::from(text))),
        ("z", Arc::new(Int64Array::from(z))),
        ("c", Arc::new(Int64Array::from(count))),
        ("w", Arc::new(Float64Array::from(weight))),
        ("v", Arc::new(Float64Array::from(value))),
        ("u", Arc::new(Float64Array::from(other))),
        (
            "p",
            Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(vectors)),
        ),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// The table in `partitions` parts, each a few batches of odd sizes.
async fn session(partitions: usize, batch_rows: usize) -> SessionContext {
    let batch = batch();
    let mut parts: Vec<Vec<RecordBatch>> = vec![Vec::new(); partitions];
    let mut start = 0;
    let mut place = 0;
    while start < ROWS {
        let rows = batch_rows.min(ROWS - start);
        parts[(place * 7 + 3) % partitions].push(batch.slice(start, rows));
        start += rows;
        place += 1;
    }
    let mut session =
        SessionContext::new_with_config(SessionConfig::new().with_target_partitions(partitions));
    pmill_stats::register_all(&mut session).unwrap();
    let table = MemTable::try_new(batch.schema(), parts).unwrap();
    session.register_table("t", Arc::new(table)).unwrap();
    session
}

async fn answers(session: &SessionContext, sql: &str) -> Vec<String> {
    let mut found = Vec::new();
    for batch in session.sql(sql).await.unwrap().collect().await.unwrap() {
        for row in 0..batch.num_rows() {
            let values: Vec<String> = batch
                .columns()
                .iter()
                .map(|column| array_value_to_string(column, row).unwrap())
                .collect();
            found.push(values.join(" | "));
        }
    }
    found
}

const EXACT: &str = "entropy(c), entropy(w), joint_entropy(x, y, c), conditional_entropy(x, y, w), \
     mutual_information(x, y), mutual_information(x, y, w, 2, 'miller-madow'), \
     normalized_mutual_information(x, y, c), variation_of_information(y, x), \
     conditional_mutual_information(x, y, z, c), cramers_v(x, y), kl_divergence(c + 1, w + 1), \
     js_divergence(c, w), cauchy_schwarz_divergence(c, v), class_conditional_mi(z, p), pearson(v, u), \
     spearman(v, u), point_biserial(z = 1, u), bootstrap_ci(v, u, 'binned_pearson', 0.9, 20, 5), \
     ntile_summary(x, u, 7), equal_count_edges(p, 9), top_k(c, y, 12), \
     exact_quantile(v, 0.3), unit_quantile(p, 0.9), unit_top_k(p, c, 4)";

#[tokio::test]
async fn exact_aggregates_have_the_same_bits_in_any_split() {
    for tail in ["FROM t", "FROM t GROUP BY z ORDER BY z"] {
        let sql = format!("SELECT {EXACT} {tail}");
        let one = answers(&session(1, 8192).await, &sql).await;
        assert!(!one.is_empty() && !one[0].contains("| |"), "{one:?}");
        for (partitions, batch_rows) in [(8, 997), (3, 64), (8, 4096)] {
            assert_eq!(
                one,
                answers(&session(partitions, batch_rows).await, &sql).await
            );
        }
    }
}

#[tokio::test]
async fn moments_agree_to_1e_12_in_any_split() {
    let sql =
        "SELECT e['value'] FROM (SELECT unnest(matrix_entries(correlation_matrix(p))) e FROM t)";
    let read =
        |rows: Vec<String>| -> Vec<f64> { rows.iter().map(|row| row.parse().unwrap()).collect() };
    let one = read(answers(&session(1, 8192).await, sql).await);
    let many = read(answers(&session(8, 997).await, sql).await);
    assert_eq!(one.len(), 9);
    for (one, many) in one.iter().zip(&many) {
        assert!((one - many).abs() < 1e-12);
    }
}

#[tokio::test]
async fn sums_agree_with_the_engines_own_functions() {
    let session = session(4, 1000).await;
    let rows = answers(
        &session,
        "SELECT pearson(v, u), corr(v, u), moments(p)['mean'][3], avg(p[3]) FROM t",
    )
    .await;
    let values: Vec<f64> = rows[0]
        .split(" | ")
        .map(|value| value.parse().unwrap())
        .collect();
    assert!((values[0] - values[1]).abs() < 1e-9, "{values:?}");
    assert!((values[2] - values[3]).abs() < 1e-12, "{values:?}");
}
