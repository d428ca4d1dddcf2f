//! What the counting kernel does alone on one seeded corpus, beside what the machine can do.
//!
//! ```text
//! cargo run --release -p pmill-count --example rate -- --tokens 100000000 --vocabulary 50000 \
//!     --window 10 --style documents --threads 1 [--weight harmonic] [--context window] [--blocks 1] [--repeat 1] [--probe]
//!     [--pool queue|rayon|partitions] [--exact-terms 20000 --buckets 1048576 --hashes 5]
//! ```
//!
//! `--pool` says how ranges of left ids come to threads: `queue` is how `pmill count` does it, each thread takes the next
//! one; `rayon` steals; `partitions` gives each thread its ranges beforehand, as an engine's partitions do.
//!
//! The corpus: Zipf-Mandelbrot words, (rank + 2.7)^-1.07 over 400,000 types; 500 topics of 400
//! words, from which 35 % of a row's tokens come; `documents` have log-normal lengths of 50 to
//! 2,000 tokens, `captions` 5 to 20. Ids are by falling frequency, the rest is outside the
//! vocabulary. With `--exact-terms` each repetition is made twice, without a sketch and with one. Times are CPU seconds of the process, user and system, to 10 ms.

#![allow(clippy::print_stdout, reason = "an example prints its result")]

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use pmill_count::{
    Accumulator, Context, CountSettings, OUT_OF_VOCABULARY, PairTally, PreparedBlock, Side, Tail,
    TailSettings, TokenBlock, Weight, Window, weight_unit,
};
use rayon::prelude::*;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Arguments {
    tokens: usize,
    vocabulary: u32,
    window: u32,
    captions: bool,
    threads: usize,
    blocks: usize,
    context: String,
    weight: Weight,
    probe: bool,
    repeat: usize,
    pool: Pool,
    exact_terms: Option<u32>,
    buckets: u32,
    hashes: u8,
}

/// How ranges come to threads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pool {
    Queue,
    Rayon,
    Partitions,
}

fn arguments() -> Outcome<Arguments> {
    let mut parsed = Arguments {
        tokens: 10_000_000,
        vocabulary: 50_000,
        window: 10,
        captions: false,
        threads: 1,
        blocks: 1,
        context: "window".to_owned(),
        weight: Weight::Harmonic,
        probe: false,
        repeat: 1,
        pool: Pool::Queue,
        exact_terms: None,
        buckets: TailSettings::default_buckets(),
        hashes: TailSettings::default_hashes(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(flag) = words.next() {
        if flag == "--probe" {
            parsed.probe = true;
            continue;
        }
        let value = words.next().ok_or(format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--tokens" => parsed.tokens = value.parse()?,
            "--vocabulary" => parsed.vocabulary = value.parse()?,
            "--window" => parsed.window = value.parse()?,
            "--style" => parsed.captions = value == "captions",
            "--threads" => parsed.threads = value.parse()?,
            "--blocks" => parsed.blocks = value.parse()?,
            "--repeat" => parsed.repeat = value.parse()?,
            "--exact-terms" => parsed.exact_terms = Some(value.parse()?),
            "--buckets" => parsed.buckets = value.parse()?,
            "--hashes" => parsed.hashes = value.parse()?,
            "--context" => parsed.context = value,
            "--pool" => {
                parsed.pool = match value.as_str() {
                    "queue" => Pool::Queue,
                    "rayon" => Pool::Rayon,
                    "partitions" => Pool::Partitions,
                    _ => return Err(format!("unknown pool {value}").into()),
                };
            }
            "--weight" => parsed.weight = serde_json::from_str(&format!("\"{value}\""))?,
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    Ok(parsed)
}

fn main() -> Outcome<()> {
    let arguments = arguments()?;
    if arguments.probe {
        probe();
    }
    let (ids, row_ends) = corpus(&arguments);
    let settings = CountSettings {
        context: if arguments.context == "document" {
            Context::Document { max_features: None }
        } else {
            Context::Window(Window {
                size: arguments.window,
                weight: arguments.weight,
                side: Side::Symmetric,
                out_of_vocabulary: Default::default(),
            })
        },
        vocabulary_size: arguments.vocabulary,
    };
    weight_unit(&settings.context)?;
    println!(
        "corpus: {} tokens, {} in the vocabulary of {}, {} rows",
        ids.len(),
        ids.iter().filter(|&&id| id != OUT_OF_VOCABULARY).count(),
        arguments.vocabulary,
        row_ends.len()
    );

    let mut events = 0;
    let mut from = 0;
    for &end in &row_ends {
        events += events_of(&settings.context, &ids[from..end]);
        from = end;
    }
    for _ in 0..arguments.repeat {
        let figures = measure(&settings, &arguments, &ids, &row_ends, None)?;
        report(&arguments, events, &figures);
        if let Some(exact_terms) = arguments.exact_terms {
            let sketch = TailSettings {
                exact_terms,
                buckets: arguments.buckets,
                hashes: arguments.hashes,
            };
            let mut tail = Tail::new(&sketch, arguments.vocabulary)?;
            let sketched = measure(&settings, &arguments, &ids, &row_ends, Some(&tail))?;
            report(&arguments, events, &sketched);
            println!(
                "  into the sketch ({exact_terms} exact terms, {} x {} cells): {} pairs of blocks, about {} distinct, {:.1} ns of cpu more each",
                sketch.hashes,
                sketch.buckets,
                figures.total.pairs - sketched.total.pairs,
                tail.distinct().estimate(),
                (sketched.count - figures.count) * 1e9
                    / (figures.total.pairs - sketched.total.pairs) as f64
            );
        }
    }
    println!(
        "peak resident {} MiB (corpus of {} MiB included)",
        peak_mib(),
        (ids.len() * 4 + row_ends.len() * 8) >> 20
    );
    Ok(())
}

/// CPU seconds of the three steps, wall seconds of all, and what came out.
#[derive(Default)]
struct Figures {
    push: f64,
    prepare: f64,
    count: f64,
    wall: f64,
    total: PairTally,
    block_bytes: usize,
    accumulator_bytes: usize,
}

fn measure(
    settings: &CountSettings,
    arguments: &Arguments,
    ids: &[u32],
    row_ends: &[usize],
    tail: Option<&Tail>,
) -> Outcome<Figures> {
    let rows_a_block = row_ends.len().div_ceil(arguments.blocks);
    let mut figures = Figures::default();
    let mut spare: Option<TokenBlock> = None;
    for (number, rows) in row_ends.chunks(rows_a_block).enumerate() {
        let started = Instant::now();
        let (start, cpu) = (number * rows_a_block, cpu_seconds());
        let base = if start == 0 { 0 } else { row_ends[start - 1] };
        let mut block = match spare.take() {
            Some(block) => block,
            None => TokenBlock::with_budget(
                settings,
                (ids.len() / arguments.blocks + 2 * rows_a_block)
                    * TokenBlock::bytes_per_token(settings),
            )?,
        };
        let mut from = base;
        for &end in rows {
            block.push_row(&ids[from..end])?;
            from = end;
        }
        figures.push += cpu_seconds() - cpu;
        let cpu = cpu_seconds();
        let prepared = block.prepare(arguments.threads)?;
        figures.prepare += cpu_seconds() - cpu;
        let cpu = cpu_seconds();
        let ranges = prepared.plan_ranges(arguments.threads * 16);
        let tallies = match arguments.pool {
            Pool::Rayon => stolen(&prepared, arguments, &ranges, tail)?,
            pool => threaded(&prepared, arguments, &ranges, pool, tail),
        };
        for tally in tallies {
            let (tally, bytes) = tally?;
            figures.total.rows += tally.rows;
            figures.total.pairs += tally.pairs;
            figures.total.units = figures.total.units.wrapping_add(tally.units);
            figures.accumulator_bytes = figures.accumulator_bytes.max(bytes);
        }
        figures.count += cpu_seconds() - cpu;
        figures.wall += started.elapsed().as_secs_f64();
        figures.block_bytes = figures.block_bytes.max(prepared.held_bytes());
        spare = Some(prepared.recycle());
    }
    Ok(figures)
}

/// The rows of a range; with a sketch, what is not exact goes there.
fn count_range(
    prepared: &PreparedBlock,
    range: &Range<u32>,
    accumulator: &mut Accumulator,
    tally: &mut PairTally,
    tail: Option<&Tail>,
) -> Outcome<()> {
    let Some(tail) = tail else {
        return Ok(prepared.count_rows(range.clone(), accumulator, tally)?);
    };
    let mut split = tail.split(tally);
    prepared.count_rows(range.clone(), accumulator, &mut split)?;
    Ok(split.finish()?)
}

/// Threads of our own: they take range after range, or have theirs from the beginning.
fn threaded(
    prepared: &PreparedBlock,
    arguments: &Arguments,
    ranges: &[Range<u32>],
    pool: Pool,
    tail: Option<&Tail>,
) -> Vec<Outcome<(PairTally, usize)>> {
    let next = AtomicUsize::new(0);
    let count = |thread: usize| {
        let mut accumulator = Accumulator::new(arguments.vocabulary);
        let mut tally = PairTally::default();
        let mut mine = (thread..).step_by(arguments.threads);
        loop {
            let index = match pool {
                Pool::Partitions => mine.next().unwrap_or(usize::MAX),
                _ => next.fetch_add(1, Ordering::Relaxed),
            };
            let Some(range) = ranges.get(index) else {
                return Ok((tally, accumulator.held_bytes()));
            };
            count_range(prepared, range, &mut accumulator, &mut tally, tail)?;
        }
    };
    std::thread::scope(|scope| {
        let count = &count;
        let workers: Vec<_> = (0..arguments.threads)
            .map(|thread| scope.spawn(move || count(thread)))
            .collect();
        let home = workers.into_iter().map(|worker| {
            let result = worker.join();
            result.unwrap_or_else(|_| Err("a thread panicked".into()))
        });
        home.collect()
    })
}

/// Rayon's threads: a piece of work that is stolen brings an accumulator of its own.
fn stolen(
    prepared: &PreparedBlock,
    arguments: &Arguments,
    ranges: &[Range<u32>],
    tail: Option<&Tail>,
) -> Outcome<Vec<Outcome<(PairTally, usize)>>> {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(arguments.threads);
    let pool = threads.build()?;
    let count = |accumulator: &mut Accumulator, range: &Range<u32>| {
        let mut tally = PairTally::default();
        count_range(prepared, range, accumulator, &mut tally, tail)?;
        Ok((tally, accumulator.held_bytes()))
    };
    Ok(pool.install(|| {
        let ranges = ranges.par_iter();
        ranges
            .map_init(|| Accumulator::new(arguments.vocabulary), count)
            .collect()
    }))
}

fn report(arguments: &Arguments, events: u64, figures: &Figures) {
    let Figures {
        push,
        prepare,
        count,
        wall,
        total,
        ..
    } = figures;
    println!(
        "{} {:?}, window {}, {} threads, {} blocks: {events} events, {} rows, {} pairs, {} units",
        arguments.context,
        arguments.weight,
        arguments.window,
        arguments.threads,
        arguments.blocks,
        total.rows,
        total.pairs,
        total.units
    );
    println!(
        "  cpu seconds: push {push:.2}, prepare {prepare:.2}, count {count:.2}; wall {wall:.2} (push included)"
    );
    println!(
        "  {:.1} M events per cpu second (prepare + count), {:.1} M with push, {:.1} M per wall second",
        events as f64 / (prepare + count) / 1e6,
        events as f64 / (prepare + count + push) / 1e6,
        events as f64 / wall / 1e6
    );
    println!(
        "  bytes: block {}, accumulator {} a thread",
        figures.block_bytes, figures.accumulator_bytes
    );
}

fn events_of(context: &Context, row: &[u32]) -> u64 {
    let mut known: Vec<u32> = row
        .iter()
        .copied()
        .filter(|&id| id != OUT_OF_VOCABULARY)
        .collect();
    match context {
        Context::Window(window) => {
            let tokens = known.len() as u64;
            (1..=u64::from(window.size))
                .map(|distance| tokens.saturating_sub(distance))
                .sum()
        }
        _ => {
            known.sort_unstable();
            known.dedup();
            let distinct = known.len() as u64;
            distinct * distinct.saturating_sub(1) / 2
        }
    }
}

/// Token ids by falling frequency, and row ends.
fn corpus(arguments: &Arguments) -> (Vec<u32>, Vec<usize>) {
    const TYPES: usize = 400_000;
    const TOPICS: usize = 500;
    const TOPIC_WORDS: usize = 400;
    let mut random = Random(1);
    let zipf = |n: usize| Alias::new((0..n).map(|rank| (rank as f64 + 3.7).powf(-1.07)));
    let (base, topic_rank) = (zipf(TYPES), zipf(TOPIC_WORDS));
    let topics: Vec<u32> = (0..TOPICS * TOPIC_WORDS)
        .map(|_| (40.0 * (100_000_f64 / 40.0).powf(random.unit())) as u32)
        .collect();
    let mut ids = Vec::with_capacity(arguments.tokens + 2_000);
    let mut row_ends = Vec::new();
    while ids.len() < arguments.tokens {
        let length = if arguments.captions {
            5 + random.below(16)
        } else {
            let normal = (-2.0 * (1.0 - random.unit()).ln()).sqrt()
                * (std::f64::consts::TAU * random.unit()).cos();
            (250_f64.ln() + 0.8 * normal).exp().clamp(50.0, 2_000.0) as usize
        };
        let topic = random.below(TOPICS) * TOPIC_WORDS;
        for _ in 0..length {
            ids.push(if random.unit() < 0.35 {
                topics[topic + topic_rank.draw(&mut random)]
            } else {
                base.draw(&mut random) as u32
            });
        }
        row_ends.push(ids.len());
    }
    let mut seen = vec![0_u32; TYPES];
    ids.iter().for_each(|&word| seen[word as usize] += 1);
    let mut order: Vec<usize> = (0..TYPES).collect();
    order.sort_by_key(|&word| (std::cmp::Reverse(seen[word]), word));
    let mut id_of = vec![OUT_OF_VOCABULARY; TYPES];
    for (id, &word) in order.iter().take(arguments.vocabulary as usize).enumerate() {
        id_of[word] = id as u32;
    }
    ids.iter_mut()
        .for_each(|word| *word = id_of[*word as usize]);
    (ids, row_ends)
}

/// Walker's alias table: one draw, one comparison.
struct Alias(Vec<(f64, u32)>);

impl Alias {
    fn new(weights: impl Iterator<Item = f64>) -> Self {
        let weights: Vec<f64> = weights.collect();
        let scale = weights.len() as f64 / weights.iter().sum::<f64>();
        let mut table: Vec<(f64, u32)> = weights
            .iter()
            .zip(0..)
            .map(|(weight, at)| (weight * scale, at))
            .collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..table.len()).partition(|&at| table[at].0 < 1.0);
        while let (Some(&low), Some(&high)) = (small.last(), large.last()) {
            small.pop();
            table[low].1 = high as u32;
            table[high].0 -= 1.0 - table[low].0;
            if table[high].0 < 1.0 {
                large.pop();
                small.push(high);
            }
        }
        Self(table)
    }

    fn draw(&self, random: &mut Random) -> usize {
        let at = random.below(self.0.len());
        if random.unit() < self.0[at].0 {
            at
        } else {
            self.0[at].1 as usize
        }
    }
}

/// A counter through a multiply-and-fold mixer; any seed, 64 bits a draw.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let wide = u128::from(self.0) * 0xa076_1d64_78bd_642f_u128;
        let folded = (wide >> 64) as u64 ^ wide as u64;
        let wide = u128::from(folded ^ 0x5851_f42d_4c95_7f2d) * 0xe703_7ed1_a0b4_28db_u128;
        (wide >> 64) as u64 ^ wide as u64
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }
}

/// The machine's own limits, in this run: reading in order, and adding in a table in cache.
fn probe() {
    let numbers = vec![1_u64; 1 << 26];
    let started = Instant::now();
    let sum: u64 = std::hint::black_box(&numbers).iter().sum();
    let read = numbers.len() as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e9;
    let mut random = Random(7);
    let places: Vec<u32> = (0..1 << 20).map(|_| random.below(1 << 18) as u32).collect();
    for bytes in [1_u32 << 15, 1 << 18, 1 << 20] {
        let mut table = vec![0_u32; 1 << 18];
        let mask = bytes / 4 - 1;
        let started = Instant::now();
        for _ in 0..50 {
            for &place in std::hint::black_box(&places) {
                table[(place & mask) as usize] += 1;
            }
        }
        let rate = 50.0 * places.len() as f64 / started.elapsed().as_secs_f64() / 1e6;
        println!(
            "probe: {rate:.0} M random increments/s in {} KiB",
            bytes >> 10
        );
        std::hint::black_box(&table);
    }
    println!("probe: sequential read {read:.1} GB/s (sum {sum})");
}

/// User and system seconds of this process so far; 0 where /proc is missing.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) >> 10
}
