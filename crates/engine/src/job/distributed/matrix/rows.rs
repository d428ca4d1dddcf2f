//! Rows of a matrix as a file: an Arrow IPC stream of (row, column, value), whole rows in each batch.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef, UInt32Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow_ipc::CompressionType;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use pmill_count::{CountError, RowSink};
use serde::{Deserialize, Serialize};

use super::super::place;
use crate::error::EngineError;
use crate::rows::{RowBand, Scoring};

/// Entries of a batch; a longer row is a batch of its own.
const BATCH: usize = 1 << 16;

/// What a unit left; its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct RowsDone {
    pub(super) file: String,
    pub(in super::super) entries: u64,
    pub(super) bytes: u64,
}

fn schema() -> SchemaRef {
    let field = |name: &str, kind| Field::new(name, kind, false);
    Arc::new(Schema::new(vec![
        field("row", DataType::UInt32),
        field("column", DataType::UInt32),
        field("value", DataType::Float64),
    ]))
}

/// Turns counts into values and writes them.
pub(super) struct ValuesFile<'a> {
    path: PathBuf,
    writer: StreamWriter<BufWriter<File>>,
    scoring: &'a Scoring,
    /// Weight units of a count of 1.
    unit: f64,
    rows: Vec<u32>,
    columns: Vec<u32>,
    values: Vec<f64>,
    entries: u64,
}

impl<'a> ValuesFile<'a> {
    pub(super) fn create(
        path: &Path,
        scoring: &'a Scoring,
        unit: f64,
    ) -> Result<Self, EngineError> {
        let file = File::create(path).map_err(|source| place::io("write", path, source))?;
        let options = IpcWriteOptions::default()
            .try_with_compression(Some(CompressionType::ZSTD))
            .map_err(|error| failed(path, error))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let writer = StreamWriter::try_new_with_options(file, &schema(), options);
        Ok(Self {
            path: path.to_owned(),
            writer: writer.map_err(|error| failed(path, error))?,
            scoring,
            unit,
            rows: Vec::new(),
            columns: Vec::new(),
            values: Vec::new(),
            entries: 0,
        })
    }

    fn flush(&mut self) -> Result<(), EngineError> {
        self.scoring
            .chunk(&self.rows, &self.columns, &mut self.values)?;
        let mut to = 0;
        for place in 0..self.values.len() {
            if self.scoring.keeps(self.values[place]) {
                self.values[to] = self.values[place];
                self.rows[to] = self.rows[place];
                self.columns[to] = self.columns[place];
                to += 1;
            }
        }
        self.entries += to as u64;
        let numbers = |ids: &[u32]| -> ArrayRef { Arc::new(UInt32Array::from(ids.to_vec())) };
        let columns = vec![
            numbers(&self.rows[..to]),
            numbers(&self.columns[..to]),
            Arc::new(Float64Array::from(self.values[..to].to_vec())) as ArrayRef,
        ];
        self.rows.clear();
        self.columns.clear();
        self.values.clear();
        if to == 0 {
            return Ok(());
        }
        let fail = |error| failed(&self.path, error);
        let batch = RecordBatch::try_new(schema(), columns).map_err(fail)?;
        self.writer.write(&batch).map_err(fail)
    }

    /// Entries and bytes.
    pub(super) fn finish(mut self) -> Result<(u64, u64), EngineError> {
        if !self.values.is_empty() {
            self.flush()?;
        }
        let path = self.path;
        let fail = |source| place::io("write", &path, source);
        let mut out = self
            .writer
            .into_inner()
            .map_err(|error| failed(&path, error))?;
        out.flush().map_err(fail)?;
        let file = out.into_inner().map_err(|error| fail(error.into_error()))?;
        file.sync_all().map_err(fail)?;
        let bytes = file.metadata().map_err(fail)?.len();
        Ok((self.entries, bytes))
    }
}

impl RowSink for ValuesFile<'_> {
    fn row(&mut self, left: u32, right: &[u32], counts: &[u64]) -> pmill_count::Result<()> {
        self.rows.resize(self.rows.len() + right.len(), left);
        self.columns.extend_from_slice(right);
        let unit = self.unit;
        self.values
            .extend(counts.iter().map(|count| *count as f64 / unit));
        if self.values.len() < BATCH {
            return Ok(());
        }
        self.flush().map_err(|error| CountError::Sink {
            left,
            source: Box::new(error),
        })
    }
}

fn failed(path: &Path, error: ArrowError) -> EngineError {
    match error {
        ArrowError::IoError(_, source) => place::io("write", path, source),
        other => EngineError::Bug(format!("rows of a matrix cannot be written: {other}")),
    }
}

/// Puts the rows of files together to bands of a size.
pub(super) struct Bands {
    most: usize,
    band: RowBand,
}

impl Bands {
    /// Bands of at most `most` entries, or of one batch if that is more.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            band: RowBand::default(),
        }
    }

    /// Gives the rows of a file to `each` as they fill bands.
    pub(super) fn read<E: From<EngineError>>(
        &mut self,
        path: &Path,
        mut each: impl FnMut(RowBand) -> Result<(), E>,
    ) -> Result<(), E> {
        let fail = |error: ArrowError| {
            EngineError::NotNow(format!(
                "rows of the matrix cannot be read from `{}` ({error}): run the command again",
                path.display()
            ))
        };
        let file = File::open(path).map_err(|error| fail(error.into()))?;
        let reader = StreamReader::try_new(BufReader::with_capacity(1 << 20, file), None);
        for batch in reader.map_err(fail)? {
            let batch = batch.map_err(fail)?;
            if self.band.columns.len() + batch.num_rows() > self.most
                && !self.band.columns.is_empty()
            {
                each(std::mem::take(&mut self.band))?;
            }
            self.add(&batch);
        }
        Ok(())
    }

    /// The rows that are left.
    pub(super) fn last(self) -> Option<RowBand> {
        (!self.band.columns.is_empty()).then_some(self.band)
    }

    fn add(&mut self, batch: &RecordBatch) {
        let rows = batch.column(0).as_primitive::<UInt32Type>().values();
        let band = &mut self.band;
        let Some(first) = rows.first() else { return };
        if band.columns.is_empty() {
            band.first = *first;
            band.row_starts = vec![0];
        }
        let before = band.columns.len();
        let columns = batch.column(1).as_primitive::<UInt32Type>().values();
        band.columns.extend_from_slice(columns);
        let values = batch.column(2).as_primitive::<Float64Type>().values();
        band.values.extend_from_slice(values);
        for (place, row) in rows.iter().enumerate() {
            // Rows in between have no entries.
            let rows = (row - band.first) as usize + 1;
            if band.row_starts.len() < rows {
                band.row_starts.resize(rows, before + place);
            }
        }
        band.row_starts.push(band.columns.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_hold_the_rows_of_batches_with_gaps_between_them() {
        let batch = |rows: &[u32]| {
            let columns: Vec<u32> = (0..rows.len() as u32).collect();
            let values: Vec<f64> = columns.iter().map(|n| f64::from(*n) + 0.5).collect();
            let columns = vec![
                Arc::new(UInt32Array::from(rows.to_vec())) as ArrayRef,
                Arc::new(UInt32Array::from(columns)),
                Arc::new(Float64Array::from(values)),
            ];
            RecordBatch::try_new(schema(), columns).unwrap()
        };
        let mut bands = Bands::new(100);
        bands.add(&batch(&[2, 2, 5]));
        bands.add(&batch(&[6, 9]));
        let band = bands.last().unwrap();
        assert_eq!(band.first, 2);
        assert_eq!(band.row_starts, [0, 2, 2, 2, 3, 4, 4, 4, 5]);
        let rows: Vec<(u32, usize)> = band.rows().map(|(row, c, _)| (row, c.len())).collect();
        assert_eq!(rows, [(2, 2), (5, 1), (6, 1), (9, 1)]);
    }
}
