//! Measures against exact rational arithmetic. Logarithms are computed to 300 bits from rationals, so the only error in
//! a comparison is that of the function under test.

use num_bigint::{BigInt, Sign};
use num_rational::BigRational;
use pmill_stats::{Given, measure};
use proptest::prelude::*;

/// Bits after the point.
const BITS: u32 = 300;

fn big(value: u64) -> BigRational {
    BigRational::from_integer(BigInt::from(value))
}

fn whole(value: i64) -> BigRational {
    BigRational::from_integer(BigInt::from(value))
}

/// A rational as a number with `BITS` bits after the point.
fn fixed(value: &BigRational) -> BigInt {
    (value.numer() << BITS) / value.denom()
}

/// `2 artanh(z) = ln((1 + z)/(1 − z))` for |z| ≤ 1/3.
fn two_artanh(z: &BigRational) -> BigInt {
    let z = fixed(z);
    let square: BigInt = (&z * &z) >> BITS;
    let mut power = z;
    let mut sum = BigInt::from(0);
    let mut odd = 1;
    while power.sign() != Sign::NoSign {
        sum += &power / odd;
        power = (&power * &square) >> BITS;
        odd += 2;
        if odd > 2000 {
            break; // a negative power ends at −1, never at 0
        }
    }
    sum * 2
}

/// Natural logarithm of a positive rational, as a rational.
fn ln(value: &BigRational) -> BigRational {
    let (one, two) = (whole(1), whole(2));
    let mut value = value.clone();
    let mut doublings = 0_i64;
    let bits = value.numer().bits() as i64 - value.denom().bits() as i64;
    if bits > 1 {
        value /= BigRational::from_integer(BigInt::from(1) << (bits as usize));
    } else if bits < -1 {
        value *= BigRational::from_integer(BigInt::from(1) << ((-bits) as usize));
    }
    doublings += if bits.abs() > 1 { bits } else { 0 };
    while value > two {
        value /= &two;
        doublings += 1;
    }
    while value < one.clone() / &two {
        value *= &two;
        doublings -= 1;
    }
    let z = (&value - &one) / (&value + &one);
    let ln2 = two_artanh(&(one / whole(3)));
    let sum = two_artanh(&z) + ln2 * doublings;
    BigRational::new(sum, BigInt::from(1) << BITS)
}

fn to_rational(value: f64) -> BigRational {
    BigRational::from_float(value).unwrap()
}

fn distance(found: f64, truth: &BigRational) -> BigRational {
    let difference = to_rational(found) - truth;
    if difference < whole(0) {
        -difference
    } else {
        difference
    }
}

/// |found − truth| ≤ relative · |truth|, exactly decided. `relative` as 10^−digits.
fn close(found: f64, truth: &BigRational, digits: u32) -> bool {
    let size = if *truth < whole(0) {
        -truth.clone()
    } else {
        truth.clone()
    };
    distance(found, truth) * BigRational::from_integer(BigInt::from(10).pow(digits)) <= size
}

#[test]
fn the_reference_logarithm_is_right() {
    let ten = ln(&whole(10));
    assert!(close(std::f64::consts::LN_10, &ten, 15));
    assert!(close(
        -(std::f64::consts::LN_10),
        &ln(&(whole(1) / whole(10))),
        15
    ));
    // ln(1 + 2^−80) = 2^−80 − 2^−161 …
    let tiny = BigRational::new(BigInt::from(1), BigInt::from(1) << 80);
    assert!(close(2_f64.powi(-80), &ln(&(whole(1) + &tiny)), 15));
}

/// Counts of one pair.
#[derive(Debug, Clone, Copy)]
struct Row {
    n_xy: u64,
    n_x: u64,
    n_y: u64,
    n: u64,
}

/// Possible tables: cells of all sizes up to `bits` bits, added up.
fn rows(bits: u32) -> impl Strategy<Value = Row> {
    let cell = (0..bits - 2, any::<u64>()).prop_map(move |(bits, value)| value & ((1 << bits) - 1));
    [cell.clone(), cell.clone(), cell.clone(), cell].prop_filter_map(
        "nothing there",
        |[a, b, c, d]| {
            let row = Row {
                n_xy: a,
                n_x: a + b,
                n_y: a + c,
                n: a + b + c + d,
            };
            (a > 0 && d > 0).then_some(row)
        },
    )
}

/// Tables as near to independence as integers allow: `n_xy` next to `n_x n_y / n`.
fn near_independence(bits: u32) -> impl Strategy<Value = Row> {
    let highest = (1_u128 << bits) - 1;
    let side = (any::<u64>(), any::<u64>(), any::<u64>(), -2_i128..=2);
    side.prop_filter_map("impossible", move |(n, x, y, off)| {
        let n = u128::from(n) % highest + 1;
        let (x, y) = (u128::from(x) % n + 1, u128::from(y) % n + 1);
        let a = (x * y / n) as i128 + off;
        let possible =
            a > 0 && a <= x as i128 && a <= y as i128 && x as i128 + y as i128 - a <= n as i128;
        possible.then_some(Row {
            n_xy: a as u64,
            n_x: x as u64,
            n_y: y as u64,
            n: n as u64,
        })
    })
}

fn any_row() -> impl Strategy<Value = Row> {
    prop_oneof![
        rows(64),
        near_independence(64),
        rows(20),
        near_independence(20)
    ]
}

fn float_row() -> impl Strategy<Value = Row> {
    prop_oneof![
        rows(53),
        near_independence(53),
        rows(20),
        near_independence(20)
    ]
}

fn lift(row: &Row) -> BigRational {
    big(row.n_xy) * big(row.n) / (big(row.n_x) * big(row.n_y))
}

fn excess(row: &Row) -> BigRational {
    big(row.n_xy) * big(row.n) - big(row.n_x) * big(row.n_y)
}

/// The value of a measure by the integer path and, where floats hold the counts, by the float path too.
fn found(name: &str, row: &Row, parameters: &[Given]) -> Vec<f64> {
    let measure = measure(name).unwrap();
    let Row { n_xy, n_x, n_y, n } = *row;
    let mut found = vec![
        measure
            .score_u64(n_xy, n_x, n_y, n, parameters)
            .unwrap()
            .unwrap(),
    ];
    if n <= 1 << 53 {
        let float = measure.score(n_xy as f64, n_x as f64, n_y as f64, n as f64, parameters);
        found.push(float.unwrap().unwrap());
    }
    found
}

/// A rational function of the counts, within 10^−13 of itself.
fn check_rational(name: &str, row: &Row, truth: &BigRational) -> Result<(), TestCaseError> {
    for value in found(name, row, &[]) {
        prop_assert!(close(value, truth, 13), "{} {:?} {}", name, row, value);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn pmi_is_exact_to_1e_14_relative_even_near_zero(row in prop_oneof![any_row(), float_row()]) {
        let truth = ln(&lift(&row));
        for value in found("pmi", &row, &[]) {
            prop_assert!(close(value, &truth, 14), "{:?} {}", row, value);
        }
    }

    #[test]
    fn pmi_is_exact_to_1e_15_absolute(row in any_row()) {
        let truth = ln(&lift(&row));
        // 44 is the largest score (ln 2^64); one rounding of it is 3.6e-15.
        let limit = to_rational(1e-15) + to_rational(3e-16) * if truth < whole(0) { -truth.clone() } else { truth.clone() };
        prop_assert!(distance(found("pmi", &row, &[])[0], &truth) <= limit);
    }

    #[test]
    fn npmi_is_exact_to_1e_13(row in any_row()) {
        let truth = ln(&lift(&row)) / -ln(&(big(row.n_xy) / big(row.n)));
        for value in found("npmi", &row, &[]) {
            prop_assert!(close(value, &truth, 13), "{:?} {}", row, value);
        }
    }

    #[test]
    fn pmi2_and_pmi3_are_exact_to_1e_13(row in any_row()) {
        let square = big(row.n_xy) * big(row.n_xy) / (big(row.n_x) * big(row.n_y));
        let cube = &square * big(row.n_xy) / big(row.n);
        for value in found("pmi_k", &row, &[]) {
            prop_assert!(close(value, &ln(&square), 13));
        }
        for value in found("lfmd", &row, &[]) {
            prop_assert!(close(value, &ln(&cube), 13));
        }
    }

    #[test]
    fn ratios_are_exact_to_1e_13(row in any_row()) {
        let [a, x, y, n] = [row.n_xy, row.n_x, row.n_y, row.n].map(big);
        let delta = excess(&row);
        check_rational("lift", &row, &lift(&row))?;
        check_rational("dice", &row, &(whole(2) * &a / (&x + &y)))?;
        check_rational("jaccard", &row, &(&a / (&x + &y - &a)))?;
        check_rational("leverage", &row, &(&delta / (&n * &n)))?;
        if row.n_x < row.n && row.n_y < row.n {
            check_rational("delta_p", &row, &(&delta / (&x * (&n - &x))))?;
            let chi = &n * &delta * &delta / (&x * &y * (&n - &x) * (&n - &y));
            check_rational("chi_squared", &row, &chi)?;
            for value in found("phi", &row, &[]) {
                prop_assert!(close(value * value, &(chi.clone() / &n), 12));
            }
        }
        if row.n_xy < row.n_x && row.n_xy < row.n_y {
            check_rational("conviction", &row, &(&x * (&n - &y) / (&n * (&x - &a))))?;
            let d = &n - &x - &y + &a;
            check_rational("odds_ratio", &row, &(&a * d / ((&x - &a) * (&y - &a))))?;
        }
    }

    #[test]
    fn scores_of_deviation_are_exact_to_1e_12(row in any_row()) {
        let [a, x, y, n] = [row.n_xy, row.n_x, row.n_y, row.n].map(big);
        let difference = excess(&row) / &n;
        let t = &difference * &difference / &a;
        let z = &difference * &difference * &n / (&x * &y);
        for (name, square) in [("t_score", t), ("z_score", z)] {
            for value in found(name, &row, &[]) {
                prop_assert!(distance(value, &to_rational(value)) == whole(0));
                prop_assert_eq!(value >= 0.0, difference >= whole(0));
                let truth = to_rational(value) * to_rational(value);
                let gap = if truth > square { &truth - &square } else { &square - &truth };
                prop_assert!(gap * to_rational(1e12) <= square, "{} {:?} {}", name, row, value);
            }
        }
    }

    #[test]
    fn the_likelihood_ratio_is_exact_to_1e_11(row in any_row()) {
        prop_assume!(row.n_x < row.n && row.n_y < row.n);
        let [a, x, y, n] = [row.n_xy, row.n_x, row.n_y, row.n].map(big);
        let mut truth = whole(0);
        let cells = [
            (a.clone(), x.clone(), y.clone()),
            (&x - &a, x.clone(), &n - &y),
            (&y - &a, &n - &x, y.clone()),
            (&n - &x - &y + &a, &n - &x, &n - &y),
        ];
        for (observed, row, column) in cells {
            if observed > whole(0) {
                truth += &observed * ln(&(&observed * &n / (row * column))) * whole(2);
            }
        }
        for value in found("log_likelihood_ratio", &row, &[]) {
            prop_assert!(close(value, &truth, 11), "{:?} {}", row, value);
        }
    }
}

/// All tables of the margins and their exact probabilities, over C(n, n_y).
fn fisher(row: &Row, alternative: &str) -> BigRational {
    let choose = |n: u64, k: u64| -> BigInt {
        (0..k).fold(BigInt::from(1), |product, i| product * (n - i) / (i + 1))
    };
    let first = (row.n_x + row.n_y).saturating_sub(row.n);
    let ways = |a: u64| choose(row.n_x, a) * choose(row.n - row.n_x, row.n_y - a);
    let observed = ways(row.n_xy);
    let mut sum = BigInt::from(0);
    for a in first..=row.n_x.min(row.n_y) {
        let extreme = match alternative {
            "greater" => a >= row.n_xy,
            "less" => a <= row.n_xy,
            _ => ways(a) <= observed,
        };
        if extreme {
            sum += ways(a);
        }
    }
    BigRational::new(sum, choose(row.n, row.n_y))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn fisher_is_the_sum_over_tables(row in prop_oneof![rows(9), near_independence(9)]) {
        for alternative in ["two-sided", "greater", "less"] {
            let truth = fisher(&row, alternative);
            let ln_p = found("fisher_exact", &row, &[Given::Text(alternative.to_owned())])[0];
            // As a p-value, so that ln p near 0 is not asked for relative digits it cannot have.
            prop_assert!(close(ln_p.exp(), &truth, 12), "{} {:?} {} {}", alternative, row, ln_p, ln(&truth));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn fisher_ends_for_counts_of_any_size(row in any_row()) {
        let ln_p = |word: &str| found("fisher_exact", &row, &[Given::Text(word.to_owned())])[0];
        let (two, greater, less) = (ln_p("two-sided"), ln_p("greater"), ln_p("less"));
        for value in [two, greater, less] {
            prop_assert!(value <= 0.0 && value.is_finite(), "{:?} {} {} {}", row, two, greater, less);
        }
        // The two sides share the observed table only, so they add up to 1 and its probability; one is at least half.
        prop_assert!(greater.exp() + less.exp() >= 1.0 - 1e-6, "{:?} {} {}", row, greater, less);
        // Both sides hold at least the nearer one (up to the digits of a logarithm of that size).
        let nearer = greater.min(less);
        prop_assert!(two >= nearer - 1e-6 - 1e-12 * nearer.abs(), "{:?} {} {} {}", row, two, greater, less);
    }
}

#[test]
fn fisher_of_large_tables_is_smooth_and_fast() {
    // The same relative deviation in ever larger tables: where the tail is summed and where it is integrated must join.
    let p = |scale: u64, z: f64| {
        let n = 400 * scale;
        let deviation = (z * (scale as f64 * 25.0).sqrt()) as u64;
        measure("fisher_exact")
            .unwrap()
            .score_u64(
                100 * scale + deviation,
                200 * scale,
                200 * scale,
                n,
                &[Given::Text("greater".into())],
            )
            .unwrap()
            .unwrap()
    };
    let start = std::time::Instant::now();
    let mut previous: Option<f64> = None;
    for scale in [
        10_000,
        100_000,
        1_000_000,
        100_000_000,
        10_000_000_000,
        40_000_000_000_000_000,
    ] {
        let value = p(scale, 3.0);
        // The normal tail at 3 standard deviations, 0.00135, is the limit.
        assert!(
            (value.exp() - 0.001_349_9).abs() < 0.001 / (scale as f64).sqrt() + 3e-7,
            "{scale} {value}"
        );
        if let Some(previous) = previous {
            assert!((value - previous).abs() < 0.02);
        }
        previous = Some(value);
    }
    // Deep in the tail the logarithm stays finite and grows with the table.
    let deep = measure("fisher_exact")
        .unwrap()
        .score_u64(1 << 40, 1 << 41, 1 << 41, 1 << 60, &[])
        .unwrap()
        .unwrap();
    assert!(deep.is_finite() && deep < -1e12, "{deep}");
    assert!(start.elapsed().as_secs() < 20);
}
