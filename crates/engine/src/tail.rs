//! The sketch of a job as its table `tail`: one file for each hash row, and one for the distinct pairs, so that one row
//! at a time is read, added and written.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int32Array, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use pmill_count::{Distinct, HashRow, Tail, TailSettings, TailSums};
use pmill_store::{DataFile, Job, Warehouse, schema};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::error::EngineError;
use crate::job::parse;
use crate::settings::RecordedSettings;
use crate::stored::StoredTable;
use crate::tables::TableFolder;

/// The kinds of rows of `tail`.
pub(crate) const COUNT_MIN: &str = "count-min";
pub(crate) const HYPERLOGLOG: &str = "hyperloglog";
/// The seed of DataSketches' HyperLogLog.
const DISTINCT_SEED: i64 = 9001;

/// What a sketch adds to the memory of a job while a row of it is written or read: its image, the array, the
/// encoded page, and the page compressed.
const ROWS_ON_THE_WAY: u64 = 4;

/// What is known of the sketched pairs of a job; kept with its table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TailFacts {
    /// Sum of the sketched counts in weight units, as text.
    pub units: String,
    /// An estimate is never below the truth, and above it by at most so many units, as text …
    pub most_over: String,
    /// … for this share of the pairs (expected over the choice of hash functions).
    pub confidence: f64,
    /// About how many distinct pairs there are.
    pub distinct: u64,
    /// The relative standard error of that number.
    pub distinct_error: f64,
    /// Whether that number is one that is not exceeded: what was taken out is still in it.
    pub distinct_is_upper_bound: bool,
}

impl TailFacts {
    /// Of a sketch.
    pub(crate) fn of(tail: &mut Tail, distinct_is_upper_bound: bool) -> Self {
        let settings = tail.settings();
        Self {
            units: tail.total().to_string(),
            most_over: settings.most_over(tail.total()).to_string(),
            confidence: settings.confidence(),
            distinct_error: TailSettings::distinct_error(),
            distinct: tail.distinct().estimate(),
            distinct_is_upper_bound,
        }
    }

    /// Says it to a person.
    pub(crate) fn fmt(
        &self,
        out: &mut fmt::Formatter<'_>,
        sketch: &TailSettings,
        weight_unit: u64,
    ) -> fmt::Result {
        writeln!(
            out,
            "  exact: pairs of the first {} terms; all others in a sketch of {} hash rows of {} cells",
            sketch.exact_terms, sketch.hashes, sketch.buckets
        )?;
        writeln!(
            out,
            "    {} {} distinct pairs (standard error {:.2} %), counts add up to {} units of 1/{weight_unit}",
            if self.distinct_is_upper_bound {
                "at most about"
            } else {
                "about"
            },
            self.distinct,
            100.0 * self.distinct_error,
            self.units
        )?;
        writeln!(
            out,
            "    an estimate is never below the count, and above it by at most {} with a chance of {:.2} %",
            self.most_over,
            100.0 * self.confidence
        )
    }

    /// Sum of the sketched counts in weight units.
    ///
    /// # Errors
    /// When it is no number.
    pub fn units(&self) -> Result<u64, EngineError> {
        let units = self.units.parse();
        units.map_err(|_| EngineError::Query(format!("the facts of `tail` say `{}`", self.units)))
    }
}

/// What other readers of `tail` must know; a property of the table.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    settings: &'a TailSettings,
    key: &'static str,
    hash: &'static str,
    relative_error: f64,
    #[serde(flatten)]
    facts: &'a TailFacts,
}

/// Says what the sketches of `tail` are, as JSON.
pub(crate) fn describe(settings: &TailSettings, facts: &TailFacts) -> Result<String, EngineError> {
    serde_json::to_string(&Described {
        settings,
        key: "left_id * 2^32 + right_id, 8 bytes, little-endian",
        hash: "cell = h(key, s) modulo buckets, s = h(8 zero bytes, seed), h = first half of MurmurHash3 x64 128",
        relative_error: settings.relative_error(),
        facts,
    })
    .map_err(|error| EngineError::Bug(error.to_string()))
}

/// Bytes that `copies` sketches hold, and one row on its way to or from a file; without the sums by term.
pub(crate) fn held_bytes(settings: &TailSettings, copies: u64) -> u64 {
    settings.held_bytes() * copies + settings.row_bytes() * ROWS_ON_THE_WAY
}

/// Bytes of the sums by term of `copies` sketches.
pub(crate) fn sums_bytes(terms: usize, copies: u64) -> u64 {
    terms as u64 * 16 * copies
}

/// Writes all files of `tail`.
pub(crate) fn write(
    tail: &mut Tail,
    folder: &TableFolder<'_>,
    digest: &str,
) -> Result<Vec<DataFile>, EngineError> {
    let settings = tail.settings().clone();
    let mut files = Vec::new();
    let mut write = |kind: &str, hash: Option<u8>, seed: i64, image: Vec<u8>| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values([kind])),
            Arc::new(Int32Array::from_iter([hash.map(i32::from)])),
            Arc::new(Int64Array::from_iter_values([seed])),
            Arc::new(BinaryArray::from_iter_values([image])),
        ];
        let name = format!("part-{:05}-{digest}.parquet", files.len());
        files.push(folder.write(&name, &schema::TAIL, &[], columns)?);
        Ok::<_, EngineError>(())
    };
    for hash in 0..settings.hashes {
        let seed = i64::try_from(settings.seed(hash)).unwrap_or(i64::MAX);
        write(COUNT_MIN, Some(hash), seed, tail.row(hash)?.image())?;
    }
    write(HYPERLOGLOG, None, DISTINCT_SEED, tail.distinct().image())?;
    Ok(files)
}

/// Columns `tail_left` and `tail_right` of `vocab`.
pub(crate) fn sum_columns(sums: &TailSums) -> Result<[ArrayRef; 2], EngineError> {
    let column = |sums: &[u64]| -> Result<ArrayRef, EngineError> {
        let numbers = sums.iter().map(|sum| i64::try_from(*sum));
        let numbers: Vec<i64> = numbers
            .collect::<Result<_, _>>()
            .map_err(|_| EngineError::Count(pmill_count::CountError::TailOverflow))?;
        Ok(Arc::new(Int64Array::from(numbers)))
    };
    Ok([column(&sums.left)?, column(&sums.right)?])
}

/// The sketch of a job at one version.
pub(crate) struct StoredTail {
    table: StoredTable,
    vocab: StoredTable,
    pub(crate) settings: TailSettings,
}

impl StoredTail {
    /// `None` when the job has no sketch.
    pub(crate) fn open(
        warehouse: &Warehouse,
        job: &Job,
        runtime: &Handle,
    ) -> Result<Option<Self>, EngineError> {
        let recorded: RecordedSettings = parse(&job.settings()?)?;
        let (Some(state), Some(settings)) = (&job.tail, recorded.given.sketch) else {
            return Ok(None);
        };
        Ok(Some(Self {
            table: StoredTable::new(warehouse, &job.name, "tail", "hash", state, runtime)?,
            vocab: StoredTable::new(warehouse, &job.name, "vocab", "id", &job.vocab, runtime)?,
            settings,
        }))
    }

    /// A hash row.
    pub(crate) fn row(&self, hash: u8) -> Result<HashRow, EngineError> {
        let image = self.image(COUNT_MIN, Some(hash))?;
        Ok(HashRow::from_image(&self.settings, hash, &image)?)
    }

    /// The distinct pairs.
    pub(crate) fn distinct(&self) -> Result<Distinct, EngineError> {
        Ok(Distinct::from_image(&self.image(HYPERLOGLOG, None)?)?)
    }

    /// The stored bytes of a row of `tail`.
    pub(crate) fn image(&self, kind: &str, hash: Option<u8>) -> Result<Vec<u8>, EngineError> {
        let wanted = hash.map(i64::from);
        for file in &self.table.files {
            let range = file.range("hash");
            let within = wanted
                .zip(range)
                .is_none_or(|(hash, (low, high))| (low..=high).contains(&hash));
            if !within || (wanted.is_some() && range.is_none()) {
                continue;
            }
            let groups = self.table.metadata(file)?.metadata().num_row_groups();
            let mut stream = self.table.open(file, (0..groups).collect())?;
            while let Some(batch) = self.table.next(file, &mut stream)? {
                let found = row_of(&batch, kind, hash).ok_or_else(|| {
                    self.table
                        .damaged(file, "its columns are not those of `tail`")
                })?;
                if let Some(image) = found {
                    return Ok(image);
                }
            }
        }
        let which = hash.map_or_else(String::new, |hash| format!(" {hash}"));
        Err(EngineError::Count(pmill_count::CountError::TailDamaged {
            reason: format!("`tail` has no row of kind {kind}{which}"),
        }))
    }

    /// The sums by term, of `vocab`.
    pub(crate) fn sums(&self) -> Result<TailSums, EngineError> {
        let mut sums = TailSums::default();
        for file in &self.vocab.files {
            let groups = self.vocab.metadata(file)?.metadata().num_row_groups();
            let mut stream = self.vocab.open(file, (0..groups).collect())?;
            while let Some(batch) = self.vocab.next(file, &mut stream)? {
                for (name, sums) in [
                    ("tail_left", &mut sums.left),
                    ("tail_right", &mut sums.right),
                ] {
                    let column = batch.column_by_name(name);
                    let column = column.and_then(|column| column.as_primitive_opt::<Int64Type>());
                    let numbers = column.and_then(|column| {
                        let numbers = column.values().iter();
                        numbers
                            .map(|number| u64::try_from(*number).ok())
                            .collect::<Option<Vec<_>>>()
                    });
                    let wrong = || {
                        self.vocab
                            .damaged(file, "it has no sums of the sketched pairs")
                    };
                    sums.extend(numbers.ok_or_else(wrong)?);
                }
            }
        }
        Ok(sums)
    }

    /// Adds all of it to a sketch.
    pub(crate) fn add_to(&self, tail: &mut Tail) -> Result<(), EngineError> {
        tail.add_sums(&self.sums()?)?;
        for hash in 0..self.settings.hashes {
            tail.add_row(hash, &self.row(hash)?)?;
        }
        tail.add_distinct(&self.distinct()?)?;
        Ok(())
    }

    /// What the sketch says of each of some pairs of ids; one hash row is held at a time.
    pub(crate) fn estimates(&self, pairs: &[(u32, u32)]) -> Result<Vec<u64>, EngineError> {
        let mut least = vec![u64::MAX; pairs.len()];
        if pairs.is_empty() {
            return Ok(least);
        }
        for hash in 0..self.settings.hashes {
            let row = self.row(hash)?;
            for (least, (left, right)) in least.iter_mut().zip(pairs) {
                *least = (*least).min(row.estimate(*left, *right));
            }
        }
        Ok(least)
    }
}

/// `None` when the batch is not one of `tail`.
fn row_of(
    batch: &arrow::record_batch::RecordBatch,
    kind: &str,
    hash: Option<u8>,
) -> Option<Option<Vec<u8>>> {
    let kinds = cast(batch.column_by_name("kind")?, &DataType::Utf8).ok()?;
    let kinds = kinds.as_string_opt::<i32>()?;
    let hashes = batch
        .column_by_name("hash")?
        .as_primitive_opt::<Int32Type>()?;
    let sketches = batch.column_by_name("sketch")?;
    let sketches = match sketches.data_type() {
        DataType::Binary => sketches.clone(),
        _ => cast(sketches, &DataType::Binary).ok()?,
    };
    let sketches = sketches.as_binary_opt::<i32>()?;
    let place = (0..batch.num_rows()).find(|row| {
        let found = hashes.is_valid(*row).then(|| hashes.value(*row));
        kinds.value(*row) == kind && found == hash.map(i32::from)
    });
    Some(place.map(|row| sketches.value(row).to_vec()))
}

/// Refuses a job whose pairs are not all in `pairs`, where what is not there would pass for never seen.
///
/// # Errors
/// For a job with a sketch.
pub fn refuse(what: &str, job: &str, settings: &RecordedSettings) -> Result<(), EngineError> {
    let Some(sketch) = &settings.given.sketch else {
        return Ok(());
    };
    let exact = sketch.exact_terms;
    Err(EngineError::Setting(format!(
        "{what} needs every pair, and job `{job}` holds only those of its first {exact} terms: the others are in a sketch, which cannot be listed. Count with --vocab-size {exact} in place of --exact-terms to have a job of just these terms"
    )))
}

/// What to say where only the exact pairs of a job are given; `None` when these are all.
#[must_use]
pub fn only_exact(settings: &RecordedSettings) -> Option<String> {
    let exact = settings.given.sketch.as_ref()?.exact_terms;
    Some(format!(
        "only pairs of the first {exact} terms are in it; the others are in a sketch (SELECT * FROM estimate(…) asks it)"
    ))
}
