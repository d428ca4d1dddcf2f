//! The vocabulary of dictionaries that are all in memory, without sorting their terms.
//!
//! In: what the threads of a job met. Out: the same [`Vocabulary`] as from the sorted merge
//! ([`Vocabulary::from_counts`]), and each thread's way from its local indices to the ids. Memory:
//! the largest dictionary grows by the terms of the others, whose counts are added to its own; 4 bytes for
//! each term of each dictionary, 24 for each distinct one.

use std::cmp::Reverse;

use crate::terms::Terms;
use crate::{Dictionary, OUT_OF_VOCABULARY, TextError, Vocabulary, VocabularyRule};

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
    /// Indices of the terms.
    indices: Vec<u32>,
}

/// A term with its counts, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutsideTerm<'a> {
    /// The term.
    pub term: &'a str,
    /// Times it occurred.
    pub tokens: u64,
    /// Rows that hold it.
    pub documents: u64,
}

impl Outside {
    /// The terms with their counts, in the order of their bytes. Takes 16 bytes a term.
    pub fn sorted(&self) -> impl ExactSizeIterator<Item = OutsideTerm<'_>> {
        let keyed = |&index: &u32| (prefix(self.terms.term(index)), index);
        let mut order: Vec<(u64, u32)> = self.indices.iter().map(keyed).collect();
        order.sort_unstable_by(|one, two| {
            let rest = || self.terms.term(one.1).cmp(self.terms.term(two.1));
            one.0.cmp(&two.0).then_with(rest)
        });
        order.into_iter().map(|(_, index)| OutsideTerm {
            term: self.terms.term(index),
            tokens: self.tokens[index as usize],
            documents: self.documents[index as usize],
        })
    }

    /// Bytes on the heap, those of [`Outside::sorted`] included.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.terms.held_bytes()
            + (self.tokens.capacity() + self.documents.capacity()) * size_of::<u64>()
            + self.indices.capacity() * (size_of::<u32>() + size_of::<(u64, u32)>())
    }
}

/// A term's first eight bytes, as a number that compares as they do: most terms differ in them, and a
/// comparison of two numbers at hand does not wait for the terms.
fn prefix(term: &str) -> u64 {
    let mut bytes = [0; 8];
    let length = term.len().min(8);
    bytes[..length].copy_from_slice(&term.as_bytes()[..length]);
    u64::from_be_bytes(bytes)
}

/// A count that no chosen term is below: most terms are rare, and need not be compared.
fn least_count(tokens: &[u64], rule: &VocabularyRule) -> u64 {
    const COUNTED: usize = 1 << 12;
    let Some(size) = rule.size else {
        return rule.min_count;
    };
    let mut terms = vec![0_u64; COUNTED];
    for &tokens in tokens {
        let count = usize::try_from(tokens).unwrap_or(usize::MAX);
        terms[count.min(COUNTED - 1)] += 1;
    }
    let mut chosen = 0;
    for (count, terms) in terms.iter().enumerate().rev() {
        chosen += terms;
        if chosen >= u64::from(size) {
            return rule.min_count.max(count as u64);
        }
    }
    rule.min_count
}

/// What dictionaries come to together.
struct Sum {
    terms: Terms,
    tokens: Vec<u64>,
    documents: Vec<u64>,
}

impl Sum {
    /// Adds a dictionary: by its local indices, those of the sum. Nothing can be added after the last one.
    fn add(
        &mut self,
        dictionary: &Dictionary,
        threads: usize,
        last: bool,
    ) -> Result<Vec<u32>, TextError> {
        let mut map = self.find(dictionary, threads);
        for (entry, index) in dictionary.iter().zip(&mut map) {
            if *index == OUT_OF_VOCABULARY {
                *index = if last {
                    self.terms.append(entry.term)?
                } else {
                    self.terms.insert(entry.term)?
                };
                self.tokens.push(entry.tokens);
                self.documents.push(entry.documents);
                continue;
            }
            let index = *index as usize;
            let sums = self.tokens[index]
                .checked_add(entry.tokens)
                .zip(self.documents[index].checked_add(entry.documents));
            let Some(sums) = sums else {
                let term = entry.term.to_owned();
                return Err(TextError::CountOverflow { term });
            };
            (self.tokens[index], self.documents[index]) = sums;
        }
        Ok(map)
    }

    /// By local index: the sum's index of a term that it has, else [`OUT_OF_VOCABULARY`].
    fn find(&self, dictionary: &Dictionary, threads: usize) -> Vec<u32> {
        let mut map = vec![OUT_OF_VOCABULARY; dictionary.len()];
        let share = dictionary.len().div_ceil(threads.max(1)).max(LEAST_SHARE);
        let terms = &self.terms;
        std::thread::scope(|scope| {
            let mut first = 0;
            for part in map.chunks_mut(share) {
                let start = first;
                first += part.len() as u32;
                let mut find = move || find_part(terms, dictionary, start, part);
                if (first as usize) < dictionary.len() {
                    scope.spawn(find);
                } else {
                    find();
                }
            }
        });
        map
    }
}

/// Fewer terms are not worth a thread.
const LEAST_SHARE: usize = 1 << 14;

/// Looks up the terms from local index `first` on. Those of a batch are touched first, so that their
/// memory accesses overlap.
fn find_part(terms: &Terms, dictionary: &Dictionary, mut first: u32, part: &mut [u32]) {
    for batch in part.chunks_mut(64) {
        let locals = first..first + batch.len() as u32;
        first = locals.end;
        let touched = locals.clone().fold(0, |touched, local| {
            touched ^ terms.touch(dictionary.entry(local).term.as_bytes())
        });
        std::hint::black_box(touched);
        for (local, index) in locals.zip(batch) {
            if let Some(found) = terms.get(dictionary.entry(local).term) {
                *index = found;
            }
        }
    }
}

impl Vocabulary {
    /// Sums dictionaries and picks the terms by `rule`.
    ///
    /// # Errors
    /// A count that does not fit 64 bits; more than 2^32 - 17 terms.
    pub fn choose(
        mut dictionaries: Vec<Dictionary>,
        rule: &VocabularyRule,
        threads: usize,
    ) -> Result<Chosen, TextError> {
        // The largest dictionary becomes the sum; the others are added.
        let largest = (0..dictionaries.len()).max_by_key(|&number| dictionaries[number].len());
        let base = match largest {
            Some(largest) => dictionaries.swap_remove(largest),
            None => Dictionary::default(),
        };
        let of_base = base.len();
        let mut sum = base.into_sum();
        let mut maps: Vec<Vec<u32>> = Vec::with_capacity(dictionaries.len() + 1);
        let mut left = dictionaries.len();
        for dictionary in dictionaries {
            left -= 1;
            maps.push(sum.add(&dictionary, threads, left == 0)?);
        }
        let Sum {
            terms,
            tokens,
            documents,
        } = sum;
        let types = tokens.len() as u64;
        let least = least_count(&tokens, rule);
        let mut order: Vec<(Reverse<u64>, u64, u32)> = (0..)
            .zip(&tokens)
            .filter(|&(_, &tokens)| tokens >= least)
            .map(|(index, &tokens)| (Reverse(tokens), prefix(terms.term(index)), index))
            .collect();
        let by_rank = |one: &(Reverse<u64>, u64, u32), two: &(Reverse<u64>, u64, u32)| {
            let rest = || terms.term(one.2).cmp(terms.term(two.2));
            (one.0, one.1).cmp(&(two.0, two.1)).then_with(rest)
        };
        let size = rule.size.map_or(usize::MAX, |size| size as usize);
        if size < order.len() {
            order.select_nth_unstable_by(size, by_rank);
            order.truncate(size);
        }
        order.sort_unstable_by(by_rank);
        let mut ids = vec![OUT_OF_VOCABULARY; tokens.len()];
        for (id, &(_, _, index)) in (0..).zip(&order) {
            ids[index as usize] = id;
        }
        let vocabulary =
            Self::from_sorted(order.iter().map(|&(count, _, index)| {
                (terms.term(index), count.0, documents[index as usize])
            }))?;
        let outside: Vec<u32> = (0..)
            .zip(&ids)
            .filter(|&(_, &id)| id == OUT_OF_VOCABULARY)
            .map(|(index, _)| index)
            .collect();
        for index in maps.iter_mut().flatten() {
            *index = ids[*index as usize];
        }
        if let Some(largest) = largest {
            // Back in the order of the dictionaries: what was last had taken the largest's place.
            ids.truncate(of_base);
            maps.push(ids);
            let last = maps.len() - 1;
            maps.swap(largest, last);
        }
        Ok(Chosen {
            vocabulary,
            types,
            maps,
            outside: Outside {
                terms: terms.without_index(),
                tokens,
                documents,
                indices: outside,
            },
        })
    }
}

impl Dictionary {
    fn into_sum(self) -> Sum {
        let (terms, tokens, documents) = self.into_parts();
        Sum {
            terms,
            tokens,
            documents,
        }
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
            size in proptest::option::of(0_u32..70), min_count in 0_u64..4, threads in 0_usize..3, without_index: bool,
        ) {
            let rule = VocabularyRule { size, min_count };
            let without = |dictionary: Dictionary| if without_index { dictionary.without_index() } else { dictionary };
            let dictionaries: Vec<Dictionary> = rows.iter().map(|rows| without(dictionary(rows))).collect();
            let all: Vec<&Dictionary> = dictionaries.iter().collect();
            let chosen = Vocabulary::choose(dictionaries.clone(), &rule, threads).unwrap();
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
            let found: Vec<_> = chosen.outside.sorted().map(|term| (term.term.to_owned(), term.tokens, term.documents)).collect();
            prop_assert_eq!(found, outside);
            let maps: Vec<Vec<u32>> = all.iter().map(|dictionary| expected.remap(dictionary)).collect();
            prop_assert_eq!(chosen.maps, maps);
        }
    }
}
