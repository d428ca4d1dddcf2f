//! The step between terms and counting: the terms of all units become the vocabulary.
//!
//! Memory: the vocabulary, and one buffer for each of a few dictionaries; more of them are summed
//! in rounds before (see [`super::fold`]).

use std::path::Path;
use std::sync::Arc;

use pmill_text::Vocabulary;

use super::drive::Signed;
use super::folder::PlanFolder;
use super::plan::attempt;
use super::spec::{FoldDone, VOCABULARY, VocabularyDone};
use super::worker::{Running, remove_attempt};
use crate::dictionaries::StoredDictionary;
use crate::error::EngineError;
use crate::job::reading::{Corpus, Sums};
use crate::job::run::change;
use crate::job::totals::OutsidePlace;
use crate::read::FileTally;

/// Reads the vocabulary that the step wrote.
pub(super) fn read_vocabulary(
    folder: &PlanFolder,
    done: &VocabularyDone,
    scratch: &Path,
) -> Result<Vocabulary, EngineError> {
    let stored = StoredDictionary::Disk {
        path: folder.fetch(&done.file, scratch)?,
        terms: done.terms,
    };
    Vocabulary::from_rows(stored.sorted()?)
}

impl Running<'_> {
    /// Makes the vocabulary from the terms of all units, and puts it.
    pub(super) fn make_vocabulary(
        &self,
        names: &Signed,
        bad: &[(usize, String)],
    ) -> Result<(), EngineError> {
        let data = self.outbox()?;
        let (added, plus) = self.parts(&names.added)?;
        let (taken, minus) = self.parts(&names.taken)?;
        let base = self.loaded.base()?;
        let run = self.run(self.budget(&[])?, base.as_ref());
        // A batch counts the terms under the ids that they have in the job.
        let given = match (&self.loaded.given, &base) {
            (Some(_), Some(base)) => Some(&base.vocabulary),
            (given, _) => given.as_ref(),
        };
        let mut corpus = match given {
            Some(given) => Corpus::of_counts(Some([sums(given, &plus)?, sums(given, &minus)?])),
            None => Corpus::of_terms(
                self.sum_rounds("added", plus)?,
                self.sum_rounds("taken", minus)?,
            ),
        };
        let attempt = attempt();
        let digest = &self.header.digest;
        let place = OutsidePlace {
            folder: self.table_folder("outside"),
            name: format!("part-00000-{digest}-{attempt}.parquet"),
        };
        let totals = run.totals(given.map(Arc::as_ref), &mut corpus, &place)?;
        let outside = match &totals.held_outside {
            Some(held) => Some(place.write(held)?),
            None => totals.outside,
        };
        let vocabulary = &totals.vocabulary;
        let mut facts = run.facts_before();
        facts.rows = change("rows", facts.rows, added.rows, taken.rows)?;
        facts.tokens = change("tokens", facts.tokens, added.tokens, taken.tokens)?;
        facts.types = totals.types;
        facts.terms = vocabulary.len() as u64;
        let subsample = run.subsample(vocabulary, &facts)?;
        let ranges = run
            .counting(vocabulary, &facts, subsample.as_ref(), digest)?
            .ranges;
        let file = format!("vocabulary-{attempt}");
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
            added,
            taken,
            inside: totals.tokens_inside,
            facts,
            outside,
            subsample,
            bad: bad.to_vec(),
            ranges,
        };
        self.folder.send(self.scratch.path())?;
        if !self.folder.put(VOCABULARY, &done)? {
            remove_attempt(self.folder, &attempt);
        }
        Ok(())
    }

    /// What manifests of terms, or of their sums, hold together.
    fn parts(&self, names: &[String]) -> Result<(FileTally, Vec<StoredDictionary>), EngineError> {
        let (mut sum, mut dictionaries) = (FileTally::default(), Vec::new());
        for name in names {
            let done = FoldDone::read(self.folder, name)?;
            sum.rows += done.added.rows;
            sum.tokens += done.added.tokens;
            for (name, terms) in done.dictionaries {
                let path = self.fetch(&name)?;
                dictionaries.push(StoredDictionary::Disk { path, terms });
            }
        }
        Ok((sum, dictionaries))
    }
}

/// The sums of all units by the ids of a given vocabulary.
fn sums(given: &Vocabulary, dictionaries: &[StoredDictionary]) -> Result<Sums, EngineError> {
    let mut sums = Sums::of(given.len());
    for dictionary in dictionaries {
        for entry in dictionary.sorted()? {
            let entry = entry?;
            let id = given.lookup(&entry.term).ok_or_else(|| {
                EngineError::Bug(format!("`{}` is not in the given vocabulary", entry.term))
            })? as usize;
            sums.tokens[id] += entry.tokens;
            sums.documents[id] += entry.documents;
        }
    }
    Ok(sums)
}
