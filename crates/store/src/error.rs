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
    /// The version never was, or was vacuumed.
    #[error("job `{job}` has no version {version}; it has {}", versions(*oldest, *newest))]
    NoVersion {
        /// The job.
        job: String,
        /// The version asked for.
        version: u64,
        /// The oldest that can be read.
        oldest: u64,
        /// The newest.
        newest: u64,
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
    /// A pair that the table's signed columns cannot hold.
    #[error(
        "{value} (in the row of id {left}) is beyond what a table can store (ids below 2^31, counts below 2^63)"
    )]
    PairRange {
        /// The left id.
        left: u32,
        /// The id or count.
        value: u64,
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

fn versions(oldest: u64, newest: u64) -> String {
    if oldest == newest {
        format!("version {newest} only")
    } else {
        format!("versions {oldest} to {newest}")
    }
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
            Self::Location { .. }
            | Self::JobName { .. }
            | Self::NoJob { .. }
            | Self::NoVersion { .. } => Kind::User,
            Self::Property { .. } | Self::TableFile { .. } | Self::PairRange { .. } => Kind::User,
            Self::Locked { .. } | Self::Conflict { .. } => Kind::NotNow,
            Self::Delta { source, .. } => delta_kind(source),
            Self::Io { path, source, .. } => work_kind(path, source),
            Self::Object { source, .. } => object_kind(source),
            Self::Parquet { .. } => Kind::Bug,
        }
    }
}

/// Whether a path lies in a folder that pmill made for work in progress (`.pmill`, `.OUT.pmill-units`).
fn is_work(path: &str) -> bool {
    path.split('/')
        .any(|part| part.starts_with('.') && part.contains("pmill"))
}

/// What an I/O error on `path` means. A file of work in progress is named by pmill and by nobody
/// else: when it is not there, the file system is away, or another run has taken the work over.
#[must_use]
pub fn work_kind(path: &str, error: &std::io::Error) -> Kind {
    if error.kind() == std::io::ErrorKind::NotFound && is_work(path) {
        return Kind::NotNow;
    }
    io_kind(error)
}

/// Disk full, no permission, read-only: the user's. The rest of I/O may pass.
fn io_kind(error: &std::io::Error) -> Kind {
    use std::io::ErrorKind as E;
    // An upload fails as an I/O error of the writer.
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    if let Some(inner) = inner {
        return object_kind(inner);
    }
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

/// Whether a message is that of a request to an object store that failed after all retries.
#[must_use]
pub fn store_is_away(message: &str) -> bool {
    message.contains("Generic S3 error")
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
        other => {
            let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(other);
            while let Some(error) = cause {
                if let Some(error) = error.downcast_ref::<object_store::Error>() {
                    return object_kind(error);
                }
                if let Some(error) = error.downcast_ref::<std::io::Error>() {
                    return io_kind(error);
                }
                cause = error.source();
            }
            // Some layers keep the text only.
            if store_is_away(&other.to_string()) {
                Kind::NotNow
            } else {
                Kind::Bug
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_file_that_is_gone_is_not_the_users_fault() {
        let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
        for path in [
            "/wh/.pmill/j.units/plan-1/data/0001-fold-3.terms",
            "out/.merged.pmill-units/done/average-00001.json",
        ] {
            assert_eq!(work_kind(path, &gone()), Kind::NotNow, "{path}");
        }
        assert_eq!(work_kind("/home/me/pmill/ids.txt", &gone()), Kind::User);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(work_kind("/wh/.pmill/j/run", &full), Kind::User);
    }
}
