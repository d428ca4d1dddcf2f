//! The binary format of DataSketches, where the crate gives no access: differences of count-min sketches, cells, a
//! HyperLogLog in HLL mode without a pair; and a file of all parts, for a process that goes on later.
//!
//! A count-min image is 16 bytes of head, and unless it is empty the total and the cells, 8 bytes each,
//! little-endian. A HyperLogLog image of 8-bit registers is 40 bytes of head and the registers.

use std::io::{Read, Write};

use super::settings::REGISTERS_LOG2;
use super::{Distinct, HashRow, Tail, TailSums, inner};
use crate::error::{CountError, Result};

const COUNT_MIN_HEAD: usize = 16;
const HLL_HEAD: usize = 40;
/// Begins a file of all parts.
const MAGIC: &[u8; 8] = b"pmtail\x00\x01";

/// The numbers behind the head: the total, then the cells. None for an empty sketch.
fn numbers(image: &[u8]) -> Result<&[[u8; 8]]> {
    let numbers = image.get(COUNT_MIN_HEAD..).map(<[u8]>::as_chunks::<8>);
    match numbers {
        Some((numbers, [])) => Ok(numbers),
        _ => Err(CountError::TailDamaged {
            reason: format!("a hash row of {} bytes", image.len()),
        }),
    }
}

/// The image of one row less another; `None` when nothing is left.
pub(super) fn difference(mut image: Vec<u8>, less: &[u8], hash: u8) -> Result<Option<Vec<u8>>> {
    let less = numbers(less)?;
    if less.is_empty() {
        return Ok(Some(image));
    }
    let negative = |bucket: u32, count: u64, subtract: u64| CountError::NegativeCell {
        hash,
        bucket,
        count,
        subtract,
    };
    let (mine, _) = image[COUNT_MIN_HEAD..].as_chunks_mut::<8>();
    if mine.is_empty() {
        return Err(negative(0, 0, u64::from_le_bytes(less[0])));
    }
    let mut left = 0_u64;
    for (place, (mine, less)) in mine.iter_mut().zip(less).enumerate() {
        let (count, less) = (u64::from_le_bytes(*mine), u64::from_le_bytes(*less));
        let bucket = u32::try_from(place.saturating_sub(1)).unwrap_or(u32::MAX);
        let rest = count.checked_sub(less);
        let rest = rest.ok_or_else(|| negative(bucket, count, less))?;
        left |= rest;
        *mine = rest.to_le_bytes();
    }
    Ok((left > 0).then_some(image))
}

pub(super) fn cells(image: &[u8]) -> Result<(Vec<u64>, u64)> {
    let mut numbers = numbers(image)?
        .iter()
        .map(|number| u64::from_le_bytes(*number));
    let total = numbers.next().unwrap_or(0);
    Ok((numbers.collect(), total))
}

/// A HyperLogLog without a pair that is in HLL mode, and estimates from its registers alone.
pub(super) fn no_registers() -> Vec<u8> {
    let registers = 1_u32 << REGISTERS_LOG2;
    let mut image = Vec::with_capacity(HLL_HEAD + registers as usize);
    // Ten words of head, serial version 1, family HLL, registers, no auxiliary table, "out of order" (no
    // running estimate), smallest register 0, mode HLL with 8 bits a register.
    image.extend([10, 1, 7, REGISTERS_LOG2, 0, 16, 0, 2 | 2 << 2]);
    image.extend(0_f64.to_le_bytes());
    // The sum of 2^-register, of those below 32 and of the others.
    image.extend(f64::from(registers).to_le_bytes());
    image.extend(0_f64.to_le_bytes());
    // Registers that are zero; entries of the auxiliary table.
    image.extend(registers.to_le_bytes());
    image.extend(0_u32.to_le_bytes());
    image.resize(HLL_HEAD + registers as usize, 0);
    image
}

struct Checked<T> {
    inner: T,
    crc: crc32fast::Hasher,
}

impl<W: Write> Checked<W> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.crc.update(bytes);
        self.inner.write_all(bytes)
    }

    fn put_part(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.put(&(bytes.len() as u64).to_le_bytes())?;
        self.put(bytes)
    }
}

impl<R: Read> Checked<R> {
    fn take(&mut self, length: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.inner.read_exact(&mut bytes)?;
        self.crc.update(&bytes);
        Ok(bytes)
    }

    fn number(&mut self) -> std::io::Result<u64> {
        let bytes = self.take(8)?;
        Ok(bytes
            .as_chunks::<8>()
            .0
            .first()
            .map_or(0, |b| u64::from_le_bytes(*b)))
    }

    /// A part of at most so many bytes.
    fn take_part(&mut self, most: usize) -> std::io::Result<Vec<u8>> {
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if length > most {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        self.take(length)
    }
}

pub(super) fn save(tail: &mut Tail, to: &mut impl Write) -> std::io::Result<()> {
    let mut to = Checked {
        inner: to,
        crc: crc32fast::Hasher::new(),
    };
    to.put(MAGIC)?;
    for row in &mut tail.rows {
        to.put_part(&inner(row).image())?;
    }
    to.put_part(&inner(&mut tail.distinct).image())?;
    let sums = inner(&mut tail.sums);
    for sums in [&sums.left, &sums.right] {
        let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        to.put_part(&bytes)?;
    }
    let crc = to.crc.clone().finalize();
    to.inner.write_all(&crc.to_le_bytes())
}

pub(super) fn load(tail: &mut Tail, from: &mut impl Read) -> Result<()> {
    let fail = |source| CountError::RunRead {
        run: "of the sketch".to_owned(),
        source,
    };
    let broken = || CountError::TailDamaged {
        reason: "what an earlier try kept of it is damaged".to_owned(),
    };
    let mut from = Checked {
        inner: from,
        crc: crc32fast::Hasher::new(),
    };
    if from.take(MAGIC.len()).map_err(fail)? != MAGIC {
        return Err(broken());
    }
    let settings = tail.settings.clone();
    let row_bytes = COUNT_MIN_HEAD + 8 + settings.buckets as usize * 8;
    let mut rows = Vec::new();
    for hash in 0..settings.hashes {
        let image = from.take_part(row_bytes).map_err(fail)?;
        rows.push(HashRow::from_image(&settings, hash, &image)?);
    }
    let image = from
        .take_part(HLL_HEAD + (1 << REGISTERS_LOG2))
        .map_err(fail)?;
    let distinct = Distinct::from_image(&image)?;
    let terms = inner(&mut tail.sums).left.len();
    let mut numbers = || -> Result<Vec<u64>> {
        let bytes = from.take_part(terms * 8).map_err(fail)?;
        let numbers = bytes.as_chunks::<8>().0.iter();
        Ok(numbers.map(|number| u64::from_le_bytes(*number)).collect())
    };
    let (left, right) = (numbers()?, numbers()?);
    let crc = from.crc.clone().finalize();
    let mut stored = [0; 4];
    from.inner.read_exact(&mut stored).map_err(fail)?;
    if u32::from_le_bytes(stored) != crc {
        return Err(broken());
    }
    tail.add_sums(&TailSums { left, right })?;
    for (hash, row) in (0..settings.hashes).zip(&rows) {
        tail.add_row(hash, row)?;
    }
    tail.add_distinct(&distinct)
}
