//! The tokenizers as their rules say them: plain, one text at a time, no cleverness.
//!
//! The fast road in [`crate::scan`] must give the same tokens; the tests compare the two.

use icu_segmenter::options::WordBreakInvariantOptions;
use icu_segmenter::{WordSegmenter, WordSegmenterBorrowed};
use unicode_normalization::UnicodeNormalization;
use unicode_segmentation::UnicodeSegmentation;

use crate::unicode::{is_ascii_white_space, is_letter_or_number, is_python_space, python_lower};
use crate::{FeatureSpec, TextError, Tokenizer};

#[cfg(feature = "huggingface")]
mod huggingface;
#[cfg(feature = "huggingface")]
pub(crate) use huggingface::HuggingFaceTokenizer;

/// A tokenizer ready to run.
pub(crate) enum Cutter {
    Words,
    Whitespace,
    QuXie,
    Icu(WordSegmenterBorrowed<'static>),
    #[cfg(feature = "huggingface")]
    HuggingFace(Box<HuggingFaceTokenizer>),
}

impl Cutter {
    /// Builds the tokenizer of a spec; with the digest of its file if it has one.
    pub(crate) fn new(spec: &FeatureSpec) -> Result<(Self, Option<String>), TextError> {
        let cutter = match &spec.tokenizer {
            Tokenizer::Words => Self::Words,
            Tokenizer::Whitespace => Self::Whitespace,
            Tokenizer::QuXie => Self::QuXie,
            Tokenizer::Icu => {
                Self::Icu(WordSegmenter::new_auto(WordBreakInvariantOptions::default()))
            }
            #[cfg(feature = "huggingface")]
            Tokenizer::HuggingFace(path) => {
                let (tokenizer, digest) = HuggingFaceTokenizer::read(path)?;
                return Ok((Self::HuggingFace(Box::new(tokenizer)), Some(digest)));
            }
            #[cfg(not(feature = "huggingface"))]
            Tokenizer::HuggingFace(path) => {
                return Err(TextError::HuggingFaceNotBuilt { path: path.clone() });
            }
        };
        Ok((cutter, None))
    }

    /// Calls `each` with every token of a text, in order.
    pub(crate) fn for_each(
        &self,
        text: &str,
        each: impl FnMut(&str) -> Result<(), TextError>,
    ) -> Result<(), TextError> {
        match self {
            Self::Words => words(text, each),
            Self::Icu(segmenter) => icu(*segmenter, text, each),
            Self::Whitespace => text
                .split(is_python_space)
                .filter(|token| !token.is_empty())
                .try_for_each(each),
            Self::QuXie => {
                let cut: String = text
                    .chars()
                    .map(|c| if is_letter_or_number(c) { c } else { ' ' })
                    .collect();
                python_lower(&cut)
                    .split(is_python_space)
                    .filter(|token| !token.is_empty())
                    .try_for_each(each)
            }
            #[cfg(feature = "huggingface")]
            Self::HuggingFace(tokenizer) => {
                let mut each = each;
                for id in tokenizer.ids(text)? {
                    each(tokenizer.token(id)?)?;
                }
                Ok(())
            }
        }
    }
}

/// NFKC, cut at ASCII white space, UAX 29 words with a letter or number, each lower-cased.
pub(crate) fn words(
    text: &str,
    mut each: impl FnMut(&str) -> Result<(), TextError>,
) -> Result<(), TextError> {
    let normal: String = text.nfkc().collect();
    for piece in normal.split(is_ascii_white_space) {
        for word in piece.unicode_words() {
            each(&word.to_lowercase())?;
        }
    }
    Ok(())
}

/// NFKC, cut at ASCII white space, ICU's word-like segments, each lower-cased.
pub(crate) fn icu(
    segmenter: WordSegmenterBorrowed<'static>,
    text: &str,
    mut each: impl FnMut(&str) -> Result<(), TextError>,
) -> Result<(), TextError> {
    let normal: String = text.nfkc().collect();
    for piece in normal.split(is_ascii_white_space) {
        let mut start = 0;
        for (end, kind) in segmenter.segment_str(piece).iter_with_word_type() {
            if kind.is_word_like() {
                each(&piece[start..end].to_lowercase())?;
            }
            start = end;
        }
    }
    Ok(())
}
