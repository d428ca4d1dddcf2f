//! Sums sorted term streams into one sorted stream.
//! In: k streams sorted by term bytes. Out: one, each term once. Memory: one term a stream.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};

use crate::{Dictionary, TextError};

/// A term with its counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TermCount {
    /// The term.
    pub term: String,
    /// Times it occurred.
    pub tokens: u64,
    /// Rows that hold it.
    pub documents: u64,
}

/// Merges sorted streams of terms: the counts of equal terms are added.
///
/// The first error of a stream is handed on and ends the merge; so does a stream that is not sorted
/// by term bytes. A term may come several times in a stream.
///
/// ```
/// use pmill_text::{TermCount, TextError, merge_sorted};
/// let count = |term: &str, tokens| Ok::<_, TextError>(TermCount { term: term.into(), tokens, documents: 1 });
/// let merged: Vec<_> = merge_sorted(vec![
///     vec![count("cat", 2), count("dog", 1)].into_iter(),
///     vec![count("dog", 5)].into_iter(),
/// ])
/// .map(|entry| entry.map(|entry| (entry.term, entry.tokens, entry.documents)))
/// .collect::<Result<_, _>>()
/// .unwrap();
/// assert_eq!(merged, [("cat".into(), 2, 1), ("dog".into(), 6, 2)]);
/// ```
pub fn merge_sorted<I, E>(streams: Vec<I>) -> MergeSorted<I, E>
where
    I: Iterator<Item = Result<TermCount, E>>,
    E: From<TextError>,
{
    MergeSorted {
        streams,
        heads: BinaryHeap::new(),
        state: State::New,
        error: std::marker::PhantomData,
    }
}

impl Dictionary {
    /// Sums dictionaries into one stream sorted by term bytes.
    ///
    /// # Errors
    /// A count that does not fit 64 bits.
    pub fn merge<'a, E: From<TextError> + 'a>(
        dictionaries: impl IntoIterator<Item = &'a Self>,
    ) -> impl Iterator<Item = Result<TermCount, E>> + 'a {
        let streams: Vec<_> = dictionaries
            .into_iter()
            .map(Dictionary::sorted_counts)
            .collect();
        merge_sorted(streams)
    }
}

/// Iterator of [`merge_sorted`].
pub struct MergeSorted<I, E> {
    streams: Vec<I>,
    /// The first entry of each stream, smallest term on top.
    heads: BinaryHeap<Reverse<Head>>,
    state: State,
    error: std::marker::PhantomData<fn() -> E>,
}

#[derive(PartialEq, Eq)]
enum State {
    New,
    Running,
    Ended,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    entry: TermCount,
    stream: usize,
}

impl<I, E> MergeSorted<I, E>
where
    I: Iterator<Item = Result<TermCount, E>>,
    E: From<TextError>,
{
    /// Takes the next entry of a stream into the heap; it must not be before `last`.
    fn refill(&mut self, stream: usize, last: Option<&str>) -> Result<(), E> {
        let Some(entry) = self.streams[stream].next().transpose()? else {
            return Ok(());
        };
        if let Some(last) = last
            && entry.term.as_str() < last
        {
            return Err(TextError::Unsorted {
                stream,
                before: last.to_owned(),
                term: entry.term,
            }
            .into());
        }
        self.heads.push(Reverse(Head { entry, stream }));
        Ok(())
    }

    fn step(&mut self) -> Result<Option<TermCount>, E> {
        if self.state == State::New {
            self.state = State::Running;
            for stream in 0..self.streams.len() {
                self.refill(stream, None)?;
            }
        }
        let Some(Reverse(Head {
            entry: mut sum,
            stream,
        })) = self.heads.pop()
        else {
            return Ok(None);
        };
        self.refill(stream, Some(&sum.term))?;
        while self
            .heads
            .peek()
            .is_some_and(|Reverse(head)| head.entry.term == sum.term)
        {
            let Some(Reverse(Head { entry, stream })) = self.heads.pop() else {
                break;
            };
            let total = sum
                .tokens
                .checked_add(entry.tokens)
                .zip(sum.documents.checked_add(entry.documents));
            let Some((tokens, documents)) = total else {
                return Err(TextError::CountOverflow { term: sum.term }.into());
            };
            sum.tokens = tokens;
            sum.documents = documents;
            self.refill(stream, Some(&sum.term))?;
        }
        Ok(Some(sum))
    }
}

impl<I, E> Iterator for MergeSorted<I, E>
where
    I: Iterator<Item = Result<TermCount, E>>,
    E: From<TextError>,
{
    type Item = Result<TermCount, E>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Ended {
            return None;
        }
        let step = self.step();
        if !matches!(step, Ok(Some(_))) {
            self.state = State::Ended;
        }
        step.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(term: &str, tokens: u64) -> Result<TermCount, TextError> {
        Ok(TermCount {
            term: term.into(),
            tokens,
            documents: 1,
        })
    }

    #[test]
    fn an_unsorted_stream_or_an_overflow_ends_the_merge_with_an_error() {
        let unsorted = vec![count("a", 1), count("c", 1), count("b", 1)];
        let mut merged = merge_sorted(vec![vec![count("d", 1)].into_iter(), unsorted.into_iter()]);
        assert_eq!(merged.next().unwrap().unwrap().term, "a");
        let error = merged.next().unwrap().unwrap_err();
        assert!(
            matches!(error, TextError::Unsorted { stream: 1, .. }),
            "{error}"
        );
        assert!(merged.next().is_none());

        let streams = vec![
            vec![count("a", u64::MAX)].into_iter(),
            vec![count("a", 1)].into_iter(),
        ];
        let error = merge_sorted(streams).next().unwrap().unwrap_err();
        assert!(matches!(error, TextError::CountOverflow { .. }), "{error}");
    }

    #[test]
    fn no_streams_and_empty_streams_merge_to_nothing() {
        assert!(
            merge_sorted::<std::vec::IntoIter<Result<TermCount, TextError>>, _>(vec![])
                .next()
                .is_none()
        );
        let empty: Vec<Result<TermCount, TextError>> = vec![];
        assert!(merge_sorted(vec![empty.into_iter()]).next().is_none());
    }
}
