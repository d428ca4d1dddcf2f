//! How many terms are counted exactly, and how large the sketch of the other pairs is.

use serde::{Deserialize, Serialize};

use crate::error::{CountError, Result};

/// Registers of the HyperLogLog, as a power of two.
pub(super) const REGISTERS_LOG2: u8 = 14;

/// The seed of the first hash row; the others follow, one by one. Fixed, or sketches would not add up.
const FIRST_SEED: u64 = 0x706d_696c_6c00_0000;

/// Cells of a hash row at most: a row is one value of a table, and 512 MiB are enough for one.
const MOST_BUCKETS: u32 = 1 << 26;
/// Hash rows at most; 32 leave a chance of 10⁻¹⁴.
const MOST_HASHES: u8 = 32;

/// Which pairs are sketched, and by what.
///
/// A pair of two ids below `exact_terms` is exact; every other one goes into a count-min sketch of
/// `hashes` rows of `buckets` cells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailSettings {
    /// Pairs of two of the first ids, so many, are counted exactly. 0: none is.
    pub exact_terms: u32,
    /// Cells of a hash row, 3 to 2²⁶.
    #[serde(default = "TailSettings::default_buckets")]
    pub buckets: u32,
    /// Hash rows, 1 to 32.
    #[serde(default = "TailSettings::default_hashes")]
    pub hashes: u8,
}

impl TailSettings {
    /// 2²⁰ cells, 8 MiB a hash row.
    #[must_use]
    pub fn default_buckets() -> u32 {
        1 << 20
    }

    /// 5 hash rows: the bound holds for a pair with a chance of 99.3 %.
    #[must_use]
    pub fn default_hashes() -> u8 {
        5
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`CountError::TailSize`].
    pub fn validate(&self) -> Result<()> {
        for (what, found, least, most) in [
            ("buckets", self.buckets, 3, MOST_BUCKETS),
            ("hashes", self.hashes.into(), 1, MOST_HASHES.into()),
        ] {
            if !(least..=most).contains(&found) {
                return Err(CountError::TailSize {
                    what,
                    found,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }

    /// The seed of a hash row, from 0.
    #[must_use]
    pub fn seed(&self, hash: u8) -> u64 {
        FIRST_SEED + u64::from(hash)
    }

    /// ε: an estimate is above the truth by at most this share of the sum of all counts in the sketch,
    /// with [`Self::confidence`]: e/W (Cormode and Muthukrishnan 2005, Theorem 1).
    ///
    /// ```
    /// let settings = pmill_count::TailSettings { exact_terms: 10, buckets: 272, hashes: 5 };
    /// // e / 272 is 1 %.
    /// assert!((settings.relative_error() - 0.01).abs() < 1e-4);
    /// ```
    #[must_use]
    pub fn relative_error(&self) -> f64 {
        std::f64::consts::E / f64::from(self.buckets)
    }

    /// 1 − δ: the chance that the bound holds for a pair, 1 − e^−D.
    #[must_use]
    pub fn confidence(&self) -> f64 {
        1.0 - (-f64::from(self.hashes)).exp()
    }

    /// The bound in units: how much an estimate may be above the truth when the counts add up to `total`.
    #[must_use]
    pub fn most_over(&self, total: u64) -> u64 {
        (total as f64 * self.relative_error()).ceil() as u64
    }

    /// Registers of the HyperLogLog of distinct pairs.
    #[must_use]
    pub fn registers() -> u32 {
        1 << REGISTERS_LOG2
    }

    /// The relative standard error of the number of distinct pairs: 1.04/√m (Flajolet et al. 2007).
    #[must_use]
    pub fn distinct_error() -> f64 {
        1.04 / f64::from(Self::registers()).sqrt()
    }

    /// Bytes of one hash row.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        u64::from(self.buckets) * 8
    }

    /// Bytes that a sketch holds, without its sums by term (16 an id).
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.row_bytes() * u64::from(self.hashes) + (1 << REGISTERS_LOG2)
    }
}
