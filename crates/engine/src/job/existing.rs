//! A job that exists already: which of the inputs are new to it.

use std::collections::HashMap;

use super::base::Base;
use super::taken::Taken;
use crate::error::EngineError;
use crate::input::{self, InputFile};
use crate::settings::RecordedSettings;
use crate::sources::{SourceRow, SourceStatus};

/// A file to be counted again: what it held when it was counted is taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recount {
    /// The file, as it was counted and is to be counted now.
    pub file: String,
    /// Where the bytes are that were counted; needed when the file has changed.
    pub old: Option<String>,
}

/// What a batch does to a job.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) add: Vec<InputFile>,
    pub(super) taken: Vec<Taken>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.add.is_empty() && self.taken.is_empty()
    }
}

/// Settings must be the recorded ones.
pub(crate) fn same_settings(
    name: &str,
    asked: &RecordedSettings,
    recorded: &RecordedSettings,
) -> Result<(), EngineError> {
    let differences = asked.differences(recorded);
    if differences.is_empty() {
        return Ok(());
    }
    Err(EngineError::Setting(format!(
        "job `{name}` was counted with other settings; give it another --name, or the settings it has\n  {}",
        differences.join("\n  ")
    )))
}

/// The inputs that the job does not have, and the files that are to be counted again.
pub(super) fn batch(
    base: &Base,
    inputs: &[InputFile],
    recounts: &[Recount],
) -> Result<Batch, EngineError> {
    let name = &base.job.name;
    let mut batch = Batch::default();
    let known = Known::of(base);
    let again = recounts
        .iter()
        .map(|recount| Ok((input::uri(&recount.file)?, recount)))
        .collect::<Result<Vec<_>, EngineError>>()?;
    for file in inputs {
        let row = known.find(&file.uri);
        let recount = again.iter().find(|(uri, _)| *uri == file.uri);
        match (row, recount) {
            (Some(row), _) if row.is(file) => {}
            (Some(row), Some((_, recount))) if row.status == SourceStatus::Counted => {
                batch.taken.push(old_content(base, row, recount)?);
                batch.add.push(file.clone());
            }
            (Some(row), None) if row.status == SourceStatus::Counted => {
                return Err(EngineError::Setting(format!(
                    "`{}` was counted before and has changed since ({} bytes, {} then; {} now); `--recount {} --old COPY` replaces its counts, where COPY holds the bytes that were counted",
                    file.display(),
                    row.size,
                    row.etag,
                    file.identity(),
                    file.display(),
                )));
            }
            _ => {
                known.refuse_moved(file)?;
                batch.add.push(file.clone());
            }
        }
    }
    for (uri, recount) in &again {
        if known.find(uri).is_none() {
            return Err(EngineError::Setting(format!(
                "`{}` is not in job `{name}`, so there is nothing to count again; give it as --input",
                recount.file
            )));
        }
    }
    if !batch.add.is_empty()
        && base.vocabulary.is_empty()
        && base.recorded.given.vocabulary.file.is_none()
    {
        return Err(EngineError::Setting(format!(
            "job `{name}` was counted from inputs without features, so its vocabulary is empty and stays so; count into another job"
        )));
    }
    Ok(batch)
}

/// The files of a job, to be looked up. A file that was taken out is not there.
pub(super) struct Known<'a> {
    by_uri: HashMap<&'a str, &'a SourceRow>,
    by_identity: HashMap<(u64, &'a str), Vec<&'a SourceRow>>,
}

impl<'a> Known<'a> {
    pub(super) fn of(base: &'a Base) -> Self {
        let mut known = Self {
            by_uri: HashMap::new(),
            by_identity: HashMap::new(),
        };
        for row in &base.sources {
            if row.status == SourceStatus::Retracted {
                continue;
            }
            known.by_uri.insert(&row.uri, row);
            if row.status == SourceStatus::Counted {
                let identity = (row.size, row.etag.as_str());
                known.by_identity.entry(identity).or_default().push(row);
            }
        }
        known
    }

    pub(super) fn find(&self, uri: &str) -> Option<&'a SourceRow> {
        self.by_uri.get(uri).copied()
    }

    /// A file that was counted under another name must not be counted twice: the same file name, size
    /// and modification time (or entity tag) are no chance.
    fn refuse_moved(&self, file: &InputFile) -> Result<(), EngineError> {
        let name = |uri: &str| uri.rsplit('/').next().map(str::to_owned);
        let same = self.by_identity.get(&(file.size, file.etag.as_str()));
        let moved = same
            .into_iter()
            .flatten()
            .find(|row| row.uri != file.uri && name(&row.uri) == name(&file.uri));
        let Some(row) = moved else { return Ok(()) };
        Err(EngineError::Setting(format!(
            "`{}` is `{}`, which was counted before, under another path: it has the same name, size and {}; counting it would count its rows twice. If it is another file, touch it",
            file.display(),
            row.display(),
            if file.etag.starts_with("mtime:") {
                "modification time"
            } else {
                "entity tag"
            },
        )))
    }
}

/// What is counted again must have been counted.
pub(super) fn nothing_to_recount(name: &str) -> EngineError {
    EngineError::Setting(format!(
        "there is no job `{name}` yet, so there is nothing to count again"
    ))
}

/// What has to be taken out for a file that is counted again.
fn old_content(base: &Base, row: &SourceRow, recount: &Recount) -> Result<Taken, EngineError> {
    let Some(old) = &recount.old else {
        return Err(EngineError::Setting(format!(
            "`{}` has changed since it was counted ({} bytes, {} then), and counts can only be taken out by counting the same bytes again: give --old COPY, where COPY holds them. If they are gone, count all that remains into a new job: its counts are then right without this file's past",
            recount.file, row.size, row.etag
        )));
    };
    Taken::whole(base, row, input::one(old)?)
}
