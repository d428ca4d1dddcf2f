//! `pmill count --shard-count N` and `pmill commit`: a job's units shared out among processes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use pmill_engine::job::distributed::{self, Drive, Phase, Shard, UnitWorker, WorkerLimits};
use pmill_engine::job::{CountJob, Recount};
use pmill_engine::memory::ByteSize;

use crate::count::{describe, json};
use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};
use crate::progress::{Bar, group, stop_flag};

/// Flags of `pmill count` for a job that is cut into units.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Units")]
pub struct UnitArgs {
    /// Do one shard's part of the job; commit with `pmill commit` when all shards are done
    #[arg(long, value_name = "N")]
    shard_count: Option<std::num::NonZeroUsize>,
    /// Which shard, from 0 [default: JOB_COMPLETION_INDEX, or SLURM_ARRAY_TASK_ID]
    #[arg(long, value_name = "I", requires = "shard_count")]
    shard_index: Option<usize>,
    /// End after the shard's part of one phase, without waiting for the other shards
    #[arg(long, value_enum, requires = "shard_count")]
    phase: Option<PhaseArg>,
    /// Do other shards' units when nothing has come for so long
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        requires = "shard_count"
    )]
    take_over_after: u64,
    /// Give up (exit code 75) when nothing has come for so long
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 3600,
        requires = "shard_count"
    )]
    patience: u64,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    common: CommonArgs,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    cluster: crate::cluster::ClusterArgs,
}

/// How a corpus is cut.
#[derive(Args, Debug, Clone)]
pub struct SizeArgs {
    /// Units: bytes of text of one, decompressed
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub unit_size: ByteSize,
}

/// What shards and clusters have in common.
#[derive(Args, Debug, Clone)]
pub struct CommonArgs {
    /// Units: seconds that one may take
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub unit_timeout: u64,
    /// Units: times that one may end its process before the job gives it up
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub unit_attempts: u32,
    /// Units: folder for temporary files [default: the system's]
    #[arg(long, value_name = "FOLDER", env = "PMILL_SCRATCH")]
    pub scratch: Option<PathBuf>,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum PhaseArg {
    /// Read the input, collect terms
    Terms,
    /// Count into runs
    Count,
    /// Sum runs into table files
    Reduce,
}

impl CommonArgs {
    /// A folder for temporary files that goes away with the process.
    pub fn scratch(&self) -> Result<PathBuf, Failure> {
        let root = self.scratch.clone().unwrap_or_else(std::env::temp_dir);
        Ok(root.join(format!("pmill-{}", std::process::id())))
    }
}

/// A unit holds its thread for ever: another process may do better.
fn end_stuck(unit: &str) {
    eprintln!(
        "pmill: unit `{unit}` holds its thread beyond --unit-timeout; this shard ends, run it again to go on"
    );
    std::process::exit(75);
}

/// Removes a folder when the command ends.
pub struct Scratch(pub PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl UnitArgs {
    /// Whether the job is not to be done by this process alone.
    pub fn are_asked_for(&self) -> bool {
        #[cfg(feature = "cluster")]
        if self.cluster.is_asked_for() {
            return true;
        }
        self.shard_count.is_some()
    }

    /// Does this process's part.
    pub fn run(&self, job: &CountJob, recounts: &[Recount], global: &Global) -> Outcome {
        #[cfg(feature = "cluster")]
        if self.cluster.is_asked_for() {
            if self.shard_count.is_some() {
                return Err(Failure::user(
                    "--cluster (or PMILL_CLUSTER) and --shard-count are two ways to run the units; give one",
                ));
            }
            return self
                .cluster
                .count(job, recounts, &self.size, &self.common, global);
        }
        let count = self.shard_count.map_or(1, std::num::NonZero::get);
        let index = self.index()?;
        if index >= count {
            return Err(Failure::user(format!(
                "--shard-index {index} is beyond the last of {count} shards, which is {}",
                count - 1
            )));
        }
        let scratch = Scratch(self.common.scratch()?);
        let worker = UnitWorker::new(WorkerLimits {
            memory: job.memory_limit,
            threads: job.threads,
            scratch: scratch.0.clone(),
            allowed: Vec::new(),
            on_stuck: Some(end_stuck),
        })?;
        let bar = Bar::new(global);
        let stop = stop_flag();
        let drive = Drive {
            job,
            unit_bytes: self.size.unit_size.0,
            limit_seconds: self.common.unit_timeout,
            most_attempts: self.common.unit_attempts,
            drives: false,
            worker: &worker,
            progress: &bar,
            stop: &stop,
        };
        let shard = Shard {
            index,
            count,
            only: self.phase.map(|phase| match phase {
                PhaseArg::Terms => Phase::Terms,
                PhaseArg::Count => Phase::Count,
                PhaseArg::Reduce => Phase::Reduce,
            }),
            take_over_after: Duration::from_secs(self.take_over_after),
            patience: Duration::from_secs(self.patience),
            worker: &worker,
            ran: 0,
        };
        let result = shard.run(&drive, recounts);
        bar.clear();
        let summary = result?;
        let text = match summary.status {
            "unchanged" => format!("unchanged {}: it has been committed\n", summary.job),
            _ => format!(
                "shard {} of {}: {} units and ranges of {} done, {:.1} s\n",
                summary.shard,
                summary.shards,
                group(summary.units),
                summary.job,
                summary.seconds
            ),
        };
        Ok(Output::Summary {
            json: json(&summary),
            text,
        })
    }

    /// The shard's number: the flag, else what Kubernetes or Slurm says. A Slurm array may begin at
    /// any number.
    fn index(&self) -> Result<usize, Failure> {
        if let Some(index) = self.shard_index {
            return Ok(index);
        }
        let number = |name: &str| -> Result<Option<usize>, Failure> {
            match std::env::var(name) {
                Err(_) => Ok(None),
                Ok(value) => value.parse().map(Some).map_err(|_| {
                    Failure::user(format!("{name} is `{value}`, expected a number from 0"))
                }),
            }
        };
        if let Some(index) = number("JOB_COMPLETION_INDEX")? {
            return Ok(index);
        }
        if let Some(index) = number("SLURM_ARRAY_TASK_ID")? {
            return Ok(index - number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0).min(index));
        }
        Err(Failure::user(
            "which shard this is is not said: give --shard-index, or run it where JOB_COMPLETION_INDEX (Kubernetes) or SLURM_ARRAY_TASK_ID (Slurm) is set",
        ))
    }
}

/// Commit a job whose shards are done.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  for i in 0 1 2 3; do
    pmill count --warehouse wh --name web --input crawl/ --text text --shard-count 4 --shard-index $i &
  done; wait
  pmill commit --warehouse wh --name web")]
pub struct CommitArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Name of the job
    #[arg(long, value_name = "JOB")]
    name: String,
}

impl CommitArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let bar = Bar::new(global);
        let result = distributed::commit(
            &self.warehouse,
            &self.name,
            global.memory_limit(),
            global.threads(),
            &bar,
            &stop_flag(),
        );
        bar.clear();
        let summary = result?;
        Ok(Output::Summary {
            json: json(&summary),
            text: describe(&summary),
        })
    }
}
