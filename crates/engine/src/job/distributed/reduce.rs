//! Combine: the runs of many units become one. Reduce: all runs of one range of left ids, and what the
//! job has of it, are summed into one table file.

use std::fs::File;
use std::io::BufWriter;
use std::ops::Range;
use std::path::{Path, PathBuf};

use pmill_count::{Accumulator, Compression, RowSink, RunWriter, merge_runs};

use super::folder::io;
use super::spec::{CountDone, RUNS, RunsList};
use super::worker::Running;
use crate::counting::{Parts, RangeFile, RunFile};
use crate::error::EngineError;
use crate::job::count_units::name_pair;
use crate::progress::StopFlag;
use crate::tables::{PairsFile, unwrap_sink};

/// Runs that are open at once; more are summed in rounds, through files on this machine.
const FAN_IN: usize = 128;

/// Units whose runs a range opens: those of more units are summed in groups before. Each range opens
/// all runs, so what is opened in all is the product of both.
pub(super) const MOST_RUNS: usize = 128;

/// Units of such a group: few, so that there are groups for many executors.
pub(super) const COMBINED: usize = 8;

impl Running<'_> {
    pub(super) fn reduce(
        &self,
        number: usize,
        range: &Range<u32>,
    ) -> Result<RangeFile, EngineError> {
        let list: RunsList = self.folder.need(RUNS)?;
        let known = self.vocabulary()?;
        let terms = u32::try_from(known.vocabulary.len())
            .map_err(|_| EngineError::Bug("a vocabulary beyond 32 bits".into()))?;
        let mut accumulator = Accumulator::new(terms);
        let mut parts = Parts::default();
        for (runs, taken) in [(&list.runs, false), (&list.taken, true)] {
            let left = self.sum_rounds_of_runs(runs, taken, range, &mut accumulator)?;
            parts
                .runs
                .extend(left.into_iter().map(|path| (path, taken)));
        }
        self.check_stop()?;
        let before = self.loaded.base_pairs(terms)?;
        parts.tables = before.iter().collect();
        let name = format!(
            "part-{number:05}-{}-{}.parquet",
            self.header.digest, self.attempt
        );
        let mut file = PairsFile::create(&self.table_folder("pairs"), &name)?;
        let mut rows = parts.open()?;
        merge_runs(&mut rows, range.clone(), &mut accumulator, &mut file)
            .map_err(unwrap_sink)
            .map_err(|error| name_pair(error, &known.vocabulary, None))?;
        let (file, pairs, units) = file.finish()?;
        Ok(RangeFile {
            file,
            pairs,
            units: units.to_string(),
        })
    }
}

impl Running<'_> {
    /// Sums the runs of some units into one.
    pub(super) fn combine(&self, parts: &[String]) -> Result<CountDone, EngineError> {
        let mut all = CountDone {
            runs: Vec::new(),
            dropped_features: 0,
        };
        for name in parts {
            let done: CountDone = self.folder.need(name)?;
            all.runs.extend(done.runs);
            all.dropped_features += done.dropped_features;
        }
        let known = self.vocabulary()?;
        let terms = u32::try_from(known.vocabulary.len())
            .map_err(|_| EngineError::Bug("a vocabulary beyond 32 bits".into()))?;
        let mut accumulator = Accumulator::new(terms);
        let few = self.sum_rounds_of_runs(&all.runs, false, &(0..terms), &mut accumulator)?;
        let name = format!("{}.run", self.attempt_name());
        let path = self.outbox()?.join(&name);
        let fail = |source| io("write", &path, source);
        let file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(fail)?);
        let mut writer = RunWriter::new(file, terms, Compression::default())?;
        merge_in_steps(
            &added(&few),
            0..terms,
            &mut accumulator,
            &mut writer,
            self.stop,
        )?;
        let (file, summary) = writer.finish()?;
        let file = file
            .into_inner()
            .map_err(|error| fail(error.into_error()))?;
        file.sync_all().map_err(fail)?;
        all.runs = vec![RunFile {
            name,
            bytes: summary.bytes,
            pairs: summary.pairs,
        }];
        Ok(all)
    }

    fn sum_rounds_of_runs(
        &self,
        runs: &[RunFile],
        taken: bool,
        range: &Range<u32>,
        accumulator: &mut Accumulator,
    ) -> Result<Vec<PathBuf>, EngineError> {
        let data = self.folder.data();
        let runs = runs.iter().map(|run| data.join(&run.name)).collect();
        let place = (self.scratch.path(), format!("sum-{taken}"));
        sum_rounds(runs, range, accumulator, place, self.stop)
    }
}

/// How often a unit looks whether to stop while it sums.
const LOOKS: usize = 16;

/// Sums rows over a range, some ids at once, so that a stop is seen.
pub(super) fn merge_in_steps(
    parts: &Parts<'_>,
    range: Range<u32>,
    accumulator: &mut Accumulator,
    sink: &mut impl RowSink,
    stop: &StopFlag,
) -> Result<(), EngineError> {
    let step = range.len().div_ceil(LOOKS).max(1);
    let mut rows = parts.open()?;
    for start in range.clone().step_by(step) {
        if stop.is_set() {
            return Err(EngineError::Interrupted);
        }
        let end = u32::try_from(step).map_or(range.end, |step| start.saturating_add(step));
        let piece = start..end.min(range.end);
        merge_runs(&mut rows, piece, accumulator, sink).map_err(unwrap_sink)?;
    }
    Ok(())
}

/// Sums runs, all of them added or all taken, until few enough are left to be open at once; the sums
/// lie in a folder for temporary files, under names that begin alike.
pub(super) fn sum_rounds(
    mut runs: Vec<PathBuf>,
    range: &Range<u32>,
    accumulator: &mut Accumulator,
    (scratch, prefix): (&Path, String),
    stop: &StopFlag,
) -> Result<Vec<PathBuf>, EngineError> {
    let terms = accumulator.vocabulary_size();
    let mut round = 0;
    while runs.len() > FAN_IN {
        let mut summed = Vec::new();
        for (part, some) in runs.chunks(FAN_IN).enumerate() {
            if stop.is_set() {
                return Err(EngineError::Interrupted);
            }
            let path = scratch.join(format!("{prefix}-{round}-{part}.run"));
            let file = File::create(&path).map_err(|source| io("write", &path, source))?;
            let file = BufWriter::with_capacity(1 << 20, file);
            let mut writer = RunWriter::new(file, terms, Compression::default())?;
            let mut rows = added(some).open()?;
            merge_runs(&mut rows, range.clone(), accumulator, &mut writer)?;
            let (file, _) = writer.finish()?;
            file.into_inner()
                .map_err(|error| io("write", &path, error.into_error()))?;
            summed.push(path);
        }
        if round > 0 {
            for path in &runs {
                let _ = std::fs::remove_file(path);
            }
        }
        runs = summed;
        round += 1;
    }
    Ok(runs)
}

fn added<'a>(runs: &[PathBuf]) -> Parts<'a> {
    Parts {
        runs: runs.iter().map(|path| (path.clone(), false)).collect(),
        tables: Vec::new(),
    }
}
