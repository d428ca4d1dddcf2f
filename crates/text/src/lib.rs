//! Text to features: what pmill counts.
//!
//! A [`FeatureSpec`] (the user's settings) is compiled into a [`FeatureExtractor`]. Pass one of a job
//! gives rows to a [`DictionaryBuilder`] on every thread; their [`Dictionary`]s are merged
//! ([`merge_sorted`]) and cut to a [`Vocabulary`], whose [`Vocabulary::remap`] turns local indices into
//! ids. A job whose vocabulary is given has one pass, with an [`IdEncoder`] on every thread.
//!
//! No I/O but the small files that a spec names. In memory: those files, the distinct terms, and a
//! bounded memo a thread.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod chosen;
mod dictionary;
mod encoder;
mod error;
mod extractor;
mod hash;
mod lemma;
mod memo;
mod merge;
mod phrases;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod python_tests;
mod resources;
mod road;
mod scan;
mod spec;
mod stop_words;
mod terms;
#[cfg(test)]
mod test_support;
mod tokenize;
mod unicode;
mod unicode_tables;
mod vocabulary;

pub use chosen::{Chosen, Outside, OutsideTerm};
pub use dictionary::{Dictionary, DictionaryBuilder, DictionaryEntry};
pub use encoder::IdEncoder;
pub use error::{ErrorKind, TextError};
pub use extractor::{FeatureExtractor, ResolvedSpec, Scratch};
pub use merge::{MergeSorted, TermCount, merge_sorted};
pub use spec::{FeatureSpec, Lemma, StopWords, Tokenizer};
pub use stop_words::english_stop_words;
pub use unicode::is_numeric;
pub use vocabulary::{Vocabulary, VocabularyRule};

/// Stands where a feature has no id in the vocabulary.
pub const OUT_OF_VOCABULARY: u32 = u32::MAX;
