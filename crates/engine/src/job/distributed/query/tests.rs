//! Which parts of plans are found, and that their partitions together are the whole.

use datafusion::arrow::array::{Float64Array, Int32Array, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::physical_plan::{collect, displayable};
use object_store::local::LocalFileSystem;
use parquet::arrow::ArrowWriter;

use super::tables::ScanTable;
use super::*;

/// Rows of the large table.
const ROWS: i32 = 40_000;

struct Tables {
    _folder: tempfile::TempDir,
    context: SessionContext,
    state: SessionState,
}

fn write(folder: &std::path::Path, name: &str, row: &RecordBatch) -> u64 {
    let file = std::fs::File::create(folder.join(name)).unwrap();
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_max_row_group_row_count(Some(4096))
        .build();
    let mut writer = ArrowWriter::try_new(file, row.schema(), Some(properties)).unwrap();
    writer.write(row).unwrap();
    writer.close().unwrap();
    std::fs::metadata(folder.join(name)).unwrap().len()
}

/// `large(k, v, word)` in two files, and `small(k, name)` in one.
fn tables() -> Tables {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    let batch = |from: i32, to: i32| {
        let keys = Int32Array::from_iter_values((from..to).map(|row| row % 7));
        let values = Float64Array::from_iter((from..to).map(|row| {
            (row % 11 != 0).then(|| f64::from(row.wrapping_mul(2_654_435) % 1_000_003))
        }));
        let words = StringArray::from_iter_values((from..to).map(|row| format!("w{}", row % 97)));
        let columns: Vec<(_, datafusion::arrow::array::ArrayRef, bool)> = vec![
            ("k", Arc::new(keys), false),
            ("v", Arc::new(values), true),
            ("word", Arc::new(words), false),
        ];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    };
    let names = StringArray::from_iter_values((0..5).map(|key| format!("name {key}")));
    let columns: Vec<(_, datafusion::arrow::array::ArrayRef, bool)> = vec![
        ("k", Arc::new(Int32Array::from_iter_values(0..5)), false),
        ("name", Arc::new(names), false),
    ];
    let small = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let context = crate::session::context(2, crate::memory::ByteSize(256 << 20), None).unwrap();
    let table = |parts: &[(&str, RecordBatch)]| {
        let files: Vec<(String, u64)> = parts
            .iter()
            .map(|(name, batch)| ((*name).to_owned(), write(folder.path(), name, batch)))
            .collect();
        let rows = parts.iter().map(|(_, batch)| batch.num_rows() as u64).sum();
        Arc::new(ScanTable::of(
            parts[0].1.schema(),
            store.clone(),
            files,
            rows,
        ))
    };
    let large = table(&[
        ("a.parquet", batch(0, ROWS / 2)),
        ("b.parquet", batch(ROWS / 2, ROWS)),
    ]);
    let small = table(&[("c.parquet", small)]);
    context.register_table("large", large).unwrap();
    context.register_table("small", small).unwrap();
    let memory = MemTable::try_new(
        Arc::new(Schema::new(vec![Field::new("k", DataType::Int32, true)])),
        vec![vec![]],
    );
    context
        .register_table(
            "memory",
            Arc::new(memory.unwrap()) as Arc<dyn TableProvider>,
        )
        .unwrap();
    let state = context.state();
    let catalogs = state.catalog_list().clone();
    let config = planning(context.copied_config(), 4);
    let state = SessionStateBuilder::new_from_existing(state)
        .with_config(config)
        .with_catalog_list(catalogs)
        .build();
    Tables {
        _folder: folder,
        context,
        state,
    }
}

async fn plan(tables: &Tables, sql: &str) -> Arc<dyn ExecutionPlan> {
    let logical = tables.state.create_logical_plan(sql).await.unwrap();
    physical(&tables.state, &logical).await.unwrap()
}

fn first_line(plan: &Arc<dyn ExecutionPlan>) -> String {
    let text = displayable(plan.as_ref()).one_line().to_string();
    text.split(':').next().unwrap().trim().to_owned()
}

async fn roots(tables: &Tables, sql: &str) -> Vec<String> {
    let found = fragments::find(&plan(tables, sql).await);
    found.iter().map(first_line).collect()
}

#[tokio::test]
async fn fragments_are_what_lies_below_the_first_exchange() {
    let tables = tables();
    for (sql, expected) in [
        (
            "SELECT k, sum(v) FROM large GROUP BY k",
            &["AggregateExec"][..],
        ),
        ("SELECT count(v) FROM large WHERE k = 3", &["AggregateExec"]),
        ("SELECT * FROM large ORDER BY v DESC LIMIT 5", &["SortExec"]),
        ("SELECT v FROM large WHERE v > 1", &["DataSourceExec"]),
        (
            "SELECT name, sum(v) FROM large JOIN small USING (k) GROUP BY name",
            &["AggregateExec"],
        ),
        (
            "SELECT count(DISTINCT word) FROM large UNION ALL SELECT count(v) FROM large WHERE v < 9",
            &["AggregateExec", "AggregateExec"],
        ),
        // Units do not work out the average for themselves.
        (
            "SELECT count(*) FROM large WHERE v > (SELECT avg(v) FROM large)",
            &["AggregateExec", "DataSourceExec"],
        ),
        // Nothing to gain, or nothing that is a table's.
        ("SELECT * FROM large", &[]),
        ("SELECT k FROM large LIMIT 3", &[]),
        ("SELECT count(*) FROM large", &[]),
        ("SELECT sum(k) FROM memory", &[]),
        ("SELECT 1", &[]),
    ] {
        assert_eq!(roots(&tables, sql).await, expected, "{sql}");
    }
}

#[tokio::test]
async fn a_limit_on_the_small_side_is_not_taken_again_by_each_unit() {
    let tables = tables();
    let sql =
        "SELECT name, sum(v) FROM large JOIN (SELECT * FROM small LIMIT 2) USING (k) GROUP BY name";
    assert_eq!(roots(&tables, sql).await, Vec::<String>::new());
    // Rows of the small table that met nothing are known at the end only.
    let sql = "SELECT name, v FROM small LEFT JOIN large USING (k)";
    for root in roots(&tables, sql).await {
        assert_ne!(root, "HashJoinExec");
    }
}

#[tokio::test]
async fn the_partitions_of_a_fragment_are_the_whole_in_any_order() {
    let tables = tables();
    for sql in [
        "SELECT k, count(v), min(word) FROM large GROUP BY k ORDER BY k",
        "SELECT v, word FROM large WHERE word = 'w5' ORDER BY v, word LIMIT 20",
        "SELECT name, count(*) c FROM large JOIN small USING (k) WHERE v IS NOT NULL GROUP BY name ORDER BY name",
        "SELECT k, v FROM large WHERE v IS NULL AND k > 4 ORDER BY k LIMIT 7",
    ] {
        let expected = tables
            .context
            .sql(sql)
            .await
            .unwrap()
            .collect()
            .await
            .unwrap();
        let planned = plan(&tables, sql).await;
        let found = fragments::find(&planned);
        assert_eq!(found.len(), 1, "{sql}");
        let task = tables.state.task_ctx();
        let partitions = found[0].output_partitioning().partition_count();
        assert!(partitions > 1, "{sql}");
        let mut parts = Vec::new();
        // The last one first, and each from a plan of its own, as in other processes.
        for partition in (0..partitions).rev() {
            let again = plan(&tables, sql).await;
            let fragment = &fragments::find(&again)[0];
            assert_eq!(fragments::digest(fragment), fragments::digest(&found[0]));
            let one = fragments::restrict(fragment, partition).unwrap();
            assert_eq!(one.output_partitioning().partition_count(), 1);
            parts.push(collect(one, task.clone()).await.unwrap());
        }
        parts.reverse();
        let schema = found[0].schema();
        let rest = fragments::replace(&planned, &mut |_| {
            let parts: Vec<Vec<RecordBatch>> = parts.clone();
            let source = datafusion::datasource::memory::MemorySourceConfig::try_new_exec(
                &parts,
                schema.clone(),
                None,
            );
            Some(source.unwrap() as Arc<dyn ExecutionPlan>)
        });
        let answer = collect(rest.unwrap(), task).await.unwrap();
        let show = |batches: &[RecordBatch]| pretty_format_batches(batches).unwrap().to_string();
        assert_eq!(show(&answer), show(&expected), "{sql}");
    }
}

#[tokio::test]
async fn other_files_other_filters_and_other_cuts_have_other_digests() {
    let tables = tables();
    let digest =
        async |sql: &str| fragments::digest(&fragments::find(&plan(&tables, sql).await)[0]);
    let one = digest("SELECT sum(v) FROM large WHERE k = 1").await;
    assert_eq!(one, digest("SELECT sum(v) FROM large WHERE k = 1").await);
    assert_ne!(one, digest("SELECT sum(v) FROM large WHERE k = 2").await);
    assert_ne!(one, digest("SELECT max(v) FROM large WHERE k = 1").await);
    let config = planning(tables.context.copied_config(), 5);
    let finer = Tables {
        _folder: tempfile::tempdir().unwrap(),
        context: tables.context.clone(),
        state: SessionStateBuilder::new_from_existing(tables.state.clone())
            .with_config(config)
            .build(),
    };
    let sql = "SELECT sum(v) FROM large WHERE k = 1";
    let finer = fragments::digest(&fragments::find(&plan(&finer, sql).await)[0]);
    assert_ne!(one, finer);
}

#[tokio::test]
async fn the_time_and_chance_are_asked_for_in_one_place_only() {
    let tables = tables();
    for (sql, twice) in [
        ("SELECT k FROM large WHERE v > 3", true),
        ("SELECT k, now() FROM large", false),
        ("SELECT k FROM large WHERE v > random()", false),
        (
            "SELECT k FROM large WHERE k IN (SELECT k FROM small WHERE random() > 0.5)",
            false,
        ),
        ("EXPLAIN SELECT k FROM large", false),
    ] {
        let logical = tables.state.create_logical_plan(sql).await.unwrap();
        assert_eq!(can_be_planned_twice(&logical).unwrap(), twice, "{sql}");
    }
}

#[test]
fn parameters_come_back_as_they_went() {
    let values = vec![
        ScalarValue::Utf8(Some("dog".into())),
        ScalarValue::Int64(None),
        ScalarValue::Float64(Some(0.1)),
    ];
    let bytes = to_bytes(&ParamValues::from(values.clone())).unwrap();
    let ParamValues::List(back) = from_bytes(&bytes).unwrap() else {
        panic!("not a list");
    };
    let back: Vec<ScalarValue> = back.into_iter().map(|value| value.value).collect();
    assert_eq!(back, values);
    assert!(to_bytes(&ParamValues::from(vec![("a", values[0].clone())])).is_none());
}
