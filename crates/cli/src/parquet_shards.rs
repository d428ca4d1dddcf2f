//! Matrix rows as Parquet shards by left id, named as Hugging Face datasets name theirs.
//!
//! How many shards there will be is known at the end, so they get their names then. Memory: one
//! batch and one row group.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int32Array, StringArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use pmill_matrix::MatrixError;
use pmill_matrix::formats::RowSink;

const BATCH: usize = 1 << 16;

/// Writes the shards.
pub struct ParquetShards {
    folder: PathBuf,
    terms: StringArray,
    schema: SchemaRef,
    shard_rows: u64,
    writer: Option<(ArrowWriter<File>, PathBuf)>,
    in_shard: u64,
    shards: usize,
    left: Vec<u32>,
    right: Vec<u32>,
    values: Vec<f64>,
}

impl ParquetShards {
    /// Shards of about `shard_rows` rows in `folder`/data.
    pub fn create(folder: &Path, terms: StringArray, shard_rows: u64) -> Self {
        let field = |name: &str, kind| Field::new(name, kind, false);
        let schema = Arc::new(Schema::new(vec![
            field("left_id", DataType::Int32),
            field("right_id", DataType::Int32),
            field("left", DataType::Utf8),
            field("right", DataType::Utf8),
            field("value", DataType::Float64),
        ]));
        Self {
            folder: folder.join("data"),
            terms,
            schema,
            shard_rows,
            writer: None,
            in_shard: 0,
            shards: 0,
            left: Vec::new(),
            right: Vec::new(),
            values: Vec::new(),
        }
    }

    fn begin(&mut self) -> Result<(), MatrixError> {
        fs::create_dir_all(&self.folder).map_err(|error| io("create", &self.folder, error))?;
        let path = self.folder.join(format!("{:05}.parquet", self.shards));
        let file = File::create(&path).map_err(|error| io("create", &path, error))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(1 << 20))
            .build();
        let writer = ArrowWriter::try_new(file, self.schema.clone(), Some(properties))
            .map_err(|error| io("write", &path, error.into()))?;
        self.writer = Some((writer, path));
        self.shards += 1;
        self.in_shard = 0;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), MatrixError> {
        let bug = |error: arrow::error::ArrowError| MatrixError::Bug(error.to_string());
        let (left, right) = (
            std::mem::take(&mut self.left),
            std::mem::take(&mut self.right),
        );
        let ids = |ids: &[u32]| -> ArrayRef {
            // Ids of a table are below 2^31.
            Arc::new(Int32Array::from_iter_values(
                ids.iter().map(|id| *id as i32),
            ))
        };
        let words = |ids: &[u32]| take(&self.terms, &UInt32Array::from(ids.to_vec()), None);
        let columns = vec![
            ids(&left),
            ids(&right),
            words(&left).map_err(bug)?,
            words(&right).map_err(bug)?,
            Arc::new(Float64Array::from(std::mem::take(&mut self.values))) as ArrayRef,
        ];
        let batch = RecordBatch::try_new(self.schema.clone(), columns).map_err(bug)?;
        if let Some((writer, path)) = &mut self.writer {
            writer
                .write(&batch)
                .map_err(|error| io("write", path, error.into()))?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), MatrixError> {
        self.flush()?;
        if let Some((writer, path)) = self.writer.take() {
            writer
                .close()
                .map_err(|error| io("write", &path, error.into()))?;
        }
        Ok(())
    }
}

impl RowSink for ParquetShards {
    fn row(&mut self, row: u32, columns: &[u32], values: &[f64]) -> Result<(), MatrixError> {
        if self.writer.is_some() && self.in_shard >= self.shard_rows {
            self.close()?;
        }
        if self.writer.is_none() {
            self.begin()?;
        }
        self.in_shard += columns.len() as u64;
        self.left.resize(self.left.len() + columns.len(), row);
        self.right.extend_from_slice(columns);
        self.values.extend_from_slice(values);
        if self.left.len() >= BATCH {
            self.flush()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), MatrixError> {
        if self.writer.is_none() && self.shards == 0 {
            self.begin()?;
        }
        self.close()?;
        for shard in 0..self.shards {
            let from = self.folder.join(format!("{shard:05}.parquet"));
            let name = format!("train-{shard:05}-of-{:05}.parquet", self.shards);
            fs::rename(&from, self.folder.join(name))
                .map_err(|error| io("rename", &from, error))?;
        }
        Ok(())
    }
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> MatrixError {
    MatrixError::Io {
        action,
        path: path.display().to_string(),
        source,
    }
}
