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
