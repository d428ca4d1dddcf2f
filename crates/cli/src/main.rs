//! The `pmill` binary: co-occurrence and PMI tables from Parquet corpora.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod annotate;
#[cfg(feature = "cluster")]
mod cluster;
mod compact;
mod correlate;
mod count;
#[cfg(feature = "matrix")]
mod embed;
mod evaluate;
#[cfg(feature = "matrix")]
mod export;
mod functions;
mod inspect;
mod limits;
#[cfg(feature = "matrix")]
mod matrix_rows;
mod merge;
mod merge_pipeline;
mod outcome;
mod parameters;
#[cfg(feature = "matrix")]
mod parquet_shards;
mod pipeline;
mod progress;
mod retract;
mod run;
mod sample;
mod sample_corpus;
mod score;
#[cfg(feature = "serve")]
mod serve;
mod snapshot;
#[cfg(feature = "cluster")]
mod snapshot_cluster;
mod snapshot_gate;
#[cfg(feature = "serve")]
mod snapshot_service;
mod sql;
mod units;
mod vacuum;
mod vocab;

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
    Count(Box<count::CountArgs>),
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
    /// Sum count tables into a new job or an existing one
    Merge(merge::MergeArgs),
    /// Take files, or rows of them, out of a counted table again
    Retract(retract::RetractArgs),
    /// Run a pipeline file: count, score and what else it names
    Run(run::RunArgs),
    /// Show how a job's vocabulary stands to all that has been counted
    Vocab(vocab::VocabArgs),
    /// Ask a warehouse in SQL
    Sql(sql::SqlArgs),
    /// Write a corpus again with numbers for each document
    Annotate(annotate::AnnotateArgs),
    /// Write a table, or vectors, as files that trainers read: GloVe, SciPy, NumPy, word2vec, Parquet
    #[cfg(feature = "matrix")]
    Export(export::ExportArgs),
    /// Make word vectors from a table, evaluate them, ask for neighbours
    #[cfg(feature = "matrix")]
    Embed(embed::EmbedArgs),
    /// Print the reference of the SQL functions: formula, range, limits, source
    Functions(functions::FunctionsArgs),
    /// Show a warehouse's jobs, or one job's settings, versions, sources and sizes
    Inspect(inspect::InspectArgs),
    /// Correlate the mean PMI of examples with a model's answers
    Correlate(correlate::CorrelateArgs),
    /// Compare predicted classes with true ones
    Evaluate(evaluate::EvaluateArgs),
    /// Rewrite a job's pairs into few files of an even size
    Compact(compact::CompactArgs),
    /// Give up old versions of a job and the files that only they need
    Vacuum(vacuum::VacuumArgs),
    /// Serve a warehouse to SQL clients: Flight SQL, PostgreSQL, a web page
    #[cfg(feature = "serve")]
    Serve(serve::ServeArgs),
    /// Model snapshots: look at them, compare, merge and mix them
    Snapshot(snapshot::SnapshotArgs),
    /// Choose rows by weights, probabilities or the middle of a column
    Sample(sample::SampleArgs),
    /// Make a seeded corpus for demos and benchmarks
    SampleCorpus(sample_corpus::SampleCorpusArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

fn main() -> std::process::ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| refuse(&error));
    cli.global.start();
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
        Command::Merge(args) => args.run(&cli.global),
        Command::Vocab(args) => args.run(&cli.global),
        Command::Retract(args) => args.run(&cli.global),
        Command::Run(args) => args.run(&cli.global),
        Command::Sql(args) => args.run(&cli.global),
        Command::Annotate(args) => args.run(&cli.global),
        #[cfg(feature = "matrix")]
        Command::Export(args) => args.run(&cli.global),
        #[cfg(feature = "matrix")]
        Command::Embed(args) => args.run(&cli.global),
        Command::Functions(args) => args.run(&cli.global),
        Command::Inspect(args) => args.run(&cli.global),
        Command::Correlate(args) => args.run(&cli.global),
        Command::Evaluate(args) => args.run(&cli.global),
        Command::Compact(args) => args.run(&cli.global),
        Command::Vacuum(args) => args.run(&cli.global),
        #[cfg(feature = "serve")]
        Command::Serve(args) => args.run(&cli.global),
        Command::Snapshot(args) => args.run(&cli.global),
        Command::Sample(args) => args.run(&cli.global),
        Command::SampleCorpus(args) => args.run(&cli.global),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pmill", &mut script);
            Ok(Output::Bytes(script))
        }
    };
    outcome::finish(outcome, &cli.global)
}

/// Says what is wrong with the command line, and ends.
fn refuse(error: &clap::Error) -> ! {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let unknown = error.kind() == ErrorKind::UnknownArgument;
    let named = error.get(ContextKind::InvalidArg);
    if unknown && matches!(named, Some(ContextValue::String(flag)) if flag == "--cluster") {
        eprintln!(
            "pmill: this command runs in one process only: leave out --cluster; {TAKE_CLUSTER}"
        );
        std::process::exit(2);
    }
    error.exit()
}

const TAKE_CLUSTER: &str = if cfg!(feature = "cluster") {
    "`pmill count`, `score`, `merge`, `retract`, `annotate`, `export`, `embed`, `sql`, `serve`, `snapshot merge` and `run` take it"
} else {
    "in this build no command takes it (the feature `cluster` is off)"
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
