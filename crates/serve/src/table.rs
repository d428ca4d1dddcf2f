//! A table of Parquet files with cached footers and, for `pmi`, an index of its left terms.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, ScalarValue, Statistics};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{
    CachedParquetFileReaderFactory, ParquetRowSelection,
};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown};
use datafusion::object_store::ObjectStore;
use datafusion::object_store::path::Path;
use datafusion::parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;

use crate::runs::{Run, Runs};

/// One file of a table.
#[derive(Debug, Clone)]
pub struct TableFile {
    /// Its place in the store.
    pub path: Path,
    /// Bytes.
    pub size: u64,
    /// Rows.
    pub rows: u64,
}

/// A table that is just the rows of its files.
#[derive(Debug)]
pub struct FileTable {
    schema: SchemaRef,
    store: Arc<dyn ObjectStore>,
    store_url: ObjectStoreUrl,
    files: Vec<TableFile>,
    /// The column that `runs` indexes.
    column: &'static str,
    runs: OnceLock<Runs>,
}

impl FileTable {
    /// A table of `files` in `store`, which queries know as `store_url`.
    #[must_use]
    pub fn new(
        schema: SchemaRef,
        store: Arc<dyn ObjectStore>,
        store_url: ObjectStoreUrl,
        files: Vec<TableFile>,
    ) -> Self {
        Self {
            schema,
            store,
            store_url,
            files,
            column: "left",
            runs: OnceLock::new(),
        }
    }

    /// Reads the index; until it is there, queries scan. Gives the number of terms, `None` when the
    /// table has no use for one.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub async fn index(&self, environment: &RuntimeEnv) -> Result<Option<usize>> {
        if let Some(runs) = self.runs.get() {
            return Ok(Some(runs.terms()));
        }
        let files: Vec<PartitionedFile> = self.files.iter().map(plain).collect();
        let readers = self.readers(environment);
        let Some(runs) = Runs::read(&readers, &files, self.column).await? else {
            return Ok(None);
        };
        let terms = runs.terms();
        // Two readers of the same files found the same.
        let _ = self.runs.set(runs);
        Ok(Some(terms))
    }

    /// The column that has the index.
    #[must_use]
    pub fn column(&self) -> &str {
        self.column
    }

    /// Whether a filter is a list that the index answers faster than a look at each row does.
    fn is_long_list(&self, filter: &Expr) -> bool {
        matches!(filter, Expr::InList(list) if list.list.len() > LONG_LIST
            && matches!(list.expr.as_ref(), Expr::Column(c) if c.name == self.column))
    }

    fn readers(&self, environment: &RuntimeEnv) -> CachedParquetFileReaderFactory {
        let cache = environment.cache_manager.get_file_metadata_cache();
        CachedParquetFileReaderFactory::new(self.store.clone(), cache)
    }

    /// The rows that can pass `filters`, when the index knows.
    fn select(&self, filters: &[Expr]) -> Option<Vec<Run>> {
        let runs = self.runs.get()?;
        let terms = filters
            .iter()
            .flat_map(split_conjunction)
            .filter_map(|filter| terms_of(filter, self.column))
            .min_by_key(Vec::len)?;
        let mut found: Vec<Run> = terms
            .iter()
            .flat_map(|term| runs.of(term))
            .cloned()
            .collect();
        found.sort_by_key(|run| (run.file, run.rows.start));
        found.dedup();
        Some(found)
    }

    fn groups(&self, selected: Option<Vec<Run>>, partitions: usize) -> Vec<FileGroup> {
        let mut weighed: Vec<(u64, PartitionedFile)> = Vec::new();
        match selected {
            None => weighed.extend(self.files.iter().map(|file| (file.rows, plain(file)))),
            Some(runs) => {
                let mut by_file: BTreeMap<u32, Vec<Run>> = BTreeMap::new();
                for run in runs {
                    by_file.entry(run.file).or_default().push(run);
                }
                for (number, runs) in by_file {
                    let Some(file) = self.files.get(number as usize) else {
                        continue;
                    };
                    let rows = runs.iter().map(|run| run.rows.end - run.rows.start).sum();
                    let selection = selection(&runs, file.rows);
                    weighed.push((
                        rows,
                        plain(file).with_extension(ParquetRowSelection::new(selection)),
                    ));
                }
            }
        }
        // A look-up is one partition: starting a second costs more than it saves.
        let rows: u64 = weighed.iter().map(|(rows, _)| rows).sum();
        let partitions = if rows < SMALL_ROWS {
            1
        } else {
            partitions.max(1)
        };
        let mut groups: Vec<(u64, Vec<PartitionedFile>)> = vec![(0, Vec::new()); partitions];
        weighed.sort_by_key(|(rows, _)| std::cmp::Reverse(*rows));
        for (rows, file) in weighed {
            if let Some(least) = groups.iter_mut().min_by_key(|(rows, _)| *rows) {
                least.0 += rows;
                least.1.push(file);
            }
        }
        groups
            .into_iter()
            .filter(|(_, files)| !files.is_empty())
            .map(|(_, files)| FileGroup::new(files))
            .collect()
    }
}

fn plain(file: &TableFile) -> PartitionedFile {
    PartitionedFile::new(file.path.to_string(), file.size)
}

/// The part of a file's rows that an index chose; all of them without.
#[must_use]
pub fn selected_part(file: &PartitionedFile) -> f64 {
    let Some(chosen) = file.extension::<ParquetRowSelection>() else {
        return 1.0;
    };
    let (mut selected, mut all) = (0, 0);
    for selector in chosen.selection().iter() {
        all += selector.row_count;
        if !selector.skip {
            selected += selector.row_count;
        }
    }
    if all == 0 {
        0.0
    } else {
        selected as f64 / all as f64
    }
}

/// Longer lists of words are left to the index.
const LONG_LIST: usize = 32;
/// Fewer rows than this are read by one thread.
const SMALL_ROWS: u64 = 200_000;

/// The rows of `runs` (sorted, apart) out of `rows`.
fn selection(runs: &[Run], rows: u64) -> RowSelection {
    let length = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX);
    let mut selectors = Vec::with_capacity(2 * runs.len() + 1);
    let mut at = 0;
    for run in runs {
        if run.rows.start > at {
            selectors.push(RowSelector::skip(length(run.rows.start - at)));
        }
        selectors.push(RowSelector::select(length(run.rows.end - run.rows.start)));
        at = run.rows.end;
    }
    if at < rows {
        selectors.push(RowSelector::skip(length(rows - at)));
    }
    RowSelection::from(selectors)
}

/// The only values that `column` has in rows that pass the filter. `None` when it does not say.
fn terms_of(filter: &Expr, column: &str) -> Option<Vec<String>> {
    let is_column = |expr: &Expr| matches!(expr, Expr::Column(c) if c.name == column);
    let text = |expr: &Expr| match expr {
        Expr::Literal(
            ScalarValue::Utf8(Some(text))
            | ScalarValue::LargeUtf8(Some(text))
            | ScalarValue::Utf8View(Some(text)),
            _,
        ) => Some(text.clone()),
        _ => None,
    };
    match filter {
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::Eq,
            right,
        }) => {
            if is_column(left) {
                Some(vec![text(right)?])
            } else if is_column(right) {
                Some(vec![text(left)?])
            } else {
                None
            }
        }
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::Or,
            right,
        }) => {
            let mut terms = terms_of(left, column)?;
            terms.extend(terms_of(right, column)?);
            Some(terms)
        }
        // `left = 'dog' AND right = 'cat'` inside an OR.
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: Operator::And,
            right,
        }) => terms_of(left, column).or_else(|| terms_of(right, column)),
        Expr::InList(list) if !list.negated && is_column(&list.expr) => {
            list.list.iter().map(text).collect()
        }
        _ => None,
    }
}

impl FileTable {
    fn plan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let selected = self.select(filters);
        let whole = selected.is_none();
        let groups = self.groups(selected, state.config().target_partitions());
        if groups.is_empty() {
            let schema = match projection {
                Some(columns) => Arc::new(self.schema.project(columns)?),
                None => self.schema.clone(),
            };
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let readers = self.readers(state.runtime_env());
        let mut source = ParquetSource::new(self.schema.clone())
            .with_table_parquet_options(state.default_table_options().parquet)
            .with_parquet_file_reader_factory(Arc::new(readers))
            .with_pushdown_filters(true);
        // What is left out here is looked at again above the scan: filters are inexact.
        let looked_at = filters
            .iter()
            .filter(|filter| whole || !self.is_long_list(filter))
            .cloned();
        if let Some(filter) = conjunction(looked_at) {
            let schema = DFSchema::try_from(self.schema.as_ref().clone())?;
            source = source.with_predicate(state.create_physical_expr(filter, &schema)?);
        }
        let mut statistics = Statistics::new_unknown(&self.schema);
        if whole {
            let rows: u64 = self.files.iter().map(|file| file.rows).sum();
            statistics.num_rows = Precision::Exact(usize::try_from(rows).unwrap_or(usize::MAX));
        }
        let config = FileScanConfigBuilder::new(self.store_url.clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            // A filter above may still drop rows.
            .with_limit(limit.filter(|_| filters.is_empty()))
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

#[async_trait]
impl TableProvider for FileTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    // Not an `async fn`: nothing is waited for, and the future need not hold the filters.
    fn scan<'this, 'session, 'columns, 'filters, 'future>(
        &'this self,
        state: &'session dyn Session,
        projection: Option<&'columns Vec<usize>>,
        filters: &'filters [Expr],
        limit: Option<usize>,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<dyn ExecutionPlan>>> + Send + 'future>>
    where
        'this: 'future,
        'session: 'future,
        'columns: 'future,
        'filters: 'future,
        Self: 'future,
    {
        let plan = self.plan(state, projection, filters, limit);
        Box::pin(std::future::ready(plan))
    }
}

#[cfg(test)]
mod tests;
