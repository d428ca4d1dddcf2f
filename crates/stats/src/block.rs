//! A block of rows with their four counts, the unit that kernels work on: columns of any number type are brought
//! to it a thousand rows at a time, so that it stays in the first-level cache and one loop serves all types.

use crate::cells::{Cells, FloatCells, WideCells};

/// Rows in a block that the SQL functions make.
pub(crate) const BLOCK_ROWS: usize = 1024;

/// Four equally long columns of counts, as floats and, where floats would lose digits, as integers too.
pub(crate) struct CountBlock<'a> {
    floats: [&'a [f64]; 4],
    integers: Option<[&'a [u64]; 4]>,
}

impl<'a> CountBlock<'a> {
    pub(crate) fn of_floats(
        n_xy: &'a [f64],
        n_x: &'a [f64],
        n_y: &'a [f64],
        n: &'a [f64],
    ) -> CountBlock<'a> {
        CountBlock {
            floats: [n_xy, n_x, n_y, n],
            integers: None,
        }
    }

    pub(crate) fn of_integers(
        n_xy: &'a [u64],
        n_x: &'a [u64],
        n_y: &'a [u64],
        n: &'a [u64],
    ) -> CountBlock<'a> {
        CountBlock {
            floats: [&[]; 4],
            integers: Some([n_xy, n_x, n_y, n]),
        }
    }

    /// Applies `measure` to every row inside the domain; the others get NaN. A zero has no sign (`−0 + 0 = 0`).
    /// `out` must be as long as the columns.
    #[inline(always)]
    pub(crate) fn apply<F>(&self, needs_neither: bool, out: &mut [f64], measure: F)
    where
        F: Measured,
    {
        let rows = out.len();
        if let Some([n_xy, n_x, n_y, n]) = self.integers {
            let cells = |row: usize| WideCells {
                n_xy: n_xy[row],
                n_x: n_x[row],
                n_y: n_y[row],
                n: n[row],
            };
            apply_rows(rows, cells, needs_neither, out, measure);
            return;
        }
        // Equal lengths, said once: the loops then have no bounds checks.
        let [n_xy, n_x, n_y, n] = self.floats.map(|column| &column[..rows]);
        let cells = |row: usize| FloatCells {
            n_xy: n_xy[row],
            n_x: n_x[row],
            n_y: n_y[row],
            n: n[row],
        };
        apply_rows(rows, cells, needs_neither, out, measure);
    }
}

/// First whether all rows are inside the domain, which is nearly always so: the measure then runs without a branch.
/// Otherwise each row is asked again, so that no measure ever sees impossible counts.
#[inline(always)]
fn apply_rows<C: Cells, F: Measured>(
    rows: usize,
    cells: impl Fn(usize) -> C,
    needs_neither: bool,
    out: &mut [f64],
    measure: F,
) {
    let valid = |row: usize| {
        let cells = cells(row);
        cells.valid() & (!needs_neither | (cells.neither() >= 0.0))
    };
    let mut all_valid = true;
    for row in 0..rows {
        all_valid &= valid(row);
    }
    if all_valid {
        for (row, slot) in out.iter_mut().enumerate() {
            *slot = measure.at(cells(row)) + 0.0;
        }
        return;
    }
    for (row, slot) in out.iter_mut().enumerate() {
        *slot = if valid(row) {
            measure.at(cells(row)) + 0.0
        } else {
            f64::NAN
        };
    }
}

/// A measure for both representations of the counts (a closure cannot be generic).
pub(crate) trait Measured {
    /// The value, or NaN.
    fn at<C: Cells>(&self, cells: C) -> f64;
}
