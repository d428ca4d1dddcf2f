//! One input file becomes one shard: batches are read in order, annotated side by side, and written
//! in order.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::StringArray;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use pmill_text::{FeatureExtractor, IdEncoder, Vocabulary};

use super::columns::Added;
use super::document::{Numbers, Scratch, Tables};
use super::output::Shard;
use crate::column::{RowFault, RowReceiver};
use crate::error::{EngineError, FileFault};
use crate::expression::{RowPlan, RowSpec};
use crate::input::InputFile;
use crate::progress::{Progress, StopFlag};
use crate::scan::catch;
use crate::workers;

/// Bytes of a batch, about.
const BATCH_BYTES: u64 = 8 << 20;

/// What all shards share.
pub(super) struct Annotator<'a> {
    pub(super) tables: Tables,
    pub(super) terms: &'a StringArray,
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) extractor: &'a Arc<FeatureExtractor>,
    pub(super) context: &'a SessionContext,
    pub(super) spec: RowSpec,
    pub(super) added: Added,
    pub(super) keep: Option<&'a [String]>,
    /// Threads of one file.
    pub(super) threads: usize,
    /// Encoders that nobody uses just now; each knows the words that it has met.
    pub(super) ready: Mutex<Vec<Reader>>,
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a StopFlag,
}

pub(super) struct Reader {
    encoder: IdEncoder,
    ids: Vec<u32>,
    ends: Vec<usize>,
    scratch: Scratch,
}

impl RowReceiver for Reader {
    type Error = EngineError;

    fn texts(&mut self, rows: &mut dyn Iterator<Item = Option<&str>>) -> Result<(), EngineError> {
        Ok(self
            .encoder
            .push_rows(rows, &mut self.ids, &mut self.ends)?)
    }

    fn tokens(&mut self, row: Option<&mut dyn Iterator<Item = &str>>) -> Result<(), EngineError> {
        if let Some(row) = row {
            self.encoder.push_tokens_row(row, &mut self.ids)?;
        }
        self.ends.push(self.ids.len());
        Ok(())
    }
}

/// What is known of one file.
struct Source {
    file: String,
    plan: RowPlan,
    /// Columns of the input that the shard keeps.
    kept: Vec<usize>,
    schema: SchemaRef,
}

impl Annotator<'_> {
    /// Annotates one file.
    pub(super) fn shard(
        &self,
        input: &InputFile,
        path: &Path,
        name: String,
    ) -> Result<Shard, EngineError> {
        let bad = |fault| EngineError::BadFile {
            file: input.display(),
            fault,
        };
        self.same(input)?;
        let Some(from) = input.path() else {
            return Err(EngineError::Input {
                input: input.uri.clone(),
                reason: "only files on this machine can be annotated".into(),
            });
        };
        let footer = |reason: String| bad(FileFault::Footer(reason));
        let file = File::open(&from).map_err(|error| footer(error.to_string()))?;
        let metadata = catch(|| {
            ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())
                .map_err(|error| error.to_string())
        })
        .and_then(|metadata| metadata)
        .map_err(footer)?;
        let source = self.source(input, metadata.schema())?;
        let written = |error: parquet::errors::ParquetError| EngineError::Io {
            action: "write",
            path: path.display().to_string(),
            source: error.into(),
        };
        let out = File::create(path).map_err(|source| EngineError::Io {
            action: "create",
            path: path.display().to_string(),
            source,
        })?;
        let mut properties =
            WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default()));
        // Numbers of documents hardly come twice: a dictionary of them is work for nothing.
        for field in self.added.fields() {
            if field.data_type().is_floating() {
                let column = ColumnPath::new(vec![field.name().clone()]);
                properties = properties.set_column_dictionary_enabled(column, false);
            }
        }
        let properties = properties.build();
        let mut writer =
            ArrowWriter::try_new(&out, source.schema.clone(), Some(properties)).map_err(written)?;
        let mut rows = 0;
        let groups = metadata.metadata().row_groups().to_vec();
        for (row_group, group) in groups.iter().enumerate() {
            let fault = |reason: String| bad(FileFault::RowGroup { row_group, reason });
            let bytes = u64::try_from(group.total_byte_size()).unwrap_or(0);
            let expected = u64::try_from(group.num_rows()).unwrap_or(0);
            let batch_rows = (BATCH_BYTES / (bytes / expected.max(1)).max(1)).clamp(16, 8192);
            let handle = file.try_clone().map_err(|error| fault(error.to_string()))?;
            let mut reader = catch(|| {
                let mut builder =
                    ParquetRecordBatchReaderBuilder::new_with_metadata(handle, metadata.clone());
                if self.keep.is_some() {
                    let roots = source.kept.iter().chain(&source.plan.columns).copied();
                    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
                    builder = builder.with_projection(mask);
                }
                builder
                    .with_row_groups(vec![row_group])
                    .with_batch_size(batch_rows as usize)
                    .build()
                    .map_err(|error| error.to_string())
            })
            .and_then(|reader| reader)
            .map_err(fault)?;
            let mut seen = 0;
            loop {
                if self.stop.is_set() {
                    return Err(EngineError::Interrupted);
                }
                let mut batches = Vec::new();
                while batches.len() < self.threads {
                    let next =
                        catch(|| reader.next().transpose().map_err(|error| error.to_string()));
                    match next.and_then(|batch| batch).map_err(fault)? {
                        Some(batch) => batches.push(batch),
                        None => break,
                    }
                }
                if batches.is_empty() {
                    break;
                }
                seen += batches
                    .iter()
                    .map(|batch| batch.num_rows() as u64)
                    .sum::<u64>();
                for batch in self.side_by_side(&source, row_group, &batches)? {
                    writer.write(&batch).map_err(written)?;
                    rows += batch.num_rows() as u64;
                    let share = group.compressed_size() as u64 * batch.num_rows() as u64;
                    self.progress
                        .advance(share / expected.max(1), batch.num_rows() as u64);
                }
            }
            if seen != expected {
                return Err(fault(format!(
                    "it holds {seen} rows where the footer promises {expected}"
                )));
            }
        }
        writer.close().map_err(written)?;
        out.sync_all().map_err(|source| EngineError::Io {
            action: "write",
            path: path.display().to_string(),
            source,
        })?;
        self.same(input)?;
        let (bytes, blake3) = digest(path)?;
        Ok(Shard {
            name,
            input: input.uri.clone(),
            rows,
            bytes,
            blake3,
        })
    }

    /// The file is still the planned one.
    fn same(&self, input: &InputFile) -> Result<(), EngineError> {
        let now = input.refresh();
        if now.as_ref().is_ok_and(|now| now == input) {
            return Ok(());
        }
        Err(EngineError::BadFile {
            file: input.display(),
            fault: FileFault::Changed {
                expected: input.identity(),
                found: now.map_or_else(|_| "no file".to_owned(), |now| now.identity()),
            },
        })
    }

    fn source(&self, input: &InputFile, schema: &SchemaRef) -> Result<Source, EngineError> {
        let plan =
            RowPlan::resolve(self.context, &self.spec, schema, Clone::clone).map_err(|fault| {
                EngineError::BadFile {
                    file: input.display(),
                    fault,
                }
            })?;
        let kept: Vec<usize> = match self.keep {
            None => (0..schema.fields().len()).collect(),
            Some(names) => names
                .iter()
                .map(|name| {
                    schema.index_of(name).map_err(|_| {
                        let known: Vec<String> = schema
                            .fields()
                            .iter()
                            .map(|field| field.name().clone())
                            .collect();
                        EngineError::BadFile {
                            file: input.display(),
                            fault: FileFault::NoColumn {
                                column: name.clone(),
                                nearest: crate::error::nearest_name(
                                    name,
                                    known.iter().map(String::as_str),
                                ),
                                known,
                            },
                        }
                    })
                })
                .collect::<Result<_, _>>()?,
        };
        let mut fields: Vec<_> = kept
            .iter()
            .map(|index| schema.fields()[*index].clone())
            .collect();
        for field in self.added.fields() {
            if fields.iter().any(|other| other.name() == field.name()) {
                return Err(EngineError::Setting(format!(
                    "`{}` has a column `{}` already; give another --prefix",
                    input.display(),
                    field.name()
                )));
            }
            fields.push(Arc::new(field));
        }
        Ok(Source {
            file: input.display(),
            plan,
            kept,
            schema: Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())),
        })
    }

    fn side_by_side(
        &self,
        source: &Source,
        row_group: usize,
        batches: &[RecordBatch],
    ) -> Result<Vec<RecordBatch>, EngineError> {
        if let [batch] = batches {
            return Ok(vec![self.batch(source, row_group, batch)?]);
        }
        workers::run(batches.len(), self.stop, |number| {
            self.batch(source, row_group, &batches[number])
        })
    }

    fn batch(
        &self,
        source: &Source,
        row_group: usize,
        batch: &RecordBatch,
    ) -> Result<RecordBatch, EngineError> {
        let fault = |reason: String| EngineError::BadFile {
            file: source.file.clone(),
            fault: FileFault::RowGroup { row_group, reason },
        };
        let bug = |error: arrow::error::ArrowError| EngineError::Bug(error.to_string());
        // The batch holds the projected columns in the file's order.
        let place = |index: usize| match self.keep {
            None => index,
            Some(_) => {
                let mut read: Vec<usize> = source
                    .kept
                    .iter()
                    .chain(&source.plan.columns)
                    .copied()
                    .collect();
                read.sort_unstable();
                read.dedup();
                read.partition_point(|other| *other < index)
            }
        };
        let places = |columns: &[usize]| columns.iter().map(|c| place(*c)).collect::<Vec<_>>();
        let text = batch.project(&places(&source.plan.columns)).map_err(bug)?;
        let text = catch(|| {
            source
                .plan
                .apply(&text)
                .map(|rows| rows.text)
                .map_err(|error| error.strip_backtrace())
        })
        .and_then(|text| text)
        .map_err(fault)?;
        let ready = self.ready.lock().ok().and_then(|mut ready| ready.pop());
        let mut reader = ready.unwrap_or_else(|| Reader {
            encoder: IdEncoder::new(self.extractor, &self.vocabulary),
            ids: Vec::new(),
            ends: Vec::new(),
            scratch: Scratch::default(),
        });
        reader.ids.clear();
        reader.ends.clear();
        source
            .plan
            .column
            .rows(&text, &mut reader)
            .map_err(|found| match found {
                RowFault::NotUtf8(row) => fault(format!("row {row} of a batch is not UTF-8")),
                RowFault::Type(found) => fault(format!("it decodes to type {found}")),
                RowFault::Receiver(error) => error,
            })?;
        if reader.ends.len() != batch.num_rows() {
            return Err(EngineError::Bug("a row was lost while it was read".into()));
        }
        let mut start = 0;
        let mut numbers: Vec<Numbers> = Vec::with_capacity(batch.num_rows());
        for end in &reader.ends {
            numbers.push(
                self.tables
                    .numbers(&reader.ids[start..*end], &mut reader.scratch),
            );
            start = *end;
        }
        let mut columns = batch
            .project(&places(&source.kept))
            .map_err(bug)?
            .columns()
            .to_vec();
        columns.extend(self.added.arrays(&numbers, self.terms));
        if let Ok(mut ready) = self.ready.lock() {
            ready.push(reader);
        }
        RecordBatch::try_new(source.schema.clone(), columns).map_err(bug)
    }
}

pub(crate) fn digest(path: &Path) -> Result<(u64, String), EngineError> {
    let io = |source| EngineError::Io {
        action: "read",
        path: path.display().to_string(),
        source,
    };
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    hasher.update_reader(file).map_err(io)?;
    Ok((bytes, hasher.finalize().to_hex().to_string()))
}
