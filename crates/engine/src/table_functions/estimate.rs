//! `estimate(job, left, right)`: the counts of named pairs, of a job with a sketch those too that are not in its table.
//!
//! The words' ids and marginals are asked for when the query is planned; pairs and sketch are read when it runs, one
//! row of the table and one hash row of the sketch at a time.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, RecordBatchOptions, StringViewArray,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef};
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::prelude::SessionContext;
use pmill_count::RowSource;
use pmill_stats::catalogue::{ESTIMATE, TableFunctionDoc};
use pmill_store::Warehouse;
use tokio::runtime::Handle;

use super::Jobs;
use super::arguments::Arguments;
use super::counts::JobCounts;
use super::planned::{context_of, external, places};
use crate::error::EngineError;
use crate::pairs_table::PairsTable;
use crate::sql;
use crate::tail::{StoredTail, held_bytes};

pub(super) static DOC: &TableFunctionDoc = &ESTIMATE;

#[derive(Debug)]
pub(super) struct Estimate(pub(super) Arc<dyn Jobs>);

impl TableFunctionImpl for Estimate {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let arguments = Arguments::new(DOC, args.exprs())?;
        let (left, right) = (arguments.texts("left")?, arguments.texts("right")?);
        let rows = left.len().max(right.len());
        for (name, words, other) in [("left", &left, &right), ("right", &right, &left)] {
            if words.len() != rows && words.len() != 1 {
                return plan_err!(
                    "{}: `{name}` has {} words and the other list {}: give two lists of the same length, or one word for all of the other",
                    DOC.name,
                    words.len(),
                    other.len()
                );
            }
        }
        let all = |words: Vec<String>| -> Vec<String> {
            let words = words.iter().cycle().take(rows);
            words.cloned().collect()
        };
        Ok(Arc::new(EstimateTable {
            jobs: self.0.clone(),
            job: arguments.required_text("job")?,
            left: all(left),
            right: all(right),
        }))
    }
}

fn schema() -> SchemaRef {
    let fields = DOC.columns.iter().map(|(name, _)| {
        let kind = match *name {
            "left" | "right" => DataType::Utf8View,
            "approximate" => DataType::Boolean,
            _ => DataType::Float64,
        };
        Field::new(*name, kind, false)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

#[derive(Debug)]
struct EstimateTable {
    jobs: Arc<dyn Jobs>,
    job: String,
    left: Vec<String>,
    right: Vec<String>,
}

#[async_trait]
impl TableProvider for EstimateTable {
    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let places = places(projection, &schema());
        let context = context_of(state)?;
        let counts = JobCounts::open(&context, self.jobs.as_ref(), DOC.name, &self.job).await?;
        let schema = Arc::new(schema().project(&places)?);
        let asked = Arc::new(Asked {
            warehouse: self.jobs.warehouse().clone(),
            pairs: self.pairs(&context, &counts).await?,
            counts,
            places,
            schema: schema.clone(),
        });
        let part: Arc<dyn PartitionStream> = Arc::new(Part(asked));
        let plan = StreamingTableExec::try_new(schema, vec![part], None, [], false, limit)?;
        Ok(Arc::new(plan))
    }
}

/// A pair that was asked for.
#[derive(Debug, Clone)]
struct Pair {
    words: [String; 2],
    /// As the table has it: the smaller id on the left, when a pair has no direction.
    ids: (u32, u32),
    n_x: f64,
    n_y: f64,
}

impl EstimateTable {
    async fn pairs(&self, context: &SessionContext, counts: &JobCounts) -> Result<Vec<Pair>> {
        let terms = self.terms(context, counts).await?;
        let find = |word: &String| match terms.get(word) {
            Some(term) => Ok(*term),
            None => plan_err!(
                "{}: the vocabulary of job `{}` has no `{word}`; SELECT token FROM {}.vocab shows it",
                DOC.name,
                self.job,
                self.job
            ),
        };
        let mut pairs = Vec::with_capacity(self.left.len());
        for (left, right) in self.left.iter().zip(&self.right) {
            let ((x, n_x, _), (y, _, n_y)) = (find(left)?, find(right)?);
            if x == y && !counts.windows {
                return plan_err!(
                    "{}: `{left}` with itself: a row that holds a feature is no pair in the context document",
                    DOC.name
                );
            }
            pairs.push(Pair {
                words: [left.clone(), right.clone()],
                ids: if counts.symmetric {
                    (x.min(y), x.max(y))
                } else {
                    (x, y)
                },
                n_x,
                n_y,
            });
        }
        Ok(pairs)
    }

    /// Id and marginals of each word.
    async fn terms(
        &self,
        context: &SessionContext,
        counts: &JobCounts,
    ) -> Result<HashMap<String, (u32, f64, f64)>> {
        if self.left.is_empty() {
            return Ok(HashMap::new());
        }
        let mut words: Vec<&String> = self.left.iter().chain(&self.right).collect();
        words.sort_unstable();
        words.dedup();
        let words: Vec<String> = words.iter().map(|word| sql::literal(word)).collect();
        let query = format!(
            "SELECT CAST(id AS BIGINT), CAST(token AS VARCHAR), n_left, n_right FROM ({}) WHERE token IN ({})",
            counts.terms(),
            words.join(", ")
        );
        let mut terms = HashMap::new();
        for batch in context.sql(&query).await?.collect().await? {
            let ids = batch.column(0).as_primitive::<Int64Type>().clone();
            let tokens = cast(batch.column(1), &DataType::Utf8View)?;
            let number = |place: usize| cast(batch.column(place), &DataType::Float64);
            let (left, right) = (number(2)?, number(3)?);
            for row in 0..batch.num_rows() {
                let term = (
                    u32::try_from(ids.value(row)).unwrap_or(u32::MAX),
                    left.as_primitive::<Float64Type>().value(row),
                    right.as_primitive::<Float64Type>().value(row),
                );
                terms.insert(tokens.as_string_view().value(row).to_owned(), term);
            }
        }
        Ok(terms)
    }
}

/// What the partition needs.
#[derive(Debug)]
struct Asked {
    warehouse: Warehouse,
    counts: JobCounts,
    pairs: Vec<Pair>,
    places: Vec<usize>,
    schema: SchemaRef,
}

/// Units of a pair, and from where on they may be: less than the former only for an estimate.
type Found = (u64, u64, bool);

impl Asked {
    fn look_up(&self, runtime: &Handle) -> Result<Vec<Found>, EngineError> {
        let job = &self.counts.job;
        let tail = StoredTail::open(&self.warehouse, job, runtime)?;
        let exact_terms = tail
            .as_ref()
            .map_or(u32::MAX, |tail| tail.settings.exact_terms);
        let ids = self.pairs.iter().map(|pair| pair.ids);
        let is_exact = |(x, y): (u32, u32)| x < exact_terms && y < exact_terms;
        let (exact, sketched): (Vec<_>, Vec<_>) = ids.clone().partition(|ids| is_exact(*ids));
        let mut found = self.exact(exact, runtime)?;
        if let Some(tail) = tail {
            let facts = self.counts.tail.as_ref();
            let units = facts.map_or(Ok(0), crate::tail::TailFacts::units)?;
            let most_over = tail.settings.most_over(units);
            for (ids, units) in sketched.iter().zip(tail.estimates(&sketched)?) {
                found.insert(*ids, (units, units.saturating_sub(most_over), true));
            }
        }
        Ok(ids
            .map(|ids| found.get(&ids).copied().unwrap_or((0, 0, false)))
            .collect())
    }

    /// Pairs that the table has, of those that it would have.
    fn exact(
        &self,
        mut wanted: Vec<(u32, u32)>,
        runtime: &Handle,
    ) -> Result<HashMap<(u32, u32), Found>, EngineError> {
        wanted.sort_unstable();
        wanted.dedup();
        let mut found = HashMap::new();
        if wanted.is_empty() {
            return Ok(found);
        }
        let counts = &self.counts;
        let table = PairsTable::new(&self.warehouse, &counts.job, counts.size, runtime)?;
        let mut rows = table.rows();
        for row in wanted.chunk_by(|one, other| one.0 == other.0) {
            let left = row[0].0;
            rows.seek(left..left + 1)?;
            while rows.left() == Some(left) {
                let Some(piece) = rows.piece() else { break };
                for (_, right) in row {
                    if let Ok(place) = piece.right.binary_search(right) {
                        let units = piece.counts[place];
                        found.insert((left, *right), (units, units, false));
                    }
                }
                rows.advance()?;
            }
        }
        Ok(found)
    }

    fn batch(&self, found: &[Found]) -> Result<RecordBatch> {
        let counts = &self.counts;
        let natural = |units: u64, (x, y): (u32, u32)| {
            // The symmetric matrix holds a pair of a term with itself twice.
            let twice = if counts.windows && counts.symmetric && x == y {
                2.0
            } else {
                1.0
            };
            units as f64 * twice / counts.unit as f64
        };
        let both = || self.pairs.iter().zip(found);
        let numbers = |of: &dyn Fn(&Pair, &Found) -> f64| -> ArrayRef {
            let numbers = both().map(|(pair, found)| of(pair, found));
            Arc::new(Float64Array::from_iter_values(numbers))
        };
        let words = |side: usize| -> ArrayRef {
            let words = self.pairs.iter().map(|pair| pair.words[side].as_str());
            Arc::new(StringViewArray::from_iter_values(words))
        };
        let column = |place: &usize| -> ArrayRef {
            match DOC.columns[*place].0 {
                "left" => words(0),
                "right" => words(1),
                "n_xy" => numbers(&|pair, found| natural(found.0, pair.ids)),
                "n_xy_low" => numbers(&|pair, found| natural(found.1, pair.ids)),
                "n_x" => numbers(&|pair, _| pair.n_x),
                "n_y" => numbers(&|pair, _| pair.n_y),
                "n" => numbers(&|_, _| counts.n),
                _ => {
                    let flags: Vec<bool> = found.iter().map(|found| found.2).collect();
                    Arc::new(BooleanArray::from(flags))
                }
            }
        };
        let columns = self.places.iter().map(column).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(found.len()));
        Ok(RecordBatch::try_new_with_options(
            self.schema.clone(),
            columns,
            &options,
        )?)
    }
}

#[derive(Debug)]
struct Part(Arc<Asked>);

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.0.schema
    }

    fn execute(&self, task: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut stream = RecordBatchReceiverStream::builder(self.0.schema.clone(), 1);
        let (asked, runtime, out) = (self.0.clone(), Handle::current(), stream.tx());
        stream.spawn_blocking(move || {
            let held = MemoryConsumer::new("estimate").register(task.memory_pool());
            if let Some(sketch) = &asked.counts.settings.given.sketch {
                held.try_grow(usize::try_from(held_bytes(sketch, 0)).unwrap_or(usize::MAX))?;
            }
            let found = asked.look_up(&runtime).map_err(external)?;
            // Nobody listens any more when the query was given up.
            let _ = out.blocking_send(asked.batch(&found));
            Ok(())
        });
        stream.build()
    }
}
