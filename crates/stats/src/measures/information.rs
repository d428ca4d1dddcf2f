//! Logarithmic measures: PMI and its relatives, in nats. The caller divides by the logarithm of the base.

use super::{ln_1p_near, ln_share, ratio};
use crate::cells::Cells;

/// Fano 1961; Church & Hanks 1990, eq. 1. Near independence the logarithm is taken of `1 + excess/(n_x n_y)` with
/// the exact excess, so the relative error stays at a few 1e-16 however small the score.
#[inline(always)]
pub(crate) fn pmi<C: Cells>(cells: C) -> f64 {
    let ratio = ratio(cells);
    // Outside, the three roundings of the ratio (seven for 2^64) are at most 7e-15 of its logarithm.
    if (ratio - 1.0).abs() < 0.125 {
        ln_1p_near(cells.excess() / (cells.n_x() * cells.n_y()))
    } else {
        ratio.ln()
    }
}

/// `−ln p_xy`, in nats: the information of seeing the pair.
#[inline(always)]
fn pair_information<C: Cells>(cells: C) -> f64 {
    -ln_share(cells.n_xy(), cells.n(), cells.not_xy())
}

/// Bouma 2009, eq. 7.
#[inline(always)]
pub(crate) fn npmi<C: Cells>(cells: C) -> f64 {
    if cells.n_xy() == 0.0 {
        // The limit for a pair that never meets; undefined still when x or y never comes.
        return if cells.n_x() > 0.0 && cells.n_y() > 0.0 {
            -1.0
        } else {
            f64::NAN
        };
    }
    // In every context: 0/0, and the limit depends on the way there.
    let information = pair_information(cells);
    if information == 0.0 {
        return f64::NAN;
    }
    (pmi(cells) / information).clamp(-1.0, 1.0)
}

/// Positive part of the PMI (Niwa & Nitta 1994; Bullinaria & Levy 2007).
#[inline(always)]
pub(crate) fn ppmi<C: Cells>(cells: C) -> f64 {
    positive(pmi(cells))
}

/// `max(value, 0)` that keeps NaN (`f64::max` would drop it).
#[inline(always)]
fn positive(value: f64) -> f64 {
    if value < 0.0 { 0.0 } else { value }
}

/// Levy & Goldberg 2014, eq. 11: `max(pmi − ln k, 0)`.
#[inline(always)]
pub(crate) fn sppmi<C: Cells>(cells: C, shift: f64) -> f64 {
    positive(pmi(cells) - shift.ln())
}

/// Daille 1994: `ln(p_xy^k / (p_x p_y))`. Written as the two conditional probabilities and a rest, so that the large
/// terms of PMI and `ln p_xy` never cancel.
#[inline(always)]
pub(crate) fn pmi_k<C: Cells>(cells: C, power: f64) -> f64 {
    if cells.n_x() == 0.0 || cells.n_y() == 0.0 {
        return f64::NAN;
    }
    if cells.n_xy() == 0.0 {
        return f64::NEG_INFINITY;
    }
    if power < 2.0 {
        return pmi(cells) - (power - 1.0) * pair_information(cells);
    }
    let given_x = ln_share(cells.n_xy(), cells.n_x(), cells.x_only());
    let given_y = ln_share(cells.n_xy(), cells.n_y(), cells.y_only());
    given_x + given_y - (power - 2.0) * pair_information(cells)
}

/// Thanopoulos, Fakotakis & Kokkinakis 2002: mutual dependency plus `ln p_xy`, which is PMI³.
#[inline(always)]
pub(crate) fn lfmd<C: Cells>(cells: C) -> f64 {
    pmi_k(cells, 3.0)
}

/// PMI with context-distribution smoothing (Levy, Goldberg & Dagan 2015, eq. 3):
/// `ln(n_xy · S / (n_x · n_y^α))` with `S = Σ n_c^α` over all contexts.
#[inline(always)]
pub(crate) fn cpmi<C: Cells>(cells: C, alpha: f64, smoothed_total: f64) -> f64 {
    if cells.n_x() == 0.0 || cells.n_y() == 0.0 {
        return f64::NAN;
    }
    let smoothed = cells.n_y().powf(alpha);
    // One term of the sum is above the sum: the total belongs to other counts.
    if smoothed > smoothed_total * (1.0 + 1e-12) {
        return f64::NAN;
    }
    ((cells.n_xy() / cells.n_x()) * (smoothed_total / smoothed)).ln()
}

/// Additive smoothing: `ln((n_xy + a) · n / ((n_x + u)(n_y + u)))`.
#[inline(always)]
pub(crate) fn pmi_smoothed<C: Cells>(cells: C, pair: f64, unigram: f64) -> f64 {
    if pair == 0.0 && unigram == 0.0 {
        return pmi(cells);
    }
    let x = cells.n_x() + unigram;
    let y = cells.n_y() + unigram;
    ((cells.n_xy() + pair) / x * (cells.n() / y)).ln()
}

/// The published caption score: [`pmi_smoothed`] without the factor `n`.
#[inline(always)]
pub(crate) fn qu_xie<C: Cells>(cells: C, pair: f64, unigram: f64) -> f64 {
    let x = cells.n_x() + unigram;
    let y = cells.n_y() + unigram;
    ((cells.n_xy() + pair) / (x * y)).ln()
}

/// Local mutual information (Evert 2005, section 3.1.5): `n_xy · pmi`, 0 for a pair that never meets.
#[inline(always)]
pub(crate) fn lmi<C: Cells>(cells: C) -> f64 {
    if cells.n_xy() == 0.0 && cells.n_x() > 0.0 && cells.n_y() > 0.0 {
        return 0.0;
    }
    cells.n_xy() * pmi(cells)
}

/// Quasthoff & Wolff 2002 by Stirling's formula, as NLTK writes it: `n_xy · (log(n_xy / e_xy) − 1)`.
#[inline(always)]
pub(crate) fn poisson_stirling<C: Cells>(cells: C, ln_base: f64) -> f64 {
    if cells.n_xy() == 0.0 && cells.n_x() > 0.0 && cells.n_y() > 0.0 {
        return 0.0;
    }
    cells.n_xy() * (pmi(cells) / ln_base - 1.0)
}
