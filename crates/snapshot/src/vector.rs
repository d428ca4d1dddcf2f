//! The loops over many values that the compiler turns into vector instructions: decoding, adding with
//! weights, finding the range of exponents, rounding to a format.
//!
//! `pulp` compiles each for several instruction sets and picks one at run time; all give the same bits,
//! since nothing here depends on the width of a vector and no multiplication is fused with an addition.

#![expect(
    clippy::redundant_closure,
    reason = "a closure marked inline(always) is compiled with the vector features of its caller; a function named alone may not be"
)]

use crate::dtype::Float;
use pulp::Arch;

/// One input of a run: its bytes and their format.
#[derive(Clone, Copy)]
pub(crate) struct Lane<'a> {
    pub bytes: &'a [u8],
    pub float: Float,
}

pub(crate) fn part(lane: Lane<'_>, start: usize, count: usize) -> Lane<'_> {
    let width = lane.float.bytes();
    Lane {
        bytes: &lane.bytes[start * width..(start + count) * width],
        float: lane.float,
    }
}

/// Sums `weight * value` over the lanes, four lanes at a time so that the accumulator is read less often.
///
/// Starts from -0, which is the neutral element of addition: a sum of -0 alone stays -0.
pub(crate) fn accumulate(
    arch: Arch,
    lanes: &[Lane<'_>],
    weights: &[f64],
    start: usize,
    sum: &mut [f64],
) {
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
pub(crate) struct Extent<'a> {
    pub float: Float,
    pub bytes: &'a [u8],
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

pub(crate) struct AddMagnitudes<'a> {
    pub lane: Lane<'a>,
    pub weight: f64,
    pub bound: &'a mut [f64],
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

/// The loop of [`AddFour`] with how a value is weighted, so that nothing is multiplied when all weights are 1.
#[inline(always)]
fn add_four_by<const W: usize>(
    bytes: [&[u8]; 4],
    sum: &mut [f64],
    value: impl Fn(usize, [u8; W]) -> f64,
) {
    let [a, b, c, d] = bytes.map(|bytes| bytes.chunks_exact(W));
    for ((((sum, a), b), c), d) in sum.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        let word = |bytes: &[u8]| bytes.try_into().unwrap_or([0; W]);
        *sum = *sum + value(0, word(a)) + value(1, word(b)) + value(2, word(c)) + value(3, word(d));
    }
}

#[inline(always)]
fn add_four<const W: usize>(
    bytes: [&[u8]; 4],
    weights: [f64; 4],
    sum: &mut [f64],
    read: impl Fn([u8; W]) -> f64,
) {
    if weights == [1.0; 4] {
        add_four_by(
            bytes,
            sum,
            #[inline(always)]
            |_, word| read(word),
        );
    } else {
        add_four_by(
            bytes,
            sum,
            #[inline(always)]
            |lane, word| read(word) * weights[lane],
        );
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
pub(crate) struct Round<'a> {
    pub sum: &'a [f64],
    pub divisor: f64,
    pub out: Float,
    pub output: &'a mut [u8],
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
