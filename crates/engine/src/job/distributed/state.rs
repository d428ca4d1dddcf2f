//! What is under way in a warehouse, as anyone can see it in the plans' folders.

use std::fmt::Write;

use pmill_store::Warehouse;
use serde::Serialize;

use super::folder::{PlanFolder, names};
use super::plan::PlanHeader;
use super::spec::{Failure, VOCABULARY, VocabularyDone};
use crate::error::EngineError;

/// How far a job is; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct PlanState {
    /// Job name.
    pub job: String,
    /// The phase that it is in: `terms`, `count`, `reduce` or `commit`.
    pub phase: &'static str,
    /// Units (or ranges) of the phase that are done.
    pub done: usize,
    /// Units (or ranges) of the phase.
    pub of: usize,
    /// Units that run now, or whose process died.
    pub begun: Vec<String>,
    /// Why attempts failed, the newest last, 20 at most.
    pub failures: Vec<Failure>,
    /// The plan's folder.
    pub folder: String,
}

impl PlanState {
    /// All jobs under way, by name.
    ///
    /// # Errors
    /// When the folders cannot be read.
    pub fn all(warehouse: &Warehouse) -> Result<Vec<Self>, EngineError> {
        let Some(root) = warehouse.local().map(|root| root.join(".pmill")) else {
            return Ok(Vec::new());
        };
        let mut states = Vec::new();
        let mut jobs = names(&root)?;
        jobs.sort();
        for name in jobs {
            if name.ends_with(".units") {
                for folder in PlanFolder::all(&root.join(name))? {
                    if let Some(state) = Self::of(&folder)? {
                        states.push(state);
                    }
                }
            }
        }
        Ok(states)
    }

    fn of(folder: &PlanFolder) -> Result<Option<Self>, EngineError> {
        let Some(header) = PlanHeader::read(folder)? else {
            return Ok(None);
        };
        let there = folder.done()?;
        let count = |prefix: &str| there.iter().filter(|name| name.starts_with(prefix)).count();
        let vocabulary: Option<VocabularyDone> = folder.get(VOCABULARY)?;
        let (phase, done, of) = match vocabulary {
            None => ("terms", count("terms-").min(header.units), header.units),
            Some(vocabulary) => {
                let (counted, ranges) = (count("count-"), count("range-"));
                if counted < header.units {
                    ("count", counted, header.units)
                } else if ranges < vocabulary.ranges.len() {
                    ("reduce", ranges, vocabulary.ranges.len())
                } else {
                    ("commit", ranges, vocabulary.ranges.len())
                }
            }
        };
        let mut failures = folder.failure_list()?;
        let old = failures.len().saturating_sub(20);
        failures.drain(..old);
        let mut begun = folder.begun()?;
        begun.sort();
        Ok(Some(Self {
            job: header.name,
            phase,
            done,
            of,
            begun,
            failures,
            folder: folder.path().display().to_string(),
        }))
    }

    /// In words.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!(
            "{}: {} {}/{}, {} begun\n",
            self.job,
            self.phase,
            self.done,
            self.of,
            self.begun.len()
        );
        for failure in &self.failures {
            let _ = writeln!(text, "  {} failed: {}", failure.unit, failure.message);
            if !failure.inputs.is_empty() {
                let _ = writeln!(text, "    it reads {}", failure.inputs.join(", "));
            }
        }
        text
    }
}
