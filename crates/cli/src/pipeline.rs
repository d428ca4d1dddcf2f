//! Pipeline files: one typed struct, unknown keys refused with a suggestion.

use std::path::{Path, PathBuf};

use pmill_engine::count_settings::TailSettings;
use pmill_engine::error::nearest_name;
use pmill_engine::memory::ByteSize;
use pmill_engine::score::ScoreSettings;
use pmill_engine::settings::{ContextSettings, CountSettings, OnBadFile, VocabularySettings};
use pmill_engine::store::Keep;
use pmill_engine::text::FeatureSpec;
use pmill_engine::vacuum::parse_duration;
use serde::Deserialize;

use crate::outcome::Failure;
use crate::parameters;
use crate::sql::Format;

/// A pipeline file. Paths in it are relative to the folder where pmill is started.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pipeline {
    /// Job name.
    pub name: String,
    /// Folder of the warehouse.
    pub warehouse: String,
    /// What is read.
    pub input: Input,
    /// Text to features.
    pub features: FeatureSpec,
    /// Which terms.
    pub vocabulary: VocabularySettings,
    /// Where features meet.
    pub context: ContextSettings,
    /// Pairs beyond those of the most frequent terms go into a sketch; without this table all are exact.
    pub sketch: Option<TailSettings>,
    /// How pairs are scored; without this table they are not.
    pub score: Option<ScoreSettings>,
    /// Values that stand as `{name}` in the SQL below.
    pub parameters: toml::Table,
    /// Queries that later ones read as tables, in order. The table `input` is the input's files.
    pub view: Vec<View>,
    /// Queries whose rows are written to files, in order.
    pub export: Vec<Export>,
    /// Means; flags beat them.
    pub limits: Limits,
    /// What is done to the job's tables at the end.
    pub maintenance: Maintenance,
    /// All of it several times, each time with what the time before wrote.
    pub repeat: Option<Repeat>,
}

/// How a pipeline is done several times. The jobs are NAME_1, NAME_2, …
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repeat {
    /// How often.
    pub passes: std::num::NonZeroU32,
    /// The setting (`features.phrases`) that gets the first export's path from the second time on.
    pub feed: String,
}

/// What is done to the job's tables at the end.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Maintenance {
    /// Rewrite the pairs into few files of an even size.
    pub compact: bool,
    /// Give up versions that were not the newest within this long (`30d`).
    pub keep: Option<String>,
    /// Give up all but this many versions, the newest ones.
    pub keep_versions: Option<std::num::NonZeroU64>,
}

impl Maintenance {
    /// Which versions stay; `None` when all do.
    pub fn keep(&self) -> Result<Option<Keep>, Failure> {
        match (&self.keep, self.keep_versions) {
            (None, None) => Ok(None),
            (None, Some(versions)) => Ok(Some(Keep::Versions(versions.get()))),
            (Some(time), None) => parse_duration(time)
                .map(|time| Some(Keep::Within(time)))
                .map_err(|error| Failure::user(format!("`maintenance.keep`: {error}"))),
            (Some(_), Some(_)) => Err(Failure::user(
                "`maintenance.keep` and `maintenance.keep_versions` are both set; set one",
            )),
        }
    }
}

/// What is read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Input {
    /// Paths, globs, folders, URIs.
    pub paths: Vec<String>,
    /// Text column, or an SQL expression over columns.
    pub text: String,
    /// Only rows for which this SQL condition is true.
    #[serde(rename = "where")]
    pub filter: Option<String>,
    /// Counts are kept apart by this column or SQL expression.
    pub slice: Option<String>,
    /// What happens at a bad file.
    pub on_bad_file: OnBadFile,
}

/// A query that later ones read as a table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// The table's name.
    pub name: String,
    /// The query.
    pub sql: String,
}

/// A query whose rows are written to a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The query.
    pub sql: String,
    /// The file.
    pub output: PathBuf,
    /// How.
    pub format: Format,
}

/// Means of a run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory limit.
    pub memory_limit: Option<ByteSize>,
    /// Threads.
    pub threads: Option<std::num::NonZeroUsize>,
}

impl Pipeline {
    /// Reads a pipeline file and lays `settings` (`key.path=value`) over it.
    pub fn read(path: &Path, settings: &[String]) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::user(format!("cannot read `{}`: {error}", path.display())))?;
        Self::parse(&text, settings)
            .map_err(|message| Failure::user(format!("`{}`: {message}", path.display())))
    }

    pub(crate) fn parse(text: &str, settings: &[String]) -> Result<Self, String> {
        parse(text, settings)
    }

    /// Lays the parameters into the SQL; `job` is the job's name.
    pub fn fill(&mut self) -> Result<(), Failure> {
        let job = toml::Value::String(self.name.clone());
        self.parameters.entry("job").or_insert(job);
        let views = self.view.iter_mut().map(|view| &mut view.sql);
        for sql in views.chain(self.export.iter_mut().map(|export| &mut export.sql)) {
            *sql = parameters::fill(sql, &self.parameters).map_err(Failure::user)?;
        }
        Ok(())
    }

    /// The settings of its count job.
    pub fn count_settings(&self) -> CountSettings {
        CountSettings {
            text: self.input.text.clone(),
            filter: self.input.filter.clone(),
            slice: self.input.slice.clone(),
            features: self.features.clone(),
            vocabulary: self.vocabulary.clone(),
            context: self.context.clone(),
            sketch: self.sketch.clone(),
        }
    }
}

/// A pipeline file of any kind with `settings` laid over it; unknown keys are told with the nearest.
pub fn parse<T: serde::de::DeserializeOwned>(text: &str, settings: &[String]) -> Result<T, String> {
    let mut table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| error.to_string())?;
    // Errors of the file are told with line and column, before settings are laid over it.
    toml::from_str::<T>(text).map_err(|error| suggest(&error.to_string()))?;
    for setting in settings {
        let (key, value) = setting
            .split_once('=')
            .ok_or_else(|| format!("--set {setting}: expected key=value"))?;
        set(&mut table, key.trim(), value.trim())?;
    }
    table
        .try_into::<T>()
        .map_err(|error| suggest(&error.to_string()))
}

/// Whether a pipeline file has this table.
pub fn has_table(text: &str, name: &str) -> bool {
    text.parse::<toml::Table>()
        .is_ok_and(|table| table.contains_key(name))
}

/// Sets a dotted key; the value is TOML, or else text.
fn set(table: &mut toml::Table, key: &str, value: &str) -> Result<(), String> {
    let parsed = format!("value = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut place = table;
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            place.insert(part.to_owned(), parsed);
            return Ok(());
        }
        place = place
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("--set {key}: `{part}` is not a table"))?;
    }
    Err(format!("--set {key}: expected key=value"))
}

/// Adds "did you mean" to serde's message on an unknown key.
fn suggest(message: &str) -> String {
    let message = message.trim_end();
    let Some(unknown) = quoted(message.split("unknown field ").nth(1)) else {
        return message.to_owned();
    };
    let known: Vec<&str> = message
        .split("expected")
        .nth(1)
        .map(|list| list.split('`').skip(1).step_by(2).collect())
        .unwrap_or_default();
    match nearest_name(&unknown, known) {
        Some(name) => format!("{message}\ndid you mean `{name}`?"),
        None => message.to_owned(),
    }
}

fn quoted(text: Option<&str>) -> Option<String> {
    text?.split('`').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest() {
        let error = Pipeline::parse("[context]\nwindw = 5\n", &[]).unwrap_err();
        assert!(error.contains("line 2, column 1"), "{error}");
        assert!(error.ends_with("did you mean `window`?"), "{error}");
        let error = Pipeline::parse("", &["vocabulary.sice=5".into()]).unwrap_err();
        assert!(error.ends_with("did you mean `size`?"), "{error}");
    }

    #[test]
    fn settings_are_laid_over_the_file() {
        let text = "name = 'a'\n[vocabulary]\nsize = 7\nmin_count = 2\n";
        let settings = [
            "vocabulary.size=9".to_owned(),
            "name=b".into(),
            "input.paths=['x','y']".into(),
        ];
        let pipeline = Pipeline::parse(text, &settings).unwrap();
        assert_eq!(pipeline.vocabulary.size, Some(9));
        assert_eq!(pipeline.vocabulary.min_count, 2);
        assert_eq!(pipeline.name, "b");
        assert_eq!(pipeline.input.paths, ["x", "y"]);
        assert!(Pipeline::parse(text, &["name".into()]).is_err());
        assert!(Pipeline::parse(text, &["name.x=1".into()]).is_err());
    }
}
