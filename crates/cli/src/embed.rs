//! `pmill embed`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use pmill_engine::EngineError;
use pmill_engine::memory::{ByteSize, peak_rss};
use pmill_engine::progress::{Progress, StopFlag, Unit};
use pmill_engine::rows::{Orientation, TableRows, Value};
use pmill_matrix::bands::{Band, BandStore};
use pmill_matrix::evaluate::{Evaluation, Judgement, evaluate, read_judgements};
use pmill_matrix::staging::{StagedFile, Staging};
use pmill_matrix::svd::{SvdSettings, dense_bytes, randomized_svd};
use pmill_matrix::vectors::{SAFETENSORS, Vectors};
use serde::Serialize;

use crate::count::json;
use crate::export::{blank_notes, write_json};
use crate::limits::Global;
use crate::matrix_rows::{MatrixSource, RowsArgs};
use crate::outcome::{Failure, Outcome, Output};
use crate::progress::{Bar, group, stop_flag};

/// Make word vectors: positive PMI, then a truncated SVD; evaluate them; ask for neighbours.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pmill embed --warehouse wh --name web --dimensions 300 --output web-vectors --format word2vec
  pmill embed --vectors web-vectors --evaluate wordsim353.tsv
  pmill embed --vectors web-vectors --neighbours king,queen")]
pub struct EmbedArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: Option<String>,
    /// Name of the job
    #[arg(long, value_name = "JOB", required_unless_present = "vectors")]
    name: Option<String>,
    /// Folder to make
    #[arg(
        long,
        short,
        value_name = "FOLDER",
        required_unless_present = "vectors"
    )]
    output: Option<PathBuf>,
    /// Look at vectors that were made before, instead
    #[arg(long, value_name = "PATH", conflicts_with_all = ["name", "output"])]
    vectors: Option<PathBuf>,
    /// Beside vectors.safetensors, write these
    #[arg(long, value_enum, value_name = "FORMAT", value_delimiter = ',')]
    format: Vec<VectorFormat>,
    #[command(flatten)]
    matrix: MatrixArgs,
    /// List of similarities, `word TAB word TAB score`: Spearman's correlation with cosines
    #[arg(long, value_name = "FILE")]
    evaluate: Option<PathBuf>,
    /// Show the nearest terms of these
    #[arg(long, value_name = "TERM", value_delimiter = ',')]
    neighbours: Vec<String>,
    /// How many of them
    #[arg(long, value_name = "N", default_value_t = 10)]
    nearest: usize,
    /// Replace the output folder if it is there
    #[arg(long)]
    overwrite: bool,
    /// Say what would be made; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    rows: RowsArgs,
}

#[derive(Args, Debug, Serialize)]
#[command(next_help_heading = "Matrix and factorization")]
struct MatrixArgs {
    /// Numbers of a vector
    #[arg(long, value_name = "N", default_value_t = 100)]
    dimensions: usize,
    /// PMI less the logarithm of this (negative samples); 1 shifts nothing
    #[arg(long, value_name = "K", default_value_t = 1.0)]
    shift: f64,
    /// Exponent that smooths the contexts' distribution; 1 is plain PMI
    #[arg(long, value_name = "A", default_value_t = 0.75)]
    alpha: f64,
    /// Power of the singular values that vectors are multiplied by: 0, 0.5 or 1
    #[arg(long, value_name = "P", default_value_t = 0.5)]
    weight: f64,
    /// Added to the dimensions; about three directions are followed for each of the sum
    #[arg(long, value_name = "N", default_value_t = SvdSettings::default().oversampling)]
    oversampling: usize,
    /// Times that a block of directions is multiplied by matrix and transpose; more are narrower
    #[arg(long, value_name = "N", default_value_t = SvdSettings::default().power_iterations)]
    power_iterations: usize,
    /// Seed; equal seeds give equal vectors, whatever the threads
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum VectorFormat {
    /// vectors.safetensors, which is always written
    Safetensors,
    /// vectors.txt
    Word2vec,
    /// vectors.bin
    Word2vecBinary,
}

#[derive(Serialize)]
struct Neighbour {
    term: String,
    neighbour: String,
    cosine: f64,
}

#[derive(Serialize)]
struct EmbedSummary {
    status: &'static str,
    job: Option<String>,
    version: Option<u64>,
    output: Option<String>,
    terms: u64,
    dimensions: u64,
    entries: u64,
    scratch_bytes: u64,
    singular_values: Vec<f64>,
    svd_seconds: f64,
    evaluation: Option<Evaluation>,
    neighbours: Vec<Neighbour>,
    files: Vec<StagedFile>,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
    notes: Vec<String>,
}

impl EmbedArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let judgements = self.evaluate.as_deref().map(read_judgements).transpose()?;
        if let Some(path) = &self.vectors {
            return self.look(path, judgements.as_deref(), global);
        }
        let bar = Bar::new(global);
        let result = self.make(judgements.as_deref(), global, &bar, &stop_flag());
        bar.clear();
        let summary = result?;
        Ok(Output::Summary {
            json: json(&summary),
            text: describe(&summary),
        })
    }

    /// Vectors that are there: evaluated and asked.
    fn look(&self, path: &Path, judgements: Option<&[Judgement]>, global: &Global) -> Outcome {
        let began = Instant::now();
        let vectors = Vectors::read(path)?;
        if judgements.is_none() && self.neighbours.is_empty() {
            return Err(Failure::user("give --evaluate FILE or --neighbours TERM"));
        }
        let mut summary = empty("read", began);
        summary.terms = vectors.terms.len() as u64;
        summary.dimensions = vectors.dimensions as u64;
        self.ask(&vectors, judgements, &mut summary)?;
        if global.json {
            return Ok(Output::Summary {
                json: json(&summary),
                text: String::new(),
            });
        }
        Ok(Output::Bytes(answers(&summary).into_bytes()))
    }

    fn ask(
        &self,
        vectors: &Vectors,
        judgements: Option<&[Judgement]>,
        summary: &mut EmbedSummary,
    ) -> Result<(), Failure> {
        summary.evaluation = judgements.map(|judgements| evaluate(vectors, judgements));
        let index = vectors.index();
        for term in &self.neighbours {
            let Some(id) = index.get(term.as_str()) else {
                return Err(Failure::user(format!(
                    "`{term}` has no vector: it is not in the vocabulary of {} terms",
                    group(vectors.terms.len() as u64)
                )));
            };
            for (other, cosine) in vectors.neighbours(*id, self.nearest) {
                summary.neighbours.push(Neighbour {
                    term: term.clone(),
                    neighbour: vectors.terms[other].clone(),
                    cosine,
                });
            }
        }
        Ok(())
    }

    fn make(
        &self,
        judgements: Option<&[Judgement]>,
        global: &Global,
        progress: &Bar,
        stop: &StopFlag,
    ) -> Result<EmbedSummary, Failure> {
        let began = Instant::now();
        let (Some(name), Some(output)) = (&self.name, &self.output) else {
            return Err(Failure::user("give --name and --output"));
        };
        let Some(warehouse) = &self.warehouse else {
            return Err(Failure::user(
                "give --warehouse FOLDER (or PMILL_WAREHOUSE)",
            ));
        };
        let matrix = &self.matrix;
        check("alpha", matrix.alpha, 0.0, 1.0)?;
        check("shift", matrix.shift, f64::MIN_POSITIVE, 1e30)?;
        check("weight", matrix.weight, 0.0, 1.0)?;
        let settings = SvdSettings {
            rank: matrix.dimensions,
            oversampling: matrix.oversampling,
            power_iterations: matrix.power_iterations,
            seed: matrix.seed,
        };
        let table = TableRows::open(warehouse, name, global.threads(), global.memory_limit())?;
        pmill_engine::tail::refuse("embed", name, &table.counted)?;
        let size = table.size();
        let room = Room::of(&table, &settings)?;
        let mut summary = empty(if self.dry_run { "planned" } else { "written" }, began);
        summary.job = Some(name.clone());
        summary.version = Some(table.version());
        summary.output = Some(output.display().to_string());
        (summary.terms, summary.dimensions) = (size as u64, matrix.dimensions as u64);
        if self.dry_run {
            return Ok(summary);
        }
        let staging = Staging::begin(output, self.overwrite)?;
        let value = Value::ShiftedPpmi {
            alpha: matrix.alpha,
            shift: matrix.shift,
        };
        let one = table.symmetric && matrix.alpha == 1.0;
        let both = [Orientation::Plain, Orientation::Transposed];
        let orientations = &both[..if one { 1 } else { 2 }];
        let source = MatrixSource::open(&self.rows, &table, &value, orientations, progress, stop)?;
        let job = Factorization {
            size,
            source: &source,
            room,
            folder: staging.folder(),
            progress,
            stop,
        };
        let share = if one { room.store } else { room.store / 2 };
        let plain = job.store(Orientation::Plain, share)?;
        let other = if one {
            None
        } else {
            Some(job.store(Orientation::Transposed, share)?)
        };
        source.close();
        summary.entries = plain.entries();
        summary.scratch_bytes =
            plain.scratch_bytes() + other.as_ref().map_or(0, BandStore::scratch_bytes);
        if plain.entries() == 0 {
            return Err(Failure::user(format!(
                "no pair of `{name}` has a PMI above ln {}; nothing to factorize",
                matrix.shift
            )));
        }
        progress.phase("svd", 2 * settings.power_iterations as u64 + 2, Unit::Parts);
        let pool = pmill_matrix::pool(global.threads())?;
        let factorizing = Instant::now();
        let svd = pool.install(|| {
            randomized_svd(&plain, other.as_ref().unwrap_or(&plain), &settings, || {
                progress.advance(1, 0);
                if stop.is_set() {
                    return Err(Failure::from(EngineError::Interrupted));
                }
                Ok(())
            })
        })?;
        summary.svd_seconds = factorizing.elapsed().as_secs_f64();
        summary.singular_values.clone_from(&svd.singular_values);
        let terms = table
            .terms
            .iter()
            .map(|term| term.unwrap_or_default().to_owned());
        let vectors = Vectors::from_svd(terms.collect(), svd, matrix.weight);
        pool.install(|| self.ask(&vectors, judgements, &mut summary))?;
        let folder = staging.folder();
        vectors.write_safetensors(folder, SAFETENSORS)?;
        for format in &self.format {
            match format {
                VectorFormat::Safetensors => {}
                VectorFormat::Word2vec => vectors.write_word2vec(folder, "vectors.txt")?,
                VectorFormat::Word2vecBinary => {
                    vectors.write_word2vec_binary(folder, "vectors.bin")?;
                }
            }
        }
        let word2vec = |format: &VectorFormat| *format != VectorFormat::Safetensors;
        if self.format.iter().any(word2vec) {
            summary.notes = blank_notes(vectors.terms.iter().map(String::as_str));
        }
        let facts = serde_json::json!({
            "program": concat!("pmill ", env!("CARGO_PKG_VERSION")),
            "job": name,
            "version": table.version(),
            "embed": json(matrix),
            "settings": json(&table.counted),
        });
        write_json(folder, "pmill.json", &facts)?;
        summary.files = staging.publish()?;
        summary.seconds = began.elapsed().as_secs_f64();
        summary.peak_memory_bytes = peak_rss().map(|size| size.0);
        Ok(summary)
    }
}

/// Shares of the memory limit.
#[derive(Clone, Copy)]
struct Room {
    band: u64,
    store: u64,
}

impl Room {
    fn of(table: &TableRows, settings: &SvdSettings) -> Result<Self, EngineError> {
        let size = table.size();
        let dense = dense_bytes(size, size, settings) + 64 * size as u64;
        let band = table.limit().0 / 8;
        let fixed = dense + band;
        if fixed > table.limit().0 {
            return Err(EngineError::Memory {
                limit: table.limit().to_string(),
                reason: format!(
                    "{} vectors of {} numbers (and {} beside them) take {}; give --memory-limit {} or fewer --dimensions (or --oversampling)",
                    group(size as u64),
                    settings.rank,
                    settings.oversampling,
                    ByteSize(dense),
                    ByteSize(dense / 7 * 8 + (1 << 20)),
                ),
            });
        }
        Ok(Self {
            band,
            store: table.limit().0 - fixed,
        })
    }
}

struct Factorization<'a> {
    size: usize,
    source: &'a MatrixSource<'a>,
    room: Room,
    folder: &'a Path,
    progress: &'a dyn Progress,
    stop: &'a StopFlag,
}

impl Factorization<'_> {
    /// The matrix, in memory as far as `bytes` go.
    fn store(&self, orientation: Orientation, bytes: u64) -> Result<BandStore, Failure> {
        let mut store = BandStore::new(self.size, self.size, bytes);
        self.source.bands(
            orientation,
            self.room.band,
            self.progress,
            self.stop,
            |rows| -> Result<(), Failure> {
                let band = Band {
                    first: rows.first,
                    row_starts: rows.row_starts.iter().map(|start| *start as u64).collect(),
                    columns: rows.columns,
                    values: rows.values.iter().map(|value| *value as f32).collect(),
                };
                Ok(store.push(band, self.folder)?)
            },
        )?;
        Ok(store)
    }
}

fn check(name: &str, value: f64, least: f64, most: f64) -> Result<(), Failure> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let least = if least == f64::MIN_POSITIVE {
        "above 0".to_owned()
    } else {
        format!("{least} to {most}")
    };
    Err(Failure::user(format!(
        "--{name} must be {least}, not {value}"
    )))
}

fn empty(status: &'static str, began: Instant) -> EmbedSummary {
    EmbedSummary {
        status,
        job: None,
        version: None,
        output: None,
        terms: 0,
        dimensions: 0,
        entries: 0,
        scratch_bytes: 0,
        singular_values: Vec::new(),
        svd_seconds: 0.0,
        evaluation: None,
        neighbours: Vec::new(),
        files: Vec::new(),
        seconds: began.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_rss().map(|size| size.0),
        notes: Vec::new(),
    }
}

fn answers(summary: &EmbedSummary) -> String {
    let mut text = String::new();
    if let Some(evaluation) = &summary.evaluation {
        let spearman = evaluation
            .spearman
            .map_or_else(|| "none".to_owned(), |rho| format!("{rho:.4}"));
        let _ = writeln!(
            text,
            "spearman\t{spearman}\t{} of {} pairs have vectors",
            evaluation.covered, evaluation.pairs
        );
    }
    for found in &summary.neighbours {
        let _ = writeln!(
            text,
            "{}\t{}\t{:.4}",
            found.term, found.neighbour, found.cosine
        );
    }
    text
}

fn describe(summary: &EmbedSummary) -> String {
    let peak = summary.peak_memory_bytes.map_or_else(String::new, |bytes| {
        format!(", {} of memory at most", ByteSize(bytes))
    });
    let verb = if summary.status == "planned" {
        "would write"
    } else {
        "wrote"
    };
    let mut text = format!(
        "{verb} {}: {} vectors of {} numbers from {} entries\n  {:.1} s ({:.1} s of them the SVD){peak}\n",
        summary.output.as_deref().unwrap_or_default(),
        group(summary.terms),
        summary.dimensions,
        group(summary.entries),
        summary.seconds,
        summary.svd_seconds,
    );
    if summary.scratch_bytes > 0 {
        let _ = writeln!(
            text,
            "  {} of the matrix were kept on disk",
            ByteSize(summary.scratch_bytes)
        );
    }
    for line in answers(summary).lines() {
        let _ = writeln!(text, "  {line}");
    }
    for note in &summary.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}
