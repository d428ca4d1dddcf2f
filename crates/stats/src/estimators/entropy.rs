//! Entropy of a column of counts, one row a category: `ln N − (1/N) Σ c ln c`.
//!
//! Small whole counts, most of any count table, go to a histogram (how many categories have count 7), so that neither
//! a logarithm nor a float addition is paid for them; the rest goes to exact sums.

use arrow::array::ArrayRef;
use datafusion_common::{Result, ScalarValue};

use super::{Counts, Estimator, float_result};
use crate::catalogue::Values;
use crate::codec::{Reader, Writer};
use crate::exact_sum::ExactSum;

/// Whole counts below this are only tallied.
const SMALL: usize = 1024;

/// Place of the parameters, as in the catalogue.
const LN_BASE: usize = 0;
const CORRECTION: usize = 1;

#[derive(Debug, Default)]
pub(crate) struct Entropy {
    ln_base: f64,
    miller_madow: bool,
    /// `tally[c]` categories have the count c; as long as needed.
    tally: Vec<u64>,
    /// Categories with a count above zero that are not in the tally.
    others: u64,
    /// Sum of the whole ones among them, and of the fractions.
    whole_sum: u128,
    sum: ExactSum,
    sum_log: ExactSum,
    /// A count was negative, NaN or infinite.
    outside: bool,
}

impl Entropy {
    pub(crate) fn make(values: &Values) -> Box<dyn Estimator> {
        Box::new(Entropy {
            ln_base: values[LN_BASE],
            miller_madow: values[CORRECTION] != 0.0,
            ..Entropy::default()
        })
    }

    #[inline]
    fn add_small(&mut self, count: usize) {
        if count >= self.tally.len() {
            self.tally
                .resize((count + 1).next_power_of_two().max(16), 0);
        }
        self.tally[count] += 1;
    }

    #[inline]
    fn add_large(&mut self, count: u64) {
        self.others += 1;
        self.whole_sum += u128::from(count);
        let count = count as f64;
        self.sum_log.add(count * count.ln());
    }

    fn add_float(&mut self, count: f64) {
        if count.is_finite() && count > 0.0 {
            self.others += 1;
            self.sum.add(count);
            self.sum_log.add(count * count.ln());
        } else if count != 0.0 {
            self.outside = true;
        }
    }

    fn value(&self) -> f64 {
        let (mut sum, mut sum_log) = (self.sum.clone(), self.sum_log.clone());
        let mut categories = self.others as f64;
        for (count, times) in self.tally.iter().enumerate().skip(1) {
            let (count, times) = (count as f64, *times as f64);
            categories += times;
            sum.add(count * times);
            sum_log.add_product(times, count * count.ln());
        }
        // In two halves, each rounded once to a float.
        sum.add((self.whole_sum >> 64) as f64 * 18_446_744_073_709_551_616.0);
        sum.add((self.whole_sum as u64) as f64);
        let total = sum.value();
        if self.outside || total <= 0.0 {
            return f64::NAN;
        }
        let mut nats = if categories == 1.0 {
            0.0
        } else {
            total.ln() - sum_log.value() / total
        };
        if self.miller_madow {
            nats += (categories - 1.0) / (2.0 * total);
        }
        nats.max(0.0) / self.ln_base
    }
}

impl Estimator for Entropy {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        match Counts::read(&columns[0])? {
            Counts::Floats(counts) => {
                for count in counts {
                    // A whole number survives the way to integer and back; negatives and NaN do not.
                    let whole = *count as i64;
                    if whole as f64 != *count || !(0..1 << 53).contains(&whole) {
                        self.add_float(*count);
                    } else if whole < SMALL as i64 {
                        self.add_small(whole as usize);
                    } else {
                        self.add_large(whole as u64);
                    }
                }
            }
            Counts::Signed(counts) => {
                for count in counts {
                    match u64::try_from(*count) {
                        Ok(count) if count < SMALL as u64 => self.add_small(count as usize),
                        Ok(count) => self.add_large(count),
                        Err(_) => self.outside = true,
                    }
                }
            }
            Counts::Unsigned(counts) => {
                for count in counts {
                    if *count < SMALL as u64 {
                        self.add_small(*count as usize);
                    } else {
                        self.add_large(*count);
                    }
                }
            }
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.outside.into());
        out.u64(self.others);
        out.u128(self.whole_sum);
        self.sum.encode(&mut out);
        self.sum_log.encode(&mut out);
        out.u64(self.tally.len() as u64);
        self.tally.iter().for_each(|times| out.u64(*times));
        out.bytes
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        let mut input = Reader::new(state);
        self.outside |= input.u64()? != 0;
        self.others += input.u64()?;
        self.whole_sum += input.u128()?;
        self.sum.merge(&ExactSum::decode(&mut input)?);
        self.sum_log.merge(&ExactSum::decode(&mut input)?);
        let length = input.length(8)?;
        if length > self.tally.len() {
            self.tally.resize(length, 0);
        }
        for times in &mut self.tally[..length] {
            *times += input.u64()?;
        }
        Some(())
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        Ok(float_result(self.value()))
    }

    fn held_bytes(&self) -> usize {
        self.tally.capacity() * 8
    }
}
