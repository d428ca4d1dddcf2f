//! Writes one file of `pairs`: rows of counts in, Parquet out.
//!
//! Half of a count job's time went into the general writer, so this one does only what `pairs`
//! needs: three integer columns without nulls, delta-packed in pages of the same rows
//! ([`delta`]), with the page index that lookups by `left_id` use. File, footer and page headers
//! are still the `parquet` crate's. Where a page or row group ends depends on the number of pairs
//! before it alone, so equal pairs give equal bytes. Memory: one row group, packed (a few MiB).

mod chunk;
mod delta;

use std::path::PathBuf;
use std::sync::Arc;

use deltalake_core::ObjectStore;
use object_store::path::Path as ObjectPath;
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::errors::ParquetError;
use parquet::file::writer::SerializedFileWriter;
use tokio::runtime::Handle;
use zstd::bulk::Compressor;

use self::chunk::Chunk;
use crate::delta::DataFile;
use crate::error::StoreError;
use crate::schema;
use crate::target::Target;
use crate::writer::{ROW_GROUP_ROWS, delta_stats, parquet_error, table_properties};

/// Pairs in a page: what a lookup of one left id decodes at least.
const PAGE_ROWS: usize = 1 << 14;

/// One file of `pairs` being written. Blocking: call it from a thread that may wait.
pub struct PairsWriter {
    writer: SerializedFileWriter<Target>,
    name: String,
    left: Vec<i32>,
    right: Vec<i32>,
    counts: Vec<i64>,
    /// Counts of a page that are below 2³¹, and the bytes of a page.
    narrow: Vec<i32>,
    encoded: Vec<u8>,
    /// The open row group, by column.
    chunks: Vec<Chunk>,
    compressor: Compressor<'static>,
    /// Pairs in the open row group's pages, and in the file's pages.
    group_rows: usize,
    rows: u64,
}

impl PairsWriter {
    /// Starts a file `name` in the table folder `folder` (relative to `store`'s root). `local` is
    /// the same folder on this machine's disk, when the warehouse is there.
    ///
    /// # Errors
    /// When the folder or file cannot be made.
    pub fn create(
        store: &Arc<dyn ObjectStore>,
        folder: &ObjectPath,
        local: Option<PathBuf>,
        name: &str,
        runtime: &Handle,
    ) -> Result<Self, StoreError> {
        let fail = |source| parquet_error(name, source);
        let schema = &schema::PAIRS;
        let mut properties = table_properties(schema, &["left_id", "right_id"]);
        add_encoded_arrow_schema_to_metadata(schema, &mut properties);
        let columns = ArrowSchemaConverter::new().convert(schema).map_err(fail)?;
        let target = Target::create(store, folder, local, name, runtime)?;
        let writer =
            SerializedFileWriter::new(target, columns.root_schema_ptr(), Arc::new(properties))
                .map_err(fail)?;
        let compressor = Compressor::new(1).map_err(|source| StoreError::Io {
            action: "compress",
            path: name.to_owned(),
            source,
        })?;
        Ok(Self {
            writer,
            name: name.to_owned(),
            left: Vec::with_capacity(PAGE_ROWS),
            right: Vec::with_capacity(PAGE_ROWS),
            counts: Vec::with_capacity(PAGE_ROWS),
            narrow: Vec::with_capacity(PAGE_ROWS),
            encoded: Vec::new(),
            chunks: Vec::new(),
            compressor,
            group_rows: 0,
            rows: 0,
        })
    }

    /// Appends the pairs of one left id: `right` rising, `counts` beside it.
    ///
    /// # Errors
    /// [`StoreError::PairRange`] for an id of 2³¹ or more or a count of 2⁶³ or more; a full disk, a
    /// store that is away.
    pub fn row(&mut self, left: u32, right: &[u32], counts: &[u64]) -> Result<(), StoreError> {
        let beyond = |value| StoreError::PairRange { left, value };
        let left = i32::try_from(left).map_err(|_| beyond(u64::from(left)))?;
        // Ids rise, so the last is the largest.
        if let Some(&largest) = right.last()
            && i32::try_from(largest).is_err()
        {
            return Err(beyond(u64::from(largest)));
        }
        if counts.iter().fold(0, |all, count| all | count) > i64::MAX as u64 {
            let count = counts
                .iter()
                .copied()
                .find(|&count| i64::try_from(count).is_err());
            return Err(beyond(count.unwrap_or(u64::MAX)));
        }
        let (mut right, mut counts) = (right, counts);
        while !right.is_empty() {
            let take = right.len().min(PAGE_ROWS - self.left.len());
            let (right_now, right_later) = right.split_at(take);
            let (counts_now, counts_later) = counts.split_at(take);
            self.left.extend(std::iter::repeat_n(left, take));
            self.right.extend(right_now.iter().map(|&id| id as i32));
            self.counts
                .extend(counts_now.iter().map(|&count| count as i64));
            (right, counts) = (right_later, counts_later);
            if self.left.len() == PAGE_ROWS {
                self.page()?;
            }
        }
        Ok(())
    }

    /// Bytes held: encoded pages that wait for their row group to be complete, and buffers.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let pages: usize = self.chunks.iter().map(Chunk::held_bytes).sum();
        pages + self.encoded.capacity() + PAGE_ROWS * 20
    }

    /// Writes the last row group and the footer, makes the file durable and says what is in it.
    ///
    /// # Errors
    /// When writing fails; the file is then an orphan that the next sweep removes.
    pub fn finish(mut self) -> Result<DataFile, StoreError> {
        self.page()?;
        self.row_group()?;
        let name = self.name;
        let metadata = self
            .writer
            .finish()
            .map_err(|source| parquet_error(&name, source))?;
        let size = self.writer.bytes_written() as u64;
        self.writer.inner_mut().close()?;
        Ok(DataFile {
            size,
            rows: self.rows,
            stats: delta_stats(&metadata, self.rows),
            name,
        })
    }

    /// Ends the page that is being filled, in all columns.
    fn page(&mut self) -> Result<(), StoreError> {
        let rows = self.left.len();
        if rows == 0 {
            return Ok(());
        }
        if self.chunks.is_empty() {
            let columns = self.writer.schema_descr().columns();
            self.chunks = columns.iter().cloned().map(Chunk::new).collect();
        }
        let name = &self.name;
        let [left, right, counts] = self.chunks.as_mut_slice() else {
            let reason = "pairs have three columns".to_owned();
            return Err(parquet_error(name, ParquetError::General(reason)));
        };
        let (encoded, compressor) = (&mut self.encoded, &mut self.compressor);
        let mut put = |chunk: &mut Chunk, encoded: &mut Vec<u8>, range: (i64, i64)| {
            let put = chunk.page(encoded, rows as u32, range, compressor);
            encoded.clear();
            put.map_err(|source| parquet_error(name, source))
        };
        delta::encode(&self.left, encoded);
        put(left, encoded, range(&self.left))?;
        delta::encode(&self.right, encoded);
        put(right, encoded, range(&self.right))?;
        if self.counts.iter().fold(0, |all, count| all | count) <= i64::from(i32::MAX) {
            self.narrow.clear();
            self.narrow
                .extend(self.counts.iter().map(|&count| count as i32));
            delta::encode(&self.narrow, encoded);
            put(counts, encoded, range(&self.narrow))?;
        } else {
            delta::encode_wide(&self.counts, encoded);
            put(counts, encoded, range(&self.counts))?;
        }
        self.left.clear();
        self.right.clear();
        self.counts.clear();
        self.rows += rows as u64;
        self.group_rows += rows;
        if self.group_rows >= ROW_GROUP_ROWS {
            self.row_group()?;
        }
        Ok(())
    }

    /// Writes the open row group out.
    fn row_group(&mut self) -> Result<(), StoreError> {
        if self.group_rows == 0 {
            return Ok(());
        }
        self.group_rows = 0;
        let chunks = std::mem::take(&mut self.chunks);
        let write = || {
            let mut group = self.writer.next_row_group()?;
            for chunk in chunks {
                let (bytes, closed) = chunk.close()?;
                group.append_column(&bytes, closed)?;
            }
            group.close().map(|_| ())
        };
        write().map_err(|source| parquet_error(&self.name, source))
    }
}

/// Smallest and largest of some values.
fn range<T: Copy + Ord + Default + Into<i64>>(values: &[T]) -> (i64, i64) {
    let first = values.first().copied().unwrap_or_default();
    let (low, high) = values.iter().fold((first, first), |(low, high), &value| {
        (low.min(value), high.max(value))
    });
    (low.into(), high.into())
}

#[cfg(test)]
mod tests;
