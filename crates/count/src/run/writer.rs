//! Writes sorted rows as a run file. In: rows of rising left id. Held: one chunk.

use std::io::Write;

use super::format::{self, CHUNK_PAIRS, Compression, Entry};
use super::packed::PackedWriter;
use crate::error::{CountError, Result};
use crate::sink::RowSink;

/// What a finished run holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunSummary {
    /// Bytes written, header and index included.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
    /// Pairs.
    pub pairs: u64,
}

/// Writes one run; a [`RowSink`], so that counting and merging can fill it.
///
/// The file is complete only after [`finish`](Self::finish); one that was left before it is
/// refused by the reader.
#[derive(Debug)]
pub struct RunWriter<W: Write> {
    out: W,
    compression: Compression,
    vocabulary_size: u32,
    summary: RunSummary,
    index: Vec<Entry>,
    /// Left id of the last row written.
    last_left: Option<u32>,
    first_left_of_chunk: u32,
    base_left: u32,
    chunk_rows: u32,
    chunk_pairs: u32,
    row_stream: PackedWriter,
    step_stream: PackedWriter,
    count_stream: PackedWriter,
    raw: Vec<u8>,
    stored: Vec<u8>,
}

impl<W: Write> RunWriter<W> {
    /// Starts a run of ids below `vocabulary_size` and writes its header.
    ///
    /// # Errors
    /// [`CountError::RunWrite`].
    pub fn new(mut out: W, vocabulary_size: u32, compression: Compression) -> Result<Self> {
        let header = format::header(compression, vocabulary_size);
        out.write_all(&header).map_err(write_error)?;
        Ok(Self {
            out,
            compression,
            vocabulary_size,
            summary: RunSummary {
                bytes: header.len() as u64,
                ..RunSummary::default()
            },
            index: Vec::new(),
            last_left: None,
            first_left_of_chunk: 0,
            base_left: 0,
            chunk_rows: 0,
            chunk_pairs: 0,
            row_stream: PackedWriter::default(),
            step_stream: PackedWriter::default(),
            count_stream: PackedWriter::default(),
            raw: Vec::new(),
            stored: Vec::new(),
        })
    }

    /// Bytes of buffers held now.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.raw.capacity()
            + self.stored.capacity()
            + self.index.capacity() * size_of::<Entry>()
            + self.row_stream.held_bytes()
            + self.step_stream.held_bytes()
            + self.count_stream.held_bytes()
    }

    /// Writes the last chunk, the index and the trailer, flushes, and gives the output back.
    /// Syncing a file is the caller's.
    ///
    /// # Errors
    /// [`CountError::RunWrite`].
    pub fn finish(mut self) -> Result<(W, RunSummary)> {
        self.flush_chunk()?;
        let mut end = Vec::with_capacity(self.index.len() * format::ENTRY_BYTES + 64);
        for entry in &self.index {
            entry.append_to(&mut end);
        }
        end.extend_from_slice(&self.summary.bytes.to_le_bytes());
        end.extend_from_slice(&self.summary.pairs.to_le_bytes());
        end.extend_from_slice(&(self.index.len() as u32).to_le_bytes());
        let sum = crc32fast::hash(&end);
        end.extend_from_slice(&sum.to_le_bytes());
        end.extend_from_slice(format::END_MAGIC);
        self.out.write_all(&end).map_err(write_error)?;
        self.out.flush().map_err(write_error)?;
        self.summary.bytes += end.len() as u64;
        Ok((self.out, self.summary))
    }

    fn check(&self, left: u32, right: &[u32], counts: &[u64]) -> Result<()> {
        let refuse = |reason| Err(CountError::RowOrder { left, reason });
        if self.last_left.is_some_and(|last| left <= last) {
            return refuse("its left id is not above the last one");
        }
        if right.len() != counts.len() {
            return refuse("it has not one count a right id");
        }
        if left >= self.vocabulary_size
            || right.last().is_some_and(|&id| id >= self.vocabulary_size)
        {
            return refuse("an id is outside the vocabulary");
        }
        let unsorted = right
            .windows(2)
            .fold(false, |bad, two| bad | (two[0] >= two[1]));
        let empty = counts.iter().fold(false, |bad, &count| bad | (count == 0));
        if unsorted {
            return refuse("its right ids are not strictly rising");
        }
        if empty {
            return refuse("it has a zero count");
        }
        Ok(())
    }

    /// Adds what fits of a row to the chunk under way.
    fn append_piece(&mut self, left: u32, right: &[u32], counts: &[u64]) {
        if self.chunk_rows == 0 {
            self.first_left_of_chunk = left;
            self.base_left = 0;
        }
        let head = [u64::from(left - self.base_left), right.len() as u64];
        self.row_stream.extend(head.into_iter());
        self.base_left = left;
        self.step_stream.extend((0..right.len()).map(|index| {
            u64::from(match index {
                0 => right[0],
                _ => right[index] - right[index - 1] - 1,
            })
        }));
        self.count_stream.extend(counts.iter().copied());
        self.chunk_rows += 1;
        self.chunk_pairs += right.len() as u32;
    }

    fn flush_chunk(&mut self) -> Result<()> {
        if self.chunk_rows == 0 {
            return Ok(());
        }
        let streams = [&self.row_stream, &self.step_stream, &self.count_stream];
        self.raw.clear();
        self.raw.resize(format::CHUNK_HEADER_BYTES, 0);
        for stream in streams {
            stream.append_to(&mut self.raw);
        }
        self.raw.extend_from_slice(&[0; 8]);
        let raw_bytes = self.raw.len() - format::CHUNK_HEADER_BYTES;
        let chunk = match self.compression {
            Compression::Packed => &mut self.raw,
            Compression::Zstd(level) => {
                let raw = &self.raw[format::CHUNK_HEADER_BYTES..];
                let packed = zstd::bulk::compress(raw, level).map_err(write_error)?;
                self.stored.clear();
                self.stored.resize(format::CHUNK_HEADER_BYTES, 0);
                self.stored.extend_from_slice(&packed);
                &mut self.stored
            }
        };
        let stored_bytes = chunk.len() - format::CHUNK_HEADER_BYTES;
        let head = [
            stored_bytes,
            raw_bytes,
            self.chunk_rows as usize,
            self.chunk_pairs as usize,
            streams[0].data_bytes(),
            streams[1].data_bytes(),
            streams[2].data_bytes(),
        ];
        for (place, value) in chunk.chunks_exact_mut(4).zip(head) {
            place.copy_from_slice(&(value as u32).to_le_bytes());
        }
        let sum = crc32fast::hash(chunk);
        chunk.extend_from_slice(&sum.to_le_bytes());
        self.out.write_all(chunk).map_err(write_error)?;
        self.index.push(Entry {
            offset: self.summary.bytes,
            length: chunk.len() as u32,
            first_left: self.first_left_of_chunk,
            last_left: self.base_left,
            pairs: self.chunk_pairs,
        });
        self.summary.bytes += chunk.len() as u64;
        self.row_stream.clear();
        self.step_stream.clear();
        self.count_stream.clear();
        self.chunk_rows = 0;
        self.chunk_pairs = 0;
        Ok(())
    }
}

impl<W: Write> RowSink for RunWriter<W> {
    fn row(&mut self, left: u32, right: &[u32], counts: &[u64]) -> Result<()> {
        self.check(left, right, counts)?;
        if right.is_empty() {
            return Ok(());
        }
        self.summary.rows += 1;
        self.summary.pairs += right.len() as u64;
        self.last_left = Some(left);
        let (mut right, mut counts) = (right, counts);
        while !right.is_empty() {
            let room = CHUNK_PAIRS - self.chunk_pairs as usize;
            let fits = room.min(right.len());
            self.append_piece(left, &right[..fits], &counts[..fits]);
            if fits == room {
                self.flush_chunk()?;
            }
            (right, counts) = (&right[fits..], &counts[fits..]);
        }
        Ok(())
    }
}

fn write_error(source: std::io::Error) -> CountError {
    CountError::RunWrite { source }
}
