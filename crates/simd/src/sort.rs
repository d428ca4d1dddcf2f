//! Sorts short lists of floats without a branch that depends on them.

/// The longest list that is sorted by counting for each value the smaller ones, with vectors and without.
#[cfg(target_arch = "x86_64")]
pub(crate) const COUNTED: usize = 256;
const COUNTED_PORTABLE: usize = 96;

/// Sorts values by [`f32::total_cmp`]. NaN of other bits than [`f32::NAN`] may become that one.
pub fn sort_floats(values: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if values.len() <= COUNTED && crate::avx2::available() {
        return sort_counted::<COUNTED>(values, crate::avx2::ranks);
    }
    sort_floats_portable(values);
}

/// The safe twin of [`sort_floats`].
pub fn sort_floats_portable(values: &mut [f32]) {
    if values.len() <= COUNTED_PORTABLE {
        return sort_counted::<COUNTED_PORTABLE>(values, ranks_portable);
    }
    values.sort_unstable_by(f32::total_cmp);
}

/// For each of the first `length` keys, how many of these are smaller; what stands behind them is the
/// greatest key.
fn ranks_portable(
    keys: &[i32; COUNTED_PORTABLE],
    length: usize,
    ranks: &mut [i32; COUNTED_PORTABLE],
) {
    const LANES: usize = 8;
    let lanes = &keys[..length.next_multiple_of(LANES)];
    for (rank, key) in ranks.iter_mut().zip(&keys[..length]) {
        let mut smaller = [0_i32; LANES];
        for others in lanes.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                smaller[lane] += i32::from(others[lane] < *key);
            }
        }
        *rank = smaller.iter().sum();
    }
}

#[inline(always)]
fn sort_counted<const MOST: usize>(
    values: &mut [f32],
    rank: impl FnOnce(&[i32; MOST], usize, &mut [i32; MOST]),
) {
    // The bits of a float as an integer of the same order; what fills up the lanes is the greatest.
    let mut keys = [i32::MAX; MOST];
    for (key, value) in keys.iter_mut().zip(&*values) {
        let bits = value.to_bits() as i32;
        *key = bits ^ ((bits >> 31) as u32 >> 1) as i32;
    }
    let mut ranks = [0_i32; MOST];
    rank(&keys, values.len(), &mut ranks);
    // Equal values have one rank; the places behind it stay NaN, and take the value before them.
    let mut sorted = [f32::NAN; MOST];
    for (rank, value) in ranks.iter().zip(&*values) {
        sorted[*rank as usize] = *value;
    }
    let mut before = f32::NAN;
    for (value, sorted) in values.iter_mut().zip(sorted) {
        if !sorted.is_nan() {
            before = sorted;
        }
        *value = before;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn short_lists_are_sorted_as_long_ones_are(
            values in proptest::collection::vec(prop_oneof![
                3 => (-5_i8..5).prop_map(f32::from),
                3 => any::<f32>().prop_filter("no NaN", |value| !value.is_nan()),
                1 => prop_oneof![Just(-0.0), Just(f32::INFINITY), Just(f32::NEG_INFINITY)],
            ], 0..300),
        ) {
            let mut expected = values.clone();
            expected.sort_by(f32::total_cmp);
            for sort in [sort_floats, sort_floats_portable] {
                let mut found = values.clone();
                sort(&mut found);
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&found), bits(&expected));
            }
        }
    }
}
