//! The 2 × 2 table behind a pair: how often x and y meet, how often each comes, how many contexts there are.
//!
//! In: `(n_xy, n_x, n_y, n)`, as floats or as `u64`. Out: the four cells and the excess `n_xy·n − n_x·n_y`,
//! each correct to a rounding or two, so that no measure built on them loses digits near independence.
//!
//! # The domain, the same for every measure
//! - `0 ≤ n_xy ≤ min(n_x, n_y)`, `max(n_x, n_y) ≤ n`, `0 < n`; no NaN; every count is 0 or within `1e-30..=1e30`.
//! - Measures that look at contexts without x and without y also need `n_x + n_y − n_xy ≤ n`
//!   (up to the rounding of fractional counts).
//!
//! Outside the domain the result is `None` here and NULL in SQL, never a number; so is a result that the formula
//! leaves open (0/0). [`problem`] says in words what is wrong with a row.

/// Counts of either representation, with the differences that must not be rounded twice.
pub(crate) trait Cells: Copy {
    /// Contexts with both.
    fn n_xy(self) -> f64;
    /// Contexts with x.
    fn n_x(self) -> f64;
    /// Contexts with y.
    fn n_y(self) -> f64;
    /// All contexts.
    fn n(self) -> f64;
    /// `n_x − n_xy`.
    fn x_only(self) -> f64;
    /// `n_y − n_xy`.
    fn y_only(self) -> f64;
    /// `n − n_x`.
    fn not_x(self) -> f64;
    /// `n − n_y`.
    fn not_y(self) -> f64;
    /// `n − n_xy`.
    fn not_xy(self) -> f64;
    /// `n − n_x − n_y + n_xy`; negative when the table is impossible.
    fn neither(self) -> f64;
    /// `n_xy·n − n_x·n_y`, correct to a few units in the last place of itself, not of the products.
    fn excess(self) -> f64;
    /// `n_x + n_y − n_xy`.
    fn union(self) -> f64;
    /// Whether the counts lie in the domain (without the condition on [`Cells::neither`]).
    fn valid(self) -> bool;
}

/// Smallest count above zero and its inverse, the largest: far outside any corpus, and products of four stay finite.
const SMALLEST: f64 = 1e-30;
const LARGEST: f64 = 1e30;

/// Counts as floats: exact for integers below 2^53.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FloatCells {
    pub n_xy: f64,
    pub n_x: f64,
    pub n_y: f64,
    pub n: f64,
}

/// `a·b` as an unevaluated sum of two floats (Dekker 1971, with Veltkamp's split; no FMA, which the baseline
/// x86-64 target would call as a slow library function).
#[inline(always)]
pub(crate) fn two_product(a: f64, b: f64) -> (f64, f64) {
    const SPLITTER: f64 = 134_217_729.0; // 2^27 + 1
    let split = |v: f64| {
        let wide = SPLITTER * v;
        let high = wide - (wide - v);
        (high, v - high)
    };
    let product = a * b;
    let (a_high, a_low) = split(a);
    let (b_high, b_low) = split(b);
    let error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
    (product, error)
}

impl Cells for FloatCells {
    #[inline(always)]
    fn n_xy(self) -> f64 {
        self.n_xy
    }
    #[inline(always)]
    fn n_x(self) -> f64 {
        self.n_x
    }
    #[inline(always)]
    fn n_y(self) -> f64 {
        self.n_y
    }
    #[inline(always)]
    fn n(self) -> f64 {
        self.n
    }
    #[inline(always)]
    fn x_only(self) -> f64 {
        self.n_x - self.n_xy
    }
    #[inline(always)]
    fn y_only(self) -> f64 {
        self.n_y - self.n_xy
    }
    #[inline(always)]
    fn not_x(self) -> f64 {
        self.n - self.n_x
    }
    #[inline(always)]
    fn not_y(self) -> f64 {
        self.n - self.n_y
    }
    #[inline(always)]
    fn not_xy(self) -> f64 {
        self.n - self.n_xy
    }
    #[inline(always)]
    fn neither(self) -> f64 {
        let cell = (self.n - self.n_x) - (self.n_y - self.n_xy);
        // Fractional counts are rounded one by one: a cell that should be empty may come out a rounding below zero.
        if cell < 0.0 && cell > -4.0 * f64::EPSILON * self.n {
            return 0.0;
        }
        cell
    }
    #[inline(always)]
    fn excess(self) -> f64 {
        let (observed, observed_error) = two_product(self.n_xy, self.n);
        let (expected, expected_error) = two_product(self.n_x, self.n_y);
        (observed - expected) + (observed_error - expected_error)
    }
    #[inline(always)]
    fn union(self) -> f64 {
        self.n_x + (self.n_y - self.n_xy)
    }
    #[inline(always)]
    fn valid(self) -> bool {
        let usable = |v: f64| v >= SMALLEST || v == 0.0;
        // `&` and not `&&`: one branch a row instead of nine.
        usable(self.n_xy)
            & usable(self.n_x)
            & usable(self.n_y)
            & (self.n_xy <= self.n_x)
            & (self.n_xy <= self.n_y)
            & (self.n_x <= self.n)
            & (self.n_y <= self.n)
            & (self.n >= SMALLEST)
            & (self.n <= LARGEST)
    }
}

/// Counts as integers up to 2^64 − 1, every difference and product exact in 128 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WideCells {
    pub n_xy: u64,
    pub n_x: u64,
    pub n_y: u64,
    pub n: u64,
}

fn difference(a: u64, b: u64) -> f64 {
    (i128::from(a) - i128::from(b)) as f64
}

impl Cells for WideCells {
    fn n_xy(self) -> f64 {
        self.n_xy as f64
    }
    fn n_x(self) -> f64 {
        self.n_x as f64
    }
    fn n_y(self) -> f64 {
        self.n_y as f64
    }
    fn n(self) -> f64 {
        self.n as f64
    }
    fn x_only(self) -> f64 {
        difference(self.n_x, self.n_xy)
    }
    fn y_only(self) -> f64 {
        difference(self.n_y, self.n_xy)
    }
    fn not_x(self) -> f64 {
        difference(self.n, self.n_x)
    }
    fn not_y(self) -> f64 {
        difference(self.n, self.n_y)
    }
    fn not_xy(self) -> f64 {
        difference(self.n, self.n_xy)
    }
    fn neither(self) -> f64 {
        (i128::from(self.n) - i128::from(self.n_x) - i128::from(self.n_y) + i128::from(self.n_xy))
            as f64
    }
    fn excess(self) -> f64 {
        let observed = u128::from(self.n_xy) * u128::from(self.n);
        let expected = u128::from(self.n_x) * u128::from(self.n_y);
        if observed >= expected {
            (observed - expected) as f64
        } else {
            -((expected - observed) as f64)
        }
    }
    fn union(self) -> f64 {
        (i128::from(self.n_x) + i128::from(self.n_y) - i128::from(self.n_xy)) as f64
    }
    fn valid(self) -> bool {
        self.n_xy <= self.n_x
            && self.n_xy <= self.n_y
            && self.n_x <= self.n
            && self.n_y <= self.n
            && self.n > 0
    }
}

/// Says in words why counts are outside the domain; `None` when they are inside.
///
/// A margin that is zero is inside the domain, although most measures are undefined there.
/// ```
/// assert_eq!(pmill_stats::problem(1.0, 4.0, 4.0, 8.0), None);
/// assert_eq!(pmill_stats::problem(5.0, 4.0, 6.0, 8.0), Some("n_xy is above n_x"));
/// ```
pub fn problem(n_xy: f64, n_x: f64, n_y: f64, n: f64) -> Option<&'static str> {
    let cells = FloatCells { n_xy, n_x, n_y, n };
    if n_xy.is_nan() || n_x.is_nan() || n_y.is_nan() || n.is_nan() {
        return Some("a count is NaN");
    }
    if n_xy < 0.0 || n_x < 0.0 || n_y < 0.0 || n < 0.0 {
        return Some("a count is negative");
    }
    if n == 0.0 {
        return Some("n is zero");
    }
    if n_xy > n_x {
        return Some("n_xy is above n_x");
    }
    if n_xy > n_y {
        return Some("n_xy is above n_y");
    }
    if n_x > n {
        return Some("n_x is above n");
    }
    if n_y > n {
        return Some("n_y is above n");
    }
    if !cells.valid() {
        return Some("a count is outside 1e-30..=1e30");
    }
    if cells.neither() < 0.0 {
        return Some("n_x + n_y - n_xy is above n");
    }
    None
}
