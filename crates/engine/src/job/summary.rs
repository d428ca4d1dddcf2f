//! The closing summary of a count job.

use std::time::Instant;

use super::run::Done;
use super::{Applied, CountSummary, Facts, Status};
use crate::memory::peak_rss;

impl CountSummary {
    fn empty(job: &str, started: Instant) -> Self {
        Self {
            status: Status::Unchanged,
            job: job.to_owned(),
            version: 0,
            files: 0,
            skipped: 0,
            rows: 0,
            tokens: 0,
            types: 0,
            terms: 0,
            pairs: 0,
            sketched: None,
            total_rows: 0,
            retracted_rows: 0,
            outside_tokens: 0,
            dropped_features: 0,
            units: 0,
            spilled_bytes: 0,
            seconds: started.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_rss().map(|size| size.0),
            notes: Vec::new(),
        }
    }

    /// Of what came of `files` inputs.
    pub(super) fn of(job: &str, applied: Applied, files: usize, started: Instant) -> Self {
        match applied {
            Applied::Unchanged { version, facts } => {
                Self::unchanged(job, version, &facts, files, started)
            }
            Applied::Changed(done) => Self::counted(job, *done, started),
        }
    }

    /// Of a job that has all `files` already.
    fn unchanged(job: &str, version: u64, facts: &Facts, files: usize, started: Instant) -> Self {
        Self {
            version,
            rows: facts.rows,
            tokens: facts.tokens,
            types: facts.types,
            terms: facts.terms,
            pairs: facts.pairs,
            sketched: facts.tail.clone(),
            total_rows: facts.rows,
            dropped_features: facts.dropped_features,
            notes: vec![format!(
                "all {files} files were counted before; nothing changed"
            )],
            ..Self::empty(job, started)
        }
    }

    /// Of a job with a new version.
    fn counted(job: &str, done: Done, started: Instant) -> Self {
        Self {
            status: Status::Counted,
            version: done.version,
            files: done.files,
            skipped: done.skipped,
            rows: done.added.rows,
            tokens: done.added.tokens,
            types: done.facts.types,
            terms: done.facts.terms,
            pairs: done.facts.pairs,
            sketched: done.facts.tail,
            total_rows: done.facts.rows,
            retracted_rows: done.taken.rows,
            outside_tokens: done.outside,
            dropped_features: done.dropped_features,
            units: done.units,
            spilled_bytes: done.spilled_bytes,
            notes: done.notes,
            ..Self::empty(job, started)
        }
    }
}
