//! The step between terms and counting: the terms of all units become the vocabulary.
//!
//! Memory: the vocabulary, and one buffer for each of at most [`FAN_IN`] dictionaries; more of them
//! are summed in rounds.

use std::path::PathBuf;

use pmill_text::{TermCount, Vocabulary, VocabularyRule, merge_sorted};

use super::folder::PlanFolder;
use super::plan::attempt;
use super::spec::{TermsDone, VOCABULARY, VocabularyDone};
use super::worker::Running;
use crate::dictionaries::StoredDictionary;
use crate::error::EngineError;
use crate::read::FileTally;
use crate::vocabulary::choose;

/// Dictionaries that are open at once.
const FAN_IN: usize = 64;

/// Reads the vocabulary that the step wrote.
pub(super) fn read_vocabulary(
    folder: &PlanFolder,
    done: &VocabularyDone,
) -> Result<Vocabulary, EngineError> {
    let stored = StoredDictionary::Disk {
        path: folder.data().join(&done.file),
        terms: done.terms,
    };
    let everything = VocabularyRule {
        size: None,
        min_count: 0,
    };
    Vocabulary::from_counts(stored.sorted()?, &everything)
}

impl Running<'_> {
    /// Makes the vocabulary from the terms of all units, and puts it.
    pub(super) fn make_vocabulary(
        &self,
        names: &[String],
        bad: &[(usize, String)],
    ) -> Result<(), EngineError> {
        let data = self.folder.data();
        let mut totals = FileTally::default();
        let mut dictionaries = Vec::new();
        for name in names {
            let done: TermsDone = self.folder.need(name)?;
            for (_, tally) in &done.files {
                totals.rows += tally.rows;
                totals.tokens += tally.tokens;
            }
            let paths = done.dictionaries.into_iter();
            dictionaries.extend(paths.map(|(name, terms)| StoredDictionary::Disk {
                path: data.join(name),
                terms,
            }));
        }
        let (vocabulary, types) = match &self.loaded.given {
            Some(given) => recount(given, &dictionaries)?,
            None => {
                let dictionaries = self.fold(dictionaries)?;
                let rule = self.header.settings.vocabulary.rule();
                let chosen = choose(&dictionaries, &rule, &self.budget(&[])?)?;
                (chosen.vocabulary, chosen.types)
            }
        };
        let run = self.run(self.budget(&[])?);
        let totals_only = crate::job::reading::Corpus::of_totals(totals);
        let ranges = run
            .counting(&vocabulary, &totals_only, &self.header.digest)?
            .ranges;
        let file = format!("vocabulary-{}", attempt());
        let entries = (0..vocabulary.len() as u32).map(|id| {
            Ok((
                vocabulary.term(id),
                vocabulary.tokens(id),
                vocabulary.documents(id),
                id,
            ))
        });
        StoredDictionary::write_entries(entries, data.join(&file))?;
        let done = VocabularyDone {
            file,
            terms: vocabulary.len() as u64,
            types,
            rows: totals.rows,
            tokens: totals.tokens,
            bad: bad.to_vec(),
            ranges,
        };
        self.folder.put(VOCABULARY, &done)?;
        Ok(())
    }

    /// Sums dictionaries until few enough are left to be read at once.
    fn fold(
        &self,
        mut dictionaries: Vec<StoredDictionary>,
    ) -> Result<Vec<StoredDictionary>, EngineError> {
        let mut round = 0;
        while dictionaries.len() > FAN_IN {
            let mut folded = Vec::new();
            for (part, some) in dictionaries.chunks(FAN_IN).enumerate() {
                self.check_stop()?;
                let streams = some
                    .iter()
                    .map(StoredDictionary::sorted)
                    .collect::<Result<Vec<_>, _>>()?;
                let entries = merge_sorted(streams).map(|entry: Result<TermCount, EngineError>| {
                    let entry = entry?;
                    Ok((entry.term, entry.tokens, entry.documents, 0))
                });
                let path: PathBuf = self.scratch.path().join(format!("sum-{round}-{part}"));
                folded.push(StoredDictionary::write_entries(entries, path)?);
            }
            dictionaries = folded;
            round += 1;
        }
        Ok(dictionaries)
    }
}

/// A given vocabulary with the sums of all units; terms are by their own id in each unit's file.
fn recount(
    given: &Vocabulary,
    dictionaries: &[StoredDictionary],
) -> Result<(Vocabulary, u64), EngineError> {
    let mut tokens = vec![0_u64; given.len()];
    let mut documents = vec![0_u64; given.len()];
    for dictionary in dictionaries {
        for entry in dictionary.sorted()? {
            let entry = entry?;
            let id = given.lookup(&entry.term).ok_or_else(|| {
                EngineError::Bug(format!("`{}` is not in the given vocabulary", entry.term))
            })? as usize;
            tokens[id] += entry.tokens;
            documents[id] += entry.documents;
        }
    }
    let types = tokens.iter().filter(|count| **count > 0).count() as u64;
    Ok((given.recount(&tokens, &documents)?.0, types))
}
