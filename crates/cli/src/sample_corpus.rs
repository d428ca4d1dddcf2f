//! `pmill sample-corpus`: a seeded corpus of any size, in the shape of LAION's metadata.
//!
//! Words follow Zipf–Mandelbrot, `p(rank) ∝ (rank + 2.7)^-1.07`; each row has a topic, and about a
//! third of its words are the topic's, so that association is not flat. In some rows a planted
//! pair of words stands side by side, and these words stand nowhere else: they must come out on
//! top. The same arguments give the same bytes, whatever the number of threads.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use clap::{Args, ValueEnum};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output};
use crate::progress::group;

/// Make a seeded corpus for demos and benchmarks.
#[derive(Args, Debug)]
#[command(after_help = "\
Columns: SAMPLE_ID (int64), URL (string), TEXT (string).

Examples:
  pmill sample-corpus --output corpus --rows 200000
  pmill sample-corpus --output big --style documents --tokens 100000000 --files 8")]
pub struct SampleCorpusArgs {
    /// Folder for the files; it must be empty or new
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// Short captions (5 to 20 words) or documents (50 to 2000)
    #[arg(long, value_enum, default_value = "captions")]
    style: Style,
    /// Rows in all [default: 100000]
    #[arg(long, value_name = "N", conflicts_with = "tokens")]
    rows: Option<u64>,
    /// Words in all, about, in place of rows
    #[arg(long, value_name = "N")]
    tokens: Option<u64>,
    /// Files
    #[arg(long, value_name = "N", default_value_t = 4)]
    files: u32,
    /// Distinct words
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    words: u32,
    /// Seed; the same arguments give the same bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Captions,
    Documents,
}

/// Words that stand together, and nowhere else.
const PLANTED: [(&str, &str); 10] = [
    ("anchor", "harbour"),
    ("violin", "bow"),
    ("lighthouse", "cliff"),
    ("saddle", "stirrup"),
    ("teapot", "saucer"),
    ("compass", "sextant"),
    ("needle", "thimble"),
    ("chimney", "soot"),
    ("beehive", "smoker"),
    ("windmill", "miller"),
];

/// One row in so many holds a planted pair.
const PLANTED_EVERY: u64 = 50;
/// Tokens of a row group, about.
const ROW_GROUP_TOKENS: u64 = 4_000_000;
const TOPICS: u64 = 500;
const TOPIC_WORDS: usize = 400;
const TOPIC_SHARE: f64 = 0.35;
const BATCH_ROWS: u64 = 8192;

impl SampleCorpusArgs {
    /// Runs the command.
    pub fn run(self, global: &Global) -> Outcome {
        if self.files == 0 || self.words < 1000 {
            return Err(Failure::user("give at least 1 file and 1000 words"));
        }
        let io = |error: std::io::Error| {
            Failure::user(format!("cannot write `{}`: {error}", self.output.display()))
        };
        std::fs::create_dir_all(&self.output).map_err(io)?;
        if std::fs::read_dir(&self.output)
            .map_err(io)?
            .next()
            .is_some()
        {
            return Err(Failure::user(format!(
                "`{}` is not empty; give a new folder",
                self.output.display()
            )));
        }
        let rows = match self.tokens {
            Some(tokens) => (tokens as f64 / self.style.mean_words()) as u64,
            None => self.rows.unwrap_or(100_000),
        };
        let language = Language::new(self.words, self.seed);
        let next = AtomicUsize::new(0);
        let write = || -> Result<u64, Failure> {
            let mut tokens = 0;
            loop {
                let file = next.fetch_add(1, Ordering::Relaxed) as u64;
                if file >= u64::from(self.files) {
                    return Ok(tokens);
                }
                let files = u64::from(self.files);
                let first = rows * file / files;
                let last = rows * (file + 1) / files;
                let path = self.output.join(format!("part-{file:05}.parquet"));
                tokens += self.write_file(&path, first..last, file, &language)?;
            }
        };
        let threads = global.threads().min(self.files as usize);
        let results: Vec<Result<u64, Failure>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(write)).collect();
            workers
                .into_iter()
                .map(|worker| {
                    worker
                        .join()
                        .unwrap_or_else(|_| Err(Failure::user("a writer panicked")))
                })
                .collect()
        });
        let tokens = results.into_iter().sum::<Result<u64, Failure>>()?;
        Ok(Output::Summary {
            json: serde_json::json!({
                "output": self.output, "files": self.files, "rows": rows, "tokens": tokens,
                "planted": PLANTED.map(|(a, b)| [a, b]),
            }),
            text: format!(
                "wrote {}: {} files, {} rows, {} words; planted pairs such as {} + {}\n",
                self.output.display(),
                self.files,
                group(rows),
                group(tokens),
                PLANTED[0].0,
                PLANTED[0].1,
            ),
        })
    }

    fn write_file(
        &self,
        path: &Path,
        rows: std::ops::Range<u64>,
        file: u64,
        language: &Language,
    ) -> Result<u64, Failure> {
        let fail =
            |error: String| Failure::user(format!("cannot write `{}`: {error}", path.display()));
        let schema = Arc::new(Schema::new(vec![
            Field::new("SAMPLE_ID", DataType::Int64, false),
            Field::new("URL", DataType::Utf8, false),
            Field::new("TEXT", DataType::Utf8, false),
        ]));
        let group_rows = (ROW_GROUP_TOKENS as f64 / self.style.mean_words()) as usize;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_row_count(Some(group_rows))
            .set_column_dictionary_enabled("TEXT".into(), false)
            .build();
        let out = File::create(path).map_err(|error| fail(error.to_string()))?;
        let mut writer = ArrowWriter::try_new(out, schema.clone(), Some(properties))
            .map_err(|error| fail(error.to_string()))?;
        let mut random = Random::of_stream(self.seed, file);
        let mut tokens = 0;
        let mut start = rows.start;
        while start < rows.end {
            let end = rows.end.min(start + BATCH_ROWS);
            let (mut urls, mut texts) = (StringBuilder::new(), StringBuilder::new());
            let mut text = String::new();
            for row in start..end {
                urls.append_value(format!(
                    "https://host{}.example.org/{row}.jpg",
                    random.below(1000)
                ));
                text.clear();
                tokens += self.row(&mut random, language, &mut text);
                texts.append_value(&text);
            }
            let columns: Vec<ArrayRef> = vec![
                Arc::new(Int64Array::from_iter_values(
                    (start..end).map(|row| row as i64),
                )),
                Arc::new(urls.finish()),
                Arc::new(texts.finish()),
            ];
            let batch = RecordBatch::try_new(schema.clone(), columns)
                .map_err(|error| fail(error.to_string()))?;
            writer
                .write(&batch)
                .map_err(|error| fail(error.to_string()))?;
            start = end;
        }
        writer.close().map_err(|error| fail(error.to_string()))?;
        Ok(tokens)
    }

    fn row(&self, random: &mut Random, language: &Language, text: &mut String) -> u64 {
        let words = self.style.words(random);
        let topic = &language.topics[random.below(TOPICS) as usize];
        let planted = (random.below(PLANTED_EVERY) == 0).then(|| {
            (
                random.below(words),
                PLANTED[random.below(PLANTED.len() as u64) as usize],
            )
        });
        for place in 0..words {
            if let Some((at, (left, right))) = planted
                && at == place
            {
                text.push_str(left);
                text.push(' ');
                text.push_str(right);
                text.push(' ');
            }
            let word = if random.unit() < TOPIC_SHARE {
                topic[language.topic.draw(random) as usize]
            } else {
                language.zipf.draw(random)
            };
            text.push_str(&language.words[word as usize]);
            text.push(' ');
        }
        text.pop();
        words + if planted.is_some() { 2 } else { 0 }
    }
}

impl Style {
    fn mean_words(self) -> f64 {
        match self {
            Self::Captions => 12.5,
            Self::Documents => 340.0,
        }
    }

    fn words(self, random: &mut Random) -> u64 {
        match self {
            Self::Captions => 5 + random.below(16),
            // Log-normal with median 250, cut to 50..=2000.
            Self::Documents => {
                ((250_f64.ln() + 0.8 * random.normal()).exp() as u64).clamp(50, 2000)
            }
        }
    }
}

/// The words, how likely each is, and which belong to which topic.
struct Language {
    words: Vec<String>,
    zipf: Alias,
    topics: Vec<Vec<u32>>,
    topic: Alias,
}

impl Language {
    fn new(size: u32, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let weight = |rank: usize| (rank as f64 + 3.7).powf(-1.07);
        let top = f64::from(size.min(100_000));
        let topics = (0..TOPICS)
            .map(|_| {
                (0..TOPIC_WORDS)
                    // Even over the logarithm of the rank keeps the whole close to Zipf.
                    .map(|_| ((40.0 * (top / 40.0).powf(random.unit())) as u32).min(size - 1))
                    .collect()
            })
            .collect();
        Self {
            words: invent(size as usize, &mut random),
            zipf: Alias::new((0..size as usize).map(weight).collect()),
            topics,
            topic: Alias::new((0..TOPIC_WORDS).map(weight).collect()),
        }
    }
}

/// Distinct pronounceable words, the common ones short.
fn invent(size: usize, random: &mut Random) -> Vec<String> {
    const CONSONANTS: &[u8] = b"bcdfghjklmnprstvwz";
    const VOWELS: &[u8] = b"aeiou";
    let mut seen: std::collections::HashSet<String> = PLANTED
        .iter()
        .flat_map(|(left, right)| [(*left).to_owned(), (*right).to_owned()])
        .collect();
    let mut words = Vec::with_capacity(size);
    while words.len() < size {
        let usual = 1.0 + 1.2 * ((words.len() + 1) as f64).log10();
        let length = (usual + 1.3 * random.normal()).round().clamp(2.0, 14.0) as usize;
        let shift = random.below(2) as usize;
        let word: String = (0..length)
            .map(|place| {
                let letters = if (place + shift).is_multiple_of(2) {
                    CONSONANTS
                } else {
                    VOWELS
                };
                char::from(letters[random.below(letters.len() as u64) as usize])
            })
            .collect();
        if seen.insert(word.clone()) {
            words.push(word);
        }
    }
    words
}

/// Draws from a discrete distribution in constant time (Walker 1977, Vose 1991).
struct Alias {
    keep: Vec<f64>,
    other: Vec<u32>,
}

impl Alias {
    fn new(weights: Vec<f64>) -> Self {
        let size = weights.len();
        let mean = weights.iter().sum::<f64>() / size as f64;
        let mut keep: Vec<f64> = weights.iter().map(|weight| weight / mean).collect();
        let mut other: Vec<u32> = (0..size as u32).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..size).partition(|i| keep[*i] < 1.0);
        while let (Some(less), Some(more)) = (small.pop(), large.last().copied()) {
            other[less] = more as u32;
            keep[more] -= 1.0 - keep[less];
            if keep[more] < 1.0 {
                large.pop();
                small.push(more);
            }
        }
        for rest in small.into_iter().chain(large) {
            keep[rest] = 1.0;
        }
        Self { keep, other }
    }

    fn draw(&self, random: &mut Random) -> u32 {
        let slot = random.below(self.keep.len() as u64) as usize;
        if random.unit() < self.keep[slot] {
            slot as u32
        } else {
            self.other[slot]
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): a corpus is the same on every machine and version.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A stream of its own for each number. The start is a hash: two states that differ by a
    /// multiple of the increment would give the same numbers, shifted.
    fn of_stream(seed: u64, stream: u64) -> Self {
        let start = Self::new(Self::new(seed).next().wrapping_add(stream)).next();
        Self::new(start)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    /// 0 to `limit` − 1; the bias is below 2⁻³² for the limits used here.
    fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal (Box and Muller 1958).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_their_weights() {
        let alias = Alias::new(vec![1.0, 2.0, 5.0, 0.0]);
        let mut random = Random::new(7);
        let mut seen = [0_u32; 4];
        for _ in 0..80_000 {
            seen[alias.draw(&mut random) as usize] += 1;
        }
        // Five standard deviations of a binomial with 80,000 draws are below 750.
        for (count, expected) in seen.iter().zip([10_000_i64, 20_000, 50_000, 0]) {
            assert!((i64::from(*count) - expected).abs() < 750, "{seen:?}");
        }
        assert_eq!(seen[3], 0);
    }

    #[test]
    fn streams_do_not_run_into_each_other() {
        let mut seen = std::collections::HashSet::new();
        for stream in 0..8 {
            let mut random = Random::of_stream(1, stream);
            assert!((0..10_000).all(|_| seen.insert(random.next())));
        }
    }

    #[test]
    fn words_are_distinct_and_leave_the_planted_ones_alone() {
        let words = invent(5000, &mut Random::new(1));
        let distinct: std::collections::HashSet<&String> = words.iter().collect();
        assert_eq!(distinct.len(), 5000);
        assert!(
            PLANTED
                .iter()
                .all(|(a, b)| !words.iter().any(|word| word == a || word == b))
        );
    }
}
