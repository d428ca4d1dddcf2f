//! The kernel against a reference in big whole numbers: equal bit for bit, for every format.
//!
//! The reference shares nothing with the code under test: it turns every value into a whole multiple of the
//! smallest step of all formats in play, adds those with `num-bigint`, and finds the nearest value of the
//! output format by searching the ordered list of all its values, multiplied by the total weight.

use crate::dtype::Float;
use crate::kernel::{Kernel, Weights};
use crate::vector::Lane;
use crate::weights::{Row, Weight};
use num_bigint::BigInt;
use num_traits::{Signed, Zero};
use proptest::prelude::*;

const FLOATS: [Float; 6] = [
    Float::F8E5M2,
    Float::F8E4M3,
    Float::F16,
    Float::BF16,
    Float::F32,
    Float::F64,
];

/// The layout of a format, written out by hand: exponent bits, fraction bits, bias, has infinities.
fn layout(float: Float) -> (u32, u32, i64, bool) {
    match float {
        Float::F8E5M2 => (5, 2, 15, true),
        Float::F8E4M3 => (4, 3, 7, false),
        Float::F16 => (5, 10, 15, true),
        Float::BF16 => (8, 7, 127, true),
        Float::F32 => (8, 23, 127, true),
        Float::F64 => (11, 52, 1023, true),
    }
}

/// The value of non-negative finite bits in units of `2^unit`, also of the first bits that are not finite
/// (the value that the format would have there, which is where rounding to infinity begins).
fn value_of(float: Float, bits: u64, unit: i64) -> BigInt {
    let (_, fraction_bits, bias, _) = layout(float);
    let field = (bits >> fraction_bits) as i64;
    let fraction = bits & ((1 << fraction_bits) - 1);
    let mantissa = if field == 0 {
        fraction
    } else {
        fraction | 1 << fraction_bits
    };
    BigInt::from(mantissa) << (field.max(1) - bias - i64::from(fraction_bits) - unit)
}

fn smallest_step(float: Float) -> i64 {
    let (_, fraction_bits, bias, _) = layout(float);
    1 - bias - i64::from(fraction_bits)
}

enum Special {
    Number(bool, BigInt),
    Infinity(bool),
    Nan,
}

fn special(float: Float, bits: u64, unit: i64) -> Special {
    let (exponent_bits, fraction_bits, _, infinities) = layout(float);
    let width = exponent_bits + fraction_bits;
    let negative = bits >> width == 1;
    let magnitude = bits & ((1 << width) - 1);
    let top = ((1_u64 << exponent_bits) - 1) << fraction_bits;
    if infinities && magnitude == top {
        Special::Infinity(negative)
    } else if (infinities && magnitude > top) || (!infinities && magnitude == (1 << width) - 1) {
        Special::Nan
    } else {
        Special::Number(negative, value_of(float, magnitude, unit))
    }
}

/// The whole definition of a merge of one element, in the plainest way.
fn reference(values: &[(Float, u64)], weights: &[u128], out: Float) -> (u64, bool) {
    let (exponent_bits, fraction_bits, _, infinities) = layout(out);
    let sign_bit = 1_u64 << (exponent_bits + fraction_bits);
    let first_not_finite = if infinities {
        ((1 << exponent_bits) - 1) << fraction_bits
    } else {
        sign_bit - 1
    };
    let nan = if infinities {
        first_not_finite | 1 << (fraction_bits - 1)
    } else {
        first_not_finite
    };
    let unit = values
        .iter()
        .map(|(float, _)| smallest_step(*float))
        .min()
        .unwrap()
        .min(smallest_step(out));
    let mut sum = BigInt::zero();
    let (mut positive_infinity, mut negative_infinity, mut all_negative) = (false, false, true);
    for (&(float, bits), &weight) in values.iter().zip(weights) {
        if weight == 0 {
            continue;
        }
        match special(float, bits, unit) {
            Special::Nan => return (nan, false),
            Special::Infinity(true) => negative_infinity = true,
            Special::Infinity(false) => positive_infinity = true,
            Special::Number(negative, value) => {
                all_negative &= negative;
                let term = value * BigInt::from(weight);
                sum += if negative { -term } else { term };
            }
        }
    }
    match (positive_infinity, negative_infinity) {
        (true, true) => return (nan, false),
        (true, false) => return (first_not_finite, false),
        (false, true) => return (first_not_finite | sign_bit, false),
        (false, false) => {}
    }
    if sum.is_zero() {
        return (if all_negative { sign_bit } else { 0 }, false);
    }
    // All comparisons are between `sum` and `total * value`, so nothing is divided.
    let total = BigInt::from(weights.iter().sum::<u128>());
    let sign = if sum.is_negative() { sign_bit } else { 0 };
    let magnitude = sum.abs();
    let times_total = |bits: u64| value_of(out, bits, unit) * &total;
    // The largest bits whose value is not above the magnitude, up to where finite values end.
    let (mut below, mut above) = (0, first_not_finite);
    if magnitude >= times_total(first_not_finite) {
        return (first_not_finite | sign, true);
    }
    while above - below > 1 {
        let middle = below + (above - below) / 2;
        if times_total(middle) <= magnitude {
            below = middle
        } else {
            above = middle
        }
    }
    let (to_below, to_above) = (
        &magnitude - times_total(below),
        times_total(above) - &magnitude,
    );
    let up = to_above < to_below || (to_above == to_below && below % 2 == 1);
    let bits = if up { above } else { below };
    (bits | sign, bits == first_not_finite)
}

fn put(float: Float, bits: u64, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&bits.to_le_bytes()[..float.bytes()]);
}

/// A pattern of bits that meets the hard cases often.
fn pattern(float: Float, wild: bool) -> BoxedStrategy<u64> {
    let (exponent_bits, fraction_bits, bias, _) = layout(float);
    let all = (float.magnitude_mask() << 1) | 1;
    let sign = float.magnitude_mask() + 1;
    let near_one = (0..6_u64, 0..1_u64 << fraction_bits, any::<bool>()).prop_map(
        move |(down, fraction, negative)| {
            let field = (bias as u64).saturating_sub(down).max(1);
            (field << fraction_bits) | fraction | if negative { sign } else { 0 }
        },
    );
    let subnormal = (0..1_u64 << fraction_bits, any::<bool>())
        .prop_map(move |(fraction, negative)| fraction | if negative { sign } else { 0 });
    let few_bits = (1..(1_u64 << exponent_bits) - 1, 0..4_u64, any::<bool>()).prop_map(
        move |(field, top, negative)| {
            (field << fraction_bits)
                | (top << (fraction_bits - 2))
                | if negative { sign } else { 0 }
        },
    );
    let largest = Just(float.largest_finite()).prop_map(move |bits| bits);
    let nonfinite = prop_oneof![
        Just(float.overflow()),
        Just(float.overflow() | sign),
        Just(float.quiet_nan())
    ];
    let zero = prop_oneof![Just(0), Just(sign)];
    if wild {
        prop_oneof![3 => near_one, 2 => subnormal, 3 => few_bits, 1 => largest, 1 => nonfinite, 2 => zero, 3 => any::<u64>().prop_map(move |bits| bits & all)].boxed()
    } else {
        prop_oneof![12 => near_one, 1 => zero].boxed()
    }
}

#[derive(Debug, Clone)]
struct Case {
    inputs: Vec<(Float, Vec<u64>)>,
    weights: Vec<Weight>,
    out: Float,
}

fn case() -> impl Strategy<Value = Case> {
    let float = || prop::sample::select(FLOATS.to_vec());
    (
        float(),
        float(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop_oneof![1..9_usize, 2..65_usize],
        1..20_usize,
    )
        .prop_flat_map(move |(first, out, same, mixed, wild, inputs, elements)| {
            let out = if same { first } else { out };
            let lane = float().prop_flat_map(move |other| {
                let float = if mixed { other } else { first };
                (
                    Just(float),
                    prop::collection::vec(pattern(float, wild), elements),
                )
            });
            let weights = prop_oneof![
                Just(vec![Weight::from(1); inputs]),
                prop::collection::vec((0..10_u64).prop_map(Weight::from), inputs),
                prop::collection::vec(any::<u64>().prop_map(Weight::from), inputs),
                prop::collection::vec(
                    (0.0..1.0_f64).prop_map(|weight| Weight::try_from(weight).unwrap()),
                    inputs
                ),
            ];
            (prop::collection::vec(lane, inputs), weights, Just(out)).prop_map(
                |(inputs, weights, out)| Case {
                    inputs,
                    weights,
                    out,
                },
            )
        })
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    let Ok(row) = Row::relative(&case.weights) else {
        return Ok(());
    };
    let bytes: Vec<Vec<u8>> = case
        .inputs
        .iter()
        .map(|(float, values)| {
            let mut bytes = Vec::new();
            values
                .iter()
                .for_each(|bits| put(*float, *bits, &mut bytes));
            bytes
        })
        .collect();
    let lanes: Vec<Lane> = case
        .inputs
        .iter()
        .zip(&bytes)
        .map(|((float, _), bytes)| Lane {
            bytes,
            float: *float,
        })
        .collect();
    let elements = case.inputs[0].1.len();
    let mut output = vec![0; elements * case.out.bytes()];
    let seen = Kernel::new().mean(
        &lanes,
        &[&Weights::new(&row)],
        case.out,
        elements,
        &mut [&mut output],
    );
    let mut overflowed = None;
    for element in 0..elements {
        let values: Vec<_> = case
            .inputs
            .iter()
            .map(|(float, values)| (*float, values[element]))
            .collect();
        let (expected, overflow) = reference(&values, row.numbers(), case.out);
        let found = crate::exact::read_bits(case.out, &output[element * case.out.bytes()..]);
        prop_assert_eq!(
            found,
            expected,
            "element {} of {:?} as {:?}",
            element,
            values,
            case.out
        );
        if overflow {
            overflowed = overflowed.or(Some(element));
        }
    }
    prop_assert_eq!(seen.overflow, overflowed);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_mean_is_the_exact_one_rounded_once(case in case()) {
        check(&case)?;
    }
}

/// Plain pseudo-random numbers for the exhaustive and long tests.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

#[test]
fn every_bit_pattern_survives_a_merge_of_itself() {
    for float in [Float::F8E5M2, Float::F8E4M3, Float::F16, Float::BF16] {
        let values: Vec<u64> = (0..=(float.magnitude_mask() << 1 | 1)).collect();
        for inputs in [2, 3] {
            let case = Case {
                inputs: vec![(float, values.clone()); inputs],
                weights: vec![Weight::from(1); inputs],
                out: float,
            };
            // The block-wide choice of path would hide the fast one behind the few patterns that are not finite.
            let (finite, rest): (Vec<u64>, Vec<u64>) = values
                .iter()
                .partition(|bits| *bits & float.magnitude_mask() <= float.largest_finite());
            for part in [finite, rest] {
                let case = Case {
                    inputs: vec![(float, part); inputs],
                    ..case.clone()
                };
                check(&case).unwrap();
            }
        }
    }
}

#[test]
fn every_pair_of_eight_bit_floats_has_the_exact_mean() {
    for float in [Float::F8E5M2, Float::F8E4M3] {
        let finite: Vec<u64> = (0..256)
            .filter(|bits| bits & 0x7f <= float.largest_finite())
            .collect();
        let left: Vec<u64> = finite
            .iter()
            .flat_map(|bits| std::iter::repeat_n(*bits, finite.len()))
            .collect();
        let right: Vec<u64> = finite.iter().cycle().take(left.len()).copied().collect();
        for out in [float, Float::F16] {
            for weights in [[1, 1], [1, 2]] {
                let weights = weights.map(Weight::from).to_vec();
                check(&Case {
                    inputs: vec![(float, left.clone()), (float, right.clone())],
                    weights,
                    out,
                })
                .unwrap();
            }
        }
    }
}

#[test]
fn long_runs_of_ordinary_weights_are_exact() {
    let mut random = Random(7);
    for float in FLOATS {
        let (_, fraction_bits, bias, _) = layout(float);
        for inputs in [2, 3, 64] {
            let mut lane = || -> Vec<u64> {
                // About what trained weights look like: exponents falling off below 2^-3, one in 1,100 zero.
                (0..1031)
                    .map(|_| {
                        let word = random.next();
                        let down = u64::from((word | 1 << 40).trailing_zeros()) / 2 + 3;
                        let field = (bias as u64).saturating_sub(down);
                        (random.next() & ((1 << fraction_bits) - 1))
                            | (field << fraction_bits)
                            | ((word >> 63) * (float.magnitude_mask() + 1))
                    })
                    .collect()
            };
            let case = Case {
                inputs: (0..inputs).map(|_| (float, lane())).collect(),
                weights: vec![Weight::from(1); inputs],
                out: float,
            };
            check(&case).unwrap();
        }
    }
}

#[test]
fn bf16_in_singles_is_exact_up_to_its_limits() {
    let mut random = Random(11);
    let mut ones = vec![vec![1; 2], vec![1; 3], vec![1; 5], vec![1; 8], vec![1; 64]];
    ones.extend([
        vec![3, 1],
        vec![2, 5, 3],
        vec![7, 9, 1, 15],
        vec![1, 1, 2, 3, 5, 7, 11, 34],
    ]);
    for weights in ones {
        let total: u64 = weights.iter().sum();
        let bits = u64::from(64 - (total - 1).leading_zeros());
        let mut lanes = vec![Vec::new(); weights.len()];
        for _ in 0..2 * 1024 + 37 {
            // Nine of ten elements lie where singles are exact; the others at and beyond the limits.
            let (lowest, span) = match random.next() % 40 {
                0 => (random.next() % 24, 16 - bits),
                1 => (253 - 17 + random.next() % 2, 16 - bits),
                2 => (1 + random.next() % 200, 18),
                3 => (1 + random.next() % 253, 0),
                _ => (100 + random.next() % 20, random.next() % (17 - bits)),
            };
            let ties = random.next().is_multiple_of(2);
            for lane in &mut lanes {
                let word = random.next();
                let fraction = if ties {
                    (word >> 8 & 1) << 6 | word >> 9 & 1
                } else {
                    word >> 8 & 0x7f
                };
                // Both ends of the span are met often.
                let field =
                    lowest + [0, span, (word >> 16) % (span + 1)][(word >> 32) as usize % 3];
                let zero = (word >> 40).is_multiple_of(23);
                let magnitude = if zero {
                    0
                } else {
                    field.min(254) << 7 | fraction
                };
                lane.push(magnitude | (word & 1) << 15);
            }
        }
        check(&Case {
            inputs: lanes.into_iter().map(|lane| (Float::BF16, lane)).collect(),
            weights: weights.into_iter().map(Weight::from).collect(),
            out: Float::BF16,
        })
        .unwrap();
    }
}
