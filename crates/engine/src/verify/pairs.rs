//! `pairs`.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use pmill_count::{Side, Weight};

use super::skew::{Skew, Spread};
use super::terms::Vocab;
use super::{Checker, Findings};
use crate::error::EngineError;
use crate::settings::ContextKind;

impl Checker<'_> {
    pub(super) fn pairs(&mut self, vocab: &Vocab) -> Result<Skew, EngineError> {
        let context = self.settings.given.context.clone();
        let document = context.kind == ContextKind::Document;
        let symmetric = document || context.side == Side::Symmetric;
        let mut pass = Pass {
            vocab,
            document,
            symmetric,
            exact_terms: self
                .settings
                .given
                .sketch
                .as_ref()
                .map_or(usize::MAX, |sketch| sketch.exact_terms as usize),
            before: (-1, -1),
            spread: Spread::new(vocab.len(), symmetric),
        };
        self.scan(
            "pairs",
            "left_id",
            &self.job.pairs,
            |findings, file, batch| {
                if pass.check(findings, batch).is_none() {
                    findings.add("pairs", "columns and types are those of the table", || {
                        format!("`{}`: they are not, or a value is missing", file.name())
                    });
                }
            },
        )?;
        let spread = pass.spread;
        let facts = &self.facts;
        let findings = &mut self.findings;
        findings.same(
            "pairs",
            "as many pairs as counted",
            facts.pairs,
            spread.pairs,
        );
        findings.same(
            "pairs",
            "counts add up to what was counted",
            facts.units.clone(),
            spread.units.to_string(),
        );
        if !document {
            // A token has at most so many neighbours on one side, each of its weight.
            let reach: u128 = (1..=u64::from(context.window))
                .map(|distance| match context.weight {
                    Weight::Uniform => u128::from(facts.weight_unit),
                    Weight::Harmonic => u128::from(facts.weight_unit / distance),
                    Weight::Dynamic => u128::from(u64::from(context.window) + 1 - distance),
                })
                .sum();
            let sides = if symmetric { 2 } else { 1 };
            for (id, tokens) in vocab.tokens.iter().enumerate() {
                let most = sides * reach * u128::from(*tokens);
                for sum in [spread.left[id], spread.right[id]] {
                    if sum > most {
                        findings.add("pairs", "no more neighbours than the window gives", || {
                            format!("id {id}: {sum} units, at most {most} for {tokens} tokens")
                        });
                    }
                }
            }
        }
        Ok(spread.skew())
    }
}

struct Pass<'a> {
    vocab: &'a Vocab,
    document: bool,
    symmetric: bool,
    exact_terms: usize,
    before: (i32, i32),
    spread: Spread,
}

impl Pass<'_> {
    /// `None` when the batch is not one of pairs.
    fn check(&mut self, findings: &mut Findings, batch: &RecordBatch) -> Option<()> {
        let ids = |name: &str| {
            let column = batch.column_by_name(name)?;
            column.as_primitive_opt::<Int32Type>()
        };
        let (left, right) = (ids("left_id")?, ids("right_id")?);
        let counts = batch
            .column_by_name("count")?
            .as_primitive_opt::<Int64Type>()?;
        if left.null_count() + right.null_count() + counts.null_count() > 0 {
            return None;
        }
        let terms = self.vocab.len();
        let rows = left.values().iter().zip(right.values());
        for ((&x, &y), &count) in rows.zip(counts.values()) {
            let pair = (x, y);
            if pair <= self.before {
                let before = self.before;
                let rule = if pair == before {
                    "no pair is there twice"
                } else {
                    "pairs are sorted"
                };
                findings.add("pairs", rule, || format!("{pair:?} after {before:?}"));
            }
            self.before = pair;
            let known = |id: i32| usize::try_from(id).ok().filter(|id| *id < terms);
            let (Some(left), Some(right)) = (known(x), known(y)) else {
                findings.add("pairs", "ids are those of the vocabulary", || {
                    format!("{pair:?}, and there are {terms} terms")
                });
                continue;
            };
            if left.max(right) >= self.exact_terms {
                let exact = self.exact_terms;
                findings.add("pairs", "both terms are exact ones", || {
                    format!("{pair:?}, and the first {exact} are")
                });
            }
            if left / self.vocab.terms != right / self.vocab.terms {
                findings.add("pairs", "both terms are of one slice", || {
                    format!("{pair:?}")
                });
            }
            if self.symmetric && (x > y || (self.document && x == y)) {
                findings.add(
                    "pairs",
                    "a symmetric pair is stored once, smaller id first",
                    || format!("{pair:?}"),
                );
            }
            let Some(units) = u64::try_from(count).ok().filter(|units| *units > 0) else {
                findings.add("pairs", "every count is above zero", || {
                    format!("{pair:?} has {count}")
                });
                continue;
            };
            if self.document {
                let most = self.vocab.documents[left].min(self.vocab.documents[right]);
                if units > most {
                    findings.add(
                        "pairs",
                        "no more rows with both terms than with either",
                        || format!("{pair:?}: {units} rows, {most} with either"),
                    );
                }
            }
            self.spread.add(left, right, units);
        }
        Some(())
    }
}
