//! A job's counts as SQL: natural units, the marginals that `pmill score` takes by default.

use datafusion::common::plan_err;
use datafusion::error::Result;
use pmill_count::Side;
use pmill_store::Job;

use super::Jobs;
use super::planned::{external, job};
use crate::job::{Facts, parse};
use crate::settings::{ContextKind, RecordedSettings};
use crate::sql;

/// What is needed to write the counts of a job.
pub(super) struct JobCounts {
    pub(super) job: Job,
    pub(super) settings: RecordedSettings,
    schema: String,
    unit: u64,
    /// A pair of two features stands for both orders.
    pub(super) symmetric: bool,
    pub(super) windows: bool,
    /// All contexts, in natural units.
    pub(super) n: f64,
}

impl JobCounts {
    pub(super) async fn open(jobs: &dyn Jobs, function: &str, name: &str) -> Result<Self> {
        let job = job(jobs, function, name).await?;
        let settings: RecordedSettings =
            parse(&job.settings().map_err(external)?).map_err(external)?;
        let facts: Facts = parse(&job.facts().map_err(external)?).map_err(external)?;
        let kind = settings.given.context.kind;
        let windows = kind == ContextKind::Window;
        if !windows && kind != ContextKind::Document {
            return plan_err!(
                "{function}: job `{name}` counts pairs of two columns; ask its tables `{name}.pmi` and `{name}.pairs`"
            );
        }
        let symmetric = !windows || settings.given.context.side == Side::Symmetric;
        let units: u128 = facts.units.parse().unwrap_or(u128::MAX);
        // SQL sums counts as Int64, without a word when they pass it; a row's sum is at most this.
        if units > i64::MAX as u128 / 2 {
            return plan_err!(
                "{function}: the counts of job `{name}` add up to {units}, more than SQL's integers hold"
            );
        }
        let unit = facts.weight_unit;
        let n = match (windows, symmetric) {
            (false, _) => facts.rows as f64,
            (true, true) => (2 * units) as f64 / unit as f64,
            (true, false) => units as f64 / unit as f64,
        };
        Ok(Self {
            job,
            settings,
            schema: sql::name(name),
            unit,
            symmetric,
            windows,
            n,
        })
    }

    /// Columns `id`, `token`, `n_left` and `n_right`: the contexts of each feature on each side.
    pub(super) fn terms(&self) -> String {
        let schema = &self.schema;
        if !self.windows {
            return format!(
                "SELECT id, token, CAST(documents AS DOUBLE) AS n_left, CAST(documents AS DOUBLE) AS n_right \
                 FROM {schema}.vocab"
            );
        }
        let unit = self.unit;
        let sums = |ids: &str| format!("(SELECT id, sum(c) AS m FROM ({ids}) GROUP BY id)");
        let side =
            |column: &str| format!("SELECT {column} AS id, \"count\" AS c FROM {schema}.pairs");
        let (left, right) = if self.symmetric {
            let both = sums(&format!(
                "{} UNION ALL {}",
                side("left_id"),
                side("right_id")
            ));
            return format!(
                "SELECT v.id, v.token, coalesce(s.m, 0) / CAST({unit} AS DOUBLE) AS n_left, \
                 coalesce(s.m, 0) / CAST({unit} AS DOUBLE) AS n_right \
                 FROM {schema}.vocab v LEFT JOIN {both} s ON v.id = s.id"
            );
        } else {
            (sums(&side("left_id")), sums(&side("right_id")))
        };
        format!(
            "SELECT v.id, v.token, coalesce(l.m, 0) / CAST({unit} AS DOUBLE) AS n_left, \
             coalesce(r.m, 0) / CAST({unit} AS DOUBLE) AS n_right \
             FROM {schema}.vocab v LEFT JOIN {left} l ON v.id = l.id LEFT JOIN {right} r ON v.id = r.id"
        )
    }

    /// Columns `left_id`, `right_id`, `n_xy`, as stored; `condition` is SQL over the first two.
    pub(super) fn pairs(&self, condition: &str) -> String {
        let (schema, unit) = (&self.schema, self.unit);
        // The symmetric matrix holds a pair of a term with itself twice.
        let count = if self.windows && self.symmetric {
            "(CASE WHEN left_id = right_id THEN 2 * \"count\" ELSE \"count\" END)"
        } else {
            "\"count\""
        };
        format!(
            "SELECT left_id, right_id, {count} / CAST({unit} AS DOUBLE) AS n_xy FROM {schema}.pairs WHERE {condition}"
        )
    }
}
