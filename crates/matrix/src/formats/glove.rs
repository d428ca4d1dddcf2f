//! GloVe's files: `cooccurrence.bin`, records of (int32 row, int32 column, float64 value) with ids
//! from 1, and `vocab.txt`, lines of `token count` in the order of the ids (Pennington, Socher &
//! Manning 2014; the layout of its tools `cooccur` and `vocab_count`, little-endian).

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::RowSink;
use crate::error::MatrixError;
use crate::staging::create;

/// Writes the two files.
#[derive(Debug)]
pub struct GloveSink {
    path: PathBuf,
    file: BufWriter<File>,
}

/// A term as GloVe and word2vec can read it back: blanks become `_`.
#[must_use]
pub fn glove_token(term: &str) -> Cow<'_, str> {
    if term.contains(char::is_whitespace) {
        Cow::Owned(
            term.split(char::is_whitespace)
                .collect::<Vec<_>>()
                .join("_"),
        )
    } else {
        Cow::Borrowed(term)
    }
}

impl GloveSink {
    /// Writes `vocab.txt` and starts `cooccurrence.bin`.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn create<'a>(
        folder: &Path,
        terms: impl Iterator<Item = (&'a str, u64)>,
    ) -> Result<Self, MatrixError> {
        let path = folder.join("vocab.txt");
        let mut vocab = create(folder, "vocab.txt")?;
        let write = || -> std::io::Result<()> {
            for (term, count) in terms {
                writeln!(vocab, "{} {count}", glove_token(term))?;
            }
            vocab.flush()
        };
        write().map_err(MatrixError::io("write", &path))?;
        Ok(Self {
            path: folder.join("cooccurrence.bin"),
            file: create(folder, "cooccurrence.bin")?,
        })
    }
}

impl RowSink for GloveSink {
    fn row(&mut self, row: u32, columns: &[u32], values: &[f64]) -> Result<(), MatrixError> {
        let id = |id: u32| {
            i32::try_from(id)
                .ok()
                .and_then(|id| id.checked_add(1))
                .ok_or_else(|| MatrixError::Setting(format!("id {id} is beyond GloVe's 2^31 - 2")))
        };
        let left = id(row)?;
        for (column, value) in columns.iter().zip(values) {
            let mut record = [0; 16];
            record[..4].copy_from_slice(&left.to_le_bytes());
            record[4..8].copy_from_slice(&id(*column)?.to_le_bytes());
            record[8..].copy_from_slice(&value.to_le_bytes());
            self.file
                .write_all(&record)
                .map_err(MatrixError::io("write", &self.path))?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), MatrixError> {
        self.file
            .flush()
            .map_err(MatrixError::io("write", &self.path))
    }
}
