//! Estimators over many rows: the states behind the aggregate functions.
//!
//! Each takes batches of columns (no nulls left in them), gives its state as bytes, takes the bytes of others, and ends
//! with one value. Counts are summed as integers and floats by [`crate::exact_sum`], so the result has the same bits
//! whatever the split of the rows, the order of merging and the number of partitions; only the
//! sums of [`moments::Moments`] are rounded.

pub(crate) mod correlation;
pub(crate) mod divergence;
pub(crate) mod entropy;
pub(crate) mod moments;
pub(crate) mod pair_statistics;
pub(crate) mod quantiles;
pub(crate) mod table;
pub(crate) mod table_measures;
pub(crate) mod vectors;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type, UInt64Type};
use datafusion_common::{Result, ScalarValue};

use crate::catalogue::{Parameter, Values};

/// The state of one group.
pub(crate) trait Estimator: Send + Sync + std::fmt::Debug {
    /// Takes rows; the columns are as long as each other and without nulls.
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()>;
    /// The state as bytes.
    fn encode(&self) -> Vec<u8>;
    /// Adds the state of another; `None` when its bytes are damaged.
    fn merge(&mut self, state: &[u8]) -> Option<()>;
    /// The result; NULL for an empty group and for rows outside the domain.
    fn evaluate(&self) -> Result<ScalarValue>;
    /// Memory held on the heap, in bytes.
    fn held_bytes(&self) -> usize;
}

/// What a column of an aggregate may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// A count or weight: a number, 0 or more.
    Count,
    /// A category: an integer, text, yes/no or date.
    Key,
    /// A number.
    Number,
    /// A list of numbers.
    Vector,
}

/// A column of an aggregate.
#[derive(Debug, Clone, Copy)]
pub struct ColumnSpec {
    /// Its name in named notation.
    pub name: &'static str,
    /// What it holds.
    pub kind: ColumnKind,
    /// Whether it may be left out.
    pub optional: bool,
}

/// An aggregate function of the catalogue.
pub struct AggregateSpec {
    /// SQL name.
    pub name: &'static str,
    /// What it is, in one line.
    pub title: &'static str,
    /// The formula, in plain text.
    pub formula: &'static str,
    /// The values it can take.
    pub range: &'static str,
    /// Empty groups, zero counts, bad rows.
    pub limits: &'static str,
    /// Author, year.
    pub source: &'static str,
    /// The columns.
    pub columns: &'static [ColumnSpec],
    /// The constants after them.
    pub parameters: &'static [Parameter],
    pub(crate) make: fn(&Values) -> Box<dyn Estimator>,
    pub(crate) returns: fn() -> DataType,
}

impl std::fmt::Debug for AggregateSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AggregateSpec")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A result of Float64: NaN, the mark for "no value", becomes NULL.
pub(crate) fn float_result(value: f64) -> ScalarValue {
    ScalarValue::Float64((!value.is_nan()).then_some(value + 0.0)) // −0 becomes 0
}

/// A column of counts, after coercion.
pub(crate) enum Counts<'a> {
    Floats(&'a [f64]),
    Signed(&'a [i64]),
    Unsigned(&'a [u64]),
}

impl<'a> Counts<'a> {
    pub(crate) fn read(array: &'a ArrayRef) -> Result<Counts<'a>> {
        Ok(match array.data_type() {
            DataType::Int64 => Counts::Signed(array.as_primitive::<Int64Type>().values()),
            DataType::UInt64 => Counts::Unsigned(array.as_primitive::<UInt64Type>().values()),
            DataType::Float64 => Counts::Floats(array.as_primitive::<Float64Type>().values()),
            other => return datafusion_common::internal_err!("count column of type {other}"),
        })
    }
}

/// The floats of a Float64 column.
pub(crate) fn floats(array: &ArrayRef) -> &[f64] {
    array.as_primitive::<Float64Type>().values()
}
