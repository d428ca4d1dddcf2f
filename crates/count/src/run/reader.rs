//! Reads a run file, whole or a range of left ids. Held: the index and one chunk.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use super::format::{
    self, CHUNK_HEADER_BYTES, CHUNK_PAIRS, Compression, ENTRY_BYTES, Entry, HEADER_BYTES,
    TRAILER_BYTES, u32_at, u64_at,
};
use super::merge::Piece;
use super::packed::unpack;
use crate::error::{CountError, Result};

/// Bytes that can be read by range: a file, a buffer, an object in a store.
pub trait RunSource {
    /// Total bytes.
    ///
    /// # Errors
    /// Whatever keeps the source from telling.
    fn size(&mut self) -> std::io::Result<u64>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the source ends before, else whatever the source meets.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()>;
}

/// A [`RunSource`] over anything that reads and seeks.
#[derive(Debug)]
pub struct SeekSource<R>(pub R);

impl<R: Read + Seek> RunSource for SeekSource<R> {
    fn size(&mut self) -> std::io::Result<u64> {
        self.0.seek(SeekFrom::End(0))
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.seek(SeekFrom::Start(offset))?;
        self.0.read_exact(buffer)
    }
}

impl RunSource for &[u8] {
    fn size(&mut self) -> std::io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl RunSource for Vec<u8> {
    fn size(&mut self) -> std::io::Result<u64> {
        self.as_slice().size()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.as_slice().read_at(offset, buffer)
    }
}

impl RunSource for Box<dyn RunSource + Send> {
    fn size(&mut self) -> std::io::Result<u64> {
        (**self).size()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        (**self).read_at(offset, buffer)
    }
}

/// One run, open for reading; [`merge_runs`](crate::merge_runs) reads the rows.
#[derive(Debug)]
pub struct RunReader<S> {
    run: String,
    source: S,
    compression: Compression,
    vocabulary_size: u32,
    index: Vec<Entry>,
    pairs: u64,
    subtracted: bool,
    range: Range<u32>,
    next_chunk: usize,
    chunk: Chunk,
    /// The next row of `chunk`, and its first pair.
    next_row: usize,
    next_pair: usize,
}

/// One decoded chunk.
#[derive(Debug, Default)]
struct Chunk {
    stored: Vec<u8>,
    raw: Vec<u8>,
    /// Left id and number of pairs of each row.
    rows: Vec<(u32, u32)>,
    right: Vec<u32>,
    counts: Vec<u64>,
}

impl<S: RunSource> RunReader<S> {
    /// Reads and checks header and index. `run` names the run in errors.
    ///
    /// # Errors
    /// [`CountError::RunCorrupt`], [`CountError::RunVersion`], [`CountError::RunRead`].
    pub fn open(run: impl Into<String>, mut source: S) -> Result<Self> {
        let run = run.into();
        let corrupt = |offset, reason| CountError::RunCorrupt {
            run: run.clone(),
            offset,
            reason,
        };
        let size = source.size().map_err(|source| CountError::RunRead {
            run: run.clone(),
            source,
        })?;
        if size < (HEADER_BYTES + TRAILER_BYTES) as u64 {
            return Err(corrupt(size, "the file is cut short"));
        }
        let mut header = [0; HEADER_BYTES];
        fill(&run, &mut source, 0, &mut header)?;
        let (compression, vocabulary_size) = format::read_header(&run, &header)?;
        let trailer_offset = size - TRAILER_BYTES as u64;
        let mut end = vec![0; TRAILER_BYTES];
        fill(&run, &mut source, trailer_offset, &mut end)?;
        if &end[TRAILER_BYTES - 8..] != format::END_MAGIC {
            return Err(corrupt(size - 8, "the file does not end as a run does"));
        }
        let broken = || corrupt(trailer_offset, "the trailer does not fit the file");
        let index_offset = u64_at(&end, 0).ok_or_else(broken)?;
        let pairs = u64_at(&end, 8).ok_or_else(broken)?;
        let chunks = u32_at(&end, 16).ok_or_else(broken)? as usize;
        let index_bytes = chunks as u64 * ENTRY_BYTES as u64;
        if index_offset.checked_add(index_bytes) != Some(trailer_offset) {
            return Err(broken());
        }
        let mut bytes = vec![0; chunks * ENTRY_BYTES];
        fill(&run, &mut source, index_offset, &mut bytes)?;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&bytes);
        sum.update(&end[..20]);
        if Some(sum.finalize()) != u32_at(&end, 20) {
            return Err(corrupt(
                index_offset,
                "checksum of the index does not match",
            ));
        }
        let index: Vec<Entry> = bytes
            .chunks_exact(ENTRY_BYTES)
            .filter_map(Entry::read)
            .collect();
        check_index(&index, index_offset, pairs, vocabulary_size)
            .map_err(|reason| corrupt(index_offset, reason))?;
        Ok(Self {
            run,
            source,
            compression,
            vocabulary_size,
            index,
            pairs,
            subtracted: false,
            range: 0..0,
            next_chunk: 0,
            chunk: Chunk::default(),
            next_row: 0,
            next_pair: 0,
        })
    }

    /// The same run, to be taken away in a merge instead of added.
    #[must_use]
    pub fn subtracting(mut self) -> Self {
        self.subtracted = true;
        self
    }

    /// Whether a merge takes this run away.
    #[must_use]
    pub fn is_subtracted(&self) -> bool {
        self.subtracted
    }

    /// The vocabulary size that the run was written with.
    #[must_use]
    pub fn vocabulary_size(&self) -> u32 {
        self.vocabulary_size
    }

    /// Pairs in the whole run.
    #[must_use]
    pub fn pairs(&self) -> u64 {
        self.pairs
    }

    /// For every chunk its first and last left id and its pairs: what a planner needs to cut
    /// ranges of even work.
    pub fn chunks(&self) -> impl Iterator<Item = (Range<u32>, u32)> + '_ {
        self.index
            .iter()
            .map(|entry| (entry.first_left..entry.last_left + 1, entry.pairs))
    }

    /// Bytes of index and buffers held now.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.index.capacity() * size_of::<Entry>()
            + self.chunk.stored.capacity()
            + self.chunk.raw.capacity()
            + self.chunk.rows.capacity() * 8
            + self.chunk.right.capacity() * 4
            + self.chunk.counts.capacity() * 8
    }

    /// Bytes that an open reader holds at most for one chunk.
    #[must_use]
    pub const fn buffer_bytes() -> usize {
        CHUNK_PAIRS * (12 + 8 + 2 * 37)
    }

    /// Starts reading the rows of `range`.
    pub(super) fn seek(&mut self, range: Range<u32>) -> Result<()> {
        self.next_chunk = self
            .index
            .partition_point(|entry| entry.last_left < range.start);
        self.range = range;
        self.chunk.rows.clear();
        self.next_row = 0;
        self.next_pair = 0;
        self.settle()?;
        while self.left().is_some_and(|left| left < self.range.start) {
            self.advance()?;
        }
        Ok(())
    }

    /// The left id of the piece at hand, `None` behind the range.
    pub(super) fn left(&self) -> Option<u32> {
        let &(left, _) = self.chunk.rows.get(self.next_row)?;
        (left < self.range.end).then_some(left)
    }

    /// The piece at hand.
    pub(super) fn piece(&self) -> Option<Piece<'_>> {
        let &(_, pairs) = self.chunk.rows.get(self.next_row)?;
        let pairs = self.next_pair..self.next_pair + pairs as usize;
        Some(Piece {
            right: &self.chunk.right[pairs.clone()],
            counts: &self.chunk.counts[pairs],
            // The first row of a chunk may have begun before, the last may go on.
            whole: self.next_row + 1 < self.chunk.rows.len() && self.next_row > 0,
        })
    }

    /// Goes to the next piece, reading the next chunk when needed.
    pub(super) fn advance(&mut self) -> Result<()> {
        if let Some(&(_, pairs)) = self.chunk.rows.get(self.next_row) {
            self.next_pair += pairs as usize;
            self.next_row += 1;
        }
        self.settle()
    }

    fn settle(&mut self) -> Result<()> {
        if self.next_row < self.chunk.rows.len() {
            return Ok(());
        }
        self.chunk.rows.clear();
        self.next_row = 0;
        self.next_pair = 0;
        let Some(&entry) = self.index.get(self.next_chunk) else {
            return Ok(());
        };
        if entry.first_left >= self.range.end {
            return Ok(());
        }
        self.next_chunk += 1;
        self.chunk.stored.resize(entry.length as usize, 0);
        fill(
            &self.run,
            &mut self.source,
            entry.offset,
            &mut self.chunk.stored,
        )?;
        let decoded = self
            .chunk
            .decode(entry, self.compression, self.vocabulary_size);
        if let Err(reason) = decoded {
            self.chunk.rows.clear();
            return Err(CountError::RunCorrupt {
                run: self.run.clone(),
                offset: entry.offset,
                reason,
            });
        }
        Ok(())
    }
}

fn fill<S: RunSource>(run: &str, source: &mut S, offset: u64, buffer: &mut [u8]) -> Result<()> {
    source.read_at(offset, buffer).map_err(|error| {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            CountError::RunCorrupt {
                run: run.to_owned(),
                offset,
                reason: "the file is cut short",
            }
        } else {
            CountError::RunRead {
                run: run.to_owned(),
                source: error,
            }
        }
    })
}

fn check_index(
    index: &[Entry],
    index_offset: u64,
    pairs: u64,
    vocabulary_size: u32,
) -> Result<(), &'static str> {
    let (mut offset, mut last_left, mut sum) = (HEADER_BYTES as u64, 0, 0);
    for entry in index {
        if entry.offset != offset || entry.first_left < last_left {
            return Err("the chunks are out of order");
        }
        if entry.first_left > entry.last_left || entry.last_left >= vocabulary_size {
            return Err("a chunk's left ids are out of range");
        }
        if entry.pairs == 0
            || entry.pairs as usize > CHUNK_PAIRS
            || entry.length as usize > largest_chunk()
        {
            return Err("a chunk is too large");
        }
        offset += u64::from(entry.length);
        last_left = entry.last_left;
        sum += u64::from(entry.pairs);
    }
    if offset != index_offset || sum != pairs {
        return Err("the chunks do not fill the file");
    }
    Ok(())
}

/// The most bytes a chunk can take: every pair in a row of its own, all integers of 8 bytes.
const fn largest_chunk() -> usize {
    CHUNK_PAIRS * 37 + CHUNK_HEADER_BYTES + 64
}

impl Chunk {
    fn decode(
        &mut self,
        entry: Entry,
        compression: Compression,
        vocabulary_size: u32,
    ) -> Result<(), &'static str> {
        let cut = "a chunk is cut short";
        let body = self.stored.len().checked_sub(4).ok_or(cut)?;
        if Some(crc32fast::hash(&self.stored[..body])) != u32_at(&self.stored, body) {
            return Err("checksum of a chunk does not match");
        }
        let field = |index: usize| u32_at(&self.stored, index * 4).map(|value| value as usize);
        let head: Option<Vec<usize>> = (0..7).map(field).collect();
        let [
            stored_bytes,
            raw_bytes,
            rows,
            pairs,
            row_bytes,
            step_bytes,
            count_bytes,
        ] = head.ok_or(cut)?[..]
        else {
            return Err(cut);
        };
        if stored_bytes + CHUNK_HEADER_BYTES != body
            || pairs != entry.pairs as usize
            || rows > pairs
            || raw_bytes > largest_chunk()
        {
            return Err("a chunk does not fit its index entry");
        }
        let stored = &self.stored[CHUNK_HEADER_BYTES..body];
        let raw = match compression {
            Compression::Packed => stored,
            Compression::Zstd(_) => {
                self.raw.resize(raw_bytes, 0);
                let size = zstd::bulk::decompress_to_buffer(stored, self.raw.as_mut_slice())
                    .map_err(|_| "a chunk cannot be decompressed")?;
                &self.raw[..size]
            }
        };
        let (row_controls, pair_controls) = ((2 * rows).div_ceil(4), pairs.div_ceil(4));
        let step_start = row_controls + row_bytes;
        let count_start = step_start + pair_controls + step_bytes;
        if raw.len() != raw_bytes || count_start + pair_controls + count_bytes + 8 != raw_bytes {
            return Err("a chunk has another length than it says");
        }

        let bad = "a chunk's rows are out of order";
        let mut fields = Vec::with_capacity(2 * rows);
        unpack(raw, 2 * rows, row_bytes, |value| fields.push(value)).ok_or(bad)?;
        self.rows.clear();
        let (mut left, mut total) = (0_u64, 0_u64);
        for (index, row) in fields.chunks_exact(2).enumerate() {
            if (index > 0 && row[0] == 0) || row[1] == 0 {
                return Err(bad);
            }
            left = left.saturating_add(row[0]);
            total = total.saturating_add(row[1]);
            if left >= u64::from(vocabulary_size) || total > pairs as u64 {
                return Err(bad);
            }
            self.rows.push((left as u32, row[1] as u32));
        }
        let first = self.rows.first().map(|row| row.0);
        if total != pairs as u64
            || first != Some(entry.first_left)
            || left != u64::from(entry.last_left)
        {
            return Err("a chunk does not fit its index entry");
        }

        self.right.clear();
        self.right.reserve(pairs);
        let mut large = false;
        unpack(&raw[step_start..], pairs, step_bytes, |value| {
            large |= value >= u64::from(vocabulary_size);
            self.right.push(value as u32);
        })
        .ok_or(bad)?;
        if large {
            return Err("a right id is out of range");
        }
        let mut start = 0;
        for &(_, length) in &self.rows {
            let row = &mut self.right[start..start + length as usize];
            let mut id = u64::from(row[0]);
            for step in &mut row[1..] {
                id += u64::from(*step) + 1;
                *step = id as u32;
            }
            if id >= u64::from(vocabulary_size) {
                return Err("a right id is out of range");
            }
            start += length as usize;
        }

        self.counts.clear();
        self.counts.reserve(pairs);
        let mut zero = false;
        unpack(&raw[count_start..], pairs, count_bytes, |value| {
            zero |= value == 0;
            self.counts.push(value);
        })
        .ok_or(bad)?;
        if zero {
            return Err("a count is zero");
        }
        Ok(())
    }
}
