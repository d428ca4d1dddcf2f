//! One round of gossip: every agent's snapshot becomes a weighted mean of some agents' snapshots.
//!
//! Row i of a mixing matrix holds the weights with which agent i takes the others in. All weights are exact
//! fractions, and all outputs of a round come from one pass over the inputs.

use crate::error::SnapshotError;
use crate::manifest::MergeReport;
use crate::matrix::MixingMatrix;
use crate::merge::{OnProgress, merge};
use crate::plan::{MergePlan, plan_rows};
use crate::settings::{MergeSettings, Weights};
use crate::source::SnapshotPath;
use crate::weights::Row;
use std::path::Path;

/// Plans one mixing round into the folders `agent-000`, `agent-001`, ... of `output`.
///
/// Copied tensors, config and tokenizer files come from each agent itself; integers must agree among all.
/// Weights in the settings are not used, and the same snapshot may appear more than once.
///
/// # Errors
/// A matrix of another size, and those of [`crate::plan_merge`].
pub fn plan_mix(
    inputs: &[SnapshotPath],
    matrix: &MixingMatrix,
    output: &Path,
    settings: &MergeSettings,
) -> Result<MergePlan, SnapshotError> {
    if matrix.len() != inputs.len() {
        return Err(SnapshotError::Matrix {
            what: format!(
                "it has {} rows, but there are {} snapshots",
                matrix.len(),
                inputs.len()
            ),
        });
    }
    check_folder(output)?;
    let rows = (0..inputs.len())
        .map(|agent| {
            (
                format!("agent-{agent:03}"),
                matrix.row(agent).clone(),
                agent,
            )
        })
        .collect();
    plan_rows(
        inputs,
        output,
        &MergeSettings {
            allow_same: true,
            ..settings.clone()
        },
        rows,
    )
}

/// Plans and runs one mixing round.
///
/// # Errors
/// Those of [`plan_mix`] and [`merge`].
pub fn mix(
    inputs: &[SnapshotPath],
    matrix: &MixingMatrix,
    output: &Path,
    settings: &MergeSettings,
    on_progress: OnProgress<'_>,
) -> Result<MergeReport, SnapshotError> {
    merge(&plan_mix(inputs, matrix, output, settings)?, on_progress)
}

/// The points at which models between snapshots are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Points {
    /// All points of the simplex whose weights are multiples of `1/steps`: for two snapshots, `steps + 1`
    /// points along the segment, both ends included.
    Grid {
        /// At least 1.
        steps: u64,
    },
    /// These rows of weights.
    Given(Vec<Row>),
}

/// The most points that one interpolation writes.
pub const MAX_POINTS: usize = 1024;

impl Points {
    fn rows(&self, inputs: usize) -> Result<Vec<Row>, SnapshotError> {
        match self {
            Self::Given(rows) => Ok(rows.clone()),
            Self::Grid { steps: 0 } => Err(SnapshotError::Settings {
                what: "an interpolation needs one step or more".to_owned(),
            }),
            Self::Grid { steps } => {
                let mut points = Vec::new();
                compositions(*steps, inputs, &mut Vec::new(), &mut points)?;
                points
                    .iter()
                    .map(|point| {
                        Row::relative(&point.iter().map(|part| (*part).into()).collect::<Vec<_>>())
                    })
                    .collect()
            }
        }
    }
}

/// All ways to write `total` as `parts` numbers in order, first numbers falling.
fn compositions(
    total: u64,
    parts: usize,
    head: &mut Vec<u64>,
    found: &mut Vec<Vec<u64>>,
) -> Result<(), SnapshotError> {
    if parts <= 1 {
        if found.len() == MAX_POINTS {
            return Err(SnapshotError::Settings {
                what: format!(
                    "that would be more than {MAX_POINTS} models; take fewer steps or snapshots"
                ),
            });
        }
        found.push(head.iter().copied().chain([total]).collect());
        return Ok(());
    }
    for first in (0..=total).rev() {
        head.push(first);
        compositions(total - first, parts - 1, head, found)?;
        head.pop();
    }
    Ok(())
}

/// Plans models between snapshots, into the folders `point-000`, `point-001`, ... of `output`; the weights of
/// each are in the manifest.
///
/// # Errors
/// Fewer than two snapshots, no steps, more than [`MAX_POINTS`] points, and those of [`crate::plan_merge`].
pub fn plan_interpolate(
    inputs: &[SnapshotPath],
    points: &Points,
    output: &Path,
    settings: &MergeSettings,
) -> Result<MergePlan, SnapshotError> {
    if inputs.len() < 2 {
        return Err(SnapshotError::Settings {
            what: "an interpolation needs two snapshots or more".to_owned(),
        });
    }
    if settings.weights != Weights::Uniform {
        return Err(SnapshotError::Settings {
            what: "an interpolation has weights of its own; give none in the settings".to_owned(),
        });
    }
    check_folder(output)?;
    let own = settings.side_files_from.unwrap_or(0);
    let rows = points
        .rows(inputs.len())?
        .into_iter()
        .enumerate()
        .map(|(position, row)| (format!("point-{position:03}"), row, own))
        .collect();
    plan_rows(inputs, output, settings, rows)
}

/// Plans and writes models between snapshots.
///
/// # Errors
/// Those of [`plan_interpolate`] and [`merge`].
pub fn interpolate(
    inputs: &[SnapshotPath],
    points: &Points,
    output: &Path,
    settings: &MergeSettings,
    on_progress: OnProgress<'_>,
) -> Result<MergeReport, SnapshotError> {
    merge(
        &plan_interpolate(inputs, points, output, settings)?,
        on_progress,
    )
}

fn check_folder(output: &Path) -> Result<(), SnapshotError> {
    if output
        .extension()
        .is_some_and(|extension| extension == "safetensors")
    {
        return Err(SnapshotError::Settings {
            what: format!(
                "`{}` would have to hold several models; name a folder",
                output.display()
            ),
        });
    }
    Ok(())
}
