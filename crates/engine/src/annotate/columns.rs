//! The columns that annotation adds: their names, types, and arrays from the documents' numbers.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field};

use super::document::Numbers;

/// Which columns there are.
pub(super) struct Added {
    pub(super) prefix: String,
    pub(super) measure: String,
    pub(super) quantiles: Vec<f64>,
    pub(super) target: bool,
    pub(super) balance: bool,
}

impl Added {
    /// `pmi_q25` for 0.25, `pmi_q97_5` for 0.975.
    fn quantile_name(&self, share: f64) -> String {
        let percent = (share * 1e6).round() / 1e4;
        format!("{}_q{percent}", self.measure).replace('.', "_")
    }

    /// The columns, in the order of [`Added::arrays`].
    pub(super) fn fields(&self) -> Vec<Field> {
        let named = |name: &str, kind: DataType, null: bool| {
            Field::new(format!("{}{name}", self.prefix), kind, null)
        };
        let number = |name: &str| named(name, DataType::Float64, true);
        let mut fields = vec![
            named("tokens", DataType::Int32, false),
            named("pairs", DataType::Int64, false),
            named("pairs_seen", DataType::Int64, false),
            number("unseen_share"),
            number(&format!("{}_mean", self.measure)),
            number(&format!("{}_min", self.measure)),
            number(&format!("{}_max", self.measure)),
        ];
        let quantiles = self.quantiles.iter();
        fields.extend(quantiles.map(|share| number(&self.quantile_name(*share))));
        fields.extend([
            named("rarest_left", DataType::Utf8, true),
            named("rarest_right", DataType::Utf8, true),
            number("prior_mean"),
            number("prior_std"),
        ]);
        if self.target {
            fields.push(number("log_weight"));
        }
        if self.balance {
            fields.push(number("concept_probability"));
            fields.push(number("pair_probability"));
        }
        fields
    }

    /// The columns of these documents, whose quantiles stand one row after the other.
    pub(super) fn arrays(
        &self,
        rows: &[Numbers],
        quantiles: &[f64],
        terms: &StringArray,
    ) -> Vec<ArrayRef> {
        let number = |get: &dyn Fn(&Numbers) -> Option<f64>| -> ArrayRef {
            Arc::new(rows.iter().map(get).collect::<Float64Array>())
        };
        let whole = |get: fn(&Numbers) -> u64| -> ArrayRef {
            let values = rows
                .iter()
                .map(|row| i64::try_from(get(row)).unwrap_or(i64::MAX));
            Arc::new(Int64Array::from_iter_values(values))
        };
        let term = |get: fn((u32, u32)) -> u32| -> ArrayRef {
            let values = rows
                .iter()
                .map(|row| row.rarest.map(|pair| terms.value(get(pair) as usize)));
            Arc::new(values.collect::<StringArray>())
        };
        let tokens = rows
            .iter()
            .map(|row| i32::try_from(row.tokens).unwrap_or(i32::MAX));
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from_iter_values(tokens)),
            whole(|row| row.pairs),
            whole(|row| row.seen),
            number(&|row| {
                (row.pairs > 0).then(|| (row.pairs - row.seen) as f64 / row.pairs as f64)
            }),
            number(&|row| row.mean),
            number(&|row| row.least),
            number(&|row| row.most),
        ];
        for index in 0..self.quantiles.len() {
            let column = quantiles.iter().skip(index).step_by(self.quantiles.len());
            let values = rows.iter().zip(column);
            let values = values.map(|(row, value)| (row.seen > 0).then_some(*value));
            arrays.push(Arc::new(values.collect::<Float64Array>()));
        }
        arrays.extend([
            term(|pair| pair.0),
            term(|pair| pair.1),
            number(&|row| row.prior_mean),
            number(&|row| row.prior_deviation),
        ]);
        if self.target {
            arrays.push(number(&|row| row.log_weight));
        }
        if self.balance {
            arrays.push(number(&|row| row.concept_probability));
            arrays.push(number(&|row| row.pair_probability));
        }
        arrays
    }
}
