//! Reads a unit: decode, tokenize, and either collect its terms or look them up.
//!
//! Workers take row groups one by one, so decoding and tokenizing overlap across them. A file
//! that turns out bad spoils the pass (its earlier row groups are in the dictionaries already):
//! the pass then goes on only to find all bad files, and is made again without them.

mod lanes;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use datafusion::execution::memory_pool::MemoryConsumer;
use pmill_text::{DictionaryBuilder, FeatureExtractor, IdEncoder, OUT_OF_VOCABULARY, Vocabulary};

use self::lanes::Lanes;
use crate::budget::Budget;
use crate::column::RowReceiver;
use crate::dictionaries::StoredDictionary;
use crate::error::EngineError;
use crate::progress::{Progress, StopFlag};
use crate::row_set::RowSet;
use crate::scan::{CorpusFile, RowGroupReader, Scanner};
use crate::session::Session;
use crate::slices::SliceFacts;
use crate::tokens::{CHUNK_TOKENS, Chunk, TokenStore};
use crate::units::{Slice, Unit};
use crate::workers;

/// What readers need to know.
pub struct ReadJob<'a> {
    /// Runtime, memory pool, disk.
    pub session: &'a Session,
    /// Opens row groups.
    pub scanner: &'a Scanner,
    /// The files of the plan.
    pub files: &'a [CorpusFile],
    /// Text to features.
    pub extractor: &'a Arc<FeatureExtractor>,
    /// Look terms up in this vocabulary; `None` collects them.
    pub vocabulary: Option<&'a Arc<Vocabulary>>,
    /// Whether rows are kept apart by slice.
    pub sliced: bool,
    /// By file of the plan: the rows that are read; `None` for all.
    pub rows: &'a [Option<RowSet>],
    /// Shares of memory.
    pub budget: Budget,
    /// Where dictionaries are written that do not fit.
    pub folder: &'a PathBuf,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Whether to stop.
    pub stop: &'a StopFlag,
}

/// What one file gave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileTally {
    /// Rows.
    pub rows: u64,
    /// Features, those outside the vocabulary too.
    pub tokens: u64,
}

/// A unit that has been read.
pub struct ReadUnit {
    /// Its tokens; ids are local to `dictionaries`, or of the vocabulary.
    pub tokens: TokenStore,
    /// The terms met, when no vocabulary was given.
    pub dictionaries: Vec<StoredDictionary>,
    /// By number of the chunks' dictionaries: the slice that is in them. Empty without slices.
    pub slices: Vec<SliceFacts>,
    /// Tokens and documents by id, when a vocabulary was given.
    pub counts: Option<(Vec<u64>, Vec<u64>)>,
    /// By file of the plan.
    pub files: Vec<FileTally>,
}

/// Files of the plan that cannot be counted, with the reason.
pub type BadFiles = Vec<(usize, EngineError)>;

/// Reads the unit's row groups, those of `leave_out` excepted. With `find_all`, bad files do not
/// end the pass but are all found and given back instead of a unit.
///
/// # Errors
/// A bad file (without `find_all`), a full disk, a stop.
pub fn read_unit(
    job: &ReadJob<'_>,
    unit: &Unit,
    leave_out: &[bool],
    find_all: bool,
) -> Result<Result<ReadUnit, BadFiles>, EngineError> {
    let reservation = MemoryConsumer::new("tokens")
        .with_can_spill(true)
        .register(&job.session.context().runtime_env().memory_pool);
    let shared = Shared {
        tokens: TokenStore::new(
            job.session.context().runtime_env().disk_manager.clone(),
            reservation,
        ),
        dictionaries: Mutex::new(Vec::new()),
        slices: Mutex::new(Vec::new()),
        next: AtomicUsize::new(0),
        bad: Mutex::new(Vec::new()),
    };
    let results = workers::run(job.budget.threads, job.stop, |_| {
        let mut worker = Worker::new(job, unit, &shared)?;
        worker.run(leave_out, find_all)?;
        worker.finish()
    })?;
    if job.stop.is_set() {
        return Err(EngineError::Interrupted);
    }
    let bad = shared.bad.into_inner().map_err(|_| poisoned())?;
    if !bad.is_empty() {
        return Ok(Err(bad));
    }
    let mut files = vec![FileTally::default(); job.files.len()];
    let mut counts = job.vocabulary.map(|v| (vec![0; v.len()], vec![0; v.len()]));
    for result in results {
        for (file, tally) in result.files.iter().enumerate() {
            files[file].rows += tally.rows;
            files[file].tokens += tally.tokens;
        }
        if let Some((tokens, documents)) = &mut counts {
            add(tokens, &result.tokens);
            add(documents, &result.documents);
        }
    }
    let dictionaries = shared.dictionaries.into_inner().map_err(|_| poisoned())?;
    Ok(Ok(ReadUnit {
        tokens: shared.tokens,
        dictionaries: dictionaries
            .into_iter()
            .map(|slot| {
                slot.ok_or_else(|| EngineError::Bug("a dictionary was not handed over".into()))
            })
            .collect::<Result<_, _>>()?,
        slices: shared.slices.into_inner().map_err(|_| poisoned())?,
        counts,
        files,
    }))
}

fn add(sums: &mut [u64], more: &[u64]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

fn poisoned() -> EngineError {
    EngineError::Bug("a reader panicked while it held a lock".into())
}

struct Shared {
    tokens: TokenStore,
    /// By dictionary number; a slot is taken when a worker begins one.
    dictionaries: Mutex<Vec<Option<StoredDictionary>>>,
    /// By the same number, when there are slices.
    slices: Mutex<Vec<SliceFacts>>,
    next: AtomicUsize,
    bad: Mutex<BadFiles>,
}

struct Worker<'a> {
    job: &'a ReadJob<'a>,
    unit: &'a Unit,
    shared: &'a Shared,
    source: Source,
    lanes: Option<Lanes>,
    chunk: Chunk,
    /// Where the rows of one batch end in the chunk.
    ends: Vec<usize>,
    files: Vec<FileTally>,
    /// The file being read.
    file: usize,
}

enum Source {
    Collect {
        builder: Box<DictionaryBuilder>,
        number: u32,
    },
    LookUp(Box<LookUp>),
    /// None: it is that of a slice which is not at hand.
    Parked,
}

struct LookUp {
    encoder: IdEncoder,
    tokens: Vec<u64>,
    documents: Vec<u64>,
    last_row: Vec<u32>,
    row: u32,
}

struct WorkerResult {
    files: Vec<FileTally>,
    tokens: Vec<u64>,
    documents: Vec<u64>,
}

impl<'a> Worker<'a> {
    fn new(job: &'a ReadJob<'a>, unit: &'a Unit, shared: &'a Shared) -> Result<Self, EngineError> {
        let source = match job.vocabulary {
            None => collect(job, shared)?,
            Some(vocabulary) => Source::LookUp(Box::new(LookUp {
                encoder: IdEncoder::new(job.extractor, vocabulary),
                tokens: vec![0; vocabulary.len()],
                documents: vec![0; vocabulary.len()],
                last_row: vec![0; vocabulary.len()],
                row: 0,
            })),
        };
        let mut worker = Self {
            job,
            unit,
            shared,
            source,
            lanes: job.sliced.then(Lanes::default),
            chunk: Chunk::default(),
            ends: Vec::new(),
            file: 0,
            files: vec![FileTally::default(); job.files.len()],
        };
        worker.begin_chunk();
        Ok(worker)
    }

    fn begin_chunk(&mut self) {
        self.chunk.dictionary = match &self.source {
            Source::Collect { number, .. } => *number,
            Source::LookUp(_) | Source::Parked => 0,
        };
    }

    fn run(&mut self, leave_out: &[bool], find_all: bool) -> Result<(), EngineError> {
        loop {
            let index = self.shared.next.fetch_add(1, Ordering::Relaxed);
            let Some(slice) = self.unit.slices.get(index).copied() else {
                return Ok(());
            };
            if leave_out[slice.file] {
                continue;
            }
            match self.slice(slice) {
                Ok(()) => {}
                Err(error @ EngineError::BadFile { .. }) if find_all => {
                    let mut bad = self.shared.bad.lock().map_err(|_| poisoned())?;
                    if !bad.iter().any(|(file, _)| *file == slice.file) {
                        bad.push((slice.file, error));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn slice(&mut self, slice: Slice) -> Result<(), EngineError> {
        let mut reader = self
            .job
            .scanner
            .read(&self.job.files[slice.file], slice.row_group)?;
        let runtime = self.job.session.handle().clone();
        let rows = self.job.files[slice.file].row_groups[slice.row_group]
            .rows
            .max(1);
        let chosen = self.job.rows.get(slice.file).and_then(Option::as_ref);
        let first: u64 = self.job.files[slice.file].row_groups[..slice.row_group]
            .iter()
            .map(|group| group.rows)
            .sum();
        let mut told = 0;
        while let Some(batch) = runtime.block_on(reader.next())? {
            if self.job.stop.is_set() {
                return Err(EngineError::Interrupted);
            }
            let batch_rows = batch.num_rows();
            let before = first + reader.rows_seen() - batch_rows as u64;
            let batch = match chosen.and_then(|chosen| chosen.mask(before, batch_rows)) {
                None => batch,
                Some(mask) => arrow::compute::filter_record_batch(&batch, &mask)
                    .map_err(|error| EngineError::Bug(error.to_string()))?,
            };
            self.batch(slice.file, &reader, &batch)?;
            // Bytes done, as the share of rows done.
            let done = slice.bytes / rows * reader.rows_seen();
            self.job.progress.advance(done - told, batch_rows as u64);
            told = done;
        }
        Ok(())
    }

    fn batch(
        &mut self,
        file: usize,
        reader: &RowGroupReader,
        batch: &arrow::record_batch::RecordBatch,
    ) -> Result<(), EngineError> {
        self.file = file;
        if self.lanes.is_some() {
            return reader.sliced_rows(batch, self, Self::begin_slice);
        }
        reader.rows(batch, self)
    }

    /// Takes note of the rows that were just appended, which end at `self.ends`.
    fn appended(&mut self, from: usize) -> Result<(), EngineError> {
        let tally = &mut self.files[self.file];
        tally.rows += self.ends.len() as u64;
        tally.tokens += (self.chunk.ids.len() - from) as u64;
        let mut start = from;
        for &end in &self.ends {
            // A row without features meets nothing and needs no place.
            if end > start {
                if let Source::LookUp(look_up) = &mut self.source {
                    look_up.count(&self.chunk.ids[start..end]);
                }
                let end = u32::try_from(end)
                    .map_err(|_| EngineError::Bug("a chunk of tokens is beyond 32 bits".into()))?;
                self.chunk.row_ends.push(end);
            }
            start = end;
        }
        if self.lanes.is_some() {
            return self.sliced(self.ends.len(), self.chunk.ids.len() - from);
        }
        if self.chunk.ids.len() >= CHUNK_TOKENS {
            self.hand_over()?;
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), EngineError> {
        let next = Chunk {
            dictionary: self.chunk.dictionary,
            ids: Vec::with_capacity(CHUNK_TOKENS + CHUNK_TOKENS / 16),
            row_ends: Vec::new(),
        };
        let chunk = std::mem::replace(&mut self.chunk, next);
        if !chunk.row_ends.is_empty() {
            self.shared.tokens.push(chunk, self.job.budget.tokens)?;
        }
        if let Source::Collect { builder, .. } = &self.source
            && builder.held_bytes() as u64 > self.job.budget.dictionary
        {
            let full = std::mem::replace(&mut self.source, collect(self.job, self.shared)?);
            store(self.job, self.unit, self.shared, full, true)?;
            self.begin_chunk();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<WorkerResult, EngineError> {
        if self.lanes.is_some() {
            self.hand_over_slices(true)?;
        } else {
            self.hand_over()?;
        }
        match self.source {
            Source::Parked => Ok(WorkerResult {
                files: self.files,
                tokens: Vec::new(),
                documents: Vec::new(),
            }),
            source @ Source::Collect { .. } => {
                store(self.job, self.unit, self.shared, source, false)?;
                Ok(WorkerResult {
                    files: self.files,
                    tokens: Vec::new(),
                    documents: Vec::new(),
                })
            }
            Source::LookUp(look_up) => Ok(WorkerResult {
                files: self.files,
                tokens: look_up.tokens,
                documents: look_up.documents,
            }),
        }
    }
}

/// Puts a finished dictionary into its slot.
fn store(
    job: &ReadJob<'_>,
    unit: &Unit,
    shared: &Shared,
    source: Source,
    to_disk: bool,
) -> Result<(), EngineError> {
    let Source::Collect { builder, number } = source else {
        return Ok(());
    };
    let dictionary = builder.finish();
    let stored = if to_disk {
        let name = format!("terms-{:05}-{number:03}", unit.number);
        StoredDictionary::write(&dictionary, job.folder.join(name))?
    } else {
        // Those of slices are many, and wait.
        StoredDictionary::Memory(if job.sliced {
            dictionary.without_index()
        } else {
            dictionary
        })
    };
    let mut slots = shared.dictionaries.lock().map_err(|_| poisoned())?;
    slots[number as usize] = Some(stored);
    Ok(())
}

impl RowReceiver for Worker<'_> {
    type Error = EngineError;

    fn texts(&mut self, rows: &mut dyn Iterator<Item = Option<&str>>) -> Result<(), EngineError> {
        let from = self.chunk.ids.len();
        self.ends.clear();
        let (ids, ends) = (&mut self.chunk.ids, &mut self.ends);
        match &mut self.source {
            Source::Collect { builder, .. } => builder.push_rows(rows, ids, ends)?,
            Source::LookUp(look_up) => look_up.encoder.push_rows(rows, ids, ends)?,
            Source::Parked => return Err(no_slice()),
        }
        self.appended(from)
    }

    fn tokens(&mut self, row: Option<&mut dyn Iterator<Item = &str>>) -> Result<(), EngineError> {
        let from = self.chunk.ids.len();
        let ids = &mut self.chunk.ids;
        if let Some(row) = row {
            match &mut self.source {
                Source::Collect { builder, .. } => builder.push_tokens_row(row, ids)?,
                Source::LookUp(look_up) => look_up.encoder.push_tokens_row(row, ids)?,
                Source::Parked => return Err(no_slice()),
            }
        }
        self.ends.clear();
        self.ends.push(self.chunk.ids.len());
        self.appended(from)
    }
}

fn no_slice() -> EngineError {
    EngineError::Bug("a row came without a slice".into())
}

fn collect(job: &ReadJob<'_>, shared: &Shared) -> Result<Source, EngineError> {
    let mut slots = shared.dictionaries.lock().map_err(|_| poisoned())?;
    slots.push(None);
    if job.sliced {
        let mut slices = shared.slices.lock().map_err(|_| poisoned())?;
        slices.push(SliceFacts::default());
    }
    let number = u32::try_from(slots.len() - 1)
        .map_err(|_| EngineError::Bug("too many dictionaries".into()))?;
    Ok(Source::Collect {
        builder: Box::new(DictionaryBuilder::new(job.extractor)),
        number,
    })
}

impl LookUp {
    /// Tokens and documents of one row.
    fn count(&mut self, ids: &[u32]) {
        // Row numbers may come round after 2³² rows; a clear then keeps the stamps apart.
        self.row = self.row.wrapping_add(1);
        if self.row == 0 {
            self.last_row.fill(0);
            self.row = 1;
        }
        for &id in ids {
            if id == OUT_OF_VOCABULARY {
                continue;
            }
            let id = id as usize;
            self.tokens[id] += 1;
            if self.last_row[id] != self.row {
                self.last_row[id] = self.row;
                self.documents[id] += 1;
            }
        }
    }
}
