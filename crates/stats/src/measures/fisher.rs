//! Fisher's exact test as a natural logarithm, for tables of any size.
//!
//! The probability of one table is `−G²/2` plus what is left of nine log-factorials: no large terms cancel. A tail is
//! summed term by term while that is short, else integrated (Euler–Maclaurin), so a table of 10^18 contexts takes as
//! long as one of 10^6.

use super::deviation::relative_entropy_term;
use crate::cells::Cells;
use crate::special::{factorial_rest, ln_add_exp, ln_one_minus_exp};

/// Which tables count as at least as extreme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alternative {
    /// All tables that are no more probable than the observed one.
    TwoSided,
    /// The pair at least as often as observed.
    Greater,
    /// The pair at most as often as observed.
    Less,
}

/// The words of the SQL parameter, in the order of [`Alternative::from_place`].
pub(crate) const ALTERNATIVES: &[&str] = &["two-sided", "greater", "less"];

impl Alternative {
    pub(crate) fn from_place(place: f64) -> Alternative {
        match place as usize {
            1 => Alternative::Greater,
            2 => Alternative::Less,
            _ => Alternative::TwoSided,
        }
    }
}

/// All tables with the margins of one table, as positions relative to it: 0 is the observed table, `+t` has the pair
/// `t` times more. Relative positions stay small and exact where counts of 2^64 would not.
struct Family {
    a: f64,
    b: f64,
    c: f64,
    d: f64,
    x: f64,
    not_x: f64,
    y: f64,
    not_y: f64,
    n: f64,
    excess: f64,
    /// The rests of the margins' log-factorials.
    margins: f64,
}

/// Sums of more terms than this are integrated.
const LONGEST_SUM: f64 = 4000.0;

impl Family {
    fn new<C: Cells>(cells: C) -> Family {
        let (x, not_x) = (cells.n_x(), cells.not_x());
        let (y, not_y) = (cells.n_y(), cells.not_y());
        let margins =
            factorial_rest(x) + factorial_rest(not_x) + factorial_rest(y) + factorial_rest(not_y)
                - factorial_rest(cells.n());
        Family {
            a: cells.n_xy(),
            b: cells.x_only(),
            c: cells.y_only(),
            d: cells.neither(),
            x,
            not_x,
            y,
            not_y,
            n: cells.n(),
            excess: cells.excess(),
            margins,
        }
    }

    /// Natural logarithm of the probability at a position; between integers by the gamma function.
    fn ln_probability(&self, t: f64) -> f64 {
        let excess = self.excess + t * self.n;
        let cell = |observed: f64, row: f64, column: f64, excess: f64| {
            if row == 0.0 || column == 0.0 {
                return 0.0;
            }
            let relative = if observed <= 0.0 {
                -1.0
            } else {
                excess / (row * column)
            };
            row * column / self.n * relative_entropy_term(relative) + factorial_rest(observed)
        };
        self.margins
            - cell(self.a + t, self.x, self.y, excess)
            - cell(self.b - t, self.x, self.not_y, -excess)
            - cell(self.c - t, self.not_x, self.y, -excess)
            - cell(self.d + t, self.not_x, self.not_y, excess)
    }

    fn first(&self) -> f64 {
        -self.a.min(self.d)
    }

    fn last(&self) -> f64 {
        self.b.min(self.c)
    }

    /// `P(t + 1) / P(t)`.
    fn ratio_up(&self, t: f64) -> f64 {
        ((self.b - t) / (self.a + t + 1.0)) * ((self.c - t) / (self.d + t + 1.0))
    }

    /// `P(t − 1) / P(t)`.
    fn ratio_down(&self, t: f64) -> f64 {
        ((self.a + t) / (self.b - t + 1.0)) * ((self.d + t) / (self.c - t + 1.0))
    }

    /// The position of the most probable table, ⌊(n_x + 1)(n_y + 1) / (n + 2)⌋ (one of two when they are alike).
    fn mode(&self) -> f64 {
        let above = self.x + self.y + 1.0 - 2.0 * self.a - self.excess;
        (above / (self.n + 2.0))
            .floor()
            .clamp(self.first(), self.last())
    }

    /// `ln Σ P` from `t` outward (`up`: to larger counts), where the terms fall all the way.
    fn ln_tail(&self, t: f64, up: bool) -> f64 {
        let end = if up { self.last() } else { self.first() };
        if (up && t > end) || (!up && t < end) {
            return f64::NEG_INFINITY;
        }
        let step = |at: f64| {
            if up {
                self.ratio_up(at)
            } else {
                self.ratio_down(at)
            }
        };
        let direction = if up { 1.0 } else { -1.0 };
        let ln_first = self.ln_probability(t);
        let slope = -step(t).ln();
        let spread =
            (self.x / self.n * self.y * (self.not_x / self.n) * (self.not_y / self.n)).sqrt();
        let scale = 1.0 / (slope + 1.0 / spread.max(1e-3));
        if 40.0 * scale < LONGEST_SUM || (end - t).abs() < LONGEST_SUM {
            let (mut sum, mut term, mut at) = (1.0, 1.0, t);
            // Above 2^53 a step of one is lost; such far tails fall so quickly that the first terms are all.
            while at != end && at + direction != at {
                term *= step(at);
                at += direction;
                sum += term;
                if term < sum * 1e-17 {
                    break;
                }
            }
            return ln_first + f64::ln(sum);
        }
        // Σ_{k≥0} f(k) = ∫ f + f(0)/2 − f'(0)/12 + O(scale⁻³), all relative to f(0).
        let inward = if up {
            self.ratio_down(t)
        } else {
            self.ratio_up(t)
        };
        let derivative = 0.5 * (step(t).ln() - inward.ln());
        let integral = self.relative_integral(t, direction, scale, ln_first, (end - t).abs());
        ln_first + (integral + 0.5 - derivative / 12.0).ln()
    }

    /// `∫ P(t + direction·s) / P(t) ds` from 0 outward, by 16-point Gauss–Legendre panels of one scale each.
    fn relative_integral(
        &self,
        t: f64,
        direction: f64,
        scale: f64,
        ln_first: f64,
        longest: f64,
    ) -> f64 {
        let mut sum = 0.0;
        let mut start = 0.0;
        while start < longest {
            let width = scale.min(longest - start);
            let mut panel = 0.0;
            for (node, weight) in GAUSS_LEGENDRE {
                for side in [-node, node] {
                    let at = start + width * 0.5 * (1.0 + side);
                    panel += weight * (self.ln_probability(t + direction * at) - ln_first).exp();
                }
            }
            panel *= 0.5 * width;
            sum += panel;
            if panel < sum * 1e-17 {
                break;
            }
            start += width;
        }
        sum
    }

    /// `ln P(count ≥ observed)` or, with `up` false, `ln P(count ≤ observed)`.
    fn ln_one_sided(&self, up: bool, mode: f64) -> f64 {
        let outward = if up { mode <= 0.0 } else { mode >= 0.0 };
        let ln = if outward {
            self.ln_tail(0.0, up)
        } else {
            let inner = if up { -1.0 } else { 1.0 };
            ln_one_minus_exp(self.ln_tail(inner, !up).min(0.0))
        };
        ln.min(0.0)
    }

    fn ln_two_sided(&self, mode: f64) -> f64 {
        let ln_observed = self.ln_probability(0.0);
        // Equally probable tables on the other side differ by rounding; the tolerance grows with the logarithm.
        let limit = ln_observed + 1e-10 + 1e-14 * ln_observed.abs();
        if self.ln_probability(mode) <= limit {
            return 0.0;
        }
        let observed_is_up = mode < 0.0;
        // Bisection on the falling branch of the other side, for its table nearest to the mode within the limit.
        let end = if observed_is_up {
            self.first()
        } else {
            self.last()
        };
        let away = if observed_is_up { -1.0 } else { 1.0 };
        let (mut inside, mut outside) = (0.0, (end - mode).abs() + 1.0); // distances from the mode
        while outside - inside > 1.0 {
            let middle = (inside + (outside - inside) / 2.0).floor();
            // Above 2^53 there may be no whole number between; the two ends are then equally good.
            if middle <= inside || middle >= outside {
                break;
            }
            if self.ln_probability(mode + away * middle) <= limit {
                outside = middle;
            } else {
                inside = middle;
            }
        }
        let near = self.ln_tail(0.0, observed_is_up);
        let far = self.ln_tail(mode + away * outside, !observed_is_up);
        ln_add_exp(near, far).min(0.0)
    }
}

/// The positive nodes and weights of the 16-point rule on [−1, 1].
const GAUSS_LEGENDRE: [(f64, f64); 8] = [
    (0.095_012_509_837_637_44, 0.189_450_610_455_068_5),
    (0.281_603_550_779_258_9, 0.182_603_415_044_923_6),
    (0.458_016_777_657_227_37, 0.169_156_519_395_002_54),
    (0.617_876_244_402_643_7, 0.149_595_988_816_576_73),
    (0.755_404_408_355_003, 0.124_628_971_255_533_87),
    (0.865_631_202_387_831_7, 0.095_158_511_682_492_78),
    (0.944_575_023_073_232_6, 0.062_253_523_938_647_89),
    (0.989_400_934_991_649_9, 0.027_152_459_411_754_095),
];

/// Fisher 1922, as `ln p`. NaN for counts that are not whole: the test has no meaning there.
pub(crate) fn fisher_exact<C: Cells>(cells: C, alternative: Alternative) -> f64 {
    let whole = |v: f64| v.fract() == 0.0;
    if !(whole(cells.n_xy()) && whole(cells.n_x()) && whole(cells.n_y()) && whole(cells.n())) {
        return f64::NAN;
    }
    let family = Family::new(cells);
    // An empty margin leaves one table only.
    if family.first() == family.last() {
        return 0.0;
    }
    let mode = family.mode();
    match alternative {
        Alternative::TwoSided => family.ln_two_sided(mode),
        Alternative::Greater => family.ln_one_sided(true, mode),
        Alternative::Less => family.ln_one_sided(false, mode),
    }
}
