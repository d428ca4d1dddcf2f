//! `pmill inspect`.

use clap::Args;
use pmill_engine::inspect::{self, Depth, Report};

use crate::count::json;
use crate::limits::Global;
use crate::outcome::{Outcome, Output};

/// Show a warehouse's jobs, or one job's settings, versions, sources and sizes.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Name of the job; without it, all jobs are listed
    #[arg(long, value_name = "JOB")]
    name: Option<String>,
    /// Check every row of the job's tables: sorted, nothing twice, sums, files; exit 2 when one is wrong
    #[arg(long, requires = "name")]
    verify: bool,
    /// Show how the pairs are spread over the terms (reads the pairs)
    #[arg(long, requires = "name")]
    skew: bool,
    /// Look at this version of the job instead of the newest
    #[arg(long, value_name = "N", requires = "name")]
    version: Option<u64>,
}

impl InspectArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let depth = match (self.verify, self.skew) {
            (true, _) => Depth::Verify,
            (false, true) => Depth::Skew,
            (false, false) => Depth::Logs,
        };
        let name = self.name.as_deref();
        let report = inspect::inspect(&self.warehouse, name, self.version, depth)?;
        let bytes = if global.json {
            format!("{}\n", json(&report))
        } else {
            report.to_string()
        };
        if let Report::Job(job) = &report
            && let Some(verified) = job.verified.as_ref().filter(|verified| !verified.sound)
        {
            let message = format!(
                "the tables of `{}` are not what they promise: {} violations, listed above; count the corpus anew, or go back to a version that is sound (`--version N`)",
                job.job, verified.violations_in_all
            );
            return Ok(Output::Wrong(bytes.into_bytes(), message));
        }
        Ok(Output::Bytes(bytes.into_bytes()))
    }
}
