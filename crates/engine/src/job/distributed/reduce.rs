//! Reduce: all runs of one range of left ids are summed into one table file.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::ops::Range;
use std::path::{Path, PathBuf};

use pmill_count::{
    Accumulator, Compression, CountError, RunReader, RunWriter, SeekSource, merge_runs,
};

use super::folder::io;
use super::spec::{RUNS, RunsList};
use super::worker::Running;
use crate::counting::RangeFile;
use crate::error::EngineError;
use crate::tables::{PairsFile, TableFolder, unwrap_sink};

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
        let (vocabulary, _) = self.vocabulary()?;
        let size = u32::try_from(vocabulary.len())
            .map_err(|_| EngineError::Bug("a vocabulary beyond 32 bits".into()))?;
        let mut accumulator = Accumulator::new(size);
        let mut round = 0;
        while runs.len() > FAN_IN {
            let mut summed = Vec::new();
            for (part, some) in runs.chunks(FAN_IN).enumerate() {
                self.check_stop()?;
                let path = self.scratch.path().join(format!("sum-{round}-{part}.run"));
                let file = File::create(&path).map_err(|source| io("write", &path, source))?;
                let file = BufWriter::with_capacity(1 << 20, file);
                let mut writer = RunWriter::new(file, size, Compression::default())?;
                merge_runs(
                    &mut open(some)?,
                    range.clone(),
                    &mut accumulator,
                    &mut writer,
                )?;
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
        let folder = TableFolder::at(
            &self.loaded.warehouse,
            self.folder.tables(),
            self.prepared().session.handle(),
        );
        let name = format!(
            "part-{number:05}-{}-{}.parquet",
            self.header.digest, self.attempt
        );
        let mut file = PairsFile::create(&folder, &name)?;
        merge_runs(
            &mut open(&runs)?,
            range.clone(),
            &mut accumulator,
            &mut file,
        )
        .map_err(unwrap_sink)?;
        let (file, pairs, units) = file.finish()?;
        Ok(RangeFile {
            file,
            pairs,
            units: units.to_string(),
        })
    }
}

type Reader = RunReader<SeekSource<BufReader<File>>>;

fn open(runs: &[PathBuf]) -> Result<Vec<Reader>, EngineError> {
    runs.iter().map(|path| open_one(path)).collect()
}

fn open_one(path: &Path) -> Result<Reader, EngineError> {
    let name = path.display().to_string();
    let opened = File::open(path).map_err(|source| CountError::RunRead {
        run: name.clone(),
        source,
    })?;
    let source = SeekSource(BufReader::with_capacity(1 << 16, opened));
    Ok(RunReader::open(name, source)?)
}
