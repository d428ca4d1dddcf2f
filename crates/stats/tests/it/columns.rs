//! Columns give what single rows give: across blocks, with nulls, in slices, of every number type, with constants.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::ScalarValue;
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use pmill_stats::{Given, Measure, measures};

/// More than two blocks, and not a whole number of them.
const ROWS: usize = 2500;

/// Counts, possible and not, some missing; `shift` makes them larger than 2^53.
fn rows(shift: u32) -> Vec<[Option<u64>; 4]> {
    let mut state = 99_u64;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let row = |_| {
        let n = 1000 + next() % 100;
        let (x, y) = (next() % 200, next() % 200);
        // Now and then above a margin.
        let xy = next() % (x.min(y) + 2);
        [xy, x, y, n].map(|value| (next() % 50 > 0).then_some(value << shift))
    };
    (0..ROWS).map(row).collect()
}

/// The parameters that have no default.
fn required(measure: &Measure) -> Vec<Given> {
    measure
        .required_parameters()
        .map(|_| Given::Number(1e6))
        .collect()
}

fn call(measure: &Measure, counts: Vec<ColumnarValue>, rows: usize) -> ColumnarValue {
    let functions = pmill_stats::all_scalar_functions();
    let function: &ScalarUDF = functions
        .iter()
        .find(|function| function.name() == measure.name)
        .unwrap();
    let mut args = counts;
    for _ in measure.required_parameters() {
        args.push(ColumnarValue::Scalar(ScalarValue::Float64(Some(1e6))));
    }
    let field: FieldRef = Arc::new(Field::new("f", DataType::Float64, true));
    function
        .invoke_with_args(ScalarFunctionArgs {
            arg_fields: vec![Arc::clone(&field); args.len()],
            args,
            number_rows: rows,
            return_field: field,
            config_options: Arc::new(ConfigOptions::default()),
        })
        .unwrap()
}

fn check(measure: &Measure, found: ColumnarValue, expected: &[Option<f64>], what: &str) {
    let found = found.into_array(expected.len()).unwrap();
    let found = found.as_primitive::<Float64Type>();
    assert_eq!(found.len(), expected.len());
    for (row, expected) in expected.iter().enumerate() {
        let value = found.is_valid(row).then(|| found.value(row));
        assert_eq!(
            value.map(f64::to_bits),
            expected.map(f64::to_bits),
            "{} {what} row {row}",
            measure.name
        );
    }
}

fn by_rows(measure: &Measure, rows: &[[Option<u64>; 4]]) -> Vec<Option<f64>> {
    let parameters = required(measure);
    let score = |row: &[Option<u64>; 4]| {
        let [a, x, y, n] = *row;
        let (a, x, y, n) = (a?, x?, y?, n?);
        if n < 1 << 53 {
            return measure
                .score(a as f64, x as f64, y as f64, n as f64, &parameters)
                .unwrap();
        }
        measure.score_u64(a, x, y, n, &parameters).unwrap()
    };
    rows.iter().map(score).collect()
}

fn column(rows: &[[Option<u64>; 4]], place: usize, kind: &DataType) -> ArrayRef {
    let values = rows.iter().map(|row| row[place]);
    match kind {
        DataType::Int64 => Arc::new(Int64Array::from_iter(
            values.map(|value| value.map(|value| value as i64)),
        )),
        DataType::UInt64 => Arc::new(UInt64Array::from_iter(values)),
        _ => Arc::new(Float64Array::from_iter(
            values.map(|value| value.map(|value| value as f64)),
        )),
    }
}

fn columns(rows: &[[Option<u64>; 4]], kinds: [DataType; 4]) -> Vec<ColumnarValue> {
    (0..4)
        .map(|place| ColumnarValue::Array(column(rows, place, &kinds[place])))
        .collect()
}

#[test]
fn every_type_gives_the_rows_values() {
    use DataType::{Float64, Int64, UInt64};
    let rows = rows(0);
    for measure in measures() {
        let expected = by_rows(measure, &rows);
        assert!(expected.iter().flatten().count() > 500, "{}", measure.name);
        for kinds in [
            [Float64, Float64, Float64, Float64],
            [Int64, Int64, Int64, Int64],
            [UInt64, Int64, Float64, UInt64],
        ] {
            check(
                measure,
                call(measure, columns(&rows, kinds), ROWS),
                &expected,
                "types",
            );
        }
    }
}

#[test]
fn large_integers_are_not_rounded() {
    let rows = rows(52);
    for measure in measures()
        .iter()
        .filter(|measure| measure.name != "fisher_exact")
    {
        let expected = by_rows(measure, &rows);
        let found = call(
            measure,
            columns(&rows, [const { DataType::UInt64 }; 4]),
            ROWS,
        );
        check(measure, found, &expected, "large");
    }
}

#[test]
fn slices_and_constants_give_the_rows_values() {
    let mut rows = rows(0);
    for row in &mut rows {
        row[3] = Some(1050);
    }
    for measure in measures() {
        let expected = by_rows(measure, &rows);
        let mut counts: Vec<ColumnarValue> = (0..3)
            .map(|place| {
                ColumnarValue::Array(column(&rows, place, &DataType::Float64).slice(700, 1300))
            })
            .collect();
        counts.push(ColumnarValue::Scalar(ScalarValue::Int64(Some(1050))));
        check(
            measure,
            call(measure, counts, 1300),
            &expected[700..2000],
            "slice",
        );
        let one =
            [12, 30, 40, 1050].map(|value| ColumnarValue::Scalar(ScalarValue::Int64(Some(value))));
        let single = by_rows(measure, &[[Some(12), Some(30), Some(40), Some(1050)]]);
        assert!(
            matches!(call(measure, one.to_vec(), 3), ColumnarValue::Scalar(value) if value == ScalarValue::Float64(single[0]))
        );
    }
}

#[test]
fn a_null_constant_makes_every_row_null() {
    let measure = pmill_stats::measure("pmi").unwrap();
    let mut counts = columns(&rows(0), [const { DataType::Int64 }; 4]);
    counts[1] = ColumnarValue::Scalar(ScalarValue::Int64(None));
    let found = call(measure, counts, ROWS);
    assert!(matches!(found, ColumnarValue::Scalar(value) if value.is_null()));
}
