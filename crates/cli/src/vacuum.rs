//! `pmill vacuum`.

use std::fmt::Write;
use std::time::Duration;

use clap::Args;
use pmill_engine::memory::ByteSize;
use pmill_engine::store::Keep;
use pmill_engine::vacuum::{self, VacuumJob, VacuumSummary, parse_duration};

use crate::count::json;
use crate::limits::Global;
use crate::outcome::{Outcome, Output};

/// Give up old versions of a job and remove the files that only they need.
#[derive(Args, Debug)]
#[command(after_help = "\
The newest version always stays. A version given up cannot be read any more.

Examples:
  pmill vacuum --warehouse wh --name captions --keep 30d
  pmill vacuum --warehouse wh --name captions --keep-versions 1 --dry-run")]
pub struct VacuumArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Name of the job
    #[arg(long, value_name = "JOB")]
    name: String,
    /// Keep the versions that were the newest at some time within this long: 30d, 12h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration,
        required_unless_present = "keep_versions")]
    keep: Option<Duration>,
    /// Keep this many versions, the newest ones
    #[arg(long, value_name = "N", conflicts_with = "keep",
        value_parser = clap::value_parser!(u64).range(1..))]
    keep_versions: Option<u64>,
    /// Show what would be given up; remove nothing
    #[arg(long)]
    dry_run: bool,
}

impl VacuumArgs {
    /// Runs the command.
    pub fn run(self, _global: &Global) -> Outcome {
        let keep = match (self.keep, self.keep_versions) {
            (Some(time), _) => Keep::Within(time),
            (None, versions) => Keep::Versions(versions.unwrap_or(1)),
        };
        run(&self.warehouse, &self.name, keep, self.dry_run)
    }
}

/// Vacuums and sums up.
pub fn run(warehouse: &str, name: &str, keep: Keep, dry_run: bool) -> Outcome {
    let summary = vacuum::vacuum(&VacuumJob {
        warehouse: warehouse.to_owned(),
        name: name.to_owned(),
        keep,
        dry_run,
    })?;
    Ok(Output::Summary {
        text: describe(&summary),
        json: json(&summary),
    })
}

fn describe(summary: &VacuumSummary) -> String {
    let bytes = summary
        .bytes
        .map_or_else(String::new, |bytes| format!(", {}", ByteSize(bytes)));
    let mut text = format!(
        "{} {}: versions {} to {} stay; {} files{bytes} removed\n",
        summary.status, summary.job, summary.oldest, summary.newest, summary.files
    );
    for table in &summary.tables {
        if table.versions + table.files > 0 {
            let _ = writeln!(
                text,
                "  {:<8} {} versions, {} files",
                table.table, table.versions, table.files
            );
        }
    }
    text
}
