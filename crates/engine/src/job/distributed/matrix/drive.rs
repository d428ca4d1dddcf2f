//! The driver of a matrix: has its units run, and reads the rows that they left.
//!
//! ```text
//! WAREHOUSE/.pmill/JOB-DIGEST.matrix/
//!   alive                 when the driver last said that it lives
//!   epoch-00000001
//!   plan-DIGEST/          as of all plans
//! ```
//!
//! The digest is of the table's version and of what is asked of it: the same command again goes on
//! with what is there. The folder goes away when the rows have been read; one whose driver was killed
//! goes away with a vacuum a day later.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pmill_store::Warehouse;

use super::super::alive::{Beat, is_dead, remove_plans};
use super::super::drive::{Phase, Phases, Runner, taken_over};
use super::super::folder::{PLAN, PlanFolder, claim_epoch, names, put_new, superseded};
use super::super::place;
use super::super::plan::{PROTOCOL, attempt};
use super::super::spec::Work;
use super::rows::{Bands, RowsDone};
use super::{BANDS, BandsDone, MatrixHeader, TurnDone, read_survey, write_survey};
use crate::error::EngineError;
use crate::progress::{Progress, StopFlag, Unit as Steps};
use crate::rows::{ENTRY_BYTES, Orientation, RowBand, Survey, TableRows, Value, cut};

/// Entries of a unit's rows, at least.
const LEAST: u64 = 4 << 20;
/// Units of rows, about: each opens all runs.
const MOST_BANDS: u64 = 512;
/// Units that read the table: each leaves sums of all terms.
const MOST_PARTS: usize = 128;
/// Who has said nothing for so long does not come back.
const DEAD: Duration = Duration::from_secs(24 * 3600);

const SUFFIX: &str = ".matrix";

/// A matrix and how it is driven.
pub struct MatrixDrive<'a> {
    /// The table.
    pub table: &'a TableRows,
    /// What its numbers are.
    pub value: &'a Value,
    /// The matrix, its transpose, or both.
    pub orientations: &'a [Orientation],
    /// Seconds that a unit may take.
    pub limit_seconds: u64,
    /// Attempts that may die with their process before a unit is taken for poison.
    pub most_attempts: u32,
    /// Folder of this machine for temporary files.
    pub scratch: &'a Path,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Whether to stop.
    pub stop: &'a StopFlag,
}

impl MatrixDrive<'_> {
    /// Has all units run. Blocks until the rows can be read.
    ///
    /// # Errors
    /// When the table cannot be read, a unit cannot be done, or a driver of the same matrix started
    /// later.
    pub fn run(&self, runner: &mut dyn Runner) -> Result<MatrixRows, EngineError> {
        let table = self.table;
        let header = MatrixHeader {
            protocol: PROTOCOL,
            program: concat!("pmill ", env!("CARGO_PKG_VERSION")).to_owned(),
            warehouse: table.warehouse().url().as_str().to_owned(),
            name: table.job().name.to_string(),
            version: table.version(),
            value: self.value.clone(),
            orientations: self.orientations.to_vec(),
            parts: parts(table),
        };
        let text =
            serde_json::to_vec(&header).map_err(|error| EngineError::Bug(error.to_string()))?;
        let digest = blake3::hash(&text).to_hex()[..12].to_owned();
        let plans = PlanFolder::root_of(table.warehouse());
        let plans = plans.join(format!("{}-{digest}{SUFFIX}", header.name));
        let beat = Beat::start(&plans)?;
        let epoch = claim_epoch(&plans)?;
        let folder = PlanFolder::make(&plans, &digest)?;
        put_new(folder.path(), PLAN, &header)?;
        folder.forget_attempts()?;
        let phases = Phases {
            folder: &folder,
            epoch,
            limit_seconds: self.limit_seconds,
            most_attempts: self.most_attempts,
            progress: self.progress,
            stop: self.stop,
        };
        if !folder.has(BANDS) {
            let works = (0..header.parts.len()).map(|number| Work::Turn { number });
            phases.run(runner, Phase::Turn, works.collect())?;
            self.make_bands(&folder, &header)?;
        }
        let done: BandsDone = folder.need(BANDS)?;
        let works = (0..done.bands.len()).map(|number| Work::Rows { number });
        phases.run(runner, Phase::Rows, works.collect())?;
        if superseded(&plans, epoch) {
            return Err(taken_over());
        }
        Ok(MatrixRows {
            survey: read_survey(&folder, &done.survey, table.size())?,
            bands: done.bands,
            scratch: self.scratch.to_owned(),
            folder,
            plans,
            beat,
        })
    }

    /// Sums the parts, and cuts the rows.
    fn make_bands(&self, folder: &PlanFolder, header: &MatrixHeader) -> Result<(), EngineError> {
        let terms = self.table.size();
        let (mut survey, mut runs) = (Survey::empty(terms), Vec::new());
        for number in 0..header.parts.len() {
            let done: TurnDone = folder.need(&Work::Turn { number }.name())?;
            survey.add(&read_survey(folder, &done.survey, terms)?);
            runs.extend(done.runs);
        }
        let mut bands = Vec::new();
        for orientation in self.orientations {
            let lengths = self.table.lengths(&survey, *orientation);
            let entries: u64 = lengths.iter().sum();
            let each = LEAST.max(entries / MOST_BANDS);
            let id = |row: usize| u32::try_from(row).unwrap_or(u32::MAX);
            let ranges = cut(&lengths, each).into_iter();
            bands.extend(ranges.map(|(from, to)| (*orientation, id(from)..id(to))));
        }
        let survey = write_survey(folder, &format!("{}-all", attempt()), &survey)?;
        let done = BandsDone {
            survey,
            runs,
            bands,
        };
        folder.put(BANDS, &done).map(|_| ())
    }
}

/// Ranges of left ids, at the beginnings of files.
fn parts(table: &TableRows) -> Vec<Range<u32>> {
    let end = u32::try_from(table.size()).unwrap_or(u32::MAX);
    let starts: Vec<u32> = table
        .file_starts()
        .filter_map(|start| u32::try_from(start).ok())
        .collect();
    let each = starts.len().div_ceil(MOST_PARTS).max(1);
    let mut starts: Vec<u32> = starts.into_iter().step_by(each).collect();
    starts.dedup();
    let ends = starts.iter().skip(1).copied().chain([end]);
    starts
        .iter()
        .copied()
        .zip(ends)
        .map(|(a, b)| a..b)
        .collect()
}

/// The rows that units have made.
pub struct MatrixRows {
    survey: Survey,
    bands: Vec<(Orientation, Range<u32>)>,
    folder: PlanFolder,
    plans: PathBuf,
    scratch: PathBuf,
    beat: Beat,
}

impl MatrixRows {
    /// Lengths and sums of the table's rows.
    #[must_use]
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// As [`TableRows::bands`].
    ///
    /// # Errors
    /// When what the units left cannot be read; those of `each`; a stop.
    pub fn bands<E: From<EngineError>>(
        &self,
        orientation: Orientation,
        band_bytes: u64,
        progress: &dyn Progress,
        stop: &StopFlag,
        mut each: impl FnMut(RowBand) -> Result<(), E>,
    ) -> Result<(), E> {
        let numbers: Vec<usize> = (0..self.bands.len())
            .filter(|number| self.bands[*number].0 == orientation)
            .collect();
        progress.phase("read", numbers.len() as u64, Steps::Parts);
        let most = usize::try_from(band_bytes / ENTRY_BYTES).unwrap_or(usize::MAX);
        let mut bands = Bands::new(most);
        for number in numbers {
            if stop.is_set() {
                return Err(EngineError::Interrupted.into());
            }
            let done: RowsDone = self.folder.need(&Work::Rows { number }.name())?;
            let path = self.folder.fetch(&done.file, &self.scratch)?;
            bands.read(&path, &mut each)?;
            if place::is_remote(self.folder.path()) {
                // It was brought here for this.
                place::remove_file(&path)?;
            }
            progress.advance(1, done.entries);
        }
        match bands.last() {
            Some(band) => each(band),
            None => Ok(()),
        }
    }

    /// Removes what the units left: the rows have been used.
    pub fn close(self) {
        let Self { plans, beat, .. } = self;
        drop(beat);
        remove_plans(&plans);
    }
}

/// Removes the folders of matrices whose drivers were killed long ago; gives how many.
pub(in super::super) fn clear_dead_matrices(warehouse: &Warehouse) -> Result<usize, EngineError> {
    let root = PlanFolder::root_of(warehouse);
    let mut removed = 0;
    for name in names(&root)? {
        let plans = root.join(&name);
        if name.ends_with(SUFFIX) && is_dead(&plans, 0, DEAD) {
            place::remove_all(&plans)?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::super::super::alive::{ALIVE, now};
    use super::*;

    #[test]
    fn only_matrices_of_drivers_that_died_long_ago_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let warehouse = Warehouse::open(root.path().to_str().unwrap()).unwrap();
        let work = root.path().join(".pmill");
        let folder = |name: &str, alive: Option<u64>| {
            std::fs::create_dir_all(work.join(name)).unwrap();
            if let Some(alive) = alive {
                std::fs::write(work.join(name).join(ALIVE), alive.to_string()).unwrap();
            }
        };
        folder("a-1.matrix", Some(now() - 3600));
        folder("b-1.matrix", Some(now() - 25 * 3600));
        folder("c-1.matrix", None);
        folder("d.units", None);
        let beat = Beat::start(&work.join("e-1.matrix")).unwrap();
        assert_eq!(clear_dead_matrices(&warehouse).unwrap(), 2);
        drop(beat);
        let mut left = names(&work).unwrap();
        left.sort();
        assert_eq!(left, ["a-1.matrix", "d.units", "e-1.matrix"]);
    }
}
