//! What a command ends with: output, or an error; and the exit code of each kind.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

pub use pmill_engine::error::chain;
use pmill_engine::{EngineError, Kind};

use crate::limits::Global;

/// What a command gives back.
pub type Outcome = Result<Output, Failure>;

/// What goes to stdout.
pub enum Output {
    /// A summary: as JSON with `--json`, else the text on stderr.
    Summary {
        /// The object that `--json` prints.
        json: serde_json::Value,
        /// What a person reads.
        text: String,
    },
    /// The result itself.
    Bytes(Vec<u8>),
    /// The result, and what is wrong with what it tells of: exit 2.
    Wrong(Vec<u8>, String),
    /// It was written already.
    Done,
}

/// Why a command failed.
pub enum Failure {
    /// An error with its kind and what a person reads.
    Error(Kind, String),
    /// Whoever read our output has seen enough: not an error.
    ClosedPipe,
}

impl Failure {
    /// Something that the user can fix.
    pub fn user(message: impl Into<String>) -> Self {
        Self::Error(Kind::User, message.into())
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Error(error.kind(), chain(&error))
    }
}

impl From<pmill_engine::store::StoreError> for Failure {
    fn from(error: pmill_engine::store::StoreError) -> Self {
        EngineError::from(error).into()
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe {
            return Self::ClosedPipe;
        }
        Self::Error(Kind::User, format!("cannot write the output: {error}"))
    }
}

/// Prints an outcome and gives the exit code.
pub fn finish(outcome: Outcome, global: &Global) -> ExitCode {
    let printed = match outcome {
        Ok(Output::Summary { json, text }) => {
            if !global.quiet && !global.json {
                eprint!("{text}");
            }
            if global.json {
                print(format!("{json}\n").as_bytes())
            } else {
                Ok(())
            }
        }
        Ok(Output::Bytes(bytes)) => print(&bytes),
        Ok(Output::Wrong(bytes, message)) => {
            // The exit code says it, whoever reads.
            let _ = print(&bytes);
            let _ = writeln!(std::io::stderr().lock(), "pmill: {message}");
            return ExitCode::from(2);
        }
        Ok(Output::Done) => Ok(()),
        Err(Failure::ClosedPipe) => Ok(()),
        Err(Failure::Error(kind, message)) => {
            let hint = if kind == Kind::NotNow
                && !message.contains("again")
                && !message.contains("interrupted")
            {
                "; try again later"
            } else {
                ""
            };
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(std::io::stderr().lock(), "pmill: {message}{hint}");
            return match kind {
                Kind::User => ExitCode::from(2),
                Kind::NotNow => ExitCode::from(75),
                Kind::Bug => ExitCode::FAILURE,
            };
        }
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(
                std::io::stderr().lock(),
                "pmill: cannot write to stdout: {error}"
            );
            ExitCode::from(2)
        }
    }
}

pub fn print(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}
