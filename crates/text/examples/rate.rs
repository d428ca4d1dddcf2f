//! Prints millions of tokens a second and core for each tokenizer, over seeded text in memory.
//!
//! The text has the shape of web captions: 5 to 20 tokens a row; words by the Zipf-Mandelbrot law
//! `(rank + 2.7)^-1.07` over 500,000 types, common words shorter; each row has a topic that gives 35 % of
//! its tokens. `mixed` adds capitals, commas and some words beyond ASCII.
//!
//! ```text
//! cargo run --release -p pmill-text --example rate -- \
//!     [tokens=MILLIONS] [wordnet=FOLDER] [huggingface=TOKENIZER.JSON] [only=plain|mixed] [tokenizer=NAME]
//! ```
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "an example prints, and stops on errors"
)]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use pmill_text::{
    Dictionary, DictionaryBuilder, FeatureExtractor, FeatureSpec, IdEncoder, Lemma, TextError,
    Tokenizer, Vocabulary, VocabularyRule,
};

const HEAD: &str = "the of and a to in is for on with by at from it this that as are be was or an photo \
                    image new his her not you all black white red blue dog cat car house man woman";
const TYPES: usize = 500_000;
/// Rows of an Arrow batch.
const BATCH_ROWS: usize = 8192;
const TOPICS: usize = 500;
const TOPIC_WORDS: usize = 400;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal, from twelve uniform numbers.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

fn make_words(random: &mut Random) -> Vec<String> {
    let (consonants, vowels) = (b"bcdfghjklmnprstvwz", b"aeiou");
    let mut words: Vec<String> = HEAD.split_whitespace().map(str::to_owned).collect();
    let mut seen: HashSet<String> = words.iter().cloned().collect();
    while words.len() < TYPES {
        let rank = words.len() as f64;
        let length = (1.0 + 1.2 * (rank + 1.0).log10() + 1.3 * random.normal()).round();
        let first = random.below(2);
        let word: String = (0..length.clamp(2.0, 14.0) as usize)
            .map(|place| {
                let letters: &[u8] = if (place + first).is_multiple_of(2) {
                    consonants
                } else {
                    vowels
                };
                char::from(letters[random.below(letters.len())])
            })
            .collect();
        if seen.insert(word.clone()) {
            words.push(word);
        }
    }
    words
}

fn cumulative(types: usize) -> Vec<f64> {
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=types)
        .map(|rank| {
            sum += (rank as f64 + 2.7).powf(-1.07);
            sum
        })
        .collect();
    sums.iter().map(|partial| partial / sum).collect()
}

/// Rows as one string and their ends, as Arrow keeps them.
struct Rows {
    text: String,
    ends: Vec<usize>,
}

impl Rows {
    fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts
            .zip(&self.ends)
            .map(|(&start, &end)| &self.text[start..end])
    }
}

fn make_rows(tokens: usize, mixed: bool) -> Rows {
    let mut random = Random(1);
    let words = make_words(&mut random);
    let base = cumulative(TYPES);
    let topic_base = cumulative(TOPIC_WORDS);
    let topics: Vec<usize> = (0..TOPICS * TOPIC_WORDS)
        .map(|_| (40.0 * 2500_f64.powf(random.unit())) as usize)
        .collect();
    let mut rows = Rows {
        text: String::new(),
        ends: Vec::new(),
    };
    let mut made = 0;
    while made < tokens {
        let topic = random.below(TOPICS) * TOPIC_WORDS;
        let length = 5 + random.below(16);
        for place in 0..length {
            let value = random.unit();
            let word = if random.unit() < 0.35 {
                topics[topic + topic_base.partition_point(|&sum| sum < value)]
            } else {
                base.partition_point(|&sum| sum < value)
            };
            let word = &words[word.min(TYPES - 1)];
            if place > 0 {
                rows.text.push(' ');
            }
            match random.below(100) {
                0..10 if mixed => {
                    rows.text.push_str(&word[..1].to_uppercase());
                    rows.text.push_str(&word[1..]);
                }
                10..18 if mixed => {
                    rows.text.push_str(word);
                    rows.text.push(',');
                }
                18..20 if mixed => {
                    rows.text.push_str(word);
                    rows.text.push_str("é’s");
                }
                20..22 if mixed => rows.text.push_str(&random.below(2000).to_string()),
                _ => rows.text.push_str(word),
            }
        }
        rows.ends.push(rows.text.len());
        made += length;
    }
    rows
}

/// Seconds of this thread on a processor; wall time where the system does not say.
fn cpu_seconds(start: Instant) -> f64 {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse::<f64>().ok())
        .map_or_else(
            || start.elapsed().as_secs_f64(),
            |nanoseconds| nanoseconds / 1e9,
        )
}

/// Nanoseconds of one of many independent loads from random cache lines in 8 MiB, the size of the memo:
/// what the machine has left for this process just now.
fn load_nanoseconds(start: Instant) -> f64 {
    const LOADS: usize = 8_000_000;
    let lines = vec![[1_u64; 8]; (8 << 20) / 64];
    let mut random = Random(2);
    let begin = cpu_seconds(start);
    let mut sum = 0_u64;
    for _ in 0..LOADS {
        sum += lines[random.next() as usize % lines.len()][0];
    }
    std::hint::black_box(sum);
    (cpu_seconds(start) - begin) * 1e9 / LOADS as f64
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |name: &str| {
        let values = arguments
            .iter()
            .filter_map(|argument| argument.split_once('='));
        values
            .into_iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    };
    let millions: usize = argument("tokens").map_or(10, |text| text.parse().unwrap());
    let wordnet = argument("wordnet").unwrap_or_else(|| "/usr/share/wordnet".to_owned());
    let huggingface = argument("huggingface");
    let start = Instant::now();
    println!(
        "{millions} M tokens a corpus; M tokens/s of processor time: dictionary (pass 1), ids (one pass)"
    );
    println!(
        "an independent load within 8 MiB: {:.1} ns",
        load_nanoseconds(start)
    );
    for mixed in [false, true] {
        let corpus = if mixed { "mixed" } else { "plain" };
        if argument("only").is_some_and(|only| only != corpus) {
            continue;
        }
        let rows = make_rows(millions * 1_000_000, mixed);
        // What is counted are the tokens between blanks, whatever the tokenizer makes of them.
        let raw = rows.iter().map(|row| row.split(' ').count()).sum::<usize>() as f64 / 1e6;
        let mut specs = vec![
            ("whitespace", Tokenizer::Whitespace, None),
            ("words", Tokenizer::Words, None),
            ("qu-xie", Tokenizer::QuXie, None),
            ("icu", Tokenizer::Icu, None),
        ];
        if std::path::Path::new(&wordnet).is_dir() {
            specs.push((
                "qu-xie + wordnet",
                Tokenizer::QuXie,
                Some(Lemma::WordNet(wordnet.clone().into())),
            ));
        }
        if let Some(path) = &huggingface {
            specs.push(("huggingface", Tokenizer::HuggingFace(path.into()), None));
        }
        for (name, tokenizer, lemma) in specs {
            if argument("tokenizer").is_some_and(|only| only != name) {
                continue;
            }
            let spec = FeatureSpec {
                tokenizer,
                lemma,
                ..FeatureSpec::default()
            };
            let extractor = Arc::new(FeatureExtractor::new(&spec).unwrap());
            let (mut out, mut row_ends) = (Vec::new(), Vec::new());
            let begin = cpu_seconds(start);
            let mut builder = DictionaryBuilder::new(&extractor);
            let mut all = rows.iter().map(Some);
            while row_ends.len() == BATCH_ROWS || row_ends.is_empty() {
                out.clear();
                row_ends.clear();
                let batch = all.by_ref().take(BATCH_ROWS);
                builder.push_rows(batch, &mut out, &mut row_ends).unwrap();
            }
            row_ends.clear();
            let dictionary_rate = raw / (cpu_seconds(start) - begin);
            let held = builder.held_bytes() >> 20;
            let dictionary = builder.finish();
            let counts = Dictionary::merge::<TextError>([&dictionary]);
            let rule = VocabularyRule {
                size: Some(400_000),
                min_count: 1,
            };
            let vocabulary = Arc::new(Vocabulary::from_counts(counts, &rule).unwrap());
            let begin = cpu_seconds(start);
            let mut encoder = IdEncoder::new(&extractor, &vocabulary);
            let mut known = 0_usize;
            let mut all = rows.iter().map(Some);
            while row_ends.len() == BATCH_ROWS || row_ends.is_empty() {
                out.clear();
                row_ends.clear();
                let batch = all.by_ref().take(BATCH_ROWS);
                encoder.push_rows(batch, &mut out, &mut row_ends).unwrap();
                known += out.len();
            }
            let encoder_rate = raw / (cpu_seconds(start) - begin);
            println!(
                "{corpus} {name:17} {dictionary_rate:6.1} {encoder_rate:6.1}   {} types, {known} features, {held} MiB",
                dictionary.len(),
            );
        }
    }
}
