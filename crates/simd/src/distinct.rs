//! The distinct ids of a short row, rising.

/// The id that stands for none, and is left out.
const NONE: u32 = u32::MAX;

/// The longest row that is sorted by counting, for each id, the smaller ones, with vectors and without.
#[cfg(target_arch = "x86_64")]
pub(crate) const RANKED: usize = 32;
const RANKED_PORTABLE: usize = 16;

/// The distinct ids but `u32::MAX`, rising, into `out`.
///
/// Rows of a few dozen ids are sorted without branches on them: captions have a dozen words, and a
/// sort guesses wrong at each of them. An id goes to the place that is the number of smaller
/// ids, its twins to the same one; places left over hold `u32::MAX`, and are taken out.
pub fn distinct(ids: &[u32], out: &mut Vec<u32>) {
    #[cfg(target_arch = "x86_64")]
    if ids.len() <= RANKED && crate::avx2::available() {
        let mut places = [NONE; RANKED];
        crate::avx2::rank(ids, &mut places);
        return take_out(&places[..ids.len()], out);
    }
    distinct_portable(ids, out);
}

/// The safe twin of [`distinct`].
pub fn distinct_portable(ids: &[u32], out: &mut Vec<u32>) {
    if ids.len() <= RANKED_PORTABLE {
        let mut places = [NONE; RANKED_PORTABLE];
        rank_portable(ids, &mut places);
        return take_out(&places[..ids.len()], out);
    }
    out.clear();
    out.extend(ids.iter().filter(|&&id| id != NONE));
    out.sort_unstable();
    out.dedup();
}

/// Puts each id to its place.
fn rank_portable(ids: &[u32], places: &mut [u32; RANKED_PORTABLE]) {
    // With the top bit turned, ids compare as signed integers, which is one vector instruction.
    let mut keys = [i32::MAX; RANKED_PORTABLE];
    for (key, &id) in keys.iter_mut().zip(ids) {
        *key = (id ^ 1 << 31) as i32;
    }
    let mut ranks = [0_u32; RANKED_PORTABLE];
    for &smaller in &keys[..ids.len()] {
        for (rank, &key) in ranks.iter_mut().zip(&keys) {
            *rank += u32::from(smaller < key);
        }
    }
    for (&rank, &id) in ranks.iter().zip(ids) {
        places[rank as usize % RANKED_PORTABLE] = id;
    }
}

/// The places that are taken.
#[inline(always)]
fn take_out(places: &[u32], out: &mut Vec<u32>) {
    out.resize(places.len() + 1, 0);
    let mut filled = 0;
    for &id in places {
        out[filled] = id;
        filled += usize::from(id != NONE);
    }
    out.truncate(filled);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_short_row_is_sorted_as_a_long_one_is(
            ids in proptest::collection::vec(prop_oneof![4 => 0_u32..20, 1 => any::<u32>(), 1 => Just(NONE), 1 => Just(1 << 31)], 0..40),
        ) {
            let mut expected: Vec<u32> = ids.iter().copied().filter(|&id| id != NONE).collect();
            expected.sort_unstable();
            expected.dedup();
            for distinct in [distinct, distinct_portable] {
                let mut out = vec![9; 3];
                distinct(&ids, &mut out);
                prop_assert_eq!(&out, &expected);
            }
        }
    }
}
