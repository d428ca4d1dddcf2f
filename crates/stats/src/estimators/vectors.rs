//! Lists as results, and the estimators that end in one: bin edges of activations, the k largest.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, ListArray, StringArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Float64Type};
use datafusion_common::{Result, ScalarValue};
use hashbrown::HashSet;

use super::{Estimator, floats};
use crate::catalogue::Values;
use crate::codec::{Reader, Writer};

pub(crate) fn list_type() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Float64, true)))
}

pub(crate) fn matrix_type() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(list_type(), true)))
}

/// A column of one list.
pub(crate) fn list(values: Vec<f64>) -> ListArray {
    let offsets = OffsetBuffer::from_lengths([values.len()]);
    let field = Arc::new(Field::new_list_field(DataType::Float64, true));
    ListArray::new(field, offsets, Arc::new(Float64Array::from(values)), None)
}

/// A column of one matrix, given by rows; NaN becomes NULL.
pub(crate) fn matrix(rows: usize, columns: usize, values: Vec<f64>) -> ListArray {
    let item = Arc::new(Field::new_list_field(DataType::Float64, true));
    let nulls = values.iter().any(|value| value.is_nan());
    let items = if nulls {
        Float64Array::from_iter(
            values
                .into_iter()
                .map(|value| (!value.is_nan()).then_some(value)),
        )
    } else {
        Float64Array::from(values)
    };
    let inner = ListArray::new(
        item,
        OffsetBuffer::from_lengths(vec![columns; rows]),
        Arc::new(items),
        None,
    );
    let field = Arc::new(Field::new_list_field(list_type(), true));
    ListArray::new(
        field,
        OffsetBuffer::from_lengths([rows]),
        Arc::new(inner),
        None,
    )
}

/// Edges that cut the distinct values into equally many (Chelombiev, Houghton & O'Donnell 2019).
#[derive(Debug)]
pub(crate) struct Edges {
    bins: usize,
    distinct: HashSet<u64>,
    outside: bool,
}

impl Edges {
    pub(crate) fn make(values: &Values) -> Box<dyn Estimator> {
        Box::new(Edges {
            bins: values[0] as usize,
            distinct: HashSet::new(),
            outside: false,
        })
    }
}

impl Estimator for Edges {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let lists = columns[0].as_list::<i32>();
        for row in 0..lists.len() {
            let vector = lists.value(row);
            let vector = vector.as_primitive::<Float64Type>();
            self.outside |= vector.null_count() > 0;
            for value in vector.values() {
                if value.is_nan() {
                    self.outside = true;
                } else {
                    self.distinct.insert((value + 0.0).to_bits());
                }
            }
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.outside.into());
        out.u64(self.distinct.len() as u64);
        self.distinct.iter().for_each(|bits| out.u64(*bits));
        out.bytes
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        let mut input = Reader::new(state);
        self.outside |= input.u64()? != 0;
        for _ in 0..input.length(8)? {
            self.distinct.insert(input.u64()?);
        }
        Some(())
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        if self.outside || self.distinct.is_empty() {
            return ScalarValue::try_from(&list_type());
        }
        let mut sorted: Vec<f64> = self
            .distinct
            .iter()
            .map(|bits| f64::from_bits(*bits))
            .collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let bins = self.bins.min(sorted.len());
        // Bin j starts at this value; the first has no start.
        let edges = (1..bins)
            .map(|bin| sorted[bin * sorted.len() / bins])
            .collect();
        Ok(ScalarValue::List(Arc::new(list(edges))))
    }

    fn held_bytes(&self) -> usize {
        self.distinct.capacity() * 9
    }
}

fn top_fields() -> Fields {
    vec![
        Field::new("value", DataType::Float64, false),
        Field::new("label", DataType::Utf8, false),
    ]
    .into()
}

pub(crate) fn top_type() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(
        DataType::Struct(top_fields()),
        true,
    )))
}

/// A float that sorts (no NaN).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ordered(f64);
impl Eq for Ordered {}
impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The k largest values with their labels; equal values by label, so that the result is the same in any order.
#[derive(Debug)]
pub(crate) struct Top {
    k: usize,
    /// Largest last; of equal values the first label last. A row that comes twice is kept twice (the number).
    rows: BTreeSet<(Ordered, std::cmp::Reverse<String>, u64)>,
    copies: u64,
    outside: bool,
}

impl Top {
    pub(crate) fn make(values: &Values) -> Box<dyn Estimator> {
        Box::new(Top::of(values[0] as usize))
    }

    pub(crate) fn of(k: usize) -> Top {
        Top {
            k,
            rows: BTreeSet::new(),
            copies: 0,
            outside: false,
        }
    }

    /// Whether a NaN came.
    pub(crate) fn is_outside(&self) -> bool {
        self.outside
    }

    pub(crate) fn encode_into(&self, out: &mut Writer) {
        out.u64(self.outside.into());
        out.u64(self.rows.len() as u64);
        for (value, label, _) in &self.rows {
            out.f64(value.0);
            out.text(&label.0);
        }
    }

    pub(crate) fn merge_from(&mut self, input: &mut Reader) -> Option<()> {
        self.outside |= input.u64()? != 0;
        for _ in 0..input.length(16)? {
            let value = input.f64()?;
            self.add(value, input.text()?);
        }
        Some(())
    }

    /// A column of one list, largest first.
    pub(crate) fn list(&self) -> ListArray {
        let falling = || self.rows.iter().rev();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Float64Array::from_iter_values(falling().map(|row| row.0.0))),
            Arc::new(StringArray::from_iter_values(
                falling().map(|row| row.1.0.as_str()),
            )),
        ];
        let rows = StructArray::new(top_fields(), columns, None);
        let field = Arc::new(Field::new_list_field(DataType::Struct(top_fields()), true));
        let offsets = OffsetBuffer::from_lengths([rows.len()]);
        ListArray::new(field, offsets, Arc::new(rows), None)
    }

    pub(crate) fn add(&mut self, value: f64, label: &str) {
        if value.is_nan() {
            self.outside = true;
            return;
        }
        let full = self.rows.len() >= self.k;
        if full && self.rows.first().is_some_and(|least| value < least.0.0) {
            return;
        }
        self.copies += 1;
        self.rows.insert((
            Ordered(value + 0.0),
            std::cmp::Reverse(label.to_owned()),
            self.copies,
        ));
        if self.rows.len() > self.k {
            self.rows.pop_first();
        }
    }
}

impl Estimator for Top {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let labels = arrow::compute::cast(&columns[1], &DataType::Utf8View)?;
        let labels = labels.as_string_view();
        for (row, value) in floats(&columns[0]).iter().enumerate() {
            self.add(*value, labels.value(row));
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.encode_into(&mut out);
        out.bytes
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        self.merge_from(&mut Reader::new(state))
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        if self.outside || self.rows.is_empty() {
            return ScalarValue::try_from(&top_type());
        }
        Ok(ScalarValue::List(Arc::new(self.list())))
    }

    fn held_bytes(&self) -> usize {
        self.rows.iter().map(|row| row.1.0.capacity() + 64).sum()
    }
}
