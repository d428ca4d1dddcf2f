//! The weighted mean of a few floats in whole-number arithmetic, rounded once.
//!
//! This decides whatever the fast kernel cannot prove, so it must be right for every input: wide
//! exponents, subnormals, signed zeros, infinities. Two ways with one result: a 128-bit sum when all terms
//! fit a window of that width, and an array of limbs that holds any sum of doubles otherwise.

use crate::dtype::Float;

/// A float taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    /// `(-1)^negative * mantissa * 2^exponent`; the mantissa is 0 for both zeros.
    Finite {
        negative: bool,
        mantissa: u64,
        exponent: i32,
    },
    Infinite {
        negative: bool,
    },
    Nan,
}

/// Takes the bits of one value apart.
pub(crate) fn decode(float: Float, bits: u64) -> Value {
    let magnitude = bits & float.magnitude_mask();
    let negative = bits != magnitude;
    if magnitude > float.largest_finite() {
        let infinite = float != Float::F8E4M3 && magnitude == float.overflow();
        return if infinite {
            Value::Infinite { negative }
        } else {
            Value::Nan
        };
    }
    let fraction_bits = float.fraction_bits();
    let field = (magnitude >> fraction_bits) as i32;
    let fraction = magnitude & ((1 << fraction_bits) - 1);
    let hidden = u64::from(field > 0) << fraction_bits;
    Value::Finite {
        negative,
        mantissa: fraction | hidden,
        exponent: float.smallest_exponent() + (field - 1).max(0),
    }
}

/// Reads one little-endian value.
pub(crate) fn read_bits(float: Float, bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..float.bytes()].copy_from_slice(&bytes[..float.bytes()]);
    u64::from_le_bytes(wide)
}

/// Bits of the result, and whether finite inputs gave a value too large for the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rounded {
    pub bits: u64,
    pub overflow: bool,
}

/// `(sum of weight * value) / total`, rounded to nearest, ties to even.
///
/// Values of weight 0 take no part. Not-a-number, or infinities of both signs, give the quiet NaN;
/// otherwise an infinity gives itself. A sum of exactly zero is -0 when every value is -0, else +0; a
/// sum that rounds to zero keeps its sign.
pub(crate) fn mean(terms: &[(Value, u128)], total: u128, out: Float) -> Rounded {
    let sign_bit = out.magnitude_mask() + 1;
    let plain = |bits| Rounded {
        bits,
        overflow: false,
    };
    let mut infinity = None;
    let (mut lowest, mut highest, mut longest) = (i32::MAX, i32::MIN, 0);
    let mut all_negative = true;
    for &(value, weight) in terms.iter().filter(|(_, weight)| *weight > 0) {
        match value {
            Value::Nan => return plain(out.quiet_nan()),
            Value::Infinite { negative } => match infinity {
                Some(other) if other != negative => return plain(out.quiet_nan()),
                _ => infinity = Some(negative),
            },
            Value::Finite {
                negative,
                mantissa,
                exponent,
            } => {
                all_negative &= negative;
                if mantissa != 0 {
                    lowest = lowest.min(exponent);
                    highest = highest.max(exponent + (64 - mantissa.leading_zeros()) as i32);
                    longest = longest.max(128 - weight.leading_zeros());
                }
            }
        }
    }
    if let Some(negative) = infinity {
        return plain(out.overflow() | if negative { sign_bit } else { 0 });
    }
    if lowest == i32::MAX {
        return plain(if all_negative { sign_bit } else { 0 });
    }
    let count_bits = usize::BITS - terms.len().leading_zeros();
    let window = (highest - lowest) as u32 + longest + count_bits;
    let narrow = window <= 126 && total < 1 << 63;
    let (negative, quotient, exponent, sticky) = if narrow {
        let sum = sum_narrow(terms, lowest);
        if sum == 0 {
            return plain(0);
        }
        let (quotient, exponent, sticky) =
            divide_narrow(sum.unsigned_abs(), lowest, total, out.fraction_bits() + 3);
        (sum < 0, quotient, exponent, sticky)
    } else {
        let (negative, sum) = Limbs::sum(terms);
        if sum.is_zero() {
            return plain(0);
        }
        let (quotient, exponent, sticky) = sum.divide(total, out.fraction_bits() + 3);
        (negative, quotient, exponent, sticky)
    };
    let rounded = round(quotient, exponent, sticky, out);
    Rounded {
        bits: rounded.bits | if negative { sign_bit } else { 0 },
        ..rounded
    }
}

fn sum_narrow(terms: &[(Value, u128)], lowest: i32) -> i128 {
    let mut sum = 0_i128;
    for &(value, weight) in terms {
        if let Value::Finite {
            negative,
            mantissa,
            exponent,
        } = value
            && mantissa != 0
            && weight != 0
        {
            // The window check keeps every term and the sum below 2^126.
            let term = ((u128::from(mantissa) * weight) << (exponent - lowest)) as i128;
            sum += if negative { -term } else { term };
        }
    }
    sum
}

/// `number * 2^exponent / divisor` as a quotient of at least `bits` bits (unless exact), its exponent, and
/// whether something is left over. `divisor` is below 2^63.
fn divide_narrow(number: u128, mut exponent: i32, divisor: u128, bits: u32) -> (u128, i32, bool) {
    if divisor.is_power_of_two() {
        return (number, exponent - divisor.trailing_zeros() as i32, false);
    }
    let (mut quotient, mut rest) = (number / divisor, number % divisor);
    loop {
        let length = 128 - quotient.leading_zeros();
        if length >= bits || rest == 0 {
            return (quotient, exponent, rest != 0);
        }
        let shift = bits - length; // at most 55, so the shifted rest stays below 2^118
        let more = rest << shift;
        quotient = (quotient << shift) | (more / divisor);
        rest = more % divisor;
        exponent -= shift as i32;
    }
}

/// Rounds `(quotient + something below 1 when sticky) * 2^exponent`, which is not zero.
///
/// A sticky quotient has more bits than the format's precision, so the part left over only breaks ties.
fn round(quotient: u128, exponent: i32, sticky: bool, out: Float) -> Rounded {
    let precision = out.fraction_bits() + 1;
    let length = (128 - quotient.leading_zeros()) as i32;
    // The step of the result: that of its binade, or the smallest step below the normal values.
    let step = (exponent + length - precision as i32).max(out.smallest_exponent());
    let drop = step - exponent;
    let (mut mantissa, mut step) = if drop <= 0 {
        // `-drop` is below the precision, since the result has at most that many bits.
        ((quotient << -drop) as u64, step)
    } else if drop > length {
        (0, step) // less than half of the smallest step
    } else {
        let drop = drop as u32;
        let kept = if drop >= 128 {
            0
        } else {
            (quotient >> drop) as u64
        };
        let half = 1_u128 << (drop - 1);
        let below = quotient & (half - 1);
        let up = quotient & half != 0 && (below != 0 || sticky || kept & 1 == 1);
        (kept + u64::from(up), step)
    };
    if mantissa == 1 << precision {
        mantissa >>= 1;
        step += 1;
    }
    // A subnormal that rounds up to 2^(precision - 1) becomes the smallest normal by this formula too.
    let field = (step - out.smallest_exponent()) as u64;
    let bits = if mantissa >> (precision - 1) == 0 {
        mantissa
    } else {
        ((field + 1) << out.fraction_bits()) | (mantissa & ((1 << out.fraction_bits()) - 1))
    };
    if bits > out.largest_finite() {
        return Rounded {
            bits: out.overflow(),
            overflow: true,
        };
    }
    Rounded {
        bits,
        overflow: false,
    }
}

/// Enough 64-bit limbs for any sum of doubles times weights of 120 bits (2^-1074 to 2^1024, and the sum of
/// the weights at most 2^120 times that), and for the divisor shifted up against it.
const LIMBS: usize = 42;
/// Exponent of the lowest bit.
const BASE: i32 = -1074;

#[derive(Clone)]
struct Limbs([u64; LIMBS]);

impl Limbs {
    fn sum(terms: &[(Value, u128)]) -> (bool, Limbs) {
        let (mut above, mut below) = (Limbs([0; LIMBS]), Limbs([0; LIMBS]));
        for &(value, weight) in terms {
            if let Value::Finite {
                negative,
                mantissa,
                exponent,
            } = value
            {
                let side = if negative { &mut below } else { &mut above };
                let shift = (exponent - BASE) as usize;
                let low = u128::from(mantissa) * (weight & u128::from(u64::MAX));
                let high = u128::from(mantissa) * (weight >> 64);
                side.add(low, shift);
                side.add(high, shift + 64);
            }
        }
        let negative = above.less_than(&below);
        if negative {
            below.subtract(&above)
        } else {
            above.subtract(&below)
        }
        (negative, if negative { below } else { above })
    }

    fn is_zero(&self) -> bool {
        self.0.iter().all(|limb| *limb == 0)
    }

    fn length(&self) -> usize {
        self.0.iter().rposition(|limb| *limb != 0).map_or(0, |top| {
            top * 64 + 64 - self.0[top].leading_zeros() as usize
        })
    }

    /// Adds `number << shift`.
    fn add(&mut self, number: u128, shift: usize) {
        let (limb, bit) = (shift / 64, shift % 64);
        let low = number << bit;
        let high = if bit == 0 {
            0
        } else {
            (number >> (128 - bit)) as u64
        };
        let mut carry = 0;
        for (position, part) in [low as u64, (low >> 64) as u64, high]
            .into_iter()
            .chain(std::iter::repeat(0))
            .enumerate()
        {
            let Some(place) = self.0.get_mut(limb + position) else {
                break;
            };
            if position > 2 && carry == 0 {
                break;
            }
            let sum = u128::from(*place) + u128::from(part) + carry;
            *place = sum as u64;
            carry = sum >> 64;
        }
    }

    fn less_than(&self, other: &Limbs) -> bool {
        self.0.iter().rev().lt(other.0.iter().rev())
    }

    /// `self - other`, where `other` is not larger.
    fn subtract(&mut self, other: &Limbs) {
        let mut borrow = false;
        for (place, &part) in self.0.iter_mut().zip(&other.0) {
            let (difference, first) = place.overflowing_sub(part);
            let (difference, second) = difference.overflowing_sub(u64::from(borrow));
            *place = difference;
            borrow = first || second;
        }
    }

    fn shifted_up(&self, shift: usize) -> Limbs {
        let (limb, bit) = (shift / 64, shift % 64);
        let mut up = [0; LIMBS];
        for (position, place) in up.iter_mut().enumerate().skip(limb) {
            let low = self.0[position - limb] << bit;
            let carried = if bit == 0 || position == limb {
                0
            } else {
                self.0[position - limb - 1] >> (64 - bit)
            };
            *place = low | carried;
        }
        Limbs(up)
    }

    fn halve(&mut self) {
        let mut carry = 0;
        for place in self.0.iter_mut().rev() {
            let low = *place & 1;
            *place = (*place >> 1) | (carry << 63);
            carry = low;
        }
    }

    /// Quotient of `bits` or `bits + 1` bits, the exponent of its lowest bit, and whether a rest is left.
    fn divide(&self, total: u128, bits: u32) -> (u128, i32, bool) {
        let mut divisor = Limbs([0; LIMBS]);
        divisor.add(total, 0);
        // Shift so that the divisor is `bits` bits shorter than the number; either side may have to move.
        let gap = self.length() as i32 - divisor.length() as i32 - bits as i32;
        let mut rest = if gap < 0 {
            self.shifted_up(gap.unsigned_abs() as usize)
        } else {
            self.clone()
        };
        let mut divisor = divisor.shifted_up((gap.max(0) as usize) + bits as usize);
        let mut quotient = 0_u128;
        for position in 0..=bits {
            if position > 0 {
                divisor.halve();
            }
            quotient <<= 1;
            if !rest.less_than(&divisor) {
                rest.subtract(&divisor);
                quotient |= 1;
            }
        }
        (quotient, BASE + gap, !rest.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_f64(values: &[f64]) -> f64 {
        let terms: Vec<_> = values
            .iter()
            .map(|value| (decode(Float::F64, value.to_bits()), 1))
            .collect();
        f64::from_bits(mean(&terms, values.len() as u128, Float::F64).bits)
    }

    #[test]
    fn a_mean_of_doubles_that_plain_addition_gets_wrong() {
        assert_eq!(mean_f64(&[1e308, 1e308, 1e308]), 1e308);
        assert_eq!(mean_f64(&[1e300, 1.0, -1e300]), 1.0 / 3.0);
        assert_eq!(mean_f64(&[f64::from_bits(1), 0.0]).to_bits(), 0);
        assert_eq!(mean_f64(&[f64::from_bits(3), 0.0]).to_bits(), 2);
    }

    #[test]
    fn zeros_and_infinities_follow_the_rules() {
        assert_eq!(mean_f64(&[-0.0, -0.0]).to_bits(), (-0.0_f64).to_bits());
        assert_eq!(mean_f64(&[-0.0, 0.0]).to_bits(), 0);
        assert_eq!(mean_f64(&[1.5, -1.5]).to_bits(), 0);
        assert_eq!(
            mean_f64(&[-f64::from_bits(1), 0.0]).to_bits(),
            (-0.0_f64).to_bits()
        );
        assert_eq!(mean_f64(&[f64::INFINITY, 1.0]), f64::INFINITY);
        assert_eq!(mean_f64(&[f64::NEG_INFINITY, 1.0]), f64::NEG_INFINITY);
        assert!(mean_f64(&[f64::NEG_INFINITY, f64::INFINITY]).is_nan());
        assert!(mean_f64(&[f64::INFINITY, f64::NAN]).is_nan());
    }

    #[test]
    fn too_large_for_the_format_is_said() {
        let big = [(decode(Float::F32, 70_000_f32.to_bits().into()), 1)];
        assert_eq!(
            mean(&big, 1, Float::F16),
            Rounded {
                bits: 0x7c00,
                overflow: true
            }
        );
        assert_eq!(
            mean(&big, 1, Float::F8E4M3),
            Rounded {
                bits: 0x7f,
                overflow: true
            }
        );
        let edge = [(decode(Float::F32, 463_f32.to_bits().into()), 1)];
        assert_eq!(
            mean(&edge, 1, Float::F8E4M3),
            Rounded {
                bits: 0x7e,
                overflow: false
            }
        );
    }
}
