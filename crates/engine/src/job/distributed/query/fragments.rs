//! The parts of a physical plan that can be run one partition at a time, by anyone.
//!
//! A *fragment* is a largest subtree over one scan of Parquet files in which every operator makes
//! rows of a partition from rows of the same partition: what lies below the first exchange. Which
//! operators do is a list; an operator that is not on it ends the fragment. A join with a small table
//! is on it where the table is read whole on the build side and its rows are only looked up: then
//! each unit reads the small table for itself.

use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileScanConfig, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_expr::expressions::{Column, DynamicFilterPhysicalExpr};
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::split_conjunction;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode,
};
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::{
    ExecutionPlan, ExecutionPlanProperties, displayable, replace_children_if_necessary,
};

type Plan = Arc<dyn ExecutionPlan>;

/// The fragments of a plan that are worth a message, in the order of the plan.
pub(super) fn find(plan: &Plan) -> Vec<Plan> {
    let mut found = Vec::new();
    // Without replacements the plan stays as it is.
    let _ = replace(plan, &mut |fragment| {
        found.push(fragment.clone());
        None
    });
    found
}

/// The plan with some fragments replaced; `new` is asked for each of them, in the order of [`find`].
pub(super) fn replace(plan: &Plan, new: &mut dyn FnMut(&Plan) -> Option<Plan>) -> Result<Plan> {
    if is_local(plan) {
        let replaced = if reduces(plan) { new(plan) } else { None };
        return Ok(replaced.unwrap_or_else(|| plan.clone()));
    }
    let mut changed = false;
    let mut children = Vec::new();
    for child in plan.children() {
        let after = replace(child, new)?;
        changed |= !Arc::ptr_eq(child, &after);
        children.push(after);
    }
    if changed {
        replace_children_if_necessary(plan.clone(), children)
    } else {
        Ok(plan.clone())
    }
}

/// Names what a fragment does; equal plans of equal files have equal digests.
pub(super) fn digest(fragment: &Plan) -> String {
    let text = displayable(fragment.as_ref()).indent(true).to_string();
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

/// The fragment as it is for one of its partitions: a plan of one partition.
///
/// The scan keeps the files of that partition only. Asking the whole plan for one partition would not
/// do: scans share their files among the partitions of a process, and joins wait for all of them.
pub(super) fn restrict(fragment: &Plan, partition: usize) -> Result<Plan> {
    if let Some((config, _)) = scan(fragment) {
        let group = config.file_groups.get(partition).ok_or_else(|| {
            DataFusionError::Internal(format!("the scan has no partition {partition}"))
        })?;
        let mut config = config.clone();
        config.file_groups = vec![group.clone()];
        return Ok(DataSourceExec::from_data_source(config));
    }
    let children = fragment.children();
    let main = main_input(fragment);
    let mut replaced = Vec::with_capacity(children.len());
    for (index, child) in children.into_iter().enumerate() {
        replaced.push(if index == main {
            restrict(child, partition)?
        } else {
            child.clone()
        });
    }
    replace_children_if_necessary(fragment.clone(), replaced)
}

/// Bytes that a fragment's partitions read together: of the columns that are needed, as they are
/// stored, by the footer of the largest file.
pub(super) async fn bytes(fragment: &Plan) -> Result<u64> {
    let mut leaf = fragment;
    while scan(leaf).is_none() {
        let Some(child) = leaf.children().into_iter().nth(main_input(leaf)) else {
            return Ok(0);
        };
        leaf = child;
    }
    match scan(leaf) {
        Some((config, source)) => scan_bytes(config, source).await,
        None => Ok(0),
    }
}

/// Bytes that one scan reads, as [`bytes`].
pub(super) async fn scan_bytes(config: &FileScanConfig, source: &ParquetSource) -> Result<u64> {
    let files = || config.file_groups.iter().flat_map(|group| group.iter());
    let all: u64 = files().map(PartitionedFile::effective_size).sum();
    let largest = files().max_by_key(|file| file.object_meta.size);
    let (Some(file), Some(readers)) = (largest, source.parquet_file_reader_factory()) else {
        return Ok(all);
    };
    let mut columns = source.projection().map(ProjectionExprs::column_indices);
    // A filter may read more columns than the projection gives.
    if let (Some(columns), Some(filter)) = (&mut columns, source.filter()) {
        columns.extend(collect_columns(&filter).iter().map(Column::index));
    }
    let mut file = file.clone();
    file.range = None;
    let metrics = ExecutionPlanMetricsSet::new();
    let mut reader = readers.create_reader(0, file, None, &metrics)?;
    let footer = reader
        .get_metadata(None)
        .await
        .map_err(|error| DataFusionError::External(Box::new(error)))?;
    let (mut needed, mut stored) = (0_u64, 0_u64);
    for group in footer.row_groups() {
        for (index, column) in group.columns().iter().enumerate() {
            let bytes = u64::try_from(column.compressed_size()).unwrap_or(0);
            stored += bytes;
            let wanted = columns
                .as_ref()
                .is_none_or(|columns| columns.contains(&index));
            if wanted {
                needed += bytes;
            }
        }
    }
    if stored == 0 {
        return Ok(all);
    }
    Ok((all as f64 * (needed as f64 / stored as f64)) as u64)
}

/// A scan of Parquet files.
pub(super) fn scan(plan: &Plan) -> Option<(&FileScanConfig, &ParquetSource)> {
    plan.downcast_ref::<DataSourceExec>()?
        .downcast_to_file_source::<ParquetSource>()
}

/// The child whose partitions are the operator's: joins read their other child whole.
fn main_input(plan: &Plan) -> usize {
    plan.children().len().saturating_sub(1)
}

fn partitions(plan: &Plan) -> usize {
    plan.output_partitioning().partition_count()
}

/// Whether a plan can be run a partition at a time.
fn is_local(plan: &Plan) -> bool {
    if scan(plan).is_some() {
        return true;
    }
    let children = plan.children();
    let Some(input) = children.get(main_input(plan)).copied() else {
        return false;
    };
    let local = if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
        match aggregate.mode() {
            AggregateMode::Partial => true,
            AggregateMode::Single | AggregateMode::SinglePartitioned => partitions(input) == 1,
            _ => false,
        }
    } else if let Some(sort) = plan.downcast_ref::<SortExec>() {
        sort.preserve_partitioning() || partitions(input) == 1
    } else if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        *join.partition_mode() == PartitionMode::CollectLeft
            && looks_up(*join.join_type())
            && is_small_table(join.left())
    } else if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
        looks_up(*join.join_type()) && is_small_table(join.left())
    } else if let Some(join) = plan.downcast_ref::<CrossJoinExec>() {
        is_small_table(join.left())
    } else {
        is_row_by_row(plan) || plan.is::<LocalLimitExec>()
    };
    local && is_local(input)
}

fn is_row_by_row(plan: &Plan) -> bool {
    plan.is::<FilterExec>()
        || plan.is::<ProjectionExec>()
        || plan.is::<CooperativeExec>()
        || plan.is::<UnnestExec>()
}

/// Joins that give rows for rows of their second input only: no row of the first one is given
/// because nothing met it, which is known once all partitions have been seen.
fn looks_up(join: JoinType) -> bool {
    matches!(
        join,
        JoinType::Inner
            | JoinType::Right
            | JoinType::RightSemi
            | JoinType::RightAnti
            | JoinType::RightMark
    )
}

/// Whether every unit finds the same rows here. Aggregates (of floats) and limits may come out
/// otherwise when they are run again, and the answer would be of two minds.
fn is_small_table(plan: &Plan) -> bool {
    let known = if let Some((config, _)) = scan(plan) {
        config.limit.is_none()
    } else {
        is_row_by_row(plan)
            || plan.is::<CoalescePartitionsExec>()
            || plan.is::<UnionExec>()
            || plan.is::<EmptyExec>()
            || plan.is::<HashJoinExec>()
    };
    known && plan.fetch().is_none() && plan.children().into_iter().all(is_small_table)
}

/// Whether a scan drops rows by itself. What a join above it would tell it while it runs, a unit does
/// not hear.
fn has_own_filter(source: &ParquetSource) -> bool {
    source.filter().is_some_and(|filter| {
        let mut parts = split_conjunction(&filter).into_iter();
        parts.any(|part| part.downcast_ref::<DynamicFilterPhysicalExpr>().is_none())
    })
}

/// Whether a fragment gives less than its files hold, or in another order: files that are only read
/// are read faster where they are needed.
fn reduces(plan: &Plan) -> bool {
    if let Some((config, source)) = scan(plan) {
        return config.limit.is_none() && has_own_filter(source);
    }
    let does = plan.is::<FilterExec>()
        || plan.is::<AggregateExec>()
        || plan.is::<SortExec>()
        || plan.is::<HashJoinExec>()
        || plan.is::<NestedLoopJoinExec>();
    let input = plan.children().into_iter().nth(main_input(plan));
    // A plain limit is done after the first rows.
    !plan.is::<LocalLimitExec>() && (does || input.is_some_and(reduces))
}
