//! The terms of one thread's rows with their counts.
//!
//! In: rows of text. Out: each row's features as local indices at once, and at the end a
//! [`Dictionary`]: terms, token counts, document counts by local index. In memory: every distinct term
//! once, its counts, and the memo of the fast road (bounded).

use std::sync::Arc;

use crate::merge::TermCount;
use crate::road::{MemoLimits, Numbers, Output, Road};
use crate::terms::Terms;
use crate::{FeatureExtractor, TextError};

/// Counts of one term, and the last row that held it.
#[derive(Debug, Clone, Copy)]
struct Counts {
    tokens: u64,
    documents: u64,
    last_row: u64,
}

/// Counts the terms of rows; one for each thread.
pub struct DictionaryBuilder {
    road: Road<Terms>,
    counts: Vec<Counts>,
    /// Number of the current row, from 1.
    row: u64,
    row_ends: Vec<usize>,
}

impl Numbers for Terms {
    fn number(&mut self, feature: &str) -> Result<u32, TextError> {
        self.insert(feature)
    }

    fn touch(&self, token: &[u8]) -> u32 {
        Terms::touch(self, token)
    }
}

impl DictionaryBuilder {
    /// An empty dictionary over the features of `extractor`.
    #[must_use]
    pub fn new(extractor: &Arc<FeatureExtractor>) -> Self {
        Self::with_limits(extractor, MemoLimits::default())
    }

    pub(crate) fn with_limits(extractor: &Arc<FeatureExtractor>, limits: MemoLimits) -> Self {
        Self {
            road: Road::new(extractor, Terms::default(), limits),
            counts: Vec::new(),
            row: 0,
            row_ends: Vec::new(),
        }
    }

    /// Appends a row's features to `out` as local indices and counts them: each occurrence as a token,
    /// each distinct feature as one document. Local indices are dense; their order says nothing.
    ///
    /// # Errors
    /// More than 2^32 - 17 distinct terms (2^31 with phrases or concepts); a Hugging Face tokenizer
    /// that refuses the text. `out` may then hold a part of the row, and the row is not counted.
    pub fn push_row(&mut self, text: &str, out: &mut Vec<u32>) -> Result<(), TextError> {
        let mut row_ends = std::mem::take(&mut self.row_ends);
        row_ends.clear();
        let outcome = self.push_rows(std::iter::once(Some(text)), out, &mut row_ends);
        self.row_ends = row_ends;
        outcome
    }

    /// [`DictionaryBuilder::push_row`] for many rows, which is faster where rows are short. After each
    /// row the length of `out` is appended to `row_ends`. A null row is a row without features.
    ///
    /// # Errors
    /// Like [`DictionaryBuilder::push_row`]; then no row of this call is counted.
    pub fn push_rows<'a>(
        &mut self,
        rows: impl IntoIterator<Item = Option<&'a str>>,
        out: &mut Vec<u32>,
        row_ends: &mut Vec<usize>,
    ) -> Result<(), TextError> {
        let mut start = out.len();
        let first_row = row_ends.len();
        let mut output = Output {
            numbers: out,
            row_ends,
        };
        self.road.push_rows(rows.into_iter(), &mut output)?;
        for &end in &row_ends[first_row..] {
            self.count(&out[start..end]);
            start = end;
        }
        Ok(())
    }

    /// [`DictionaryBuilder::push_row`] for a row that is cut into tokens already: filters, lemma,
    /// phrases and concepts apply, the tokenizer does not. An empty token is no token.
    ///
    /// # Errors
    /// More than 2^32 - 17 distinct terms (2^31 with phrases or concepts).
    pub fn push_tokens_row<'a>(
        &mut self,
        tokens: impl Iterator<Item = &'a str>,
        out: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let start = out.len();
        self.row_ends.clear();
        let mut output = Output {
            numbers: out,
            row_ends: &mut self.row_ends,
        };
        self.road.push_tokens_row(tokens, &mut output)?;
        self.count(&out[start..]);
        Ok(())
    }

    fn count(&mut self, row: &[u32]) {
        self.row += 1;
        let unseen = Counts {
            tokens: 0,
            documents: 0,
            last_row: 0,
        };
        self.counts.resize(self.len(), unseen);
        for &index in row {
            let counts = &mut self.counts[index as usize];
            counts.tokens += 1;
            counts.documents += u64::from(counts.last_row != self.row);
            counts.last_row = self.row;
        }
    }

    /// Rows pushed so far, those without features too.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.row
    }

    /// Distinct terms so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.road.numbers().len()
    }

    /// Whether no feature was seen yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes on the heap: terms, counts and memo. Ask between rows, and spill when it is too much.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.road.held_bytes()
            + self.road.numbers().held_bytes()
            + self.counts.capacity() * size_of::<Counts>()
    }

    /// The dictionary; its local indices are those that the rows were given.
    #[must_use]
    pub fn finish(self) -> Dictionary {
        Dictionary {
            tokens: self.counts.iter().map(|counts| counts.tokens).collect(),
            documents: self.counts.iter().map(|counts| counts.documents).collect(),
            terms: self.road.into_numbers(),
        }
    }
}

/// Terms, token counts and document counts by local index.
#[derive(Clone, Default)]
pub struct Dictionary {
    terms: Terms,
    tokens: Vec<u64>,
    documents: Vec<u64>,
}

/// One term of a [`Dictionary`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DictionaryEntry<'a> {
    /// The term.
    pub term: &'a str,
    /// Times it occurred.
    pub tokens: u64,
    /// Rows that hold it.
    pub documents: u64,
    /// Its local index.
    pub local: u32,
}

impl Dictionary {
    /// Frees the index that finds a term's place: [`crate::Vocabulary::choose`] makes it again. For a dictionary
    /// that waits.
    #[must_use]
    pub fn without_index(mut self) -> Self {
        self.terms = self.terms.without_index();
        self
    }

    /// Terms with their index, tokens and documents.
    pub(crate) fn into_parts(self) -> (Terms, Vec<u64>, Vec<u64>) {
        (self.terms.with_index(), self.tokens, self.documents)
    }

    /// Number of terms.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no term.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The term of a local index below [`Dictionary::len`].
    #[must_use]
    pub fn entry(&self, local: u32) -> DictionaryEntry<'_> {
        DictionaryEntry {
            term: self.terms.term(local),
            tokens: self.tokens[local as usize],
            documents: self.documents[local as usize],
            local,
        }
    }

    /// The terms by local index.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = DictionaryEntry<'_>> {
        (0..self.len()).map(|local| self.entry(local as u32))
    }

    /// The terms by their bytes: the order of a spilled dictionary. Takes 4 bytes a term.
    pub fn iter_sorted(&self) -> impl ExactSizeIterator<Item = DictionaryEntry<'_>> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.sort_unstable_by(|&left, &right| self.terms.term(left).cmp(self.terms.term(right)));
        order.into_iter().map(|local| self.entry(local))
    }

    /// The terms by their bytes as a stream for [`crate::merge_sorted`].
    pub fn sorted_counts<E>(&self) -> impl Iterator<Item = Result<TermCount, E>> {
        self.iter_sorted().map(|entry| {
            Ok(TermCount {
                term: entry.term.to_owned(),
                tokens: entry.tokens,
                documents: entry.documents,
            })
        })
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.terms.held_bytes()
            + (self.tokens.capacity() + self.documents.capacity()) * size_of::<u64>()
    }
}
