//! The driver of a query: has the units of its fragments run, and gives the plan that reads what they
//! left.
//!
//! ```text
//! WAREHOUSE/.pmill/sql_SECONDS_RANDOM.query/
//!   alive                 when the driver last said that it lives
//!   epoch-00000001
//!   plan-units/           as of all plans; data/ holds the rows of units
//! ```
//!
//! Each query has a folder of its own and is never gone on with; the folder goes away at its end. A
//! folder whose driver has said nothing for a while is of one that was killed: the next query, or a
//! vacuum, removes it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, execute_stream};
use pmill_store::Warehouse;

use super::super::alive::{Beat, is_dead, now, remove_plans};
use super::super::drive::{Phase, Phases, Runner};
use super::super::folder::{PLAN, PlanFolder, claim_epoch, names, put_new};
use super::super::place;
use super::super::plan::attempt;
use super::super::spec::Work;
use super::rows::{Fetched, QueryDone, UnitRows, local};
use super::{QueryPlan, fragments};
use crate::error::EngineError;
use crate::progress::{Progress, StopFlag};
use crate::session::query;

/// Who has said nothing for so long is dead. Clocks of machines may differ a little.
const DEAD: Duration = Duration::from_secs(300);

const SUFFIX: &str = ".query";

/// How the units of a query are driven.
pub struct QueryDrive<'a> {
    /// Seconds that a unit may take.
    pub limit_seconds: u64,
    /// Attempts that may die with their process before a unit is taken for poison.
    pub most_attempts: u32,
    /// Folder of this machine for temporary files; the system's if none.
    pub scratch: Option<&'a Path>,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Whether to stop.
    pub stop: &'a StopFlag,
}

impl QueryDrive<'_> {
    /// Has the units of a plan run. Blocks until all are done; then the answer can be asked for.
    ///
    /// # Errors
    /// What is wrong with the query's rows, as in process; when the cluster does not do it; when
    /// told to stop.
    pub fn run(&self, plan: &QueryPlan, runner: &mut dyn Runner) -> Result<Answer, EngineError> {
        // What others left, and cannot be removed now, is the next query's to remove.
        let _ = clear_dead(&plan.warehouse);
        let folder = Arc::new(QueryFolder::make(&plan.warehouse, self.scratch)?);
        let result = self.run_in(&folder, plan, runner);
        if result.is_err() {
            folder.close();
        }
        Ok(Answer {
            plan: result?,
            folder,
        })
    }

    fn run_in(
        &self,
        folder: &Arc<QueryFolder>,
        plan: &QueryPlan,
        runner: &mut dyn Runner,
    ) -> Result<Arc<dyn ExecutionPlan>, EngineError> {
        let epoch = claim_epoch(&folder.plans)?;
        put_new(folder.folder.path(), PLAN, &plan.header)?;
        let phases = Phases {
            folder: &folder.folder,
            epoch,
            limit_seconds: self.limit_seconds,
            most_attempts: self.most_attempts,
            progress: self.progress,
            stop: self.stop,
        };
        let found = fragments::find(&plan.plan);
        let mut works = Vec::new();
        for number in plan.header.fragments.iter().map(|sent| sent.number) {
            let fragment = found
                .get(number)
                .ok_or_else(|| EngineError::Bug(format!("the query has no fragment {number}")))?;
            let partitions = fragment.output_partitioning().partition_count();
            works.extend((0..partitions).map(|partition| Work::Query {
                fragment: number,
                partition,
            }));
        }
        phases.run(runner, Phase::Query, works)?;
        let (mut number, mut failed) = (0, None);
        let replaced = fragments::replace(&plan.plan, &mut |fragment| {
            let sent = plan.header.fragments.iter().any(|f| f.number == number);
            let this = number;
            number += 1;
            if !sent {
                return None;
            }
            match folder.files(this, fragment) {
                Ok(files) => {
                    let rows = UnitRows::new(folder, files, fragment);
                    Some(Arc::new(rows) as Arc<dyn ExecutionPlan>)
                }
                Err(error) => {
                    failed = Some(error);
                    None
                }
            }
        });
        match failed {
            Some(error) => Err(error),
            None => replaced.map_err(query),
        }
    }
}

/// A query whose units are done: what is left is run here.
pub struct Answer {
    plan: Arc<dyn ExecutionPlan>,
    folder: Arc<QueryFolder>,
}

impl Answer {
    /// The plan that is left.
    #[must_use]
    pub fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// Its rows.
    ///
    /// # Errors
    /// When the plan does not start.
    pub fn stream(
        &self,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream, DataFusionError> {
        execute_stream(self.plan.clone(), context)
    }

    /// Removes the query's folder; without it that happens when the last stream has gone.
    pub fn close(&self) {
        self.folder.close();
    }
}

/// The folder of a query, while its driver lives.
pub(super) struct QueryFolder {
    plans: PathBuf,
    folder: PlanFolder,
    scratch: tempfile::TempDir,
    beat: Mutex<Option<Beat>>,
}

impl std::fmt::Debug for QueryFolder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("QueryFolder")
    }
}

impl QueryFolder {
    fn make(warehouse: &Warehouse, scratch: Option<&Path>) -> Result<Self, EngineError> {
        let name = format!("sql_{}_{}{SUFFIX}", now(), attempt());
        let plans = PlanFolder::root_of(warehouse).join(name);
        let root = scratch.map_or_else(std::env::temp_dir, Path::to_owned);
        let fail = |source| place::io("create", &root, source);
        std::fs::create_dir_all(&root).map_err(fail)?;
        let mut builder = tempfile::Builder::new();
        let scratch = builder.prefix("pmill-query-").tempdir_in(&root);
        let scratch = scratch.map_err(fail)?;
        let beat = Beat::start(&plans)?;
        Ok(Self {
            folder: PlanFolder::make(&plans, "units")?,
            plans,
            scratch,
            beat: Mutex::new(Some(beat)),
        })
    }

    /// The files of a fragment, partition by partition.
    fn files(
        &self,
        number: usize,
        fragment: &Arc<dyn ExecutionPlan>,
    ) -> Result<Vec<String>, EngineError> {
        let partitions = fragment.output_partitioning().partition_count();
        let mut files = Vec::with_capacity(partitions);
        for partition in 0..partitions {
            let work = Work::Query {
                fragment: number,
                partition,
            };
            files.push(self.folder.need::<QueryDone>(&work.name())?.file);
        }
        Ok(files)
    }

    /// A data file as one of this machine.
    pub(super) fn local(&self, name: &str) -> Result<(PathBuf, Option<Fetched>), EngineError> {
        local(&self.folder.data().join(name), self.scratch.path())
    }

    fn close(&self) {
        let beat = match self.beat.lock() {
            Ok(mut beat) => beat.take(),
            Err(_) => return,
        };
        if beat.is_some() {
            drop(beat);
            remove_plans(&self.plans);
        }
    }
}

impl Drop for QueryFolder {
    fn drop(&mut self) {
        self.close();
    }
}

/// Removes the folders of queries whose drivers were killed; gives how many.
///
/// # Errors
/// When the folders cannot be listed or removed.
pub(in super::super) fn clear_dead(warehouse: &Warehouse) -> Result<usize, EngineError> {
    let root = PlanFolder::root_of(warehouse);
    let mut removed = 0;
    for name in names(&root)? {
        let Some(started) = started(&name) else {
            continue;
        };
        let plans = root.join(&name);
        if is_dead(&plans, started, DEAD) {
            place::remove_all(&plans)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// When the query began whose folder has this name.
fn started(name: &str) -> Option<u64> {
    let name = name.strip_prefix("sql_")?.strip_suffix(SUFFIX)?;
    name.split_once('_')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::super::alive::ALIVE;
    use super::*;

    #[test]
    fn only_folders_of_dead_queries_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let warehouse = Warehouse::open(root.path().to_str().unwrap()).unwrap();
        let living = QueryFolder::make(&warehouse, None).unwrap();
        let work = root.path().join(".pmill");
        let folder = |name: &str, alive: Option<u64>| {
            std::fs::create_dir_all(work.join(name)).unwrap();
            if let Some(alive) = alive {
                std::fs::write(work.join(name).join(ALIVE), alive.to_string()).unwrap();
            }
        };
        let young = format!("sql_{}_b.query", now());
        folder("sql_5_a.query", None);
        folder(&young, None);
        folder("sql_5_c.query", Some(now()));
        folder("sql_5_d.query", Some(now() - 301));
        folder("sql-5.units", None);
        assert_eq!(clear_dead(&warehouse).unwrap(), 2);
        for (name, stays) in [
            ("sql_5_a.query", false),
            (&young, true),
            ("sql_5_c.query", true),
            ("sql_5_d.query", false),
            ("sql-5.units", true),
        ] {
            assert_eq!(work.join(name).exists(), stays, "{name}");
        }
        let plans = living.plans.clone();
        assert!(plans.join("plan-units").exists());
        drop(living);
        assert!(!plans.exists());
    }
}
