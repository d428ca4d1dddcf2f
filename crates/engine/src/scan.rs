//! Reads the text column of Parquet files through DataFusion, one row group at a time.
//!
//! A file is checked when the job is planned (footer, column, sizes) and once more when it is
//! read: its identity must be the planned one, every row group must give the rows that its footer
//! promised, and page checksums, where the file has them, must hold. Whatever a broken file makes
//! the decoder do, panics included, ends at this module's edge as a [`FileFault`].

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::parquet::{
    CachedParquetFileReaderFactory, ParquetAccessPlan,
};
use datafusion::datasource::physical_plan::{FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::DataFusionError;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, path::Path as ObjectPath};
use parquet::arrow::parquet_to_arrow_schema;

use crate::column::{RowFault, RowReceiver};
use crate::error::{EngineError, FileFault};
use crate::expression::{RowPlan, RowSpec, Rows, projected};
use crate::footer;
use crate::input::InputFile;
use crate::memory::ByteSize;
use crate::pages::{self, CheckedReaders};
use crate::unwind;

/// A row group of the text column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowGroup {
    /// Rows.
    pub rows: u64,
    /// Bytes of the text column in the file.
    pub compressed: u64,
    /// Bytes of the text column once decompressed.
    pub uncompressed: u64,
}

/// A file that was opened and found readable.
#[derive(Debug, Clone)]
pub struct CorpusFile {
    /// The file.
    pub input: InputFile,
    /// Its row groups.
    pub row_groups: Vec<RowGroup>,
    schema: SchemaRef,
    rows: RowPlan,
}

#[cfg(test)]
impl CorpusFile {
    /// A file with these row groups, for tests of what is planned from them.
    pub(crate) fn of_row_groups(input: InputFile, row_groups: Vec<RowGroup>) -> Self {
        use crate::column::TextColumn;
        use arrow::datatypes::Schema;

        let schema = Schema::new(vec![Field::new("t", DataType::Utf8, true)]);
        let column = TextColumn::find(&schema, "t").expect("the column is there");
        Self {
            input,
            row_groups,
            schema: Arc::new(schema),
            rows: RowPlan::plain(column),
        }
    }
}

/// Opens files: DataFusion's session, its stores and its cache of footers.
#[derive(Clone)]
pub struct Scanner {
    context: SessionContext,
    spec: RowSpec,
    limit: ByteSize,
}

impl Scanner {
    /// A scanner of the rows of `spec`.
    #[must_use]
    pub fn new(context: SessionContext, spec: RowSpec, limit: ByteSize) -> Self {
        Self {
            context,
            spec,
            limit,
        }
    }

    /// Reads a file's footer and finds the column in it.
    ///
    /// # Errors
    /// [`EngineError::BadFile`] says what is wrong with the file.
    pub async fn open(&self, input: &InputFile) -> Result<CorpusFile, EngineError> {
        let fault = |fault| EngineError::bad_file(input.display(), fault);
        if input.size == 0 {
            return Err(fault(FileFault::Footer(
                "it is empty (0 bytes), not a Parquet file".into(),
            )));
        }
        let (store, meta) = self.locate(input)?;
        check_ends(store.as_ref(), &meta)
            .await
            .map_err(|reason| fault(FileFault::Footer(reason)))?;
        let cache = self
            .context
            .runtime_env()
            .cache_manager
            .get_file_metadata_cache();
        let metadata = guard(async {
            DFParquetMetadata::new(store.as_ref(), &meta)
                .with_file_metadata_cache(Some(cache))
                .fetch_metadata()
                .await
        })
        .await;
        let metadata = match metadata {
            Ok(metadata) => metadata,
            Err(reason) => {
                let reason = explain_footer(store.as_ref(), &meta, reason).await;
                return Err(fault(FileFault::Footer(reason)));
            }
        };
        let found = catch(|| {
            let file = metadata.file_metadata();
            parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())
                .map_err(|error| error.to_string())
        })
        .and_then(|schema| schema)
        .map_err(|reason| fault(FileFault::Footer(reason)))?;
        let rows = RowPlan::resolve(&self.context, &self.spec, &found, viewed).map_err(fault)?;
        let mut row_groups = Vec::with_capacity(metadata.num_row_groups());
        for (index, group) in metadata.row_groups().iter().enumerate() {
            let mut sizes = RowGroup {
                rows: u64::try_from(group.num_rows()).map_err(|_| {
                    fault(FileFault::RowGroup {
                        row_group: index,
                        reason: format!("the footer claims {} rows", group.num_rows()),
                    })
                })?,
                compressed: 0,
                uncompressed: 0,
            };
            let descriptor = metadata.file_metadata().schema_descr();
            for leaf in 0..group.num_columns() {
                if rows.columns.contains(&descriptor.get_column_root_idx(leaf)) {
                    let chunk = group.column(leaf);
                    sizes.compressed += u64::try_from(chunk.compressed_size()).unwrap_or(0);
                    sizes.uncompressed += u64::try_from(chunk.uncompressed_size()).unwrap_or(0);
                }
            }
            let swollen = pages::swollen(sizes.compressed, sizes.uncompressed, self.limit);
            if swollen || sizes.compressed > self.limit.0 / 2 {
                return Err(fault(FileFault::TooLarge {
                    row_group: index,
                    column: self.spec.text.clone(),
                    bytes: ByteSize(sizes.uncompressed.max(sizes.compressed)).to_string(),
                    limit: self.limit.to_string(),
                }));
            }
            row_groups.push(sizes);
        }
        Ok(CorpusFile {
            input: input.clone(),
            row_groups,
            schema: projected(&found, &rows.columns, viewed),
            rows,
        })
    }

    fn locate(&self, input: &InputFile) -> Result<(Arc<dyn ObjectStore>, ObjectMeta), EngineError> {
        let wrong = |reason: String| EngineError::Input {
            input: input.uri.clone(),
            reason,
        };
        let url = url::Url::parse(&input.uri).map_err(|error| wrong(error.to_string()))?;
        let store = self
            .context
            .runtime_env()
            .object_store_registry
            .get_store(&url)
            .map_err(|error| wrong(error.to_string()))?;
        let location =
            ObjectPath::from_url_path(url.path()).map_err(|error| wrong(error.to_string()))?;
        let meta = ObjectMeta {
            location,
            last_modified: std::time::SystemTime::UNIX_EPOCH.into(),
            size: input.size,
            // Part of the key of the footer cache.
            e_tag: Some(input.etag.clone()),
            version: None,
        };
        Ok((store, meta))
    }

    /// Starts reading one row group.
    ///
    /// # Errors
    /// When the file is not the planned one any more, or cannot be opened.
    pub fn read(&self, file: &CorpusFile, row_group: usize) -> Result<RowGroupReader, EngineError> {
        let now = file.input.refresh().map_err(|error| match error {
            error @ (EngineError::Store(_) | EngineError::Away(_)) => error,
            _ => EngineError::BadFile {
                file: file.input.display(),
                fault: FileFault::Changed {
                    expected: file.input.identity(),
                    found: "no file".into(),
                },
            },
        })?;
        if now != file.input {
            return Err(EngineError::BadFile {
                file: file.input.display(),
                fault: FileFault::Changed {
                    expected: file.input.identity(),
                    found: now.identity(),
                },
            });
        }
        let (store, meta) = self.locate(&file.input)?;
        let cache = self
            .context
            .runtime_env()
            .cache_manager
            .get_file_metadata_cache();
        let mut plan = ParquetAccessPlan::new_none(file.row_groups.len());
        plan.scan(row_group);
        let readers = CheckedReaders {
            inner: Arc::new(CachedParquetFileReaderFactory::new(store, cache)),
            row_group,
            limit: self.limit,
            path: file.input.path(),
        };
        let source = ParquetSource::new(file.schema.clone())
            .with_parquet_file_reader_factory(Arc::new(readers));
        let config =
            FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
                .with_file(PartitionedFile::new_from_meta(meta).with_extension(plan))
                .with_batch_size(Some(batch_rows(file.row_groups[row_group])))
                .build();
        let scan = DataSourceExec::from_data_source(config);
        let task: Arc<TaskContext> = self.context.task_ctx();
        let stream = catch(|| scan.execute(0, task).map_err(|error| reason(&error)))
            .and_then(|stream| stream)
            .map_err(|reason| EngineError::BadFile {
                file: file.input.display(),
                fault: FileFault::RowGroup { row_group, reason },
            })?;
        Ok(RowGroupReader {
            stream,
            file: file.input.display(),
            rows: file.rows.clone(),
            row_group,
            expected: file.row_groups[row_group].rows,
            seen: 0,
        })
    }
}

/// Gives the batches of one row group.
pub struct RowGroupReader {
    stream: SendableRecordBatchStream,
    file: String,
    rows: RowPlan,
    row_group: usize,
    expected: u64,
    seen: u64,
}

impl RowGroupReader {
    /// The next batch: the columns of the plan; `None` after the last.
    ///
    /// # Errors
    /// When the row group does not decode, or holds other than its number of rows.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, EngineError> {
        let next = guard(async { self.stream.next().await.transpose() }).await;
        match next {
            Ok(Some(batch)) => {
                self.seen += batch.num_rows() as u64;
                Ok(Some(batch))
            }
            Ok(None) if self.seen != self.expected => Err(self.fault(format!(
                "it holds {} rows where the footer promises {}",
                self.seen, self.expected
            ))),
            Ok(None) => Ok(None),
            Err(reason) => Err(self.fault(reason)),
        }
    }

    /// Gives the rows of a batch that are kept to `receiver`.
    ///
    /// # Errors
    /// A value that is not UTF-8 or on which an expression fails, or the receiver's own.
    pub fn rows<R: RowReceiver<Error = EngineError>>(
        &self,
        batch: &RecordBatch,
        receiver: &mut R,
    ) -> Result<(), EngineError> {
        let rows = self.apply(batch)?;
        self.give(batch, &rows.text, receiver)
    }

    /// The same, slice by slice; `begin` is told which slice comes.
    ///
    /// # Errors
    /// As [`Self::rows`], and those of `begin`.
    pub fn sliced_rows<R: RowReceiver<Error = EngineError>>(
        &self,
        batch: &RecordBatch,
        receiver: &mut R,
        mut begin: impl FnMut(&mut R, Option<&str>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let rows = self.apply(batch)?;
        let Some(slices) = &rows.slices else {
            return self.give(batch, &rows.text, receiver);
        };
        let mut indices: HashMap<Option<&str>, Vec<u32>> = HashMap::new();
        for (row, key) in slices.iter().enumerate() {
            indices.entry(key).or_default().push(row as u32);
        }
        // Any order gives the same counts.
        for (key, rows_of) in &indices {
            begin(receiver, *key)?;
            if rows_of.len() == slices.len() {
                return self.give(batch, &rows.text, receiver);
            }
            let rows_of = UInt32Array::from(rows_of.clone());
            let text = arrow::compute::take(&rows.text, &rows_of, None)
                .map_err(|error| EngineError::Bug(error.to_string()))?;
            self.give(batch, &text, receiver)?;
        }
        Ok(())
    }

    fn apply(&self, batch: &RecordBatch) -> Result<Rows, EngineError> {
        catch(|| self.rows.apply(batch).map_err(|error| reason(&error)))
            .and_then(|rows| rows)
            .map_err(|reason| self.fault(reason))
    }

    fn give<R: RowReceiver<Error = EngineError>>(
        &self,
        batch: &RecordBatch,
        text: &ArrayRef,
        receiver: &mut R,
    ) -> Result<(), EngineError> {
        self.rows
            .column
            .rows(text, receiver)
            .map_err(|fault| match fault {
                RowFault::NotUtf8(row) if !self.rows.filters() && !self.rows.slices() => {
                    self.not_utf8(row, batch.num_rows())
                }
                RowFault::NotUtf8(row) => self.fault(format!(
                    "row {row} of the kept rows{} of the batch that ends at row {} is not UTF-8",
                    if self.rows.slices() {
                        " of a slice"
                    } else {
                        ""
                    },
                    self.seen
                )),
                RowFault::Type(found) => self.fault(format!("it decodes to type {found}")),
                RowFault::Receiver(error) => error,
            })
    }

    /// Rows that the batches so far held.
    #[must_use]
    pub fn rows_seen(&self) -> u64 {
        self.seen
    }

    /// An error that names this file and row group.
    #[must_use]
    pub fn fault(&self, reason: String) -> EngineError {
        let row_group = self.row_group;
        EngineError::bad_file(self.file.clone(), FileFault::RowGroup { row_group, reason })
    }

    /// An error that names a row that is not UTF-8; `row` counts inside the last batch.
    #[must_use]
    pub fn not_utf8(&self, row: usize, batch_rows: usize) -> EngineError {
        let before = usize::try_from(self.seen)
            .unwrap_or(usize::MAX)
            .saturating_sub(batch_rows);
        EngineError::BadFile {
            file: self.file.clone(),
            fault: FileFault::NotUtf8 {
                row_group: self.row_group,
                row: before + row,
            },
        }
    }
}

/// Rows of a batch: about four MiB of text, so that long documents do not fill the memory.
fn batch_rows(sizes: RowGroup) -> usize {
    const BATCH_BYTES: u64 = 4 << 20;
    let bytes_a_row = (sizes.uncompressed / sizes.rows.max(1)).max(1);
    usize::try_from((BATCH_BYTES / bytes_a_row).clamp(16, 8192)).unwrap_or(8192)
}

/// Looks at the last bytes of a file before the decoder does: most files that are no Parquet files,
/// or not whole ones, are told by them, and the decoder trusts the length that stands there.
async fn check_ends(store: &dyn ObjectStore, meta: &ObjectMeta) -> Result<(), String> {
    const SMALLEST: u64 = 12;
    if meta.size < SMALLEST {
        return Err(format!(
            "not a Parquet file: it has {} bytes, the smallest has {SMALLEST}",
            meta.size
        ));
    }
    let end = store
        .get_range(&meta.location, meta.size - 8..meta.size)
        .await
        .map_err(|error| one_line(&error.to_string()))?;
    let Ok(end) = <[u8; 8]>::try_from(end.as_ref()) else {
        return Err("its last bytes cannot be read".into());
    };
    let [a, b, c, d, magic @ ..] = end;
    match &magic {
        b"PAR1" => {}
        b"PARE" => return Err("it is encrypted, which pmill does not read".into()),
        _ => {
            return Err("not a whole Parquet file: it does not end in the mark PAR1 (another format, or cut short)".into());
        }
    }
    let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
    if footer + SMALLEST > meta.size {
        return Err(format!(
            "not a whole Parquet file: its footer claims {footer} bytes, the file has {}",
            meta.size
        ));
    }
    Ok(())
}

/// Text is read as views: the decoder then copies no bytes.
fn viewed(field: &Field) -> Field {
    let data_type = match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
        other => other.clone(),
    };
    Field::new(field.name(), data_type, true)
}

/// The innermost reason of an engine error, on one line.
fn reason(error: &DataFusionError) -> String {
    let root = error.find_root().to_string();
    let mut text = root.as_str();
    // Each layer puts its name before the reason.
    while let Some(rest) = [
        "Parquet error: ",
        "Parquet argument error: ",
        "Arrow error: ",
        "External: ",
    ]
    .iter()
    .find_map(|layer| text.strip_prefix(layer))
    {
        text = rest;
    }
    one_line(text)
}

fn one_line(text: &str) -> String {
    let line = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Why a footer does not parse; a file with encrypted columns is told as such.
async fn explain_footer(store: &dyn ObjectStore, meta: &ObjectMeta, reason: String) -> String {
    const LARGEST: u64 = 16 << 20;
    let end = store
        .get_range(&meta.location, meta.size.saturating_sub(8)..meta.size)
        .await;
    let length = end
        .ok()
        .and_then(|end| end.get(..4).and_then(|bytes| bytes.try_into().ok()))
        .map_or(0, |bytes| u64::from(u32::from_le_bytes(bytes)));
    if length <= LARGEST && length + 8 <= meta.size {
        let range = meta.size - 8 - length..meta.size - 8;
        if let Ok(footer) = store.get_range(&meta.location, range).await
            && footer::names_encryption(&footer)
        {
            return "it has encrypted columns, which pmill does not read".into();
        }
    }
    format!("not a readable Parquet file: {reason}")
}

/// Calls the decoder; a panic in it becomes a reason.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    unwind::catch(work).map_err(gave_up)
}

/// Polls a future of the decoder; an error of it, or a panic in it, becomes a reason.
async fn guard<T>(work: impl Future<Output = Result<T, DataFusionError>>) -> Result<T, String> {
    unwind::guard(work)
        .await
        .map_err(gave_up)?
        .map_err(|error| reason(&error))
}

fn gave_up(panic: String) -> String {
    format!("the decoder gave up on it ({})", one_line(&panic))
}
