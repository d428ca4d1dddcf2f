//! Small table files that are written while the pairs are counted: `vocab`, and the terms outside it.
//!
//! They are known before the counting begins, and one thread after the other would write them while
//! the rest of the machine waits.

use std::sync::{Arc, Mutex};

use pmill_store::{DataFile, schema};
use pmill_text::{Outside, Vocabulary};

use super::run::Run;
use super::totals::OutsidePlace;
use crate::counting::Counting;
use crate::error::EngineError;
use crate::tables::vocab_columns;

/// Terms outside the vocabulary may take this part of what tokens may, while they wait.
const LARGEST_SHARE: usize = 16;

/// A file that a step of the counting writes.
#[derive(Default, Clone)]
pub(super) struct Later(Arc<Mutex<Option<DataFile>>>);

impl Later {
    fn set(&self, file: DataFile) -> Result<(), EngineError> {
        *self.0.lock().map_err(|_| poisoned())? = Some(file);
        Ok(())
    }

    /// The file, once the counting is done.
    pub(super) fn take(&self) -> Result<DataFile, EngineError> {
        let file = self.0.lock().map_err(|_| poisoned())?.take();
        file.ok_or_else(|| EngineError::Bug("a file was not written beside the counting".into()))
    }
}

fn poisoned() -> EngineError {
    EngineError::Bug("a worker panicked while it wrote a small file".into())
}

impl Run<'_> {
    /// Gives the file of `vocab` to the counting, unless its columns are known only later.
    pub(super) fn vocab_aside<'c>(
        &'c self,
        counting: &mut Counting<'c>,
        vocabulary: &Arc<Vocabulary>,
        digest: &str,
    ) -> Option<Later> {
        if self.sliced() || self.job.settings.sketch.is_some() {
            return None;
        }
        let later = Later::default();
        let (folder, vocabulary, done) =
            (self.folder("vocab"), Arc::clone(vocabulary), later.clone());
        let name = format!("part-00000-{digest}.parquet");
        counting.aside(move || {
            let columns = vocab_columns(&vocabulary)?;
            done.set(folder.write(&name, &schema::VOCAB, &["id"], columns)?)
        });
        Some(later)
    }

    /// Gives the file of `outside` to the counting, if its terms are in memory and may stay there;
    /// else writes it. `None` when the job has none.
    pub(super) fn outside_aside<'c>(
        &'c self,
        counting: &mut Counting<'c>,
        (written, held): (Option<DataFile>, Option<Outside>),
        place: OutsidePlace<'c>,
    ) -> Result<Option<Later>, EngineError> {
        let later = Later::default();
        if let Some(file) = written {
            later.set(file)?;
            return Ok(Some(later));
        }
        let Some(held) = held else {
            return Ok(None);
        };
        let bytes = held.held_bytes();
        if bytes > counting.block_bytes / LARGEST_SHARE {
            later.set(place.write(&held)?)?;
            return Ok(Some(later));
        }
        counting.block_bytes -= bytes;
        let done = later.clone();
        counting.aside(move || done.set(place.write(&held)?));
        Ok(Some(later))
    }
}
