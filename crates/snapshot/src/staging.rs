//! Where an output grows until it is whole: a folder beside the target, with a log of finished slices.
//!
//! ```text
//! .NAME.pmill-staging/lock          held by the process that writes
//! .NAME.pmill-staging/plan.json     fingerprint of the plan
//! .NAME.pmill-staging/slices.jsonl  one line for each finished slice, with digests
//! .NAME.pmill-staging/out/          what becomes the target: weights as `*.part`, without their headers
//! ```
//!
//! Nothing in there loads: the weight files have another name and start with zeros. At the end the headers
//! are written, everything is synced, the files get their names, and one rename publishes the folder.

use crate::checks::MANIFEST;
use crate::digest::{Digest, Hasher};
use crate::error::SnapshotError;
use crate::layout;
use crate::plan::{MergePlan, Slice};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What is known of a finished slice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub slice: usize,
    /// For each input: the digest of its bytes, when they were read and digests are wanted.
    pub inputs: Vec<Option<Digest>>,
    /// For each output.
    pub outputs: Vec<Digest>,
    /// Digests of whole output tensors, where one slice is a tensor of any length (stacked adapters); the
    /// digests of inputs are then of whole tensors too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub whole: Vec<Digest>,
    pub nonfinite: u64,
    pub exact: u64,
}

#[derive(Serialize, Deserialize)]
struct PlanFile {
    format: u32,
    fingerprint: Digest,
}

/// Open part files kept at once.
const OPEN_FILES: usize = 128;

#[derive(Debug)]
pub(crate) struct Staging {
    root: PathBuf,
    lock: File,
    log: Mutex<File>,
    open: Mutex<HashMap<(usize, usize), Arc<File>>>,
    /// Slices that an earlier run finished: where their records lie in the log.
    done: HashMap<usize, (u64, usize)>,
    log_reader: Option<File>,
}

fn sibling(target: &Path, ending: &str) -> PathBuf {
    let name = target
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    target.with_file_name(format!(".{name}.pmill-{ending}"))
}

/// The folder in which this target is staged.
pub(crate) fn staging_folder(target: &Path) -> PathBuf {
    sibling(target, "staging")
}

/// The manifest of a target, inside a folder or beside a file.
pub(crate) fn manifest_path(plan: &MergePlan) -> PathBuf {
    let name = manifest_name(&plan.target);
    match plan.is_file() {
        true => plan.target.with_file_name(name),
        false => plan.target.join(name),
    }
}

/// The name of a target's manifest, inside a folder or beside a file.
pub(crate) fn manifest_name(target: &Path) -> String {
    match target.file_name() {
        Some(name) if crate::plan::is_file(target) => {
            format!("{}.{MANIFEST}", name.to_string_lossy())
        }
        _ => MANIFEST.to_owned(),
    }
}

/// Whether something stands where the target is to appear; an empty folder does not count.
pub(crate) fn is_taken(target: &Path) -> bool {
    match fs::read_dir(target) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => fs::symlink_metadata(target).is_ok(),
    }
}

impl Staging {
    pub fn open(plan: &MergePlan) -> Result<Self, SnapshotError> {
        let root = staging_folder(&plan.target);
        let write = |path: &Path| {
            let path = path.to_owned();
            move |error| SnapshotError::write(&path, error)
        };
        fs::create_dir_all(&root).map_err(write(&root))?;
        let lock_path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(write(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(SnapshotError::Busy {
                    path: root.display().to_string(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(SnapshotError::write(&lock_path, error)),
        }
        let (plan_path, log_path, out) = (
            root.join("plan.json"),
            root.join("slices.jsonl"),
            root.join("out"),
        );
        let same = fs::read(&plan_path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<PlanFile>(&bytes).ok())
            .is_some_and(|file| file.format == 1 && file.fingerprint == plan.fingerprint);
        let mut done = HashMap::new();
        let mut log_reader = None;
        if same && out.is_dir() {
            if let Ok(log) = File::open(&log_path) {
                // The last line may be torn; a slice without a whole line is done again.
                let (mut reader, mut line, mut at) = (BufReader::new(&log), Vec::new(), 0);
                while reader
                    .read_until(b'\n', &mut line)
                    .is_ok_and(|length| length > 0)
                {
                    if let Ok(record) = serde_json::from_slice::<Record>(&line) {
                        done.insert(record.slice, (at, line.len()));
                    }
                    at += line.len() as u64;
                    line.clear();
                }
                log_reader = Some(log);
            }
        } else {
            let _ = fs::remove_file(&plan_path);
            let _ = fs::remove_file(&log_path);
            if out.exists() {
                fs::remove_dir_all(&out).map_err(write(&out))?;
            }
        }
        for output in &plan.outputs {
            let folder = out.join(&output.folder);
            fs::create_dir_all(&folder).map_err(write(&folder))?;
            for shard in &plan.shards {
                let path = folder.join(format!("{}.part", shard.file));
                let file = OpenOptions::new()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&path)
                    .map_err(write(&path))?;
                file.set_len(shard.bytes).map_err(write(&path))?;
            }
        }
        if !same {
            let text = serde_json::to_vec(&PlanFile {
                format: 1,
                fingerprint: plan.fingerprint,
            })
            .map_err(|error| SnapshotError::Internal {
                what: error.to_string(),
            })?;
            fs::write(&plan_path, text).map_err(write(&plan_path))?;
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(write(&log_path))?;
        // Ends a torn last line, so that the next one stands for itself.
        (&log).write_all(b"\n").map_err(write(&log_path))?;
        Ok(Self {
            root,
            lock,
            log: Mutex::new(log),
            open: Mutex::default(),
            done,
            log_reader,
        })
    }

    /// What an earlier run noted of a slice; its bytes are still to be compared with the digests.
    pub fn earlier(&self, slice: usize) -> Option<Record> {
        let &(at, length) = self.done.get(&slice)?;
        let mut line = vec![0; length];
        self.log_reader
            .as_ref()?
            .read_exact_at(&mut line, at)
            .ok()?;
        serde_json::from_slice(&line).ok()
    }

    fn part_path(&self, plan: &MergePlan, output: usize, shard: usize) -> PathBuf {
        self.root
            .join("out")
            .join(&plan.outputs[output].folder)
            .join(format!("{}.part", plan.shards[shard].file))
    }

    fn part(
        &self,
        plan: &MergePlan,
        output: usize,
        shard: usize,
    ) -> Result<Arc<File>, SnapshotError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&(output, shard)) {
            return Ok(Arc::clone(file));
        }
        if open.len() >= OPEN_FILES {
            open.clear();
        }
        let path = self.part_path(plan, output, shard);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| SnapshotError::write(&path, error))?;
        let file = Arc::new(file);
        open.insert((output, shard), Arc::clone(&file));
        Ok(file)
    }

    /// Where the slice's byte `at` lies in its part file.
    fn place(plan: &MergePlan, slice: &Slice, at: u64) -> (usize, u64) {
        let tensor = &plan.tensors[slice.tensor];
        let header = plan.shards[tensor.shard].header.len() as u64;
        (tensor.shard, header + tensor.info.start + slice.start + at)
    }

    /// Writes bytes of a slice, from byte `at` of it.
    pub fn write(
        &self,
        plan: &MergePlan,
        output: usize,
        slice: &Slice,
        at: u64,
        bytes: &[u8],
    ) -> Result<(), SnapshotError> {
        let (shard, offset) = Self::place(plan, slice, at);
        let file = self.part(plan, output, shard)?;
        file.write_all_at(bytes, offset)
            .map_err(|error| SnapshotError::write(&self.part_path(plan, output, shard), error))
    }

    /// Whether the staged bytes of a slice still have the digests of its record.
    pub fn verify(
        &self,
        plan: &MergePlan,
        slice: &Slice,
        record: &Record,
        buffer: &mut Vec<u8>,
    ) -> Result<bool, SnapshotError> {
        if record.outputs.len() != plan.outputs.len() || record.inputs.len() != plan.inputs.len() {
            return Ok(false);
        }
        buffer.resize(buffer.len().max(256 << 10), 0);
        for (output, expected) in record.outputs.iter().enumerate() {
            let mut hasher = Hasher::new(expected.algorithm());
            let mut at = 0;
            while at < slice.bytes {
                let length = buffer
                    .len()
                    .min(usize::try_from(slice.bytes - at).unwrap_or(usize::MAX));
                let (shard, offset) = Self::place(plan, slice, at);
                let file = self.part(plan, output, shard)?;
                if file.read_exact_at(&mut buffer[..length], offset).is_err() {
                    return Ok(false);
                }
                hasher.update(&buffer[..length]);
                at += length as u64;
            }
            if hasher.finish() != *expected {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Notes a finished slice. The line may reach the disk before the bytes do: the digests tell.
    pub fn note(&self, record: &Record) -> Result<(), SnapshotError> {
        let mut line = serde_json::to_vec(record).map_err(|error| SnapshotError::Internal {
            what: error.to_string(),
        })?;
        line.push(b'\n');
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.write_all(&line)
            .map_err(|error| SnapshotError::write(&self.root.join("slices.jsonl"), error))
    }

    /// Asks the system to bring a part's bytes to the disk.
    pub fn sync_part(
        &self,
        plan: &MergePlan,
        output: usize,
        shard: usize,
    ) -> Result<(), SnapshotError> {
        let file = self.part(plan, output, shard)?;
        file.sync_data()
            .map_err(|error| SnapshotError::write(&self.part_path(plan, output, shard), error))
    }

    /// Makes the output whole and gives it its name; `manifest` is written beside it.
    pub fn publish(self, plan: &MergePlan, manifest: &[u8]) -> Result<(), SnapshotError> {
        let write = |path: &Path| {
            let path = path.to_owned();
            move |error| SnapshotError::write(&path, error)
        };
        let sync = plan.settings.sync;
        let out = self.root.join("out");
        let index = layout::index(&plan.tensors, &plan.shards);
        for (output, planned) in plan.outputs.iter().enumerate() {
            let folder = out.join(&planned.folder);
            for (position, shard) in plan.shards.iter().enumerate() {
                let path = self.part_path(plan, output, position);
                let file = self.part(plan, output, position)?;
                file.write_all_at(&shard.header, 0).map_err(write(&path))?;
                if sync {
                    file.sync_all().map_err(write(&path))?;
                }
            }
            for (name, bytes) in planned
                .side_files
                .iter()
                .chain(index.iter().filter(|_| !plan.is_file()))
            {
                put(&folder.join(name), bytes, sync)?;
            }
        }
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        let manifest_staged = if plan.is_file() {
            self.root.join("manifest.json")
        } else {
            out.join(MANIFEST)
        };
        put(&manifest_staged, manifest, sync)?;
        for (output, planned) in plan.outputs.iter().enumerate() {
            for (position, shard) in plan.shards.iter().enumerate() {
                let part = self.part_path(plan, output, position);
                let whole = part.with_file_name(&shard.file);
                fs::rename(&part, &whole).map_err(write(&whole))?;
            }
            if sync {
                sync_folder(&out.join(&planned.folder))?;
            }
        }
        if sync {
            sync_folder(&out)?;
        }
        let target = &plan.target;
        if let Some(parent) = target
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            fs::create_dir_all(parent).map_err(write(parent))?;
        }
        if is_taken(target) && !plan.settings.overwrite {
            return Err(SnapshotError::Exists {
                path: target.display().to_string(),
            });
        }
        let old = sibling(target, "old");
        if plan.is_file() {
            // Else a kill between the two renames would leave the old file beside the new manifest.
            remove(target)?;
            let manifest_path = manifest_path(plan);
            fs::rename(&manifest_staged, &manifest_path).map_err(write(&manifest_path))?;
            fs::rename(out.join(&plan.shards[0].file), target).map_err(write(target))?;
        } else {
            if fs::symlink_metadata(target).is_ok() {
                // An empty folder gives way to the rename itself.
                if is_taken(target) {
                    remove(&old)?;
                    fs::rename(target, &old).map_err(write(target))?;
                }
            }
            fs::rename(&out, target).map_err(write(target))?;
        }
        if sync {
            sync_folder(
                target
                    .parent()
                    .filter(|parent| !parent.as_os_str().is_empty())
                    .unwrap_or(Path::new(".")),
            )?;
        }
        remove(&old)?;
        self.discard()
    }

    /// Removes the staging folder.
    pub fn discard(self) -> Result<(), SnapshotError> {
        let root = self.root.clone();
        drop(self.log);
        fs::remove_dir_all(&root).map_err(|error| SnapshotError::write(&root, error))?;
        drop(self.lock);
        Ok(())
    }
}

fn put(path: &Path, bytes: &[u8], sync: bool) -> Result<(), SnapshotError> {
    let write = |error| SnapshotError::write(path, error);
    let mut file = File::create(path).map_err(write)?;
    file.write_all(bytes).map_err(write)?;
    if sync {
        file.sync_all().map_err(write)?;
    }
    Ok(())
}

fn sync_folder(path: &Path) -> Result<(), SnapshotError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| SnapshotError::write(path, error))
}

fn remove(path: &Path) -> Result<(), SnapshotError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
    .map_err(|error| SnapshotError::write(path, error))
}
