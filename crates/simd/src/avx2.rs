//! The AVX2 versions, for processors without AVX-512 (AMD before Zen 4, Intel's small ones). What AVX-512
//! compresses with one instruction is here a shuffle, looked up by the mask of eight lanes.
//!
//! Unsafe are, as there, the loads and stores, each of a slice whose length was checked just
//! before, and the calls into these functions, each behind [`available`].

#![allow(
    unsafe_code,
    reason = "vector loads, stores and calls; see the SAFETY lines"
)]

use std::arch::x86_64::*;

use crate::collect::{Lane, MARGIN, PREFETCH_AHEAD, WindowLanes, sealed};
use crate::distinct::RANKED;
use crate::drain::{TOUCHED_SHIFT, for_each_touched};
use crate::sort::COUNTED;

/// Whether the processor has all that the functions here enable.
#[inline]
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

/// Lanes that are looked at and packed together.
const LANES: usize = 8;

/// By mask of eight lanes: the lanes that are set, rising, then zeros.
static SET: [[u8; LANES]; 256] = {
    let mut table = [[0; LANES]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut filled) = (0, 0);
        while lane < LANES {
            if mask >> lane & 1 == 1 {
                table[mask][filled] = lane as u8;
                filled += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// The same in bytes of lanes of 16 bits.
static SET_BYTES: [[u8; 2 * LANES]; 256] = {
    let mut table = [[0; 2 * LANES]; 256];
    let mut mask = 0;
    while mask < 256 {
        let mut place = 0;
        while place < LANES {
            table[mask][2 * place] = 2 * SET[mask][place];
            table[mask][2 * place + 1] = 2 * SET[mask][place] + 1;
            place += 1;
        }
        mask += 1;
    }
    table
};

/// By mask of four lanes of 64 bits, the same in halves of lanes.
static SET_HALVES: [[u8; LANES]; 16] = {
    let mut table = [[0; LANES]; 16];
    let mut mask = 0;
    while mask < 16 {
        let mut place = 0;
        while place < LANES / 2 {
            table[mask][2 * place] = 2 * SET[mask][place];
            table[mask][2 * place + 1] = 2 * SET[mask][place] + 1;
            place += 1;
        }
        mask += 1;
    }
    table
};

/// Eight lanes of 16 bits.
mod narrow {
    use super::*;

    pub(super) type Eight = __m128i;

    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn load(lanes: &[u16; LANES]) -> Eight {
        // SAFETY: the array has as many bytes as the vector.
        unsafe { _mm_loadu_si128(lanes.as_ptr().cast()) }
    }

    /// A bit for each lane that is not below its floor, and one for each that is zero.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn look<const N: usize>(lanes: &[Eight; N], floors: &[Eight; N]) -> (u64, u64) {
        let zero = _mm_setzero_si128();
        let (mut kept, mut ends) = ([zero; N], [zero; N]);
        for side in 0..N {
            kept[side] = _mm_cmpeq_epi16(_mm_max_epu16(lanes[side], floors[side]), lanes[side]);
            ends[side] = _mm_cmpeq_epi16(lanes[side], zero);
        }
        (bits(&kept), bits(&ends))
    }

    /// A bit a lane, from lanes of ones or zeros.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn bits<const N: usize>(lanes: &[Eight; N]) -> u64 {
        let mut bits = 0;
        for pair in 0..N.div_ceil(2) {
            let low = lanes[2 * pair];
            let high = lanes.get(2 * pair + 1).copied();
            let bytes = _mm_packs_epi16(low, high.unwrap_or(_mm_setzero_si128()));
            bits |= u64::from(_mm_movemask_epi8(bytes) as u32) << (16 * pair);
        }
        bits
    }

    /// Stores the lanes of `mask` first; what follows them is anything.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn pack(mask: u8, lanes: [Eight; 2], out: [&mut [u16; LANES]; 2]) {
        let order = &SET_BYTES[usize::from(mask)];
        // SAFETY: the arrays have as many bytes as the vectors.
        unsafe {
            let order = _mm_loadu_si128(order.as_ptr().cast());
            for (lanes, out) in lanes.into_iter().zip(out) {
                _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_shuffle_epi8(lanes, order));
            }
        }
    }

    pub(super) const COPIED: usize = 16;

    /// Copies lanes, and says how many stand before the first zero.
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn copy(from: &[u16; COPIED], to: &mut [u16; COPIED]) -> usize {
        // SAFETY: the arrays have as many bytes as the vector.
        unsafe {
            let lanes = _mm256_loadu_si256(from.as_ptr().cast());
            _mm256_storeu_si256(to.as_mut_ptr().cast(), lanes);
            let ends = _mm256_cmpeq_epi16(lanes, _mm256_setzero_si256());
            (_mm256_movemask_epi8(ends) as u32).trailing_zeros() as usize / 2
        }
    }
}

/// Eight lanes of 32 bits.
mod wide {
    use super::*;

    pub(super) type Eight = __m256i;

    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn load(lanes: &[u32; LANES]) -> Eight {
        // SAFETY: the array has as many bytes as the vector.
        unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) }
    }

    /// As [`narrow::look`].
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn look<const N: usize>(lanes: &[Eight; N], floors: &[Eight; N]) -> (u64, u64) {
        let (mut kept, mut ends) = (0, 0);
        for side in 0..N {
            let most = _mm256_max_epu32(lanes[side], floors[side]);
            kept |= bits(_mm256_cmpeq_epi32(most, lanes[side])) << (LANES * side);
            ends |= bits(_mm256_cmpeq_epi32(lanes[side], _mm256_setzero_si256())) << (LANES * side);
        }
        (kept, ends)
    }

    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn bits(lanes: Eight) -> u64 {
        u64::from(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)) as u32)
    }

    /// As [`narrow::pack`].
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn pack(mask: u8, lanes: [Eight; 2], out: [&mut [u32; LANES]; 2]) {
        let order = order(&SET[usize::from(mask)]);
        for (lanes, out) in lanes.into_iter().zip(out) {
            let lanes = _mm256_permutevar8x32_epi32(lanes, order);
            // SAFETY: the array has as many bytes as the vector.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), lanes) };
        }
    }

    pub(super) const COPIED: usize = 8;

    /// As [`narrow::copy`].
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn copy(from: &[u32; COPIED], to: &mut [u32; COPIED]) -> usize {
        // SAFETY: the arrays have as many bytes as the vector.
        unsafe {
            let lanes = _mm256_loadu_si256(from.as_ptr().cast());
            _mm256_storeu_si256(to.as_mut_ptr().cast(), lanes);
            let ends = bits(_mm256_cmpeq_epi32(lanes, _mm256_setzero_si256()));
            // Without an end, as many as were copied.
            (ends | 1 << COPIED).trailing_zeros() as usize
        }
    }
}

/// Eight bytes as lanes of 32 bits.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn order(lanes: &[u8; LANES]) -> __m256i {
    _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*lanes)))
}

/// Lanes below the first set bit of `ends`.
#[inline(always)]
fn before_first(ends: u64) -> u64 {
    (ends ^ ends.wrapping_sub(1)) >> 1 | (u64::from(ends == 0) << 63)
}

/// Lanes above the last set bit of `ends`.
#[inline(always)]
fn after_last(ends: u64) -> u64 {
    (!0_u64).checked_shl(64 - ends.leading_zeros()).unwrap_or(0)
}

/// The slots that a window looks at, one behind the other: at most 64 lanes, the position among them
/// if it looks both ways.
struct Span {
    /// Lanes up to the position and itself: how far before the slot behind it the span begins.
    back: usize,
    /// Lanes behind the position and itself, if it looks ahead as well.
    split: usize,
    ahead: u64,
    behind: u64,
    lanes: usize,
}

impl Span {
    fn new(size: usize, forward: bool, backward: bool) -> Self {
        let back = if backward { size + 1 } else { 0 };
        let split = if forward { back } else { 0 };
        let reach = !0_u64 >> (64 - size);
        Self {
            back,
            split,
            ahead: if forward { reach << split } else { 0 },
            behind: if backward { reach } else { 0 },
            lanes: if forward { split + size } else { size },
        }
    }
}

#[inline(always)]
fn prefetch<T>(slots: &[T], position: usize, reach: usize) {
    crate::prefetch(slots, position.wrapping_sub(reach));
    crate::prefetch(slots, position + reach);
}

macro_rules! collector {
    ($lane:ty, $kind:ident, $span:ident, $collect:ident, $follow:ident) => {
        /// A window whose span is `N` times eight lanes.
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
        fn $span<const N: usize>(
            slots: &[$lane],
            positions: &[u32],
            take: usize,
            (window, span): (&WindowLanes<$lane>, &Span),
            floor: $lane,
            codes: &mut [$lane],
            weights: &mut [$lane],
        ) -> usize {
            // Behind, a code must be above the floor, that is, not below the next one.
            let (above, behind) = match floor.checked_add(1) {
                Some(above) => (above, span.behind),
                None => (floor, 0),
            };
            let units = &window.weights[MARGIN + 1 - span.back..];
            let mut floors = [$kind::load(&[floor; LANES]); N];
            let mut spread = floors;
            for side in 0..N {
                let mut eight = [floor; LANES];
                for (lane, floor) in eight.iter_mut().enumerate() {
                    if side * LANES + lane < span.back {
                        *floor = above;
                    }
                }
                floors[side] = $kind::load(&eight);
                spread[side] = $kind::load(&eights(units)[side]);
            }
            let mut filled = 0;
            for (index, &position) in positions[..take].iter().enumerate() {
                if let Some(&later) = positions.get(index + PREFETCH_AHEAD) {
                    prefetch(slots, later as usize, window.size);
                }
                let start = position as usize + 1 - span.back;
                let around = &eights(&slots[start..start + N * LANES])[..N];
                let mut lanes = [floors[0]; N];
                for side in 0..N {
                    lanes[side] = $kind::load(&around[side]);
                }
                let (kept, ends) = $kind::look(&lanes, &floors);
                let ahead = before_first(ends >> span.split) << span.split & span.ahead;
                let kept = kept & (after_last(ends & span.behind) & behind | ahead);
                for side in 0..N {
                    let mask = (kept >> (side * LANES)) as u8;
                    let codes = first_eight(&mut codes[filled..]);
                    let weights = first_eight(&mut weights[filled..]);
                    $kind::pack(mask, [lanes[side], spread[side]], [codes, weights]);
                    filled += mask.count_ones() as usize;
                }
            }
            filled
        }

        /// Windows of any size.
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
        fn $collect(
            slots: &[$lane],
            positions: &[u32],
            take: usize,
            window: &WindowLanes<$lane>,
            floor: $lane,
            codes: &mut [$lane],
            weights: &mut [$lane],
        ) -> usize {
            let both = window.forward && window.backward;
            let sides = if both && 2 * window.size + 1 > 64 {
                // Too wide to be seen at once.
                [(true, false), (false, true)]
            } else {
                [(window.forward, window.backward), (false, false)]
            };
            let mut filled = 0;
            for (forward, backward) in sides {
                if !forward && !backward {
                    continue;
                }
                let span = &Span::new(window.size, forward, backward);
                let (codes, weights) = (&mut codes[filled..], &mut weights[filled..]);
                let eights = span.lanes.div_ceil(LANES);
                let plan = (window, span);
                filled += match eights {
                    1 => $span::<1>(slots, positions, take, plan, floor, codes, weights),
                    2 => $span::<2>(slots, positions, take, plan, floor, codes, weights),
                    3 => $span::<3>(slots, positions, take, plan, floor, codes, weights),
                    4 => $span::<4>(slots, positions, take, plan, floor, codes, weights),
                    5 | 6 => $span::<6>(slots, positions, take, plan, floor, codes, weights),
                    _ => $span::<8>(slots, positions, take, plan, floor, codes, weights),
                };
            }
            filled
        }

        /// The rest of the row behind each position.
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
        fn $follow(
            slots: &[$lane],
            positions: &[u32],
            longest: usize,
            codes: &mut [$lane],
        ) -> (usize, usize) {
            const COPIED: usize = $kind::COPIED;
            let (mut filled, mut taken) = (0, 0);
            while taken < positions.len() && filled + longest + COPIED <= codes.len() {
                if let Some(&later) = positions.get(taken + PREFETCH_AHEAD) {
                    prefetch(slots, later as usize, 0);
                }
                let mut from = positions[taken] as usize + 1;
                loop {
                    let row = slots[from..].first_chunk().expect(ROOM);
                    let out = codes[filled..].first_chunk_mut().expect(ROOM);
                    let copied = $kind::copy(row, out);
                    filled += copied;
                    from += copied;
                    if copied < COPIED {
                        break;
                    }
                }
                taken += 1;
            }
            (taken, filled)
        }

        impl sealed::Vectors<crate::isa::Avx2> for $lane {
            fn followers_vectors(
                slots: &[Self],
                positions: &[u32],
                longest: usize,
                codes: &mut [Self],
            ) -> (usize, usize) {
                assert!(available());
                // SAFETY: the processor has the features, as asserted above.
                unsafe { $follow(slots, positions, longest, codes) }
            }

            fn collect_vectors(
                slots: &[Self],
                positions: &[u32],
                take: usize,
                window: &WindowLanes<Self>,
                floor: Self,
                codes: &mut [Self],
                weights: &mut [Self],
            ) -> usize {
                assert!(available());
                // SAFETY: the processor has the features, as asserted above.
                unsafe { $collect(slots, positions, take, window, floor, codes, weights) }
            }
        }
    };
}

const ROOM: &str = "callers leave room for whole vectors, see MARGIN and WindowLanes::room";

#[inline(always)]
fn eights<T>(lanes: &[T]) -> &[[T; LANES]] {
    lanes.as_chunks().0
}

#[inline(always)]
fn first_eight<T: Lane>(lanes: &mut [T]) -> &mut [T; LANES] {
    lanes.first_chunk_mut().expect(ROOM)
}

collector!(u16, narrow, span_narrow, collect_narrow, follow_narrow);
collector!(u32, wide, span_wide, collect_wide, follow_wide);

/// Drains 8 sums of 32 bits.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn drain8(sums: &mut [u32; LANES], base: u32, rights: &mut [u32], counts: &mut [u64]) -> usize {
    let (rights, counts) = (&mut rights[..LANES], &mut counts[..LANES]);
    let zero = _mm256_setzero_si256();
    // SAFETY: sums, rights and counts hold 8 numbers each; one vector holds 8 of 32 bits or 4 of 64.
    unsafe {
        let lanes = _mm256_loadu_si256(sums.as_ptr().cast());
        let empty = _mm256_castsi256_ps(_mm256_cmpeq_epi32(lanes, zero));
        let full = !(_mm256_movemask_ps(empty) as u8);
        // No way around when all are zero: at that branch the processor would guess wrong too often.
        _mm256_storeu_si256(sums.as_mut_ptr().cast(), zero);
        // The lanes that are set are the distances from `base`, too.
        let order = order(&SET[usize::from(full)]);
        let packed = _mm256_permutevar8x32_epi32(lanes, order);
        let ids = _mm256_add_epi32(_mm256_set1_epi32(base as i32), order);
        _mm256_storeu_si256(rights.as_mut_ptr().cast(), ids);
        let low = _mm256_cvtepu32_epi64(_mm256_castsi256_si128(packed));
        let high = _mm256_cvtepu32_epi64(_mm256_extracti128_si256::<1>(packed));
        _mm256_storeu_si256(counts.as_mut_ptr().cast(), low);
        _mm256_storeu_si256(counts[4..].as_mut_ptr().cast(), high);
        full.count_ones() as usize
    }
}

/// Drains 8 sums of 64 bits.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn drain8_wide(
    sums: &mut [u64; LANES],
    base: u32,
    rights: &mut [u32],
    counts: &mut [u64],
) -> usize {
    let zero = _mm256_setzero_si256();
    let mut filled = 0;
    for half in 0..2 {
        let sums = &mut sums[half * 4..half * 4 + 4];
        let (rights, counts) = (
            &mut rights[filled..filled + 4],
            &mut counts[filled..filled + 4],
        );
        // SAFETY: sums, rights and counts hold 4 numbers each.
        unsafe {
            let lanes = _mm256_loadu_si256(sums.as_ptr().cast());
            let empty = _mm256_castsi256_pd(_mm256_cmpeq_epi64(lanes, zero));
            let full = !(_mm256_movemask_pd(empty) as u8) & 15;
            _mm256_storeu_si256(sums.as_mut_ptr().cast(), zero);
            let halves = order(&SET_HALVES[usize::from(full)]);
            let packed = _mm256_permutevar8x32_epi32(lanes, halves);
            _mm256_storeu_si256(counts.as_mut_ptr().cast(), packed);
            let first = base.wrapping_add(4 * half as u32) as i32;
            let set = _mm256_castsi256_si128(order(&SET[usize::from(full)]));
            let ids = _mm_add_epi32(_mm_set1_epi32(first), set);
            _mm_storeu_si128(rights.as_mut_ptr().cast(), ids);
            filled += full.count_ones() as usize;
        }
    }
    filled
}

macro_rules! drainer {
    ($sum:ty, $drain8:ident, $drain:ident, $touched:ident) => {
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
        fn $drain(sums: &mut [$sum], base: u32, rights: &mut [u32], counts: &mut [u64]) -> usize {
            let (mut filled, mut id) = (0, base);
            let (groups, rest) = sums.as_chunks_mut::<LANES>();
            for group in groups {
                filled += $drain8(group, id, &mut rights[filled..], &mut counts[filled..]);
                id = id.wrapping_add(LANES as u32);
            }
            filled + crate::drain_portable(rest, id, &mut rights[filled..], &mut counts[filled..])
        }

        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
        fn $touched(
            sums: &mut [$sum],
            touched: &mut [u8],
            base: u32,
            rights: &mut [u32],
            counts: &mut [u64],
        ) -> usize {
            let mut filled = 0;
            for_each_touched(touched, |group| {
                let start = group << TOUCHED_SHIFT;
                let sums = &mut sums[start..start + (1 << TOUCHED_SHIFT)];
                let mut id = base.wrapping_add(start as u32);
                for group in sums.as_chunks_mut::<LANES>().0 {
                    filled += $drain8(group, id, &mut rights[filled..], &mut counts[filled..]);
                    id = id.wrapping_add(LANES as u32);
                }
            });
            filled
        }

        impl crate::drain::sealed::Vectors<crate::isa::Avx2> for $sum {
            fn drain_vectors(
                sums: &mut [Self],
                base: u32,
                rights: &mut [u32],
                counts: &mut [u64],
            ) -> usize {
                assert!(available());
                // SAFETY: the processor has the features, as asserted above.
                unsafe { $drain(sums, base, rights, counts) }
            }

            fn drain_touched_vectors(
                sums: &mut [Self],
                touched: &mut [u8],
                base: u32,
                rights: &mut [u32],
                counts: &mut [u64],
            ) -> usize {
                assert!(available());
                // SAFETY: the processor has the features, as asserted above.
                unsafe { $touched(sums, touched, base, rights, counts) }
            }
        }
    };
}

drainer!(u32, drain8, drain_narrow, drain_narrow_touched);
drainer!(u64, drain8_wide, drain_wide, drain_wide_touched);

/// Puts each id to the place that is the number of smaller ones; `places` holds `u32::MAX` before.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn rank_eights<const N: usize>(ids: &[u32], places: &mut [u32; RANKED]) {
    // With the top bit turned, ids compare as signed integers.
    let turned = _mm256_set1_epi32(i32::MIN);
    let mut held = [[u32::MAX; LANES]; N];
    held.as_flattened_mut()[..ids.len()].copy_from_slice(ids);
    let mut keys = [turned; N];
    for (key, held) in keys.iter_mut().zip(&held) {
        *key = _mm256_xor_si256(wide::load(held), turned);
    }
    let mut ranks = [_mm256_setzero_si256(); N];
    for &id in ids {
        let smaller = _mm256_xor_si256(_mm256_set1_epi32(id as i32), turned);
        for (rank, &key) in ranks.iter_mut().zip(&keys) {
            *rank = _mm256_sub_epi32(*rank, _mm256_cmpgt_epi32(key, smaller));
        }
    }
    for (held, &ranks) in held.iter_mut().zip(&ranks) {
        // SAFETY: the array has as many bytes as the vector.
        unsafe { _mm256_storeu_si256(held.as_mut_ptr().cast(), ranks) };
    }
    for (&rank, &id) in held.as_flattened().iter().zip(ids) {
        places[rank as usize % RANKED] = id;
    }
}

/// [`rank_eights`] for any row of at most [`RANKED`] ids.
///
/// # Panics
/// When there are more, or the processor has not the features.
pub(crate) fn rank(ids: &[u32], places: &mut [u32; RANKED]) {
    assert!(available());
    // SAFETY: the processor has the features, as asserted above.
    unsafe {
        match ids.len().div_ceil(LANES) {
            0 | 1 => rank_eights::<1>(ids, places),
            2 => rank_eights::<2>(ids, places),
            3 => rank_eights::<3>(ids, places),
            _ => rank_eights::<{ RANKED / LANES }>(ids, places),
        }
    }
}

/// Eight keys at a time are compared with all others, for so many times eight.
const GROUPS: usize = 6;

/// For the keys from `first` on, `N` times eight, how many of the first `length` keys are smaller.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn ranks_from<const N: usize>(
    keys: &[i32; COUNTED],
    length: usize,
    first: usize,
    ranks: &mut [i32; COUNTED],
) {
    let from = first / LANES;
    let mut held = [_mm256_setzero_si256(); N];
    let mut smaller = held;
    for (held, keys) in held.iter_mut().zip(&eights(keys)[from..from + N]) {
        // SAFETY: the array has as many bytes as the vector.
        *held = unsafe { _mm256_loadu_si256(keys.as_ptr().cast()) };
    }
    for &other in &keys[..length] {
        let other = _mm256_set1_epi32(other);
        for (smaller, &held) in smaller.iter_mut().zip(&held) {
            *smaller = _mm256_sub_epi32(*smaller, _mm256_cmpgt_epi32(held, other));
        }
    }
    let ranks = &mut ranks.as_chunks_mut::<LANES>().0[from..from + N];
    for (ranks, &smaller) in ranks.iter_mut().zip(&smaller) {
        // SAFETY: the array has as many bytes as the vector.
        unsafe { _mm256_storeu_si256(ranks.as_mut_ptr().cast(), smaller) };
    }
}

/// For each of the first `length` keys, how many of these are smaller.
///
/// # Panics
/// When there are fewer keys, or the processor has not the features.
pub(crate) fn ranks(keys: &[i32; COUNTED], length: usize, ranks: &mut [i32; COUNTED]) {
    assert!(available());
    let eights = length.div_ceil(LANES);
    let mut done = 0;
    while done < eights {
        let (first, left) = (done * LANES, eights - done);
        // SAFETY: the processor has the features, as asserted above.
        unsafe {
            match left {
                1 => ranks_from::<1>(keys, length, first, ranks),
                2 => ranks_from::<2>(keys, length, first, ranks),
                3 => ranks_from::<3>(keys, length, first, ranks),
                4 => ranks_from::<4>(keys, length, first, ranks),
                5 => ranks_from::<5>(keys, length, first, ranks),
                _ => ranks_from::<GROUPS>(keys, length, first, ranks),
            }
        }
        done += left.min(GROUPS);
    }
}
