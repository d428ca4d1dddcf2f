//! A job as it is before a batch: its tables, settings and frozen vocabulary.

use std::sync::Arc;

use pmill_count::keep_probability;
use pmill_store::{Job, JobName, Warehouse};
use pmill_text::{TermCount, Vocabulary};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::{Facts, parse};
use crate::error::EngineError;
use crate::pairs_table::PairsTable;
use crate::session::Session;
use crate::settings::RecordedSettings;
use crate::slices::Slices;
use crate::sources::{self, SourceRow};
use crate::stored::StoredTable;

/// What a batch starts from.
pub(crate) struct Base {
    pub(crate) job: Job,
    pub(crate) recorded: RecordedSettings,
    pub(crate) facts: Facts,
    pub(crate) sources: Vec<SourceRow>,
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) subsample: Option<Subsample>,
    /// Its slices, when it is counted by slice.
    pub(crate) slices: Option<Slices>,
}

impl Base {
    /// The newest version of a job; `None` when it has never been committed.
    pub(crate) fn open(
        session: &Session,
        warehouse: &Warehouse,
        name: &JobName,
    ) -> Result<Option<Self>, EngineError> {
        session
            .wait(Job::open(warehouse, name))?
            .map(|job| Self::of(session, warehouse, job))
            .transpose()
    }

    /// What a version of a job holds.
    pub(crate) fn of(
        session: &Session,
        warehouse: &Warehouse,
        job: Job,
    ) -> Result<Self, EngineError> {
        let runtime = session.handle();
        let vocab = StoredTable::new(warehouse, &job.name, "vocab", "id", &job.vocab, runtime)?;
        let recorded: RecordedSettings = parse(&job.settings()?)?;
        let facts: Facts = parse(&job.facts()?)?;
        let (vocabulary, slices) = if recorded.given.slice.is_some() {
            let counts = vocab.terms().collect::<Result<Vec<TermCount>, _>>()?;
            let (vocabulary, slices) = sliced(&facts, &counts)?;
            (vocabulary, Some(slices))
        } else {
            (vocab.vocabulary()?, None)
        };
        Ok(Self {
            recorded,
            facts,
            sources: session.wait(sources::read(session.context(), &job))?,
            vocabulary: Arc::new(vocabulary),
            slices,
            subsample: job.subsample().as_deref().map(parse).transpose()?,
            job,
        })
    }

    /// Ids of its pairs: those of its terms, in every slice.
    fn ids(&self) -> Result<u32, EngineError> {
        match &self.slices {
            None => Ok(self.vocabulary_size()),
            Some(slices) => slices.ids(),
        }
    }

    pub(crate) fn vocabulary_size(&self) -> u32 {
        u32::try_from(self.vocabulary.len()).unwrap_or(u32::MAX)
    }

    /// Its pairs as a source of rows.
    pub(crate) fn pairs(
        &self,
        warehouse: &Warehouse,
        runtime: &Handle,
    ) -> Result<PairsTable, EngineError> {
        PairsTable::new(warehouse, &self.job, self.ids()?, runtime)
    }

    /// Its terms outside the vocabulary; `None` when they are not kept.
    pub(crate) fn outside(
        &self,
        warehouse: &Warehouse,
        runtime: &Handle,
    ) -> Result<Option<StoredTable>, EngineError> {
        let Some(state) = &self.job.outside else {
            return Ok(None);
        };
        StoredTable::new(
            warehouse,
            &self.job.name,
            "outside",
            "count",
            state,
            runtime,
        )
        .map(Some)
    }
}

/// The terms of a sliced `vocab` with their sums, and its slices.
fn sliced(facts: &Facts, counts: &[TermCount]) -> Result<(Vocabulary, Slices), EngineError> {
    let terms = usize::try_from(facts.terms).unwrap_or(usize::MAX);
    let mut sums: Vec<TermCount> = counts.iter().take(terms).cloned().collect();
    if counts.len() as u64 != facts.ids() {
        return Err(EngineError::Query(format!(
            "`vocab` has {} rows, expected {} terms in {} slices; `pmill inspect --verify` says more",
            counts.len(),
            facts.terms,
            facts.slices.len()
        )));
    }
    for (place, count) in counts.iter().enumerate().skip(terms) {
        let sum = &mut sums[place % terms];
        sum.tokens += count.tokens;
        sum.documents += count.documents;
    }
    let slices = Slices::stored(&facts.slices, counts, terms);
    Ok((
        Vocabulary::from_rows(sums.into_iter().map(Ok::<_, EngineError>))?,
        slices,
    ))
}

/// What subsampling is decided by: the counts of the first commit. They are kept, so that a row is
/// thinned the same way when it is counted, and when it is taken out again, whatever came between.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Subsample {
    threshold: f64,
    /// All tokens of the first commit.
    tokens: u64,
    /// Tokens of the first ids; all later ones are kept always.
    counts: Vec<u64>,
}

impl Subsample {
    /// Of a vocabulary whose ids fall by count.
    pub(crate) fn freeze(threshold: f64, vocabulary: &Vocabulary, tokens: u64) -> Self {
        let counts = (0..vocabulary.len() as u32)
            .map(|id| vocabulary.tokens(id))
            .take_while(|count| keep_probability(threshold, *count, tokens) < 1.0)
            .collect();
        Self {
            threshold,
            tokens,
            counts,
        }
    }

    /// The chance of each id to be kept.
    pub(crate) fn keep(&self) -> Vec<f64> {
        self.counts
            .iter()
            .map(|count| keep_probability(self.threshold, *count, self.tokens))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use pmill_text::{TermCount, VocabularyRule};

    use super::*;

    #[test]
    fn frozen_chances_are_those_of_the_first_counts() {
        let terms = [("a", 900), ("b", 90), ("c", 10)].map(|(term, tokens)| {
            Ok::<_, EngineError>(TermCount {
                term: term.into(),
                tokens,
                documents: 1,
            })
        });
        let vocabulary = Vocabulary::from_counts(terms, &VocabularyRule::default()).unwrap();
        let frozen = Subsample::freeze(0.05, &vocabulary, 1000);
        // The others have sqrt(50/90), and more than 1.
        assert_eq!(frozen.counts, [900, 90]);
        let json = serde_json::to_string(&frozen).unwrap();
        assert_eq!(serde_json::from_str::<Subsample>(&json).unwrap(), frozen);
        let keep = frozen.keep();
        assert_eq!(keep[0], keep_probability(0.05, 900, 1000));
        assert_eq!(keep.len(), 2);
    }
}
