//! The bytes of a run file. All numbers are little-endian.
//!
//! | part | content |
//! | --- | --- |
//! | header, 20 bytes | magic `PMILLRUN`, version u16, compression u8, 0 u8, vocabulary size u32, CRC-32 of these |
//! | chunk | stored bytes, raw bytes, rows, pairs, bytes of the three packed streams (7 × u32); the stored bytes; CRC-32 of both |
//! | index | per chunk: offset u64, length u32, first left id u32, last left id u32, pairs u32 |
//! | trailer, 32 bytes | index offset u64, pairs u64, chunks u32, CRC-32 of index and these, magic `PMRUNEND` |
//!
//! Raw bytes of a chunk are three packed streams (module `packed`) and 8 zero bytes: for every row
//! the step of the left id and the number of pairs; for every pair the right id (the first of a
//! row) or its step less one; for every pair the count. A row that does not fit a chunk goes on
//! in the next one under the same left id.

use crate::error::{CountError, Result};

pub(super) const MAGIC: &[u8; 8] = b"PMILLRUN";
pub(super) const END_MAGIC: &[u8; 8] = b"PMRUNEND";
pub(super) const VERSION: u16 = 1;
pub(super) const HEADER_BYTES: usize = 20;
pub(super) const CHUNK_HEADER_BYTES: usize = 28;
pub(super) const ENTRY_BYTES: usize = 24;
pub(super) const TRAILER_BYTES: usize = 32;
/// The most pairs of one chunk.
pub(super) const CHUNK_PAIRS: usize = 16_384;

/// What is done to the packed bytes of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Nothing more: about 3 to 4 bytes a pair, as fast as memory.
    #[default]
    Packed,
    /// Zstandard at this level on top: smaller, for runs that leave the machine.
    Zstd(i32),
}

impl Compression {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Packed => 0,
            Self::Zstd(_) => 1,
        }
    }
}

/// A chunk as the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub offset: u64,
    pub length: u32,
    pub first_left: u32,
    pub last_left: u32,
    pub pairs: u32,
}

impl Entry {
    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        for value in [self.length, self.first_left, self.last_left, self.pairs] {
            out.extend_from_slice(&value.to_le_bytes());
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            offset: u64_at(bytes, 0)?,
            length: u32_at(bytes, 8)?,
            first_left: u32_at(bytes, 12)?,
            last_left: u32_at(bytes, 16)?,
            pairs: u32_at(bytes, 20)?,
        })
    }
}

pub(super) fn header(compression: Compression, vocabulary_size: u32) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[compression.code(), 0]);
    out.extend_from_slice(&vocabulary_size.to_le_bytes());
    let sum = crc32fast::hash(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// The compression (its level is not stored) and the vocabulary size.
pub(super) fn read_header(run: &str, bytes: &[u8]) -> Result<(Compression, u32)> {
    let corrupt = |offset, reason| CountError::RunCorrupt {
        run: run.to_owned(),
        offset,
        reason,
    };
    if bytes.get(..8) != Some(MAGIC) {
        return Err(corrupt(0, "not a run file"));
    }
    let short = || corrupt(0, "the header is cut short");
    let sum = u32_at(bytes, HEADER_BYTES - 4).ok_or_else(short)?;
    if crc32fast::hash(bytes.get(..HEADER_BYTES - 4).ok_or_else(short)?) != sum {
        return Err(corrupt(0, "checksum of the header does not match"));
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version != VERSION {
        return Err(CountError::RunVersion {
            run: run.to_owned(),
            found: version,
            supported: VERSION,
        });
    }
    let compression = match bytes[10] {
        0 => Compression::Packed,
        1 => Compression::Zstd(0),
        _ => return Err(corrupt(10, "unknown compression")),
    };
    Ok((compression, u32_at(bytes, 12).ok_or_else(short)?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
