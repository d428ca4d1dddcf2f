//! A table as the rows of a matrix, made in units: what `export` and `embed` read.
//!
//! ```text
//! plan ─▶ turn(range of left ids) … ─▶ bands ─▶ rows(band) … ─▶ the driver reads them in order
//! ```
//!
//! A unit of the first phase reads a part of the table once: it sums rows and columns, and writes the
//! pairs with their sides changed as sorted runs, where the matrix needs them. A unit of the second
//! sums the table and the runs over a range of rows and computes the values. They are the numbers that
//! [`TableRows::bands`] computes in one process.

mod drive;
mod rows;

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pmill_count::{Accumulator, RowSource};
use serde::{Deserialize, Serialize};

use super::folder::{PlanFolder, io};
use super::place::{read_bytes, write_bytes};
use super::reduce::{merge_in_steps, sum_rounds};
use super::spec::Work;
use super::worker::{UnitWorker, finish};
use crate::counting::{Parts, RunFile};
use crate::error::EngineError;
use crate::pairs_table::PairsTable;
use crate::progress::StopFlag;
use crate::remap::{PAIR_BYTES, write_run};
use crate::rows::{Orientation, Scoring, Survey, TableRows, Value};
use crate::tables::unwrap_sink;

pub(super) use drive::clear_dead_matrices;
pub use drive::{MatrixDrive, MatrixRows};
pub(super) use rows::RowsDone;
use rows::ValuesFile;

/// What all units of a matrix share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MatrixHeader {
    protocol: u32,
    program: String,
    warehouse: String,
    pub(super) name: String,
    /// The version of `pairs`.
    version: u64,
    value: Value,
    /// The matrix, its transpose, or both.
    orientations: Vec<Orientation>,
    /// Left ids of each unit that reads the table.
    pub(super) parts: Vec<Range<u32>>,
}

/// What reading a part of the table left.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct TurnDone {
    /// The file of its [`Survey`].
    survey: String,
    /// Pairs with their sides changed.
    runs: Vec<RunFile>,
}

/// What follows from all parts: the manifest [`BANDS`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BandsDone {
    /// The file of the whole table's [`Survey`].
    survey: String,
    runs: Vec<RunFile>,
    /// The rows of each unit.
    pub(super) bands: Vec<(Orientation, Range<u32>)>,
}

/// The manifest of [`BandsDone`].
pub(super) const BANDS: &str = "bands";

impl MatrixHeader {
    /// The table.
    pub(super) fn inputs(&self) -> Vec<String> {
        vec![format!("{}{}", self.warehouse, self.name)]
    }
}

/// Whether the rows of an orientation hold pairs with their sides changed.
fn needs_turned(table: &TableRows, orientation: Orientation) -> bool {
    table.symmetric || orientation == Orientation::Transposed
}

/// A matrix as a worker has it.
pub(super) struct LoadedMatrix {
    header: MatrixHeader,
    table: TableRows,
    pairs: PairsTable,
    terms: u32,
    bands: Mutex<Option<Arc<(BandsDone, Survey)>>>,
}

impl LoadedMatrix {
    pub(super) fn open(folder: &PlanFolder, worker: &UnitWorker) -> Result<Self, EngineError> {
        let header = folder.need_header::<MatrixHeader>()?;
        let limits = &worker.limits;
        let version = Some(header.version);
        let table = TableRows::open_at(
            &header.warehouse,
            &header.name,
            version,
            limits.threads,
            limits.memory,
        )?;
        worker.check_warehouse(table.warehouse())?;
        let terms = u32::try_from(table.size())
            .map_err(|_| EngineError::Bug("a vocabulary beyond 32 bits".into()))?;
        let runtime = table.session().handle();
        Ok(Self {
            pairs: PairsTable::new(table.warehouse(), table.job(), terms, runtime)?,
            header,
            table,
            terms,
            bands: Mutex::new(None),
        })
    }

    /// Runs a unit; `attempt` names its files, `scratch` holds what is temporary.
    pub(super) fn run(
        &self,
        worker: &UnitWorker,
        folder: &PlanFolder,
        work: &Work,
        (attempt, scratch): (&str, &Path),
        stop: &StopFlag,
    ) -> Result<bool, EngineError> {
        let name = work.name();
        let prefix = format!("{attempt}-{name}");
        let outbox = folder.outbox(scratch)?;
        match work {
            Work::Turn { number } => {
                let buffer = usize::try_from(worker.limits.memory.0 / 4).unwrap_or(usize::MAX);
                let done = self.turn(folder, *number, &prefix, (&outbox, buffer), stop)?;
                folder.send(scratch)?;
                finish(folder, &name, attempt, stop, &done)
            }
            Work::Rows { number } => {
                let done = self.rows(folder, *number, &prefix, (&outbox, scratch), stop)?;
                folder.send(scratch)?;
                finish(folder, &name, attempt, stop, &done)
            }
            _ => Err(EngineError::Bug(format!("`{name}` is not of a matrix"))),
        }
    }

    fn turn(
        &self,
        folder: &PlanFolder,
        number: usize,
        prefix: &str,
        (outbox, buffer_bytes): (&Path, usize),
        stop: &StopFlag,
    ) -> Result<TurnDone, EngineError> {
        let range = self.header.parts.get(number);
        let range = range.ok_or_else(|| no_unit(number))?.clone();
        let orientations = &self.header.orientations;
        let turns = orientations.iter().any(|o| needs_turned(&self.table, *o));
        let room = (buffer_bytes / PAIR_BYTES).max(1 << 16);
        let (mut survey, mut runs) = (Survey::empty(self.table.size()), Vec::new());
        let mut buffer: Vec<(u64, u64)> = Vec::new();
        let mut flush =
            |buffer: &mut Vec<(u64, u64)>| write_run(buffer, self.terms, outbox, prefix, &mut runs);
        let mut rows = self.pairs.rows();
        rows.seek(range).map_err(unwrap_sink)?;
        while let Some(left) = rows.left() {
            if stop.is_set() {
                return Err(EngineError::Interrupted);
            }
            let Some(piece) = rows.piece() else { break };
            survey.add_pairs(left, piece.right, piece.counts);
            if turns {
                let pairs = piece.right.iter().zip(piece.counts);
                buffer.extend(
                    pairs.map(|(right, count)| (u64::from(*right) << 32 | u64::from(left), *count)),
                );
                if buffer.len() >= room {
                    flush(&mut buffer)?;
                }
            }
            rows.advance().map_err(unwrap_sink)?;
        }
        if !buffer.is_empty() {
            flush(&mut buffer)?;
        }
        Ok(TurnDone {
            survey: write_survey(folder, prefix, &survey)?,
            runs,
        })
    }

    /// What follows from all parts, read once a process.
    fn bands(&self, folder: &PlanFolder) -> Result<Arc<(BandsDone, Survey)>, EngineError> {
        let poisoned = |_| EngineError::Bug("a unit panicked while it read the sums".into());
        let mut kept = self.bands.lock().map_err(poisoned)?;
        if let Some(bands) = &*kept {
            return Ok(bands.clone());
        }
        let done: BandsDone = folder.need(BANDS)?;
        let survey = read_survey(folder, &done.survey, self.table.size())?;
        Ok(kept.insert(Arc::new((done, survey))).clone())
    }

    fn rows(
        &self,
        folder: &PlanFolder,
        number: usize,
        prefix: &str,
        (outbox, scratch): (&Path, &Path),
        stop: &StopFlag,
    ) -> Result<RowsDone, EngineError> {
        let bands = self.bands(folder)?;
        let (done, survey) = &*bands;
        let band = done.bands.get(number);
        let (orientation, range) = band.ok_or_else(|| no_unit(number))?;
        let scoring = Scoring::new(&self.table, survey, &self.header.value, *orientation)?;
        let mut accumulator = Accumulator::new(self.terms);
        let mut parts = Parts::default();
        if needs_turned(&self.table, *orientation) {
            let data = folder.data();
            let runs = done.runs.iter().map(|run| data.join(&run.name)).collect();
            let place = (scratch, "turned".to_owned());
            let left = sum_rounds(runs, range, &mut accumulator, place, stop)?;
            parts
                .runs
                .extend(left.into_iter().map(|path| (path, false)));
        }
        if self.table.symmetric || *orientation == Orientation::Plain {
            parts.tables.push(&self.pairs);
        }
        let file = format!("{prefix}.arrow");
        let unit = self.table.facts.weight_unit as f64;
        let mut values = ValuesFile::create(&outbox.join(&file), &scoring, unit)?;
        merge_in_steps(&parts, range.clone(), &mut accumulator, &mut values, stop)?;
        let (entries, bytes) = values.finish()?;
        Ok(RowsDone {
            file,
            entries,
            bytes,
        })
    }
}

fn no_unit(number: usize) -> EngineError {
    EngineError::Bug(format!("the plan has no unit {number}"))
}

fn write_survey(folder: &PlanFolder, prefix: &str, survey: &Survey) -> Result<String, EngineError> {
    let name = format!("{prefix}.survey");
    write_bytes(&folder.data().join(&name), survey.to_bytes())?;
    Ok(name)
}

fn read_survey(folder: &PlanFolder, name: &str, terms: usize) -> Result<Survey, EngineError> {
    let path = folder.data().join(name);
    let gone = || io("read", &path, std::io::ErrorKind::NotFound.into());
    let bytes = read_bytes(&path)?.ok_or_else(gone)?;
    Survey::from_bytes(&bytes, terms).ok_or_else(|| {
        let message = "it is not as long as it was written";
        io("read", &path, std::io::Error::other(message))
    })
}

/// Whether a unit is one of a matrix.
pub(super) fn is_of_matrix(work: &Work) -> bool {
    matches!(work, Work::Turn { .. } | Work::Rows { .. })
}

impl UnitWorker {
    pub(super) fn run_matrix(
        &self,
        folder: &PlanFolder,
        work: &Work,
        attempt: (&str, &Path),
        stop: &StopFlag,
    ) -> Result<bool, EngineError> {
        let open = || LoadedMatrix::open(folder, self);
        let matrix = self.matrix.get(folder.path(), open)?;
        matrix.run(self, folder, work, attempt, stop)
    }
}
