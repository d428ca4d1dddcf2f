//! From the terms of all units to the vocabulary.

use pmill_text::{TermCount, Vocabulary, VocabularyRule, merge_sorted};

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
}

/// Merges the sorted dictionaries and picks the terms by `rule`.
///
/// # Errors
/// When the vocabulary would not fit the memory limit, or a dictionary cannot be read.
pub fn choose(
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
    Ok(Chosen { vocabulary, types })
}
