//! `matrix_rows(matrix)`: the entries of a matrix as a table. The matrix is an expression without columns, mostly a
//! query in brackets, so this is a logical plan and no scan.

use std::sync::Arc;

use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::plan_err;
use datafusion::datasource::ViewTable;
use datafusion::error::Result;
use datafusion::functions::core::expr_fn::get_field;
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::prelude::col;
use pmill_stats::catalogue::{MATRIX_ROWS, TableFunctionDoc};

use super::arguments::Arguments;

pub(super) static DOC: &TableFunctionDoc = &MATRIX_ROWS;

#[derive(Debug)]
pub(super) struct MatrixRows;

impl TableFunctionImpl for MatrixRows {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let arguments = Arguments::new(DOC, args.exprs())?;
        let Some(matrix) = arguments.expression("matrix") else {
            return plan_err!("{}: `matrix` is missing", DOC.name);
        };
        let functions = pmill_stats::all_scalar_functions();
        let Some(entries) = functions
            .iter()
            .find(|function| function.name() == "matrix_entries")
        else {
            return plan_err!("matrix_entries is not there");
        };
        let field = |name: &str| get_field(col("entry"), name).alias(name);
        let plan = LogicalPlanBuilder::empty(true)
            .project(vec![entries.call(vec![matrix.clone()]).alias("entry")])?
            .unnest_column("entry")?
            .project(vec![field("row"), field("column"), field("value")])?
            .build()?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }
}
