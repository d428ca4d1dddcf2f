//! Reduce: all runs of one range of left ids, and what the job has of it, are summed into one table
//! file.

use std::fs::File;
use std::io::BufWriter;
use std::ops::Range;
use std::path::PathBuf;

use pmill_count::{Accumulator, Compression, RunWriter, merge_runs};

use super::folder::io;
use super::spec::{RUNS, RunsList};
use super::worker::Running;
use crate::counting::{Parts, RangeFile};
use crate::error::EngineError;
use crate::tables::{PairsFile, unwrap_sink};

/// Runs that are open at once; more are summed in rounds, through files on this machine.
const FAN_IN: usize = 128;

impl Running<'_> {
    pub(super) fn reduce(
        &self,
        number: usize,
        range: &Range<u32>,
    ) -> Result<RangeFile, EngineError> {
        let list: RunsList = self.folder.need(RUNS)?;
        let data = self.folder.data();
        let mut runs: Vec<PathBuf> = list.runs.iter().map(|run| data.join(&run.name)).collect();
        let terms = self.vocabulary()?.vocabulary.len();
        let terms = u32::try_from(terms)
            .map_err(|_| EngineError::Bug("a vocabulary beyond 32 bits".into()))?;
        let mut accumulator = Accumulator::new(terms);
        let mut round = 0;
        while runs.len() > FAN_IN {
            let mut summed = Vec::new();
            for (part, some) in runs.chunks(FAN_IN).enumerate() {
                self.check_stop()?;
                let path = self.scratch.path().join(format!("sum-{round}-{part}.run"));
                let file = File::create(&path).map_err(|source| io("write", &path, source))?;
                let file = BufWriter::with_capacity(1 << 20, file);
                let mut writer = RunWriter::new(file, terms, Compression::default())?;
                let mut rows = added(some).open()?;
                merge_runs(&mut rows, range.clone(), &mut accumulator, &mut writer)?;
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
        self.check_stop()?;
        let before = self.loaded.base_pairs(terms)?;
        let mut parts = added(&runs);
        parts.tables = before.iter().collect();
        let name = format!(
            "part-{number:05}-{}-{}.parquet",
            self.header.digest, self.attempt
        );
        let mut file = PairsFile::create(&self.table_folder(), &name)?;
        let mut rows = parts.open()?;
        merge_runs(&mut rows, range.clone(), &mut accumulator, &mut file).map_err(unwrap_sink)?;
        let (file, pairs, units) = file.finish()?;
        Ok(RangeFile {
            file,
            pairs,
            units: units.to_string(),
        })
    }
}

fn added<'a>(runs: &[PathBuf]) -> Parts<'a> {
    Parts {
        runs: runs.iter().map(|path| (path.clone(), false)).collect(),
        tables: Vec::new(),
    }
}
