//! A compiled feature spec: text or tokens in, features out.

use std::path::Path;

use hashbrown::HashSet;
use serde::{Deserialize, Serialize};

use crate::lemma::{Lemmatizer, WordNetNouns};
use crate::phrases::Matcher;
use crate::resources::{Resource, digest};
use crate::stop_words::english_stop_words;
use crate::tokenize::Cutter;
use crate::unicode::{is_numeric, is_python_space};
use crate::{FeatureSpec, Lemma, StopWords, TextError, Tokenizer};

/// Goes up when the same settings and files give other features than before.
const RULES_VERSION: u32 = 1;

/// What a [`FeatureSpec`] came to: all that decides the features, and nothing else.
///
/// Files stand as the BLAKE3 digest of their bytes, so two machines that keep the same file at
/// different paths agree, and a changed file does not. Keep it in a table's metadata and compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedSpec {
    /// Version of the rules in this crate.
    pub rules: u32,
    /// The tokenizer's name: `words`, `whitespace`, `qu-xie`, `icu` or `huggingface`.
    pub tokenizer: String,
    /// The Unicode data that the tokenizer stands on; empty if it uses none that changes.
    pub unicode: String,
    /// Digest of the tokenizer's file.
    pub tokenizer_digest: Option<String>,
    /// Digest of the stop words; the built-in list has the digest of a file with one word a line.
    pub stop_words_digest: Option<String>,
    /// Shortest token kept, in code points; 0 and 1 are the same and stand as 0.
    pub min_length: u32,
    /// Whether numeric tokens are dropped.
    pub drop_numeric: bool,
    /// `wordnet` or `file`.
    pub lemma: Option<String>,
    /// Digests of the lemma's files: `index.noun` and `noun.exc`, or the list.
    pub lemma_digests: Vec<String>,
    /// Digest of the phrase list.
    pub phrases_digest: Option<String>,
    /// Digest of the concept list.
    pub concepts_digest: Option<String>,
}

/// Buffers that [`FeatureExtractor::for_each_feature`] uses again for every row.
#[derive(Debug, Default)]
pub struct Scratch {
    lemma: String,
    row: TokenRow,
}

/// The tokens of one row, kept for phrase matching.
#[derive(Debug, Default)]
struct TokenRow {
    lemmas: String,
    /// By token: where its lemma ends, its symbol, and whether the filters keep it.
    tokens: Vec<(usize, Option<u32>, bool)>,
}

/// Text to features, compiled from a [`FeatureSpec`]. `Send` and `Sync`: share it in an `Arc`.
///
/// ```
/// use pmill_text::{FeatureExtractor, FeatureSpec, Scratch};
/// let extractor = FeatureExtractor::new(&FeatureSpec::default()).unwrap();
/// let mut features = Vec::new();
/// extractor
///     .for_each_feature("A dog, two Dogs!", &mut Scratch::default(), |f| features.push(f.to_owned()))
///     .unwrap();
/// assert_eq!(features, ["a", "dog", "two", "dogs"]);
/// ```
pub struct FeatureExtractor {
    pub(crate) cutter: Cutter,
    stop_words: HashSet<Box<str>>,
    min_length: usize,
    drop_numeric: bool,
    lemmatizer: Lemmatizer,
    pub(crate) matcher: Option<Matcher>,
    resolved: ResolvedSpec,
}

impl std::fmt::Debug for FeatureExtractor {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("FeatureExtractor")
            .field(&self.resolved)
            .finish()
    }
}

impl FeatureExtractor {
    /// Compiles a spec and reads the files it names.
    ///
    /// # Errors
    /// A file that is missing, not UTF-8 or not laid out as its setting says; `phrases` together
    /// with `concepts`; a Hugging Face tokenizer in a build without that feature.
    pub fn new(spec: &FeatureSpec) -> Result<Self, TextError> {
        if spec.phrases.is_some() && spec.concepts.is_some() {
            return Err(TextError::Conflict {
                first: "phrases",
                second: "concepts",
                reason: "a list either joins terms and keeps other tokens (phrases) or keeps only its terms (concepts)",
            });
        }
        let preset = spec.tokenizer == Tokenizer::QuXie;
        let (cutter, tokenizer_digest) = Cutter::new(spec)?;
        let (stop_words, stop_words_digest) = match &spec.stop_words {
            None if preset => english(),
            None | Some(StopWords::Off) => (HashSet::new(), None),
            Some(StopWords::English) => english(),
            Some(StopWords::File(path)) => {
                let resource = Resource::read("stop words", path)?;
                let words = resource
                    .text()
                    .split(is_python_space)
                    .filter(|word| !word.is_empty())
                    .map(Box::from)
                    .collect();
                (words, Some(resource.digest()))
            }
        };
        let (lemmatizer, lemma, lemma_digests) = match &spec.lemma {
            None => (Lemmatizer::Identity, None, Vec::new()),
            Some(Lemma::WordNet(folder)) => {
                let (nouns, digests) = WordNetNouns::read(folder)?;
                (Lemmatizer::WordNet(nouns), Some("wordnet"), digests)
            }
            Some(Lemma::File(path)) => {
                let resource = Resource::read("lemmas", path)?;
                let list = Lemmatizer::from_list(&resource)?;
                (list, Some("file"), vec![resource.digest()])
            }
        };
        let min_length = match spec.min_length {
            None if preset => 2,
            None | Some(1) => 0,
            Some(length) => length,
        };
        let drop_numeric = spec.drop_numeric || preset;
        let resolved = ResolvedSpec {
            rules: RULES_VERSION,
            tokenizer: match &spec.tokenizer {
                Tokenizer::HuggingFace(_) => "huggingface".to_owned(),
                named => named.to_string(),
            },
            unicode: unicode_of(&spec.tokenizer),
            tokenizer_digest,
            stop_words_digest,
            min_length,
            drop_numeric,
            lemma: lemma.map(str::to_owned),
            lemma_digests,
            phrases_digest: None,
            concepts_digest: None,
        };
        let mut extractor = Self {
            cutter,
            stop_words,
            min_length: min_length as usize,
            drop_numeric,
            lemmatizer,
            matcher: None,
            resolved,
        };
        if let Some(path) = &spec.phrases {
            extractor.resolved.phrases_digest = Some(extractor.read_terms("phrases", path, true)?);
        }
        if let Some(path) = &spec.concepts {
            extractor.resolved.concepts_digest =
                Some(extractor.read_terms("concepts", path, false)?);
        }
        Ok(extractor)
    }

    /// Reads a term list with this extractor's own tokenizer and lemma; gives its digest.
    fn read_terms(
        &mut self,
        what: &'static str,
        path: &Path,
        keeps_others: bool,
    ) -> Result<String, TextError> {
        let resource = Resource::read(what, path)?;
        let mut buffer = String::new();
        let matcher = Matcher::read(&resource, keeps_others, |term| {
            let mut tokens = Vec::new();
            self.cutter.for_each(term, |token| {
                tokens.push(self.lemma(token, &mut buffer).to_owned());
                Ok(())
            })?;
            Ok(tokens)
        })?;
        self.matcher = Some(matcher);
        Ok(resource.digest())
    }

    /// All that decides the features, for a table's metadata.
    #[must_use]
    pub fn describe(&self) -> &ResolvedSpec {
        &self.resolved
    }

    /// Calls `each` with every feature of a text, in order: the plain road, a few hundred
    /// nanoseconds a token. [`crate::DictionaryBuilder`] and [`crate::IdEncoder`] are the fast one.
    ///
    /// # Errors
    /// Only from a Hugging Face tokenizer that refuses the text.
    pub fn for_each_feature(
        &self,
        text: &str,
        scratch: &mut Scratch,
        mut each: impl FnMut(&str),
    ) -> Result<(), TextError> {
        let Scratch { lemma, row } = scratch;
        self.cutter.for_each(text, |token| {
            self.token(token, lemma, row, &mut each);
            Ok(())
        })?;
        self.end_row(row, &mut each);
        Ok(())
    }

    /// Like [`FeatureExtractor::for_each_feature`] for a row that is cut into tokens already: filters,
    /// lemma, phrases and concepts apply; the tokenizer and its normalisation do not. An empty token
    /// is no token.
    pub fn for_each_feature_of_tokens<'a>(
        &self,
        tokens: impl Iterator<Item = &'a str>,
        scratch: &mut Scratch,
        mut each: impl FnMut(&str),
    ) {
        let Scratch { lemma, row } = scratch;
        for token in tokens.filter(|token| !token.is_empty()) {
            self.token(token, lemma, row, &mut each);
        }
        self.end_row(row, &mut each);
    }

    /// One token: out at once, or into the row if terms are to be matched.
    fn token(
        &self,
        token: &str,
        buffer: &mut String,
        row: &mut TokenRow,
        each: &mut impl FnMut(&str),
    ) {
        let keeps = self.keeps(token);
        match &self.matcher {
            None if keeps => each(self.lemma(token, buffer)),
            None => {}
            Some(matcher) => {
                let lemma = self.lemma(token, buffer);
                row.lemmas.push_str(lemma);
                row.tokens
                    .push((row.lemmas.len(), matcher.symbol(lemma), keeps));
            }
        }
    }

    /// Matches the terms of the row and forgets it.
    fn end_row(&self, row: &mut TokenRow, each: &mut impl FnMut(&str)) {
        let Some(matcher) = &self.matcher else {
            return;
        };
        let mut index = 0;
        let mut start = 0;
        while index < row.tokens.len() {
            let (end, _, keeps) = row.tokens[index];
            let symbols = row.tokens[index..].iter().map(|&(_, symbol, _)| symbol);
            if let Some(found) = matcher.longest(symbols) {
                each(matcher.name(found.term));
                index += found.tokens;
                start = row.tokens[index - 1].0;
                continue;
            }
            if keeps && matcher.keeps_others() {
                each(&row.lemmas[start..end]);
            }
            index += 1;
            start = end;
        }
        row.lemmas.clear();
        row.tokens.clear();
    }

    /// Whether the filters keep a token.
    pub(crate) fn keeps(&self, token: &str) -> bool {
        if self.min_length > 0 && token.chars().count() < self.min_length {
            return false;
        }
        if self.drop_numeric && is_numeric(token) {
            return false;
        }
        self.stop_words.is_empty() || !self.stop_words.contains(token)
    }

    /// The lemma of a token; `buffer` is where a new word is built.
    pub(crate) fn lemma<'a>(&'a self, token: &'a str, buffer: &'a mut String) -> &'a str {
        self.lemmatizer.lemma(token, buffer)
    }
}

fn english() -> (HashSet<Box<str>>, Option<String>) {
    let file: String = english_stop_words().flat_map(|word| [word, "\n"]).collect();
    (
        english_stop_words().map(Box::from).collect(),
        Some(digest(file.as_bytes())),
    )
}

/// The versions of the Unicode data behind a tokenizer.
fn unicode_of(tokenizer: &Tokenizer) -> String {
    let (major, minor, patch) = unicode_normalization::UNICODE_VERSION;
    let nfkc = format!("nfkc {major}.{minor}.{patch}");
    match tokenizer {
        Tokenizer::Words => {
            let (major, minor, patch) = unicode_segmentation::UNICODE_VERSION;
            format!("{nfkc}, words {major}.{minor}.{patch}")
        }
        Tokenizer::Icu => format!("{nfkc}, icu_segmenter 2"),
        Tokenizer::QuXie => crate::unicode_tables::UNICODE_VERSION.to_owned(),
        Tokenizer::Whitespace | Tokenizer::HuggingFace(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn features(spec: &FeatureSpec, text: &str) -> Vec<String> {
        let mut features = Vec::new();
        FeatureExtractor::new(spec)
            .unwrap()
            .for_each_feature(text, &mut Scratch::default(), |feature| {
                features.push(feature.to_owned())
            })
            .unwrap();
        features
    }

    fn with_list(
        list: &str,
        set: impl Fn(&mut FeatureSpec, std::path::PathBuf),
    ) -> (tempfile::TempDir, FeatureSpec) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        std::fs::write(&path, list).unwrap();
        let mut spec = FeatureSpec::default();
        set(&mut spec, path);
        (folder, spec)
    }

    #[test]
    fn an_extractor_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<FeatureExtractor>();
        shared::<crate::Vocabulary>();
    }

    #[test]
    fn phrases_are_joined_longest_first_and_other_tokens_stay() {
        let list = "new york\nnew york city\nstatue of liberty\tliberty island\nyork city hall\n";
        let (_folder, mut spec) = with_list(list, |spec, path| spec.phrases = Some(path));
        spec.stop_words = Some(StopWords::English);
        assert_eq!(
            features(
                &spec,
                "The Statue of Liberty in New York City Hall, or New York"
            ),
            ["liberty island", "new york city", "hall", "new york"]
        );
        // Tokens that are dropped still stand between: no match over them.
        assert_eq!(
            features(&spec, "new the york of statue"),
            ["new", "york", "statue"]
        );
        assert_eq!(
            features(&spec, "newyork new yorkers"),
            ["newyork", "new", "yorkers"]
        );
    }

    #[test]
    fn concepts_alone_are_features() {
        let list = "polar bear\nbear\nbe\n";
        let (_folder, mut spec) = with_list(list, |spec, path| spec.concepts = Some(path));
        spec.stop_words = Some(StopWords::English);
        assert_eq!(
            features(&spec, "to be a Polar bear, a bear: polar, not bears"),
            ["be", "polar bear", "bear"]
        );
    }

    #[test]
    fn a_term_list_with_an_empty_term_or_two_names_is_refused_with_its_line() {
        for list in [
            "dog\n!!!\n",
            "a dog\tx\nA  DOG\ty\n",
            "dog\t\n",
            "dog\tx\ty\n",
        ] {
            let (_folder, spec) = with_list(list, |spec, path| spec.concepts = Some(path));
            let error = FeatureExtractor::new(&spec).unwrap_err();
            assert!(
                matches!(error, TextError::BadLine { line: 1 | 2, .. }),
                "{error}"
            );
            assert_eq!(error.kind(), ErrorKind::User);
        }
    }

    #[test]
    fn the_same_content_at_another_path_resolves_to_the_same() {
        let set = |spec: &mut FeatureSpec, path| spec.stop_words = Some(StopWords::File(path));
        let (_one, left) = with_list("the\na\n", set);
        let (_two, right) = with_list("the\na\n", set);
        let (_three, other) = with_list("the\n", set);
        assert_ne!(left, right);
        let resolve = |spec| FeatureExtractor::new(spec).unwrap().describe().clone();
        assert_eq!(resolve(&left), resolve(&right));
        assert_ne!(resolve(&left), resolve(&other));
        let json = serde_json::to_value(resolve(&left)).unwrap();
        assert_eq!(
            serde_json::from_value::<ResolvedSpec>(json).unwrap(),
            resolve(&left)
        );
    }

    #[test]
    fn qu_xie_sets_the_filters_of_the_paper() {
        let preset = FeatureSpec {
            tokenizer: Tokenizer::QuXie,
            ..FeatureSpec::default()
        };
        assert_eq!(
            features(&preset, "The dogs_2 x 一二 don't ½ 3d"),
            ["dogs", "3d"]
        );
        let written = FeatureSpec {
            stop_words: Some(StopWords::English),
            min_length: Some(2),
            drop_numeric: true,
            ..preset.clone()
        };
        let resolve = |spec| FeatureExtractor::new(spec).unwrap().describe().clone();
        assert_eq!(resolve(&preset), resolve(&written));
        let unfiltered = FeatureSpec {
            stop_words: Some(StopWords::Off),
            min_length: Some(0),
            ..preset
        };
        assert_eq!(features(&unfiltered, "The dogs x 2"), ["the", "dogs", "x"]);
    }

    #[test]
    fn what_cannot_be_built_is_said_plainly() {
        let both = FeatureSpec {
            phrases: Some("a".into()),
            concepts: Some("b".into()),
            ..FeatureSpec::default()
        };
        assert!(matches!(
            FeatureExtractor::new(&both),
            Err(TextError::Conflict { .. })
        ));
        let missing = FeatureSpec {
            lemma: Some(Lemma::WordNet("no-such-folder".into())),
            ..FeatureSpec::default()
        };
        let error = FeatureExtractor::new(&missing).unwrap_err().to_string();
        assert!(
            error.contains("wordnet-base") && error.contains("index.noun"),
            "{error}"
        );
        #[cfg(not(feature = "huggingface"))]
        {
            let spec = FeatureSpec {
                tokenizer: Tokenizer::HuggingFace("tokenizer.json".into()),
                ..FeatureSpec::default()
            };
            let error = FeatureExtractor::new(&spec).unwrap_err().to_string();
            assert!(error.contains("--features huggingface"), "{error}");
        }
    }

    #[cfg(feature = "huggingface")]
    #[test]
    fn a_hugging_face_tokenizer_gives_its_tokens() {
        use std::sync::Arc;
        // A word-level model with truncation and padding, both of which must not be heeded.
        let json = r#"{
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
                        "pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]"},
            "added_tokens": [], "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "dog": 2, "runs": 7}, "unk_token": "[UNK]"}
        }"#;
        let (_folder, mut spec) = with_list(json, |spec, path| {
            spec.tokenizer = Tokenizer::HuggingFace(path)
        });
        let text = "A dog runs, a DOG";
        let expected = ["a", "dog", "runs", "[UNK]", "a", "dog"];
        assert_eq!(features(&spec, text), expected);
        let extractor = Arc::new(FeatureExtractor::new(&spec).unwrap());
        let mut builder = crate::DictionaryBuilder::new(&extractor);
        let mut out = Vec::new();
        builder.push_row(text, &mut out).unwrap();
        builder.push_row("", &mut out).unwrap();
        let dictionary = builder.finish();
        let found: Vec<&str> = out
            .iter()
            .map(|&local| dictionary.entry(local).term)
            .collect();
        assert_eq!(found, expected);
        spec.min_length = Some(2);
        assert_eq!(features(&spec, text), ["dog", "runs", "[UNK]", "dog"]);
        let (_folder, broken) = with_list("{}", |spec, path| {
            spec.tokenizer = Tokenizer::HuggingFace(path)
        });
        assert!(matches!(
            FeatureExtractor::new(&broken),
            Err(TextError::HuggingFace { .. })
        ));
    }
}
