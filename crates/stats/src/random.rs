//! Numbers that look random and are not: the same seed, key and place give the same number on every machine.

/// The step and finalizer of SplitMix64 (Steele, Lea & Flood 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Stream(u64);

impl Stream {
    /// The stream with this number under a seed.
    pub(crate) fn new(seed: u64, number: u64) -> Stream {
        Stream(mix(mix(seed) ^ number))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform below `bound`; the bias of the multiplication is below 2^−32 for bounds below 2^32.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// A Poisson(1) number from 64 uniform bits, by inversion: the weight of a row in one bootstrap replicate (Hanley &
/// MacGibbon 2006; Chamandy et al. 2012).
pub(crate) fn poisson_one(uniform: u64) -> i64 {
    // Of 2^64: P(0) = 1/e, P(k) = P(k − 1) / k.
    let mut part = 0.367_879_441_171_442_33_f64 * 18_446_744_073_709_551_616.0;
    let mut below = part as u128;
    let mut k = 0;
    while u128::from(uniform) >= below && part >= 1.0 {
        k += 1;
        part /= k as f64;
        below += part as u128;
    }
    k
}

/// A hash of bytes that stays the same for ever: FNV-1a, then mixed.
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_weights_have_mean_and_variance_one() {
        let mut stream = Stream::new(7, 0);
        let n = 400_000;
        let draws: Vec<f64> = (0..n).map(|_| poisson_one(stream.next()) as f64).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let variance = draws.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>() / f64::from(n);
        // Standard errors: 1/√n = 0.0016 and √3/√n = 0.0027; four of them.
        assert!((mean - 1.0).abs() < 0.0064, "{mean}");
        assert!((variance - 1.0).abs() < 0.011, "{variance}");
        assert_eq!(poisson_one(0), 0);
        assert!(poisson_one(u64::MAX) > 15);
    }
}
