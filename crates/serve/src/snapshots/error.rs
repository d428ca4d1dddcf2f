//! What can go wrong, and which status code and kind each is.

use pmill_snapshot::{ErrorKind, SnapshotError};
use std::path::PathBuf;
use tonic::{Code, Status};

/// Any failure of the merge service or its client.
#[derive(Debug, thiserror::Error)]
pub enum MergeServiceError {
    /// No run of this name.
    #[error("there is no run `{run}`; announce it first")]
    UnknownRun {
        /// The name asked for.
        run: String,
    },
    /// The run has no such agent.
    #[error("run `{run}` has no agent `{agent}`; it has {agents}")]
    UnknownAgent {
        /// The run.
        run: String,
        /// The name given.
        agent: String,
        /// The names it has.
        agents: String,
    },
    /// The merge has begun or is done.
    #[error("run `{run}` takes no more publications: {why}")]
    Late {
        /// The run.
        run: String,
        /// What has happened, and who is in.
        why: String,
    },
    /// Something else was said before under the same name.
    #[error("{what}")]
    Conflict {
        /// What was said before, and what now.
        what: String,
    },
    /// A message or setting that cannot be used.
    #[error("{what}")]
    Invalid {
        /// The field, what was found, what was expected.
        what: String,
    },
    /// The snapshot, or the merge of them.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The state folder could not be read or written.
    #[error("cannot {action} `{path}`")]
    Storage {
        /// `read` or `write`.
        action: &'static str,
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A state file that this program did not write so.
    #[error("`{path}` is not a state file of the merge service; move the run's folder away")]
    Format {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        source: serde_json::Error,
    },
    /// Another service uses the same warehouse.
    #[error("another merge service runs on `{path}`; stop it or choose another warehouse")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// No more runs can be held.
    #[error("{limit} runs are held already; move finished ones out of `{path}` and start again")]
    Full {
        /// The most runs.
        limit: usize,
        /// Their folder.
        path: PathBuf,
    },
    /// The service answered with an error.
    #[error("{message}")]
    Remote {
        /// Its status code.
        code: Code,
        /// Its message.
        message: String,
    },
    /// The service could not be reached, or not in time.
    #[error("cannot reach `{server}` within {seconds} s: {what}")]
    Away {
        /// Its address.
        server: String,
        /// How long was tried.
        seconds: u64,
        /// The last cause.
        what: String,
    },
    /// Where the merge was to run cannot run it now.
    #[error("{what}")]
    NotNow {
        /// What is away.
        what: String,
    },
    /// The caller asked to stop.
    #[error("stopped before the end")]
    Stopped,
    /// A state that should not be reachable.
    #[error("internal error: {what}")]
    Internal {
        /// What was expected to hold.
        what: String,
    },
}

impl MergeServiceError {
    pub(super) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    /// Whether trying again helps, and who can put it right.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Snapshot(error) => error.kind(),
            Self::Storage { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull
                | std::io::ErrorKind::TimedOut
                | std::io::ErrorKind::ResourceBusy => ErrorKind::NotNow,
                _ => ErrorKind::User,
            },
            Self::Locked { .. }
            | Self::Full { .. }
            | Self::Away { .. }
            | Self::NotNow { .. }
            | Self::Stopped => ErrorKind::NotNow,
            Self::Internal { .. } => ErrorKind::Bug,
            Self::Remote { code, .. } => match code {
                Code::Unavailable
                | Code::ResourceExhausted
                | Code::DeadlineExceeded
                | Code::Aborted
                | Code::Cancelled => ErrorKind::NotNow,
                Code::Internal | Code::Unknown | Code::DataLoss => ErrorKind::Bug,
                _ => ErrorKind::User,
            },
            _ => ErrorKind::User,
        }
    }

    /// As the answer to a call.
    #[must_use]
    pub fn status(&self) -> Status {
        let code = match self {
            Self::UnknownRun { .. } | Self::UnknownAgent { .. } => Code::NotFound,
            Self::Late { .. } => Code::FailedPrecondition,
            Self::Conflict { .. } => Code::AlreadyExists,
            Self::Full { .. } => Code::ResourceExhausted,
            Self::Remote { code, .. } => *code,
            _ => match self.kind() {
                ErrorKind::User => Code::InvalidArgument,
                ErrorKind::NotNow => Code::Unavailable,
                ErrorKind::Bug => Code::Internal,
            },
        };
        Status::new(code, pmill_engine::error::chain(self))
    }
}
