//! `pmill merge`.

use std::fmt::Write;

use clap::Args;
use pmill_engine::memory::ByteSize;
use pmill_engine::merge_tables::{MergeJob, MergePlan, MergeSummary, merge, plan_merge};

use crate::count::json;
use crate::limits::Global;
use crate::outcome::{Outcome, Output};
use crate::progress::{Bar, group, stop_flag};

/// Sum count tables of any warehouses into a new job or an existing one, exactly.
#[derive(Args, Debug)]
#[command(after_help = "\
The sum is the table that counting all files at once would have given. Tables are summed when they
were counted with the same settings and the same vocabulary, and have no file in common.

Examples:
  pmill merge --warehouse wh --name web --from team-a/web --from team-b/web
  pmill merge --warehouse wh --name all --from captions_2023 captions_2024 --remap")]
pub struct MergeArgs {
    /// Folder of the warehouse; made if it is not there
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Name of the job that is merged into; made if it is not there
    #[arg(long, value_name = "JOB")]
    name: String,
    /// Tables: WAREHOUSE/JOB, or JOB of the same warehouse
    #[arg(long, value_name = "TABLE", required = true, num_args = 1..)]
    from: Vec<String>,
    /// Sum tables of other vocabularies by term; pairs of terms without a place are left out
    #[arg(long)]
    remap: bool,
    /// Show what would be summed; write nothing
    #[arg(long)]
    dry_run: bool,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    units: crate::units::CommonArgs,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    cluster: crate::cluster::ClusterArgs,
}

impl MergeArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let job = MergeJob {
            warehouse: self.warehouse,
            name: self.name,
            from: self.from,
            remap: self.remap,
            memory_limit: global.memory_limit(),
            threads: global.threads(),
        };
        if self.dry_run {
            let plan = plan_merge(&job)?;
            return Ok(Output::Summary {
                json: json(&plan),
                text: describe_plan(&plan),
            });
        }
        #[cfg(feature = "cluster")]
        if self.cluster.is_asked_for() {
            let summary = self.cluster.merge(&job, &self.units, global)?;
            return Ok(output(&summary));
        }
        let bar = Bar::new(global);
        let result = merge(&job, &bar, &stop_flag());
        bar.clear();
        Ok(output(&result?))
    }
}

/// A summary for people and for scripts.
fn output(summary: &MergeSummary) -> Output {
    Output::Summary {
        json: json(summary),
        text: describe(summary),
    }
}

fn describe(summary: &MergeSummary) -> String {
    let peak = summary.peak_memory_bytes.map_or_else(String::new, |bytes| {
        format!(", {} of memory at most", ByteSize(bytes))
    });
    let mut text = format!(
        "{} {}: {} tables; {} rows, {} tokens, {} types, {} terms, {} pairs\n  version {}, {} pairs read ({}), {:.1} s{peak}\n",
        summary.status,
        summary.job,
        summary.tables,
        group(summary.rows),
        group(summary.tokens),
        group(summary.types),
        group(summary.terms),
        group(summary.pairs),
        summary.version,
        group(summary.read_pairs),
        ByteSize(summary.read_bytes),
        summary.seconds,
    );
    if summary.dropped_terms > 0 {
        let _ = writeln!(
            text,
            "  {} terms and {} pairs dropped by --remap",
            group(summary.dropped_terms),
            group(summary.dropped_pairs)
        );
    }
    for note in &summary.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

fn describe_plan(plan: &MergePlan) -> String {
    let into = if plan.exists { "into" } else { "as a new job" };
    let mut text = format!("would sum {into} {} (nothing is written)\n", plan.job);
    for (table, version, pairs, bytes) in &plan.from {
        let _ = writeln!(
            text,
            "  {table}, version {version}: {} pairs ({})",
            group(*pairs),
            ByteSize(*bytes)
        );
    }
    for note in &plan.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}
