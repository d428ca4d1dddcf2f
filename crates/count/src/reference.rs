//! The slow, obvious versions that the fast ones are compared with.

use std::collections::BTreeMap;

use crate::settings::{Context, CountSettings, OUT_OF_VOCABULARY, OutOfVocabulary, Side, Weight};
use crate::sink::PairColumns;

/// Counts of pairs in weight units, exact.
pub(crate) type Table = BTreeMap<(u32, u32), u128>;

/// One row: the features of both sides; windows and documents use `left` only.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    pub left: Vec<u32>,
    pub right: Vec<u32>,
}

fn distinct(ids: &[u32]) -> Vec<u32> {
    let mut ids: Vec<u32> = ids.to_vec();
    ids.retain(|&id| id != OUT_OF_VOCABULARY);
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Adds one row to the table by nested loops over its features.
pub(crate) fn add_row(settings: &CountSettings, row: &Row, table: &mut Table) {
    let mut add = |left, right, units| *table.entry((left, right)).or_insert(0) += units;
    match &settings.context {
        Context::Document { max_features } => {
            let mut ids = distinct(&row.left);
            ids.truncate(max_features.map_or(usize::MAX, |most| most as usize));
            for (index, &left) in ids.iter().enumerate() {
                for &right in &ids[index + 1..] {
                    add(left, right, 1);
                }
            }
        }
        Context::Row => {
            for &left in &distinct(&row.left) {
                for &right in &distinct(&row.right) {
                    add(left, right, 1);
                }
            }
        }
        Context::Window(window) => {
            let mut ids = row.left.clone();
            if window.out_of_vocabulary == OutOfVocabulary::Removed {
                ids.retain(|&id| id != OUT_OF_VOCABULARY);
            }
            let size = u128::from(window.size);
            // The least number that all distances divide: one distance after the other, the
            // least multiple of the number so far.
            let unit = (1..=size).fold(1, |unit, distance| {
                (1..=distance)
                    .map(|factor| unit * factor)
                    .find(|multiple| multiple % distance == 0)
                    .unwrap_or(unit)
            });
            for later in 0..ids.len() {
                for earlier in later.saturating_sub(window.size as usize)..later {
                    let (first, second) = (ids[earlier], ids[later]);
                    if first == OUT_OF_VOCABULARY || second == OUT_OF_VOCABULARY {
                        continue;
                    }
                    let distance = (later - earlier) as u128;
                    let units = match window.weight {
                        Weight::Uniform => 1,
                        Weight::Harmonic => unit / distance,
                        Weight::Dynamic => size - distance + 1,
                    };
                    match window.side {
                        Side::Symmetric => add(first.min(second), first.max(second), units),
                        Side::Right => add(first, second, units),
                        Side::Left => add(second, first, units),
                    }
                }
            }
        }
    }
}

/// The table of many rows.
pub(crate) fn count(settings: &CountSettings, rows: &[Row]) -> Table {
    let mut table = Table::new();
    for row in rows {
        add_row(settings, row, &mut table);
    }
    table
}

/// Finished columns as a table; panics when they are not sorted.
pub(crate) fn table_of(columns: &PairColumns) -> Table {
    let keys: Vec<(u32, u32)> = columns
        .left
        .iter()
        .copied()
        .zip(columns.right.iter().copied())
        .collect();
    assert!(
        keys.windows(2).all(|two| two[0] < two[1]),
        "pairs out of order"
    );
    keys.into_iter()
        .zip(columns.counts.iter().map(|&count| u128::from(count)))
        .collect()
}
