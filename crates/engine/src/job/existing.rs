//! A job that exists already: what may be counted into it.

use std::time::Instant;

use pmill_store::Job;

use super::prepared::Prepared;
use super::{CountSummary, Facts, Status, parse};
use crate::error::EngineError;
use crate::input::InputFile;
use crate::memory::peak_rss;
use crate::settings::RecordedSettings;
use crate::sources;

/// The job exists: everything counted before changes nothing; anything else is refused.
pub(super) fn already_counted(
    prepared: &Prepared,
    job: &Job,
    inputs: &[InputFile],
    started: Instant,
) -> Result<CountSummary, EngineError> {
    let recorded: RecordedSettings = parse(&job.settings()?)?;
    let facts: Facts = parse(&job.facts()?)?;
    let differences = prepared.recorded.differences(&recorded);
    if !differences.is_empty() {
        return Err(EngineError::Setting(format!(
            "job `{}` was counted with other settings; give it another --name, or the settings it has\n  {}",
            job.name,
            differences.join("\n  ")
        )));
    }
    let rows = prepared
        .session
        .wait(sources::read(prepared.session.context(), job))?;
    let mut new = Vec::new();
    for input in inputs {
        match rows.iter().find(|row| row.uri == input.uri) {
            Some(row) if row.is(input) => {}
            Some(row) => {
                return Err(EngineError::Setting(format!(
                    "`{}` was counted before and has changed since ({} bytes, {} then; {} now); count it into another job",
                    input.display(),
                    row.size,
                    row.etag,
                    input.identity(),
                )));
            }
            None => new.push(input.display()),
        }
    }
    if let Some(first) = new.first() {
        return Err(EngineError::Setting(format!(
            "job `{}` is counted already, and {} of the inputs are not in it (`{first}`{}); count them into another job",
            job.name,
            new.len(),
            if new.len() > 1 { ", …" } else { "" },
        )));
    }
    Ok(CountSummary {
        status: Status::Unchanged,
        job: job.name.to_string(),
        version: job.pairs.version(),
        files: 0,
        skipped: 0,
        rows: facts.rows,
        tokens: facts.tokens,
        types: facts.types,
        terms: facts.terms,
        pairs: facts.pairs,
        dropped_features: facts.dropped_features,
        units: 0,
        spilled_bytes: 0,
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_rss().map(|size| size.0),
        notes: vec![format!(
            "all {} files were counted before; nothing changed",
            inputs.len()
        )],
    })
}
