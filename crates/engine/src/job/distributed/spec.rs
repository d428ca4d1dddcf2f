//! What a unit is told, and what it leaves.

use std::ops::Range;
use std::path::PathBuf;

use pmill_store::DataFile;
use serde::{Deserialize, Serialize};

use super::attempts::chain;
use super::folder::PlanFolder;
use super::plan::PlanUnit;
use crate::counting::RunFile;
use crate::error::{EngineError, FileFault, Kind};
use crate::job::Facts;
use crate::job::base::Subsample;
use crate::read::FileTally;
use crate::tokens::StoredTokens;

/// One unit to run: data that is sent to whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitSpec {
    /// Version of this message, [`super::PROTOCOL`].
    pub protocol: u32,
    /// The plan's folder.
    pub folder: PathBuf,
    /// The driver's epoch; a newer one ends the unit. 0: nobody drives (shards).
    pub epoch: u64,
    /// Seconds from the start after which the unit gives up.
    pub limit_seconds: u64,
    /// Attempts that may die with their process before the unit is refused.
    pub most_attempts: u32,
    /// What to do.
    pub work: Work,
}

/// The kinds of units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Average slices of snapshots (see [`super::AverageDrive`]).
    Average {
        /// The unit's number.
        number: usize,
        /// Slices of the plan, or groups of slices of an output in a store.
        range: Range<usize>,
    },
    /// Read a slice of the input, collect its terms, keep its token ids.
    Terms {
        /// The slice.
        unit: PlanUnit,
        /// Files of the plan to leave out: they were found bad.
        leave_out: Vec<usize>,
    },
    /// Sum the terms of some units, so that the vocabulary has few lists to read.
    Fold {
        /// The group's number.
        number: usize,
        /// Which round of summing this is, from 0.
        round: usize,
        /// Manifests of terms, or of the round before.
        parts: Vec<String>,
    },
    /// Count the kept token ids into runs.
    Count {
        /// The unit's number.
        number: usize,
        /// Its manifest of terms.
        terms: String,
    },
    /// Sum the runs of some units, so that a range has few to open.
    Combine {
        /// The group's number.
        number: usize,
        /// Manifests of counts.
        parts: Vec<String>,
    },
    /// Sum all runs of a range of left ids into one table file.
    Reduce {
        /// The range's number.
        number: usize,
        /// The left ids.
        range: Range<u32>,
    },
    /// Sum a file of `pairs` by rows and columns, for marginals.
    Sum {
        /// The file's number.
        number: usize,
    },
    /// Score a file of `pairs`.
    Score {
        /// The file's number.
        number: usize,
    },
    /// Annotate an input file.
    Annotate {
        /// The file's number.
        number: usize,
    },
    /// Bring a part of a table to the ids of another vocabulary.
    Remap {
        /// The part's number.
        number: usize,
    },
    /// Sum a range of left ids of several tables.
    Merge {
        /// The range's number.
        number: usize,
    },
    /// Sum a part of a table by rows and columns, and write its pairs with their sides changed (see
    /// [`super::MatrixDrive`]).
    Turn {
        /// The part's number.
        number: usize,
    },
    /// Compute the values of a range of rows of a matrix.
    Rows {
        /// The range's number.
        number: usize,
    },
    /// Run a partition of a part of a query's plan (see [`super::QueryDrive`]).
    Query {
        /// The part's number.
        fragment: usize,
        /// The partition.
        partition: usize,
    },
}

impl Work {
    /// The name of its manifest, which is also what it is called in messages.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            // Cut otherwise it is another unit.
            Self::Average { range, .. } => format!("average-{}-{}", range.start, range.end),
            Self::Terms { unit, leave_out } => terms_name(unit.number, leave_out),
            Self::Fold {
                number,
                round,
                parts,
            } => {
                // With other files left out it is another sum.
                let digest = blake3::hash(parts.join(" ").as_bytes()).to_hex();
                format!("fold-{round}-{number:05}-{}", &digest[..12])
            }
            Self::Count { number, .. } => format!("count-{number:05}"),
            // The units are those of the plan, so the number tells which they are.
            Self::Combine { number, .. } => format!("combine-{number:05}"),
            Self::Reduce { number, .. } => format!("range-{number:05}"),
            Self::Sum { number } => format!("sum-{number:05}"),
            Self::Score { number } => format!("score-{number:05}"),
            Self::Annotate { number } => format!("annotate-{number:05}"),
            Self::Remap { number } => format!("remap-{number:05}"),
            Self::Merge { number } => format!("merge-{number:05}"),
            Self::Turn { number } => format!("turn-{number:05}"),
            Self::Rows { number } => format!("rows-{number:05}"),
            Self::Query {
                fragment,
                partition,
            } => format!("query-{fragment}-{partition:05}"),
        }
    }

    /// The number of its unit or range.
    #[must_use]
    pub fn number(&self) -> usize {
        match self {
            Self::Average { number, .. } => *number,
            Self::Terms { unit, .. } => unit.number,
            Self::Fold { number, .. }
            | Self::Count { number, .. }
            | Self::Combine { number, .. }
            | Self::Reduce { number, .. }
            | Self::Sum { number }
            | Self::Score { number }
            | Self::Annotate { number }
            | Self::Remap { number }
            | Self::Merge { number }
            | Self::Turn { number }
            | Self::Rows { number } => *number,
            Self::Query { partition, .. } => *partition,
        }
    }

    /// The files that it reads, for messages.
    #[must_use]
    pub fn inputs(&self) -> Vec<String> {
        match self {
            Self::Average { .. } => Vec::new(),
            Self::Terms { unit, .. } => unit.files.iter().map(|f| f.input.display()).collect(),
            _ => Vec::new(),
        }
    }
}

/// Names the terms of a unit without some of its files: with other files left out it is another
/// manifest.
pub(super) fn terms_name(number: usize, leave_out: &[usize]) -> String {
    if leave_out.is_empty() {
        return format!("terms-{number:05}");
    }
    let bytes: Vec<u8> = leave_out.iter().flat_map(|i| i.to_le_bytes()).collect();
    format!(
        "terms-{number:05}-without-{}",
        &blake3::hash(&bytes).to_hex()[..12]
    )
}

/// What reading a unit left.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct TermsDone {
    /// By file of the plan.
    pub(super) files: Vec<(usize, FileTally)>,
    /// Sorted terms: file names and numbers of terms.
    pub(super) dictionaries: Vec<(String, u64)>,
    /// The token ids, local to the dictionaries.
    pub(super) tokens: Option<(String, StoredTokens)>,
    /// Files that turned out bad, with the reason. Then nothing else is here.
    pub(super) bad: Vec<(usize, String)>,
}

/// Sums of terms: of one unit, or of many.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct FoldDone {
    pub(super) added: FileTally,
    /// Sorted terms: file names and numbers of terms.
    pub(super) dictionaries: Vec<(String, u64)>,
}

impl FoldDone {
    /// Reads the manifest of a unit's terms, or of a sum.
    pub(super) fn read(folder: &PlanFolder, name: &str) -> Result<Self, EngineError> {
        if name.starts_with("fold-") {
            return folder.need(name);
        }
        let done: TermsDone = folder.need(name)?;
        let mut added = FileTally::default();
        for (_, tally) in &done.files {
            added.rows += tally.rows;
            added.tokens += tally.tokens;
        }
        Ok(Self {
            added,
            dictionaries: done.dictionaries,
        })
    }
}

/// What counting a unit left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CountDone {
    pub(super) runs: Vec<RunFile>,
    pub(super) dropped_features: u64,
}

/// All runs of all units, so that a range reads one list and not every unit's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct RunsList {
    /// Runs that are added.
    pub(super) runs: Vec<RunFile>,
    /// Runs that are taken away.
    pub(super) taken: Vec<RunFile>,
    /// Features dropped in what is added, and in what is taken.
    pub(super) dropped_features: [u64; 2],
}

/// The vocabulary, and what follows from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct VocabularyDone {
    /// File of terms in the order of their ids.
    pub(super) file: String,
    pub(super) terms: u64,
    /// Rows and tokens that the units add.
    pub(super) added: FileTally,
    /// Rows and tokens that the units take.
    pub(super) taken: FileTally,
    /// Tokens of them that are in the vocabulary.
    pub(super) inside: u64,
    /// The job's rows, tokens and types with them; its pairs are not counted yet.
    pub(super) facts: Facts,
    /// The file of `outside`, among the plan's tables.
    pub(super) outside: Option<DataFile>,
    /// What subsampling is decided by.
    pub(super) subsample: Option<Subsample>,
    /// Files left out, with the reason.
    pub(super) bad: Vec<(usize, String)>,
    /// Left ids of each table file.
    pub(super) ranges: Vec<Range<u32>>,
}

/// The manifest of the vocabulary.
pub(super) const VOCABULARY: &str = "vocabulary";
/// The manifest of all runs.
pub(super) const RUNS: &str = "runs";

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The unit.
    pub unit: String,
    /// The error and its causes.
    pub message: String,
    /// Whether another attempt may do better.
    pub again: bool,
    /// Whether it is for the user to fix.
    pub user: bool,
    /// Files that the unit reads.
    pub inputs: Vec<String>,
    /// The epoch of the driver that it ran for.
    pub epoch: u64,
    /// Process that ran it.
    pub process: u32,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

/// Whether another attempt, perhaps elsewhere, may do better: what comes from disks, networks and
/// stores may pass; what is wrong with settings and content does not.
#[must_use]
pub fn may_pass(error: &EngineError) -> bool {
    match error {
        EngineError::BadFile { fault, .. } => match fault {
            FileFault::Changed { found, .. } => found == "no file",
            FileFault::RowGroup { reason, .. } | FileFault::Footer(reason) => {
                reason.contains("(os error")
            }
            _ => false,
        },
        EngineError::Io { .. } | EngineError::Store(_) | EngineError::Bug(_) => true,
        // What comes from the system comes in many wrappings: a full disk through DataFusion.
        other => other.kind() != Kind::User || chain(other).contains("(os error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_without_other_files_have_other_names() {
        let names = [
            terms_name(7, &[]),
            terms_name(7, &[1]),
            terms_name(7, &[1, 2]),
            terms_name(8, &[1]),
        ];
        assert_eq!(names[0], "terms-00007");
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{name}");
        }
    }

    #[test]
    fn a_store_that_is_away_may_pass_and_a_bad_file_does_not() {
        let bad = |fault| EngineError::BadFile {
            file: "a".into(),
            fault,
        };
        let row_group = |reason: &str| FileFault::RowGroup {
            row_group: 0,
            reason: reason.into(),
        };
        assert!(may_pass(&bad(row_group("Input/output error (os error 5)"))));
        assert!(!may_pass(&bad(row_group("corrupt page"))));
        assert!(may_pass(&EngineError::NotNow("away".into())));
        assert!(!may_pass(&EngineError::Setting("wrong".into())));
        assert!(may_pass(&EngineError::Query(
            "IO error: No space left on device (os error 28)".into()
        )));
    }
}
