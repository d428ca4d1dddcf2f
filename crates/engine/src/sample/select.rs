//! Random numbers from identities, and exact ranks by counting.

/// A number that sorts as the `f64` that it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(u64);

impl Key {
    /// NaN is not given.
    pub(super) fn of(value: f64) -> Self {
        // Negative zero is zero.
        let bits = (value + 0.0).to_bits();
        let sign = 1 << 63;
        Self(if bits & sign == 0 { bits | sign } else { !bits })
    }

    fn value(self) -> f64 {
        let sign = 1 << 63;
        f64::from_bits(if self.0 & sign == 0 {
            !self.0
        } else {
            self.0 ^ sign
        })
    }
}

/// Inside (0, 1), from 52 bits.
pub(super) fn uniform(hash: u64) -> f64 {
    ((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

/// From the standard Gumbel distribution.
pub(super) fn gumbel(hash: u64) -> f64 {
    -(-uniform(hash).ln()).ln()
}

/// Bits that one pass decides.
const STEP: u32 = 16;

/// Looks for the keys of some ranks, leading bits first.
pub(super) struct Ranks {
    /// For each rank: leading bits known so far, and its rank among the keys that share them.
    known: Vec<(u64, u64)>,
    bits: u32,
}

/// How many keys have which next bits, for each rank.
pub(super) struct Histogram {
    known: Vec<u64>,
    bits: u32,
    counts: Vec<Vec<u64>>,
}

impl Histogram {
    pub(super) fn add(&mut self, key: Key) {
        let next = (key.0 >> (64 - STEP - self.bits)) & ((1 << STEP) - 1);
        for (known, counts) in self.known.iter().zip(&mut self.counts) {
            // Shifting by 64 is no shift at all.
            if self.bits == 0 || key.0 >> (64 - self.bits) == *known {
                counts[next as usize] += 1;
            }
        }
    }
}

impl Ranks {
    pub(super) fn new(ranks: &[u64]) -> Self {
        Self {
            known: ranks.iter().map(|rank| (0, *rank)).collect(),
            bits: 0,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.bits == 64
    }

    pub(super) fn empty(&self) -> Histogram {
        Histogram {
            known: self.known.iter().map(|(known, _)| *known).collect(),
            bits: self.bits,
            counts: vec![vec![0; 1 << STEP]; self.known.len()],
        }
    }

    /// Takes the counts of all parts, in any order.
    pub(super) fn narrow(&mut self, parts: Vec<Histogram>) {
        for (index, (known, rank)) in self.known.iter_mut().enumerate() {
            let mut next = 0_u64;
            for bucket in 0..1_usize << STEP {
                let count: u64 = parts.iter().map(|part| part.counts[index][bucket]).sum();
                if *rank < count {
                    next = bucket as u64;
                    break;
                }
                *rank -= count;
            }
            *known = *known << STEP | next;
        }
        self.bits += STEP;
    }

    pub(super) fn values(&self) -> Vec<f64> {
        self.known
            .iter()
            .map(|(known, _)| Key(*known).value())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranks_are_those_of_sorting_however_the_values_are_cut(
            values in proptest::collection::vec(prop_oneof![-3_i32..3, any::<i32>()], 1..60),
            cut in 0_usize..60,
            ranks in proptest::collection::vec(any::<prop::sample::Index>(), 1..4),
        ) {
            let values: Vec<f64> = values.iter().map(|v| f64::from(*v) / 7.0).collect();
            let ranks: Vec<u64> = ranks.iter().map(|index| index.index(values.len()) as u64).collect();
            let mut search = Ranks::new(&ranks);
            while !search.is_done() {
                let (left, right) = values.split_at(cut.min(values.len()));
                let parts = [right, left].map(|part| {
                    let mut histogram = search.empty();
                    part.iter().for_each(|value| histogram.add(Key::of(*value)));
                    histogram
                });
                search.narrow(parts.into());
            }
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let expected: Vec<f64> = ranks.iter().map(|rank| sorted[*rank as usize] + 0.0).collect();
            prop_assert_eq!(search.values(), expected);
        }
    }

    #[test]
    fn hashes_give_numbers_inside_the_open_interval() {
        assert!(uniform(0) > 0.0 && uniform(u64::MAX) < 1.0);
        assert!(gumbel(0).is_finite() && gumbel(u64::MAX).is_finite());
    }
}
