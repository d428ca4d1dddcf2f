//! What is under way in a warehouse, as anyone can see it in the plans' folders.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use pmill_store::Warehouse;
use serde::Serialize;

use super::annotate::AnnotateHeader;
use super::folder::{PlanFolder, names, read};
use super::matrix::{BANDS, BandsDone, MatrixHeader};
use super::merge::MergeHeader;
use super::plan::PlanHeader;
use super::query::QueryHeader;
use super::reduce::{COMBINED, MOST_RUNS};
use super::score::ScoreHeader;
use super::spec::{Failure, RUNS, VOCABULARY, VocabularyDone};
use crate::error::EngineError;

/// How far a job is; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct PlanState {
    /// Job name.
    pub job: String,
    /// The phase that it is in: `terms`, `count`, `combine`, `reduce`; `sum`, `score`; `remap`, `merge`;
    /// `turn`, `rows`; `annotate`; `query`; or `commit` (of a query: its driver has the rest).
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
        let root = PlanFolder::root_of(warehouse);
        let mut states = Vec::new();
        let mut jobs = names(&root)?;
        jobs.sort();
        for name in jobs {
            let mut plans = root.join(&name);
            let kind = match name.rsplit_once('.') {
                Some((_, "units")) => Self::of_count,
                Some((_, "scores")) => Self::of_scoring,
                Some((_, "merges")) => Self::of_merge,
                Some((_, "matrix")) => Self::of_matrix,
                Some((_, "query")) => Self::of_query,
                Some((_, "elsewhere")) => {
                    let Some(place) = read::<PathBuf>(&plans)? else {
                        continue;
                    };
                    plans = place;
                    Self::of_annotation
                }
                _ => continue,
            };
            for folder in PlanFolder::all(&plans)? {
                // What ended meanwhile is not under way.
                match kind(&folder) {
                    Ok(Some(state)) => states.push(state),
                    Ok(None) => {}
                    Err(_) if folder.superseded(0) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(states)
    }

    fn of_scoring(folder: &PlanFolder) -> Result<Option<Self>, EngineError> {
        let Some(header) = folder.header::<ScoreHeader>()? else {
            return Ok(None);
        };
        let phases = [
            ("sum", "sum-", if header.sums() { header.files } else { 0 }),
            ("score", "score-", header.files),
        ];
        Self::in_phases(folder, header.name, &phases).map(Some)
    }

    fn of_merge(folder: &PlanFolder) -> Result<Option<Self>, EngineError> {
        let Some(header) = folder.header::<MergeHeader>()? else {
            return Ok(None);
        };
        let phases = [
            ("remap", "remap-", header.remaps.len()),
            ("merge", "merge-", header.ranges.len()),
        ];
        Self::in_phases(folder, header.name, &phases).map(Some)
    }

    fn of_matrix(folder: &PlanFolder) -> Result<Option<Self>, EngineError> {
        let Some(header) = folder.header::<MatrixHeader>()? else {
            return Ok(None);
        };
        let bands: Option<BandsDone> = folder.get(BANDS)?;
        // Before they are cut there is one at least.
        let rows = bands.map_or(1, |bands| bands.bands.len());
        let phases = [
            ("turn", "turn-", header.parts.len()),
            ("rows", "rows-", rows),
        ];
        Self::in_phases(folder, header.name, &phases).map(Some)
    }

    /// A query has the name of its folder.
    fn of_query(folder: &PlanFolder) -> Result<Option<Self>, EngineError> {
        let Some(header) = folder.header::<QueryHeader>()? else {
            return Ok(None);
        };
        let name = folder.path().parent().and_then(Path::file_stem);
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        let units = header.fragments.iter().map(|f| f.partitions).sum();
        Self::in_phases(folder, name, &[("query", "query-", units)]).map(Some)
    }

    fn of_annotation(folder: &PlanFolder) -> Result<Option<Self>, EngineError> {
        let Some(header) = folder.header::<AnnotateHeader>()? else {
            return Ok(None);
        };
        let phases = [("annotate", "annotate-", header.plan.inputs.len())];
        Self::in_phases(folder, header.job.name, &phases).map(Some)
    }

    /// The first phase (name, beginning of its manifests, units) that is not done.
    fn in_phases(
        folder: &PlanFolder,
        job: String,
        phases: &[(&'static str, &str, usize)],
    ) -> Result<Self, EngineError> {
        let there = folder.done()?;
        let mut state = ("commit", 0, 0);
        for (phase, prefix, of) in phases {
            let done = there.iter().filter(|name| name.starts_with(prefix)).count();
            if done < *of {
                state = (phase, done, *of);
                break;
            }
            state = ("commit", done, *of);
        }
        Self::with(folder, job, state)
    }

    fn of_count(folder: &PlanFolder) -> Result<Option<Self>, EngineError> {
        let Some(header) = folder.header::<PlanHeader>()? else {
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
                } else if header.units > MOST_RUNS && !there.contains(RUNS) {
                    (
                        "combine",
                        count("combine-"),
                        header.units.div_ceil(COMBINED),
                    )
                } else if ranges < vocabulary.ranges.len() {
                    ("reduce", ranges, vocabulary.ranges.len())
                } else {
                    ("commit", ranges, vocabulary.ranges.len())
                }
            }
        };
        Self::with(folder, header.name, (phase, done, of)).map(Some)
    }

    fn with(
        folder: &PlanFolder,
        job: String,
        (phase, done, of): (&'static str, usize, usize),
    ) -> Result<Self, EngineError> {
        let mut failures = folder.failure_list()?;
        let old = failures.len().saturating_sub(20);
        failures.drain(..old);
        let mut begun = folder.begun()?;
        begun.sort();
        Ok(Self {
            job,
            phase,
            done,
            of,
            begun,
            failures,
            folder: folder.path().display().to_string(),
        })
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
