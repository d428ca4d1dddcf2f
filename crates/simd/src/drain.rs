//! Takes the non-zero sums out of a dense row, in order, and leaves zeros.

use crate::isa::{Avx2, Avx512};

/// Ids that share one touched flag are `2^TOUCHED_SHIFT`.
pub const TOUCHED_SHIFT: u32 = 5;

/// A sum type: `u32` or `u64`.
pub trait Sum:
    Copy + Default + PartialEq + sealed::Vectors<Avx512> + sealed::Vectors<Avx2>
{
    /// The sum as `u64`.
    fn to_u64(self) -> u64;
}

impl Sum for u32 {
    #[inline(always)]
    fn to_u64(self) -> u64 {
        u64::from(self)
    }
}

impl Sum for u64 {
    #[inline(always)]
    fn to_u64(self) -> u64 {
        self
    }
}

pub(crate) mod sealed {
    /// The version for the instructions that `Isa` stands for.
    pub trait Vectors<Isa>: Sized {
        #[cfg(target_arch = "x86_64")]
        fn drain_vectors(
            sums: &mut [Self],
            base: u32,
            rights: &mut [u32],
            counts: &mut [u64],
        ) -> usize;
        #[cfg(target_arch = "x86_64")]
        fn drain_touched_vectors(
            sums: &mut [Self],
            touched: &mut [u8],
            base: u32,
            rights: &mut [u32],
            counts: &mut [u64],
        ) -> usize;
    }
}

/// Writes `base + i` (modulo 2³²) and `sums[i]` for every `sums[i]` that is not zero, rising; how many. All sums
/// are zero afterwards.
///
/// # Panics
/// When an output is shorter than the sums and 16 more.
pub fn drain<S: Sum>(sums: &mut [S], base: u32, rights: &mut [u32], counts: &mut [u64]) -> usize {
    assert!(rights.len() >= sums.len() + 16 && counts.len() >= sums.len() + 16);
    #[cfg(target_arch = "x86_64")]
    {
        if crate::avx512::available() {
            return <S as sealed::Vectors<Avx512>>::drain_vectors(sums, base, rights, counts);
        }
        if crate::avx2::available() {
            return <S as sealed::Vectors<Avx2>>::drain_vectors(sums, base, rights, counts);
        }
    }
    drain_portable(sums, base, rights, counts)
}

/// The safe twin of [`drain`].
///
/// # Panics
/// As [`drain`].
pub fn drain_portable<S: Sum>(
    sums: &mut [S],
    base: u32,
    rights: &mut [u32],
    counts: &mut [u64],
) -> usize {
    let mut filled = 0;
    for (index, sum) in (0..).zip(sums.iter_mut()) {
        rights[filled] = base.wrapping_add(index);
        counts[filled] = sum.to_u64();
        filled += usize::from(*sum != S::default());
    }
    sums.fill(S::default());
    filled
}

/// As [`drain`], but looks only at groups of 32 sums whose flag in `touched` is not zero, and
/// clears the flags. `touched[i]` is for `sums[32 * i..32 * (i + 1)]`; sums of other groups must
/// be zero.
///
/// # Panics
/// When `sums` is not 32 times as long as `touched`, or an output is too short as in [`drain`].
pub fn drain_touched<S: Sum>(
    sums: &mut [S],
    touched: &mut [u8],
    base: u32,
    rights: &mut [u32],
    counts: &mut [u64],
) -> usize {
    assert_eq!(sums.len(), touched.len() << TOUCHED_SHIFT);
    assert!(rights.len() >= sums.len() + 16 && counts.len() >= sums.len() + 16);
    #[cfg(target_arch = "x86_64")]
    {
        if crate::avx512::available() {
            return <S as sealed::Vectors<Avx512>>::drain_touched_vectors(
                sums, touched, base, rights, counts,
            );
        }
        if crate::avx2::available() {
            return <S as sealed::Vectors<Avx2>>::drain_touched_vectors(
                sums, touched, base, rights, counts,
            );
        }
    }
    drain_touched_portable(sums, touched, base, rights, counts)
}

/// The safe twin of [`drain_touched`].
///
/// # Panics
/// As [`drain_touched`].
pub fn drain_touched_portable<S: Sum>(
    sums: &mut [S],
    touched: &mut [u8],
    base: u32,
    rights: &mut [u32],
    counts: &mut [u64],
) -> usize {
    let mut filled = 0;
    for_each_touched(touched, |group| {
        let start = group << TOUCHED_SHIFT;
        filled += drain_portable(
            &mut sums[start..start + (1 << TOUCHED_SHIFT)],
            base.wrapping_add(start as u32),
            &mut rights[filled..],
            &mut counts[filled..],
        );
    });
    filled
}

/// Calls `each` with the index of every non-zero byte, rising, and zeroes the bytes.
///
/// Most bytes of a short row are zero, so 64 are looked at together.
#[inline(always)]
pub(crate) fn for_each_touched(touched: &mut [u8], mut each: impl FnMut(usize)) {
    let (lines, rest) = touched.as_chunks_mut::<64>();
    let mut first = 0;
    for line in lines {
        let (words, _) = line.as_chunks_mut::<8>();
        if words
            .iter()
            .fold(0, |any, word| any | u64::from_le_bytes(*word))
            != 0
        {
            for (index, word) in words.iter_mut().enumerate() {
                let mut flags = u64::from_le_bytes(std::mem::take(word));
                while flags != 0 {
                    let byte = flags.trailing_zeros() / 8;
                    each(first + index * 8 + byte as usize);
                    flags &= !(0xff << (8 * byte));
                }
            }
        }
        first += 64;
    }
    for (index, flag) in rest.iter_mut().enumerate() {
        if std::mem::take(flag) != 0 {
            each(first + index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check<S: Sum + std::fmt::Debug>(sums: &[S]) {
        let expected: Vec<(u32, u64)> = (7..)
            .zip(sums)
            .filter(|(_, sum)| **sum != S::default())
            .map(|(id, sum)| (id, sum.to_u64()))
            .collect();
        let flags: Vec<u8> = sums
            .chunks(32)
            .map(|group| u8::from(group.iter().any(|sum| *sum != S::default())))
            .collect();
        let whole_groups = sums.len().is_multiple_of(32);
        #[cfg(target_arch = "x86_64")]
        let avx2 = crate::avx2::available();
        #[cfg(not(target_arch = "x86_64"))]
        let avx2 = false;
        for way in 0..6 {
            if way >= 3 && !whole_groups || way % 3 == 2 && !avx2 {
                continue;
            }
            let (mut left, mut touched) = (sums.to_vec(), flags.clone());
            let (mut rights, mut counts) = (vec![0; sums.len() + 48], vec![0; sums.len() + 48]);
            let found = match way {
                0 => drain(&mut left, 7, &mut rights, &mut counts),
                1 => drain_portable(&mut left, 7, &mut rights, &mut counts),
                3 => drain_touched(&mut left, &mut touched, 7, &mut rights, &mut counts),
                4 => drain_touched_portable(&mut left, &mut touched, 7, &mut rights, &mut counts),
                #[cfg(target_arch = "x86_64")]
                2 => <S as sealed::Vectors<Avx2>>::drain_vectors(
                    &mut left,
                    7,
                    &mut rights,
                    &mut counts,
                ),
                #[cfg(target_arch = "x86_64")]
                _ => <S as sealed::Vectors<Avx2>>::drain_touched_vectors(
                    &mut left,
                    &mut touched,
                    7,
                    &mut rights,
                    &mut counts,
                ),
                #[cfg(not(target_arch = "x86_64"))]
                _ => continue,
            };
            let pairs: Vec<_> = rights.into_iter().zip(counts).take(found).collect();
            assert_eq!(pairs, expected, "way {way}");
            assert!(left.iter().all(|sum| *sum == S::default()));
            assert!(way < 3 || touched.iter().all(|flag| *flag == 0));
        }
    }

    proptest! {
        #[test]
        fn all_ways_agree(
            mut sums in proptest::collection::vec(prop_oneof![3 => Just(0_u32), 1 => 1_u32..5, 1 => Just(u32::MAX)], 0..400),
            times in 1_usize..12, gap in 0_usize..300, whole: bool,
        ) {
            sums = sums.repeat(times);
            let end = (gap + 70).min(sums.len());
            sums[gap.min(end)..end].fill(0);
            if whole {
                sums.truncate(sums.len() / 32 * 32);
            }
            check(&sums);
            check(&sums.iter().map(|&sum| u64::from(sum) << 20).collect::<Vec<_>>());
        }
    }
}
