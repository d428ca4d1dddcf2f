//! Selection of rows by what their columns say: importance resampling, thinning, the middle of a
//! prior. Which rows are chosen depends on their identity, weight and the seed only, never on files,
//! their order, or threads.
//!
//! 1. one key a row: `weight / temperature + Gumbel(hash(seed, identity))`, whose `n` largest are a
//!    sample without replacement (Kool, van Hoof & Welling 2019; Xie et al. 2023, DSIR, algorithm 1);
//! 2. the smallest key that is still in, by exact counting of leading bits: four passes over two
//!    columns, with counts that add up in any order;
//! 3. one pass that writes the rows. Memory: a batch a thread and 512 KiB a rank.

mod read;
mod select;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::Serialize;

use self::read::Columns;
use self::select::{Key, Ranks};
use crate::annotate::Shard;
use crate::annotate::output::{AnnotatePlan, Annotated, Begun, Staged};
use crate::error::EngineError;
use crate::input::{self, InputFile};
use crate::job::Status;
use crate::progress::{Progress, StopFlag, Unit};
use crate::workers;

/// How rows are chosen among those that the filter leaves.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// All of them.
    All,
    /// `rows` of them, without replacement, by a column of log weights.
    Importance {
        /// The column.
        log_weight: String,
        /// Rows to choose.
        rows: u64,
        /// Log weights are divided by it; larger is more even.
        temperature: f64,
    },
    /// Each with the probability in a column, by itself.
    Probability {
        /// The column; 0 to 1.
        probability: String,
    },
}

/// What is written of a chosen row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Written {
    /// Its identity.
    Ids,
    /// Identity and `weight` of every row that the filter leaves, chosen or not.
    Weights,
    /// All its columns.
    Shards,
}

/// What to choose from which files.
#[derive(Debug, Clone)]
pub struct SampleJob {
    /// Paths, globs, folders, URIs.
    pub inputs: Vec<String>,
    /// Folder to make.
    pub output: PathBuf,
    /// Columns that together name a row.
    pub id: Vec<String>,
    /// Keep only rows whose value of this column is in the middle share of all.
    pub middle: Option<(String, f64)>,
    /// How rows are chosen.
    pub choice: Choice,
    /// What is written.
    pub written: Written,
    /// Seed.
    pub seed: u64,
    /// Whether an output that is there is replaced.
    pub overwrite: bool,
    /// Threads.
    pub threads: usize,
}

/// What sampling did; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct SampleSummary {
    /// What was done.
    pub status: Status,
    /// The output.
    pub output: String,
    /// Rows read.
    pub rows: u64,
    /// Rows that could not be chosen: null or NaN weight, or left out by the filter.
    pub left_out: u64,
    /// Rows written.
    pub chosen: u64,
    /// The least and largest value that the filter keeps.
    pub middle: Option<(f64, f64)>,
    /// The smallest key that was chosen.
    pub threshold: Option<f64>,
    /// Shards.
    pub shards: Vec<Shard>,
    /// Seconds.
    pub seconds: f64,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Bounds that decide about a row.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Bounds {
    middle: Option<(f64, f64)>,
    threshold: Option<f64>,
    /// Largest log weight, so that weights do not overflow.
    largest: f64,
}

/// Chooses rows.
///
/// # Errors
/// A missing column, a probability out of range, a bad or changed input; nothing is visible then.
pub fn sample(
    job: &SampleJob,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<SampleSummary, EngineError> {
    let started = Instant::now();
    check(job)?;
    let inputs = input::expand(&job.inputs)?;
    if inputs.is_empty() {
        return Err(EngineError::Setting(
            "the inputs hold no Parquet file".into(),
        ));
    }
    let columns = Columns::new(job);
    let plan = AnnotatePlan {
        program: concat!("pmill ", env!("CARGO_PKG_VERSION")).to_owned(),
        settings: serde_json::json!({
            "id": job.id,
            "middle": job.middle,
            "choice": job.choice,
            "written": job.written,
            "seed": job.seed,
        }),
        inputs,
    };
    for input in &plan.inputs {
        columns.check(input)?;
    }
    let pass = Pass {
        job,
        inputs: &plan.inputs,
        columns: &columns,
        progress,
        stop,
    };
    let mut bounds = Bounds::default();
    let mut notes = Vec::new();
    let tally = pass.tally(&bounds)?;
    if let Some((column, share)) = &job.middle {
        let ends = (tally.middle as f64 * (1.0 - share) / 2.0).floor() as u64;
        if tally.middle == 0 {
            return Err(EngineError::Setting(format!(
                "no row has a number in `{column}`"
            )));
        }
        let ranks = [ends, tally.middle - 1 - ends];
        let found = pass.ranks(&bounds, &ranks, |_, row| row.middle)?;
        bounds.middle = Some((found[0], found[1]));
    }
    let tally = pass.tally(&bounds)?;
    if let Choice::Importance { rows, .. } = &job.choice {
        if tally.weighted > 0 {
            let last = [tally.weighted - 1];
            bounds.largest = pass.ranks(&bounds, &last, |_, row| row.weight)?[0];
        }
        if tally.weighted <= *rows {
            notes.push(format!(
                "{} rows could be chosen, and {rows} were asked for: all were taken",
                tally.weighted
            ));
        } else {
            // The rank of the smallest key that is in.
            let last = [tally.weighted - rows];
            let found = pass.ranks(&bounds, &last, |key, _| Some(key))?;
            bounds.threshold = Some(found[0]);
        }
    }
    let summary = |status, shards: Vec<Shard>, notes| SampleSummary {
        status,
        output: job.output.display().to_string(),
        rows: tally.rows,
        left_out: tally.rows - tally.weighted,
        chosen: shards.iter().map(|shard| shard.rows).sum(),
        middle: bounds.middle,
        threshold: bounds.threshold,
        shards,
        seconds: started.elapsed().as_secs_f64(),
        notes,
    };
    let staged = match Staged::begin(&job.output, &plan, job.overwrite)? {
        Begun::Done(done) => return Ok(summary(Status::Unchanged, done.shards, notes)),
        Begun::Open(staged) => staged,
    };
    let shards = pass.each_file("write", |number, input| {
        if let Some(shard) = staged.done(number)? {
            return Ok(shard);
        }
        let name = format!("data/train-{number:05}-of-{:05}.parquet", plan.inputs.len());
        let keep = |row: &Row| pass.decide(&bounds, row);
        let shard = columns.write(input, &staged.path(&name), name, &keep, stop)?;
        staged.finish(number, &shard)?;
        Ok(shard)
    })?;
    let done = Annotated {
        plan: plan.clone(),
        shards,
    };
    staged.publish(&done)?;
    Ok(summary(Status::Counted, done.shards, notes))
}

fn check(job: &SampleJob) -> Result<(), EngineError> {
    let wrong = |text: &str| Err(EngineError::Setting(text.to_owned()));
    if job.id.is_empty() {
        return wrong("which columns name a row is not said: give --id COLUMN");
    }
    if job
        .middle
        .as_ref()
        .is_some_and(|(_, share)| !(*share > 0.0 && *share <= 1.0))
    {
        return wrong("the middle share must be above 0 and at most 1");
    }
    if let Choice::Importance {
        temperature, rows, ..
    } = &job.choice
    {
        if !(*temperature > 0.0 && temperature.is_finite()) {
            return wrong("`temperature` must be above 0");
        }
        if *rows == 0 {
            return wrong("`rows` must be at least 1");
        }
    }
    if job.choice == Choice::All && job.middle.is_none() {
        return wrong(
            "nothing says which rows to choose: give --log-weight and --rows, --probability, or --middle",
        );
    }
    Ok(())
}

/// What decides about one row.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    /// Of identity and seed.
    hash: u64,
    /// Log weight or probability; `None` for null and NaN.
    weight: Option<f64>,
    middle: Option<f64>,
}

#[derive(Default)]
struct Tally {
    rows: u64,
    middle: u64,
    weighted: u64,
}

struct Pass<'a> {
    job: &'a SampleJob,
    inputs: &'a [InputFile],
    columns: &'a Columns,
    progress: &'a dyn Progress,
    stop: &'a StopFlag,
}

impl Pass<'_> {
    /// The key of a row: larger is sooner.
    fn key(&self, row: &Row) -> Option<f64> {
        match &self.job.choice {
            Choice::All => Some(0.0),
            Choice::Importance { temperature, .. } => {
                Some(row.weight? / temperature + select::gumbel(row.hash))
            }
            Choice::Probability { .. } => Some(row.weight? - select::uniform(row.hash)),
        }
    }

    fn in_middle(bounds: &Bounds, row: &Row) -> bool {
        let Some((low, high)) = bounds.middle else {
            return true;
        };
        row.middle
            .is_some_and(|value| (low..=high).contains(&value))
    }

    /// The weight of a row that is written; `None` for one that is not.
    fn decide(&self, bounds: &Bounds, row: &Row) -> Option<f64> {
        if !Self::in_middle(bounds, row) {
            return None;
        }
        let key = self.key(row)?;
        let (weight, chosen) = match &self.job.choice {
            Choice::All => (1.0, true),
            Choice::Importance { temperature, .. } => (
                ((row.weight? - bounds.largest) / temperature).exp(),
                bounds.threshold.is_none_or(|least| key >= least),
            ),
            Choice::Probability { .. } => (row.weight?, key > 0.0),
        };
        (chosen || self.job.written == Written::Weights).then_some(weight)
    }

    fn tally(&self, bounds: &Bounds) -> Result<Tally, EngineError> {
        let parts = self.each_file("count", |_, input| {
            let mut tally = Tally::default();
            self.columns.rows(input, self.stop, |row| {
                tally.rows += 1;
                tally.middle += u64::from(row.middle.is_some());
                let inside = Self::in_middle(bounds, &row) && self.key(&row).is_some();
                tally.weighted += u64::from(inside);
            })?;
            Ok(tally)
        })?;
        Ok(parts.into_iter().fold(Tally::default(), |sum, part| Tally {
            rows: sum.rows + part.rows,
            middle: sum.middle + part.middle,
            weighted: sum.weighted + part.weighted,
        }))
    }

    /// The values of these ranks (from 0, by rising value) among the rows that can be chosen.
    fn ranks(
        &self,
        bounds: &Bounds,
        ranks: &[u64],
        value: impl Fn(f64, &Row) -> Option<f64> + Sync,
    ) -> Result<Vec<f64>, EngineError> {
        let mut search = Ranks::new(ranks);
        while !search.is_done() {
            let parts = self.each_file("rank", |_, input| {
                let mut part = search.empty();
                self.columns.rows(input, self.stop, |row| {
                    let inside = Self::in_middle(bounds, &row);
                    let key = self.key(&row).unwrap_or(f64::NEG_INFINITY);
                    let found =
                        value(key, &row).filter(|found| inside && *found != f64::NEG_INFINITY);
                    if let Some(found) = found {
                        part.add(Key::of(found));
                    }
                })?;
                Ok(part)
            })?;
            search.narrow(parts);
        }
        Ok(search.values())
    }

    /// One result a file, in their order.
    fn each_file<T: Send>(
        &self,
        phase: &'static str,
        work: impl Fn(usize, &InputFile) -> Result<T, EngineError> + Sync,
    ) -> Result<Vec<T>, EngineError> {
        self.progress
            .phase(phase, self.inputs.len() as u64, Unit::Parts);
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<T>>> = Mutex::new(self.inputs.iter().map(|_| None).collect());
        workers::run(self.job.threads.min(self.inputs.len()), self.stop, |_| {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(input) = self.inputs.get(number) else {
                    return Ok(());
                };
                let result = work(number, input)?;
                self.progress.advance(1, 0);
                if let Ok(mut results) = results.lock() {
                    results[number] = Some(result);
                }
            }
        })?;
        let results: Vec<T> = results
            .into_inner()
            .unwrap_or_default()
            .into_iter()
            .flatten()
            .collect();
        if results.len() != self.inputs.len() {
            return Err(EngineError::Interrupted);
        }
        Ok(results)
    }
}
