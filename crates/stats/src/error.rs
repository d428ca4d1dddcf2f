//! What can go wrong here: only settings. Bad counts are not errors, they give NULL (see [`crate::cells`]).

/// Who can do something about an error (STYLE 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller named a wrong measure, parameter or value.
    User,
    /// A promise inside the program was broken.
    Bug,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StatsError {
    /// A parameter of a function has a value outside its range.
    #[error("{function}: parameter `{parameter}` is {found}, expected {expected}")]
    Parameter {
        /// The SQL name of the function.
        function: String,
        /// The parameter's name as in the reference page.
        parameter: String,
        /// The value that was given.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A parameter that has no default was not given.
    #[error("{function}: parameter `{parameter}` is missing ({help})")]
    MissingParameter {
        /// The SQL name of the function.
        function: String,
        /// The parameter's name.
        parameter: String,
        /// What the parameter means.
        help: String,
    },
    /// A function has no parameter of this name.
    #[error("{function} has no parameter `{parameter}`, it has: {known}")]
    UnknownParameter {
        /// The SQL name of the function.
        function: String,
        /// The name that was given.
        parameter: String,
        /// The names that exist, joined by commas.
        known: String,
    },
    /// The state of an aggregate from another process cannot be read.
    #[error("{function}: state of the aggregate is damaged: {reason}")]
    State {
        /// The SQL name of the function.
        function: String,
        /// Which part of the state is wrong.
        reason: String,
    },
    /// A sum of counts left the range of 64 bits.
    #[error("{function}: the sum of counts passes 2^64")]
    Overflow {
        /// The SQL name of the function.
        function: String,
    },
}

impl StatsError {
    /// Who can do something about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StatsError::State { .. } => ErrorKind::Bug,
            _ => ErrorKind::User,
        }
    }
}

impl From<StatsError> for datafusion_common::DataFusionError {
    fn from(error: StatsError) -> Self {
        datafusion_common::DataFusionError::External(Box::new(error))
    }
}
