//! Exact quantiles of a column, or of each entry of a column of vectors (each unit's activations), and the k largest
//! values of each unit. Quantiles keep every value, 8 bytes each; the largest keep k values a unit.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Float64Type};
use datafusion_common::{Result, ScalarValue};

use super::vectors::{Top, list, list_type, top_type};
use super::{Estimator, float_result, floats};
use crate::catalogue::Values;
use crate::codec::{Reader, Writer};

/// Values by unit; a column of numbers is one unit.
#[derive(Debug)]
pub(crate) struct Quantiles {
    share: f64,
    vectors: bool,
    units: Vec<Vec<f64>>,
    /// A NaN, a NULL entry, or vectors of different lengths.
    outside: bool,
    rows: u64,
}

impl Quantiles {
    fn boxed(values: &Values, vectors: bool) -> Box<dyn Estimator> {
        Box::new(Quantiles {
            share: values[0],
            vectors,
            units: Vec::new(),
            outside: false,
            rows: 0,
        })
    }

    pub(crate) fn of_numbers(values: &Values) -> Box<dyn Estimator> {
        Quantiles::boxed(values, false)
    }

    pub(crate) fn of_units(values: &Values) -> Box<dyn Estimator> {
        Quantiles::boxed(values, true)
    }

    /// Makes room for the units of the first row; whether this row has as many.
    fn fits(&mut self, units: usize) -> bool {
        if self.rows == 0 {
            self.units.resize_with(units, Vec::new);
        }
        if units != self.units.len() {
            self.outside = true;
        }
        units == self.units.len()
    }
}

/// Linear between the two nearest values: type 7 of Hyndman & Fan 1996, the rule of NumPy and of percentile_cont.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    let Some(last) = values.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = share * last as f64;
    let below = (place.floor() as usize).min(last);
    let (_, low, above) = values.select_nth_unstable_by(below, f64::total_cmp);
    let low = *low;
    let part = place - below as f64;
    if part == 0.0 || above.is_empty() {
        return low;
    }
    let high = above.iter().copied().fold(f64::INFINITY, f64::min);
    // As NumPy: from the nearer end, so that equal values give themselves.
    if part < 0.5 {
        low + (high - low) * part
    } else {
        high - (high - low) * (1.0 - part)
    }
}

impl Estimator for Quantiles {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        if !self.vectors {
            let values = floats(&columns[0]);
            if !values.is_empty() && self.fits(1) {
                self.outside |= values.iter().any(|value| value.is_nan());
                self.units[0].extend(values.iter().map(|value| value + 0.0));
                self.rows += values.len() as u64;
            }
            return Ok(());
        }
        let lists = columns[0].as_list::<i32>();
        for row in 0..lists.len() {
            let vector = lists.value(row);
            let vector = vector.as_primitive::<Float64Type>();
            self.outside |= vector.null_count() > 0;
            if self.fits(vector.len()) {
                for (unit, value) in self.units.iter_mut().zip(vector.values()) {
                    self.outside |= value.is_nan();
                    unit.push(value + 0.0);
                }
            }
            self.rows += 1;
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.outside.into());
        out.u64(self.rows);
        out.u64(self.units.len() as u64);
        for unit in &self.units {
            out.u64(unit.len() as u64);
            unit.iter().for_each(|value| out.f64(*value));
        }
        out.bytes
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        let mut input = Reader::new(state);
        self.outside |= input.u64()? != 0;
        let rows = input.u64()?;
        if rows == 0 {
            return Some(());
        }
        let units = input.length(8)?;
        if !self.fits(units) {
            return Some(());
        }
        self.rows += rows;
        for unit in &mut self.units {
            for _ in 0..input.length(8)? {
                unit.push(input.f64()?);
            }
        }
        Some(())
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        let nothing = self.outside || self.rows == 0;
        if !self.vectors {
            return Ok(float_result(match self.units.first() {
                Some(values) if !nothing => quantile(values, self.share),
                _ => f64::NAN,
            }));
        }
        if nothing {
            return ScalarValue::try_from(&list_type());
        }
        let values = self.units.iter().map(|unit| quantile(unit, self.share));
        Ok(ScalarValue::List(Arc::new(list(values.collect()))))
    }

    fn held_bytes(&self) -> usize {
        self.units.iter().map(|unit| unit.capacity() * 8 + 24).sum()
    }
}

pub(crate) fn unit_tops_type() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(top_type(), true)))
}

/// The k largest values of each entry of a column of vectors, with the labels of their rows.
#[derive(Debug)]
pub(crate) struct UnitTops {
    k: usize,
    units: Vec<Top>,
    outside: bool,
    rows: u64,
}

impl UnitTops {
    pub(crate) fn make(values: &Values) -> Box<dyn Estimator> {
        Box::new(UnitTops {
            k: values[0] as usize,
            units: Vec::new(),
            outside: false,
            rows: 0,
        })
    }

    fn fits(&mut self, units: usize) -> bool {
        if self.rows == 0 {
            self.units = (0..units).map(|_| Top::of(self.k)).collect();
        }
        if units != self.units.len() {
            self.outside = true;
        }
        units == self.units.len()
    }
}

impl Estimator for UnitTops {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let lists = columns[0].as_list::<i32>();
        let labels = arrow::compute::cast(&columns[1], &DataType::Utf8View)?;
        let labels = labels.as_string_view();
        for row in 0..lists.len() {
            let vector = lists.value(row);
            let vector = vector.as_primitive::<Float64Type>();
            self.outside |= vector.null_count() > 0;
            if self.fits(vector.len()) {
                for (unit, value) in self.units.iter_mut().zip(vector.values()) {
                    unit.add(*value, labels.value(row));
                }
            }
            self.rows += 1;
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.outside.into());
        out.u64(self.rows);
        out.u64(self.units.len() as u64);
        self.units
            .iter()
            .for_each(|unit| unit.encode_into(&mut out));
        out.bytes
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        let mut input = Reader::new(state);
        self.outside |= input.u64()? != 0;
        let rows = input.u64()?;
        if rows == 0 {
            return Some(());
        }
        let units = input.length(16)?;
        if self.fits(units) {
            self.rows += rows;
            for unit in &mut self.units {
                unit.merge_from(&mut input)?;
            }
        }
        Some(())
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        if self.outside || self.rows == 0 || self.units.iter().any(Top::is_outside) {
            return ScalarValue::try_from(&unit_tops_type());
        }
        let tops: Vec<ListArray> = self.units.iter().map(Top::list).collect();
        let items: Vec<&dyn Array> = tops.iter().map(|top| top as &dyn Array).collect();
        let items = if items.is_empty() {
            arrow::array::new_empty_array(&top_type())
        } else {
            arrow::compute::concat(&items)?
        };
        let offsets = OffsetBuffer::from_lengths([items.len()]);
        let field = Arc::new(Field::new_list_field(top_type(), true));
        Ok(ScalarValue::List(Arc::new(ListArray::new(
            field, offsets, items, None,
        ))))
    }

    fn held_bytes(&self) -> usize {
        self.units.iter().map(|unit| unit.held_bytes() + 64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_nearest_values() {
        let values = [4.0, 1.0, 3.0, 2.0];
        for (share, expected) in [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.1, 1.3), (0.9, 3.7)] {
            assert!(
                (quantile(&values, share) - expected).abs() < 1e-15,
                "{share}"
            );
        }
        assert!(quantile(&[], 0.5).is_nan());
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
        assert_eq!(quantile(&[f64::NEG_INFINITY, 1.0], 1.0), 1.0);
    }
}
