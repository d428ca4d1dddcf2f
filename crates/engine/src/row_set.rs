//! Rows of a file by their number, from 0, as ranges.

use std::fmt;
use std::ops::Range;

use arrow::array::BooleanArray;
use arrow::buffer::BooleanBuffer;
use serde::{Deserialize, Serialize};

/// Sorted ranges of row numbers that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSet(Vec<Range<u64>>);

impl RowSet {
    /// All rows below `rows`.
    #[must_use]
    pub fn all(rows: u64) -> Self {
        Self((rows > 0).then_some(0..rows).into_iter().collect())
    }

    /// Adds a row behind all others.
    pub fn push(&mut self, row: u64) {
        match self.0.last_mut() {
            Some(last) if last.end == row => last.end += 1,
            _ => self.0.push(row..row + 1),
        }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rows of both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all: Vec<Range<u64>> = self.0.iter().chain(&other.0).cloned().collect();
        all.sort_by_key(|range| range.start);
        let mut ranges: Vec<Range<u64>> = Vec::with_capacity(all.len());
        for range in all {
            match ranges.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => ranges.push(range),
            }
        }
        Self(ranges)
    }

    /// The rows that `other` does not have.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut others = other.0.iter().peekable();
        for range in &self.0 {
            let mut start = range.start;
            while let Some(taken) = others.peek() {
                if taken.start >= range.end {
                    break;
                }
                if start < taken.start {
                    left.push(start..taken.start);
                }
                start = start.max(taken.end);
                if taken.end > range.end {
                    break;
                }
                others.next();
            }
            if start < range.end {
                left.push(start..range.end);
            }
        }
        Self(left)
    }

    /// Which of the `rows` rows from `first` on are in the set; `None` when all are.
    #[must_use]
    pub fn mask(&self, first: u64, rows: usize) -> Option<BooleanArray> {
        let end = first + rows as u64;
        let from = self.0.partition_point(|range| range.end <= first);
        let ranges = self.0[from..].iter().take_while(|range| range.start < end);
        let mut chosen = vec![false; rows];
        let mut count = 0;
        for range in ranges {
            let part = range.start.max(first) - first..range.end.min(end) - first;
            count += part.end - part.start;
            chosen[part.start as usize..part.end as usize].fill(true);
        }
        (count < rows as u64).then(|| BooleanArray::new(BooleanBuffer::from(chosen), None))
    }

    /// Reads what [`fmt::Display`] wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for part in text.strip_prefix("rows ")?.split(", ") {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?;
            if range.start >= range.end || ranges.last().is_some_and(|l| l.end >= range.start) {
                return None;
            }
            ranges.push(range);
        }
        Some(Self(ranges))
    }
}

impl fmt::Display for RowSet {
    /// As `rows 0, 4-7`; the empty set is `rows `.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("rows ")?;
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                out.write_str(", ")?;
            }
            if range.end == range.start + 1 {
                write!(out, "{}", range.start)?;
            } else {
                write!(out, "{}-{}", range.start, range.end - 1)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn of(rows: &BTreeSet<u64>) -> RowSet {
        let mut set = RowSet::default();
        rows.iter().for_each(|row| set.push(*row));
        set
    }

    proptest! {
        #[test]
        fn sets_of_ranges_behave_as_sets_of_rows(
            a in proptest::collection::btree_set(0_u64..40, 0..30),
            b in proptest::collection::btree_set(0_u64..40, 0..30),
            first in 0_u64..30, rows in 0_usize..20,
        ) {
            let set = of(&a);
            prop_assert_eq!(set.len(), a.len() as u64);
            prop_assert_eq!(set.minus(&of(&b)), of(&a.difference(&b).copied().collect()));
            prop_assert_eq!(set.union(&of(&b)), of(&a.union(&b).copied().collect()));
            if !a.is_empty() {
                prop_assert_eq!(RowSet::parse(&set.to_string()), Some(set.clone()));
            }
            let expected: Vec<bool> = (first..first + rows as u64).map(|row| a.contains(&row)).collect();
            match set.mask(first, rows) {
                None => prop_assert!(expected.iter().all(|chosen| *chosen)),
                Some(mask) => prop_assert_eq!(mask.values().iter().collect::<Vec<_>>(), expected),
            }
        }
    }

    #[test]
    fn what_is_no_list_of_rows_is_not_read() {
        for text in [
            "",
            "rows ",
            "rows 3-2",
            "rows 1, 1",
            "rows 5, 4",
            "rows x",
            "row 1",
        ] {
            assert_eq!(RowSet::parse(text), None, "{text}");
        }
        assert_eq!(RowSet::parse("rows 0, 4-7").map(|set| set.len()), Some(5));
    }
}
