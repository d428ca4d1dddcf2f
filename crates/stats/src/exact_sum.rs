//! Sums of floats without any rounding until the end, so that a sum does not depend on the order of its terms: any split
//! of the rows over files, threads and machines gives the same bits.
//!
//! A sum is a row of 32-bit digits over the whole range of f64, each in a 64-bit box with room for carries (the small
//! superaccumulator of Neal 2015). Adding is two integer additions.

/// Digits: the smallest weighs 2^−1075, the largest takes the carries above f64's largest value.
const DIGITS: usize = 68;

/// Additions before the boxes must be emptied: each adds less than 2^52.
const CARRY_EVERY: u32 = 1 << 10;

/// A sum of finite floats.
#[derive(Debug, Clone)]
pub(crate) struct ExactSum {
    digits: [i64; DIGITS],
    until_carry: u32,
}

impl Default for ExactSum {
    fn default() -> Self {
        ExactSum {
            digits: [0; DIGITS],
            until_carry: CARRY_EVERY,
        }
    }
}

impl ExactSum {
    /// Adds a finite value; the caller has checked that it is finite.
    #[inline]
    pub(crate) fn add(&mut self, value: f64) {
        debug_assert!(value.is_finite(), "a sum takes finite values");
        let bits = value.to_bits();
        let stored_exponent = ((bits >> 52) & 0x7ff) as usize;
        let fraction = bits & ((1 << 52) - 1);
        // Numbers below 2^−1022 have no leading one and the exponent of the smallest ones that have.
        let (mantissa, exponent) = if stored_exponent == 0 {
            (fraction, 1)
        } else {
            (fraction | 1 << 52, stored_exponent)
        };
        let place = exponent >> 5;
        let shift = exponent & 31;
        // Bits that leave the word on the left belong to `high`.
        let low = ((mantissa << shift) & 0xffff_ffff) as i64;
        let high = (mantissa >> (32 - shift)) as i64;
        if bits >> 63 == 0 {
            self.digits[place] += low;
            self.digits[place + 1] += high;
        } else {
            self.digits[place] -= low;
            self.digits[place + 1] -= high;
        }
        self.until_carry -= 1;
        if self.until_carry == 0 {
            self.carry();
        }
    }

    /// Adds the product of two finite floats without rounding it (unless it under- or overflows).
    #[inline]
    pub(crate) fn add_product(&mut self, a: f64, b: f64) {
        let (product, error) = crate::cells::two_product(a, b);
        self.add(product);
        self.add(error);
    }

    /// Brings every digit but the last to 0..2^32.
    fn carry(&mut self) {
        let mut carry = 0;
        for digit in &mut self.digits[..DIGITS - 1] {
            let sum = *digit + carry;
            *digit = sum & 0xffff_ffff;
            carry = sum >> 32;
        }
        self.digits[DIGITS - 1] += carry;
        self.until_carry = CARRY_EVERY;
    }

    pub(crate) fn merge(&mut self, other: &ExactSum) {
        let mut other = other.clone();
        other.carry();
        self.carry();
        for (digit, more) in self.digits.iter_mut().zip(other.digits) {
            *digit += more;
        }
        self.carry();
    }

    /// The sum as `high + low`, 106 bits: for differences of sums that nearly cancel.
    pub(crate) fn parts(&self) -> (f64, f64) {
        let mut canonical = self.clone();
        canonical.carry();
        let negative = canonical.digits[DIGITS - 1] < 0;
        if negative {
            for digit in &mut canonical.digits {
                *digit = -*digit;
            }
            canonical.carry();
        }
        let (mut high, mut low) = (0.0_f64, 0.0_f64);
        for (place, digit) in canonical.digits.iter().enumerate().rev() {
            if *digit == 0 {
                continue;
            }
            // In two steps, since 2^−1075 itself is below the smallest float.
            let exponent = 32 * place as i32 - 1075;
            let half = exponent / 2;
            let part = *digit as f64 * 2_f64.powi(half) * 2_f64.powi(exponent - half);
            let sum = high + part;
            low += part - (sum - high);
            high = sum;
        }
        let sum = high + low;
        let rest = low - (sum - high);
        if negative { (-sum, -rest) } else { (sum, rest) }
    }

    /// The sum, rounded once.
    pub(crate) fn value(&self) -> f64 {
        self.parts().0
    }

    /// The digits that are not zero, for the state of an aggregate.
    pub(crate) fn encode(&self, out: &mut super::codec::Writer) {
        let mut canonical = self.clone();
        canonical.carry();
        let used = canonical
            .digits
            .iter()
            .enumerate()
            .filter(|(_, digit)| **digit != 0);
        out.u64(used.clone().count() as u64);
        for (place, digit) in used {
            out.u64(place as u64);
            out.u64(*digit as u64);
        }
    }

    pub(crate) fn decode(input: &mut super::codec::Reader) -> Option<ExactSum> {
        let mut sum = ExactSum::default();
        for _ in 0..input.u64()? {
            let place = input.u64()? as usize;
            *sum.digits.get_mut(place)? = input.u64()? as i64;
        }
        Some(sum)
    }
}

/// `a·b − c·d` of exact sums, in doubled precision: what is left of two products that nearly cancel.
pub(crate) fn difference_of_products(
    a: &ExactSum,
    b: &ExactSum,
    c: &ExactSum,
    d: &ExactSum,
) -> f64 {
    let product = |a: &ExactSum, b: &ExactSum| {
        let ((a_high, a_low), (b_high, b_low)) = (a.parts(), b.parts());
        let (high, error) = crate::cells::two_product(a_high, b_high);
        (high, error + (a_high * b_low + a_low * b_high))
    };
    let ((left, left_low), (right, right_low)) = (product(a, b), product(c, d));
    (left - right) + (left_low - right_low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigInt;
    use num_rational::BigRational;
    use proptest::prelude::*;

    fn exact(values: &[f64]) -> BigRational {
        let mut sum = BigRational::from_integer(BigInt::from(0));
        for value in values {
            sum += BigRational::from_float(*value).unwrap();
        }
        sum
    }

    proptest! {
        // Rationals over the whole range of f64 are slow; 64 cases take a second or two.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_sum_is_the_exact_sum_in_any_split(
            values in prop::collection::vec(any::<f64>().prop_filter("finite", |v| v.abs() < 1e300), 0..60),
            cut in 0_usize..60,
        ) {
            let cut = cut.min(values.len());
            let (mut whole, mut left, mut right) = (ExactSum::default(), ExactSum::default(), ExactSum::default());
            values.iter().for_each(|v| whole.add(*v));
            values[..cut].iter().for_each(|v| left.add(*v));
            values[cut..].iter().for_each(|v| right.add(*v));
            right.merge(&left);
            prop_assert_eq!(whole.parts(), right.parts());
            let (high, low) = whole.parts();
            // 106 bits: the distance to the exact sum is below 2^−100 of it.
            let found = BigRational::from_float(high).unwrap() + BigRational::from_float(low).unwrap();
            let truth = exact(&values);
            let scale = BigRational::from_integer(BigInt::from(1) << 100);
            let distance = if found > truth.clone() { found - truth.clone() } else { truth.clone() - found };
            let size = if truth < exact(&[]) { -truth } else { truth };
            prop_assert!(distance * scale <= size + exact(&[f64::MIN_POSITIVE]));
        }
    }

    #[test]
    fn many_terms_carry() {
        let mut sum = ExactSum::default();
        for _ in 0..1_000_000 {
            sum.add(0.1);
            sum.add(-1e15);
            sum.add(1e15);
        }
        // A million times the float nearest to 0.1, which is 0.1 + 5.55e-18.
        let (high, low) = sum.parts();
        assert_eq!(high, 100_000.0);
        assert!((low - 5.551_115_123_125_783e-12).abs() < 1e-25, "{low}");
    }

    #[test]
    fn a_state_reads_back() {
        let mut sum = ExactSum::default();
        sum.add(-1.5e-300);
        sum.add(3e200);
        let mut writer = crate::codec::Writer::default();
        sum.encode(&mut writer);
        let bytes = writer.bytes;
        let again = ExactSum::decode(&mut crate::codec::Reader::new(&bytes)).unwrap();
        assert_eq!(sum.parts(), again.parts());
    }
}
