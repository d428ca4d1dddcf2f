//! Scores: `pairs` and the marginals become `pmi`, file by file.
//!
//! Each file of `pairs` gives one file of `pmi` in the same order, so that the result does not
//! depend on threads. Memory: the vocabulary, its marginals, and one batch a thread.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, StringArray, UInt32Array,
};
use arrow::compute::{filter_record_batch, take};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::DFSchema;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::prelude::SessionContext;
use pmill_count::{Side, TailSums};
use pmill_stats::{Base, measure, measures};
use pmill_store::{DataFile, Job, JobLock, JobName, PmiCommit, Warehouse};
use serde::{Deserialize, Serialize};

use crate::error::{EngineError, nearest_name};
use crate::job::{Facts, Status, parse};
use crate::memory::{ByteSize, peak_rss};
use crate::progress::{Progress, StopFlag, Unit as Steps};
use crate::session::{Session, query};
use crate::settings::{ContextKind, RecordedSettings};
use crate::tables::TableFolder;
use crate::tail::{StoredTail, only_exact};
use crate::workers;

/// What n_x, n_y and N are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Marginals {
    /// Rows that hold x, rows that hold y, rows: one event is one row.
    Documents,
    /// Sums of the pair counts: one event is one co-occurrence.
    Pairs,
}

/// How a table is scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScoreSettings {
    /// `qu-xie` sets marginals and smoothing of that paper, and adds its score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Measures by name, with parameters as `sppmi(k=5)`.
    pub measures: Vec<String>,
    /// Logarithm base: `e`, `2` or `10`.
    pub base: String,
    /// n_x, n_y and N. Not set: `documents` for the context `document`, else `pairs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marginals: Option<Marginals>,
    /// Only pairs with at least this (natural) count.
    pub min_pair_count: f64,
    /// Added to each n_xy before measures are computed. Not set: 0, or the preset's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair_smoothing: Option<f64>,
    /// Added to each n_x and n_y before measures are computed. Not set: 0, or the preset's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unigram_smoothing: Option<f64>,
}

/// Named sets of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Qu and Xie 2025: marginals `pairs`, unigram smoothing 1000, pair smoothing 1.
    QuXie,
}

impl Default for ScoreSettings {
    fn default() -> Self {
        Self {
            preset: None,
            measures: ["pmi", "npmi", "ppmi"].map(str::to_owned).to_vec(),
            base: "e".to_owned(),
            marginals: None,
            min_pair_count: 0.0,
            pair_smoothing: None,
            unigram_smoothing: None,
        }
    }
}

/// Settings with everything decided; kept with the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedScore {
    /// The program that scored.
    pub program: String,
    /// Column name and SQL of each score; in it the counts are the smoothed ones.
    pub columns: Vec<(String, String)>,
    /// n_x, n_y and N.
    pub marginals: Marginals,
    /// Smallest natural count kept.
    pub min_pair_count: f64,
    /// Added to n_xy.
    pub pair_smoothing: f64,
    /// Added to n_x and n_y.
    pub unigram_smoothing: f64,
    /// What one event is, and what N counts.
    pub event_space: String,
}

/// What scoring did; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct ScoreSummary {
    /// What was done.
    pub status: Status,
    /// Job name.
    pub job: String,
    /// Version of `pmi`.
    pub version: u64,
    /// Rows of `pmi`.
    pub pairs: u64,
    /// Columns beside the counts.
    pub measures: Vec<String>,
    /// What one event is.
    pub event_space: String,
    /// Seconds.
    pub seconds: f64,
    /// Most memory held, if the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl ScoreSettings {
    /// Decides everything for a table counted with `counted`.
    ///
    /// # Errors
    /// An unknown measure, a parameter or number out of range, marginals that the context lacks.
    pub fn resolve(&self, counted: &RecordedSettings) -> Result<RecordedScore, EngineError> {
        let wrong = |text: String| EngineError::Setting(text);
        let base = match self.base.as_str() {
            "e" => Base::E,
            text => text
                .parse()
                .ok()
                .and_then(Base::new)
                .ok_or_else(|| wrong(format!("`{text}` is not a base; give e, 2 or 10")))?,
        };
        let number = |name: &str, value: f64| {
            if value.is_finite() && value >= 0.0 {
                Ok(value)
            } else {
                Err(wrong(format!("`{name}` must be 0 or more, not {value}")))
            }
        };
        let kind = counted.given.context.kind;
        let (preset_marginals, preset_pair, preset_unigram) = match self.preset {
            Some(Preset::QuXie) => (Some(Marginals::Pairs), 1.0, 1000.0),
            None => (None, 0.0, 0.0),
        };
        let marginals = self.marginals.or(preset_marginals).unwrap_or(match kind {
            ContextKind::Document => Marginals::Documents,
            ContextKind::Window => Marginals::Pairs,
        });
        if marginals == Marginals::Documents && kind == ContextKind::Window {
            return Err(wrong(
                "marginals `documents` go with the context `document`; for `window` give `pairs` (its events are co-occurrences)".into(),
            ));
        }
        let mut columns = Vec::new();
        for text in &self.measures {
            columns.push(column(text, base)?);
        }
        if self.preset == Some(Preset::QuXie) {
            columns.push(("qu_xie".to_owned(), "ln(n_xy / (n_x * n_y))".to_owned()));
        }
        for (index, (name, _)) in columns.iter().enumerate() {
            if columns[..index].iter().any(|(other, _)| other == name) {
                return Err(wrong(format!("measure `{name}` is named twice")));
            }
        }
        Ok(RecordedScore {
            program: concat!("pmill ", env!("CARGO_PKG_VERSION")).to_owned(),
            columns,
            marginals,
            min_pair_count: number("min-pair-count", self.min_pair_count)?,
            pair_smoothing: number("pair-smoothing", self.pair_smoothing.unwrap_or(preset_pair))?,
            unigram_smoothing: number(
                "unigram-smoothing",
                self.unigram_smoothing.unwrap_or(preset_unigram),
            )?,
            event_space: event_space(marginals, kind, counted.given.context.side),
        })
    }
}

fn event_space(marginals: Marginals, kind: ContextKind, side: Side) -> String {
    match (marginals, kind, side) {
        (Marginals::Documents, ..) => {
            "one event is one row: n_xy rows hold both, n_x rows hold x, n rows in all (those without text too)".to_owned()
        }
        (Marginals::Pairs, _, Side::Left | Side::Right) => {
            "one event is one ordered co-occurrence: n_x is the sum of x's row, n_y the sum of y's column, n the sum of all".to_owned()
        }
        (Marginals::Pairs, ContextKind::Document, _) => {
            "one event is one co-occurrence seen from one of its two words: n_x is the sum of x's pair counts, n the sum of all n_x".to_owned()
        }
        (Marginals::Pairs, ContextKind::Window, _) => {
            "one event is one weighted co-occurrence seen from one of its two tokens: n_x is the sum of x's row of the symmetric matrix, n the sum of all rows; events of one window are not independent".to_owned()
        }
    }
}

/// `sppmi(k=5)` as column name and SQL.
pub(crate) fn column(text: &str, base: Base) -> Result<(String, String), EngineError> {
    let (name, arguments) = match text.split_once('(') {
        None => (text.trim(), ""),
        Some((name, rest)) => (
            name.trim(),
            rest.trim().strip_suffix(')').ok_or_else(|| {
                EngineError::Setting(format!(
                    "`{text}` is not a measure; write name or name(parameter=value, …)"
                ))
            })?,
        ),
    };
    let Some(found) = measure(name) else {
        let known = measures().iter().map(|measure| measure.name);
        let nearest = nearest_name(name, known.clone())
            .map(|name| format!(" (did you mean `{name}`?)"))
            .unwrap_or_default();
        return Err(EngineError::Setting(format!(
            "no measure `{name}`{nearest}; there are: {}",
            known.collect::<Vec<_>>().join(", ")
        )));
    };
    let mut given = Vec::new();
    let mut column = name.to_owned();
    for argument in arguments
        .split(',')
        .map(str::trim)
        .filter(|argument| !argument.is_empty())
    {
        let Some((key, value)) = argument.split_once('=') else {
            return Err(EngineError::Setting(format!(
                "`{argument}` in `{text}` is not parameter=value"
            )));
        };
        given.push((key.trim(), value.trim()));
        let value: String = value
            .trim()
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '_'
                }
            })
            .collect();
        column = format!("{column}_{value}");
    }
    let sql = found
        .sql_expression_with(base, &given)
        .map_err(|error| EngineError::Setting(error.to_string()))?;
    Ok((column, sql))
}

/// Threads, memory, and the folder of temporary files.
pub(crate) type Means<'a> = (usize, ByteSize, Option<&'a Path>);

/// Scores a job's table.
///
/// # Errors
/// Whatever is wrong with settings, disk or warehouse; the scores before stay then.
pub fn score(
    warehouse: &str,
    name: &str,
    settings: &ScoreSettings,
    threads: usize,
    limit: ByteSize,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<ScoreSummary, EngineError> {
    let started = Instant::now();
    let scoring = Scoring::open(warehouse, name, settings, (threads, limit, None))?;
    // What a dead process left goes away even when there is nothing else to do.
    let lock = scoring.warehouse.lock(&scoring.name)?;
    scoring.sweep(&lock)?;
    if let Some(summary) = scoring.unchanged(started)? {
        return Ok(summary);
    }
    let terms = scoring.terms()?;
    let scorer = scoring.scorer(threads, progress, stop);
    let totals = match scoring.document_totals(&terms) {
        Some(totals) => totals,
        None => scoring.totals_of(scorer.sums(terms.len())?)?,
    };
    let written = scorer.write(&terms, &totals)?;
    scoring.commit(written, started)
}

/// A version of a job, and how it is scored.
pub(crate) struct Scoring {
    warehouse: Warehouse,
    name: JobName,
    session: Session,
    job: Job,
    facts: Facts,
    recorded: RecordedScore,
    files: Vec<DataFile>,
    symmetric: bool,
    sliced: bool,
    sketched: bool,
}

impl Scoring {
    /// The newest version, by settings.
    pub(crate) fn open(
        warehouse: &str,
        name: &str,
        settings: &ScoreSettings,
        means: Means<'_>,
    ) -> Result<Self, EngineError> {
        Self::new(
            warehouse,
            name,
            None,
            |counted| settings.resolve(counted),
            means,
        )
    }

    /// A version, by settings that were resolved before.
    pub(crate) fn at(
        warehouse: &str,
        name: &str,
        version: u64,
        recorded: RecordedScore,
        means: Means<'_>,
    ) -> Result<Self, EngineError> {
        Self::new(warehouse, name, Some(version), |_| Ok(recorded), means)
    }

    fn new(
        warehouse: &str,
        name: &str,
        version: Option<u64>,
        resolve: impl FnOnce(&RecordedSettings) -> Result<RecordedScore, EngineError>,
        (threads, limit, scratch): Means<'_>,
    ) -> Result<Self, EngineError> {
        let name = JobName::new(name)?;
        let warehouse = Warehouse::open(warehouse)?;
        let session = Session::new(threads, limit, scratch)?;
        let job = session.wait(Job::open_existing_at(&warehouse, &name, version))?;
        let counted: RecordedSettings = parse(&job.settings()?)?;
        Ok(Self {
            facts: parse(&job.facts()?)?,
            recorded: resolve(&counted)?,
            files: job.pairs.files()?,
            symmetric: counted.given.context.kind == ContextKind::Document
                || counted.given.context.side == Side::Symmetric,
            sliced: counted.given.slice.is_some(),
            sketched: counted.given.sketch.is_some(),
            warehouse,
            name,
            session,
            job,
        })
    }

    pub(crate) fn warehouse(&self) -> &Warehouse {
        &self.warehouse
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn recorded(&self) -> &RecordedScore {
        &self.recorded
    }

    /// The version of `pairs`.
    pub(crate) fn version(&self) -> u64 {
        self.job.pairs.version()
    }

    /// Number of files of `pairs`.
    pub(crate) fn files(&self) -> usize {
        self.files.len()
    }

    /// The job.
    pub(crate) fn name(&self) -> &JobName {
        &self.name
    }

    /// The name of a file of `pairs`.
    pub(crate) fn file_name(&self, number: usize) -> Option<String> {
        let file = self.files.get(number)?;
        Some(format!("{}/pairs/{}", self.name, file.name))
    }

    /// Part of the names of the files.
    pub(crate) fn digest(&self) -> String {
        digest(&self.recorded, self.version())
    }

    pub(crate) fn sweep(&self, lock: &JobLock) -> Result<(), EngineError> {
        self.session.wait(self.warehouse.sweep(&self.name, lock))?;
        Ok(())
    }

    fn summary(
        &self,
        status: Status,
        version: u64,
        pairs: u64,
        notes: Vec<String>,
        started: Instant,
    ) -> ScoreSummary {
        let columns = self.recorded.columns.iter();
        ScoreSummary {
            status,
            job: self.name.to_string(),
            version,
            pairs,
            measures: columns.map(|(name, _)| name.clone()).collect(),
            event_space: self.recorded.event_space.clone(),
            seconds: started.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_rss().map(|size| size.0),
            notes,
        }
    }

    /// The summary, when these rows were scored with these settings before.
    pub(crate) fn unchanged(&self, started: Instant) -> Result<Option<ScoreSummary>, EngineError> {
        let job = &self.job;
        if let (Some(pmi), Some((before, _))) = (&job.pmi, job.pmi_settings()?)
            && !job.pmi_is_stale()?
            && parse::<RecordedScore>(&before)? == self.recorded
        {
            let rows = pmi.files()?.iter().map(|file| file.rows).sum();
            let notes = vec!["scored before with these settings; nothing changed".to_owned()];
            let version = pmi.version();
            return Ok(Some(self.summary(
                Status::Unchanged,
                version,
                rows,
                notes,
                started,
            )));
        }
        Ok(None)
    }

    pub(crate) fn terms(&self) -> Result<Terms, EngineError> {
        let context = self.session.context();
        self.session
            .wait(Terms::read(context, &self.job, self.sliced))
    }

    /// Ids of one slice; all of them, when there are no slices.
    fn terms_a_slice(&self, ids: usize) -> usize {
        match self.sliced {
            false => ids,
            true => usize::try_from(self.facts.terms).unwrap_or(usize::MAX),
        }
    }

    pub(crate) fn scorer<'a>(
        &'a self,
        threads: usize,
        progress: &'a dyn Progress,
        stop: &'a StopFlag,
    ) -> Scorer<'a> {
        let session = &self.session;
        let one_partition = session.context().copied_config().with_target_partitions(1);
        Scorer {
            session,
            in_order: SessionContext::new_with_config_rt(
                one_partition,
                session.context().runtime_env(),
            ),
            warehouse: &self.warehouse,
            name: &self.name,
            files: &self.files,
            threads,
            progress,
            stop,
            unit: self.facts.weight_unit as f64,
            symmetric: self.symmetric,
            recorded: &self.recorded,
            batch: self.digest(),
            schema: self.recorded.schema(self.sliced, self.sketched),
            sketched: self.sketched,
        }
    }

    /// Whether the marginals are sums of the pairs.
    pub(crate) fn needs_sums(&self) -> bool {
        self.recorded.needs_sums()
    }

    /// Marginals that are known without reading pairs; `None` when they are not.
    pub(crate) fn document_totals(&self, terms: &Terms) -> Option<Totals> {
        if self.needs_sums() {
            return None;
        }
        let documents: Arc<[f64]> = terms.documents.iter().map(|count| *count as f64).collect();
        Some(Totals {
            left: documents.clone(),
            right: documents,
            n: match self.facts.slices.as_slice() {
                [] => vec![self.facts.rows as f64],
                slices => slices.iter().map(|slice| slice.rows as f64).collect(),
            },
            terms: self.terms_a_slice(terms.len()),
        })
    }

    /// Marginals from the sums of all files.
    ///
    /// # Errors
    /// When the sums of the sketched pairs, which are in them too, cannot be read.
    pub(crate) fn totals_of(&self, sums: Sums) -> Result<Totals, EngineError> {
        let stored = StoredTail::open(&self.warehouse, &self.job, self.session.handle())?;
        let Sums { left, right } = match stored {
            None => sums,
            Some(stored) => sums.with_tail(&stored.sums()?),
        };
        let unit = self.facts.weight_unit as f64;
        let natural = |sums: Vec<u128>| -> Arc<[f64]> {
            sums.into_iter().map(|sum| sum as f64 / unit).collect()
        };
        let terms = self.terms_a_slice(left.len());
        let n = |sums: &[u128]| -> Vec<f64> {
            sums.chunks(terms.max(1))
                .map(|slice| slice.iter().sum::<u128>() as f64 / unit)
                .collect()
        };
        if self.symmetric {
            // Seen from both words; a pair of a term with itself is in both sums, as it should.
            let both: Vec<u128> = left.iter().zip(&right).map(|(a, b)| a + b).collect();
            let n = n(&both);
            let both = natural(both);
            return Ok(Totals {
                left: both.clone(),
                right: both,
                n,
                terms,
            });
        }
        let n = n(&left);
        Ok(Totals {
            left: natural(left),
            right: natural(right),
            n,
            terms,
        })
    }

    /// Makes the written files the newest `pmi`.
    pub(crate) fn commit(
        &self,
        files: Vec<DataFile>,
        started: Instant,
    ) -> Result<ScoreSummary, EngineError> {
        let pairs = files.iter().map(|file| file.rows).sum();
        let commit = PmiCommit {
            name: self.name.clone(),
            base: self.job.pmi.as_ref().map(pmill_store::TableState::version),
            pairs_version: self.version(),
            batch: self.digest(),
            settings: serde_json::to_string(&self.recorded)
                .map_err(|error| EngineError::Bug(error.to_string()))?,
            schema: self.recorded.schema(self.sliced, self.sketched),
            files,
        };
        let version = self.session.wait(commit.commit(&self.warehouse))?;
        let mut notes = Vec::new();
        if pairs == 0 {
            notes.push("no pair was scored: the table is empty".to_owned());
        }
        let counted: RecordedSettings = parse(&self.job.settings()?)?;
        notes.extend(only_exact(&counted));
        Ok(self.summary(Status::Counted, version, pairs, notes, started))
    }
}

/// The columns that are measures' arguments.
fn counts() -> [Field; 4] {
    ["n_xy", "n_x", "n_y", "n"].map(|name| Field::new(name, DataType::Float64, false))
}

impl RecordedScore {
    /// Whether the marginals are sums of the pairs.
    pub(crate) fn needs_sums(&self) -> bool {
        self.marginals == Marginals::Pairs
    }

    /// Columns of `pmi`.
    fn schema(&self, sliced: bool, sketched: bool) -> SchemaRef {
        let mut fields = Vec::new();
        if sliced {
            fields.push(Field::new("slice", DataType::Utf8, true));
        }
        fields.extend([
            Field::new("left", DataType::Utf8, false),
            Field::new("right", DataType::Utf8, false),
        ]);
        fields.extend(counts());
        let measures = self.columns.iter();
        fields.extend(measures.map(|(name, _)| Field::new(name, DataType::Float64, true)));
        if sketched {
            fields.push(Field::new("approximate", DataType::Boolean, false));
        }
        Arc::new(Schema::new(fields))
    }
}

fn digest(recorded: &RecordedScore, pairs_version: u64) -> String {
    let text = serde_json::to_vec(&(recorded, pairs_version)).unwrap_or_default();
    blake3::hash(&text).to_hex()[..16].to_owned()
}

/// The vocabulary as arrays by id.
pub(crate) struct Terms {
    tokens: StringArray,
    documents: Vec<u64>,
    /// The slice of each id, when the job is counted by slice.
    slices: Option<StringArray>,
}

impl Terms {
    pub(crate) fn len(&self) -> usize {
        self.documents.len()
    }

    async fn read(context: &SessionContext, job: &Job, sliced: bool) -> Result<Self, EngineError> {
        let frame = context
            .read_table(job.vocab.provider().await?)
            .and_then(|frame| match sliced {
                false => frame.select_columns(&["id", "token", "documents"]),
                true => frame.select_columns(&["id", "token", "documents", "slice"]),
            })
            .map_err(query)?;
        let batches = frame.collect().await.map_err(query)?;
        let mut rows: Vec<(i32, String, u64, Option<String>)> = Vec::new();
        for batch in batches {
            let ids = batch.column(0).as_primitive::<Int32Type>().clone();
            let tokens = arrow::compute::cast(batch.column(1), &DataType::Utf8)
                .map_err(|error| EngineError::Bug(error.to_string()))?;
            let documents = batch.column(2).as_primitive::<Int64Type>().clone();
            let slices = match sliced {
                false => None,
                true => Some(
                    arrow::compute::cast(batch.column(3), &DataType::Utf8)
                        .map_err(|error| EngineError::Bug(error.to_string()))?,
                ),
            };
            for row in 0..batch.num_rows() {
                let slice = slices.as_ref().map(|slices| slices.as_string::<i32>());
                rows.push((
                    ids.value(row),
                    tokens.as_string::<i32>().value(row).to_owned(),
                    u64::try_from(documents.value(row)).unwrap_or(0),
                    slice
                        .filter(|slices| slices.is_valid(row))
                        .map(|slices| slices.value(row).to_owned()),
                ));
            }
        }
        rows.sort_unstable_by_key(|row| row.0);
        if rows
            .iter()
            .enumerate()
            .any(|(index, row)| usize::try_from(row.0) != Ok(index))
        {
            return Err(EngineError::Bug(
                "the ids of `vocab` are not 0, 1, 2, …".into(),
            ));
        }
        Ok(Self {
            tokens: StringArray::from_iter_values(rows.iter().map(|row| &row.1)),
            documents: rows.iter().map(|row| row.2).collect(),
            slices: sliced.then(|| StringArray::from_iter(rows.iter().map(|row| row.3.as_deref()))),
        })
    }
}

/// Marginals by id, in natural units.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Totals {
    left: Arc<[f64]>,
    right: Arc<[f64]>,
    /// By slice; one, when there are no slices.
    n: Vec<f64>,
    /// Ids of a slice.
    terms: usize,
}

impl Totals {
    /// Little-endian: ids of a slice, n of each slice, all of left, all of right.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let numbers = self.n.iter().chain(&self.left[..]).chain(&self.right[..]);
        let numbers = numbers.flat_map(|number| number.to_le_bytes());
        let terms = (self.terms as u64).to_le_bytes();
        terms.into_iter().chain(numbers).collect()
    }

    /// `None` when the length is wrong.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (numbers, []) = bytes.as_chunks::<8>() else {
            return None;
        };
        let (terms, numbers) = numbers.split_first()?;
        let terms = usize::try_from(u64::from_le_bytes(*terms)).ok()?;
        let numbers: Vec<f64> = numbers
            .iter()
            .map(|number| f64::from_le_bytes(*number))
            .collect();
        // Each slice has one n, and each of its terms two marginals.
        let a_slice = terms.checked_mul(2)?.checked_add(1)?;
        let slices = (numbers.len() / a_slice).max(1);
        if numbers.len() != slices * a_slice {
            return None;
        }
        let (n, marginals) = numbers.split_at(slices);
        let (left, right) = marginals.split_at(marginals.len() / 2);
        Some(Self {
            left: left.into(),
            right: right.into(),
            n: n.to_vec(),
            terms,
        })
    }
}

/// Row and column sums of pair counts, in weight units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sums {
    left: Vec<u128>,
    right: Vec<u128>,
}

impl Sums {
    pub(crate) fn of(terms: usize) -> Self {
        Self {
            left: vec![0; terms],
            right: vec![0; terms],
        }
    }

    fn with_tail(mut self, tail: &TailSums) -> Self {
        let sums = self.left.iter_mut().chain(&mut self.right);
        for (sum, more) in sums.zip(tail.left.iter().chain(&tail.right)) {
            *sum += u128::from(*more);
        }
        self
    }

    fn add(&mut self, other: &Self) {
        let sums = self.left.iter_mut().chain(&mut self.right);
        for (sum, more) in sums.zip(other.left.iter().chain(&other.right)) {
            *sum += more;
        }
    }

    /// Little-endian: all of left, all of right.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let sums = self.left.iter().chain(&self.right);
        sums.flat_map(|sum| sum.to_le_bytes()).collect()
    }

    /// Adds what [`Self::to_bytes`] gave; `None` when the length is wrong.
    pub(crate) fn add_bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let (more, []) = bytes.as_chunks::<16>() else {
            return None;
        };
        if more.len() != self.left.len() + self.right.len() {
            return None;
        }
        for (sum, more) in self.left.iter_mut().chain(&mut self.right).zip(more) {
            *sum += u128::from_le_bytes(*more);
        }
        Some(())
    }
}

pub(crate) struct Scorer<'a> {
    session: &'a Session,
    /// The same session with one partition, which keeps the order of a file.
    in_order: SessionContext,
    warehouse: &'a Warehouse,
    name: &'a JobName,
    files: &'a [DataFile],
    threads: usize,
    progress: &'a dyn Progress,
    stop: &'a StopFlag,
    unit: f64,
    symmetric: bool,
    recorded: &'a RecordedScore,
    batch: String,
    schema: SchemaRef,
    sketched: bool,
}

impl Scorer<'_> {
    /// Calls `each` with every batch of file `number`.
    fn scan(
        &self,
        number: usize,
        mut each: impl FnMut(&RecordBatch) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        self.session.each_batch(
            &self.in_order,
            &self
                .warehouse
                .file_url(self.name, "pairs", &self.files[number].name)?,
            self.stop,
            |batch| each(&batch),
        )
    }

    /// Row and column sums of the pair counts of a file.
    pub(crate) fn sum_file(&self, number: usize, terms: usize) -> Result<Sums, EngineError> {
        let mut sums = Sums::of(terms);
        self.add_file(number, &mut sums)?;
        Ok(sums)
    }

    fn add_file(&self, number: usize, sums: &mut Sums) -> Result<(), EngineError> {
        self.scan(number, |batch| {
            let ids = |index: usize| batch.column(index).as_primitive::<Int32Type>().values();
            let counts = batch.column(2).as_primitive::<Int64Type>().values();
            for ((x, y), count) in ids(0).iter().zip(ids(1)).zip(counts) {
                let count = u128::from(count.unsigned_abs());
                sums.left[*x as usize] += count;
                sums.right[*y as usize] += count;
            }
            Ok(())
        })
    }

    /// Row and column sums of the pair counts.
    fn sums(&self, terms: usize) -> Result<Sums, EngineError> {
        self.progress
            .phase("sum", self.files.len() as u64, Steps::Parts);
        let next = AtomicUsize::new(0);
        let parts = workers::run(self.threads, self.stop, |_| {
            let mut sums = Sums::of(terms);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.files.len() {
                    return Ok(sums);
                }
                self.add_file(number, &mut sums)?;
                self.progress.advance(1, 0);
            }
        })?;
        let mut all = Sums::of(terms);
        for part in &parts {
            all.add(part);
        }
        Ok(all)
    }

    fn write(&self, terms: &Terms, totals: &Totals) -> Result<Vec<DataFile>, EngineError> {
        let folder = TableFolder::new(self.warehouse, self.name, "pmi", self.session.handle());
        self.progress
            .phase("score", self.files.len() as u64, Steps::Parts);
        let next = AtomicUsize::new(0);
        let written = Mutex::new(vec![None; self.files.len()]);
        workers::run(self.threads, self.stop, |_| {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= self.files.len() {
                    return Ok(());
                }
                let name = format!("part-{number:05}-{}.parquet", self.batch);
                let file = self.write_file(number, &name, &folder, terms, totals)?;
                if let Ok(mut written) = written.lock() {
                    written[number] = Some(file);
                }
                self.progress.advance(1, 0);
            }
        })?;
        let written: Vec<DataFile> = written
            .into_inner()
            .unwrap_or_default()
            .into_iter()
            .flatten()
            .collect();
        if written.len() != self.files.len() {
            return Err(EngineError::Bug("a file of scores was not written".into()));
        }
        Ok(written)
    }

    /// Scores one file of `pairs` into one of `pmi`.
    pub(crate) fn write_file(
        &self,
        number: usize,
        name: &str,
        folder: &TableFolder<'_>,
        terms: &Terms,
        totals: &Totals,
    ) -> Result<DataFile, EngineError> {
        let counts_schema = Arc::new(Schema::new(counts().to_vec()));
        let expressions = self.expressions(&counts_schema)?;
        let mut file = folder.create(name, &self.schema, &[])?;
        self.scan(number, |batch| {
            let batch = self.keep(batch)?;
            if batch.num_rows() > 0 {
                file.write(&self.score(&batch, terms, totals, &counts_schema, &expressions)?)?;
            }
            Ok(())
        })?;
        Ok(file.finish()?)
    }

    fn expressions(&self, schema: &Schema) -> Result<Vec<Arc<dyn PhysicalExpr>>, EngineError> {
        let context = self.session.context();
        let schema = DFSchema::try_from(schema.clone()).map_err(query)?;
        self.recorded
            .columns
            .iter()
            .map(|(_, sql)| {
                let expression = context.parse_sql_expr(sql, &schema)?;
                context.create_physical_expr(expression, &schema)
            })
            .collect::<Result<_, _>>()
            .map_err(query)
    }

    /// The pairs that are frequent enough.
    fn keep(&self, batch: &RecordBatch) -> Result<RecordBatch, EngineError> {
        if self.recorded.min_pair_count <= 0.0 {
            return Ok(batch.clone());
        }
        let counts = batch.column(2).as_primitive::<Int64Type>();
        let kept: BooleanArray = counts
            .values()
            .iter()
            .map(|count| Some(*count as f64 / self.unit >= self.recorded.min_pair_count))
            .collect();
        filter_record_batch(batch, &kept).map_err(|error| EngineError::Bug(error.to_string()))
    }

    fn score(
        &self,
        batch: &RecordBatch,
        terms: &Terms,
        totals: &Totals,
        counts_schema: &SchemaRef,
        expressions: &[Arc<dyn PhysicalExpr>],
    ) -> Result<RecordBatch, EngineError> {
        let bug = |error: arrow::error::ArrowError| EngineError::Bug(error.to_string());
        let ids = |index: usize| batch.column(index).as_primitive::<Int32Type>().values();
        let (left, right) = (ids(0), ids(1));
        let counts = batch.column(2).as_primitive::<Int64Type>().values();
        let natural: Vec<f64> = left
            .iter()
            .zip(right)
            .zip(counts)
            .map(|((x, y), count)| {
                // The symmetric matrix holds a pair of a term with itself twice.
                let twice = if self.symmetric && x == y { 2.0 } else { 1.0 };
                *count as f64 * twice / self.unit
            })
            .collect();
        let marginal = |sums: &[f64], ids: &[i32]| -> Vec<f64> {
            ids.iter().map(|id| sums[*id as usize]).collect()
        };
        let n_x = marginal(&totals.left, left);
        let n_y = marginal(&totals.right, right);
        // A pair is of one slice, so its left id tells which.
        let n: Vec<f64> = match totals.n.as_slice() {
            [n] => vec![*n; natural.len()],
            by_slice => {
                let of = |id: &i32| by_slice.get(*id as usize / totals.terms.max(1));
                left.iter()
                    .map(|id| of(id).copied().unwrap_or(0.0))
                    .collect()
            }
        };
        let array = |values: Vec<f64>| -> ArrayRef { Arc::new(Float64Array::from(values)) };
        let plus =
            |values: &[f64], more: f64| array(values.iter().map(|value| value + more).collect());
        let smoothed = RecordBatch::try_new(
            counts_schema.clone(),
            vec![
                plus(&natural, self.recorded.pair_smoothing),
                plus(&n_x, self.recorded.unigram_smoothing),
                plus(&n_y, self.recorded.unigram_smoothing),
                array(n.clone()),
            ],
        )
        .map_err(bug)?;
        let words = |of: &StringArray, ids: &[i32]| {
            let indices = UInt32Array::from_iter_values(ids.iter().map(|id| *id as u32));
            take(of, &indices, None).map_err(bug)
        };
        let slices = terms.slices.as_ref().map(|slices| words(slices, left));
        let mut columns: Vec<ArrayRef> = slices.into_iter().collect::<Result<_, _>>()?;
        columns.extend([
            words(&terms.tokens, left)?,
            words(&terms.tokens, right)?,
            array(natural),
            array(n_x),
            array(n_y),
            array(n),
        ]);
        for expression in expressions {
            let value = expression
                .evaluate(&smoothed)
                .and_then(|value| value.into_array(smoothed.num_rows()));
            columns.push(value.map_err(query)?);
        }
        if self.sketched {
            // What is in `pairs` is exact; `estimate` tells of the others.
            columns.push(Arc::new(BooleanArray::from(vec![false; batch.num_rows()])));
        }
        debug_assert!(
            columns
                .iter()
                .all(|column| column.len() == batch.num_rows())
        );
        RecordBatch::try_new(self.schema.clone(), columns).map_err(bug)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_totals_come_back_from_their_bytes() {
        let sums = Sums {
            left: vec![1, u128::MAX / 4],
            right: vec![0, 7],
        };
        let mut back = Sums::of(2);
        back.add_bytes(&sums.to_bytes()).unwrap();
        back.add_bytes(&sums.to_bytes()).unwrap();
        assert_eq!(back.left, [2, u128::MAX / 4 * 2]);
        assert_eq!(back.right, [0, 14]);
        assert_eq!(Sums::of(3).add_bytes(&sums.to_bytes()), None);
        let totals = Totals {
            left: vec![0.1, 2.0].into(),
            right: vec![1.0 / 3.0, 4.0].into(),
            n: vec![1e300],
            terms: 2,
        };
        assert_eq!(Totals::from_bytes(&totals.to_bytes()), Some(totals.clone()));
        let sliced = Totals {
            n: vec![3.0, 4.0],
            terms: 1,
            ..totals.clone()
        };
        assert_eq!(Totals::from_bytes(&sliced.to_bytes()), Some(sliced));
        assert_eq!(Totals::from_bytes(&totals.to_bytes()[8..]), None);
        assert_eq!(Totals::from_bytes(&[1]), None);
    }

    #[test]
    fn measures_have_column_names_and_sql() {
        let plain = |text| column(text, Base::E).unwrap();
        assert_eq!(
            plain("pmi"),
            ("pmi".to_owned(), "pmi(n_xy, n_x, n_y, n)".to_owned())
        );
        let (name, sql) = column("pmi", Base::Two).unwrap();
        assert_eq!(
            (name.as_str(), sql.as_str()),
            ("pmi", "pmi(n_xy, n_x, n_y, n, 2)")
        );
        let message = |text| column(text, Base::E).unwrap_err().to_string();
        assert!(
            message("nmpi").starts_with("no measure `nmpi` (did you mean `npmi`?)"),
            "{}",
            message("nmpi")
        );
        assert!(message("pmi(base").contains("is not a measure"));
        assert!(message("pmi(2)").contains("is not parameter=value"));
        assert!(message("pmi(colour=2)").contains("colour"));
    }
}
