//! Pairs that are not kept one by one: a count-min sketch of their counts, exact sums by term, and a
//! HyperLogLog of how many there are.
//!
//! ```text
//! rows ─▶ TailSplit ─ both ids below `exact_terms` ─▶ the sink, exact
//!                   └ others ─▶ Tail: D hash rows of W cells, sums by term, HyperLogLog
//! ```
//!
//! Every part is a sum of whole numbers or a maximum, so the same pairs give the same [`Tail`] whatever
//! the split into blocks, threads and batches. Threads share one: each collects some thousand pairs and
//! then goes through the parts, one lock after the other, each thread from another part on.
//!
//! The parts are those of the crate `datasketches`, each hash row a sketch of its own with a seed of its own,
//! so that one row at a time can be read, added and taken away. The images are its binary format.

mod image;
mod settings;
mod split;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use datasketches::countmin::CountMinSketch;
use datasketches::hll::{HllSketch, HllType, HllUnion};

use self::settings::REGISTERS_LOG2;
pub use self::settings::TailSettings;
pub use self::split::TailSplit;
use crate::error::{CountError, Result};
use crate::sink::RowSink;

/// Sums end where the tables' 64-bit integers do.
const LARGEST_TOTAL: u64 = i64::MAX as u64;

/// A pair and its units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    left: u32,
    right: u32,
    count: u64,
}

/// What is hashed of a pair: the left id in the upper half, 8 bytes, little-endian.
fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Units of the sketched pairs by term, exact.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TailSums {
    /// By id: the sum of the pairs in which it is the left one.
    pub left: Vec<u64>,
    /// By id: the sum of the pairs in which it is the right one.
    pub right: Vec<u64>,
}

impl TailSums {
    /// Zeros.
    #[must_use]
    pub fn of(vocabulary_size: u32) -> Self {
        Self {
            left: vec![0; vocabulary_size as usize],
            right: vec![0; vocabulary_size as usize],
        }
    }

    /// The sum of all pairs.
    ///
    /// # Errors
    /// When it leaves 63 bits.
    pub fn total(&self) -> Result<u64> {
        let sum: u128 = self.left.iter().map(|sum| u128::from(*sum)).sum();
        u64::try_from(sum)
            .ok()
            .filter(|sum| *sum <= LARGEST_TOTAL)
            .ok_or(CountError::TailOverflow)
    }

    /// Adds other sums.
    ///
    /// # Errors
    /// Other terms, a sum beyond 63 bits.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.check(other)?;
        // No sum of a part is above the total.
        let total = self.total()?.checked_add(other.total()?);
        if total.is_none_or(|total| total > LARGEST_TOTAL) {
            return Err(CountError::TailOverflow);
        }
        let sums = self.left.iter_mut().chain(&mut self.right);
        for (sum, more) in sums.zip(other.left.iter().chain(&other.right)) {
            *sum += more;
        }
        Ok(())
    }

    /// Takes other sums away.
    ///
    /// # Errors
    /// [`CountError::NegativeTail`] names the first id whose sum would be below zero.
    pub fn subtract(&mut self, other: &Self) -> Result<()> {
        self.check(other)?;
        for (sums, less) in [
            (&mut self.left, &other.left),
            (&mut self.right, &other.right),
        ] {
            for (id, (sum, less)) in sums.iter_mut().zip(less).enumerate() {
                *sum = sum.checked_sub(*less).ok_or(CountError::NegativeTail {
                    id: id as u32,
                    count: *sum,
                    subtract: *less,
                })?;
            }
        }
        Ok(())
    }

    fn check(&self, other: &Self) -> Result<()> {
        if self.left.len() == other.left.len() && self.right.len() == other.right.len() {
            return Ok(());
        }
        Err(CountError::AccumulatorSize {
            accumulator: self.left.len() as u32,
            data: other.left.len() as u32,
        })
    }
}

/// One hash row of a count-min sketch.
#[derive(Debug, Clone, PartialEq)]
pub struct HashRow(CountMinSketch<u64>);

impl HashRow {
    fn new(settings: &TailSettings, hash: u8) -> Result<Self> {
        settings.validate()?;
        CountMinSketch::with_seed(1, settings.buckets, settings.seed(hash))
            .map(Self)
            .map_err(damaged)
    }

    /// A stored row.
    ///
    /// # Errors
    /// When the bytes are not the image of this hash row.
    pub fn from_image(settings: &TailSettings, hash: u8, image: &[u8]) -> Result<Self> {
        let row = CountMinSketch::deserialize_with_seed(image, settings.seed(hash));
        let row = row.map_err(damaged)?;
        if row.num_buckets() != settings.buckets || row.num_hashes() != 1 {
            return Err(CountError::TailDamaged {
                reason: format!(
                    "a hash row has {} cells, expected {}",
                    row.num_buckets(),
                    settings.buckets
                ),
            });
        }
        Ok(Self(row))
    }

    /// The row in the binary format of DataSketches.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        self.0.serialize()
    }

    /// The sum of all counts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.total_weight()
    }

    /// What this row says of a pair: its count, and those of the pairs that share its cell.
    #[must_use]
    pub fn estimate(&self, left: u32, right: u32) -> u64 {
        self.0.estimate(key(left, right))
    }

    /// Adds another row.
    ///
    /// # Errors
    /// A sum beyond 63 bits.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        let total = self.total().checked_add(other.total());
        if total.is_none_or(|total| total > LARGEST_TOTAL) {
            return Err(CountError::TailOverflow);
        }
        self.0.merge(&other.0).map_err(damaged)
    }

    /// Takes another row away.
    ///
    /// # Errors
    /// [`CountError::NegativeCell`].
    pub fn subtract(&mut self, settings: &TailSettings, hash: u8, other: &Self) -> Result<()> {
        let image = image::difference(self.image(), &other.image(), hash)?;
        *self = match image {
            Some(image) => Self::from_image(settings, hash, &image)?,
            None => Self::new(settings, hash)?,
        };
        Ok(())
    }

    /// The cells of a stored row, and what the row says is their sum.
    ///
    /// # Errors
    /// When the bytes are too short.
    pub fn cells(image: &[u8]) -> Result<(Vec<u64>, u64)> {
        image::cells(image)
    }
}

/// The number of distinct pairs, in the HLL mode of DataSketches from the first pair on: in its other
/// modes, and in its running estimate, the order of the pairs would show.
#[derive(Debug, Clone, PartialEq)]
pub struct Distinct(HllSketch);

impl Distinct {
    fn new() -> Result<Self> {
        Self::from_image(&image::no_registers())
    }

    /// A stored sketch.
    ///
    /// # Errors
    /// When the bytes are not its image.
    pub fn from_image(image: &[u8]) -> Result<Self> {
        let sketch = HllSketch::deserialize(image).map_err(damaged)?;
        if sketch.lg_config_k() != REGISTERS_LOG2 || sketch.target_type() != HllType::Hll8 {
            return Err(CountError::TailDamaged {
                reason: format!("a HyperLogLog has 2^{} registers", sketch.lg_config_k()),
            });
        }
        Ok(Self(sketch))
    }

    /// The sketch in the binary format of DataSketches.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        self.0.serialize()
    }

    /// About how many distinct pairs there are.
    #[must_use]
    pub fn estimate(&self) -> u64 {
        self.0.composite_estimate().round() as u64
    }

    /// Adds the pairs of another.
    ///
    /// # Errors
    /// None that is known: both have the same registers.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        let mut union = HllUnion::new(REGISTERS_LOG2).map_err(damaged)?;
        union.update(&self.0);
        union.update(&other.0);
        if !union.is_empty() {
            self.0 = union.to_sketch(HllType::Hll8);
        }
        Ok(())
    }
}

/// The sketch of one set of pairs, filled by several threads at once.
#[derive(Debug)]
pub struct Tail {
    settings: TailSettings,
    total: AtomicU64,
    rows: Vec<Mutex<HashRow>>,
    distinct: Mutex<Distinct>,
    sums: Mutex<TailSums>,
    /// Part at which the next thread begins.
    turn: AtomicUsize,
}

impl Tail {
    /// An empty sketch for ids below `vocabulary_size`.
    ///
    /// # Errors
    /// [`CountError::TailSize`].
    pub fn new(settings: &TailSettings, vocabulary_size: u32) -> Result<Self> {
        let rows = (0..settings.hashes).map(|hash| HashRow::new(settings, hash).map(Mutex::new));
        Ok(Self {
            total: AtomicU64::new(0),
            rows: rows.collect::<Result<_>>()?,
            distinct: Mutex::new(Distinct::new()?),
            sums: Mutex::new(TailSums::of(vocabulary_size)),
            turn: AtomicUsize::new(0),
            settings: settings.clone(),
        })
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &TailSettings {
        &self.settings
    }

    /// A sink that keeps the exact pairs for `sink` and puts the others in here.
    pub fn split<S: RowSink>(&self, sink: S) -> TailSplit<'_, S> {
        TailSplit::new(self, sink)
    }

    fn add(&self, entries: &[Entry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let more: u128 = entries.iter().map(|entry| u128::from(entry.count)).sum();
        let more = u64::try_from(more).map_err(|_| CountError::TailOverflow)?;
        // No cell and no sum is above the total, so none of them overflows when it does not.
        let within = |total: u64| total.checked_add(more).filter(|sum| *sum <= LARGEST_TOTAL);
        self.total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within)
            .map_err(|_| CountError::TailOverflow)?;
        let parts = self.rows.len() + 2;
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for part in 0..parts {
            let part = (first + part) % parts;
            if let Some(row) = self.rows.get(part) {
                let row = &mut locked(row).0;
                for entry in entries {
                    row.update_with_weight(key(entry.left, entry.right), entry.count);
                }
            } else if part == self.rows.len() {
                let mut sums = locked(&self.sums);
                for entry in entries {
                    sums.left[entry.left as usize] += entry.count;
                    sums.right[entry.right as usize] += entry.count;
                }
            } else {
                let distinct = &mut locked(&self.distinct).0;
                for entry in entries {
                    distinct.update(key(entry.left, entry.right));
                }
            }
        }
        Ok(())
    }

    /// Adds stored sums by term; the hash rows and the HyperLogLog that go with them come by
    /// [`Self::add_row`] and [`Self::add_distinct`].
    ///
    /// # Errors
    /// Other terms, a sum beyond 63 bits.
    pub fn add_sums(&mut self, more: &TailSums) -> Result<()> {
        let sums = inner(&mut self.sums);
        sums.add(more)?;
        *self.total.get_mut() = sums.total()?;
        Ok(())
    }

    /// Adds a stored hash row.
    ///
    /// # Errors
    /// A sum beyond 63 bits; a row that is not there.
    pub fn add_row(&mut self, hash: u8, more: &HashRow) -> Result<()> {
        let row = self.rows.get_mut(usize::from(hash));
        inner(row.ok_or_else(|| no_row(hash))?).add(more)
    }

    /// Adds a stored HyperLogLog.
    ///
    /// # Errors
    /// As [`Distinct::add`].
    pub fn add_distinct(&mut self, more: &Distinct) -> Result<()> {
        inner(&mut self.distinct).add(more)
    }

    /// Takes away what another sketch holds. Its distinct pairs stay: a maximum cannot be taken back, so
    /// their number is from then on one that is not exceeded.
    ///
    /// # Errors
    /// [`CountError::NegativeTail`] or [`CountError::NegativeCell`] when more would go than is there.
    pub fn subtract(&mut self, less: &mut Self) -> Result<()> {
        let sums = inner(&mut self.sums);
        sums.subtract(inner(&mut less.sums))?;
        *self.total.get_mut() = sums.total()?;
        let rows = self.rows.iter_mut().zip(&mut less.rows);
        for (hash, (row, less)) in (0..self.settings.hashes).zip(rows) {
            inner(row).subtract(&self.settings, hash, inner(less))?;
        }
        Ok(())
    }

    /// The sum of all counts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// A hash row.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn row(&mut self, hash: u8) -> Result<&HashRow> {
        let row = self.rows.get_mut(usize::from(hash));
        Ok(inner(row.ok_or_else(|| no_row(hash))?))
    }

    /// The distinct pairs.
    pub fn distinct(&mut self) -> &Distinct {
        inner(&mut self.distinct)
    }

    /// The sums by term.
    pub fn sums(&mut self) -> &TailSums {
        inner(&mut self.sums)
    }

    /// What the sketch says of a pair: at least its count, see [`TailSettings::most_over`].
    #[must_use]
    pub fn estimate(&mut self, left: u32, right: u32) -> u64 {
        let rows = self.rows.iter_mut();
        let estimates = rows.map(|row| inner(row).estimate(left, right));
        estimates.min().unwrap_or(0)
    }

    /// Writes all of it, for a process that goes on later.
    ///
    /// # Errors
    /// When writing fails.
    pub fn save(&mut self, to: &mut impl Write) -> Result<()> {
        image::save(self, to).map_err(|source| CountError::RunWrite { source })
    }

    /// Adds what [`Self::save`] wrote.
    ///
    /// # Errors
    /// When reading fails, or what is read is damaged or of another sketch.
    pub fn load(&mut self, from: &mut impl Read) -> Result<()> {
        image::load(self, from)
    }
}

/// A thread that panicked ends the job, so what it left half done is never used.
fn locked<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

fn inner<T>(part: &mut Mutex<T>) -> &mut T {
    part.get_mut().unwrap_or_else(PoisonError::into_inner)
}

fn damaged(error: datasketches::error::Error) -> CountError {
    CountError::TailDamaged {
        reason: error.to_string(),
    }
}

fn no_row(hash: u8) -> CountError {
    CountError::TailDamaged {
        reason: format!("there is no hash row {hash}"),
    }
}

#[cfg(test)]
mod tests;
