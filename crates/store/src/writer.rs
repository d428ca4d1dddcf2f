//! Writes one Parquet file of a table, in place, under a name that no commit has used yet.
//!
//! A file that is not named by a commit is not part of its table, so nothing is renamed: the
//! Delta log decides what is visible, and [`crate::Warehouse::sweep`] takes away what a dead
//! process left. Memory: one row group.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use deltalake_core::ObjectStore;
use object_store::path::Path as ObjectPath;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{ParquetMetaData, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnPath;
use tokio::runtime::Handle;

use crate::delta::DataFile;
use crate::error::StoreError;
use crate::target::Target;

/// Rows in a row group: fixed, so that a table's files do not depend on who wrote them.
pub(crate) const ROW_GROUP_ROWS: usize = 1 << 20;

/// Writer properties of pmill's tables: `sorted` names the columns that the rows are sorted by.
///
/// Integers are delta-packed: sorted ids and small counts take about a byte each, and encoding is
/// cheap. Strings are dictionary-encoded.
#[must_use]
pub fn table_properties(schema: &SchemaRef, sorted: &[&str]) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_created_by(concat!("pmill ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_dictionary_page_size_limit(4 << 20)
        .set_sorting_columns(Some(
            sorted
                .iter()
                .filter_map(|name| schema.index_of(name).ok())
                .map(|index| SortingColumn {
                    column_idx: i32::try_from(index).unwrap_or(i32::MAX),
                    descending: false,
                    nulls_first: false,
                })
                .collect(),
        ));
    for field in schema.fields() {
        if field.data_type().is_integer() {
            let column = ColumnPath::from(field.name().as_str());
            properties = properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
        }
        if field.data_type().is_binary() {
            // A value may be megabytes: nobody looks for it in a dictionary or in statistics.
            let column = ColumnPath::from(field.name().as_str());
            properties = properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_statistics_enabled(column, EnabledStatistics::None);
        }
        if field.data_type().is_floating() {
            let column = ColumnPath::from(field.name().as_str());
            properties = properties.set_column_dictionary_enabled(column, false);
        }
    }
    properties.build()
}

/// One table file being written. Blocking: call it from a thread that may wait, not from an
/// async worker.
pub struct TableWriter {
    writer: ArrowWriter<Target>,
    name: String,
    rows: u64,
}

impl TableWriter {
    /// Starts a file `name` in the table folder `folder` (relative to `store`'s root). `local` is
    /// the same folder on this machine's disk, when the warehouse is there.
    ///
    /// # Errors
    /// When the folder or file cannot be made.
    pub fn create(
        store: &Arc<dyn ObjectStore>,
        folder: &ObjectPath,
        local: Option<PathBuf>,
        name: &str,
        schema: SchemaRef,
        properties: WriterProperties,
        runtime: &Handle,
    ) -> Result<Self, StoreError> {
        let target = Target::create(store, folder, local, name, runtime)?;
        let writer = ArrowWriter::try_new(target, schema, Some(properties)).map_err(|source| {
            StoreError::Parquet {
                path: name.to_owned(),
                source,
            }
        })?;
        Ok(Self {
            writer,
            name: name.to_owned(),
            rows: 0,
        })
    }

    /// Appends a batch.
    ///
    /// # Errors
    /// When encoding or writing fails (disk full, store away).
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), StoreError> {
        self.rows += batch.num_rows() as u64;
        self.writer
            .write(batch)
            .map_err(|source| parquet_error(&self.name, source))
    }

    /// Bytes of encoded rows that wait for their row group to be complete.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.writer.memory_size()
    }

    /// Writes the footer, makes the file durable and says what is in it.
    ///
    /// # Errors
    /// When writing fails; the file is then an orphan that the next sweep removes.
    pub fn finish(mut self) -> Result<DataFile, StoreError> {
        let metadata = self
            .writer
            .finish()
            .map_err(|source| parquet_error(&self.name, source))?;
        let size = self.writer.bytes_written() as u64;
        self.writer.inner_mut().close()?;
        Ok(DataFile {
            name: self.name,
            size,
            rows: self.rows,
            stats: delta_stats(&metadata, self.rows),
        })
    }
}

/// An I/O error inside the Parquet writer comes out as the I/O error that it is.
pub(crate) fn parquet_error(name: &str, source: parquet::errors::ParquetError) -> StoreError {
    if let parquet::errors::ParquetError::External(inner) = source {
        return match inner.downcast::<std::io::Error>() {
            Ok(io) => StoreError::Io {
                action: "write",
                path: name.to_owned(),
                source: *io,
            },
            Err(inner) => StoreError::Parquet {
                path: name.to_owned(),
                source: parquet::errors::ParquetError::External(inner),
            },
        };
    }
    StoreError::Parquet {
        path: name.to_owned(),
        source,
    }
}

/// Delta's statistics: rows, and the smallest and largest value of each integer column.
pub(crate) fn delta_stats(metadata: &ParquetMetaData, rows: u64) -> String {
    let mut smallest = serde_json::Map::new();
    let mut largest = serde_json::Map::new();
    let mut nulls = serde_json::Map::new();
    let columns = metadata.file_metadata().schema_descr().columns();
    for (index, column) in columns.iter().enumerate() {
        let range =
            metadata
                .row_groups()
                .iter()
                .map(|group| match group.column(index).statistics() {
                    Some(Statistics::Int32(s)) => {
                        Some((i64::from(*s.min_opt()?), i64::from(*s.max_opt()?)))
                    }
                    Some(Statistics::Int64(s)) => Some((*s.min_opt()?, *s.max_opt()?)),
                    _ => None,
                });
        let Some(ranges) = range.collect::<Option<Vec<_>>>() else {
            continue;
        };
        let (Some(low), Some(high)) = (
            ranges.iter().map(|r| r.0).min(),
            ranges.iter().map(|r| r.1).max(),
        ) else {
            continue;
        };
        smallest.insert(column.name().to_owned(), low.into());
        largest.insert(column.name().to_owned(), high.into());
        nulls.insert(column.name().to_owned(), 0.into());
    }
    serde_json::json!({
        "numRecords": rows,
        "minValues": smallest,
        "maxValues": largest,
        "nullCount": nulls,
    })
    .to_string()
}
