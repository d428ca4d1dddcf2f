//! Fold: the sorted terms of some units become one sorted list.
//!
//! Memory: one buffer for each dictionary; no more than [`FAN_IN`] are read at once.

use pmill_text::{TermCount, merge_sorted};

use super::spec::FoldDone;
use super::worker::Running;
use crate::dictionaries::StoredDictionary;
use crate::error::EngineError;

/// Manifests that are summed at once. A unit has a dictionary for each time that its terms did not
/// fit memory, so there may be more of these.
pub(super) const FAN_IN: usize = 64;

impl Running<'_> {
    pub(super) fn fold(&self, parts: &[String]) -> Result<FoldDone, EngineError> {
        let (mut done, mut dictionaries) = (FoldDone::default(), Vec::new());
        for name in parts {
            let part = FoldDone::read(self.folder, name)?;
            done.added.rows += part.added.rows;
            done.added.tokens += part.added.tokens;
            for (name, terms) in part.dictionaries {
                let path = self.fetch(&name)?;
                dictionaries.push(StoredDictionary::Disk { path, terms });
            }
        }
        let dictionaries = self.sum_rounds("part", dictionaries)?;
        let name = format!("{}.terms", self.attempt_name());
        let folded = self.sum(&dictionaries, self.outbox()?.join(&name))?;
        if let StoredDictionary::Disk { terms, .. } = folded {
            done.dictionaries.push((name, terms));
        }
        Ok(done)
    }

    /// Sums dictionaries until few enough are left to be read at once; `what` names the files.
    pub(super) fn sum_rounds(
        &self,
        what: &str,
        mut dictionaries: Vec<StoredDictionary>,
    ) -> Result<Vec<StoredDictionary>, EngineError> {
        let mut round = 0;
        while dictionaries.len() > FAN_IN {
            let mut folded = Vec::new();
            for (part, some) in dictionaries.chunks(FAN_IN).enumerate() {
                let path = self
                    .scratch
                    .path()
                    .join(format!("sum-{what}-{round}-{part}"));
                folded.push(self.sum(some, path)?);
            }
            dictionaries = folded;
            round += 1;
        }
        Ok(dictionaries)
    }

    fn sum(
        &self,
        dictionaries: &[StoredDictionary],
        path: std::path::PathBuf,
    ) -> Result<StoredDictionary, EngineError> {
        /// Terms between two looks at whether to stop.
        const LOOK: usize = 1 << 16;
        let streams = dictionaries
            .iter()
            .map(StoredDictionary::sorted)
            .collect::<Result<Vec<_>, _>>()?;
        let merged = merge_sorted(streams).enumerate();
        let entries = merged.map(|(index, entry): (usize, Result<TermCount, EngineError>)| {
            if index % LOOK == 0 {
                self.check_stop()?;
            }
            let entry = entry?;
            Ok((entry.term, entry.tokens, entry.documents, 0))
        });
        StoredDictionary::write_entries(entries, path)
    }
}
