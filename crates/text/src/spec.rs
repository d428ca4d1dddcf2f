//! The settings of a feature extractor, as a user writes them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::TextError;

/// How text becomes features. Unknown keys are refused; a missing key has its default.
///
/// Steps, in this order: the tokenizer cuts (and normalises) the text; stop words, short tokens and
/// numeric tokens are dropped; the lemma replaces what is left. Lemmas are not filtered again.
/// Phrases and concepts are matched on the lemmas of *all* tokens, dropped ones included, so that
/// "statue of liberty" is found although "of" is a stop word; the filters then apply only to tokens
/// outside every match.
///
/// ```
/// let spec: pmill_text::FeatureSpec =
///     toml::from_str("tokenizer = 'words'\nstop_words = 'english'\nmin_length = 2").unwrap();
/// assert_eq!(spec.min_length, Some(2));
/// assert!(toml::from_str::<pmill_text::FeatureSpec>("tokeniser = 'words'").is_err());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FeatureSpec {
    /// How text is cut and normalised; `words` by default.
    pub tokenizer: Tokenizer,
    /// Tokens to drop: `english`, `none`, or a file with words between blanks or line ends.
    /// Not set: none, except for `qu-xie`, which takes `english`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_words: Option<StopWords>,
    /// Tokens with fewer code points are dropped. Not set: 0, except for `qu-xie`, which takes 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_length: Option<u32>,
    /// Drop tokens for which Python's `str.isnumeric` holds: every character has a numeric value,
    /// as in `12`, `½`, `Ⅷ`, `一二`; not `1.5`. Always true for `qu-xie`.
    pub drop_numeric: bool,
    /// What replaces a token that the filters kept: `wordnet:DIR` or `file:PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lemma: Option<Lemma>,
    /// File of terms, one a line, as `term` or `term<TAB>name`: where a term's tokens stand side by
    /// side they become one feature, named by its tokens with a blank between, or by `name`. Other
    /// tokens stay. Leftmost first, then longest; matches do not overlap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phrases: Option<PathBuf>,
    /// Like `phrases`, but only listed terms (single words too) are features. Not with `phrases`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concepts: Option<PathBuf>,
}

/// How text is cut into tokens and normalised.
///
/// | written | rule |
/// | --- | --- |
/// | `words` | NFKC; cut at ASCII white space (U+0009 to U+000D, U+0020); each piece cut into UAX 29 words; those that hold a letter or number (alphabetic or category N) are kept and lower-cased one by one |
/// | `whitespace` | Python's `str.split()`: cut at Unicode White_Space and U+001C to U+001F; nothing else changed |
/// | `icu` | like `words`, but each piece is cut by ICU4X with dictionaries and LSTM models for Chinese, Japanese, Thai, Lao, Khmer and Burmese; pieces that ICU calls word-like are kept |
/// | `qu-xie` | runs of characters of categories L and N (Unicode 14, as Python 3.11), lower-cased as Python does; sets the filters of the paper (see [`FeatureSpec`]); give `lemma` = `wordnet:DIR` for the whole rule, without it every token is its own lemma |
/// | `huggingface:PATH` | a `tokenizer.json`: its tokens as strings, no special tokens added, no truncation, no padding |
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Tokenizer {
    /// Unicode words, lower-cased.
    #[default]
    Words,
    /// Python's `str.split()`.
    Whitespace,
    /// The caption rule of Qu and Xie.
    QuXie,
    /// ICU4X word segmentation, lower-cased.
    Icu,
    /// A Hugging Face tokenizer file.
    HuggingFace(PathBuf),
}

/// Which tokens are dropped as too common to tell anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StopWords {
    /// `none`: nothing is dropped.
    Off,
    /// `english`: the 179 words of NLTK's list.
    English,
    /// A file with words between blanks or line ends.
    File(PathBuf),
}

/// What replaces a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Lemma {
    /// `wordnet:DIR`: the noun rule of NLTK's `WordNetLemmatizer`, with `index.noun` and `noun.exc`
    /// of WordNet 3.0 in that folder.
    WordNet(PathBuf),
    /// `file:PATH`: lines `form<TAB>lemma`; a form that is not listed stays.
    File(PathBuf),
}

impl FromStr for Tokenizer {
    type Err = TextError;

    fn from_str(value: &str) -> Result<Self, TextError> {
        match value {
            "words" => Ok(Self::Words),
            "whitespace" => Ok(Self::Whitespace),
            "qu-xie" => Ok(Self::QuXie),
            "icu" => Ok(Self::Icu),
            _ => match value.strip_prefix("huggingface:") {
                Some(path) if !path.is_empty() => Ok(Self::HuggingFace(path.into())),
                _ => Err(TextError::UnknownValue {
                    setting: "tokenizer",
                    value: value.to_owned(),
                    expected: "words, whitespace, icu, qu-xie or huggingface:PATH",
                }),
            },
        }
    }
}

impl fmt::Display for Tokenizer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words => out.write_str("words"),
            Self::Whitespace => out.write_str("whitespace"),
            Self::QuXie => out.write_str("qu-xie"),
            Self::Icu => out.write_str("icu"),
            Self::HuggingFace(path) => write!(out, "huggingface:{}", path.display()),
        }
    }
}

impl FromStr for StopWords {
    type Err = TextError;

    fn from_str(value: &str) -> Result<Self, TextError> {
        match value {
            "none" => Ok(Self::Off),
            "english" => Ok(Self::English),
            "" => Err(TextError::UnknownValue {
                setting: "stop_words",
                value: String::new(),
                expected: "english, none or the path of a file",
            }),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl fmt::Display for StopWords {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => out.write_str("none"),
            Self::English => out.write_str("english"),
            Self::File(path) => write!(out, "{}", path.display()),
        }
    }
}

impl FromStr for Lemma {
    type Err = TextError;

    fn from_str(value: &str) -> Result<Self, TextError> {
        match value.split_once(':') {
            Some(("wordnet", path)) if !path.is_empty() => Ok(Self::WordNet(path.into())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(TextError::UnknownValue {
                setting: "lemma",
                value: value.to_owned(),
                expected: "wordnet:DIR or file:PATH",
            }),
        }
    }
}

impl fmt::Display for Lemma {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WordNet(path) => write!(out, "wordnet:{}", path.display()),
            Self::File(path) => write!(out, "file:{}", path.display()),
        }
    }
}

/// Serde goes through the string form, so that TOML, JSON and the command line agree.
macro_rules! as_string {
    ($($name:ty),*) => {$(
        impl TryFrom<String> for $name {
            type Error = TextError;

            fn try_from(value: String) -> Result<Self, TextError> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}

as_string!(Tokenizer, StopWords, Lemma);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_json_and_toml() {
        let spec = FeatureSpec {
            tokenizer: Tokenizer::HuggingFace("dir/tokenizer.json".into()),
            stop_words: Some(StopWords::File("stop.txt".into())),
            min_length: Some(3),
            drop_numeric: true,
            lemma: Some(Lemma::WordNet("wordnet".into())),
            phrases: Some("phrases.txt".into()),
            concepts: None,
        };
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<FeatureSpec>(&json).unwrap(), spec);
        let text = toml::to_string(&spec).unwrap();
        assert_eq!(toml::from_str::<FeatureSpec>(&text).unwrap(), spec);
    }

    #[test]
    fn an_empty_spec_is_the_default() {
        assert_eq!(
            toml::from_str::<FeatureSpec>("").unwrap(),
            FeatureSpec::default()
        );
        assert_eq!(FeatureSpec::default().tokenizer, Tokenizer::Words);
    }

    #[test]
    fn an_unknown_tokenizer_is_named_with_those_that_exist() {
        let error = "word".parse::<Tokenizer>().unwrap_err().to_string();
        assert_eq!(
            error,
            "unknown tokenizer `word`, expected words, whitespace, icu, qu-xie or huggingface:PATH"
        );
        assert!("huggingface:".parse::<Tokenizer>().is_err());
        assert!("snowball".parse::<Lemma>().is_err());
        assert!("".parse::<StopWords>().is_err());
    }
}
