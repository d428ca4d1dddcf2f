//! Merging tables in units: each range of left ids is summed by whoever is free.
//!
//! ```text
//! plan ─▶ remap(range of a table) … ─▶ merge(range) … ─▶ commit
//! ```
//!
//! Only tables of other vocabularies are remapped. The driver holds the job's lock, and sums the
//! vocabularies itself, streaming what is outside them.

use std::ops::Range;
use std::path::Path;

use pmill_count::Accumulator;
use pmill_store::{Job, JobName, Warehouse};
use serde::{Deserialize, Serialize};

use super::drive::{Phase, Phases, Runner, clear_others, taken_over};
use super::folder::{PLAN, PlanFolder, bring, claim_epoch, io, put_new, remove, superseded};
use super::place::{is_remote, read_bytes, write_bytes};
use super::plan::{PROTOCOL, attempt};
use super::reduce::merge_in_steps;
use super::spec::Work;
use super::worker::{UnitWorker, finish};
use crate::counting::{Parts, RangeFile};
use crate::error::EngineError;
use crate::job::Facts;
use crate::merge_tables::{MergeJob, MergeSummary, Merging, merge_by};
use crate::pairs_table::PairsTable;
use crate::progress::{Progress, StopFlag};
use crate::remap::{Remapped, remap};
use crate::session::Session;
use crate::tables::{PairsFile, TableFolder};

/// A table to be summed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct MergeTable {
    warehouse: String,
    name: String,
    /// The version of `pairs`.
    version: u64,
    terms: u32,
    /// File of its ids in the sum's vocabulary, if they are others.
    map: Option<String>,
}

/// What all units of a merge share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MergeHeader {
    protocol: u32,
    program: String,
    digest: String,
    warehouse: String,
    pub(super) name: String,
    /// Terms of the sum.
    terms: u32,
    symmetric: bool,
    tables: Vec<MergeTable>,
    /// Index of a table that is remapped, and a range of its left ids.
    pub(super) remaps: Vec<(usize, Range<u32>)>,
    /// Left ids of each file of the sum.
    pub(super) ranges: Vec<Range<u32>>,
}

impl MergeTable {
    fn display(&self) -> String {
        format!("{}{}", self.warehouse, self.name)
    }
}

impl MergeHeader {
    /// The table that a part comes from.
    pub(super) fn input(&self, number: usize) -> Vec<String> {
        let table = self.remaps.get(number).map(|(table, _)| *table);
        let table = table.and_then(|index| self.tables.get(index));
        table.map(MergeTable::display).into_iter().collect()
    }

    /// All tables.
    pub(super) fn inputs(&self) -> Vec<String> {
        self.tables.iter().map(MergeTable::display).collect()
    }
}

/// An id that has no place in the sum's vocabulary.
const NOWHERE: u32 = u32::MAX;

fn write_map(folder: &PlanFolder, map: &[Option<u32>]) -> Result<String, EngineError> {
    let name = format!("map-{}", attempt());
    let path = folder.data().join(&name);
    let ids = map.iter().map(|id| id.unwrap_or(NOWHERE));
    let bytes: Vec<u8> = ids.flat_map(u32::to_le_bytes).collect();
    write_bytes(&path, bytes)?;
    Ok(name)
}

fn read_map(path: &Path, terms: u32) -> Result<Vec<Option<u32>>, EngineError> {
    let gone = || io("read", path, std::io::ErrorKind::NotFound.into());
    let bytes = read_bytes(path)?.ok_or_else(gone)?;
    let (ids, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || ids.len() != terms as usize {
        let message = "it is not as long as it was written";
        return Err(io("read", path, std::io::Error::other(message)));
    }
    let ids = ids.iter().map(|id| u32::from_le_bytes(*id));
    Ok(ids.map(|id| (id != NOWHERE).then_some(id)).collect())
}

/// A merge as a worker has it.
pub(super) struct LoadedMerge {
    header: MergeHeader,
    session: Session,
    warehouse: Warehouse,
    name: JobName,
    tables: Vec<PairsTable>,
    maps: Vec<Option<Vec<Option<u32>>>>,
}

impl LoadedMerge {
    pub(super) fn open(folder: &PlanFolder, worker: &UnitWorker) -> Result<Self, EngineError> {
        let header = folder.need_header::<MergeHeader>()?;
        let open = |location: &str| {
            let warehouse = Warehouse::open(location)?;
            worker.check_warehouse(&warehouse)?;
            Ok::<_, EngineError>(warehouse)
        };
        let limits = &worker.limits;
        let session = Session::new(limits.threads, limits.memory, Some(&limits.scratch))?;
        let (mut tables, mut maps) = (Vec::new(), Vec::new());
        for table in &header.tables {
            let (there, name) = (open(&table.warehouse)?, JobName::new(&table.name)?);
            let version = Some(table.version);
            let job = session.wait(Job::open_existing_at(&there, &name, version))?;
            tables.push(PairsTable::new(
                &there,
                &job,
                table.terms,
                session.handle(),
            )?);
            maps.push(match &table.map {
                None => None,
                Some(name) => Some(read_map(&folder.data().join(name), table.terms)?),
            });
        }
        Ok(Self {
            warehouse: open(&header.warehouse)?,
            name: JobName::new(&header.name)?,
            header,
            session,
            tables,
            maps,
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
        match work {
            Work::Remap { number } => {
                let outbox = folder.outbox(scratch)?;
                let done = self.remap(worker, &outbox, *number, attempt, stop)?;
                folder.send(scratch)?;
                finish(folder, &name, attempt, stop, &done)
            }
            Work::Merge { number } => {
                let done = self.merge(folder, *number, attempt, stop)?;
                finish(folder, &name, attempt, stop, &done)
            }
            _ => Err(EngineError::Bug(format!("`{name}` is not of a merge"))),
        }
    }

    fn remap(
        &self,
        worker: &UnitWorker,
        outbox: &Path,
        number: usize,
        attempt: &str,
        stop: &StopFlag,
    ) -> Result<Remapped, EngineError> {
        let unit = self.header.remaps.get(number);
        let (table, range) = unit.ok_or_else(|| no_unit(number))?;
        let Some(map) = &self.maps[*table] else {
            return Err(no_unit(number));
        };
        let buffer = usize::try_from(worker.limits.memory.0 / 4).unwrap_or(usize::MAX);
        remap(
            &self.tables[*table],
            (range.clone(), self.header.terms),
            map,
            self.header.symmetric,
            buffer,
            (outbox, &format!("{attempt}-remap-{number:05}")),
            stop,
        )
    }

    fn merge(
        &self,
        folder: &PlanFolder,
        number: usize,
        attempt: &str,
        stop: &StopFlag,
    ) -> Result<RangeFile, EngineError> {
        let range = self.header.ranges.get(number);
        let range = range.ok_or_else(|| no_unit(number))?;
        let mut parts = Parts::default();
        for number in 0..self.header.remaps.len() {
            let done: Remapped = folder.need(&Work::Remap { number }.name())?;
            let paths = done.runs.iter().map(|run| folder.data().join(&run.name));
            parts.runs.extend(paths.map(|path| (path, false)));
        }
        let as_they_are = self.tables.iter().zip(&self.maps);
        parts.tables = as_they_are
            .filter(|(_, map)| map.is_none())
            .map(|(table, _)| table)
            .collect();
        let runtime = self.session.handle();
        let target = if is_remote(folder.path()) {
            TableFolder::new(&self.warehouse, &self.name, "pairs", runtime)
        } else {
            TableFolder::at(&self.warehouse, folder.tables(), runtime)
        };
        let name = format!("part-{number:05}-{}-{attempt}.parquet", self.header.digest);
        let mut file = PairsFile::create(&target, &name)?;
        let mut accumulator = Accumulator::new(self.header.terms);
        merge_in_steps(&parts, range.clone(), &mut accumulator, &mut file, stop)?;
        let (file, pairs, units) = file.finish()?;
        Ok(RangeFile {
            file,
            pairs,
            units: units.to_string(),
        })
    }
}

fn no_unit(number: usize) -> EngineError {
    EngineError::Bug(format!("the plan has no unit {number}"))
}

impl UnitWorker {
    pub(super) fn run_merge(
        &self,
        folder: &PlanFolder,
        work: &Work,
        attempt: (&str, &Path),
        stop: &StopFlag,
    ) -> Result<bool, EngineError> {
        let open = || LoadedMerge::open(folder, self);
        let merge = self.merging.get(folder.path(), open)?;
        merge.run(self, folder, work, attempt, stop)
    }
}

/// How a merge is driven.
pub struct MergeDrive<'a> {
    /// What to sum.
    pub job: &'a MergeJob,
    /// Seconds that a unit may take.
    pub limit_seconds: u64,
    /// Attempts that may die with their process before a unit is taken for poison.
    pub most_attempts: u32,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Whether to stop.
    pub stop: &'a StopFlag,
}

impl MergeDrive<'_> {
    /// Sums the tables, each range of left ids by whoever `runner` finds.
    ///
    /// # Errors
    /// As [`crate::merge_tables::merge`]; when a unit cannot be done.
    pub fn run(&self, runner: &mut dyn Runner) -> Result<MergeSummary, EngineError> {
        let name = JobName::new(&self.job.name)?;
        let warehouse = Warehouse::open(&self.job.warehouse)?;
        let plans = PlanFolder::of_job(&warehouse, &name)?.with_extension("merges");
        let summary = merge_by(self.job, self.progress, self.stop, |merging, _, summary| {
            self.sum(merging, &plans, runner, summary)
        })?;
        remove(&plans)?;
        Ok(summary)
    }

    fn sum(
        &self,
        merging: &Merging<'_>,
        plans: &Path,
        runner: &mut dyn Runner,
        summary: &mut MergeSummary,
    ) -> Result<Facts, EngineError> {
        if merging.is_sketched() {
            return Err(EngineError::Setting(
                "jobs with a sketch are summed in one process; run the command without --cluster"
                    .into(),
            ));
        }
        if merging.is_sliced() {
            return Err(EngineError::Setting(
                "jobs that are counted by slice are summed in one process; run the command without --cluster".into(),
            ));
        }
        let digest = merging.digest();
        let begun = merging.begin(&digest, summary)?;
        let epoch = claim_epoch(plans)?;
        let folder = PlanFolder::make(plans, &digest)?;
        let header = match folder.header::<MergeHeader>()? {
            // An earlier driver's plan of the same merge: its manifests count.
            Some(header) => header,
            None => {
                let header = self.plan(merging, &folder, &digest, merging.ranges(&begun)?)?;
                put_new(folder.path(), PLAN, &header)?;
                header
            }
        };
        clear_others(plans, folder.path())?;
        folder.forget_attempts()?;
        let phases = Phases {
            folder: &folder,
            epoch,
            limit_seconds: self.limit_seconds,
            most_attempts: self.most_attempts,
            progress: self.progress,
            stop: self.stop,
        };
        let remaps = (0..header.remaps.len()).map(|number| Work::Remap { number });
        if !header.remaps.is_empty() {
            phases.run(runner, Phase::Remap, remaps.collect())?;
            self.tell_dropped(merging, &folder, &header, summary)?;
        }
        let works = (0..header.ranges.len()).map(|number| Work::Merge { number });
        phases.run(runner, Phase::Merge, works.collect())?;
        if superseded(plans, epoch) {
            return Err(taken_over());
        }
        let target = merging.warehouse.table_folder(merging.name, "pairs").1;
        let mut files: Vec<RangeFile> = Vec::with_capacity(header.ranges.len());
        for number in 0..header.ranges.len() {
            let file: RangeFile = folder.need(&Work::Merge { number }.name())?;
            bring(&folder, &file.file, target.as_deref())?;
            files.push(file);
        }
        merging.commit(begun, files, &digest, summary)
    }

    fn plan(
        &self,
        merging: &Merging<'_>,
        folder: &PlanFolder,
        digest: &str,
        ranges: Vec<Range<u32>>,
    ) -> Result<MergeHeader, EngineError> {
        let (mut tables, mut remaps) = (Vec::new(), Vec::new());
        let places = merging.places().zip(merging.maps());
        for (index, ((warehouse, base), map)) in places.enumerate() {
            if map.is_some() {
                let ranges = merging.ranges_of(base);
                remaps.extend(ranges.into_iter().map(|range| (index, range)));
            }
            tables.push(MergeTable {
                warehouse: warehouse.url().as_str().to_owned(),
                name: base.job.name.to_string(),
                version: base.job.pairs.version(),
                terms: base.vocabulary_size(),
                map: map.map(|map| write_map(folder, map)).transpose()?,
            });
        }
        Ok(MergeHeader {
            protocol: PROTOCOL,
            program: concat!("pmill ", env!("CARGO_PKG_VERSION")).to_owned(),
            digest: digest.to_owned(),
            name: merging.name.to_string(),
            warehouse: merging.warehouse.url().as_str().to_owned(),
            terms: merging.first().vocabulary_size(),
            symmetric: merging.symmetric(),
            tables,
            remaps,
            ranges,
        })
    }

    /// Sums by table what its units left out.
    fn tell_dropped(
        &self,
        merging: &Merging<'_>,
        folder: &PlanFolder,
        header: &MergeHeader,
        summary: &mut MergeSummary,
    ) -> Result<(), EngineError> {
        let mut dropped = vec![(0_u64, 0_u128); header.tables.len()];
        for (number, (table, _)) in header.remaps.iter().enumerate() {
            let done: Remapped = folder.need(&Work::Remap { number }.name())?;
            dropped[*table].0 += done.dropped_pairs;
            dropped[*table].1 += done.dropped_units.parse().unwrap_or(0);
        }
        let parts = dropped.iter().skip(merging.own_tables());
        for (part, (pairs, units)) in parts.enumerate() {
            merging.tell_dropped(part, *pairs, &units.to_string(), summary);
        }
        Ok(())
    }
}

/// A spec of a merge's unit.
pub(super) fn is_merging(work: &Work) -> bool {
    matches!(work, Work::Remap { .. } | Work::Merge { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_comes_back_from_its_file() {
        let plans = tempfile::tempdir().unwrap();
        let folder = PlanFolder::make(plans.path(), "a").unwrap();
        let map = [Some(3), None, Some(0)];
        let path = folder.data().join(write_map(&folder, &map).unwrap());
        assert_eq!(read_map(&path, 3).unwrap(), map);
        assert!(read_map(&path, 4).is_err());
    }
}
