//! Looks at the page headers of a column chunk before its pages are decompressed.
//!
//! The footer says what a chunk decompresses to, and a plan is made from that; each page's header
//! says it again, and the decoder allocates what *that* says. A file whose footer lies would so
//! slip past the plan's check. A chunk's headers are walked as soon as its bytes have come
//! (parquet.thrift, `PageHeader`: field 2 `uncompressed_page_size`, field 3
//! `compressed_page_size`): a few bytes a page, none of its data.
//!
//! Snappy, zstd, raw LZ4 and Hadoop's LZ4 are decompressed to what the header says and no more.
//! Gzip, Brotli and framed LZ4 are decompressed to their end by the decoder; a page *header* that
//! lies about these is found only afterwards.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetFileReaderFactory;
use datafusion::error::Result;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::ParquetMetaData;

use crate::footer::Walk;
use crate::memory::ByteSize;

/// What a compressed chunk may swell to before it is taken for a bomb, when it is also large
/// against the memory limit. Text compresses 2 to 10 times, a constant column some hundreds.
const LARGEST_HONEST_RATIO: u64 = 64;

/// Whether a chunk, or the chunks of a row group, are a bomb for a process with this limit.
pub(crate) fn swollen(compressed: u64, uncompressed: u64, limit: ByteSize) -> bool {
    uncompressed > limit.0 / 4 && uncompressed / compressed.max(1) > LARGEST_HONEST_RATIO
}

/// What the pages of a chunk say that they decompress to, in all; `None` when they cannot be walked
/// (the decoder then says why).
fn claimed(chunk: &[u8]) -> Option<u64> {
    let mut rest = chunk;
    let mut sum = 0u64;
    while !rest.is_empty() {
        let mut walk = Walk::new(rest);
        let (mut uncompressed, mut compressed, mut last) = (None, None, 0);
        while let Some((id, kind)) = walk.field(last) {
            last = id;
            match id {
                2 => uncompressed = Some(walk.integer(kind)?),
                3 => compressed = Some(walk.integer(kind)?),
                _ => walk.skip(kind, 0)?,
            }
        }
        sum = sum.checked_add(u64::try_from(uncompressed?).ok()?)?;
        rest = walk
            .rest()
            .get(usize::try_from(compressed?).ok()?..)
            .filter(|next| next.len() < rest.len())?;
    }
    Some(sum)
}

/// Makes readers of one row group that look at page headers.
#[derive(Debug)]
pub(crate) struct CheckedReaders {
    /// Makes the readers that read.
    pub(crate) inner: Arc<dyn ParquetFileReaderFactory>,
    /// The row group that will be read.
    pub(crate) row_group: usize,
    /// The memory limit of the process.
    pub(crate) limit: ByteSize,
    /// The file, when it is on this machine.
    pub(crate) path: Option<PathBuf>,
}

impl ParquetFileReaderFactory for CheckedReaders {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        Ok(Box::new(CheckedReader {
            inner: self.inner.create_reader(partition, file, hint, metrics)?,
            metadata: None,
            row_group: self.row_group,
            limit: self.limit,
            path: self.path.clone(),
        }))
    }
}

struct CheckedReader {
    inner: Box<dyn AsyncFileReader + Send>,
    metadata: Option<Arc<ParquetMetaData>>,
    row_group: usize,
    limit: ByteSize,
    path: Option<PathBuf>,
}

/// Bytes of a file on this machine. The store would read them on another thread, into memory that it
/// clears before.
fn read(path: &Path, range: &Range<u64>) -> std::io::Result<Bytes> {
    let length = range.end.saturating_sub(range.start);
    let mut file = File::open(path)?;
    // A footer may ask for more than there is in any file.
    let room = length.min(file.metadata()?.len().saturating_sub(range.start));
    let mut bytes = Vec::with_capacity(usize::try_from(room).unwrap_or(0));
    file.seek(SeekFrom::Start(range.start))?;
    file.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        let found = bytes.len();
        return Err(std::io::Error::other(format!(
            "the file ends after {found} of the {length} bytes from {}",
            range.start
        )));
    }
    Ok(bytes.into())
}

impl CheckedReader {
    async fn bytes(&mut self, range: &Range<u64>) -> ParquetResult<Bytes> {
        match &self.path {
            Some(path) => Ok(read(path, range)?),
            None => self.inner.get_bytes(range.clone()).await,
        }
    }

    /// Checks bytes that are a whole chunk.
    fn check(&self, range: &Range<u64>, bytes: &[u8]) -> ParquetResult<()> {
        let metadata = self.metadata.as_ref();
        let group = metadata.and_then(|metadata| metadata.row_groups().get(self.row_group));
        for chunk in group.iter().flat_map(|group| group.columns()) {
            let (start, length) = chunk.byte_range();
            if start != range.start || start + length != range.end {
                continue;
            }
            let said = u64::try_from(chunk.uncompressed_size()).unwrap_or(0);
            if let Some(claimed) = claimed(bytes)
                && claimed > said
                && swollen(length, claimed, self.limit)
            {
                return Err(ParquetError::General(format!(
                    "the pages of column `{}` claim to decompress to {} where the footer says {}: too much for the memory limit of {}",
                    chunk.column_path().string(),
                    ByteSize(claimed),
                    ByteSize(said),
                    self.limit
                )));
            }
        }
        Ok(())
    }
}

impl AsyncFileReader for CheckedReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        async move {
            let bytes = self.bytes(&range).await?;
            self.check(&range, &bytes)?;
            Ok(bytes)
        }
        .boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        async move {
            let all = if self.path.is_some() {
                let mut all = Vec::with_capacity(ranges.len());
                for range in &ranges {
                    all.push(self.bytes(range).await?);
                }
                all
            } else {
                self.inner.get_byte_ranges(ranges.clone()).await?
            };
            for (range, bytes) in ranges.iter().zip(&all) {
                self.check(range, bytes)?;
            }
            Ok(all)
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        async move {
            let metadata = self.inner.get_metadata(options).await?;
            self.metadata = Some(metadata.clone());
            Ok(metadata)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::{claimed, read, swollen};
    use crate::memory::ByteSize;

    /// A header of a page (type 0, sizes as zigzag varints) with that many bytes behind it.
    fn page(uncompressed: u8, compressed: u8) -> Vec<u8> {
        let mut bytes = vec![0x15, 0, 0x15, 2 * uncompressed, 0x15, 2 * compressed, 0];
        bytes.extend(std::iter::repeat_n(9, usize::from(compressed)));
        bytes
    }

    #[test]
    fn what_the_pages_claim_is_summed() {
        let chunk = [page(50, 7), page(60, 0), page(1, 30)].concat();
        assert_eq!(claimed(&chunk), Some(111));
        assert_eq!(claimed(&[]), Some(0));
        assert_eq!(claimed(&chunk[..chunk.len() - 1]), None);
    }

    #[test]
    fn what_is_not_in_a_file_is_an_error_and_takes_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ten");
        std::fs::write(&path, b"0123456789").unwrap();
        assert_eq!(read(&path, &(2..5)).unwrap(), &b"234"[..]);
        assert_eq!(read(&path, &(10..10)).unwrap(), &b""[..]);
        for range in [2..11, 9..u64::MAX, 11..12, u64::MAX - 1..u64::MAX] {
            assert!(read(&path, &range).is_err(), "{range:?}");
        }
    }

    #[test]
    fn any_bytes_are_walked_to_an_end() {
        proptest::proptest!(|(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200))| {
            let _ = claimed(&bytes);
        });
    }

    #[test]
    fn only_what_is_large_and_very_dense_is_a_bomb() {
        let limit = ByteSize(4000);
        assert!(!swollen(10, 1000, limit));
        assert!(!swollen(1000, 60_000, limit));
        assert!(swollen(10, 1001, limit));
        assert!(swollen(0, 1001, limit));
    }
}
