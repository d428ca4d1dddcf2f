//! A snapshot as files on disk, for programs that read nothing else.

use crate::checks;
use crate::error::SnapshotError;
use crate::merge::{OnProgress, Progress};
use crate::settings::thread_count;
use crate::snapshot::Snapshot;
use crate::source::{SnapshotPath, SourceFile, join};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Copies a snapshot into `folder`, which is made: its weight files and index, and the files that come along when it
/// is merged (config, tokenizer), or the one file that was named. Gives the path of what was copied, which is not
/// synced.
///
/// Held: a piece for each thread.
///
/// # Errors
/// Those of [`Snapshot::open`] and of reading; files that cannot be written; a snapshot that changed meanwhile.
pub fn fetch(
    from: &SnapshotPath,
    folder: &Path,
    threads: Option<usize>,
    on_progress: OnProgress<'_>,
) -> Result<PathBuf, SnapshotError> {
    let snapshot = Snapshot::open(from)?;
    let source = snapshot.source();
    std::fs::create_dir_all(folder).map_err(|error| SnapshotError::write(folder, error))?;
    let weights = snapshot.shards.iter().map(|shard| &shard.file);
    let beside = snapshot.side_files.iter().filter(|file| {
        checks::comes_along(&file.name) || Some(&file.name) == snapshot.index_file.as_ref()
    });
    let names: Vec<&SourceFile> = weights.chain(beside).collect();
    let piece = source.preferred_read_bytes() as u64;
    let mut pieces = Vec::new();
    let mut files = Vec::new();
    for (number, file) in names.iter().enumerate() {
        let path = folder.join(&file.name);
        let made = File::create(&path).map_err(|error| SnapshotError::write(&path, error))?;
        files.push((path, made));
        pieces.extend((0..file.size.div_ceil(piece)).map(|at| (number, at * piece)));
    }
    let (next, done_bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let total_bytes = names.iter().map(|file| file.size).sum();
    let failure = Mutex::new(None);
    let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
    let copy = |buffer: &mut Vec<u8>, number: usize, at: u64| {
        let (file, (path, made)) = (names[number], &files[number]);
        buffer.resize(
            usize::try_from(piece.min(file.size - at)).unwrap_or(usize::MAX),
            0,
        );
        source.read_at(&file.name, at, buffer).map_err(|error| {
            let place = join(&source.location(), &file.name);
            match error.kind() {
                std::io::ErrorKind::UnexpectedEof => SnapshotError::Changed { path: place },
                _ => SnapshotError::read(place, error),
            }
        })?;
        made.write_all_at(buffer, at)
            .map_err(|error| SnapshotError::write(path, error))?;
        let bytes = buffer.len() as u64;
        let done_bytes = done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let progress = Progress {
            done_bytes,
            total_bytes,
        };
        match on_progress(progress) || done_bytes == total_bytes {
            true => Ok(()),
            false => Err(SnapshotError::Stopped),
        }
    };
    let work = || {
        let mut buffer = Vec::new();
        while failed().is_none() {
            let Some(&(number, at)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else {
                return;
            };
            if let Err(error) = copy(&mut buffer, number, at) {
                failed().get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..thread_count(threads) * source.reads_per_thread() {
            scope.spawn(work);
        }
        work();
    });
    if let Some(error) = failed().take() {
        return Err(error);
    }
    snapshot.check_unchanged()?;
    Ok(match &from.file {
        Some(name) => folder.join(name),
        None => folder.to_owned(),
    })
}
