//! Gives up old versions of a job, and the files that only they name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pmill_store::{Job, JobName, Keep, Warehouse};
use serde::Serialize;

use crate::error::EngineError;
use crate::job::distributed::clear_dead;
use crate::memory::default_limit;
use crate::session::Session;

/// What to vacuum.
#[derive(Debug, Clone)]
pub struct VacuumJob {
    /// Warehouse location.
    pub warehouse: String,
    /// Job name.
    pub name: String,
    /// What stays.
    pub keep: Keep,
    /// Whether to say what would be done, and do nothing.
    pub dry_run: bool,
}

/// What was given up in one table.
#[derive(Debug, Clone, Serialize)]
pub struct TableVacuum {
    /// The table.
    pub table: &'static str,
    /// Versions given up.
    pub versions: u64,
    /// The oldest that stays.
    pub oldest: u64,
    /// Files removed.
    pub files: u64,
}

/// What a vacuum did, or would do; field names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct VacuumSummary {
    /// `vacuumed`, `unchanged` or `would vacuum`.
    pub status: &'static str,
    /// Job name.
    pub job: String,
    /// The oldest version that can be read from now on.
    pub oldest: u64,
    /// The newest.
    pub newest: u64,
    /// Files removed.
    pub files: u64,
    /// Their bytes; not known in a dry run.
    pub bytes: Option<u64>,
    /// Table by table.
    pub tables: Vec<TableVacuum>,
}

/// Gives up old versions.
///
/// # Errors
/// When the job does not exist or is being written, or files cannot be removed.
pub fn vacuum(job: &VacuumJob) -> Result<VacuumSummary, EngineError> {
    let name = JobName::new(&job.name)?;
    let warehouse = Warehouse::open(&job.warehouse)?;
    let session = Session::new(2, default_limit(), None)?;
    session.wait(Job::open_existing(&warehouse, &name))?;
    if !job.dry_run {
        clear_dead(&warehouse)?;
    }
    let lock = (!job.dry_run).then(|| warehouse.lock(&name)).transpose()?;
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
    let done = session.wait(warehouse.vacuum(&name, job.keep, now_ms, lock.as_ref()))?;
    let changed = done
        .tables
        .iter()
        .any(|table| table.versions + table.files > 0);
    Ok(VacuumSummary {
        status: match (changed, job.dry_run) {
            (false, _) => "unchanged",
            (true, false) => "vacuumed",
            (true, true) => "would vacuum",
        },
        job: job.name.clone(),
        oldest: done.oldest,
        newest: done.newest,
        files: done.tables.iter().map(|table| table.files).sum(),
        bytes: (!job.dry_run).then(|| done.tables.iter().map(|table| table.bytes).sum()),
        tables: done
            .tables
            .into_iter()
            .map(|table| TableVacuum {
                table: table.table,
                versions: table.versions,
                oldest: table.oldest,
                files: table.files,
            })
            .collect(),
    })
}

/// A length of time, written as `90d`, `12h`, `30m`, `45s` or `2w`.
///
/// # Errors
/// For anything else, with what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a length of time; write 90d, 12h, 30m or 45s");
    let text = text.trim();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].trim().parse().map_err(|_| wrong())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_a_unit() {
        let seconds = |text| parse_duration(text).map(|time| time.as_secs());
        assert_eq!(seconds("7d"), Ok(604_800));
        assert_eq!(seconds(" 2 h"), Ok(7200));
        assert_eq!(seconds("0s"), Ok(0));
        for wrong in [
            "",
            "7",
            "d",
            "-1d",
            "1.5h",
            "7 days",
            "99999999999999999999w",
            "7é",
        ] {
            assert!(seconds(wrong).unwrap_err().contains("write 90d"), "{wrong}");
        }
    }
}
