//! QR of a tall dense matrix by blocks of rows (Demmel, Grigori, Hoemmen & Langou 2012): each block
//! on one thread, then the small triangles together. The blocks do not depend on threads, so
//! neither does the result.

use faer::{Mat, MatRef, Par};
use rayon::prelude::*;

/// Rows of a block, at least.
const BLOCK_ROWS: usize = 4096;

/// Row-major numbers as a matrix.
fn matrix(rows: &[f64], width: usize) -> MatRef<'_, f64> {
    MatRef::from_row_major_slice(rows, rows.len() / width, width)
}

/// The orthonormal factor, row after row, of a matrix of `width` columns and at least as many rows.
pub(crate) fn qr(tall: &[f64], width: usize) -> Vec<f64> {
    // Parallel work is ours: blocks. Inside a block faer runs on one thread.
    faer::set_global_parallelism(Par::Seq);
    let rows = tall.len() / width;
    let blocks = (rows / BLOCK_ROWS.max(2 * width)).max(1);
    let bound = |block: usize| rows * block / blocks * width;
    let parts: Vec<(Mat<f64>, Mat<f64>)> = (0..blocks)
        .into_par_iter()
        .map(|block| {
            let factors = matrix(&tall[bound(block)..bound(block + 1)], width).qr();
            (factors.compute_thin_Q(), factors.thin_R().to_owned())
        })
        .collect();
    if let [(q, _)] = &parts[..] {
        return row_major(q.as_ref());
    }
    let mut stacked = Mat::zeros(blocks * width, width);
    for (block, (_, r)) in parts.iter().enumerate() {
        stacked
            .submatrix_mut(block * width, 0, width, width)
            .copy_from(r);
    }
    let turn = stacked.qr().compute_thin_Q();
    let pieces: Vec<Vec<f64>> = parts
        .par_iter()
        .enumerate()
        .map(|(block, (q, _))| {
            let turned = q * turn.submatrix(block * width, 0, width, width);
            row_major(turned.as_ref())
        })
        .collect();
    pieces.concat()
}

/// The numbers of a matrix, row after row.
fn row_major(matrix: MatRef<'_, f64>) -> Vec<f64> {
    let (rows, columns) = matrix.shape();
    let mut out = vec![0.0; rows * columns];
    for column in 0..columns {
        for row in 0..rows {
            out[row * columns + column] = matrix[(row, column)];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::normal;

    fn check(rows: usize, width: usize, number: impl Fn(usize, usize) -> f64) {
        let tall: Vec<f64> = (0..rows * width)
            .map(|place| number(place / width, place % width))
            .collect();
        let q = qr(&tall, width);
        let dot = |a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64| -> f64 {
            (0..rows).map(|row| a(row) * b(row)).sum()
        };
        let column = |column: usize| {
            let q = &q;
            move |row: usize| q[row * width + column]
        };
        for a in 0..width {
            for b in 0..=a {
                let expected = f64::from(u8::from(a == b));
                let found = dot(&column(a), &column(b));
                // Householder: a few units of 2^-53 for each of the columns.
                let near = (found - expected).abs() < 1e-12;
                assert!(near, "{rows} {width} {a} {b} {found}");
            }
            // Column `a` is made of the first columns of q.
            let of = |row: usize| tall[row * width + a];
            let shares: Vec<f64> = (0..=a).map(|k| dot(&column(k), &of)).collect();
            for row in (0..rows).step_by(97) {
                let sum: f64 = (0..=a).map(|k| shares[k] * q[row * width + k]).sum();
                assert!((sum - of(row)).abs() < 1e-9, "{rows} {width} {a} {row}");
            }
        }
    }

    #[test]
    fn one_block_and_several_give_orthonormal_columns_of_the_same_span() {
        for (rows, width) in [(3, 3), (50, 7), (9000, 5)] {
            check(rows, width, |row, column| {
                normal(3, (row * 100 + column) as u64)
            });
        }
        // Columns that depend on each other.
        check(9000, 4, |row, column| ((row % 7) * (column + 1)) as f64);
    }
}
