//! Settings resolved, session open, footers read.

use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use pmill_text::FeatureExtractor;

use super::CountJob;
use super::tails::reserve;
use crate::budget::Budget;
use crate::error::EngineError;
use crate::input::InputFile;
use crate::memory::SMALLEST_LIMIT;
use crate::progress::{Progress, Unit as Steps};
use crate::scan::{CorpusFile, Scanner};
use crate::session::Session;
use crate::settings::{OnBadFile, RecordedSettings};

/// Files left out, with the reason.
pub(super) type Skipped = Vec<(InputFile, EngineError)>;

/// Settings resolved, session open.
pub(super) struct Prepared {
    pub(super) session: Session,
    pub(super) extractor: Arc<FeatureExtractor>,
    pub(super) recorded: RecordedSettings,
}

impl Prepared {
    pub(super) fn new(job: &CountJob, scratch: Option<&Path>) -> Result<Self, EngineError> {
        let extractor = Arc::new(FeatureExtractor::new(&job.settings.features)?);
        let recorded = RecordedSettings::resolve(&job.settings, &extractor)?;
        let session = Session::new(job.threads, job.memory_limit, scratch)?;
        Ok(Self {
            session,
            extractor,
            recorded,
        })
    }

    pub(super) fn scanner(&self, job: &CountJob) -> Scanner {
        Scanner::new(
            self.session.context().clone(),
            job.settings.rows(),
            job.memory_limit,
        )
    }

    /// Opens every footer, several at once.
    pub(super) fn open_all(
        &self,
        job: &CountJob,
        inputs: &[InputFile],
        progress: &dyn Progress,
    ) -> Result<(Vec<CorpusFile>, Skipped), EngineError> {
        if job.memory_limit < SMALLEST_LIMIT {
            return Err(EngineError::Memory {
                limit: job.memory_limit.to_string(),
                reason: format!("pmill needs {SMALLEST_LIMIT} at least"),
            });
        }
        progress.phase("open", inputs.len() as u64, Steps::Parts);
        let scanner = self.scanner(job);
        let opened: Vec<_> = self.session.wait(
            futures::stream::iter(inputs)
                .map(|input| {
                    let scanner = &scanner;
                    async move {
                        let opened = scanner.open(input).await;
                        progress.advance(1, 0);
                        match opened {
                            Ok(file) => Ok(Ok(file)),
                            Err(error @ EngineError::BadFile { .. })
                                if job.on_bad_file == OnBadFile::Skip =>
                            {
                                Ok(Err((input.clone(), error)))
                            }
                            Err(error) => Err(error),
                        }
                    }
                })
                .buffered(16)
                .try_collect(),
        )?;
        let (mut files, mut bad) = (Vec::new(), Vec::new());
        for result in opened {
            match result {
                Ok(file) => files.push(file),
                Err(skipped) => bad.push(skipped),
            }
        }
        Ok((files, bad))
    }

    pub(super) fn budget(
        &self,
        job: &CountJob,
        files: &[CorpusFile],
        sketches: u64,
    ) -> Result<Budget, EngineError> {
        let limit = reserve(job.memory_limit, job.settings.sketch.as_ref(), sketches)?;
        let largest = files
            .iter()
            .flat_map(|file| &file.row_groups)
            .map(|group| group.compressed)
            .max()
            .unwrap_or(0);
        Budget::new(limit, job.threads, largest)
    }
}
