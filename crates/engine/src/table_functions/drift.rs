//! `drift(a, b)`: pair by pair, what changed between two jobs counted alike, two versions of one job, or two slices of
//! one job (`drift(job, slice, slice)`).
//!
//! The pairs of both, under the ids of `a`, are added up side by side (no join, so that the sum can spill), then get
//! their words and marginals from the two vocabularies, which fit in memory. The formulas are in the catalogue.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::DataType;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::Expr;
use datafusion::prelude::SessionContext;
use pmill_stats::catalogue::{DRIFT, TableFunctionDoc};

use super::Jobs;
use super::arguments::Arguments;
use super::counts::JobCounts;
use super::planned::{PlannedTable, Query, external};

pub(super) static DOC: &TableFunctionDoc = &DRIFT;

/// The columns after `left` and `right`.
const NUMBERS: [&str; 15] = [
    "n_xy_a",
    "n_x_a",
    "n_y_a",
    "n_a",
    "n_xy_b",
    "n_x_b",
    "n_y_b",
    "n_b",
    "pmi_a",
    "pmi_b",
    "pmi_difference",
    "pmi_z",
    "log_odds_difference",
    "log_odds_z",
    "js",
];

#[derive(Debug)]
pub(super) struct Drift(pub(super) Arc<dyn Jobs>);

#[derive(Debug)]
struct Asked {
    jobs: Arc<dyn Jobs>,
    a: String,
    b: String,
    slice_a: Option<String>,
    slice_b: Option<String>,
    min_pair_count: f64,
}

impl TableFunctionImpl for Drift {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let arguments = Arguments::new(DOC, args.exprs())?;
        let (a, b) = (arguments.required_text("a")?, arguments.required_text("b")?);
        let mut asked = Asked {
            jobs: self.0.clone(),
            a,
            b,
            slice_a: arguments.text("slice_a")?,
            slice_b: arguments.text("slice_b")?,
            min_pair_count: arguments.number("min_pair_count")?.unwrap_or(0.0),
        };
        match arguments.expression("to") {
            // drift(a, b, least)
            Some(Expr::Literal(least, _)) if !least.is_null() && least.try_as_str().is_none() => {
                asked.min_pair_count = arguments.number("to")?.unwrap_or(0.0);
            }
            // drift(job, slice, slice)
            _ => {
                if let Some(to) = arguments.text("to")? {
                    if asked.slice_a.is_some() || asked.slice_b.is_some() {
                        return plan_err!(
                            "{}: with `to`, `b` and `to` are the slices; leave slice_a and slice_b out",
                            DOC.name
                        );
                    }
                    asked.slice_a = Some(asked.b);
                    asked.slice_b = Some(to);
                    asked.b = asked.a.clone();
                }
            }
        }
        let words = ["left", "right"].map(|name| (name.to_owned(), DataType::Utf8View));
        let numbers = NUMBERS.map(|name| (name.to_owned(), DataType::Float64));
        let columns = words.into_iter().chain(numbers).collect();
        Ok(Arc::new(PlannedTable::new(columns, asked)))
    }
}

#[async_trait]
impl Query for Asked {
    async fn sql(&self, context: &SessionContext) -> Result<String> {
        let (jobs, name) = (self.jobs.as_ref(), DOC.name);
        let (slice_a, slice_b) = (self.slice_a.as_deref(), self.slice_b.as_deref());
        let a = JobCounts::open_slice(context, jobs, name, &self.a, slice_a).await?;
        let b = JobCounts::open_slice(context, jobs, name, &self.b, slice_b).await?;
        for (job, counts) in [(&self.a, &a), (&self.b, &b)] {
            crate::tail::refuse(DOC.name, job, &counts.settings).map_err(external)?;
        }
        let differences = a.settings.differences(&b.settings);
        if !differences.is_empty() {
            return plan_err!(
                "{}: `{}` (here) and `{}` (there) were counted with different settings: {}",
                DOC.name,
                self.a,
                self.b,
                differences.join("; ")
            );
        }
        // A symmetric pair is stored under the order of its own vocabulary; both get the order of a's.
        let (x, y) = if a.symmetric {
            ("least(l.id_a, r.id_a)", "greatest(l.id_a, r.id_a)")
        } else {
            ("l.id_a", "r.id_a")
        };
        let side = |counts: &JobCounts, id: &str, columns: &str| {
            format!(
                "SELECT {x} AS x, {y} AS y, {columns} FROM ({}) p \
                 JOIN words l ON p.left_id = l.{id} JOIN words r ON p.right_id = r.{id}",
                counts.pairs("true")
            )
        };
        Ok(format!(
            "WITH words AS (SELECT a.token, a.id AS id_a, b.id AS id_b, a.n_left AS left_a, a.n_right AS right_a, \
                b.n_left AS left_b, b.n_right AS right_b FROM ({terms_a}) a JOIN ({terms_b}) b ON a.token = b.token), \
             counted AS (SELECT x, y, sum(a) AS a, sum(b) AS b FROM ({pairs_a} UNION ALL {pairs_b}) GROUP BY x, y), \
             kept AS (SELECT x, y, a, b FROM counted WHERE a + b >= {least:?}), \
             totals AS (SELECT sum(a) AS total_a, sum(b) AS total_b FROM kept), \
             named AS (SELECT l.token AS \"left\", r.token AS \"right\", \
                a AS n_xy_a, l.left_a AS n_x_a, r.right_a AS n_y_a, CAST({n_a:?} AS DOUBLE) AS n_a, \
                b AS n_xy_b, l.left_b AS n_x_b, r.right_b AS n_y_b, CAST({n_b:?} AS DOUBLE) AS n_b, \
                a / total_a AS p, b / total_b AS q \
                FROM kept CROSS JOIN totals JOIN words l ON x = l.id_a JOIN words r ON y = r.id_a), \
             scored AS (SELECT *, pmi(n_xy_a, n_x_a, n_y_a, n_a) AS pmi_a, pmi(n_xy_b, n_x_b, n_y_b, n_b) AS pmi_b, \
                n_xy_a > 0 AND n_xy_b > 0 AS in_both, (p + q) / 2 AS m FROM named) \
             SELECT \"left\", \"right\", n_xy_a, n_x_a, n_y_a, n_a, n_xy_b, n_x_b, n_y_b, n_b, pmi_a, pmi_b, \
                CASE WHEN in_both THEN pmi_b - pmi_a END AS pmi_difference, \
                CASE WHEN in_both THEN (pmi_b - pmi_a) / nullif(sqrt(pmi_variance(n_xy_a, n_x_a, n_y_a, n_a) \
                     + pmi_variance(n_xy_b, n_x_b, n_y_b, n_b)), 0.0) END AS pmi_z, \
                {difference} AS log_odds_difference, {difference} / {error} AS log_odds_z, \
                (CASE WHEN p > 0 THEN p * ln(p / m) ELSE 0.0 END + CASE WHEN q > 0 THEN q * ln(q / m) ELSE 0.0 END) / 2 AS js \
             FROM scored",
            terms_a = a.terms(),
            terms_b = b.terms(),
            pairs_a = side(&a, "id_a", "n_xy AS a, CAST(0 AS DOUBLE) AS b"),
            pairs_b = side(&b, "id_b", "CAST(0 AS DOUBLE) AS a, n_xy AS b"),
            least = self.min_pair_count,
            n_a = a.n,
            n_b = b.n,
            difference = "(ln((n_xy_b + 0.5) / (n_b - n_xy_b + 0.5)) - ln((n_xy_a + 0.5) / (n_a - n_xy_a + 0.5)))",
            error = "sqrt(1 / (n_xy_a + 0.5) + 1 / (n_a - n_xy_a + 0.5) + 1 / (n_xy_b + 0.5) + 1 / (n_b - n_xy_b + 0.5))",
        ))
    }
}
