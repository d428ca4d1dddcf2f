//! How the pairs are spread over the terms: what makes some queries and joins slow.

use std::fmt;

use serde::Serialize;

/// Terms that are named.
const NAMED: usize = 5;

/// How the pairs are spread over the terms.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Skew {
    /// The terms with the most partners, the largest first.
    pub largest: Vec<LargeRow>,
    /// The share of the stored pairs that have one of the 1 % of terms with the most partners in
    /// them; 0 for an empty table.
    pub top_percent_share: f64,
    /// Partners of the term in the middle.
    pub median_partners: u64,
}

/// A term with many partners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LargeRow {
    /// Its id.
    pub id: u32,
    /// Terms that it meets.
    pub partners: u64,
}

impl fmt::Display for Skew {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let largest: Vec<String> = self
            .largest
            .iter()
            .map(|row| format!("id {} meets {}", row.id, row.partners))
            .collect();
        writeln!(
            out,
            "  skew: the top 1 % of terms have {:.1} % of the pairs; the median term meets {}; largest: {}",
            100.0 * self.top_percent_share,
            self.median_partners,
            if largest.is_empty() {
                "none".to_owned()
            } else {
                largest.join(", ")
            }
        )
    }
}

/// Sums by term, gathered while the pairs go by.
pub(super) struct Spread {
    symmetric: bool,
    pub(super) pairs: u64,
    pub(super) units: u128,
    /// Sums of the counts of a term's pairs; for symmetric pairs, `left` has both ends.
    pub(super) left: Vec<u128>,
    pub(super) right: Vec<u128>,
    partners: Vec<u64>,
}

impl Spread {
    pub(super) fn new(terms: usize, symmetric: bool) -> Self {
        Self {
            symmetric,
            pairs: 0,
            units: 0,
            left: vec![0; terms],
            right: vec![0; terms],
            partners: vec![0; terms],
        }
    }

    pub(super) fn add(&mut self, left: usize, right: usize, units: u64) {
        self.pairs += 1;
        self.units += u128::from(units);
        self.left[left] += u128::from(units);
        let far = if self.symmetric {
            &mut self.left
        } else {
            &mut self.right
        };
        far[right] += u128::from(units);
        self.partners[left] += 1;
        if left != right {
            self.partners[right] += 1;
        }
    }

    pub(super) fn skew(self) -> Skew {
        let mut by_partners: Vec<(u64, usize)> = self
            .partners
            .iter()
            .copied()
            .zip(0..)
            .filter(|(partners, _)| *partners > 0)
            .collect();
        by_partners.sort_unstable_by_key(|(partners, id)| (std::cmp::Reverse(*partners), *id));
        let top = by_partners.len().div_ceil(100);
        let all: u64 = by_partners.iter().map(|(partners, _)| partners).sum();
        let of_top: u64 = by_partners[..top]
            .iter()
            .map(|(partners, _)| partners)
            .sum();
        Skew {
            largest: by_partners
                .iter()
                .take(NAMED)
                .map(|(partners, id)| LargeRow {
                    id: u32::try_from(*id).unwrap_or(u32::MAX),
                    partners: *partners,
                })
                .collect(),
            top_percent_share: if all == 0 {
                0.0
            } else {
                of_top as f64 / all as f64
            },
            median_partners: by_partners
                .get(by_partners.len() / 2)
                .map_or(0, |(partners, _)| *partners),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_term_that_meets_all_others_is_the_top() {
        let mut spread = Spread::new(101, true);
        for other in 1..101 {
            spread.add(0, other, 2);
        }
        assert_eq!(
            (spread.pairs, spread.units, spread.left[0]),
            (100, 200, 200)
        );
        let skew = spread.skew();
        assert_eq!(
            skew.largest[0],
            LargeRow {
                id: 0,
                partners: 100
            }
        );
        // 101 terms have pairs, so the top 1 % are two: 100 and 1 of 200 ends.
        assert!((skew.top_percent_share - 101.0 / 200.0).abs() < 1e-12);
        assert_eq!(skew.median_partners, 1);
        assert_eq!(Spread::new(3, false).skew().largest, []);
    }
}
