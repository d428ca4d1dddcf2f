//! The slices of a job: its rows by the value of an expression (`--slice`), with one vocabulary for all.
//!
//! A term has an id in every slice: `place of the slice × terms + id of the term`. Rows never cross
//! slices, so pairs of such ids are the pairs of each slice, counted by the same kernel in one go.
//! Slices stand by their bytes, the one of rows whose value is null first; a slice without rows is
//! none. So a table depends on what is in it, and not on the order in which slices came.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray};
use pmill_text::{TermCount, Vocabulary};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// The most slices of a job: each has a count for every term.
pub const MOST_SLICES: usize = 1000;

/// What tells one slice from another: the value as text; `None` for null.
pub type SliceKey = Option<String>;

/// What is known of a slice; kept with the table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceFacts {
    /// Its key.
    pub slice: SliceKey,
    /// Rows in it, those without text too: the N of the context `document`.
    pub rows: u64,
    /// Features met in it.
    pub tokens: u64,
}

/// The error of too many slices.
pub(crate) fn too_many() -> EngineError {
    EngineError::Setting(format!(
        "--slice gives more than {MOST_SLICES} slices; give an expression of fewer values, as `left(date, 4)` for years"
    ))
}

/// A slice's sums.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slice {
    facts: SliceFacts,
    /// By id of the term: times it occurs in the slice, and rows that hold it.
    tokens: Vec<u64>,
    documents: Vec<u64>,
}

/// The slices of a job in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slices {
    terms: usize,
    list: Vec<Slice>,
    /// Those that lost their last row, in their order. Until their pairs are known to be gone too, they have ids
    /// behind those of the others.
    gone: Vec<SliceKey>,
}

impl Slices {
    /// No slices, over a vocabulary of so many terms.
    pub(crate) fn new(terms: usize) -> Self {
        Self {
            terms,
            list: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// As a table tells them: `counts` are the rows of its `vocab`.
    pub(crate) fn stored(facts: &[SliceFacts], counts: &[TermCount], terms: usize) -> Self {
        let list = facts.iter().enumerate().map(|(place, facts)| {
            let counts = counts.get(place * terms..(place + 1) * terms);
            let counts = counts.unwrap_or_default();
            Slice {
                facts: facts.clone(),
                tokens: counts.iter().map(|count| count.tokens).collect(),
                documents: counts.iter().map(|count| count.documents).collect(),
            }
        });
        Self {
            terms,
            list: list.collect(),
            gone: Vec::new(),
        }
    }

    pub(crate) fn facts(&self) -> Vec<SliceFacts> {
        self.list.iter().map(|slice| slice.facts.clone()).collect()
    }

    /// Ids of all slices. A job without rows keeps the ids of its terms.
    pub(crate) fn ids(&self) -> Result<u32, EngineError> {
        self.ids_of(self.list.len().max(1))
    }

    /// The same, and those of the slices that are gone.
    pub(crate) fn ids_with_gone(&self) -> Result<u32, EngineError> {
        self.ids_of(self.list.len().max(1) + self.gone.len())
    }

    fn ids_of(&self, slices: usize) -> Result<u32, EngineError> {
        let ids = self.terms as u64 * slices as u64;
        u32::try_from(ids)
            .ok()
            .filter(|ids| *ids <= i32::MAX as u32)
            .ok_or_else(|| {
                EngineError::Setting(format!(
                    "{} terms in {slices} slices are more than 2^31 ids; give a smaller --vocab-size or fewer slices",
                    self.terms
                ))
            })
    }

    pub(crate) fn terms(&self) -> usize {
        self.terms
    }

    /// Times that an id's term occurs in its slice.
    pub(crate) fn tokens(&self, id: u32) -> u64 {
        let (place, term) = (id as usize / self.terms, id as usize % self.terms);
        self.list.get(place).map_or(0, |slice| slice.tokens[term])
    }

    /// Bytes on the heap.
    pub(crate) fn held_bytes(&self) -> u64 {
        16 * self.terms as u64 * self.list.len() as u64
    }

    /// Where a slice stands; one that is gone behind all others.
    pub(crate) fn place(&self, key: &SliceKey) -> Option<u32> {
        let place = self
            .list
            .binary_search_by(|slice| slice.facts.slice.cmp(key));
        let gone = || {
            let place = self.gone.binary_search(key).ok()?;
            Some(self.list.len().max(1) + place)
        };
        place.ok().or_else(gone).map(|place| place as u32)
    }

    /// The slice of an id; `None` without slices.
    pub(crate) fn key(&self, id: u32) -> Option<&SliceKey> {
        let place = (id as usize).checked_div(self.terms)?;
        let gone = || self.gone.get(place.checked_sub(self.list.len().max(1))?);
        let slice = self.list.get(place).map(|slice| &slice.facts.slice);
        slice.or_else(gone)
    }

    /// By slice of another table: where it stands here. A table without slices has the ids of its
    /// terms once, and no pairs.
    pub(crate) fn places(&self, of: &Self) -> Vec<Option<u32>> {
        if of.list.is_empty() {
            return vec![None];
        }
        let keys = of.list.iter().map(|slice| &slice.facts.slice);
        keys.map(|key| self.place(key)).collect()
    }

    fn entry(&mut self, key: &SliceKey) -> &mut Slice {
        let place = self
            .list
            .binary_search_by(|slice| slice.facts.slice.cmp(key));
        let place = place.unwrap_or_else(|place| {
            let slice = Slice {
                facts: SliceFacts {
                    slice: key.clone(),
                    ..SliceFacts::default()
                },
                tokens: vec![0; self.terms],
                documents: vec![0; self.terms],
            };
            self.list.insert(place, slice);
            place
        });
        &mut self.list[place]
    }

    /// Adds rows and features, or takes them away.
    pub(crate) fn tally(&mut self, more: &SliceFacts, taken: bool) -> Result<(), EngineError> {
        if more.rows == 0 {
            return Ok(());
        }
        let facts = &mut self.entry(&more.slice).facts;
        facts.rows = change(facts.rows, more.rows, taken).ok_or_else(|| never(&more.slice))?;
        facts.tokens =
            change(facts.tokens, more.tokens, taken).ok_or_else(|| never(&more.slice))?;
        Ok(())
    }

    /// Adds the counts of a term, or takes them away.
    pub(crate) fn count(
        &mut self,
        key: &SliceKey,
        id: u32,
        more: &TermCount,
        taken: bool,
    ) -> Result<(), EngineError> {
        let (slice, id) = (self.entry(key), id as usize);
        let sums = change(slice.tokens[id], more.tokens, taken).zip(change(
            slice.documents[id],
            more.documents,
            taken,
        ));
        let Some(sums) = sums else {
            return Err(EngineError::Setting(format!(
                "`{}` has count {} in {}, and {} would be taken out: what is to be taken out was never counted; nothing was changed",
                more.term,
                slice.tokens[id],
                shown(key),
                more.tokens
            )));
        };
        (slice.tokens[id], slice.documents[id]) = sums;
        Ok(())
    }

    /// Adds the slices of another table; `map` leads from its terms to those here.
    pub(crate) fn add(
        &mut self,
        other: &Self,
        map: impl Fn(u32) -> Option<u32>,
    ) -> Result<(), EngineError> {
        for slice in &other.list {
            self.tally(&slice.facts, false)?;
            for id in 0..other.terms as u32 {
                let Some(to) = map(id) else { continue };
                let counts = TermCount {
                    term: String::new(),
                    tokens: slice.tokens[id as usize],
                    documents: slice.documents[id as usize],
                };
                self.count(&slice.facts.slice, to, &counts, false)?;
            }
        }
        Ok(())
    }

    /// Lets go of slices that have no row left.
    pub(crate) fn settle(&mut self) -> Result<(), EngineError> {
        for slice in self.list.iter().filter(|slice| slice.facts.rows == 0) {
            if slice.facts.tokens > 0 || slice.tokens.iter().any(|count| *count > 0) {
                return Err(never(&slice.facts.slice));
            }
        }
        let (left, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.list)
            .into_iter()
            .partition(|slice| slice.facts.rows > 0);
        self.list = left;
        self.gone = gone.into_iter().map(|slice| slice.facts.slice).collect();
        if self.list.len() > MOST_SLICES {
            return Err(too_many());
        }
        self.ids_with_gone().map(|_| ())
    }

    /// Columns of the `vocab` of a sliced job.
    pub(crate) fn columns(&self, vocabulary: &Vocabulary) -> Result<Vec<ArrayRef>, EngineError> {
        let ids = self.ids()?;
        let stored = |value: u64| {
            i64::try_from(value).map_err(|_| {
                EngineError::Setting(format!("{value} is beyond what a table can store"))
            })
        };
        let terms = self.terms.max(1) as u32;
        let numbers = |of: fn(&Slice) -> &[u64]| -> Result<ArrayRef, EngineError> {
            let numbers = self.list.iter().flat_map(of).map(|count| stored(*count));
            let mut numbers = numbers.collect::<Result<Vec<i64>, _>>()?;
            numbers.resize(ids as usize, 0);
            Ok(Arc::new(Int64Array::from(numbers)))
        };
        let key = |id: u32| self.list.get((id / terms) as usize)?.facts.slice.as_deref();
        Ok(vec![
            Arc::new(Int32Array::from_iter_values(0..ids as i32)),
            Arc::new(StringArray::from_iter_values(
                (0..ids).map(|id| vocabulary.term(id % terms)),
            )),
            numbers(|slice| &slice.tokens)?,
            numbers(|slice| &slice.documents)?,
            Arc::new(StringArray::from_iter((0..ids).map(key))),
        ])
    }
}

fn change(had: u64, more: u64, taken: bool) -> Option<u64> {
    if taken {
        had.checked_sub(more)
    } else {
        had.checked_add(more)
    }
}

/// A slice in a message.
pub(crate) fn shown(key: &SliceKey) -> String {
    key.as_ref().map_or_else(
        || "the slice NULL".to_owned(),
        |key| format!("slice `{key}`"),
    )
}

/// The error of a slice whose rows and words are gone, and not its pairs.
pub(crate) fn pairs_left(key: Option<&SliceKey>) -> EngineError {
    EngineError::Setting(format!(
        "all rows of {} would be taken out, and pairs of it would be left: what is to be taken out was never counted so; nothing was changed",
        key.map_or_else(|| "a slice".to_owned(), shown)
    ))
}

fn never(key: &SliceKey) -> EngineError {
    EngineError::Setting(format!(
        "{} has less than what would be taken out: what is to be taken out was never counted; nothing was changed",
        shown(key)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(key: Option<&str>, rows: u64) -> SliceFacts {
        SliceFacts {
            slice: key.map(str::to_owned),
            rows,
            tokens: 2 * rows,
        }
    }

    fn term(tokens: u64) -> TermCount {
        TermCount {
            term: "hen".into(),
            tokens,
            documents: 1,
        }
    }

    #[test]
    fn slices_stand_by_their_bytes_and_go_with_their_last_row() {
        let mut slices = Slices::new(2);
        for key in [Some("é"), None, Some("b")] {
            slices.tally(&facts(key, 3), false).unwrap();
        }
        let key = |slices: &Slices, place: usize| slices.list[place].facts.slice.clone();
        assert_eq!(key(&slices, 0), None);
        assert_eq!(key(&slices, 2).as_deref(), Some("é"));
        slices.count(&None, 1, &term(5), false).unwrap();
        assert_eq!((slices.tokens(1), slices.tokens(3)), (5, 0));
        let all = slices.clone();
        slices.tally(&facts(Some("b"), 3), true).unwrap();
        slices.settle().unwrap();
        // What is gone stands behind, until its pairs are known to be gone too.
        assert_eq!(slices.places(&all), [Some(0), Some(2), Some(1)]);
        assert_eq!(slices.ids().unwrap(), 4);
        assert_eq!(slices.ids_with_gone().unwrap(), 6);
        assert_eq!(slices.key(5), Some(&Some("b".to_owned())));
        assert_eq!(slices.key(1), Some(&None));
        assert_eq!(slices.key(6), None);
        assert_eq!(slices.facts().len(), 2);
        let error = slices.count(&None, 1, &term(6), true).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`hen` has count 5 in the slice NULL")
        );
        assert!(slices.tally(&facts(Some("é"), 4), true).is_err());
    }

    #[test]
    fn a_slice_that_lost_its_rows_but_not_its_words_was_never_counted_so() {
        let mut slices = Slices::new(1);
        slices.tally(&facts(None, 1), false).unwrap();
        slices.count(&None, 0, &term(2), false).unwrap();
        slices.tally(&facts(None, 1), true).unwrap();
        assert!(slices.settle().is_err());
        assert_eq!(Slices::new(3).ids().unwrap(), 3);
        assert!(Slices::new(1 << 31).ids().is_err());
    }
}
