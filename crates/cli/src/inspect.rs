//! `pmill inspect`.

use clap::Args;
use pmill_engine::inspect;

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
}

impl InspectArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let report = inspect::inspect(&self.warehouse, self.name.as_deref())?;
        if global.json {
            return Ok(Output::Summary {
                json: json(&report),
                text: String::new(),
            });
        }
        Ok(Output::Bytes(report.to_string().into_bytes()))
    }
}
