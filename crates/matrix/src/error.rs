//! What can go wrong with matrices and vectors.

use std::path::Path;

/// Who can do something about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The user can fix it.
    User,
    /// Another process is at it; trying again helps.
    NotNow,
    /// A broken promise of ours.
    Bug,
}

/// Errors of this crate; each names the file, line or number.
#[derive(Debug, thiserror::Error)]
pub enum MatrixError {
    /// A setting is out of range.
    #[error("{0}")]
    Setting(String),
    /// The output is there already.
    #[error("`{0}` exists already; give another --output, or --overwrite to replace it")]
    Exists(String),
    /// Another process writes the same output.
    #[error("another pmill process is writing `{0}`; try again when it is done")]
    Busy(String),
    /// A file could not be written or read.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A file that was given does not hold what it should.
    #[error("`{path}`{place}: {reason}")]
    Content {
        /// The path.
        path: String,
        /// `, line 7`, or nothing.
        place: String,
        /// What was expected, and what is there.
        reason: String,
    },
    /// A promise of ours was broken.
    #[error("internal error: {0} (please report it)")]
    Bug(String),
}

impl MatrixError {
    /// Who can do something about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Setting(_) | Self::Exists(_) | Self::Content { .. } | Self::Io { .. } => {
                ErrorKind::User
            }
            Self::Busy(_) => ErrorKind::NotNow,
            Self::Bug(_) => ErrorKind::Bug,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
