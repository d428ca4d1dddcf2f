//! The executor's side of a query: plans it as the driver did, and runs one partition of a fragment.

use std::path::Path;
use std::sync::Arc;

use datafusion::execution::SessionState;
use datafusion::execution::TaskContext;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::LogicalPlan;
use pmill_store::Warehouse;

use super::super::folder::PlanFolder;
use super::super::spec::Work;
use super::super::worker::{UnitWorker, finish};
use super::rows::{self, QueryDone};
use super::{QueryCatalog, QueryHeader, fragments, refused};
use crate::error::EngineError;
use crate::progress::StopFlag;
use crate::session::{Session, query};

/// A query as a worker has it.
pub(in super::super) struct LoadedQuery {
    header: QueryHeader,
    session: Session,
    state: SessionState,
    logical: LogicalPlan,
}

impl LoadedQuery {
    pub(in super::super) fn open(
        folder: &PlanFolder,
        worker: &UnitWorker,
    ) -> Result<Self, EngineError> {
        let header = folder.need_header::<QueryHeader>()?;
        let warehouse = Warehouse::open(&header.warehouse)?;
        worker.check_warehouse(&warehouse)?;
        let limits = &worker.limits;
        let session = Session::new(limits.threads, limits.memory, Some(&limits.scratch))?;
        // Nothing but these tables can be named: no file, and no function that reads one.
        let catalog = Arc::new(QueryCatalog::exactly(&warehouse, &header.versions)?);
        let state = super::state(session.context(), &catalog, header.partitions);
        let parameters = header.parameters.as_deref();
        let logical = session
            .wait(super::logical(&state, &header.sql, parameters))
            .map_err(refused)?;
        if !super::can_be_planned_twice(&logical).map_err(refused)? {
            return Err(EngineError::Setting(
                "this query is not one that a driver sends: it would not give the same rows everywhere".into(),
            ));
        }
        Ok(Self {
            header,
            session,
            state,
            logical,
        })
    }

    /// Runs a unit; `attempt` names its file.
    pub(in super::super) fn run(
        &self,
        folder: &PlanFolder,
        work: &Work,
        (attempt, scratch, memory): (&str, &Path, u64),
        stop: &StopFlag,
    ) -> Result<bool, EngineError> {
        let name = work.name();
        let Work::Query {
            fragment,
            partition,
        } = *work
        else {
            return Err(EngineError::Bug(format!("`{name}` is not of a query")));
        };
        let sent = self.header.fragments.iter().find(|f| f.number == fragment);
        let plan = self
            .session
            .wait(super::physical(&self.state, &self.logical));
        let found = fragments::find(&plan.map_err(refused)?);
        let (Some(sent), Some(plan)) = (sent, found.get(fragment)) else {
            return Err(otherwise(fragment));
        };
        if fragments::digest(plan) != sent.digest {
            return Err(otherwise(fragment));
        }
        let plan = fragments::restrict(plan, partition).map_err(refused)?;
        // A pool and temporary files of its own: other units run beside it.
        let spill = scratch.join("spill");
        std::fs::create_dir_all(&spill)
            .map_err(|source| super::super::place::io("create", &spill, source))?;
        let pool = GreedyMemoryPool::new(usize::try_from(memory).unwrap_or(usize::MAX));
        let disk = DiskManagerMode::Directories(vec![spill]);
        let environment = RuntimeEnvBuilder::from_runtime_env(self.state.runtime_env())
            .with_memory_pool(Arc::new(pool))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(disk))
            .build_arc()
            .map_err(query)?;
        let context = Arc::new(TaskContext::from(&self.state).with_runtime(environment));
        let stream = {
            let _inside = self.session.handle().enter();
            plan.execute(0, context).map_err(query)?
        };
        let file = format!("{attempt}-{name}.arrows");
        let path = folder.outbox(scratch)?.join(&file);
        let (rows, bytes) = rows::write(&self.session, stream, &path, stop)?;
        folder.send(scratch)?;
        finish(
            folder,
            &name,
            attempt,
            stop,
            &QueryDone { file, rows, bytes },
        )
    }
}

fn otherwise(fragment: usize) -> EngineError {
    EngineError::Setting(format!(
        "this executor plans the query otherwise than its driver (fragment {fragment}): run the same version of pmill everywhere, and see that the warehouse's tables are the same files for all"
    ))
}
