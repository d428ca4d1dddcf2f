//! Means of BF16 in single precision, for the elements where that is exact.
//!
//! The argument is that of [`crate::kernel`] with singles in the place of doubles, and made for each element
//! alone. Let the inputs of an element be multiples of `2^low` and below `2^high`, and the weights whole
//! numbers with sum `K`. Products and partial sums are multiples of `2^low` below `K * 2^high`, so that all of
//! them are singles when `high - low + log2(K) <= 24`, and the sum `S` is exact. `S / K` is rounded to a single
//! and then to BF16; since `8 + 1 + bits(K) <= 24` the second rounding cannot go astray. Exponents are kept away
//! from where singles overflow or lose bits. Elements for which this does not hold stay open.
//!
//! Two elements share a word of 32 bits: with the other half cleared or shifted out each is a single.

use crate::vector::Lane;
use pulp::{Simd, WithSimd, bytemuck};

/// Elements that are worked on together, on every machine: a run's last ones short of it stay open.
const TOGETHER: usize = 32;

/// The most that `log2(K)` may be; beyond it few elements would be exact.
const MOST_BITS: u32 = 6;

/// Weights of an output for which single precision may be exact.
pub(crate) struct Narrow {
    weights: Vec<f32>,
    /// Nothing is multiplied when all weights are 1.
    unit: bool,
    total: f32,
    /// `log2(K)`, rounded up.
    bits: u32,
}

impl Narrow {
    /// `None` when a weight is 0 (such an input takes no part) or their sum is large.
    pub fn new(numbers: &[u128], total: u128) -> Option<Self> {
        let bits = 128 - total.checked_sub(1)?.leading_zeros();
        if bits > MOST_BITS || numbers.contains(&0) || cfg!(target_endian = "big") {
            return None;
        }
        Some(Self {
            weights: numbers.iter().map(|number| *number as f32).collect(),
            unit: numbers.iter().all(|number| *number == 1),
            total: total as f32,
            bits,
        })
    }
}

/// Writes the means of a run of elements, all lanes being BF16, and lists those that stay open, in order.
///
/// What is written for an open element is no mean.
pub(crate) struct MeanBf16<'a> {
    pub narrow: &'a Narrow,
    pub lanes: &'a [Lane<'a>],
    /// The first element in the lanes; their number is that of the output.
    pub start: usize,
    pub output: &'a mut [u8],
    pub open: &'a mut Vec<usize>,
}

impl WithSimd for MeanBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.open.clear();
        let bytes = size_of::<S::u32s>();
        let whole = if bytes == size_of::<S::u16s>() && (TOGETHER * 2).is_multiple_of(bytes) {
            self.output.len() / 2 / TOGETHER * TOGETHER
        } else {
            0 // a machine whose words are no vectors
        };
        let count = self.output.len() / 2;
        match (self.narrow.unit, self.narrow.total.to_bits() << 9 == 0) {
            (true, true) => self.run::<S, true, true>(simd, whole, count),
            (true, false) => self.run::<S, true, false>(simd, whole, count),
            (false, true) => self.run::<S, false, true>(simd, whole, count),
            (false, false) => self.run::<S, false, false>(simd, whole, count),
        }
    }
}

impl MeanBf16<'_> {
    /// `UNIT`: all weights are 1; `SHIFT`: their sum is a power of two, whose inverse is exact.
    #[inline(always)]
    fn run<S: Simd, const UNIT: bool, const SHIFT: bool>(
        self,
        simd: S,
        whole: usize,
        count: usize,
    ) {
        let Self {
            narrow,
            lanes,
            start,
            output,
            open,
        } = self;
        let bits = narrow.bits as u16;
        // Magnitudes as bits: 7 of fraction below 8 of exponent.
        let largest = simd.splat_u16s((253 - bits) << 7 | 0x7f);
        let smallest = simd.splat_u16s((9 + bits) << 7);
        let widest = simd.splat_u16s((16 - bits) << 7);
        let magnitude = simd.splat_u16s(0x7fff);
        let one = simd.splat_u16s(1);
        let sixteen = simd.splat_u32s(16);
        let upper = simd.splat_u32s(0xffff_0000);
        let below_half = simd.splat_u32s(0x7fff);
        let lowest_bit = simd.splat_u32s(1);
        let inverse = simd.splat_f32s(1.0 / narrow.total);
        let total = simd.splat_f32s(narrow.total);
        let width = size_of::<S::u32s>();
        let nearest = |sum: S::f32s| {
            let mean = if SHIFT {
                simd.mul_f32s(sum, inverse)
            } else {
                simd.div_f32s(sum, total)
            };
            let bits = simd.transmute_u32s_f32s(mean);
            // Half a step less one, and one more when the last bit that stays is odd: ties to even.
            let odd = simd.and_u32s(simd.wrapping_dyn_shr_u32s(bits, sixteen), lowest_bit);
            simd.add_u32s(bits, simd.add_u32s(below_half, odd))
        };
        for (position, written) in output[..whole * 2].chunks_exact_mut(width).enumerate() {
            let at = start * 2 + position * width;
            let (mut even, mut odd) = (simd.splat_f32s(-0.0), simd.splat_f32s(-0.0));
            let (mut largest_seen, mut smallest_seen) =
                (simd.splat_u16s(0), simd.splat_u16s(u16::MAX));
            for (lane, weight) in lanes.iter().zip(&narrow.weights) {
                let words: S::u32s = bytemuck::pod_read_unaligned(&lane.bytes[at..at + width]);
                let mut first =
                    simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(words, sixteen));
                let mut second = simd.transmute_f32s_u32s(simd.and_u32s(words, upper));
                if !UNIT {
                    let weight = simd.splat_f32s(*weight);
                    first = simd.mul_f32s(first, weight);
                    second = simd.mul_f32s(second, weight);
                }
                even = simd.add_f32s(even, first);
                odd = simd.add_f32s(odd, second);
                let magnitudes = simd.and_u16s(bytemuck::cast(words), magnitude);
                largest_seen = simd.max_u16s(largest_seen, magnitudes);
                // One less, so that zero is the largest and does not count.
                smallest_seen = simd.min_u16s(smallest_seen, simd.sub_u16s(magnitudes, one));
            }
            let (even, odd) = (nearest(even), nearest(odd));
            let words = simd.or_u32s(
                simd.wrapping_dyn_shr_u32s(even, sixteen),
                simd.and_u32s(odd, upper),
            );
            written.copy_from_slice(bytemuck::bytes_of(&words));
            let span = simd.sub_u16s(largest_seen, smallest_seen);
            // Not zero where a limit is passed.
            let passed = simd.or_u16s(
                simd.xor_u16s(simd.max_u16s(span, widest), widest),
                simd.or_u16s(
                    simd.xor_u16s(simd.max_u16s(largest_seen, largest), largest),
                    simd.xor_u16s(simd.min_u16s(smallest_seen, smallest), smallest),
                ),
            );
            let is_open = simd.greater_than_u16s(passed, simd.splat_u16s(0));
            if simd.first_true_m16s(is_open) < S::U16_LANES {
                let passed: &[u16] = bytemuck::cast_slice(bytemuck::bytes_of(&passed));
                let place = position * width / 2;
                let elements = (place..).zip(passed);
                open.extend(
                    elements
                        .filter(|(_, passed)| **passed != 0)
                        .map(|(element, _)| element),
                );
            }
        }
        open.extend(whole..count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Float;

    /// The means of pairs of values and which of them are open; the run is filled up with pairs of 1.
    fn means(pairs: &[(u16, u16)]) -> (Vec<u16>, Vec<usize>) {
        let one = (0x3f80, 0x3f80);
        let padded = || pairs.iter().chain(std::iter::repeat(&one)).take(TOGETHER);
        let first: Vec<u8> = padded().flat_map(|pair| pair.0.to_le_bytes()).collect();
        let second: Vec<u8> = padded().flat_map(|pair| pair.1.to_le_bytes()).collect();
        let lanes = [&first, &second].map(|bytes| Lane {
            bytes,
            float: Float::BF16,
        });
        let (mut output, mut open) = (vec![0; TOGETHER * 2], Vec::new());
        pulp::Arch::new().dispatch(MeanBf16 {
            narrow: &Narrow::new(&[1, 1], 2).unwrap(),
            lanes: &lanes,
            start: 0,
            output: &mut output,
            open: &mut open,
        });
        let words = output.chunks_exact(2);
        let means = words.map(|word| u16::from_le_bytes([word[0], word[1]]));
        (means.take(pairs.len()).collect(), open)
    }

    #[test]
    fn only_elements_beyond_the_limits_stay_open() {
        let (means, open) = means(&[
            (0x3f80, 0x4000), // 1 and 2
            (0x3f80, 0x3f81), // a tie, to even below
            (0x3f81, 0x3f82), // a tie, to even above
            (0x8000, 0x8000), // -0 and -0
            (0x3f80, 0xbf80), // 1 and -1
            (0x3f80, 0x3801), // 1 and a bit above 2^-15: exact in 24 bits
            (0x3f80, 0x3780), // 1 and 2^-16: one exponent too far
            (0x7f80, 0x3f80), // infinity
            (0x0001, 0x0001), // subnormal
            (0x3f80, 0x0000), // zero does not count
        ]);
        if open.len() == TOGETHER {
            return; // a machine without vectors
        }
        assert_eq!(open, [6, 7, 8]);
        assert_eq!(means[..6], [0x3fc0, 0x3f80, 0x3f82, 0x8000, 0x0000, 0x3f00]);
        assert_eq!(means[9], 0x3f00);
    }

    #[test]
    fn weights_of_zero_and_large_sums_are_not_for_singles() {
        assert!(Narrow::new(&[1, 0, 1], 2).is_none());
        assert!(Narrow::new(&[1, 64], 65).is_none());
        assert!(Narrow::new(&[1, 63], 64).is_some_and(|narrow| narrow.bits == 6));
        assert!(Narrow::new(&[1], 1).is_some_and(|narrow| narrow.bits == 0));
    }
}
