//! `pmill correlate`: does a model do better on examples whose words go together?

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use plotters::prelude::*;
use pmill_engine::correlate::{
    CorrelateSettings, Correlation, EXAMPLES, Interval, Pairs, Unseen, correlate,
};
use pmill_engine::sql::SqlSession;

use crate::count::json;
use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};
use crate::sql::{self, Format};

/// Correlate the mean PMI of examples' word pairs with a model's answers.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("pairs").required(true).args(["words", "question"]),
    after_help = "\
Words become features by the job's own rule (tokenizer, lemma, stop words). With --output, the folder gets
examples.parquet (id, pairs, seen, pmi, correct), bins.csv, correlation.json and plot.svg.

Examples:
  pmill correlate --warehouse wh --name captions --examples answers.parquet --words caption --correct correct
  pmill correlate --warehouse wh --name captions --examples vqa.csv --question q --answer a --correct ok --output out"
)]
pub struct CorrelateArgs {
    /// Folder of the warehouse
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Name of a scored job
    #[arg(long, value_name = "JOB")]
    name: String,
    /// Column of its pmi table
    #[arg(long, value_name = "M", default_value = "pmi")]
    measure: String,
    /// Parquet or CSV file: one example a row
    #[arg(long, value_name = "FILE")]
    examples: String,
    /// Column that names the example; rows are numbered without it
    #[arg(long, value_name = "COLUMN")]
    id: Option<String>,
    /// Column of words: all pairs of its distinct features
    #[arg(long, value_name = "COLUMN")]
    words: Option<String>,
    /// Column of the question: its features with those of the answer
    #[arg(long, value_name = "COLUMN", requires = "answer")]
    question: Option<String>,
    /// Column of the answer
    #[arg(long, value_name = "COLUMN", requires = "question")]
    answer: Option<String>,
    /// Column that says whether the model was right: 0/1, true/false or a share
    #[arg(long, value_name = "COLUMN")]
    correct: String,
    /// What a pair is worth that is not in the table: skip (leave it out of the mean) or a number
    #[arg(long, value_name = "skip|X", default_value = "skip", value_parser = unseen, allow_hyphen_values = true)]
    unseen: Unseen,
    /// Equally large bins
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    bins: u32,
    /// Bootstrap replicates
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    replicates: u32,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u32,
    /// Confidence of the intervals
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    confidence: f64,
    /// Folder for the table, the numbers and the plot
    #[arg(long, short, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

fn unseen(text: &str) -> Result<Unseen, String> {
    if text == "skip" {
        return Ok(Unseen::Skip);
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Unseen::Value(value)),
        _ => Err("expected `skip` or a number".into()),
    }
}

impl CorrelateArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(Failure::user("--confidence must lie between 0 and 1"));
        }
        let pairs = match (self.words, self.question, self.answer) {
            (Some(words), _, _) => Pairs::Words(words),
            (None, Some(question), Some(answer)) => Pairs::QuestionAnswer(question, answer),
            _ => return Err(Failure::user("give --words, or --question and --answer")),
        };
        let session = SqlSession::open(&self.warehouse, global.threads(), global.memory_limit())?;
        session.add_features_of(&self.warehouse, &self.name)?;
        let settings = CorrelateSettings {
            job: self.name,
            measure: self.measure,
            examples: self.examples,
            id: self.id,
            pairs,
            correct: self.correct,
            unseen: self.unseen,
            bins: self.bins,
            replicates: self.replicates,
            seed: self.seed,
            confidence: self.confidence,
        };
        let found = correlate(&session, &settings)?;
        let mut text = text(&found, &settings);
        if let Some(folder) = &self.output {
            write(&session, folder, &found, &settings)?;
            let _ = writeln!(text, "\nwrote {}", folder.display());
        }
        if global.json {
            return Ok(Output::Summary {
                json: json(&found),
                text: String::new(),
            });
        }
        Ok(Output::Bytes(text.into_bytes()))
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}

fn told(interval: &Interval) -> String {
    format!(
        "{:>8}  [{}, {}]",
        number(interval.estimate),
        number(interval.lower),
        number(interval.upper)
    )
}

fn text(found: &Correlation, settings: &CorrelateSettings) -> String {
    let mut text = format!(
        "{} examples ({} left out: no pair in {}.pmi, or no answer)\n\n",
        found.examples, found.left_out, settings.job
    );
    let percent = settings.confidence * 100.0;
    for (what, interval) in [
        (format!("r over {} bins", settings.bins), &found.binned),
        ("r over examples".into(), &found.raw),
        ("rank correlation".into(), &found.rank),
        ("accuracy, top 5 % less bottom 5 %".into(), &found.gap),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{what:<34} {}", told(interval));
    }
    let _ = writeln!(
        text,
        "intervals: {percent} % by bootstrap over examples, {} replicates, seed {}\n",
        settings.replicates, settings.seed
    );
    let _ = writeln!(
        text,
        "{:>4} {:>9} {:>12} {:>9}",
        "bin", "examples", settings.measure, "accuracy"
    );
    for bin in &found.bins {
        let _ = writeln!(
            text,
            "{:>4} {:>9} {:>12.4} {:>9.4}",
            bin.bin, bin.examples, bin.pmi, bin.accuracy
        );
    }
    text
}

fn write(
    session: &SqlSession,
    folder: &Path,
    found: &Correlation,
    settings: &CorrelateSettings,
) -> Result<(), Failure> {
    let fail = |path: &Path, error: &dyn std::fmt::Display| {
        Failure::user(format!("cannot write `{}`: {error}", path.display()))
    };
    std::fs::create_dir_all(folder).map_err(|error| fail(folder, &error))?;
    sql::write(
        session,
        &format!("SELECT * FROM {EXAMPLES} ORDER BY id"),
        Format::Parquet,
        Some(folder.join("examples.parquet")),
    )?;
    let mut bins = String::from("bin,examples,pmi,accuracy\n");
    for bin in &found.bins {
        let _ = writeln!(
            bins,
            "{},{},{},{}",
            bin.bin, bin.examples, bin.pmi, bin.accuracy
        );
    }
    let report = serde_json::to_string_pretty(found).map_err(|error| fail(folder, &error))?;
    let plot = plot(found, settings).map_err(|error| fail(&folder.join("plot.svg"), &error))?;
    for (name, content) in [
        ("bins.csv", bins),
        ("correlation.json", report + "\n"),
        ("plot.svg", plot),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, content).map_err(|error| fail(&path, &error))?;
    }
    Ok(())
}

/// Half the length of a 95 % interval of a share: `1.96 √(p (1 − p) / n)`. For answers between 0 and 1 it is the most
/// that it can be.
fn half_interval(share: f64, examples: f64) -> f64 {
    1.96 * (share * (1.0 - share) / examples).max(0.0).sqrt()
}

/// The bins as dots with the intervals of their accuracy, the line of least squares through them, r in the title.
fn plot(found: &Correlation, settings: &CorrelateSettings) -> Result<String, String> {
    let points: Vec<(f64, f64)> = found
        .bins
        .iter()
        .map(|bin| (bin.pmi, bin.accuracy))
        .collect();
    let mut svg = String::new();
    draw(&mut svg, &points, found, settings).map_err(|error| error.to_string())?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    points: &[(f64, f64)],
    found: &Correlation,
    settings: &CorrelateSettings,
) -> Result<(), Box<dyn std::error::Error>> {
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let margin = ((high - low) * 0.05).max(1e-6);
        low - margin..high + margin
    };
    let bars: Vec<(f64, f64, f64)> = found
        .bins
        .iter()
        .map(|bin| {
            let half = half_interval(bin.accuracy, bin.examples as f64);
            let (low, high) = (bin.accuracy - half, bin.accuracy + half);
            (bin.pmi, low.max(0.0), high.min(1.0))
        })
        .collect();
    let (x, y) = (
        range(&mut points.iter().map(|point| point.0)),
        range(&mut bars.iter().flat_map(|bar| [bar.1, bar.2])),
    );
    let (across, up) = (places(&x), places(&y));
    let area = SVGBackend::with_string(svg, (720, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let title = format!(
        "r = {}, {} % interval {} to {}: {} bins of {} examples",
        number(found.binned.estimate),
        settings.confidence * 100.0,
        number(found.binned.lower),
        number(found.binned.upper),
        points.len(),
        found.examples
    );
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(x.clone(), y)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(format!("mean {} of an example's pairs", settings.measure))
        .y_desc("accuracy, with 95 % of each bin")
        .x_label_formatter(&|value| format!("{value:.0$}", across))
        .y_label_formatter(&|value| format!("{value:.0$}", up))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .draw()?;
    if let Some((slope, offset)) = line(points) {
        chart.draw_series(LineSeries::new(
            [x.start, x.end].map(|x| (x, offset + slope * x)),
            RGBColor(160, 160, 160).stroke_width(2),
        ))?;
    }
    chart.draw_series(bars.iter().map(|(x, low, high)| {
        PathElement::new(
            vec![(*x, *low), (*x, *high)],
            RGBColor(160, 190, 230).stroke_width(2),
        )
    }))?;
    chart.draw_series(
        points
            .iter()
            .map(|point| Circle::new(*point, 4, RGBColor(31, 92, 168).filled())),
    )?;
    area.present()?;
    Ok(())
}

/// Places after the point that tell the marks of an axis apart: eight of them, more or less.
fn places(axis: &std::ops::Range<f64>) -> usize {
    (8.0 / (axis.end - axis.start))
        .log10()
        .ceil()
        .clamp(0.0, 9.0) as usize
}

/// Slope and offset of the line of least squares; `None` when all x are the same.
fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let n = points.len() as f64;
    let mean = |values: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(values).sum::<f64>() / n;
    let (x, y) = (mean(&|point| point.0), mean(&|point| point.1));
    let covariance = mean(&|point| (point.0 - x) * (point.1 - y));
    let variance = mean(&|point| (point.0 - x) * (point.0 - x));
    (variance > 0.0).then(|| (covariance / variance, y - covariance / variance * x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_share_is_the_textbooks() {
        assert!((half_interval(0.5, 100.0) - 0.098).abs() < 1e-12);
        assert_eq!(half_interval(1.0, 10.0), 0.0);
    }

    #[test]
    fn marks_of_an_axis_are_told_apart() {
        assert_eq!(places(&(0.0..4.3)), 1);
        assert_eq!(places(&(0.45..0.59)), 2);
        assert_eq!(places(&(0.0..100.0)), 0);
    }

    #[test]
    fn the_line_goes_through_points_that_lie_on_one() {
        let (slope, offset) = line(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]).unwrap();
        assert!((slope - 2.0).abs() < 1e-12 && (offset - 1.0).abs() < 1e-12);
        assert_eq!(line(&[(1.0, 1.0), (1.0, 2.0)]), None);
    }
}
