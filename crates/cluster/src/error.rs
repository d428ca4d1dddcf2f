//! What can go wrong between the roles.

use pmill_engine::{EngineError, Kind};

/// Errors of the cluster's roles.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// A file of keys or certificates cannot be used.
    #[error("cannot read `{path}`: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// The address.
        address: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The scheduler does not answer.
    #[error("the scheduler at {url} is not there: {reason}")]
    Away {
        /// Its URL.
        url: String,
        /// What was seen.
        reason: String,
    },
    /// The scheduler does not let us in, or is another version.
    #[error("the scheduler at {url} refuses: {reason}")]
    Refused {
        /// Its URL.
        url: String,
        /// Its reason.
        reason: String,
    },
    /// Ballista or the server stopped.
    #[error("{what} stopped: {reason}")]
    Stopped {
        /// Which part.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl ClusterError {
    /// Whether the user can fix it, trying again helps, or it is our bug.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Setting(_) | Self::File { .. } | Self::Listen { .. } | Self::Refused { .. } => {
                Kind::User
            }
            Self::Away { .. } | Self::Stopped { .. } => Kind::NotNow,
            Self::Engine(error) => error.kind(),
        }
    }
}

impl From<ClusterError> for EngineError {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::Engine(error) => error,
            other if other.kind() == Kind::User => Self::Setting(other.to_string()),
            other => Self::NotNow(other.to_string()),
        }
    }
}
