//! Lists of words that a query brings along (`JOIN (VALUES …)`, `IN (VALUES …)`) as a filter of the
//! scan: the index then reads the rows of these words and no others.
//!
//! Done once, on the optimised plan: a list of 10,000 words in a filter would make every rule slow.

use std::sync::Arc;

use datafusion::catalog::default_table_source::source_as_provider;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Cast, Expr, Join, JoinType, LogicalPlan, TableScan, TryCast};

use crate::table::FileTable;

/// Gives each scan that is joined with a list on an indexed column the list as a filter.
///
/// # Errors
/// When a plan cannot be put together again.
pub fn narrow(plan: LogicalPlan) -> Result<LogicalPlan> {
    let changed = plan.transform_up(|node| {
        let LogicalPlan::Join(join) = &node else {
            return Ok(Transformed::no(node));
        };
        Ok(match narrow_join(join)? {
            Some(join) => Transformed::yes(LogicalPlan::Join(join)),
            None => Transformed::no(node),
        })
    })?;
    Ok(changed.data)
}

fn narrow_join(join: &Join) -> Result<Option<Join>> {
    // A row without a partner must be of no use.
    if !matches!(
        join.join_type,
        JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi
    ) {
        return Ok(None);
    }
    for (left, right) in &join.on {
        if let Some(words) = words(&join.right, right)
            && let Some(plan) = with_filter(&join.left, left, &words)?
        {
            return Ok(Some(Join {
                left: Arc::new(plan),
                ..join.clone()
            }));
        }
        if let Some(words) = words(&join.left, left)
            && let Some(plan) = with_filter(&join.right, right, &words)?
        {
            return Ok(Some(Join {
                right: Arc::new(plan),
                ..join.clone()
            }));
        }
    }
    Ok(None)
}

/// The column that an expression is, perhaps as another kind of text.
fn column(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => column(&alias.expr),
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })
            if field.data_type().is_string() =>
        {
            column(expr)
        }
        _ => None,
    }
}

/// What an expression over a plan can be, when it comes from a list of constants.
fn words(plan: &LogicalPlan, expr: &Expr) -> Option<Vec<Expr>> {
    let place = plan.schema().maybe_index_of_column(column(expr)?)?;
    words_at(plan, place)
}

fn words_at(plan: &LogicalPlan, place: usize) -> Option<Vec<Expr>> {
    match plan {
        LogicalPlan::SubqueryAlias(alias) => words_at(&alias.input, place),
        LogicalPlan::Filter(filter) => words_at(&filter.input, place),
        LogicalPlan::Projection(projection) => {
            words(&projection.input, projection.expr.get(place)?)
        }
        LogicalPlan::Values(values) => {
            let mut words = Vec::with_capacity(values.values.len());
            for row in &values.values {
                match row.get(place)? {
                    // NULL equals nothing.
                    Expr::Literal(value, _) => words.extend(value.try_as_str()?.map(str::to_owned)),
                    _ => return None,
                }
            }
            words.sort_unstable();
            words.dedup();
            let literal = |word| Expr::Literal(ScalarValue::Utf8(Some(word)), None);
            Some(words.into_iter().map(literal).collect())
        }
        _ => None,
    }
}

/// The plan with a filter on the scan that the expression comes from; `None` when that has no use for it.
fn with_filter(plan: &LogicalPlan, expr: &Expr, words: &[Expr]) -> Result<Option<LogicalPlan>> {
    let found = column(expr).and_then(|column| plan.schema().maybe_index_of_column(column));
    match found {
        Some(place) => with_filter_at(plan, place, words),
        None => Ok(None),
    }
}

fn with_filter_at(plan: &LogicalPlan, place: usize, words: &[Expr]) -> Result<Option<LogicalPlan>> {
    let input = match plan {
        LogicalPlan::TableScan(scan) => return Ok(filtered_scan(scan, place, words)),
        LogicalPlan::SubqueryAlias(alias) => with_filter_at(&alias.input, place, words)?,
        LogicalPlan::Filter(filter) => with_filter_at(&filter.input, place, words)?,
        LogicalPlan::Projection(projection) => match projection.expr.get(place) {
            Some(expr) => with_filter(&projection.input, expr, words)?,
            None => None,
        },
        _ => None,
    };
    input
        .map(|input| plan.with_new_exprs(plan.expressions(), vec![input]))
        .transpose()
}

fn filtered_scan(scan: &TableScan, place: usize, words: &[Expr]) -> Option<LogicalPlan> {
    let provider = source_as_provider(&scan.source).ok()?;
    let table = provider.downcast_ref::<FileTable>()?;
    let name = scan.projected_schema.field(place).name();
    // A limit counts rows before the join.
    if name != table.column() || scan.fetch.is_some() {
        return None;
    }
    let column = Expr::Column(Column::new(Some(scan.table_name.clone()), name));
    let mut scan = scan.clone();
    scan.filters.push(Expr::InList(InList::new(
        Box::new(column),
        words.to_vec(),
        false,
    )));
    Some(LogicalPlan::TableScan(scan))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    use datafusion::common::tree_node::TreeNodeRecursion;
    use datafusion::execution::object_store::ObjectStoreUrl;
    use datafusion::object_store::memory::InMemory;
    use datafusion::prelude::SessionContext;

    use super::*;

    /// The lists that scans of `pmi` got.
    async fn lists(sql: &str) -> Vec<Vec<String>> {
        let text = |name| Field::new(name, DataType::Utf8, false);
        let schema = Schema::new(vec![text("left"), text("right")]);
        let store = Arc::new(InMemory::new());
        let url = ObjectStoreUrl::local_filesystem();
        let table = FileTable::new(Arc::new(schema), store, url, Vec::new());
        let context = SessionContext::new();
        context.register_table("pmi", Arc::new(table)).unwrap();
        let plan = context.sql(sql).await.unwrap().into_optimized_plan();
        let plan = narrow(plan.unwrap()).unwrap();
        let mut found = Vec::new();
        plan.apply(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                found.extend(scan.filters.iter().filter_map(|filter| match filter {
                    Expr::InList(list) => Some(list.list.iter().map(ToString::to_string).collect()),
                    _ => None,
                }));
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .unwrap();
        found
    }

    #[tokio::test]
    async fn a_list_that_is_joined_becomes_a_filter() {
        let words = vec![vec!["Utf8(\"cat\")".to_owned(), "Utf8(\"dog\")".to_owned()]];
        let list = "(VALUES ('dog', 'x'), ('cat', 'y'), ('dog', NULL)) AS q(l, r)";
        for sql in [
            format!(r#"SELECT p.* FROM pmi p JOIN {list} ON p."left" = q.l AND p."right" = q.r"#),
            format!(r#"SELECT p.* FROM {list} JOIN pmi p ON q.l = p."left""#),
            format!(r#"SELECT * FROM pmi WHERE "left" IN (SELECT l FROM {list})"#),
            format!(r#"SELECT p.* FROM pmi p, {list} WHERE p."left" = q.l AND "right" > 'a'"#),
        ] {
            assert_eq!(lists(&sql).await, words, "{sql}");
        }
    }

    #[tokio::test]
    async fn rows_without_a_partner_are_kept_where_they_count() {
        let list = "(VALUES ('dog'), ('cat')) AS q(l)";
        for sql in [
            format!(r#"SELECT * FROM pmi p LEFT JOIN {list} ON p."left" = q.l"#),
            format!(r#"SELECT * FROM pmi WHERE "left" NOT IN (SELECT l FROM {list})"#),
            format!(r#"SELECT * FROM pmi p JOIN {list} ON p."right" = q.l"#),
            format!(r#"SELECT * FROM (SELECT * FROM pmi LIMIT 5) p JOIN {list} ON p."left" = q.l"#),
            r#"SELECT * FROM pmi p JOIN pmi q ON p."left" = q."right""#.to_owned(),
        ] {
            assert!(lists(&sql).await.is_empty(), "{sql}");
        }
    }
}
