//! `pmill annotate`.

use std::path::PathBuf;

use clap::Args;
use pmill_engine::annotate::{AnnotateJob, AnnotateSummary, annotate};
use pmill_engine::job::Status;
use pmill_engine::memory::ByteSize;

use crate::count::json;
use crate::limits::Global;
use crate::outcome::{Outcome, Output};
use crate::progress::{Bar, group, stop_flag};

/// Write a corpus again with numbers for each document: its pairs' PMI, priors, log weight.
#[derive(Args, Debug)]
#[command(after_help = "\
The output is a folder in the layout of Hugging Face datasets, data/train-00000-of-00010.parquet: one
shard for one input file, with the same rows in the same order. It appears when all shards are whole; a
run that was killed is gone on with by the same command.

Added columns (pmill_ before each): tokens, pairs, pairs_seen, unseen_share, pmi_mean, pmi_min, pmi_max,
pmi_q25 and so on, rarest_left, rarest_right, prior_mean, prior_std; log_weight with --target;
concept_probability and pair_probability with --balance.

Examples:
  pmill annotate --warehouse wh --name captions --input captions/ --output captions-pmi
  pmill annotate --warehouse wh --name web --input crawl/ --keep id --target books --output web-weights")]
pub struct AnnotateArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Name of the job; it must be scored
    #[arg(long, value_name = "JOB")]
    name: String,
    /// Parquet files: paths, globs, folders, file:// URIs
    #[arg(long, value_name = "URI", required = true, num_args = 1..)]
    input: Vec<String>,
    /// Column that holds the text [default: the one that was counted]
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,
    /// Folder to make
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    /// Column of the job's pmi table
    #[arg(long, value_name = "M", default_value = "pmi")]
    measure: String,
    /// Quantiles of it, 0 to 1
    #[arg(
        long,
        value_name = "Q",
        value_delimiter = ',',
        default_value = "0.25,0.5,0.75"
    )]
    quantiles: Vec<f64>,
    /// Keep only these input columns, such as an id [default: all]
    #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
    keep: Option<Vec<String>>,
    /// Job of the corpus that rows should look like: adds log_weight, Σ ln p_target − ln p
    #[arg(long, value_name = "JOB")]
    target: Option<String>,
    /// Adds the chance to keep a row when terms (and pairs) in more than T rows are thinned to T
    #[arg(long, value_name = "T")]
    balance: Option<f64>,
    /// Goes before the names of the added columns
    #[arg(long, value_name = "TEXT", default_value = "pmill_")]
    prefix: String,
    /// Begin again, and replace the output folder if it is there
    #[arg(long)]
    overwrite: bool,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    units: crate::units::CommonArgs,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    cluster: crate::cluster::ClusterArgs,
}

impl AnnotateArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let job = AnnotateJob {
            warehouse: self.warehouse,
            name: self.name,
            inputs: self.input,
            text: self.text,
            output: self.output,
            measure: self.measure,
            quantiles: self.quantiles,
            keep: self.keep,
            target: self.target,
            balance: self.balance,
            prefix: self.prefix,
            overwrite: self.overwrite,
            memory_limit: global.memory_limit(),
            threads: global.threads(),
        };
        #[cfg(feature = "cluster")]
        if self.cluster.is_asked_for() {
            let summary = self.cluster.annotate(job, &self.units, global)?;
            return Ok(output(&summary));
        }
        let bar = Bar::new(global);
        let result = annotate(&job, &bar, &stop_flag());
        bar.clear();
        Ok(output(&result?))
    }
}

/// A summary for people and for scripts.
fn output(summary: &AnnotateSummary) -> Output {
    Output::Summary {
        json: json(summary),
        text: describe(summary),
    }
}

fn describe(summary: &AnnotateSummary) -> String {
    let peak = summary.peak_memory_bytes.map_or_else(String::new, |bytes| {
        format!(", {} of memory at most", ByteSize(bytes))
    });
    let verb = match summary.status {
        Status::Counted => "annotated",
        Status::Unchanged => "unchanged",
    };
    let resumed = if summary.resumed > 0 {
        format!(" ({} were there already)", group(summary.resumed))
    } else {
        String::new()
    };
    format!(
        "{verb} {}: {} rows with {}\n  {} shards{resumed}, {:.1} s ({:.1} s of them reading and writing){peak}\n",
        summary.output,
        group(summary.rows),
        summary.job,
        group(summary.shards.len() as u64),
        summary.seconds,
        summary.annotating_seconds,
    )
}
