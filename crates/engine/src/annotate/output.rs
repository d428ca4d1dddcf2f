//! Where annotated shards grow until all are there: `.NAME.pmill-annotate` beside `NAME`.
//!
//! ```text
//! plan.json        settings, versions, and the identity of every input
//! done/            one manifest a finished shard
//! data/            the shards
//! ```
//!
//! A process that is killed leaves finished shards, and the next one with the same plan goes on from
//! them. At the end one rename makes the folder visible.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::input::InputFile;
use crate::work::WorkFolder;

/// What an annotation is made from. Equal plans give equal shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnnotatePlan {
    /// The program.
    pub program: String,
    /// Job, version, and everything that decides the numbers.
    pub settings: serde_json::Value,
    /// The inputs, in the order of the shards.
    pub inputs: Vec<InputFile>,
}

/// A finished shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Name inside the output.
    pub name: String,
    /// The input that it annotates.
    pub input: String,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3 of the file.
    pub blake3: String,
}

/// What stands in `pmill.json` of a finished output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Annotated {
    /// What it was made from.
    pub plan: AnnotatePlan,
    /// Its shards.
    pub shards: Vec<Shard>,
}

/// The manifest of a finished output.
pub const MANIFEST: &str = "pmill.json";

pub(crate) struct Staged {
    target: PathBuf,
    part: PathBuf,
    work: WorkFolder,
    _lock: File,
}

/// Either the output is there, made from the same, or it is to be made.
pub(crate) enum Begun {
    Done(Annotated),
    Open(Staged),
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> EngineError {
    let path = path.display().to_string();
    move |source| EngineError::Io {
        action,
        path,
        source,
    }
}

impl Staged {
    /// Finds out what is there.
    pub(crate) fn begin(
        target: &Path,
        plan: &AnnotatePlan,
        overwrite: bool,
    ) -> Result<Begun, EngineError> {
        let target: PathBuf = std::path::absolute(target)
            .map_err(io("find", target))?
            .components()
            .collect();
        let Some(name) = target
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
        else {
            return Err(EngineError::Setting(format!(
                "`{}` cannot be an output; give the name of a new folder",
                target.display()
            )));
        };
        if !overwrite && let Some(done) = finished(&target)? {
            same_inputs(&done.plan, plan, &target)?;
            if done.plan == *plan {
                return Ok(Begun::Done(done));
            }
            return Err(EngineError::Setting(format!(
                "`{}` was made with other settings or from another version of the table; give another --output, or --overwrite",
                target.display()
            )));
        }
        let part = target.with_file_name(format!(".{name}.pmill-annotate"));
        fs::create_dir_all(&part).map_err(io("create", &part))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(part.join("lock"))
            .map_err(io("create", &part))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(EngineError::Store(pmill_store::StoreError::Locked {
                    job: target.display().to_string(),
                }));
            }
            Err(TryLockError::Error(error)) => return Err(io("lock", &part)(error)),
        }
        let before = read_json::<AnnotatePlan>(&part.join("plan.json"))?;
        if let Some(before) = &before
            && !overwrite
            && before.settings == plan.settings
        {
            same_inputs(before, plan, &part)?;
        }
        // Manifests of another plan are worth nothing.
        if overwrite || before.as_ref() != Some(plan) {
            crate::work::clear(&part, None)?;
        }
        let path = part.join("done");
        fs::create_dir_all(&path).map_err(io("create", &path))?;
        fs::create_dir_all(part.join("data")).map_err(io("create", &part))?;
        let work = WorkFolder::at(path);
        let plan_file = WorkFolder::at(part.clone());
        plan_file.put("plan.json", plan)?;
        Ok(Begun::Open(Self {
            target,
            part,
            work,
            _lock: lock,
        }))
    }

    /// Where a shard lies.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.part.join(name)
    }

    /// Where units of it are planned.
    pub(crate) fn units(&self) -> PathBuf {
        self.part.join("units")
    }

    /// A shard that was finished before, if it is whole.
    pub(crate) fn done(&self, number: usize) -> Result<Option<Shard>, EngineError> {
        let Some(shard) = self.work.get::<Shard>(&format!("done-{number:05}.json"))? else {
            return Ok(None);
        };
        let whole =
            fs::metadata(self.path(&shard.name)).is_ok_and(|found| found.len() == shard.bytes);
        Ok(whole.then_some(shard))
    }

    /// Takes note of a finished shard.
    pub(crate) fn finish(&self, number: usize, shard: &Shard) -> Result<(), EngineError> {
        self.work.put(&format!("done-{number:05}.json"), shard)
    }

    /// Makes the output visible.
    pub(crate) fn publish(self, done: &Annotated) -> Result<(), EngineError> {
        WorkFolder::at(self.part.clone()).put(MANIFEST, done)?;
        fs::remove_dir_all(self.work.path()).map_err(io("remove", self.work.path()))?;
        for name in ["plan.json", "lock"] {
            let path = self.part.join(name);
            fs::remove_file(&path).map_err(io("remove", &path))?;
        }
        if self.target.is_dir() {
            let old = self.part.with_extension("old");
            fs::rename(&self.target, &old).map_err(io("replace", &self.target))?;
            fs::rename(&self.part, &self.target).map_err(io("publish", &self.target))?;
            return fs::remove_dir_all(&old).map_err(io("remove", &old));
        }
        fs::rename(&self.part, &self.target).map_err(io("publish", &self.target))
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, EngineError> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path)(error)),
    }
}

/// The manifest of what stands at the target.
fn finished(target: &Path) -> Result<Option<Annotated>, EngineError> {
    let done = read_json(&target.join(MANIFEST))?;
    let taken = match fs::read_dir(target) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => fs::symlink_metadata(target).is_ok(),
    };
    if done.is_none() && taken {
        return Err(EngineError::Setting(format!(
            "`{}` exists already and pmill did not make it; give another --output, or --overwrite to replace it",
            target.display()
        )));
    }
    Ok(done)
}

/// Names the input that changed or went missing since an annotation was made or begun.
fn same_inputs(before: &AnnotatePlan, now: &AnnotatePlan, place: &Path) -> Result<(), EngineError> {
    for old in &before.inputs {
        match now.inputs.iter().find(|new| new.uri == old.uri) {
            Some(new) if new == old => {}
            Some(new) => {
                return Err(EngineError::Setting(format!(
                    "`{}` changed since `{}` was begun ({} then; {} now); --overwrite begins again",
                    old.display(),
                    place.display(),
                    old.identity(),
                    new.identity(),
                )));
            }
            None => {
                return Err(EngineError::Setting(format!(
                    "`{}` is missing: it was an input when `{}` was begun; --overwrite begins again without it",
                    old.display(),
                    place.display(),
                )));
            }
        }
    }
    if let Some(new) = now
        .inputs
        .iter()
        .find(|new| !before.inputs.iter().any(|old| old.uri == new.uri))
    {
        return Err(EngineError::Setting(format!(
            "`{}` was no input when `{}` was begun; --overwrite begins again with it",
            new.display(),
            place.display(),
        )));
    }
    Ok(())
}
