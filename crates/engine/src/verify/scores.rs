//! `pmi`.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use arrow::record_batch::RecordBatch;

use super::terms::{Vocab, digest};
use super::{Checker, Findings};
use crate::error::EngineError;
use crate::job::parse;
use crate::score::RecordedScore;

type Pair = (u32, u32);

impl Checker<'_> {
    pub(super) fn pmi(&mut self, vocab: &Vocab) -> Result<(), EngineError> {
        let Some(state) = &self.job.pmi else {
            return Ok(());
        };
        let mut files: BTreeMap<String, (Pair, Pair)> = BTreeMap::new();
        self.scan("pmi", "", state, |findings, file, batch| {
            let last = files.get(file.name()).map(|(_, last)| *last);
            match check(findings, vocab, batch, last) {
                None => findings.add("pmi", "columns and types are those of the table", || {
                    format!("`{}`: they are not, or a count is missing", file.name())
                }),
                Some(None) => {}
                Some(Some((first, last))) => {
                    let range = files.entry(file.name().to_owned()).or_insert((first, last));
                    range.1 = last;
                }
            }
        })?;
        let mut ranges: Vec<(Pair, Pair)> = files.into_values().collect();
        ranges.sort_unstable();
        for two in ranges.windows(2).filter(|two| two[0].1 >= two[1].0) {
            self.findings
                .add("pmi", "files have ranges of their own", || {
                    format!("one ends at {:?}, one begins at {:?}", two[0].1, two[1].0)
                });
        }
        if let Some((settings, _)) = self.job.pmi_settings()?
            && !self.job.pmi_is_stale()?
            && parse::<RecordedScore>(&settings)?.min_pair_count <= 0.0
        {
            let rows = self.rows.get("pmi").copied().unwrap_or(0);
            self.findings
                .same("pmi", "as many rows as pairs", self.facts.pairs, rows);
        }
        Ok(())
    }
}

/// First and last pair of a batch (`None` for one of unknown terms only); the outer `None` when it is
/// not one of scores.
fn check(
    findings: &mut Findings,
    vocab: &Vocab,
    batch: &RecordBatch,
    before: Option<Pair>,
) -> Option<Option<(Pair, Pair)>> {
    let words = |name: &str| {
        let column = cast(batch.column_by_name(name)?, &DataType::Utf8).ok()?;
        (column.null_count() == 0).then(|| column.as_string::<i32>().clone())
    };
    let (left, right) = (words("left")?, words("right")?);
    for name in ["n_xy", "n_x", "n_y", "n"] {
        let column = batch.column_by_name(name)?;
        let column = column.as_primitive_opt::<Float64Type>()?;
        if column.null_count() > 0 {
            return None;
        }
        for (row, count) in column.values().iter().enumerate() {
            if !(*count > 0.0 && count.is_finite()) {
                findings.add("pmi", "every count is a number above zero", || {
                    let (left, right) = (left.value(row), right.value(row));
                    format!("`{left}`, `{right}`: {name} is {count}")
                });
            }
        }
    }
    let slices = match &vocab.slices {
        None => None,
        Some(places) => {
            let keys = cast(batch.column_by_name("slice")?, &DataType::Utf8).ok()?;
            Some((places, keys.as_string::<i32>().clone()))
        }
    };
    let (mut first, mut last) = (None, before);
    for row in 0..batch.num_rows() {
        let (x, y) = (left.value(row), right.value(row));
        let ids = (vocab.ids.get(&digest(x)), vocab.ids.get(&digest(y)));
        let (Some(&left_id), Some(&right_id)) = ids else {
            findings.add("pmi", "terms are those of the vocabulary", || {
                format!("`{x}`, `{y}`")
            });
            continue;
        };
        let offset = match &slices {
            None => 0,
            Some((places, keys)) => {
                let key = keys.is_valid(row).then(|| keys.value(row).to_owned());
                let Some(place) = places.get(&key) else {
                    findings.add("pmi", "slices are those of the job", || format!("{key:?}"));
                    continue;
                };
                place * vocab.terms as u32
            }
        };
        let pair = (offset + left_id, offset + right_id);
        if let Some(last) = last
            && pair <= last
        {
            findings.add(
                "pmi",
                "rows stand in the order of the pairs, none twice",
                || format!("`{x}`, `{y}`: {pair:?} after {last:?}"),
            );
        }
        first = first.or(Some(pair));
        last = Some(pair);
    }
    Some(first.zip(last))
}
