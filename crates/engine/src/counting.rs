//! Map and reduce: token ids to sorted rows, rows to table files.
//!
//! A job whose tokens fit one block goes straight from the block to the table files. A larger one
//! writes each full block as runs, and merges all runs of a range of left ids into its file.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pmill_count::{
    Accumulator, Compression, Context, CountError, CountSettings as KernelSettings,
    OUT_OF_VOCABULARY, Piece, PreparedBlock, RowSink, RowSource, RunReader, RunSource, RunWriter,
    SeekSource, Tail, TokenBlock, merge_runs, subsample_row,
};
use pmill_store::DataFile;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::job::distributed::place::{self, Ranges};
use crate::pairs_table::{PairsRows, PairsTable};
use crate::progress::{Progress, StopFlag};
use crate::tables::{PairsFile, TableFolder, unwrap_sink};
use crate::tokens::{Chunk, TokenStore};
use crate::workers;

/// What the counting steps share.
pub struct Counting<'a> {
    /// Context and vocabulary size.
    pub kernel: KernelSettings,
    /// Chance of each id to be kept, when frequent tokens are subsampled.
    pub keep: Option<Vec<f64>>,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Threads.
    pub threads: usize,
    /// Left ids of each table file.
    pub ranges: Vec<Range<u32>>,
    /// Where table files go.
    pub folder: TableFolder<'a>,
    /// Part of the table files' names.
    pub batch: String,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Whether to stop.
    pub stop: &'a StopFlag,
    /// What threads do before they count.
    pub(crate) aside: Aside<'a>,
}

/// Steps that wait for a thread; the last is the first to be done.
pub(crate) type Aside<'a> = Mutex<Vec<Box<dyn FnOnce() -> Result<(), EngineError> + Send + 'a>>>;

/// A run on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// File name in the work folder.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// Pairs.
    pub pairs: u64,
}

/// A finished file of `pairs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeFile {
    /// The file.
    pub file: DataFile,
    /// Pairs in it.
    pub pairs: u64,
    /// Sum of their counts in weight units, as text (JSON numbers end at 2⁵³).
    pub units: String,
}

/// What a merge sums: runs on disk, and tables committed before.
#[derive(Default)]
pub struct Parts<'a> {
    /// Runs, and whether each is taken away.
    pub runs: Vec<(PathBuf, bool)>,
    /// Tables.
    pub tables: Vec<&'a PairsTable>,
}

/// One of them, open.
pub(crate) enum Rows<'a> {
    Run(Box<RunReader<Box<dyn RunSource + Send>>>),
    Table(Box<PairsRows<'a>>),
}

impl Rows<'_> {
    fn source(&self) -> &dyn RowSource {
        match self {
            Self::Run(run) => run.as_ref(),
            Self::Table(table) => table.as_ref(),
        }
    }

    fn source_mut(&mut self) -> &mut dyn RowSource {
        match self {
            Self::Run(run) => run.as_mut(),
            Self::Table(table) => table.as_mut(),
        }
    }
}

impl RowSource for Rows<'_> {
    fn vocabulary_size(&self) -> u32 {
        self.source().vocabulary_size()
    }

    fn is_subtracted(&self) -> bool {
        self.source().is_subtracted()
    }

    fn seek(&mut self, range: Range<u32>) -> pmill_count::Result<()> {
        self.source_mut().seek(range)
    }

    fn left(&self) -> Option<u32> {
        self.source().left()
    }

    fn piece(&self) -> Option<Piece<'_>> {
        self.source().piece()
    }

    fn advance(&mut self) -> pmill_count::Result<()> {
        self.source_mut().advance()
    }
}

impl<'a> Parts<'a> {
    pub(crate) fn open(&self) -> pmill_count::Result<Vec<Rows<'a>>> {
        let mut rows = Vec::with_capacity(self.runs.len() + self.tables.len());
        for (path, subtracted) in &self.runs {
            let name = path.display().to_string();
            let fail = |source| CountError::RunRead {
                run: name.clone(),
                source,
            };
            let object = place::object(path).map_err(|error| fail(std::io::Error::other(error)))?;
            let source: Box<dyn RunSource + Send> = match object {
                Some(object) => Box::new(Ranges::of(object)),
                None => {
                    let opened = File::open(path).map_err(fail)?;
                    Box::new(SeekSource(BufReader::with_capacity(1 << 16, opened)))
                }
            };
            let mut run = RunReader::open(name, source)?;
            if *subtracted {
                run = run.subtracting();
            }
            rows.push(Rows::Run(Box::new(run)));
        }
        for table in &self.tables {
            rows.push(Rows::Table(Box::new(table.rows())));
        }
        Ok(rows)
    }
}

impl<'a> Counting<'a> {
    /// Has something else done beside the counting: one of the threads takes it before it writes table
    /// files.
    pub(crate) fn aside(&mut self, step: impl FnOnce() -> Result<(), EngineError> + Send + 'a) {
        if let Ok(aside) = self.aside.get_mut() {
            aside.push(Box::new(step));
        }
    }
}

impl Counting<'_> {
    /// Pours chunks into blocks. A full block is given to `full`, which gives back an empty one;
    /// the last block, full or not, is returned.
    ///
    /// # Errors
    /// Those of the chunks and of `full`.
    pub fn fill(
        &self,
        tokens: TokenStore,
        maps: &[Vec<u32>],
        full: impl FnMut(TokenBlock) -> Result<TokenBlock, EngineError>,
    ) -> Result<TokenBlock, EngineError> {
        self.fill_slices(tokens, maps, &[], full)
    }

    /// The same for chunks of slices. `offsets` has, by dictionary, the first id of the slice that is in
    /// it; `None` for a slice that is none any more: its rows count nowhere.
    ///
    /// # Errors
    /// Those of the chunks and of `full`.
    pub fn fill_slices(
        &self,
        tokens: TokenStore,
        maps: &[Vec<u32>],
        offsets: &[Option<u32>],
        mut full: impl FnMut(TokenBlock) -> Result<TokenBlock, EngineError>,
    ) -> Result<TokenBlock, EngineError> {
        let (needed, in_memory) = (self.needed_for(&tokens)?, tokens.in_memory()?);
        if in_memory && needed <= self.block_bytes && self.kernel.context != Context::Row {
            return self.fill_at_once(tokens, maps, offsets);
        }
        let mut block = TokenBlock::with_budget(&self.kernel, needed.min(self.block_bytes))?;
        let mut mapper = RowMapper::new(maps, offsets, self.keep.as_deref());
        let (expected, mut poured) = (tokens.size()?.0, 0);
        for chunk in tokens.into_chunks()? {
            let chunk = chunk?;
            if self.stop.is_set() {
                return Err(EngineError::Interrupted);
            }
            poured += chunk.ids.len() as u64;
            mapper.each_row(&chunk, |ids| {
                if !block.has_room(ids.len()) {
                    let empty = TokenBlock::new(&self.kernel)?;
                    block = full(std::mem::replace(&mut block, empty))?;
                }
                Ok(block.push_row(ids)?)
            })?;
        }
        check_poured(expected, poured)?;
        Ok(block)
    }

    /// Pours chunks that are all in memory, and fit one block, into it with all threads.
    fn fill_at_once(
        &self,
        tokens: TokenStore,
        maps: &[Vec<u32>],
        offsets: &[Option<u32>],
    ) -> Result<TokenBlock, EngineError> {
        let expected = tokens.size()?.0;
        let chunks = tokens.into_chunks()?;
        let poured = chunks
            .in_memory()
            .iter()
            .map(|chunk| chunk.ids.len() as u64);
        check_poured(expected, poured.sum())?;
        let slots = |chunk: &Chunk| chunk.ids.len() + chunk.row_ends.len();
        let sizes: Vec<usize> = chunks.in_memory().iter().map(slots).collect();
        let mut block = TokenBlock::new(&self.kernel)?;
        let tallies = {
            let pieces = block.pieces(&sizes)?;
            // Both are taken from the end, so that a chunk meets its piece and leaves memory.
            let queue = Mutex::new((chunks, pieces));
            workers::run(self.threads, self.stop, |_| {
                let mut mapper = RowMapper::new(maps, offsets, self.keep.as_deref());
                let mut tallies = Vec::new();
                loop {
                    if self.stop.is_set() {
                        return Err(EngineError::Interrupted);
                    }
                    let next = {
                        let mut queue = queue.lock().map_err(|_| poisoned())?;
                        queue.0.next().zip(queue.1.pop())
                    };
                    let Some((chunk, mut piece)) = next else {
                        return Ok(tallies);
                    };
                    mapper.each_row(&chunk?, |ids| Ok(piece.push_row(ids)?))?;
                    tallies.push(piece.finish());
                }
            })?
        };
        block.close_pieces(&tallies.concat());
        Ok(block)
    }

    /// Bytes of a block that holds all of these tokens.
    fn needed_for(&self, tokens: &TokenStore) -> Result<usize, EngineError> {
        let (tokens, rows) = tokens.size()?;
        let slots = usize::try_from(tokens + rows).unwrap_or(usize::MAX);
        Ok(slots
            .saturating_mul(TokenBlock::bytes_per_token(&self.kernel))
            .saturating_add(self.kernel.vocabulary_size as usize * 16)
            .saturating_add(1 << 20))
    }

    /// Counts a block straight into the table files; what is not exact into `tail`.
    ///
    /// # Errors
    /// A full disk, a sum beyond 64 bits, a stop.
    pub fn write_tables(
        &self,
        block: &PreparedBlock,
        tail: Option<&Tail>,
    ) -> Result<Vec<RangeFile>, EngineError> {
        self.each_range(
            |range, accumulator, file| count_rows(block, range, accumulator, file, tail),
            |_| None,
            |_, _| Ok(()),
        )
    }

    /// Counts a block into runs, named by `prefix`: one a thread; what is not exact into `tail`.
    ///
    /// # Errors
    /// A full disk, a sum beyond 64 bits, a stop.
    pub fn write_runs(
        &self,
        block: &PreparedBlock,
        work: &Path,
        prefix: &str,
        tail: Option<&Tail>,
    ) -> Result<Vec<RunFile>, EngineError> {
        let parts = block.plan_ranges(self.threads * 16);
        let next = AtomicUsize::new(0);
        let runs = workers::run(self.threads, self.stop, |worker| {
            let name = format!("{prefix}-{worker:02}.run");
            let path = work.join(&name);
            let io = |source| io_error("write", &path, source);
            let file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(io)?);
            let size = self.kernel.vocabulary_size;
            let mut writer = RunWriter::new(file, size, Compression::default())?;
            let mut accumulator = Accumulator::new(size);
            loop {
                if self.stop.is_set() {
                    return Err(EngineError::Interrupted);
                }
                let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                count_rows(block, part.clone(), &mut accumulator, &mut writer, tail)?;
            }
            let (file, summary) = writer.finish()?;
            let file = file.into_inner().map_err(|error| io(error.into_error()))?;
            file.sync_all().map_err(io)?;
            Ok(RunFile {
                name,
                bytes: summary.bytes,
                pairs: summary.pairs,
            })
        })?;
        Ok(runs)
    }

    /// Merges runs and tables into the table files. `done` gives a range that an earlier try
    /// finished; `finished` is told of each new one.
    ///
    /// # Errors
    /// A damaged run or table, a full disk, a sum beyond 64 bits or below zero, a stop.
    pub fn merge(
        &self,
        parts: &Parts<'_>,
        done: impl Fn(usize) -> Option<RangeFile> + Sync,
        finished: impl Fn(usize, &RangeFile) -> Result<(), EngineError> + Sync,
    ) -> Result<Vec<RangeFile>, EngineError> {
        self.each_range(
            |range, accumulator, file| merge_runs(&mut parts.open()?, range, accumulator, file),
            done,
            finished,
        )
    }

    /// The first left id of a range that has a pair left in the sum.
    ///
    /// # Errors
    /// As [`Self::merge`].
    pub(crate) fn first_left(
        &self,
        parts: &Parts<'_>,
        range: Range<u32>,
    ) -> Result<Option<u32>, EngineError> {
        let mut accumulator = Accumulator::new(self.kernel.vocabulary_size);
        let mut first = FirstLeft(None);
        merge_runs(&mut parts.open()?, range, &mut accumulator, &mut first).map_err(unwrap_sink)?;
        Ok(first.0)
    }

    fn each_range(
        &self,
        count: impl Fn(Range<u32>, &mut Accumulator, &mut PairsFile) -> Result<(), CountError> + Sync,
        done: impl Fn(usize) -> Option<RangeFile> + Sync,
        finished: impl Fn(usize, &RangeFile) -> Result<(), EngineError> + Sync,
    ) -> Result<Vec<RangeFile>, EngineError> {
        let next = AtomicUsize::new(0);
        let files = Mutex::new(vec![None; self.ranges.len()]);
        let threads = self.threads.min(self.ranges.len());
        workers::run(threads, self.stop, |_| {
            loop {
                let step = self.aside.lock().map_err(|_| poisoned())?.pop();
                match step {
                    Some(step) => step()?,
                    None => break,
                }
            }
            let mut accumulator = Accumulator::new(self.kernel.vocabulary_size);
            loop {
                if self.stop.is_set() {
                    return Err(EngineError::Interrupted);
                }
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(range) = self.ranges.get(number) else {
                    return Ok(());
                };
                let file = match done(number) {
                    Some(file) => file,
                    None => {
                        let name = format!("part-{number:05}-{}.parquet", self.batch);
                        let mut file = PairsFile::create(&self.folder, &name)?;
                        count(range.clone(), &mut accumulator, &mut file).map_err(unwrap_sink)?;
                        let (file, pairs, units) = file.finish()?;
                        let file = RangeFile {
                            file,
                            pairs,
                            units: units.to_string(),
                        };
                        finished(number, &file)?;
                        file
                    }
                };
                self.progress.advance(1, 0);
                if let Ok(mut files) = files.lock() {
                    files[number] = Some(file);
                }
            }
        })?;
        let files = files.into_inner().unwrap_or_default();
        let files: Vec<_> = files.into_iter().flatten().collect();
        if files.len() == self.ranges.len() {
            Ok(files)
        } else {
            Err(EngineError::Bug(
                "a range of left ids was not written".into(),
            ))
        }
    }
}

/// Rows of a block into a sink, or what is exact of them, and the rest into a sketch.
fn count_rows(
    block: &PreparedBlock,
    range: Range<u32>,
    accumulator: &mut Accumulator,
    sink: &mut impl RowSink,
    tail: Option<&Tail>,
) -> Result<(), CountError> {
    let Some(tail) = tail else {
        return block.count_rows(range, accumulator, sink);
    };
    let mut split = tail.split(sink);
    block.count_rows(range, accumulator, &mut split)?;
    split.finish()
}

/// Remembers the first row.
struct FirstLeft(Option<u32>);

impl RowSink for FirstLeft {
    fn row(&mut self, left: u32, _right: &[u32], _counts: &[u64]) -> pmill_count::Result<()> {
        self.0.get_or_insert(left);
        Ok(())
    }
}

/// All tokens that were read must be counted.
fn check_poured(expected: u64, poured: u64) -> Result<(), EngineError> {
    if poured == expected {
        return Ok(());
    }
    Err(EngineError::Bug(format!(
        "{expected} tokens were read, and {poured} came to be counted"
    )))
}

/// Rows of chunks as the kernel takes them: in the vocabulary's ids, subsampled.
struct RowMapper<'a> {
    maps: &'a [Vec<u32>],
    offsets: &'a [Option<u32>],
    keep: Option<&'a [f64]>,
    ids: Vec<u32>,
    thinned: Vec<u32>,
    moved: Vec<u32>,
}

impl<'a> RowMapper<'a> {
    fn new(maps: &'a [Vec<u32>], offsets: &'a [Option<u32>], keep: Option<&'a [f64]>) -> Self {
        Self {
            maps,
            offsets,
            keep,
            ids: Vec::new(),
            thinned: Vec::new(),
            moved: Vec::new(),
        }
    }

    fn each_row(
        &mut self,
        chunk: &Chunk,
        mut take: impl FnMut(&[u32]) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let map = self.maps.get(chunk.dictionary as usize);
        let offset = self.offsets.get(chunk.dictionary as usize);
        for row in chunk.rows() {
            let ids = match map {
                None => row,
                Some(map) => {
                    self.ids.clear();
                    self.ids.extend(row.iter().map(|&local| {
                        map.get(local as usize)
                            .copied()
                            .unwrap_or(OUT_OF_VOCABULARY)
                    }));
                    &self.ids[..]
                }
            };
            let ids = match self.keep {
                None => ids,
                Some(keep) => {
                    subsample_row(ids, keep, &mut self.thinned);
                    &self.thinned[..]
                }
            };
            match offset {
                None => take(ids)?,
                Some(offset) => {
                    self.moved.clear();
                    self.moved.extend(ids.iter().map(|&id| match offset {
                        Some(first) if id != OUT_OF_VOCABULARY => first + id,
                        _ => OUT_OF_VOCABULARY,
                    }));
                    take(&self.moved)?;
                }
            }
        }
        Ok(())
    }
}

fn poisoned() -> EngineError {
    EngineError::Bug("a worker panicked while it held the queue of chunks".into())
}

fn io_error(action: &'static str, path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Io {
        action,
        path: path.display().to_string(),
        source,
    }
}
