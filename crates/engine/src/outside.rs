//! Terms outside the vocabulary: what was met in the text and has no id, with its counts.
//!
//! In: sorted streams of terms. Out: one file of `outside`, sorted. Held: one batch and one row group.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringBuilder};
use arrow::record_batch::RecordBatch;
use pmill_store::{DataFile, TableWriter, schema};

use crate::error::EngineError;
use crate::tables::TableFolder;

const BATCH_TERMS: usize = 1 << 16;

/// Writes one file of `outside`.
pub struct OutsideFile {
    writer: TableWriter,
    terms: StringBuilder,
    tokens: Vec<i64>,
    documents: Vec<i64>,
    /// Terms written.
    pub written: u64,
    /// Their tokens.
    pub written_tokens: u64,
}

impl OutsideFile {
    /// Starts the file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(folder: &TableFolder<'_>, name: &str) -> Result<Self, EngineError> {
        Ok(Self {
            writer: folder.create(name, &schema::OUTSIDE, &["token"])?,
            terms: StringBuilder::new(),
            tokens: Vec::new(),
            documents: Vec::new(),
            written: 0,
            written_tokens: 0,
        })
    }

    /// Appends a term; they come in the order of their bytes.
    ///
    /// # Errors
    /// A full disk; a count beyond 2⁶³ − 1.
    pub fn push(&mut self, term: &str, tokens: u64, documents: u64) -> Result<(), EngineError> {
        let stored = |value: u64| {
            i64::try_from(value).map_err(|_| {
                EngineError::Setting(format!("{value} is beyond what a table can store (2^63)"))
            })
        };
        self.tokens.push(stored(tokens)?);
        self.documents.push(stored(documents)?);
        self.terms.append_value(term);
        self.written += 1;
        self.written_tokens = self.written_tokens.saturating_add(tokens);
        if self.tokens.len() >= BATCH_TERMS {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), EngineError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.terms.finish()),
            Arc::new(Int64Array::from(std::mem::take(&mut self.tokens))),
            Arc::new(Int64Array::from(std::mem::take(&mut self.documents))),
        ];
        let batch = RecordBatch::try_new(schema::OUTSIDE.clone(), columns)
            .map_err(|error| EngineError::Bug(error.to_string()))?;
        Ok(self.writer.write(&batch)?)
    }

    /// Closes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<DataFile, EngineError> {
        self.flush()?;
        Ok(self.writer.finish()?)
    }
}
