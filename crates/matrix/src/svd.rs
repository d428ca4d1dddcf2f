//! Truncated SVD by randomized range finding (Halko, Martinsson & Tropp 2011, algorithms 4.4 and
//! 5.1), which keeps the range of every power iteration (Halko, Martinsson, Shkolnisky & Tygert 2011;
//! Musco & Musco 2015): the numbers of a slowly falling spectrum, as that of PMI matrices, come out
//! far nearer for the same number of products.
//!
//! Sparse products are made in single precision (their rounding, about 1e-6 of the largest singular
//! value, is far below the error of the method), everything dense in double. Memory beside the
//! matrix: for the longer side `n` and a basis of `w = block · (power_iterations + 1)` columns, about
//! `28 · n · w` bytes.

use rayon::prelude::*;

use crate::bands::BandStore;
use crate::error::MatrixError;
use crate::random::normal;
use crate::tsqr::{Factors, qr, row_major, turn};

/// How a matrix is factorized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SvdSettings {
    /// Singular values wanted.
    pub rank: usize,
    /// Columns beyond the rank: half of rank and oversampling is the width of the random start.
    pub oversampling: usize,
    /// Times that the range is multiplied by the matrix and its transpose.
    pub power_iterations: usize,
    /// Seed of the random start.
    pub seed: u64,
}

impl Default for SvdSettings {
    fn default() -> Self {
        Self {
            rank: 100,
            oversampling: 20,
            power_iterations: 7,
            seed: 1,
        }
    }
}

impl SvdSettings {
    /// Columns of one block: so many that all blocks hold twice the wanted rank, but no more than
    /// rank and oversampling, nor fewer than are needed to hold these.
    fn block(&self, shorter: usize) -> usize {
        let wanted = self.rank + self.oversampling;
        let least = wanted.div_ceil(self.power_iterations + 1);
        (wanted / 2).max(least).max(1).min(shorter)
    }
}

/// The largest singular values with their left vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Svd {
    /// Falling.
    pub singular_values: Vec<f64>,
    /// Left singular vectors: row after row, as many columns as singular values. The sign of each
    /// is such that its largest number is positive.
    pub left: Vec<f64>,
}

/// Bytes that the dense blocks of a factorization take, at most.
#[must_use]
pub fn dense_bytes(rows: usize, columns: usize, settings: &SvdSettings) -> u64 {
    let shorter = rows.min(columns);
    let width = settings.block(shorter) * (settings.power_iterations + 1);
    28 * rows.max(columns) as u64 * width.min(shorter) as u64
}

/// Factorizes `matrix`; `transposed` is its transpose (the matrix itself when it is symmetric).
/// `step` is told of each sparse product, of which there are at most `2 · power_iterations + 2`.
///
/// # Errors
/// A rank of 0 or beyond the matrix; whatever `step` or the scratch file gives.
pub fn randomized_svd<E: From<MatrixError>>(
    matrix: &BandStore,
    transposed: &BandStore,
    settings: &SvdSettings,
    mut step: impl FnMut() -> Result<(), E>,
) -> Result<Svd, E> {
    let (rows, columns) = matrix.shape();
    if transposed.shape() != (columns, rows) {
        return Err(MatrixError::Bug("the transpose has another shape".into()).into());
    }
    let shorter = rows.min(columns);
    if settings.rank == 0 || settings.rank > shorter {
        return Err(MatrixError::Setting(format!(
            "{} dimensions are asked of a matrix of {rows} x {columns}; give 1 to {shorter}",
            settings.rank
        ))
        .into());
    }
    let block = settings.block(shorter);
    let blocks = settings.power_iterations + 1;
    let start: Vec<f32> = (0..columns * block)
        .into_par_iter()
        .map(|place| normal(settings.seed, place as u64) as f32)
        .collect();
    let mut times = |matrix: &BandStore, dense: &[f32], width: usize| -> Result<Vec<f64>, E> {
        let product = matrix.times(dense, width)?;
        step()?;
        Ok(product.par_iter().map(|x| f64::from(*x)).collect())
    };
    let single = |q: &[f64]| -> Vec<f32> { q.par_iter().map(|x| *x as f32).collect() };
    // Side by side: block i of every row is what i multiplications by A Aᵀ made of the start.
    let width = (block * blocks).min(shorter);
    let mut basis = vec![0.0_f64; rows * width];
    let mut range = qr(&times(matrix, &start, block)?, block).q;
    for number in 0..blocks {
        let from = number * block;
        let kept = block.min(width.saturating_sub(from));
        for (to, row) in basis.chunks_mut(width).zip(range.chunks(block)) {
            to[from..from + kept].copy_from_slice(&row[..kept]);
        }
        if from + block >= width {
            break;
        }
        let back = qr(&times(transposed, &single(&range), block)?, block).q;
        range = qr(&times(matrix, &single(&back), block)?, block).q;
    }
    let range = qr(&basis, width).q;
    drop(basis);
    // B = Qᵀ A is short and wide; its transpose is tall, and its triangle has the same SVD.
    let Factors { r, .. } = qr(&times(transposed, &single(&range), width)?, width);
    let small =
        r.transpose().to_owned().thin_svd().map_err(|error| {
            MatrixError::Bug(format!("the small SVD does not converge: {error:?}"))
        })?;
    let singular_values: Vec<f64> = small
        .S()
        .column_vector()
        .iter()
        .take(settings.rank)
        .copied()
        .collect();
    let kept = small.U().submatrix(0, 0, width, settings.rank);
    let mut left = turn(&range, width, kept);
    fix_signs(&mut left, settings.rank);
    debug_assert_eq!(row_major(kept).len(), width * settings.rank);
    Ok(Svd {
        singular_values,
        left,
    })
}

/// Turns each column so that its number of largest size, the first of them, is positive.
fn fix_signs(rows: &mut [f64], width: usize) {
    let mut largest = vec![0.0_f64; width];
    for row in rows.chunks(width) {
        for (best, value) in largest.iter_mut().zip(row) {
            if value.abs() > best.abs() {
                *best = *value;
            }
        }
    }
    for row in rows.chunks_mut(width) {
        for (value, best) in row.iter_mut().zip(&largest) {
            if *best < 0.0 {
                *value = -*value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::*;
    use crate::bands::tests::store;

    fn dense(rows: usize, columns: usize) -> Vec<Vec<f32>> {
        let number = |r: usize, c: usize| normal(5, (r * columns + c) as u64) as f32;
        // A few strong directions over noise, with zeros in between.
        (0..rows)
            .map(|r| {
                (0..columns)
                    .map(|c| {
                        let strong = 9.0 * ((r % 3 == c % 3) as u8 as f32);
                        if (r + c) % 4 == 0 {
                            0.0
                        } else {
                            strong + number(r, c)
                        }
                    })
                    .collect()
            })
            .collect()
    }

    fn transpose(dense: &[Vec<f32>]) -> Vec<Vec<f32>> {
        (0..dense[0].len())
            .map(|c| dense.iter().map(|row| row[c]).collect())
            .collect()
    }

    fn factorize(dense: &[Vec<f32>], settings: &SvdSettings) -> Svd {
        let step = || Ok::<(), MatrixError>(());
        let (a, t) = (store(dense, 7, 500), store(&transpose(dense), 9, 0));
        randomized_svd(&a, &t, settings, step).unwrap()
    }

    #[test]
    fn values_and_vectors_are_those_of_a_full_svd() {
        let settings = SvdSettings {
            rank: 6,
            power_iterations: 8,
            ..SvdSettings::default()
        };
        for (rows, columns) in [(60, 45), (45, 60), (26, 26)] {
            let dense = dense(rows, columns);
            let full = Mat::from_fn(rows, columns, |r, c| f64::from(dense[r][c]));
            let exact = full.thin_svd().unwrap();
            let found = factorize(&dense, &settings);
            for index in 0..6 {
                let sigma = exact.S().column_vector()[index];
                let relative = found.singular_values[index] / sigma - 1.0;
                assert!(relative.abs() < 1e-3, "{index} {relative}");
            }
            for index in 0..2 {
                let dot: f64 = (0..rows)
                    .map(|r| exact.U()[(r, index)] * found.left[r * 6 + index])
                    .sum();
                assert!(dot.abs() > 0.999, "{index} {dot}");
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit_and_seeds_do() {
        let dense = dense(60, 45);
        let settings = SvdSettings {
            rank: 5,
            oversampling: 2,
            power_iterations: 1,
            seed: 1,
        };
        let with = |threads: usize, seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let settings = SvdSettings { seed, ..settings };
            pool.install(|| factorize(&dense, &settings))
        };
        assert_eq!(with(1, 1), with(3, 1));
        assert_ne!(with(1, 1), with(1, 2));
    }

    #[test]
    fn a_rank_beyond_the_matrix_is_refused() {
        let small = store(&dense(4, 4), 4, 1000);
        let settings = SvdSettings {
            rank: 5,
            ..SvdSettings::default()
        };
        let step = || Ok::<(), MatrixError>(());
        let error = randomized_svd(&small, &small, &settings, step).unwrap_err();
        assert_eq!(
            error.to_string(),
            "5 dimensions are asked of a matrix of 4 x 4; give 1 to 4"
        );
    }
}
