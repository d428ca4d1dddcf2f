//! Rows of the `sources` table.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::Int64Type;
use datafusion::prelude::SessionContext;
use pmill_store::Job;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::input::InputFile;
use crate::read::FileTally;
use crate::row_set::RowSet;
use crate::session::query;

/// What became of an input file, or of some of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SourceStatus {
    /// It is in the counts.
    Counted,
    /// It was bad and left out; the message says why.
    Skipped,
    /// It was taken out again: the whole file, or the rows that the message names.
    Retracted,
}

impl SourceStatus {
    /// As the table spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::Skipped => "skipped",
            Self::Retracted => "retracted",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Counted, Self::Skipped, Self::Retracted]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// One row of `sources`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SourceRow {
    /// Where the file is.
    pub uri: String,
    /// Bytes.
    pub size: u64,
    /// Identity beside the size.
    pub etag: String,
    /// Rows: those that are in the counts, or that were taken out.
    pub rows: u64,
    /// Features met in them.
    pub tokens: u64,
    /// The batch that wrote this row.
    pub batch: String,
    /// What became of it.
    pub status: SourceStatus,
    /// Why it was skipped, or which rows were taken out.
    pub message: Option<String>,
}

impl SourceRow {
    /// A counted file.
    #[must_use]
    pub fn counted(file: &InputFile, tally: FileTally, batch: &str) -> Self {
        Self {
            uri: file.uri.clone(),
            size: file.size,
            etag: file.etag.clone(),
            rows: tally.rows,
            tokens: tally.tokens,
            batch: batch.to_owned(),
            status: SourceStatus::Counted,
            message: None,
        }
    }

    /// A file left out.
    #[must_use]
    pub fn skipped(file: &InputFile, message: String, batch: &str) -> Self {
        Self {
            message: Some(message),
            status: SourceStatus::Skipped,
            ..Self::counted(file, FileTally::default(), batch)
        }
    }

    /// Whether this is the row of that very file.
    #[must_use]
    pub fn is(&self, file: &InputFile) -> bool {
        self.uri == file.uri && self.size == file.size && self.etag == file.etag
    }

    /// The file as people read it.
    #[must_use]
    pub fn display(&self) -> String {
        self.file().display()
    }

    /// The file with its identity as it was counted.
    #[must_use]
    pub fn file(&self) -> InputFile {
        InputFile {
            uri: self.uri.clone(),
            size: self.size,
            etag: self.etag.clone(),
        }
    }

    /// Of a counted file some of whose rows were taken out: which.
    #[must_use]
    pub fn retracted_rows(&self) -> Option<RowSet> {
        if self.status != SourceStatus::Retracted {
            return None;
        }
        RowSet::parse(self.message.as_deref()?)
    }
}

/// Columns of `sources`, sorted by file; a file's own row comes before what was taken out of it.
///
/// # Errors
/// When a number does not fit.
pub fn columns(rows: &mut [SourceRow]) -> Result<Vec<ArrayRef>, EngineError> {
    rows.sort_by(|a, b| {
        (&a.uri, a.message.is_some(), &a.batch, &a.message).cmp(&(
            &b.uri,
            b.message.is_some(),
            &b.batch,
            &b.message,
        ))
    });
    let text = |get: fn(&SourceRow) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(get)))
    };
    let number = |get: fn(&SourceRow) -> u64| -> Result<ArrayRef, EngineError> {
        let values: Vec<i64> = rows
            .iter()
            .map(|row| i64::try_from(get(row)))
            .collect::<Result<_, _>>()
            .map_err(|_| EngineError::Bug("a number of `sources` is beyond 2^63".into()))?;
        Ok(Arc::new(Int64Array::from(values)))
    };
    Ok(vec![
        text(|row| &row.uri),
        number(|row| row.size)?,
        text(|row| &row.etag),
        number(|row| row.rows)?,
        number(|row| row.tokens)?,
        text(|row| &row.batch),
        text(|row| row.status.as_str()),
        Arc::new(StringArray::from_iter(
            rows.iter().map(|row| row.message.as_deref()),
        )),
    ])
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
            frame.select_columns(&[
                "uri", "size", "etag", "rows", "tokens", "message", "batch", "status",
            ])
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
        let (batches, statuses) = (text(6)?, text(7)?);
        let (uri, etag, message) = (
            uri.as_string::<i32>(),
            etag.as_string::<i32>(),
            message.as_string::<i32>(),
        );
        let (batches, statuses) = (batches.as_string::<i32>(), statuses.as_string::<i32>());
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
                batch: batches.value(row).to_owned(),
                status: SourceStatus::parse(statuses.value(row)).ok_or_else(|| {
                    EngineError::Query(format!(
                        "`{}.sources` has the status `{}`: it was written by another version of pmill",
                        job.name,
                        statuses.value(row)
                    ))
                })?,
                message: (!arrow::array::Array::is_null(message, row))
                    .then(|| message.value(row).to_owned()),
            });
        }
    }
    Ok(rows)
}
