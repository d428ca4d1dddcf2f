//! Numbers that look random and depend on nothing but seed and place.

/// SplitMix64's output function: a bijection of 64 bits (Steele, Lea & Flood 2014).
#[must_use]
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in (0, 1], with 53 bits.
#[must_use]
pub fn unit(bits: u64) -> f64 {
    ((bits >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

/// The number of the standard normal distribution at a place (Box & Muller 1958).
#[must_use]
pub fn normal(seed: u64, place: u64) -> f64 {
    let first = mix(mix(seed) ^ place.wrapping_mul(2));
    let second = mix(mix(seed) ^ place.wrapping_mul(2).wrapping_add(1));
    (-2.0 * unit(first).ln()).sqrt() * (std::f64::consts::TAU * unit(second)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let numbers: Vec<f64> = (0..100_000).map(|place| normal(7, place)).collect();
        let mean = numbers.iter().sum::<f64>() / 1e5;
        let variance = numbers.iter().map(|x| x * x).sum::<f64>() / 1e5;
        // Four standard errors: 4 / sqrt(1e5) and 4 * sqrt(2 / 1e5).
        assert!(mean.abs() < 0.0127, "{mean}");
        assert!((variance - 1.0).abs() < 0.018, "{variance}");
        assert_ne!(normal(7, 0).to_bits(), normal(8, 0).to_bits());
    }
}
