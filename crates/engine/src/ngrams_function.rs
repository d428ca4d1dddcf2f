//! The SQL function `ngrams(list, n)`: the runs of `n` neighbours in a list of text.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListBuilder, StringBuilder};
use arrow::datatypes::{DataType, Field, Int64Type};
use datafusion::common::exec_err;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};

/// `ngrams(list, n)`: each run of `n` neighbours as one text with blanks between, in the order of the list;
/// none when the list is shorter. A NULL in the list, which is no neighbour of anything, stands in no run. Of NULL, NULL.
#[must_use]
pub fn ngrams() -> ScalarUDF {
    let texts = DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)));
    create_udf(
        "ngrams",
        vec![texts.clone(), DataType::Int64],
        texts,
        Volatility::Immutable,
        Arc::new(|arguments| {
            let arrays = ColumnarValue::values_to_arrays(arguments)?;
            Ok(ColumnarValue::Array(runs(&arrays[0], &arrays[1])?))
        }),
    )
}

fn runs(lists: &ArrayRef, lengths: &ArrayRef) -> Result<ArrayRef> {
    let lists = lists.as_list::<i32>();
    let lengths = lengths.as_primitive::<Int64Type>();
    let mut out = ListBuilder::new(StringBuilder::new());
    let mut run = String::new();
    for row in 0..lists.len() {
        if lists.is_null(row) || lengths.is_null(row) {
            out.append_null();
            continue;
        }
        let length = match usize::try_from(lengths.value(row)) {
            Ok(length) if length > 0 => length,
            _ => return exec_err!("ngrams: n is {}, expected 1 or more", lengths.value(row)),
        };
        let list = lists.value(row);
        let list = list.as_string::<i32>();
        for start in 0..(list.len() + 1).saturating_sub(length) {
            run.clear();
            let whole = (start..start + length).all(|at| {
                if !run.is_empty() {
                    run.push(' ');
                }
                run.push_str(list.value(at));
                list.is_valid(at)
            });
            if whole {
                out.values().append_value(&run);
            }
        }
        out.append(true);
    }
    Ok(Arc::new(out.finish()))
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;

    fn answer(sql: &str) -> Result<Option<String>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let context = SessionContext::new();
        context.register_udf(ngrams());
        let rows = runtime.block_on(async { context.sql(sql).await?.collect().await })?;
        let texts = arrow::compute::cast(rows[0].column(0), &DataType::Utf8)?;
        let texts = texts.as_string::<i32>();
        Ok(texts.is_valid(0).then(|| texts.value(0).to_owned()))
    }

    #[test]
    fn runs_stand_in_the_order_of_the_list() {
        let of = |list: &str, n| {
            answer(&format!("SELECT array_to_string(ngrams({list}, {n}), '|')")).unwrap()
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(of("['a', 'b', 'c']", 1), text("a|b|c"));
        assert_eq!(of("['a', 'b', 'c']", 2), text("a b|b c"));
        assert_eq!(of("['a', 'b', 'c']", 3), text("a b c"));
        assert_eq!(of("['a', 'b', 'c']", 4), text(""));
        assert_eq!(of("['a', NULL, 'c', 'd']", 2), text("c d"));
        assert!(answer("SELECT ngrams(['a'], 0)").is_err());
    }
}
