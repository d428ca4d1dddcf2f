//! Runs the sqllogictest files in `tests/slt`.

use std::path::Path;

use datafusion::arrow::util::display::array_value_to_string;
use datafusion::prelude::{SessionConfig, SessionContext};
use sqllogictest::{DBOutput, DefaultColumnType, Runner};

struct Database(SessionContext);

#[derive(Debug)]
struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Failure {}

#[async_trait::async_trait]
impl sqllogictest::AsyncDB for Database {
    type Error = Failure;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failure> {
        let fail = |error: datafusion::error::DataFusionError| Failure(error.strip_backtrace());
        let batches = self
            .0
            .sql(sql)
            .await
            .map_err(fail)?
            .collect()
            .await
            .map_err(fail)?;
        let mut rows = Vec::new();
        let mut columns = 0;
        for batch in &batches {
            columns = batch.num_columns();
            for row in 0..batch.num_rows() {
                let value = |column: &datafusion::arrow::array::ArrayRef| {
                    if column.is_null(row) {
                        "NULL".to_owned()
                    } else {
                        array_value_to_string(column, row).unwrap()
                    }
                };
                rows.push(batch.columns().iter().map(value).collect());
            }
        }
        if batches.is_empty() {
            return Ok(DBOutput::StatementComplete(0));
        }
        Ok(DBOutput::Rows {
            types: vec![DefaultColumnType::Any; columns],
            rows,
        })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "pmill"
    }
}

#[test]
fn sql_files_give_what_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "slt"))
        .collect();
    files.sort();
    assert!(files.len() >= 4, "{files:?}");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let mut failures = Vec::new();
    for file in files {
        let mut runner = Runner::new(|| async {
            let mut session =
                SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
            pmill_stats::register_all(&mut session).unwrap();
            Ok(Database(session))
        });
        if let Err(error) = runtime.block_on(runner.run_file_async(&file)) {
            failures.push(format!("{}: {error}", file.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
