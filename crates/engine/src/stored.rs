//! Reads committed tables file by file, in the order in which they were written, from threads that
//! may wait. Memory: one row group of one file, encoded, and one batch.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryFutureExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::{
    AsyncFileReader, ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use pmill_store::{DataFile, JobName, StoreError, TableState, Warehouse};
use pmill_text::{TermCount, Vocabulary};
use tokio::runtime::Handle;

use crate::error::EngineError;

/// Rows of a batch.
const BATCH_ROWS: usize = 1 << 16;

/// The files of a table at one version.
pub struct StoredTable {
    pub(crate) files: Vec<StoredFile>,
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
}

/// One of them.
pub(crate) struct StoredFile {
    path: ObjectPath,
    file: DataFile,
    metadata: OnceLock<ArrowReaderMetadata>,
}

impl StoredFile {
    /// Smallest and largest value of an integer column; `None` when the table does not say.
    pub(crate) fn range(&self, column: &str) -> Option<(i64, i64)> {
        let stats: serde_json::Value = serde_json::from_str(&self.file.stats).ok()?;
        let value = |kind: &str| stats.get(kind)?.get(column)?.as_i64();
        Some((value("minValues")?, value("maxValues")?))
    }
}

impl StoredTable {
    /// The files of `table` of a job; those with rows, by their smallest `key`.
    ///
    /// # Errors
    /// When the table's log cannot be read.
    pub fn new(
        warehouse: &Warehouse,
        job: &JobName,
        table: &str,
        key: &str,
        state: &TableState,
        runtime: &Handle,
    ) -> Result<Self, EngineError> {
        let (folder, _) = warehouse.table_folder(job, table);
        let mut files: Vec<StoredFile> = state
            .files()?
            .into_iter()
            .filter(|file| file.rows > 0)
            .map(|file| StoredFile {
                path: folder.clone().join(file.name.as_str()),
                file,
                metadata: OnceLock::new(),
            })
            .collect();
        files.sort_by_key(|file| file.range(key).unwrap_or((0, 0)));
        Ok(Self {
            files,
            store: warehouse.store().clone(),
            runtime: runtime.clone(),
        })
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.file.size).sum()
    }

    fn fail(&self, file: &StoredFile, source: ParquetError) -> EngineError {
        StoreError::TableFile {
            path: file.path.to_string(),
            source,
        }
        .into()
    }

    fn reader(&self, file: &StoredFile) -> ObjectReader {
        ObjectReader::new(self.store.clone(), file.path.clone(), file.file.size)
    }

    /// A file's footer; read once.
    pub(crate) fn metadata<'a>(
        &self,
        file: &'a StoredFile,
    ) -> Result<&'a ArrowReaderMetadata, EngineError> {
        if let Some(metadata) = file.metadata.get() {
            return Ok(metadata);
        }
        let mut reader = self.reader(file);
        let loaded = self
            .runtime
            .block_on(ArrowReaderMetadata::load_async(
                &mut reader,
                ArrowReaderOptions::new(),
            ))
            .map_err(|source| self.fail(file, source))?;
        Ok(file.metadata.get_or_init(|| loaded))
    }

    /// Starts reading the row groups of a file.
    pub(crate) fn open(
        &self,
        file: &StoredFile,
        row_groups: Vec<usize>,
    ) -> Result<Stream, EngineError> {
        let metadata = self.metadata(file)?.clone();
        ParquetRecordBatchStreamBuilder::new_with_metadata(self.reader(file), metadata)
            .with_row_groups(row_groups)
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|source| self.fail(file, source))
    }

    /// The next batch that has rows.
    pub(crate) fn next(
        &self,
        file: &StoredFile,
        stream: &mut Stream,
    ) -> Result<Option<RecordBatch>, EngineError> {
        loop {
            match self.runtime.block_on(stream.next()) {
                Some(Ok(batch)) if batch.num_rows() == 0 => {}
                Some(Ok(batch)) => return Ok(Some(batch)),
                Some(Err(source)) => return Err(self.fail(file, source)),
                None => return Ok(None),
            }
        }
    }

    fn broken(file: &StoredFile, reason: &str) -> EngineError {
        StoreError::TableFile {
            path: file.path.to_string(),
            source: ParquetError::General(reason.to_owned()),
        }
        .into()
    }

    /// An error that says what is wrong with a file.
    pub(crate) fn damaged(&self, file: &StoredFile, reason: &str) -> EngineError {
        Self::broken(file, reason)
    }

    /// The terms in the table's order: its columns `token`, `count` and `documents`.
    #[must_use]
    pub fn terms(&self) -> StoredTerms<'_> {
        StoredTerms {
            table: self,
            next_file: 0,
            stream: None,
            batch: Vec::new().into_iter(),
        }
    }

    /// A stored `vocab`: ids are the place of a term.
    ///
    /// # Errors
    /// When it cannot be read, or holds a term twice.
    pub fn vocabulary(&self) -> Result<Vocabulary, EngineError> {
        Vocabulary::from_rows(self.terms())
    }
}

pub(crate) type Stream = ParquetRecordBatchStream<ObjectReader>;

/// Bytes of one object for the Parquet decoder.
pub(crate) struct ObjectReader {
    store: Arc<dyn ObjectStore>,
    path: ObjectPath,
    size: u64,
}

impl ObjectReader {
    /// An object of `size` bytes.
    pub(crate) fn new(store: Arc<dyn ObjectStore>, path: ObjectPath, size: u64) -> Self {
        Self { store, path, size }
    }
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for ObjectReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        self.store
            .get_range(&self.path, range)
            .map_err(external)
            .boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        async move {
            self.store
                .get_ranges(&self.path, &ranges)
                .await
                .map_err(external)
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move {
            let size = self.size;
            let metadata = ParquetMetaDataReader::new()
                .with_arrow_reader_options(options)
                .load_and_finish(self, size)
                .await?;
            Ok(Arc::new(metadata))
        }
        .boxed()
    }
}

/// Terms of a table, see [`StoredTable::terms`].
pub struct StoredTerms<'a> {
    table: &'a StoredTable,
    next_file: usize,
    stream: Option<Stream>,
    batch: std::vec::IntoIter<TermCount>,
}

impl StoredTerms<'_> {
    fn more(&mut self) -> Result<bool, EngineError> {
        loop {
            if let Some(stream) = &mut self.stream {
                let file = &self.table.files[self.next_file - 1];
                if let Some(batch) = self.table.next(file, stream)? {
                    self.batch = terms_of(&batch)
                        .ok_or_else(|| {
                            StoredTable::broken(file, "its columns are not those of terms")
                        })?
                        .into_iter();
                    return Ok(true);
                }
                self.stream = None;
            }
            let Some(file) = self.table.files.get(self.next_file) else {
                return Ok(false);
            };
            let groups = self.table.metadata(file)?.metadata().num_row_groups();
            self.stream = Some(self.table.open(file, (0..groups).collect())?);
            self.next_file += 1;
        }
    }
}

fn terms_of(batch: &RecordBatch) -> Option<Vec<TermCount>> {
    let tokens = arrow::compute::cast(batch.column_by_name("token")?, &DataType::Utf8).ok()?;
    let tokens = tokens.as_string_opt::<i32>()?;
    let numbers = |name: &str| batch.column_by_name(name)?.as_primitive_opt::<Int64Type>();
    let (counts, documents) = (numbers("count")?, numbers("documents")?);
    (0..batch.num_rows())
        .map(|row| {
            Some(TermCount {
                term: tokens.value(row).to_owned(),
                tokens: u64::try_from(counts.value(row)).ok()?,
                documents: u64::try_from(documents.value(row)).ok()?,
            })
        })
        .collect()
}

impl Iterator for StoredTerms<'_> {
    type Item = Result<TermCount, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(term) = self.batch.next() {
                return Some(Ok(term));
            }
            match self.more() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    // Nothing comes after an error.
                    self.next_file = self.table.files.len();
                    self.stream = None;
                    return Some(Err(error));
                }
            }
        }
    }
}
