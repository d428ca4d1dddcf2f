//! The scores of pairs by their ids, for millions of look-ups a second.
//!
//! A pair lies in the row of its rarer term (the larger id), whose row is the shorter one. Pairs of
//! the most frequent terms, which are most of those that a text holds, lie in a dense triangle
//! instead. Memory: 12 bytes a pair and up to 16 MiB for the triangle.

use crate::error::EngineError;
use crate::rows::RowBand;

/// Terms of the dense triangle.
const DENSE: usize = 2048;

/// Score and natural count of one pair, in single precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pair {
    pub(super) score: f32,
    pub(super) count: f32,
}

/// No such pair.
const NONE: Pair = Pair {
    score: f32::NAN,
    count: 0.0,
};

/// Pairs by row. For a symmetric job the row is the larger id.
pub(super) struct Lookup {
    symmetric: bool,
    dense_terms: usize,
    dense: Vec<Pair>,
    row_starts: Vec<usize>,
    columns: Vec<u32>,
    pairs: Vec<Pair>,
}

/// Bytes of a table of `terms` terms and `pairs` pairs.
pub(super) fn bytes(terms: usize, pairs: u64) -> u64 {
    let dense = terms.min(DENSE) as u64;
    pairs * 12 + terms as u64 * 8 + dense * dense * 8
}

impl Lookup {
    pub(super) fn new(terms: usize, symmetric: bool) -> Self {
        let dense_terms = terms.min(DENSE);
        Self {
            symmetric,
            dense_terms,
            dense: vec![NONE; dense_terms * dense_terms],
            row_starts: vec![0],
            columns: Vec::new(),
            pairs: Vec::new(),
        }
    }

    /// Takes the scores of a band and the counts of the same band; rows rise from call to call.
    pub(super) fn push(&mut self, scores: &RowBand, counts: &RowBand) -> Result<(), EngineError> {
        let mut counted = counts.rows();
        for (row, columns, values) in scores.rows() {
            let Some((_, all, counts)) = counted.find(|(other, ..)| *other == row) else {
                return Err(EngineError::Bug("a scored row was not counted".into()));
            };
            self.row_starts.resize(row as usize + 1, self.columns.len());
            let mut place = 0;
            for (column, value) in columns.iter().zip(values) {
                // The other half of a symmetric matrix says the same.
                if self.symmetric && *column > row {
                    break;
                }
                while all.get(place).is_some_and(|other| other < column) {
                    place += 1;
                }
                let pair = Pair {
                    score: *value as f32,
                    count: counts.get(place).copied().unwrap_or(0.0) as f32,
                };
                if (row as usize) < self.dense_terms && (*column as usize) < self.dense_terms {
                    self.dense[row as usize * self.dense_terms + *column as usize] = pair;
                } else {
                    self.columns.push(*column);
                    self.pairs.push(pair);
                }
            }
            self.row_starts.push(self.columns.len());
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, terms: usize) {
        self.row_starts.resize(terms + 1, self.columns.len());
    }

    /// Gives the pairs of one row with each of `columns` (rising) to `found`, `None` for a pair that
    /// the table does not hold. For a symmetric job no column is above the row.
    pub(super) fn row(
        &self,
        row: u32,
        columns: impl Iterator<Item = u32>,
        mut found: impl FnMut(u32, Option<Pair>),
    ) {
        let at = row as usize;
        let range = self.row_starts[at]..self.row_starts[at + 1];
        let (mut rest, mut base) = (&self.columns[range.clone()], range.start);
        let dense = if at < self.dense_terms {
            &self.dense[at * self.dense_terms..][..self.dense_terms]
        } else {
            &[]
        };
        for column in columns {
            if let Some(pair) = dense.get(column as usize) {
                found(column, (!pair.score.is_nan()).then_some(*pair));
                continue;
            }
            let skipped = rest.partition_point(|other| *other < column);
            (rest, base) = (&rest[skipped..], base + skipped);
            let here = rest.first() == Some(&column);
            found(column, here.then(|| self.pairs[base]));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_pair_is_found_and_no_other() {
        let terms = DENSE + 60;
        for symmetric in [true, false] {
            let mut all = BTreeMap::new();
            for place in 0..4000_u64 {
                let number = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                let near = |x: u64| ((DENSE as u64 - 40) + x % 100) as u32;
                let (x, y) = (near(number), near(number >> 13));
                let (row, column) = if symmetric {
                    (x.max(y), x.min(y))
                } else {
                    (x, y)
                };
                all.insert((row, column), (place as f64 - 2000.0, place as f64 + 1.0));
            }
            let band = |value: fn(&(f64, f64)) -> f64| {
                let mut band = RowBand {
                    row_starts: vec![0],
                    ..RowBand::default()
                };
                for row in 0..terms as u32 {
                    for ((_, column), values) in all.range((row, 0)..(row + 1, 0)) {
                        band.columns.push(*column);
                        band.values.push(value(values));
                    }
                    band.row_starts.push(band.columns.len());
                }
                band
            };
            let mut lookup = Lookup::new(terms, symmetric);
            lookup.push(&band(|v| v.0), &band(|v| v.1)).unwrap();
            lookup.finish(terms);
            for row in 0..terms as u32 {
                let columns = 0..if symmetric { row + 1 } else { terms as u32 };
                let mut hits = 0;
                lookup.row(row, columns, |column, pair| {
                    let expected = all.get(&(row, column)).map(|(score, count)| Pair {
                        score: *score as f32,
                        count: *count as f32,
                    });
                    assert_eq!(pair, expected);
                    hits += usize::from(pair.is_some());
                });
                assert_eq!(hits, all.range((row, 0)..(row + 1, 0)).count());
            }
        }
    }
}
