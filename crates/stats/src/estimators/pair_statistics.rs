//! Statistics of sorted pairs, each pair taken a whole number of times: what a bootstrap computes again and again, in
//! one walk along the sorted order. NaN means no value.

use crate::random::mix;

/// Pairs in rising order of x; equal x in an order that has nothing to do with y's size, so that cutting through ties
/// makes no correlation.
pub(crate) struct Sorted {
    pub(crate) x: Vec<f64>,
    pub(crate) y: Vec<f64>,
    /// Places in rising order of y.
    by_y: Vec<u32>,
}

impl Sorted {
    pub(crate) fn new(x: &[f64], y: &[f64]) -> Sorted {
        let mut order: Vec<usize> = (0..x.len()).collect();
        let tie = |place: &usize| mix(y[*place].to_bits());
        order.sort_unstable_by(|a, b| x[*a].total_cmp(&x[*b]).then(tie(a).cmp(&tie(b))));
        let x: Vec<f64> = order.iter().map(|place| x[*place]).collect();
        let y: Vec<f64> = order.iter().map(|place| y[*place]).collect();
        let mut by_y: Vec<u32> = (0..x.len() as u32).collect();
        by_y.sort_unstable_by(|a, b| y[*a as usize].total_cmp(&y[*b as usize]).then(a.cmp(b)));
        Sorted { x, y, by_y }
    }
}

/// Pearson 1896, by means first; NaN when a side is constant.
pub(crate) fn pearson(x: &[f64], y: &[f64], weights: &[u32]) -> f64 {
    let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
    let mean = |values: &[f64]| {
        values
            .iter()
            .zip(weights)
            .map(|(v, w)| v * f64::from(*w))
            .sum::<f64>()
            / total
    };
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for ((x, y), weight) in x.iter().zip(y).zip(weights) {
        let (dx, dy, weight) = (x - mean_x, y - mean_y, f64::from(*weight));
        xx += weight * dx * dx;
        yy += weight * dy * dy;
        xy += weight * dx * dy;
    }
    if xx <= 0.0 || yy <= 0.0 {
        return f64::NAN;
    }
    (xy / (xx * yy).sqrt()).clamp(-1.0, 1.0)
}

/// Mean ranks (ties share theirs) of values in the given order, each counted `weights` times.
fn ranks(values: &[f64], order: impl Iterator<Item = usize>, weights: &[u32]) -> Vec<f64> {
    let mut ranks = vec![0.0; values.len()];
    let mut ties: Vec<usize> = Vec::new();
    let mut before = 0.0;
    let mut settle = |ties: &mut Vec<usize>| {
        let size: f64 = ties.iter().map(|place| f64::from(weights[*place])).sum();
        for place in ties.drain(..) {
            ranks[place] = before + (size + 1.0) / 2.0;
        }
        before += size;
    };
    for place in order {
        if ties
            .last()
            .is_some_and(|last| values[*last] != values[place])
        {
            settle(&mut ties);
        }
        ties.push(place);
    }
    settle(&mut ties);
    ranks
}

/// Spearman 1904: Pearson's r of the mean ranks.
pub(crate) fn spearman(pairs: &Sorted, weights: &[u32]) -> f64 {
    let x = ranks(&pairs.x, 0..pairs.x.len(), weights);
    let y = ranks(
        &pairs.y,
        pairs.by_y.iter().map(|place| *place as usize),
        weights,
    );
    pearson(&x, &y, weights)
}

/// One of equally large bins along x.
#[derive(Debug, Default, Clone)]
pub(crate) struct Bin {
    pub(crate) rows: u64,
    pub(crate) x_min: f64,
    pub(crate) x_max: f64,
    pub(crate) x_sum: f64,
    pub(crate) y_sum: f64,
}

/// SQL's ntile along x: the first bins are one larger when the rows do not divide.
pub(crate) fn ntiles(pairs: &Sorted, weights: &[u32], bins: usize) -> Vec<Bin> {
    let total: usize = weights.iter().map(|weight| *weight as usize).sum();
    let bins = bins.min(total);
    let mut filled: Vec<Bin> = Vec::with_capacity(bins);
    let size = |bin: usize| total / bins + usize::from(bin < total % bins);
    let mut bin = Bin::default();
    for ((x, y), weight) in pairs.x.iter().zip(&pairs.y).zip(weights) {
        let mut left = *weight as usize;
        while left > 0 {
            let room = size(filled.len()) - bin.rows as usize;
            let taken = left.min(room);
            if bin.rows == 0 {
                bin.x_min = *x;
            }
            bin.rows += taken as u64;
            bin.x_max = *x;
            bin.x_sum += *x * taken as f64;
            bin.y_sum += *y * taken as f64;
            left -= taken;
            if taken == room {
                filled.push(std::mem::take(&mut bin));
            }
        }
    }
    filled
}

/// Pearson's r of the bins' means.
pub(crate) fn binned_pearson(pairs: &Sorted, weights: &[u32], bins: usize) -> f64 {
    let tiles = ntiles(pairs, weights, bins);
    let mean = |sum: fn(&Bin) -> f64| -> Vec<f64> {
        tiles.iter().map(|bin| sum(bin) / bin.rows as f64).collect()
    };
    pearson(
        &mean(|bin| bin.x_sum),
        &mean(|bin| bin.y_sum),
        &vec![1; tiles.len()],
    )
}

/// Mean of y in the top share of x minus that in the bottom share (at least one row each).
pub(crate) fn gap(pairs: &Sorted, weights: &[u32], fraction: f64) -> f64 {
    let total: usize = weights.iter().map(|weight| *weight as usize).sum();
    let size = ((total as f64 * fraction) as usize).max(1);
    let end_mean = |places: &mut dyn Iterator<Item = usize>| {
        let (mut left, mut sum) = (size, 0.0);
        for place in places {
            let taken = left.min(weights[place] as usize);
            sum += pairs.y[place] * taken as f64;
            left -= taken;
            if left == 0 {
                break;
            }
        }
        sum / size as f64
    };
    end_mean(&mut (0..pairs.x.len()).rev()) - end_mean(&mut (0..pairs.x.len()))
}

/// Linear interpolation between order statistics.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let low = place.floor() as usize;
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * (place - low as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_mean_rank() {
        let values = [1.0, 2.0, 2.0, 5.0];
        assert_eq!(ranks(&values, 0..4, &[1, 1, 1, 1]), [1.0, 2.5, 2.5, 4.0]);
        // Taken twice, the first fills ranks 1 and 2.
        assert_eq!(ranks(&values, 0..4, &[2, 1, 0, 1]), [1.5, 3.0, 3.0, 4.0]);
    }

    #[test]
    fn ntiles_are_those_of_sql() {
        let x: Vec<f64> = (0..10).map(f64::from).collect();
        let tiles = ntiles(&Sorted::new(&x, &x), &[1; 10], 3);
        let sizes: Vec<u64> = tiles.iter().map(|bin| bin.rows).collect();
        assert_eq!(sizes, [4, 3, 3]);
        assert_eq!((tiles[1].x_min, tiles[1].x_max), (4.0, 6.0));
    }

    #[test]
    fn the_gap_is_top_minus_bottom() {
        let x: Vec<f64> = (0..100).map(f64::from).collect();
        let y: Vec<f64> = x.iter().map(|v| v * 2.0).collect();
        // Tops 95..99 (mean 97), bottoms 0..4 (mean 2), doubled.
        assert_eq!(gap(&Sorted::new(&x, &y), &[1; 100], 0.05), 190.0);
    }
}
