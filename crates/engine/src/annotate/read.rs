//! The rows of one input file, batch after batch, row group after row group.

use std::fs::File;

use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};

use crate::error::{EngineError, FileFault};
use crate::scan::catch;

/// Bytes of a batch, about.
const BATCH_BYTES: u64 = 8 << 20;

/// Rows of a batch, at most.
const BATCH_ROWS: u64 = 8192;

/// Bytes of the numbers of one row, about.
const NUMBERS_BYTES: u64 = 256;

/// Some rows of one row group.
pub(super) struct Batch {
    pub(super) row_group: usize,
    pub(super) rows: RecordBatch,
    /// About what they take in the file, and in memory.
    pub(super) compressed: u64,
    bytes: u64,
}

/// A file that is read.
pub(super) struct Batches<'a> {
    /// As messages name it.
    name: String,
    file: &'a File,
    metadata: &'a ArrowReaderMetadata,
    /// Columns that are read; not set: all.
    columns: Option<Vec<usize>>,
    /// The row group that is read, with the rows that it gave.
    row_group: usize,
    reader: Option<ParquetRecordBatchReader>,
    rows: u64,
}

impl<'a> Batches<'a> {
    pub(super) fn new(
        name: String,
        file: &'a File,
        metadata: &'a ArrowReaderMetadata,
        columns: Option<Vec<usize>>,
    ) -> Self {
        Self {
            name,
            file,
            metadata,
            columns,
            row_group: 0,
            reader: None,
            rows: 0,
        }
    }

    /// The next batches, until they and their numbers take `bytes` of memory; none at the end.
    ///
    /// # Errors
    /// A row group that cannot be read, or has fewer rows than its footer promises.
    pub(super) fn some(&mut self, bytes: u64) -> Result<Vec<Batch>, EngineError> {
        let (mut batches, mut held) = (Vec::new(), 0);
        while held < bytes {
            let Some(batch) = self.next()? else {
                break;
            };
            held += batch.bytes + NUMBERS_BYTES * batch.rows.num_rows() as u64;
            batches.push(batch);
        }
        Ok(batches)
    }

    fn next(&mut self) -> Result<Option<Batch>, EngineError> {
        let row_group = self.row_group;
        let fault = |reason: String| EngineError::BadFile {
            file: self.name.clone(),
            fault: FileFault::RowGroup { row_group, reason },
        };
        let Some(group) = self.metadata.metadata().row_groups().get(row_group) else {
            return Ok(None);
        };
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let (bytes, expected) = (number(group.total_byte_size()), number(group.num_rows()));
        let row_bytes = (bytes / expected.max(1)).max(1);
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => self
                .open((BATCH_BYTES / row_bytes).clamp(16, BATCH_ROWS))
                .map_err(fault)?,
        };
        let next = catch(|| reader.next().transpose().map_err(|error| error.to_string()));
        if let Some(rows) = next.and_then(|batch| batch).map_err(fault)? {
            let number = rows.num_rows() as u64;
            self.rows += number;
            self.reader = Some(reader);
            let group_bytes = u64::try_from(group.compressed_size()).unwrap_or(0);
            return Ok(Some(Batch {
                row_group,
                compressed: group_bytes * number / expected.max(1),
                bytes: row_bytes * number,
                rows,
            }));
        }
        if self.rows != expected {
            return Err(fault(format!(
                "it holds {} rows where the footer promises {expected}",
                self.rows
            )));
        }
        (self.row_group, self.rows) = (row_group + 1, 0);
        self.next()
    }

    fn open(&self, batch_rows: u64) -> Result<ParquetRecordBatchReader, String> {
        let handle = self.file.try_clone().map_err(|error| error.to_string())?;
        catch(|| {
            let mut builder =
                ParquetRecordBatchReaderBuilder::new_with_metadata(handle, self.metadata.clone());
            if let Some(columns) = &self.columns {
                let roots = columns.iter().copied();
                let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
                builder = builder.with_projection(mask);
            }
            builder
                .with_row_groups(vec![self.row_group])
                .with_batch_size(batch_rows as usize)
                .build()
                .map_err(|error| error.to_string())
        })
        .and_then(|reader| reader)
    }
}
