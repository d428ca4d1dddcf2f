//! Rows of text to vocabulary ids, in one pass.

use std::sync::Arc;

use crate::{FeatureExtractor, OUT_OF_VOCABULARY, Scratch, TextError, Vocabulary};

/// Turns rows into vocabulary ids; one for each thread.
pub struct IdEncoder {
    extractor: Arc<FeatureExtractor>,
    vocabulary: Arc<Vocabulary>,
    scratch: Scratch,
}

impl IdEncoder {
    /// An encoder of the features of `extractor` into the ids of `vocabulary`.
    #[must_use]
    pub fn new(extractor: &Arc<FeatureExtractor>, vocabulary: &Arc<Vocabulary>) -> Self {
        Self {
            extractor: Arc::clone(extractor),
            vocabulary: Arc::clone(vocabulary),
            scratch: Scratch::default(),
        }
    }

    /// Appends a row's features to `out` as ids, [`OUT_OF_VOCABULARY`] for a feature without one.
    /// Tokens that the filters drop leave nothing.
    ///
    /// # Errors
    /// A Hugging Face tokenizer that refuses the text.
    pub fn push_row(&mut self, text: &str, out: &mut Vec<u32>) -> Result<(), TextError> {
        let Self {
            extractor,
            vocabulary,
            scratch,
        } = self;
        extractor.for_each_feature(text, scratch, |feature| {
            out.push(vocabulary.lookup(feature).unwrap_or(OUT_OF_VOCABULARY));
        })
    }

    /// [`IdEncoder::push_row`] for a row that is cut into tokens already: filters, lemma, phrases and
    /// concepts apply, the tokenizer does not.
    ///
    /// # Errors
    /// None today; a `Result` like [`IdEncoder::push_row`].
    pub fn push_tokens_row<'a>(
        &mut self,
        tokens: impl Iterator<Item = &'a str>,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let Self {
            extractor,
            vocabulary,
            scratch,
        } = self;
        extractor.for_each_feature_of_tokens(tokens, scratch, |feature| {
            out.push(vocabulary.lookup(feature).unwrap_or(OUT_OF_VOCABULARY));
        });
        Ok(())
    }

    /// Bytes on the heap, without the shared extractor and vocabulary.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        0
    }
}
