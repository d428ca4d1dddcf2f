//! Functions for `FROM`: `cooccur`, `neighbours`, `drift`, `absent_pairs`, `estimate`, `matrix_rows`.
//!
//! Their arguments and columns are written in the catalogue of `pmill-stats`. `NamedArguments` brings
//! `name => value` to its place before DataFusion, which takes arguments by place only, sees the call.
//! Nothing is read while a query is being planned but the job that it names; counting starts with the query.

mod absent_pairs;
mod arguments;
mod cooccur;
mod counts;
mod drift;
mod estimate;
mod matrix_rows;
mod neighbours;
mod planned;
mod temporary;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::prelude::SessionContext;
use pmill_stats::catalogue::TableFunctionDoc;
use pmill_store::{Job, Warehouse};

use self::arguments::NamedArguments;
/// Where a query finds the jobs that it names: those whose tables its session has, at the same versions.
#[async_trait]
pub trait Jobs: Debug + Send + Sync + 'static {
    /// A job; `None` when there is none of this name.
    ///
    /// # Errors
    /// When it cannot be opened.
    async fn job(&self, name: &str) -> Result<Option<Job>>;

    /// The names of all.
    fn job_names(&self) -> Vec<String>;

    /// Where they are.
    fn warehouse(&self) -> &Warehouse;
}

/// Makes the functions known to a session whose tables are those of `jobs`. Without `files`, `cooccur` is refused:
/// it reads files of this machine.
///
/// # Errors
/// When the session takes no planner.
pub fn register(context: &SessionContext, jobs: &Arc<dyn Jobs>, files: bool) -> Result<()> {
    context.register_relation_planner(Arc::new(NamedArguments))?;
    let cooccur: Arc<dyn TableFunctionImpl> = match files {
        true => Arc::new(cooccur::Cooccur),
        false => Arc::new(NoFiles(cooccur::DOC)),
    };
    context.register_udtf(cooccur::DOC.name, cooccur);
    context.register_udtf(
        neighbours::DOC.name,
        Arc::new(neighbours::Neighbours(jobs.clone())),
    );
    context.register_udtf(drift::DOC.name, Arc::new(drift::Drift(jobs.clone())));
    context.register_udtf(
        absent_pairs::DOC.name,
        Arc::new(absent_pairs::AbsentPairs(jobs.clone())),
    );
    context.register_udtf(
        estimate::DOC.name,
        Arc::new(estimate::Estimate(jobs.clone())),
    );
    context.register_udtf(matrix_rows::DOC.name, Arc::new(matrix_rows::MatrixRows));
    Ok(())
}

/// Stands for a function where files are not to be read.
#[derive(Debug)]
struct NoFiles(&'static TableFunctionDoc);

impl TableFunctionImpl for NoFiles {
    fn call_with_args(&self, _: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        plan_err!(
            "{} reads files, and this server does not (pmill serve --allow-files would)",
            self.0.name
        )
    }
}

#[cfg(test)]
mod tests {
    use pmill_stats::catalogue::TABLE_FUNCTIONS;

    use super::*;

    #[tokio::test]
    async fn every_table_function_of_the_catalogue_is_registered() {
        let context = SessionContext::new();
        let own: Vec<String> = context.state().table_functions().keys().cloned().collect();
        let folder = tempfile::tempdir().unwrap();
        let warehouse = Warehouse::open(&folder.path().display().to_string()).unwrap();
        crate::catalog::register(&context, &warehouse)
            .await
            .unwrap();
        let mut added: Vec<String> = context
            .state()
            .table_functions()
            .keys()
            .filter(|name| !own.contains(name))
            .cloned()
            .collect();
        added.sort_unstable();
        let mut listed: Vec<&str> = TABLE_FUNCTIONS.iter().map(|doc| doc.name).collect();
        listed.sort_unstable();
        assert_eq!(added, listed);
    }
}
