//! What a count job is told: one typed struct, from flags or a pipeline file, and what of it is
//! recorded with the table.
//!
//! Two tables may be merged, and a batch may join a table, only if their [`RecordedSettings`]
//! agree.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pmill_count::{Context, OutOfVocabulary, Side, TailSettings, Weight, Window};
use pmill_text::{FeatureExtractor, FeatureSpec, ResolvedSpec, VocabularyRule};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::expression::RowSpec;

/// Where features meet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContextSettings {
    /// `document`: both in one row, once a row. `window`: within `window` tokens of one row.
    pub kind: ContextKind,
    /// Window: how many tokens away two tokens may be.
    pub window: u32,
    /// Window: weight of a pair at distance d.
    pub weight: Weight,
    /// Window: which neighbours of a token count as its context.
    pub side: Side,
    /// Window: whether tokens outside the vocabulary are taken out before windows are laid.
    pub out_of_vocabulary: OutOfVocabulary,
    /// Document: at most this many distinct features of a row, the most frequent ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_features_per_document: Option<u32>,
    /// Window: word2vec's subsampling threshold; frequent tokens are dropped by chance, the chance
    /// decided by a hash of the row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subsample: Option<f64>,
}

impl Default for ContextSettings {
    fn default() -> Self {
        Self {
            kind: ContextKind::Document,
            window: 10,
            weight: Weight::Uniform,
            side: Side::Symmetric,
            out_of_vocabulary: OutOfVocabulary::Removed,
            max_features_per_document: None,
            subsample: None,
        }
    }
}

/// The kinds of context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContextKind {
    /// Both in one row.
    Document,
    /// Near each other in one row.
    Window,
}

impl ContextSettings {
    /// The kernel's context.
    ///
    /// # Errors
    /// When a setting is out of its range, or does not go with the kind.
    pub fn to_context(&self) -> Result<Context, EngineError> {
        let wrong = |text: &str| Err(EngineError::Setting(text.to_owned()));
        match self.kind {
            ContextKind::Document => {
                if self.subsample.is_some() {
                    return wrong("`subsample` goes with the context `window`, not `document`");
                }
                if self.max_features_per_document == Some(0) {
                    return wrong("`max-features-per-document` must be at least 1");
                }
                Ok(Context::Document {
                    max_features: self.max_features_per_document,
                })
            }
            ContextKind::Window => {
                if self.window == 0 {
                    return wrong("`window` must be at least 1");
                }
                if self.max_features_per_document.is_some() {
                    return wrong(
                        "`max-features-per-document` goes with the context `document`, not `window`",
                    );
                }
                if self.subsample.is_some_and(|t| !(t > 0.0 && t.is_finite())) {
                    return wrong("`subsample` must be above 0 (1e-5 is usual)");
                }
                Ok(Context::Window(Window {
                    size: self.window,
                    weight: self.weight,
                    side: self.side,
                    out_of_vocabulary: self.out_of_vocabulary,
                }))
            }
        }
    }
}

/// Which terms are counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VocabularySettings {
    /// At most so many terms, the most frequent ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Only terms that occur this often; 0 is as 1.
    pub min_count: u64,
    /// Only the terms of this file, one a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

impl Default for VocabularySettings {
    /// All terms that occur.
    fn default() -> Self {
        Self {
            size: None,
            min_count: 1,
            file: None,
        }
    }
}

impl VocabularySettings {
    /// The rule that picks the terms.
    #[must_use]
    pub fn rule(&self) -> VocabularyRule {
        VocabularyRule {
            size: self.size,
            min_count: self.min_count,
        }
    }
}

/// What happens at a bad file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadFile {
    /// The job ends, with nothing committed.
    #[default]
    Fail,
    /// The file is left out whole, and listed in `sources`.
    Skip,
}

/// What is counted and how.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CountSettings {
    /// The text column: a name, a path through structs, or an SQL expression over columns.
    pub text: String,
    /// Only rows for which this SQL condition over the file's columns is true.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Counts are kept apart by this value: a column, or an SQL expression over columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice: Option<String>,
    /// Text to features.
    pub features: FeatureSpec,
    /// Which terms.
    pub vocabulary: VocabularySettings,
    /// Where features meet.
    pub context: ContextSettings,
    /// Pairs beyond those of the most frequent terms go into a sketch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sketch: Option<TailSettings>,
}

impl CountSettings {
    /// What is read of each row.
    #[must_use]
    pub fn rows(&self) -> RowSpec {
        RowSpec {
            text: self.text.clone(),
            filter: self.filter.clone(),
            slice: self.slice.clone(),
        }
    }
}

/// The settings that a table was made with, kept in its metadata.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedSettings {
    /// The program that first counted.
    pub program: String,
    /// As the user gave them (paths included).
    pub given: CountSettings,
    /// The features, with the digest of every file in place of its path.
    pub features: ResolvedSpec,
    /// Digest of the vocabulary file.
    pub vocabulary_digest: Option<String>,
    /// Weight units in a natural count of 1.
    pub weight_unit: u64,
}

impl RecordedSettings {
    /// Resolves what the settings name.
    ///
    /// # Errors
    /// When a setting or a file that it names is wrong.
    pub fn resolve(
        settings: &CountSettings,
        extractor: &FeatureExtractor,
    ) -> Result<Self, EngineError> {
        if settings.text.is_empty() {
            return Err(EngineError::Setting(
                "which column holds the text is not said: give --text COLUMN (or `text` in the pipeline file)".into(),
            ));
        }
        let context = settings.context.to_context()?;
        if let Some(sketch) = &settings.sketch {
            sketch.validate()?;
            if settings.slice.is_some() {
                return Err(EngineError::Setting(
                    "a sketch does not go with slices; count one slice after another into jobs of their own, with `where`".into(),
                ));
            }
        }
        let vocabulary_digest = match &settings.vocabulary.file {
            None => None,
            Some(path) => {
                let bytes = std::fs::read(path).map_err(|source| EngineError::Io {
                    action: "read vocabulary",
                    path: path.display().to_string(),
                    source,
                })?;
                Some(blake3::hash(&bytes).to_hex().to_string())
            }
        };
        Ok(Self {
            program: concat!("pmill ", env!("CARGO_PKG_VERSION")).to_owned(),
            given: settings.clone(),
            features: extractor.describe().clone(),
            vocabulary_digest,
            weight_unit: pmill_count::weight_unit(&context)?,
        })
    }

    /// What differs between two tables' settings, one line each; empty when they may be merged.
    /// The program's version, the column's name and the paths of files may differ.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut compare = |name: &str, here: String, there: String| {
            if here != there {
                lines.push(format!("{name}: {here} here, {there} there"));
            }
        };
        let (a, b) = (fields(&self.features), fields(&other.features));
        for (key, value) in &a {
            compare(
                &format!("features.{key}"),
                value.clone(),
                b.get(key).cloned().unwrap_or_default(),
            );
        }
        let (a, b) = (fields(&self.given.context), fields(&other.given.context));
        for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
            let unset = || "not set".to_owned();
            compare(
                &format!("context.{key}"),
                a.get(key).cloned().unwrap_or_else(unset),
                b.get(key).cloned().unwrap_or_else(unset),
            );
        }
        let unset = |value: Option<String>| value.unwrap_or_else(|| "not set".to_owned());
        compare(
            "where",
            unset(self.given.filter.clone()),
            unset(other.given.filter.clone()),
        );
        compare(
            "slice",
            unset(self.given.slice.clone()),
            unset(other.given.slice.clone()),
        );
        let (a, b) = (&self.given.sketch, &other.given.sketch);
        for (name, of) in [
            (
                "sketch.exact_terms",
                (|s| s.exact_terms) as fn(&TailSettings) -> u32,
            ),
            ("sketch.buckets", |s| s.buckets),
            ("sketch.hashes", |s| s.hashes.into()),
        ] {
            compare(
                name,
                unset(a.as_ref().map(|sketch| of(sketch).to_string())),
                unset(b.as_ref().map(|sketch| of(sketch).to_string())),
            );
        }
        let (a, b) = (&self.given.vocabulary, &other.given.vocabulary);
        compare(
            "vocabulary.size",
            unset(a.size.map(|n| n.to_string())),
            unset(b.size.map(|n| n.to_string())),
        );
        compare(
            "vocabulary.min_count",
            a.min_count.max(1).to_string(),
            b.min_count.max(1).to_string(),
        );
        compare(
            "vocabulary.file (digest)",
            unset(self.vocabulary_digest.clone()),
            unset(other.vocabulary_digest.clone()),
        );
        lines
    }
}

/// The fields of a struct, each as JSON text.
fn fields(value: &impl Serialize) -> BTreeMap<String, String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::Object(map)) => map
            .into_iter()
            .map(|(key, value)| (key, value.to_string()))
            .collect(),
        _ => BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(settings: &CountSettings) -> RecordedSettings {
        let extractor = FeatureExtractor::new(&settings.features).unwrap();
        RecordedSettings::resolve(settings, &extractor).unwrap()
    }

    fn settings() -> CountSettings {
        CountSettings {
            text: "TEXT".into(),
            ..CountSettings::default()
        }
    }

    #[test]
    fn equal_settings_agree_and_each_difference_is_named() {
        let here = recorded(&settings());
        let renamed = CountSettings {
            text: "caption".into(),
            ..settings()
        };
        assert_eq!(here.differences(&recorded(&renamed)), Vec::<String>::new());
        let mut other = settings();
        other.vocabulary.size = Some(9);
        other.context.kind = ContextKind::Window;
        other.context.weight = Weight::Harmonic;
        other.features.drop_numeric = true;
        other.sketch = Some(TailSettings {
            exact_terms: 7,
            buckets: 99,
            hashes: 4,
        });
        assert_eq!(
            here.differences(&recorded(&other)),
            [
                "features.drop_numeric: false here, true there",
                "context.kind: \"document\" here, \"window\" there",
                "context.weight: \"uniform\" here, \"harmonic\" there",
                "sketch.exact_terms: not set here, 7 there",
                "sketch.buckets: not set here, 99 there",
                "sketch.hashes: not set here, 4 there",
                "vocabulary.size: not set here, 9 there",
            ]
        );
        assert_eq!(recorded(&other).weight_unit, 2520);
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused() {
        let refused = |change: fn(&mut ContextSettings)| {
            let mut context = ContextSettings::default();
            change(&mut context);
            context.to_context().unwrap_err().to_string()
        };
        assert!(refused(|c| c.subsample = Some(1e-5)).contains("`window`"));
        assert!(refused(|c| c.max_features_per_document = Some(0)).contains("at least 1"));
        assert!(refused(|c| (c.kind, c.window) = (ContextKind::Window, 0)).contains("at least 1"));
        assert!(
            refused(|c| (c.kind, c.subsample) = (ContextKind::Window, Some(f64::NAN)))
                .contains("above 0")
        );
    }
}
