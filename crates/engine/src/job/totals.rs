//! The vocabulary's counts after a batch, and the terms outside it.
//!
//! In: what the job held, sorted dictionaries that are added, and such that are taken away. Out: the
//! vocabulary with its ids as they are and new counts, and a file of `outside`. Everything is
//! streamed but the vocabulary.

use std::iter::Peekable;
use std::sync::Arc;

use pmill_store::DataFile;
use pmill_text::{Outside, TermCount, Vocabulary, merge_sorted};

use super::base::Base;
use super::reading::{Corpus, Sums};
use super::run::Run;
use crate::dictionaries::{SortedTerms, StoredDictionary};
use crate::error::EngineError;
use crate::outside::OutsideFile;
use crate::slices::Slices;
use crate::tables::TableFolder;
use crate::vocabulary;

/// Where the file of `outside` goes, and what it is called.
pub(super) struct OutsidePlace<'a> {
    pub(super) folder: TableFolder<'a>,
    pub(super) name: String,
}

impl OutsidePlace<'_> {
    fn create(&self) -> Result<OutsideFile, EngineError> {
        OutsideFile::create(&self.folder, &self.name)
    }

    /// Writes all of it.
    pub(super) fn write(&self, outside: &Outside) -> Result<DataFile, EngineError> {
        let mut file = self.create()?;
        for term in outside.sorted() {
            file.push(term.term, term.tokens, term.documents)?;
        }
        file.finish()
    }
}

/// Counts of terms after a batch.
pub(super) struct Totals {
    pub(super) vocabulary: Arc<Vocabulary>,
    /// Distinct terms with a count.
    pub(super) types: u64,
    /// From provisional ids to those of the vocabulary, when its terms were given.
    pub(super) given_map: Option<Vec<u32>>,
    /// The file of `outside`; `None` when the job has no such table, or it is not written yet.
    pub(super) outside: Option<DataFile>,
    /// What it will hold, if it is not written yet.
    pub(super) held_outside: Option<Outside>,
    /// Tokens of the vocabulary that this batch adds.
    pub(super) tokens_inside: u64,
    /// Counts by slice, when the job is counted by slice.
    pub(super) slices: Option<Slices>,
}

impl Run<'_> {
    pub(super) fn totals(
        &self,
        given: Option<&Vocabulary>,
        corpus: &mut Corpus,
        place: &OutsidePlace<'_>,
    ) -> Result<Totals, EngineError> {
        if self.sliced() {
            return self.sliced_totals(given, corpus, place);
        }
        match (self.base, given, &corpus.counts) {
            (None, Some(given), Some([added, _])) => {
                let (vocabulary, map) = given.recount(&added.tokens, &added.documents)?;
                Ok(Totals {
                    types: with_count(&vocabulary),
                    vocabulary: Arc::new(vocabulary),
                    given_map: Some(map),
                    outside: None,
                    held_outside: None,
                    tokens_inside: added.tokens.iter().sum(),
                    slices: None,
                })
            }
            (Some(base), Some(_), Some([added, taken])) => {
                let vocabulary = changed(base, added, taken)?;
                Ok(Totals {
                    types: with_count(&vocabulary),
                    vocabulary: Arc::new(vocabulary),
                    given_map: None,
                    outside: None,
                    held_outside: None,
                    tokens_inside: added.tokens.iter().sum(),
                    slices: None,
                })
            }
            (None, ..) => self.chosen(corpus, place),
            (Some(base), ..) => self.more(base, corpus, place),
        }
    }

    /// The first count: the vocabulary is chosen.
    fn chosen(&self, corpus: &mut Corpus, place: &OutsidePlace<'_>) -> Result<Totals, EngineError> {
        let rule = self.job.settings.vocabulary.rule();
        let chosen = if self.sliced() {
            // The dictionaries are needed once more, each for its slice.
            vocabulary::merge(&corpus.dictionaries, &rule, &self.budget)?
        } else {
            vocabulary::choose(&mut corpus.dictionaries, &rule, &self.budget)?
        };
        let vocabulary = chosen.vocabulary;
        let outside = match &chosen.outside {
            Some(_) => None,
            None => {
                let mut outside = place.create()?;
                if chosen.types > vocabulary.len() as u64 {
                    for term in merge_sorted(sorted(&corpus.dictionaries)?) {
                        let term: TermCount = term?;
                        if vocabulary.lookup(&term.term).is_none() {
                            outside.push(&term.term, term.tokens, term.documents)?;
                        }
                    }
                }
                Some(outside.finish()?)
            }
        };
        Ok(Totals {
            types: chosen.types,
            tokens_inside: tokens_of(&vocabulary),
            vocabulary: Arc::new(vocabulary),
            given_map: None,
            outside,
            held_outside: chosen.outside,
            slices: None,
        })
    }

    /// A batch: the vocabulary is there.
    fn more(
        &self,
        base: &Base,
        corpus: &Corpus,
        place: &OutsidePlace<'_>,
    ) -> Result<Totals, EngineError> {
        let old = &base.vocabulary;
        let (mut added, mut taken) = (Sums::of(old.len()), Sums::of(old.len()));
        let (plus, minus) = self.signed_dictionaries(corpus);
        let stored = base.outside(self.warehouse, self.prepared.session.handle())?;
        let mut outside = match &stored {
            Some(_) => Some(place.create()?),
            None => None,
        };
        let before: SortedTerms<'_> = match &stored {
            Some(table) => Box::new(table.terms()),
            None => Box::new(std::iter::empty()),
        };
        let mut streams = [
            before,
            Box::new(merge_sorted(sorted(plus)?)),
            Box::new(merge_sorted(sorted(minus)?)),
        ]
        .map(Iterator::peekable);
        while let Some((term, [had, more, less])) = next_term(&mut streams)? {
            if let Some(id) = old.lookup(&term) {
                added.set(id, more);
                taken.set(id, less);
                continue;
            }
            let tokens = sum(&term, had.0, more.0, less.0)?;
            let documents = sum(&term, had.1, more.1, less.1)?;
            if let Some(outside) = &mut outside
                && tokens > 0
            {
                outside.push(&term, tokens, documents)?;
            }
        }
        let vocabulary = changed(base, &added, &taken)?;
        let mut types = with_count(&vocabulary);
        types += outside.as_ref().map_or(0, |outside| outside.written);
        Ok(Totals {
            vocabulary: Arc::new(vocabulary),
            types,
            given_map: None,
            outside: outside.map(OutsideFile::finish).transpose()?,
            held_outside: None,
            tokens_inside: added.tokens.iter().sum(),
            slices: None,
        })
    }

    /// The same for a job that is counted by slice: one vocabulary, chosen by the sums of all slices,
    /// and its counts in each.
    fn sliced_totals(
        &self,
        given: Option<&Vocabulary>,
        corpus: &mut Corpus,
        place: &OutsidePlace<'_>,
    ) -> Result<Totals, EngineError> {
        let mut totals = match (self.base, given) {
            (Some(base), _) => self.more(base, corpus, place)?,
            (None, Some(given)) => {
                let vocabulary = given.with_counts(merge_sorted(sorted(&corpus.dictionaries)?))?;
                Totals {
                    types: with_count(&vocabulary),
                    tokens_inside: tokens_of(&vocabulary),
                    vocabulary: Arc::new(vocabulary),
                    given_map: None,
                    outside: None,
                    held_outside: None,
                    slices: None,
                }
            }
            (None, None) => self.chosen(corpus, place)?,
        };
        let vocabulary = &totals.vocabulary;
        let mut slices = match self.base.and_then(|base| base.slices.clone()) {
            Some(slices) => slices,
            None => Slices::new(vocabulary.len()),
        };
        let first_taken = self.signed_dictionaries(corpus).0.len();
        let dictionaries = corpus.dictionaries.iter().zip(&corpus.slices);
        for (number, (dictionary, slice)) in dictionaries.enumerate() {
            let taken = number >= first_taken;
            slices.tally(slice, taken)?;
            for term in dictionary.sorted()? {
                let term = term?;
                if let Some(id) = vocabulary.lookup(&term.term) {
                    slices.count(&slice.slice, id, &term, taken)?;
                }
            }
        }
        slices.settle()?;
        totals.slices = Some(slices);
        Ok(totals)
    }

    /// The dictionaries of what is added, and of what is taken.
    fn signed_dictionaries<'a>(
        &self,
        corpus: &'a Corpus,
    ) -> (&'a [StoredDictionary], &'a [StoredDictionary]) {
        let by_units = || {
            corpus
                .units
                .get(self.added_units())
                .map_or(corpus.dictionaries.len(), |unit| unit.dictionaries.start)
        };
        let cut = corpus.added_dictionaries.unwrap_or_else(by_units);
        corpus.dictionaries.split_at(cut)
    }
}

fn sorted(dictionaries: &[StoredDictionary]) -> Result<Vec<SortedTerms<'_>>, EngineError> {
    dictionaries.iter().map(StoredDictionary::sorted).collect()
}

/// Tokens and documents of a term in one stream.
type Pair = (u64, u64);

/// The smallest term of the streams, with what each has of it.
fn next_term<const N: usize>(
    streams: &mut [Peekable<SortedTerms<'_>>; N],
) -> Result<Option<(String, [Pair; N])>, EngineError> {
    let mut smallest: Option<String> = None;
    for stream in streams.iter_mut() {
        if let Some(Err(error)) = stream.next_if(Result::is_err) {
            return Err(error);
        }
        if let Some(Ok(head)) = stream.peek()
            && smallest.as_ref().is_none_or(|term| head.term < *term)
        {
            smallest = Some(head.term.clone());
        }
    }
    let Some(term) = smallest else {
        return Ok(None);
    };
    let mut found = [(0, 0); N];
    for (stream, slot) in streams.iter_mut().zip(&mut found) {
        if let Some(Ok(head)) = stream.next_if(|head| matches!(head, Ok(head) if head.term == term))
        {
            *slot = (head.tokens, head.documents);
        }
    }
    Ok(Some((term, found)))
}

/// The vocabulary of `base` with other counts.
fn changed(base: &Base, added: &Sums, taken: &Sums) -> Result<Vocabulary, EngineError> {
    let old = &base.vocabulary;
    let (mut tokens, mut documents) =
        (Vec::with_capacity(old.len()), Vec::with_capacity(old.len()));
    for id in 0..base.vocabulary_size() {
        let (term, index) = (old.term(id), id as usize);
        tokens.push(sum(
            term,
            old.tokens(id),
            added.tokens[index],
            taken.tokens[index],
        )?);
        documents.push(sum(
            term,
            old.documents(id),
            added.documents[index],
            taken.documents[index],
        )?);
    }
    Ok(old.with_totals(tokens, documents))
}

fn sum(term: &str, had: u64, more: u64, less: u64) -> Result<u64, EngineError> {
    let sum = had.checked_add(more).ok_or_else(|| {
        EngineError::Setting(format!("the count of `{term}` does not fit 64 bits"))
    })?;
    sum.checked_sub(less).ok_or_else(|| {
        EngineError::Setting(format!(
            "`{term}` has count {sum}, and {less} would be taken out: what is to be taken out was never counted; nothing was changed"
        ))
    })
}

/// Terms that occur.
pub(crate) fn with_count(vocabulary: &Vocabulary) -> u64 {
    let ids = 0..u32::try_from(vocabulary.len()).unwrap_or(u32::MAX);
    ids.filter(|id| vocabulary.tokens(*id) > 0).count() as u64
}

fn tokens_of(vocabulary: &Vocabulary) -> u64 {
    let ids = 0..u32::try_from(vocabulary.len()).unwrap_or(u32::MAX);
    ids.map(|id| vocabulary.tokens(id)).sum()
}
