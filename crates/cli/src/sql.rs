//! `pmill sql`.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use clap::{Args, ValueEnum};
use parquet::arrow::ArrowWriter;
use pmill_engine::progress::StopFlag;
use pmill_engine::session::{RowStream, Session};
use pmill_engine::sql::SqlSession;
use pmill_engine::store::JobName;

use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};

/// Ask a warehouse in SQL.
#[derive(Args, Debug)]
#[command(after_help = "\
Tables are JOB.vocab, JOB.pairs, JOB.sources and JOB.pmi; information_schema.tables lists them.
A Parquet file can be read by its path: FROM 'captions/part-0.parquet'.
Column names with capitals stand in double quotes: SELECT \"TEXT\" FROM …

Examples:
  pmill sql --warehouse wh 'SELECT * FROM captions.pmi ORDER BY npmi DESC LIMIT 20'
  pmill sql --warehouse wh 'SELECT count(*) FROM captions.pairs VERSION AS OF 3'
  pmill sql --warehouse wh --format csv \"SELECT right, pmi FROM captions.pmi WHERE left = 'dog'\"")]
pub struct SqlArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// The query; `-` reads it from stdin
    query: String,
    /// Show a job as this version of it: captions=3
    #[arg(long, value_name = "JOB=N")]
    version: Vec<String>,
    /// How rows are written
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Write to this file instead of stdout
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    cluster: crate::cluster::ClusterArgs,
    /// Queries that scan less run here: bytes of the needed columns, as they are stored
    #[cfg(feature = "cluster")]
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "16MiB",
        help_heading = "Cluster"
    )]
    cluster_bytes: pmill_engine::memory::ByteSize,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    common: crate::units::CommonArgs,
}

/// How rows are written.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people
    Table,
    /// With a header
    Csv,
    /// An array of objects
    Json,
    /// Parquet, zstd
    Parquet,
    /// One column of text, a line a row, as lists of words are read
    Lines,
}

impl SqlArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let sql = if self.query == "-" {
            std::io::read_to_string(std::io::stdin()).map_err(|error| {
                Failure::user(format!("cannot read the query from stdin: {error}"))
            })?
        } else {
            self.query
        };
        let format = if global.json {
            Format::Json
        } else {
            self.format
        };
        let versions = self
            .version
            .iter()
            .map(|text| version(text))
            .collect::<Result<Vec<_>, Failure>>()?;
        #[cfg(feature = "cluster")]
        if self.cluster.is_asked_for() {
            let query = (&self.warehouse[..], &versions[..], &sql[..]);
            let least = self.cluster_bytes.0;
            if let Some(asked) = self.cluster.query(query, least, &self.common, global)? {
                return asked.write(format, self.output);
            }
        }
        let session = SqlSession::open_at(
            &self.warehouse,
            &versions,
            global.threads(),
            global.memory_limit(),
        )?;
        write(&session, &sql, format, self.output)
    }
}

fn version(text: &str) -> Result<(JobName, u64), Failure> {
    let wrong = || Failure::user(format!("--version {text}: expected JOB=N, as captions=3"));
    let (job, number) = text.split_once('=').ok_or_else(wrong)?;
    let number = number.trim().parse().map_err(|_| wrong())?;
    Ok((JobName::new(job.trim())?, number))
}

/// Runs a query of a session and writes its rows.
pub fn write(session: &SqlSession, sql: &str, format: Format, output: Option<PathBuf>) -> Outcome {
    let rows = session.query(sql)?;
    // Ctrl-C ends the process: nothing is left behind.
    let stop = StopFlag::default();
    write_rows(session.session(), rows, format, output, &stop)
}

/// Writes the rows of a query that has begun.
pub fn write_rows(
    session: &Session,
    mut stream: RowStream,
    format: Format,
    output: Option<PathBuf>,
    stop: &StopFlag,
) -> Outcome {
    let schema = stream.schema();
    if output.is_none() && format == Format::Parquet && std::io::stdout().is_terminal() {
        return Err(Failure::user(
            "Parquet is not for a terminal; give --output FILE",
        ));
    }
    // A file appears when it is whole.
    let staged = match &output {
        None => None,
        Some(path) => {
            let staged = path.with_extension("part");
            let file = File::create(&staged).map_err(|error| {
                Failure::user(format!("cannot create `{}`: {error}", staged.display()))
            })?;
            Some((file, staged, path.clone()))
        }
    };
    let sink: Box<dyn Write + Send> = match &staged {
        None => Box::new(BufWriter::new(std::io::stdout())),
        Some((file, ..)) => Box::new(BufWriter::new(file.try_clone()?)),
    };
    let mut rows = Rows::new(format, sink, &schema)?;
    let result = (|| {
        while let Some(batch) = session.next_batch(&mut stream, stop)? {
            rows.write(&batch)?;
        }
        rows.finish()
    })();
    if let Some((file, from, to)) = staged {
        if result.is_ok() {
            file.sync_all()?;
            std::fs::rename(&from, &to)?;
        } else {
            // The error of the query is the one to tell.
            let _ = std::fs::remove_file(&from);
        }
    }
    result.map(|()| Output::Done)
}

type Sink = Box<dyn Write + Send>;

enum Rows {
    /// A table is laid out once its widest cell is known.
    Table {
        out: Sink,
        batches: Vec<RecordBatch>,
    },
    Csv(arrow::csv::Writer<Sink>),
    Json(arrow::json::ArrayWriter<Sink>),
    Parquet(ArrowWriter<Sink>),
    Lines(Sink),
}

impl Rows {
    fn new(
        format: Format,
        out: Sink,
        schema: &arrow::datatypes::SchemaRef,
    ) -> Result<Self, Failure> {
        Ok(match format {
            Format::Table => Self::Table {
                out,
                batches: vec![RecordBatch::new_empty(schema.clone())],
            },
            Format::Csv => {
                let mut writer = arrow::csv::WriterBuilder::new()
                    .with_header(true)
                    .build(out);
                // The header, also when no row follows.
                writer
                    .write(&RecordBatch::new_empty(schema.clone()))
                    .map_err(failed)?;
                Self::Csv(writer)
            }
            Format::Json => Self::Json(
                arrow::json::WriterBuilder::new()
                    .with_explicit_nulls(true)
                    .build::<_, arrow::json::writer::JsonArray>(out),
            ),
            Format::Parquet => {
                let properties = parquet::file::properties::WriterProperties::builder()
                    .set_compression(parquet::basic::Compression::ZSTD(Default::default()))
                    .build();
                Self::Parquet(
                    ArrowWriter::try_new(out, schema.clone(), Some(properties))
                        .map_err(not_written)?,
                )
            }
            Format::Lines => match schema.fields().len() {
                1 => Self::Lines(out),
                columns => {
                    return Err(Failure::user(format!(
                        "the format lines is for one column, and the query has {columns}"
                    )));
                }
            },
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        match self {
            Self::Table { batches, .. } => batches.push(batch.clone()),
            Self::Csv(writer) => writer.write(batch).map_err(failed)?,
            Self::Json(writer) => writer.write(batch).map_err(failed)?,
            Self::Parquet(writer) => writer.write(batch).map_err(not_written)?,
            Self::Lines(out) => write_lines(out, batch)?,
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Table { mut out, batches } => {
                writeln!(out, "{}", pretty_format_batches(&batches).map_err(failed)?)?;
                out.flush()?;
            }
            Self::Csv(writer) => writer.into_inner().flush()?,
            Self::Json(mut writer) => {
                writer.finish().map_err(failed)?;
                let mut out = writer.into_inner();
                writeln!(out)?;
                out.flush()?;
            }
            Self::Parquet(writer) => {
                writer.into_inner().map_err(not_written)?.flush()?;
            }
            Self::Lines(mut out) => out.flush()?,
        }
        Ok(())
    }
}

/// A NULL is no line. A text of two lines would read as two.
fn write_lines(out: &mut Sink, batch: &RecordBatch) -> Result<(), Failure> {
    let column = cast(batch.column(0), &DataType::Utf8).map_err(failed)?;
    for text in column.as_string::<i32>().iter().flatten() {
        if text.contains(['\n', '\r']) {
            return Err(Failure::user(format!(
                "the text {text:?} has a line end, which the format lines cannot hold"
            )));
        }
        writeln!(out, "{text}")?;
    }
    Ok(())
}

/// An Arrow error while writing; a closed pipe inside it is a closed pipe.
fn failed(error: arrow::error::ArrowError) -> Failure {
    let broken = match &error {
        arrow::error::ArrowError::IoError(_, source) => {
            source.kind() == std::io::ErrorKind::BrokenPipe
        }
        other => other.to_string().contains("Broken pipe"),
    };
    if broken {
        Failure::ClosedPipe
    } else {
        Failure::user(format!("cannot write the output: {error}"))
    }
}

/// A Parquet error while writing; the writer turns what the pipe said into text.
fn not_written(error: parquet::errors::ParquetError) -> Failure {
    let text = error.to_string();
    if text.contains("Broken pipe") || text.contains("os error 32") {
        return Failure::ClosedPipe;
    }
    Failure::user(format!("cannot write the output: {text}"))
}
