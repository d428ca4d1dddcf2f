//! The terms that count, with their ids: by falling token count, then by term bytes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::merge::TermCount;
use crate::resources::Resource;
use crate::terms::Terms;
use crate::{Dictionary, OUT_OF_VOCABULARY, TextError};

/// Which terms of a corpus make its vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VocabularyRule {
    /// At most so many terms, those with the most tokens (on ties the first by bytes). Not set: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Only terms with at least so many tokens.
    pub min_count: u64,
}

/// Terms with ids and counts. Share it in an `Arc`.
#[derive(Clone, Default)]
pub struct Vocabulary {
    terms: Terms,
    tokens: Vec<u64>,
    documents: Vec<u64>,
}

impl Vocabulary {
    /// The vocabulary of a corpus from its merged terms, each once and in any order.
    ///
    /// Holds at most `rule.size` terms (twice for a moment), or all of them without a size.
    ///
    /// # Errors
    /// The stream's own; more than 2^32 - 17 terms.
    pub fn from_counts<E: From<TextError>>(
        counts: impl IntoIterator<Item = Result<TermCount, E>>,
        rule: &VocabularyRule,
    ) -> Result<Self, E> {
        let limit = rule.size.map_or(usize::MAX, |size| size as usize);
        // The worst term kept is on top: fewest tokens, then last by bytes.
        let mut kept: BinaryHeap<(Reverse<u64>, String, u64)> = BinaryHeap::new();
        for entry in counts {
            let TermCount {
                term,
                tokens,
                documents,
            } = entry?;
            if tokens < rule.min_count || limit == 0 {
                continue;
            }
            let entry = (Reverse(tokens), term, documents);
            if kept.len() < limit {
                kept.push(entry);
            } else if let Some(mut worst) = kept.peek_mut()
                && entry < *worst
            {
                *worst = entry;
            }
        }
        let sorted = kept.into_sorted_vec();
        Ok(Self::from_sorted(sorted.iter().map(
            |(tokens, term, documents)| (term.as_str(), tokens.0, *documents),
        ))?)
    }

    /// A given set of terms with no counts yet, in the order of their bytes; a term that comes again
    /// is the same term. The ids are provisional: [`Vocabulary::recount`] gives the final ones.
    ///
    /// # Errors
    /// More than 2^32 - 17 terms.
    pub fn from_terms<'a>(terms: impl IntoIterator<Item = &'a str>) -> Result<Self, TextError> {
        let mut terms: Vec<&str> = terms.into_iter().collect();
        terms.sort_unstable();
        terms.dedup();
        Self::from_sorted(terms.into_iter().map(|term| (term, 0, 0)))
    }

    /// [`Vocabulary::from_terms`] from a file, one term a line, as the features are spelt (after
    /// lower-casing and lemma). Blanks at the ends and empty lines do not count.
    ///
    /// # Errors
    /// A file that cannot be read or is not UTF-8; more than 2^32 - 17 terms.
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        let resource = Resource::read("vocabulary terms", path)?;
        let terms = resource.lines().map(|(_, line)| line.trim());
        Self::from_terms(terms.filter(|term| !term.is_empty()))
    }

    /// The same terms with counts from a stream (a corpus's merged terms), and final ids. Terms of the
    /// stream that are not in the vocabulary are passed over; terms that do not come have 0.
    ///
    /// # Errors
    /// The stream's own; a sum that does not fit 64 bits.
    pub fn with_counts<E: From<TextError>>(
        &self,
        counts: impl IntoIterator<Item = Result<TermCount, E>>,
    ) -> Result<Self, E> {
        let mut tokens = vec![0_u64; self.len()];
        let mut documents = vec![0_u64; self.len()];
        for entry in counts {
            let entry = entry?;
            let Some(id) = self.lookup(&entry.term) else {
                continue;
            };
            let id = id as usize;
            let sums = tokens[id]
                .checked_add(entry.tokens)
                .zip(documents[id].checked_add(entry.documents));
            let Some(sums) = sums else {
                return Err(TextError::CountOverflow { term: entry.term }.into());
            };
            (tokens[id], documents[id]) = sums;
        }
        Ok(self.recount(&tokens, &documents)?.0)
    }

    /// The same terms with other counts (by today's id), and so with other ids. The second value
    /// leads from today's ids to the new ones.
    ///
    /// # Errors
    /// None but a broken promise of this crate.
    ///
    /// # Panics
    /// If a slice does not have one count a term.
    pub fn recount(
        &self,
        tokens: &[u64],
        documents: &[u64],
    ) -> Result<(Self, Vec<u32>), TextError> {
        assert_eq!(tokens.len(), self.len(), "one token count a term");
        assert_eq!(documents.len(), self.len(), "one document count a term");
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.sort_unstable_by_key(|&id| (Reverse(tokens[id as usize]), self.term(id)));
        let sorted = order.iter().map(|&id| {
            let index = id as usize;
            (self.term(id), tokens[index], documents[index])
        });
        let vocabulary = Self::from_sorted(sorted)?;
        let mut new_ids = vec![0; self.len()];
        for (new, &old) in order.iter().enumerate() {
            new_ids[old as usize] = new as u32;
        }
        Ok((vocabulary, new_ids))
    }

    /// A vocabulary as it was stored: terms with tokens and documents, in the order of their ids. The
    /// ids stay, whatever the counts.
    ///
    /// # Errors
    /// The stream's own; a term that comes twice ([`TextError::TermTwice`]); more than 2^32 - 17 terms.
    pub fn from_rows<E: From<TextError>>(
        rows: impl IntoIterator<Item = Result<TermCount, E>>,
    ) -> Result<Self, E> {
        let mut vocabulary = Self::default();
        for row in rows {
            let TermCount {
                term,
                tokens,
                documents,
            } = row?;
            let id = vocabulary.terms.insert(&term)?;
            if id as usize != vocabulary.tokens.len() {
                return Err(TextError::TermTwice { term }.into());
            }
            vocabulary.tokens.push(tokens);
            vocabulary.documents.push(documents);
        }
        Ok(vocabulary)
    }

    /// The same terms and ids with other counts.
    ///
    /// # Panics
    /// If a list does not have one count a term.
    #[must_use]
    pub fn with_totals(&self, tokens: Vec<u64>, documents: Vec<u64>) -> Self {
        assert_eq!(tokens.len(), self.len(), "one token count a term");
        assert_eq!(documents.len(), self.len(), "one document count a term");
        Self {
            terms: self.terms.clone(),
            tokens,
            documents,
        }
    }

    /// Takes different terms in the order of their ids.
    fn from_sorted<'a>(
        entries: impl Iterator<Item = (&'a str, u64, u64)>,
    ) -> Result<Self, TextError> {
        let mut vocabulary = Self::default();
        for (term, tokens, documents) in entries {
            vocabulary.terms.insert(term)?;
            vocabulary.tokens.push(tokens);
            vocabulary.documents.push(documents);
        }
        debug_assert_eq!(
            vocabulary.terms.len(),
            vocabulary.tokens.len(),
            "terms must be different"
        );
        Ok(vocabulary)
    }

    /// Number of terms; ids are below it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no term.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The term of an id below [`Vocabulary::len`].
    #[must_use]
    pub fn term(&self, id: u32) -> &str {
        self.terms.term(id)
    }

    /// Times the term of an id occurred.
    #[must_use]
    pub fn tokens(&self, id: u32) -> u64 {
        self.tokens[id as usize]
    }

    /// Rows that hold the term of an id.
    #[must_use]
    pub fn documents(&self, id: u32) -> u64 {
        self.documents[id as usize]
    }

    /// The id of a term.
    #[must_use]
    pub fn lookup(&self, term: &str) -> Option<u32> {
        self.terms.get(term)
    }

    /// Touches the place of a term, see [`Terms::touch`].
    pub(crate) fn touch(&self, term: &[u8]) -> u32 {
        self.terms.touch(term)
    }

    /// By local index of a dictionary: the id, or [`OUT_OF_VOCABULARY`].
    #[must_use]
    pub fn remap(&self, dictionary: &Dictionary) -> Vec<u32> {
        dictionary
            .iter()
            .map(|entry| self.lookup(entry.term).unwrap_or(OUT_OF_VOCABULARY))
            .collect()
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.terms.held_bytes()
            + (self.tokens.capacity() + self.documents.capacity()) * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_set_gets_its_ids_from_the_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("terms.txt");
        std::fs::write(&path, "zebra\n dog \n\ncat\r\ndog\n").unwrap();
        let given = Vocabulary::from_file(&path).unwrap();
        let terms = |vocabulary: &Vocabulary| -> Vec<String> {
            (0..vocabulary.len() as u32)
                .map(|id| vocabulary.term(id).to_owned())
                .collect()
        };
        assert_eq!(terms(&given), ["cat", "dog", "zebra"]);
        let (counted, new_ids) = given.recount(&[0, 2, 2], &[0, 1, 2]).unwrap();
        assert_eq!(terms(&counted), ["dog", "zebra", "cat"]);
        assert_eq!(new_ids, [2, 0, 1]);
        assert_eq!((counted.tokens(1), counted.documents(1)), (2, 2));
        assert_eq!(counted.lookup("cat"), Some(2));
        assert_eq!(counted.lookup("cow"), None);
    }

    #[test]
    fn stored_rows_keep_their_ids_whatever_their_counts() {
        let row = |term: &str, tokens| {
            Ok::<_, TextError>(TermCount {
                term: term.into(),
                tokens,
                documents: 1,
            })
        };
        let stored = Vocabulary::from_rows([row("fox", 1), row("cat", 9)]).unwrap();
        assert_eq!(
            (stored.lookup("fox"), stored.lookup("cat")),
            (Some(0), Some(1))
        );
        assert_eq!((stored.tokens(1), stored.documents(1)), (9, 1));
        let more = stored.with_totals(vec![3, 2], vec![2, 2]);
        assert_eq!(
            (more.term(0), more.tokens(0), more.documents(1)),
            ("fox", 3, 2)
        );
        let twice = Vocabulary::from_rows([row("fox", 1), row("fox", 1)]);
        assert!(matches!(twice, Err(TextError::TermTwice { term }) if term == "fox"));
    }

    #[test]
    fn a_size_of_zero_keeps_nothing() {
        let counts = vec![Ok::<_, TextError>(TermCount {
            term: "dog".into(),
            tokens: 3,
            documents: 1,
        })];
        let rule = VocabularyRule {
            size: Some(0),
            min_count: 0,
        };
        assert!(Vocabulary::from_counts(counts, &rule).unwrap().is_empty());
    }
}
