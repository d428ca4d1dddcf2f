//! The `pmill` binary: co-occurrence and PMI tables from Parquet corpora.

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "cluster")]
mod cluster;
mod count;
mod inspect;
mod limits;
mod outcome;
mod pipeline;
mod progress;
mod run;
mod sample_corpus;
mod score;
mod snapshot;
mod sql;
mod units;

use clap::{CommandFactory, Parser, Subcommand};
use outcome::Output;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Co-occurrence and PMI tables from Parquet corpora, counted exactly.
#[derive(Parser)]
#[command(
    name = "pmill",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  pmill count --warehouse wh --name captions --input captions/ --text TEXT --vocab-size 20000
  pmill score --warehouse wh --name captions
  pmill sql   --warehouse wh 'SELECT * FROM captions.pmi ORDER BY npmi DESC LIMIT 20'

Exit codes: 0 done; 2 something that you can fix; 75 not now, try again; 1 a bug of ours."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: limits::Global,
}

#[derive(Subcommand)]
enum Command {
    /// Count co-occurrences of a Parquet corpus into a table
    Count(count::CountArgs),
    /// Commit a job whose shards are done
    Commit(units::CommitArgs),
    /// Run a cluster's scheduler
    #[cfg(feature = "cluster")]
    Scheduler(cluster::SchedulerArgs),
    /// Run an executor of a cluster
    #[cfg(feature = "cluster")]
    Executor(cluster::ExecutorArgs),
    /// See the jobs that are under way in units, or cancel one
    #[cfg(feature = "cluster")]
    Jobs(cluster::JobsArgs),
    /// Score a counted table: PMI and other association measures
    Score(score::ScoreArgs),
    /// Run a pipeline file: count, score and what else it names
    Run(run::RunArgs),
    /// Ask a warehouse in SQL
    Sql(sql::SqlArgs),
    /// Show a warehouse's jobs, or one job's settings, versions, sources and sizes
    Inspect(inspect::InspectArgs),
    /// Model snapshots: look at them, compare, merge and mix them
    Snapshot(snapshot::SnapshotArgs),
    /// Make a seeded corpus for demos and benchmarks
    SampleCorpus(sample_corpus::SampleCorpusArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    cli.global.start_logging();
    let outcome = match cli.command {
        Command::Count(args) => args.run(&cli.global),
        Command::Commit(args) => args.run(&cli.global),
        #[cfg(feature = "cluster")]
        Command::Scheduler(args) => args.run(&cli.global),
        #[cfg(feature = "cluster")]
        Command::Executor(args) => args.run(&cli.global),
        #[cfg(feature = "cluster")]
        Command::Jobs(args) => args.run(&cli.global),
        Command::Score(args) => args.run(&cli.global),
        Command::Run(args) => args.run(&cli.global),
        Command::Sql(args) => args.run(&cli.global),
        Command::Inspect(args) => args.run(&cli.global),
        Command::Snapshot(args) => args.run(&cli.global),
        Command::SampleCorpus(args) => args.run(&cli.global),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pmill", &mut script);
            Ok(Output::Bytes(script))
        }
    };
    outcome::finish(outcome, &cli.global)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
