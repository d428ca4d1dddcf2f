//! What can go wrong between the input and the table, and what the outside sees of it.

pub use pmill_store::Kind;
use pmill_store::StoreError;

/// Errors of the engine. Each names the file, column, row group or setting.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An input names nothing that exists.
    #[error("input `{input}`: {reason}")]
    Input {
        /// As the user gave it.
        input: String,
        /// What is wrong.
        reason: String,
    },
    /// One input file is bad.
    #[error("cannot read `{file}`: {fault}")]
    BadFile {
        /// Its URI or path.
        file: String,
        /// What is wrong with it, and where.
        fault: FileFault,
    },
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// The memory limit cannot hold the job.
    #[error("memory limit of {limit} is too small: {reason}")]
    Memory {
        /// The limit, for people.
        limit: String,
        /// What did not fit, and what to do.
        reason: String,
    },
    /// Turning text into features.
    #[error(transparent)]
    Text(#[from] pmill_text::TextError),
    /// Counting.
    #[error(transparent)]
    Count(#[from] pmill_count::CountError),
    /// The warehouse.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A query or plan.
    #[error("{0}")]
    Query(String),
    /// An object store that does not answer, after all retries.
    #[error("the object store does not answer as it should; try again later: {0}")]
    Away(String),
    /// A file of work in progress.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Not now: trying again helps.
    #[error("{0}")]
    NotNow(String),
    /// A unit that ended every process that ran it.
    #[error(
        "unit `{unit}` was begun {times} times and each time its process died (out of memory, or killed){inputs}"
    )]
    Poison {
        /// The unit.
        unit: String,
        /// Attempts.
        times: usize,
        /// What it reads, or nothing.
        inputs: String,
    },
    /// The user pressed Ctrl-C.
    #[error("interrupted; nothing was committed")]
    Interrupted,
    /// A promise of ours was broken.
    #[error("internal error: {0} (please report it)")]
    Bug(String),
}

/// Why one file cannot be counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// The footer does not parse.
    #[error("{0}")]
    Footer(String),
    /// The column is not there.
    #[error("no column `{column}`{}; it has: {}", did_you_mean(.nearest.as_deref()), .known.join(", "))]
    NoColumn {
        /// Asked for.
        column: String,
        /// The nearest name.
        nearest: Option<String>,
        /// What there is.
        known: Vec<String>,
    },
    /// The column's name is there more than once.
    #[error("column `{column}` occurs {times} times, so which one is meant is not known")]
    AmbiguousColumn {
        /// Asked for.
        column: String,
        /// How often.
        times: usize,
    },
    /// The column holds something else than text.
    #[error("column `{column}` has type {found}, expected text or a list of text")]
    ColumnType {
        /// Asked for.
        column: String,
        /// Its type.
        found: String,
    },
    /// An expression over the file's columns does not hold.
    #[error("`{what}` ({sql}): {reason}")]
    Expression {
        /// `text` or `where`.
        what: &'static str,
        /// The expression.
        sql: String,
        /// Why.
        reason: String,
    },
    /// A row group does not decode.
    #[error("row group {row_group}: {reason}")]
    RowGroup {
        /// Which, from 0.
        row_group: usize,
        /// Why.
        reason: String,
    },
    /// A row group would not fit.
    #[error(
        "row group {row_group} of column `{column}` decodes to {bytes}, more than the memory limit of {limit} allows"
    )]
    TooLarge {
        /// Which, from 0.
        row_group: usize,
        /// Column.
        column: String,
        /// Size for people.
        bytes: String,
        /// Limit for people.
        limit: String,
    },
    /// Bytes that are not UTF-8.
    #[error("row {row} of row group {row_group} is not UTF-8")]
    NotUtf8 {
        /// Which, from 0.
        row_group: usize,
        /// Row inside the row group, from 0.
        row: usize,
    },
    /// The file is not what it was when the job was planned.
    #[error("it changed while it was being counted (expected {expected}, found {found})")]
    Changed {
        /// Identity at planning.
        expected: String,
        /// Identity now.
        found: String,
    },
}

/// An error with its causes on one line, each said once.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

fn did_you_mean(name: Option<&str>) -> String {
    name.map(|name| format!(" (did you mean `{name}`?)"))
        .unwrap_or_default()
}

impl EngineError {
    /// What is wrong with a file; when it is the store that is away, the file is not to blame.
    #[must_use]
    pub fn bad_file(file: String, fault: FileFault) -> Self {
        match &fault {
            FileFault::Footer(reason) | FileFault::RowGroup { reason, .. }
                if pmill_store::store_is_away(reason) =>
            {
                Self::Away(format!("`{file}`: {reason}"))
            }
            _ => Self::BadFile { file, fault },
        }
    }

    /// Whether the user can fix it, trying again helps, or it is our bug.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Input { .. }
            | Self::BadFile { .. }
            | Self::Setting(_)
            | Self::Memory { .. }
            | Self::Text(_)
            | Self::Query(_)
            | Self::Poison { .. } => Kind::User,
            Self::Count(error) if user_can_fix_disk(error) => Kind::User,
            Self::Count(error) => match error.kind() {
                pmill_count::ErrorKind::User => Kind::User,
                pmill_count::ErrorKind::NotNow => Kind::NotNow,
                pmill_count::ErrorKind::Bug => Kind::Bug,
            },
            Self::Store(error) => error.kind(),
            Self::Io { path, source, .. } => pmill_store::work_kind(path, source),
            Self::Interrupted | Self::Away(_) | Self::NotNow(_) => Kind::NotNow,
            Self::Bug(_) => Kind::Bug,
        }
    }
}

/// Whether an error comes from a disk that is full or may not be written.
fn user_can_fix_disk(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind as E;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                error.kind(),
                E::StorageFull | E::QuotaExceeded | E::PermissionDenied | E::ReadOnlyFilesystem
            );
        }
        cause = error.source();
    }
    false
}

/// A name among `known` that is close to `name`, for "did you mean".
#[must_use]
pub fn nearest_name<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| {
            let distance = if candidate.eq_ignore_ascii_case(name) {
                0
            } else {
                strsim::damerau_levenshtein(&candidate.to_lowercase(), &name.to_lowercase())
            };
            (distance, candidate)
        })
        .filter(|(distance, candidate)| {
            *distance <= 1 + candidate.chars().count().max(name.chars().count()) / 3
        })
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}
