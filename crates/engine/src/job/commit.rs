//! The commit: `vocab`, `sources` and `pairs` become visible as one version.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use pmill_store::{JobCommit, schema};
use pmill_text::Vocabulary;

use super::Facts;
use super::run::Run;
use crate::counting::RangeFile;
use crate::error::EngineError;
use crate::progress::Unit as Steps;
use crate::sources::SourceRow;
use crate::tables::vocab_columns;

impl Run<'_> {
    pub(super) fn commit(
        &self,
        vocabulary: &Vocabulary,
        sources: &[SourceRow],
        pairs: Vec<RangeFile>,
        facts: &Facts,
        digest: &str,
    ) -> Result<u64, EngineError> {
        self.progress.phase("commit", 1, Steps::Parts);
        let name = format!("part-00000-{digest}.parquet");
        let vocab = self.folder("vocab").write(
            &name,
            &schema::VOCAB,
            &["id"],
            vocab_columns(vocabulary)?,
        )?;
        let text = |get: fn(&SourceRow) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(sources.iter().map(get)))
        };
        let number = |get: fn(&SourceRow) -> u64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(
                sources
                    .iter()
                    .map(|row| i64::try_from(get(row)).unwrap_or(i64::MAX)),
            ))
        };
        let columns: Vec<ArrayRef> = vec![
            text(|row| &row.uri),
            number(|row| row.size),
            text(|row| &row.etag),
            number(|row| row.rows),
            number(|row| row.tokens),
            Arc::new(StringArray::from_iter_values(
                sources.iter().map(|_| digest),
            )),
            text(SourceRow::status),
            Arc::new(StringArray::from_iter(
                sources.iter().map(|row| row.message.as_deref()),
            )),
        ];
        let sources = self
            .folder("sources")
            .write(&name, &schema::SOURCES, &["uri"], columns)?;
        let json = |value: serde_json::Result<String>| {
            value.map_err(|error| EngineError::Bug(error.to_string()))
        };
        let commit = JobCommit {
            name: self.name.clone(),
            base: None,
            batch: digest.to_owned(),
            settings: json(serde_json::to_string(&self.prepared.recorded))?,
            facts: json(serde_json::to_string(facts))?,
            vocab: vec![vocab],
            sources: vec![sources],
            pairs: pairs.into_iter().map(|range| range.file).collect(),
        };
        let version = self.prepared.session.wait(commit.commit(self.warehouse))?;
        self.progress.advance(1, 0);
        Ok(version)
    }
}
