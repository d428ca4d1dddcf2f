//! Reading: every unit decoded and tokenized, its terms collected.

use std::path::PathBuf;
use std::sync::Arc;

use pmill_store::killpoint;
use pmill_text::Vocabulary;
use serde::{Deserialize, Serialize};

use super::run::Run;
use crate::dictionaries::StoredDictionary;
use crate::error::EngineError;
use crate::progress::Unit as Steps;
use crate::read::{self, FileTally, ReadJob, ReadUnit};
use crate::settings::OnBadFile;
use crate::slices::SliceFacts;
use crate::tokens::TokenStore;
use crate::units::Unit;
use crate::work::WorkFolder;

/// What reading a unit left, as its manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TermsManifest {
    pub(super) files: Vec<(usize, FileTally)>,
    pub(super) dictionaries: Vec<(String, u64)>,
    /// By dictionary: the slice that is in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) slices: Vec<SliceFacts>,
}

/// All units read.
pub(super) struct Corpus {
    pub(super) units: Vec<UnitTokens>,
    pub(super) dictionaries: Vec<StoredDictionary>,
    /// By dictionary: the slice that is in it. Empty without slices.
    pub(super) slices: Vec<SliceFacts>,
    /// How many of them are added, where units do not tell.
    pub(super) added_dictionaries: Option<usize>,
    /// By provisional id, when the vocabulary was given: what is added, and what is taken.
    pub(super) counts: Option<[Sums; 2]>,
    pub(super) tallies: Vec<FileTally>,
    /// By file of the plan: why it is left out.
    pub(super) bad: Vec<Option<String>>,
}

/// Tokens and documents by id.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) tokens: Vec<u64>,
    pub(super) documents: Vec<u64>,
}

impl Sums {
    pub(super) fn of(terms: usize) -> Self {
        Self {
            tokens: vec![0; terms],
            documents: vec![0; terms],
        }
    }

    pub(super) fn set(&mut self, id: u32, (tokens, documents): (u64, u64)) {
        self.tokens[id as usize] = tokens;
        self.documents[id as usize] = documents;
    }

    fn add(&mut self, tokens: &[u64], documents: &[u64]) {
        for (sum, more) in self.tokens.iter_mut().zip(tokens) {
            *sum += more;
        }
        for (sum, more) in self.documents.iter_mut().zip(documents) {
            *sum += more;
        }
    }
}

/// A unit's tokens, if this process read them, and its dictionaries as a range of all.
pub(super) struct UnitTokens {
    pub(super) tokens: Option<TokenStore>,
    pub(super) dictionaries: std::ops::Range<usize>,
}

impl Run<'_> {
    pub(super) fn read(
        &self,
        units: &[Unit],
        work: &WorkFolder,
        given: Option<&Arc<Vocabulary>>,
    ) -> Result<Corpus, EngineError> {
        let scanner = self.prepared.scanner(self.job);
        let folder: PathBuf = work.path().to_owned();
        let reader = ReadJob {
            session: &self.prepared.session,
            scanner: &scanner,
            files: self.files,
            extractor: &self.prepared.extractor,
            vocabulary: given,
            sliced: self.sliced(),
            rows: &self.rows,
            budget: self.budget,
            folder: &folder,
            progress: self.progress,
            stop: self.stop,
        };
        let mut bad: Vec<Option<String>> = work
            .get("bad.json")?
            .unwrap_or_else(|| vec![None; self.files.len()]);
        'again: loop {
            let left_out: Vec<bool> = bad.iter().map(Option::is_some).collect();
            self.progress
                .phase("read", units.iter().map(Unit::bytes).sum(), Steps::Bytes);
            let mut corpus = Corpus {
                units: Vec::new(),
                dictionaries: Vec::new(),
                slices: Vec::new(),
                added_dictionaries: None,
                counts: given.map(|v| [Sums::of(v.len()), Sums::of(v.len())]),
                tallies: vec![FileTally::default(); self.files.len()],
                bad: bad.clone(),
            };
            for unit in units {
                let manifest = format!("terms-{:05}.json", unit.number);
                if given.is_none()
                    && let Some(done) = work.get::<TermsManifest>(&manifest)?
                {
                    self.progress
                        .advance(unit.bytes(), done.files.iter().map(|(_, t)| t.rows).sum());
                    corpus.take_manifest(done, work);
                    continue;
                }
                // What is taken out must be read whole: there is nothing to skip in it.
                let taken = self.is_taken(unit);
                let find_all = self.job.on_bad_file == OnBadFile::Skip && !taken;
                match read::read_unit(&reader, unit, &left_out, find_all)? {
                    Ok(read) => {
                        let manifest = (units.len() > 1).then_some(manifest.as_str());
                        corpus.take(unit, read, work, manifest, taken)?;
                    }
                    Err(found) => {
                        for (file, error) in found {
                            bad[file] = Some(error.to_string());
                        }
                        for unit in units.iter().filter(|unit| {
                            unit.slices.iter().any(|slice| bad[slice.file].is_some())
                        }) {
                            work.remove(&format!("terms-{:05}.json", unit.number))?;
                        }
                        work.put("bad.json", &bad)?;
                        continue 'again;
                    }
                }
            }
            return Ok(corpus);
        }
    }

    pub(super) fn read_again(
        &self,
        unit: &Unit,
        corpus: &Corpus,
        vocabulary: &Arc<Vocabulary>,
        work: &WorkFolder,
    ) -> Result<(TokenStore, Vec<SliceFacts>), EngineError> {
        let scanner = self.prepared.scanner(self.job);
        let folder: PathBuf = work.path().to_owned();
        let reader = ReadJob {
            session: &self.prepared.session,
            scanner: &scanner,
            files: self.files,
            extractor: &self.prepared.extractor,
            vocabulary: Some(vocabulary),
            sliced: self.sliced(),
            rows: &self.rows,
            budget: self.budget,
            folder: &folder,
            progress: &crate::progress::Quiet,
            stop: self.stop,
        };
        let left_out: Vec<bool> = corpus.bad.iter().map(Option::is_some).collect();
        match read::read_unit(&reader, unit, &left_out, false)? {
            Ok(read) => Ok((read.tokens, read.slices)),
            Err(_) => Err(EngineError::Bug(
                "a unit that was read before cannot be read again".into(),
            )),
        }
    }
}

impl Corpus {
    /// A corpus of which just the terms are known: what is added, and what is taken.
    pub(super) fn of_terms(mut added: Vec<StoredDictionary>, taken: Vec<StoredDictionary>) -> Self {
        let added_dictionaries = Some(added.len());
        added.extend(taken);
        Self {
            added_dictionaries,
            dictionaries: added,
            ..Self::of_counts(None)
        }
    }

    /// A corpus of which just the counts of given terms are known.
    pub(super) fn of_counts(counts: Option<[Sums; 2]>) -> Self {
        Self {
            units: Vec::new(),
            dictionaries: Vec::new(),
            added_dictionaries: None,
            slices: Vec::new(),
            counts,
            tallies: Vec::new(),
            bad: Vec::new(),
        }
    }

    pub(super) fn take_manifest(&mut self, done: TermsManifest, work: &WorkFolder) {
        for (file, tally) in done.files {
            self.tallies[file].rows += tally.rows;
            self.tallies[file].tokens += tally.tokens;
        }
        let first = self.dictionaries.len();
        self.slices.extend(done.slices);
        self.dictionaries
            .extend(
                done.dictionaries
                    .into_iter()
                    .map(|(name, terms)| StoredDictionary::Disk {
                        path: work.path().join(name),
                        terms,
                    }),
            );
        self.units.push(UnitTokens {
            tokens: None,
            dictionaries: first..self.dictionaries.len(),
        });
    }

    pub(super) fn take(
        &mut self,
        unit: &Unit,
        read: ReadUnit,
        work: &WorkFolder,
        manifest: Option<&str>,
        taken: bool,
    ) -> Result<(), EngineError> {
        for (file, tally) in read.files.iter().enumerate() {
            self.tallies[file].rows += tally.rows;
            self.tallies[file].tokens += tally.tokens;
        }
        if let (Some(sums), Some((tokens, documents))) = (&mut self.counts, &read.counts) {
            sums[usize::from(taken)].add(tokens, documents);
        }
        let first = self.dictionaries.len();
        self.slices.extend(read.slices.iter().cloned());
        match manifest {
            None => self.dictionaries.extend(read.dictionaries),
            Some(manifest) => {
                // Another unit follows: this one leaves memory.
                let mut names = Vec::new();
                for (number, dictionary) in read.dictionaries.into_iter().enumerate() {
                    let stored = match dictionary {
                        StoredDictionary::Memory(dictionary) => {
                            let name = format!("terms-{:05}-{number:03}", unit.number);
                            StoredDictionary::write(&dictionary, work.path().join(name))?
                        }
                        stored => stored,
                    };
                    if let StoredDictionary::Disk { path, terms } = &stored {
                        let name = path
                            .file_name()
                            .unwrap_or_default()
                            .to_string_lossy()
                            .into_owned();
                        names.push((name, *terms));
                    }
                    self.dictionaries.push(stored);
                }
                read.tokens.spill_all()?;
                if read.counts.is_none() {
                    let files = read
                        .files
                        .iter()
                        .copied()
                        .enumerate()
                        .filter(|(_, tally)| tally.rows > 0)
                        .collect();
                    work.put(
                        manifest,
                        &TermsManifest {
                            files,
                            dictionaries: names,
                            slices: read.slices,
                        },
                    )?;
                    killpoint::reach("a unit is read");
                }
            }
        }
        self.units.push(UnitTokens {
            tokens: Some(read.tokens),
            dictionaries: first..self.dictionaries.len(),
        });
        Ok(())
    }
}
