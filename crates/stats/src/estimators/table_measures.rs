//! Information and association measures of a whole contingency table. Nats inside; every sum is exact and every term
//! is written so that nothing large cancels: `I = Σ (E h(O/E − 1)) / N` has positive terms only.

use hashbrown::HashMap;

use super::table::Summary;
use crate::catalogue::Values;
use crate::cells::{Cells, FloatCells};
use crate::exact_sum::ExactSum;
use crate::measures::deviation::relative_entropy_term;
use crate::measures::ln_share;

/// Places of the parameters, as in the catalogue.
const LN_BASE: usize = 0;
const CORRECTION: usize = 1;
/// Of normalized_mutual_information: how the two entropies are averaged.
pub(crate) const AVERAGES: &[&str] = &["arithmetic", "geometric", "min", "max"];
/// Of the estimators with a bias correction.
pub(crate) const CORRECTIONS: &[&str] = &["none", "miller-madow"];
/// Of cramers_v.
pub(crate) const CRAMER_CORRECTIONS: &[&str] = &["none", "bergsma"];

/// `−Σ (c/N) ln(c/N)` over weights above zero.
fn entropy(weights: impl Iterator<Item = f64>, total: f64) -> f64 {
    let mut sum = ExactSum::default();
    for weight in weights.filter(|weight| *weight > 0.0) {
        sum.add(-weight * ln_share(weight, total, total - weight));
    }
    sum.value() / total
}

fn categories(weights: &[f64]) -> f64 {
    weights.iter().filter(|weight| **weight > 0.0).count() as f64
}

fn miller_madow(values: &Values, parts: f64, total: f64) -> f64 {
    if values[CORRECTION] != 0.0 {
        parts / (2.0 * total)
    } else {
        0.0
    }
}

/// `H(X | Y)` of cells `(x, y)`.
fn conditional(summary: &Summary) -> f64 {
    let mut sum = ExactSum::default();
    for (cell, weight) in &summary.cells {
        let whole = summary.margins[1][cell[1] as usize];
        sum.add(-weight * ln_share(*weight, whole, whole - weight));
    }
    sum.value() / summary.total
}

/// `Σ E f(O/E − 1) + Σ_{empty cells} E` over a table of two with the given margins.
fn over_expectations(
    cells: impl Iterator<Item = (f64, f64, f64)>,
    total: f64,
    term: fn(f64) -> f64,
) -> f64 {
    let (mut sum, mut covered) = (ExactSum::default(), ExactSum::default());
    for (n_xy, n_x, n_y) in cells {
        let product = n_x * n_y;
        let excess = FloatCells {
            n_xy,
            n_x,
            n_y,
            n: total,
        }
        .excess();
        sum.add(product / total * term(excess / product));
        covered.add(product / total);
    }
    // The rest of the expectations belongs to cells that were never seen.
    sum.add((total - covered.value()).max(0.0));
    sum.value()
}

fn mutual(cells: impl Iterator<Item = (f64, f64, f64)>, total: f64) -> f64 {
    over_expectations(cells, total, relative_entropy_term) / total
}

fn with_margins(summary: &Summary) -> impl Iterator<Item = (f64, f64, f64)> + '_ {
    summary.cells.iter().map(|(cell, weight)| {
        (
            *weight,
            summary.margins[0][cell[0] as usize],
            summary.margins[1][cell[1] as usize],
        )
    })
}

/// A table of one row or column has nothing to share: exactly zero, not the rounding of it.
fn degenerate(summary: &Summary) -> bool {
    categories(&summary.margins[0]) < 2.0 || categories(&summary.margins[1]) < 2.0
}

fn mutual_nats(summary: &Summary) -> f64 {
    if degenerate(summary) {
        0.0
    } else {
        mutual(with_margins(summary), summary.total)
    }
}

pub(crate) fn joint_entropy(summary: &Summary, values: &Values) -> f64 {
    let nats = entropy(
        summary.cells.iter().map(|(_, weight)| *weight),
        summary.total,
    );
    let parts = summary.cells.len() as f64 - 1.0;
    (nats + miller_madow(values, parts, summary.total)) / values[LN_BASE]
}

pub(crate) fn conditional_entropy(summary: &Summary, values: &Values) -> f64 {
    let parts = summary.cells.len() as f64 - categories(&summary.margins[1]);
    (conditional(summary) + miller_madow(values, parts, summary.total)) / values[LN_BASE]
}

pub(crate) fn mutual_information(summary: &Summary, values: &Values) -> f64 {
    let parts = categories(&summary.margins[0]) + categories(&summary.margins[1])
        - summary.cells.len() as f64
        - 1.0;
    (mutual_nats(summary) + miller_madow(values, parts, summary.total)) / values[LN_BASE]
}

pub(crate) fn normalized_mutual_information(summary: &Summary, values: &Values) -> f64 {
    let x = entropy(summary.margins[0].iter().copied(), summary.total);
    let y = entropy(summary.margins[1].iter().copied(), summary.total);
    let average = match values[0] as usize {
        1 => (x * y).sqrt(),
        2 => x.min(y),
        3 => x.max(y),
        _ => 0.5 * (x + y),
    };
    if average == 0.0 {
        return f64::NAN;
    }
    (mutual_nats(summary) / average).clamp(0.0, 1.0)
}

pub(crate) fn variation_of_information(summary: &Summary, values: &Values) -> f64 {
    let mut swapped = ExactSum::default();
    for (cell, weight) in &summary.cells {
        let whole = summary.margins[0][cell[0] as usize];
        swapped.add(-weight * ln_share(*weight, whole, whole - weight));
    }
    let nats = conditional(summary) + swapped.value() / summary.total;
    let parts = 2.0 * summary.cells.len() as f64
        - categories(&summary.margins[0])
        - categories(&summary.margins[1]);
    (nats + miller_madow(values, parts, summary.total)) / values[LN_BASE]
}

pub(crate) fn cramers_v(summary: &Summary, values: &Values) -> f64 {
    let (rows, columns) = (
        categories(&summary.margins[0]),
        categories(&summary.margins[1]),
    );
    if rows < 2.0 || columns < 2.0 {
        return f64::NAN;
    }
    let square = |u: f64| u * u;
    let phi2 = over_expectations(with_margins(summary), summary.total, square) / summary.total;
    if values[0] == 0.0 {
        return (phi2 / (rows.min(columns) - 1.0)).sqrt().min(1.0);
    }
    // Bergsma 2013, section 3: the expectation at independence is taken off, and the sides shrink alike.
    let n = summary.total - 1.0;
    let phi2 = (phi2 - (rows - 1.0) * (columns - 1.0) / n).max(0.0);
    let shrunk = |side: f64| side - (side - 1.0) * (side - 1.0) / n;
    (phi2 / (shrunk(rows).min(shrunk(columns)) - 1.0))
        .sqrt()
        .min(1.0)
}

/// `I(X; Y | Z) = Σ_z (n_z / N) I(X; Y | Z = z)`.
pub(crate) fn conditional_mutual_information(summary: &Summary, values: &Values) -> f64 {
    let mut by_xz: HashMap<[u32; 2], ExactSum> = HashMap::new();
    let mut by_yz: HashMap<[u32; 2], ExactSum> = HashMap::new();
    let mut by_z: HashMap<u32, Vec<([u32; 3], f64)>> = HashMap::new();
    for (cell, weight) in &summary.cells {
        by_xz.entry([cell[0], cell[2]]).or_default().add(*weight);
        by_yz.entry([cell[1], cell[2]]).or_default().add(*weight);
        by_z.entry(cell[2]).or_default().push((*cell, *weight));
    }
    let mut sum = ExactSum::default();
    for (z, cells) in &by_z {
        let total = summary.margins[2][*z as usize];
        let with_margins = cells.iter().map(|(cell, weight)| {
            (
                *weight,
                by_xz[&[cell[0], *z]].value(),
                by_yz[&[cell[1], *z]].value(),
            )
        });
        sum.add(mutual(with_margins, total) * total);
    }
    let parts =
        by_xz.len() as f64 + by_yz.len() as f64 - summary.cells.len() as f64 - by_z.len() as f64;
    (sum.value() / summary.total + miller_madow(values, parts, summary.total)) / values[LN_BASE]
}
