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

#![expect(
    clippy::redundant_closure,
    reason = "a closure marked inline(always) is compiled with the vector features of its caller; a function named alone may not be"
)]

use crate::dtype::Float;
use crate::exact::{self, Value};
use crate::weights::Row;
use pulp::Arch;

/// Elements of a block.
pub(crate) const BLOCK: usize = 1024;

/// One input of a run: its bytes and their format.
#[derive(Clone, Copy)]
pub(crate) struct Lane<'a> {
    pub bytes: &'a [u8],
    pub float: Float,
}

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
}

impl Weights {
    /// `k_i / K` of one input alone, for a sum that is never formed.
    pub fn one_of(row: &Row, input: usize) -> Self {
        let number = row.numbers()[input];
        Self {
            numbers: vec![number],
            as_f64: vec![number as f64],
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
        let mut start = 0;
        while start < elements {
            let count = BLOCK.min(elements - start);
            let span = self.span(lanes, start, count);
            if span.nonfinite {
                note_nonfinite(lanes, start, count, &mut seen);
            }
            for (weights, output) in rows.iter().zip(outputs.iter_mut()) {
                let output = &mut output[start * out.bytes()..(start + count) * out.bytes()];
                self.block(lanes, weights, span, start, count, out, output, &mut seen);
            }
            start += count;
        }
        seen
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

fn part(lane: Lane<'_>, start: usize, count: usize) -> Lane<'_> {
    let width = lane.float.bytes();
    Lane {
        bytes: &lane.bytes[start * width..(start + count) * width],
        float: lane.float,
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

/// Sums `weight * value` over the lanes, two lanes at a time so that the accumulator is read half as often.
///
/// Starts from -0, which is the neutral element of addition: a sum of -0 alone stays -0.
fn accumulate(arch: Arch, lanes: &[Lane<'_>], weights: &[f64], start: usize, sum: &mut [f64]) {
    let count = sum.len();
    sum.fill(-0.0);
    let mut input = 0;
    while input < lanes.len() {
        // A lane of weight 0 takes no part: 0 * -1 would turn a sum of -0 into +0.
        if weights[input] == 0.0 {
            input += 1;
            continue;
        }
        let lane = part(lanes[input], start, count);
        let run = lanes[input..]
            .iter()
            .zip(&weights[input..])
            .take(4)
            .take_while(|(other, weight)| other.float == lane.float && **weight != 0.0)
            .count();
        if run == 4 {
            let rest = [1, 2, 3].map(|next| part(lanes[input + next], start, count).bytes);
            let bytes = [lane.bytes, rest[0], rest[1], rest[2]];
            let weights = [
                weights[input],
                weights[input + 1],
                weights[input + 2],
                weights[input + 3],
            ];
            arch.dispatch(AddFour {
                float: lane.float,
                bytes,
                weights,
                sum,
            });
            input += 4;
        } else {
            arch.dispatch(AddOne {
                lane,
                weight: weights[input],
                sum,
            });
            input += 1;
        }
    }
}

/// Whether a run holds NaN or infinity.
pub(crate) fn has_nonfinite(arch: Arch, float: Float, bytes: &[u8]) -> bool {
    arch.dispatch(Extent { float, bytes }).1 > float.largest_finite()
}

/// Values `start..` of a lane as doubles; NaN and infinity of the narrow formats come out as numbers.
pub(crate) fn decode_into(arch: Arch, lane: Lane<'_>, start: usize, values: &mut [f64]) {
    let lane = part(lane, start, values.len());
    values.fill(-0.0);
    arch.dispatch(AddOne {
        lane,
        weight: 1.0,
        sum: values,
    });
}

/// Smallest non-zero and largest magnitude of a run, as bits; `(MAX, 0)` when all are zero.
struct Extent<'a> {
    float: Float,
    bytes: &'a [u8],
}

macro_rules! extent {
    ($bytes:expr, $word:ty, $signed:ty, $width:literal) => {{
        // `x - 1` with the sign cleared sends zero to the largest value, so the smallest non-zero magnitude
        // comes out of a plain minimum of signed words, which every vector unit has.
        let mask = <$signed>::MAX;
        let (mut smallest, mut largest) = (mask, 0);
        for bytes in $bytes.chunks_exact($width) {
            let magnitude = <$word>::from_le_bytes(bytes.try_into().unwrap_or([0; $width])) as $signed & mask;
            smallest = smallest.min(magnitude.wrapping_sub(1) & mask);
            largest = largest.max(magnitude);
        }
        (smallest as u64 + 1, largest as u64)
    }};
}

impl pulp::NullaryFnOnce for Extent<'_> {
    type Output = (u64, u64);

    #[inline(always)]
    fn call(self) -> (u64, u64) {
        match self.float {
            Float::F8E5M2 | Float::F8E4M3 => extent!(self.bytes, u8, i8, 1),
            Float::F16 | Float::BF16 => extent!(self.bytes, u16, i16, 2),
            Float::F32 => extent!(self.bytes, u32, i32, 4),
            Float::F64 => extent!(self.bytes, u64, i64, 8),
        }
    }
}

#[inline(always)]
fn from_bf16(bytes: [u8; 2]) -> f64 {
    f64::from(f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
}

#[inline(always)]
fn from_f16(bytes: [u8; 2]) -> f64 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    // The exponent field read with the bias of a single: 2^112 too small, subnormals included.
    let small = f32::from_bits(((bits & 0x8000) << 16) | ((bits & 0x7fff) << 13));
    f64::from(small * f32::from_bits((127 + 112) << 23))
}

#[inline(always)]
fn from_f32(bytes: [u8; 4]) -> f64 {
    f64::from(f32::from_le_bytes(bytes))
}

#[inline(always)]
fn from_f64(bytes: [u8; 8]) -> f64 {
    f64::from_le_bytes(bytes)
}

#[inline(always)]
fn from_e5m2(bytes: [u8; 1]) -> f64 {
    let bits = u32::from(bytes[0]);
    let small = f32::from_bits(((bits & 0x80) << 24) | ((bits & 0x7f) << 21));
    f64::from(small * f32::from_bits((127 + 112) << 23))
}

#[inline(always)]
fn from_e4m3(bytes: [u8; 1]) -> f64 {
    let bits = u32::from(bytes[0]);
    let small = f32::from_bits(((bits & 0x80) << 24) | ((bits & 0x7f) << 20));
    f64::from(small * f32::from_bits((127 + 120) << 23))
}

struct AddOne<'a> {
    lane: Lane<'a>,
    weight: f64,
    sum: &'a mut [f64],
}

#[inline(always)]
fn add_one<const W: usize>(
    bytes: &[u8],
    weight: f64,
    sum: &mut [f64],
    read: impl Fn([u8; W]) -> f64,
) {
    for (sum, value) in sum.iter_mut().zip(bytes.chunks_exact(W)) {
        *sum += read(value.try_into().unwrap_or([0; W])) * weight;
    }
}

impl pulp::NullaryFnOnce for AddOne<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (bytes, weight, sum) = (self.lane.bytes, self.weight, self.sum);
        match self.lane.float {
            Float::F8E5M2 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_e5m2(b),
            ),
            Float::F8E4M3 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_e4m3(b),
            ),
            Float::F16 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_f16(b),
            ),
            Float::BF16 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_bf16(b),
            ),
            Float::F32 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_f32(b),
            ),
            Float::F64 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_f64(b),
            ),
        }
    }
}

struct AddMagnitudes<'a> {
    lane: Lane<'a>,
    weight: f64,
    bound: &'a mut [f64],
}

impl pulp::NullaryFnOnce for AddMagnitudes<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (bytes, weight, sum) = (self.lane.bytes, self.weight, self.bound);
        match self.lane.float {
            Float::F8E5M2 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_e5m2(b).abs(),
            ),
            Float::F8E4M3 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_e4m3(b).abs(),
            ),
            Float::F16 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_f16(b).abs(),
            ),
            Float::BF16 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_bf16(b).abs(),
            ),
            Float::F32 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_f32(b).abs(),
            ),
            Float::F64 => add_one(
                bytes,
                weight,
                sum,
                #[inline(always)]
                |b| from_f64(b).abs(),
            ),
        }
    }
}

struct AddFour<'a> {
    float: Float,
    bytes: [&'a [u8]; 4],
    weights: [f64; 4],
    sum: &'a mut [f64],
}

#[inline(always)]
fn add_four<const W: usize>(
    bytes: [&[u8]; 4],
    weights: [f64; 4],
    sum: &mut [f64],
    read: impl Fn([u8; W]) -> f64,
) {
    let [a, b, c, d] = bytes.map(|bytes| bytes.chunks_exact(W));
    for ((((sum, a), b), c), d) in sum.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        let value = |bytes: &[u8]| read(bytes.try_into().unwrap_or([0; W]));
        *sum = *sum
            + value(a) * weights[0]
            + value(b) * weights[1]
            + value(c) * weights[2]
            + value(d) * weights[3];
    }
}

impl pulp::NullaryFnOnce for AddFour<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            float,
            bytes,
            weights,
            sum,
        } = self;
        match float {
            Float::F8E5M2 => add_four(
                bytes,
                weights,
                sum,
                #[inline(always)]
                |b| from_e5m2(b),
            ),
            Float::F8E4M3 => add_four(
                bytes,
                weights,
                sum,
                #[inline(always)]
                |b| from_e4m3(b),
            ),
            Float::F16 => add_four(
                bytes,
                weights,
                sum,
                #[inline(always)]
                |b| from_f16(b),
            ),
            Float::BF16 => add_four(
                bytes,
                weights,
                sum,
                #[inline(always)]
                |b| from_bf16(b),
            ),
            Float::F32 => add_four(
                bytes,
                weights,
                sum,
                #[inline(always)]
                |b| from_f32(b),
            ),
            Float::F64 => add_four(
                bytes,
                weights,
                sum,
                #[inline(always)]
                |b| from_f64(b),
            ),
        }
    }
}

/// Divides, rounds to the output format and writes; says whether something was too large for it.
struct Round<'a> {
    sum: &'a [f64],
    divisor: f64,
    out: Float,
    output: &'a mut [u8],
}

/// The nearest multiple of the output's step, ties to even, as a double.
///
/// Adding `1.5 * 2^52` steps and taking it away again rounds in the processor's own way; the sign of a
/// result of zero is put back.
#[inline(always)]
fn snap(value: f64, fraction_bits: u32, smallest_normal: f64) -> f64 {
    let binade = f64::from_bits(value.to_bits() & 0x7ff0_0000_0000_0000).max(smallest_normal);
    let anchor = binade * (1.5 * (1_u64 << (52 - fraction_bits)) as f64);
    let snapped = (value + anchor) - anchor;
    f64::from_bits((snapped.to_bits() & !(1 << 63)) | (value.to_bits() & (1 << 63)))
}

#[inline(always)]
fn round_with<const W: usize>(
    sum: &[f64],
    divisor: f64,
    output: &mut [u8],
    largest: f64,
    write: impl Fn(f64) -> ([u8; W], f64),
) -> bool {
    let mut worst = 0.0_f64;
    let mut place = |value: f64, bytes: &mut [u8]| {
        let (written, rounded) = write(value);
        bytes.copy_from_slice(&written);
        let magnitude = rounded.abs();
        worst = if magnitude > worst { magnitude } else { worst };
    };
    // Dividing by a power of two is multiplying by its inverse, exactly.
    if divisor.to_bits() & ((1 << 52) - 1) == 0 {
        let inverse = 1.0 / divisor;
        for (sum, bytes) in sum.iter().zip(output.chunks_exact_mut(W)) {
            place(sum * inverse, bytes);
        }
    } else {
        for (sum, bytes) in sum.iter().zip(output.chunks_exact_mut(W)) {
            place(sum / divisor, bytes);
        }
    }
    worst > largest
}

impl pulp::NullaryFnOnce for Round<'_> {
    type Output = bool;

    #[inline(always)]
    fn call(self) -> bool {
        let Self {
            sum,
            divisor,
            out,
            output,
        } = self;
        // Values beyond the largest are written as garbage here; the caller does those blocks again.
        match out {
            Float::F64 => round_with(
                sum,
                divisor,
                output,
                f64::MAX,
                #[inline(always)]
                |value| (value.to_le_bytes(), value),
            ),
            Float::F32 => round_with(
                sum,
                divisor,
                output,
                f64::from(f32::MAX),
                #[inline(always)]
                |value| {
                    let single = value as f32;
                    (single.to_le_bytes(), f64::from(single))
                },
            ),
            Float::BF16 => round_with(
                sum,
                divisor,
                output,
                f64::from(f32::from_bits(0x7f7f_0000)),
                #[inline(always)]
                |value| {
                    let snapped = snap(value, 7, f64::from(f32::MIN_POSITIVE));
                    (
                        (((snapped as f32).to_bits() >> 16) as u16).to_le_bytes(),
                        snapped,
                    )
                },
            ),
            Float::F16 => round_with(
                sum,
                divisor,
                output,
                65504.0,
                #[inline(always)]
                |value| {
                    let snapped = snap(value, 10, f64::from_bits((1023 - 14) << 52));
                    let bits = (snapped as f32 * f32::from_bits((127 - 112) << 23)).to_bits();
                    (
                        (((bits >> 16) & 0x8000) as u16 | ((bits >> 13) & 0x7fff) as u16)
                            .to_le_bytes(),
                        snapped,
                    )
                },
            ),
            Float::F8E5M2 => round_with(
                sum,
                divisor,
                output,
                57344.0,
                #[inline(always)]
                |value| {
                    let snapped = snap(value, 2, f64::from_bits((1023 - 14) << 52));
                    let bits = (snapped as f32 * f32::from_bits((127 - 112) << 23)).to_bits();
                    (
                        [((bits >> 24) & 0x80) as u8 | ((bits >> 21) & 0x7f) as u8],
                        snapped,
                    )
                },
            ),
            Float::F8E4M3 => round_with(
                sum,
                divisor,
                output,
                448.0,
                #[inline(always)]
                |value| {
                    let snapped = snap(value, 3, f64::from_bits((1023 - 6) << 52));
                    let bits = (snapped as f32 * f32::from_bits((127 - 120) << 23)).to_bits();
                    (
                        [((bits >> 24) & 0x80) as u8 | ((bits >> 20) & 0x7f) as u8],
                        snapped,
                    )
                },
            ),
        }
    }
}
