//! The AVX-512 versions. Intrinsics without pointers are safe inside a function that enables
//! their features; unsafe are the loads and stores, each of a slice whose length was checked
//! just before, and the calls into these functions, each behind [`available`].

#![allow(
    unsafe_code,
    reason = "vector loads, stores and calls; see the SAFETY lines"
)]

use std::arch::x86_64::*;

use crate::collect::{MARGIN, PREFETCH_AHEAD, WindowLanes, sealed};
use crate::drain::{TOUCHED_SHIFT, for_each_touched};

/// Whether the processor has all that the functions here enable.
#[inline]
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
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

#[inline(always)]
fn prefetch<T>(slots: &[T], position: usize, reach: usize) {
    for at in [position.wrapping_sub(reach), position + reach] {
        if let Some(slot) = slots.get(at) {
            // SAFETY: a prefetch reads nothing, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(slot).cast()) };
        }
    }
}

macro_rules! collector {
    ($name:ident, $near:ident, $follow:ident, $lane:ty, $lanes:literal, $mask:ty, $load:ident, $store:ident, $splat:ident,
     $testn:ident, $ge:ident, $gt:ident, $compress:ident) => {
        /// Windows of up to `SIDE` vectors a side.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
        fn $name<const SIDE: usize>(
            slots: &[$lane],
            positions: &[u32],
            take: usize,
            window: &WindowLanes<$lane>,
            floor: $lane,
            codes: &mut [$lane],
            weights: &mut [$lane],
        ) -> usize {
            const LANES: usize = $lanes;
            let floors = $splat(floor as _);
            let mut ahead_weights = [$splat(0); SIDE];
            let mut behind_weights = [$splat(0); SIDE];
            for side in 0..SIDE {
                let ahead = &window.weights[MARGIN + 1 + side * LANES..][..LANES];
                let behind = &window.weights[MARGIN - (side + 1) * LANES..][..LANES];
                // SAFETY: both slices hold exactly one vector of lanes.
                unsafe {
                    ahead_weights[side] = $load(ahead.as_ptr().cast());
                    behind_weights[side] = $load(behind.as_ptr().cast());
                }
            }
            let mut filled = 0;
            for (index, &position) in positions[..take].iter().enumerate() {
                if let Some(&later) = positions.get(index + PREFETCH_AHEAD) {
                    prefetch(slots, later as usize, window.size);
                }
                let position = position as usize;
                let around = &slots[position - MARGIN..position + MARGIN + 1];
                let codes = &mut codes[filled..filled + 2 * MARGIN];
                let weights = &mut weights[filled..filled + 2 * MARGIN];
                let mut here = 0;
                let mut write = |keep: $mask, lanes: __m512i, units: __m512i| {
                    let codes = &mut codes[here..here + LANES];
                    let weights = &mut weights[here..here + LANES];
                    // SAFETY: both slices hold exactly one vector of lanes.
                    unsafe {
                        $store(codes.as_mut_ptr().cast(), $compress(keep, lanes));
                        $store(weights.as_mut_ptr().cast(), $compress(keep, units));
                    }
                    here += keep.count_ones() as usize;
                };
                if window.forward {
                    let mut lanes = [$splat(0); SIDE];
                    let (mut ends, mut kept) = (0_u64, 0_u64);
                    for side in 0..SIDE {
                        let ahead = &around[MARGIN + 1 + side * LANES..][..LANES];
                        // SAFETY: the slice holds exactly one vector of lanes.
                        lanes[side] = unsafe { $load(ahead.as_ptr().cast()) };
                        ends |= u64::from($testn(lanes[side], lanes[side])) << (side * LANES);
                        kept |= u64::from($ge(lanes[side], floors)) << (side * LANES);
                    }
                    kept &= before_first(ends) & window.ahead;
                    for side in 0..SIDE {
                        write(
                            (kept >> (side * LANES)) as $mask,
                            lanes[side],
                            ahead_weights[side],
                        );
                    }
                }
                if window.backward {
                    let mut lanes = [$splat(0); SIDE];
                    let (mut ends, mut kept) = (0_u64, 0_u64);
                    for side in 0..SIDE {
                        let behind = &around[MARGIN - (side + 1) * LANES..][..LANES];
                        // SAFETY: the slice holds exactly one vector of lanes.
                        lanes[side] = unsafe { $load(behind.as_ptr().cast()) };
                        let shift = MARGIN - (side + 1) * LANES;
                        ends |= u64::from($testn(lanes[side], lanes[side])) << shift;
                        kept |= u64::from($gt(lanes[side], floors)) << shift;
                    }
                    kept &= after_last(ends) & window.behind;
                    for side in 0..SIDE {
                        let shift = MARGIN - (side + 1) * LANES;
                        write((kept >> shift) as $mask, lanes[side], behind_weights[side]);
                    }
                }
                filled += here;
            }
            filled
        }

        /// Windows that fit one vector with the position in its middle.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
        fn $near(
            slots: &[$lane],
            positions: &[u32],
            take: usize,
            window: &WindowLanes<$lane>,
            floor: $lane,
            codes: &mut [$lane],
            weights: &mut [$lane],
        ) -> usize {
            const LANES: usize = $lanes;
            const BEHIND: usize = LANES / 2 - 1;
            let floors = $splat(floor as _);
            let units = &window.weights[MARGIN - BEHIND..][..LANES];
            // SAFETY: the slice holds exactly one vector of lanes.
            let units = unsafe { $load(units.as_ptr().cast()) };
            let behind_lanes = (window.behind >> (MARGIN - BEHIND)) as $mask;
            let ahead_lanes = window.ahead << (BEHIND + 1);
            let mut filled = 0;
            for (index, &position) in positions[..take].iter().enumerate() {
                if let Some(&later) = positions.get(index + PREFETCH_AHEAD) {
                    prefetch(slots, later as usize, window.size);
                }
                let position = position as usize;
                let around = &slots[position - BEHIND..position - BEHIND + LANES];
                // SAFETY: the slice holds exactly one vector of lanes.
                let lanes = unsafe { $load(around.as_ptr().cast()) };
                let ends = u64::from($testn(lanes, lanes));
                let ahead = before_first(ends >> (BEHIND + 1)) << (BEHIND + 1) & ahead_lanes;
                let behind = after_last(ends & ((1 << BEHIND) - 1)) as $mask & behind_lanes;
                let keep = $ge(lanes, floors) & ahead as $mask | $gt(lanes, floors) & behind;
                let codes = &mut codes[filled..filled + LANES];
                let weights = &mut weights[filled..filled + LANES];
                // SAFETY: both slices hold exactly one vector of lanes.
                unsafe {
                    $store(codes.as_mut_ptr().cast(), $compress(keep, lanes));
                    $store(weights.as_mut_ptr().cast(), $compress(keep, units));
                }
                filled += keep.count_ones() as usize;
            }
            filled
        }

        /// The rest of the row behind each position.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
        fn $follow(
            slots: &[$lane],
            positions: &[u32],
            longest: usize,
            codes: &mut [$lane],
        ) -> (usize, usize) {
            const LANES: usize = $lanes;
            let (mut filled, mut taken) = (0, 0);
            while taken < positions.len() && filled + longest + LANES <= codes.len() {
                if let Some(&later) = positions.get(taken + PREFETCH_AHEAD) {
                    prefetch(slots, later as usize, 0);
                }
                let mut from = positions[taken] as usize + 1;
                loop {
                    let row = &slots[from..from + LANES];
                    let out = &mut codes[filled..filled + LANES];
                    // SAFETY: both slices hold exactly one vector of lanes.
                    let ends = unsafe {
                        let lanes = $load(row.as_ptr().cast());
                        $store(out.as_mut_ptr().cast(), lanes);
                        $testn(lanes, lanes)
                    };
                    if ends != 0 {
                        filled += ends.trailing_zeros() as usize;
                        break;
                    }
                    filled += LANES;
                    from += LANES;
                }
                taken += 1;
            }
            (taken, filled)
        }

        impl sealed::Vectors<crate::isa::Avx512> for $lane {
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
                let sides = window.size.div_ceil($lanes);
                // SAFETY: the processor has the features, as asserted above.
                unsafe {
                    match sides {
                        1 if window.size < $lanes / 2 => {
                            $near(slots, positions, take, window, floor, codes, weights)
                        }
                        1 => $name::<1>(slots, positions, take, window, floor, codes, weights),
                        2 => $name::<2>(slots, positions, take, window, floor, codes, weights),
                        _ => $name::<{ MARGIN / $lanes }>(
                            slots, positions, take, window, floor, codes, weights,
                        ),
                    }
                }
            }
        }
    };
}

collector!(
    collect_narrow,
    collect_narrow_near,
    follow_narrow,
    u16,
    32,
    u32,
    _mm512_loadu_epi16,
    _mm512_storeu_epi16,
    _mm512_set1_epi16,
    _mm512_testn_epi16_mask,
    _mm512_cmpge_epu16_mask,
    _mm512_cmpgt_epu16_mask,
    _mm512_maskz_compress_epi16
);
collector!(
    collect_wide,
    collect_wide_near,
    follow_wide,
    u32,
    16,
    u16,
    _mm512_loadu_epi32,
    _mm512_storeu_epi32,
    _mm512_set1_epi32,
    _mm512_testn_epi32_mask,
    _mm512_cmpge_epu32_mask,
    _mm512_cmpgt_epu32_mask,
    _mm512_maskz_compress_epi32
);

/// Drains 16 sums of 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
fn drain16(sums: &mut [u32; 16], base: u32, rights: &mut [u32], counts: &mut [u64]) -> usize {
    let (rights, counts) = (&mut rights[..16], &mut counts[..16]);
    // SAFETY: sums, rights and counts hold 16 numbers each, as their types and the slicing above say;
    // one vector holds 16 of 32 bits or 8 of 64.
    unsafe {
        let lanes = _mm512_loadu_epi32(sums.as_ptr().cast());
        let full = _mm512_test_epi32_mask(lanes, lanes);
        if full == 0 {
            return 0;
        }
        _mm512_storeu_epi32(sums.as_mut_ptr().cast(), _mm512_setzero_si512());
        let ids = _mm512_add_epi32(
            _mm512_set1_epi32(base as i32),
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
        );
        let packed = _mm512_maskz_compress_epi32(full, lanes);
        _mm512_storeu_epi32(
            rights.as_mut_ptr().cast(),
            _mm512_maskz_compress_epi32(full, ids),
        );
        let low = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(packed));
        let high = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<1>(packed));
        _mm512_storeu_epi64(counts.as_mut_ptr().cast(), low);
        _mm512_storeu_epi64(counts[8..].as_mut_ptr().cast(), high);
        full.count_ones() as usize
    }
}

/// Drains 16 sums of 64 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
fn drain16_wide(sums: &mut [u64; 16], base: u32, rights: &mut [u32], counts: &mut [u64]) -> usize {
    let mut filled = 0;
    for half in 0..2 {
        let sums = &mut sums[half * 8..half * 8 + 8];
        let (rights, counts) = (
            &mut rights[filled..filled + 8],
            &mut counts[filled..filled + 8],
        );
        // SAFETY: sums, rights and counts hold 8 numbers each.
        unsafe {
            let lanes = _mm512_loadu_epi64(sums.as_ptr().cast());
            let full = _mm512_test_epi64_mask(lanes, lanes);
            if full == 0 {
                continue;
            }
            _mm512_storeu_epi64(sums.as_mut_ptr().cast(), _mm512_setzero_si512());
            let ids = _mm256_add_epi32(
                _mm256_set1_epi32(base.wrapping_add(8 * half as u32) as i32),
                _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0),
            );
            _mm256_storeu_epi32(
                rights.as_mut_ptr().cast(),
                _mm256_maskz_compress_epi32(full, ids),
            );
            _mm512_storeu_epi64(
                counts.as_mut_ptr().cast(),
                _mm512_maskz_compress_epi64(full, lanes),
            );
            filled += full.count_ones() as usize;
        }
    }
    filled
}

macro_rules! drainer {
    ($sum:ty, $drain16:ident, $drain:ident, $touched:ident) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
        fn $drain(sums: &mut [$sum], base: u32, rights: &mut [u32], counts: &mut [u64]) -> usize {
            let (mut filled, mut id) = (0, base);
            let (groups, rest) = sums.as_chunks_mut::<16>();
            for group in groups {
                filled += $drain16(group, id, &mut rights[filled..], &mut counts[filled..]);
                id = id.wrapping_add(16);
            }
            filled + crate::drain_portable(rest, id, &mut rights[filled..], &mut counts[filled..])
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
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
                let (groups, _) = sums[start..start + (1 << TOUCHED_SHIFT)].as_chunks_mut::<16>();
                let mut id = base.wrapping_add(start as u32);
                for group in groups {
                    filled += $drain16(group, id, &mut rights[filled..], &mut counts[filled..]);
                    id = id.wrapping_add(16);
                }
            });
            filled
        }

        impl crate::drain::sealed::Vectors<crate::isa::Avx512> for $sum {
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

drainer!(u32, drain16, drain_narrow, drain_narrow_touched);
drainer!(u64, drain16_wide, drain_wide, drain_wide_touched);
