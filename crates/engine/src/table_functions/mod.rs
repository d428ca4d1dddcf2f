//! Functions for `FROM`: `cooccur`, `neighbours`, `drift`, `matrix_rows`.
//!
//! Their arguments and columns are written in the catalogue of `pmill-stats`. `NamedArguments` brings
//! `name => value` to its place before DataFusion, which takes arguments by place only, sees the call.
//! Nothing is read while a query is being planned but the job that it names; counting starts with the query.

mod arguments;
mod cooccur;
mod counts;
mod drift;
mod matrix_rows;
mod neighbours;
mod planned;
mod temporary;

use std::sync::Arc;

use datafusion::error::Result;
use datafusion::prelude::SessionContext;

use self::arguments::NamedArguments;
use crate::catalog::WarehouseCatalog;

/// Makes the functions known to a session whose tables are those of `catalog`.
///
/// # Errors
/// When the session takes no planner.
pub(crate) fn register(context: &SessionContext, catalog: &Arc<WarehouseCatalog>) -> Result<()> {
    let catalog = || catalog.clone();
    context.register_relation_planner(Arc::new(NamedArguments))?;
    context.register_udtf(cooccur::DOC.name, Arc::new(cooccur::Cooccur));
    context.register_udtf(
        neighbours::DOC.name,
        Arc::new(neighbours::Neighbours(catalog())),
    );
    context.register_udtf(drift::DOC.name, Arc::new(drift::Drift(catalog())));
    context.register_udtf(matrix_rows::DOC.name, Arc::new(matrix_rows::MatrixRows));
    Ok(())
}

#[cfg(test)]
mod tests {
    use pmill_stats::catalogue::TABLE_FUNCTIONS;
    use pmill_store::Warehouse;

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
