//! Compressed sparse rows: `indptr.npy`, `indices.npy`, `data.npy` for a memory map, or the same in
//! one `.npz` as `scipy.sparse.load_npz` reads it.
//!
//! The headers of the arrays hold their length, which is known at the end: they are written last.
//! An archive is stored, not compressed, and is zip64 throughout, so it has no limit of 4 GiB.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{RowSink, Shape};
use crate::error::MatrixError;
use crate::npy;
use crate::staging::create;

/// How values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits: each value rounded once.
    Single,
    /// 64 bits.
    Double,
}

/// Writes the three arrays, and at the end the archive if one is wanted.
#[derive(Debug)]
pub struct CsrSink {
    folder: PathBuf,
    shape: Shape,
    precision: Precision,
    archive: Option<String>,
    indices: BufWriter<File>,
    data: BufWriter<File>,
    /// Entries before each row, as far as rows have come.
    row_starts: Vec<u64>,
    entries: u64,
    wide: bool,
}

const ARRAYS: [&str; 3] = ["indptr.npy", "indices.npy", "data.npy"];

impl CsrSink {
    /// Starts the arrays; with `archive`, they end in that `.npz` instead of beside each other.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub fn create(
        folder: &Path,
        shape: Shape,
        precision: Precision,
        archive: Option<&str>,
    ) -> Result<Self, MatrixError> {
        let start = |name: &str| {
            let mut file = create(folder, name)?;
            file.write_all(&[0; npy::HEADER_BYTES])
                .map_err(MatrixError::io("write", &folder.join(name)))?;
            Ok(file)
        };
        Ok(Self {
            folder: folder.to_owned(),
            shape,
            precision,
            archive: archive.map(str::to_owned),
            indices: start("indices.npy")?,
            data: start("data.npy")?,
            row_starts: vec![0],
            entries: 0,
            // SciPy wants both index arrays of one type.
            wide: shape.most_entries.max(shape.columns) > i32::MAX as u64,
        })
    }

    fn index_type(&self) -> &'static str {
        if self.wide { "<i8" } else { "<i4" }
    }

    fn value_type(&self) -> &'static str {
        match self.precision {
            Precision::Single => "<f4",
            Precision::Double => "<f8",
        }
    }

    fn put_index(file: &mut impl Write, wide: bool, value: u64) -> std::io::Result<()> {
        if wide {
            file.write_all(&value.to_le_bytes())
        } else {
            // Not wide means that no index is beyond 31 bits.
            file.write_all(&(value as u32).to_le_bytes())
        }
    }

    fn pack(&self, name: &str) -> Result<(), MatrixError> {
        let path = self.folder.join(name);
        let failed = |error: zip::result::ZipError| MatrixError::io("write", &path)(error.into());
        let mut zip = ZipWriter::new(create(&self.folder, name)?);
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(true);
        for array in ARRAYS {
            let from = self.folder.join(array);
            zip.start_file(array, options).map_err(failed)?;
            let mut file = File::open(&from).map_err(MatrixError::io("read", &from))?;
            std::io::copy(&mut file, &mut zip).map_err(MatrixError::io("write", &path))?;
            fs::remove_file(&from).map_err(MatrixError::io("remove", &from))?;
        }
        zip.start_file("format.npy", options).map_err(failed)?;
        zip.write_all(&npy::header("|S3", &[]))
            .and_then(|()| zip.write_all(b"csr"))
            .map_err(MatrixError::io("write", &path))?;
        zip.start_file("shape.npy", options).map_err(failed)?;
        zip.write_all(&npy::header("<i8", &[2]))
            .and_then(|()| zip.write_all(&self.shape.rows.to_le_bytes()))
            .and_then(|()| zip.write_all(&self.shape.columns.to_le_bytes()))
            .map_err(MatrixError::io("write", &path))?;
        let mut file = zip.finish().map_err(failed)?;
        file.flush().map_err(MatrixError::io("write", &path))
    }

    fn describe(&self) -> Result<(), MatrixError> {
        let header = serde_json::json!({
            "format": "csr",
            "shape": [self.shape.rows, self.shape.columns],
            "entries": self.entries,
            "index_type": self.index_type(),
            "value_type": self.value_type(),
            "indptr": "indptr.npy",
            "indices": "indices.npy",
            "data": "data.npy",
            "array_offset_bytes": npy::HEADER_BYTES,
            "sorted_indices": true,
        });
        let path = self.folder.join("header.json");
        fs::write(&path, format!("{header:#}\n")).map_err(MatrixError::io("write", &path))
    }
}

impl RowSink for CsrSink {
    fn row(&mut self, row: u32, columns: &[u32], values: &[f64]) -> Result<(), MatrixError> {
        if self.row_starts.len() > row as usize + 1 || u64::from(row) >= self.shape.rows {
            return Err(MatrixError::Bug(format!("row {row} comes out of order")));
        }
        self.row_starts.resize(row as usize + 1, self.entries);
        let mut write = || -> std::io::Result<()> {
            for column in columns {
                Self::put_index(&mut self.indices, self.wide, u64::from(*column))?;
            }
            for value in values {
                match self.precision {
                    Precision::Single => self.data.write_all(&(*value as f32).to_le_bytes())?,
                    Precision::Double => self.data.write_all(&value.to_le_bytes())?,
                }
            }
            Ok(())
        };
        write().map_err(MatrixError::io("write", &self.folder))?;
        self.entries += columns.len() as u64;
        self.row_starts.push(self.entries);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), MatrixError> {
        let (index_type, value_type) = (self.index_type(), self.value_type());
        let rows = usize::try_from(self.shape.rows)
            .map_err(|_| MatrixError::Bug("rows beyond the address space".into()))?;
        self.row_starts.resize(rows + 1, self.entries);
        let mut indptr = create(&self.folder, "indptr.npy")?;
        let mut write = || -> std::io::Result<()> {
            indptr.write_all(&npy::header(index_type, &[self.shape.rows + 1]))?;
            for start in &self.row_starts {
                Self::put_index(&mut indptr, self.wide, *start)?;
            }
            indptr.flush()?;
            for (file, kind) in [
                (&mut self.indices, index_type),
                (&mut self.data, value_type),
            ] {
                file.flush()?;
                file.seek(SeekFrom::Start(0))?;
                file.write_all(&npy::header(kind, &[self.entries]))?;
                file.flush()?;
            }
            Ok(())
        };
        write().map_err(MatrixError::io("write", &self.folder))?;
        match self.archive.take() {
            Some(name) => self.pack(&name),
            None => self.describe(),
        }
    }
}
