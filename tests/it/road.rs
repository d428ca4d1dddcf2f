//! The main road: corpus, count, score, SQL.

use std::collections::BTreeSet;

use serde_json::json;

use crate::pmill::Workplace;

const COUNT: &str = "count --warehouse wh --name captions --input corpus --text TEXT";

#[test]
fn planted_pairs_come_out_on_top() {
    let here = Workplace::new();
    let made = here.json("sample-corpus --output corpus --rows 8000 --files 2 --words 1000");
    let counted = here.json(COUNT);
    assert_eq!(
        (&counted["status"], &counted["rows"]),
        (&json!("counted"), &json!(8000))
    );
    assert_eq!(counted["tokens"], made["tokens"]);
    let scored = here.json("score --warehouse wh --name captions --min-pair-count 3");
    assert_eq!(scored["measures"], json!(["pmi", "npmi", "ppmi"]));

    let pair = |a: &serde_json::Value, b: &serde_json::Value| -> BTreeSet<String> {
        [a, b].map(|word| word.as_str().unwrap().to_owned()).into()
    };
    let planted: BTreeSet<_> = made["planted"]
        .as_array()
        .unwrap()
        .iter()
        .map(|words| pair(&words[0], &words[1]))
        .collect();
    let top: BTreeSet<_> = here
        .sql("SELECT \"left\", \"right\" FROM captions.pmi ORDER BY npmi DESC LIMIT 10")
        .iter()
        .map(|row| pair(&row["left"], &row["right"]))
        .collect();
    assert_eq!(top, planted);
}

#[test]
fn the_same_command_twice_changes_nothing() {
    let here = Workplace::with_corpus(200);
    let first = here.json(COUNT);
    let again = here.json(COUNT);
    assert_eq!(again["status"], "unchanged");
    for field in ["version", "rows", "tokens", "types", "terms", "pairs"] {
        assert_eq!(first[field], again[field], "{field}");
    }
    here.ok("score --warehouse wh --name captions");
    assert_eq!(
        here.json("score --warehouse wh --name captions")["status"],
        "unchanged"
    );
}

#[test]
fn files_and_threads_change_no_byte() {
    let here = Workplace::with_corpus(600);
    here.ok(COUNT);
    let other = "--warehouse wh --text TEXT --threads";
    here.ok(&format!(
        "count --name one {other} 1 --input corpus/part-00000.parquet corpus/part-00001.parquet"
    ));
    here.copy("corpus/part-00001.parquet", "moved/a.parquet");
    here.copy("corpus/part-00000.parquet", "moved/year=2024/b.parquet");
    here.ok(&format!("count --name moved {other} 5 --input moved"));
    for table in ["vocab", "pairs"] {
        let expected = here.table_bytes("captions", table);
        assert_eq!(here.table_bytes("one", table), expected, "{table}");
        assert_eq!(here.table_bytes("moved", table), expected, "{table}");
    }
}

#[test]
fn windows_are_counted_in_whole_units() {
    let here = Workplace::with_corpus(300);
    here.ok("count --warehouse wh --name glove --input corpus --text TEXT --context window --window 4 --weight harmonic");
    here.ok("score --warehouse wh --name glove");
    // Over the stored half, each event counts lcm(1, 2, 3, 4) = 12, 6, 4 or 3 units.
    let units = here.sql("SELECT sum(count) AS units FROM glove.pairs")[0]["units"]
        .as_u64()
        .unwrap();
    let rows = here.sql("SELECT \"TEXT\" AS text FROM 'corpus/part-00000.parquet' UNION ALL SELECT \"TEXT\" FROM 'corpus/part-00001.parquet'");
    let expected: u64 = rows
        .iter()
        .map(|row| row["text"].as_str().unwrap().split(' ').count() as u64)
        .map(|words| {
            (1..=4.min(words - 1))
                .map(|distance| (words - distance) * 12 / distance)
                .sum::<u64>()
        })
        .sum();
    assert_eq!(units, expected);
    // The full matrix holds every event twice.
    let n = here.sql("SELECT max(n) AS n FROM glove.pmi")[0]["n"]
        .as_f64()
        .unwrap();
    assert!((n - expected as f64 / 6.0).abs() < 1e-6, "{n}");
}

#[test]
fn a_dry_run_writes_nothing() {
    let here = Workplace::with_corpus(50);
    let plan = here.json(&format!("{COUNT} --dry-run"));
    assert_eq!((&plan["rows"], &plan["units"]), (&json!(50), &json!(1)));
    assert!(!here.path("wh").exists());
}

#[test]
fn a_bad_file_is_named_or_skipped() {
    let here = Workplace::with_corpus(100);
    let whole = std::fs::read(here.path("corpus/part-00001.parquet")).unwrap();
    std::fs::write(
        here.path("corpus/part-00001.parquet"),
        &whole[..whole.len() / 2],
    )
    .unwrap();
    let message = here.refused(COUNT);
    assert!(
        message.starts_with("pmill: cannot read `[here]/corpus/part-00001.parquet`: "),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(!here.path("wh").exists());

    let counted = here.json(&format!("{COUNT} --on-bad-file skip"));
    assert_eq!(
        (&counted["files"], &counted["skipped"], &counted["rows"]),
        (&json!(1), &json!(1), &json!(50))
    );
    let sources = here.sql("SELECT status FROM captions.sources ORDER BY uri");
    assert_eq!(
        sources,
        [json!({"status": "counted"}), json!({"status": "skipped"})]
    );
}

#[test]
fn a_pipeline_file_does_it_all() {
    let here = Workplace::with_corpus(2000);
    std::fs::write(
        here.path("p.toml"),
        "name = 'all'\nwarehouse = 'wh'\n[input]\npaths = ['corpus']\ntext = 'TEXT'\n[vocabulary]\nsize = 100\n\
         [score]\nmeasures = ['npmi']\n[[export]]\nsql = 'SELECT * FROM \"all\".pmi LIMIT 3'\noutput = 'top.csv'\nformat = 'csv'\n",
    )
    .unwrap();
    let summary = here.json("run p.toml --set vocabulary.size=50");
    assert_eq!(
        (&summary["count"]["terms"], &summary["score"]["status"]),
        (&json!(50), &json!("counted"))
    );
    let csv = std::fs::read_to_string(here.path("top.csv")).unwrap();
    assert_eq!(csv.lines().next(), Some("left,right,n_xy,n_x,n_y,n,npmi"));
    assert_eq!(csv.lines().count(), 4);
}
