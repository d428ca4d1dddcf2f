//! Measures over columns: four count columns or constants in, one Float64 column out.
//!
//! Counts stay what they are: Int64 and UInt64 columns are read as integers, exact up to 2^64 − 1; smaller integers
//! become Int64, floats and decimals Float64 (nearest). A block of 1,024 rows is brought to floats, or, when an integer
//! of 2^53 and more is in it, to integers with 128-bit arithmetic. Nulls in, nulls out; so are rows outside the domain.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, StringArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Float64Type, Int64Type, UInt64Type};
use datafusion_common::{Result, ScalarValue, exec_err, plan_err};
use datafusion_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

use super::constant;
use crate::block::{BLOCK_ROWS, CountBlock};
use crate::catalogue::{Given, Measure};

pub(crate) const COUNT_NAMES: [&str; 4] = ["n_xy", "n_x", "n_y", "n"];

/// One measure as a scalar function.
pub(crate) struct MeasureUdf {
    measure: &'static Measure,
    signature: Signature,
}

impl std::fmt::Debug for MeasureUdf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MeasureUdf")
            .field(&self.measure.name)
            .finish()
    }
}

impl PartialEq for MeasureUdf {
    fn eq(&self, other: &Self) -> bool {
        self.measure.name == other.measure.name
    }
}
impl Eq for MeasureUdf {}
impl std::hash::Hash for MeasureUdf {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.measure.name.hash(state);
    }
}

impl MeasureUdf {
    pub(crate) fn new(measure: &'static Measure) -> MeasureUdf {
        let names = COUNT_NAMES
            .into_iter()
            .chain(measure.parameters.iter().map(|parameter| parameter.name));
        let signature = Signature::user_defined(Volatility::Immutable)
            .with_parameter_names(names.collect())
            .expect("the catalogue's test checks that parameter names differ");
        MeasureUdf { measure, signature }
    }
}

/// The type that a count is brought to.
pub(crate) fn coerced_count(function: &str, name: &str, found: &DataType) -> Result<DataType> {
    Ok(match found {
        DataType::Int64 | DataType::UInt64 => found.clone(),
        DataType::Dictionary(_, value) => return coerced_count(function, name, value),
        found if found.is_integer() => DataType::Int64,
        found if found.is_numeric() || found.is_null() => DataType::Float64,
        found => return plan_err!("{function}: `{name}` has type {found}, expected a number"),
    })
}

impl ScalarUDFImpl for MeasureUdf {
    fn name(&self) -> &str {
        self.measure.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, found: &[DataType]) -> Result<Vec<DataType>> {
        let parameters = self.measure.parameters;
        let required = 4 + self.measure.required_parameters().count();
        if found.len() < required || found.len() > 4 + parameters.len() {
            let names = self.signature.parameter_names.clone().unwrap_or_default();
            return plan_err!(
                "{} takes ({}), found {} arguments",
                self.name(),
                names.join(", "),
                found.len()
            );
        }
        let mut types = Vec::with_capacity(found.len());
        for (name, found) in COUNT_NAMES.into_iter().zip(found) {
            types.push(coerced_count(self.name(), name, found)?);
        }
        for (parameter, found) in parameters.iter().zip(&found[4..]) {
            types.push(constant::coerced(self.name(), parameter, found)?);
        }
        Ok(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (counts, rest) = args.args.split_at(4.min(args.args.len()));
        let mut given: Vec<Given> = Vec::with_capacity(rest.len());
        for (parameter, value) in self.measure.parameters.iter().zip(rest) {
            given.push(constant::given_argument(
                self.name(),
                parameter.name,
                value,
            )?);
        }
        let values = self.measure.values(&given)?;
        let constant = counts
            .iter()
            .all(|count| matches!(count, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let columns = CountColumns::read(self.name(), counts, rows)?;
        let Some(columns) = columns else {
            return Ok(ColumnarValue::Scalar(ScalarValue::Float64(None)));
        };
        let mut out = vec![0.0; rows];
        columns.for_each_block(|start, block, scratch_rows| {
            (self.measure.kernel)(&values, block, &mut out[start..start + scratch_rows]);
        });
        let array = nan_to_null(out, columns.nulls);
        if constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(
                &array, 0,
            )?));
        }
        Ok(ColumnarValue::Array(Arc::new(array)))
    }
}

/// A column of results: NaN and rows with a null input become null.
pub(crate) fn nan_to_null(out: Vec<f64>, nulls: Option<NullBuffer>) -> Float64Array {
    // Without a branch, so that the common case (no NaN) is one quick pass.
    let any_nan = out.iter().fold(false, |any, value| any | value.is_nan());
    if !any_nan {
        return Float64Array::new(out.into(), nulls);
    }
    let not_nan: NullBuffer = out.iter().map(|value| !value.is_nan()).collect();
    Float64Array::new(
        out.into(),
        NullBuffer::union(nulls.as_ref(), Some(&not_nan)),
    )
}

/// One count argument.
enum Count {
    Floats(Float64Array),
    Signed(arrow::array::Int64Array),
    Unsigned(arrow::array::UInt64Array),
    Constant(f64, Option<u64>),
}

/// The four counts of a batch.
pub(crate) struct CountColumns {
    counts: [Count; 4],
    rows: usize,
    pub(crate) nulls: Option<NullBuffer>,
}

/// 2^53: from here on a float may not hold an integer.
const WIDE: u64 = 1 << 53;

impl CountColumns {
    /// `None` when a count is NULL for the whole batch.
    pub(crate) fn read(
        function: &str,
        args: &[ColumnarValue],
        rows: usize,
    ) -> Result<Option<CountColumns>> {
        let mut nulls: Option<NullBuffer> = None;
        let mut counts = Vec::with_capacity(4);
        for (name, arg) in COUNT_NAMES.into_iter().zip(args) {
            let count = match arg {
                ColumnarValue::Scalar(value) if value.is_null() => return Ok(None),
                ColumnarValue::Scalar(ScalarValue::Float64(Some(v))) => {
                    Count::Constant(*v, integral(*v))
                }
                ColumnarValue::Scalar(ScalarValue::Int64(Some(v))) => {
                    Count::Constant(*v as f64, u64::try_from(*v).ok())
                }
                ColumnarValue::Scalar(ScalarValue::UInt64(Some(v))) => {
                    Count::Constant(*v as f64, Some(*v))
                }
                ColumnarValue::Scalar(other) => {
                    return exec_err!(
                        "{function}: `{name}` has type {}, expected a number",
                        other.data_type()
                    );
                }
                ColumnarValue::Array(array) => {
                    if array.len() != rows {
                        return exec_err!(
                            "{function}: `{name}` has {} rows, expected {rows}",
                            array.len()
                        );
                    }
                    nulls = NullBuffer::union(nulls.as_ref(), array.nulls());
                    read_column(function, name, array)?
                }
            };
            counts.push(count);
        }
        let Ok(counts) = <[Count; 4]>::try_from(counts) else {
            return exec_err!("{function}: {} counts, expected 4", args.len());
        };
        Ok(Some(CountColumns {
            counts,
            rows,
            nulls,
        }))
    }

    /// Calls `work` with (first row, block, rows of the block) until all rows are done.
    pub(crate) fn for_each_block(&self, mut work: impl FnMut(usize, &CountBlock, usize)) {
        let mut buffers = [[0.0_f64; BLOCK_ROWS]; 4];
        let mut start = 0;
        while start < self.rows {
            let rows = BLOCK_ROWS.min(self.rows - start);
            let mut wide = false;
            let mut columns: [&[f64]; 4] = [&[]; 4];
            for ((count, buffer), column) in self.counts.iter().zip(&mut buffers).zip(&mut columns)
            {
                // A column of floats is used where it is.
                *column = if let Count::Floats(array) = count {
                    &array.values()[start..start + rows]
                } else {
                    wide |= count.fill_floats(start, &mut buffer[..rows]);
                    &buffer[..rows]
                };
            }
            let integers = if wide {
                self.fill_integers(start, rows)
            } else {
                None
            };
            match &integers {
                Some([n_xy, n_x, n_y, n]) => {
                    work(start, &CountBlock::of_integers(n_xy, n_x, n_y, n), rows);
                }
                None => {
                    let [n_xy, n_x, n_y, n] = columns;
                    work(start, &CountBlock::of_floats(n_xy, n_x, n_y, n), rows);
                }
            }
            start += rows;
        }
    }

    /// The block as integers; `None` when one is negative or a fraction (the floats then decide). Rows under a null are
    /// unspecified and not looked at by anyone.
    fn fill_integers(&self, start: usize, rows: usize) -> Option<[Vec<u64>; 4]> {
        let mut columns: [Vec<u64>; 4] = Default::default();
        for (count, column) in self.counts.iter().zip(&mut columns) {
            for row in start..start + rows {
                let value = match count {
                    Count::Floats(array) => integral(array.value(row)),
                    Count::Signed(array) => u64::try_from(array.value(row)).ok(),
                    Count::Unsigned(array) => Some(array.value(row)),
                    Count::Constant(_, value) => *value,
                };
                match value {
                    Some(value) => column.push(value),
                    None if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) => {
                        column.push(0)
                    }
                    None => return None,
                }
            }
        }
        Some(columns)
    }
}

fn integral(value: f64) -> Option<u64> {
    ((0.0..18_446_744_073_709_551_616.0).contains(&value) && value.fract() == 0.0)
        .then_some(value as u64)
}

fn read_column(function: &str, name: &str, array: &ArrayRef) -> Result<Count> {
    Ok(match array.data_type() {
        DataType::Float64 => Count::Floats(array.as_primitive::<Float64Type>().clone()),
        DataType::Int64 => Count::Signed(array.as_primitive::<Int64Type>().clone()),
        DataType::UInt64 => Count::Unsigned(array.as_primitive::<UInt64Type>().clone()),
        other => return exec_err!("{function}: `{name}` has type {other}, expected a number"),
    })
}

impl Count {
    /// Copies the rows as floats; true when an integer may have lost digits.
    fn fill_floats(&self, start: usize, out: &mut [f64]) -> bool {
        let end = start + out.len();
        match self {
            Count::Floats(array) => {
                out.copy_from_slice(&array.values()[start..end]);
                false
            }
            Count::Signed(array) => {
                let mut largest = 0;
                for (slot, value) in out.iter_mut().zip(&array.values()[start..end]) {
                    *slot = *value as f64;
                    largest |= value.unsigned_abs();
                }
                largest >= WIDE
            }
            Count::Unsigned(array) => {
                let mut largest = 0;
                for (slot, value) in out.iter_mut().zip(&array.values()[start..end]) {
                    *slot = *value as f64;
                    largest |= *value;
                }
                largest >= WIDE
            }
            Count::Constant(value, integer) => {
                out.fill(*value);
                integer.is_some_and(|value| value >= WIDE)
            }
        }
    }
}

/// `count_problem(n_xy, n_x, n_y, n)`: why a measure is NULL for these counts, or NULL when they are in order.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct CountProblem {
    signature: Signature,
}

impl CountProblem {
    pub(crate) fn new() -> CountProblem {
        let signature = Signature::user_defined(Volatility::Immutable)
            .with_parameter_names(COUNT_NAMES.to_vec())
            .expect("four different names");
        CountProblem { signature }
    }
}

impl ScalarUDFImpl for CountProblem {
    fn name(&self) -> &str {
        "count_problem"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn coerce_types(&self, found: &[DataType]) -> Result<Vec<DataType>> {
        if found.len() != 4 {
            return plan_err!(
                "count_problem takes (n_xy, n_x, n_y, n), found {} arguments",
                found.len()
            );
        }
        let pairs = COUNT_NAMES.into_iter().zip(found);
        pairs
            .map(|(name, found)| coerced_count("count_problem", name, found))
            .collect()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let mut texts: Vec<Option<&'static str>> = Vec::with_capacity(rows);
        let mut columns = Vec::with_capacity(4);
        for value in &args.args {
            let array = value.to_array(rows)?;
            columns.push(arrow::compute::cast(&array, &DataType::Float64)?);
        }
        let columns: Vec<&Float64Array> =
            columns.iter().map(|column| column.as_primitive()).collect();
        for row in 0..rows {
            if columns.iter().any(|column| column.is_null(row)) {
                texts.push(Some("a count is NULL"));
                continue;
            }
            let at = |index: usize| columns[index].value(row);
            texts.push(crate::problem(at(0), at(1), at(2), at(3)));
        }
        Ok(ColumnarValue::Array(Arc::new(StringArray::from(texts))))
    }
}
