//! Divergences of two aligned columns of counts or probabilities, one row a category. Both columns are normalized by
//! their own sums.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::Float64Type;
use datafusion_common::{Result, ScalarValue};
use hashbrown::HashMap;

use super::{Estimator, float_result, floats};
use crate::catalogue::Values;
use crate::codec::{Reader, Writer};
use crate::exact_sum::{ExactSum, difference_of_products};

const LN_BASE: usize = 0;

/// A count or probability that a divergence can take.
fn usable(value: f64) -> bool {
    value >= 0.0 && value.is_finite()
}

/// Which divergence of two columns with running sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    KullbackLeibler,
    CauchySchwarz,
}

/// Kullback–Leibler: `Σ p ln(p/q)`, `Σ p`, `Σ q`. Cauchy–Schwarz: `Σ pq`, `Σ p²`, `Σ q²`.
#[derive(Debug)]
pub(crate) struct Sums {
    kind: Kind,
    ln_base: f64,
    cross: ExactSum,
    p: ExactSum,
    q: ExactSum,
    rows: u64,
    /// Some p is above zero where q is zero.
    infinite: bool,
    outside: bool,
}

impl Sums {
    fn boxed(kind: Kind, values: &Values) -> Box<dyn Estimator> {
        Box::new(Sums {
            kind,
            ln_base: values[LN_BASE],
            cross: ExactSum::default(),
            p: ExactSum::default(),
            q: ExactSum::default(),
            rows: 0,
            infinite: false,
            outside: false,
        })
    }

    pub(crate) fn kullback_leibler(values: &Values) -> Box<dyn Estimator> {
        Sums::boxed(Kind::KullbackLeibler, values)
    }

    pub(crate) fn cauchy_schwarz(values: &Values) -> Box<dyn Estimator> {
        Sums::boxed(Kind::CauchySchwarz, values)
    }

    fn add(&mut self, p: f64, q: f64) {
        match self.kind {
            Kind::KullbackLeibler => {
                if p > 0.0 && q > 0.0 {
                    let ratio = p / q;
                    let ln = if ratio > 0.5 && ratio < 2.0 {
                        ((p - q) / q).ln_1p()
                    } else if ratio.is_normal() {
                        ratio.ln()
                    } else {
                        p.ln() - q.ln()
                    };
                    self.cross.add(p * ln);
                } else if p > 0.0 {
                    self.infinite = true;
                }
                self.p.add(p);
                self.q.add(q);
            }
            Kind::CauchySchwarz => {
                // Squares of these sizes neither overflow nor vanish.
                let in_range = |v: f64| v == 0.0 || (1e-100..1e100).contains(&v);
                if !(in_range(p) && in_range(q)) {
                    self.outside = true;
                    return;
                }
                self.cross.add_product(p, q);
                self.p.add_product(p, p);
                self.q.add_product(q, q);
            }
        }
    }

    fn value(&self) -> f64 {
        let (p, q) = (self.p.value(), self.q.value());
        if self.outside || p <= 0.0 || q <= 0.0 {
            return f64::NAN;
        }
        if self.infinite {
            return f64::INFINITY;
        }
        let cross = self.cross.value();
        let nats = match self.kind {
            Kind::KullbackLeibler => cross / p - (p / q).ln(),
            Kind::CauchySchwarz => {
                let cosine = cross / p.sqrt() / q.sqrt();
                if cosine > 0.7 {
                    // cos² − 1 = (Σpq² − Σp²Σq²) / Σp²Σq², the difference in doubled precision.
                    let difference =
                        difference_of_products(&self.cross, &self.cross, &self.p, &self.q);
                    -0.5 * (difference / (p * q)).ln_1p()
                } else {
                    -cosine.ln()
                }
            }
        };
        nats.max(0.0) / self.ln_base
    }
}

impl Estimator for Sums {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        self.rows += columns[0].len() as u64;
        for (p, q) in floats(&columns[0]).iter().zip(floats(&columns[1])) {
            if usable(*p) && usable(*q) {
                self.add(*p, *q);
            } else {
                self.outside = true;
            }
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.rows);
        out.u64(u64::from(self.infinite) | u64::from(self.outside) << 1);
        self.cross.encode(&mut out);
        self.p.encode(&mut out);
        self.q.encode(&mut out);
        out.bytes
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        let mut input = Reader::new(state);
        self.rows += input.u64()?;
        let flags = input.u64()?;
        self.infinite |= flags & 1 != 0;
        self.outside |= flags & 2 != 0;
        self.cross.merge(&ExactSum::decode(&mut input)?);
        self.p.merge(&ExactSum::decode(&mut input)?);
        self.q.merge(&ExactSum::decode(&mut input)?);
        Some(())
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        Ok(float_result(self.value()))
    }

    fn held_bytes(&self) -> usize {
        0
    }
}

/// Jensen–Shannon: the mixture needs both totals, which one pass knows only at its end, so the distinct pairs (p, q) are
/// tallied. Count tables have few of them.
#[derive(Debug)]
pub(crate) struct JensenShannon {
    ln_base: f64,
    /// How many categories have these two values, by their bits.
    tally: HashMap<(u64, u64), u64>,
    outside: bool,
}

impl JensenShannon {
    pub(crate) fn make(values: &Values) -> Box<dyn Estimator> {
        Box::new(JensenShannon {
            ln_base: values[LN_BASE],
            tally: HashMap::new(),
            outside: false,
        })
    }

    fn value(&self) -> f64 {
        let (mut p_total, mut q_total) = (ExactSum::default(), ExactSum::default());
        for ((p, q), times) in &self.tally {
            p_total.add_product(f64::from_bits(*p), *times as f64);
            q_total.add_product(f64::from_bits(*q), *times as f64);
        }
        let (p_total, q_total) = (p_total.value(), q_total.value());
        if self.outside || p_total <= 0.0 || q_total <= 0.0 {
            return f64::NAN;
        }
        let mut sum = ExactSum::default();
        for ((p, q), times) in &self.tally {
            let (p, q) = (f64::from_bits(*p) / p_total, f64::from_bits(*q) / q_total);
            let sum_pq = p + q;
            if sum_pq == 0.0 {
                continue;
            }
            // With p = m(1 + u), q = m(1 − u): ½ m [(1+u) ln(1+u) + (1−u) ln(1−u)], no cancellation of large terms.
            let u = (p - q) / sum_pq;
            let term = relative_pair(u) * sum_pq / 4.0;
            sum.add_product(term, *times as f64);
        }
        sum.value().max(0.0) / self.ln_base
    }
}

/// `(1+u) ln(1+u) + (1−u) ln(1−u)` for `−1 ≤ u ≤ 1`.
fn relative_pair(u: f64) -> f64 {
    use crate::measures::deviation::relative_entropy_term;
    // The linear parts of the two terms cancel by themselves.
    relative_entropy_term(u) + relative_entropy_term(-u)
}

impl Estimator for JensenShannon {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        for (p, q) in floats(&columns[0]).iter().zip(floats(&columns[1])) {
            if usable(*p) && usable(*q) {
                // Plus zero turns −0 into 0.
                *self
                    .tally
                    .entry(((p + 0.0).to_bits(), (q + 0.0).to_bits()))
                    .or_insert(0) += 1;
            } else {
                self.outside = true;
            }
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.outside.into());
        out.u64(self.tally.len() as u64);
        for ((p, q), times) in &self.tally {
            out.u64(*p);
            out.u64(*q);
            out.u64(*times);
        }
        out.bytes
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        let mut input = Reader::new(state);
        self.outside |= input.u64()? != 0;
        for _ in 0..input.length(24)? {
            let key = (input.u64()?, input.u64()?);
            *self.tally.entry(key).or_insert(0) += input.u64()?;
        }
        Some(())
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        Ok(float_result(self.value()))
    }

    fn held_bytes(&self) -> usize {
        self.tally.capacity() * 25
    }
}

/// `(1/n) [Σ_y n_y H(Q_y) − Σ_x H(P_x)]`: how much the prediction for an example tells beyond its class. `P_x` is the
/// probability vector of example x, `Q_y` the mean of those of class y.
#[derive(Debug)]
pub(crate) struct ClassConditional {
    ln_base: f64,
    classes: HashMap<String, ClassState>,
    outside: bool,
}

/// Sums of one class, in steps of 2^−64 (probabilities are at most 1), so that their order does not matter.
#[derive(Debug, Default)]
struct ClassState {
    examples: u64,
    probabilities: Vec<u128>,
    entropy: ExactSum,
}

const UNIT: f64 = 18_446_744_073_709_551_616.0; // 2^64

/// A vector may miss the sum of one by this much: softmax in bfloat16 does.
const SUM_TOLERANCE: f64 = 0.02;

impl ClassConditional {
    pub(crate) fn make(values: &Values) -> Box<dyn Estimator> {
        Box::new(ClassConditional {
            ln_base: values[LN_BASE],
            classes: HashMap::new(),
            outside: false,
        })
    }

    fn add(&mut self, class: &str, vector: &[f64]) {
        let total: f64 = vector.iter().sum();
        let probabilities =
            vector.iter().all(|p| usable(*p)) && (total - 1.0).abs() <= SUM_TOLERANCE;
        if !probabilities {
            self.outside = true;
            return;
        }
        let state = self.classes.entry_ref(class).or_default();
        if state.examples == 0 {
            state.probabilities.resize(vector.len(), 0);
        }
        if state.probabilities.len() != vector.len() {
            self.outside = true;
            return;
        }
        state.examples += 1;
        let mut entropy = 0.0;
        for (sum, p) in state.probabilities.iter_mut().zip(vector) {
            let p = p / total;
            *sum += (p * UNIT) as u128;
            if p > 0.0 {
                entropy -= p * p.ln();
            }
        }
        state.entropy.add(entropy);
    }

    fn value(&self) -> f64 {
        if self.outside || self.classes.is_empty() {
            return f64::NAN;
        }
        let mut sum = ExactSum::default();
        let mut examples = 0;
        let length = self
            .classes
            .values()
            .next()
            .map_or(0, |state| state.probabilities.len());
        for state in self.classes.values() {
            // Vectors of different lengths in different classes are not over one set of outcomes.
            if state.probabilities.len() != length {
                return f64::NAN;
            }
            examples += state.examples;
            let n_y = state.examples as f64;
            for probability in &state.probabilities {
                let q = *probability as f64 / UNIT / n_y;
                if q > 0.0 {
                    sum.add(-n_y * q * q.ln());
                }
            }
            sum.add(-state.entropy.value());
        }
        (sum.value() / examples as f64).max(0.0) / self.ln_base
    }
}

impl Estimator for ClassConditional {
    fn update(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let classes = arrow::compute::cast(&columns[0], &arrow::datatypes::DataType::Utf8View)?;
        let classes = classes.as_string_view();
        let lists = columns[1].as_list::<i32>();
        for row in 0..lists.len() {
            let vector = lists.value(row);
            let vector = vector.as_primitive::<Float64Type>();
            if vector.null_count() > 0 {
                self.outside = true;
                continue;
            }
            self.add(classes.value(row), vector.values());
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.outside.into());
        out.u64(self.classes.len() as u64);
        for (class, state) in &self.classes {
            out.text(class);
            out.u64(state.examples);
            state.entropy.encode(&mut out);
            out.u64(state.probabilities.len() as u64);
            state.probabilities.iter().for_each(|sum| out.u128(*sum));
        }
        out.bytes
    }

    fn merge(&mut self, state: &[u8]) -> Option<()> {
        let mut input = Reader::new(state);
        self.outside |= input.u64()? != 0;
        for _ in 0..input.length(32)? {
            let class = input.text()?;
            let examples = input.u64()?;
            let entropy = ExactSum::decode(&mut input)?;
            let length = input.length(16)?;
            let mine = self.classes.entry_ref(class).or_default();
            if mine.examples == 0 {
                mine.probabilities.resize(length, 0);
            }
            self.outside |= mine.probabilities.len() != length;
            mine.examples += examples;
            mine.entropy.merge(&entropy);
            for place in 0..length {
                let more = input.u128()?;
                if let Some(sum) = mine.probabilities.get_mut(place) {
                    *sum += more;
                }
            }
        }
        Some(())
    }

    fn evaluate(&self) -> Result<ScalarValue> {
        Ok(float_result(self.value()))
    }

    fn held_bytes(&self) -> usize {
        let per_class = |state: &ClassState| state.probabilities.capacity() * 16 + 700;
        self.classes.values().map(per_class).sum()
    }
}
