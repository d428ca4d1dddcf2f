//! The commit: `vocab`, `outside`, `sources` and `pairs` become visible as one version.

use pmill_store::{DataFile, JobCommit, killpoint, schema};
use pmill_text::Vocabulary;

use super::Facts;
use super::base::Subsample;
use super::run::Run;
use crate::counting::RangeFile;
use crate::error::EngineError;
use crate::progress::Unit as Steps;
use crate::sources::{self, SourceRow};
use crate::tables::vocab_columns;

/// What the next version holds.
pub(super) struct Changes<'a> {
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) sources: &'a mut [SourceRow],
    pub(super) pairs: Vec<RangeFile>,
    pub(super) outside: Option<DataFile>,
    pub(super) facts: &'a Facts,
    pub(super) subsample: Option<&'a Subsample>,
}

impl Run<'_> {
    pub(super) fn commit(&self, changes: Changes<'_>, digest: &str) -> Result<u64, EngineError> {
        self.progress.phase("commit", 1, Steps::Parts);
        let name = format!("part-00000-{digest}.parquet");
        let vocab = self.folder("vocab").write(
            &name,
            &schema::VOCAB,
            &["id"],
            vocab_columns(changes.vocabulary)?,
        )?;
        let sources = self.folder("sources").write(
            &name,
            &schema::SOURCES,
            &["uri"],
            sources::columns(changes.sources)?,
        )?;
        killpoint::reach("the tables are written");
        let json = |value: serde_json::Result<String>| {
            value.map_err(|error| EngineError::Bug(error.to_string()))
        };
        let commit = JobCommit {
            name: self.name.clone(),
            base: self.base.map(|base| base.job.pairs.version()),
            batch: digest.to_owned(),
            settings: match self.base {
                // The settings of the first commit, paths and program included.
                Some(base) => base.job.settings()?,
                None => json(serde_json::to_string(&self.prepared.recorded))?,
            },
            facts: json(serde_json::to_string(changes.facts))?,
            vocab: vec![vocab],
            sources: vec![sources],
            pairs: changes.pairs.into_iter().map(|range| range.file).collect(),
            outside: changes.outside.map(|file| vec![file]),
            subsample: match changes.subsample {
                Some(subsample) => Some(json(serde_json::to_string(subsample))?),
                None => None,
            },
        };
        let version = self.prepared.session.wait(commit.commit(self.warehouse))?;
        self.progress.advance(1, 0);
        Ok(version)
    }
}
