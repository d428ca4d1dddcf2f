//! The vocabulary of dictionaries that are all in memory, without sorting their terms.
//!
//! In: what the threads of a job met. Out: the same [`Vocabulary`] as from the sorted merge
//! ([`Vocabulary::from_counts`]), and each thread's way from its local indices to the ids. Memory:
//! every distinct term once more, its two counts, and 4 bytes for each term of each dictionary.

use std::cmp::Reverse;

use crate::terms::Terms;
use crate::{Dictionary, OUT_OF_VOCABULARY, TermCount, TextError, Vocabulary, VocabularyRule};

/// A vocabulary and how it was come by.
pub struct Chosen {
    /// The terms that count.
    pub vocabulary: Vocabulary,
    /// Distinct terms met.
    pub types: u64,
    /// By dictionary and local index: the id, or [`OUT_OF_VOCABULARY`].
    pub maps: Vec<Vec<u32>>,
    /// The terms that were met and not chosen.
    pub outside: Outside,
}

/// Terms that were met and not chosen.
pub struct Outside {
    terms: Terms,
    tokens: Vec<u64>,
    documents: Vec<u64>,
    /// Indices of the terms, by their bytes.
    order: Vec<u32>,
}

impl Outside {
    /// The terms with their counts, in the order of their bytes.
    pub fn iter(&self) -> impl Iterator<Item = TermCount> + '_ {
        self.order.iter().map(|&index| TermCount {
            term: self.terms.term(index).to_owned(),
            tokens: self.tokens[index as usize],
            documents: self.documents[index as usize],
        })
    }
}

impl Vocabulary {
    /// Sums dictionaries and picks the terms by `rule`.
    ///
    /// # Errors
    /// A count that does not fit 64 bits; more than 2^32 - 17 terms.
    pub fn choose(
        dictionaries: &[&Dictionary],
        rule: &VocabularyRule,
    ) -> Result<Chosen, TextError> {
        let mut terms = Terms::default();
        let (mut tokens, mut documents) = (Vec::<u64>::new(), Vec::<u64>::new());
        let mut maps: Vec<Vec<u32>> = Vec::with_capacity(dictionaries.len());
        for dictionary in dictionaries {
            let mut map = Vec::with_capacity(dictionary.len());
            for entry in dictionary.iter() {
                let index = terms.insert(entry.term)?;
                map.push(index);
                let index = index as usize;
                if index == tokens.len() {
                    tokens.push(entry.tokens);
                    documents.push(entry.documents);
                    continue;
                }
                let sums = tokens[index]
                    .checked_add(entry.tokens)
                    .zip(documents[index].checked_add(entry.documents));
                let Some(sums) = sums else {
                    let term = entry.term.to_owned();
                    return Err(TextError::CountOverflow { term });
                };
                (tokens[index], documents[index]) = sums;
            }
            maps.push(map);
        }
        let types = tokens.len() as u64;
        let mut order: Vec<(Reverse<u64>, u32)> = (0..)
            .zip(&tokens)
            .filter(|&(_, &tokens)| tokens >= rule.min_count)
            .map(|(index, &tokens)| (Reverse(tokens), index))
            .collect();
        let by_rank = |one: &(Reverse<u64>, u32), two: &(Reverse<u64>, u32)| {
            let by_count = one.0.cmp(&two.0);
            by_count.then_with(|| terms.term(one.1).cmp(terms.term(two.1)))
        };
        let size = rule.size.map_or(usize::MAX, |size| size as usize);
        if size < order.len() {
            order.select_nth_unstable_by(size, by_rank);
            order.truncate(size);
        }
        order.sort_unstable_by(by_rank);
        let mut ids = vec![OUT_OF_VOCABULARY; tokens.len()];
        for (id, &(_, index)) in (0..).zip(&order) {
            ids[index as usize] = id;
        }
        let vocabulary = Self::from_sorted(
            order
                .iter()
                .map(|&(count, index)| (terms.term(index), count.0, documents[index as usize])),
        )?;
        let mut outside: Vec<u32> = (0..)
            .zip(&ids)
            .filter(|&(_, &id)| id == OUT_OF_VOCABULARY)
            .map(|(index, _)| index)
            .collect();
        outside.sort_unstable_by(|&one, &two| terms.term(one).cmp(terms.term(two)));
        for index in maps.iter_mut().flatten() {
            *index = ids[*index as usize];
        }
        Ok(Chosen {
            vocabulary,
            types,
            maps,
            outside: Outside {
                terms,
                tokens,
                documents,
                order: outside,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{DictionaryBuilder, FeatureExtractor, FeatureSpec};

    fn dictionary(rows: &[Vec<u16>]) -> Dictionary {
        let extractor = Arc::new(FeatureExtractor::new(&FeatureSpec::default()).unwrap());
        let mut builder = DictionaryBuilder::new(&extractor);
        for row in rows {
            let row: Vec<String> = row.iter().map(|word| format!("w{word}")).collect();
            builder.push_row(&row.join(" "), &mut Vec::new()).unwrap();
        }
        builder.finish()
    }

    proptest! {
        #[test]
        fn it_chooses_what_the_sorted_merge_chooses(
            rows in proptest::collection::vec(proptest::collection::vec(proptest::collection::vec(0_u16..60, 0..9), 0..8), 0..4),
            size in proptest::option::of(0_u32..70), min_count in 0_u64..4,
        ) {
            let rule = VocabularyRule { size, min_count };
            let dictionaries: Vec<Dictionary> = rows.iter().map(|rows| dictionary(rows)).collect();
            let all: Vec<&Dictionary> = dictionaries.iter().collect();
            let chosen = Vocabulary::choose(&all, &rule).unwrap();
            let merged = || Dictionary::merge::<TextError>(all.iter().copied());
            let expected = Vocabulary::from_counts(merged(), &rule).unwrap();
            prop_assert_eq!(chosen.types, merged().count() as u64);
            prop_assert_eq!(chosen.vocabulary.len(), expected.len());
            for id in 0..expected.len() as u32 {
                prop_assert_eq!(chosen.vocabulary.term(id), expected.term(id));
                prop_assert_eq!(chosen.vocabulary.tokens(id), expected.tokens(id));
                prop_assert_eq!(chosen.vocabulary.documents(id), expected.documents(id));
            }
            let outside: Vec<_> = merged()
                .map(Result::unwrap)
                .filter(|term| expected.lookup(&term.term).is_none())
                .map(|term| (term.term, term.tokens, term.documents))
                .collect();
            let found: Vec<_> = chosen.outside.iter().map(|term| (term.term, term.tokens, term.documents)).collect();
            prop_assert_eq!(found, outside);
            let maps: Vec<Vec<u32>> = all.iter().map(|dictionary| expected.remap(dictionary)).collect();
            prop_assert_eq!(chosen.maps, maps);
        }
    }
}
