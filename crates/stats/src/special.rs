//! Special functions that the tests and intervals need: factorials, gamma derivatives, the incomplete beta function and
//! its inverse, normal quantiles. Written for arguments of corpora (up to 2^64), where the textbook differences of
//! log-gammas have no right digit left.

use std::f64::consts::{LN_2, PI};

/// From here on the asymptotic series below are exact to the last bit or two.
const ASYMPTOTIC: f64 = 16.0;

/// `ln Γ(z) − [(z − ½) ln z − z + ½ ln 2π]` for `z ≥ 16` (Binet's function by Stirling's series).
fn binet(z: f64) -> f64 {
    let w = 1.0 / (z * z);
    (1.0 / 12.0
        - w * (1.0 / 360.0
            - w * (1.0 / 1260.0 - w * (1.0 / 1680.0 - w * (1.0 / 1188.0 - w * 691.0 / 360_360.0)))))
        / z
}

/// `ln k! − (k ln k − k)` for `k ≥ 0`: what is left of a log-factorial when the terms that cancel in a table are gone.
pub(crate) fn factorial_rest(k: f64) -> f64 {
    if k <= 0.0 {
        return 0.0;
    }
    // k! is brought up to ASYMPTOTIC: rest(k) = rest(k + 1) + (k + 1) ln((k + 1)/k) − 1 − ln(k + 1) + ln … ; it is
    // simpler and exact enough to take the small factorials as they are.
    if k < ASYMPTOTIC {
        return ln_gamma(k + 1.0) - (k * k.ln() - k);
    }
    binet(k) + 0.5 * (2.0 * PI * k).ln()
}

/// `ln Γ(z)` for `z > 0`.
pub(crate) fn ln_gamma(z: f64) -> f64 {
    let mut product = 1.0;
    let mut z = z;
    while z < ASYMPTOTIC {
        product *= z;
        z += 1.0;
    }
    (z - 0.5) * z.ln() - z + 0.5 * (2.0 * PI).ln() + binet(z) - product.ln()
}

/// Second derivative of `ln Γ(z)` for `z > 0`.
pub(crate) fn trigamma(z: f64) -> f64 {
    let mut sum = 0.0;
    let mut z = z;
    while z < ASYMPTOTIC {
        sum += 1.0 / (z * z);
        z += 1.0;
    }
    let w = 1.0 / (z * z);
    sum + 1.0 / z
        + w / 2.0
        + w / z
            * (1.0 / 6.0 - w * (1.0 / 30.0 - w * (1.0 / 42.0 - w * (1.0 / 30.0 - w * 5.0 / 66.0))))
}

/// `ln B(a, b)` for `a, b > 0`, also when one is many orders larger.
pub(crate) fn ln_beta(a: f64, b: f64) -> f64 {
    let (small, large) = if a < b { (a, b) } else { (b, a) };
    if large < ASYMPTOTIC {
        return ln_gamma(small) + ln_gamma(large) - ln_gamma(small + large);
    }
    // ln Γ(large) − ln Γ(small + large) with the common terms taken out.
    let sum = small + large;
    let difference =
        -(large - 0.5) * (small / large).ln_1p() - small * sum.ln() + small + binet(large)
            - binet(sum);
    ln_gamma(small) + difference
}

/// Regularized incomplete beta function `I_p(a, b)` with `p = exp(ln_p)`, for `a, b > 0`, `ln_p ≤ 0`.
pub(crate) fn beta_cdf(ln_p: f64, a: f64, b: f64) -> f64 {
    let p = ln_p.exp();
    if p >= 1.0 {
        return 1.0;
    }
    let ln_front = a * ln_p + b * (-p).ln_1p() - ln_beta(a, b);
    if p < (a + 1.0) / (a + b + 2.0) {
        return (ln_front.exp() / a * beta_fraction(p, a, b)).min(1.0);
    }
    // With b of 1e18, `1 − p` has lost p; the series has positive terms only and ends after about b p of them.
    if b > 1000.0 && b * p < 500.0 {
        return (ln_front.exp() / a * beta_series(p, a, b)).min(1.0);
    }
    (1.0 - ln_front.exp() / b * beta_fraction(-ln_p.exp_m1(), b, a)).max(0.0)
}

/// `Σ_k Π_{j<k} p (a + b + j) / (a + 1 + j)` (DLMF 8.17.8 with the hypergeometric series written out).
fn beta_series(p: f64, a: f64, b: f64) -> f64 {
    let (mut term, mut sum, mut j) = (1.0, 1.0, 0.0);
    while term > sum * 1e-17 && j < 10_000.0 {
        term *= p * (a + b + j) / (a + 1.0 + j);
        sum += term;
        j += 1.0;
    }
    sum
}

/// The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method.
fn beta_fraction(p: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away_from_zero = |v: f64| if v.abs() < TINY { TINY } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * p / (a + 1.0));
    let mut value = d;
    for step in 1..10_000 {
        let m = f64::from(step);
        let even = m * (b - m) * p / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / away_from_zero(1.0 + even * d);
        c = away_from_zero(1.0 + even / c);
        value *= d * c;
        let odd = -(a + m) * (a + b + m) * p / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / away_from_zero(1.0 + odd * d);
        c = away_from_zero(1.0 + odd / c);
        let change = d * c;
        value *= change;
        if (change - 1.0).abs() < 1e-15 {
            break;
        }
    }
    value
}

/// The logarithm of the `q` quantile of a Beta(a, b) distribution, for `0 < q < 1`. In logarithms, since a quantile of a
/// rare pair may be 1e-18.
pub(crate) fn ln_beta_quantile(q: f64, a: f64, b: f64) -> f64 {
    let (mut low, mut high) = (-745.0_f64, 0.0_f64);
    // Start at the mean; Newton on ln p, kept inside the bracket.
    let mut ln_p = (a / (a + b)).ln();
    let ln_norm = ln_beta(a, b);
    for _ in 0..100 {
        let error = beta_cdf(ln_p, a, b) - q;
        if error > 0.0 {
            high = ln_p;
        } else {
            low = ln_p;
        }
        // d I / d ln p = p^a (1 − p)^(b − 1) / B
        let p = ln_p.exp();
        let slope = (a * ln_p + (b - 1.0) * (-p).ln_1p() - ln_norm).exp();
        let mut next = ln_p - error / slope;
        if !(next > low && next < high) {
            next = 0.5 * (low + high);
        }
        if (next - ln_p).abs() <= 1e-14 * (1.0 + ln_p.abs()) {
            return next;
        }
        ln_p = next;
    }
    ln_p
}

/// The z with `P(|Z| ≤ z) = confidence` for a standard normal Z, for `0 ≤ confidence < 1`.
pub(crate) fn two_sided_z(confidence: f64) -> f64 {
    let (mut low, mut high) = (0.0, 9.0);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if normal_within(middle) < confidence {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// `P(|Z| ≤ z)`: `2 φ(z) Σ z^(2k+1) / (2k+1)!!`, a series of positive terms only.
fn normal_within(z: f64) -> f64 {
    let mut term = z;
    let mut sum = z;
    let mut odd = 1.0;
    while term > sum * 1e-18 && odd < 4000.0 {
        odd += 2.0;
        term *= z * z / odd;
        sum += term;
    }
    2.0 * sum * (-0.5 * z * z).exp() / (2.0 * PI).sqrt()
}

/// `ln(1 − exp(x))` for `x ≤ 0`.
pub(crate) fn ln_one_minus_exp(x: f64) -> f64 {
    if x > -LN_2 {
        (-x.exp_m1()).ln()
    } else {
        (-x.exp()).ln_1p()
    }
}

/// `ln(exp(x) + exp(y))`.
pub(crate) fn ln_add_exp(x: f64, y: f64) -> f64 {
    let (small, large) = if x < y { (x, y) } else { (y, x) };
    if small == f64::NEG_INFINITY {
        large
    } else {
        large + (small - large).exp().ln_1p()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64, relative: f64) {
        assert!(
            (found - expected).abs() <= relative * expected.abs(),
            "{found} is not {expected}"
        );
    }

    #[test]
    fn gamma_functions_have_their_closed_forms() {
        close(ln_gamma(0.5), PI.sqrt().ln(), 1e-15);
        close(ln_gamma(11.0), 3_628_800_f64.ln(), 1e-15);
        close(trigamma(1.0), PI * PI / 6.0, 1e-14);
        close(trigamma(0.5), PI * PI / 2.0, 1e-14);
        close(
            factorial_rest(20.0),
            2_432_902_008_176_640_000_f64.ln() - (20.0 * 20_f64.ln() - 20.0),
            1e-13,
        );
    }

    #[test]
    fn beta_has_its_closed_forms_even_for_a_huge_side() {
        // B(2, b) = 1 / (b (b + 1))
        let b = 1e15;
        close(ln_beta(2.0, b), -(b.ln() + (b + 1.0).ln()), 1e-14);
        // I_p(1, b) = 1 − (1 − p)^b
        let ln_p = 1e-12_f64.ln();
        close(
            beta_cdf(ln_p, 1.0, 1e12),
            -(-1e-12_f64).ln_1p().mul_add(1e12, 0.0).exp_m1(),
            1e-12,
        );
        close(beta_cdf(0.3_f64.ln(), 1.0, 1.0), 0.3, 1e-14);
    }

    #[test]
    fn the_quantile_inverts_the_distribution() {
        for (a, b) in [(0.5, 0.5), (0.5, 1e9), (4.5, 0.5), (5.5, 60.5), (2.5, 1e18)] {
            for q in [0.005, 0.025, 0.5, 0.975, 0.995] {
                let ln_p = ln_beta_quantile(q, a, b);
                close(beta_cdf(ln_p, a, b), q, 1e-9);
            }
        }
    }

    #[test]
    fn normal_quantiles_are_the_tables() {
        close(two_sided_z(0.95), 1.959_963_984_540_054, 1e-14);
        // The density there is 0.03: a rounding of the probability is 30 of the quantile.
        close(two_sided_z(0.99), 2.575_829_303_548_901, 1e-13);
        assert!(two_sided_z(0.0) < 1e-15);
    }
}
