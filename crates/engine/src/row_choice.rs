//! Chooses rows of an input file, by an SQL condition over its columns or by a list of ids.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use datafusion::common::{DFSchema, ToDFSchema};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use object_store::path::Path as ObjectPath;
use parquet::arrow::ProjectionMask;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;

use crate::error::{EngineError, FileFault, nearest_name};
use crate::input::InputFile;
use crate::row_set::RowSet;
use crate::session::{Session, query};
use crate::stored::ObjectReader;

/// Which rows of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowChoice {
    /// All of them: the file.
    All,
    /// Those for which an SQL condition over the file's columns is true.
    Where(String),
    /// Those whose value in `column`, as text, is one of `ids`.
    Ids {
        /// The column.
        column: String,
        /// The values.
        ids: HashSet<String>,
    },
}

impl RowChoice {
    /// Reads ids from a file, one a line; blanks at the ends and empty lines do not count.
    ///
    /// # Errors
    /// When it cannot be read or holds no id.
    pub fn ids(path: &Path, column: &str) -> Result<Self, EngineError> {
        let text = std::fs::read_to_string(path).map_err(|source| EngineError::Io {
            action: "read ids from",
            path: path.display().to_string(),
            source,
        })?;
        let ids: HashSet<String> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect();
        if ids.is_empty() {
            return Err(EngineError::Setting(format!(
                "`{}` holds no id; write one a line",
                path.display()
            )));
        }
        Ok(Self::Ids {
            column: column.to_owned(),
            ids,
        })
    }
}

/// The rows of `file` that `choice` names; not for [`RowChoice::All`], which needs no look.
///
/// # Errors
/// A file that cannot be read, a condition that does not parse or is none, a column that is not there.
pub fn choose(
    session: &Session,
    file: &InputFile,
    choice: &RowChoice,
) -> Result<RowSet, EngineError> {
    let fault = |reason: String| EngineError::BadFile {
        file: file.display(),
        fault: FileFault::Footer(reason),
    };
    let url = url::Url::parse(&file.uri).map_err(|error| fault(error.to_string()))?;
    let store = session
        .context()
        .runtime_env()
        .object_store_registry
        .get_store(&url)
        .map_err(|error| fault(error.to_string()))?;
    let path = ObjectPath::from_url_path(url.path()).map_err(|error| fault(error.to_string()))?;
    session.wait(async {
        let reader = ObjectReader::new(store, path, file.size);
        let builder = ParquetRecordBatchStreamBuilder::new(reader)
            .await
            .map_err(|error| fault(format!("not a readable Parquet file: {error}")))?;
        let schema = builder.schema().clone();
        let test = Test::new(session.context(), file, choice, &schema)?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), test.columns.iter().copied());
        let mut batches = builder
            .with_projection(mask)
            .build()
            .map_err(|error| fault(error.to_string()))?;
        let (mut rows, mut first) = (RowSet::default(), 0);
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|error| fault(error.to_string()))?;
            let chosen = test.apply(&batch).map_err(query)?;
            for row in 0..batch.num_rows() {
                if chosen.is_valid(row) && chosen.value(row) {
                    rows.push(first + row as u64);
                }
            }
            first += batch.num_rows() as u64;
        }
        Ok(rows)
    })
}

/// A choice, made ready for one file's columns.
struct Test<'a> {
    /// Columns of the file that are read, in their order.
    columns: Vec<usize>,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Condition(Arc<dyn PhysicalExpr>),
    Ids(&'a HashSet<String>),
}

impl<'a> Test<'a> {
    fn new(
        context: &SessionContext,
        file: &InputFile,
        choice: &'a RowChoice,
        schema: &arrow::datatypes::SchemaRef,
    ) -> Result<Self, EngineError> {
        let known = || schema.fields().iter().map(|field| field.name().as_str());
        match choice {
            RowChoice::All => Err(EngineError::Bug("all rows need no test".into())),
            RowChoice::Ids { column, ids } => {
                let index = schema.index_of(column).map_err(|_| EngineError::BadFile {
                    file: file.display(),
                    fault: FileFault::NoColumn {
                        column: column.clone(),
                        nearest: nearest_name(column, known()),
                        known: known().map(str::to_owned).collect(),
                    },
                })?;
                Ok(Self {
                    columns: vec![index],
                    kind: Kind::Ids(ids),
                })
            }
            RowChoice::Where(sql) => {
                let all = schema.clone().to_dfschema().map_err(query)?;
                let expression = parse(context, sql, &all)?;
                let mut columns: Vec<usize> = expression
                    .column_refs()
                    .into_iter()
                    .filter_map(|column| schema.index_of(column.name()).ok())
                    .collect();
                columns.sort_unstable();
                columns.dedup();
                let read = schema
                    .project(&columns)
                    .map_err(|error| EngineError::Bug(error.to_string()))?;
                let read = DFSchema::try_from(read).map_err(query)?;
                let physical = context
                    .create_physical_expr(expression, &read)
                    .map_err(query)?;
                let found = physical.data_type(read.as_arrow()).map_err(query)?;
                if found != DataType::Boolean {
                    return Err(EngineError::Setting(format!(
                        "`{sql}` is of type {found}, expected a condition that is true or false"
                    )));
                }
                Ok(Self {
                    columns,
                    kind: Kind::Condition(physical),
                })
            }
        }
    }

    fn apply(&self, batch: &RecordBatch) -> datafusion::error::Result<BooleanArray> {
        match &self.kind {
            Kind::Condition(condition) => Ok(condition
                .evaluate(batch)?
                .into_array(batch.num_rows())?
                .as_boolean()
                .clone()),
            Kind::Ids(ids) => {
                let text = arrow::compute::cast(batch.column(0), &DataType::Utf8)?;
                let text = text.as_string::<i32>();
                Ok(text
                    .iter()
                    .map(|value| Some(value.is_some_and(|value| ids.contains(value))))
                    .collect())
            }
        }
    }
}

/// Parses a condition. Column names may be written as they are in the file, without quotes, also
/// when they have capitals.
fn parse(context: &SessionContext, sql: &str, schema: &DFSchema) -> Result<Expr, EngineError> {
    let first = match context.parse_sql_expr(sql, schema) {
        Ok(expression) => return Ok(expression),
        Err(error) => error,
    };
    let mut exact = context.copied_config();
    exact.options_mut().sql_parser.enable_ident_normalization = false;
    let exact = SessionContext::new_with_config_rt(exact, context.runtime_env());
    exact.parse_sql_expr(sql, schema).map_err(|_| {
        EngineError::Setting(format!(
            "`{sql}` is not a condition over the file's columns: {}",
            first.strip_backtrace()
        ))
    })
}
