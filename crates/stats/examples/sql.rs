//! Runs one SQL statement with every function of this crate and prints the result as CSV with a header.
//! Files can be read by name: `SELECT pmi(n_xy, n_x, n_y, n) FROM 'pairs.parquet'`.
#![expect(clippy::print_stdout, reason = "the result belongs on stdout")]

use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::{SessionConfig, SessionContext};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The arguments of `pmill sql` are accepted and passed over, so that one test script drives both.
    let mut arguments = std::env::args().skip(1);
    let mut statement = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "sql" => {}
            "--warehouse" | "--format" => {
                arguments.next();
            }
            _ => statement = Some(argument),
        }
    }
    let statement = statement.ok_or("usage: sql STATEMENT")?;
    let mut session = SessionContext::new_with_config(SessionConfig::new()).enable_url_table();
    pmill_stats::register_all(&mut session)?;
    let frame = session.sql(&statement).await?;
    let names: Vec<String> = frame
        .schema()
        .fields()
        .iter()
        .map(|field| quoted(field.name()))
        .collect();
    println!("{}", names.join(","));
    let options = FormatOptions::default();
    for batch in frame.collect().await? {
        let columns: Vec<ArrayFormatter> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
            .collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            let values: Vec<String> = columns
                .iter()
                .map(|column| quoted(&column.value(row).to_string()))
                .collect();
            println!("{}", values.join(","));
        }
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
