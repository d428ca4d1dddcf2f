//! Flags that every command takes, and what they come to.

use std::io::IsTerminal;

use clap::Args;
use pmill_engine::memory::{ByteSize, default_limit};

/// Flags of every command.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Most memory for the process, as 512MiB or 4GiB [default: half of what there is]
    #[arg(long, global = true, value_name = "SIZE", env = "PMILL_MEMORY_LIMIT")]
    pub memory_limit: Option<ByteSize>,
    /// Threads [default: all cores]
    #[arg(long, global = true, value_name = "N", env = "PMILL_THREADS")]
    pub threads: Option<std::num::NonZeroUsize>,
    /// Folder for work in progress on warehouses in object stores [default: in the user's cache]
    #[arg(long, global = true, value_name = "FOLDER", env = "PMILL_WORK_DIR")]
    pub work_dir: Option<std::path::PathBuf>,
    /// Print one JSON object on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// Print no progress and no summary
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Log what happens, to stderr; -vv for more
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Global {
    /// The memory limit.
    pub fn memory_limit(&self) -> ByteSize {
        self.memory_limit.unwrap_or_else(default_limit)
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            std::num::NonZero::get,
        )
    }

    /// Logs go to stderr, as fields; work in progress goes where it is told.
    pub fn start(&self) {
        if let Some(folder) = &self.work_dir {
            pmill_engine::store::set_work_folder(folder.clone());
        }
        let level = match self.verbose {
            0 if self.quiet => "error,buoyant_kernel=off,deltalake_core=off",
            // A server says what it does. What the table library cannot read comes back as an
            // error, and is told once.
            0 => "error,pmill_serve=info,buoyant_kernel=off,deltalake_core=off",
            1 => "pmill=info,pmill_engine=info,pmill_serve=info,pmill_store=info,warn",
            _ => "debug",
        };
        let filter = tracing_subscriber::EnvFilter::try_from_env("PMILL_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        if std::env::var("PMILL_LOG_FORMAT").is_ok_and(|format| format == "json") {
            logs.json().init();
        } else {
            logs.init();
        }
    }
}
