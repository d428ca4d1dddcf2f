use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::sink::PairColumns;

const TERMS: u32 = 40;

fn settings(exact_terms: u32, buckets: u32, hashes: u8) -> TailSettings {
    TailSettings {
        exact_terms,
        buckets,
        hashes,
    }
}

/// Pairs as sorted rows.
fn feed(tail: &Tail, pairs: &BTreeMap<(u32, u32), u64>, sink: &mut PairColumns) {
    let mut split = tail.split(sink);
    let lefts: HashSet<u32> = pairs.keys().map(|pair| pair.0).collect();
    let mut lefts: Vec<u32> = lefts.into_iter().collect();
    lefts.sort_unstable();
    for left in lefts {
        let row = pairs.range((left, 0)..=(left, u32::MAX));
        let (right, counts): (Vec<u32>, Vec<u64>) =
            row.map(|((_, right), count)| (*right, *count)).unzip();
        split.row(left, &right, &counts).unwrap();
    }
    split.finish().unwrap();
}

fn sketch(settings: &TailSettings, pairs: &BTreeMap<(u32, u32), u64>) -> Tail {
    let tail = Tail::new(settings, TERMS).unwrap();
    feed(&tail, pairs, &mut PairColumns::default());
    tail
}

fn bytes(tail: &mut Tail) -> Vec<u8> {
    let mut bytes = Vec::new();
    tail.save(&mut bytes).unwrap();
    bytes
}

fn pairs() -> impl Strategy<Value = BTreeMap<(u32, u32), u64>> {
    prop::collection::btree_map((0..TERMS, 0..TERMS), 1_u64..1000, 0..200)
}

proptest! {
    #[test]
    fn exact_pairs_go_on_and_the_others_into_the_sketch(pairs in pairs(), exact in 0..TERMS + 3) {
        let mut tail = Tail::new(&settings(exact, 64, 3), TERMS).unwrap();
        let mut head = PairColumns::default();
        feed(&tail, &pairs, &mut head);
        let is_exact = |(x, y): (u32, u32)| x < exact && y < exact;
        let expected: Vec<_> = pairs.iter().filter(|(pair, _)| is_exact(**pair)).collect();
        let found = head.left.iter().zip(&head.right).zip(&head.counts);
        prop_assert_eq!(found.map(|((x, y), n)| ((*x, *y), *n)).collect::<Vec<_>>(),
            expected.iter().map(|(pair, n)| (**pair, **n)).collect::<Vec<_>>());
        let others: Vec<_> = pairs.iter().filter(|(pair, _)| !is_exact(**pair)).collect();
        prop_assert_eq!(tail.total(), others.iter().map(|(_, n)| **n).sum::<u64>());
        prop_assert_eq!(tail.sums().total().unwrap(), tail.total());
        for (pair, n) in &others {
            prop_assert!(tail.estimate(pair.0, pair.1) >= **n);
        }
        for id in 0..TERMS {
            let left = others.iter().filter(|(pair, _)| pair.0 == id).map(|(_, n)| **n).sum::<u64>();
            let right = others.iter().filter(|(pair, _)| pair.1 == id).map(|(_, n)| **n).sum::<u64>();
            prop_assert_eq!((tail.sums().left[id as usize], tail.sums().right[id as usize]), (left, right));
        }
        for hash in 0..3 {
            let (cells, total) = HashRow::cells(&tail.row(hash).unwrap().image()).unwrap();
            prop_assert_eq!(cells.iter().sum::<u64>(), total);
            prop_assert_eq!(total, tail.total());
        }
    }

    #[test]
    fn any_split_gives_the_same_sketch(one in pairs(), other in pairs()) {
        let settings = settings(5, 50, 4);
        let mut whole = one.clone();
        for (pair, n) in &other {
            *whole.entry(*pair).or_default() += n;
        }
        let mut whole = sketch(&settings, &whole);
        // One after the other, in either order, into one; and two that are added.
        let mut turned = sketch(&settings, &other);
        feed(&turned, &one, &mut PairColumns::default());
        prop_assert_eq!(bytes(&mut whole), bytes(&mut turned));
        let mut added = sketch(&settings, &one);
        let mut second = sketch(&settings, &other);
        let image = bytes(&mut second);
        added.load(&mut image.as_slice()).unwrap();
        prop_assert_eq!(bytes(&mut whole), bytes(&mut added));
        // And taken away again: all but the distinct pairs is as before.
        whole.subtract(&mut second).unwrap();
        let mut first = sketch(&settings, &one);
        for hash in 0..4 {
            prop_assert_eq!(whole.row(hash).unwrap().image(), first.row(hash).unwrap().image());
        }
        prop_assert_eq!(whole.sums().clone(), first.sums().clone());
        prop_assert_eq!(whole.total(), first.total());
    }
}

#[test]
fn several_threads_fill_the_same_sketch_as_one() {
    let settings = settings(0, 1000, 5);
    let row: Vec<u32> = (0..30_000).collect();
    let count = |left: u32| row.iter().map(move |right| u64::from(left + right % 7 + 1));
    let fill = |tail: &Tail, lefts: &[u32]| {
        let mut head = PairColumns::default();
        let mut split = tail.split(&mut head);
        for left in lefts {
            let counts: Vec<u64> = count(*left).collect();
            split.row(*left, &row, &counts).unwrap();
        }
        split.finish().unwrap();
        assert!(head.is_empty());
    };
    let mut one = Tail::new(&settings, 30_000).unwrap();
    fill(&one, &[0, 1, 2, 3, 4, 5]);
    let mut several = Tail::new(&settings, 30_000).unwrap();
    std::thread::scope(|scope| {
        for lefts in [[5, 0], [3, 4], [1, 2]] {
            let (several, fill) = (&several, &fill);
            scope.spawn(move || fill(several, &lefts));
        }
    });
    assert_eq!(bytes(&mut one), bytes(&mut several));
    // 180,000 distinct pairs, within three standard errors.
    let found = one.distinct().estimate() as f64;
    let error = TailSettings::distinct_error() * 180_000.0;
    assert!((found - 180_000.0).abs() < 3.0 * error, "{found}");
}

#[test]
fn the_bound_holds_for_its_share_of_the_pairs() {
    // 20,000 pairs of a falling count in 2,000 cells: nearly every cell is shared.
    let settings = settings(0, 2000, 3);
    let mut tail = Tail::new(&settings, 20_000).unwrap();
    let right: Vec<u32> = (0..20_000).collect();
    let counts: Vec<u64> = right
        .iter()
        .map(|id| 100_000 / (u64::from(*id) + 1) + 1)
        .collect();
    let mut split = tail.split(PairColumns::default());
    split.row(7, &right, &counts).unwrap();
    split.finish().unwrap();
    let most = settings.most_over(tail.total());
    let mut within = 0;
    for (id, count) in right.iter().zip(&counts) {
        let estimate = tail.estimate(7, *id);
        assert!(estimate >= *count);
        within += u32::from(estimate - count <= most);
    }
    assert!(
        f64::from(within) >= settings.confidence() * 20_000.0,
        "{within}"
    );
}

#[test]
fn what_would_fall_below_zero_is_refused() {
    let settings = settings(0, 16, 2);
    let mut tail = sketch(&settings, &[((1, 2), 5)].into());
    let mut more = sketch(&settings, &[((1, 2), 6)].into());
    let error = tail.subtract(&mut more).unwrap_err();
    assert!(
        matches!(
            error,
            CountError::NegativeTail {
                id: 1,
                count: 5,
                subtract: 6
            }
        ),
        "{error}"
    );
    // The same sums by another pair: only the cells tell.
    let one: BTreeMap<_, _> = [((1, 2), 5), ((3, 4), 5)].into();
    let other: BTreeMap<_, _> = [((1, 4), 5), ((3, 2), 5)].into();
    let wide = TailSettings {
        buckets: 1 << 16,
        ..settings
    };
    let error = sketch(&wide, &one)
        .subtract(&mut sketch(&wide, &other))
        .unwrap_err();
    assert!(
        matches!(error, CountError::NegativeCell { hash: 0, .. }),
        "{error}"
    );
    assert_eq!(error.kind(), crate::ErrorKind::User);
}

#[test]
fn sums_end_at_63_bits() {
    let settings = settings(0, 16, 2);
    let tail = Tail::new(&settings, TERMS).unwrap();
    let mut split = tail.split(PairColumns::default());
    split.row(0, &[1], &[LARGEST_TOTAL]).unwrap();
    split.finish().unwrap();
    let mut split = tail.split(PairColumns::default());
    split.row(0, &[2], &[1]).unwrap();
    assert!(matches!(split.finish(), Err(CountError::TailOverflow)));
    let mut sums = TailSums::of(1);
    sums.left[0] = LARGEST_TOTAL;
    let more = TailSums {
        left: vec![1],
        right: vec![1],
    };
    assert!(matches!(sums.add(&more), Err(CountError::TailOverflow)));
}

#[test]
fn every_seed_has_a_hash_and_sizes_are_checked() {
    Tail::new(&settings(1, 3, 32), 1).unwrap();
    for wrong in [
        settings(1, 2, 5),
        settings(1, (1 << 26) + 1, 5),
        settings(1, 3, 0),
        settings(1, 3, 33),
    ] {
        let error = wrong.validate().unwrap_err();
        assert!(matches!(error, CountError::TailSize { .. }), "{error}");
        assert_eq!(error.kind(), crate::ErrorKind::User);
    }
}

#[test]
fn the_head_of_an_empty_hyperloglog_is_that_of_the_crate() {
    let mut sketch = HllSketch::new(REGISTERS_LOG2, HllType::Hll8).unwrap();
    (0..100_000).for_each(|n: u64| sketch.update(n));
    let theirs = sketch.serialize();
    let mut ours = Distinct::new().unwrap();
    assert_eq!(ours.estimate(), 0);
    (0..100_000).for_each(|n: u64| ours.0.update(n));
    let mine = ours.image();
    // All but the flag and the running estimate, which tell of the order.
    assert_eq!(theirs[..5], mine[..5]);
    assert_eq!(theirs[6..8], mine[6..8]);
    assert_eq!(theirs[16..], mine[16..]);
    let mut few = Distinct::new().unwrap();
    few.0.update(1_u64);
    assert_eq!(few.estimate(), 1);
}

#[test]
fn damaged_images_are_refused() {
    let settings = settings(0, 16, 2);
    let mut tail = sketch(&settings, &[((1, 2), 5)].into());
    let image = tail.row(0).unwrap().image();
    assert!(
        HashRow::from_image(&settings, 1, &image).is_err(),
        "another seed"
    );
    assert!(HashRow::from_image(&settings, 0, &image[..30]).is_err());
    let other = TailSettings {
        buckets: 17,
        ..settings.clone()
    };
    assert!(HashRow::from_image(&other, 0, &image).is_err());
    assert!(Distinct::from_image(&image).is_err());
    let mut file = bytes(&mut tail);
    let middle = file.len() / 2;
    file[middle] ^= 1;
    let mut fresh = Tail::new(&settings, TERMS).unwrap();
    assert!(fresh.load(&mut file.as_slice()).is_err());
    assert_eq!(fresh.total(), 0);
}
