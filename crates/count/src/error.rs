//! The errors of this crate, and whether trying again helps.

/// What a caller can do about an error; one table elsewhere turns it into exit and status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The user can fix it: a setting, an input, a damaged file.
    User,
    /// Trying again may help: a store or disk was away.
    NotNow,
    /// A promise inside the program was broken.
    Bug,
}

/// Everything that can go wrong while counting, writing runs and merging them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CountError {
    /// The window size is outside what can be counted.
    #[error("window size {size} is outside 1..={largest}")]
    WindowSize {
        /// The size that was asked for, in tokens.
        size: u32,
        /// The largest size this weight allows.
        largest: u32,
    },
    /// `lcm(1..=size)` is so large that sums of it would leave 64 bits.
    #[error(
        "harmonic weights of window size {size} need a unit too large for 64-bit sums, \
         use size {largest} at most, or the weight `uniform` or `dynamic`"
    )]
    WeightUnit {
        /// The size that was asked for, in tokens.
        size: u32,
        /// The largest size with harmonic weights.
        largest: u32,
    },
    /// The vocabulary is empty of ids or has more than the kernel can address.
    #[error("vocabulary size {size} is above the limit of {largest}")]
    VocabularySize {
        /// The size that was asked for.
        size: u32,
        /// The largest size.
        largest: u32,
    },
    /// A token id that is neither in the vocabulary nor [`OUT_OF_VOCABULARY`](crate::OUT_OF_VOCABULARY).
    #[error("token id {id} is outside the vocabulary of {vocabulary_size}")]
    IdOutOfRange {
        /// The id.
        id: u32,
        /// The number of ids in the vocabulary.
        vocabulary_size: u32,
    },
    /// The block cannot take the row: its positions would no longer fit 32 bits.
    #[error("a block of {slots} token slots has no room for a row of {row_tokens} tokens")]
    BlockFull {
        /// Slots in the block before the row.
        slots: usize,
        /// Tokens of the row.
        row_tokens: usize,
    },
    /// Row ends that are not rising or leave the ids they point into.
    #[error("row end {row_end} at index {index} is out of order or beyond the {ids} ids")]
    RowEnds {
        /// Index of the row.
        index: usize,
        /// Its end, exclusive.
        row_end: usize,
        /// The number of ids.
        ids: usize,
    },
    /// A call that does not fit the context of the settings.
    #[error("`{call}` does not fit the context `{context}`")]
    WrongContext {
        /// The function called.
        call: &'static str,
        /// The context in use.
        context: &'static str,
    },
    /// A range of left ids that leaves the vocabulary or ends before it starts.
    #[error("left id range {start}..{end} does not lie within the vocabulary of {vocabulary_size}")]
    LeftRange {
        /// First left id.
        start: u32,
        /// End, exclusive.
        end: u32,
        /// The number of ids in the vocabulary.
        vocabulary_size: u32,
    },
    /// An accumulator made for other settings than the block or run it is used with.
    #[error("the accumulator is for a vocabulary of {accumulator}, the data for one of {data}")]
    AccumulatorSize {
        /// Vocabulary size of the accumulator.
        accumulator: u32,
        /// Vocabulary size of the data.
        data: u32,
    },
    /// A pair count left 64 bits.
    #[error("the count of the pair ({left}, {right}) does not fit 64 bits")]
    SumOverflow {
        /// Left id.
        left: u32,
        /// Right id.
        right: u32,
    },
    /// More was subtracted from a pair than it holds.
    #[error("the pair ({left}, {right}) has count {count}, cannot subtract {subtract}")]
    NegativeCount {
        /// Left id.
        left: u32,
        /// Right id.
        right: u32,
        /// What the pair holds.
        count: u64,
        /// What was to be taken away.
        subtract: u64,
    },
    /// A run file is damaged, cut short, or not a run file.
    #[error("run `{run}` is damaged at byte {offset}: {reason}")]
    RunCorrupt {
        /// Name of the run, as given by the caller.
        run: String,
        /// Where in the file.
        offset: u64,
        /// What was expected.
        reason: &'static str,
    },
    /// A run file of a version this program does not know.
    #[error("run `{run}` has format version {found}, this program reads version {supported}")]
    RunVersion {
        /// Name of the run.
        run: String,
        /// Version in the file.
        found: u16,
        /// Version this program knows.
        supported: u16,
    },
    /// Reading a run failed.
    #[error("cannot read run `{run}`")]
    RunRead {
        /// Name of the run.
        run: String,
        /// Why.
        source: std::io::Error,
    },
    /// Writing a run failed.
    #[error("cannot write run")]
    RunWrite {
        /// Why.
        source: std::io::Error,
    },
    /// A row handed to a writer out of order, unsorted, with a zero count or an id out of range.
    #[error("row {left} cannot be written: {reason}")]
    RowOrder {
        /// Left id of the row.
        left: u32,
        /// The broken condition.
        reason: &'static str,
    },
    /// The caller's sink refused a row.
    #[error("the sink refused row {left}")]
    Sink {
        /// Left id of the row.
        left: u32,
        /// The sink's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A source of rows that is not a run could not be read.
    #[error("cannot read rows from {left} on")]
    Source {
        /// Left id at or after which it failed.
        left: u32,
        /// The source's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A size of the sketch is outside what can be made.
    #[error("{found} {what} of the sketch are outside {least} to {most}")]
    TailSize {
        /// What has that size.
        what: &'static str,
        /// What was asked for.
        found: u32,
        /// The least.
        least: u32,
        /// The most.
        most: u32,
    },
    /// The counts in the sketch add up to more than the tables can store.
    #[error("the counts of the sketched pairs add up to more than 63 bits hold")]
    TailOverflow,
    /// More was subtracted from the sketched pairs of a term than they hold.
    #[error("the sketched pairs of {id} have count {count}, cannot subtract {subtract}")]
    NegativeTail {
        /// The id.
        id: u32,
        /// What its pairs hold.
        count: u64,
        /// What was to be taken away.
        subtract: u64,
    },
    /// More was subtracted from a cell of the sketch than it holds.
    #[error(
        "cell {bucket} of hash row {hash} of the sketch has {count}, cannot subtract {subtract}"
    )]
    NegativeCell {
        /// Hash row.
        hash: u8,
        /// Cell.
        bucket: u32,
        /// What it holds.
        count: u64,
        /// What was to be taken away.
        subtract: u64,
    },
    /// A stored sketch is not one, or one of other settings.
    #[error("the sketch is damaged: {reason}")]
    TailDamaged {
        /// What is wrong.
        reason: String,
    },
    /// A counting thread panicked.
    #[error("a counting thread panicked")]
    Panicked,
}

impl CountError {
    /// Whether the user can fix it, trying again helps, or it is a bug.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::WindowSize { .. }
            | Self::WeightUnit { .. }
            | Self::VocabularySize { .. }
            | Self::SumOverflow { .. }
            | Self::NegativeCount { .. }
            | Self::RunCorrupt { .. }
            | Self::RunVersion { .. }
            | Self::TailSize { .. }
            | Self::TailOverflow
            | Self::NegativeTail { .. }
            | Self::NegativeCell { .. }
            | Self::TailDamaged { .. } => ErrorKind::User,
            Self::RunRead { .. }
            | Self::RunWrite { .. }
            | Self::Sink { .. }
            | Self::Source { .. } => ErrorKind::NotNow,
            Self::IdOutOfRange { .. }
            | Self::BlockFull { .. }
            | Self::RowEnds { .. }
            | Self::WrongContext { .. }
            | Self::LeftRange { .. }
            | Self::AccumulatorSize { .. }
            | Self::RowOrder { .. }
            | Self::Panicked => ErrorKind::Bug,
        }
    }
}

/// Results of this crate.
pub type Result<T, E = CountError> = std::result::Result<T, E>;
