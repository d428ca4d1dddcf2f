//! What can go wrong in a server, and the code that each protocol gives it.

use datafusion::error::DataFusionError;
use pmill_engine::{EngineError, Kind};

/// Errors of the servers.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// A line of the users file is wrong. The line itself is not shown: it holds a secret.
    #[error("`{path}` line {line}: {reason}")]
    Users {
        /// The file.
        path: String,
        /// From 1.
        line: usize,
        /// What was expected.
        reason: &'static str,
    },
    /// A file could not be read.
    #[error("cannot read {what} `{path}`")]
    Read {
        /// What it is for.
        what: &'static str,
        /// The path.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// An address could not be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A certificate or key cannot be used.
    #[error("cannot use {what} `{path}`: {reason}")]
    Certificate {
        /// Which of the files.
        what: &'static str,
        /// The path.
        path: String,
        /// Why.
        reason: String,
    },
    /// The statement changes something, or is none of those that a reader may give.
    #[error("{statement} is not allowed: this server only reads (SELECT, EXPLAIN, SHOW)")]
    NotRead {
        /// The statement's kind.
        statement: String,
    },
    /// The statement is longer or deeper than the server takes.
    #[error("{0}")]
    TooComplex(String),
    /// Too many queries of this user at once.
    #[error("{limit} queries of `{user}` are running already; try again when one has finished")]
    Busy {
        /// Who.
        user: String,
        /// The limit.
        limit: usize,
    },
    /// The query took too long.
    #[error("the query ran longer than its limit of {seconds} s")]
    Time {
        /// The limit.
        seconds: u64,
    },
    /// The result is too large.
    #[error("the result is larger than the limit of {limit}; add a LIMIT or a WHERE")]
    TooLarge {
        /// Rows or bytes, for people.
        limit: String,
    },
    /// The query needs more memory than it may have.
    #[error("the query needs more than its memory limit of {limit}: {reason}")]
    Memory {
        /// The limit, for people.
        limit: String,
        /// What the engine said.
        reason: String,
    },
    /// Somebody cancelled it.
    #[error("the query was cancelled")]
    Cancelled,
    /// The server stops.
    #[error("the server is stopping; try again elsewhere or later")]
    Stopping,
    /// Name and secret do not fit, or a token is unknown.
    #[error("wrong user name, password or token")]
    Denied,
    /// Too many wrong secrets came from there.
    #[error("too many wrong passwords; try again in {seconds} s")]
    Throttled {
        /// How long to wait.
        seconds: u64,
    },
    /// A handle or ticket that this server did not give out, or has forgotten.
    #[error("no such {0}; it may have expired or been closed")]
    Unknown(&'static str),
    /// A message of a client that cannot be read.
    #[error("{0}")]
    Message(String),
    /// The engine or the warehouse.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The query itself.
    #[error("{0}")]
    Query(String),
    /// A promise of ours was broken.
    #[error("internal error: {0} (please report it)")]
    Bug(String),
}

impl ServeError {
    /// Whether trying again helps, and who can put it right.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Busy { .. } | Self::Stopping | Self::Throttled { .. } | Self::Listen { .. } => {
                Kind::NotNow
            }
            Self::Engine(error) => error.kind(),
            Self::Bug(_) => Kind::Bug,
            _ => Kind::User,
        }
    }

    /// The gRPC status.
    #[must_use]
    pub fn status(&self) -> tonic::Status {
        let text = self.chain();
        match self {
            Self::Denied => tonic::Status::unauthenticated(text),
            Self::Throttled { .. } | Self::Memory { .. } | Self::TooLarge { .. } => {
                tonic::Status::resource_exhausted(text)
            }
            Self::Busy { .. } => tonic::Status::resource_exhausted(text),
            Self::Time { .. } => tonic::Status::deadline_exceeded(text),
            Self::Cancelled => tonic::Status::cancelled(text),
            Self::NotRead { .. } => tonic::Status::permission_denied(text),
            Self::Unknown(_) => tonic::Status::not_found(text),
            _ => match self.kind() {
                Kind::User => tonic::Status::invalid_argument(text),
                Kind::NotNow => tonic::Status::unavailable(text),
                Kind::Bug => tonic::Status::internal(text),
            },
        }
    }

    /// The SQLSTATE of PostgreSQL.
    #[must_use]
    pub fn sql_state(&self) -> &'static str {
        match self {
            Self::Denied | Self::Throttled { .. } => "28P01",
            Self::Memory { .. } => "53200",
            Self::Busy { .. } => "53300",
            Self::TooLarge { .. } | Self::TooComplex(_) => "54000",
            Self::Time { .. } | Self::Cancelled => "57014",
            Self::Stopping => "57P01",
            Self::NotRead { .. } => "25006",
            Self::Message(_) => "08P01",
            Self::Engine(error) if error.kind() == Kind::NotNow => "57P03",
            Self::Engine(_) => "58000",
            Self::Bug(_) => "XX000",
            _ => "42601",
        }
    }

    /// The error with its causes on one line, each said once.
    #[must_use]
    pub fn chain(&self) -> String {
        pmill_engine::error::chain(self)
    }

    /// An error of DataFusion as ours: what we put inside comes out as it went in.
    #[must_use]
    pub fn from_engine(error: DataFusionError, memory_limit: &str) -> Self {
        match error.find_root() {
            DataFusionError::ResourcesExhausted(reason) => Self::Memory {
                limit: memory_limit.to_owned(),
                reason: reason.lines().next().unwrap_or_default().to_owned(),
            },
            _ => match error {
                DataFusionError::External(inner) => match inner.downcast::<Self>() {
                    Ok(ours) => *ours,
                    Err(inner) => match inner.downcast::<EngineError>() {
                        Ok(engine) => Self::Engine(*engine),
                        Err(inner) => {
                            Self::Query(DataFusionError::External(inner).strip_backtrace())
                        }
                    },
                },
                error => Self::Query(error.strip_backtrace()),
            },
        }
    }
}

impl From<pmill_store::StoreError> for ServeError {
    fn from(error: pmill_store::StoreError) -> Self {
        Self::Engine(error.into())
    }
}

impl From<ServeError> for DataFusionError {
    fn from(error: ServeError) -> Self {
        Self::External(Box::new(error))
    }
}

impl From<ServeError> for tonic::Status {
    fn from(error: ServeError) -> Self {
        error.status()
    }
}
