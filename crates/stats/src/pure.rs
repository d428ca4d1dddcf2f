//! The measures as plain functions of four counts. Counts may be fractional (window weights in natural units).
//!
//! Every function gives `None` outside the domain (see [`crate::problem`]) and where the formula leaves the value open;
//! an infinite limit is `Some(±∞)`.

use crate::cells::{Cells, FloatCells, WideCells};
use crate::measures::fisher::{self, Alternative};
use crate::measures::{deviation, information, interval, overlap};
use crate::special::two_sided_z;

/// Runs a measure on checked cells; NaN becomes `None`.
fn checked<C: Cells>(cells: C, needs_neither: bool, measure: impl Fn(C) -> f64) -> Option<f64> {
    if !cells.valid() || (needs_neither && cells.neither() < 0.0) {
        return None;
    }
    let value = measure(cells) + 0.0; // −0 becomes 0
    (!value.is_nan()).then_some(value)
}

macro_rules! pure {
    ($(#[$doc:meta])* $name:ident, $neither:expr, $measure:expr $(, $parameter:ident)*) => {
        $(#[$doc])*
        pub fn $name(n_xy: f64, n_x: f64, n_y: f64, n: f64 $(, $parameter: f64)*) -> Option<f64> {
            checked(FloatCells { n_xy, n_x, n_y, n }, $neither, |cells| $measure(cells $(, $parameter)*))
        }
    };
}

pure!(
    /// Pointwise mutual information in nats: `ln(n_xy · n / (n_x · n_y))`.
    ///
    /// From −∞ (`n_xy = 0`) to `ln n`. `None` when x or y never comes. Relative error below 1e-14 also near zero,
    /// for integers below 2^53; above them see [`pmi_u64`].
    /// ```
    /// // 8 rows, each feature in 4 of them, always together: twice as often as chance.
    /// assert_eq!(pmill_stats::pmi(4.0, 4.0, 4.0, 8.0), Some(2_f64.ln()));
    /// assert_eq!(pmill_stats::pmi(0.0, 4.0, 4.0, 8.0), Some(f64::NEG_INFINITY));
    /// assert_eq!(pmill_stats::pmi(5.0, 4.0, 4.0, 8.0), None);
    /// ```
    pmi, false, information::pmi);
pure!(
    /// Normalized PMI, `pmi / −ln(n_xy / n)`: −1 never together, 0 independent, 1 only together. `None` when a margin is
    /// zero or the pair is in every context (0/0).
    /// ```
    /// assert_eq!(pmill_stats::npmi(4.0, 4.0, 4.0, 8.0), Some(1.0));
    /// assert_eq!(pmill_stats::npmi(0.0, 4.0, 4.0, 8.0), Some(-1.0));
    /// ```
    npmi, false, information::npmi);
pure!(
    /// Positive PMI in nats: `max(0, pmi)`; 0 for a pair that never meets, `None` when a margin is zero.
    /// ```
    /// assert_eq!(pmill_stats::ppmi(1.0, 4.0, 4.0, 8.0), Some(0.0)); // half as often as chance
    /// ```
    ppmi, false, information::ppmi);
pure!(
    /// Shifted positive PMI in nats: `max(0, pmi − ln shift)`. `shift` above 0.
    /// ```
    /// assert_eq!(pmill_stats::sppmi(4.0, 4.0, 4.0, 8.0, 2.0), Some(0.0)); // ln 2 − ln 2
    /// ```
    sppmi, false, information::sppmi, shift);
pure!(
    /// `ln(p_xy^power / (p_x p_y))` in nats: PMI², PMI³. At most 0 for powers of 2 and more.
    /// ```
    /// assert_eq!(pmill_stats::pmi_k(4.0, 4.0, 4.0, 8.0, 2.0), Some(0.0));
    /// ```
    pmi_k, false, information::pmi_k, power);
pure!(
    /// Smoothed PMI in nats: `ln((n_xy + pair) · n / ((n_x + unigram)(n_y + unigram)))`.
    /// ```
    /// // (0 + 1) · 8 / ((3 + 1)(1 + 1)) = 1
    /// assert_eq!(pmill_stats::pmi_smoothed(0.0, 3.0, 1.0, 8.0, 1.0, 1.0), Some(0.0));
    /// ```
    pmi_smoothed, false, information::pmi_smoothed, pair, unigram);
pure!(
    /// The caption score `ln((n_xy + pair) / ((n_x + unigram)(n_y + unigram)))`: no factor `n`, so not a PMI.
    /// ```
    /// assert_eq!(pmill_stats::qu_xie(7.0, 1.0 + 7.0, 7.0, 100.0, 1.0, 1.0), Some((8_f64 / 72.0).ln()));
    /// ```
    qu_xie, false, information::qu_xie, pair, unigram);
pure!(
    /// Local mutual information in nats: `n_xy · pmi`; 0 for a pair that never meets.
    /// ```
    /// assert_eq!(pmill_stats::lmi(4.0, 4.0, 4.0, 8.0), Some(4.0 * 2_f64.ln()));
    /// ```
    lmi, false, information::lmi);
pure!(
    /// logDice, `14 + log2(dice)`: at most 14.
    /// ```
    /// assert_eq!(pmill_stats::log_dice(2.0, 4.0, 4.0, 8.0), Some(13.0));
    /// ```
    log_dice, false, overlap::log_dice);
pure!(
    /// Dice coefficient `2 n_xy / (n_x + n_y)`, 0 to 1.
    /// ```
    /// assert_eq!(pmill_stats::dice(2.0, 4.0, 4.0, 8.0), Some(0.5));
    /// ```
    dice, false, overlap::dice);
pure!(
    /// Jaccard index `n_xy / (n_x + n_y − n_xy)`, 0 to 1.
    /// ```
    /// assert_eq!(pmill_stats::jaccard(2.0, 4.0, 4.0, 8.0), Some(1.0 / 3.0));
    /// ```
    jaccard, false, overlap::jaccard);
pure!(
    /// Lift `n_xy n / (n_x n_y)`: 1 at independence.
    /// ```
    /// assert_eq!(pmill_stats::lift(4.0, 4.0, 4.0, 8.0), Some(2.0));
    /// ```
    lift, false, overlap::lift);
pure!(
    /// Conviction of x → y, `n_x (n − n_y) / (n (n_x − n_xy))`: 1 at independence, ∞ when x never comes without y.
    /// ```
    /// assert_eq!(pmill_stats::conviction(2.0, 4.0, 4.0, 8.0), Some(1.0));
    /// assert_eq!(pmill_stats::conviction(4.0, 4.0, 4.0, 8.0), Some(f64::INFINITY));
    /// ```
    conviction, true, overlap::conviction);
pure!(
    /// ΔP of x → y, `p(y|x) − p(y|¬x)`, −1 to 1.
    /// ```
    /// assert_eq!(pmill_stats::delta_p(3.0, 4.0, 4.0, 8.0), Some(0.5)); // 3/4 − 1/4
    /// ```
    delta_p, true, deviation::delta_p);
pure!(
    /// Odds ratio `a d / (b c)`: 1 at independence, ∞ when only `b c` is zero.
    /// ```
    /// assert_eq!(pmill_stats::odds_ratio(3.0, 4.0, 4.0, 8.0), Some(9.0));
    /// ```
    odds_ratio, true, overlap::odds_ratio);
pure!(
    /// t-score `(n_xy − e) / √n_xy`; −∞ for a pair that never meets.
    /// ```
    /// assert_eq!(pmill_stats::t_score(4.0, 4.0, 4.0, 8.0), Some(1.0)); // (4 − 2) / 2
    /// ```
    t_score, false, deviation::t_score);
pure!(
    /// z-score `(n_xy − e) / √e`.
    /// ```
    /// assert_eq!(pmill_stats::z_score(8.0, 8.0, 8.0, 16.0), Some(2.0)); // (8 − 4) / 2
    /// ```
    z_score, false, deviation::z_score);
pure!(
    /// φ coefficient, −1 to 1. `None` when x or y is in no context or in all.
    /// ```
    /// assert_eq!(pmill_stats::phi(3.0, 4.0, 4.0, 8.0), Some(0.5));
    /// ```
    phi, true, deviation::phi);
pure!(
    /// Pearson's χ² of the 2 × 2 table, no continuity correction: `n φ²`.
    /// ```
    /// assert_eq!(pmill_stats::chi_squared(3.0, 4.0, 4.0, 8.0), Some(2.0));
    /// ```
    chi_squared, true, deviation::chi_squared);
pure!(
    /// Log-likelihood ratio G², `2 Σ O ln(O/E)`.
    /// ```
    /// let g2 = pmill_stats::log_likelihood_ratio(4.0, 4.0, 4.0, 8.0).unwrap();
    /// assert!((g2 - 16.0 * 2_f64.ln()).abs() < 1e-14); // 2 (4 ln 2 + 4 ln 2)
    /// ```
    log_likelihood_ratio, true, deviation::log_likelihood_ratio);

/// [`pmi`] of integers up to 2^64 − 1, with products and differences in 128 bits.
/// ```
/// let n = u64::MAX;
/// // Two independent features but for one context in 2^64: 1.8e19 contexts, score near 4e-19.
/// let score = pmill_stats::pmi_u64(1 << 62, 1 << 63, 1 << 63, n).unwrap();
/// assert!(score < 0.0 && score > -1e-18);
/// ```
pub fn pmi_u64(n_xy: u64, n_x: u64, n_y: u64, n: u64) -> Option<f64> {
    checked(WideCells { n_xy, n_x, n_y, n }, false, information::pmi)
}

/// [`npmi`] of integers up to 2^64 − 1.
pub fn npmi_u64(n_xy: u64, n_x: u64, n_y: u64, n: u64) -> Option<f64> {
    checked(WideCells { n_xy, n_x, n_y, n }, false, information::npmi)
}

/// The natural logarithm of the p-value of Fisher's exact test that the pair comes more often than by chance.
/// `None` also for counts that are not whole.
/// ```
/// // Of the 70 tables with these margins one is as extreme.
/// let ln_p = pmill_stats::ln_fisher_greater(4.0, 4.0, 4.0, 8.0).unwrap();
/// assert!((ln_p + 70_f64.ln()).abs() < 1e-14);
/// ```
pub fn ln_fisher_greater(n_xy: f64, n_x: f64, n_y: f64, n: f64) -> Option<f64> {
    checked(FloatCells { n_xy, n_x, n_y, n }, true, |cells| {
        fisher::fisher_exact(cells, Alternative::Greater)
    })
}

/// Variance of the PMI estimate in nats², for independent contexts: the delta method from `n_xy = 5` on, the variance of a
/// Beta posterior below.
/// ```
/// // 1/8 − 1/16 − 1/16 + 2·8/(16·16) − 1/100
/// assert!((pmill_stats::pmi_variance(8.0, 16.0, 16.0, 100.0).unwrap() - 0.0525).abs() < 1e-15);
/// ```
pub fn pmi_variance(n_xy: f64, n_x: f64, n_y: f64, n: f64) -> Option<f64> {
    checked(
        FloatCells { n_xy, n_x, n_y, n },
        true,
        interval::pmi_variance,
    )
}

/// The confidence interval of the PMI in nats, for independent contexts and `0 < confidence < 1`. The lower end is −∞ for
/// a pair that never meets. `None` also for a confidence outside its range.
/// ```
/// let (low, high) = pmill_stats::pmi_interval(40.0, 100.0, 100.0, 1000.0, 0.95).unwrap();
/// assert!(low > 1.0 && low < 4_f64.ln() && high > 4_f64.ln() && high < 1.7);
/// ```
pub fn pmi_interval(n_xy: f64, n_x: f64, n_y: f64, n: f64, confidence: f64) -> Option<(f64, f64)> {
    if !(confidence > 0.0 && confidence < 1.0) {
        return None;
    }
    let (z, tail) = (two_sided_z(confidence), 0.5 * (1.0 - confidence));
    let cells = FloatCells { n_xy, n_x, n_y, n };
    let bound = |upper| {
        checked(cells, true, |cells| {
            interval::pmi_bound(cells, z, tail, upper)
        })
    };
    Some((bound(false)?, bound(true)?))
}
