//! Rows of text to vocabulary ids, in one pass.

use std::sync::Arc;

use crate::road::{MemoLimits, Numbers, Output, Road};
use crate::{FeatureExtractor, OUT_OF_VOCABULARY, TextError, Vocabulary};

/// Turns rows into vocabulary ids; one for each thread.
pub struct IdEncoder {
    road: Road<Arc<Vocabulary>>,
    row_ends: Vec<usize>,
}

impl Numbers for Arc<Vocabulary> {
    fn number(&mut self, feature: &str) -> Result<u32, TextError> {
        Ok(self.lookup(feature).unwrap_or(OUT_OF_VOCABULARY))
    }

    fn touch(&self, token: &[u8]) -> u32 {
        Vocabulary::touch(self, token)
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
            row_ends: Vec::new(),
        }
    }

    /// Appends a row's features to `out` as ids, [`OUT_OF_VOCABULARY`] for a feature without one.
    /// Tokens that the filters drop leave nothing.
    ///
    /// # Errors
    /// A Hugging Face tokenizer that refuses the text; with phrases or concepts, an id of 2^31 or
    /// more. `out` may then hold a part of the row.
    pub fn push_row(&mut self, text: &str, out: &mut Vec<u32>) -> Result<(), TextError> {
        self.row_ends.clear();
        let mut output = Output {
            numbers: out,
            row_ends: &mut self.row_ends,
        };
        self.road
            .push_rows(std::iter::once(Some(text)), &mut output)
    }

    /// [`IdEncoder::push_row`] for many rows, which is faster where rows are short. After each row the
    /// length of `out` is appended to `row_ends`. A null row is a row without features.
    ///
    /// # Errors
    /// Like [`IdEncoder::push_row`].
    pub fn push_rows<'a>(
        &mut self,
        rows: impl IntoIterator<Item = Option<&'a str>>,
        out: &mut Vec<u32>,
        row_ends: &mut Vec<usize>,
    ) -> Result<(), TextError> {
        let mut output = Output {
            numbers: out,
            row_ends,
        };
        self.road.push_rows(rows.into_iter(), &mut output)
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
        self.row_ends.clear();
        let mut output = Output {
            numbers: out,
            row_ends: &mut self.row_ends,
        };
        self.road.push_tokens_row(tokens, &mut output)
    }

    /// Bytes on the heap, without the shared extractor and vocabulary: at most about 20 MiB.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.road.held_bytes()
    }
}
