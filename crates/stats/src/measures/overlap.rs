//! Ratios of counts: how much of x is with y. No logarithm except in logDice.

use super::ratio;
use crate::cells::Cells;

/// Dice 1945: `2 n_xy / (n_x + n_y)`.
#[inline(always)]
pub(crate) fn dice<C: Cells>(cells: C) -> f64 {
    2.0 * cells.n_xy() / (cells.n_x() + cells.n_y())
}

/// Rychlý 2008: `14 + log2(dice)`.
#[inline(always)]
pub(crate) fn log_dice<C: Cells>(cells: C) -> f64 {
    14.0 + dice(cells).log2()
}

/// Jaccard 1912: `n_xy / (n_x + n_y − n_xy)`.
#[inline(always)]
pub(crate) fn jaccard<C: Cells>(cells: C) -> f64 {
    cells.n_xy() / cells.union()
}

/// Ochiai 1957: `n_xy / √(n_x n_y)`.
#[inline(always)]
pub(crate) fn cosine<C: Cells>(cells: C) -> f64 {
    (cells.n_xy() / (cells.n_x().sqrt() * cells.n_y().sqrt())).min_keep_nan(1.0)
}

/// Szymkiewicz 1934; Simpson 1943: `n_xy / min(n_x, n_y)`.
#[inline(always)]
pub(crate) fn overlap<C: Cells>(cells: C) -> f64 {
    cells.n_xy() / cells.n_x().min(cells.n_y())
}

/// Agrawal, Imieliński & Swami 1993: `n_xy / n_x`.
#[inline(always)]
pub(crate) fn confidence<C: Cells>(cells: C) -> f64 {
    cells.n_xy() / cells.n_x()
}

/// Brin, Motwani, Ullman & Tsur 1997 ("interest"): `n_xy n / (n_x n_y)`.
#[inline(always)]
pub(crate) fn lift<C: Cells>(cells: C) -> f64 {
    ratio(cells)
}

/// Piatetsky-Shapiro 1991: `p_xy − p_x p_y`.
#[inline(always)]
pub(crate) fn leverage<C: Cells>(cells: C) -> f64 {
    cells.excess() / cells.n() / cells.n()
}

/// Brin et al. 1997, section 2.2: `p_x p_¬y / p_x¬y`.
#[inline(always)]
pub(crate) fn conviction<C: Cells>(cells: C) -> f64 {
    (cells.n_x() / cells.x_only()) * (cells.not_y() / cells.n())
}

/// `a d / (b c)`: infinite when only the denominator is zero.
#[inline(always)]
pub(crate) fn odds_ratio<C: Cells>(cells: C) -> f64 {
    (cells.n_xy() * cells.neither()) / (cells.x_only() * cells.y_only())
}

/// gensim's `original_scorer` (Mikolov et al. 2013, eq. 6): `(n_xy − min_count) / n_x / n_y · V`.
#[inline(always)]
pub(crate) fn gensim_default<C: Cells>(cells: C, vocabulary_size: f64, min_count: f64) -> f64 {
    if cells.n_x() == 0.0 || cells.n_y() == 0.0 {
        return f64::NAN;
    }
    (cells.n_xy() - min_count) / cells.n_x() / cells.n_y() * vocabulary_size
}

/// `f64::min` that keeps NaN.
trait MinKeepNan {
    fn min_keep_nan(self, limit: f64) -> f64;
}

impl MinKeepNan for f64 {
    #[inline(always)]
    fn min_keep_nan(self, limit: f64) -> f64 {
        if self > limit { limit } else { self }
    }
}
