//! Drift: what a recount would choose as vocabulary, now that more (or less) has been counted.
//!
//! In: a job's `vocab` and `outside`. Out: terms that would come and go. Held: both vocabularies.

use std::fmt;

use pmill_store::{Job, JobName, Warehouse};
use pmill_text::{TermCount, Vocabulary};
use serde::Serialize;

use crate::error::EngineError;
use crate::job::base::Base;
use crate::memory::ByteSize;
use crate::session::Session;

/// A term with its counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Term {
    /// The term.
    pub token: String,
    /// Times it occurs.
    pub count: u64,
    /// Rows that hold it.
    pub documents: u64,
}

/// A job's vocabulary, and what a recount would make of it.
#[derive(Debug, Clone, Serialize)]
pub struct Drift {
    /// Job name.
    pub job: String,
    /// Terms of the vocabulary.
    pub terms: u64,
    /// Distinct terms met.
    pub types: u64,
    /// Features met.
    pub tokens: u64,
    /// Those of the vocabulary.
    pub covered_tokens: u64,
    /// Terms that a recount would choose.
    pub recount_terms: u64,
    /// Features of those terms.
    pub recount_covered_tokens: u64,
    /// Number of terms that would come in.
    pub entering: u64,
    /// The most frequent of them.
    pub entering_first: Vec<Term>,
    /// Number of terms that would go out.
    pub leaving: u64,
    /// The most frequent of them.
    pub leaving_first: Vec<Term>,
    /// Terms that would stay and get another id.
    pub moved: u64,
    /// Whether terms outside the vocabulary are known.
    pub outside_is_kept: bool,
}

/// Compares a job's vocabulary with the one that a recount of all that it holds would choose by the
/// same rule. `shown`: how many terms are listed each way.
///
/// # Errors
/// When the job does not exist or cannot be read.
pub fn drift(
    warehouse: &str,
    name: &str,
    shown: usize,
    limit: ByteSize,
) -> Result<Drift, EngineError> {
    let warehouse = Warehouse::open(warehouse)?;
    let session = Session::new(1, limit, None)?;
    let job = session.wait(Job::open_existing(&warehouse, &JobName::new(name)?))?;
    let base = Base::of(&session, &warehouse, job)?;
    let now = &base.vocabulary;
    let stored = base.outside(&warehouse, session.handle())?;
    let given = base.recorded.given.vocabulary.file.is_some();
    let mut rule = base.recorded.given.vocabulary.rule();
    if given {
        // A vocabulary that was given keeps its terms.
        rule = pmill_text::VocabularyRule::default();
    }
    let inside = ids(now)
        .map(|id| term_of(now, id))
        // A term that nothing holds any more would not be met.
        .filter(|term| given || term.tokens > 0)
        .map(Ok);
    let outside = stored.iter().flat_map(|table| table.terms());
    let then: Vocabulary = Vocabulary::from_counts::<EngineError>(inside.chain(outside), &rule)?;
    let mut entering: Vec<u32> = ids(&then)
        .filter(|id| now.lookup(then.term(*id)).is_none())
        .collect();
    let mut leaving: Vec<u32> = ids(now)
        .filter(|id| then.lookup(now.term(*id)).is_none())
        .collect();
    let moved = ids(now)
        .filter(|id| then.lookup(now.term(*id)).is_some_and(|new| new != *id))
        .count() as u64;
    let (entering_count, leaving_count) = (entering.len() as u64, leaving.len() as u64);
    leaving.sort_by_key(|id| std::cmp::Reverse(now.tokens(*id)));
    entering.truncate(shown);
    leaving.truncate(shown);
    Ok(Drift {
        job: name.to_owned(),
        terms: now.len() as u64,
        types: base.facts.types,
        tokens: base.facts.tokens,
        covered_tokens: ids(now).map(|id| now.tokens(id)).sum(),
        recount_terms: then.len() as u64,
        recount_covered_tokens: ids(&then).map(|id| then.tokens(id)).sum(),
        entering: entering_count,
        entering_first: entering.iter().map(|id| shown_term(&then, *id)).collect(),
        leaving: leaving_count,
        leaving_first: leaving.iter().map(|id| shown_term(now, *id)).collect(),
        moved,
        outside_is_kept: stored.is_some(),
    })
}

fn ids(vocabulary: &Vocabulary) -> std::ops::Range<u32> {
    0..u32::try_from(vocabulary.len()).unwrap_or(u32::MAX)
}

fn term_of(vocabulary: &Vocabulary, id: u32) -> TermCount {
    TermCount {
        term: vocabulary.term(id).to_owned(),
        tokens: vocabulary.tokens(id),
        documents: vocabulary.documents(id),
    }
}

fn shown_term(vocabulary: &Vocabulary, id: u32) -> Term {
    Term {
        token: vocabulary.term(id).to_owned(),
        count: vocabulary.tokens(id),
        documents: vocabulary.documents(id),
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |part: u64| 100.0 * part as f64 / self.tokens.max(1) as f64;
        writeln!(
            out,
            "vocabulary of {}: {} of {} types, {:.2} % of {} tokens",
            self.job,
            self.terms,
            self.types,
            share(self.covered_tokens),
            self.tokens
        )?;
        if !self.outside_is_kept {
            writeln!(
                out,
                "  terms outside it were not kept, because the vocabulary was given: a recount would keep its terms"
            )?;
        }
        writeln!(
            out,
            "  a recount would choose {} terms, {:.2} % of the tokens: {} would come in, {} go out, {} get another id",
            self.recount_terms,
            share(self.recount_covered_tokens),
            self.entering,
            self.leaving,
            self.moved
        )?;
        for (verb, terms, all) in [
            ("in ", &self.entering_first, self.entering),
            ("out", &self.leaving_first, self.leaving),
        ] {
            for term in terms {
                writeln!(
                    out,
                    "    {verb} {} ({} times, in {} rows)",
                    term.token, term.count, term.documents
                )?;
            }
            if all > terms.len() as u64 {
                writeln!(out, "    {verb} … and {} more", all - terms.len() as u64)?;
            }
        }
        Ok(())
    }
}
