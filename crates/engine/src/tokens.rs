//! Token ids of a unit between reading and counting: kept in memory, and on disk past the budget.
//!
//! A chunk's ids are local: they point into the dictionary of the worker that read it, because
//! the vocabulary is not known before everything has been read.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::{DiskManager, SpillFile};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// Tokens that a worker collects before it hands them over.
pub const CHUNK_TOKENS: usize = 1 << 20;

/// Some rows of token ids.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Which dictionary of the unit the ids point into.
    pub dictionary: u32,
    /// The ids of all rows, one after the other.
    pub ids: Vec<u32>,
    /// Where each row ends in `ids`.
    pub row_ends: Vec<u32>,
}

impl Chunk {
    /// Bytes on the heap.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.ids.capacity() + self.row_ends.capacity()) * 4
    }

    /// The rows.
    pub fn rows(&self) -> impl Iterator<Item = &[u32]> {
        let mut start = 0;
        self.row_ends.iter().map(move |end| {
            let row = &self.ids[start..*end as usize];
            start = *end as usize;
            row
        })
    }
}

/// A file of chunks that outlives its process, see [`TokenStore::write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTokens {
    /// Bytes of the file.
    pub bytes: u64,
    /// Chunks in it.
    pub chunks: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Rows in them.
    pub rows: u64,
}

/// Chunks in no particular order: counts do not depend on it.
pub struct TokenStore {
    disk: Arc<DiskManager>,
    held: Mutex<Held>,
}

struct Held {
    memory: Vec<Chunk>,
    reservation: MemoryReservation,
    spill: Option<(Arc<dyn SpillFile>, BufWriter<File>)>,
    /// A file that an earlier step wrote; then nothing else is held.
    stored: Option<(PathBuf, StoredTokens)>,
    spilled_chunks: u64,
    spilled_bytes: u64,
    tokens: u64,
    rows: u64,
}

impl TokenStore {
    /// An empty store; `reservation` accounts for what it holds in memory.
    #[must_use]
    pub fn new(disk: Arc<DiskManager>, reservation: MemoryReservation) -> Self {
        let held = Held {
            memory: Vec::new(),
            reservation,
            spill: None,
            stored: None,
            spilled_chunks: 0,
            spilled_bytes: 0,
            tokens: 0,
            rows: 0,
        };
        Self {
            disk,
            held: Mutex::new(held),
        }
    }

    /// The chunks that [`TokenStore::write`] wrote.
    #[must_use]
    pub fn open(
        disk: Arc<DiskManager>,
        reservation: MemoryReservation,
        path: PathBuf,
        stored: StoredTokens,
    ) -> Self {
        let mut store = Self::new(disk, reservation);
        if let Ok(held) = store.held.get_mut() {
            (held.tokens, held.rows) = (stored.tokens, stored.rows);
            held.stored = Some((path, stored));
        }
        store
    }

    /// Writes all chunks to a file that outlives this process.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(self, path: &Path) -> Result<StoredTokens, EngineError> {
        let fail = |source| EngineError::Io {
            action: "write",
            path: path.display().to_string(),
            source,
        };
        let (tokens, rows) = self.size()?;
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(fail)?);
        let (mut bytes, mut chunks) = (0, 0);
        for chunk in self.into_chunks()? {
            bytes += write_chunk(&mut out, &chunk?).map_err(fail)?;
            chunks += 1;
        }
        let file = out.into_inner().map_err(|error| fail(error.into_error()))?;
        file.sync_all().map_err(fail)?;
        Ok(StoredTokens {
            bytes,
            chunks,
            tokens,
            rows,
        })
    }

    /// Takes a chunk; it goes to disk when memory is used up.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn push(&self, mut chunk: Chunk, memory_budget: u64) -> Result<(), EngineError> {
        chunk.ids.shrink_to_fit();
        chunk.row_ends.shrink_to_fit();
        let mut held = self.held.lock().map_err(|_| poisoned())?;
        held.tokens += chunk.ids.len() as u64;
        held.rows += chunk.row_ends.len() as u64;
        let bytes = chunk.bytes();
        let fits = held.reservation.size() as u64 + bytes as u64 <= memory_budget;
        if fits && held.reservation.try_grow(bytes).is_ok() {
            held.memory.push(chunk);
            return Ok(());
        }
        held.spill(&chunk, &self.disk)
    }

    /// Moves what is in memory to disk.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn spill_all(&self) -> Result<(), EngineError> {
        let mut held = self.held.lock().map_err(|_| poisoned())?;
        for chunk in std::mem::take(&mut held.memory) {
            held.spill(&chunk, &self.disk)?;
            held.reservation.shrink(chunk.bytes());
        }
        if let Some((_, writer)) = &mut held.spill {
            writer.flush().map_err(write_error)?;
        }
        Ok(())
    }

    /// Tokens and rows held, in memory and on disk.
    ///
    /// # Errors
    /// When a worker panicked while it held the store.
    pub fn size(&self) -> Result<(u64, u64), EngineError> {
        let held = self.held.lock().map_err(|_| poisoned())?;
        Ok((held.tokens, held.rows))
    }

    /// Whether no chunk is on disk.
    ///
    /// # Errors
    /// When a worker panicked while it held the store.
    pub fn in_memory(&self) -> Result<bool, EngineError> {
        let held = self.held.lock().map_err(|_| poisoned())?;
        Ok(held.spilled_chunks == 0 && held.stored.is_none())
    }

    /// Bytes written to disk.
    ///
    /// # Errors
    /// When a worker panicked while it held the store.
    pub fn spilled_bytes(&self) -> Result<u64, EngineError> {
        Ok(self.held.lock().map_err(|_| poisoned())?.spilled_bytes)
    }

    /// Gives the chunks back one by one, each leaving memory as it goes.
    ///
    /// # Errors
    /// When the spilled part cannot be read.
    pub fn into_chunks(self) -> Result<Chunks, EngineError> {
        let held = self.held.into_inner().map_err(|_| poisoned())?;
        let mut left_on_disk = held.spilled_chunks;
        let spill = match (held.spill, held.stored) {
            (None, None) => None,
            (Some((file, mut writer)), _) => {
                writer.flush().map_err(write_error)?;
                let reader = File::open(spill_path(file.as_ref())?).map_err(read_error)?;
                Some((Some(file), BufReader::with_capacity(1 << 20, reader)))
            }
            (None, Some((path, stored))) => {
                left_on_disk = stored.chunks;
                let fail = |source| EngineError::Io {
                    action: "read",
                    path: path.display().to_string(),
                    source,
                };
                let reader = File::open(&path).map_err(fail)?;
                let found = reader.metadata().map_err(fail)?.len();
                if found != stored.bytes {
                    return Err(fail(std::io::Error::other(format!(
                        "it has {found} bytes where {} were written",
                        stored.bytes
                    ))));
                }
                Some((None, BufReader::with_capacity(1 << 20, reader)))
            }
        };
        Ok(Chunks {
            memory: held.memory,
            reservation: held.reservation,
            spill,
            left_on_disk,
        })
    }
}

impl Held {
    fn spill(&mut self, chunk: &Chunk, disk: &Arc<DiskManager>) -> Result<(), EngineError> {
        let (_, writer) = match &mut self.spill {
            Some(spill) => spill,
            none => {
                let file = disk
                    .create_tmp_file("token ids")
                    .map_err(|error| EngineError::Query(error.to_string()))?;
                let path = spill_path(file.as_ref())?;
                let writer = File::options()
                    .write(true)
                    .open(path)
                    .map_err(write_error)?;
                none.insert((file, BufWriter::with_capacity(1 << 20, writer)))
            }
        };
        self.spilled_bytes += write_chunk(writer, chunk).map_err(write_error)?;
        self.spilled_chunks += 1;
        Ok(())
    }
}

/// What keeps a temporary file alive, and its reader.
type Spilled = (Option<Arc<dyn SpillFile>>, BufReader<File>);

/// The chunks of a [`TokenStore`], once each.
pub struct Chunks {
    memory: Vec<Chunk>,
    reservation: MemoryReservation,
    spill: Option<Spilled>,
    left_on_disk: u64,
}

impl Chunks {
    /// The chunks in memory: the last is the next to come.
    #[must_use]
    pub fn in_memory(&self) -> &[Chunk] {
        &self.memory
    }
}

impl Iterator for Chunks {
    type Item = Result<Chunk, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(chunk) = self.memory.pop() {
            self.reservation
                .shrink(chunk.bytes().min(self.reservation.size()));
            return Some(Ok(chunk));
        }
        if self.left_on_disk == 0 {
            return None;
        }
        self.left_on_disk -= 1;
        let (_, reader) = self.spill.as_mut()?;
        Some(read_chunk(reader).map_err(read_error))
    }
}

/// Writes a chunk and gives its bytes.
fn write_chunk(writer: &mut impl Write, chunk: &Chunk) -> std::io::Result<u64> {
    let header = [
        chunk.dictionary,
        chunk.ids.len() as u32,
        chunk.row_ends.len() as u32,
    ];
    let mut bytes = 0;
    for part in [&header[..], &chunk.ids, &chunk.row_ends] {
        writer.write_all(bytemuck::cast_slice(part))?;
        bytes += part.len() as u64 * 4;
    }
    Ok(bytes)
}

fn read_chunk(reader: &mut impl Read) -> std::io::Result<Chunk> {
    let mut header = [0_u32; 3];
    reader.read_exact(bytemuck::cast_slice_mut(&mut header))?;
    let mut chunk = Chunk {
        dictionary: header[0],
        ids: vec![0; header[1] as usize],
        row_ends: vec![0; header[2] as usize],
    };
    reader.read_exact(bytemuck::cast_slice_mut(&mut chunk.ids))?;
    reader.read_exact(bytemuck::cast_slice_mut(&mut chunk.row_ends))?;
    Ok(chunk)
}

fn spill_path(file: &dyn SpillFile) -> Result<&std::path::Path, EngineError> {
    file.path()
        .ok_or_else(|| EngineError::Bug("temporary files are not on disk".into()))
}

fn poisoned() -> EngineError {
    EngineError::Bug("a worker panicked while it held the token store".into())
}

fn write_error(source: std::io::Error) -> EngineError {
    EngineError::Io {
        action: "write",
        path: "temporary token file".into(),
        source,
    }
}

fn read_error(source: std::io::Error) -> EngineError {
    EngineError::Io {
        action: "read",
        path: "temporary token file".into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryConsumer, MemoryPool};

    use super::*;

    fn chunk(seed: u32) -> Chunk {
        Chunk {
            dictionary: seed,
            ids: vec![seed, 7, u32::MAX, 0],
            row_ends: vec![0, 3, 4],
        }
    }

    #[test]
    fn chunks_come_back_from_memory_from_disk_and_from_files() {
        for budget in [0, 30, 60, 1 << 20] {
            let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1 << 20));
            let disk = Arc::new(DiskManager::builder().build().unwrap());
            let store = TokenStore::new(disk, MemoryConsumer::new("test").register(&pool));
            for seed in 0..4 {
                store.push(chunk(seed), budget).unwrap();
            }
            assert_eq!(store.size().unwrap(), (16, 12));
            let mut back: Vec<Chunk> = store.into_chunks().unwrap().map(Result::unwrap).collect();
            back.sort_by_key(|chunk| chunk.dictionary);
            assert_eq!(back, (0..4).map(chunk).collect::<Vec<_>>());
            assert_eq!(pool.reserved(), 0);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1 << 20));
        let disk = Arc::new(DiskManager::builder().build().unwrap());
        let reservation = || MemoryConsumer::new("test").register(&pool);
        let store = TokenStore::new(disk.clone(), reservation());
        for seed in 0..4 {
            store.push(chunk(seed), 60).unwrap();
        }
        let stored = store.write(&path).unwrap();
        let open = || TokenStore::open(disk.clone(), reservation(), path.clone(), stored);
        assert_eq!(open().size().unwrap(), (16, 12));
        assert!(!open().in_memory().unwrap());
        let mut back: Vec<Chunk> = open().into_chunks().unwrap().map(Result::unwrap).collect();
        back.sort_by_key(|chunk| chunk.dictionary);
        assert_eq!(back, (0..4).map(chunk).collect::<Vec<_>>());
        std::fs::write(&path, b"short").unwrap();
        assert!(open().into_chunks().is_err());
        let rows: Vec<Vec<u32>> = chunk(5).rows().map(<[u32]>::to_vec).collect();
        assert_eq!(rows, [vec![], vec![5, 7, u32::MAX], vec![0]]);
    }
}
