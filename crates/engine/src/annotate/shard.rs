//! One input file becomes one shard: batches are read in order, annotated many at a time and side by
//! side, and written in order.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::StringArray;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use pmill_text::{FeatureExtractor, IdEncoder, Vocabulary};

use super::columns::Added;
use super::document::{Tables, Work};
use super::output::Shard;
use super::read::{Batch, Batches};
use crate::column::{RowFault, RowReceiver};
use crate::error::{EngineError, FileFault};
use crate::expression::{RowPlan, RowSpec};
use crate::input::InputFile;
use crate::progress::{Progress, StopFlag};
use crate::scan::catch;
use crate::workers;

/// What all shards share.
pub(crate) struct Annotator<'a> {
    pub(super) tables: &'a Tables,
    pub(super) terms: &'a StringArray,
    pub(super) vocabulary: &'a Arc<Vocabulary>,
    pub(super) extractor: &'a Arc<FeatureExtractor>,
    pub(super) context: &'a SessionContext,
    pub(super) spec: &'a RowSpec,
    pub(super) added: &'a Added,
    pub(super) keep: Option<&'a [String]>,
    /// Threads of one file.
    pub(super) threads: usize,
    /// What each of them may hold.
    pub(super) room: Room,
    /// Encoders that nobody uses just now; each knows the words that it has met.
    pub(super) ready: &'a Mutex<Vec<Reader>>,
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a StopFlag,
}

/// What one thread may hold: the more pairs are looked up together, the better a row of the table is
/// used once it is in the cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Bytes of rows.
    bytes: u64,
    /// Pairs, each with its share of what stands beside it about 16 bytes.
    pairs: usize,
}

/// Bytes of a thread beside its room, about: the words that it has met, pages that are read and written.
const BESIDE_BYTES: u64 = 24 << 20;

impl Room {
    /// For each of `threads` threads, which share a quarter of the limit.
    pub(super) fn new(limit: u64, threads: usize) -> Self {
        let bytes = (limit / 4 / threads.max(1) as u64).saturating_sub(BESIDE_BYTES);
        Self {
            bytes: (bytes / 4).clamp(1 << 20, 64 << 20),
            pairs: (bytes / 2 / 16).clamp(1 << 16, 1 << 23) as usize,
        }
    }
}

pub(super) struct Reader {
    encoder: IdEncoder,
    ids: Vec<u32>,
    ends: Vec<usize>,
    work: Work,
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

impl Source {
    /// Columns that are read when not all are, in the file's order.
    fn columns(&self) -> Vec<usize> {
        let mut columns: Vec<usize> = self
            .kept
            .iter()
            .chain(&self.plan.columns)
            .copied()
            .collect();
        columns.sort_unstable();
        columns.dedup();
        columns
    }
}

impl Annotator<'_> {
    /// Annotates one file.
    pub(crate) fn shard(
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
        let columns = self.keep.map(|_| source.columns());
        let mut batches = Batches::new(source.file.clone(), &file, &metadata, columns);
        let mut rows = 0;
        loop {
            if self.stop.is_set() {
                return Err(EngineError::Interrupted);
            }
            let mut blocks = Vec::new();
            while blocks.len() < self.threads {
                let block = batches.some(self.room.bytes)?;
                if block.is_empty() {
                    break;
                }
                blocks.push(block);
            }
            if blocks.is_empty() {
                break;
            }
            let done = self.side_by_side(&source, &blocks)?;
            for (batch, done) in blocks.iter().flatten().zip(done.iter().flatten()) {
                writer.write(done).map_err(written)?;
                let number = done.num_rows() as u64;
                rows += number;
                self.progress.advance(batch.compressed, number);
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
            RowPlan::resolve(self.context, self.spec, schema, Clone::clone).map_err(|fault| {
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

    /// Annotates blocks of batches, each by one thread.
    fn side_by_side(
        &self,
        source: &Source,
        blocks: &[Vec<Batch>],
    ) -> Result<Vec<Vec<RecordBatch>>, EngineError> {
        if let [block] = blocks {
            return Ok(vec![self.block(source, block)?]);
        }
        workers::run(blocks.len(), self.stop, |number| {
            self.block(source, &blocks[number])
        })
    }

    /// Annotates batches, whose pairs are looked up together.
    fn block(&self, source: &Source, batches: &[Batch]) -> Result<Vec<RecordBatch>, EngineError> {
        let ready = self.ready.lock().ok().and_then(|mut ready| ready.pop());
        let mut reader = ready.unwrap_or_else(|| Reader {
            encoder: IdEncoder::new(self.extractor, self.vocabulary),
            ids: Vec::new(),
            ends: Vec::new(),
            work: Work::new(self.room.pairs),
        });
        for batch in batches {
            self.read(source, batch, &mut reader)?;
            let mut start = 0;
            for end in &reader.ends {
                reader.work.push(self.tables, &reader.ids[start..*end]);
                start = *end;
            }
        }
        let documents = reader.work.finish(self.tables);
        if let Ok(mut ready) = self.ready.lock() {
            ready.push(reader);
        }
        let (mut rows, mut quantiles) = (&documents.rows[..], &documents.quantiles[..]);
        let each = self.added.quantiles.len();
        batches
            .iter()
            .map(|batch| {
                let (these, more) = rows.split_at(batch.rows.num_rows());
                let (their_quantiles, more_quantiles) = quantiles.split_at(these.len() * each);
                (rows, quantiles) = (more, more_quantiles);
                let kept = self.places(source, &source.kept);
                let mut columns = batch.rows.project(&kept).map_err(bug)?.columns().to_vec();
                columns.extend(self.added.arrays(these, their_quantiles, self.terms));
                RecordBatch::try_new(source.schema.clone(), columns).map_err(bug)
            })
            .collect()
    }

    /// Turns the text of a batch into ids, with the end of each row.
    fn read(&self, source: &Source, batch: &Batch, reader: &mut Reader) -> Result<(), EngineError> {
        let fault = |reason: String| EngineError::BadFile {
            file: source.file.clone(),
            fault: FileFault::RowGroup {
                row_group: batch.row_group,
                reason,
            },
        };
        let places = self.places(source, &source.plan.columns);
        let text = batch.rows.project(&places).map_err(bug)?;
        let text = catch(|| {
            source
                .plan
                .apply(&text)
                .map(|rows| rows.text)
                .map_err(|error| error.strip_backtrace())
        })
        .and_then(|text| text)
        .map_err(fault)?;
        reader.ids.clear();
        reader.ends.clear();
        source
            .plan
            .column
            .rows(&text, reader)
            .map_err(|found| match found {
                RowFault::NotUtf8(row) => fault(format!("row {row} of a batch is not UTF-8")),
                RowFault::Type(found) => fault(format!("it decodes to type {found}")),
                RowFault::Receiver(error) => error,
            })?;
        if reader.ends.len() != batch.rows.num_rows() {
            return Err(EngineError::Bug("a row was lost while it was read".into()));
        }
        Ok(())
    }

    /// Where these columns of the file stand in a batch, which holds those that are read.
    fn places(&self, source: &Source, columns: &[usize]) -> Vec<usize> {
        if self.keep.is_none() {
            return columns.to_vec();
        }
        let read = source.columns();
        let place = |index: &usize| read.partition_point(|other| other < index);
        columns.iter().map(place).collect()
    }
}

fn bug(error: arrow::error::ArrowError) -> EngineError {
    EngineError::Bug(error.to_string())
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
