//! A sparse matrix as bands of rows: in memory as far as a budget goes, in a scratch file beyond.
//!
//! Products are made row by row, so that a number never depends on threads or bands: each row of
//! the result is summed by one thread, in the order of the columns.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;

use crate::error::MatrixError;

/// Some whole rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Band {
    /// The first row.
    pub first: u32,
    /// Where each row begins in the other two; one more than rows.
    pub row_starts: Vec<u64>,
    /// Columns, rising in each row.
    pub columns: Vec<u32>,
    /// Values.
    pub values: Vec<f32>,
}

impl Band {
    fn rows(&self) -> usize {
        self.row_starts.len().saturating_sub(1)
    }

    fn bytes(&self) -> u64 {
        (self.row_starts.len() * 8 + self.columns.len() * 8) as u64
    }
}

#[derive(Debug)]
enum Place {
    Memory(Band),
    Scratch {
        first: u32,
        row_starts: Vec<u64>,
        offset: u64,
    },
}

/// A matrix, band after band.
#[derive(Debug)]
pub struct BandStore {
    rows: usize,
    columns: usize,
    budget_bytes: u64,
    held_bytes: u64,
    places: Vec<Place>,
    scratch: Option<(File, u64)>,
    entries: u64,
}

impl BandStore {
    /// A matrix without entries that keeps at most `budget_bytes` in memory.
    #[must_use]
    pub fn new(rows: usize, columns: usize, budget_bytes: u64) -> Self {
        Self {
            rows,
            columns,
            budget_bytes,
            held_bytes: 0,
            places: Vec::new(),
            scratch: None,
            entries: 0,
        }
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Entries.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Bytes in the scratch file.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch.as_ref().map_or(0, |(_, bytes)| *bytes)
    }

    /// Adds a band; it goes to a nameless file in `folder` when memory is used up.
    ///
    /// # Errors
    /// A full disk; a band that is not inside the matrix.
    pub fn push(&mut self, band: Band, folder: &Path) -> Result<(), MatrixError> {
        let inside = band.first as usize + band.rows() <= self.rows
            && band.columns.len() == band.values.len()
            && band.row_starts.last().copied().unwrap_or(0) == band.columns.len() as u64
            && band.row_starts.is_sorted()
            && band.columns.iter().all(|c| (*c as usize) < self.columns);
        if !inside {
            return Err(MatrixError::Bug("a band does not fit its matrix".into()));
        }
        self.entries += band.columns.len() as u64;
        if self.held_bytes + band.bytes() <= self.budget_bytes {
            self.held_bytes += band.bytes();
            self.places.push(Place::Memory(band));
            return Ok(());
        }
        if self.scratch.is_none() {
            let file = tempfile::tempfile_in(folder).map_err(MatrixError::io("create", folder))?;
            self.scratch = Some((file, 0));
        }
        let Some((file, end)) = &mut self.scratch else {
            return Err(MatrixError::Bug("there is no scratch file".into()));
        };
        let offset = *end;
        let columns: &[u8] = bytemuck::cast_slice(&band.columns);
        let values: &[u8] = bytemuck::cast_slice(&band.values);
        file.write_all_at(columns, offset)
            .and_then(|()| file.write_all_at(values, offset + columns.len() as u64))
            .map_err(MatrixError::io("write scratch in", folder))?;
        *end += (columns.len() + values.len()) as u64;
        self.places.push(Place::Scratch {
            first: band.first,
            row_starts: band.row_starts,
            offset,
        });
        Ok(())
    }

    fn each(&self, mut work: impl FnMut(&Band)) -> Result<(), MatrixError> {
        let mut loaded = Band::default();
        for place in &self.places {
            match place {
                Place::Memory(band) => work(band),
                Place::Scratch {
                    first,
                    row_starts,
                    offset,
                } => {
                    let Some((file, _)) = &self.scratch else {
                        return Err(MatrixError::Bug("there is no scratch file".into()));
                    };
                    let entries = usize::try_from(row_starts.last().copied().unwrap_or(0))
                        .map_err(|_| MatrixError::Bug("a band beyond memory".into()))?;
                    loaded.first = *first;
                    loaded.row_starts.clone_from(row_starts);
                    loaded.columns.resize(entries, 0);
                    loaded.values.resize(entries, 0.0);
                    let columns: &mut [u8] = bytemuck::cast_slice_mut(&mut loaded.columns);
                    let values: &mut [u8] = bytemuck::cast_slice_mut(&mut loaded.values);
                    file.read_exact_at(columns, *offset)
                        .and_then(|()| file.read_exact_at(values, offset + columns.len() as u64))
                        .map_err(MatrixError::io("read", Path::new("the scratch file")))?;
                    work(&loaded);
                }
            }
        }
        Ok(())
    }

    /// The product with a dense matrix of `width` columns, row after row; so is the result.
    ///
    /// # Errors
    /// When the scratch file cannot be read, or the shapes do not go together.
    pub fn times(&self, dense: &[f32], width: usize) -> Result<Vec<f32>, MatrixError> {
        if dense.len() != self.columns * width {
            return Err(MatrixError::Bug("shapes of a product differ".into()));
        }
        let mut out = vec![0_f32; self.rows * width];
        let arch = pulp::Arch::new();
        self.each(|band| {
            let from = band.first as usize * width;
            let rows = &mut out[from..from + band.rows() * width];
            // Rows are long at the start (frequent terms), so parts are small.
            rows.par_chunks_mut(PART_ROWS * width)
                .enumerate()
                .for_each(|(part, rows)| {
                    arch.dispatch(AddRows {
                        rows,
                        width,
                        first: part * PART_ROWS,
                        band,
                        dense,
                    });
                });
        })?;
        Ok(out)
    }
}

/// Rows of a product that one thread makes at a time.
const PART_ROWS: usize = 16;

/// `rows += band · dense` for some rows, compiled for each set of vector instructions. A number is summed
/// in the same order by each of them, and without fused operations, so that every processor gives the
/// same.
struct AddRows<'a> {
    rows: &'a mut [f32],
    width: usize,
    /// The first of the rows in the band.
    first: usize,
    band: &'a Band,
    dense: &'a [f32],
}

impl pulp::NullaryFnOnce for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        match self.width {
            8 => self.whole::<8>(),
            16 => self.whole::<16>(),
            24 => self.whole::<24>(),
            32 => self.whole::<32>(),
            _ => self.panels(),
        }
    }
}

impl<'a> AddRows<'a> {
    #[inline(always)]
    fn entries(band: &'a Band, row: usize) -> (&'a [u32], &'a [f32]) {
        let range = band.row_starts[row] as usize..band.row_starts[row + 1] as usize;
        (&band.columns[range.clone()], &band.values[range])
    }

    /// Rows of `W` numbers.
    #[inline(always)]
    fn whole<const W: usize>(self) {
        let (dense, _) = self.dense.as_chunks::<W>();
        let (rows, _) = self.rows.as_chunks_mut::<W>();
        for (index, row) in rows.iter_mut().enumerate() {
            let (columns, values) = Self::entries(self.band, self.first + index);
            add_row(row, columns, values, |column| &dense[column as usize]);
        }
    }

    /// Rows of any width, by panels of columns.
    #[inline(always)]
    fn panels(self) {
        for (index, row) in self.rows.chunks_mut(self.width).enumerate() {
            let (columns, values) = Self::entries(self.band, self.first + index);
            let mut from = 0;
            while from < self.width {
                let at = |column: u32| &self.dense[column as usize * self.width + from..];
                let rest = &mut row[from..];
                from += match rest.len() {
                    16.. => add_panel::<16>(rest, columns, values, at),
                    8.. => add_panel::<8>(rest, columns, values, at),
                    _ => add_panel::<1>(rest, columns, values, at),
                };
            }
        }
    }
}

/// The first `W` columns of a row, whose numbers in the dense matrix begin where `at` says.
#[inline(always)]
fn add_panel<'a, const W: usize>(
    row: &mut [f32],
    columns: &[u32],
    values: &[f32],
    at: impl Fn(u32) -> &'a [f32],
) -> usize {
    if let Some((panel, _)) = row.split_first_chunk_mut::<W>() {
        let at = |column| at(column).first_chunk::<W>().unwrap_or(&[0.0; W]);
        add_row(panel, columns, values, at);
    }
    W
}

/// `row += Σ value · at(column)`, four entries at a time, with the sums in registers.
#[inline(always)]
fn add_row<'a, const W: usize>(
    row: &mut [f32; W],
    columns: &[u32],
    values: &[f32],
    at: impl Fn(u32) -> &'a [f32; W],
) {
    let mut sums = *row;
    let (four_columns, rest_columns) = columns.as_chunks::<4>();
    let (four_values, rest_values) = values.as_chunks::<4>();
    for ([i, j, k, l], [p, q, r, s]) in four_columns.iter().zip(four_values) {
        let (a, b, c, d) = (at(*i), at(*j), at(*k), at(*l));
        for lane in 0..W {
            sums[lane] += (p * a[lane] + q * b[lane]) + (r * c[lane] + s * d[lane]);
        }
    }
    for (column, value) in rest_columns.iter().zip(rest_values) {
        let x = at(*column);
        for lane in 0..W {
            sums[lane] += value * x[lane];
        }
    }
    *row = sums;
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bands of `height` rows of a dense matrix.
    pub(crate) fn store(dense: &[Vec<f32>], height: usize, budget_bytes: u64) -> BandStore {
        let columns = dense.first().map_or(0, Vec::len);
        let mut store = BandStore::new(dense.len(), columns, budget_bytes);
        for (number, rows) in dense.chunks(height).enumerate() {
            let mut band = Band {
                first: (number * height) as u32,
                row_starts: vec![0],
                ..Band::default()
            };
            for row in rows {
                for (column, value) in row.iter().enumerate() {
                    if *value != 0.0 {
                        band.columns.push(column as u32);
                        band.values.push(*value);
                    }
                }
                band.row_starts.push(band.columns.len() as u64);
            }
            store.push(band, Path::new("/tmp")).unwrap();
        }
        store
    }

    proptest! {
        #[test]
        fn bands_and_memory_do_not_change_a_bit_of_a_product(
            rows in 1_usize..40, columns in 1_usize..30, width in 1_usize..36,
            height in 1_usize..12, budget in 0_u64..4000, seed in any::<u64>(),
        ) {
            let number = |place: usize| crate::random::normal(seed, place as u64) as f32;
            let dense: Vec<Vec<f32>> = (0..rows)
                .map(|r| (0..columns).map(|c| number(r * 31 + c)).map(|x| if x > 0.5 { x } else { 0.0 }).collect())
                .collect();
            let x: Vec<f32> = (0..columns * width).map(|place| number(10_000 + place)).collect();
            let one = store(&dense, rows, u64::MAX).times(&x, width).unwrap();
            let cut = store(&dense, height, budget).times(&x, width).unwrap();
            prop_assert_eq!(&one, &cut);
            for row in 0..rows {
                for w in 0..width {
                    let sum: f64 = (0..columns)
                        .map(|c| f64::from(dense[row][c]) * f64::from(x[c * width + w]))
                        .sum();
                    // 30 terms of size below 5 · 5, each rounded to 24 bits.
                    prop_assert!((sum - f64::from(one[row * width + w])).abs() < 1e-3);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_the_matrix_is_refused() {
        let mut store = BandStore::new(2, 2, 100);
        let band = Band {
            first: 1,
            row_starts: vec![0, 1],
            columns: vec![2],
            values: vec![1.0],
        };
        assert!(store.push(band, Path::new("/tmp")).is_err());
    }
}
