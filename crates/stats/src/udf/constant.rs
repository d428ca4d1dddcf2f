//! Reading the constants of a call: bases, confidence levels, options.

use arrow::datatypes::DataType;
use datafusion_common::{Result, ScalarValue, plan_err};
use datafusion_expr::ColumnarValue;

use crate::catalogue::{Accepts, Given, Parameter};

/// The type that a parameter's argument is brought to: words stay text, numbers become Float64.
pub(crate) fn coerced(function: &str, parameter: &Parameter, found: &DataType) -> Result<DataType> {
    let text = matches!(
        found,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
    );
    let number = found.is_numeric();
    let fits = match parameter.accepts {
        Accepts::Base => text || number,
        Accepts::Number { .. } => number,
        Accepts::Word(_) => text,
    };
    if found.is_null() {
        return Ok(match parameter.accepts {
            Accepts::Word(_) => DataType::Utf8,
            _ => DataType::Float64,
        });
    }
    if !fits {
        return plan_err!(
            "{function}: parameter `{}` has type {found}, expected {}",
            parameter.name,
            parameter.expected()
        );
    }
    Ok(if text {
        DataType::Utf8
    } else {
        DataType::Float64
    })
}

/// The value of a constant that was coerced by [`coerced`].
pub(crate) fn given(function: &str, name: &str, value: &ScalarValue) -> Result<Given> {
    Ok(match value {
        value if value.is_null() => Given::Nothing,
        ScalarValue::Float64(Some(number)) => Given::Number(*number),
        ScalarValue::Utf8(Some(text))
        | ScalarValue::LargeUtf8(Some(text))
        | ScalarValue::Utf8View(Some(text)) => Given::Text(text.clone()),
        other => {
            return plan_err!(
                "{function}: parameter `{name}` is {other}, expected a number or a word"
            );
        }
    })
}

/// As [`given`] for an evaluated argument; a column is refused.
pub(crate) fn given_argument(function: &str, name: &str, value: &ColumnarValue) -> Result<Given> {
    match value {
        ColumnarValue::Scalar(value) => given(function, name, value),
        // A constant may arrive as an array of one row.
        ColumnarValue::Array(array) if array.len() == 1 => {
            given(function, name, &ScalarValue::try_from_array(array, 0)?)
        }
        ColumnarValue::Array(_) => {
            plan_err!("{function}: parameter `{name}` must be a constant, found a column")
        }
    }
}
