//! The kernel on small seeded corpora: counting, preparing, writing and merging runs.
//!
//! `cargo bench -p pmill-count`. Throughput is in pair events for counting, in tokens for
//! preparing, in pairs for runs. Ids are log-uniform, which is Zipf's law with exponent 1.
//! For sizes that matter use the example `rate`.

#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pmill_count::{
    Accumulator, Compression, Context, CountSettings, PairTally, RunReader, RunWriter, Side,
    TokenBlock, Weight, Window, merge_runs,
};

const TOKENS: usize = 400_000;

fn rows(vocabulary: u32, row_tokens: usize) -> Vec<Vec<u32>> {
    let mut state = 42_u64;
    let mut id = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 11) as f64 / (1_u64 << 53) as f64;
        (f64::from(vocabulary).powf(unit) as u32 - 1).min(vocabulary - 1)
    };
    (0..TOKENS / row_tokens)
        .map(|_| (0..row_tokens).map(|_| id()).collect())
        .collect()
}

fn block(settings: &CountSettings, row_tokens: usize) -> TokenBlock {
    let mut block = TokenBlock::new(settings).expect("the settings are valid");
    for row in rows(settings.vocabulary_size, row_tokens) {
        block.push_row(&row).expect("ids are in the vocabulary");
    }
    block
}

fn window(size: u32, vocabulary_size: u32) -> CountSettings {
    CountSettings {
        context: Context::Window(Window {
            size,
            weight: Weight::Harmonic,
            side: Side::Symmetric,
            out_of_vocabulary: Default::default(),
        }),
        vocabulary_size,
    }
}

fn counting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("count");
    let document = CountSettings {
        context: Context::Document { max_features: None },
        vocabulary_size: 50_000,
    };
    let jobs = [
        ("window 2, vocabulary 50,000", window(2, 50_000), 250),
        ("window 10, vocabulary 50,000", window(10, 50_000), 250),
        ("window 20, vocabulary 50,000", window(20, 50_000), 250),
        ("window 10, vocabulary 400,000", window(10, 400_000), 250),
        ("captions, vocabulary 50,000", document, 12),
    ];
    for (name, settings, row_tokens) in jobs {
        let prepared = block(&settings, row_tokens).prepare(1).expect("one thread");
        let mut accumulator = Accumulator::new(settings.vocabulary_size);
        let mut count = || {
            let mut tally = PairTally::default();
            prepared
                .count_rows(0..settings.vocabulary_size, &mut accumulator, &mut tally)
                .expect("the range is the vocabulary");
            tally
        };
        let events = match &settings.context {
            Context::Window(window) => {
                let (rows, tokens, size) = (
                    TOKENS / row_tokens,
                    row_tokens as u64,
                    u64::from(window.size),
                );
                rows as u64 * (tokens * size - size * (size + 1) / 2)
            }
            _ => count().units,
        };
        group.throughput(Throughput::Elements(events));
        group.bench_function(name, |bencher| bencher.iter(&mut count));
    }
    group.finish();
}

fn preparing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prepare");
    group.throughput(Throughput::Elements(TOKENS as u64));
    for threads in [1, 2] {
        let settings = window(10, 50_000);
        group.bench_function(format!("{threads} threads"), |bencher| {
            bencher.iter_batched(
                || block(&settings, 250),
                |block| block.prepare(threads).expect("threads do not panic"),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn runs(criterion: &mut Criterion) {
    let settings = window(10, 50_000);
    let prepared = block(&settings, 250).prepare(1).expect("one thread");
    let mut accumulator = Accumulator::new(settings.vocabulary_size);
    let write = |compression: Compression, accumulator: &mut Accumulator| {
        let mut writer = RunWriter::new(Vec::new(), settings.vocabulary_size, compression)
            .expect("memory takes all");
        prepared
            .count_rows(0..settings.vocabulary_size, accumulator, &mut writer)
            .expect("the range is the vocabulary");
        writer.finish().expect("memory takes all")
    };
    let mut group = criterion.benchmark_group("runs");
    let (run, summary) = write(Compression::Packed, &mut accumulator);
    group.throughput(Throughput::Elements(summary.pairs));
    for (name, compression) in [
        ("packed", Compression::Packed),
        ("zstd 1", Compression::Zstd(1)),
    ] {
        group.bench_function(format!("count and write, {name}"), |bencher| {
            bencher.iter(|| write(compression, &mut accumulator));
        });
    }
    for readers in [1, 4] {
        group.throughput(Throughput::Elements(summary.pairs * readers));
        group.bench_function(format!("merge {readers}"), |bencher| {
            bencher.iter(|| {
                let mut readers: Vec<_> = (0..readers)
                    .map(|_| RunReader::open("run", run.as_slice()).expect("the run is whole"))
                    .collect();
                let mut tally = PairTally::default();
                merge_runs(
                    &mut readers,
                    0..settings.vocabulary_size,
                    &mut accumulator,
                    &mut tally,
                )
                .expect("sums are small");
                tally
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(std::time::Duration::from_secs(2));
    targets = counting, preparing, runs
}
criterion_main!(benches);
