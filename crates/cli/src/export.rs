//! `pmill export`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use pmill_engine::memory::{ByteSize, peak_rss};
use pmill_engine::progress::StopFlag;
use pmill_engine::rows::{Orientation, TableRows};
use pmill_engine::score::ScoreSettings;
use pmill_matrix::formats::{
    CsrSink, CsvSink, GloveSink, MatrixMarketSink, Precision, RowSink, Shape, write_vocabulary,
};
use pmill_matrix::staging::{StagedFile, Staging};
use pmill_matrix::vectors::Vectors;
use pmill_matrix::{ErrorKind, MatrixError};
use serde::Serialize;

use crate::count::json;
use crate::limits::Global;
use crate::matrix_rows::{MatrixSource, RowsArgs};
use crate::outcome::{Failure, Outcome, Output, chain};
use crate::parquet_shards::ParquetShards;
use crate::progress::{Bar, group, stop_flag};

/// Write a table, or vectors, as files that trainers read.
#[derive(Args, Debug)]
#[command(after_help = "\
The output is a folder that appears when it is whole; SHA256SUMS in it lists its files.

Examples:
  # GloVe's own trainer: cooccurrence.bin and vocab.txt
  pmill export --warehouse wh --name web --format glove --output web-glove

  # scipy.sparse.load_npz('captions-ppmi/matrix.npz')
  pmill export --warehouse wh --name captions --format npz --value ppmi --output captions-ppmi

  # Vectors that `pmill embed` made, as gensim reads them
  pmill export --vectors web-vectors --format word2vec-binary --output web-word2vec")]
pub struct ExportArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: Option<String>,
    /// Name of the job
    #[arg(long, value_name = "JOB", conflicts_with = "vectors")]
    name: Option<String>,
    /// Vectors of `pmill embed`, for the word2vec formats
    #[arg(long, value_name = "PATH")]
    vectors: Option<PathBuf>,
    /// What is written
    #[arg(long, value_enum)]
    format: ExportFormat,
    /// Folder to make
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    /// The numbers: count, or a measure as `pmill score` takes it ('ppmi', 'sppmi(k=5)')
    #[arg(long, value_name = "V", default_value = "count")]
    value: String,
    /// Logarithm base of a measure: e, 2 or 10
    #[arg(long, value_name = "B", default_value = "e")]
    base: String,
    /// Leave out pairs with a smaller count (measures only)
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    min_pair_count: f64,
    /// npz and csr: bits of a number
    #[arg(long, value_enum, default_value = "double")]
    precision: PrecisionArg,
    /// parquet: rows of a shard, about (a left id is never cut)
    #[arg(long, value_name = "N", default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    shard_rows: u64,
    /// Replace the output folder if it is there
    #[arg(long)]
    overwrite: bool,
    /// Say what would be written; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    rows: RowsArgs,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum ExportFormat {
    /// GloVe's cooccurrence.bin (int32, int32, float64; ids from 1) and vocab.txt
    Glove,
    /// matrix.npz for scipy.sparse.load_npz
    Npz,
    /// indptr.npy, indices.npy, data.npy and header.json, for a memory map
    Csr,
    /// vectors.txt
    Word2vec,
    /// vectors.bin
    Word2vecBinary,
    /// matrix.mtx, coordinate real general
    MatrixMarket,
    /// pairs.csv: left_id, right_id, left, right, value
    Csv,
    /// data/train-*.parquet by left id, with the columns of csv
    Parquet,
}

impl ExportFormat {
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum PrecisionArg {
    /// 32 bits
    Single,
    /// 64 bits
    Double,
}

#[derive(Serialize)]
struct ExportSummary {
    status: &'static str,
    job: Option<String>,
    version: Option<u64>,
    format: String,
    value: String,
    output: String,
    rows: u64,
    entries: u64,
    files: Vec<StagedFile>,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
    notes: Vec<String>,
}

impl From<MatrixError> for Failure {
    fn from(error: MatrixError) -> Self {
        let kind = match error.kind() {
            ErrorKind::User => pmill_engine::Kind::User,
            ErrorKind::NotNow => pmill_engine::Kind::NotNow,
            ErrorKind::Bug => pmill_engine::Kind::Bug,
        };
        Self::Error(kind, chain(&error))
    }
}

impl ExportArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let of_vectors = matches!(
            self.format,
            ExportFormat::Word2vec | ExportFormat::Word2vecBinary
        );
        match (&self.vectors, &self.name, of_vectors) {
            (Some(path), _, true) => self.convert(path, global),
            (Some(_), _, false) => Err(Failure::user(format!(
                "--vectors go into word2vec or word2vec-binary, not {}",
                self.format.name()
            ))),
            (None, _, true) => Err(Failure::user(
                "word2vec holds vectors: make them with `pmill embed` and give --vectors PATH",
            )),
            (None, None, false) => Err(Failure::user("give --warehouse and --name")),
            (None, Some(name), false) => {
                let Some(warehouse) = &self.warehouse else {
                    return Err(Failure::user(
                        "give --warehouse FOLDER (or PMILL_WAREHOUSE)",
                    ));
                };
                let bar = Bar::new(global);
                let result = self.table(warehouse, name, global, &bar, &stop_flag());
                bar.clear();
                Ok(finish(result?))
            }
        }
    }

    fn convert(&self, path: &Path, global: &Global) -> Outcome {
        let began = Instant::now();
        let vectors = Vectors::read(path)?;
        let rows = vectors.terms.len() as u64;
        let mut files = Vec::new();
        if !self.dry_run {
            let staging = Staging::begin(&self.output, self.overwrite)?;
            match self.format {
                ExportFormat::Word2vec => {
                    vectors.write_word2vec(staging.folder(), "vectors.txt")?
                }
                _ => vectors.write_word2vec_binary(staging.folder(), "vectors.bin")?,
            }
            files = staging.publish()?;
        }
        let _ = global;
        Ok(finish(ExportSummary {
            status: status(self.dry_run),
            job: None,
            version: None,
            format: self.format.name(),
            value: "vectors".to_owned(),
            output: self.output.display().to_string(),
            rows,
            entries: rows * vectors.dimensions as u64,
            files,
            seconds: began.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_rss().map(|size| size.0),
            notes: blank_notes(vectors.terms.iter().map(String::as_str)),
        }))
    }

    fn table(
        &self,
        warehouse: &str,
        name: &str,
        global: &Global,
        progress: &Bar,
        stop: &StopFlag,
    ) -> Result<ExportSummary, Failure> {
        let began = Instant::now();
        let table = TableRows::open(warehouse, name, global.threads(), global.memory_limit())?;
        let settings = ScoreSettings {
            base: self.base.clone(),
            min_pair_count: self.min_pair_count,
            ..ScoreSettings::default()
        };
        let value = table.value(&self.value, &settings)?;
        let mut notes = Vec::new();
        if self.format == ExportFormat::Glove {
            notes = blank_notes(table.terms.iter().flatten());
            if table.terms.iter().flatten().any(|term| term == "<unk>") {
                notes.push(
                    "GloVe's trainer refuses a vocabulary with `<unk>`, its own word".to_owned(),
                );
            }
        }
        notes.extend(pmill_engine::tail::only_exact(&table.counted));
        let (mut entries, mut files) = (0_u64, Vec::new());
        if self.dry_run {
            let most = table.facts.pairs * if table.symmetric { 2 } else { 1 };
            notes.push(format!("at most {} entries would be written", group(most)));
        } else {
            let staging = Staging::begin(&self.output, self.overwrite)?;
            let plain = [Orientation::Plain];
            let source = MatrixSource::open(&self.rows, &table, &value, &plain, progress, stop)?;
            let shape = Shape {
                rows: table.size() as u64,
                columns: table.size() as u64,
                most_entries: table.most_entries(source.survey()),
            };
            let mut sink = self.sink(&table, shape, staging.folder())?;
            let write = |band: pmill_engine::rows::RowBand| -> Result<(), Failure> {
                for (row, columns, values) in band.rows() {
                    sink.row(row, columns, values)?;
                    entries += columns.len() as u64;
                }
                Ok(())
            };
            let band_bytes = table.band_bytes();
            source.bands(Orientation::Plain, band_bytes, progress, stop, write)?;
            sink.finish()?;
            let facts = BTreeMap::from([
                (
                    "program",
                    concat!("pmill ", env!("CARGO_PKG_VERSION")).into(),
                ),
                ("job", name.into()),
                ("version", table.version().into()),
                ("format", self.format.name().into()),
                ("value", self.value.as_str().into()),
                ("rows", table.size().into()),
                ("entries", entries.into()),
                ("symmetric", table.symmetric.into()),
                ("settings", json(&table.counted)),
                ("facts", json(&table.facts)),
            ]);
            write_json(staging.folder(), "pmill.json", &json(&facts))?;
            files = staging.publish()?;
            source.close();
        }
        Ok(ExportSummary {
            status: status(self.dry_run),
            job: Some(name.to_owned()),
            version: Some(table.version()),
            format: self.format.name(),
            value: self.value.clone(),
            output: self.output.display().to_string(),
            rows: table.size() as u64,
            entries,
            files,
            seconds: began.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_rss().map(|size| size.0),
            notes,
        })
    }

    fn sink(
        &self,
        table: &TableRows,
        shape: Shape,
        folder: &Path,
    ) -> Result<Box<dyn RowSink>, Failure> {
        let precision = match self.precision {
            PrecisionArg::Single => Precision::Single,
            PrecisionArg::Double => Precision::Double,
        };
        let terms = || table.terms.iter().map(Option::unwrap_or_default);
        let counted = || terms().zip(table.counts.iter().copied());
        if self.format != ExportFormat::Glove {
            let documents = table.documents.iter().copied();
            write_vocabulary(
                folder,
                counted().zip(documents).map(|((t, c), d)| (t, c, d)),
            )?;
        }
        Ok(match self.format {
            ExportFormat::Glove => Box::new(GloveSink::create(folder, counted())?),
            ExportFormat::Npz => Box::new(CsrSink::create(
                folder,
                shape,
                precision,
                Some("matrix.npz"),
            )?),
            ExportFormat::Csr => Box::new(CsrSink::create(folder, shape, precision, None)?),
            ExportFormat::MatrixMarket => {
                let comment = format!(
                    "{} of {} (pmill)",
                    self.value,
                    self.name.as_deref().unwrap_or("")
                );
                Box::new(MatrixMarketSink::create(folder, shape, &comment)?)
            }
            ExportFormat::Csv => Box::new(CsvSink::create(folder, terms())?),
            ExportFormat::Parquet => Box::new(ParquetShards::create(
                folder,
                table.terms.clone(),
                self.shard_rows,
            )),
            ExportFormat::Word2vec | ExportFormat::Word2vecBinary => {
                return Err(Failure::user("word2vec holds vectors; give --vectors PATH"));
            }
        })
    }
}

/// Writes a JSON file into a staged folder.
pub fn write_json(folder: &Path, name: &str, value: &serde_json::Value) -> Result<(), Failure> {
    let path = folder.join(name);
    std::fs::write(&path, format!("{value:#}\n"))
        .map_err(|error| Failure::user(format!("cannot write `{}`: {error}", path.display())))
}

/// Says how many terms had blanks in them.
pub fn blank_notes<'a>(terms: impl Iterator<Item = &'a str>) -> Vec<String> {
    let blanks = terms
        .filter(|term| term.contains(char::is_whitespace))
        .count();
    if blanks == 0 {
        return Vec::new();
    }
    vec![format!(
        "{} terms hold blanks, which this format cannot: they are written with `_`",
        group(blanks as u64)
    )]
}

fn status(dry_run: bool) -> &'static str {
    if dry_run { "planned" } else { "written" }
}

fn finish(summary: ExportSummary) -> Output {
    let peak = summary.peak_memory_bytes.map_or_else(String::new, |bytes| {
        format!(", {} of memory at most", ByteSize(bytes))
    });
    let bytes = summary.files.iter().map(|file| file.bytes).sum();
    let verb = if summary.status == "planned" {
        "would write"
    } else {
        "wrote"
    };
    let mut text = format!(
        "{verb} {} ({} of {}): {} rows, {} entries\n  {} in {} files, {:.1} s{peak}\n",
        summary.output,
        summary.value,
        summary.job.as_deref().unwrap_or("vectors"),
        group(summary.rows),
        group(summary.entries),
        ByteSize(bytes),
        summary.files.len(),
        summary.seconds,
    );
    for note in &summary.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    Output::Summary {
        json: json(&summary),
        text,
    }
}
