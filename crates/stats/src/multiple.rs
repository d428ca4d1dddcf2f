//! Many tests at once: p-values that control the share of false discoveries.

/// Benjamini & Hochberg 1995: the smallest false discovery rate at which each test is still called,
/// `min over later ranks j of p_(j) · m / j`, at most 1.
///
/// `None`, NaN and values outside 0 … 1 are no tests: they get `None` and are not counted in m.
/// ```
/// use pmill_stats::benjamini_hochberg;
/// let adjusted = benjamini_hochberg(&[Some(0.01), Some(0.04), None, Some(0.03)]);
/// // m = 3: 0.01·3/1, 0.04·3/3, and 0.03·3/2 = 0.045 lowered to the later 0.04
/// assert_eq!(adjusted, [Some(0.03), Some(0.04), None, Some(0.04)]);
/// ```
pub fn benjamini_hochberg(p: &[Option<f64>]) -> Vec<Option<f64>> {
    adjust(
        p,
        |p| (0.0..=1.0).contains(&p),
        |p, m, rank| (p * m / rank).min(1.0),
    )
}

/// [`benjamini_hochberg`] of natural logarithms of p-values, for p too small for f64: −∞ … 0 in and out.
/// ```
/// let adjusted = pmill_stats::benjamini_hochberg_ln(&[Some(-2000.0), Some(0.0)]);
/// assert_eq!(adjusted, [Some(-2000.0 + 2_f64.ln()), Some(0.0)]);
/// ```
pub fn benjamini_hochberg_ln(ln_p: &[Option<f64>]) -> Vec<Option<f64>> {
    adjust(
        ln_p,
        |p| p <= 0.0,
        |p, m, rank| (p + (m.ln() - f64::ln(rank))).min(0.0),
    )
}

fn adjust(
    p: &[Option<f64>],
    is_test: impl Fn(f64) -> bool,
    scaled: impl Fn(f64, f64, f64) -> f64,
) -> Vec<Option<f64>> {
    let mut adjusted = vec![None; p.len()];
    let mut tests: Vec<(f64, usize)> = Vec::with_capacity(p.len());
    for (place, p) in p.iter().enumerate() {
        if let Some(p) = p.filter(|p| is_test(*p)) {
            tests.push((p, place));
        }
    }
    tests.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let m = tests.len() as f64;
    let mut smallest = f64::INFINITY;
    for (index, (p, place)) in tests.iter().enumerate().rev() {
        smallest = smallest.min(scaled(*p, m, (index + 1) as f64));
        adjusted[*place] = Some(smallest);
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By the definition: for each test the minimum over all tests that are no smaller.
    fn slow(p: &[f64]) -> Vec<Option<f64>> {
        let rank = |value: f64| p.iter().filter(|other| **other <= value).count() as f64;
        let scaled = |value: f64| (value * p.len() as f64 / rank(value)).min(1.0);
        let later = |value: f64| p.iter().filter(move |other| **other >= value);
        p.iter()
            .map(|value| later(*value).map(|other| scaled(*other)).reduce(f64::min))
            .collect()
    }

    proptest! {
        #[test]
        fn the_sorted_form_is_the_definition(p in prop::collection::vec((0_u32..=40).prop_map(|v| f64::from(v) / 40.0), 0..40)) {
            let given: Vec<Option<f64>> = p.iter().copied().map(Some).collect();
            prop_assert_eq!(benjamini_hochberg(&given), slow(&p));
        }
    }

    #[test]
    fn what_is_no_test_is_not_counted() {
        let adjusted =
            benjamini_hochberg(&[Some(0.5), Some(f64::NAN), Some(-0.1), Some(1.1), None]);
        assert_eq!(adjusted, [Some(0.5), None, None, None, None]);
    }
}
