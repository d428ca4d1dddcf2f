//! What can go wrong, each with the name of the thing and its place.

use crate::dtype::DType;
use std::fmt;
use std::io;
use std::path::Path;

/// Whether trying again helps, and who can put it right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Input, settings or files that the user can put right.
    User,
    /// Storage away, or someone else at work in the same place: try again later.
    NotNow,
    /// A broken promise of this program.
    Bug,
}

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file or folder could not be read.
    #[error("cannot read `{path}`")]
    Read {
        /// File or folder.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write `{path}`")]
    Write {
        /// File or folder.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A safetensors header that is not what the format allows.
    #[error("`{path}` is not a valid safetensors file: {fault}")]
    Header {
        /// The file.
        path: String,
        /// What is wrong with it.
        fault: HeaderFault,
    },
    /// An index file that cannot be used.
    #[error("`{path}` is not a usable safetensors index: {what}")]
    Index {
        /// The index file.
        path: String,
        /// What is wrong, with the names of tensor and shard.
        what: String,
    },
    /// A JSON file beside the weights that does not parse.
    #[error("`{path}` is not valid JSON")]
    Json {
        /// The file.
        path: String,
        /// The parser's message, with line and column.
        source: serde_json::Error,
    },
    /// A file that should be small is not.
    #[error(
        "`{path}` has {size_bytes} bytes, more than the {limit_bytes} that such a file may have"
    )]
    TooLarge {
        /// The file.
        path: String,
        /// Its length.
        size_bytes: u64,
        /// The most that is read.
        limit_bytes: u64,
    },
    /// A folder in which no one snapshot can be found.
    #[error("`{path}` holds no snapshot: {what}")]
    NoSnapshot {
        /// The folder.
        path: String,
        /// What was found there and what was expected.
        what: String,
    },
    /// The inputs cannot be merged as asked; every reason that was found.
    #[error("{} problem{} with the inputs: {}", .problems.len(), if .problems.len() == 1 { "" } else { "s" }, List(.problems))]
    Refused {
        /// At least one problem.
        problems: Vec<Problem>,
    },
    /// A value that is not a number or infinite, found while streaming.
    #[error(
        "tensor `{tensor}` of `{snapshot}` holds {value} at index {index}; allow such values explicitly (allow_nonfinite) or leave the snapshot out"
    )]
    NonFinite {
        /// The input.
        snapshot: String,
        /// The tensor.
        tensor: String,
        /// Flat element index in row-major order, from 0.
        index: u64,
        /// `NaN`, `+Inf` or `-Inf`.
        value: &'static str,
    },
    /// Finite inputs whose mean is too large for the output type.
    #[error(
        "the mean of tensor `{tensor}` at index {index} is too large for {dtype}; choose a wider output type"
    )]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Flat element index in row-major order, from 0.
        index: u64,
        /// The output type.
        dtype: DType,
    },
    /// Settings that contradict themselves or the inputs.
    #[error("{what}")]
    Settings {
        /// The setting, the value found and the one expected.
        what: String,
    },
    /// A mixing matrix or edge list that cannot be used.
    #[error("mixing matrix: {what}")]
    Matrix {
        /// Row, column and value.
        what: String,
    },
    /// The output is there already.
    #[error("`{path}` exists already; remove it, choose another output or ask to overwrite")]
    Exists {
        /// The output.
        path: String,
    },
    /// An input is another than the one whose digest is known.
    #[error(
        "`{snapshot}` has the digest {found}, and {expected} was expected: it changed after that one was taken"
    )]
    Unexpected {
        /// The snapshot.
        snapshot: String,
        /// Its digest, in words.
        found: String,
        /// The one that was known.
        expected: String,
    },
    /// An input changed between the plan and the reading of it.
    #[error("`{path}` changed while it was being read; run again when its writer is done")]
    Changed {
        /// The file.
        path: String,
    },
    /// Another process merges into the same output.
    #[error("another merge is writing `{path}`; wait for it or choose another output")]
    Busy {
        /// The staging folder.
        path: String,
    },
    /// The caller asked to stop; what is staged stays and the next run goes on from it.
    #[error("stopped before the end; run the same merge again to go on")]
    Stopped,
    /// A state that should not be reachable.
    #[error("internal error: {what}")]
    Internal {
        /// What was expected to hold.
        what: String,
    },
}

impl SnapshotError {
    pub(crate) fn read(path: impl fmt::Display, source: io::Error) -> Self {
        Self::Read {
            path: path.to_string(),
            source,
        }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        Self::Write {
            path: path.display().to_string(),
            source,
        }
    }

    /// Whether trying again helps.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => match source.kind() {
                io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted
                | io::ErrorKind::WouldBlock
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::NotConnected
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::ResourceBusy
                | io::ErrorKind::StorageFull => ErrorKind::NotNow,
                _ => ErrorKind::User,
            },
            Self::Changed { .. } | Self::Busy { .. } | Self::Stopped => ErrorKind::NotNow,
            Self::Internal { .. } => ErrorKind::Bug,
            _ => ErrorKind::User,
        }
    }

    /// Every problem of a refusal, empty for other errors.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Refused { problems } => problems,
            _ => &[],
        }
    }
}

struct List<'a>(&'a [Problem]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        for (position, problem) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{problem}", if position == 0 { "" } else { "; " })?;
        }
        if self.0.len() > SHOWN {
            write!(f, "; and {} more", self.0.len() - SHOWN)?;
        }
        Ok(())
    }
}

/// What is wrong with a safetensors header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// Fewer than the 8 bytes of the length.
    #[error("the file has {size_bytes} bytes, fewer than the 8 of the header's length")]
    TooShort {
        /// Length of the file.
        size_bytes: u64,
    },
    /// A header longer than the file or than the limit.
    #[error(
        "the header claims {header_bytes} bytes, but {limit_bytes} is the most that fits (truncated or not safetensors)"
    )]
    TooLong {
        /// Claimed length.
        header_bytes: u64,
        /// The most there can be.
        limit_bytes: u64,
    },
    /// Not UTF-8, not JSON, or JSON of another form.
    #[error("the header is not the expected JSON: {message}")]
    Json {
        /// The parser's message, with line and column.
        message: String,
    },
    /// One tensor named twice.
    #[error("tensor `{tensor}` is named twice")]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// An element type outside the format.
    #[error("tensor `{tensor}` has the unknown type `{dtype}`")]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// The name found.
        dtype: String,
    },
    /// Offsets that do not follow on from the tensor before.
    #[error(
        "tensor `{tensor}` starts at byte {start}, but the data before it ends at {expected} (overlap or hole)"
    )]
    Offsets {
        /// The tensor.
        tensor: String,
        /// Where it says it starts, from the start of the data.
        start: u64,
        /// Where it must start.
        expected: u64,
    },
    /// Type and shape need another number of bytes than the offsets give.
    #[error("tensor `{tensor}` has {found} bytes, but its type and shape need {needed}")]
    Size {
        /// The tensor.
        tensor: String,
        /// Bytes between its offsets; negative ranges count as 0.
        found: u64,
        /// Bytes that type and shape need, or "more than 2^64".
        needed: String,
    },
    /// The data does not end where the file does.
    #[error(
        "the tensors end at byte {expected} of the file, but it has {found} (truncated, or data that no tensor names)"
    )]
    Length {
        /// Where the file must end.
        expected: u64,
        /// Its length.
        found: u64,
    },
}

/// One reason why inputs cannot be merged as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A tensor that other inputs have.
    #[error("tensor `{tensor}` is missing in `{snapshot}` but is in `{reference}`{hint}")]
    Missing {
        /// The tensor.
        tensor: String,
        /// The input without it.
        snapshot: String,
        /// An input that has it.
        reference: String,
        /// What to do, or empty.
        hint: &'static str,
    },
    /// Shapes that differ.
    #[error(
        "tensor `{tensor}` has shape {found:?} in `{snapshot}` but {expected:?} in `{reference}`"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// The input that differs.
        snapshot: String,
        /// Its shape.
        found: Vec<u64>,
        /// The first input.
        reference: String,
        /// The first input's shape.
        expected: Vec<u64>,
    },
    /// Element types that differ.
    #[error(
        "tensor `{tensor}` is {found} in `{snapshot}` but {expected} in `{reference}`; name the output type to average them (output_dtype)"
    )]
    Type {
        /// The tensor.
        tensor: String,
        /// The input that differs.
        snapshot: String,
        /// Its type.
        found: DType,
        /// The first input.
        reference: String,
        /// The first input's type.
        expected: DType,
    },
    /// Integers or bools that differ.
    #[error(
        "tensor `{tensor}` ({dtype}) cannot be averaged and differs between `{reference}` and `{snapshot}` at byte {byte}; add a rule for it (copy or skip)"
    )]
    Disagree {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: DType,
        /// The input that differs.
        snapshot: String,
        /// The first input.
        reference: String,
        /// The first differing byte inside the tensor.
        byte: u64,
    },
    /// Tied tensors that differ inside one input.
    #[error(
        "config.json of `{snapshot}` ties `{second}` to `{first}`, but their values differ there; add a rule for `{second}`"
    )]
    Untied {
        /// The input.
        snapshot: String,
        /// The embedding.
        first: String,
        /// The head.
        second: String,
    },
    /// Running statistics of a BatchNorm layer.
    #[error(
        "tensor `{tensor}` holds running statistics, whose mean is not the statistics of the merged model; add a rule for it (recalibrate, copy, or mean if you mean it)"
    )]
    RunningStatistics {
        /// The tensor.
        tensor: String,
    },
    /// Low-rank factors.
    #[error(
        "tensor `{tensor}` is a factor of a low-rank adapter: the mean of the factors is not the mean of their products; choose lora = products (or factors, if you mean it)"
    )]
    LowRank {
        /// The first such tensor.
        tensor: String,
    },
    /// An adapter that cannot be merged by its products.
    #[error("the adapters cannot be merged by their products: {what}")]
    Adapter {
        /// What stands in the way, with names.
        what: String,
    },
    /// The same snapshot more than once.
    #[error("`{snapshot}` is the same snapshot as `{reference}`; give it once, with a weight")]
    Twice {
        /// The later input.
        snapshot: String,
        /// The earlier one.
        reference: String,
    },
    /// Different architectures.
    #[error("`{key}` in config.json is {found} in `{snapshot}` but {expected} in `{reference}`")]
    Config {
        /// The key.
        key: String,
        /// The input that differs.
        snapshot: String,
        /// Its value.
        found: String,
        /// The first input.
        reference: String,
        /// The first input's value.
        expected: String,
    },
    /// Tokenizer files that differ.
    #[error(
        "`{file}` differs between `{reference}` and `{snapshot}`, so the same ids mean different tokens; say whose files to keep (side_files_from)"
    )]
    Tokenizer {
        /// The file.
        file: String,
        /// The input that differs.
        snapshot: String,
        /// The first input.
        reference: String,
    },
    /// A rule that matches no tensor.
    #[error("the rule `{pattern}` matches no tensor")]
    UnusedRule {
        /// The glob.
        pattern: String,
    },
}
