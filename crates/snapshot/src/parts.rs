//! Slices of a plan as files of their own, so that several processes can share one merge.
//!
//! In: a plan, which every process makes for itself from the same inputs and settings ([`MergePlan::fingerprint`]
//! says whether they are the same). [`average_slice`] writes one slice to one part file, whole or not at all, so
//! that a retried task replaces its own part and nobody else's; [`assemble`] makes the output of all parts, with
//! the bytes that [`merge`](crate::merge) would have written. Held: as for a merge.
//!
//! A part is one line of JSON (fingerprint, record with digests, lengths), then the bytes for each output.

use crate::digest::{Digest, Hasher};
use crate::error::SnapshotError;
use crate::kernel::Weights;
use crate::manifest::MergeReport;
use crate::merge::{OnProgress, merge_parts};
use crate::plan::{MergePlan, Slice};
use crate::staging::Record;
use crate::worker::{Sink, Worker};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    fingerprint: Digest,
    record: Record,
}

/// Pieces in which a part is read back.
const PIECE_BYTES: usize = 256 << 10;

/// The file of one slice in a folder of parts.
#[must_use]
pub fn part_file(folder: &Path, slice: usize) -> PathBuf {
    folder.join(format!("slice-{slice:08}.part"))
}

/// Computes one slice of a plan and writes it to its part file in `folder`; gives the file.
///
/// A part that is there already and belongs to this plan is left alone. The bytes of one slice are held.
///
/// # Errors
/// No such slice; reading, NaN and infinity, overflow of a narrower type, inputs that changed since the plan.
pub fn average_slice(
    plan: &MergePlan,
    slice: usize,
    folder: &Path,
) -> Result<PathBuf, SnapshotError> {
    let Some(piece) = plan.slices.get(slice) else {
        return Err(SnapshotError::Settings {
            what: format!(
                "slice {slice} was asked for, but the plan has {} (counted from 0)",
                plan.slices.len()
            ),
        });
    };
    let path = part_file(folder, slice);
    if read_part(plan, piece, folder, &mut |_, _, _| Ok(())).is_ok() {
        return Ok(path);
    }
    let weights: Vec<Weights> = plan
        .outputs
        .iter()
        .map(|output| Weights::new(&output.row))
        .collect();
    let length = usize::try_from(piece.bytes).unwrap_or(usize::MAX);
    let mut outputs = vec![vec![0; length]; plan.outputs.len()];
    let record = Worker::new(plan, &weights, 1).slice(piece, &mut |output, at, bytes| {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        outputs[output][at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    })?;
    for input in &plan.inputs {
        input.check_unchanged()?;
    }
    let head = serde_json::to_vec(&Head {
        format: 1,
        fingerprint: plan.fingerprint,
        record,
    })
    .map_err(|error| SnapshotError::Internal {
        what: error.to_string(),
    })?;
    let staged = folder.join(format!(".slice-{slice:08}.{}", unique()));
    let write = |error| SnapshotError::write(&path, error);
    let mut file = BufWriter::new(File::create(&staged).map_err(write)?);
    file.write_all(&head)
        .and_then(|()| file.write_all(b"\n"))
        .map_err(write)?;
    for output in &outputs {
        file.write_all(output).map_err(write)?;
    }
    let file = file
        .into_inner()
        .map_err(|error| SnapshotError::write(&path, error.into_error()))?;
    if plan.settings.sync {
        file.sync_all().map_err(write)?;
    }
    fs::rename(&staged, &path).map_err(write)?;
    Ok(path)
}

/// A name that no other attempt at a slice has, in this process or on another machine.
fn unique() -> String {
    static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    format!(
        "{}-{}-{}",
        std::process::id(),
        now.map_or(0, |age| age.as_nanos()),
        ATTEMPTS.fetch_add(1, Ordering::Relaxed)
    )
}

/// Makes the output of a plan from the parts of all its slices, which stay where they are.
///
/// # Errors
/// A part that is missing, damaged or of another plan, by its file; those of [`merge`](crate::merge) that have to
/// do with writing. After an error the next call goes on.
pub fn assemble(
    plan: &MergePlan,
    folder: &Path,
    on_progress: OnProgress<'_>,
) -> Result<MergeReport, SnapshotError> {
    merge_parts(plan, Some(folder), on_progress)
}

/// Hands the bytes of a part on, and gives its record; the digests have been compared when it returns.
pub(crate) fn read_part(
    plan: &MergePlan,
    slice: &Slice,
    folder: &Path,
    sink: Sink<'_>,
) -> Result<Record, SnapshotError> {
    let path = part_file(folder, slice.index);
    let read = |error| SnapshotError::read(path.display(), error);
    let wrong = |why: &str| SnapshotError::Settings {
        what: format!(
            "`{}` is not the part of slice {} of this merge ({why}); remove it and compute the slice again",
            path.display(),
            slice.index
        ),
    };
    let mut file = BufReader::with_capacity(PIECE_BYTES, File::open(&path).map_err(read)?);
    let mut line = Vec::new();
    (&mut file)
        .take(64 << 20)
        .read_until(b'\n', &mut line)
        .map_err(read)?;
    let head: Head = serde_json::from_slice(&line).map_err(|_| wrong("its head is damaged"))?;
    if head.format != 1 || head.fingerprint != plan.fingerprint {
        return Err(wrong("other inputs or settings"));
    }
    if head.record.slice != slice.index || head.record.outputs.len() != plan.outputs.len() {
        return Err(wrong("another slice"));
    }
    let mut buffer = vec![0; PIECE_BYTES];
    for (output, expected) in head.record.outputs.iter().enumerate() {
        let (mut at, mut hasher) = (0, Hasher::new(expected.algorithm()));
        while at < slice.bytes {
            let length = PIECE_BYTES.min(usize::try_from(slice.bytes - at).unwrap_or(PIECE_BYTES));
            let piece = &mut buffer[..length];
            file.read_exact(piece).map_err(|_| wrong("it is cut"))?;
            hasher.update(piece);
            sink(output, at, piece)?;
            at += length as u64;
        }
        if hasher.finish() != *expected {
            return Err(wrong("its digest differs"));
        }
    }
    Ok(head.record)
}
