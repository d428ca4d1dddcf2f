//! A corpus and a scored table make the same rows with numbers for each document.
//!
//! Each input file gives one shard with its rows in their order, so that shards line up with inputs
//! and with other annotations of them. Memory: the table (module `lookup`), which three quarters of the
//! limit must hold; the last quarter is shared by the threads, for rows and the pairs of `block`.

mod block;
mod columns;
mod document;
mod lookup;
pub(crate) mod output;
mod read;
pub(crate) mod shard;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use pmill_text::{FeatureExtractor, TermCount, Vocabulary, VocabularyRule};
use serde::{Deserialize, Serialize};

pub use self::output::{AnnotatePlan, Annotated, MANIFEST, Shard};

use self::columns::Added;
use self::document::Tables;
use self::lookup::PairTable;
pub(crate) use self::output::{Begun, Staged};
use self::shard::{Annotator, Reader, Room};
use crate::error::EngineError;
use crate::expression::RowSpec;
use crate::input::{self, InputFile};
use crate::job::Status;
use crate::memory::{ByteSize, peak_rss};
use crate::progress::{Progress, StopFlag, Unit};
use crate::rows::TableRows;
use crate::scan::Scanner;
use crate::workers;

/// What to annotate, with which table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AnnotateJob {
    /// Warehouse location.
    pub warehouse: String,
    /// Job name.
    pub name: String,
    /// Paths, globs, folders, URIs.
    pub inputs: Vec<String>,
    /// The text column; not set: the one that the job was counted from.
    pub text: Option<String>,
    /// Folder to make.
    pub output: PathBuf,
    /// Column of `pmi` that is looked up.
    pub measure: String,
    /// Quantiles of the measure, 0 to 1.
    pub quantiles: Vec<f64>,
    /// Input columns that are kept; not set: all of them.
    pub keep: Option<Vec<String>>,
    /// Job of the target corpus, for the log weight, in the same warehouse.
    pub target: Option<String>,
    /// Rows that a term or pair may have before it is thinned out, for the balancing probabilities.
    pub balance: Option<f64>,
    /// Goes before the names of the added columns.
    pub prefix: String,
    /// Whether an output that is there is replaced.
    pub overwrite: bool,
    /// Memory limit.
    pub memory_limit: ByteSize,
    /// Threads.
    pub threads: usize,
}

/// What annotating did; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct AnnotateSummary {
    /// What was done.
    pub status: Status,
    /// Job name.
    pub job: String,
    /// Version of `pairs`.
    pub version: u64,
    /// The output.
    pub output: String,
    /// Rows.
    pub rows: u64,
    /// Shards.
    pub shards: Vec<Shard>,
    /// Shards that an earlier process had finished.
    pub resumed: u64,
    /// Seconds.
    pub seconds: f64,
    /// Seconds from the first row read to the last shard written.
    pub annotating_seconds: f64,
    /// Most memory held, if the system tells.
    pub peak_memory_bytes: Option<u64>,
}

/// Annotates.
///
/// # Errors
/// A job that is not scored, a bad or changed input, a limit too small; nothing is visible then.
pub fn annotate(
    job: &AnnotateJob,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<AnnotateSummary, EngineError> {
    let started = Instant::now();
    let annotation = Annotation::open(job, input::expand(&job.inputs)?)?;
    annotation.check_inputs()?;
    let plan = annotation.plan.clone();
    let staged = match Staged::begin(&job.output, &plan, job.overwrite)? {
        Begun::Done(done) => return Ok(annotation.unchanged(done, started)),
        Begun::Open(staged) => staged,
    };
    let shared = annotation.shared(progress, stop)?;
    let threads = (job.threads / plan.inputs.len()).max(1);
    let annotator = annotation.annotator(&shared, threads, progress, stop);
    progress.phase(
        "annotate",
        plan.inputs.iter().map(|input| input.size).sum(),
        Unit::Bytes,
    );
    let began = Instant::now();
    let (next, resumed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let shards = Mutex::new(vec![None; plan.inputs.len()]);
    workers::run(job.threads.min(plan.inputs.len()), stop, |_| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(input) = plan.inputs.get(number) else {
                return Ok(());
            };
            let shard = match staged.done(number)? {
                Some(shard) => {
                    resumed.fetch_add(1, Ordering::Relaxed);
                    progress.advance(input.size, shard.rows);
                    shard
                }
                None => {
                    let name = annotation.shard_name(number);
                    let shard = annotator.shard(input, &staged.path(&name), name)?;
                    staged.finish(number, &shard)?;
                    shard
                }
            };
            if let Ok(mut shards) = shards.lock() {
                shards[number] = Some(shard);
            }
        }
    })?;
    if stop.is_set() {
        return Err(EngineError::Interrupted);
    }
    let shards = shards.into_inner().unwrap_or_default();
    let shards = shards.into_iter().flatten().collect();
    let resumed = resumed.into_inner() as u64;
    annotation.publish(staged, shards, resumed, (started, began))
}

/// A scored table, and all that decides the numbers.
pub(crate) struct Annotation {
    job: AnnotateJob,
    table: TableRows,
    target: Option<TableRows>,
    scored: crate::score::RecordedScore,
    spec: RowSpec,
    extractor: Arc<FeatureExtractor>,
    pub(crate) plan: AnnotatePlan,
}

/// What all shards share, and is large.
pub(crate) struct Shared {
    tables: Tables,
    vocabulary: Arc<Vocabulary>,
    added: Added,
    /// Encoders that nobody uses just now.
    ready: Mutex<Vec<Reader>>,
}

impl Annotation {
    /// Opens the tables, and plans one shard for each input.
    pub(crate) fn open(job: &AnnotateJob, inputs: Vec<InputFile>) -> Result<Self, EngineError> {
        if let Some(share) = job.quantiles.iter().find(|q| !(0.0..=1.0).contains(*q)) {
            return Err(EngineError::Setting(format!(
                "a quantile is 0 to 1, not {share}"
            )));
        }
        if job.balance.is_some_and(|t| !(t > 0.0 && t.is_finite())) {
            return Err(EngineError::Setting(
                "the balance threshold must be above 0".into(),
            ));
        }
        if inputs.is_empty() {
            return Err(EngineError::Setting(
                "the inputs hold no Parquet file".into(),
            ));
        }
        let open = |name: &str| {
            let table = TableRows::open(&job.warehouse, name, job.threads, job.memory_limit)?;
            crate::tail::refuse("annotate", name, &table.counted)?;
            Ok::<_, EngineError>(table)
        };
        let table = open(&job.name)?;
        let scored = table.scored(&job.measure)?;
        let text = job
            .text
            .clone()
            .unwrap_or_else(|| table.counted.given.text.clone());
        let target = job.target.as_deref().map(open).transpose()?;
        let plan = AnnotatePlan {
            program: concat!("pmill ", env!("CARGO_PKG_VERSION")).to_owned(),
            settings: serde_json::json!({
                "job": job.name,
                "version": table.version(),
                "counted": table.counted,
                "scored": scored,
                "text": text,
                "quantiles": job.quantiles,
                "keep": job.keep,
                "target": job.target,
                "target_version": target.as_ref().map(TableRows::version),
                "balance": job.balance,
                "prefix": job.prefix,
            }),
            inputs,
        };
        let extractor = Arc::new(FeatureExtractor::new(&table.counted.given.features)?);
        if *extractor.describe() != table.counted.features {
            return Err(EngineError::Setting(format!(
                "a file that the features of job `{}` are made with changed since it was counted; count again",
                job.name
            )));
        }
        Ok(Self {
            job: job.clone(),
            table,
            target,
            scored,
            spec: RowSpec {
                text,
                ..RowSpec::default()
            },
            extractor,
            plan,
        })
    }

    /// Looks at every footer before anything is written.
    pub(crate) fn check_inputs(&self) -> Result<(), EngineError> {
        let session = self.table.session();
        let scanner = Scanner::new(
            session.context().clone(),
            self.spec.clone(),
            self.job.memory_limit,
        );
        for input in &self.plan.inputs {
            session.wait(scanner.open(input))?;
        }
        Ok(())
    }

    /// Reads what all shards share.
    pub(crate) fn shared(
        &self,
        progress: &dyn Progress,
        stop: &StopFlag,
    ) -> Result<Shared, EngineError> {
        let (job, target) = (&self.job, self.target.as_ref());
        Ok(Shared {
            tables: tables(job, &self.table, target, &self.scored, progress, stop)?,
            vocabulary: Arc::new(vocabulary(&self.table)?),
            added: Added {
                prefix: job.prefix.clone(),
                measure: job.measure.clone(),
                quantiles: job.quantiles.clone(),
                target: target.is_some(),
                balance: job.balance.is_some(),
            },
            ready: Mutex::new(Vec::new()),
        })
    }

    /// Makes shards, each with so many threads.
    pub(crate) fn annotator<'a>(
        &'a self,
        shared: &'a Shared,
        threads: usize,
        progress: &'a dyn Progress,
        stop: &'a StopFlag,
    ) -> Annotator<'a> {
        Annotator {
            tables: &shared.tables,
            terms: &self.table.terms,
            vocabulary: &shared.vocabulary,
            extractor: &self.extractor,
            context: self.table.session().context(),
            spec: &self.spec,
            added: &shared.added,
            keep: self.job.keep.as_deref(),
            threads,
            room: Room::new(self.job.memory_limit.0, self.job.threads),
            ready: &shared.ready,
            progress,
            stop,
        }
    }

    /// The name of a shard inside the output.
    pub(crate) fn shard_name(&self, number: usize) -> String {
        let all = self.plan.inputs.len();
        format!("data/train-{number:05}-of-{all:05}.parquet")
    }

    /// The summary of an output that is there already.
    pub(crate) fn unchanged(&self, done: Annotated, started: Instant) -> AnnotateSummary {
        self.summary(Status::Unchanged, done.shards, 0, (started, started))
    }

    /// Makes the output visible.
    pub(crate) fn publish(
        &self,
        staged: Staged,
        shards: Vec<Shard>,
        resumed: u64,
        times: (Instant, Instant),
    ) -> Result<AnnotateSummary, EngineError> {
        if shards.len() != self.plan.inputs.len() {
            return Err(EngineError::Bug("a shard was not written".into()));
        }
        let summary = self.summary(Status::Counted, shards.clone(), resumed, times);
        staged.publish(&Annotated {
            plan: self.plan.clone(),
            shards,
        })?;
        Ok(summary)
    }

    fn summary(
        &self,
        status: Status,
        shards: Vec<Shard>,
        resumed: u64,
        (started, began): (Instant, Instant),
    ) -> AnnotateSummary {
        let annotating_seconds = match status {
            Status::Counted => began.elapsed().as_secs_f64(),
            Status::Unchanged => 0.0,
        };
        AnnotateSummary {
            status,
            job: self.job.name.clone(),
            version: self.table.version(),
            output: self.job.output.display().to_string(),
            rows: shards.iter().map(|shard| shard.rows).sum(),
            shards,
            resumed,
            seconds: started.elapsed().as_secs_f64(),
            annotating_seconds,
            peak_memory_bytes: peak_rss().map(|size| size.0),
        }
    }
}

/// The vocabulary with the ids of the table.
fn vocabulary(table: &TableRows) -> Result<Vocabulary, EngineError> {
    let counts = table.terms.iter().zip(&table.counts).zip(&table.documents);
    let counts = counts.map(|((term, tokens), documents)| {
        Ok::<_, EngineError>(TermCount {
            term: term.unwrap_or_default().to_owned(),
            tokens: *tokens,
            documents: *documents,
        })
    });
    let rule = VocabularyRule {
        size: None,
        min_count: 0,
    };
    let vocabulary = Vocabulary::from_counts(counts, &rule)?;
    let same = |id: usize| vocabulary.term(id as u32) == table.terms.value(id);
    if vocabulary.len() != table.size() || !(0..table.size()).all(same) {
        return Err(EngineError::Bug(
            "the ids of `vocab` are not in their order".into(),
        ));
    }
    Ok(vocabulary)
}

fn tables(
    job: &AnnotateJob,
    table: &TableRows,
    target: Option<&TableRows>,
    scored: &crate::score::RecordedScore,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<Tables, EngineError> {
    let needed = lookup::bytes(table.size(), table.facts.pairs);
    let limit = job.memory_limit.0;
    if needed > limit / 4 * 3 {
        return Err(EngineError::Memory {
            limit: job.memory_limit.to_string(),
            reason: format!(
                "the {} pairs of `{}` take {} for look-ups; give --memory-limit {}, or a table of fewer pairs (--vocab-size when counting)",
                table.facts.pairs,
                job.name,
                ByteSize(needed),
                ByteSize(needed / 3 * 4 + (1 << 20)),
            ),
        });
    }
    let pairs = PairTable::load(table.size(), &table.file_pairs(), |push| {
        table.each_score(scored, progress, stop, push)
    })?;
    let total: u64 = table.counts.iter().sum();
    let share = |count: u64, total: u64, more: f64, size: f64| {
        ((count as f64 + more) / (total as f64 + more * size)).ln()
    };
    let log_ratios = target.map(|target| {
        let theirs: std::collections::HashMap<&str, u64> = target
            .terms
            .iter()
            .flatten()
            .zip(target.counts.iter().copied())
            .collect();
        let count = |id: usize| theirs.get(table.terms.value(id)).copied().unwrap_or(0);
        let size = table.size() as f64;
        let all: u64 = (0..table.size()).map(count).sum();
        (0..table.size())
            .map(|id| share(count(id), all, 1.0, size) - share(table.counts[id], total, 1.0, size))
            .collect()
    });
    Ok(Tables {
        pairs,
        context: table.counted.given.context.clone(),
        // A term that never came has no tokens to be asked of; -inf never shows.
        priors: table
            .counts
            .iter()
            .map(|count| share(*count, total, 0.0, 0.0))
            .collect(),
        log_ratios,
        documents: table.documents.clone(),
        quantiles: job.quantiles.clone(),
        balance: job.balance,
    })
}
