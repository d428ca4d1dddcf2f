//! Weights as exact fractions.
//!
//! A weight is what its text says: `0.1` is one tenth, not the nearest binary number. All weights of one
//! merge become whole numbers `k_i` over one total `K`, and the exact result of the merge is
//! `(sum of k_i * x_i) / K`, rounded once.

use crate::error::SnapshotError;
use std::str::FromStr;

/// The largest whole number a weight may become.
const LIMIT: u128 = 1 << 120;

/// How far the weights of a fraction list may be from 1 in all; they are divided by their exact sum.
pub const SUM_TOLERANCE: f64 = 1e-6;

/// A weight of zero or more, exactly.
/// ```
/// use pmill_snapshot::Weight;
/// let tenth: Weight = "0.1".parse().unwrap();
/// assert_eq!(tenth, "1/10".parse().unwrap());
/// assert_eq!(tenth, Weight::try_from(0.1).unwrap());
/// assert_eq!(Weight::from(3), "3e0".parse().unwrap());
/// assert!("-1".parse::<Weight>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    numerator: u128,
    denominator: u128,
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Weight {
    /// A fraction; `None` when the denominator is zero or the reduced fraction too long.
    #[must_use]
    pub fn ratio(numerator: u128, denominator: u128) -> Option<Self> {
        if denominator == 0 {
            return None;
        }
        let divisor = gcd(numerator, denominator);
        let weight = Self {
            numerator: numerator / divisor,
            denominator: denominator / divisor,
        };
        (weight.numerator <= LIMIT && weight.denominator <= LIMIT).then_some(weight)
    }

    /// The nearest double.
    #[must_use]
    pub fn to_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }

    /// True when the weight is nothing.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.numerator == 0
    }

    /// The difference; `None` when it is negative or too long.
    pub(crate) fn minus(self, other: Self) -> Option<Self> {
        let divisor = gcd(self.denominator, other.denominator);
        let denominator = self.denominator.checked_mul(other.denominator / divisor)?;
        let left = self.numerator.checked_mul(denominator / self.denominator)?;
        let right = other
            .numerator
            .checked_mul(denominator / other.denominator)?;
        Self::ratio(left.checked_sub(right)?, denominator)
    }

    fn decimal(text: &str) -> Option<Self> {
        let (digits, exponent) = match text.split_once(['e', 'E']) {
            Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let fraction = fraction.trim_end_matches('0');
        let mut number = 0_u128;
        for digit in whole.bytes().chain(fraction.bytes()) {
            let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
            number = number.checked_mul(10)?.checked_add(u128::from(digit))?;
        }
        let exponent = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
        let power = 10_u128.checked_pow(exponent.unsigned_abs());
        match (number, exponent < 0) {
            (0, _) => Self::ratio(0, 1),
            (_, true) => Self::ratio(number, power?),
            (_, false) => Self::ratio(number.checked_mul(power?)?, 1),
        }
    }
}

impl FromStr for Weight {
    type Err = SnapshotError;

    /// Reads a decimal (`0.25`, `1e-3`) or a fraction of whole numbers (`1/3`).
    fn from_str(text: &str) -> Result<Self, SnapshotError> {
        let text = text.trim();
        let weight = match text.split_once('/') {
            Some((above, below)) => match (above.trim().parse(), below.trim().parse()) {
                (Ok(above), Ok(below)) => Self::ratio(above, below),
                _ => None,
            },
            None => Self::decimal(text.strip_prefix('+').unwrap_or(text)),
        };
        weight.ok_or_else(|| SnapshotError::Settings {
            what: format!("`{text}` is not a weight: expected a number of 0 or more such as 0.25, 1e-3 or 1/3, with at most 36 digits"),
        })
    }
}

impl From<u64> for Weight {
    fn from(number: u64) -> Self {
        Self {
            numerator: u128::from(number),
            denominator: 1,
        }
    }
}

impl TryFrom<f64> for Weight {
    type Error = SnapshotError;

    /// The shortest decimal that reads back as this double: what a program printed.
    fn try_from(number: f64) -> Result<Self, SnapshotError> {
        format!("{number:e}").parse()
    }
}

impl std::fmt::Display for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.denominator == 1 {
            write!(f, "{}", self.numerator)
        } else {
            write!(f, "{}/{}", self.numerator, self.denominator)
        }
    }
}

impl serde::Serialize for Weight {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Weight {
    /// A number or a text such as `"1/3"`.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Form {
            Whole(u64),
            Number(f64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Whole(number) => Ok(number.into()),
            Form::Number(number) => number.try_into().map_err(serde::de::Error::custom),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// The weights of one output: whole numbers without a common divisor, and their sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    numbers: Vec<u128>,
    total: u128,
}

impl Row {
    /// Every input alike.
    #[must_use]
    pub fn uniform(inputs: usize) -> Self {
        Self {
            numbers: vec![1; inputs],
            total: inputs as u128,
        }
    }

    /// In proportion to the weights, whatever their sum.
    ///
    /// # Errors
    /// All weights zero, or a common denominator beyond 2^120.
    pub fn relative(weights: &[Weight]) -> Result<Self, SnapshotError> {
        let long = || SnapshotError::Settings {
            what: "the weights have too many digits for one exact total".to_owned(),
        };
        let mut denominator = 1_u128;
        for weight in weights {
            let factor = weight.denominator / gcd(denominator, weight.denominator);
            denominator = denominator
                .checked_mul(factor)
                .filter(|d| *d <= LIMIT)
                .ok_or_else(long)?;
        }
        let mut numbers = Vec::with_capacity(weights.len());
        let mut total = 0_u128;
        for weight in weights {
            let number = weight
                .numerator
                .checked_mul(denominator / weight.denominator)
                .ok_or_else(long)?;
            total = total.checked_add(number).ok_or_else(long)?;
            numbers.push(number);
        }
        if total == 0 {
            return Err(SnapshotError::Settings {
                what: "all weights are zero".to_owned(),
            });
        }
        let divisor = numbers
            .iter()
            .fold(0, |divisor, &number| gcd(divisor, number));
        numbers.iter_mut().for_each(|number| *number /= divisor);
        let total = total / divisor;
        if total > LIMIT {
            return Err(long());
        }
        Ok(Self { numbers, total })
    }

    /// Fractions that must sum to 1 within [`SUM_TOLERANCE`].
    ///
    /// # Errors
    /// Another sum, and what [`Row::relative`] refuses.
    pub fn fractions(weights: &[Weight]) -> Result<Self, SnapshotError> {
        let sum: f64 = weights.iter().map(|weight| weight.to_f64()).sum();
        if (sum - 1.0).abs() > SUM_TOLERANCE {
            return Err(SnapshotError::Settings {
                what: format!(
                    "the weights sum to {sum}, expected 1; give fractions of 1, or ask for weights by examples"
                ),
            });
        }
        Self::relative(weights)
    }

    /// The whole numbers `k_i`.
    #[must_use]
    pub fn numbers(&self) -> &[u128] {
        &self.numbers
    }

    /// Their sum `K`.
    #[must_use]
    pub fn total(&self) -> u128 {
        self.total
    }

    /// The input that has all the weight, if one has.
    #[must_use]
    pub fn only(&self) -> Option<usize> {
        self.numbers.iter().position(|number| *number == self.total)
    }

    /// `k_i / K` as the nearest double.
    #[must_use]
    pub fn fraction(&self, input: usize) -> f64 {
        self.numbers[input] as f64 / self.total as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(texts: &[&str]) -> Vec<Weight> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn decimals_become_the_smallest_whole_numbers() {
        let row = Row::fractions(&weights(&["0.1", "0.2", "0.70"])).unwrap();
        assert_eq!((row.numbers(), row.total()), (&[1, 2, 7][..], 10));
        let row = Row::relative(&weights(&["1000", "500", "0"])).unwrap();
        assert_eq!((row.numbers(), row.total()), (&[2, 1, 0][..], 3));
        assert_eq!(
            Row::fractions(&weights(&["1/3", "1/3", "1/3"])).unwrap(),
            Row::uniform(3)
        );
        assert_eq!(
            Row::fractions(&weights(&["0", "1.0"])).unwrap().only(),
            Some(1)
        );
    }

    #[test]
    fn long_decimals_of_a_softmax_are_exact() {
        let row = Row::fractions(&weights(&[
            "0.0012345678901234567",
            "0.9987654321098765433",
        ]))
        .unwrap();
        assert_eq!(row.numbers()[0], 12_345_678_901_234_567);
        assert_eq!(row.total(), 10_u128.pow(19));
    }

    #[test]
    fn sums_other_than_one_are_refused() {
        let error = Row::fractions(&weights(&["0.5", "0.6"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("1.1"), "{error}");
        assert!(Row::relative(&weights(&["0", "0"])).is_err());
    }

    #[test]
    fn texts_that_are_no_weights_are_refused() {
        for text in ["", "-0.5", "NaN", "inf", "1/0", "0x1", "1e999", ".", "1,5"] {
            assert!(text.parse::<Weight>().is_err(), "{text}");
        }
    }
}
