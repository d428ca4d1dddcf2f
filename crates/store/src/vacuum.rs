//! Gives up old versions: first their log entries, then the files that only they name.
//!
//! Versions go from the oldest on. The oldest that stays gets a checkpoint, the entries before it
//! are removed, and then what no entry names is an orphan like any other: a process that dies in
//! between leaves versions that cannot be asked for any more, and files that the next run removes.

use std::time::Duration;

use crate::delta::TableState;
use crate::error::StoreError;
use crate::history::{Commit, History};
use crate::job::{JobName, oldest_of_tables};
use crate::killpoint;
use crate::sweep::TABLES;
use crate::warehouse::{JobLock, Warehouse};

/// Which versions stay. The newest always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// This many, the newest ones.
    Versions(u64),
    /// Those that were the newest at some time within this long.
    Within(Duration),
}

/// What was given up in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableVacuum {
    /// The table.
    pub table: &'static str,
    /// Versions given up.
    pub versions: u64,
    /// The oldest that stays.
    pub oldest: u64,
    /// Files removed, orphans among them.
    pub files: u64,
    /// Their bytes; 0 in a dry run for files of versions given up, whose size is not looked up.
    pub bytes: u64,
}

/// What a vacuum did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vacuumed {
    /// The oldest version of `pairs` that stays.
    pub oldest: u64,
    /// The newest.
    pub newest: u64,
    /// Table by table.
    pub tables: Vec<TableVacuum>,
}

impl Keep {
    /// The oldest version that stays, of at least one.
    fn oldest(self, commits: &[Commit], now_ms: i64) -> Option<u64> {
        let newest = commits.len().checked_sub(1)?;
        let first = match self {
            Self::Versions(versions) => {
                let versions = usize::try_from(versions).unwrap_or(usize::MAX);
                commits.len().saturating_sub(versions.max(1))
            }
            Self::Within(age) => {
                let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
                let since = now_ms.saturating_sub(age);
                // A version was the newest until the next one came. Where the clock went backwards,
                // the later time counts: when in doubt, a version stays.
                let mut latest = i64::MIN;
                let mut ends = commits.iter().skip(1).map(|next| {
                    latest = latest.max(next.time_ms);
                    latest
                });
                ends.position(|end| end >= since).unwrap_or(newest)
            }
        };
        commits.get(first.min(newest)).map(|commit| commit.version)
    }
}

impl Warehouse {
    /// Gives up the versions of a job that `keep` does not name, and removes abandoned files. A dry
    /// run (no lock) changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NoJob`]; when a table cannot be read, written or cleared.
    pub async fn vacuum(
        &self,
        job: &JobName,
        keep: Keep,
        now_ms: i64,
        lock: Option<&JobLock>,
    ) -> Result<Vacuumed, StoreError> {
        let pairs = History::read(self, job, "pairs").await?;
        let (Some(oldest), Some(newest)) =
            (keep.oldest(&pairs.commits, now_ms), pairs.commits.last())
        else {
            return Err(StoreError::NoJob {
                warehouse: self.display(),
                job: job.to_string(),
                known: self.jobs().await?.iter().map(ToString::to_string).collect(),
            });
        };
        let newest = newest.version;
        let mut histories = oldest_of_tables(self, job, &pairs, oldest).await?;
        // `pairs` first: what it does not name any more, nobody opens.
        histories.insert(0, ("pairs", pairs, oldest));
        let mut tables = Vec::new();
        for (table, history, oldest) in &histories {
            let dropped = history.commits.iter();
            let mut done = TableVacuum {
                table,
                versions: dropped.filter(|commit| commit.version < *oldest).count() as u64,
                oldest: *oldest,
                files: 0,
                bytes: 0,
            };
            if lock.is_none() {
                done.files = history.only_before(*oldest).len() as u64;
            } else if done.versions > 0 {
                self.forget(job, table, history, *oldest).await?;
            }
            killpoint::reach("old versions are forgotten");
            tables.push(done);
        }
        for table in TABLES {
            let orphans = self.orphans(job, table).await?;
            let Some(done) = tables.iter_mut().find(|done| done.table == table) else {
                continue;
            };
            for orphan in orphans {
                if lock.is_some() {
                    self.remove(&orphan.path).await?;
                    killpoint::reach("an old file is removed");
                }
                done.files += 1;
                done.bytes += orphan.bytes;
            }
        }
        Ok(Vacuumed {
            oldest,
            newest,
            tables,
        })
    }

    /// Clears a table's log of the entries before `oldest`.
    async fn forget(
        &self,
        job: &JobName,
        table: &str,
        history: &History,
        oldest: u64,
    ) -> Result<(), StoreError> {
        let url = self.table_url(job, table)?;
        let name = format!("{job}.{table}");
        let Some(state) = TableState::open(&name, &url, Some(oldest)).await? else {
            return Ok(());
        };
        state.checkpoint().await?;
        killpoint::reach("a checkpoint is written");
        // The library asks for a time before which entries may go; by version alone is what we mean.
        let stamps = self.log_times(job, table).await?;
        let latest = history.commits.iter().map(|commit| commit.time_ms);
        let after_all = latest.chain(stamps).max().unwrap_or(0).saturating_add(1);
        state.forget_before(after_all).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commits(times: &[i64]) -> Vec<Commit> {
        let commit = |(version, time_ms): (usize, &i64)| Commit::at(version as u64 + 3, *time_ms);
        times.iter().enumerate().map(commit).collect()
    }

    fn within(ms: u64) -> Keep {
        Keep::Within(Duration::from_millis(ms))
    }

    #[test]
    fn a_version_stays_while_it_was_the_newest_within_the_time() {
        let commits = commits(&[100, 200, 300]);
        // At 350, version 4 was the newest until 300, version 3 until 200.
        assert_eq!(within(0).oldest(&commits, 350), Some(5));
        assert_eq!(within(49).oldest(&commits, 350), Some(5));
        assert_eq!(within(50).oldest(&commits, 350), Some(4));
        assert_eq!(within(150).oldest(&commits, 350), Some(3));
        assert_eq!(within(u64::MAX).oldest(&commits, 350), Some(3));
        assert_eq!(within(1).oldest(&[], 350), None);
    }

    #[test]
    fn the_newest_versions_stay_by_number() {
        let commits = commits(&[1, 2, 3]);
        let oldest = |versions| Keep::Versions(versions).oldest(&commits, 0);
        assert_eq!(
            [0, 1, 2, 3, 9].map(oldest),
            [5, 5, 4, 3, 3].map(Some),
            "the newest always stays"
        );
    }

    #[test]
    fn a_clock_that_jumps_gives_up_nothing_early() {
        // The second commit was made with a clock far ahead, the third far behind.
        let ahead = commits(&[100, 9_000, 10, 400]);
        assert_eq!(within(50).oldest(&ahead, 450), Some(3));
        // Our own clock is behind: everything seems to be in the future.
        assert_eq!(within(50).oldest(&commits(&[100, 200]), 20), Some(3));
    }
}
