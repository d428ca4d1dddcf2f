//! Cuts the input into units: consecutive row groups of files, about one block of tokens each.
//!
//! A unit is what is done or not done: it has a number, its work depends on nothing but the plan,
//! and its results carry its number. Sizes come from the footers, so one huge file becomes many
//! units and a million small files become few.

use serde::{Deserialize, Serialize};

use crate::scan::CorpusFile;

/// One row group to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Index of the file in the plan.
    pub file: usize,
    /// Index of the row group in the file.
    pub row_group: usize,
    /// Bytes of its text column, decompressed.
    pub bytes: u64,
}

/// Slices that are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Its number, from 0.
    pub number: usize,
    /// What it reads, in order.
    pub slices: Vec<Slice>,
}

impl Unit {
    /// Bytes of its text columns, decompressed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.slices.iter().map(|slice| slice.bytes).sum()
    }
}

/// Cuts `files` into units of about `unit_bytes`; a row group is never cut.
#[must_use]
pub fn plan(files: &[CorpusFile], unit_bytes: u64) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let (mut slices, mut held) = (Vec::new(), 0_u64);
    for (file, corpus_file) in files.iter().enumerate() {
        for (row_group, sizes) in corpus_file.row_groups.iter().enumerate() {
            let bytes = sizes.uncompressed;
            if held > 0 && held + bytes > unit_bytes {
                units.push(Unit {
                    number: units.len(),
                    slices: std::mem::take(&mut slices),
                });
                held = 0;
            }
            slices.push(Slice {
                file,
                row_group,
                bytes,
            });
            held += bytes;
        }
    }
    if !slices.is_empty() {
        units.push(Unit {
            number: units.len(),
            slices,
        });
    }
    units
}

/// Cuts what is added, and behind it what is taken; no unit is half of both. Gives the units, and
/// how many of them are added. A file that is taken has its number behind those that are added.
#[must_use]
pub fn plan_both(add: &[CorpusFile], take: &[CorpusFile], unit_bytes: u64) -> (Vec<Unit>, usize) {
    let mut units = plan(add, unit_bytes);
    let added = units.len();
    for mut unit in plan(take, unit_bytes) {
        unit.number = units.len();
        for slice in &mut unit.slices {
            slice.file += add.len();
        }
        units.push(unit);
    }
    (units, added)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::input::InputFile;
    use crate::scan::RowGroup;

    fn files(sizes: &[Vec<u64>]) -> Vec<CorpusFile> {
        let file = |groups: &Vec<u64>| {
            let row_groups = groups
                .iter()
                .map(|bytes| RowGroup {
                    rows: 1,
                    compressed: 1,
                    uncompressed: *bytes,
                })
                .collect();
            let input = InputFile {
                uri: "file:///x".into(),
                size: 1,
                etag: String::new(),
            };
            CorpusFile::of_row_groups(input, row_groups)
        };
        sizes.iter().map(file).collect()
    }

    proptest! {
        #[test]
        fn every_row_group_is_in_one_unit_and_units_are_no_larger_than_asked(
            sizes in proptest::collection::vec(proptest::collection::vec(0_u64..50, 0..6), 0..8),
            limit in 1_u64..100,
        ) {
            let units = plan(&files(&sizes), limit);
            let planned: Vec<(usize, usize)> = units
                .iter()
                .flat_map(|unit| unit.slices.iter().map(|slice| (slice.file, slice.row_group)))
                .collect();
            let all: Vec<(usize, usize)> = sizes
                .iter()
                .enumerate()
                .flat_map(|(file, groups)| (0..groups.len()).map(move |group| (file, group)))
                .collect();
            prop_assert_eq!(planned, all);
            for (number, unit) in units.iter().enumerate() {
                prop_assert_eq!(unit.number, number);
                prop_assert!(unit.bytes() <= limit || unit.slices.iter().filter(|s| s.bytes > 0).count() == 1);
            }
        }
    }
}
