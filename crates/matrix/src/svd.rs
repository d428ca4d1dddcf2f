//! Truncated SVD by randomized block Lanczos: the range of a random start, multiplied again and again by
//! A Aᵀ, is kept whole (Golub & Underwood 1977; Musco & Musco 2015), and the singular values are those of
//! A on all of it. For the slowly falling spectrum of PMI matrices many narrow blocks come much
//! nearer than a few wide ones of as many columns.
//!
//! Sparse products and the basis are in single precision (their rounding, about 1e-6 of the largest
//! singular value, is far below the error of the method), everything that the values are made of in
//! double. The basis is orthogonal by one pass of projections; what that leaves is put right at the end by
//! the basis's own Gram matrix, which also takes out directions that came twice. Memory beside the
//! matrix: for the longer side `n` and a basis of `w` columns, about `8 · n · w` bytes.

use faer::{Mat, Side};
use rayon::prelude::*;

use crate::bands::BandStore;
use crate::error::MatrixError;
use crate::random::normal;
use crate::tall::Tall;
use crate::tsqr::qr;

/// How a matrix is factorized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SvdSettings {
    /// Singular values wanted.
    pub rank: usize,
    /// Directions beyond the rank: the basis has about three columns for each of both.
    pub oversampling: usize,
    /// Times that a block is multiplied by the matrix and its transpose: more of them are narrower.
    pub power_iterations: usize,
    /// Seed of the random start.
    pub seed: u64,
}

impl Default for SvdSettings {
    fn default() -> Self {
        Self {
            rank: 100,
            oversampling: 20,
            power_iterations: 22,
            seed: 1,
        }
    }
}

/// Columns of a block are a multiple of this, where the matrix has as many.
const LANES: usize = 8;

impl SvdSettings {
    /// Columns of one block: so many that all blocks hold about three times rank and oversampling.
    fn block(&self, shorter: usize) -> usize {
        let wanted = 3 * (self.rank + self.oversampling);
        let block = wanted.div_ceil(self.power_iterations + 1);
        block.next_multiple_of(LANES).min(shorter)
    }

    /// Columns of all blocks.
    fn width(&self, shorter: usize) -> usize {
        (self.block(shorter) * (self.power_iterations + 1)).min(shorter)
    }
}

/// The largest singular values with their left vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Svd {
    /// Falling.
    pub singular_values: Vec<f64>,
    /// Left singular vectors: row after row, as many columns as singular values. The sign of each
    /// is such that its largest number is positive. Zeros beyond the rank of the matrix.
    pub left: Vec<f64>,
}

/// Bytes that the dense blocks of a factorization take, at most.
#[must_use]
pub fn dense_bytes(rows: usize, columns: usize, settings: &SvdSettings) -> u64 {
    let shorter = rows.min(columns);
    let (width, block) = (settings.width(shorter), settings.block(shorter));
    // The bases of both sides; blocks that are multiplied and made orthogonal; vectors.
    let sides = 4 * (rows as u64 + columns as u64) * width as u64;
    sides + rows.max(columns) as u64 * (32 * block as u64 + 8 * settings.rank as u64)
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
    let (block, width) = (settings.block(shorter), settings.width(shorter));
    let mut times = |matrix: &BandStore, dense: &[f32], width: usize| -> Result<Vec<f32>, E> {
        let product = matrix.times(dense, width)?;
        step()?;
        Ok(product)
    };
    let start: Vec<f32> = (0..columns * block)
        .into_par_iter()
        .map(|place| normal(settings.seed, place as u64) as f32)
        .collect();
    let mut next = times(matrix, &start, block)?;
    drop(start);
    // The columns of `basis` span what multiplications by A Aᵀ made of the start; `images` is Aᵀ of them.
    let (mut basis, mut images) = (Tall::new(rows, width), Tall::new(columns, width));
    loop {
        let mut kept = block;
        if basis.width() + block > width {
            kept = width - basis.width();
            next = first_columns(&next, block, kept);
        }
        basis.project_out(&mut next, kept);
        let range = orthonormal(&next, kept);
        basis.push(&range);
        let image = times(transposed, &range, kept)?;
        images.push(&image);
        if basis.width() == width {
            break;
        }
        next = times(matrix, &image, block)?;
    }
    factors(&basis, &images, settings.rank).map_err(E::from)
}

/// The first `kept` columns of a matrix of `width` columns, row after row.
fn first_columns(rows: &[f32], width: usize, kept: usize) -> Vec<f32> {
    rows.chunks(width)
        .flat_map(|row| &row[..kept])
        .copied()
        .collect()
}

/// Orthonormal columns with the span of these.
fn orthonormal(rows: &[f32], width: usize) -> Vec<f32> {
    let double: Vec<f64> = rows.par_iter().map(|x| f64::from(*x)).collect();
    let q = qr(&double, width);
    q.par_iter().map(|x| *x as f32).collect()
}

/// Directions of the basis whose square is below this are what rounding left of others.
const LEAST_SQUARE: f64 = 1e-3;

/// Singular values and left vectors of A on the span of `basis`, where `images = Aᵀ · basis`: with the
/// Gram matrix `G = basisᵀ · basis` and `XᵀGX = 1`, the columns of `basis · X` are orthonormal, and
/// the squares of the values are the eigenvalues of `Xᵀ · imagesᵀ · images · X`.
fn factors(basis: &Tall, images: &Tall, rank: usize) -> Result<Svd, MatrixError> {
    let eigen = |matrix: &Mat<f64>| {
        matrix.self_adjoint_eigen(Side::Lower).map_err(|error| {
            MatrixError::Bug(format!(
                "the small eigenproblem does not converge: {error:?}"
            ))
        })
    };
    let gram = eigen(&basis.gram())?;
    let squares = gram.S().column_vector();
    // They rise.
    let dropped = squares
        .iter()
        .filter(|square| **square < LEAST_SQUARE)
        .count();
    let whole = basis.width() - dropped;
    let turn = Mat::from_fn(basis.width(), whole, |row, column| {
        gram.U()[(row, dropped + column)] / squares[dropped + column].sqrt()
    });
    let mut image_gram = images.gram();
    for column in 0..basis.width() {
        for row in 0..column {
            image_gram[(row, column)] = image_gram[(column, row)];
        }
    }
    let small = turn.transpose() * image_gram * &turn;
    let small = eigen(&small)?;
    let values = small.S().column_vector();
    let mut singular_values = vec![0.0; rank];
    let mut vectors = Mat::zeros(whole, rank);
    let falling = (0..whole).rev();
    for ((index, singular_value), from) in singular_values.iter_mut().enumerate().zip(falling) {
        *singular_value = values[from].max(0.0).sqrt();
        vectors.col_mut(index).copy_from(small.U().col(from));
    }
    let mut left = basis.times((turn * vectors).as_ref());
    fix_signs(&mut left, rank);
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

    /// What is beyond the rank of the matrix is zero, whatever rounding leaves of it.
    #[test]
    fn matrices_of_small_rank_and_none() {
        let rank_two = |r: usize, c: usize| ((r % 2) * (c % 3) + 4 * (r % 5 / 4) * (c % 7)) as f32;
        let some: Vec<Vec<f32>> = (0..90)
            .map(|r| (0..70).map(|c| rank_two(r, c)).collect())
            .collect();
        let full = Mat::from_fn(90, 70, |r, c| f64::from(some[r][c]));
        let exact = full.singular_values().unwrap();
        let settings = SvdSettings {
            rank: 5,
            ..SvdSettings::default()
        };
        let found = factorize(&some, &settings);
        for index in 0..5 {
            let difference = found.singular_values[index] - exact[index];
            // Single precision of the largest value.
            assert!(difference.abs() < 1e-4 * exact[0], "{index} {difference}");
        }
        let norms: f64 = found
            .left
            .chunks(5)
            .map(|row| row[0] * row[0] + row[1] * row[1])
            .sum();
        assert!((norms - 2.0).abs() < 1e-5, "{norms}");
        let mut one = vec![vec![0.0; 40]; 50];
        one[7][9] = -3.0;
        let found = factorize(&one, &settings);
        assert!((found.singular_values[0] - 3.0).abs() < 1e-5);
        assert!(
            found.singular_values[1..]
                .iter()
                .all(|value| value.abs() < 1e-5)
        );
        assert!((found.left[7 * 5] - 1.0).abs() < 1e-5);
        let none = vec![vec![0.0; 40]; 50];
        assert_eq!(factorize(&none, &settings).singular_values, [0.0; 5]);
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
