//! Subsampling of frequent tokens, decided by the row alone.
//!
//! word2vec and hyperwords drop a token at random with a probability that rises with its
//! frequency. A random stream would make the counts depend on how the corpus is cut and would
//! make retraction impossible, so here a token's fate is a hash of all ids of its row and of its
//! position in it: the same row is thinned in the same way wherever and whenever it is read.

use crate::settings::OUT_OF_VOCABULARY;

/// The chance that a token is kept: `min(1, sqrt(threshold / f))` with `f = count / total`, the rule of the
/// word2vec paper and of hyperwords.
///
/// 1 when the count, the total or the threshold is not positive.
/// ```
/// // One token in 100 with a threshold of one in 10,000: sqrt(0.0001 / 0.01) = 0.1.
/// let keep = pmill_count::keep_probability(1e-4, 100, 10_000);
/// assert!((keep - 0.1).abs() < 1e-12);
/// ```
#[must_use]
pub fn keep_probability(threshold: f64, count: u64, total: u64) -> f64 {
    if count == 0 || total == 0 || threshold <= 0.0 {
        return 1.0;
    }
    (threshold * total as f64 / count as f64).sqrt().min(1.0)
}

/// Copies the kept tokens of one row to `out` (cleared first).
///
/// `keep[id]` is the chance of id, in 0..=1; ids beyond `keep` and
/// [`OUT_OF_VOCABULARY`] are always kept, for the block to handle. Equal rows give equal results.
pub fn subsample_row(row: &[u32], keep: &[f64], out: &mut Vec<u32>) {
    out.clear();
    let seed = row
        .iter()
        .fold(mix(row.len() as u64), |hash, &id| mix(hash ^ u64::from(id)));
    out.extend(row.iter().enumerate().filter_map(|(position, &id)| {
        let probability = match keep.get(id as usize) {
            Some(&probability) if id != OUT_OF_VOCABULARY => probability,
            _ => 1.0,
        };
        // 53 bits of hash are a uniform number in [0, 1), so chance 1 keeps and chance 0 drops always.
        let draw = (mix(seed.wrapping_add(position as u64)) >> 11) as f64 / (1_u64 << 53) as f64;
        (draw < probability).then_some(id)
    }));
}

/// A 64-bit mixer (two rounds of multiply and shift; every input bit moves about half of the output bits).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let value = (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (value ^ (value >> 32)).wrapping_add(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sure_tokens_stay_and_impossible_ones_go() {
        let mut out = Vec::new();
        subsample_row(&[0, 1, 0, 1, OUT_OF_VOCABULARY, 7], &[1.0, 0.0], &mut out);
        assert_eq!(out, [0, 0, OUT_OF_VOCABULARY, 7]);
    }

    #[test]
    fn the_share_kept_is_near_the_probability() {
        let (mut out, mut kept) = (Vec::new(), 0);
        for row in 0..2_000_u32 {
            subsample_row(&[0, row, 0, row, 0], &[0.25], &mut out);
            kept += out.iter().filter(|&&id| id == 0).count();
        }
        // 6,000 draws at 1/4 (and row 0 twice more): 1,500 +- 5 standard deviations of 33.5.
        assert!((1_330..1_670).contains(&kept), "{kept}");
    }

    #[test]
    fn a_row_is_thinned_the_same_way_each_time() {
        let row: Vec<u32> = (0..50).collect();
        let (mut first, mut second) = (Vec::new(), vec![9]);
        subsample_row(&row, &[0.5; 50], &mut first);
        subsample_row(&row, &[0.5; 50], &mut second);
        assert_eq!(first, second);
        assert!(!first.is_empty() && first.len() < 50);
    }
}
