//! A `tokenizer.json` of the Hugging Face tokenizers library.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use crate::TextError;
use crate::resources::digest;

/// The tokenizer and its tokens by id.
pub(crate) struct HuggingFaceTokenizer {
    path: PathBuf,
    tokenizer: Tokenizer,
    tokens: Vec<Option<Box<str>>>,
}

impl HuggingFaceTokenizer {
    /// Reads the file; truncation and padding are switched off, since every token counts.
    pub(crate) fn read(path: &Path) -> Result<(Self, String), TextError> {
        let bytes = std::fs::read(path).map_err(|source| TextError::Read {
            what: "hugging face tokenizer",
            path: path.to_owned(),
            source,
        })?;
        let refuse = |error: tokenizers::Error| TextError::HuggingFace {
            path: path.to_owned(),
            message: error.to_string(),
        };
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(refuse)?;
        tokenizer.with_truncation(None).map_err(refuse)?;
        tokenizer.with_padding(None);
        let mut tokens = Vec::new();
        for (token, id) in tokenizer.get_vocab(true) {
            let id = id as usize;
            if tokens.len() <= id {
                tokens.resize(id + 1, None);
            }
            tokens[id] = Some(token.into());
        }
        let tokenizer = Self {
            path: path.to_owned(),
            tokenizer,
            tokens,
        };
        Ok((tokenizer, digest(&bytes)))
    }

    /// The ids of a text's tokens, without special tokens.
    pub(crate) fn ids(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| self.refuse(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token of an id.
    pub(crate) fn token(&self, id: u32) -> Result<&str, TextError> {
        self.tokens
            .get(id as usize)
            .and_then(Option::as_deref)
            .ok_or_else(|| {
                self.refuse(format!(
                    "it gave id {id}, which its vocabulary does not have"
                ))
            })
    }

    /// One more than the largest id.
    pub(crate) fn id_limit(&self) -> usize {
        self.tokens.len()
    }

    fn refuse(&self, message: String) -> TextError {
        TextError::HuggingFace {
            path: self.path.clone(),
            message,
        }
    }
}
