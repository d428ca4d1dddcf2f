//! `pmill retract`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use pmill_engine::job::{self, RetractJob, RetractPlan, RetractSummary};
use pmill_engine::memory::ByteSize;
use pmill_engine::row_choice::RowChoice;

use crate::count::json;
use crate::limits::Global;
use crate::outcome::{Outcome, Output};
use crate::progress::{Bar, group, stop_flag};

/// Take files, or rows of them, out of a counted table again, exactly.
#[derive(Args, Debug)]
#[command(after_help = "\
The rows are counted with the job's own settings and subtracted, so the file must hold the bytes
that were counted. What was taken out once is not taken out again.

Examples:
  pmill retract --warehouse wh --name web --input crawl/2024-10.parquet
  pmill retract --warehouse wh --name captions --input captions/ --where \"SAMPLE_ID IN (17, 23)\"
  pmill retract --warehouse wh --name captions --input captions/ --ids opt-out.txt --id-column URL")]
pub struct RetractArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Name of the job
    #[arg(long, value_name = "JOB")]
    name: String,
    /// Files that were counted: paths, globs, folders, file:// URIs
    #[arg(long, value_name = "URI", required = true, num_args = 1..)]
    input: Vec<String>,
    /// Where the bytes are that were counted, when the one input has changed since
    #[arg(long, value_name = "FILE")]
    old: Option<String>,
    /// Only rows for which this SQL condition over the file's columns is true
    #[arg(long = "where", value_name = "SQL", conflicts_with = "ids")]
    condition: Option<String>,
    /// Only rows whose id stands in this file, one a line
    #[arg(long, value_name = "FILE", requires = "id_column")]
    ids: Option<PathBuf>,
    /// Column of the ids
    #[arg(long, value_name = "COLUMN", requires = "ids")]
    id_column: Option<String>,
    /// Show what would be taken out; write nothing
    #[arg(long)]
    dry_run: bool,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    size: crate::units::SizeArgs,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    units: crate::units::CommonArgs,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    cluster: crate::cluster::ClusterArgs,
}

impl RetractArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let rows = match (self.condition, &self.ids, &self.id_column) {
            (Some(condition), ..) => RowChoice::Where(condition),
            (None, Some(path), Some(column)) => RowChoice::ids(path, column)?,
            _ => RowChoice::All,
        };
        let job = RetractJob {
            warehouse: self.warehouse,
            name: self.name,
            inputs: self.input,
            old: self.old,
            rows,
            memory_limit: global.memory_limit(),
            threads: global.threads(),
        };
        if self.dry_run {
            let plan = job::plan_retract(&job)?;
            return Ok(Output::Summary {
                json: json(&plan),
                text: describe_plan(&plan),
            });
        }
        #[cfg(feature = "cluster")]
        if self.cluster.is_asked_for() {
            let summary = self
                .cluster
                .retract(&job, &self.size, &self.units, global)?;
            return Ok(output(&summary));
        }
        let bar = Bar::new(global);
        let result = job::retract(&job, &bar, &stop_flag());
        bar.clear();
        Ok(output(&result?))
    }
}

/// A summary for people and for scripts.
fn output(summary: &RetractSummary) -> Output {
    Output::Summary {
        json: json(summary),
        text: describe(summary),
    }
}

fn describe(summary: &RetractSummary) -> String {
    let peak = summary.peak_memory_bytes.map_or_else(String::new, |bytes| {
        format!(", {} of memory at most", ByteSize(bytes))
    });
    let mut text = format!(
        "{} {}: {} rows, {} tokens of {} files taken out; {} rows, {} pairs left\n  version {}, {:.1} s{peak}\n",
        summary.status,
        summary.job,
        group(summary.rows),
        group(summary.tokens),
        group(summary.files),
        group(summary.total_rows),
        group(summary.pairs),
        summary.version,
        summary.seconds,
    );
    for note in &summary.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

fn describe_plan(plan: &RetractPlan) -> String {
    let mut text = format!("would take out of {} (nothing is written)\n", plan.job);
    for (file, rows) in &plan.files {
        let rows = rows.map_or_else(
            || "all rows".to_owned(),
            |rows| format!("{} rows", group(rows)),
        );
        let _ = writeln!(text, "  {rows} of {file}");
    }
    for note in &plan.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}
