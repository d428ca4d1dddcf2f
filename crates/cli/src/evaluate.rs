//! `pmill evaluate`.

use std::fmt::Write;

use clap::Args;
use pmill_engine::evaluate::{Evaluation, evaluate};
use pmill_engine::sql::SqlSession;

use crate::count::json;
use crate::limits::Global;
use crate::outcome::{Outcome, Output};

/// Compare predicted classes with true ones: accuracy, precision, recall, F1, confusion matrix.
#[derive(Args, Debug)]
#[command(after_help = "\
A row without a true class is left out; a row without a prediction counts as wrong.

Example:
  pmill evaluate --from predictions.parquet --truth label --predicted predicted")]
pub struct EvaluateArgs {
    /// Parquet or CSV file, or a table of the warehouse (JOB.TABLE)
    #[arg(long, value_name = "FILE")]
    from: String,
    /// Column of the true classes
    #[arg(long, value_name = "COLUMN")]
    truth: String,
    /// Column of the predicted classes
    #[arg(long, value_name = "COLUMN")]
    predicted: String,
    /// Folder of the warehouse, when --from is one of its tables
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: Option<String>,
}

impl EvaluateArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let session = match &self.warehouse {
            Some(warehouse) => {
                SqlSession::open(warehouse, global.threads(), global.memory_limit())?
            }
            None => SqlSession::without_warehouse(global.threads(), global.memory_limit())?,
        };
        let found = evaluate(&session, &self.from, &self.truth, &self.predicted)?;
        if global.json {
            return Ok(Output::Summary {
                json: json(&found),
                text: String::new(),
            });
        }
        Ok(Output::Bytes(text(&found).into_bytes()))
    }
}

fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}

fn text(found: &Evaluation) -> String {
    let mut text = format!(
        "{} rows ({} without a prediction): accuracy {}, macro F1 {}\n\n",
        found.rows,
        found.without_prediction,
        share(found.accuracy),
        share(found.macro_f1)
    );
    let width = found
        .classes
        .iter()
        .map(|class| class.class.chars().count())
        .max()
        .unwrap_or(0)
        .max(8);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{:width$} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "class", "rows", "predicted", "precision", "recall", "f1"
    );
    for class in &found.classes {
        let _ = writeln!(
            text,
            "{:width$} {:>9} {:>9} {:>9} {:>9} {:>9}",
            class.class,
            class.rows,
            class.predicted,
            share(class.precision),
            share(class.recall),
            share(class.f1)
        );
    }
    let _ = write!(text, "\ntrue \\ predicted\n{:width$}", "");
    for class in &found.classes {
        let _ = write!(text, " {:>width$}", class.class);
    }
    text.push('\n');
    for (class, row) in found.classes.iter().zip(&found.confusion) {
        let _ = write!(text, "{:width$}", class.class);
        for count in row {
            let _ = write!(text, " {count:>width$}");
        }
        text.push('\n');
    }
    text
}
