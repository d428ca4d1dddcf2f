//! A count job as units that any process can run: the cluster's and the shards' way.
//!
//! ```text
//! plan ─▶ terms(unit) … ─▶ fold(units) … ─▶ vocabulary
//!      ─▶ count(unit) … ─▶ combine(units) … ─▶ runs ─▶ reduce(range) … ─▶ commit
//! ```
//!
//! Everything a unit needs and leaves lies in the plan's folder, which all processes see (a shared
//! file system). A unit is told by a [`UnitSpec`], which is data; what it leaves is named by its
//! manifest, put last and only if it is not there yet ([`PlanFolder::put`]). So what has a manifest
//! is done, a unit may be run twice at once, and whoever dies is replaced by anyone.
//!
//! The tables do not depend on who ran what: terms are summed, runs are sums of integers, and the
//! cut into table files follows from the vocabulary alone. They are the bytes that
//! [`super::count`] writes.

mod alive;
mod annotate;
mod attempts;
mod average;
mod commit;
mod drive;
mod fold;
mod folder;
mod kept;
mod map;
mod matrix;
mod merge;
pub(crate) mod place;
mod plan;
mod query;
mod reduce;
mod score;
mod shard;
mod spec;
mod state;
mod terms;
mod vocabulary;
mod worker;

pub use annotate::AnnotateDrive;
pub use average::AverageDrive;
pub use commit::commit;
pub use drive::{Drive, Phase, Runner};
pub use folder::{PlanFolder, is_gone};
pub use matrix::{MatrixDrive, MatrixRows};
pub use merge::MergeDrive;
pub use plan::{PROTOCOL, PlanHeader, PlanUnit, UnitFile};
pub use query::{
    Answer, JobVersions, Planned, QueryDrive, QueryPlan, QueryRequest, Sees, scanned_bytes,
};
pub use score::ScoreDrive;
pub use shard::{Shard, ShardSummary};
pub use spec::{Failure, UnitSpec, Work, may_pass};
pub use state::PlanState;
pub use worker::{GRACE, UnitWorker, WorkerLimits};

use crate::error::EngineError;

/// Removes what drivers of queries and matrices left that were killed; gives how many.
///
/// # Errors
/// When the folders cannot be listed or removed.
pub fn clear_dead(warehouse: &pmill_store::Warehouse) -> Result<usize, EngineError> {
    Ok(query::clear_dead(warehouse)? + matrix::clear_dead_matrices(warehouse)?)
}
