//! Checks what the tables of a job promise, and names what does not hold.
//!
//! In: one version of a job. Out: its [`Verified`]. Every table is read once, file by file, one batch
//! at a time. Memory: about 100 bytes a term, and one row group of one file.
//!
//! What is checked:
//!
//! - every file that a log names is there, has its size, decodes, and holds the rows and the ranges
//!   that the log's statistics promise;
//! - `vocab`: ids 0, 1, 2, …; no term twice; no term in more rows than it occurs or than there are;
//!   and, while all counts are of one batch, terms by falling count, then bytes;
//! - `pairs`: sorted, none twice, ids of the vocabulary, counts above zero; a symmetric pair stored
//!   once; no more rows with both terms than with either (`document`), no more neighbours than the
//!   window gives (`window`); number and sum as the table's facts say;
//! - `sources`: rows and features add up to the facts; no file counted twice;
//! - `tail`: the cells of every hash row add up to the sketched counts, and so do the sums by term in `vocab`; the number
//!   of distinct pairs is the one told, and no more than can be; no exact pair beyond the exact terms;
//! - `outside`: sorted, none in the vocabulary, and with it all features of the corpus;
//! - `pmi`: known terms, in the order of the pairs, counts above zero.

mod pairs;
mod scores;
mod skew;
mod tail;
mod terms;

use std::collections::BTreeMap;
use std::fmt;

use arrow::record_batch::RecordBatch;
use object_store::ObjectStoreExt;
use pmill_store::{Job, TableState, Warehouse};
use serde::Serialize;
use tokio::runtime::Handle;

pub use self::skew::{LargeRow, Skew};
use crate::error::EngineError;
use crate::job::{Facts, parse};
use crate::settings::RecordedSettings;
use crate::sources::{SourceRow, SourceStatus};
use crate::stored::{StoredFile, StoredTable};

/// Violations of one rule that are named; the rest is counted.
const NAMED: u64 = 5;

/// A promise that does not hold at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The table.
    pub table: &'static str,
    /// The promise.
    pub rule: &'static str,
    /// Where, and what is there instead.
    pub found: String,
}

/// What a check came to.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// Whether every promise holds.
    pub sound: bool,
    /// Rows read, by table.
    pub rows: BTreeMap<&'static str, u64>,
    /// What does not hold: the first places of each rule.
    pub violations: Vec<Violation>,
    /// All places, those not named too.
    pub violations_in_all: u64,
}

impl fmt::Display for Verified {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<String> = self
            .rows
            .iter()
            .map(|(table, rows)| format!("{rows} of {table}"))
            .collect();
        if self.sound {
            return writeln!(out, "  verified: sound; rows read: {}", rows.join(", "));
        }
        writeln!(
            out,
            "  verified: {} violations; rows read: {}",
            self.violations_in_all,
            rows.join(", ")
        )?;
        for violation in &self.violations {
            writeln!(
                out,
                "    {}: {}: {}",
                violation.table, violation.rule, violation.found
            )?;
        }
        let more = self.violations_in_all - self.violations.len() as u64;
        if more > 0 {
            writeln!(out, "    and {more} more")?;
        }
        Ok(())
    }
}

/// Collects what does not hold.
#[derive(Default)]
struct Findings {
    named: Vec<Violation>,
    by_rule: BTreeMap<(&'static str, &'static str), u64>,
}

impl Findings {
    fn add(&mut self, table: &'static str, rule: &'static str, found: impl FnOnce() -> String) {
        let seen = self.by_rule.entry((table, rule)).or_default();
        *seen += 1;
        if *seen <= NAMED {
            self.named.push(Violation {
                table,
                rule,
                found: found(),
            });
        }
    }

    /// Adds a violation unless two figures agree.
    fn same<T: PartialEq + fmt::Display>(
        &mut self,
        table: &'static str,
        rule: &'static str,
        expected: T,
        found: T,
    ) {
        if expected != found {
            self.add(table, rule, || {
                format!("expected {expected}, found {found}")
            });
        }
    }
}

/// What the checks share.
struct Checker<'a> {
    warehouse: &'a Warehouse,
    job: &'a Job,
    facts: Facts,
    settings: RecordedSettings,
    runtime: &'a Handle,
    findings: Findings,
    rows: BTreeMap<&'static str, u64>,
}

/// Checks a job's tables.
///
/// # Errors
/// When the warehouse cannot be reached. A table that is wrong is no error, but told by the result.
pub fn verify(
    warehouse: &Warehouse,
    job: &Job,
    sources: &[SourceRow],
    runtime: &Handle,
) -> Result<(Verified, Skew), EngineError> {
    let mut checker = Checker {
        warehouse,
        job,
        facts: parse(&job.facts()?)?,
        settings: parse(&job.settings()?)?,
        runtime,
        findings: Findings::default(),
        rows: BTreeMap::new(),
    };
    checker.sources(sources)?;
    let vocab = checker.vocab(sources)?;
    let skew = checker.pairs(&vocab)?;
    checker.outside(&vocab)?;
    checker.tail(&vocab)?;
    checker.pmi(&vocab)?;
    let findings = checker.findings;
    let violations_in_all = findings.by_rule.values().sum();
    let verified = Verified {
        sound: violations_in_all == 0,
        rows: checker.rows,
        violations: findings.named,
        violations_in_all,
    };
    Ok((verified, skew))
}

/// How the pairs of a job are spread over its terms; reads `vocab` and `pairs`, checks nothing.
///
/// # Errors
/// When a table cannot be read.
pub fn skew(warehouse: &Warehouse, job: &Job, runtime: &Handle) -> Result<Skew, EngineError> {
    let mut checker = Checker {
        warehouse,
        job,
        facts: parse(&job.facts()?)?,
        settings: parse(&job.settings()?)?,
        runtime,
        findings: Findings::default(),
        rows: BTreeMap::new(),
    };
    let vocab = checker.vocab(&[])?;
    checker.pairs(&vocab)
}

impl Checker<'_> {
    /// Calls `each` with every batch of a table, in the order of its files, and checks the files. A
    /// file that does not decode is a violation, and the next one is read.
    fn scan(
        &mut self,
        table: &'static str,
        key: &str,
        state: &TableState,
        mut each: impl FnMut(&mut Findings, &StoredFile, &RecordBatch),
    ) -> Result<(), EngineError> {
        let stored = StoredTable::new(
            self.warehouse,
            &self.job.name,
            table,
            key,
            state,
            self.runtime,
        )?;
        let findings = &mut self.findings;
        let total = self.rows.entry(table).or_default();
        for file in &stored.files {
            let name = file.name().to_owned();
            match self
                .runtime
                .block_on(self.warehouse.store().head(file.path()))
            {
                Ok(meta) if meta.size == file.size() => {}
                Ok(meta) => {
                    findings.add(table, "a file has the size that the log names", || {
                        format!("`{name}`: {} bytes, named {}", meta.size, file.size())
                    });
                    continue;
                }
                Err(object_store::Error::NotFound { .. }) => {
                    findings.add(table, "every file that the log names is there", || {
                        format!("`{name}` is not")
                    });
                    continue;
                }
                Err(source) => {
                    return Err(pmill_store::StoreError::Object {
                        action: "look at",
                        path: file.path().to_string(),
                        source,
                    }
                    .into());
                }
            }
            let (mut rows, mut range) = (0, None);
            let read = (|| {
                let groups = stored.metadata(file)?.metadata().num_row_groups();
                let mut stream = stored.open(file, (0..groups).collect())?;
                while let Some(batch) = stored.next(file, &mut stream)? {
                    rows += batch.num_rows() as u64;
                    range = widened(range, &batch, key);
                    each(findings, file, &batch);
                }
                Ok(())
            })();
            *total += rows;
            match read {
                Ok(()) => {}
                Err(error @ EngineError::Store(_)) if error.kind() == crate::Kind::NotNow => {
                    return Err(error);
                }
                Err(error) => {
                    let reason = std::error::Error::source(&error)
                        .map_or_else(|| error.to_string(), ToString::to_string);
                    findings.add(table, "every file decodes", || {
                        format!("`{name}`: {reason}")
                    });
                    continue;
                }
            }
            if rows != file.rows() {
                findings.add(table, "a file has the rows that the log names", || {
                    format!("`{name}`: {rows} rows, named {}", file.rows())
                });
            }
            if let (Some(found), Some(named)) = (range, file.range(key))
                && found != named
            {
                findings.add(table, "the log's statistics are those of the file", || {
                    format!("`{name}`: {key} {found:?}, named {named:?}")
                });
            }
        }
        Ok(())
    }

    /// Calls `each` with every batch of a table once more; what is wrong with its files is told already.
    fn scan_again(
        &mut self,
        table: &'static str,
        state: &TableState,
        mut each: impl FnMut(&mut Findings, &RecordBatch),
    ) -> Result<(), EngineError> {
        let name = &self.job.name;
        let stored = StoredTable::new(self.warehouse, name, table, "id", state, self.runtime)?;
        for file in &stored.files {
            let read = (|| {
                let groups = stored.metadata(file)?.metadata().num_row_groups();
                let mut stream = stored.open(file, (0..groups).collect())?;
                while let Some(batch) = stored.next(file, &mut stream)? {
                    each(&mut self.findings, &batch);
                }
                Ok(())
            })();
            match read {
                Err(error @ EngineError::Store(_)) if error.kind() == crate::Kind::NotNow => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn sources(&mut self, sources: &[SourceRow]) -> Result<(), EngineError> {
        self.scan("sources", "size", &self.job.sources, |_, _, _| {})?;
        let counted = || {
            sources
                .iter()
                .filter(|row| row.status == SourceStatus::Counted)
        };
        let facts = &self.facts;
        let findings = &mut self.findings;
        findings.same(
            "sources",
            "rows add up to those of the corpus",
            facts.rows,
            counted().map(|row| row.rows).sum(),
        );
        findings.same(
            "sources",
            "features add up to those of the corpus",
            facts.tokens,
            counted().map(|row| row.tokens).sum(),
        );
        let mut uris: Vec<&str> = counted().map(|row| row.uri.as_str()).collect();
        uris.sort_unstable();
        for two in uris.windows(2).filter(|two| two[0] == two[1]) {
            findings.add("sources", "no file is counted twice", || {
                format!("`{}` is", two[0])
            });
        }
        Ok(())
    }
}

/// Smallest and largest value of an integer column so far.
fn widened(range: Option<(i64, i64)>, batch: &RecordBatch, key: &str) -> Option<(i64, i64)> {
    use arrow::array::AsArray;
    use arrow::datatypes::{Int32Type, Int64Type};
    let column = batch.column_by_name(key)?;
    let (low, high) = if let Some(column) = column.as_primitive_opt::<Int32Type>() {
        (
            arrow::compute::min(column)?.into(),
            arrow::compute::max(column)?.into(),
        )
    } else {
        let column = column.as_primitive_opt::<Int64Type>()?;
        (arrow::compute::min(column)?, arrow::compute::max(column)?)
    };
    Some(range.map_or((low, high), |(a, b)| (a.min(low), b.max(high))))
}

/// Whether all that was counted came with one batch.
fn one_batch(sources: &[SourceRow]) -> bool {
    sources
        .iter()
        .all(|row| row.batch == sources[0].batch && row.status != SourceStatus::Retracted)
}
