//! `vocab` and `outside`.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;

use super::{Checker, one_batch};
use crate::error::EngineError;
use crate::slices::{SliceFacts, SliceKey};
use crate::sources::SourceRow;
use crate::stored::terms_of;

/// What the other checks need of the vocabulary.
#[derive(Default)]
pub(super) struct Vocab {
    /// Id by digest of the term: terms themselves are not held.
    pub(super) ids: HashMap<u128, u32>,
    pub(super) tokens: Vec<u64>,
    pub(super) documents: Vec<u64>,
    /// Ids of one slice; all, when there are no slices.
    pub(super) terms: usize,
    /// The place of each slice, when the job is counted by slice.
    pub(super) slices: Option<HashMap<SliceKey, u32>>,
}

impl Vocab {
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}

/// Two terms have one digest with a chance of 2⁻⁶⁴ in a vocabulary of 2³² terms.
pub(super) fn digest(term: &str) -> u128 {
    let hash = blake3::hash(term.as_bytes());
    let bytes: [u8; 16] = std::array::from_fn(|index| hash.as_bytes()[index]);
    u128::from_le_bytes(bytes)
}

impl Checker<'_> {
    pub(super) fn vocab(&mut self, sources: &[SourceRow]) -> Result<Vocab, EngineError> {
        let mut vocab = Vocab::default();
        // Later batches change counts and keep the ids, so the order is that of the first.
        let ordered = one_batch(sources);
        let ordered = ordered && self.settings.given.slice.is_none();
        let rows_of_corpus = self.facts.rows;
        let slices = self.facts.slices.clone();
        if self.settings.given.slice.is_some() {
            let places = slices.iter().map(|slice| slice.slice.clone()).zip(0..);
            vocab.slices = Some(places.collect());
        }
        vocab.terms = match &vocab.slices {
            None => usize::MAX,
            Some(_) => usize::try_from(self.facts.terms)
                .unwrap_or(usize::MAX)
                .max(1),
        };
        // The terms of the first slice, by their digests: those of the others are the same.
        let mut first: Vec<u128> = Vec::new();
        let mut before: Option<(u64, String)> = None;
        self.scan("vocab", "id", &self.job.vocab, |findings, file, batch| {
            let ids = batch
                .column_by_name("id")
                .and_then(|column| column.as_primitive_opt::<arrow::datatypes::Int32Type>());
            let (Some(ids), Some(terms)) = (ids, terms_of(batch)) else {
                findings.add("vocab", "columns and types are those of the table", || {
                    format!("`{}`: they are not, or a count is negative", file.name())
                });
                return;
            };
            let keys = batch
                .column_by_name("slice")
                .and_then(|column| arrow::compute::cast(column, &DataType::Utf8).ok());
            for (row, (id, term)) in ids.values().iter().zip(terms).enumerate() {
                let place = vocab.len();
                let slice = slices.get(place / vocab.terms);
                let rows_of_corpus = slice.map_or(rows_of_corpus, |slice| slice.rows);
                if vocab.slices.is_some() {
                    let key = keys.as_ref().and_then(|keys| {
                        let keys = keys.as_string::<i32>();
                        keys.is_valid(row).then(|| keys.value(row))
                    });
                    let expected = slice.and_then(|slice| slice.slice.as_deref());
                    if key != expected || keys.is_none() {
                        findings.add("vocab", "slices stand in their order", || {
                            format!("id {id} is of {key:?}, expected {expected:?}")
                        });
                    }
                }
                if usize::try_from(*id) != Ok(place) {
                    findings.add("vocab", "ids are 0, 1, 2, …", || {
                        format!("id {id} in place {place}")
                    });
                }
                if place >= vocab.terms {
                    if first.get(place % vocab.terms) != Some(&digest(&term.term)) {
                        findings.add("vocab", "every slice has the same terms", || {
                            format!("`{}` has the id {place}", term.term)
                        });
                    }
                } else if let Some(twice) = vocab.ids.insert(digest(&term.term), place as u32) {
                    findings.add("vocab", "no term is there twice", || {
                        format!("`{}` has the ids {twice} and {place}", term.term)
                    });
                }
                if term.documents > term.tokens || term.documents > rows_of_corpus {
                    findings.add(
                        "vocab",
                        "a term is in no more rows than it occurs and than there are",
                        || {
                            format!(
                                "`{}`: in {} rows, occurs {} times, {rows_of_corpus} rows in all",
                                term.term, term.documents, term.tokens
                            )
                        },
                    );
                }
                if ordered
                    && let Some((count, other)) = &before
                    && (*count < term.tokens || (*count == term.tokens && *other >= term.term))
                {
                    findings.add("vocab", "terms stand by falling count, then bytes", || {
                        format!(
                            "`{other}` ({count}) before `{}` ({})",
                            term.term, term.tokens
                        )
                    });
                }
                if vocab.slices.is_some() && first.len() < vocab.terms {
                    first.push(digest(&term.term));
                }
                vocab.tokens.push(term.tokens);
                vocab.documents.push(term.documents);
                before = Some((term.tokens, term.term));
            }
        })?;
        let terms = vocab.len() as u64;
        self.findings
            .same("vocab", "as many terms as counted", self.facts.ids(), terms);
        if vocab.slices.is_some() {
            let sum = |of: fn(&SliceFacts) -> u64| slices.iter().map(of).sum::<u64>();
            self.findings.same(
                "vocab",
                "rows of the slices add up to those of the corpus",
                self.facts.rows,
                sum(|slice| slice.rows),
            );
            self.findings.same(
                "vocab",
                "features of the slices add up to those of the corpus",
                self.facts.tokens,
                sum(|slice| slice.tokens),
            );
        }
        Ok(vocab)
    }

    pub(super) fn outside(&mut self, vocab: &Vocab) -> Result<(), EngineError> {
        let inside: u64 = vocab.tokens.iter().sum();
        let Some(state) = &self.job.outside else {
            if inside > self.facts.tokens {
                let features = self.facts.tokens;
                self.findings.add(
                    "vocab",
                    "counts are within the features of the corpus",
                    || format!("they add up to {inside}, of {features} features"),
                );
            }
            return Ok(());
        };
        let (mut tokens, mut before) = (0, String::new());
        self.scan("outside", "count", state, |findings, file, batch| {
            let Some(terms) = terms_of(batch) else {
                findings.add(
                    "outside",
                    "columns and types are those of the table",
                    || format!("`{}`: they are not, or a count is negative", file.name()),
                );
                return;
            };
            for term in terms {
                tokens += term.tokens;
                if term.term <= before && !before.is_empty() {
                    findings.add("outside", "terms stand by their bytes, none twice", || {
                        format!("`{before}` before `{}`", term.term)
                    });
                }
                if vocab.ids.contains_key(&digest(&term.term)) {
                    findings.add("outside", "no term is in the vocabulary", || {
                        format!("`{}` is", term.term)
                    });
                }
                if term.tokens == 0 || term.documents > term.tokens {
                    findings.add(
                        "outside",
                        "a term occurs, and in no more rows than it occurs",
                        || {
                            format!(
                                "`{}`: in {} rows, occurs {} times",
                                term.term, term.documents, term.tokens
                            )
                        },
                    );
                }
                before = term.term;
            }
        })?;
        self.findings.same(
            "outside",
            "with the vocabulary, all features of the corpus",
            self.facts.tokens,
            inside + tokens,
        );
        Ok(())
    }
}
