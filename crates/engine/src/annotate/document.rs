//! The numbers of documents: their pairs' scores, their tokens' priors, their weight against a target.
//!
//! A document's pairs are asked of a `block` with those of many others, and summed up when it is
//! answered, in the order of left ids, then right ids, so that no number depends on what stood beside
//! it. A document of more pairs than a block has slots is asked in parts.

use pmill_count::{OUT_OF_VOCABULARY, OutOfVocabulary, Side};

use super::block::Block;
use super::lookup::{Pair, PairTable};
use crate::settings::{ContextKind, ContextSettings};

/// What a document's numbers are computed from; shared by all threads.
pub(super) struct Tables {
    pub(super) pairs: PairTable,
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
    /// The seen pair of smallest count, then smallest ids.
    pub(super) rarest: Option<(u32, u32)>,
    pub(super) prior_mean: Option<f64>,
    pub(super) prior_deviation: Option<f64>,
    pub(super) log_weight: Option<f64>,
    pub(super) concept_probability: Option<f64>,
    pub(super) pair_probability: Option<f64>,
}

/// The numbers of some documents.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Documents {
    pub(super) rows: Vec<Numbers>,
    /// Those of the first row, then those of the next; NaN for a row without a seen pair.
    pub(super) quantiles: Vec<f64>,
}

/// Documents on the way to their numbers, and room that is used again.
pub(super) struct Work {
    block: Block,
    /// What was asked and is not answered.
    parts: Vec<Part>,
    /// The pairs so far of the document whose parts are being answered.
    tally: Tally,
    documents: Documents,
    /// Rows whose numbers are whole.
    finished: usize,
    ids: Vec<u32>,
    keys: Vec<u64>,
}

/// Pairs of one document in a block.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Where its runs and slots end.
    runs: usize,
    slots: usize,
    /// Whether the document has no more.
    last: bool,
}

impl Work {
    /// Asks for about `most_slots` pairs at a time.
    pub(super) fn new(most_slots: usize) -> Self {
        Self {
            block: Block::new(most_slots),
            parts: Vec::new(),
            tally: Tally::default(),
            documents: Documents::default(),
            finished: 0,
            ids: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// Takes a document with these ids (those outside the vocabulary among them).
    pub(super) fn push(&mut self, tables: &Tables, tokens: &[u32]) {
        let mut numbers = Numbers::default();
        tables.priors(tokens, &mut numbers);
        let mut ids = std::mem::take(&mut self.ids);
        match tables.context.kind {
            ContextKind::Document => {
                pmill_simd::distinct(tokens, &mut ids);
                if let Some(most) = tables.context.max_features_per_document {
                    // Ids rise as terms get rarer: the first ones are the most frequent.
                    ids.truncate(most as usize);
                }
                tables.concepts(&ids, &mut numbers);
                self.documents.rows.push(numbers);
                self.ask_all(tables, &ids);
            }
            ContextKind::Window => {
                ids.clear();
                ids.extend(tokens.iter().filter(|id| **id != OUT_OF_VOCABULARY));
                let mut keys = std::mem::take(&mut self.keys);
                tables.window_pairs(tokens, &ids, &mut keys);
                ids.sort_unstable();
                ids.dedup();
                tables.concepts(&ids, &mut numbers);
                self.documents.rows.push(numbers);
                self.ask_keys(tables, &keys);
                self.keys = keys;
            }
        }
        self.end_part(true);
        self.ids = ids;
    }

    /// Asks for the pairs of each id with those behind it.
    fn ask_all(&mut self, tables: &Tables, ids: &[u32]) {
        let mut rest = ids;
        let mut first = self.block.add_rights(rest.iter().copied());
        while let [left, rights @ ..] = rest {
            if rights.is_empty() {
                return;
            }
            if self.block.is_full() {
                self.answer(tables);
                first = self.block.add_rights(rest.iter().copied());
            }
            first += 1;
            self.block.ask(*left, first, rights.len());
            rest = rights;
        }
    }

    /// Asks for sorted pairs, left id above right id in each key.
    fn ask_keys(&mut self, tables: &Tables, keys: &[u64]) {
        for run in keys.chunk_by(|a, b| a >> 32 == b >> 32) {
            if self.block.is_full() {
                self.answer(tables);
            }
            let first = self.block.add_rights(run.iter().map(|key| *key as u32));
            self.block.ask((run[0] >> 32) as u32, first, run.len());
        }
    }

    fn end_part(&mut self, last: bool) {
        let (runs, slots) = self.block.ends();
        self.parts.push(Part { runs, slots, last });
    }

    /// Answers what was asked, and finishes the documents that have no more pairs.
    fn answer(&mut self, tables: &Tables) {
        // Of the document that is being pushed; without pairs when it has none yet.
        self.end_part(false);
        self.block.answer(&tables.pairs);
        let (mut runs, mut slots) = (0, 0);
        for part in &self.parts {
            let block = &self.block;
            let pair = |slot: usize| block.pair(runs..part.runs, slots + slot);
            let answers = &block.answers()[slots..part.slots];
            self.tally.add(answers, tables.balance, pair);
            if part.last {
                let numbers = &mut self.documents.rows[self.finished];
                self.tally
                    .finish(tables, numbers, &mut self.documents.quantiles);
                self.finished += 1;
            }
            (runs, slots) = (part.runs, part.slots);
        }
        self.parts.clear();
        self.block.clear();
    }

    /// The numbers of the documents that were pushed.
    pub(super) fn finish(&mut self, tables: &Tables) -> Documents {
        self.answer(tables);
        self.finished = 0;
        std::mem::take(&mut self.documents)
    }
}

impl Tables {
    /// Different pairs of a window context, sorted, left id above right id in each key. For one-sided
    /// windows the left one is the token and the right one its context, as in the table.
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
                let (left, right) = match self.context.side {
                    Side::Symmetric => (earlier.min(later), earlier.max(later)),
                    Side::Left => (later, earlier),
                    Side::Right => (earlier, later),
                };
                keys.push(u64::from(*left) << 32 | u64::from(*right));
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

/// What is summed up over the pairs of a document.
#[derive(Debug)]
struct Tally {
    /// Of the seen pairs.
    scores: Vec<f32>,
    pairs: u64,
    sum: f64,
    rarest: Option<(f32, u32, u32)>,
    /// The chance that no pair keeps the row.
    lost: f64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            scores: Vec::new(),
            pairs: 0,
            sum: 0.0,
            rarest: None,
            lost: 1.0,
        }
    }
}

impl Tally {
    /// Takes the next pairs in their order; `ids` are those of the pair at a place among them.
    fn add(&mut self, answers: &[Pair], balance: Option<f64>, ids: impl Fn(usize) -> (u32, u32)) {
        self.pairs += answers.len() as u64;
        let mut least = self.rarest.map_or(f32::INFINITY, |(count, ..)| count);
        let mut rarest = None;
        for (place, pair) in answers.iter().enumerate() {
            if pair.score.is_nan() {
                continue;
            }
            self.scores.push(pair.score);
            self.sum += f64::from(pair.score);
            // Of equal counts the first one, which has the smallest ids.
            if pair.count < least {
                (least, rarest) = (pair.count, Some(place));
            }
        }
        if let Some(place) = rarest {
            let (left, right) = ids(place);
            self.rarest = Some((least, left, right));
        }
        if let Some(threshold) = balance {
            for pair in answers.iter().filter(|pair| !pair.score.is_nan()) {
                self.lost *= 1.0 - keep(threshold, f64::from(pair.count));
            }
        }
    }

    /// Writes the sums down and begins again.
    fn finish(&mut self, tables: &Tables, numbers: &mut Numbers, quantiles: &mut Vec<f64>) {
        let seen = self.scores.len();
        numbers.pairs = self.pairs;
        numbers.seen = seen as u64;
        numbers.rarest = self.rarest.map(|(_, left, right)| (left, right));
        numbers.pair_probability = tables.balance.map(|_| 1.0 - self.lost);
        if seen > 0 {
            numbers.mean = Some(self.sum / seen as f64);
        }
        let ends = self::quantiles(&mut self.scores, &tables.quantiles, quantiles);
        (numbers.least, numbers.most) = ends.unzip();
        let mut scores = std::mem::take(&mut self.scores);
        scores.clear();
        *self = Self {
            scores,
            ..Self::default()
        };
    }
}

/// So many values are sorted for their quantiles; of more, each quantile is selected by itself.
const SORTED: usize = 1024;

/// Appends the quantiles, with linear interpolation between the two nearest values as NumPy's default
/// (NaN when there are no values), and gives the least and the greatest value.
fn quantiles(values: &mut [f32], shares: &[f64], out: &mut Vec<f64>) -> Option<(f64, f64)> {
    let sorted = values.len() <= SORTED;
    if sorted {
        pmill_simd::sort_floats(values);
    }
    let ends = match &*values {
        [] => None,
        [only] => Some((*only, *only)),
        [least, .., most] if sorted => Some((*least, *most)),
        _ => Some((
            values.iter().copied().fold(f32::INFINITY, f32::min),
            values.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        )),
    };
    for share in shares {
        let Some(last) = values.len().checked_sub(1) else {
            out.push(f64::NAN);
            continue;
        };
        let place = share * last as f64;
        let below = place.floor() as usize;
        let part = place - below as f64;
        let (low, high) = if sorted {
            (values[below], values[(below + 1).min(last)])
        } else {
            let (_, low, above) = values.select_nth_unstable_by(below, f32::total_cmp);
            (*low, above.iter().copied().fold(f32::INFINITY, f32::min))
        };
        let (low, high) = (f64::from(low), f64::from(high));
        // The last one has none above it, and nothing is added.
        out.push(if part == 0.0 {
            low
        } else {
            low + part * (high - low)
        });
    }
    ends.map(|(least, most)| (f64::from(least), f64::from(most)))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::super::lookup::tests::table;
    use super::*;

    fn quantile(values: &mut [f32], share: f64) -> f64 {
        let mut out = Vec::new();
        quantiles(values, &[share], &mut out);
        out[0]
    }

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let mut values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&mut values, 0.0), 1.0);
        assert_eq!(quantile(&mut values, 0.5), 2.5);
        assert_eq!(quantile(&mut values, 1.0), 4.0);
        // numpy.quantile([1, 2, 3, 4], 0.1)
        assert!((quantile(&mut values, 0.1) - 1.3).abs() < 1e-12);
        assert_eq!(quantile(&mut [7.0], 0.9), 7.0);
        let mut out = Vec::new();
        assert_eq!(quantiles(&mut [], &[0.5], &mut out), None);
        assert!(out[0].is_nan());
    }

    #[test]
    fn many_values_have_the_quantiles_of_the_sorted_ones() {
        let mut many: Vec<f32> = (0..2 * SORTED as u32)
            .map(|n| (n * 7919 % 2003) as f32)
            .collect();
        let mut sorted = many.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let last = (sorted.len() - 1) as f64;
        let shares = [0.0, 0.25, 0.333, 0.5, 1.0];
        let mut out = Vec::new();
        let ends = quantiles(&mut many, &shares, &mut out);
        assert_eq!(ends, Some((0.0, 2002.0)));
        for (share, found) in shares.iter().zip(out) {
            let place = share * last;
            let (low, high) = (place.floor(), place.ceil());
            let at = |place: f64| f64::from(sorted[place as usize]);
            assert_eq!(found, at(low) + (place - low) * (at(high) - at(low)));
        }
    }

    /// The obvious version: every pair of a document by itself, looked up in a map.
    fn slow(
        tables: &Tables,
        all: &BTreeMap<(u32, u32), Pair>,
        tokens: &[u32],
    ) -> (Numbers, Vec<f64>) {
        let mut numbers = Numbers::default();
        tables.priors(tokens, &mut numbers);
        let inside = || tokens.iter().copied().filter(|id| *id != OUT_OF_VOCABULARY);
        let mut ids: Vec<u32> = inside().collect::<BTreeSet<u32>>().into_iter().collect();
        let mut pairs = BTreeSet::new();
        match tables.context.kind {
            ContextKind::Document => {
                if let Some(most) = tables.context.max_features_per_document {
                    ids.truncate(most as usize);
                }
                for (place, left) in ids.iter().enumerate() {
                    pairs.extend(ids[place + 1..].iter().map(|right| (*left, *right)));
                }
            }
            ContextKind::Window => {
                let tokens: Vec<u32> = match tables.context.out_of_vocabulary {
                    OutOfVocabulary::Removed => inside().collect(),
                    OutOfVocabulary::Gap => tokens.to_vec(),
                };
                for (a, first) in tokens.iter().enumerate() {
                    for (b, second) in tokens.iter().enumerate() {
                        let near = a < b && b - a <= tables.context.window as usize;
                        if !near || [*first, *second].contains(&OUT_OF_VOCABULARY) {
                            continue;
                        }
                        pairs.insert(match tables.context.side {
                            Side::Symmetric => (*first.min(second), *first.max(second)),
                            Side::Left => (*second, *first),
                            Side::Right => (*first, *second),
                        });
                    }
                }
            }
        }
        tables.concepts(&ids, &mut numbers);
        let seen: Vec<_> = pairs
            .iter()
            .filter_map(|ids| Some((ids, all.get(ids)?)))
            .collect();
        let scores: Vec<f64> = seen.iter().map(|(_, pair)| f64::from(pair.score)).collect();
        numbers.pairs = pairs.len() as u64;
        numbers.seen = seen.len() as u64;
        let mut rarest: Option<(f32, (u32, u32))> = None;
        let mut lost = 1.0;
        for (ids, pair) in &seen {
            if rarest.is_none_or(|least| (pair.count, **ids) < least) {
                rarest = Some((pair.count, **ids));
            }
            lost *= 1.0 - keep(tables.balance.unwrap(), f64::from(pair.count));
        }
        numbers.rarest = rarest.map(|(_, ids)| ids);
        numbers.pair_probability = Some(1.0 - lost);
        let mut sorted = scores.clone();
        sorted.sort_by(f64::total_cmp);
        numbers.least = sorted.first().copied();
        numbers.most = sorted.last().copied();
        if sorted.is_empty() {
            return (numbers, vec![f64::NAN; tables.quantiles.len()]);
        }
        numbers.mean = Some(scores.iter().sum::<f64>() / scores.len() as f64);
        let quantile = |share: &f64| {
            let place = share * (sorted.len() - 1) as f64;
            let (low, high) = (
                sorted[place.floor() as usize],
                sorted[place.ceil() as usize],
            );
            low + (place - place.floor()) * (high - low)
        };
        let quantiles = tables.quantiles.iter().map(quantile).collect();
        (numbers, quantiles)
    }

    const TERMS: u32 = 40;

    fn context() -> impl Strategy<Value = ContextSettings> {
        let document = prop::option::of(1_u32..20).prop_map(|most| ContextSettings {
            kind: ContextKind::Document,
            max_features_per_document: most,
            ..ContextSettings::default()
        });
        let side = prop::sample::select(vec![Side::Symmetric, Side::Left, Side::Right]);
        let window =
            (1_u32..6, side, any::<bool>()).prop_map(|(window, side, gap)| ContextSettings {
                kind: ContextKind::Window,
                window,
                side,
                out_of_vocabulary: if gap {
                    OutOfVocabulary::Gap
                } else {
                    OutOfVocabulary::Removed
                },
                ..ContextSettings::default()
            });
        prop_oneof![document, window]
    }

    proptest! {
        /// Blocks of one slot (every document in parts), of some, and of all documents at once.
        #[test]
        fn documents_equal_the_obvious_version(
            context in context(),
            all in prop::collection::btree_map((0..TERMS, 0..TERMS), (-9_i16..9, 1_u16..9), 0..900),
            documents in prop::collection::vec(
                prop::collection::vec(prop_oneof![9 => 0..TERMS, 1 => Just(OUT_OF_VOCABULARY)], 0..50),
                0..12,
            ),
            slots in prop_oneof![Just(1_usize), 2..400_usize, Just(100_000)],
        ) {
            let all: BTreeMap<(u32, u32), Pair> = all
                .into_iter()
                .map(|(ids, (score, count))| {
                    // A quarter has no score.
                    let score = if score % 4 == 0 { f32::NAN } else { f32::from(score) / 7.0 };
                    (ids, Pair { score, count: f32::from(count) })
                })
                .collect();
            let rows: Vec<_> = all.iter().map(|(ids, pair)| (ids.0, ids.1, *pair)).collect();
            let tables = Tables {
                pairs: table(TERMS as usize, &rows, 100),
                context,
                priors: (0..TERMS).map(|id| -f64::from(id)).collect(),
                log_ratios: Some((0..TERMS).map(|id| f64::from(id) / 3.0).collect()),
                documents: (0..TERMS).map(|id| u64::from(id) + 1).collect(),
                quantiles: vec![0.1, 0.5],
                balance: Some(3.0),
            };
            let known = all.into_iter().filter(|(_, pair)| !pair.score.is_nan()).collect();
            let mut work = Work::new(slots);
            // Twice, so that the room is used again.
            for _ in 0..2 {
                for tokens in &documents {
                    work.push(&tables, tokens);
                }
                let found = work.finish(&tables);
                prop_assert_eq!(found.rows.len(), documents.len());
                for (number, tokens) in documents.iter().enumerate() {
                    let (expected, quantiles) = slow(&tables, &known, tokens);
                    prop_assert_eq!(&found.rows[number], &expected);
                    for (found, expected) in found.quantiles[2 * number..][..2].iter().zip(quantiles) {
                        prop_assert_eq!(found.to_bits(), expected.to_bits());
                    }
                }
            }
        }
    }
}
