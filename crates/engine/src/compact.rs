//! Rewrites the pairs of a job into few files of an even size; the rows stay what they are.
//!
//! In: the newest version of `pairs`. Out: one commit that says which version's rows it holds. A file
//! ends at the first left id after so many pairs, so the files depend on the rows only. Memory: one
//! batch read, one row group written.

use std::time::Instant;

use pmill_count::RowSink;
use pmill_count::RowSource;
use pmill_store::{CompactCommit, DataFile, Job, JobName, Warehouse, killpoint};
use serde::Serialize;

use crate::error::EngineError;
use crate::job::{Facts, parse};
use crate::memory::{ByteSize, peak_rss};
use crate::pairs_table::PairsTable;
use crate::progress::{Progress, StopFlag, Unit as Steps};
use crate::session::Session;
use crate::tables::{PAIRS_A_FILE, PairsFile, TableFolder, unwrap_sink};

/// What to compact.
#[derive(Debug, Clone)]
pub struct CompactJob {
    /// Warehouse location.
    pub warehouse: String,
    /// Job name.
    pub name: String,
    /// Memory limit.
    pub memory_limit: ByteSize,
    /// Whether to say what would be done, and do nothing.
    pub dry_run: bool,
}

/// What a compaction did; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct CompactSummary {
    /// `compacted`, `unchanged`, or `would compact`.
    pub status: &'static str,
    /// Job name.
    pub job: String,
    /// Version of `pairs`.
    pub version: u64,
    /// Files before.
    pub files_before: u64,
    /// Files after; those planned at most, in a dry run.
    pub files: u64,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes after.
    pub bytes: u64,
    /// Pairs, before and after.
    pub pairs: u64,
    /// Seconds.
    pub seconds: f64,
    /// Most memory held, if the system tells.
    pub peak_memory_bytes: Option<u64>,
}

/// Compacts the pairs of a job.
///
/// # Errors
/// When the job does not exist or is being written, its pairs are damaged, the disk is full, or
/// someone else committed meanwhile; nothing changes then.
pub fn compact(
    job: &CompactJob,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<CompactSummary, EngineError> {
    let started = Instant::now();
    let name = JobName::new(&job.name)?;
    let warehouse = Warehouse::open(&job.warehouse)?;
    let session = Session::new(2, job.memory_limit, None)?;
    session.wait(Job::open_existing(&warehouse, &name))?;
    let lock = (!job.dry_run).then(|| warehouse.lock(&name)).transpose()?;
    // Opened again under the lock: it is this version that is rewritten.
    let opened = session.wait(Job::open_existing(&warehouse, &name))?;
    let facts: Facts = parse(&opened.facts()?)?;
    let before = opened.pairs.files()?;
    let summary = CompactSummary {
        status: "unchanged",
        job: job.name.clone(),
        version: opened.pairs.version(),
        files_before: before.len() as u64,
        files: before.len() as u64,
        bytes_before: before.iter().map(|file| file.size).sum(),
        bytes: before.iter().map(|file| file.size).sum(),
        pairs: facts.pairs,
        seconds: 0.0,
        peak_memory_bytes: None,
    };
    let timed = |summary| CompactSummary {
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_rss().map(|size| size.0),
        ..summary
    };
    let done = before.len() <= 1 || opened.is_compact()?;
    let Some(lock) = lock else {
        return Ok(timed(CompactSummary {
            status: if done { "unchanged" } else { "would compact" },
            files: if done {
                summary.files
            } else {
                facts.pairs.div_ceil(PAIRS_A_FILE).max(1)
            },
            ..summary
        }));
    };
    if done {
        session.wait(warehouse.sweep(&name, &lock))?;
        return Ok(timed(summary));
    }
    let batch = digest(&before);
    let files = rewrite(
        &warehouse, &opened, &facts, &batch, &session, progress, stop,
    )?;
    killpoint::reach("compacted pairs are written");
    let summary = CompactSummary {
        status: "compacted",
        files: files.len() as u64,
        bytes: files.iter().map(|file| file.size).sum(),
        ..summary
    };
    let commit = CompactCommit {
        job: &opened,
        batch,
        pairs: files,
    };
    let version = session.wait(commit.commit(&warehouse))?;
    session.wait(warehouse.sweep(&name, &lock))?;
    Ok(timed(CompactSummary { version, ..summary }))
}

/// Names the compaction: the same files give the same name.
fn digest(files: &[DataFile]) -> String {
    let named: Vec<_> = files.iter().map(|file| (&file.name, file.size)).collect();
    let text = serde_json::to_vec(&("compact", named)).unwrap_or_default();
    blake3::hash(&text).to_hex()[..16].to_owned()
}

fn rewrite(
    warehouse: &Warehouse,
    job: &Job,
    facts: &Facts,
    batch: &str,
    session: &Session,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<Vec<DataFile>, EngineError> {
    progress.phase(
        "compact",
        facts.pairs.div_ceil(PAIRS_A_FILE).max(1),
        Steps::Parts,
    );
    let terms = u32::try_from(facts.ids())
        .map_err(|_| EngineError::Bug("the vocabulary has more than 2^32 terms".into()))?;
    let table = PairsTable::new(warehouse, job, terms, session.handle())?;
    let mut rows = table.rows();
    rows.seek(0..terms).map_err(unwrap_sink)?;
    let folder = TableFolder::new(warehouse, &job.name, "pairs", session.handle());
    let open =
        |number: usize| PairsFile::create(&folder, &format!("part-{number:05}-{batch}.parquet"));
    let mut files = Vec::new();
    let (mut pairs, mut units) = (0, 0);
    let mut file = open(0)?;
    let mut close = |file: PairsFile, files: &mut Vec<DataFile>| -> Result<(), EngineError> {
        let (file, more_pairs, more_units) = file.finish()?;
        pairs += more_pairs;
        units += more_units;
        files.push(file);
        progress.advance(1, 0);
        Ok(())
    };
    let mut last = None;
    while let (Some(left), Some(piece)) = (rows.left(), rows.piece()) {
        if stop.is_set() {
            return Err(EngineError::Interrupted);
        }
        if last != Some(left) && file.pairs >= PAIRS_A_FILE {
            close(file, &mut files)?;
            file = open(files.len())?;
        }
        file.row(left, piece.right, piece.counts)
            .map_err(unwrap_sink)?;
        last = Some(left);
        rows.advance().map_err(unwrap_sink)?;
    }
    close(file, &mut files)?;
    if (pairs, units.to_string()) != (facts.pairs, facts.units.clone()) {
        return Err(EngineError::Query(format!(
            "the pairs of `{}` are not what was counted ({pairs} pairs of sum {units}, counted {} of sum {}); `pmill inspect --verify` says more; nothing was changed",
            job.name, facts.pairs, facts.units
        )));
    }
    Ok(files)
}
