//! The plan: which settings, which units; written once, the same whoever makes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pmill_text::{FeatureSpec, Lemma, StopWords, Tokenizer};
use serde::{Deserialize, Serialize};

use super::folder::{PLAN, PlanFolder, exists, io, put_new};
use super::place::{read_bytes, remove_file, write_bytes};
use crate::error::EngineError;
use crate::input::InputFile;
use crate::job::CountJob;
use crate::job::existing::Batch;
use crate::job::prepared::Prepared;
use crate::job::taken::Taken;
use crate::memory::ByteSize;
use crate::progress::Progress;
use crate::settings::{CountSettings, OnBadFile, RecordedSettings};
use crate::units::{self, Slice, Unit};

/// Version of plans, specs and manifests; processes with different ones do not work together.
pub const PROTOCOL: u32 = 2;

/// A file's part in a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitFile {
    /// Index of the file in the plan.
    pub index: usize,
    /// The file and its identity.
    pub input: InputFile,
    /// Row groups to read, with the bytes of their text column.
    pub row_groups: Vec<(usize, u64)>,
}

/// A unit of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanUnit {
    /// Its number, from 0.
    pub number: usize,
    /// What it reads.
    pub files: Vec<UnitFile>,
}

impl PlanUnit {
    /// Bytes of its text columns, decompressed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files
            .iter()
            .flat_map(|file| &file.row_groups)
            .map(|(_, bytes)| bytes)
            .sum()
    }

    /// As the reader takes it: files by their place in this unit.
    pub(super) fn unit(&self) -> Unit {
        let slices = self.files.iter().enumerate().flat_map(|(file, part)| {
            part.row_groups
                .iter()
                .map(move |&(row_group, bytes)| Slice {
                    file,
                    row_group,
                    bytes,
                })
        });
        Unit {
            number: self.number,
            slices: slices.collect(),
        }
    }
}

/// What all units of a plan share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanHeader {
    /// [`PROTOCOL`] of whoever planned.
    pub protocol: u32,
    /// The program that planned.
    pub program: String,
    /// Names the plan: the same inputs, settings and cut have the same name.
    pub digest: String,
    /// The warehouse.
    pub warehouse: String,
    /// The job.
    pub name: String,
    /// Settings as recorded with the table.
    pub recorded: RecordedSettings,
    /// Settings with absolute paths, for processes in other folders.
    pub settings: CountSettings,
    /// What happens at a bad file.
    pub on_bad_file: OnBadFile,
    /// The memory limit that files were checked against.
    pub scan_limit: ByteSize,
    /// The version of the job that the units are added to; `None`: its first.
    pub base: Option<u64>,
    /// Files to add; what is taken out has its numbers behind them.
    pub files: usize,
    /// Files, or rows of them, to take out.
    pub(super) taken: Vec<Taken>,
    /// Units of what is added; those of what is taken out come behind them.
    pub added_units: usize,
    /// Files that could not be opened, with the reason.
    pub skipped: Vec<(InputFile, String)>,
    /// Files without a row group, which are in no unit.
    pub empty: Vec<InputFile>,
    /// Number of units.
    pub units: usize,
    /// File of the units, one a line.
    pub units_file: String,
}

impl PlanHeader {
    /// Whether a unit is taken out.
    pub(super) fn is_taken(&self, number: usize) -> bool {
        number >= self.added_units
    }

    /// Of a file of the plan: what of it is taken out, if it is.
    pub(super) fn taken_file(&self, index: usize) -> Option<&Taken> {
        self.taken.get(index.checked_sub(self.files)?)
    }

    /// The job as its units see it.
    pub(super) fn job(&self, limit: ByteSize, threads: usize) -> CountJob {
        CountJob {
            warehouse: self.warehouse.clone(),
            name: self.name.clone(),
            inputs: Vec::new(),
            settings: self.settings.clone(),
            on_bad_file: self.on_bad_file,
            memory_limit: limit,
            threads,
        }
    }

    /// Reads the units.
    pub(super) fn units(&self, folder: &PlanFolder) -> Result<Vec<PlanUnit>, EngineError> {
        let path = folder.path().join(&self.units_file);
        let fail = |source| io("read", &path, source);
        let bytes = read_bytes(&path)?.ok_or_else(|| fail(std::io::ErrorKind::NotFound.into()))?;
        let mut units = Vec::with_capacity(self.units);
        for line in bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            units.push(serde_json::from_slice(line).map_err(|error| fail(error.into()))?);
        }
        if units.len() == self.units {
            Ok(units)
        } else {
            let message = format!("{} units of {}", units.len(), self.units);
            Err(fail(std::io::Error::other(message)))
        }
    }
}

/// Refuses another version's messages.
pub(super) fn check_protocol(protocol: u32, program: &str) -> Result<(), EngineError> {
    if protocol == PROTOCOL {
        return Ok(());
    }
    Err(EngineError::Setting(format!(
        "this is pmill {} with unit protocol {PROTOCOL}, and the job was planned by {program} with protocol {protocol}; run the same version everywhere",
        env!("CARGO_PKG_VERSION"),
    )))
}

/// What a plan is made from.
pub(super) struct NewPlan<'a> {
    pub(super) job: &'a CountJob,
    pub(super) prepared: &'a Prepared,
    /// What to add, and what to take out.
    pub(super) batch: &'a Batch,
    pub(super) unit_bytes: u64,
    /// The warehouse, as other processes find it.
    pub(super) warehouse: &'a str,
    pub(super) base: Option<u64>,
    pub(super) progress: &'a dyn Progress,
}

/// Makes the plan: opens every footer, cuts units, and writes both unless they are there.
pub(super) fn make(new: &NewPlan<'_>, plans: &Path) -> Result<PlanFolder, EngineError> {
    let (job, prepared) = (new.job, new.prepared);
    let (mut files, bad) = prepared.open_all(job, &new.batch.add, new.progress)?;
    // What is taken out must be read whole: there is nothing to skip in it.
    let strict = CountJob {
        on_bad_file: OnBadFile::Fail,
        ..job.clone()
    };
    let taken = &new.batch.taken;
    let old: Vec<InputFile> = taken.iter().map(|taken| taken.at.clone()).collect();
    let old = prepared.open_all(&strict, &old, new.progress)?.0;
    let (cut, added_units) = units::plan_both(&files, &old, new.unit_bytes);
    let added_files = files.len();
    files.extend(old);
    let skipped: Vec<(InputFile, String)> = bad
        .into_iter()
        .map(|(file, error)| (file, error.to_string()))
        .collect();
    let opened: Vec<&InputFile> = files.iter().map(|file| &file.input).collect();
    let text = serde_json::to_vec(&(
        PROTOCOL,
        &prepared.recorded,
        opened,
        &skipped,
        &cut,
        new.base,
        taken,
    ))
    .map_err(|error| EngineError::Bug(error.to_string()))?;
    let digest = blake3::hash(&text).to_hex()[..16].to_owned();
    let folder = PlanFolder::make(plans, &digest)?;
    if exists(&folder.path().join(PLAN))? {
        return Ok(folder);
    }
    let units_file = format!("units-{}.jsonl", attempt());
    let path = folder.path().join(&units_file);
    let fail = |source| io("write", &path, source);
    let mut out = Vec::new();
    for unit in &cut {
        let mut parts: BTreeMap<usize, UnitFile> = BTreeMap::new();
        for slice in &unit.slices {
            let part = parts.entry(slice.file).or_insert_with(|| UnitFile {
                index: slice.file,
                input: files[slice.file].input.clone(),
                row_groups: Vec::new(),
            });
            part.row_groups.push((slice.row_group, slice.bytes));
        }
        let unit = PlanUnit {
            number: unit.number,
            files: parts.into_values().collect(),
        };
        serde_json::to_writer(&mut out, &unit).map_err(|error| fail(error.into()))?;
        out.push(b'\n');
    }
    write_bytes(&path, out)?;
    let header = PlanHeader {
        protocol: PROTOCOL,
        program: prepared.recorded.program.clone(),
        digest,
        warehouse: new.warehouse.to_owned(),
        name: job.name.clone(),
        recorded: prepared.recorded.clone(),
        settings: absolute(&job.settings)?,
        on_bad_file: job.on_bad_file,
        scan_limit: job.memory_limit,
        base: new.base,
        files: added_files,
        taken: taken.clone(),
        added_units,
        skipped,
        empty: files[..added_files]
            .iter()
            .filter(|file| file.row_groups.is_empty())
            .map(|file| file.input.clone())
            .collect(),
        units: cut.len(),
        units_file,
    };
    if !put_new(folder.path(), PLAN, &header)? {
        // Somebody else wrote the same plan first.
        let _ = remove_file(&path);
    }
    Ok(folder)
}

/// A name that no other attempt has.
pub(super) fn attempt() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // Each RandomState is seeded by the system's random numbers.
    let mut random = RandomState::new().build_hasher();
    random.write_u32(std::process::id());
    format!("{:016x}", random.finish())
}

fn absolute(settings: &CountSettings) -> Result<CountSettings, EngineError> {
    if settings.slice.is_some() {
        return Err(EngineError::Setting(
            "--slice goes with one process as yet, not with shards or a cluster; count without it here, or one slice after another with --where".into(),
        ));
    }
    if settings.sketch.is_some() {
        return Err(EngineError::Setting(
            "--exact-terms (the job's sketch) goes with one process as yet, not with shards or a cluster; run the command without them".into(),
        ));
    }
    let fix = |path: &PathBuf| std::path::absolute(path).map_err(|source| io("find", path, source));
    let features = &settings.features;
    let features = FeatureSpec {
        tokenizer: match &features.tokenizer {
            Tokenizer::HuggingFace(path) => Tokenizer::HuggingFace(fix(path)?),
            other => other.clone(),
        },
        stop_words: match &features.stop_words {
            Some(StopWords::File(path)) => Some(StopWords::File(fix(path)?)),
            other => other.clone(),
        },
        lemma: match &features.lemma {
            Some(Lemma::WordNet(path)) => Some(Lemma::WordNet(fix(path)?)),
            Some(Lemma::File(path)) => Some(Lemma::File(fix(path)?)),
            None => None,
        },
        phrases: features.phrases.as_ref().map(fix).transpose()?,
        concepts: features.concepts.as_ref().map(fix).transpose()?,
        ..features.clone()
    };
    let mut settings = settings.clone();
    settings.features = features;
    settings.vocabulary.file = settings.vocabulary.file.as_ref().map(fix).transpose()?;
    Ok(settings)
}
