//! The numbers of one document: its pairs' scores, its tokens' priors, its weight against a target.

use pmill_count::{OUT_OF_VOCABULARY, OutOfVocabulary, Side};

use super::lookup::{Lookup, Pair, Queue};
use crate::settings::{ContextKind, ContextSettings};

/// What a document's numbers are computed from; shared by all threads.
pub(super) struct Tables {
    pub(super) lookup: Lookup,
    pub(super) context: ContextSettings,
    /// `ln p(term)` in the job's corpus.
    pub(super) priors: Vec<f64>,
    /// `ln p_target(term) − ln p_job(term)`, when there is a target.
    pub(super) log_ratios: Option<Vec<f64>>,
    /// Rows that hold each term.
    pub(super) documents: Vec<u64>,
    pub(super) quantiles: Vec<f64>,
    /// Threshold t of the balancing probabilities, when they are wanted.
    pub(super) balance: Option<f64>,
}

/// The numbers of one document.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Numbers {
    /// Tokens in the vocabulary.
    pub(super) tokens: u32,
    /// Different pairs that meet in it.
    pub(super) pairs: u64,
    /// Those that the table holds.
    pub(super) seen: u64,
    pub(super) mean: Option<f64>,
    pub(super) least: Option<f64>,
    pub(super) most: Option<f64>,
    pub(super) quantiles: Vec<Option<f64>>,
    /// The seen pair of smallest count, then smallest ids.
    pub(super) rarest: Option<(u32, u32)>,
    pub(super) prior_mean: Option<f64>,
    pub(super) prior_deviation: Option<f64>,
    pub(super) log_weight: Option<f64>,
    pub(super) concept_probability: Option<f64>,
    pub(super) pair_probability: Option<f64>,
}

/// Room that is used again for each document.
#[derive(Default)]
pub(super) struct Scratch {
    ids: Vec<u32>,
    keys: Vec<u64>,
    scores: Vec<f32>,
    queue: Queue,
}

impl Tables {
    /// The numbers of a document with these ids (those outside the vocabulary among them).
    pub(super) fn numbers(&self, tokens: &[u32], scratch: &mut Scratch) -> Numbers {
        let mut numbers = Numbers::default();
        self.priors(tokens, &mut numbers);
        let Scratch {
            ids,
            keys,
            scores,
            queue,
        } = scratch;
        ids.clear();
        ids.extend(tokens.iter().filter(|id| **id != OUT_OF_VOCABULARY));
        scores.clear();
        let mut tally = Tally::new(scores, self.balance);
        let mut found = |left, right, pair| tally.add(left, right, pair);
        match self.context.kind {
            ContextKind::Document => {
                ids.sort_unstable();
                ids.dedup();
                if let Some(most) = self.context.max_features_per_document {
                    // Ids rise as terms get rarer: the first ones are the most frequent.
                    ids.truncate(most as usize);
                }
                self.concepts(ids, &mut numbers);
                for (index, right) in ids.iter().enumerate() {
                    for left in &ids[..index] {
                        self.lookup.ask(*left, *right, queue, &mut found);
                    }
                }
            }
            ContextKind::Window => {
                self.window_pairs(tokens, ids, keys);
                for key in &*keys {
                    let (row, column) = ((key >> 32) as u32, *key as u32);
                    let (left, right) = if self.context.side == Side::Symmetric {
                        (column, row)
                    } else {
                        (row, column)
                    };
                    self.lookup.ask(left, right, queue, &mut found);
                }
                ids.sort_unstable();
                ids.dedup();
                self.concepts(ids, &mut numbers);
            }
        }
        self.lookup.answer(queue, &mut found);
        tally.finish(&self.quantiles, &mut numbers);
        numbers
    }

    /// Different pairs of a window context as (row, column), sorted. For one-sided windows the row
    /// is the token and the column its context, as in the table.
    fn window_pairs(&self, tokens: &[u32], inside: &[u32], keys: &mut Vec<u64>) {
        let tokens = match self.context.out_of_vocabulary {
            OutOfVocabulary::Removed => inside,
            OutOfVocabulary::Gap => tokens,
        };
        keys.clear();
        for (place, later) in tokens.iter().enumerate() {
            if *later == OUT_OF_VOCABULARY {
                continue;
            }
            let start = place.saturating_sub(self.context.window as usize);
            for earlier in &tokens[start..place] {
                if *earlier == OUT_OF_VOCABULARY {
                    continue;
                }
                let (row, column) = match self.context.side {
                    Side::Symmetric => (earlier.max(later), earlier.min(later)),
                    Side::Left => (later, earlier),
                    Side::Right => (earlier, later),
                };
                keys.push(u64::from(*row) << 32 | u64::from(*column));
            }
        }
        keys.sort_unstable();
        keys.dedup();
    }

    fn priors(&self, tokens: &[u32], numbers: &mut Numbers) {
        let (mut count, mut sum, mut weight) = (0_u32, 0.0, 0.0);
        let inside = || tokens.iter().filter(|id| **id != OUT_OF_VOCABULARY);
        for id in inside() {
            count += 1;
            sum += self.priors[*id as usize];
            if let Some(ratios) = &self.log_ratios {
                weight += ratios[*id as usize];
            }
        }
        numbers.tokens = count;
        numbers.log_weight = self.log_ratios.as_ref().map(|_| weight);
        if count == 0 {
            return;
        }
        let mean = sum / f64::from(count);
        let squares: f64 = inside()
            .map(|id| (self.priors[*id as usize] - mean).powi(2))
            .sum();
        numbers.prior_mean = Some(mean);
        numbers.prior_deviation = Some((squares / f64::from(count)).sqrt());
    }

    /// The chance that at least one of the terms keeps the row, when a term in d rows keeps it with
    /// min(1, t / d) (Xu et al. 2024, MetaCLIP, algorithm 1).
    fn concepts(&self, ids: &[u32], numbers: &mut Numbers) {
        let Some(threshold) = self.balance else {
            return;
        };
        let lost: f64 = ids
            .iter()
            .map(|id| 1.0 - keep(threshold, self.documents[*id as usize] as f64))
            .product();
        numbers.concept_probability = Some(1.0 - lost);
    }
}

fn keep(threshold: f64, count: f64) -> f64 {
    if count <= threshold {
        1.0
    } else {
        threshold / count
    }
}

/// What is summed up over pairs.
struct Tally<'a> {
    scores: &'a mut Vec<f32>,
    pairs: u64,
    sum: f64,
    rarest: Option<(f32, u32, u32)>,
    balance: Option<f64>,
    lost: f64,
}

impl<'a> Tally<'a> {
    fn new(scores: &'a mut Vec<f32>, balance: Option<f64>) -> Self {
        Self {
            scores,
            pairs: 0,
            sum: 0.0,
            rarest: None,
            balance,
            lost: 1.0,
        }
    }

    #[inline]
    fn add(&mut self, left: u32, right: u32, pair: Option<Pair>) {
        self.pairs += 1;
        let Some(pair) = pair else {
            return;
        };
        self.scores.push(pair.score);
        self.sum += f64::from(pair.score);
        let key = (pair.count, left, right);
        if self.rarest.is_none_or(|least| key < least) {
            self.rarest = Some(key);
        }
        if let Some(threshold) = self.balance {
            self.lost *= 1.0 - keep(threshold, f64::from(pair.count));
        }
    }

    fn finish(self, quantiles: &[f64], numbers: &mut Numbers) {
        numbers.pairs = self.pairs;
        numbers.seen = self.scores.len() as u64;
        numbers.rarest = self.rarest.map(|(_, left, right)| (left, right));
        numbers.pair_probability = self.balance.map(|_| 1.0 - self.lost);
        if self.scores.is_empty() {
            numbers.quantiles = vec![None; quantiles.len()];
            return;
        }
        numbers.mean = Some(self.sum / self.scores.len() as f64);
        let least = self.scores.iter().copied().fold(f32::INFINITY, f32::min);
        let most = self
            .scores
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
        (numbers.least, numbers.most) = (Some(f64::from(least)), Some(f64::from(most)));
        numbers.quantiles = quantiles
            .iter()
            .map(|share| Some(quantile(self.scores, *share)))
            .collect();
    }
}

/// The quantile with linear interpolation between the two nearest values, as NumPy's default.
fn quantile(values: &mut [f32], share: f64) -> f64 {
    let place = share * (values.len() - 1) as f64;
    let below = place.floor() as usize;
    let (_, low, above) = values.select_nth_unstable_by(below, f32::total_cmp);
    let low = f64::from(*low);
    let part = place - below as f64;
    if part == 0.0 {
        return low;
    }
    let high = above.iter().copied().fold(f32::INFINITY, f32::min);
    low + part * (f64::from(high) - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let mut values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&mut values, 0.0), 1.0);
        assert_eq!(quantile(&mut values, 0.5), 2.5);
        assert_eq!(quantile(&mut values, 1.0), 4.0);
        // numpy.quantile([1, 2, 3, 4], 0.1)
        assert!((quantile(&mut values, 0.1) - 1.3).abs() < 1e-12);
        assert_eq!(quantile(&mut [7.0], 0.9), 7.0);
    }
}
