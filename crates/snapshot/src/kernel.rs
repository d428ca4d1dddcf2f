//! The inner loop: the mean of N runs of values, block by block, every element rounded once.
//!
//! In: the same elements of N inputs as little-endian bytes. Out: the mean of each row of weights.
//! Held: a block of 1,024 doubles per accumulator, which stays in the first-level cache.
//!
//! Why the fast path is exact. Let every value of a block be a multiple of `2^low` and below `2^high` in
//! magnitude, and let the weights be whole numbers `k_i` with sum `K`. Then `k_i * x_i` and all partial sums
//! are multiples of `2^low` below `K * 2^high`; if `high - low + bits(K) <= 53` all of them are doubles, so
//! the sum `S` is exact. The quotient `q = S / K` is rounded once to a double and once more to the output
//! format. The second rounding can only go astray when `q` is a midpoint `m` of the output format and `S / K`
//! is not. But `S - K*m` is then a non-zero multiple of the last place of `S` (as long as `K*m` fits a double:
//! `precision + 1 + bits(K) <= 53`), so `S / K` is at least `ulp(S) / K` away from `m`, and with
//! `2^k <= K < 2^(k+1)` half an ulp of `q` is at most `ulp(S) / 2^(k+1) < ulp(S) / K`: too little to reach `m`.
//! For doubles as output there is no second rounding.
//!
//! A block without that property is summed in doubles with an error bound; elements whose rounding the bound
//! does not decide, and all blocks with NaN or infinity or of very wide exponents, go to [`crate::exact`].
//!
//! Most elements of BF16 do not even need doubles: see [`crate::narrow`].

use crate::dtype::Float;
use crate::exact::{self, Value};
use crate::narrow::{MeanBf16, Narrow};
use crate::vector::{AddMagnitudes, Extent, Lane, Round, accumulate, part};
use crate::weights::Row;
use pulp::Arch;

/// Elements of a block.
pub(crate) const BLOCK: usize = 1024;

/// What the run saw; indices count elements of the run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The first value that is not finite: element, then input.
    pub nonfinite: Option<(usize, usize)>,
    /// Such values in all.
    pub nonfinite_count: u64,
    /// The first element whose mean of finite values was too large for the output.
    pub overflow: Option<usize>,
    /// Elements decided by whole-number arithmetic.
    pub exact_count: u64,
}

/// Weights of one output, prepared.
pub(crate) struct Weights {
    numbers: Vec<u128>,
    total: u128,
    as_f64: Vec<f64>,
    total_f64: f64,
    total_bits: i32,
    narrow: Option<Narrow>,
}

impl Weights {
    /// `k_i / K` of one input alone, for a sum that is never formed.
    pub fn one_of(row: &Row, input: usize) -> Self {
        let number = row.numbers()[input];
        Self {
            numbers: vec![number],
            as_f64: vec![number as f64],
            narrow: None,
            ..Self::new(row)
        }
    }

    pub fn new(row: &Row) -> Self {
        Self {
            numbers: row.numbers().to_vec(),
            total: row.total(),
            as_f64: row.numbers().iter().map(|number| *number as f64).collect(),
            total_f64: row.total() as f64,
            total_bits: (128 - row.total().leading_zeros()) as i32,
            narrow: Narrow::new(row.numbers(), row.total()),
        }
    }
}

/// Scratch space of one worker.
pub(crate) struct Kernel {
    arch: Arch,
    sum: Vec<f64>,
    bound: Vec<f64>,
    low: Vec<u8>,
    high: Vec<u8>,
    terms: Vec<(Value, u128)>,
    open: Vec<usize>,
}

/// Exponents of a block: every finite value is a multiple of `2^low` and below `2^high`.
#[derive(Clone, Copy)]
struct Span {
    low: i32,
    high: i32,
    nonfinite: bool,
}

impl Kernel {
    pub fn new() -> Self {
        Self {
            arch: Arch::new(),
            sum: vec![0.0; BLOCK],
            bound: vec![0.0; BLOCK],
            low: vec![0; BLOCK * 8],
            high: vec![0; BLOCK * 8],
            terms: Vec::new(),
            open: Vec::new(),
        }
    }

    /// Writes the mean of each weight row to the output of the same position.
    ///
    /// All lanes hold `elements` values; each output has room for as many of format `out`.
    pub fn mean(
        &mut self,
        lanes: &[Lane<'_>],
        rows: &[&Weights],
        out: Float,
        elements: usize,
        outputs: &mut [&mut [u8]],
    ) -> Seen {
        let mut seen = Seen::default();
        let is_bf16 = out == Float::BF16 && lanes.iter().all(|lane| lane.float == out);
        let mut start = 0;
        while start < elements {
            let count = BLOCK.min(elements - start);
            // Looked at when an output asks for it first.
            let mut known = None;
            for (weights, output) in rows.iter().zip(outputs.iter_mut()) {
                let output = &mut output[start * out.bytes()..(start + count) * out.bytes()];
                if let (true, Some(narrow)) = (is_bf16, &weights.narrow)
                    && self.narrow(lanes, weights, narrow, start, output)
                {
                    continue;
                }
                let span = *known.get_or_insert_with(|| {
                    let span = self.span(lanes, start, count);
                    if span.nonfinite {
                        note_nonfinite(lanes, start, count, &mut seen);
                    }
                    span
                });
                self.block(lanes, weights, span, start, count, out, output, &mut seen);
            }
            start += count;
        }
        seen
    }

    /// A block of BF16 in single precision, and its few open elements in doubles; `false` when it needs more.
    fn narrow(
        &mut self,
        lanes: &[Lane<'_>],
        weights: &Weights,
        narrow: &Narrow,
        start: usize,
        output: &mut [u8],
    ) -> bool {
        let count = output.len() / 2;
        self.arch.dispatch(MeanBf16 {
            narrow,
            lanes,
            start,
            output,
            open: &mut self.open,
        });
        // Doubles are faster when many are open.
        if self.open.len() > count / 4 + 31 {
            return false;
        }
        for &element in &self.open {
            let place = element * 2..element * 2 + 2;
            let at = (start + element) * 2;
            let (mut sum, mut smallest, mut largest) = (-0.0, u16::MAX, 0);
            for (lane, weight) in lanes.iter().zip(&weights.as_f64) {
                let bits = u16::from_le_bytes([lane.bytes[at], lane.bytes[at + 1]]);
                let magnitude = bits & 0x7fff;
                smallest = smallest.min(magnitude.wrapping_sub(1));
                largest = largest.max(magnitude);
                sum += f64::from(f32::from_bits(u32::from(bits) << 16)) * weight;
            }
            // As in `block`: 8 bits each, and the sum of the weights has 7 at most.
            let (low, high) = ((smallest >> 7).max(1), largest >> 7);
            if high == 255 || (largest > 0 && high - low.min(high) > 53 - 8 - 7) {
                return false;
            }
            self.arch.dispatch(Round {
                sum: &[sum],
                divisor: weights.total_f64,
                out: Float::BF16,
                output: &mut output[place],
            });
        }
        true
    }

    fn span(&self, lanes: &[Lane<'_>], start: usize, count: usize) -> Span {
        let mut span = Span {
            low: i32::MAX,
            high: i32::MIN,
            nonfinite: false,
        };
        for lane in lanes {
            let float = lane.float;
            let bytes = &lane.bytes[start * float.bytes()..(start + count) * float.bytes()];
            let (smallest, largest) = self.arch.dispatch(Extent { float, bytes });
            span.nonfinite |= largest > float.largest_finite();
            if largest > 0 {
                let exponent = |bits: u64| {
                    ((bits >> float.fraction_bits()) as i32 - 1).max(0) + float.smallest_exponent()
                };
                span.low = span.low.min(exponent(smallest));
                span.high = span
                    .high
                    .max(exponent(largest) + float.fraction_bits() as i32 + 1);
            }
        }
        if span.low > span.high {
            span = Span {
                low: 0,
                high: 0,
                ..span
            }; // nothing but zeros
        }
        span
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the block, its weights and where the result goes"
    )]
    fn block(
        &mut self,
        lanes: &[Lane<'_>],
        weights: &Weights,
        span: Span,
        start: usize,
        count: usize,
        out: Float,
        output: &mut [u8],
        seen: &mut Seen,
    ) {
        let precision = out.fraction_bits() as i32 + 1;
        let sum_fits = span.high - span.low + weights.total_bits <= 53;
        let midpoint_fits = out == Float::F64 || precision + 1 + weights.total_bits <= 53;
        // Far from where doubles overflow or lose bits, so that the reasoning above holds as it stands.
        let in_range = span.low > -900 && span.high + weights.total_bits < 900;
        if span.nonfinite || !in_range || (out == Float::F64 && !sum_fits) {
            for element in 0..count {
                self.element(
                    lanes,
                    weights,
                    start + element,
                    out,
                    &mut output[element * out.bytes()..],
                    seen,
                );
            }
            seen.exact_count += count as u64;
            return;
        }
        if sum_fits && midpoint_fits {
            let sum = &mut self.sum[..count];
            accumulate(self.arch, lanes, &weights.as_f64, start, sum);
            let overflow = self.arch.dispatch(Round {
                sum,
                divisor: weights.total_f64,
                out,
                output,
            });
            if overflow {
                // Rare: only a narrower output type can overflow. The exact way says where, and writes it well.
                for element in 0..count {
                    self.element(
                        lanes,
                        weights,
                        start + element,
                        out,
                        &mut output[element * out.bytes()..],
                        seen,
                    );
                }
            }
            return;
        }
        // Sum and error bound in doubles. Each of the N products and N sums, the conversion of the weights and
        // the steps below err by at most 2^-53 of the sum of magnitudes.
        let (sum, bound) = (&mut self.sum[..count], &mut self.bound[..count]);
        accumulate(self.arch, lanes, &weights.as_f64, start, sum);
        bound.fill(0.0);
        for (lane, &weight) in lanes.iter().zip(&weights.as_f64) {
            self.arch.dispatch(AddMagnitudes {
                lane: part(*lane, start, count),
                weight,
                bound,
            });
        }
        let relative = (lanes.len() as f64 + 8.0) * f64::EPSILON;
        for (sum, bound) in sum.iter_mut().zip(bound.iter_mut()) {
            let error = *bound * relative;
            (*sum, *bound) = (*sum - error, *sum + error);
        }
        let width = out.bytes();
        let (low, high) = (
            &mut self.low[..count * width],
            &mut self.high[..count * width],
        );
        let mut overflow = self.arch.dispatch(Round {
            sum,
            divisor: weights.total_f64,
            out,
            output: low,
        });
        overflow |= self.arch.dispatch(Round {
            sum: bound,
            divisor: weights.total_f64,
            out,
            output: high,
        });
        output.copy_from_slice(low);
        let open: Vec<usize> = (0..count)
            .filter(|element| {
                let place = element * width..(element + 1) * width;
                overflow || low[place.clone()] != high[place]
            })
            .collect();
        seen.exact_count += open.len() as u64;
        for element in open {
            self.element(
                lanes,
                weights,
                start + element,
                out,
                &mut output[element * width..],
                seen,
            );
        }
    }

    /// One element in whole-number arithmetic.
    fn element(
        &mut self,
        lanes: &[Lane<'_>],
        weights: &Weights,
        element: usize,
        out: Float,
        output: &mut [u8],
        seen: &mut Seen,
    ) {
        self.terms.clear();
        for (lane, &weight) in lanes.iter().zip(&weights.numbers) {
            let width = lane.float.bytes();
            let bits = exact::read_bits(
                lane.float,
                &lane.bytes[element * width..(element + 1) * width],
            );
            self.terms.push((exact::decode(lane.float, bits), weight));
        }
        let rounded = exact::mean(&self.terms, weights.total, out);
        output[..out.bytes()].copy_from_slice(&rounded.bits.to_le_bytes()[..out.bytes()]);
        if rounded.overflow {
            seen.overflow = Some(seen.overflow.map_or(element, |first| first.min(element)));
        }
    }
}

fn note_nonfinite(lanes: &[Lane<'_>], start: usize, count: usize, seen: &mut Seen) {
    for element in start..start + count {
        for (input, lane) in lanes.iter().enumerate() {
            let width = lane.float.bytes();
            let bits = exact::read_bits(
                lane.float,
                &lane.bytes[element * width..(element + 1) * width],
            );
            if bits & lane.float.magnitude_mask() > lane.float.largest_finite() {
                seen.nonfinite_count += 1;
                seen.nonfinite.get_or_insert((element, input));
            }
        }
    }
}
