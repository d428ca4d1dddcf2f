//! Sparse rows as the files that others read. Memory: the buffers of the open files, and eight
//! bytes a row for CSR.

mod csr;
mod glove;
mod text;

use std::path::Path;

pub use csr::{CsrSink, Precision};
pub use glove::{GloveSink, glove_token};
pub use text::{CsvSink, MatrixMarketSink, escape_tab};

use crate::error::MatrixError;

/// What a matrix is, as far as it is known before its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub columns: u64,
    /// At most this many entries.
    pub most_entries: u64,
}

/// Takes the rows of a matrix in rising order; rows without entries may be left out.
pub trait RowSink {
    /// One row: columns in rising order, and their values.
    ///
    /// # Errors
    /// When it cannot be written.
    fn row(&mut self, row: u32, columns: &[u32], values: &[f64]) -> Result<(), MatrixError>;

    /// Closes the files.
    ///
    /// # Errors
    /// When they cannot be written.
    fn finish(self: Box<Self>) -> Result<(), MatrixError>;
}

/// Writes `vocab.tsv`: id, term, count and documents of each row of the matrix.
///
/// # Errors
/// When it cannot be written.
pub fn write_vocabulary<'a>(
    folder: &Path,
    terms: impl Iterator<Item = (&'a str, u64, u64)>,
) -> Result<(), MatrixError> {
    use std::io::Write;
    let path = folder.join("vocab.tsv");
    let mut file = crate::staging::create(folder, "vocab.tsv")?;
    let write = || -> std::io::Result<()> {
        writeln!(file, "id\tterm\tcount\tdocuments")?;
        for (id, (term, count, documents)) in terms.enumerate() {
            writeln!(file, "{id}\t{}\t{count}\t{documents}", escape_tab(term))?;
        }
        file.flush()
    };
    write().map_err(MatrixError::io("write", &path))
}

#[cfg(test)]
mod tests;
