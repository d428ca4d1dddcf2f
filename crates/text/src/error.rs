//! What can go wrong between text and features.

use std::path::PathBuf;

/// Who can do something about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The user can fix it: a setting, a resource file.
    User,
    /// A broken promise inside pmill.
    Bug,
}

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A resource file cannot be read.
    #[error("cannot read the {what} at `{path}`")]
    Read {
        /// What the file is for, for example `stop words`.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// Why it could not be read.
        source: std::io::Error,
    },
    /// A resource file does not hold UTF-8.
    #[error("the {what} at `{path}` are not UTF-8: first bad byte at offset {offset}")]
    NotUtf8 {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Bytes before the first bad one.
        offset: usize,
    },
    /// A line of a resource file is not as expected.
    #[error("the {what} at `{path}`, line {line}: expected {expected}")]
    BadLine {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What the line should have held.
        expected: String,
    },
    /// A setting's value is not known.
    #[error("unknown {setting} `{value}`, expected {expected}")]
    UnknownValue {
        /// The setting's name.
        setting: &'static str,
        /// What was given.
        value: String,
        /// The values that exist.
        expected: &'static str,
    },
    /// Two settings cannot be used together.
    #[error("settings `{first}` and `{second}` cannot be used together: {reason}")]
    Conflict {
        /// One setting.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// The program was built without the Hugging Face tokenizers.
    #[error(
        "tokenizer `huggingface:{}` needs a build with the cargo feature `huggingface` (the released binary has it; from source: cargo build --features huggingface)",
        path.display()
    )]
    HuggingFaceNotBuilt {
        /// The tokenizer file that was asked for.
        path: PathBuf,
    },
    /// A Hugging Face tokenizer file is broken, or the tokenizer refuses a text.
    #[error("hugging face tokenizer `{path}`: {message}")]
    HuggingFace {
        /// The tokenizer file.
        path: PathBuf,
        /// What the tokenizer says.
        message: String,
    },
    /// More distinct terms than 32-bit ids can name.
    #[error(
        "more than {limit} distinct terms; give a vocabulary, a minimum count or a smaller unit of work"
    )]
    TooManyTerms {
        /// The largest number of terms.
        limit: u32,
    },
    /// A stream of terms that should be sorted by bytes is not.
    #[error("term stream {stream} is not sorted: `{term}` comes after `{before}`")]
    Unsorted {
        /// Which stream, from 0.
        stream: usize,
        /// The term before.
        before: String,
        /// The term that should have come first.
        term: String,
    },
    /// A stored vocabulary holds a term twice.
    #[error("the stored vocabulary holds the term `{term}` twice")]
    TermTwice {
        /// The term.
        term: String,
    },
    /// A sum of counts passes 2^64 - 1.
    #[error("the count of term `{term}` does not fit 64 bits")]
    CountOverflow {
        /// The term.
        term: String,
    },
}

impl TextError {
    /// Who can do something about this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { .. }
            | Self::NotUtf8 { .. }
            | Self::BadLine { .. }
            | Self::UnknownValue { .. }
            | Self::Conflict { .. }
            | Self::HuggingFaceNotBuilt { .. }
            | Self::HuggingFace { .. }
            | Self::TooManyTerms { .. } => ErrorKind::User,
            Self::Unsorted { .. } | Self::TermTwice { .. } | Self::CountOverflow { .. } => {
                ErrorKind::Bug
            }
        }
    }
}
