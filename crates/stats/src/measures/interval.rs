//! How sure a PMI is: variance and interval, for independent contexts.

use super::information::pmi;
use crate::cells::Cells;
use crate::special::{ln_beta_quantile, trigamma};

/// From this count on the delta method holds; below it a Beta posterior is used.
const ENOUGH: f64 = 5.0;

/// Variance of ln of the larger margin that the conditional share does not carry:
/// `2a/(n_x n_y) − 1/n_max − 1/n`, nothing when negative.
fn margin_variance<C: Cells>(cells: C) -> f64 {
    let large = cells.n_x().max(cells.n_y());
    let small = cells.n_x().min(cells.n_y());
    ((2.0 * cells.n_xy() / small - 1.0) / large - 1.0 / cells.n()).max(0.0)
}

/// Delta method on the multinomial: `1/a − 1/n_x − 1/n_y + 2a/(n_x n_y) − 1/n`. Below 5 the posterior variance of
/// `ln p(larger | smaller)` under Jeffreys' prior, `ψ'(a + ½) − ψ'(n_min + 1)`, plus that of the larger margin.
#[inline(always)]
pub(crate) fn pmi_variance<C: Cells>(cells: C) -> f64 {
    let (a, x, y) = (cells.n_xy(), cells.n_x(), cells.n_y());
    if x == 0.0 || y == 0.0 {
        return f64::NAN;
    }
    if a >= ENOUGH {
        // 1/a − 1/n_x = b / (a n_x) keeps the digits when a is nearly n_x.
        let variance = cells.x_only() / a / x - 1.0 / y + 2.0 * a / x / y - 1.0 / cells.n();
        return variance.max(0.0);
    }
    trigamma(a + 0.5) - trigamma(x.min(y) + 1.0) + margin_variance(cells)
}

/// The lower (`upper` false) or upper end of the interval of the PMI, in nats. `z` is the normal quantile and `tail` the
/// probability beyond each end.
#[inline(always)]
pub(crate) fn pmi_bound<C: Cells>(cells: C, z: f64, tail: f64, upper: bool) -> f64 {
    let (a, x, y, n) = (cells.n_xy(), cells.n_x(), cells.n_y(), cells.n());
    if x == 0.0 || y == 0.0 {
        return f64::NAN;
    }
    // The delta method fails on both sides: few contexts with the pair, and few of the rarer one without it.
    if a >= ENOUGH && x.min(y) - a >= ENOUGH {
        let distance = z * pmi_variance(cells).sqrt();
        return if upper {
            pmi(cells) + distance
        } else {
            pmi(cells) - distance
        };
    }
    small_count_bound(cells, a, x.min(y), x.max(y) / n, z, tail, upper)
}

/// `pmi = ln p(larger | smaller) − ln p(larger)`: an equal-tailed Jeffreys interval for the first (Brown, Cai & DasGupta
/// 2001, with its convention at the ends), widened by the variance of the second (Zou & Donner 2008).
#[inline(never)]
fn small_count_bound<C: Cells>(
    cells: C,
    a: f64,
    smaller: f64,
    larger_share: f64,
    z: f64,
    tail: f64,
    upper: bool,
) -> f64 {
    let rest = smaller - a;
    let ln_larger = larger_share.ln();
    // The quantile of the smaller part, and its complement: the other way round a large count has no digits.
    let quantile = |level: f64| {
        if rest < a {
            (-ln_beta_quantile(1.0 - level, rest + 0.5, a + 0.5).exp()).ln_1p()
        } else {
            ln_beta_quantile(level, a + 0.5, rest + 0.5)
        }
    };
    if !upper {
        if a == 0.0 {
            return f64::NEG_INFINITY;
        }
        let distance = (a / smaller).ln() - quantile(tail);
        return pmi(cells) - distance.hypot(z * margin_variance(cells).sqrt());
    }
    let end = if rest == 0.0 {
        0.0
    } else {
        quantile(1.0 - tail)
    };
    if a == 0.0 {
        return end - ln_larger;
    }
    pmi(cells) + (end - (a / smaller).ln()).hypot(z * margin_variance(cells).sqrt())
}
