//! How well predicted classes agree with true ones: accuracy, precision, recall, F1, confusion matrix.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Int64Type};
use futures::TryStreamExt;
use serde::Serialize;

use crate::error::EngineError;
use crate::sql::{SqlSession, literal, name};

/// What one class came to. A ratio whose denominator is 0 is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassReport {
    /// The class.
    pub class: String,
    /// Rows that are of it.
    pub rows: u64,
    /// Rows that were said to be of it.
    pub predicted: u64,
    /// Rows that are and were said to be.
    pub correct: u64,
    /// correct / predicted.
    pub precision: Option<f64>,
    /// correct / rows.
    pub recall: Option<f64>,
    /// 2 · correct / (rows + predicted).
    pub f1: Option<f64>,
}

/// The whole comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Rows compared; those without a true class are left out.
    pub rows: u64,
    /// Rows without a prediction: they count as wrong.
    pub without_prediction: u64,
    /// Rows predicted right / rows; `None` without rows.
    pub accuracy: Option<f64>,
    /// Mean of the classes' F1, an undefined one counting as 0.
    pub macro_f1: Option<f64>,
    /// By class, in the order of their names.
    pub classes: Vec<ClassReport>,
    /// Rows of the matrix are true classes, columns predicted ones, in the order of `classes`.
    pub confusion: Vec<Vec<u64>>,
}

/// Compares two columns of a Parquet file, a CSV file or a table of the warehouse.
///
/// # Errors
/// When the file or a column cannot be read.
pub fn evaluate(
    session: &SqlSession,
    from: &str,
    truth: &str,
    predicted: &str,
) -> Result<Evaluation, EngineError> {
    let from = if from.contains(['/', '\\']) || from.ends_with(".parquet") || from.ends_with(".csv")
    {
        literal(from)
    } else {
        from.to_owned()
    };
    let (truth, predicted) = (name(truth), name(predicted));
    let sql = format!(
        "SELECT CAST({truth} AS VARCHAR), CAST({predicted} AS VARCHAR), count(*) FROM {from} \
         WHERE {truth} IS NOT NULL GROUP BY 1, 2"
    );
    let stream = session.query(&sql)?;
    let batches: Vec<_> = session
        .session()
        .wait(stream.try_collect())
        .map_err(crate::session::query)?;
    let mut cells = Cells::new();
    for batch in batches {
        let text = |index: usize| arrow::compute::cast(batch.column(index), &DataType::Utf8);
        let (a, b) = (
            text(0).map_err(|e| EngineError::Query(e.to_string()))?,
            text(1).map_err(|e| EngineError::Query(e.to_string()))?,
        );
        let (a, b) = (a.as_string::<i32>(), b.as_string::<i32>());
        let counts = batch.column(2).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let predicted = b.is_valid(row).then(|| b.value(row).to_owned());
            *cells
                .entry((a.value(row).to_owned(), predicted))
                .or_default() += u64::try_from(counts.value(row)).unwrap_or(0);
        }
    }
    Ok(compare(&cells))
}

/// Rows by true class and predicted one.
type Cells = BTreeMap<Cell, u64>;
type Cell = (String, Option<String>);

fn compare(cells: &Cells) -> Evaluation {
    let names: BTreeSet<&String> = cells
        .keys()
        .flat_map(|(truth, predicted)| [Some(truth), predicted.as_ref()])
        .flatten()
        .collect();
    let cell = |truth: &String, predicted: &String| {
        let key = (truth.clone(), Some(predicted.clone()));
        cells.get(&key).copied().unwrap_or(0)
    };
    let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let classes: Vec<ClassReport> = names
        .iter()
        .map(|class| {
            let of = |keep: &dyn Fn(&Cell) -> bool| -> u64 {
                cells
                    .iter()
                    .filter(|(key, _)| keep(key))
                    .map(|(_, count)| count)
                    .sum()
            };
            let rows = of(&|(truth, _)| truth == *class);
            let predicted = of(&|(_, predicted)| predicted.as_ref() == Some(*class));
            let correct = cell(class, class);
            ClassReport {
                class: (*class).clone(),
                rows,
                predicted,
                correct,
                precision: ratio(correct, predicted),
                recall: ratio(correct, rows),
                f1: ratio(2 * correct, rows + predicted),
            }
        })
        .collect();
    let rows = cells.values().sum();
    let correct = classes.iter().map(|class| class.correct).sum();
    let f1: f64 = classes.iter().map(|class| class.f1.unwrap_or(0.0)).sum();
    Evaluation {
        rows,
        without_prediction: cells
            .iter()
            .filter(|((_, predicted), _)| predicted.is_none())
            .map(|(_, count)| count)
            .sum(),
        accuracy: ratio(correct, rows),
        macro_f1: (!classes.is_empty()).then(|| f1 / classes.len() as f64),
        confusion: names
            .iter()
            .map(|truth| {
                names
                    .iter()
                    .map(|predicted| cell(truth, predicted))
                    .collect()
            })
            .collect(),
        classes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratios_are_those_of_the_matrix() {
        let cell = |truth: &str, predicted: Option<&str>, count| {
            ((truth.to_owned(), predicted.map(str::to_owned)), count)
        };
        let cells = BTreeMap::from([
            cell("neg", Some("neg"), 6),
            cell("neg", Some("pos"), 2),
            cell("pos", Some("pos"), 3),
            cell("pos", None, 1),
            cell("odd", Some("neg"), 1),
        ]);
        let found = compare(&cells);
        assert_eq!((found.rows, found.without_prediction), (13, 1));
        assert_eq!(found.accuracy, Some(9.0 / 13.0));
        let [neg, odd, pos] = &found.classes[..] else {
            panic!("three classes");
        };
        assert_eq!((neg.precision, neg.recall), (Some(6.0 / 7.0), Some(0.75)));
        assert_eq!(neg.f1, Some(0.8));
        assert_eq!(
            (odd.precision, odd.recall, odd.f1),
            (None, Some(0.0), Some(0.0))
        );
        assert_eq!(pos.recall, Some(0.75));
        assert_eq!(found.confusion, [[6, 0, 2], [1, 0, 0], [0, 0, 3]]);
        assert_eq!(compare(&BTreeMap::new()).accuracy, None);
    }
}
