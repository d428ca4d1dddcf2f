//! `absent_pairs(job)`: the pairs of a job's vocabulary that never met.
//!
//! The complement of the sorted table of pairs, row by row: what is held is the vocabulary with its marginals, one
//! batch of pairs and the batches that are on their way. Partitions are ranges of left ids with about equally many pairs.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, RecordBatch, RecordBatchOptions, StringViewArray,
    UInt32Array,
};
use datafusion::arrow::compute::{cast, take};
use datafusion::arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef};
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{exec_datafusion_err, internal_datafusion_err};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::prelude::SessionContext;
use pmill_count::RowSource;
use pmill_stats::catalogue::{ABSENT_PAIRS, TableFunctionDoc};
use pmill_store::{Job, Warehouse};
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;

use super::Jobs;
use super::arguments::Arguments;
use super::counts::JobCounts;
use super::planned::{context_of, external, places};
use crate::error::EngineError;
use crate::pairs_table::PairsTable;

pub(super) static DOC: &TableFunctionDoc = &ABSENT_PAIRS;

/// Rows of a batch.
const ROWS: usize = 8192;
/// Batches on their way.
const AHEAD: usize = 2;

#[derive(Debug)]
pub(super) struct AbsentPairs(pub(super) Arc<dyn Jobs>);

impl TableFunctionImpl for AbsentPairs {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let arguments = Arguments::new(DOC, args.exprs())?;
        Ok(Arc::new(AbsentTable {
            jobs: self.0.clone(),
            job: arguments.required_text("job")?,
        }))
    }
}

fn schema() -> SchemaRef {
    let fields = DOC.columns.iter().map(|(name, _)| {
        let kind = match *name {
            "left" | "right" => DataType::Utf8View,
            _ => DataType::Float64,
        };
        Field::new(*name, kind, false)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

#[derive(Debug)]
struct AbsentTable {
    jobs: Arc<dyn Jobs>,
    job: String,
}

#[async_trait]
impl TableProvider for AbsentTable {
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
        let terms = Terms::read(&context, &counts).await?;
        let kind = match (counts.symmetric, counts.windows) {
            (true, false) => Kind::Apart,
            (true, true) => Kind::Once,
            (false, _) => Kind::Directed,
        };
        let size = u32::try_from(terms.tokens.len())
            .map_err(|_| internal_datafusion_err!("more terms than ids"))?;
        // Of other pairs a sketch cannot tell that they never met.
        let sketch = counts.settings.given.sketch.as_ref();
        let size = sketch.map_or(size, |sketch| size.min(sketch.exact_terms));
        let schema = Arc::new(schema().project(&places)?);
        let wanted = Arc::new(Wanted {
            warehouse: self.jobs.warehouse().clone(),
            job: counts.job,
            terms,
            kind,
            size,
            places,
            schema: schema.clone(),
        });
        let parts = kind
            .ranges(size, state.config().target_partitions())
            .into_iter()
            .map(|range| -> Arc<dyn PartitionStream> {
                Arc::new(Part {
                    wanted: wanted.clone(),
                    range,
                })
            })
            .collect();
        let plan = StreamingTableExec::try_new(schema, parts, None, [], false, limit)?;
        Ok(Arc::new(plan))
    }
}

/// The vocabulary by id.
#[derive(Debug)]
struct Terms {
    tokens: StringViewArray,
    n_left: Float64Array,
    n_right: Float64Array,
    n: f64,
}

impl Terms {
    async fn read(context: &SessionContext, counts: &JobCounts) -> Result<Self> {
        let query = format!(
            "SELECT CAST(id AS BIGINT), CAST(token AS VARCHAR), n_left, n_right FROM ({}) ORDER BY 1",
            counts.terms()
        );
        let frame = context.sql(&query).await?;
        let schema = Arc::new(frame.schema().as_arrow().clone());
        let batches = frame.collect().await?;
        let all = datafusion::arrow::compute::concat_batches(&schema, &batches)?;
        let ids = all.column(0).as_primitive::<Int64Type>().values().iter();
        if !ids.eq((0..all.num_rows() as i64).collect::<Vec<_>>().iter()) {
            return Err(exec_datafusion_err!(
                "{}: the ids of the vocabulary are not 0, 1, 2, …",
                DOC.name
            ));
        }
        let number = |place: usize| -> Result<Float64Array> {
            let column = cast(all.column(place), &DataType::Float64)?;
            Ok(column.as_primitive::<Float64Type>().clone())
        };
        Ok(Self {
            tokens: cast(all.column(1), &DataType::Utf8View)?
                .as_string_view()
                .clone(),
            n_left: number(2)?,
            n_right: number(3)?,
            n: counts.n,
        })
    }
}

/// Which pairs a table can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `left < right`.
    Apart,
    /// `left <= right`.
    Once,
    /// All.
    Directed,
}

impl Kind {
    /// The first right id that can go with a left one.
    fn first(self, left: u32) -> u32 {
        match self {
            Self::Apart => left + 1,
            Self::Once => left,
            Self::Directed => 0,
        }
    }

    /// Ranges of left ids with about equally many pairs, at most `parts`.
    fn ranges(self, size: u32, parts: usize) -> Vec<Range<u32>> {
        let pairs = |left: u32| u64::from(size - self.first(left).min(size));
        let all: u64 = (0..size).map(pairs).sum();
        let share = all.div_ceil(parts.max(1) as u64).max(1);
        let (mut ranges, mut start, mut held) = (Vec::new(), 0, 0);
        for left in 0..size {
            held += pairs(left);
            if held >= share || left + 1 == size {
                ranges.push(start..left + 1);
                (start, held) = (left + 1, 0);
            }
        }
        if ranges.is_empty() {
            ranges.push(0..0);
        }
        ranges
    }
}

/// What every partition needs.
#[derive(Debug)]
struct Wanted {
    warehouse: Warehouse,
    job: Job,
    terms: Terms,
    kind: Kind,
    size: u32,
    places: Vec<usize>,
    schema: SchemaRef,
}

impl Wanted {
    /// Gives the right ids of each left one of `range` that never met it, some at a time, until `each` says no.
    fn each(
        &self,
        range: Range<u32>,
        runtime: &Handle,
        mut each: impl FnMut(u32, u32) -> Result<bool>,
    ) -> Result<()> {
        let table =
            PairsTable::new(&self.warehouse, &self.job, self.size, runtime).map_err(external)?;
        let mut rows = table.rows();
        let counted = |error| external(EngineError::from(error));
        rows.seek(range.clone()).map_err(counted)?;
        for left in range {
            let mut right = self.kind.first(left);
            while rows.left() == Some(left) {
                let Some(piece) = rows.piece() else { break };
                for met in piece.right {
                    while right < *met {
                        if !each(left, right)? {
                            return Ok(());
                        }
                        right += 1;
                    }
                    right = met + 1;
                }
                rows.advance().map_err(counted)?;
            }
            while right < self.size {
                if !each(left, right)? {
                    return Ok(());
                }
                right += 1;
            }
        }
        Ok(())
    }

    fn batch(&self, left: Vec<u32>, right: Vec<u32>) -> Result<RecordBatch> {
        let rows = left.len();
        let (left, right) = (UInt32Array::from(left), UInt32Array::from(right));
        let terms = &self.terms;
        let column = |place: &usize| -> Result<ArrayRef> {
            Ok(match DOC.columns[*place].0 {
                "left" => take(&terms.tokens, &left, None)?,
                "right" => take(&terms.tokens, &right, None)?,
                "n_x" => take(&terms.n_left, &left, None)?,
                "n_y" => take(&terms.n_right, &right, None)?,
                _ => Arc::new(Float64Array::from(vec![terms.n; rows])),
            })
        };
        let columns = self.places.iter().map(column).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(
            self.schema.clone(),
            columns,
            &options,
        )?)
    }

    fn send(
        &self,
        range: Range<u32>,
        runtime: &Handle,
        out: &Sender<Result<RecordBatch>>,
    ) -> Result<()> {
        let (mut left, mut right) = (Vec::with_capacity(ROWS), Vec::with_capacity(ROWS));
        self.each(range, runtime, |one, other| {
            left.push(one);
            right.push(other);
            if left.len() < ROWS {
                return Ok(true);
            }
            let full = (std::mem::take(&mut left), std::mem::take(&mut right));
            // Nobody listens any more when the query was given up.
            Ok(out.blocking_send(self.batch(full.0, full.1)).is_ok())
        })?;
        if !left.is_empty() {
            let _ = out.blocking_send(self.batch(left, right));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Part {
    wanted: Arc<Wanted>,
    range: Range<u32>,
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.wanted.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut stream = RecordBatchReceiverStream::builder(self.wanted.schema.clone(), AHEAD);
        let (wanted, range, out) = (self.wanted.clone(), self.range.clone(), stream.tx());
        let runtime = Handle::current();
        stream.spawn_blocking(move || wanted.send(range, &runtime, &out));
        stream.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_every_left_id_once() {
        for kind in [Kind::Apart, Kind::Once, Kind::Directed] {
            for size in [0, 1, 2, 7, 1000] {
                for parts in [1, 2, 5] {
                    let ranges = kind.ranges(size, parts);
                    assert!(ranges.len() <= parts.max(1) + 1, "{kind:?} {size} {parts}");
                    let all: Vec<u32> = ranges.into_iter().flatten().collect();
                    assert_eq!(all, (0..size).collect::<Vec<_>>());
                }
            }
        }
    }
}
