//! Rows of text to vocabulary ids, in one pass.

use std::sync::Arc;

use crate::road::{MemoLimits, Numbers, Road};
use crate::{FeatureExtractor, OUT_OF_VOCABULARY, TextError, Vocabulary};

/// Turns rows into vocabulary ids; one for each thread.
pub struct IdEncoder {
    road: Road<Arc<Vocabulary>>,
}

impl Numbers for Arc<Vocabulary> {
    fn number(&mut self, feature: &str) -> Result<u32, TextError> {
        Ok(self.lookup(feature).unwrap_or(OUT_OF_VOCABULARY))
    }
}

impl IdEncoder {
    /// An encoder of the features of `extractor` into the ids of `vocabulary`.
    #[must_use]
    pub fn new(extractor: &Arc<FeatureExtractor>, vocabulary: &Arc<Vocabulary>) -> Self {
        Self::with_limits(extractor, vocabulary, MemoLimits::default())
    }

    pub(crate) fn with_limits(
        extractor: &Arc<FeatureExtractor>,
        vocabulary: &Arc<Vocabulary>,
        limits: MemoLimits,
    ) -> Self {
        Self {
            road: Road::new(extractor, Arc::clone(vocabulary), limits),
        }
    }

    /// Appends a row's features to `out` as ids, [`OUT_OF_VOCABULARY`] for a feature without one.
    /// Tokens that the filters drop leave nothing.
    ///
    /// # Errors
    /// A Hugging Face tokenizer that refuses the text; with phrases or concepts, an id of 2^31 or
    /// more. `out` may then hold a part of the row.
    pub fn push_row(&mut self, text: &str, out: &mut Vec<u32>) -> Result<(), TextError> {
        self.road.push_row(text, out)
    }

    /// [`IdEncoder::push_row`] for a row that is cut into tokens already: filters, lemma, phrases and
    /// concepts apply, the tokenizer does not. An empty token is no token.
    ///
    /// # Errors
    /// With phrases or concepts, an id of 2^31 or more.
    pub fn push_tokens_row<'a>(
        &mut self,
        tokens: impl Iterator<Item = &'a str>,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        self.road.push_tokens_row(tokens, out)
    }

    /// Bytes on the heap, without the shared extractor and vocabulary: at most about 20 MiB.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.road.held_bytes()
    }
}
