//! Rows of the `sources` table.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use datafusion::prelude::SessionContext;
use pmill_store::Job;

use crate::error::EngineError;
use crate::input::InputFile;
use crate::read::FileTally;
use crate::session::query;

/// One input file of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRow {
    /// Where it is.
    pub uri: String,
    /// Bytes.
    pub size: u64,
    /// Identity beside the size.
    pub etag: String,
    /// Rows counted.
    pub rows: u64,
    /// Features met.
    pub tokens: u64,
    /// Why it was skipped; `None` when it was counted.
    pub message: Option<String>,
}

impl SourceRow {
    /// A counted file.
    #[must_use]
    pub fn counted(file: &InputFile, tally: FileTally) -> Self {
        Self {
            uri: file.uri.clone(),
            size: file.size,
            etag: file.etag.clone(),
            rows: tally.rows,
            tokens: tally.tokens,
            message: None,
        }
    }

    /// A file left out.
    #[must_use]
    pub fn skipped(file: &InputFile, message: String) -> Self {
        Self {
            message: Some(message),
            ..Self::counted(file, FileTally::default())
        }
    }

    /// `counted` or `skipped`.
    #[must_use]
    pub fn status(&self) -> &str {
        if self.message.is_some() {
            "skipped"
        } else {
            "counted"
        }
    }

    /// Whether this is the row of that very file.
    #[must_use]
    pub fn is(&self, file: &InputFile) -> bool {
        self.uri == file.uri && self.size == file.size && self.etag == file.etag
    }
}

/// Reads a job's `sources`.
///
/// # Errors
/// When the table cannot be read.
pub async fn read(context: &SessionContext, job: &Job) -> Result<Vec<SourceRow>, EngineError> {
    let table = job.sources.provider().await?;
    let batches = context
        .read_table(table)
        .and_then(|frame| {
            frame.select_columns(&["uri", "size", "etag", "rows", "tokens", "message"])
        })
        .map_err(query)?
        .collect()
        .await
        .map_err(query)?;
    let mut rows = Vec::new();
    for batch in batches {
        let text = |index: usize| {
            arrow::compute::cast(batch.column(index), &arrow::datatypes::DataType::Utf8)
                .map_err(|error| EngineError::Bug(error.to_string()))
        };
        let (uri, etag, message) = (text(0)?, text(2)?, text(5)?);
        let (uri, etag, message) = (
            uri.as_string::<i32>(),
            etag.as_string::<i32>(),
            message.as_string::<i32>(),
        );
        let number = |index: usize, row: usize| {
            u64::try_from(batch.column(index).as_primitive::<Int64Type>().value(row)).unwrap_or(0)
        };
        for row in 0..batch.num_rows() {
            rows.push(SourceRow {
                uri: uri.value(row).to_owned(),
                size: number(1, row),
                etag: etag.value(row).to_owned(),
                rows: number(3, row),
                tokens: number(4, row),
                message: (!arrow::array::Array::is_null(message, row))
                    .then(|| message.value(row).to_owned()),
            });
        }
    }
    Ok(rows)
}
