//! Writes the tables of a job: pairs from counted rows, vocabulary, sources.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use object_store::path::Path as ObjectPath;
use pmill_count::{CountError, RowSink};
use pmill_store::{
    DataFile, JobName, PairsWriter, StoreError, TableWriter, Warehouse, table_properties,
};
use pmill_text::Vocabulary;
use tokio::runtime::Handle;

use crate::error::EngineError;
use crate::slices::Slices;

/// Where files of one table go.
pub struct TableFolder<'a> {
    warehouse: &'a Warehouse,
    folder: ObjectPath,
    local: Option<PathBuf>,
    runtime: Handle,
}

impl<'a> TableFolder<'a> {
    /// The folder of a job's table.
    #[must_use]
    pub fn new(warehouse: &'a Warehouse, job: &JobName, table: &str, runtime: &Handle) -> Self {
        let (folder, local) = warehouse.table_folder(job, table);
        Self {
            warehouse,
            folder,
            local,
            runtime: runtime.clone(),
        }
    }

    /// Another folder of this machine, from where files are moved into the table later.
    #[must_use]
    pub fn at(warehouse: &'a Warehouse, folder: PathBuf, runtime: &Handle) -> Self {
        Self {
            warehouse,
            folder: ObjectPath::default(),
            local: Some(folder),
            runtime: runtime.clone(),
        }
    }

    /// Starts a file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(
        &self,
        name: &str,
        schema: &SchemaRef,
        sorted: &[&str],
    ) -> Result<TableWriter, StoreError> {
        TableWriter::create(
            self.warehouse.store(),
            &self.folder,
            self.local.clone(),
            name,
            schema.clone(),
            table_properties(schema, sorted),
            &self.runtime,
        )
    }

    /// Writes a whole small table as one file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(
        &self,
        name: &str,
        schema: &SchemaRef,
        sorted: &[&str],
        columns: Vec<ArrayRef>,
    ) -> Result<DataFile, EngineError> {
        let batch = RecordBatch::try_new(schema.clone(), columns)
            .map_err(|error| EngineError::Bug(error.to_string()))?;
        let mut writer = self.create(name, schema, sorted)?;
        writer.write(&batch)?;
        Ok(writer.finish()?)
    }
}

/// Writes counted rows as one file of `pairs`.
pub struct PairsFile {
    writer: PairsWriter,
    /// Pairs written.
    pub pairs: u64,
    /// Sum of their counts, in weight units.
    pub units: u128,
}

impl PairsFile {
    /// Starts the file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(folder: &TableFolder<'_>, name: &str) -> Result<Self, EngineError> {
        let writer = PairsWriter::create(
            folder.warehouse.store(),
            &folder.folder,
            folder.local.clone(),
            name,
            &folder.runtime,
        )?;
        Ok(Self {
            writer,
            pairs: 0,
            units: 0,
        })
    }

    fn append(&mut self, left: u32, right: &[u32], counts: &[u64]) -> Result<(), EngineError> {
        self.writer.row(left, right, counts)?;
        // A row's sum may be beyond 64 bits: in two halves it is not.
        let (low, high) = counts.iter().fold((0_u64, 0_u64), |(low, high), count| {
            (low + (count & u64::from(u32::MAX)), high + (count >> 32))
        });
        self.units += (u128::from(high) << 32) + u128::from(low);
        self.pairs += right.len() as u64;
        Ok(())
    }

    /// Writes what is left and closes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<(DataFile, u64, u128), EngineError> {
        Ok((self.writer.finish()?, self.pairs, self.units))
    }
}

fn too_large(left: u32, value: u64) -> EngineError {
    EngineError::Setting(format!(
        "{value} (in the row of id {left}) is beyond what a table can store (ids below 2^31, counts below 2^63)"
    ))
}

impl RowSink for PairsFile {
    fn row(&mut self, left: u32, right: &[u32], counts: &[u64]) -> Result<(), CountError> {
        self.append(left, right, counts)
            .map_err(|error| CountError::Sink {
                left,
                source: Box::new(error),
            })
    }
}

/// The engine error that a sink or a source hid in a kernel error, as itself.
#[must_use]
pub fn unwrap_sink(error: CountError) -> EngineError {
    match error {
        CountError::Sink { left, source } => match source.downcast::<EngineError>() {
            Ok(inner) => *inner,
            Err(source) => EngineError::Count(CountError::Sink { left, source }),
        },
        CountError::Source { left, source } => match source.downcast::<EngineError>() {
            Ok(inner) => *inner,
            Err(source) => EngineError::Count(CountError::Source { left, source }),
        },
        other => EngineError::Count(other),
    }
}

/// Columns of `vocab`.
///
/// # Errors
/// When a count does not fit.
pub fn vocab_columns(vocabulary: &Vocabulary) -> Result<Vec<ArrayRef>, EngineError> {
    let size =
        u32::try_from(vocabulary.len()).map_err(|_| too_large(0, vocabulary.len() as u64))?;
    let count = |value: u64| i64::try_from(value).map_err(|_| too_large(0, value));
    let ids = 0..size;
    Ok(vec![
        Arc::new(Int32Array::from(
            ids.clone()
                .map(|id| i32::try_from(id).map_err(|_| too_large(id, u64::from(id))))
                .collect::<Result<Vec<_>, _>>()?,
        )),
        Arc::new(StringArray::from_iter_values(
            ids.clone().map(|id| vocabulary.term(id)),
        )),
        Arc::new(Int64Array::from(
            ids.clone()
                .map(|id| count(vocabulary.tokens(id)))
                .collect::<Result<Vec<_>, _>>()?,
        )),
        Arc::new(Int64Array::from(
            ids.map(|id| count(vocabulary.documents(id)))
                .collect::<Result<Vec<_>, _>>()?,
        )),
    ])
}

/// How many pairs one file of `pairs` is planned for at most, by the estimate of [`table_ranges`].
pub(crate) const PAIRS_A_FILE: u64 = 16 << 20;
/// Smaller files are not worth their footers.
const LEAST_PAIRS_A_FILE: u64 = 1 << 20;
/// A job of middling size has so many files, so that threads end at about the same time.
const FILES: u64 = 16;

/// Cuts the left ids into ranges, one table file each.
///
/// The cut depends on the vocabulary and the context only, so that the files are the same however
/// the corpus was cut and however much memory there was. The estimate of a row's pairs is from
/// above: every token meets `reach` others, and there are no more partners than ids.
#[must_use]
pub fn table_ranges(vocabulary: &Vocabulary, reach: u64) -> Vec<Range<u32>> {
    let size = u32::try_from(vocabulary.len()).unwrap_or(u32::MAX);
    let estimate = |id: u32| {
        let meetings = vocabulary.tokens(id).saturating_mul(reach);
        meetings.min(u64::from(size - id))
    };
    ranges_of(size, estimate)
}

/// The same for a sliced job, by the ids of all slices.
pub(crate) fn sliced_ranges(slices: &Slices, reach: u64) -> Result<Vec<Range<u32>>, EngineError> {
    let (size, terms) = (slices.ids()?, slices.terms().max(1) as u32);
    let estimate = |id: u32| {
        let meetings = slices.tokens(id).saturating_mul(reach);
        meetings.min(u64::from(terms - id % terms))
    };
    Ok(ranges_of(size, estimate))
}

fn ranges_of(size: u32, estimate: impl Fn(u32) -> u64) -> Vec<Range<u32>> {
    let all: u64 = (0..size).map(&estimate).sum();
    let pairs_a_file = (all / FILES).clamp(LEAST_PAIRS_A_FILE, PAIRS_A_FILE);
    let mut ranges = Vec::new();
    let (mut start, mut pairs) = (0, 0_u64);
    for id in 0..size {
        pairs += estimate(id);
        if pairs >= pairs_a_file {
            ranges.push(start..id + 1);
            start = id + 1;
            pairs = 0;
        }
    }
    if start < size || ranges.is_empty() {
        ranges.push(start..size);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use pmill_text::{TermCount, VocabularyRule};

    use super::*;

    fn vocabulary(counts: &[u64]) -> Vocabulary {
        let terms = counts.iter().enumerate().map(|(index, tokens)| {
            let term = format!("{index:08}");
            Ok::<_, EngineError>(TermCount {
                term,
                tokens: *tokens,
                documents: *tokens,
            })
        });
        Vocabulary::from_counts(terms, &VocabularyRule::default()).unwrap()
    }

    #[test]
    fn ranges_cover_all_ids_once() {
        for counts in [vec![], vec![1], vec![1 << 40; 3], vec![1 << 30; 40_000]] {
            let ranges = table_ranges(&vocabulary(&counts), 20);
            assert_eq!(ranges[0].start, 0);
            assert_eq!(ranges[ranges.len() - 1].end as usize, counts.len());
            assert!(ranges.windows(2).all(|two| two[0].end == two[1].start));
        }
        assert!(table_ranges(&vocabulary(&vec![1 << 30; 40_000]), 20).len() > 10);
        assert_eq!(table_ranges(&vocabulary(&[5, 4, 3]), 20).len(), 1);
    }
}
