//! `pmill count`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pmill_engine::count_settings::{OutOfVocabulary, Side, TailSettings, Weight};
use pmill_engine::job::{self, CountJob, CountPlan, CountSummary, Recount, Status};
use pmill_engine::memory::ByteSize;
use pmill_engine::settings::{
    ContextKind, ContextSettings, CountSettings, OnBadFile, VocabularySettings,
};
use pmill_engine::text::{FeatureSpec, Lemma, StopWords, Tokenizer};

use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};
use crate::progress::{Bar, group, stop_flag};
use crate::units::UnitArgs;

/// Count co-occurrences of a Parquet corpus into a table.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  # Captions: which words stand in the same caption
  pmill count --warehouse wh --name captions --input captions/ --text TEXT --vocab-size 20000

  # Documents: GloVe's counts, window 10, weight 1/distance
  pmill count --warehouse wh --name web --input 'crawl/*.parquet' --text text \\
      --context window --window 10 --weight harmonic --tokenizer whitespace

  # A new crawl into the same table: only new files are counted
  pmill count --warehouse wh --name web --input 'crawl/*.parquet' crawl-2/ --text text \\
      --context window --window 10 --weight harmonic --tokenizer whitespace

  # A vocabulary whose pairs no disk holds: exact for 20,000 terms, estimates for the others
  pmill count --warehouse wh --name wide --input crawl/ --text text --vocab-size 1000000 \\
      --exact-terms 20000 --sketch-buckets 67108864 --memory-limit 8GiB

  # One of 8 shards, as a Kubernetes Indexed Job or a Slurm array runs it; then `pmill commit`
  pmill count --warehouse wh --name web --input crawl/ --text text --shard-count 8

  # What would happen, without doing it
  pmill count --warehouse wh --name web --input crawl/ --text text --dry-run")]
pub struct CountArgs {
    /// Folder of the warehouse; made if it is not there
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Name of the job; the table's schema in SQL
    #[arg(long, value_name = "JOB")]
    name: String,
    /// Parquet files: paths, globs, folders, file:// URIs
    #[arg(long, value_name = "URI", required_unless_present = "recount", num_args = 1..)]
    input: Vec<String>,
    /// A counted file that has changed: take its old counts out, count it anew
    #[arg(long, value_name = "FILE")]
    recount: Vec<String>,
    /// Where the bytes are that were counted; one for each --recount, in the same order
    #[arg(long, value_name = "FILE", requires = "recount")]
    old: Vec<String>,
    /// Column that holds the text: a name, a path through structs (meta.caption), or an SQL
    /// expression over columns that gives text or a list of text
    #[arg(long, value_name = "COLUMN")]
    text: String,
    /// Count only rows for which this SQL condition over the file's columns is true
    #[arg(long = "where", value_name = "CONDITION")]
    filter: Option<String>,
    /// Keep the counts apart by this value, as year or source: a column, or an SQL expression over
    /// columns; the vocabulary is one for all
    #[arg(long, value_name = "EXPR")]
    slice: Option<String>,
    #[command(flatten)]
    features: FeatureArgs,
    #[command(flatten)]
    vocabulary: VocabularyArgs,
    #[command(flatten)]
    sketch: SketchArgs,
    #[command(flatten)]
    context: ContextArgs,
    /// What to do with a file that cannot be read
    #[arg(long, value_enum, default_value = "fail")]
    on_bad_file: BadFile,
    /// Show inputs, plan and outputs; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    units: UnitArgs,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Features")]
struct FeatureArgs {
    /// words, whitespace, icu, qu-xie or huggingface:PATH
    #[arg(long, value_name = "T", default_value = "words")]
    tokenizer: Tokenizer,
    /// Words to drop: english, none or a file
    #[arg(long, value_name = "LIST")]
    stop_words: Option<StopWords>,
    /// Drop features of fewer code points
    #[arg(long, value_name = "N")]
    min_length: Option<u32>,
    /// Drop numbers
    #[arg(long)]
    drop_numeric: bool,
    /// Base forms: wordnet:FOLDER (Debian's wordnet-base has /usr/share/wordnet) or file:PATH
    #[arg(long, value_name = "RULE")]
    lemma: Option<Lemma>,
    /// File of phrases, one a line; each becomes one feature, other words stay
    #[arg(long, value_name = "FILE", conflicts_with = "concepts")]
    phrases: Option<PathBuf>,
    /// File of concepts, one a line; nothing else is a feature
    #[arg(long, value_name = "FILE")]
    concepts: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Vocabulary")]
struct VocabularyArgs {
    /// Keep the N most frequent terms
    #[arg(long, value_name = "N")]
    vocab_size: Option<u32>,
    /// Keep terms that occur at least this often
    #[arg(long, value_name = "N", default_value_t = 1)]
    min_count: u64,
    /// Count just the terms of this file, one a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["vocab_size", "min_count"])]
    vocab: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Context")]
struct ContextArgs {
    /// Where features meet: in the same row, or near each other
    #[arg(long, value_enum, default_value = "document")]
    context: Kind,
    /// Window: how many tokens apart [default: 10]
    #[arg(long, value_name = "N")]
    window: Option<u32>,
    /// Window: weight of a pair d tokens apart [default: uniform]
    #[arg(long, value_enum)]
    weight: Option<WeightArg>,
    /// Window: which neighbours are a token's context [default: symmetric]
    #[arg(long, value_enum)]
    side: Option<SideArg>,
    /// Window: tokens outside the vocabulary are taken out first, or keep their place [default: removed]
    #[arg(long, value_enum)]
    out_of_vocabulary: Option<OutArg>,
    /// Window: word2vec's subsampling of frequent tokens; 1e-5 is usual
    #[arg(long, value_name = "T")]
    subsample: Option<f64>,
    /// Document: use at most the N most frequent distinct features of a row
    #[arg(long, value_name = "N")]
    max_features_per_document: Option<u32>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Sketch, for tables that cannot be held")]
struct SketchArgs {
    /// Count pairs of the H most frequent terms exactly; all others go into a count-min sketch, which
    /// gives estimates on request (the SQL function `estimate`)
    #[arg(long, value_name = "H")]
    exact_terms: Option<u32>,
    /// Cells of a hash row of the sketch, 8 bytes each [default: 1048576]
    #[arg(long, value_name = "W", requires = "exact_terms")]
    sketch_buckets: Option<u32>,
    /// Hash rows of the sketch [default: 5]
    #[arg(long, value_name = "D", requires = "exact_terms")]
    sketch_hashes: Option<u8>,
}

impl SketchArgs {
    fn settings(&self) -> Option<TailSettings> {
        Some(TailSettings {
            exact_terms: self.exact_terms?,
            buckets: self
                .sketch_buckets
                .unwrap_or_else(TailSettings::default_buckets),
            hashes: self
                .sketch_hashes
                .unwrap_or_else(TailSettings::default_hashes),
        })
    }
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum BadFile {
    /// End the job, commit nothing
    Fail,
    /// Leave the whole file out and list it in `sources`
    Skip,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum Kind {
    Document,
    Window,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum WeightArg {
    /// 1
    Uniform,
    /// 1/d, as GloVe
    Harmonic,
    /// (W-d+1)/W, as word2vec on average
    Dynamic,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum SideArg {
    Symmetric,
    Left,
    Right,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum OutArg {
    Removed,
    Gap,
}

impl CountArgs {
    fn settings(&self) -> Result<CountSettings, Failure> {
        let context = &self.context;
        let windows = [
            ("--window", context.window.is_some()),
            ("--weight", context.weight.is_some()),
            ("--side", context.side.is_some()),
            ("--out-of-vocabulary", context.out_of_vocabulary.is_some()),
        ];
        if let (Kind::Document, Some((flag, _))) =
            (context.context, windows.iter().find(|(_, given)| *given))
        {
            return Err(Failure::user(format!(
                "{flag} goes with --context window, and the context is document"
            )));
        }
        let defaults = ContextSettings::default();
        Ok(CountSettings {
            text: self.text.clone(),
            filter: self.filter.clone(),
            slice: self.slice.clone(),
            features: FeatureSpec {
                tokenizer: self.features.tokenizer.clone(),
                stop_words: self.features.stop_words.clone(),
                min_length: self.features.min_length,
                drop_numeric: self.features.drop_numeric,
                lemma: self.features.lemma.clone(),
                phrases: self.features.phrases.clone(),
                concepts: self.features.concepts.clone(),
            },
            vocabulary: VocabularySettings {
                size: self.vocabulary.vocab_size,
                min_count: self.vocabulary.min_count,
                file: self.vocabulary.vocab.clone(),
            },
            context: ContextSettings {
                kind: match context.context {
                    Kind::Document => ContextKind::Document,
                    Kind::Window => ContextKind::Window,
                },
                window: context.window.unwrap_or(defaults.window),
                weight: context
                    .weight
                    .map_or(defaults.weight, |weight| match weight {
                        WeightArg::Uniform => Weight::Uniform,
                        WeightArg::Harmonic => Weight::Harmonic,
                        WeightArg::Dynamic => Weight::Dynamic,
                    }),
                side: context.side.map_or(defaults.side, |side| match side {
                    SideArg::Symmetric => Side::Symmetric,
                    SideArg::Left => Side::Left,
                    SideArg::Right => Side::Right,
                }),
                out_of_vocabulary: context.out_of_vocabulary.map_or(
                    defaults.out_of_vocabulary,
                    |out| match out {
                        OutArg::Removed => OutOfVocabulary::Removed,
                        OutArg::Gap => OutOfVocabulary::Gap,
                    },
                ),
                max_features_per_document: context.max_features_per_document,
                subsample: context.subsample,
            },
            sketch: self.sketch.settings(),
        })
    }

    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        let recounts = self.recounts()?;
        let job = CountJob {
            settings: self.settings()?,
            warehouse: self.warehouse,
            name: self.name,
            inputs: self.input,
            on_bad_file: match self.on_bad_file {
                BadFile::Fail => OnBadFile::Fail,
                BadFile::Skip => OnBadFile::Skip,
            },
            memory_limit: global.memory_limit(),
            threads: global.threads(),
        };
        if self.dry_run {
            dry_run(&job, global)
        } else if self.units.are_asked_for() {
            self.units.run(&job, &recounts, global)
        } else {
            recount(&job, &recounts, global)
        }
    }

    fn recounts(&self) -> Result<Vec<Recount>, Failure> {
        if self.old.len() > self.recount.len() {
            return Err(Failure::user(format!(
                "{} --old for {} --recount: give one for each, in the same order",
                self.old.len(),
                self.recount.len()
            )));
        }
        let olds = self.old.iter().map(|old| Some(old.clone()));
        let olds = olds.chain(std::iter::repeat(None));
        let recounts = self.recount.iter().cloned().zip(olds);
        Ok(recounts.map(|(file, old)| Recount { file, old }).collect())
    }
}

/// Counts and sums up.
pub fn count(job: &CountJob, global: &Global) -> Outcome {
    recount(job, &[], global)
}

fn recount(job: &CountJob, recounts: &[Recount], global: &Global) -> Outcome {
    let bar = Bar::new(global);
    let result = job::recount(job, recounts, &bar, &stop_flag());
    bar.clear();
    let summary = result?;
    Ok(Output::Summary {
        json: json(&summary),
        text: describe(&summary),
    })
}

/// Says what counting would do.
pub fn dry_run(job: &CountJob, global: &Global) -> Outcome {
    let bar = Bar::new(global);
    let result = job::plan(job, &bar);
    bar.clear();
    let plan = result?;
    Ok(Output::Summary {
        json: json(&plan),
        text: describe_plan(&plan),
    })
}

/// A summary as JSON; its fields are plain, so this cannot fail.
pub fn json(value: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// A job's closing words.
pub fn describe(summary: &CountSummary) -> String {
    let mut text = String::new();
    let peak = summary.peak_memory_bytes.map_or_else(String::new, |bytes| {
        format!(", {} of memory at most", ByteSize(bytes))
    });
    let verb = match summary.status {
        Status::Counted => "counted",
        Status::Unchanged => "unchanged",
    };
    let _ = writeln!(
        text,
        "{verb} {}: {} rows, {} tokens, {} types, {} terms, {} pairs",
        summary.job,
        group(summary.rows),
        group(summary.tokens),
        group(summary.types),
        group(summary.terms),
        group(summary.pairs),
    );
    let _ = writeln!(
        text,
        "  {} files{}, {:.1} s{peak}",
        group(summary.files),
        if summary.skipped > 0 {
            format!(" ({} skipped)", summary.skipped)
        } else {
            String::new()
        },
        summary.seconds,
    );
    if summary.total_rows != summary.rows {
        let _ = writeln!(
            text,
            "  {} rows in all{}",
            group(summary.total_rows),
            if summary.retracted_rows > 0 {
                format!("; {} taken out", group(summary.retracted_rows))
            } else {
                String::new()
            },
        );
    }
    if summary.status == Status::Counted && summary.outside_tokens > 0 {
        let share = summary.outside_tokens as f64 / summary.tokens.max(1) as f64;
        let _ = writeln!(
            text,
            "  {} tokens ({:.1} %) are outside the vocabulary",
            group(summary.outside_tokens),
            100.0 * share,
        );
    }
    if let Some(tail) = &summary.sketched {
        let _ = writeln!(
            text,
            "  sketched: {} {} other pairs; an estimate is too high by at most {}, with a chance of {:.1} %",
            if tail.distinct_is_upper_bound {
                "at most about"
            } else {
                "about"
            },
            group(tail.distinct),
            tail.most_over,
            100.0 * tail.confidence,
        );
    }
    if summary.dropped_features > 0 {
        let _ = writeln!(
            text,
            "  {} features dropped by --max-features-per-document",
            group(summary.dropped_features)
        );
    }
    if summary.spilled_bytes > 0 {
        let _ = writeln!(
            text,
            "  {} of temporary files, in {} units",
            ByteSize(summary.spilled_bytes),
            summary.units
        );
    }
    for note in &summary.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

fn describe_plan(plan: &CountPlan) -> String {
    let mut text = format!("would count {} (nothing is written)\n  inputs:\n", plan.job);
    for (file, bytes) in plan.inputs.iter().take(20) {
        let _ = writeln!(text, "    {file} ({})", ByteSize(*bytes));
    }
    if plan.inputs.len() > 20 {
        let _ = writeln!(text, "    … and {} more", plan.inputs.len() - 20);
    }
    for (_, reason) in &plan.skipped {
        let _ = writeln!(text, "    skipped: {reason}");
    }
    let _ = writeln!(
        text,
        "  to read: {} rows in {} row groups, {} of text ({} stored)",
        group(plan.rows),
        plan.row_groups,
        ByteSize(plan.text_bytes),
        ByteSize(plan.compressed_bytes),
    );
    let _ = writeln!(
        text,
        "  plan: {} unit(s), {} thread(s), {} of memory",
        plan.units, plan.threads, plan.memory_limit
    );
    let _ = writeln!(text, "  outputs: {}", plan.outputs.join(", "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Pipeline;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        count: CountArgs,
    }

    #[test]
    fn what_is_not_given_is_the_same_for_flags_and_for_pipelines() {
        let line = "pmill --warehouse w --name j --input f --text t";
        let line = Line::try_parse_from(line.split(' ')).unwrap();
        let pipeline = Pipeline::parse("[input]\ntext = 't'\n", &[]).unwrap();
        let given = line.count.settings().ok();
        assert_eq!(given, Some(pipeline.count_settings()));
    }
}
