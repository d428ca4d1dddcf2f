//! A committed table of pairs as a source of rows for the merge.
//!
//! Any cut into files will do, as long as the files are sorted and their ranges do not overlap.
//! Only the row groups that hold a range of left ids are read. Every batch is checked: ids in
//! range, pairs rising, counts above zero.

use std::ops::Range;

use arrow::array::AsArray;
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use parquet::file::statistics::Statistics;
use pmill_count::{CountError, Piece, RowSource};
use pmill_store::{Job, Warehouse};
use tokio::runtime::Handle;

use crate::error::EngineError;
use crate::slices::Slices;
use crate::stored::{StoredFile, StoredTable, Stream};

/// The pairs of a job at one version.
pub struct PairsTable {
    table: StoredTable,
    vocabulary_size: u32,
    subtracted: bool,
    blocks: Option<Blocks>,
}

/// Where the slices of a table stand in another: `terms` ids each, in the same order.
pub(crate) struct Blocks {
    terms: u32,
    /// By slice of the table: its place there; `None` for one that is left out.
    places: Vec<Option<u32>>,
    /// Ids there.
    ids: u32,
}

impl Blocks {
    /// From one table's slices to another's, over the same terms.
    pub(crate) fn of(from: &Slices, to: &Slices) -> Result<Self, EngineError> {
        Ok(Self {
            terms: to.terms() as u32,
            places: to.places(from),
            ids: to.ids_with_gone()?,
        })
    }

    fn id(&self, id: i32) -> Option<i32> {
        let (block, term) = (id / self.terms as i32, id % self.terms as i32);
        let place = (*self.places.get(block as usize)?)?;
        Some(place as i32 * self.terms as i32 + term)
    }

    /// The ids here that may stand for a range of ids there, which is of slices in their order.
    fn range(&self, range: &Range<u32>) -> Range<u32> {
        let mut all = 0..0;
        for (block, place) in self.places.iter().enumerate() {
            let Some(place) = place else { continue };
            let first = place * self.terms;
            let (low, high) = (range.start.max(first), range.end.min(first + self.terms));
            if low < high {
                let here = block as u32 * self.terms;
                let (low, high) = (here + low - first, here + high - first);
                all = if all.is_empty() {
                    low..high
                } else {
                    all.start..high
                };
            }
        }
        all
    }
}

impl PairsTable {
    /// The pairs of `job`, whose ids are below `vocabulary_size`.
    ///
    /// # Errors
    /// When the table's log cannot be read.
    pub fn new(
        warehouse: &Warehouse,
        job: &Job,
        vocabulary_size: u32,
        runtime: &Handle,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            table: StoredTable::new(
                warehouse, &job.name, "pairs", "left_id", &job.pairs, runtime,
            )?,
            vocabulary_size,
            subtracted: false,
            blocks: None,
        })
    }

    /// The same pairs, with the ids that their slices have in another table.
    pub(crate) fn moved(mut self, blocks: Blocks) -> Self {
        self.blocks = Some(blocks);
        self
    }

    /// The same pairs, to be taken away.
    #[must_use]
    pub fn subtracting(mut self) -> Self {
        self.subtracted = true;
        self
    }

    /// Bytes of its files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.table.bytes()
    }

    /// A reader of its rows.
    #[must_use]
    pub fn rows(&self) -> PairsRows<'_> {
        PairsRows {
            source: self,
            range: 0..0,
            stored: 0..0,
            next_file: 0,
            stream: None,
            left: Vec::new().into(),
            right: Vec::new().into(),
            counts: Vec::new().into(),
            at: 0,
            end: 0,
            before: None,
        }
    }
}

/// Reads the rows of a [`PairsTable`].
pub struct PairsRows<'a> {
    source: &'a PairsTable,
    range: Range<u32>,
    /// The same range in the ids that the files have.
    stored: Range<u32>,
    next_file: usize,
    stream: Option<Stream>,
    left: ScalarBuffer<i32>,
    right: ScalarBuffer<i32>,
    counts: ScalarBuffer<i64>,
    /// The piece at hand in the batch.
    at: usize,
    end: usize,
    /// The last pair of the batch before.
    before: Option<(i32, i32)>,
}

impl PairsRows<'_> {
    /// Takes the next batch; `false` when there is none in the range.
    fn load(&mut self) -> Result<bool, EngineError> {
        loop {
            let table = &self.source.table;
            if let Some(stream) = &mut self.stream {
                let file = &table.files[self.next_file - 1];
                if let Some(batch) = table.next(file, stream)? {
                    self.take(&batch)
                        .map_err(|reason| table.damaged(file, reason))?;
                    return Ok(true);
                }
                self.stream = None;
            }
            let Some(file) = table.files.get(self.next_file) else {
                return Ok(false);
            };
            let (low, high) = file.range("left_id").unwrap_or((0, i64::from(u32::MAX)));
            if low >= i64::from(self.stored.end) {
                return Ok(false);
            }
            self.next_file += 1;
            if high < i64::from(self.stored.start) {
                continue;
            }
            let groups = row_groups(table, file, &self.stored)?;
            if !groups.is_empty() {
                self.stream = Some(table.open(file, groups)?);
            }
        }
    }

    fn take(&mut self, batch: &RecordBatch) -> Result<(), &'static str> {
        let columns = "its columns are not those of pairs";
        let id = |name: &str| {
            let column = batch.column_by_name(name)?;
            Some(column.as_primitive_opt::<Int32Type>()?.values().clone())
        };
        self.left = id("left_id").ok_or(columns)?;
        self.right = id("right_id").ok_or(columns)?;
        self.counts = batch
            .column_by_name("count")
            .and_then(|column| Some(column.as_primitive_opt::<Int64Type>()?.values().clone()))
            .ok_or(columns)?;
        let size = i64::from(self.source.vocabulary_size);
        let inside = |id: &i32| *id >= 0 && i64::from(*id) < size;
        if !self.left.iter().all(inside) || !self.right.iter().all(inside) {
            return Err("an id is not in the vocabulary");
        }
        if self.counts.iter().any(|count| *count <= 0) {
            return Err("a count is not above zero");
        }
        // Both ids are not negative, so pairs compare as one number does.
        let key = |left: i32, right: i32| (i64::from(left) << 32) | i64::from(right);
        let mut before = self.before.map_or(-1, |(left, right)| key(left, right));
        let mut rising = true;
        for (left, right) in self.left.iter().zip(self.right.iter()) {
            let now = key(*left, *right);
            rising &= before < now;
            before = now;
        }
        if !rising {
            return Err("its pairs are not sorted, or one is there twice");
        }
        let last = self.left.last().copied().zip(self.right.last().copied());
        self.before = last.or(self.before);
        if let Some(blocks) = &self.source.blocks {
            // Slices that are gone stand elsewhere, so ids rise only within the range.
            let inside = |id: &i32| u32::try_from(*id).is_ok_and(|id| self.range.contains(&id));
            let kept: Vec<(i32, i32, i64)> = self
                .left
                .iter()
                .zip(self.right.iter())
                .zip(self.counts.iter())
                .filter_map(|((left, right), count)| {
                    let left = blocks.id(*left).filter(inside)?;
                    Some((left, blocks.id(*right)?, *count))
                })
                .collect();
            self.left = kept.iter().map(|pair| pair.0).collect::<Vec<_>>().into();
            self.right = kept.iter().map(|pair| pair.1).collect::<Vec<_>>().into();
            self.counts = kept.iter().map(|pair| pair.2).collect::<Vec<_>>().into();
        }
        self.at = 0;
        self.end = 0;
        Ok(())
    }

    /// Finds where the piece that begins at `at` ends.
    fn measure(&mut self) {
        let Some(&left) = self.left.get(self.at) else {
            self.end = self.at;
            return;
        };
        let rest = &self.left[self.at..];
        let length = rest
            .iter()
            .position(|&other| other != left)
            .unwrap_or(rest.len());
        self.end = self.at + length;
    }

    fn settle(&mut self) -> Result<(), EngineError> {
        while self.at >= self.left.len() {
            self.left = Vec::new().into();
            self.at = 0;
            if !self.load()? {
                break;
            }
        }
        self.measure();
        Ok(())
    }

    fn fail(&self, error: EngineError) -> CountError {
        CountError::Source {
            left: self.range.start,
            source: Box::new(error),
        }
    }
}

/// The row groups of a file that may hold rows of a range.
fn row_groups(
    table: &StoredTable,
    file: &StoredFile,
    range: &Range<u32>,
) -> Result<Vec<usize>, EngineError> {
    let metadata = table.metadata(file)?.metadata();
    let overlaps = |group: usize| match metadata.row_group(group).column(0).statistics() {
        Some(Statistics::Int32(values)) => match (values.min_opt(), values.max_opt()) {
            (Some(low), Some(high)) => {
                i64::from(*low) < i64::from(range.end) && i64::from(*high) >= i64::from(range.start)
            }
            _ => true,
        },
        _ => true,
    };
    Ok((0..metadata.num_row_groups())
        .filter(|group| overlaps(*group))
        .collect())
}

impl RowSource for PairsRows<'_> {
    fn vocabulary_size(&self) -> u32 {
        let moved = self.source.blocks.as_ref().map(|blocks| blocks.ids);
        moved.unwrap_or(self.source.vocabulary_size)
    }

    fn is_subtracted(&self) -> bool {
        self.source.subtracted
    }

    fn seek(&mut self, range: Range<u32>) -> Result<(), CountError> {
        self.stored = match &self.source.blocks {
            None => range.clone(),
            Some(blocks) => blocks.range(&range),
        };
        self.range = range;
        self.next_file = 0;
        self.stream = None;
        self.left = Vec::new().into();
        self.at = 0;
        self.before = None;
        loop {
            // Rows before the range, in the first row group.
            let start = i32::try_from(self.range.start).unwrap_or(i32::MAX);
            self.at = self.left.partition_point(|left| *left < start);
            let done = self.at < self.left.len();
            self.settle().map_err(|error| self.fail(error))?;
            if done || self.left.is_empty() || self.left[self.at] >= start {
                return Ok(());
            }
        }
    }

    fn left(&self) -> Option<u32> {
        let left = u32::try_from(*self.left.get(self.at)?).ok()?;
        (left < self.range.end).then_some(left)
    }

    fn piece(&self) -> Option<Piece<'_>> {
        let left = *self.left.get(self.at)?;
        let begins = self.at > 0 || self.before.is_none_or(|(before, _)| before != left);
        Some(Piece {
            right: bytemuck::cast_slice(&self.right[self.at..self.end]),
            counts: bytemuck::cast_slice(&self.counts[self.at..self.end]),
            whole: begins && self.end < self.left.len(),
        })
    }

    fn advance(&mut self) -> Result<(), CountError> {
        self.at = self.end;
        self.settle().map_err(|error| self.fail(error))
    }
}
