//! The commit: `vocab`, `outside`, `sources` and `pairs` become visible as one version.

use arrow::datatypes::SchemaRef;
use pmill_count::Tail;
use pmill_store::{DataFile, JobCommit, JobName, Warehouse, killpoint, schema};
use pmill_text::Vocabulary;

use super::Facts;
use super::base::Subsample;
use super::run::Run;
use crate::counting::RangeFile;
use crate::error::EngineError;
use crate::progress::{Progress, Unit as Steps};
use crate::session::Session;
use crate::slices::Slices;
use crate::sources::{self, SourceRow};
use crate::tables::{TableFolder, vocab_columns};
use crate::tail;

/// What the next version holds.
pub(crate) struct Changes<'a> {
    pub(crate) vocabulary: &'a Vocabulary,
    /// Counts by slice, of a job that is counted by slice.
    pub(crate) slices: Option<&'a Slices>,
    /// The file of `vocab`, if it is written already.
    pub(crate) vocab: Option<DataFile>,
    pub(crate) sources: &'a mut [SourceRow],
    pub(crate) pairs: Vec<RangeFile>,
    pub(crate) outside: Option<DataFile>,
    /// The sketch, of a job that has one.
    pub(crate) tail: Option<Tail>,
    pub(crate) facts: &'a Facts,
    pub(crate) subsample: Option<&'a Subsample>,
}

/// Where a version goes.
pub(crate) struct Target<'a> {
    pub(crate) session: &'a Session,
    pub(crate) warehouse: &'a Warehouse,
    pub(crate) name: &'a JobName,
    pub(crate) progress: &'a dyn Progress,
    /// The version of `pairs` that it follows.
    pub(crate) base: Option<u64>,
    /// Settings as JSON.
    pub(crate) settings: String,
}

impl Target<'_> {
    pub(crate) fn folder(&self, table: &str) -> TableFolder<'_> {
        TableFolder::new(self.warehouse, self.name, table, self.session.handle())
    }

    /// Writes `vocab`, `tail` and `sources`, and makes everything visible.
    pub(crate) fn commit(self, mut changes: Changes<'_>, digest: &str) -> Result<u64, EngineError> {
        self.progress.phase("commit", 1, Steps::Parts);
        let name = format!("part-00000-{digest}.parquet");
        let (vocab_schema, columns) = match (changes.slices, &mut changes.tail) {
            (Some(slices), _) => (&schema::SLICED_VOCAB, slices.columns(changes.vocabulary)?),
            (None, None) if changes.vocab.is_some() => (&schema::VOCAB, Vec::new()),
            (None, None) => (&schema::VOCAB, vocab_columns(changes.vocabulary)?),
            (None, Some(tail)) => {
                let mut columns = vocab_columns(changes.vocabulary)?;
                columns.extend(tail::sum_columns(tail.sums())?);
                (&schema::SKETCHED_VOCAB, columns)
            }
        };
        let tail = match (&mut changes.tail, &changes.facts.tail) {
            (Some(sketch), Some(facts)) => {
                let files = tail::write(sketch, &self.folder("tail"), digest)?;
                // Ranges of sketched pairs have none to keep; one file stands for all of them.
                let filled = changes.pairs.iter().any(|range| range.pairs > 0);
                let mut first = !filled;
                let stays = |range: &RangeFile| range.pairs > 0 || std::mem::take(&mut first);
                changes.pairs.retain(stays);
                Some((files, tail::describe(sketch.settings(), facts)?))
            }
            _ => None,
        };
        let vocab = match changes.vocab.take() {
            Some(vocab) => vocab,
            None => self
                .folder("vocab")
                .write(&name, vocab_schema, &["id"], columns)?,
        };
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
            base: self.base,
            batch: digest.to_owned(),
            settings: self.settings.clone(),
            facts: json(serde_json::to_string(changes.facts))?,
            vocab_schema: SchemaRef::clone(vocab_schema),
            vocab: vec![vocab],
            sources: vec![sources],
            pairs: changes.pairs.into_iter().map(|range| range.file).collect(),
            outside: changes.outside.map(|file| vec![file]),
            tail,
            subsample: match changes.subsample {
                Some(subsample) => Some(json(serde_json::to_string(subsample))?),
                None => None,
            },
        };
        let version = self.session.wait(commit.commit(self.warehouse))?;
        self.progress.advance(1, 0);
        Ok(version)
    }
}

impl Run<'_> {
    pub(super) fn commit(&self, changes: Changes<'_>, digest: &str) -> Result<u64, EngineError> {
        let settings = match self.base {
            // The settings of the first commit, paths and program included.
            Some(base) => base.job.settings()?,
            None => serde_json::to_string(&self.prepared.recorded)
                .map_err(|error| EngineError::Bug(error.to_string()))?,
        };
        let target = Target {
            session: &self.prepared.session,
            warehouse: self.warehouse,
            name: self.name,
            progress: self.progress,
            base: self.base.map(|base| base.job.pairs.version()),
            settings,
        };
        target.commit(changes, digest)
    }
}
