//! Correlations and evaluation curves of two columns of numbers.
//!
//! [`Pearson`] keeps six exact sums. The others keep all pairs (16 bytes each) and sort them at the end, so that neither
//! the order of the rows nor a bootstrap with a seed depends on how the rows were split.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, ListArray, StructArray, UInt64Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use datafusion_common::{Result, ScalarValue};

use super::pair_statistics::{
    Bin, Sorted, binned_pearson, gap, ntiles, pearson, quantile, spearman,
};
use super::{Estimator, float_result, floats};
use crate::StatsError;
use crate::catalogue::Values;
use crate::codec::{Reader, Writer};
use crate::exact_sum::{ExactSum, difference_of_products};
use crate::random::Stream;

/// Numbers of these sizes (and 0) can be raised to the fourth power and added without leaving f64.
fn usable(value: f64) -> bool {
    value == 0.0 || (1e-70..=1e70).contains(&value.abs())
}

/// Pearson's r by exact sums; point-biserial is the same with a column of 0 and 1.
#[derive(Debug, Default)]
pub(crate) struct Pearson {
    /// Whether x must be 0 or 1.
    flags: bool,
    rows: u64,
    x: ExactSum,
    y: ExactSum,
    xx: ExactSum,
    yy: ExactSum,
    xy: ExactSum,
    outside: bool,
}

impl Pearson {
    pub(crate) fn make(_: &Values) -> Box<dyn Estimator> {
        Box::new(Pearson::default())
    }

    pub(crate) fn point_biserial(_: &Values) -> Box<dyn Estimator> {
        Box::new(Pearson {
            flags: true,
            ..Pearson::default()
        })
    }

    fn sums(&mut self) -> [&mut ExactSum; 5] {
        [
            &mut self.x,
            &mut self.y,
            &mut self.xx,
            &mut self.yy,
            &mut self.xy,
        ]
    }

    fn value(&self) -> f64 {
        if self.outside || self.rows < 2 {
            return f64::NAN;
        }
        // n² times the (co)variances, each a difference of two numbers of 106 bits.
        let xx = self.scatter(&self.xx, &self.x, &self.x);
        let yy = self.scatter(&self.yy, &self.y, &self.y);
        let xy = self.scatter(&self.xy, &self.x, &self.y);
        if xx <= 0.0 || yy <= 0.0 {
            return f64::NAN;
        }
        (xy / (xx * yy).sqrt()).clamp(-1.0, 1.0)
    }

    /// `n Σab − Σa Σb`, in doubled precision.
    fn scatter(&self, product: &ExactSum, a: &ExactSum, b: &ExactSum) -> f64 {
        let mut rows = ExactSum::default();
        rows.add(self.rows as f64);
        difference_of_products(&rows, product, a, b)
    }
}

impl Estimator for Pearson {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        for (x, y) in floats(&columns[0]).iter().zip(floats(&columns[1])) {
            let fits = usable(*x) && usable(*y) && (!self.flags || *x == 0.0 || *x == 1.0);
            if !fits {
                self.outside = true;
                continue;
            }
            self.rows += 1;
            self.x.add(*x);
            self.y.add(*y);
            self.xx.add_product(*x, *x);
            self.yy.add_product(*y, *y);
            self.xy.add_product(*x, *y);
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.outside.into());
        out.u64(self.rows);
        [&self.x, &self.y, &self.xx, &self.yy, &self.xy]
            .into_iter()
            .for_each(|sum| sum.encode(&mut out));
        out.bytes
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        let mut input = Reader::new(state);
        self.outside |= input.u64()? != 0;
        self.rows += input.u64()?;
        for sum in self.sums() {
            sum.merge(&ExactSum::decode(&mut input)?);
        }
        Some(())
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        Ok(float_result(self.value()))
    }

    fn held_bytes(&self) -> usize {
        0
    }
}

/// All pairs of a group, and the statistic that ends them.
pub(crate) struct Pairs {
    x: Vec<f64>,
    y: Vec<f64>,
    outside: bool,
    values: Values,
    finish: fn(&Sorted, &Values) -> Result<ScalarValue>,
    nothing: ScalarValue,
}

impl std::fmt::Debug for Pairs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pairs")
            .field("rows", &self.x.len())
            .finish_non_exhaustive()
    }
}

/// A statistic of sorted pairs, each taken `weights[i]` times; NaN for no value.
type Statistic = fn(&Sorted, &[u32], &Values) -> f64;

/// Places of bootstrap_ci's parameters.
const STATISTIC: usize = 0;
const CONFIDENCE: usize = 1;
const REPLICATES: usize = 2;
const SEED: usize = 3;
const CUT: usize = 4;

/// The words of bootstrap_ci's first parameter, in the order of [`statistic`].
pub(crate) const STATISTICS: &[&str] = &["pearson", "spearman", "binned_pearson", "gap"];

fn statistic(place: f64) -> Statistic {
    match place as usize {
        1 => |pairs, weights, _| spearman(pairs, weights),
        2 => |pairs, weights, values| binned_pearson(pairs, weights, bins(values)),
        3 => |pairs, weights, values| gap(pairs, weights, fraction(values)),
        _ => |pairs, weights, _| pearson(&pairs.x, &pairs.y, weights),
    }
}

/// The default of a cut that is 0.
fn cut(values: &Values, default: f64) -> f64 {
    if values[CUT] == 0.0 {
        default
    } else {
        values[CUT]
    }
}

fn bins(values: &Values) -> usize {
    cut(values, 20.0) as usize
}

fn fraction(values: &Values) -> f64 {
    cut(values, 0.05)
}

/// A cut that does not fit its statistic.
fn check_cut(values: &Values) -> std::result::Result<(), StatsError> {
    let (name, fits, expected) = match STATISTICS[values[STATISTIC] as usize] {
        name @ "binned_pearson" => {
            let bins = cut(values, 20.0);
            (
                name,
                bins >= 2.0 && bins.fract() == 0.0,
                "a whole number of bins from 2 on",
            )
        }
        name @ "gap" => (name, fraction(values) <= 0.5, "a share of at most 0.5"),
        name => (name, values[CUT] == 0.0, "0: this statistic has no cut"),
    };
    if fits {
        return Ok(());
    }
    Err(StatsError::Parameter {
        function: format!("bootstrap_ci of {name}"),
        parameter: "cut".to_owned(),
        found: values[CUT].to_string(),
        expected: expected.to_owned(),
    })
}

fn interval_fields() -> Fields {
    ["estimate", "lower", "upper"]
        .map(|name| Field::new(name, DataType::Float64, true))
        .to_vec()
        .into()
}

pub(crate) fn interval_type() -> DataType {
    DataType::Struct(interval_fields())
}

fn tile_fields() -> Fields {
    let mut fields = vec![
        Field::new("bin", DataType::UInt64, false),
        Field::new("rows", DataType::UInt64, false),
    ];
    for name in ["x_min", "x_max", "x_mean", "y_mean"] {
        fields.push(Field::new(name, DataType::Float64, false));
    }
    fields.into()
}

pub(crate) fn tiles_type() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(
        DataType::Struct(tile_fields()),
        true,
    )))
}

fn bootstrap(pairs: &Sorted, values: &Values) -> Result<ScalarValue> {
    check_cut(values)?;
    let statistic = statistic(values[STATISTIC]);
    let rows = pairs.x.len();
    let estimate = statistic(pairs, &vec![1; rows], values);
    let replicates = values[REPLICATES] as u64;
    let mut found = Vec::with_capacity(replicates as usize);
    let mut weights = vec![0_u32; rows];
    for replicate in 0..replicates {
        let mut stream = Stream::new(values[SEED] as u64, replicate);
        weights.fill(0);
        for _ in 0..rows {
            weights[stream.below(rows)] += 1;
        }
        let value = statistic(pairs, &weights, values);
        if !value.is_nan() {
            found.push(value);
        }
    }
    found.sort_unstable_by(f64::total_cmp);
    // A statistic that is mostly undefined under resampling has no interval.
    let enough = found.len() as u64 * 2 > replicates && !estimate.is_nan();
    let tail = 0.5 * (1.0 - values[CONFIDENCE]);
    let (lower, upper) = if enough {
        (quantile(&found, tail), quantile(&found, 1.0 - tail))
    } else {
        (f64::NAN, f64::NAN)
    };
    let columns = [estimate, lower, upper].map(|value| {
        Arc::new(Float64Array::from(vec![(!value.is_nan()).then_some(value)])) as ArrayRef
    });
    Ok(ScalarValue::Struct(Arc::new(StructArray::new(
        interval_fields(),
        columns.to_vec(),
        None,
    ))))
}

fn tile_summary(pairs: &Sorted, values: &Values) -> Result<ScalarValue> {
    let tiles = ntiles(pairs, &vec![1; pairs.x.len()], values[0] as usize);
    let numbers = |of: fn(&Bin) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(tiles.iter().map(of)))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(1..=tiles.len() as u64)),
        Arc::new(UInt64Array::from_iter_values(
            tiles.iter().map(|bin| bin.rows),
        )),
        numbers(|bin| bin.x_min),
        numbers(|bin| bin.x_max),
        numbers(|bin| bin.x_sum / bin.rows as f64),
        numbers(|bin| bin.y_sum / bin.rows as f64),
    ];
    let rows = StructArray::new(tile_fields(), columns, None);
    let field = Arc::new(Field::new_list_field(DataType::Struct(tile_fields()), true));
    let offsets = OffsetBuffer::from_lengths([tiles.len()]);
    Ok(ScalarValue::List(Arc::new(ListArray::new(
        field,
        offsets,
        Arc::new(rows),
        None,
    ))))
}

impl Pairs {
    fn boxed(
        values: &Values,
        returns: &DataType,
        finish: fn(&Sorted, &Values) -> Result<ScalarValue>,
    ) -> Box<dyn Estimator> {
        let nothing = ScalarValue::try_from(returns).unwrap_or(ScalarValue::Null);
        Box::new(Pairs {
            x: Vec::new(),
            y: Vec::new(),
            outside: false,
            values: *values,
            finish,
            nothing,
        })
    }

    pub(crate) fn spearman(values: &Values) -> Box<dyn Estimator> {
        Pairs::boxed(values, &DataType::Float64, |pairs, _| {
            Ok(float_result(spearman(pairs, &vec![1; pairs.x.len()])))
        })
    }

    pub(crate) fn bootstrap_ci(values: &Values) -> Box<dyn Estimator> {
        Pairs::boxed(values, &interval_type(), bootstrap)
    }

    pub(crate) fn ntile_summary(values: &Values) -> Box<dyn Estimator> {
        Pairs::boxed(values, &tiles_type(), tile_summary)
    }
}

impl Estimator for Pairs {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        for (x, y) in floats(&columns[0]).iter().zip(floats(&columns[1])) {
            if usable(*x) && usable(*y) {
                // Plus zero turns −0 into 0, which would sort elsewhere.
                self.x.push(x + 0.0);
                self.y.push(y + 0.0);
            } else {
                self.outside = true;
            }
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.outside.into());
        out.f64s(&self.x);
        out.f64s(&self.y);
        out.bytes
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        let mut input = Reader::new(state);
        self.outside |= input.u64()? != 0;
        let (x, y) = (input.f64s()?, input.f64s()?);
        if x.len() != y.len() {
            return None;
        }
        self.x.extend(x);
        self.y.extend(y);
        Some(())
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        if self.outside || self.x.is_empty() {
            return Ok(self.nothing.clone());
        }
        if u32::try_from(self.x.len()).is_err() {
            return datafusion_common::exec_err!(
                "more than 2^32 rows in one group: aggregate or sample first"
            );
        }
        (self.finish)(&Sorted::new(&self.x, &self.y), &self.values)
    }

    fn held_bytes(&self) -> usize {
        (self.x.capacity() + self.y.capacity()) * 8
    }
}
