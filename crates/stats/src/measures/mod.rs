//! Association measures as arithmetic on one 2 × 2 table. NaN inside this module means "no value";
//! the public functions turn it into `None`, SQL into NULL.
//!
//! [`information`] has the logarithmic measures, [`overlap`] the ratios of counts, [`deviation`] the distances
//! from independence, [`fisher`] the exact test and [`interval`] the uncertainty of a PMI.

pub(crate) mod deviation;
pub(crate) mod fisher;
pub(crate) mod information;
pub(crate) mod interval;
pub(crate) mod overlap;

use crate::cells::Cells;

/// `ln(part / whole)` for `0 < part ≤ whole`, where `rest = whole − part` without rounding error:
/// near one, the logarithm of the rounded quotient would have no right digit left.
#[inline(always)]
pub(crate) fn ln_share(part: f64, whole: f64, rest: f64) -> f64 {
    if rest < 0.5 * whole {
        (-rest / whole).ln_1p()
    } else {
        (part / whole).ln()
    }
}

/// `n_xy·n / (n_x·n_y)`, NaN when a margin is empty.
#[inline(always)]
pub(crate) fn ratio<C: Cells>(cells: C) -> f64 {
    (cells.n_xy() * cells.n()) / (cells.n_x() * cells.n_y())
}

/// `ln(1 + u)` for `|u| ≤ 1/8`, to the last bit or two: `2 artanh(s)` with `s = u / (2 + u)`, without a call.
#[inline(always)]
pub(crate) fn ln_1p_near(u: f64) -> f64 {
    let s = u / (2.0 + u);
    2.0 * (s + s * (s * s) * artanh_series(s * s))
}

/// `1/3 + q/5 + q²/7 + …` for `q = s² ≤ 0.0051`: eight terms reach the last bit.
#[inline(always)]
pub(crate) fn artanh_series(q: f64) -> f64 {
    let mut series = 1.0 / 17.0;
    for reciprocal in [
        1.0 / 15.0,
        1.0 / 13.0,
        1.0 / 11.0,
        1.0 / 9.0,
        1.0 / 7.0,
        1.0 / 5.0,
        1.0 / 3.0,
    ] {
        series = series * q + reciprocal;
    }
    series
}
