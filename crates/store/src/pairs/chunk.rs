//! One column of one row group: its pages, and what the footer says of them.

use bytes::Bytes;
use parquet::basic::{BoundaryOrder, Compression, Encoding, PageType, Type, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::PageEncodingStats;
use parquet::file::metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder};
use parquet::file::statistics::{Statistics, ValueStatistics};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use zstd::bulk::Compressor;

/// A chunk is compressed if that makes its first page smaller by at least a tenth: packed counts
/// seldom are, and are then not worth the reader's time either.
const WORTH_TENTHS: usize = 9;

/// A column chunk in memory.
pub(crate) struct Chunk {
    descr: ColumnDescPtr,
    bytes: TrackedWrite<Vec<u8>>,
    /// Set by the first page.
    compress: Option<bool>,
    column_index: ColumnIndexBuilder,
    offset_index: OffsetIndexBuilder,
    /// Smallest and largest value.
    range: Option<(i64, i64)>,
    /// Whether pages so far have rising smallest and largest values.
    rising: bool,
    last_page: Option<(i64, i64)>,
    rows: u64,
    pages: i32,
    uncompressed: i64,
}

impl Chunk {
    pub(crate) fn new(descr: ColumnDescPtr) -> Self {
        Self {
            bytes: TrackedWrite::new(Vec::new()),
            compress: None,
            column_index: ColumnIndexBuilder::new(descr.physical_type()),
            offset_index: OffsetIndexBuilder::new(),
            range: None,
            rising: true,
            last_page: None,
            rows: 0,
            pages: 0,
            uncompressed: 0,
            descr,
        }
    }

    /// Bytes held.
    pub(crate) fn held_bytes(&self) -> usize {
        self.bytes.inner().capacity()
    }

    /// Appends a page of `rows` values that lie in `range`.
    pub(crate) fn page(
        &mut self,
        encoded: &[u8],
        rows: u32,
        range: (i64, i64),
        compressor: &mut Compressor<'_>,
    ) -> Result<()> {
        let compressed = match self.compress {
            Some(false) => None,
            _ => Some(compressor.compress(encoded)?),
        };
        let compress = *self.compress.get_or_insert_with(|| {
            compressed
                .as_ref()
                .is_some_and(|bytes| bytes.len() * 10 < encoded.len() * WORTH_TENTHS)
        });
        let buf = match compressed {
            Some(bytes) if compress => Bytes::from(bytes),
            _ => Bytes::copy_from_slice(encoded),
        };
        let page = Page::DataPageV2 {
            buf,
            num_values: rows,
            encoding: Encoding::DELTA_BINARY_PACKED,
            num_nulls: 0,
            num_rows: rows,
            def_levels_byte_len: 0,
            rep_levels_byte_len: 0,
            is_compressed: compress,
            statistics: None,
        };
        let page = CompressedPage::new(page, encoded.len());
        let written = SerializedPageWriter::new(&mut self.bytes).write_page(page)?;
        self.uncompressed += written.uncompressed_size as i64;
        let size = i32::try_from(written.bytes_written)
            .map_err(|_| ParquetError::General("a page is beyond 2 GiB".into()))?;
        self.offset_index
            .append_offset_and_size(written.offset as i64, size);
        self.offset_index.append_row_count(i64::from(rows));
        self.column_index
            .append(false, self.value(range.0), self.value(range.1), 0);
        self.rising &= self
            .last_page
            .is_none_or(|last| last.0 <= range.0 && last.1 <= range.1);
        self.last_page = Some(range);
        self.range = Some(match self.range {
            None => range,
            Some((low, high)) => (low.min(range.0), high.max(range.1)),
        });
        self.rows += u64::from(rows);
        self.pages += 1;
        Ok(())
    }

    /// A value as the column index keeps it.
    fn value(&self, value: i64) -> Vec<u8> {
        match self.descr.physical_type() {
            Type::INT32 => (value as i32).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        }
    }

    /// The chunk's bytes and what the footer will say of it.
    pub(crate) fn close(mut self) -> Result<(Bytes, ColumnCloseResult)> {
        self.column_index.set_boundary_order(if self.rising {
            BoundaryOrder::ASCENDING
        } else {
            BoundaryOrder::UNORDERED
        });
        let bytes = Bytes::from(self.bytes.into_inner()?);
        let codec = match self.compress {
            Some(true) => Compression::ZSTD(ZstdLevel::default()),
            _ => Compression::UNCOMPRESSED,
        };
        let (low, high) = (
            self.range.map(|range| range.0),
            self.range.map(|range| range.1),
        );
        let statistics: Statistics = match self.descr.physical_type() {
            Type::INT32 => {
                let narrow = |value: Option<i64>| value.map(|value| value as i32);
                ValueStatistics::new(narrow(low), narrow(high), None, Some(0), false)
                    .with_backwards_compatible_min_max(true)
                    .into()
            }
            _ => ValueStatistics::new(low, high, None, Some(0), false)
                .with_backwards_compatible_min_max(true)
                .into(),
        };
        let metadata = ColumnChunkMetaData::builder(self.descr)
            .set_compression(codec)
            .set_encodings(vec![Encoding::DELTA_BINARY_PACKED])
            .set_page_encoding_stats(vec![PageEncodingStats {
                page_type: PageType::DATA_PAGE_V2,
                encoding: Encoding::DELTA_BINARY_PACKED,
                count: self.pages,
            }])
            .set_total_compressed_size(bytes.len() as i64)
            .set_total_uncompressed_size(self.uncompressed)
            .set_num_values(self.rows as i64)
            .set_data_page_offset(0)
            .set_statistics(statistics)
            .build()?;
        let closed = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: self.rows,
            metadata,
            bloom_filter: None,
            column_index: Some(self.column_index.build()?),
            offset_index: Some(self.offset_index.build()),
        };
        Ok((bytes, closed))
    }
}
