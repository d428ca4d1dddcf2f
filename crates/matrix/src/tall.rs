//! Tall dense matrices in single precision, row after row, whose columns come some at a time.
//!
//! Products over the rows are made by blocks of rows that do not depend on threads and are added up in
//! their order, in double precision between blocks, so neither do the results.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows of a block.
const BLOCK_ROWS: usize = 1024;

/// Blocks that one sum of a Gram matrix runs over; there are at most [`SUMS`] such sums.
const SUMS: usize = 16;

/// A matrix with room for more columns.
pub(crate) struct Tall {
    rows: usize,
    room: usize,
    width: usize,
    numbers: Vec<f32>,
}

impl Tall {
    /// No columns, and room for `room` of them.
    pub(crate) fn new(rows: usize, room: usize) -> Self {
        Self {
            rows,
            room,
            width: 0,
            numbers: vec![0.0; rows * room],
        }
    }

    /// Columns so far.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Appends columns, given row after row.
    pub(crate) fn push(&mut self, columns: &[f32]) {
        let more = columns.len() / self.rows;
        for (to, from) in self.numbers.chunks_mut(self.room).zip(columns.chunks(more)) {
            to[self.width..self.width + more].copy_from_slice(from);
        }
        self.width += more;
    }

    /// Rows of one block, without the room.
    fn block<'a>(&self, rows: &'a [f32]) -> MatRef<'a, f32> {
        let all = MatRef::from_row_major_slice(rows, rows.len() / self.room, self.room);
        all.subcols(0, self.width)
    }

    /// `other −= self · (selfᵀ · other)`; `other` has `width` columns.
    pub(crate) fn project_out(&self, other: &mut [f32], width: usize) {
        faer::set_global_parallelism(Par::Seq);
        if self.width == 0 {
            return;
        }
        let parts: Vec<Mat<f32>> = self
            .numbers
            .par_chunks(BLOCK_ROWS * self.room)
            .zip(other.par_chunks(BLOCK_ROWS * width))
            .map(|(own, other)| {
                let other = MatRef::from_row_major_slice(other, other.len() / width, width);
                self.block(own).transpose() * other
            })
            .collect();
        let shares = Mat::from_fn(self.width, width, |row, column| {
            let sum: f64 = parts
                .iter()
                .map(|part| f64::from(part[(row, column)]))
                .sum();
            sum as f32
        });
        self.numbers
            .par_chunks(BLOCK_ROWS * self.room)
            .zip(other.par_chunks_mut(BLOCK_ROWS * width))
            .for_each(|(own, other)| {
                let other = MatMut::from_row_major_slice_mut(other, other.len() / width, width);
                matmul(other, Accum::Add, self.block(own), &shares, -1.0, Par::Seq);
            });
    }

    /// The lower half of `selfᵀ · self`.
    pub(crate) fn gram(&self) -> Mat<f64> {
        faer::set_global_parallelism(Par::Seq);
        let blocks = self.rows.div_ceil(BLOCK_ROWS);
        let rows = blocks.div_ceil(SUMS) * BLOCK_ROWS;
        let sums: Vec<Mat<f64>> = self
            .numbers
            .par_chunks(rows * self.room)
            .map(|rows| {
                let mut sum = Mat::zeros(self.width, self.width);
                let mut room = Vec::new();
                for rows in rows.chunks(BLOCK_ROWS * self.room) {
                    let block = self.double(rows, &mut room);
                    triangular::matmul(
                        sum.as_mut(),
                        BlockStructure::TriangularLower,
                        Accum::Add,
                        block.transpose(),
                        BlockStructure::Rectangular,
                        block,
                        BlockStructure::Rectangular,
                        1.0,
                        Par::Seq,
                    );
                }
                sum
            })
            .collect();
        let mut all = Mat::zeros(self.width, self.width);
        for sum in sums {
            all += sum;
        }
        all
    }

    /// `self · small`, row after row.
    pub(crate) fn times(&self, small: MatRef<'_, f64>) -> Vec<f64> {
        faer::set_global_parallelism(Par::Seq);
        let width = small.ncols();
        let mut out = vec![0.0; self.rows * width];
        self.numbers
            .par_chunks(BLOCK_ROWS * self.room)
            .zip(out.par_chunks_mut(BLOCK_ROWS * width))
            .for_each_init(Vec::new, |room, (own, out)| {
                let out = MatMut::from_row_major_slice_mut(out, out.len() / width, width);
                let own = self.double(own, room);
                matmul(out, Accum::Replace, own, small, 1.0, Par::Seq);
            });
        out
    }

    /// Rows of one block in double precision, in `room`.
    fn double<'a>(&self, rows: &[f32], room: &'a mut Vec<f64>) -> MatRef<'a, f64> {
        room.clear();
        for row in rows.chunks(self.room) {
            room.extend(row[..self.width].iter().map(|x| f64::from(*x)));
        }
        MatRef::from_row_major_slice(room, rows.len() / self.room, self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::normal;

    /// 2500 rows are three blocks, 20000 more than one block a sum.
    #[test]
    fn products_over_blocks_are_those_of_whole_matrices() {
        for rows in [3, 2500, 20_000] {
            let number = |place: usize| normal(4, place as u64) as f32;
            let mut tall = Tall::new(rows, 9);
            let mut whole = vec![Vec::new(); rows];
            for width in [2, 5] {
                let columns: Vec<f32> = (0..rows * width)
                    .map(|p| number(p + tall.width()))
                    .collect();
                for (row, columns) in whole.iter_mut().zip(columns.chunks(width)) {
                    row.extend_from_slice(columns);
                }
                tall.push(&columns);
            }
            let whole = Mat::from_fn(rows, 7, |row, column| f64::from(whole[row][column]));
            let (gram, expected) = (tall.gram(), whole.transpose() * &whole);
            for column in 0..7 {
                for row in column..7 {
                    let difference = gram[(row, column)] - expected[(row, column)];
                    assert!(
                        difference.abs() < 1e-9,
                        "{rows} {row} {column} {difference}"
                    );
                }
            }
            let small = Mat::from_fn(7, 3, |row, column| (row * 3 + column) as f64);
            let (found, expected) = (tall.times(small.as_ref()), &whole * &small);
            for (place, found) in found.iter().enumerate() {
                assert!((found - expected[(place / 3, place % 3)]).abs() < 1e-10);
            }
            let mut other: Vec<f32> = (0..rows * 2).map(|place| number(90_000 + place)).collect();
            let before = Mat::from_fn(rows, 2, |row, column| f64::from(other[row * 2 + column]));
            let shares = whole.transpose() * &before;
            let expected = &before - &whole * &shares;
            tall.project_out(&mut other, 2);
            let scale = 7.0 * rows as f64;
            for (place, found) in other.iter().enumerate() {
                let difference = f64::from(*found) - expected[(place / 2, place % 2)];
                // 7 shares, each a sum over all rows in single precision.
                assert!(
                    difference.abs() < 1e-6 * scale,
                    "{rows} {place} {difference}"
                );
            }
        }
    }
}
