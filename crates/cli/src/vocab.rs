//! `pmill vocab`.

use clap::Args;
use pmill_engine::drift::drift;

use crate::count::json;
use crate::limits::Global;
use crate::outcome::{Outcome, Output};

/// Show how a job's vocabulary stands to all that has been counted.
#[derive(Args, Debug)]
#[command(after_help = "\
The vocabulary of a job is frozen at its first commit, so that batches add up. Terms that come
later are kept with their counts in JOB.outside. --refresh compares the frozen vocabulary with the
one that a recount of everything would choose now; nothing is written.

Example:
  pmill vocab --warehouse wh --name web --refresh")]
pub struct VocabArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Name of the job
    #[arg(long, value_name = "JOB")]
    name: String,
    /// Say what a recount would change
    #[arg(long, required = true)]
    refresh: bool,
    /// List so many terms that would come in, and that would go out
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
}

impl VocabArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let drift = drift(&self.warehouse, &self.name, self.top, global.memory_limit())?;
        if global.json {
            return Ok(Output::Summary {
                json: json(&drift),
                text: String::new(),
            });
        }
        Ok(Output::Bytes(drift.to_string().into_bytes()))
    }
}
