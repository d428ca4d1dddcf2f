//! What can go wrong in a warehouse, and whether trying again helps.

use deltalake_core::DeltaTableError;

/// What an error means to the caller; one place turns it into exit codes and gRPC codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The user can fix it: a flag, a pipeline file, an input.
    User,
    /// Not now: a store is away, or someone else committed first. Trying again helps.
    NotNow,
    /// A broken promise of ours.
    Bug,
}

/// Errors of the warehouse.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The warehouse location cannot be used.
    #[error("cannot use `{location}` as a warehouse: {reason}")]
    Location {
        /// As the user gave it.
        location: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A job name that could not be a schema name in SQL.
    #[error(
        "`{name}` is not a job name: use lower-case letters, digits and `_`, and start with a letter (job names are schema names in SQL, where `public` and `information_schema` are taken)"
    )]
    JobName {
        /// As the user gave it.
        name: String,
    },
    /// The job does not exist (or has never been committed).
    #[error("the warehouse `{warehouse}` has no job `{job}`{}", known_jobs(known))]
    NoJob {
        /// The warehouse.
        warehouse: String,
        /// The job asked for.
        job: String,
        /// Jobs that exist.
        known: Vec<String>,
    },
    /// Another process holds the job.
    #[error("another pmill process is writing job `{job}`; try again when it is done")]
    Locked {
        /// The job.
        job: String,
    },
    /// Another writer committed between our read and our commit.
    #[error("someone else committed to `{table}` first; run the command again")]
    Conflict {
        /// The table.
        table: String,
    },
    /// A table's metadata lacks what pmill writes there.
    #[error(
        "table `{table}` has no usable property `{property}`: it was not written by pmill, or by a newer version"
    )]
    Property {
        /// The table.
        table: String,
        /// The property.
        property: &'static str,
    },
    /// The Delta library refused or failed.
    #[error("cannot {action} table `{table}`")]
    Delta {
        /// What was tried.
        action: &'static str,
        /// The table.
        table: String,
        /// The library's error.
        source: Box<DeltaTableError>,
    },
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
    /// The object store refused or failed.
    #[error("cannot {action} `{path}`")]
    Object {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: String,
        /// The cause.
        source: object_store::Error,
    },
    /// A table's file could not be read.
    #[error("cannot read the table file `{path}` (gone, or damaged?)")]
    TableFile {
        /// The path.
        path: String,
        /// The cause.
        source: parquet::errors::ParquetError,
    },
    /// Parquet encoding failed.
    #[error("cannot write `{path}`")]
    Parquet {
        /// The path.
        path: String,
        /// The cause.
        source: parquet::errors::ParquetError,
    },
}

fn known_jobs(known: &[String]) -> String {
    if known.is_empty() {
        "; it has no jobs yet (`pmill count` makes one)".to_owned()
    } else {
        format!("; it has: {}", known.join(", "))
    }
}

impl StoreError {
    /// Whether the user can fix it, trying again helps, or it is our bug.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Location { .. } | Self::JobName { .. } | Self::NoJob { .. } => Kind::User,
            Self::Property { .. } | Self::TableFile { .. } => Kind::User,
            Self::Locked { .. } | Self::Conflict { .. } => Kind::NotNow,
            Self::Delta { source, .. } => delta_kind(source),
            Self::Io { source, .. } => io_kind(source),
            Self::Object { source, .. } => object_kind(source),
            Self::Parquet { .. } => Kind::Bug,
        }
    }
}

/// Disk full, no permission, read-only: the user's. The rest of I/O may pass.
fn io_kind(error: &std::io::Error) -> Kind {
    use std::io::ErrorKind as E;
    match error.kind() {
        E::NotFound
        | E::PermissionDenied
        | E::ReadOnlyFilesystem
        | E::StorageFull
        | E::QuotaExceeded
        | E::NotADirectory
        | E::IsADirectory
        | E::InvalidFilename => Kind::User,
        E::Interrupted | E::TimedOut | E::ConnectionReset | E::ConnectionRefused => Kind::NotNow,
        _ => Kind::Bug,
    }
}

fn object_kind(error: &object_store::Error) -> Kind {
    use object_store::Error as E;
    match error {
        E::NotFound { .. }
        | E::PermissionDenied { .. }
        | E::Unauthenticated { .. }
        | E::InvalidPath { .. } => Kind::User,
        E::Generic { source, .. } => source
            .downcast_ref::<std::io::Error>()
            .or_else(|| source.source().and_then(|inner| inner.downcast_ref()))
            .map_or(Kind::NotNow, io_kind),
        _ => Kind::NotNow,
    }
}

fn delta_kind(error: &DeltaTableError) -> Kind {
    match error {
        DeltaTableError::ObjectStore { source } => object_kind(source),
        DeltaTableError::VersionAlreadyExists(_) => Kind::NotNow,
        _ => Kind::Bug,
    }
}
