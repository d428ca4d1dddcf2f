//! The scored table in memory: one row for each left id, as the files hold it, so that nothing is
//! built but the places where rows begin.
//!
//! Memory: 12 bytes a pair and 8 bytes a term.

use std::sync::Mutex;

use pmill_simd::zeros;

use crate::error::EngineError;
use crate::rows::ScoredPairs;

/// Score and natural count of one pair, in single precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pair {
    /// NaN: the pair has no finite score, which is as if the table did not hold it.
    pub(super) score: f32,
    pub(super) count: f32,
}

/// No such pair.
pub(super) const NONE: Pair = Pair {
    score: f32::NAN,
    count: 0.0,
};

/// Pairs by left id, then right id.
#[derive(Debug)]
pub(super) struct PairTable {
    /// Where each row begins in the other two; one more than terms.
    row_starts: Vec<usize>,
    rights: Vec<u32>,
    /// Score and count of each.
    numbers: Vec<[f32; 2]>,
}

/// The pairs of one left id.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// Place of the first of them among all pairs.
    pub(super) start: usize,
    /// Rising.
    pub(super) rights: &'a [u32],
    pub(super) numbers: &'a [[f32; 2]],
}

impl Row<'_> {
    /// The pair at a place of the row; none beyond it.
    #[inline]
    pub(super) fn pair(&self, place: usize) -> Pair {
        match self.numbers.get(place) {
            Some([score, count]) => Pair {
                score: *score,
                count: *count,
            },
            None => NONE,
        }
    }
}

/// Bytes of a table of `terms` terms and `pairs` pairs.
pub(super) fn bytes(terms: usize, pairs: u64) -> u64 {
    let pair = (size_of::<u32>() + size_of::<[f32; 2]>()) as u64;
    pairs.saturating_mul(pair) + (terms as u64 + 1) * size_of::<usize>() as u64
}

/// Where the pairs of one file go.
struct Part<'a> {
    rights: &'a mut [u32],
    numbers: &'a mut [[f32; 2]],
    filled: usize,
    /// Left ids in rising order, each with its number of pairs.
    rows: Vec<(u32, usize)>,
}

impl PairTable {
    /// Takes the pairs of files with so many pairs. `read` gives them, file by file by several threads,
    /// each file's in its order.
    ///
    /// # Errors
    /// Those of `read`; ids that do not rise from pair to pair and from file to file.
    pub(super) fn load(
        terms: usize,
        lengths: &[u64],
        read: impl FnOnce(
            &(dyn Fn(usize, &ScoredPairs) -> Result<(), EngineError> + Sync),
        ) -> Result<(), EngineError>,
    ) -> Result<Self, EngineError> {
        let lengths: Vec<usize> = lengths
            .iter()
            .map(|pairs| usize::try_from(*pairs).unwrap_or(usize::MAX))
            .collect();
        let all = lengths.iter().sum();
        let (mut rights, mut numbers) = (zeros(all), zeros(all));
        let mut rest: (&mut [u32], &mut [[f32; 2]]) = (&mut rights, &mut numbers);
        let mut parts = Vec::with_capacity(lengths.len());
        for length in lengths {
            let (rights, more_rights) = rest.0.split_at_mut(length);
            let (numbers, more_numbers) = rest.1.split_at_mut(length);
            rest = (more_rights, more_numbers);
            parts.push(Mutex::new(Part {
                rights,
                numbers,
                filled: 0,
                rows: Vec::new(),
            }));
        }
        let panicked = || EngineError::Bug("a worker panicked".into());
        read(&|file, scored| parts[file].lock().map_err(|_| panicked())?.push(scored))?;
        let mut row_starts = vec![0; terms + 1];
        let mut last: Option<(u32, u32)> = None;
        for part in parts {
            let part = part.into_inner().map_err(|_| panicked())?;
            if part.filled < part.rights.len() {
                return Err(EngineError::Bug(
                    "a file holds fewer pairs than its commit says".into(),
                ));
            }
            if let (Some((left, _)), Some(right)) = (part.rows.first(), part.rights.first())
                && last.is_some_and(|last| last >= (*left, *right))
            {
                return Err(out_of_order());
            }
            if let (Some((left, _)), Some(right)) = (part.rows.last(), part.rights.last()) {
                last = Some((*left, *right));
            }
            for (left, number) in part.rows {
                row_starts[left as usize + 1] += number;
            }
        }
        for term in 0..terms {
            row_starts[term + 1] += row_starts[term];
        }
        Ok(Self {
            row_starts,
            rights,
            numbers,
        })
    }

    /// Number of terms.
    pub(super) fn terms(&self) -> usize {
        self.row_starts.len() - 1
    }

    /// The pairs of a left id.
    #[inline]
    pub(super) fn row(&self, left: u32) -> Row<'_> {
        let range = self.row_starts[left as usize]..self.row_starts[left as usize + 1];
        Row {
            start: range.start,
            rights: &self.rights[range.clone()],
            numbers: &self.numbers[range],
        }
    }
}

fn out_of_order() -> EngineError {
    EngineError::Bug("the files of `pairs` are not in the order of their ids".into())
}

impl Part<'_> {
    /// Appends pairs, whose ids go on rising.
    fn push(&mut self, scored: &ScoredPairs) -> Result<(), EngineError> {
        let mut before = match self.rows.last() {
            Some((left, _)) => Some((*left, self.rights[self.filled - 1])),
            None => None,
        };
        let range = self.filled..self.filled + scored.len();
        let (Some(rights), Some(numbers)) = (
            self.rights.get_mut(range.clone()),
            self.numbers.get_mut(range.clone()),
        ) else {
            return Err(EngineError::Bug(
                "a file holds more pairs than its commit says".into(),
            ));
        };
        for (((left, right, count, score), to), numbers) in scored.rows().zip(rights).zip(numbers) {
            if before.is_some_and(|before| before >= (left, right)) {
                return Err(out_of_order());
            }
            match self.rows.last_mut() {
                Some((row, number)) if *row == left => *number += 1,
                _ => self.rows.push((left, 1)),
            }
            before = Some((left, right));
            *to = right;
            let score = if score.is_finite() {
                score as f32
            } else {
                f32::NAN
            };
            *numbers = [score, count as f32];
        }
        self.filled = range.end;
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A table of these pairs, which rise, in files of `cut` pairs each.
    pub(crate) fn table(terms: usize, all: &[(u32, u32, Pair)], cut: usize) -> PairTable {
        let files: Vec<_> = all.chunks(cut).collect();
        let lengths: Vec<u64> = files.iter().map(|file| file.len() as u64).collect();
        PairTable::load(terms, &lengths, |push| {
            for (number, file) in files.iter().enumerate().rev() {
                for batch in file.chunks(3) {
                    let rows = batch.iter().map(|(left, right, pair)| {
                        let (count, score) = (f64::from(pair.count), f64::from(pair.score));
                        (*left, *right, count, score)
                    });
                    push(number, &rows.collect())?;
                }
            }
            Ok(())
        })
        .unwrap()
    }

    fn pair(number: u32) -> Pair {
        Pair {
            score: number as f32 - 2.0,
            count: number as f32 + 1.0,
        }
    }

    #[test]
    fn rows_hold_their_pairs_wherever_files_are_cut() {
        let all: Vec<(u32, u32, Pair)> = [(0, 1), (0, 4), (2, 0), (2, 2), (2, 3), (5, 6)]
            .into_iter()
            .enumerate()
            .map(|(number, (left, right))| (left, right, pair(number as u32)))
            .collect();
        for cut in 1..=6 {
            let table = table(7, &all, cut);
            let mut found = Vec::new();
            for left in 0..7 {
                let row = table.row(left);
                assert_eq!(row.start, found.len());
                let rights = row.rights.iter().enumerate();
                found.extend(rights.map(|(place, right)| (left, *right, row.pair(place))));
                assert!(row.pair(row.rights.len()).score.is_nan());
            }
            assert_eq!(found, all);
        }
        assert!(table(3, &[], 4).row(2).rights.is_empty());
    }

    #[test]
    fn a_score_that_is_not_finite_is_none() {
        let infinite = Pair {
            score: f32::NEG_INFINITY,
            count: 1.0,
        };
        let table = table(2, &[(0, 1, infinite)], 1);
        assert!(table.row(0).pair(0).score.is_nan());
    }

    #[test]
    fn files_that_break_their_promises_are_errors() {
        let load = |lengths: &[u64], files: &[&[(u32, u32)]]| {
            let loaded = PairTable::load(9, lengths, |push| {
                for (number, file) in files.iter().enumerate() {
                    let rows = file.iter().map(|(left, right)| (*left, *right, 1.0, 1.0));
                    push(number, &rows.collect())?;
                }
                Ok(())
            });
            loaded.map_err(|error| error.to_string())
        };
        assert!(load(&[2, 1], &[&[(1, 2), (1, 3)], &[(1, 4)]]).is_ok());
        let order = "are not in the order of their ids";
        for (lengths, files) in [
            (&[2_u64, 1][..], &[&[(1, 3), (1, 2)][..], &[(2, 4)]][..]),
            (&[2], &[&[(1, 3), (1, 3)]]),
            (&[2], &[&[(3, 4), (1, 5)]]),
            (&[1, 1], &[&[(3, 4)], &[(3, 4)]]),
            (&[1, 0, 1], &[&[(3, 4)], &[], &[(2, 8)]]),
        ] {
            assert!(load(lengths, files).unwrap_err().contains(order));
        }
        let fewer = load(&[3], &[&[(1, 2), (1, 3)]]).unwrap_err();
        assert!(fewer.contains("fewer pairs than its commit says"));
        let more = load(&[1], &[&[(1, 2), (1, 3)]]).unwrap_err();
        assert!(more.contains("more pairs than its commit says"));
    }
}
