//! `tail`, and the sums of `vocab` that go with it.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use pmill_count::{Distinct, HashRow, TailSettings};

use super::terms::Vocab;
use super::{Checker, Findings};
use crate::error::EngineError;
use crate::tail::{COUNT_MIN, HYPERLOGLOG, StoredTail, TailFacts};

/// A number that is this many standard errors away is no chance.
const PLAUSIBLE_ERRORS: f64 = 6.0;

/// The parts of the sketch that are looked at, one at a time.
struct Parts<'a> {
    stored: &'a StoredTail,
    facts: &'a TailFacts,
}

impl Checker<'_> {
    pub(super) fn tail(&mut self, vocab: &Vocab) -> Result<(), EngineError> {
        let settings = self.settings.given.sketch.clone();
        let facts = self.facts.tail.clone();
        let (Some(sketch), Some(facts), Some(state)) = (settings, facts, &self.job.tail) else {
            let parts = [
                self.settings.given.sketch.is_some(),
                self.facts.tail.is_some(),
                self.job.tail.is_some(),
            ];
            if parts.contains(&true) {
                self.findings.add(
                    "tail",
                    "a job with a sketch has its table and facts",
                    || format!("settings, facts, table: {parts:?}"),
                );
            }
            return Ok(());
        };
        self.scan("tail", "hash", state, |_, _, _| {})?;
        let (mut left, mut right) = (0_u128, 0_u128);
        let exact = u64::from(sketch.exact_terms);
        self.scan_again("vocab", &self.job.vocab, |findings, batch| {
            for (name, sum) in [("tail_left", &mut left), ("tail_right", &mut right)] {
                let column = batch.column_by_name(name);
                let column = column.and_then(|column| column.as_primitive_opt::<Int64Type>());
                let Some(column) = column else {
                    findings.add(
                        "vocab",
                        "terms have the sums of their sketched pairs",
                        || format!("no column `{name}`"),
                    );
                    continue;
                };
                *sum += column
                    .values()
                    .iter()
                    .map(|n| u128::from(n.unsigned_abs()))
                    .sum::<u128>();
            }
        })?;
        for (rule, sum) in [
            ("sums of sketched pairs by left term add up", left),
            ("sums of sketched pairs by right term add up", right),
        ] {
            self.findings
                .same("vocab", rule, facts.units.clone(), sum.to_string());
        }
        let Some(stored) = StoredTail::open(self.warehouse, self.job, self.runtime)? else {
            return Ok(());
        };
        let parts = Parts {
            stored: &stored,
            facts: &facts,
        };
        for hash in 0..sketch.hashes {
            if let Err(error) = parts.row(&mut self.findings, &sketch, hash) {
                self.findings
                    .add("tail", "every hash row is there and decodes", || {
                        format!("hash row {hash}: {error}")
                    });
            }
        }
        // Pairs of which not both terms are exact.
        let (terms, exact) = (vocab.len() as f64, exact.min(vocab.len() as u64) as f64);
        let most = terms * terms - exact * exact;
        if let Err(error) = parts.distinct(&mut self.findings, most) {
            self.findings.add(
                "tail",
                "the number of distinct pairs is there and decodes",
                || error.to_string(),
            );
        }
        Ok(())
    }
}

impl Parts<'_> {
    fn row(
        &self,
        findings: &mut Findings,
        sketch: &TailSettings,
        hash: u8,
    ) -> Result<(), EngineError> {
        let image = self.stored.image(COUNT_MIN, Some(hash))?;
        let (cells, total) = HashRow::cells(&image)?;
        let sum: u128 = cells.iter().map(|cell| u128::from(*cell)).sum();
        let expected = &self.facts.units;
        for (rule, found) in [
            (
                "the cells of every hash row add up to the sketched counts",
                sum,
            ),
            (
                "every hash row tells the sum of the sketched counts",
                total.into(),
            ),
        ] {
            if *expected != found.to_string() {
                findings.add("tail", rule, || {
                    format!("hash row {hash}: {found}, expected {expected}")
                });
            }
        }
        HashRow::from_image(sketch, hash, &image)?;
        Ok(())
    }

    fn distinct(&self, findings: &mut Findings, most: f64) -> Result<(), EngineError> {
        let found = Distinct::from_image(&self.stored.image(HYPERLOGLOG, None)?)?.estimate();
        let rule = "the number of distinct pairs is the one that the facts tell";
        findings.same("tail", rule, self.facts.distinct, found);
        let units: f64 = self.facts.units.parse().unwrap_or(0.0);
        let error = 1.0 + PLAUSIBLE_ERRORS * TailSettings::distinct_error();
        // Each distinct pair has at least one unit; what was taken out is still in the number.
        let most = match self.facts.distinct_is_upper_bound {
            true => most,
            false => most.min(units),
        };
        if found as f64 > (most * error).ceil() {
            findings.add("tail", "no more distinct pairs than there can be", || {
                format!("about {found}, at most {most}")
            });
        }
        if found == 0 && units > 0.0 {
            findings.add("tail", "sketched counts are of some pair", || {
                format!("{units} units, no pair")
            });
        }
        Ok(())
    }
}
