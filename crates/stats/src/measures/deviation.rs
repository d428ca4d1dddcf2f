//! Distances from independence. All are written with the exact excess `n_xy·n − n_x·n_y`, never as the difference of
//! two rounded terms.

use crate::cells::Cells;

/// Allan 1980: `p(y|x) − p(y|¬x)`.
#[inline(always)]
pub(crate) fn delta_p<C: Cells>(cells: C) -> f64 {
    clamp_unit(cells.excess() / cells.n_x() / cells.not_x())
}

/// Church, Gale, Hanks & Hindle 1991: `(n_xy − e_xy) / √n_xy`.
#[inline(always)]
pub(crate) fn t_score<C: Cells>(cells: C) -> f64 {
    cells.excess() / cells.n() / cells.n_xy().sqrt()
}

/// Dennis 1965: `(n_xy − e_xy) / √e_xy`.
#[inline(always)]
pub(crate) fn z_score<C: Cells>(cells: C) -> f64 {
    cells.excess() / (cells.n() * (cells.n_x() * cells.n_y() / cells.n()).sqrt())
}

/// Pearson 1900; Yule 1912: the correlation of two yes/no variables.
#[inline(always)]
pub(crate) fn phi<C: Cells>(cells: C) -> f64 {
    // Square roots first: the product of four u64 counts is far, but only just, inside f64.
    let scale =
        (cells.n_x().sqrt() * cells.n_y().sqrt()) * (cells.not_x().sqrt() * cells.not_y().sqrt());
    clamp_unit(cells.excess() / scale)
}

/// Pearson 1900, without Yates' correction: `n φ²`.
#[inline(always)]
pub(crate) fn chi_squared<C: Cells>(cells: C) -> f64 {
    let excess = cells.excess();
    let by_x = excess / cells.n_x() / cells.not_x();
    let by_y = excess / cells.n_y() / cells.not_y();
    cells.n() * (by_x * by_y)
}

/// Keeps rounding from leaving `[−1, 1]`; NaN stays NaN.
#[inline(always)]
fn clamp_unit(value: f64) -> f64 {
    value.clamp(-1.0, 1.0)
}

/// `h(u) = (1 + u) ln(1 + u) − u`, the part of `O ln(O/E)` that does not cancel over the table (`u = O/E − 1`).
/// By a series near zero, where the two terms agree in all but their last digits.
#[inline(always)]
pub(crate) fn relative_entropy_term(u: f64) -> f64 {
    if u <= -1.0 {
        return 1.0;
    }
    if u.abs() < 0.125 {
        // With s = u / (2 + u), ln(1 + u) = 2 artanh(s), and the linear parts leave u·s exactly:
        // h = u s + 2 (1 + u) (s³/3 + s⁵/5 + …). Here s² < 0.0051, so that series is short.
        let s = u / (2.0 + u);
        let square = s * s;
        let series = super::artanh_series(square);
        return u * s + 2.0 * (1.0 + u) * (s * square) * series;
    }
    (1.0 + u) * u.ln_1p() - u
}

/// Dunning 1993: `G² = 2 Σ O ln(O/E)` over the four cells, as `2 Σ E h(O/E − 1)`: every term is positive.
#[inline(always)]
pub(crate) fn log_likelihood_ratio<C: Cells>(cells: C) -> f64 {
    let (n, x, y) = (cells.n(), cells.n_x(), cells.n_y());
    let (not_x, not_y) = (cells.not_x(), cells.not_y());
    let excess = cells.excess();
    // A margin of zero leaves nothing to test.
    if x == 0.0 || y == 0.0 || not_x == 0.0 || not_y == 0.0 {
        return f64::NAN;
    }
    let cell = |observed: f64, row: f64, column: f64, excess: f64| {
        let expected = row * column / n;
        let relative = excess / (row * column);
        if relative > 1.0 {
            // Far above the expectation the direct form has nothing to cancel.
            return observed * (observed / expected).ln() - (observed - expected);
        }
        expected
            * if observed == 0.0 {
                1.0
            } else {
                relative_entropy_term(relative)
            }
    };
    2.0 * (cell(cells.n_xy(), x, y, excess)
        + cell(cells.x_only(), x, not_y, -excess)
        + cell(cells.y_only(), not_x, y, -excess)
        + cell(cells.neither(), not_x, not_y, excess))
}
