//! Text: Matrix Market (coordinate, real, general) and CSV with terms.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{RowSink, Shape};
use crate::error::MatrixError;
use crate::staging::create;

/// Writes `matrix.mtx` (Boisvert, Pozo & Remington 1996): ids from 1, values as the shortest text
/// that reads back as the same number.
#[derive(Debug)]
pub struct MatrixMarketSink {
    path: PathBuf,
    file: BufWriter<File>,
    sizes_at: u64,
    entries: u64,
}

impl MatrixMarketSink {
    /// Starts the file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(folder: &Path, shape: Shape, comment: &str) -> Result<Self, MatrixError> {
        let path = folder.join("matrix.mtx");
        let mut file = create(folder, "matrix.mtx")?;
        let head = format!(
            "%%MatrixMarket matrix coordinate real general\n% {}\n{} {} ",
            comment.replace('\n', " "),
            shape.rows,
            shape.columns
        );
        // The number of entries is filled in at the end.
        writeln!(file, "{head}{:>20}", "").map_err(MatrixError::io("write", &path))?;
        Ok(Self {
            path,
            file,
            sizes_at: head.len() as u64,
            entries: 0,
        })
    }
}

impl RowSink for MatrixMarketSink {
    fn row(&mut self, row: u32, columns: &[u32], values: &[f64]) -> Result<(), MatrixError> {
        for (column, value) in columns.iter().zip(values) {
            writeln!(
                self.file,
                "{} {} {value}",
                u64::from(row) + 1,
                u64::from(*column) + 1
            )
            .map_err(MatrixError::io("write", &self.path))?;
        }
        self.entries += columns.len() as u64;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), MatrixError> {
        let mut write = || -> std::io::Result<()> {
            self.file.seek(SeekFrom::Start(self.sizes_at))?;
            write!(self.file, "{:>20}", self.entries)?;
            self.file.flush()
        };
        write().map_err(MatrixError::io("write", &self.path))
    }
}

/// Writes `pairs.csv`: `left_id,right_id,left,right,value`, with a header.
#[derive(Debug)]
pub struct CsvSink {
    path: PathBuf,
    file: BufWriter<File>,
    /// By id, quoted where needed.
    terms: Vec<String>,
}

impl CsvSink {
    /// Starts the file; `terms` are held in memory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create<'a>(
        folder: &Path,
        terms: impl Iterator<Item = &'a str>,
    ) -> Result<Self, MatrixError> {
        let path = folder.join("pairs.csv");
        let mut file = create(folder, "pairs.csv")?;
        writeln!(file, "left_id,right_id,left,right,value")
            .map_err(MatrixError::io("write", &path))?;
        Ok(Self {
            path,
            file,
            terms: terms.map(quoted).collect(),
        })
    }
}

/// RFC 4180: quotes around what holds a comma, a quote or a line end; quotes doubled.
fn quoted(term: &str) -> String {
    if term.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", term.replace('"', "\"\""))
    } else {
        term.to_owned()
    }
}

/// A term in a line of tab-separated text: tab, line ends and backslash are written `\t`, `\n`,
/// `\r`, `\\`.
#[must_use]
pub fn escape_tab(term: &str) -> Cow<'_, str> {
    if !term.contains(['\t', '\n', '\r', '\\']) {
        return Cow::Borrowed(term);
    }
    let text = term.replace('\\', "\\\\").replace('\t', "\\t");
    Cow::Owned(text.replace('\n', "\\n").replace('\r', "\\r"))
}

impl RowSink for CsvSink {
    fn row(&mut self, row: u32, columns: &[u32], values: &[f64]) -> Result<(), MatrixError> {
        let term = |id: u32| {
            self.terms
                .get(id as usize)
                .ok_or_else(|| MatrixError::Bug(format!("id {id} has no term")))
        };
        let left = term(row)?;
        for (column, value) in columns.iter().zip(values) {
            let right = term(*column)?;
            writeln!(self.file, "{row},{column},{left},{right},{value}")
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
