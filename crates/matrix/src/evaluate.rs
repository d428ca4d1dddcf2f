//! Vectors against a list of similarities that people gave: Spearman's rank correlation.

use std::path::Path;

use crate::error::MatrixError;
use crate::vectors::Vectors;

/// One line of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// One word.
    pub left: String,
    /// The other.
    pub right: String,
    /// How similar people found them.
    pub score: f64,
}

/// How well vectors agree with a list.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// Pairs in the list.
    pub pairs: usize,
    /// Pairs of which both words have a vector; only these are compared.
    pub covered: usize,
    /// Spearman's correlation; `None` for fewer than two pairs, or when all are alike.
    pub spearman: Option<f64>,
}

/// Reads `word TAB word TAB score`, one pair a line. Lines that are empty or start with `#` do not
/// count, nor does a first line whose score is no number (a header).
///
/// # Errors
/// When the file cannot be read, or a line is something else; the line is named.
pub fn read_judgements(path: &Path) -> Result<Vec<Judgement>, MatrixError> {
    let text = std::fs::read_to_string(path).map_err(MatrixError::io("read", path))?;
    let mut judgements = Vec::new();
    let mut first = true;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let header = std::mem::take(&mut first);
        let mut fields = line.split('\t');
        let (Some(left), Some(right), Some(score)) = (fields.next(), fields.next(), fields.next())
        else {
            return Err(bad_line(
                path,
                number,
                "there are no three fields with tabs between",
            ));
        };
        match score.trim().parse::<f64>() {
            Ok(score) if score.is_finite() => judgements.push(Judgement {
                left: left.trim().to_owned(),
                right: right.trim().to_owned(),
                score,
            }),
            _ if header => {}
            _ => return Err(bad_line(path, number, &format!("`{score}` is no number"))),
        }
    }
    Ok(judgements)
}

fn bad_line(path: &Path, number: usize, reason: &str) -> MatrixError {
    MatrixError::Content {
        path: path.display().to_string(),
        place: format!(", line {}", number + 1),
        reason: format!("{reason}; expected word, word and score"),
    }
}

/// Compares cosines with judgements. A word that has no vector is looked for in lower case.
#[must_use]
pub fn evaluate(vectors: &Vectors, judgements: &[Judgement]) -> Evaluation {
    let index = vectors.index();
    let find = |word: &str| {
        index
            .get(word)
            .or_else(|| index.get(word.to_lowercase().as_str()))
            .copied()
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for judgement in judgements {
        if let (Some(left), Some(right)) = (find(&judgement.left), find(&judgement.right)) {
            // A zero vector is like nothing.
            ours.push(vectors.cosine(left, right).unwrap_or(0.0));
            theirs.push(judgement.score);
        }
    }
    Evaluation {
        pairs: judgements.len(),
        covered: ours.len(),
        spearman: spearman(&ours, &theirs),
    }
}

/// Spearman's rank correlation, equal values with the mean of their ranks.
/// `None` for fewer than two values, or when all of one side are equal.
///
/// ```
/// use pmill_matrix::evaluate::spearman;
/// assert_eq!(spearman(&[1.0, 2.0, 9.0], &[0.1, 0.2, 0.3]), Some(1.0));
/// // Ranks 1.5, 1.5, 3 against 1, 2, 3: 1.5 / sqrt(1.5 * 2).
/// assert!((spearman(&[1.0, 1.0, 9.0], &[0.1, 0.2, 0.3]).unwrap() - 0.75_f64.sqrt()).abs() < 1e-15);
/// ```
#[must_use]
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 + 1.0) / 2.0;
    let (mut both, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(&b) {
        both += (x - mean) * (y - mean);
        of_a += (x - mean) * (x - mean);
        of_b += (y - mean) * (y - mean);
    }
    (of_a > 0.0 && of_b > 0.0).then(|| both / (of_a * of_b).sqrt())
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = start as f64 + (equal.len() as f64 + 1.0) / 2.0;
        for index in equal {
            ranks[*index] = rank;
        }
        start += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_with_its_lines_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.tsv");
        std::fs::write(
            &path,
            "# note\nword1\tword2\tscore\nTiger\tcat\t7.35\n\nx\ty\t1\n",
        )
        .unwrap();
        let list = read_judgements(&path).unwrap();
        assert_eq!(list.len(), 2);
        let vectors = Vectors {
            terms: ["tiger", "cat", "x"].map(str::to_owned).to_vec(),
            dimensions: 1,
            numbers: vec![1.0, 2.0, -1.0],
            singular_values: Vec::new(),
        };
        let found = evaluate(&vectors, &list);
        assert_eq!((found.pairs, found.covered, found.spearman), (2, 1, None));
        std::fs::write(&path, "a\tb\t1\na b 2\n").unwrap();
        let error = read_judgements(&path).unwrap_err().to_string();
        assert!(
            error.contains(", line 2: there are no three fields"),
            "{error}"
        );
    }
}
