//! Reads what decides about rows, and writes the rows that were chosen.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::{Choice, Row, SampleJob, Written};
use crate::annotate::Shard;
use crate::annotate::shard::digest;
use crate::error::{EngineError, FileFault, nearest_name};
use crate::input::InputFile;
use crate::progress::StopFlag;
use crate::scan::catch;

/// Which columns decide.
pub(super) struct Columns {
    id: Vec<String>,
    weight: Option<Column>,
    middle: Option<String>,
    written: Written,
    seed: [u8; 32],
}

/// The column of weights, and what its numbers may be.
pub(super) struct Column {
    name: String,
    probability: bool,
}

fn bad(input: &InputFile, fault: FileFault) -> EngineError {
    EngineError::BadFile {
        file: input.display(),
        fault,
    }
}

fn rows_fault(input: &InputFile, reason: String) -> EngineError {
    bad(input, FileFault::Footer(reason))
}

fn bug(error: arrow::error::ArrowError) -> EngineError {
    EngineError::Bug(error.to_string())
}

impl Columns {
    pub(super) fn new(job: &SampleJob) -> Self {
        let column = |name: &String, probability| {
            Some(Column {
                name: name.clone(),
                probability,
            })
        };
        Self {
            id: job.id.clone(),
            weight: match &job.choice {
                Choice::All => None,
                Choice::Importance { log_weight, .. } => column(log_weight, false),
                Choice::Probability { probability } => column(probability, true),
            },
            middle: job.middle.as_ref().map(|(name, _)| name.clone()),
            written: job.written,
            // The seed is the key of the hash.
            seed: *blake3::hash(&job.seed.to_le_bytes()).as_bytes(),
        }
    }

    fn names(&self) -> Vec<&str> {
        let weight = self.weight.iter().map(|column| column.name.as_str());
        let ids = self.id.iter().map(String::as_str);
        ids.chain(weight).chain(self.middle.as_deref()).collect()
    }

    fn open(&self, input: &InputFile, all: bool) -> Result<ParquetRecordBatchReader, EngineError> {
        let now = input.refresh();
        if !now.as_ref().is_ok_and(|now| now == input) {
            let fault = FileFault::Changed {
                expected: input.identity(),
                found: now.map_or_else(|_| "no file".to_owned(), |now| now.identity()),
            };
            return Err(bad(input, fault));
        }
        let path = input.path().ok_or_else(|| EngineError::Input {
            input: input.uri.clone(),
            reason: "only files on this machine can be sampled".into(),
        })?;
        let footer = |reason: String| rows_fault(input, reason);
        let file = File::open(path).map_err(|error| footer(error.to_string()))?;
        let builder = catch(|| {
            ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| error.to_string())
        })
        .and_then(|builder| builder)
        .map_err(footer)?;
        let schema = builder.schema().clone();
        let mut roots = Vec::new();
        for name in self.names() {
            let index = schema.index_of(name).map_err(|_| {
                let known: Vec<String> = schema
                    .fields()
                    .iter()
                    .map(|field| field.name().clone())
                    .collect();
                let fault = FileFault::NoColumn {
                    column: name.to_owned(),
                    nearest: nearest_name(name, known.iter().map(String::as_str)),
                    known,
                };
                bad(input, fault)
            })?;
            roots.push(index);
        }
        let mask = if all {
            ProjectionMask::all()
        } else {
            ProjectionMask::roots(builder.parquet_schema(), roots)
        };
        catch(|| {
            builder
                .with_projection(mask)
                .with_batch_size(if all { 2048 } else { 8192 })
                .build()
                .map_err(|error| error.to_string())
        })
        .and_then(|reader| reader)
        .map_err(footer)
    }

    /// Looks whether the columns are there.
    pub(super) fn check(&self, input: &InputFile) -> Result<(), EngineError> {
        self.open(input, false).map(drop)
    }

    /// Gives each row to `each`, in order.
    pub(super) fn rows(
        &self,
        input: &InputFile,
        stop: &StopFlag,
        mut each: impl FnMut(Row),
    ) -> Result<(), EngineError> {
        let mut reader = self.open(input, false)?;
        while let Some(batch) = next(&mut reader, input, stop)? {
            self.decide(input, &batch)?.into_iter().for_each(&mut each);
        }
        Ok(())
    }

    /// What decides about each row of a batch.
    fn decide(&self, input: &InputFile, batch: &RecordBatch) -> Result<Vec<Row>, EngineError> {
        let ids = self
            .id
            .iter()
            .map(|name| {
                let column = batch.column_by_name(name);
                let column = column.ok_or_else(|| EngineError::Bug("an id is gone".into()))?;
                cast(column, &DataType::Utf8).map_err(|_| {
                    rows_fault(
                        input,
                        format!(
                            "column `{name}` has type {}, which names no row",
                            column.data_type()
                        ),
                    )
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let numbers = |name: Option<&str>| {
            name.map(|name| {
                let column = batch.column_by_name(name);
                let column = column.ok_or_else(|| EngineError::Bug("a column is gone".into()))?;
                cast(column, &DataType::Float64).map_err(|_| {
                    rows_fault(
                        input,
                        format!(
                            "column `{name}` has type {}, expected numbers",
                            column.data_type()
                        ),
                    )
                })
            })
            .transpose()
        };
        let weight = numbers(self.weight.as_ref().map(|column| column.name.as_str()))?;
        let middle = numbers(self.middle.as_deref())?;
        let number = |array: &Option<ArrayRef>, row: usize| {
            let array = array.as_ref()?.as_primitive::<Float64Type>();
            let value = (!array.is_null(row)).then(|| array.value(row))?;
            (!value.is_nan()).then_some(value)
        };
        (0..batch.num_rows())
            .map(|row| {
                let mut hasher = blake3::Hasher::new_keyed(&self.seed);
                for id in &ids {
                    let id = id.as_string::<i32>();
                    // The length keeps ("ab", "c") apart from ("a", "bc").
                    let text = if id.is_null(row) {
                        None
                    } else {
                        Some(id.value(row))
                    };
                    hasher.update(&(text.map_or(u64::MAX, |t| t.len() as u64)).to_le_bytes());
                    hasher.update(text.unwrap_or_default().as_bytes());
                }
                let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
                let weight = number(&weight, row);
                if let (Some(column), Some(value)) = (&self.weight, weight)
                    && column.probability
                    && !(0.0..=1.0).contains(&value)
                {
                    return Err(rows_fault(
                        input,
                        format!(
                            "column `{}` holds {value}, expected probabilities from 0 to 1",
                            column.name
                        ),
                    ));
                }
                Ok(Row {
                    hash: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                    weight,
                    middle: number(&middle, row),
                })
            })
            .collect()
    }

    /// Writes the rows for which `keep` gives a weight.
    pub(super) fn write(
        &self,
        input: &InputFile,
        path: &Path,
        name: String,
        keep: &dyn Fn(&Row) -> Option<f64>,
        stop: &StopFlag,
    ) -> Result<Shard, EngineError> {
        let mut reader = self.open(input, self.written == Written::Shards)?;
        let read = arrow::record_batch::RecordBatchReader::schema(&reader);
        let ids = || {
            self.id
                .iter()
                .map(|name| read.index_of(name).map_err(bug))
                .collect::<Result<Vec<_>, _>>()
        };
        let schema = match self.written {
            Written::Shards => read.clone(),
            Written::Ids => Arc::new(read.project(&ids()?).map_err(bug)?),
            Written::Weights => {
                let mut fields = read.project(&ids()?).map_err(bug)?.fields().to_vec();
                fields.push(Arc::new(Field::new("weight", DataType::Float64, false)));
                Arc::new(Schema::new(fields))
            }
        };
        let io = |source: std::io::Error| EngineError::Io {
            action: "write",
            path: path.display().to_string(),
            source,
        };
        let out = File::create(path).map_err(io)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .build();
        let mut writer = ArrowWriter::try_new(&out, schema.clone(), Some(properties))
            .map_err(|error| io(error.into()))?;
        let mut rows = 0;
        while let Some(batch) = next(&mut reader, input, stop)? {
            let weights: Vec<Option<f64>> = self.decide(input, &batch)?.iter().map(keep).collect();
            let kept: BooleanArray = weights
                .iter()
                .map(|weight| Some(weight.is_some()))
                .collect();
            let batch = match self.written {
                Written::Shards => filter_record_batch(&batch, &kept).map_err(bug)?,
                Written::Ids | Written::Weights => {
                    let ids = batch.project(&ids()?).map_err(bug)?;
                    let mut columns = filter_record_batch(&ids, &kept)
                        .map_err(bug)?
                        .columns()
                        .to_vec();
                    if self.written == Written::Weights {
                        let weights = weights.iter().flatten().copied();
                        columns.push(Arc::new(Float64Array::from_iter_values(weights)));
                    }
                    RecordBatch::try_new(schema.clone(), columns).map_err(bug)?
                }
            };
            rows += batch.num_rows() as u64;
            writer.write(&batch).map_err(|error| io(error.into()))?;
        }
        writer.close().map_err(|error| io(error.into()))?;
        out.sync_all().map_err(io)?;
        let (bytes, blake3) = digest(path)?;
        Ok(Shard {
            name,
            input: input.uri.clone(),
            rows,
            bytes,
            blake3,
        })
    }
}

fn next(
    reader: &mut ParquetRecordBatchReader,
    input: &InputFile,
    stop: &StopFlag,
) -> Result<Option<RecordBatch>, EngineError> {
    if stop.is_set() {
        return Err(EngineError::Interrupted);
    }
    catch(|| reader.next().transpose().map_err(|error| error.to_string()))
        .and_then(|batch| batch)
        .map_err(|reason| rows_fault(input, reason))
}
