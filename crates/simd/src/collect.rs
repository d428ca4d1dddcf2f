//! Gathers the partners of many positions of a token stream into one dense list.
//!
//! In: slots (0 ends a row, 1 is a gap, others are codes), positions of one code, a window.
//! Out: code and weight of every partner that is to be counted, in no stated order.

use crate::isa::{Avx2, Avx512};

/// Slots that must stand before the first and after the last position: the reach of wide loads.
pub const MARGIN: usize = 64;

/// Positions that are prefetched ahead of the one being read.
#[cfg(target_arch = "x86_64")]
pub(crate) const PREFETCH_AHEAD: usize = 32;

/// The largest window that can be collected.
pub const LARGEST_WINDOW: usize = 64;

/// A slot and weight type: `u16` or `u32`.
pub trait Lane: Copy + Ord + Default + sealed::Vectors<Avx512> + sealed::Vectors<Avx2> {
    /// The value as `u32`.
    fn to_u32(self) -> u32;
    /// The value from `u32`, cut to the type's bits.
    fn from_u32(value: u32) -> Self;
}

impl Lane for u16 {
    #[inline(always)]
    fn to_u32(self) -> u32 {
        u32::from(self)
    }
    #[inline(always)]
    fn from_u32(value: u32) -> Self {
        value as Self
    }
}

impl Lane for u32 {
    #[inline(always)]
    fn to_u32(self) -> u32 {
        self
    }
    #[inline(always)]
    fn from_u32(value: u32) -> Self {
        value
    }
}

pub(crate) mod sealed {
    /// The version for the instructions that `Isa` stands for.
    pub trait Vectors<Isa>: Sized {
        #[cfg(target_arch = "x86_64")]
        fn collect_vectors(
            slots: &[Self],
            positions: &[u32],
            take: usize,
            window: &super::WindowLanes<Self>,
            floor: Self,
            codes: &mut [Self],
            weights: &mut [Self],
        ) -> usize;

        #[cfg(target_arch = "x86_64")]
        fn followers_vectors(
            slots: &[Self],
            positions: &[u32],
            longest: usize,
            codes: &mut [Self],
        ) -> (usize, usize);
    }
}

/// A window laid out for the vector loops.
#[derive(Debug, Clone)]
pub struct WindowLanes<L> {
    pub(crate) size: usize,
    pub(crate) forward: bool,
    pub(crate) backward: bool,
    /// Weight at distance `d` is `weights[MARGIN + d]` ahead and `weights[MARGIN - d]` behind.
    pub(crate) weights: Vec<L>,
    /// Bit `d - 1` is set for every distance ahead that counts.
    pub(crate) ahead: u64,
    /// Bit `MARGIN - d` is set for every distance behind that counts.
    pub(crate) behind: u64,
}

impl<L: Lane> WindowLanes<L> {
    /// A window with the weight of each distance (`[0]` for distance 1), looking ahead, behind or
    /// both. `None` when it is empty, larger than 64, or a weight does not fit the type.
    #[must_use]
    pub fn new(distance_weights: &[u32], forward: bool, backward: bool) -> Option<Self> {
        let size = distance_weights.len();
        if size == 0 || size > LARGEST_WINDOW {
            return None;
        }
        let mut weights = vec![L::default(); 2 * MARGIN + 1];
        let (mut ahead, mut behind) = (0, 0);
        for (index, &weight) in distance_weights.iter().enumerate() {
            let lane = L::from_u32(weight);
            if lane.to_u32() != weight {
                return None;
            }
            weights[MARGIN + 1 + index] = lane;
            weights[MARGIN - 1 - index] = lane;
            ahead |= u64::from(forward) << index;
            behind |= u64::from(backward) << (MARGIN - 1 - index);
        }
        Some(Self {
            size,
            forward,
            backward,
            weights,
            ahead,
            behind,
        })
    }

    /// Room that [`collect`] needs in its outputs for so many positions.
    #[must_use]
    pub fn room(&self, positions: usize) -> usize {
        positions * 2 * self.size + 2 * MARGIN
    }
}

/// Writes code and weight of every partner of `positions[..take]` to `codes` and `weights`; how many.
///
/// A partner stands within the window ahead with a code of at least `floor`, or behind with a
/// code above `floor` (so that equal codes are met once), in the same row. `floor` is at least 2
/// with both sides; use 1 with one side to the rear, 2 ahead. `positions` beyond `take` are only
/// prefetched.
///
/// # Panics
/// When a position is nearer than [`MARGIN`] to an end of `slots`, when `take` exceeds the
/// positions, or an output has less than [`WindowLanes::room`].
pub fn collect<L: Lane>(
    slots: &[L],
    positions: &[u32],
    take: usize,
    window: &WindowLanes<L>,
    floor: L,
    codes: &mut [L],
    weights: &mut [L],
) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if crate::avx512::available() {
            return <L as sealed::Vectors<Avx512>>::collect_vectors(
                slots, positions, take, window, floor, codes, weights,
            );
        }
        if crate::avx2::available() {
            return <L as sealed::Vectors<Avx2>>::collect_vectors(
                slots, positions, take, window, floor, codes, weights,
            );
        }
    }
    collect_portable(slots, positions, take, window, floor, codes, weights)
}

/// The safe twin of [`collect`].
///
/// # Panics
/// As [`collect`].
pub fn collect_portable<L: Lane>(
    slots: &[L],
    positions: &[u32],
    take: usize,
    window: &WindowLanes<L>,
    floor: L,
    codes: &mut [L],
    weights: &mut [L],
) -> usize {
    let mut filled = 0;
    let units = &window.weights[MARGIN + 1..];
    for &position in &positions[..take] {
        let position = position as usize;
        let around = &slots[position - MARGIN..position + MARGIN + 1];
        if window.forward {
            for (&code, &weight) in around[MARGIN + 1..][..window.size].iter().zip(units) {
                if code == L::default() {
                    break;
                }
                codes[filled] = code;
                weights[filled] = weight;
                filled += usize::from(code >= floor);
            }
        }
        if window.backward {
            let behind = around[MARGIN - window.size..MARGIN].iter().rev();
            for (&code, &weight) in behind.zip(units) {
                if code == L::default() {
                    break;
                }
                codes[filled] = code;
                weights[filled] = weight;
                filled += usize::from(code > floor);
            }
        }
    }
    filled
}

/// Copies what stands behind each position in its row to `codes`, one position after the other,
/// as long as another `longest` slots fit: how many positions were taken, and how many codes written.
///
/// # Panics
/// When a row has no end, a row is longer than `longest` and fills `codes`, or fewer than 32 slots
/// follow the end of the last row.
pub fn followers<L: Lane>(
    slots: &[L],
    positions: &[u32],
    longest: usize,
    codes: &mut [L],
) -> (usize, usize) {
    #[cfg(target_arch = "x86_64")]
    {
        if crate::avx512::available() {
            return <L as sealed::Vectors<Avx512>>::followers_vectors(
                slots, positions, longest, codes,
            );
        }
        if crate::avx2::available() {
            return <L as sealed::Vectors<Avx2>>::followers_vectors(
                slots, positions, longest, codes,
            );
        }
    }
    followers_portable(slots, positions, longest, codes)
}

/// The safe twin of [`followers`].
///
/// # Panics
/// As [`followers`].
pub fn followers_portable<L: Lane>(
    slots: &[L],
    positions: &[u32],
    longest: usize,
    codes: &mut [L],
) -> (usize, usize) {
    let (mut filled, mut taken) = (0, 0);
    while taken < positions.len() && filled + longest + 32 <= codes.len() {
        let mut from = positions[taken] as usize + 1;
        while slots[from] != L::default() {
            codes[filled] = slots[from];
            filled += 1;
            from += 1;
        }
        taken += 1;
    }
    (taken, filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(codes: &[u32], weights: &[u32]) -> Vec<(u32, u32)> {
        let mut pairs: Vec<_> = codes.iter().copied().zip(weights.iter().copied()).collect();
        pairs.sort_unstable();
        pairs
    }

    fn all<L: Lane>(
        codes: &[u32],
        size: usize,
        sides: (bool, bool),
        floor: u32,
    ) -> Vec<Vec<(u32, u32)>> {
        let mut slots = vec![L::default(); MARGIN];
        slots.extend(codes.iter().map(|&code| L::from_u32(code)));
        slots.extend([L::default(); MARGIN]);
        let positions: Vec<u32> = (0..codes.len())
            .filter(|&at| codes[at] != 0)
            .map(|at| (at + MARGIN) as u32)
            .collect();
        let units: Vec<u32> = (0..size as u32)
            .map(|distance| 60_000 - 7 * distance)
            .collect();
        let window = WindowLanes::<L>::new(&units, sides.0, sides.1).unwrap();
        let room = window.room(positions.len());
        type Collect<L> = fn(&[L], &[u32], usize, &WindowLanes<L>, L, &mut [L], &mut [L]) -> usize;
        let mut ways = vec![collect as Collect<L>, collect_portable];
        #[cfg(target_arch = "x86_64")]
        if crate::avx2::available() {
            ways.push(<L as sealed::Vectors<Avx2>>::collect_vectors);
        }
        let of_way = |collect: Collect<L>| {
            let (mut codes, mut weights) = (vec![L::default(); room], vec![L::default(); room]);
            let found = collect(
                &slots,
                &positions,
                positions.len(),
                &window,
                L::from_u32(floor),
                &mut codes,
                &mut weights,
            );
            let wide = |lanes: &[L]| {
                lanes[..found]
                    .iter()
                    .map(|lane| lane.to_u32())
                    .collect::<Vec<_>>()
            };
            sorted(&wide(&codes), &wide(&weights))
        };
        ways.into_iter().map(of_way).collect()
    }

    proptest! {
        #[test]
        fn fast_and_portable_agree(
            codes in proptest::collection::vec(prop_oneof![1 => Just(0_u32), 1 => Just(1), 12 => 2_u32..9, 1 => 65_534_u32..65_536], 0..300),
            size in prop_oneof![3 => 1_usize..18, 1 => 18_usize..65],
            sides in prop_oneof![3 => Just((true, true)), 1 => Just((true, false)), 1 => Just((false, true))],
            floor in prop_oneof![4 => 1_u32..9, 1 => 65_534_u32..65_536],
        ) {
            let ways = [all::<u16>(&codes, size, sides, floor), all::<u32>(&codes, size, sides, floor)].concat();
            for way in &ways {
                prop_assert_eq!(way, &ways[1]);
            }
        }
    }

    fn follow<L: Lane>(codes: &[u32], room: usize) -> Vec<Vec<(usize, Vec<u32>)>> {
        let mut slots: Vec<L> = codes.iter().map(|&code| L::from_u32(code)).collect();
        slots.extend([L::default(); MARGIN]);
        let longest = codes
            .split(|&code| code == 0)
            .map(<[u32]>::len)
            .max()
            .unwrap_or(0);
        let positions: Vec<u32> = (0..codes.len() as u32)
            .filter(|&at| codes[at as usize] != 0)
            .collect();
        type Follow<L> = fn(&[L], &[u32], usize, &mut [L]) -> (usize, usize);
        let mut ways = vec![followers as Follow<L>, followers_portable];
        #[cfg(target_arch = "x86_64")]
        if crate::avx2::available() {
            ways.push(<L as sealed::Vectors<Avx2>>::followers_vectors);
        }
        let of_way = |follow: Follow<L>| {
            let (mut rest, mut steps) = (positions.as_slice(), Vec::new());
            while !rest.is_empty() {
                let mut out = vec![L::default(); longest + 32 + room];
                let (taken, filled) = follow(&slots, rest, longest, &mut out);
                steps.push((
                    taken,
                    out[..filled].iter().map(|code| code.to_u32()).collect(),
                ));
                rest = &rest[taken..];
            }
            steps
        };
        ways.into_iter().map(of_way).collect()
    }

    proptest! {
        #[test]
        fn followers_fast_and_portable_agree(
            codes in proptest::collection::vec(prop_oneof![1 => Just(0_u32), 40 => 2_u32..9], 0..400), room in 0_usize..90,
        ) {
            let flat = |steps: &[(usize, Vec<u32>)]| steps.iter().flat_map(|step| step.1.clone()).collect::<Vec<_>>();
            let ways = [follow::<u16>(&codes, room), follow::<u32>(&codes, room)].concat();
            for way in &ways {
                prop_assert_eq!(flat(way), flat(&ways[1]));
            }
            let pairs: usize = codes.split(|&code| code == 0).map(|row| row.len() * row.len().saturating_sub(1) / 2).sum();
            prop_assert_eq!(flat(&ways[0]).len(), pairs);
        }
    }

    #[test]
    fn weights_that_do_not_fit_are_refused() {
        assert!(WindowLanes::<u16>::new(&[65_536], true, true).is_none());
        assert!(WindowLanes::<u32>::new(&[65_536], true, true).is_some());
        assert!(WindowLanes::<u32>::new(&[1; 65], true, true).is_none());
        assert!(WindowLanes::<u32>::new(&[], true, true).is_none());
    }
}
