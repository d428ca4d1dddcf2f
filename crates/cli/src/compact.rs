//! `pmill compact`.

use clap::Args;
use pmill_engine::compact::{self, CompactJob};
use pmill_engine::memory::ByteSize;

use crate::count::json;
use crate::limits::Global;
use crate::outcome::{Outcome, Output};
use crate::progress::{Bar, group, stop_flag};

/// Rewrite a job's pairs into few files of an even size; the rows stay what they are.
#[derive(Args, Debug)]
#[command(after_help = "\
The files before stay until `pmill vacuum` gives up the versions that need them.

Example:
  pmill compact --warehouse wh --name captions")]
pub struct CompactArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Name of the job
    #[arg(long, value_name = "JOB")]
    name: String,
    /// Show what would be done; write nothing
    #[arg(long)]
    dry_run: bool,
}

impl CompactArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        run(&self.warehouse, &self.name, self.dry_run, global)
    }
}

/// Compacts and sums up.
pub fn run(warehouse: &str, name: &str, dry_run: bool, global: &Global) -> Outcome {
    let job = CompactJob {
        warehouse: warehouse.to_owned(),
        name: name.to_owned(),
        memory_limit: global.memory_limit(),
        dry_run,
    };
    let bar = Bar::new(global);
    let result = compact::compact(&job, &bar, &stop_flag());
    bar.clear();
    let summary = result?;
    let text = format!(
        "{} {}: {} pairs, {} files ({}) → {} files ({}); version {}, {:.1} s\n",
        summary.status,
        summary.job,
        group(summary.pairs),
        summary.files_before,
        ByteSize(summary.bytes_before),
        summary.files,
        ByteSize(summary.bytes),
        summary.version,
        summary.seconds,
    );
    Ok(Output::Summary {
        json: json(&summary),
        text,
    })
}
