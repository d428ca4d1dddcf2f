//! A job's table as a sparse matrix, row after row, for files and factorizations.
//!
//! A symmetric job stores each pair once; its matrix has both directions, and a pair of a term with
//! itself counts twice (it is seen from both of its tokens). Rows are put together in bands: the
//! table is read once for its row lengths and sums, and once for each band. Memory: the vocabulary,
//! 40 bytes a term and thread for the sums, and one band.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::DFSchema;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::prelude::SessionContext;
use pmill_count::{Side, TailSums};
use pmill_store::{DataFile, Job, JobName, Warehouse};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::job::{Facts, parse};
use crate::memory::ByteSize;
use crate::progress::{Progress, StopFlag, Unit as Steps};
use crate::score::{Marginals, RecordedScore, ScoreSettings};
use crate::session::{Session, query};
use crate::settings::{ContextKind, RecordedSettings};
use crate::tail::StoredTail;
use crate::workers;

/// Bytes of an entry while its band is made: column, value, and its share of the pass that scores.
pub(crate) const ENTRY_BYTES: u64 = 16;

/// Entries that are scored at once.
const CHUNK: usize = 1 << 16;

/// What the numbers of the matrix are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// Pair counts in natural units.
    Count,
    /// A measure.
    Measure(RecordedScore),
    /// PMI with context-distribution smoothing (Levy, Goldberg & Dagan 2015, eq. 3), less a shift:
    /// `ln(n_xy · Σ n_y^alpha / (n_x · n_y^alpha)) − ln(shift)`, where it is positive.
    ShiftedPpmi {
        /// Exponent of the context's marginal; 1 is plain PMI.
        alpha: f64,
        /// Number of negative samples; 1 shifts nothing.
        shift: f64,
    },
}

/// Which side of a pair is the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Orientation {
    /// Left terms are rows.
    Plain,
    /// Right terms are rows; for a symmetric job other values only where they are not symmetric.
    Transposed,
}

/// Some whole rows of the matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowBand {
    /// The first row.
    pub first: u32,
    /// Where each row begins in the other two; one more than rows.
    pub row_starts: Vec<usize>,
    /// Columns, rising in each row.
    pub columns: Vec<u32>,
    /// Values.
    pub values: Vec<f64>,
}

impl RowBand {
    /// The rows that have entries.
    pub fn rows(&self) -> impl Iterator<Item = (u32, &[u32], &[f64])> {
        self.row_starts
            .windows(2)
            .enumerate()
            .filter(|(_, ends)| ends[0] < ends[1])
            .map(|(index, ends)| {
                let range = ends[0]..ends[1];
                (
                    self.first + index as u32,
                    &self.columns[range.clone()],
                    &self.values[range],
                )
            })
    }
}

/// Lengths and sums of the rows, from one pass over the table.
#[derive(Debug, Clone)]
pub struct Survey {
    plain: Vec<u64>,
    transposed: Vec<u64>,
    left: Vec<u128>,
    right: Vec<u128>,
}

impl Survey {
    pub(crate) fn empty(terms: usize) -> Self {
        Self {
            plain: vec![0; terms],
            transposed: vec![0; terms],
            left: vec![0; terms],
            right: vec![0; terms],
        }
    }

    /// Adds some pairs of a row.
    pub(crate) fn add_pairs(&mut self, left: u32, right: &[u32], counts: &[u64]) {
        let left = left as usize;
        for (right, count) in right.iter().zip(counts) {
            let (right, count) = (*right as usize, u128::from(*count));
            self.left[left] += count;
            self.right[right] += count;
            self.transposed[right] += 1;
        }
        self.plain[left] += right.len() as u64;
    }

    /// Adds what another part of the table has.
    pub(crate) fn add(&mut self, other: &Self) {
        for id in 0..self.plain.len() {
            self.left[id] += other.left[id];
            self.right[id] += other.right[id];
            self.plain[id] += other.plain[id];
            self.transposed[id] += other.transposed[id];
        }
    }

    /// Its numbers, 48 bytes a term.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let lengths = self.plain.iter().chain(&self.transposed);
        let sums = self.left.iter().chain(&self.right);
        let mut bytes: Vec<u8> = lengths.flat_map(|n| n.to_le_bytes()).collect();
        bytes.extend(sums.flat_map(|n| n.to_le_bytes()));
        bytes
    }

    /// What [`Self::to_bytes`] gave of so many terms; `None` if it was something else.
    pub(crate) fn from_bytes(bytes: &[u8], terms: usize) -> Option<Self> {
        let (lengths, sums) = bytes.split_at_checked(16 * terms)?;
        let lengths: Vec<u64> = whole(lengths)?
            .iter()
            .map(|n| u64::from_le_bytes(*n))
            .collect();
        let sums: Vec<u128> = whole(sums)?
            .iter()
            .map(|n| u128::from_le_bytes(*n))
            .collect();
        if sums.len() != 2 * terms {
            return None;
        }
        let (plain, transposed) = lengths.split_at(terms);
        let (left, right) = sums.split_at(terms);
        Some(Self {
            plain: plain.to_vec(),
            transposed: transposed.to_vec(),
            left: left.to_vec(),
            right: right.to_vec(),
        })
    }
}

/// Bytes as numbers of `N` bytes, without a rest.
fn whole<const N: usize>(bytes: &[u8]) -> Option<&[[u8; N]]> {
    let (numbers, rest) = bytes.as_chunks::<N>();
    rest.is_empty().then_some(numbers)
}

/// Some pairs with their scores.
#[derive(Debug, Clone, Default)]
pub struct ScoredPairs {
    left: Vec<u32>,
    right: Vec<u32>,
    counts: Vec<f64>,
    scores: Vec<f64>,
}

impl ScoredPairs {
    fn clear(&mut self) {
        self.left.clear();
        self.right.clear();
        self.counts.clear();
        self.scores.clear();
    }

    /// Number of pairs.
    pub(crate) fn len(&self) -> usize {
        self.left.len()
    }

    /// Left and right id, natural count, and score, which is not finite for a pair without one.
    pub fn rows(&self) -> impl Iterator<Item = (u32, u32, f64, f64)> {
        let ids = self.left.iter().zip(&self.right);
        let numbers = self.counts.iter().zip(&self.scores);
        ids.zip(numbers)
            .map(|((left, right), (count, score))| (*left, *right, *count, *score))
    }
}

#[cfg(test)]
impl FromIterator<(u32, u32, f64, f64)> for ScoredPairs {
    fn from_iter<I: IntoIterator<Item = (u32, u32, f64, f64)>>(rows: I) -> Self {
        let mut pairs = Self::default();
        for (left, right, count, score) in rows {
            pairs.left.push(left);
            pairs.right.push(right);
            pairs.counts.push(count);
            pairs.scores.push(score);
        }
        pairs
    }
}

/// The marginals of one scoring, in natural units.
#[derive(Debug, Clone)]
pub(crate) struct Sums {
    pub(crate) left: Vec<f64>,
    pub(crate) right: Vec<f64>,
    pub(crate) n: f64,
}

/// A job's table, open for reading by rows.
pub struct TableRows {
    session: Session,
    in_order: SessionContext,
    warehouse: Warehouse,
    job: Job,
    files: Vec<(DataFile, i64)>,
    threads: usize,
    limit: ByteSize,
    /// Terms by id.
    pub terms: StringArray,
    /// Times that each term occurs.
    pub counts: Vec<u64>,
    /// Rows that hold each term.
    pub documents: Vec<u64>,
    /// What the counting found.
    pub facts: Facts,
    /// What was counted and how.
    pub counted: RecordedSettings,
    /// Whether a pair has no direction.
    pub symmetric: bool,
    /// Sums of the pairs that are not in the table, of a job with a sketch.
    tail: Option<TailSums>,
}

impl TableRows {
    /// Opens a job's newest commit.
    ///
    /// # Errors
    /// When there is no such job, or the table cannot be read.
    pub fn open(
        warehouse: &str,
        name: &str,
        threads: usize,
        limit: ByteSize,
    ) -> Result<Self, EngineError> {
        Self::open_at(warehouse, name, None, threads, limit)
    }

    /// Opens a job at a version of `pairs`; without one, the newest.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_at(
        warehouse: &str,
        name: &str,
        version: Option<u64>,
        threads: usize,
        limit: ByteSize,
    ) -> Result<Self, EngineError> {
        let name = JobName::new(name)?;
        let warehouse = Warehouse::open(warehouse)?;
        let session = Session::new(threads, limit, None)?;
        let job = session.wait(Job::open_existing_at(&warehouse, &name, version))?;
        let counted: RecordedSettings = parse(&job.settings()?)?;
        let facts: Facts = parse(&job.facts()?)?;
        if let Some(slice) = &counted.given.slice {
            return Err(EngineError::Setting(format!(
                "job `{name}` is counted by slice (`{slice}`), and this takes the pairs of one table: count one slice into a job of its own with --where, or ask its tables with `pmill sql`"
            )));
        }
        let mut files: Vec<(DataFile, i64)> = job
            .pairs
            .files()?
            .into_iter()
            .filter(|file| file.rows > 0)
            .map(|file| {
                let least = least_left(&file).unwrap_or(0);
                (file, least)
            })
            .collect();
        // Files hold ranges of left ids, in whatever order they were written.
        files.sort_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.name.cmp(&b.0.name)));
        let one_partition = session.context().copied_config().with_target_partitions(1);
        let in_order =
            SessionContext::new_with_config_rt(one_partition, session.context().runtime_env());
        let (terms, counts, documents) = session.wait(read_vocabulary(session.context(), &job))?;
        let symmetric = counted.given.context.kind == ContextKind::Document
            || counted.given.context.side == Side::Symmetric;
        let tail = StoredTail::open(&warehouse, &job, session.handle())?;
        Ok(Self {
            tail: tail.map(|tail| tail.sums()).transpose()?,
            session,
            in_order,
            warehouse,
            job,
            files,
            threads,
            limit,
            terms,
            counts,
            documents,
            facts,
            counted,
            symmetric,
        })
    }

    /// Terms, which are rows and columns.
    #[must_use]
    pub fn size(&self) -> usize {
        self.terms.len()
    }

    /// The version of `pairs` that is read.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.job.pairs.version()
    }

    /// Threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Reads `count`, or a measure as `pmill score` takes it (`pmi`, `npmi`, `sppmi(k=5)`).
    ///
    /// # Errors
    /// An unknown measure, or a parameter out of range.
    pub fn value(&self, text: &str, settings: &ScoreSettings) -> Result<Value, EngineError> {
        if text.trim() == "count" {
            return Ok(Value::Count);
        }
        let settings = ScoreSettings {
            measures: vec![text.to_owned()],
            ..settings.clone()
        };
        Ok(Value::Measure(settings.resolve(&self.counted)?))
    }

    /// The scores of `pmill score` in which `measure` is a column.
    ///
    /// # Errors
    /// When the job was not scored, or counted again since, or has no such score.
    pub fn scored(&self, measure: &str) -> Result<RecordedScore, EngineError> {
        let name = &self.job.name;
        let Some((settings, version)) = self.job.pmi_settings()? else {
            return Err(EngineError::Setting(format!(
                "job `{name}` has no scores yet; run `pmill score --name {name}` first"
            )));
        };
        if version != self.version() {
            return Err(EngineError::Setting(format!(
                "job `{name}` was counted again after it was scored; run `pmill score --name {name}` again"
            )));
        }
        let mut recorded: RecordedScore = parse(&settings)?;
        let known: Vec<String> = recorded
            .columns
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        recorded.columns.retain(|(column, _)| column == measure);
        if recorded.columns.is_empty() {
            return Err(EngineError::Setting(format!(
                "job `{name}` was not scored by `{measure}`; it has {}",
                known.join(", ")
            )));
        }
        Ok(recorded)
    }

    /// Calls `each` with the batches (left, right, count) of file `number`.
    fn scan(
        &self,
        number: usize,
        stop: &StopFlag,
        mut each: impl FnMut(&[i32], &[i32], &[i64]) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let name = &self.files[number].0.name;
        let url = self.warehouse.file_url(&self.job.name, "pairs", name)?;
        self.session
            .each_batch(&self.in_order, &url, stop, |batch| {
                each(
                    batch.column(0).as_primitive::<Int32Type>().values(),
                    batch.column(1).as_primitive::<Int32Type>().values(),
                    batch.column(2).as_primitive::<Int64Type>().values(),
                )
            })
    }

    /// Reads the table once for the lengths and sums of its rows.
    ///
    /// # Errors
    /// When the table cannot be read; a stop.
    pub fn survey(&self, progress: &dyn Progress, stop: &StopFlag) -> Result<Survey, EngineError> {
        let terms = self.size();
        progress.phase("sum", self.files.len() as u64, Steps::Parts);
        let next = AtomicUsize::new(0);
        let threads = self.threads.min(self.files.len());
        let parts = workers::run(threads, stop, |_| {
            let mut part = Survey::empty(terms);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.files.len() {
                    return Ok(part);
                }
                self.scan(number, stop, |left, right, counts| {
                    for ((x, y), count) in left.iter().zip(right).zip(counts) {
                        let (x, y) = (*x as usize, *y as usize);
                        if x >= terms || y >= terms {
                            return Err(EngineError::Bug("an id has no term".into()));
                        }
                        let count = u128::from(count.unsigned_abs());
                        part.left[x] += count;
                        part.right[y] += count;
                        part.plain[x] += 1;
                        part.transposed[y] += 1;
                    }
                    Ok(())
                })?;
                progress.advance(1, 0);
            }
        })?;
        let mut survey = Survey::empty(terms);
        for part in &parts {
            survey.add(part);
        }
        Ok(survey)
    }

    /// At most so many entries will the matrix have.
    #[must_use]
    pub fn most_entries(&self, survey: &Survey) -> u64 {
        let stored: u64 = survey.plain.iter().sum();
        if self.symmetric { 2 * stored } else { stored }
    }

    /// Marginals in natural units.
    pub(crate) fn sums(&self, survey: &Survey, marginals: Marginals) -> Sums {
        if marginals == Marginals::Documents {
            let documents: Vec<f64> = self.documents.iter().map(|count| *count as f64).collect();
            return Sums {
                left: documents.clone(),
                right: documents,
                n: self.facts.rows as f64,
            };
        }
        let sketched = |sums: &[u128], tail: fn(&TailSums) -> &Vec<u64>| -> Vec<u128> {
            let Some(more) = self.tail.as_ref().map(tail) else {
                return sums.to_vec();
            };
            let sums = sums.iter().zip(more);
            sums.map(|(sum, more)| sum + u128::from(*more)).collect()
        };
        let left = sketched(&survey.left, |tail| &tail.left);
        let right = sketched(&survey.right, |tail| &tail.right);
        let unit = self.facts.weight_unit as f64;
        let natural =
            |sums: &[u128]| -> Vec<f64> { sums.iter().map(|s| *s as f64 / unit).collect() };
        if self.symmetric {
            let both: Vec<u128> = left.iter().zip(&right).map(|(a, b)| a + b).collect();
            let n: u128 = both.iter().sum();
            return Sums {
                left: natural(&both),
                right: natural(&both),
                n: n as f64 / unit,
            };
        }
        let n: u128 = left.iter().sum();
        Sums {
            left: natural(&left),
            right: natural(&right),
            n: n as f64 / unit,
        }
    }

    /// Gives the rows to `each`, band after band, in rising order. What is zero, null or not finite
    /// is left out. A band takes about `band_bytes`, or one row if that is more.
    ///
    /// # Errors
    /// Those of the table, of the measure, of `each`; a stop.
    #[allow(clippy::too_many_arguments)] // Each is a thing of its own, given once.
    pub fn bands<E: From<EngineError>>(
        &self,
        survey: &Survey,
        value: &Value,
        orientation: Orientation,
        band_bytes: u64,
        progress: &dyn Progress,
        stop: &StopFlag,
        mut each: impl FnMut(RowBand) -> Result<(), E>,
    ) -> Result<(), E> {
        let scoring = Scoring::new(self, survey, value, orientation)?;
        self.each_band(
            survey,
            orientation,
            band_bytes,
            progress,
            stop,
            |mut band| {
                scoring.apply(&mut band, self.threads, stop)?;
                each(band)
            },
        )
    }

    /// Pairs in each file, in the order of ids.
    pub(crate) fn file_pairs(&self) -> Vec<u64> {
        self.files.iter().map(|(file, _)| file.rows).collect()
    }

    /// Gives all pairs with their scores to `each`, as `pmill score` computes them: some of a file's
    /// at a time with the file's number, each file in its order, by several threads.
    ///
    /// # Errors
    /// Those of the table, of the measure, of `each`; a stop.
    pub fn each_score(
        &self,
        scored: &RecordedScore,
        progress: &dyn Progress,
        stop: &StopFlag,
        each: impl Fn(usize, &ScoredPairs) -> Result<(), EngineError> + Sync,
    ) -> Result<(), EngineError> {
        let survey = match scored.marginals {
            Marginals::Documents => Survey::empty(self.size()),
            Marginals::Pairs => self.survey(progress, stop)?,
        };
        let value = Value::Measure(scored.clone());
        let scoring = Scoring::new(self, &survey, &value, Orientation::Plain)?;
        progress.phase("rows", self.files.len() as u64, Steps::Parts);
        let (next, terms) = (AtomicUsize::new(0), self.size());
        let unit = self.facts.weight_unit as f64;
        workers::run(self.threads.min(self.files.len()), stop, |_| {
            let mut pairs = ScoredPairs::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.files.len() {
                    return Ok(());
                }
                self.scan(number, stop, |left, right, counts| {
                    pairs.clear();
                    for ((x, y), count) in left.iter().zip(right).zip(counts) {
                        if *x as usize >= terms || *y as usize >= terms {
                            return Err(EngineError::Bug("an id has no term".into()));
                        }
                        // The symmetric matrix holds a pair of a term with itself twice.
                        let twice = if self.symmetric && x == y { 2.0 } else { 1.0 };
                        pairs.left.push(*x as u32);
                        pairs.right.push(*y as u32);
                        pairs.counts.push(*count as f64 * twice / unit);
                    }
                    pairs.scores.extend_from_slice(&pairs.counts);
                    scoring.chunk(&pairs.left, &pairs.right, &mut pairs.scores)?;
                    each(number, &pairs)
                })?;
                progress.advance(1, 0);
            }
        })?;
        Ok(())
    }

    fn each_band<E: From<EngineError>>(
        &self,
        survey: &Survey,
        orientation: Orientation,
        band_bytes: u64,
        progress: &dyn Progress,
        stop: &StopFlag,
        mut each: impl FnMut(RowBand) -> Result<(), E>,
    ) -> Result<(), E> {
        let lengths = self.lengths(survey, orientation);
        let bands = cut(&lengths, band_bytes / ENTRY_BYTES);
        let steps = self.files.len() as u64 * bands.len() as u64;
        progress.phase("rows", steps, Steps::Parts);
        for (from, to) in bands {
            each(self.fill(&lengths, from, to, orientation, progress, stop)?)?;
        }
        Ok(())
    }

    /// Entries of each row, at most.
    pub(crate) fn lengths(&self, survey: &Survey, orientation: Orientation) -> Vec<u64> {
        let rows = survey.plain.iter().zip(&survey.transposed);
        rows.map(|(plain, transposed)| match (self.symmetric, orientation) {
            (true, _) => plain + transposed,
            (false, Orientation::Plain) => *plain,
            (false, Orientation::Transposed) => *transposed,
        })
        .collect()
    }

    /// A band of natural counts.
    fn fill(
        &self,
        lengths: &[u64],
        from: usize,
        to: usize,
        orientation: Orientation,
        progress: &dyn Progress,
        stop: &StopFlag,
    ) -> Result<RowBand, EngineError> {
        let mut row_starts = Vec::with_capacity(to - from + 1);
        let mut end = 0_usize;
        row_starts.push(0);
        for length in &lengths[from..to] {
            end += usize::try_from(*length).unwrap_or(usize::MAX);
            row_starts.push(end);
        }
        let mut next: Vec<usize> = row_starts[..to - from].to_vec();
        let (mut columns, mut values) = (vec![0_u32; end], vec![0_f64; end]);
        let unit = self.facts.weight_unit as f64;
        let (symmetric, orientation) = (self.symmetric, orientation);
        let mut put = |row: usize, column: usize, value: f64| -> Result<(), EngineError> {
            let place = &mut next[row - from];
            if *place >= row_starts[row - from + 1]
                || (*place > row_starts[row - from] && columns[*place - 1] as usize >= column)
            {
                return Err(EngineError::Bug(
                    "the files of `pairs` are not in the order of their ids".into(),
                ));
            }
            columns[*place] = column as u32;
            values[*place] = value;
            *place += 1;
            Ok(())
        };
        for number in 0..self.files.len() {
            let beyond = usize::try_from(self.files[number].1).is_ok_and(|least| least >= to);
            // In a symmetric job the smaller id is the left one: later files have nothing for us.
            if beyond && (symmetric || orientation == Orientation::Plain) {
                progress.advance(1, 0);
                continue;
            }
            self.scan(number, stop, |left, right, counts| {
                for ((x, y), count) in left.iter().zip(right).zip(counts) {
                    let (x, y) = (*x as usize, *y as usize);
                    let natural = *count as f64 / unit;
                    if symmetric {
                        if x == y {
                            if (from..to).contains(&x) {
                                put(x, x, 2.0 * natural)?;
                            }
                            continue;
                        }
                        if (from..to).contains(&x) {
                            put(x, y, natural)?;
                        }
                        if (from..to).contains(&y) {
                            put(y, x, natural)?;
                        }
                    } else {
                        let (row, column) = match orientation {
                            Orientation::Plain => (x, y),
                            Orientation::Transposed => (y, x),
                        };
                        if (from..to).contains(&row) {
                            put(row, column, natural)?;
                        }
                    }
                }
                Ok(())
            })?;
            progress.advance(1, 0);
        }
        let mut band = RowBand {
            first: from as u32,
            row_starts,
            columns,
            values,
        };
        // A term's pair with itself was counted as two places and took one.
        close_gaps(&mut band, &next);
        Ok(band)
    }

    /// What a band may take of the memory limit.
    #[must_use]
    pub fn band_bytes(&self) -> u64 {
        self.limit.0 / 3
    }

    /// The memory limit.
    #[must_use]
    pub fn limit(&self) -> ByteSize {
        self.limit
    }

    /// The first left id of each file.
    pub(crate) fn file_starts(&self) -> impl Iterator<Item = i64> {
        self.files.iter().map(|(_, least)| *least)
    }

    /// The warehouse.
    pub(crate) fn warehouse(&self) -> &Warehouse {
        &self.warehouse
    }

    /// The job.
    pub(crate) fn job(&self) -> &Job {
        &self.job
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }
}

/// The smallest left id of a file, from its statistics.
fn least_left(file: &DataFile) -> Option<i64> {
    let stats: serde_json::Value = serde_json::from_str(&file.stats).ok()?;
    stats.get("minValues")?.get("left_id")?.as_i64()
}

async fn read_vocabulary(
    context: &SessionContext,
    job: &Job,
) -> Result<(StringArray, Vec<u64>, Vec<u64>), EngineError> {
    let batches = context
        .read_table(job.vocab.provider().await?)
        .and_then(|frame| frame.select_columns(&["id", "token", "count", "documents"]))
        .map_err(query)?
        .collect()
        .await
        .map_err(query)?;
    let mut rows: Vec<(i32, String, u64, u64)> = Vec::new();
    for batch in batches {
        let ids = batch.column(0).as_primitive::<Int32Type>();
        let tokens = arrow::compute::cast(batch.column(1), &DataType::Utf8)
            .map_err(|error| EngineError::Bug(error.to_string()))?;
        let number = |column: usize, row: usize| {
            let value = batch.column(column).as_primitive::<Int64Type>().value(row);
            u64::try_from(value).unwrap_or(0)
        };
        for row in 0..batch.num_rows() {
            let token = tokens.as_string::<i32>().value(row).to_owned();
            rows.push((ids.value(row), token, number(2, row), number(3, row)));
        }
    }
    rows.sort_unstable_by_key(|row| row.0);
    let in_order =
        |(index, row): (usize, &(i32, String, u64, u64))| usize::try_from(row.0) == Ok(index);
    if !rows.iter().enumerate().all(in_order) {
        return Err(EngineError::Bug(
            "the ids of `vocab` are not 0, 1, 2, …".into(),
        ));
    }
    Ok((
        StringArray::from_iter_values(rows.iter().map(|row| &row.1)),
        rows.iter().map(|row| row.2).collect(),
        rows.iter().map(|row| row.3).collect(),
    ))
}

/// Ranges of rows of at most `entries` entries, or of one row.
pub(crate) fn cut(lengths: &[u64], entries: u64) -> Vec<(usize, usize)> {
    let mut bands = Vec::new();
    let (mut start, mut held) = (0, 0_u64);
    for (row, length) in lengths.iter().enumerate() {
        if row > start && held + length > entries {
            bands.push((start, row));
            (start, held) = (row, 0);
        }
        held += length;
    }
    if start < lengths.len() {
        bands.push((start, lengths.len()));
    }
    bands
}

/// Takes out what is between the end of each row's entries (`ends`) and the next row.
fn close_gaps(band: &mut RowBand, ends: &[usize]) {
    let mut to = 0;
    for (row, end) in ends.iter().enumerate() {
        let from = band.row_starts[row];
        band.columns.copy_within(from..*end, to);
        band.values.copy_within(from..*end, to);
        band.row_starts[row] = to;
        to += end - from;
    }
    band.columns.truncate(to);
    band.values.truncate(to);
    if let Some(last) = band.row_starts.last_mut() {
        *last = to;
    }
}

/// How counts become values.
pub(crate) struct Scoring {
    rule: Rule,
}

enum Rule {
    Count,
    Measure {
        expression: Arc<dyn PhysicalExpr>,
        schema: SchemaRef,
        rows: Vec<f64>,
        columns: Vec<f64>,
        n: f64,
        pair_smoothing: f64,
        unigram_smoothing: f64,
        least: f64,
    },
    Logarithms {
        /// `ln(Σ n_y^alpha) − ln(shift) − ln n_x`, or with the roles of x and y changed.
        rows: Vec<f64>,
        columns: Vec<f64>,
    },
}

impl Scoring {
    pub(crate) fn new(
        table: &TableRows,
        survey: &Survey,
        value: &Value,
        orientation: Orientation,
    ) -> Result<Self, EngineError> {
        let turn = |left: Vec<f64>, right: Vec<f64>| match orientation {
            Orientation::Plain => (left, right),
            Orientation::Transposed => (right, left),
        };
        let rule = match value {
            Value::Count => Rule::Count,
            Value::Measure(recorded) => {
                if orientation == Orientation::Transposed {
                    return Err(EngineError::Bug(
                        "measures are computed by rows of left terms".into(),
                    ));
                }
                let sums = table.sums(survey, recorded.marginals);
                let fields = ["n_xy", "n_x", "n_y", "n"]
                    .map(|name| Field::new(name, DataType::Float64, false));
                let schema = Arc::new(Schema::new(fields.to_vec()));
                let Some((_, sql)) = recorded.columns.first() else {
                    return Err(EngineError::Bug("a value without a measure".into()));
                };
                let context = table.session.context();
                let named = DFSchema::try_from(schema.as_ref().clone()).map_err(query)?;
                let expression = context
                    .parse_sql_expr(sql, &named)
                    .and_then(|expression| context.create_physical_expr(expression, &named))
                    .map_err(query)?;
                Rule::Measure {
                    expression,
                    schema,
                    rows: sums.left,
                    columns: sums.right,
                    n: sums.n,
                    pair_smoothing: recorded.pair_smoothing,
                    unigram_smoothing: recorded.unigram_smoothing,
                    least: recorded.min_pair_count,
                }
            }
            Value::ShiftedPpmi { alpha, shift } => {
                let sums = table.sums(survey, Marginals::Pairs);
                let total: f64 = sums.right.iter().map(|n| n.powf(*alpha)).sum();
                let constant = total.ln() - shift.ln();
                let left: Vec<f64> = sums.left.iter().map(|n| constant - n.ln()).collect();
                let right: Vec<f64> = sums.right.iter().map(|n| -alpha * n.ln()).collect();
                let (rows, columns) = turn(left, right);
                Rule::Logarithms { rows, columns }
            }
        };
        Ok(Self { rule })
    }

    /// Turns a band of counts into a band of values.
    fn apply(
        &self,
        band: &mut RowBand,
        threads: usize,
        stop: &StopFlag,
    ) -> Result<(), EngineError> {
        if matches!(self.rule, Rule::Count) {
            return Ok(());
        }
        let mut row_of = Vec::with_capacity(band.columns.len());
        for (row, ends) in band.row_starts.windows(2).enumerate() {
            row_of.resize(row_of.len() + ends[1] - ends[0], band.first + row as u32);
        }
        let work = band
            .values
            .chunks_mut(CHUNK)
            .zip(band.columns.chunks(CHUNK))
            .zip(row_of.chunks(CHUNK));
        let work = Mutex::new(work);
        workers::run(threads, stop, |_| {
            loop {
                let next = work
                    .lock()
                    .map_err(|_| EngineError::Bug("a worker panicked".into()))?
                    .next();
                let Some(((values, columns), rows)) = next else {
                    return Ok(());
                };
                self.chunk(rows, columns, values)?;
            }
        })?;
        let mut to = 0;
        let mut start = 0;
        for row in 1..band.row_starts.len() {
            let end = band.row_starts[row];
            for place in start..end {
                let value = band.values[place];
                if self.keeps(value) {
                    band.values[to] = value;
                    band.columns[to] = band.columns[place];
                    to += 1;
                }
            }
            start = end;
            band.row_starts[row] = to;
        }
        band.values.truncate(to);
        band.columns.truncate(to);
        Ok(())
    }

    /// Whether an entry with this value is kept.
    pub(crate) fn keeps(&self, value: f64) -> bool {
        matches!(self.rule, Rule::Count) || (value.is_finite() && value != 0.0)
    }

    /// Turns natural counts into values.
    pub(crate) fn chunk(
        &self,
        rows: &[u32],
        columns: &[u32],
        values: &mut [f64],
    ) -> Result<(), EngineError> {
        match &self.rule {
            Rule::Count => {}
            Rule::Logarithms {
                rows: of_row,
                columns: of_column,
            } => {
                for ((row, column), value) in rows.iter().zip(columns).zip(values) {
                    let score = value.ln() + of_row[*row as usize] + of_column[*column as usize];
                    *value = score.max(0.0);
                }
            }
            Rule::Measure {
                expression,
                schema,
                rows: n_x,
                columns: n_y,
                n,
                pair_smoothing,
                unigram_smoothing,
                least,
            } => {
                let array =
                    |numbers: Vec<f64>| -> ArrayRef { Arc::new(Float64Array::from(numbers)) };
                let marginal = |sums: &[f64], ids: &[u32]| {
                    let numbers = ids.iter().map(|id| sums[*id as usize] + unigram_smoothing);
                    array(numbers.collect())
                };
                let batch = RecordBatch::try_new(
                    schema.clone(),
                    vec![
                        array(values.iter().map(|count| count + pair_smoothing).collect()),
                        marginal(n_x, rows),
                        marginal(n_y, columns),
                        array(vec![*n; values.len()]),
                    ],
                )
                .map_err(|error| EngineError::Bug(error.to_string()))?;
                let scores = expression
                    .evaluate(&batch)
                    .and_then(|scores| scores.into_array(values.len()))
                    .and_then(|scores| Ok(arrow::compute::cast(&scores, &DataType::Float64)?))
                    .map_err(query)?;
                let scores = scores.as_primitive::<arrow::datatypes::Float64Type>();
                for (index, value) in values.iter_mut().enumerate() {
                    let keep = *value >= *least && !scores.is_null(index);
                    *value = if keep { scores.value(index) } else { f64::NAN };
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_hold_whole_rows() {
        assert_eq!(cut(&[3, 3, 9, 0, 1], 6), [(0, 2), (2, 3), (3, 5)]);
        assert_eq!(cut(&[], 6), []);
        assert_eq!(cut(&[0, 0], 0), [(0, 2)]);
    }

    #[test]
    fn gaps_close_and_rows_stay_apart() {
        let mut band = RowBand {
            first: 5,
            row_starts: vec![0, 3, 5],
            columns: vec![1, 2, 0, 7, 8],
            values: vec![1.0, 2.0, 0.0, 7.0, 8.0],
        };
        close_gaps(&mut band, &[2, 5]);
        let rows: Vec<_> = band.rows().collect();
        assert_eq!(
            rows,
            [(5, &[1, 2][..], &[1.0, 2.0][..]), (6, &[7, 8], &[7.0, 8.0])]
        );
    }
}
