//! Scalar functions over lists and keys.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, ListArray, StringArray, StructArray,
    UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Float64Type, Int64Type};
use datafusion_common::{Result, exec_err, plan_err};
use datafusion_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

use super::constant;
use crate::catalogue::{self, FunctionDoc, Values, values_of};
use crate::estimators::vectors::{list_type, matrix_type};
use crate::random::{Stream, hash_bytes, mix, poisson_one};

/// What an argument must be, before coercion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Argument {
    Key,
    Integer,
    Number,
    Vector,
    Matrix,
}

/// Computes the function for arrays of equal length.
type Work = fn(&[ArrayRef], &Values) -> Result<ArrayRef>;

/// One function of [`catalogue::OTHERS`].
pub(crate) struct OtherUdf {
    doc: &'static FunctionDoc,
    signature: Signature,
    arguments: &'static [Argument],
    returns: DataType,
    work: Work,
}

impl std::fmt::Debug for OtherUdf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OtherUdf").field(&self.doc.name).finish()
    }
}
impl PartialEq for OtherUdf {
    fn eq(&self, other: &Self) -> bool {
        self.doc.name == other.doc.name
    }
}
impl Eq for OtherUdf {}
impl std::hash::Hash for OtherUdf {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.doc.name.hash(state);
    }
}

impl OtherUdf {
    fn new(
        doc: &'static FunctionDoc,
        arguments: &'static [Argument],
        returns: DataType,
        work: Work,
    ) -> OtherUdf {
        let names = doc.arguments.iter().map(|(name, _)| *name);
        let names = names.chain(doc.parameters.iter().map(|parameter| parameter.name));
        let signature = Signature::user_defined(Volatility::Immutable)
            .with_parameter_names(names.collect())
            .expect("the catalogue's test checks that parameter names differ");
        OtherUdf {
            doc,
            signature,
            arguments,
            returns,
            work,
        }
    }
}

/// All of them.
pub(crate) fn all() -> Vec<OtherUdf> {
    use Argument::{Integer, Key, Matrix, Number, Vector};
    vec![
        OtherUdf::new(
            &catalogue::BOOTSTRAP_WEIGHT,
            &[Key, Integer],
            DataType::Int64,
            bootstrap_weight,
        ),
        OtherUdf::new(
            &catalogue::VECTOR_ENTROPY,
            &[Vector],
            DataType::Float64,
            vector_entropy,
        ),
        OtherUdf::new(
            &catalogue::BIN_INDEX,
            &[Number, Vector],
            DataType::Int64,
            bin_index,
        ),
        OtherUdf::new(
            &catalogue::BIN_VECTOR,
            &[Vector, Vector],
            DataType::Utf8,
            bin_vector,
        ),
        OtherUdf::new(
            &catalogue::VON_NEUMANN_ENTROPY,
            &[Matrix],
            DataType::Float64,
            von_neumann_entropy,
        ),
        OtherUdf::new(
            &catalogue::EFFECTIVE_RANK,
            &[Matrix],
            DataType::Float64,
            effective_rank,
        ),
        OtherUdf::new(
            &catalogue::MATRIX_ENTRIES,
            &[Matrix],
            entries_type(),
            matrix_entries,
        ),
    ]
}

/// The element type of a list of any kind.
fn item(found: &DataType) -> Option<&DataType> {
    match found {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            Some(item.data_type())
        }
        _ => None,
    }
}

fn coerced(argument: Argument, found: &DataType) -> Option<DataType> {
    let numbers = |found: &DataType| found.is_numeric() || found.is_null();
    match argument {
        Argument::Key if found.is_integer() => Some(DataType::Int64),
        Argument::Key if found.is_string() || found.is_null() => Some(DataType::Utf8View),
        Argument::Key => None,
        Argument::Integer => (found.is_integer() || found.is_null()).then_some(DataType::Int64),
        Argument::Number => numbers(found).then_some(DataType::Float64),
        Argument::Vector => (found.is_null() || item(found).is_some_and(numbers)).then(list_type),
        Argument::Matrix => {
            let inner =
                item(found).is_some_and(|row| row.is_null() || item(row).is_some_and(numbers));
            (found.is_null() || inner).then(matrix_type)
        }
    }
}

impl ScalarUDFImpl for OtherUdf {
    fn name(&self) -> &str {
        self.doc.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }

    fn coerce_types(&self, found: &[DataType]) -> Result<Vec<DataType>> {
        let (arguments, parameters) = (self.doc.arguments, self.doc.parameters);
        if found.len() < arguments.len() || found.len() > arguments.len() + parameters.len() {
            let names = self.signature.parameter_names.clone().unwrap_or_default();
            return plan_err!(
                "{} takes ({}), found {} arguments",
                self.name(),
                names.join(", "),
                found.len()
            );
        }
        let mut types = Vec::with_capacity(found.len());
        for (place, found) in found.iter().enumerate() {
            let Some(argument) = self.arguments.get(place) else {
                types.push(constant::coerced(
                    self.name(),
                    &parameters[place - arguments.len()],
                    found,
                )?);
                continue;
            };
            let (name, expected) = arguments[place];
            let Some(coerced) = coerced(*argument, found) else {
                return plan_err!(
                    "{}: `{name}` has type {found}, expected {expected}",
                    self.name()
                );
            };
            types.push(coerced);
        }
        Ok(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (columns, rest) = args
            .args
            .split_at(self.arguments.len().min(args.args.len()));
        let mut given = Vec::with_capacity(rest.len());
        for (parameter, value) in self.doc.parameters.iter().zip(rest) {
            given.push(constant::given_argument(
                self.name(),
                parameter.name,
                value,
            )?);
        }
        let values = values_of(self.name(), self.doc.parameters, &given)?;
        let mut arrays = Vec::with_capacity(columns.len());
        for column in columns {
            arrays.push(column.to_array(args.number_rows)?);
        }
        Ok(ColumnarValue::Array((self.work)(&arrays, &values)?))
    }
}

fn bootstrap_weight(columns: &[ArrayRef], values: &Values) -> Result<ArrayRef> {
    let replicates = columns[1].as_primitive::<Int64Type>();
    let seed = values[0] as u64;
    let weight = |key: u64, replicate: i64| {
        poisson_one(Stream::new(seed ^ mix(replicate as u64), key).next())
    };
    let keys: Box<dyn Iterator<Item = Option<u64>>> = match columns[0].data_type() {
        DataType::Int64 => Box::new(
            columns[0]
                .as_primitive::<Int64Type>()
                .iter()
                .map(|key| key.map(|key| key as u64)),
        ),
        DataType::Utf8View => Box::new(
            columns[0]
                .as_string_view()
                .iter()
                .map(|key| key.map(|key| hash_bytes(key.as_bytes()))),
        ),
        other => return exec_err!("bootstrap_weight: key of type {other}"),
    };
    let rows = keys.zip(replicates.iter());
    Ok(Arc::new(Int64Array::from_iter(
        rows.map(|(key, replicate)| Some(weight(key?, replicate?))),
    )))
}

/// The floats of a row of a list column; `None` for a NULL list or one with NULLs.
fn vector(lists: &ListArray, row: usize) -> Option<Float64Array> {
    if lists.is_null(row) {
        return None;
    }
    let values = lists.value(row).as_primitive::<Float64Type>().clone();
    (values.null_count() == 0).then_some(values)
}

fn vector_entropy(columns: &[ArrayRef], values: &Values) -> Result<ArrayRef> {
    let lists = columns[0].as_list::<i32>();
    let entropy = |row: usize| {
        let vector = vector(lists, row)?;
        let total: f64 = vector.values().iter().sum();
        let usable = |v: f64| v >= 0.0 && v.is_finite();
        if !vector.values().iter().all(|v| usable(*v)) || total <= 0.0 || !total.is_finite() {
            return None;
        }
        let shares = vector.values().iter().filter(|v| **v > 0.0);
        let nats: f64 = shares
            .map(|v| -v / total * crate::measures::ln_share(*v, total, total - v))
            .sum();
        Some(nats.max(0.0) / values[0])
    };
    Ok(Arc::new(Float64Array::from_iter(
        (0..lists.len()).map(entropy),
    )))
}

/// Edges that can be used: rising, no NaN.
fn usable_edges(lists: &ListArray, row: usize) -> Option<Float64Array> {
    let edges = vector(lists, row)?;
    let rising = edges.values().windows(2).all(|pair| pair[0] < pair[1]);
    (rising && !edges.values().iter().any(|edge| edge.is_nan())).then_some(edges)
}

fn bin(value: f64, edges: &[f64]) -> Option<i64> {
    (!value.is_nan()).then(|| edges.partition_point(|edge| *edge <= value) as i64)
}

fn bin_index(columns: &[ArrayRef], _: &Values) -> Result<ArrayRef> {
    let values = columns[0].as_primitive::<Float64Type>();
    let lists = columns[1].as_list::<i32>();
    let index = |row: usize| {
        let edges = usable_edges(lists, row)?;
        if values.is_null(row) {
            None
        } else {
            bin(values.value(row), edges.values())
        }
    };
    Ok(Arc::new(Int64Array::from_iter(
        (0..values.len()).map(index),
    )))
}

fn bin_vector(columns: &[ArrayRef], _: &Values) -> Result<ArrayRef> {
    let (vectors, lists) = (columns[0].as_list::<i32>(), columns[1].as_list::<i32>());
    let state = |row: usize| {
        let edges = usable_edges(lists, row)?;
        let vector = vector(vectors, row)?;
        let mut text = String::with_capacity(vector.len() * 3);
        for value in vector.values() {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&bin(*value, edges.values())?.to_string());
        }
        Some(text)
    };
    Ok(Arc::new(StringArray::from_iter(
        (0..vectors.len()).map(state),
    )))
}

/// A row of a matrix column as rows of floats.
fn matrix(lists: &ListArray, row: usize) -> Option<Vec<Vec<f64>>> {
    if lists.is_null(row) {
        return None;
    }
    let rows = lists.value(row);
    let rows = rows.as_list::<i32>();
    (0..rows.len())
        .map(|place| Some(vector(rows, place)?.values().to_vec()))
        .collect()
}

fn von_neumann_entropy(columns: &[ArrayRef], values: &Values) -> Result<ArrayRef> {
    let lists = columns[0].as_list::<i32>();
    let entropy = |row| Some(crate::von_neumann_entropy(&matrix(lists, row)?)? / values[0]);
    Ok(Arc::new(Float64Array::from_iter(
        (0..lists.len()).map(entropy),
    )))
}

fn effective_rank(columns: &[ArrayRef], _: &Values) -> Result<ArrayRef> {
    let lists = columns[0].as_list::<i32>();
    let rank = |row| crate::effective_rank(&matrix(lists, row)?);
    Ok(Arc::new(Float64Array::from_iter(
        (0..lists.len()).map(rank),
    )))
}

fn entry_fields() -> Fields {
    vec![
        Field::new("row", DataType::UInt64, false),
        Field::new("column", DataType::UInt64, false),
        Field::new("value", DataType::Float64, true),
    ]
    .into()
}

fn entries_type() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(
        DataType::Struct(entry_fields()),
        true,
    )))
}

fn matrix_entries(columns: &[ArrayRef], _: &Values) -> Result<ArrayRef> {
    let lists = columns[0].as_list::<i32>();
    let (mut rows, mut places, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let mut lengths = Vec::with_capacity(lists.len());
    for matrix in 0..lists.len() {
        let before = values.len();
        if lists.is_valid(matrix) {
            let inner = lists.value(matrix);
            let inner = inner.as_list::<i32>();
            for row in (0..inner.len()).filter(|row| inner.is_valid(*row)) {
                let entries = inner.value(row);
                for (column, value) in entries.as_primitive::<Float64Type>().iter().enumerate() {
                    rows.push(row as u64 + 1);
                    places.push(column as u64 + 1);
                    values.push(value);
                }
            }
        }
        lengths.push(values.len() - before);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from(rows)),
        Arc::new(UInt64Array::from(places)),
        Arc::new(Float64Array::from(values)),
    ];
    let entries = StructArray::new(entry_fields(), columns, None);
    let field = Arc::new(Field::new_list_field(
        DataType::Struct(entry_fields()),
        true,
    ));
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(ListArray::new(
        field,
        offsets,
        Arc::new(entries),
        lists.nulls().cloned(),
    )))
}
