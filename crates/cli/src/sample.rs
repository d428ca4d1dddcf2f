//! `pmill sample`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pmill_engine::job::Status;
use pmill_engine::sample::{Choice, SampleJob, SampleSummary, Written, sample};

use crate::count::json;
use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};
use crate::progress::{Bar, group, stop_flag};

/// Choose rows by their columns: importance resampling, balancing, the middle of a prior.
#[derive(Args, Debug)]
#[command(after_help = "\
Which rows are chosen depends on their --id, their weight and the seed only: any cut into files, any
order and any number of threads gives the same rows. Rows with the same id are chosen together.

Examples:
  # As the target corpus of `pmill annotate --target`: 100,000 rows without replacement
  pmill sample --input web-scored/ --id id --log-weight pmill_log_weight --rows 100000 --output web-like-books

  # Thin out what is said often (`pmill annotate --balance 500`)
  pmill sample --input captions-scored/ --id id --probability pmill_concept_probability --output balanced

  # Drop the tenth with the lowest and the tenth with the highest mean prior
  pmill sample --input web-scored/ --id id --middle pmill_prior_mean=0.8 --output middle --format shards")]
pub struct SampleArgs {
    /// Parquet files: paths, globs, folders, file:// URIs
    #[arg(long, value_name = "URI", required = true, num_args = 1..)]
    input: Vec<String>,
    /// Folder to make
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    /// Columns that together name a row
    #[arg(long, value_name = "COLUMN", required = true, value_delimiter = ',')]
    id: Vec<String>,
    /// Column of log weights: choose --rows rows in proportion to their exponentials
    #[arg(long, value_name = "COLUMN", requires = "rows")]
    log_weight: Option<String>,
    /// How many rows
    #[arg(long, value_name = "N", requires = "log_weight")]
    rows: Option<u64>,
    /// Log weights are divided by this; larger is more even
    #[arg(long, value_name = "T", default_value_t = 1.0, requires = "log_weight")]
    temperature: f64,
    /// Column of probabilities: choose each row with its own
    #[arg(long, value_name = "COLUMN", conflicts_with = "log_weight")]
    probability: Option<String>,
    /// First leave out rows outside the middle SHARE of this column's values
    #[arg(long, value_name = "COLUMN=SHARE")]
    middle: Option<String>,
    /// What is written of the rows
    #[arg(long, value_enum, default_value = "ids")]
    format: SampleFormat,
    /// Seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Replace the output folder if it is there
    #[arg(long)]
    overwrite: bool,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum SampleFormat {
    /// The ids of the chosen rows
    Ids,
    /// Ids and weights of all rows, for a sampler that chooses later
    Weights,
    /// The chosen rows with all their columns
    Shards,
}

impl SampleArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let middle = self
            .middle
            .map(|text| {
                let wrong = || {
                    Failure::user(format!(
                        "`{text}` is not COLUMN=SHARE, as pmill_prior_mean=0.8"
                    ))
                };
                let (column, share) = text.rsplit_once('=').ok_or_else(wrong)?;
                Ok::<_, Failure>((column.to_owned(), share.parse().map_err(|_| wrong())?))
            })
            .transpose()?;
        let choice = match (self.log_weight, self.rows, self.probability) {
            (Some(log_weight), Some(rows), _) => Choice::Importance {
                log_weight,
                rows,
                temperature: self.temperature,
            },
            (_, _, Some(probability)) => Choice::Probability { probability },
            _ => Choice::All,
        };
        let job = SampleJob {
            inputs: self.input,
            output: self.output,
            id: self.id,
            middle,
            choice,
            written: match self.format {
                SampleFormat::Ids => Written::Ids,
                SampleFormat::Weights => Written::Weights,
                SampleFormat::Shards => Written::Shards,
            },
            seed: self.seed,
            overwrite: self.overwrite,
            threads: global.threads(),
        };
        let bar = Bar::new(global);
        let result = sample(&job, &bar, &stop_flag());
        bar.clear();
        let summary = result?;
        Ok(Output::Summary {
            json: json(&summary),
            text: describe(&summary),
        })
    }
}

fn describe(summary: &SampleSummary) -> String {
    let verb = match summary.status {
        Status::Counted => "wrote",
        Status::Unchanged => "unchanged",
    };
    let mut text = format!(
        "{verb} {}: {} of {} rows ({} could not be chosen), {:.1} s\n",
        summary.output,
        group(summary.chosen),
        group(summary.rows),
        group(summary.left_out),
        summary.seconds,
    );
    if let Some((low, high)) = summary.middle {
        let _ = writeln!(text, "  the middle is {low} to {high}");
    }
    for note in &summary.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}
