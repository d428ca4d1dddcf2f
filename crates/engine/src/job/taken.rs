//! What is taken out of a job: whole files, or rows of them.

use serde::{Deserialize, Serialize};

use super::base::Base;
use crate::error::EngineError;
use crate::input::InputFile;
use crate::read::FileTally;
use crate::row_set::RowSet;
use crate::sources::{SourceRow, SourceStatus};

/// A file, or some of its rows, to be counted and taken away.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// Where the bytes are that were counted.
    pub(crate) at: InputFile,
    /// The file's row of `sources`.
    pub(crate) source: SourceRow,
    /// The rows to take; `None`: all of the file.
    pub(crate) rows: Option<RowSet>,
    /// Whether the file leaves the job with them.
    pub(crate) whole: bool,
}

impl Taken {
    /// All that is left of a file.
    pub(crate) fn whole(base: &Base, row: &SourceRow, at: InputFile) -> Result<Self, EngineError> {
        if at.size != row.size {
            return Err(EngineError::Setting(format!(
                "`{}` has {} bytes, and `{}` had {} when it was counted: it is not the content that was counted",
                at.display(),
                at.size,
                row.display(),
                row.size
            )));
        }
        let gone = gone(base, &row.uri);
        Ok(Self {
            at,
            source: row.clone(),
            // The number of rows is not known before the file is open.
            rows: (!gone.is_empty()).then(|| RowSet::all(u64::MAX).minus(&gone)),
            whole: true,
        })
    }

    /// Some rows of a file.
    pub(crate) fn rows(row: &SourceRow, at: InputFile, rows: RowSet) -> Self {
        Self {
            at,
            source: row.clone(),
            rows: Some(rows),
            whole: false,
        }
    }

    /// What is taken out of a whole file must be what was counted.
    pub(crate) fn check(&self, tally: FileTally) -> Result<(), EngineError> {
        let counted = FileTally {
            rows: self.source.rows,
            tokens: self.source.tokens,
        };
        let wrong = if self.whole {
            tally != counted
        } else {
            tally.rows > counted.rows || tally.tokens > counted.tokens
        };
        if wrong {
            return Err(EngineError::Setting(format!(
                "`{}` is not the content that was counted as `{}`: {} rows and {} tokens would be taken out, {} and {} were counted; nothing was changed",
                self.at.display(),
                self.source.display(),
                tally.rows,
                tally.tokens,
                counted.rows,
                counted.tokens
            )));
        }
        Ok(())
    }

    /// Changes the rows of `sources` as this goes out.
    pub(crate) fn record(&self, rows: &mut Vec<SourceRow>, tally: FileTally, batch: &str) {
        let uri = &self.source.uri;
        if self.whole {
            // What was taken out of it before is told by this row, too.
            rows.retain(|row| row.uri != *uri);
            rows.push(SourceRow {
                batch: batch.to_owned(),
                status: SourceStatus::Retracted,
                message: None,
                ..self.source.clone()
            });
            return;
        }
        for row in rows.iter_mut() {
            if row.uri == *uri && row.status == SourceStatus::Counted {
                row.rows = row.rows.saturating_sub(tally.rows);
                row.tokens = row.tokens.saturating_sub(tally.tokens);
            }
        }
        rows.push(SourceRow {
            rows: tally.rows,
            tokens: tally.tokens,
            batch: batch.to_owned(),
            status: SourceStatus::Retracted,
            message: self.rows.as_ref().map(ToString::to_string),
            ..self.source.clone()
        });
    }

    /// What names it in a plan.
    pub(crate) fn identity(&self) -> impl Serialize + use<> {
        let rows = self.rows.as_ref().map(ToString::to_string);
        (self.at.clone(), self.source.uri.clone(), rows, self.whole)
    }
}

/// The rows of a counted file that were taken out before.
pub(crate) fn gone(base: &Base, uri: &str) -> RowSet {
    let mut gone = RowSet::default();
    for row in base.sources.iter().filter(|row| row.uri == uri) {
        if let Some(rows) = row.retracted_rows() {
            gone = gone.union(&rows);
        }
    }
    gone
}
