//! Where each left term's rows lie in the files of a `pmi` table.
//!
//! Scores are written in the order of `pairs`, so the rows of one left term stand together, but the
//! term's *words* are not in the order of the file, and a page's smallest and largest word say little.
//! One pass over the column `left` (a dictionary column: small) gives for each word its runs of rows;
//! a look-up then reads those rows and no others. Memory: one entry for each distinct left word. A
//! table whose words are scattered is not worth an index and gets none (`MAX_RUNS`).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Schema};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetFileReaderFactory;
use datafusion::error::{DataFusionError, Result};
use datafusion::parquet::arrow::ParquetRecordBatchStreamBuilder;
use datafusion::parquet::arrow::ProjectionMask;
use datafusion::parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::parquet::errors::Result as ParquetResult;
use datafusion::parquet::file::metadata::ParquetMetaData;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use tonic::codegen::Bytes;

/// More runs than this are not kept.
const MAX_RUNS: usize = 2_000_000;

/// Rows of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Index of the file.
    pub file: u32,
    /// Rows, from 0.
    pub rows: Range<u64>,
}

/// The index of one version of one table.
#[derive(Debug, Default)]
pub struct Runs {
    by_term: HashMap<Box<str>, Vec<Run>>,
    count: usize,
}

impl Runs {
    /// Reads the column `column` of the files. `None` when the rows of a term do not stand together.
    ///
    /// # Errors
    /// When a file cannot be read, or the column is not text without nulls.
    pub async fn read(
        readers: &dyn ParquetFileReaderFactory,
        files: &[PartitionedFile],
        column: &str,
    ) -> Result<Option<Self>> {
        let mut runs = Self::default();
        for (number, file) in files.iter().enumerate() {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            if !runs.read_file(readers, number, file, column).await? {
                return Ok(None);
            }
        }
        runs.by_term.shrink_to_fit();
        Ok(Some(runs))
    }

    async fn read_file(
        &mut self,
        readers: &dyn ParquetFileReaderFactory,
        number: u32,
        file: &PartitionedFile,
        column: &str,
    ) -> Result<bool> {
        let wrong = |text: String| DataFusionError::Execution(format!("{}: {text}", file.path()));
        let metrics = ExecutionPlanMetricsSet::new();
        let mut reader = Reader(readers.create_reader(0, file.clone(), None, &metrics)?);
        let metadata =
            ArrowReaderMetadata::load_async(&mut reader, ArrowReaderOptions::new()).await?;
        let index = metadata.schema().index_of(column)?;
        // As a dictionary, equal neighbours are equal numbers.
        let dictionary = DataType::Dictionary(DataType::Int32.into(), DataType::Utf8.into());
        let fields: Vec<Field> = metadata
            .schema()
            .fields()
            .iter()
            .map(|field| match field.name() == column {
                true => Field::new(column, dictionary.clone(), field.is_nullable()),
                false => field.as_ref().clone(),
            })
            .collect();
        let metadata = ArrowReaderMetadata::try_new(
            metadata.metadata().clone(),
            ArrowReaderOptions::new().with_schema(Arc::new(Schema::new(fields))),
        )?;
        let mask = ProjectionMask::leaves(metadata.parquet_schema(), [index]);
        let mut batches = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata)
            .with_projection(mask)
            .with_batch_size(1 << 16)
            .build()?;
        let mut row = 0_u64;
        let mut open: Option<(Box<str>, u64)> = None;
        while let Some(batch) = batches.try_next().await? {
            let array = batch
                .column(0)
                .as_dictionary_opt::<Int32Type>()
                .ok_or_else(|| wrong(format!("column `{column}` is not text")))?;
            let words: &StringArray = array.values().as_string();
            if array.null_count() > 0 {
                return Err(wrong(format!("column `{column}` has nulls")));
            }
            let keys = array.keys().values();
            let mut at = 0;
            while at < keys.len() {
                let key = keys[at];
                let length = keys[at..].iter().take_while(|other| **other == key).count();
                let word = words.value(key as usize);
                if open.as_ref().is_none_or(|(term, _)| term.as_ref() != word) {
                    if let Some((term, from)) = open.take() {
                        self.push(term, number, from..row);
                    }
                    open = Some((word.into(), row));
                    if self.count > MAX_RUNS {
                        return Ok(false);
                    }
                }
                row += length as u64;
                at += length;
            }
            // A pass over a large table shares its thread.
            tokio::task::yield_now().await;
        }
        if let Some((term, from)) = open {
            self.push(term, number, from..row);
        }
        Ok(true)
    }

    fn push(&mut self, term: Box<str>, file: u32, rows: Range<u64>) {
        self.count += 1;
        self.by_term
            .entry(term)
            .or_default()
            .push(Run { file, rows });
    }

    /// The runs of a term, by file and row; none when no row has it.
    #[must_use]
    pub fn of(&self, term: &str) -> &[Run] {
        self.by_term.get(term).map_or(&[], Vec::as_slice)
    }

    /// Distinct terms.
    #[must_use]
    pub fn terms(&self) -> usize {
        self.by_term.len()
    }
}

/// A boxed reader as the stream of batches wants it.
struct Reader(Box<dyn AsyncFileReader + Send>);

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        self.0.get_bytes(range)
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        self.0.get_byte_ranges(ranges)
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        self.0.get_metadata(options)
    }
}
