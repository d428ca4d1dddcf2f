//! `neighbours(job, word [, k] [, measure] [, min_pair_count])`: the k best partners of a word.
//!
//! A scored job is asked for its `pmi`; a job that is not is asked for its counts. A pair is turned so that x is the
//! word. A score column is used as it is unless its measure tells x from y, because in half of the rows x and y are
//! turned.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::DataType;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::prelude::SessionContext;
use pmill_stats::catalogue::{NEIGHBOURS, TableFunctionDoc};
use pmill_stats::{Base, measure};

use super::Jobs;
use super::arguments::Arguments;
use super::counts::JobCounts;
use super::planned::{PlannedTable, Query, external};
use crate::error::nearest_name;
use crate::score::column;
use crate::sql;

pub(super) static DOC: &TableFunctionDoc = &NEIGHBOURS;

#[derive(Debug)]
pub(super) struct Neighbours(pub(super) Arc<dyn Jobs>);

#[derive(Debug)]
struct Asked {
    jobs: Arc<dyn Jobs>,
    job: String,
    word: String,
    k: u64,
    measure: String,
    min_pair_count: f64,
    slice: Option<String>,
}

impl TableFunctionImpl for Neighbours {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let arguments = Arguments::new(DOC, args.exprs())?;
        let asked = Asked {
            jobs: self.0.clone(),
            job: arguments.required_text("job")?,
            word: arguments.required_text("word")?,
            k: arguments.whole("k")?.unwrap_or(10),
            measure: arguments
                .text("measure")?
                .unwrap_or_else(|| "npmi".to_owned()),
            min_pair_count: arguments.number("min_pair_count")?.unwrap_or(0.0),
            slice: arguments.text("slice")?,
        };
        let columns = DOC.columns.iter().map(|(name, _)| {
            let kind = match *name {
                "rank" => DataType::UInt64,
                "neighbour" => DataType::Utf8View,
                _ => DataType::Float64,
            };
            ((*name).to_owned(), kind)
        });
        Ok(Arc::new(PlannedTable::new(columns.collect(), asked)))
    }
}

/// Whether the measure is another when x and y change places. Measures with required parameters are taken to be.
fn tells_sides(name: &str) -> bool {
    measure(name).is_some_and(|found| {
        let (one, other) = (
            found.score(3.0, 7.0, 11.0, 50.0, &[]),
            found.score(3.0, 11.0, 7.0, 50.0, &[]),
        );
        match (one, other) {
            (Ok(Some(one)), Ok(Some(other))) => (one - other).abs() > 1e-9 * one.abs(),
            _ => true,
        }
    })
}

impl Asked {
    /// The pairs that hold the word, turned: `neighbour`, `score` or nothing, `n_xy`, `n_x`, `n_y`, `n`.
    fn query_of_scores(&self, symmetric: bool, score: Option<&str>) -> String {
        let (word, table) = (
            sql::literal(&self.word),
            format!("{}.pmi", sql::name(&self.job)),
        );
        let score = score.map_or_else(String::new, |name| {
            format!(", {} AS score", sql::name(name))
        });
        let as_left = format!(
            "SELECT \"right\" AS neighbour, n_xy, n_x, n_y, n{score} FROM {table} WHERE \"left\" = {word}"
        );
        if !symmetric {
            return as_left;
        }
        format!(
            "{as_left} UNION ALL SELECT \"left\" AS neighbour, n_xy, n_y AS n_x, n_x AS n_y, n{score} \
             FROM {table} WHERE \"right\" = {word} AND \"left\" <> {word}"
        )
    }

    fn query_of_counts(&self, counts: &JobCounts, id: i32) -> String {
        let n = counts.n;
        let half = |own: &str, other: &str, condition: &str| {
            format!(
                "SELECT o.token AS neighbour, p.n_xy, w.n_left AS n_x, o.n_right AS n_y, CAST({n:?} AS DOUBLE) AS n \
                 FROM ({}) p JOIN terms w ON p.{own} = w.id JOIN terms o ON p.{other} = o.id",
                counts.pairs(condition)
            )
        };
        let mut pairs = half("left_id", "right_id", &format!("left_id = {id}"));
        if counts.symmetric {
            let turned = format!("right_id = {id} AND left_id <> {id}");
            pairs = format!("{pairs} UNION ALL {}", half("right_id", "left_id", &turned));
        }
        pairs
    }
}

/// The word's id.
async fn id_of(context: &SessionContext, counts: &JobCounts, job: &str, word: &str) -> Result<i32> {
    let find = format!(
        "SELECT id FROM {}.vocab WHERE token = {} AND {}",
        sql::name(job),
        sql::literal(word),
        counts.in_slice("id")
    );
    for batch in context.sql(&find).await?.collect().await? {
        use datafusion::arrow::array::AsArray;
        use datafusion::arrow::datatypes::Int32Type;
        if batch.num_rows() > 0
            && let Some(ids) = batch.column(0).as_primitive_opt::<Int32Type>()
        {
            return Ok(ids.value(0));
        }
    }
    plan_err!(
        "{}: the vocabulary of job `{job}` has no `{word}`; SELECT token FROM {job}.vocab shows it",
        DOC.name
    )
}

#[async_trait]
impl Query for Asked {
    async fn sql(&self, context: &SessionContext) -> Result<String> {
        let counts = JobCounts::open_slice(
            context,
            self.jobs.as_ref(),
            DOC.name,
            &self.job,
            self.slice.as_deref(),
        )
        .await?;
        let id = id_of(context, &counts, &self.job, &self.word).await?;
        if let Some(sketch) = &counts.settings.given.sketch
            && u32::try_from(id).is_ok_and(|id| id >= sketch.exact_terms)
        {
            return plan_err!(
                "{}: the pairs of `{}` are in the sketch of job `{}`, which cannot be listed; only its first {} terms have exact pairs. SELECT * FROM estimate('{}', …) tells of named pairs",
                DOC.name,
                self.word,
                self.job,
                sketch.exact_terms,
                self.job
            );
        }
        let fresh = match counts.job.pmi_settings().map_err(external)? {
            // The scores of a slice are computed from its counts: it is one of many in pmi.
            Some((_, version)) => version == counts.job.pairs.version() && self.slice.is_none(),
            None => false,
        };
        let stored = if fresh {
            let table = context
                .table(format!("{}.pmi", sql::name(&self.job)))
                .await?;
            let names = table.schema().fields().iter().skip(6);
            let names = names.filter(|field| *field.data_type() == DataType::Float64);
            names.map(|field| field.name().clone()).collect()
        } else {
            Vec::new()
        };
        let own = stored.contains(&self.measure) && !tells_sides(&self.measure);
        let name = self.measure.split('(').next().unwrap_or_default().trim();
        if !own && measure(name).is_none() {
            let known: Vec<&str> = stored
                .iter()
                .map(String::as_str)
                .chain(pmill_stats::measures().iter().map(|measure| measure.name))
                .collect();
            let nearest = nearest_name(name, known.iter().copied())
                .map(|name| format!(" (did you mean `{name}`?)"))
                .unwrap_or_default();
            return plan_err!(
                "{}: no measure `{name}`{nearest}; there are: {}",
                DOC.name,
                known.join(", ")
            );
        }
        let score = if own {
            "score".to_owned()
        } else {
            column(&self.measure, Base::E).map_err(external)?.1
        };
        let pairs = if fresh {
            self.query_of_scores(counts.symmetric, own.then_some(self.measure.as_str()))
        } else {
            self.query_of_counts(&counts, id)
        };
        let (least, k) = (self.min_pair_count, self.k);
        Ok(format!(
            "WITH terms AS ({terms}), pairs AS ({pairs}), \
             scored AS (SELECT neighbour, {score} AS score, n_xy, n_x, n_y, n FROM pairs WHERE n_xy >= {least:?}), \
             best AS (SELECT * FROM scored WHERE score IS NOT NULL \
                      ORDER BY score DESC, n_xy DESC, neighbour LIMIT {k}) \
             SELECT row_number() OVER (ORDER BY score DESC, n_xy DESC, neighbour) AS rank, \
                    neighbour, score, n_xy, n_x, n_y, n FROM best ORDER BY rank",
            terms = counts.terms(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_that_tell_x_from_y_are_known() {
        for name in ["confidence", "conviction", "delta_p", "cpmi"] {
            assert!(tells_sides(name), "{name}");
        }
        for name in [
            "pmi",
            "npmi",
            "log_dice",
            "log_likelihood_ratio",
            "fisher_exact",
        ] {
            assert!(!tells_sides(name), "{name}");
        }
    }
}
