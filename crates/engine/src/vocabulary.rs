//! From the terms of all units to the vocabulary.

use pmill_text::{Outside, TermCount, Vocabulary, VocabularyRule, merge_sorted};

use crate::budget::Budget;
use crate::dictionaries::StoredDictionary;
use crate::error::EngineError;
use crate::memory::ByteSize;

/// What a term costs while the vocabulary is made, besides its bytes.
const TERM_BYTES: u64 = 160;

/// The vocabulary, and what it was chosen from.
pub struct Chosen {
    /// The terms that count.
    pub vocabulary: Vocabulary,
    /// Distinct terms met.
    pub types: u64,
    /// The terms that were met and not chosen; `None` when the dictionaries still have them.
    pub outside: Option<Outside>,
}

/// Picks the terms by `rule`. Dictionaries that are all in memory are summed by hashing and used
/// up: each leaves its way to the vocabulary's ids. Else all are merged in the order of their terms.
///
/// # Errors
/// When the vocabulary would not fit the memory limit, or a dictionary cannot be read.
pub fn choose(
    dictionaries: &mut [StoredDictionary],
    rule: &VocabularyRule,
    budget: &Budget,
) -> Result<Chosen, EngineError> {
    let mut bytes = 0;
    for dictionary in dictionaries.iter() {
        let StoredDictionary::Memory(dictionary) = dictionary else {
            return merge(dictionaries, rule, budget);
        };
        // At most all of their terms.
        let counts = |tokens| dictionaries.len() > 1 || tokens >= rule.min_count;
        let entries = dictionary.iter().filter(|entry| counts(entry.tokens));
        if rule.size.is_none() {
            bytes += entries
                .map(|entry| entry.term.len() as u64 + TERM_BYTES)
                .sum::<u64>();
        }
    }
    if bytes > budget.limit.0 / 2 {
        return merge(dictionaries, rule, budget);
    }
    let taken = dictionaries.iter_mut().filter_map(|dictionary| {
        match std::mem::replace(dictionary, StoredDictionary::Mapped(Vec::new())) {
            StoredDictionary::Memory(dictionary) => Some(dictionary),
            _ => None,
        }
    });
    let chosen = Vocabulary::choose(taken.collect(), rule, budget.threads)?;
    for (dictionary, map) in dictionaries.iter_mut().zip(chosen.maps) {
        *dictionary = StoredDictionary::Mapped(map);
    }
    Ok(Chosen {
        vocabulary: chosen.vocabulary,
        types: chosen.types,
        outside: Some(chosen.outside),
    })
}

/// Merges the sorted dictionaries, and leaves them as they are.
pub(crate) fn merge(
    dictionaries: &[StoredDictionary],
    rule: &VocabularyRule,
    budget: &Budget,
) -> Result<Chosen, EngineError> {
    let streams = dictionaries
        .iter()
        .map(StoredDictionary::sorted)
        .collect::<Result<Vec<_>, _>>()?;
    let (mut types, mut kept, mut bytes) = (0_u64, 0_u64, 0_u64);
    let guarded = merge_sorted(streams).map(|entry: Result<TermCount, EngineError>| {
        let entry = entry?;
        types += 1;
        if entry.tokens >= rule.min_count {
            kept += 1;
            bytes += entry.term.len() as u64 + TERM_BYTES;
        }
        if rule.size.is_none() && bytes > budget.limit.0 / 2 {
            return Err(EngineError::Memory {
                limit: budget.limit.to_string(),
                reason: format!(
                    "the vocabulary has more than {kept} terms ({}); give --vocab-size or a larger --min-count",
                    ByteSize(bytes)
                ),
            });
        }
        Ok(entry)
    });
    let vocabulary = Vocabulary::from_counts(guarded, rule)?;
    Ok(Chosen {
        vocabulary,
        types,
        outside: None,
    })
}
