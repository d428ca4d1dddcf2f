//! Attempts at units: begun, ended, failed. An attempt that died with its process leaves its mark,
//! so that a unit that kills whoever runs it is found out.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::folder::{PlanFolder, names, put_new, read};
use super::place::remove_file;
use super::spec::{Failure, UnitSpec, may_pass};
use crate::error::{EngineError, Kind};

/// The mark of an attempt that runs; taken away when it ends, however it ends.
pub(super) struct Mark(PathBuf);

impl Drop for Mark {
    fn drop(&mut self) {
        // A mark that stays is counted as a death: an attempt more of few, nothing worse.
        let _ = remove_file(&self.0);
    }
}

impl PlanFolder {
    /// Marks a unit as begun.
    ///
    /// # Errors
    /// When so many attempts died before that the unit is taken for poison.
    pub(super) fn begin(&self, spec: &UnitSpec, attempt: &str) -> Result<Mark, EngineError> {
        let name = spec.work.name();
        let prefix = format!("{name}.");
        let died = names(&self.attempts())?
            .iter()
            .filter(|mark| mark.starts_with(&prefix))
            .count();
        if died >= spec.most_attempts as usize {
            let inputs = spec.work.inputs();
            return Err(EngineError::Poison {
                unit: name,
                times: died,
                inputs: if inputs.is_empty() {
                    String::new()
                } else {
                    format!("; it reads {}", inputs.join(", "))
                },
            });
        }
        let mark = format!("{prefix}{attempt}");
        put_new(&self.attempts(), &mark, &std::process::id())?;
        Ok(Mark(self.attempts().join(mark)))
    }

    /// Units that are being run, or whose process died.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn begun(&self) -> Result<Vec<String>, EngineError> {
        Ok(names(&self.attempts())?
            .into_iter()
            .filter(|name| !name.starts_with('.'))
            .collect())
    }

    /// Writes down why an attempt failed. Where that cannot be written, the error itself is what
    /// is left.
    pub(super) fn failed(
        &self,
        spec: &UnitSpec,
        attempt: &str,
        error: &EngineError,
        inputs: Vec<String>,
    ) {
        let at_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_millis() as u64);
        let failure = Failure {
            unit: spec.work.name(),
            message: chain(error),
            again: may_pass(error),
            user: error.kind() == Kind::User,
            inputs,
            epoch: spec.epoch,
            process: std::process::id(),
            at_ms,
        };
        let name = format!("{}.{attempt}", failure.unit);
        let _ = put_new(&self.failures(), &name, &failure);
    }

    /// Why attempts failed, oldest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn failure_list(&self) -> Result<Vec<Failure>, EngineError> {
        self.new_failures(&mut HashSet::new())
    }

    /// Those of them that are not in `seen` yet, which they are then.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn new_failures(&self, seen: &mut HashSet<String>) -> Result<Vec<Failure>, EngineError> {
        let mut failures: Vec<Failure> = Vec::new();
        for name in names(&self.failures())? {
            if !name.starts_with('.')
                && !seen.contains(&name)
                && let Some(failure) = read(&self.failures().join(&name))?
            {
                failures.push(failure);
                seen.insert(name);
            }
        }
        failures.sort_by_key(|failure| failure.at_ms);
        Ok(failures)
    }

    /// Forgets attempts and failures: a new driver tries everything again.
    pub(super) fn forget_attempts(&self) -> Result<(), EngineError> {
        for folder in [self.attempts(), self.failures()] {
            for name in names(&folder)? {
                remove_file(&folder.join(name))?;
            }
        }
        Ok(())
    }
}

/// An error with its causes on one line, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}
