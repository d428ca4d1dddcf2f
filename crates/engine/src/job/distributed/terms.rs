//! Terms: a unit is read once, its terms are collected and its token ids kept.

use pmill_text::Vocabulary;
use std::sync::Arc;

use super::plan::PlanUnit;
use super::spec::{TermsDone, may_pass};
use super::worker::Running;
use crate::dictionaries::StoredDictionary;
use crate::error::EngineError;
use crate::progress::Quiet;
use crate::read::{self, ReadJob, ReadUnit};
use crate::row_set::RowSet;
use crate::scan::CorpusFile;
use crate::settings::OnBadFile;

impl Running<'_> {
    pub(super) fn terms(
        &self,
        unit: &PlanUnit,
        leave_out: &[usize],
    ) -> Result<TermsDone, EngineError> {
        // What is taken out must be read whole: there is nothing to skip in it.
        let skip = self.header.on_bad_file == OnBadFile::Skip && !self.header.is_taken(unit.number);
        let unit = PlanUnit {
            number: unit.number,
            files: unit
                .files
                .iter()
                .filter(|file| !leave_out.contains(&file.index))
                .cloned()
                .collect(),
        };
        let files = match self.open(&unit, skip)? {
            Ok(files) => files,
            Err(bad) => return Ok(bad),
        };
        let scanner = self.scanner();
        let given = self.loaded.given.as_ref();
        let scratch = self.scratch.path().to_owned();
        let parts = unit.files.iter();
        let rows: Vec<Option<RowSet>> = parts
            .map(|part| self.header.taken_file(part.index)?.rows.clone())
            .collect();
        let reader = ReadJob {
            sliced: false,
            session: &self.prepared().session,
            scanner: &scanner,
            files: &files,
            extractor: &self.prepared().extractor,
            vocabulary: given,
            rows: &rows,
            budget: self.budget(&files)?,
            folder: &scratch,
            progress: &Quiet,
            stop: self.stop,
        };
        let none = vec![false; files.len()];
        match read::read_unit(&reader, &unit.unit(), &none, skip)? {
            Ok(read) => self.keep(&unit, read, given),
            Err(found) => {
                let mut bad = Vec::new();
                for (file, error) in found {
                    bad.push((unit.files[file].index, error));
                }
                self.found_bad(bad)
            }
        }
    }

    /// Opens the unit's files; a bad one is an error, or the outcome when bad files are skipped.
    fn open(
        &self,
        unit: &PlanUnit,
        skip: bool,
    ) -> Result<Result<Vec<CorpusFile>, TermsDone>, EngineError> {
        let scanner = self.scanner();
        let (mut files, mut bad) = (Vec::new(), Vec::new());
        for part in &unit.files {
            match self.prepared().session.wait(scanner.open(&part.input)) {
                Ok(file) => files.push(file),
                Err(error @ EngineError::BadFile { .. }) if skip => bad.push((part.index, error)),
                Err(error) => return Err(error),
            }
        }
        if bad.is_empty() {
            Ok(Ok(files))
        } else {
            self.found_bad(bad).map(Err)
        }
    }

    /// The outcome of a unit with bad files. A store that is away makes no file bad.
    fn found_bad(&self, bad: Vec<(usize, EngineError)>) -> Result<TermsDone, EngineError> {
        let mut done = TermsDone::default();
        for (file, error) in bad {
            if may_pass(&error) {
                return Err(error);
            }
            done.bad.push((file, error.to_string()));
        }
        Ok(done)
    }

    /// Writes what was read where the next steps find it.
    fn keep(
        &self,
        unit: &PlanUnit,
        read: ReadUnit,
        given: Option<&Arc<Vocabulary>>,
    ) -> Result<TermsDone, EngineError> {
        let data = self.outbox()?;
        let mut dictionaries = Vec::new();
        let mut stored = |number: usize, dictionary: StoredDictionary| {
            let name = format!("{}-{number:03}.terms", self.attempt_name());
            let target = data.join(&name);
            let terms = match dictionary {
                StoredDictionary::Memory(dictionary) => {
                    StoredDictionary::write(&dictionary, target)?;
                    dictionary.len() as u64
                }
                StoredDictionary::Disk { path, terms } => {
                    super::worker::bring(&path, &target)?;
                    terms
                }
                StoredDictionary::Mapped(_) => {
                    return Err(EngineError::Bug("a unit's terms were used up".into()));
                }
            };
            dictionaries.push((name, terms));
            Ok::<_, EngineError>(())
        };
        for (number, dictionary) in read.dictionaries.into_iter().enumerate() {
            stored(number, dictionary)?;
        }
        if let (Some(given), Some((tokens, documents))) = (given, &read.counts) {
            let entries = (0..given.len()).filter(|&id| tokens[id] > 0).map(|id| {
                let local = id as u32;
                Ok((given.term(local), tokens[id], documents[id], local))
            });
            let path = self.scratch.path().join("counts");
            stored(0, StoredDictionary::write_entries(entries, path)?)?;
        }
        let name = format!("{}.tokens", self.attempt_name());
        let tokens = read.tokens.write(&data.join(&name))?;
        Ok(TermsDone {
            files: read
                .files
                .iter()
                .enumerate()
                .filter(|(_, tally)| tally.rows > 0)
                .map(|(file, tally)| (unit.files[file].index, *tally))
                .collect(),
            dictionaries,
            tokens: Some((name, tokens)),
            bad: Vec::new(),
        })
    }
}
