//! The terms that a worker met, with their counts: in memory, or as a sorted file.
//!
//! A file holds, for each term in the order of its bytes: length (u32), bytes, tokens (u64),
//! documents (u64), local id (u32), all little-endian. Its number of terms stands in whatever
//! names the file.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use pmill_text::{Dictionary, OUT_OF_VOCABULARY, TermCount, Vocabulary};

use crate::error::EngineError;

/// A worker's dictionary.
pub enum StoredDictionary {
    /// As the worker left it.
    Memory(Dictionary),
    /// Written out.
    Disk {
        /// Where.
        path: PathBuf,
        /// Terms in it.
        terms: u64,
    },
    /// Used up: the vocabulary was chosen, and this leads from local ids to its ids.
    Mapped(Vec<u32>),
}

impl StoredDictionary {
    /// Writes a dictionary to `path`.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(dictionary: &Dictionary, path: PathBuf) -> Result<Self, EngineError> {
        let entries = dictionary
            .iter_sorted()
            .map(|entry| Ok((entry.term, entry.tokens, entry.documents, entry.local)));
        Self::write_entries(entries, path)
    }

    /// Writes terms to `path` in the order in which they come: term, tokens, documents, local id.
    ///
    /// # Errors
    /// Those of the entries; a full disk.
    pub fn write_entries<T: AsRef<str>>(
        entries: impl Iterator<Item = Result<(T, u64, u64, u32), EngineError>>,
        path: PathBuf,
    ) -> Result<Self, EngineError> {
        let fail = |source| EngineError::Io {
            action: "write",
            path: path.display().to_string(),
            source,
        };
        let mut terms = 0;
        let file = File::create(&path).map_err(fail)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let mut write = |term: &str, tokens: u64, documents: u64, local: u32| {
            out.write_all(&(term.len() as u32).to_le_bytes())?;
            out.write_all(term.as_bytes())?;
            out.write_all(&tokens.to_le_bytes())?;
            out.write_all(&documents.to_le_bytes())?;
            out.write_all(&local.to_le_bytes())
        };
        for entry in entries {
            let (term, tokens, documents, local) = entry?;
            write(term.as_ref(), tokens, documents, local).map_err(fail)?;
            terms += 1;
        }
        let file = out.into_inner().map_err(|error| fail(error.into_error()))?;
        file.sync_all().map_err(fail)?;
        Ok(Self::Disk { terms, path })
    }

    /// The terms in the order of their bytes.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn sorted(&self) -> Result<SortedTerms<'_>, EngineError> {
        Ok(match self {
            Self::Memory(dictionary) => Box::new(dictionary.sorted_counts()),
            Self::Mapped(_) => {
                return Err(EngineError::Bug(
                    "the terms of a dictionary were asked for twice".into(),
                ));
            }
            Self::Disk { path, terms } => {
                Box::new(Entries::open(path, *terms)?.map(|entry| entry.map(|(term, _)| term)))
            }
        })
    }

    /// By local id: the id in `vocabulary`, or [`OUT_OF_VOCABULARY`].
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn remap(&self, vocabulary: &Vocabulary) -> Result<Vec<u32>, EngineError> {
        match self {
            Self::Memory(dictionary) => Ok(vocabulary.remap(dictionary)),
            Self::Mapped(map) => Ok(map.clone()),
            Self::Disk { path, terms } => {
                let mut map = vec![OUT_OF_VOCABULARY; usize::try_from(*terms).unwrap_or(0)];
                for entry in Entries::open(path, *terms)? {
                    let (term, local) = entry?;
                    if let (Some(slot), Some(id)) =
                        (map.get_mut(local as usize), vocabulary.lookup(&term.term))
                    {
                        *slot = id;
                    }
                }
                Ok(map)
            }
        }
    }
}

/// Terms by their bytes.
pub type SortedTerms<'a> = Box<dyn Iterator<Item = Result<TermCount, EngineError>> + 'a>;

struct Entries {
    reader: BufReader<File>,
    path: PathBuf,
    left: u64,
}

impl Entries {
    fn open(path: &Path, terms: u64) -> Result<Self, EngineError> {
        let file = File::open(path).map_err(|source| EngineError::Io {
            action: "read",
            path: path.display().to_string(),
            source,
        })?;
        Ok(Self {
            reader: BufReader::with_capacity(1 << 18, file),
            path: path.to_owned(),
            left: terms,
        })
    }

    fn read(&mut self) -> std::io::Result<(TermCount, u32)> {
        let mut four = [0; 4];
        let mut eight = [0; 8];
        self.reader.read_exact(&mut four)?;
        let mut bytes = vec![0; u32::from_le_bytes(four) as usize];
        self.reader.read_exact(&mut bytes)?;
        let term = String::from_utf8(bytes).map_err(std::io::Error::other)?;
        self.reader.read_exact(&mut eight)?;
        let tokens = u64::from_le_bytes(eight);
        self.reader.read_exact(&mut eight)?;
        let documents = u64::from_le_bytes(eight);
        self.reader.read_exact(&mut four)?;
        Ok((
            TermCount {
                term,
                tokens,
                documents,
            },
            u32::from_le_bytes(four),
        ))
    }
}

impl Iterator for Entries {
    type Item = Result<(TermCount, u32), EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        Some(self.read().map_err(|source| {
            self.left = 0;
            EngineError::Io {
                action: "read",
                path: self.path.display().to_string(),
                source,
            }
        }))
    }
}
