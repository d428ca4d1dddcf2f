//! Eigenvalues of symmetric matrices, and what is computed from those of a covariance.

/// Eigenvalues in rising order, of a symmetric matrix given by rows. `None` when it is not square, not symmetric (to
/// 1e-9 of its largest entry) or holds NaN or infinities.
///
/// Householder reduction to three diagonals, then implicit QL (Golub & Van Loan, chapter 8): O(d³), nothing beside the
/// matrix is held.
/// ```
/// assert_eq!(pmill_stats::symmetric_eigenvalues(&[vec![2.0, 0.0], vec![0.0, 1.0]]).unwrap(), [1.0, 2.0]);
/// ```
pub fn symmetric_eigenvalues(matrix: &[Vec<f64>]) -> Option<Vec<f64>> {
    let side = matrix.len();
    let largest = matrix
        .iter()
        .flatten()
        .fold(0.0_f64, |largest, v| largest.max(v.abs()));
    if matrix.iter().any(|row| row.len() != side) || !largest.is_finite() {
        return None;
    }
    for (place, row) in matrix.iter().enumerate() {
        for (mirrored, value) in matrix.iter().map(|other| other[place]).zip(row) {
            let difference = (value - mirrored).abs();
            // NaN is not below the limit either; the maximum above passes over it.
            if difference.is_nan() || difference > 1e-9 * largest {
                return None;
            }
        }
    }
    let (mut diagonal, mut beside) = tridiagonal(matrix.to_vec());
    implicit_ql(&mut diagonal, &mut beside)?;
    diagonal.sort_unstable_by(f64::total_cmp);
    Some(diagonal)
}

/// The diagonal and the entries beside it (`beside[i]` between i and i + 1) of a similar three-diagonal matrix.
fn tridiagonal(mut a: Vec<Vec<f64>>) -> (Vec<f64>, Vec<f64>) {
    let side = a.len();
    let mut beside = vec![0.0; side];
    for k in 0..side.saturating_sub(2) {
        // Reflect column k below the diagonal onto its first entry.
        let scale = (k + 1..side).map(|i| a[i][k].abs()).fold(0.0, f64::max);
        if scale == 0.0 {
            continue;
        }
        let mut v: Vec<f64> = (k + 1..side).map(|i| a[i][k] / scale).collect();
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let target = if v[0] > 0.0 { -norm } else { norm };
        v[0] -= target;
        let square: f64 = v.iter().map(|x| x * x).sum();
        beside[k] = target * scale;
        if square == 0.0 {
            continue;
        }
        // A ← H A H with H = I − 2 v vᵀ / vᵀv, on the trailing block: A − v wᵀ − w vᵀ.
        let rest = k + 1;
        let mut w: Vec<f64> = (rest..side)
            .map(|i| {
                2.0 / square
                    * v.iter()
                        .enumerate()
                        .map(|(j, x)| a[i][rest + j] * x)
                        .sum::<f64>()
            })
            .collect();
        let overlap = w.iter().zip(&v).map(|(w, v)| w * v).sum::<f64>() / square;
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= overlap * v);
        for i in rest..side {
            for j in rest..side {
                a[i][j] -= v[i - rest] * w[j - rest] + w[i - rest] * v[j - rest];
            }
        }
    }
    if side >= 2 {
        beside[side - 2] = a[side - 1][side - 2];
    }
    ((0..side).map(|i| a[i][i]).collect(), beside)
}

/// Eigenvalues of a three-diagonal matrix, left in `diagonal`. `None` when 60 sweeps do not settle one.
fn implicit_ql(diagonal: &mut [f64], beside: &mut [f64]) -> Option<()> {
    let side = diagonal.len();
    for low in 0..side {
        let mut sweeps = 0;
        loop {
            let mut end = low;
            while end + 1 < side {
                let size = diagonal[end].abs() + diagonal[end + 1].abs();
                if beside[end].abs() <= f64::EPSILON * size {
                    break;
                }
                end += 1;
            }
            if end == low {
                break;
            }
            sweeps += 1;
            if sweeps > 60 {
                return None;
            }
            // Wilkinson's shift from the top 2 × 2 block.
            let half = (diagonal[low + 1] - diagonal[low]) / (2.0 * beside[low]);
            let root = half.hypot(1.0).copysign(half);
            let mut g = diagonal[end] - diagonal[low] + beside[low] / (half + root);
            let (mut sine, mut cosine, mut shift) = (1.0, 1.0, 0.0);
            let mut stopped = false;
            for i in (low..end).rev() {
                let f = sine * beside[i];
                let b = cosine * beside[i];
                let r = f.hypot(g);
                beside[i + 1] = r;
                if r == 0.0 {
                    diagonal[i + 1] -= shift;
                    beside[end] = 0.0;
                    stopped = true;
                    break;
                }
                sine = f / r;
                cosine = g / r;
                g = diagonal[i + 1] - shift;
                let turn = (diagonal[i] - g) * sine + 2.0 * cosine * b;
                shift = sine * turn;
                diagonal[i + 1] = g + shift;
                g = cosine * turn - b;
            }
            if !stopped {
                diagonal[low] -= shift;
                beside[low] = g;
                beside[end] = 0.0;
            }
        }
    }
    Some(())
}

/// Von Neumann entropy of a covariance, in nats: `−Σ λ ln λ` of its eigenvalues over their sum.
///
/// From 0 (one direction) to `ln d`. Eigenvalues a rounding below zero count as zero; `None` when one is clearly
/// negative (below −1e-9 of the largest), all are zero, or [`symmetric_eigenvalues`] has none.
/// ```
/// let entropy = pmill_stats::von_neumann_entropy(&[vec![3.0, 0.0], vec![0.0, 3.0]]).unwrap();
/// assert!((entropy - 2_f64.ln()).abs() < 1e-15);
/// ```
pub fn von_neumann_entropy(matrix: &[Vec<f64>]) -> Option<f64> {
    let eigenvalues = symmetric_eigenvalues(matrix)?;
    let largest = *eigenvalues.last()?;
    if largest <= 0.0 || eigenvalues[0] < -1e-9 * largest {
        return None;
    }
    let total: f64 = eigenvalues.iter().filter(|value| **value > 0.0).sum();
    let shares = eigenvalues
        .iter()
        .filter(|value| **value > 0.0)
        .map(|value| value / total);
    Some(
        shares
            .map(|share| -share * share.ln())
            .sum::<f64>()
            .max(0.0),
    )
}

/// Effective rank (Roy & Vetterli 2007): the exponential of [`von_neumann_entropy`], from 1 to d.
pub fn effective_rank(matrix: &[Vec<f64>]) -> Option<f64> {
    von_neumann_entropy(matrix).map(f64::exp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn multiply(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let column = |j: usize| b.iter().map(move |row| row[j]);
        let cell = |row: &Vec<f64>, j: usize| row.iter().zip(column(j)).map(|(a, b)| a * b).sum();
        a.iter()
            .map(|row| (0..b[0].len()).map(|j| cell(row, j)).collect())
            .collect()
    }

    proptest! {
        #[test]
        fn power_sums_are_the_traces_of_powers(
            side in 1_usize..9,
            entries in prop::collection::vec(-3.0_f64..3.0, 81),
        ) {
            let symmetric: Vec<Vec<f64>> = (0..side)
                .map(|i| (0..side).map(|j| entries[i.min(j) * 9 + i.max(j)]).collect())
                .collect();
            let eigenvalues = symmetric_eigenvalues(&symmetric).unwrap();
            let mut power = symmetric.clone();
            for exponent in 1..5 {
                let trace: f64 = (0..side).map(|i| power[i][i]).sum();
                let sum: f64 = eigenvalues.iter().map(|v| v.powi(exponent)).sum();
                let size: f64 = eigenvalues.iter().map(|v| v.abs().powi(exponent)).sum::<f64>() + 1.0;
                prop_assert!((trace - sum).abs() < 1e-12 * size, "{} {}", trace, sum);
                power = multiply(&power, &symmetric);
            }
        }
    }

    #[test]
    fn a_matrix_of_one_direction_has_rank_one() {
        let v = [1.0, 2.0, -3.0];
        let matrix: Vec<Vec<f64>> = v
            .iter()
            .map(|a| v.iter().map(|b| a * b).collect())
            .collect();
        assert!((effective_rank(&matrix).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(effective_rank(&[vec![0.0]]), None);
        assert_eq!(effective_rank(&[vec![1.0, 2.0], vec![0.0, 1.0]]), None);
        assert_eq!(effective_rank(&[vec![f64::NAN]]), None);
    }
}
