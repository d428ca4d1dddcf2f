//! Does PMI go with being right? The mean PMI of each example's word pairs against whether a model
//! answered it, as in Qu & Xie (2025).

use arrow::array::{Array, AsArray, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use futures::TryStreamExt;
use serde::Serialize;

use crate::error::EngineError;
use crate::sql::{SqlSession, literal, name};

/// Where an example's pairs come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pairs {
    /// All pairs of distinct features of one column.
    Words(String),
    /// Each feature of the question with each of the answer, those that are the same excepted.
    QuestionAnswer(String, String),
}

/// What an example's pair is worth that the table does not hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unseen {
    /// It is left out of the mean.
    Skip,
    /// It counts with this value.
    Value(f64),
}

/// What to correlate.
#[derive(Debug, Clone)]
pub struct CorrelateSettings {
    /// Job whose `pmi` table is read.
    pub job: String,
    /// Column of that table.
    pub measure: String,
    /// Parquet or CSV file of examples.
    pub examples: String,
    /// Column that names an example; rows are numbered without it.
    pub id: Option<String>,
    /// Where pairs come from.
    pub pairs: Pairs,
    /// Column that says whether the model was right: 0/1, true/false or a share.
    pub correct: String,
    /// What a pair is worth that was never counted.
    pub unseen: Unseen,
    /// Number of equally large bins.
    pub bins: u32,
    /// Bootstrap replicates.
    pub replicates: u32,
    /// Seed of the bootstrap.
    pub seed: u32,
    /// Share of the intervals that should hold the true value.
    pub confidence: f64,
}

/// A number with its bootstrap interval; `None` where it is undefined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The number.
    pub estimate: Option<f64>,
    /// Lower end.
    pub lower: Option<f64>,
    /// Upper end.
    pub upper: Option<f64>,
}

/// One bin of examples along mean PMI.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bin {
    /// Its number, from 1.
    pub bin: i64,
    /// Examples.
    pub examples: i64,
    /// Mean of their mean PMI.
    pub pmi: f64,
    /// Share that was right.
    pub accuracy: f64,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Correlation {
    /// Examples that have a mean PMI and an answer.
    pub examples: u64,
    /// Examples left out: none of their pairs is in the table, or no answer is given.
    pub left_out: u64,
    /// Pearson's r over the bins' means.
    pub binned: Interval,
    /// Pearson's r over examples.
    pub raw: Interval,
    /// Spearman's rank correlation over examples.
    pub rank: Interval,
    /// Accuracy of the top 5 % of examples by mean PMI less that of the bottom 5 %.
    pub gap: Interval,
    /// The bins.
    pub bins: Vec<Bin>,
}

/// Names of the tables that [`correlate`] leaves in the session: one row an example.
pub const EXAMPLES: &str = "correlated_examples";

/// Correlates. The session has the function `features` of the job.
///
/// # Errors
/// When the file, a column or the scored table cannot be read.
pub fn correlate(
    session: &SqlSession,
    settings: &CorrelateSettings,
) -> Result<Correlation, EngineError> {
    let from = literal(&settings.examples);
    let correct = name(&settings.correct);
    let id = settings
        .id
        .as_deref()
        .map_or("CAST(row_number() OVER () AS VARCHAR)".to_owned(), |id| {
            format!("CAST({} AS VARCHAR)", name(id))
        });
    let (left, right, same_side) = match &settings.pairs {
        Pairs::Words(words) => (name(words), name(words), true),
        Pairs::QuestionAnswer(question, answer) => (name(question), name(answer), false),
    };
    session.add_view(
        "correlate_examples",
        &format!(
            "SELECT {id} AS id, features(CAST({left} AS VARCHAR)) AS a, features(CAST({right} AS VARCHAR)) AS b, \
             CAST({correct} AS DOUBLE) AS correct FROM {from}"
        ),
    )?;
    let distinct = if same_side { "l.w < r.w" } else { "l.w <> r.w" };
    session.add_view(
        "correlate_pairs",
        &format!(
            "SELECT DISTINCT l.id, least(l.w, r.w) AS a, greatest(l.w, r.w) AS b \
             FROM (SELECT DISTINCT id, unnest(a) AS w FROM correlate_examples) l \
             JOIN (SELECT DISTINCT id, unnest(b) AS w FROM correlate_examples) r ON l.id = r.id WHERE {distinct}"
        ),
    )?;
    let (job, measure) = (name(&settings.job), name(&settings.measure));
    let mean = match settings.unseen {
        Unseen::Skip => "avg(s.score)".to_owned(),
        Unseen::Value(value) => format!("avg(coalesce(s.score, CAST({value:?} AS DOUBLE)))"),
    };
    session.add_view(
        EXAMPLES,
        &format!(
            "SELECT e.id, count(p.a) AS pairs, count(s.score) AS seen, {mean} AS pmi, max(e.correct) AS correct \
             FROM correlate_examples e LEFT JOIN correlate_pairs p ON p.id = e.id \
             LEFT JOIN (SELECT least(\"left\", \"right\") AS a, greatest(\"left\", \"right\") AS b, \
                        CAST({measure} AS DOUBLE) AS score FROM {job}.pmi) s ON s.a = p.a AND s.b = p.b \
             GROUP BY e.id"
        ),
    )?;
    let kept = format!(
        "(SELECT pmi, correct FROM {EXAMPLES} WHERE pmi IS NOT NULL AND correct IS NOT NULL)"
    );
    let (bins, replicates) = (settings.bins, settings.replicates);
    let (seed, confidence) = (settings.seed, settings.confidence);
    let ci = |statistic: &str, cut: &str| {
        format!(
            "bootstrap_ci(pmi, correct, '{statistic}', {confidence:?}, {replicates}, {seed}, {cut})"
        )
    };
    let statistics = format!(
        "SELECT {} AS binned, {} AS raw, {} AS rank, {} AS gap FROM {kept}",
        ci("binned_pearson", &bins.to_string()),
        ci("pearson", "0"),
        ci("spearman", "0"),
        ci("gap", "0.05"),
    );
    let found = rows(session, &statistics)?;
    let interval = |column: usize| interval(&found, column);
    let counts = rows(
        session,
        &format!("SELECT count(pmi) FILTER (WHERE correct IS NOT NULL), count(*) FROM {EXAMPLES}"),
    )?;
    let count = |column: usize| -> u64 {
        counts
            .first()
            .map(|batch| batch.column(column).as_primitive::<Int64Type>().value(0))
            .and_then(|count| u64::try_from(count).ok())
            .unwrap_or(0)
    };
    let examples = count(0);
    if examples == 0 {
        return Err(EngineError::Query(format!(
            "no example of `{}` has a pair that is in {}.pmi and an answer in `{}`; are these the job's words and language?",
            settings.examples, settings.job, settings.correct
        )));
    }
    let summary = rows(
        session,
        &format!(
            "SELECT b['bin'] AS bin, b['rows'] AS examples, b['x_mean'] AS pmi, b['y_mean'] AS accuracy \
             FROM (SELECT unnest(ntile_summary(pmi, correct, {bins})) AS b FROM {kept})"
        ),
    )?;
    let mut table = Vec::new();
    for batch in &summary {
        let integers = |column: usize| -> Result<Int64Array, EngineError> {
            Ok(cast(batch, column, &DataType::Int64)?
                .as_primitive::<Int64Type>()
                .clone())
        };
        let numbers = |column: usize| -> Result<Float64Array, EngineError> {
            Ok(cast(batch, column, &DataType::Float64)?
                .as_primitive::<Float64Type>()
                .clone())
        };
        let (bin, examples, pmi, accuracy) = (integers(0)?, integers(1)?, numbers(2)?, numbers(3)?);
        for row in 0..batch.num_rows() {
            table.push(Bin {
                bin: bin.value(row),
                examples: examples.value(row),
                pmi: pmi.value(row),
                accuracy: accuracy.value(row),
            });
        }
    }
    Ok(Correlation {
        examples,
        left_out: count(1) - examples,
        binned: interval(0),
        raw: interval(1),
        rank: interval(2),
        gap: interval(3),
        bins: table,
    })
}

fn rows(session: &SqlSession, sql: &str) -> Result<Vec<RecordBatch>, EngineError> {
    let stream = session.query(sql)?;
    session
        .session()
        .wait(stream.try_collect())
        .map_err(crate::session::query)
}

fn cast(
    batch: &RecordBatch,
    column: usize,
    to: &DataType,
) -> Result<arrow::array::ArrayRef, EngineError> {
    arrow::compute::cast(batch.column(column), to)
        .map_err(|error| EngineError::Query(error.to_string()))
}

fn interval(batches: &[RecordBatch], column: usize) -> Interval {
    let field = |name: &str| -> Option<f64> {
        let fields = batches.first()?.column(column).as_struct_opt()?;
        let values = fields
            .column_by_name(name)?
            .as_primitive_opt::<Float64Type>()?;
        (fields.is_valid(0) && values.is_valid(0)).then(|| values.value(0))
    };
    Interval {
        estimate: field("estimate"),
        lower: field("lower"),
        upper: field("upper"),
    }
}
