//! A job's counts as SQL: natural units, the marginals that `pmill score` takes by default.

use std::ops::Range;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::prelude::SessionContext;
use pmill_count::Side;
use pmill_store::Job;

use super::Jobs;
use super::planned::{external, job};
use crate::job::{Facts, parse};
use crate::settings::{ContextKind, RecordedSettings};
use crate::sql;
use crate::tail::TailFacts;

/// What is needed to write the counts of a job.
#[derive(Debug)]
pub(super) struct JobCounts {
    pub(super) job: Job,
    pub(super) settings: RecordedSettings,
    schema: String,
    pub(super) unit: u64,
    /// Ids that a pair may have.
    pub(super) size: u32,
    /// The sketched pairs, of a job with a sketch.
    pub(super) tail: Option<TailFacts>,
    /// A pair of two features stands for both orders.
    pub(super) symmetric: bool,
    pub(super) windows: bool,
    /// All contexts, in natural units.
    pub(super) n: f64,
    /// Ids of the slice, of a job that is counted by slice.
    ids: Option<Range<u64>>,
}

impl JobCounts {
    pub(super) async fn open(
        context: &SessionContext,
        jobs: &dyn Jobs,
        function: &str,
        name: &str,
    ) -> Result<Self> {
        Self::open_slice(context, jobs, function, name, None).await
    }

    /// The counts of one slice of a job; of the whole job, which then must not be counted by slice.
    pub(super) async fn open_slice(
        context: &SessionContext,
        jobs: &dyn Jobs,
        function: &str,
        name: &str,
        slice: Option<&str>,
    ) -> Result<Self> {
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
        let mut units: u128 = facts.units.parse().unwrap_or(u128::MAX);
        if let Some(tail) = &facts.tail {
            units = units.saturating_add(tail.units().map_err(external)?.into());
        }
        // SQL sums counts as Int64, without a word when they pass it; a row's sum is at most this.
        if units > i64::MAX as u128 / 2 {
            return plan_err!(
                "{function}: the counts of job `{name}` add up to {units}, more than SQL's integers hold"
            );
        }
        let unit = facts.weight_unit;
        let (mut rows, mut units, mut ids) = (facts.rows, units, None);
        match (settings.given.slice.is_some(), slice) {
            (false, None) => {}
            (false, Some(slice)) => {
                return plan_err!(
                    "{function}: job `{name}` is not counted by slice, so it has no slice `{slice}`"
                );
            }
            (true, _) => {
                let keys = facts.slices.iter().map(|facts| facts.slice.as_deref());
                let place = slice.and_then(|slice| keys.clone().position(|key| key == Some(slice)));
                let Some(place) = place else {
                    let known: Vec<&str> = keys.flatten().take(20).collect();
                    let asked = slice.map_or("which slice is not said".to_owned(), |slice| {
                        format!("it has no slice `{slice}`")
                    });
                    return plan_err!(
                        "{function}: job `{name}` is counted by slice, and {asked}; its slices: {}",
                        known.join(", ")
                    );
                };
                let range = place as u64 * facts.terms..(place as u64 + 1) * facts.terms;
                rows = facts.slices[place].rows;
                if windows {
                    units = sum(context, &sql::name(name), &range).await?;
                }
                ids = Some(range);
            }
        }
        let n = match (windows, symmetric) {
            (false, _) => rows as f64,
            (true, true) => (2 * units) as f64 / unit as f64,
            (true, false) => units as f64 / unit as f64,
        };
        Ok(Self {
            job,
            settings,
            schema: sql::name(name),
            unit,
            size: u32::try_from(facts.ids()).unwrap_or(u32::MAX),
            tail: facts.tail,
            symmetric,
            windows,
            n,
            ids,
        })
    }

    /// SQL that is true for ids of the slice.
    pub(super) fn in_slice(&self, column: &str) -> String {
        match &self.ids {
            None => "true".to_owned(),
            Some(ids) => format!("({column} >= {} AND {column} < {})", ids.start, ids.end),
        }
    }

    /// Columns `id`, `token`, `n_left` and `n_right`: the contexts of each feature on each side.
    pub(super) fn terms(&self) -> String {
        let schema = &self.schema;
        if !self.windows {
            return format!(
                "SELECT id, token, CAST(documents AS DOUBLE) AS n_left, CAST(documents AS DOUBLE) AS n_right \
                 FROM {schema}.vocab WHERE {}",
                self.in_slice("id")
            );
        }
        let unit = self.unit;
        let sums = |ids: &str| format!("(SELECT id, sum(c) AS m FROM ({ids}) GROUP BY id)");
        let side = |column: &str| {
            let inside = self.in_slice(column);
            format!("SELECT {column} AS id, \"count\" AS c FROM {schema}.pairs WHERE {inside}")
        };
        let inside = self.in_slice("v.id");
        // The exact sums of the sketched pairs are kept with the terms.
        let sketched = |columns: &str| match self.tail {
            None => String::new(),
            Some(_) => format!(" + {columns}"),
        };
        let (left, right) = if self.symmetric {
            let both = sums(&format!(
                "{} UNION ALL {}",
                side("left_id"),
                side("right_id")
            ));
            let more = sketched("v.tail_left + v.tail_right");
            return format!(
                "SELECT v.id, v.token, (coalesce(s.m, 0){more}) / CAST({unit} AS DOUBLE) AS n_left, \
                 (coalesce(s.m, 0){more}) / CAST({unit} AS DOUBLE) AS n_right \
                 FROM {schema}.vocab v LEFT JOIN {both} s ON v.id = s.id WHERE {inside}"
            );
        } else {
            (sums(&side("left_id")), sums(&side("right_id")))
        };
        let (more_left, more_right) = (sketched("v.tail_left"), sketched("v.tail_right"));
        format!(
            "SELECT v.id, v.token, (coalesce(l.m, 0){more_left}) / CAST({unit} AS DOUBLE) AS n_left, \
             (coalesce(r.m, 0){more_right}) / CAST({unit} AS DOUBLE) AS n_right \
             FROM {schema}.vocab v LEFT JOIN {left} l ON v.id = l.id LEFT JOIN {right} r ON v.id = r.id \
             WHERE {inside}"
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
        let inside = self.in_slice("left_id");
        format!(
            "SELECT left_id, right_id, {count} / CAST({unit} AS DOUBLE) AS n_xy FROM {schema}.pairs \
             WHERE {condition} AND {inside}"
        )
    }
}

/// The sum of the pairs of some left ids.
async fn sum(context: &SessionContext, schema: &str, ids: &Range<u64>) -> Result<u128> {
    let query = format!(
        "SELECT coalesce(sum(\"count\"), 0) FROM {schema}.pairs WHERE left_id >= {} AND left_id < {}",
        ids.start, ids.end
    );
    let batches = context.sql(&query).await?.collect().await?;
    let sum = batches.iter().find(|batch| batch.num_rows() > 0);
    let sum = sum.and_then(|batch| {
        let sums = batch.column(0).as_primitive_opt::<Int64Type>()?;
        u128::try_from(sums.value(0)).ok()
    });
    Ok(sum.unwrap_or(0))
}
