//! The count job, from inputs to one commit.
//!
//! 1. expand the inputs, open every footer, cut units;
//! 2. read every unit (decode, tokenize), collect its terms, choose the vocabulary;
//! 3. count: one block goes straight into table files; several become runs, merged by ranges;
//! 4. commit `vocab`, `sources` and `pairs` as one version.
//!
//! A job of several units keeps manifests in its work folder and goes on after a kill.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use futures::{StreamExt, TryStreamExt};
use pmill_count::{CountSettings as KernelSettings, TokenBlock, keep_probability};
use pmill_store::{Job, JobCommit, JobLock, JobName, Warehouse, schema};
use pmill_text::{FeatureExtractor, Vocabulary};
use serde::{Deserialize, Serialize};

use crate::budget::Budget;
use crate::counting::{Counting, RangeFile, RunFile};
use crate::dictionaries::StoredDictionary;
use crate::error::EngineError;
use crate::input::{self, InputFile};
use crate::memory::{ByteSize, SMALLEST_LIMIT, peak_rss};
use crate::progress::{Progress, StopFlag, Unit as Steps};
use crate::read::{self, FileTally, ReadJob, ReadUnit};
use crate::scan::{CorpusFile, Scanner};
use crate::session::Session;
use crate::settings::{ContextKind, CountSettings, OnBadFile, RecordedSettings};
use crate::sources::{self, SourceRow};
use crate::tables::{TableFolder, table_ranges, vocab_columns};
use crate::tokens::TokenStore;
use crate::units::{self, Unit};
use crate::vocabulary;
use crate::work::{SCRATCH, WorkFolder, clear};

/// What to count, into which job, and within which means.
#[derive(Debug, Clone)]
pub struct CountJob {
    /// Warehouse location.
    pub warehouse: String,
    /// Job name.
    pub name: String,
    /// Paths, globs, folders, URIs.
    pub inputs: Vec<String>,
    /// What is counted and how.
    pub settings: CountSettings,
    /// What happens at a bad file.
    pub on_bad_file: OnBadFile,
    /// Memory limit.
    pub memory_limit: ByteSize,
    /// Threads.
    pub threads: usize,
}

/// What a job did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Files were counted and committed.
    Counted,
    /// Everything had been counted before; nothing changed.
    Unchanged,
}

/// The closing summary of a count job; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct CountSummary {
    /// What was done.
    pub status: Status,
    /// Job name.
    pub job: String,
    /// Version of `pairs` that holds the result.
    pub version: u64,
    /// Files counted.
    pub files: u64,
    /// Files skipped.
    pub skipped: u64,
    /// Rows read.
    pub rows: u64,
    /// Features met.
    pub tokens: u64,
    /// Distinct features met.
    pub types: u64,
    /// Terms of the vocabulary.
    pub terms: u64,
    /// Pairs stored.
    pub pairs: u64,
    /// Features dropped by `max-features-per-document`.
    pub dropped_features: u64,
    /// Units that the job was cut into.
    pub units: u64,
    /// Bytes of temporary files.
    pub spilled_bytes: u64,
    /// Seconds.
    pub seconds: f64,
    /// Most memory held, if the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What a dry run found: inputs, plan and outputs; nothing was written.
#[derive(Debug, Clone, Serialize)]
pub struct CountPlan {
    /// Job name.
    pub job: String,
    /// Files to count, with their bytes.
    pub inputs: Vec<(String, u64)>,
    /// Files that would be skipped, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Rows in the footers.
    pub rows: u64,
    /// Bytes of the text column as stored.
    pub compressed_bytes: u64,
    /// Bytes of the text column, decompressed.
    pub text_bytes: u64,
    /// Row groups.
    pub row_groups: u64,
    /// Units.
    pub units: u64,
    /// Threads.
    pub threads: u64,
    /// Memory limit in bytes.
    pub memory_limit: ByteSize,
    /// Tables that would be written.
    pub outputs: Vec<String>,
    /// Settings as they would be recorded.
    pub settings: CountSettings,
}

/// What is known of a counted job; kept with its table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Rows, those without text too: the N of the context `document`.
    pub rows: u64,
    /// Features met.
    pub tokens: u64,
    /// Distinct features met.
    pub types: u64,
    /// Terms of the vocabulary.
    pub terms: u64,
    /// Pairs stored.
    pub pairs: u64,
    /// Sum of the stored counts in weight units, as text.
    pub units: String,
    /// Weight units in a natural count of 1.
    pub weight_unit: u64,
    /// Features dropped by `max-features-per-document`.
    pub dropped_features: u64,
}

/// Says what a job would do. Writes nothing.
///
/// # Errors
/// As [`count`], up to the point where reading begins.
pub fn plan(job: &CountJob, progress: &dyn Progress) -> Result<CountPlan, EngineError> {
    let name = JobName::new(&job.name)?;
    let warehouse = Warehouse::open(&job.warehouse)?;
    let prepared = Prepared::new(job, None)?;
    let inputs = input::expand(&job.inputs)?;
    let (files, bad) = prepared.open_all(job, &inputs, progress)?;
    let budget = prepared.budget(job, &files)?;
    let groups = || files.iter().flat_map(|file| &file.row_groups);
    let root = warehouse.display();
    Ok(CountPlan {
        job: job.name.clone(),
        inputs: files
            .iter()
            .map(|file| (file.input.display(), file.input.size))
            .collect(),
        skipped: bad
            .iter()
            .map(|(file, error)| (file.display(), error.to_string()))
            .collect(),
        rows: groups().map(|group| group.rows).sum(),
        compressed_bytes: groups().map(|group| group.compressed).sum(),
        text_bytes: groups().map(|group| group.uncompressed).sum(),
        row_groups: groups().count() as u64,
        units: units::plan(&files, budget.unit_bytes()).len() as u64,
        threads: job.threads as u64,
        memory_limit: job.memory_limit,
        outputs: ["vocab", "pairs", "sources"]
            .iter()
            .map(|table| {
                Path::new(&root)
                    .join(name.as_str())
                    .join(table)
                    .display()
                    .to_string()
            })
            .collect(),
        settings: job.settings.clone(),
    })
}

/// Counts the files that the job has not counted yet, and commits them as one version.
///
/// # Errors
/// Whatever is wrong with settings, inputs, memory, disk or warehouse; nothing is committed then.
pub fn count(
    job: &CountJob,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<CountSummary, EngineError> {
    let started = Instant::now();
    let name = JobName::new(&job.name)?;
    let warehouse = Warehouse::open(&job.warehouse)?;
    let inputs = input::expand(&job.inputs)?;
    // Settings and inputs are checked before anything is written.
    let extractor = Arc::new(FeatureExtractor::new(&job.settings.features)?);
    let recorded = RecordedSettings::resolve(&job.settings, &extractor)?;
    let Some(job_folder) = warehouse.work_folder(&name) else {
        return Err(EngineError::Setting(
            "this build writes warehouses on local disk only".into(),
        ));
    };
    let fresh = !job_folder.exists();
    let lock = warehouse.lock(&name)?;
    let scratch = job_folder.join(SCRATCH);
    let result = (|| {
        renew(&scratch)?;
        let prepared = Prepared {
            session: Session::new(job.threads, job.memory_limit, Some(&scratch))?,
            extractor,
            recorded,
        };
        let existing = prepared.session.wait(Job::open(&warehouse, &name))?;
        if let Some(existing) = &existing {
            let summary = already_counted(&prepared, existing, &inputs, started)?;
            clean_up(&prepared, &warehouse, &name, &job_folder, &lock)?;
            return Ok(summary);
        }
        let (files, bad) = prepared.open_all(job, &inputs, progress)?;
        let run = Run {
            job,
            name: &name,
            warehouse: &warehouse,
            prepared: &prepared,
            progress,
            stop,
            budget: prepared.budget(job, &files)?,
            files: &files,
            job_folder: &job_folder,
            started,
        };
        let summary = run.run(bad)?;
        clean_up(&prepared, &warehouse, &name, &job_folder, &lock)?;
        Ok(summary)
    })();
    let _ = std::fs::remove_dir_all(&scratch);
    if result.is_err() && fresh {
        leave_nothing(&warehouse, &name, &job_folder, &lock);
    }
    result
}

/// Takes away the work in progress and orphaned table files: this run's, or a dead process's.
fn clean_up(
    prepared: &Prepared,
    warehouse: &Warehouse,
    name: &JobName,
    job_folder: &Path,
    lock: &JobLock,
) -> Result<(), EngineError> {
    clear(job_folder, None)?;
    prepared.session.wait(warehouse.sweep(name, lock))?;
    Ok(())
}

/// After a failed first try: takes away what it made, as far as nothing in it can be used again. A
/// folder with manifests stays, so that the next try goes on.
fn leave_nothing(warehouse: &Warehouse, name: &JobName, job_folder: &Path, lock: &JobLock) {
    let has_manifests = std::fs::read_dir(job_folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            entry.path().is_dir()
                && std::fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_some())
        })
    });
    if has_manifests {
        return;
    }
    // The error that brought us here is the one to tell; what cannot be removed is left.
    if let Ok(session) = Session::new(1, SMALLEST_LIMIT, None) {
        let _ = session.wait(warehouse.sweep(name, lock));
    }
    let _ = std::fs::remove_dir_all(job_folder);
    let Some(root) = warehouse.local() else {
        return;
    };
    let job = root.join(name.as_str());
    let tables = ["vocab", "sources", "pairs"].map(|table| job.join(table));
    for folder in tables
        .into_iter()
        .chain([job, root.join(".pmill"), root.to_owned()])
    {
        // Removes empty folders only.
        let _ = std::fs::remove_dir(folder);
    }
}

fn renew(folder: &Path) -> Result<(), EngineError> {
    let io = |source| EngineError::Io {
        action: "create",
        path: folder.display().to_string(),
        source,
    };
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(io)?;
    }
    std::fs::create_dir_all(folder).map_err(io)
}

/// The job exists: everything counted before changes nothing; anything else is refused.
fn already_counted(
    prepared: &Prepared,
    job: &Job,
    inputs: &[InputFile],
    started: Instant,
) -> Result<CountSummary, EngineError> {
    let recorded: RecordedSettings = parse(&job.settings()?)?;
    let facts: Facts = parse(&job.facts()?)?;
    let differences = prepared.recorded.differences(&recorded);
    if !differences.is_empty() {
        return Err(EngineError::Setting(format!(
            "job `{}` was counted with other settings; give it another --name, or the settings it has\n  {}",
            job.name,
            differences.join("\n  ")
        )));
    }
    let rows = prepared
        .session
        .wait(sources::read(prepared.session.context(), job))?;
    let mut new = Vec::new();
    for input in inputs {
        match rows.iter().find(|row| row.uri == input.uri) {
            Some(row) if row.is(input) => {}
            Some(row) => {
                return Err(EngineError::Setting(format!(
                    "`{}` was counted before and has changed since ({} bytes, {} then; {} now); count it into another job",
                    input.display(),
                    row.size,
                    row.etag,
                    input.identity(),
                )));
            }
            None => new.push(input.display()),
        }
    }
    if let Some(first) = new.first() {
        return Err(EngineError::Setting(format!(
            "job `{}` is counted already, and {} of the inputs are not in it (`{first}`{}); count them into another job",
            job.name,
            new.len(),
            if new.len() > 1 { ", …" } else { "" },
        )));
    }
    Ok(CountSummary {
        status: Status::Unchanged,
        job: job.name.to_string(),
        version: job.pairs.version(),
        files: 0,
        skipped: 0,
        rows: facts.rows,
        tokens: facts.tokens,
        types: facts.types,
        terms: facts.terms,
        pairs: facts.pairs,
        dropped_features: facts.dropped_features,
        units: 0,
        spilled_bytes: 0,
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_rss().map(|size| size.0),
        notes: vec![format!(
            "all {} files were counted before; nothing changed",
            inputs.len()
        )],
    })
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, EngineError> {
    serde_json::from_str(json).map_err(|error| {
        EngineError::Query(format!(
            "the table's metadata was written by another version of pmill: {error}"
        ))
    })
}

/// Files left out, with the reason.
type Skipped = Vec<(InputFile, EngineError)>;

/// Settings resolved, session open.
struct Prepared {
    session: Session,
    extractor: Arc<FeatureExtractor>,
    recorded: RecordedSettings,
}

impl Prepared {
    fn new(job: &CountJob, scratch: Option<&Path>) -> Result<Self, EngineError> {
        let extractor = Arc::new(FeatureExtractor::new(&job.settings.features)?);
        let recorded = RecordedSettings::resolve(&job.settings, &extractor)?;
        let session = Session::new(job.threads, job.memory_limit, scratch)?;
        Ok(Self {
            session,
            extractor,
            recorded,
        })
    }

    fn scanner(&self, job: &CountJob) -> Scanner {
        Scanner::new(
            self.session.context().clone(),
            &job.settings.text,
            job.memory_limit,
        )
    }

    /// Opens every footer, several at once.
    fn open_all(
        &self,
        job: &CountJob,
        inputs: &[InputFile],
        progress: &dyn Progress,
    ) -> Result<(Vec<CorpusFile>, Skipped), EngineError> {
        if job.memory_limit < SMALLEST_LIMIT {
            return Err(EngineError::Memory {
                limit: job.memory_limit.to_string(),
                reason: format!("pmill needs {SMALLEST_LIMIT} at least"),
            });
        }
        progress.phase("open", inputs.len() as u64, Steps::Parts);
        let scanner = self.scanner(job);
        let opened: Vec<_> = self.session.wait(
            futures::stream::iter(inputs)
                .map(|input| {
                    let scanner = &scanner;
                    async move {
                        let opened = scanner.open(input).await;
                        progress.advance(1, 0);
                        match opened {
                            Ok(file) => Ok(Ok(file)),
                            Err(error @ EngineError::BadFile { .. })
                                if job.on_bad_file == OnBadFile::Skip =>
                            {
                                Ok(Err((input.clone(), error)))
                            }
                            Err(error) => Err(error),
                        }
                    }
                })
                .buffered(16)
                .try_collect(),
        )?;
        let (mut files, mut bad) = (Vec::new(), Vec::new());
        for result in opened {
            match result {
                Ok(file) => files.push(file),
                Err(skipped) => bad.push(skipped),
            }
        }
        Ok((files, bad))
    }

    fn budget(&self, job: &CountJob, files: &[CorpusFile]) -> Result<Budget, EngineError> {
        let largest = files
            .iter()
            .flat_map(|file| &file.row_groups)
            .map(|group| group.compressed)
            .max()
            .unwrap_or(0);
        Budget::new(job.memory_limit, job.threads, largest)
    }
}

/// One run of a job that does not exist yet.
struct Run<'a> {
    job: &'a CountJob,
    name: &'a JobName,
    warehouse: &'a Warehouse,
    prepared: &'a Prepared,
    progress: &'a dyn Progress,
    stop: &'a StopFlag,
    budget: Budget,
    files: &'a [CorpusFile],
    job_folder: &'a Path,
    started: Instant,
}

/// What reading a unit left, as its manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct TermsManifest {
    files: Vec<(usize, FileTally)>,
    dictionaries: Vec<(String, u64)>,
}

/// What counting a unit left, as its manifest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct RunsManifest {
    runs: Vec<RunFile>,
    dropped_features: u64,
}

/// All units read.
struct Corpus {
    units: Vec<UnitTokens>,
    dictionaries: Vec<StoredDictionary>,
    /// Tokens and documents by provisional id, when the vocabulary was given.
    counts: Option<(Vec<u64>, Vec<u64>)>,
    tallies: Vec<FileTally>,
    /// By file of the plan: why it is left out.
    bad: Vec<Option<String>>,
}

/// A unit's tokens, if this process read them, and its dictionaries as a range of all.
struct UnitTokens {
    tokens: Option<TokenStore>,
    dictionaries: std::ops::Range<usize>,
}

struct Counted {
    files: Vec<RangeFile>,
    dropped_features: u64,
    spilled_bytes: u64,
}

impl Run<'_> {
    fn run(&self, bad: Skipped) -> Result<CountSummary, EngineError> {
        let units = units::plan(self.files, self.budget.unit_bytes());
        let digest = self.digest(&units);
        let work = WorkFolder::open(self.job_folder, &digest)?;
        let given = match &self.job.settings.vocabulary.file {
            Some(path) => Some(Arc::new(Vocabulary::from_file(path)?)),
            None => None,
        };
        let mut corpus = self.read(&units, &work, given.as_ref())?;
        let (vocabulary, types, given_map) = self.vocabulary(given.as_deref(), &corpus)?;
        let vocabulary = Arc::new(vocabulary);
        let counting = self.counting(&vocabulary, &corpus, &digest)?;
        let counted = self.count(
            &counting,
            &units,
            &mut corpus,
            &vocabulary,
            given_map,
            &work,
        )?;

        let mut notes = Vec::new();
        let (mut rows, mut tokens) = (0, 0);
        let mut source_rows: Vec<SourceRow> = bad
            .iter()
            .map(|(file, error)| SourceRow::skipped(file, error.to_string()))
            .collect();
        for (index, file) in self.files.iter().enumerate() {
            let tally = corpus.tallies[index];
            source_rows.push(match &corpus.bad[index] {
                Some(message) => SourceRow::skipped(&file.input, message.clone()),
                None => {
                    rows += tally.rows;
                    tokens += tally.tokens;
                    SourceRow::counted(&file.input, tally)
                }
            });
        }
        source_rows.sort_by(|a, b| a.uri.cmp(&b.uri));
        let skipped = source_rows
            .iter()
            .filter(|row| row.message.is_some())
            .count() as u64;
        for row in source_rows.iter().filter(|row| row.message.is_some()) {
            notes.push(format!(
                "skipped: {}",
                row.message.as_deref().unwrap_or_default()
            ));
        }
        let files = source_rows.len() as u64 - skipped;
        if files == 0 {
            notes.push("no file was counted: the tables are empty".into());
        } else if rows == 0 {
            notes.push("the input has no rows: the tables are empty".into());
        } else if tokens == 0 {
            notes.push("no row has a feature: the tables are empty".into());
        }
        let units_sum: u128 = counted
            .files
            .iter()
            .map(|file| file.units.parse().unwrap_or(0))
            .sum();
        let facts = Facts {
            rows,
            tokens,
            types,
            terms: vocabulary.len() as u64,
            pairs: counted.files.iter().map(|file| file.pairs).sum(),
            units: units_sum.to_string(),
            weight_unit: self.prepared.recorded.weight_unit,
            dropped_features: counted.dropped_features,
        };
        let version = self.commit(&vocabulary, &source_rows, counted.files, &facts, &digest)?;
        Ok(CountSummary {
            status: Status::Counted,
            job: self.name.to_string(),
            version,
            files,
            skipped,
            rows,
            tokens,
            types,
            terms: facts.terms,
            pairs: facts.pairs,
            dropped_features: facts.dropped_features,
            units: units.len() as u64,
            spilled_bytes: counted.spilled_bytes,
            seconds: self.started.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_rss().map(|size| size.0),
            notes,
        })
    }

    /// Names the plan: the same inputs, settings and cut have the same name.
    fn digest(&self, units: &[Unit]) -> String {
        let inputs: Vec<&InputFile> = self.files.iter().map(|file| &file.input).collect();
        let text =
            serde_json::to_vec(&(&self.prepared.recorded, inputs, units)).unwrap_or_default();
        blake3::hash(&text).to_hex()[..16].to_owned()
    }

    fn read(
        &self,
        units: &[Unit],
        work: &WorkFolder,
        given: Option<&Arc<Vocabulary>>,
    ) -> Result<Corpus, EngineError> {
        let scanner = self.prepared.scanner(self.job);
        let folder: PathBuf = work.path().to_owned();
        let reader = ReadJob {
            session: &self.prepared.session,
            scanner: &scanner,
            files: self.files,
            extractor: &self.prepared.extractor,
            vocabulary: given,
            budget: self.budget,
            folder: &folder,
            progress: self.progress,
            stop: self.stop,
        };
        let mut bad: Vec<Option<String>> = work
            .get("bad.json")?
            .unwrap_or_else(|| vec![None; self.files.len()]);
        'again: loop {
            let left_out: Vec<bool> = bad.iter().map(Option::is_some).collect();
            self.progress
                .phase("read", units.iter().map(Unit::bytes).sum(), Steps::Bytes);
            let mut corpus = Corpus {
                units: Vec::new(),
                dictionaries: Vec::new(),
                counts: given.map(|v| (vec![0; v.len()], vec![0; v.len()])),
                tallies: vec![FileTally::default(); self.files.len()],
                bad: bad.clone(),
            };
            for unit in units {
                let manifest = format!("terms-{:05}.json", unit.number);
                if given.is_none()
                    && let Some(done) = work.get::<TermsManifest>(&manifest)?
                {
                    self.progress
                        .advance(unit.bytes(), done.files.iter().map(|(_, t)| t.rows).sum());
                    corpus.take_manifest(done, work);
                    continue;
                }
                let find_all = self.job.on_bad_file == OnBadFile::Skip;
                match read::read_unit(&reader, unit, &left_out, find_all)? {
                    Ok(read) => {
                        let manifest = (units.len() > 1).then_some(manifest.as_str());
                        corpus.take(unit, read, work, manifest)?;
                    }
                    Err(found) => {
                        for (file, error) in found {
                            bad[file] = Some(error.to_string());
                        }
                        for unit in units.iter().filter(|unit| {
                            unit.slices.iter().any(|slice| bad[slice.file].is_some())
                        }) {
                            work.remove(&format!("terms-{:05}.json", unit.number))?;
                        }
                        work.put("bad.json", &bad)?;
                        continue 'again;
                    }
                }
            }
            return Ok(corpus);
        }
    }

    /// The vocabulary, the number of distinct terms met, and the way from provisional ids to its
    /// ids when the terms were given.
    fn vocabulary(
        &self,
        given: Option<&Vocabulary>,
        corpus: &Corpus,
    ) -> Result<(Vocabulary, u64, Option<Vec<u32>>), EngineError> {
        match (given, &corpus.counts) {
            (Some(given), Some((tokens, documents))) => {
                let types = tokens.iter().filter(|count| **count > 0).count() as u64;
                let (vocabulary, map) = given.recount(tokens, documents)?;
                Ok((vocabulary, types, Some(map)))
            }
            _ => {
                let rule = self.job.settings.vocabulary.rule();
                let chosen = vocabulary::choose(&corpus.dictionaries, &rule, &self.budget)?;
                Ok((chosen.vocabulary, chosen.types, None))
            }
        }
    }

    fn counting(
        &self,
        vocabulary: &Vocabulary,
        corpus: &Corpus,
        digest: &str,
    ) -> Result<Counting<'_>, EngineError> {
        let context = &self.job.settings.context;
        let kernel = KernelSettings {
            context: context.to_context()?,
            vocabulary_size: u32::try_from(vocabulary.len()).map_err(|_| {
                EngineError::Setting("the vocabulary has more than 2^32 terms".into())
            })?,
        };
        let tokens: u64 = corpus.tallies.iter().map(|tally| tally.tokens).sum();
        let rows: u64 = corpus.tallies.iter().map(|tally| tally.rows).sum();
        let reach = match context.kind {
            ContextKind::Document => (tokens / rows.max(1)).max(1),
            ContextKind::Window => 2 * u64::from(context.window),
        };
        let keep = context.subsample.map(|threshold| {
            (0..kernel.vocabulary_size)
                .map(|id| keep_probability(threshold, vocabulary.tokens(id), tokens))
                .collect()
        });
        Ok(Counting {
            block_bytes: self.budget.block(&kernel, vocabulary.held_bytes() as u64)?,
            kernel,
            keep,
            threads: self.job.threads,
            ranges: table_ranges(vocabulary, reach),
            folder: self.folder("pairs"),
            batch: digest.to_owned(),
            progress: self.progress,
            stop: self.stop,
        })
    }

    fn folder(&self, table: &str) -> TableFolder<'_> {
        TableFolder::new(
            self.warehouse,
            self.name,
            table,
            self.prepared.session.handle(),
        )
    }

    fn count(
        &self,
        counting: &Counting<'_>,
        units: &[Unit],
        corpus: &mut Corpus,
        vocabulary: &Arc<Vocabulary>,
        given_map: Option<Vec<u32>>,
        work: &WorkFolder,
    ) -> Result<Counted, EngineError> {
        let (mut runs, mut dropped_features, mut spilled_bytes) = (Vec::new(), 0, 0);
        let several = units.len() > 1;
        if several {
            self.progress
                .phase("count", units.len() as u64, Steps::Parts);
        }
        for unit in units {
            let manifest = format!("unit-{:05}.json", unit.number);
            if several && let Some(done) = work.get::<RunsManifest>(&manifest)? {
                dropped_features += done.dropped_features;
                runs.extend(done.runs);
                self.progress.advance(1, 0);
                continue;
            }
            let read = &mut corpus.units[unit.number];
            let (tokens, maps) = match (read.tokens.take(), &given_map) {
                (Some(tokens), Some(map)) => (tokens, vec![map.clone()]),
                (Some(tokens), None) => {
                    let maps = corpus.dictionaries[read.dictionaries.clone()]
                        .iter()
                        .map(|dictionary| dictionary.remap(vocabulary))
                        .collect::<Result<_, _>>()?;
                    (tokens, maps)
                }
                // Read by a process that died: read again, now that the vocabulary is known.
                (None, _) => (self.read_again(unit, corpus, vocabulary, work)?, Vec::new()),
            };
            spilled_bytes += tokens.spilled_bytes()?;
            if !several {
                // The maps are all that is needed of them.
                corpus.dictionaries = Vec::new();
            }
            let mut blocks = Blocks {
                run: self,
                counting,
                work,
                unit: unit.number,
                done: RunsManifest::default(),
                number: 0,
            };
            let last = counting.fill(tokens, &maps, |block| blocks.flush(block))?;
            if !several && blocks.number == 0 {
                let dropped_features = last.dropped_features();
                let prepared = last.prepare(self.job.threads)?;
                self.progress
                    .phase("count", counting.ranges.len() as u64, Steps::Parts);
                let files = counting.write_tables(&prepared)?;
                return Ok(Counted {
                    files,
                    dropped_features,
                    spilled_bytes,
                });
            }
            if !last.is_empty() {
                blocks.flush(last)?;
            }
            let done = blocks.done;
            if several {
                work.put(&manifest, &done)?;
                self.progress.advance(1, 0);
            }
            dropped_features += done.dropped_features;
            runs.extend(done.runs);
        }
        spilled_bytes += runs.iter().map(|run| run.bytes).sum::<u64>();
        let paths: Vec<PathBuf> = runs.iter().map(|run| work.path().join(&run.name)).collect();
        self.progress
            .phase("merge", counting.ranges.len() as u64, Steps::Parts);
        let (_, local) = self.warehouse.table_folder(self.name, "pairs");
        let files = counting.merge(
            &paths,
            |number| {
                let done: RangeFile = work.get(&format!("range-{number:05}.json")).ok()??;
                let path = local.as_ref()?.join(&done.file.name);
                (std::fs::metadata(path).ok()?.len() == done.file.size).then_some(done)
            },
            |number, file| {
                if several {
                    work.put(&format!("range-{number:05}.json"), file)
                } else {
                    Ok(())
                }
            },
        )?;
        Ok(Counted {
            files,
            dropped_features,
            spilled_bytes,
        })
    }

    fn read_again(
        &self,
        unit: &Unit,
        corpus: &Corpus,
        vocabulary: &Arc<Vocabulary>,
        work: &WorkFolder,
    ) -> Result<TokenStore, EngineError> {
        let scanner = self.prepared.scanner(self.job);
        let folder: PathBuf = work.path().to_owned();
        let reader = ReadJob {
            session: &self.prepared.session,
            scanner: &scanner,
            files: self.files,
            extractor: &self.prepared.extractor,
            vocabulary: Some(vocabulary),
            budget: self.budget,
            folder: &folder,
            progress: &crate::progress::Quiet,
            stop: self.stop,
        };
        let left_out: Vec<bool> = corpus.bad.iter().map(Option::is_some).collect();
        match read::read_unit(&reader, unit, &left_out, false)? {
            Ok(read) => Ok(read.tokens),
            Err(_) => Err(EngineError::Bug(
                "a unit that was read before cannot be read again".into(),
            )),
        }
    }

    fn commit(
        &self,
        vocabulary: &Vocabulary,
        sources: &[SourceRow],
        pairs: Vec<RangeFile>,
        facts: &Facts,
        digest: &str,
    ) -> Result<u64, EngineError> {
        self.progress.phase("commit", 1, Steps::Parts);
        let name = format!("part-00000-{digest}.parquet");
        let vocab = self.folder("vocab").write(
            &name,
            &schema::VOCAB,
            &["id"],
            vocab_columns(vocabulary)?,
        )?;
        let text = |get: fn(&SourceRow) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(sources.iter().map(get)))
        };
        let number = |get: fn(&SourceRow) -> u64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(
                sources
                    .iter()
                    .map(|row| i64::try_from(get(row)).unwrap_or(i64::MAX)),
            ))
        };
        let columns: Vec<ArrayRef> = vec![
            text(|row| &row.uri),
            number(|row| row.size),
            text(|row| &row.etag),
            number(|row| row.rows),
            number(|row| row.tokens),
            Arc::new(StringArray::from_iter_values(
                sources.iter().map(|_| digest),
            )),
            text(SourceRow::status),
            Arc::new(StringArray::from_iter(
                sources.iter().map(|row| row.message.as_deref()),
            )),
        ];
        let sources = self
            .folder("sources")
            .write(&name, &schema::SOURCES, &["uri"], columns)?;
        let json = |value: serde_json::Result<String>| {
            value.map_err(|error| EngineError::Bug(error.to_string()))
        };
        let commit = JobCommit {
            name: self.name.clone(),
            base: None,
            batch: digest.to_owned(),
            settings: json(serde_json::to_string(&self.prepared.recorded))?,
            facts: json(serde_json::to_string(facts))?,
            vocab: vec![vocab],
            sources: vec![sources],
            pairs: pairs.into_iter().map(|range| range.file).collect(),
        };
        let version = self.prepared.session.wait(commit.commit(self.warehouse))?;
        self.progress.advance(1, 0);
        Ok(version)
    }
}

/// Writes the full blocks of one unit as runs.
struct Blocks<'a> {
    run: &'a Run<'a>,
    counting: &'a Counting<'a>,
    work: &'a WorkFolder,
    unit: usize,
    done: RunsManifest,
    number: usize,
}

impl Blocks<'_> {
    fn flush(&mut self, block: TokenBlock) -> Result<TokenBlock, EngineError> {
        self.done.dropped_features += block.dropped_features();
        let prepared = block.prepare(self.run.job.threads)?;
        let prefix = format!("unit-{:05}-{:03}", self.unit, self.number);
        self.number += 1;
        self.done.runs.extend(
            self.counting
                .write_runs(&prepared, self.work.path(), &prefix)?,
        );
        Ok(prepared.recycle())
    }
}

impl Corpus {
    fn take_manifest(&mut self, done: TermsManifest, work: &WorkFolder) {
        for (file, tally) in done.files {
            self.tallies[file].rows += tally.rows;
            self.tallies[file].tokens += tally.tokens;
        }
        let first = self.dictionaries.len();
        self.dictionaries
            .extend(
                done.dictionaries
                    .into_iter()
                    .map(|(name, terms)| StoredDictionary::Disk {
                        path: work.path().join(name),
                        terms,
                    }),
            );
        self.units.push(UnitTokens {
            tokens: None,
            dictionaries: first..self.dictionaries.len(),
        });
    }

    fn take(
        &mut self,
        unit: &Unit,
        read: ReadUnit,
        work: &WorkFolder,
        manifest: Option<&str>,
    ) -> Result<(), EngineError> {
        for (file, tally) in read.files.iter().enumerate() {
            self.tallies[file].rows += tally.rows;
            self.tallies[file].tokens += tally.tokens;
        }
        if let (Some((tokens, documents)), Some((more_tokens, more_documents))) =
            (&mut self.counts, &read.counts)
        {
            for (sum, more) in tokens.iter_mut().zip(more_tokens) {
                *sum += more;
            }
            for (sum, more) in documents.iter_mut().zip(more_documents) {
                *sum += more;
            }
        }
        let first = self.dictionaries.len();
        match manifest {
            None => self.dictionaries.extend(read.dictionaries),
            Some(manifest) => {
                // Another unit follows: this one leaves memory.
                let mut names = Vec::new();
                for (number, dictionary) in read.dictionaries.into_iter().enumerate() {
                    let stored = match dictionary {
                        StoredDictionary::Memory(dictionary) => {
                            let name = format!("terms-{:05}-{number:03}", unit.number);
                            StoredDictionary::write(&dictionary, work.path().join(name))?
                        }
                        stored => stored,
                    };
                    if let StoredDictionary::Disk { path, terms } = &stored {
                        let name = path
                            .file_name()
                            .unwrap_or_default()
                            .to_string_lossy()
                            .into_owned();
                        names.push((name, *terms));
                    }
                    self.dictionaries.push(stored);
                }
                read.tokens.spill_all()?;
                if read.counts.is_none() {
                    let files = read
                        .files
                        .iter()
                        .copied()
                        .enumerate()
                        .filter(|(_, tally)| tally.rows > 0)
                        .collect();
                    work.put(
                        manifest,
                        &TermsManifest {
                            files,
                            dictionaries: names,
                        },
                    )?;
                }
            }
        }
        self.units.push(UnitTokens {
            tokens: Some(read.tokens),
            dictionaries: first..self.dictionaries.len(),
        });
        Ok(())
    }
}
