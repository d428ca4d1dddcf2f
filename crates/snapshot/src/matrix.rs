//! Mixing matrices: rows of exact weights, read from text, and what they do to disagreement.

use crate::error::SnapshotError;
use crate::weights::{Row, Weight};
use serde::{Deserialize, Serialize};

/// The most agents of one matrix.
pub const MAX_AGENTS: usize = 1024;

/// A row-stochastic matrix with exact rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MixingMatrix {
    pub(crate) rows: Vec<Row>,
}

/// What is known of a matrix without applying it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MatrixReport {
    /// Number of agents.
    pub agents: usize,
    /// Whether the columns sum to 1 too, so that a round keeps the mean of all agents.
    pub doubly_stochastic: bool,
    /// `1 - |second largest eigenvalue|`; 0 when agreement is never reached, 1 when one round reaches it.
    pub spectral_gap: f64,
    /// Factor on the distance to the mean that one round guarantees (largest singular value beside the mean);
    /// the consensus distance shrinks by its square or more. Only for doubly stochastic matrices.
    pub contraction: Option<f64>,
}

fn wrong(what: String) -> SnapshotError {
    SnapshotError::Matrix { what }
}

impl MixingMatrix {
    /// A matrix from its entries, row by row; every row must sum to 1 within 10^-6.
    ///
    /// # Errors
    /// No rows, another number of columns than rows, rows that do not sum to 1.
    pub fn new(entries: &[Vec<Weight>]) -> Result<Self, SnapshotError> {
        if entries.is_empty() || entries.len() > MAX_AGENTS {
            return Err(wrong(format!(
                "{} rows, expected 1 to {MAX_AGENTS}",
                entries.len()
            )));
        }
        let mut rows = Vec::with_capacity(entries.len());
        for (agent, row) in entries.iter().enumerate() {
            if row.len() != entries.len() {
                return Err(wrong(format!(
                    "row {agent} has {} entries, expected {}",
                    row.len(),
                    entries.len()
                )));
            }
            rows.push(Row::fractions(row).map_err(|error| wrong(format!("row {agent}: {error}")))?);
        }
        Ok(Self { rows })
    }

    /// Reads a matrix: one row a line, entries between spaces or commas (`0.5`, `1/3`), `#` begins a comment;
    /// or a JSON array of arrays.
    ///
    /// # Errors
    /// Entries that are no weights, and those of [`MixingMatrix::new`].
    pub fn parse(text: &str) -> Result<Self, SnapshotError> {
        if text.trim_start().starts_with('[') {
            let entries: Vec<Vec<Weight>> =
                serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
            return Self::new(&entries);
        }
        let mut entries = Vec::new();
        for (position, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let row = line
                .split([' ', '\t', ',', ';'])
                .filter(|word| !word.is_empty())
                .map(str::parse)
                .collect::<Result<Vec<Weight>, _>>();
            let row = row.map_err(|error| wrong(format!("line {}: {error}", position + 1)))?;
            if !row.is_empty() {
                entries.push(row);
            }
        }
        Self::new(&entries)
    }

    /// Number of agents.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a matrix has at least one row")]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The weights with which an agent takes the others in.
    #[must_use]
    pub fn row(&self, agent: usize) -> &Row {
        &self.rows[agent]
    }

    /// The agents that each agent takes in, itself left out.
    #[must_use]
    pub fn peers(&self) -> Vec<Vec<usize>> {
        let of = |(agent, row): (usize, &Row)| {
            row.numbers()
                .iter()
                .enumerate()
                .filter(|(peer, number)| *peer != agent && **number > 0)
                .map(|(peer, _)| peer)
                .collect()
        };
        self.rows.iter().enumerate().map(of).collect()
    }

    /// The entries as doubles.
    #[must_use]
    pub fn entries(&self) -> Vec<Vec<f64>> {
        self.rows
            .iter()
            .map(|row| (0..self.len()).map(|peer| row.fraction(peer)).collect())
            .collect()
    }

    /// Checks columns and finds the spectral gap; cubic in the number of agents.
    #[must_use]
    pub fn report(&self) -> MatrixReport {
        let agents = self.len();
        let entries = self.entries();
        let doubly_stochastic = (0..agents).all(|column| {
            let sum: f64 = entries.iter().map(|row| row[column]).sum();
            (sum - 1.0).abs() < 1e-9
        });
        // W keeps the all-ones vector, so on what is left of the space W acts as P W does, with P the
        // projection off that vector; its spectral radius is the second largest modulus of W.
        let mut rest = entries;
        let means: Vec<f64> = (0..agents)
            .map(|column| rest.iter().map(|row| row[column]).sum::<f64>() / agents as f64)
            .collect();
        rest.iter_mut().for_each(|row| {
            row.iter_mut()
                .zip(&means)
                .for_each(|(entry, mean)| *entry -= mean)
        });
        let second = spectral_radius(&rest);
        let contraction = doubly_stochastic.then(|| {
            let transposed: Vec<Vec<f64>> = (0..agents)
                .map(|column| rest.iter().map(|row| row[column]).collect())
                .collect();
            spectral_radius(&multiply(&transposed, &rest))
                .sqrt()
                .min(1.0)
        });
        MatrixReport {
            agents,
            doubly_stochastic,
            spectral_gap: (1.0 - second).clamp(0.0, 1.0),
            contraction,
        }
    }
}

pub(crate) fn multiply(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut product = vec![vec![0.0; b[0].len()]; a.len()];
    for (out, row) in product.iter_mut().zip(a) {
        for (factor, other) in row.iter().zip(b) {
            if *factor != 0.0 {
                out.iter_mut()
                    .zip(other)
                    .for_each(|(sum, entry)| *sum += factor * entry);
            }
        }
    }
    product
}

/// `lim |M^k|^(1/k)` by repeated squaring, scaled so that nothing overflows.
fn spectral_radius(matrix: &[Vec<f64>]) -> f64 {
    const SQUARINGS: u32 = 26;
    let mut power = matrix.to_vec();
    let mut log_scale = 0.0; // the power is exp(log_scale) times what is held
    for step in 0..=SQUARINGS {
        let norm = power
            .iter()
            .flatten()
            .map(|entry| entry * entry)
            .sum::<f64>()
            .sqrt();
        // The square of a matrix of length 1 is as good as zero: its powers vanish but for rounding.
        if norm < 1e-13 {
            return 0.0;
        }
        power.iter_mut().flatten().for_each(|entry| *entry /= norm);
        log_scale += norm.ln();
        if step < SQUARINGS {
            power = multiply(&power, &power);
            log_scale *= 2.0;
        }
    }
    f64::exp(log_scale / f64::from(1_u32 << SQUARINGS))
}
