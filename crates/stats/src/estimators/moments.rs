//! Means, covariances and correlations of columns of vectors (activations).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StructArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Fields, Float64Type};
use datafusion_common::{Result, ScalarValue};

use super::Estimator;
use super::vectors::{list, list_type, matrix, matrix_type};
use crate::catalogue::Values;
use crate::codec::{Reader, Writer};

fn moments_fields() -> Fields {
    vec![
        Field::new("rows", DataType::UInt64, false),
        Field::new("mean", list_type(), false),
        Field::new("covariance", matrix_type(), false),
    ]
    .into()
}

pub(crate) fn moments_type() -> DataType {
    DataType::Struct(moments_fields())
}

/// What a [`Moments`] ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Moments,
    Correlation,
}

/// Means of two vectors a row and the scatter between them (one vector: with itself), merged by Chan, Golub & LeVeque
/// 1983. Its sums are rounded: another order of the rows may change the last digits.
#[derive(Debug)]
pub(crate) struct Moments {
    ending: Ending,
    divisor_less: f64,
    rows: u64,
    mean_a: Vec<f64>,
    mean_b: Vec<f64>,
    /// Σ (a_i − ā_i)(b_j − b̄_j), by rows of a.
    scatter: Vec<f64>,
    /// Σ (a_i − ā_i)², Σ (b_j − b̄_j)²; needed for two vectors only.
    square_a: Vec<f64>,
    square_b: Vec<f64>,
    two: bool,
    outside: bool,
}

impl Moments {
    fn new(ending: Ending, divisor_less: f64) -> Moments {
        Moments {
            ending,
            divisor_less,
            rows: 0,
            mean_a: Vec::new(),
            mean_b: Vec::new(),
            scatter: Vec::new(),
            square_a: Vec::new(),
            square_b: Vec::new(),
            two: false,
            outside: false,
        }
    }

    pub(crate) fn moments(values: &Values) -> Box<dyn Estimator> {
        Box::new(Moments::new(Ending::Moments, values[0]))
    }

    pub(crate) fn correlation(_: &Values) -> Box<dyn Estimator> {
        Box::new(Moments::new(Ending::Correlation, 0.0))
    }

    fn shape(&mut self, a: usize, b: usize) -> bool {
        if self.rows == 0 && self.mean_a.is_empty() && self.mean_b.is_empty() {
            self.mean_a = vec![0.0; a];
            self.mean_b = vec![0.0; b];
            self.square_a = vec![0.0; a];
            self.square_b = vec![0.0; b];
            self.scatter = vec![0.0; a * b];
        }
        self.mean_a.len() == a && self.mean_b.len() == b
    }

    fn add(&mut self, a: &[f64], b: &[f64]) {
        let finite = a.iter().chain(b).all(|value| value.is_finite());
        if !finite || !self.shape(a.len(), b.len()) {
            self.outside = true;
            return;
        }
        self.rows += 1;
        let n = self.rows as f64;
        let delta_a: Vec<f64> = a
            .iter()
            .zip(&self.mean_a)
            .map(|(v, mean)| v - mean)
            .collect();
        self.mean_a
            .iter_mut()
            .zip(&delta_a)
            .for_each(|(mean, delta)| *mean += delta / n);
        let delta_b: Vec<f64> = b
            .iter()
            .zip(&self.mean_b)
            .map(|(v, mean)| v - mean)
            .collect();
        self.mean_b
            .iter_mut()
            .zip(&delta_b)
            .for_each(|(mean, delta)| *mean += delta / n);
        let shrink = (n - 1.0) / n;
        for (row, da) in self.scatter.chunks_exact_mut(b.len().max(1)).zip(&delta_a) {
            let da = da * shrink;
            row.iter_mut()
                .zip(&delta_b)
                .for_each(|(sum, db)| *sum += da * db);
        }
        if self.two {
            let square = |sums: &mut [f64], deltas: &[f64]| {
                sums.iter_mut()
                    .zip(deltas)
                    .for_each(|(sum, delta)| *sum += shrink * delta * delta);
            };
            square(&mut self.square_a, &delta_a);
            square(&mut self.square_b, &delta_b);
        }
    }

    fn merge_with(&mut self, other: &Moments) {
        self.outside |= other.outside;
        self.two |= other.two;
        if other.rows == 0 {
            return;
        }
        if !self.shape(other.mean_a.len(), other.mean_b.len()) {
            self.outside = true;
            return;
        }
        let (n, m) = (self.rows as f64, other.rows as f64);
        let total = n + m;
        let delta = |mine: &[f64], theirs: &[f64]| -> Vec<f64> {
            theirs
                .iter()
                .zip(mine)
                .map(|(theirs, mine)| theirs - mine)
                .collect()
        };
        let delta_a = delta(&self.mean_a, &other.mean_a);
        let delta_b = delta(&self.mean_b, &other.mean_b);
        let between = n * m / total;
        let columns = self.mean_b.len().max(1);
        for (place, sum) in self.scatter.iter_mut().enumerate() {
            *sum += other.scatter[place]
                + between * delta_a[place / columns] * delta_b[place % columns];
        }
        for (place, sum) in self.square_a.iter_mut().enumerate() {
            *sum += other.square_a[place] + between * delta_a[place] * delta_a[place];
        }
        for (place, sum) in self.square_b.iter_mut().enumerate() {
            *sum += other.square_b[place] + between * delta_b[place] * delta_b[place];
        }
        self.mean_a
            .iter_mut()
            .zip(&delta_a)
            .for_each(|(mean, delta)| *mean += delta * (m / total));
        self.mean_b
            .iter_mut()
            .zip(&delta_b)
            .for_each(|(mean, delta)| *mean += delta * (m / total));
        self.rows += other.rows;
    }

    fn correlations(&self) -> Vec<f64> {
        let columns = self.mean_b.len();
        let side = |squares: &[f64], place: usize| {
            if self.two {
                squares[place]
            } else {
                self.scatter[place * columns + place]
            }
        };
        (0..self.scatter.len())
            .map(|place| {
                let (i, j) = (place / columns, place % columns);
                // One root of the product, so that a unit correlates with itself as exactly 1.
                let scale = (side(&self.square_a, i) * side(&self.square_b, j)).sqrt();
                // A constant unit correlates with nothing: 0/0, NaN, NULL in the matrix.
                (self.scatter[place] / scale).clamp(-1.0, 1.0)
            })
            .collect()
    }
}

impl Estimator for Moments {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        self.two |= columns.len() > 1;
        let a = columns[0].as_list::<i32>();
        let b = columns.get(1).map(|column| column.as_list::<i32>());
        for row in 0..a.len() {
            let left = a.value(row);
            let left = left.as_primitive::<Float64Type>();
            let right = b.map(|b| b.value(row));
            let right = right
                .as_ref()
                .map_or(left, |right| right.as_primitive::<Float64Type>());
            if left.null_count() + right.null_count() > 0 {
                self.outside = true;
                continue;
            }
            self.add(left.values(), right.values());
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(u64::from(self.outside) | u64::from(self.two) << 1);
        out.u64(self.rows);
        [
            &self.mean_a,
            &self.mean_b,
            &self.scatter,
            &self.square_a,
            &self.square_b,
        ]
        .into_iter()
        .for_each(|values| out.f64s(values));
        out.bytes
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        let mut input = Reader::new(state);
        let flags = input.u64()?;
        let mut other = Moments::new(self.ending, self.divisor_less);
        other.outside = flags & 1 != 0;
        other.two = flags & 2 != 0;
        other.rows = input.u64()?;
        other.mean_a = input.f64s()?;
        other.mean_b = input.f64s()?;
        other.scatter = input.f64s()?;
        other.square_a = input.f64s()?;
        other.square_b = input.f64s()?;
        let fits = other.scatter.len() == other.mean_a.len() * other.mean_b.len()
            && other.square_a.len() == other.mean_a.len()
            && other.square_b.len() == other.mean_b.len();
        if !fits {
            return None;
        }
        self.merge_with(&other);
        Some(())
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        let least = match self.ending {
            Ending::Moments => self.divisor_less + 1.0,
            Ending::Correlation => 2.0,
        };
        let empty = self.outside || (self.rows as f64) < least;
        if self.ending == Ending::Correlation {
            if empty {
                return ScalarValue::try_from(&matrix_type());
            }
            let (rows, columns) = (self.mean_a.len(), self.mean_b.len());
            return Ok(ScalarValue::List(Arc::new(matrix(
                rows,
                columns,
                self.correlations(),
            ))));
        }
        if empty {
            return ScalarValue::try_from(&moments_type());
        }
        let divisor = self.rows as f64 - self.divisor_less;
        let covariance: Vec<f64> = self.scatter.iter().map(|sum| sum / divisor).collect();
        let side = self.mean_a.len();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(vec![self.rows])),
            Arc::new(list(self.mean_a.clone())),
            Arc::new(matrix(side, side, covariance)),
        ];
        Ok(ScalarValue::Struct(Arc::new(StructArray::new(
            moments_fields(),
            columns,
            None,
        ))))
    }

    fn held_bytes(&self) -> usize {
        (self.scatter.capacity() + 2 * self.mean_a.capacity() + 2 * self.mean_b.capacity()) * 8
    }
}
