//! `pmill score`.

use std::fmt::Write;

use clap::{Args, ValueEnum};
use pmill_engine::job::Status;
use pmill_engine::memory::ByteSize;
use pmill_engine::score::{Marginals, Preset, ScoreSettings, ScoreSummary, score};

use crate::count::json;
use crate::limits::Global;
use crate::outcome::{Outcome, Output};
use crate::progress::{Bar, group, stop_flag};

/// Score a counted table: PMI and other association measures.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pmill score --warehouse wh --name captions
  pmill score --warehouse wh --name captions --measure pmi,npmi,log_likelihood_ratio --base 2 --min-pair-count 5
  pmill score --warehouse wh --name captions --preset qu-xie")]
pub struct ScoreArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Name of the job
    #[arg(long, value_name = "JOB")]
    name: String,
    /// Measures, with parameters as 'sppmi(k=5)'
    #[arg(long = "measure", value_name = "M", default_value = "pmi,npmi,ppmi")]
    measures: Vec<String>,
    /// Logarithm base: e, 2 or 10
    #[arg(long, value_name = "B", default_value = "e")]
    base: String,
    /// What n_x, n_y and n are [default: documents for document counts, pairs for windows]
    #[arg(long, value_enum)]
    marginals: Option<MarginalsArg>,
    /// Leave out pairs with a smaller count
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    min_pair_count: f64,
    /// Add this to every n_xy
    #[arg(long, value_name = "N")]
    pair_smoothing: Option<f64>,
    /// Add this to every n_x and n_y
    #[arg(long, value_name = "N")]
    unigram_smoothing: Option<f64>,
    /// Settings of a paper: qu-xie has marginals pairs, unigram smoothing 1000, pair smoothing 1, and its own score
    #[arg(long, value_enum)]
    preset: Option<PresetArg>,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    units: crate::units::CommonArgs,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    cluster: crate::cluster::ClusterArgs,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum MarginalsArg {
    /// Rows that hold x; rows
    Documents,
    /// Sums of pair counts
    Pairs,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum PresetArg {
    QuXie,
}

impl ScoreArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let settings = ScoreSettings {
            preset: self.preset.map(|PresetArg::QuXie| Preset::QuXie),
            measures: self.measures.iter().flat_map(|list| split(list)).collect(),
            base: self.base,
            marginals: self.marginals.map(|marginals| match marginals {
                MarginalsArg::Documents => Marginals::Documents,
                MarginalsArg::Pairs => Marginals::Pairs,
            }),
            min_pair_count: self.min_pair_count,
            pair_smoothing: self.pair_smoothing,
            unigram_smoothing: self.unigram_smoothing,
        };
        #[cfg(feature = "cluster")]
        if self.cluster.is_asked_for() {
            let job = (&self.warehouse[..], &self.name[..]);
            let summary = self.cluster.score(job, &settings, &self.units, global)?;
            return Ok(output(&summary));
        }
        run(&self.warehouse, &self.name, &settings, global)
    }
}

/// Measures between commas; commas in brackets stand between parameters.
fn split(list: &str) -> Vec<String> {
    let mut depth = 0_u32;
    let parts = list.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(|part| part.trim().to_owned()).collect()
}

/// Scores and sums up.
pub fn run(warehouse: &str, name: &str, settings: &ScoreSettings, global: &Global) -> Outcome {
    let bar = Bar::new(global);
    let result = score(
        warehouse,
        name,
        settings,
        global.threads(),
        global.memory_limit(),
        &bar,
        &stop_flag(),
    );
    bar.clear();
    Ok(output(&result?))
}

/// A summary for people and for scripts.
pub fn output(summary: &ScoreSummary) -> Output {
    Output::Summary {
        json: json(summary),
        text: describe(summary),
    }
}

fn describe(summary: &ScoreSummary) -> String {
    let verb = match summary.status {
        Status::Counted => "scored",
        Status::Unchanged => "unchanged",
    };
    let peak = summary.peak_memory_bytes.map_or_else(String::new, |bytes| {
        format!(", {} of memory at most", ByteSize(bytes))
    });
    let mut text = format!(
        "{verb} {}: {} pairs by {}\n  {:.1} s{peak}\n  {}\n",
        summary.job,
        group(summary.pairs),
        summary.measures.join(", "),
        summary.seconds,
        summary.event_space,
    );
    for note in &summary.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_brackets_belong_to_the_measure() {
        assert_eq!(
            split("pmi, cpmi(smoothed_total=9,alpha=1),npmi"),
            ["pmi", "cpmi(smoothed_total=9,alpha=1)", "npmi"]
        );
        assert_eq!(split("pmi"), ["pmi"]);
    }
}
