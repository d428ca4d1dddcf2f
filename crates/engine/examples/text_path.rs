//! How fast text comes in, on one thread: Parquet decode alone, then with tokenizing and counting
//! of terms (the first pass), then with tokenizing and looking ids up (a job with a vocabulary).
//!
//! `cargo run --profile demo -p pmill-engine --example text_path -- FOLDER COLUMN [TOKENIZER [LEMMA]]...`
#![expect(clippy::print_stdout, reason = "an example that prints its figures")]

use std::sync::Arc;
use std::time::Instant;

use pmill_engine::column::RowReceiver;
use pmill_engine::expression::RowSpec;
use pmill_engine::memory::ByteSize;
use pmill_engine::scan::{CorpusFile, Scanner};
use pmill_engine::session::Session;
use pmill_engine::text::{
    Dictionary, DictionaryBuilder, FeatureExtractor, FeatureSpec, IdEncoder, Vocabulary,
    VocabularyRule,
};
use pmill_engine::{EngineError, input};

/// Rows go nowhere: their bytes are summed.
#[derive(Default)]
struct Bytes(u64);

impl RowReceiver for Bytes {
    type Error = EngineError;

    fn texts(&mut self, rows: &mut dyn Iterator<Item = Option<&str>>) -> Result<(), EngineError> {
        self.0 += rows.flatten().map(|text| text.len() as u64).sum::<u64>();
        Ok(())
    }

    fn tokens(&mut self, _row: Option<&mut dyn Iterator<Item = &str>>) -> Result<(), EngineError> {
        Ok(())
    }
}

enum Encoder {
    Collect(DictionaryBuilder),
    LookUp(IdEncoder),
}

struct Tokens {
    encoder: Encoder,
    ids: Vec<u32>,
    ends: Vec<usize>,
    total: u64,
}

impl RowReceiver for Tokens {
    type Error = EngineError;

    fn texts(&mut self, rows: &mut dyn Iterator<Item = Option<&str>>) -> Result<(), EngineError> {
        self.ids.clear();
        self.ends.clear();
        match &mut self.encoder {
            Encoder::Collect(builder) => builder.push_rows(rows, &mut self.ids, &mut self.ends)?,
            Encoder::LookUp(encoder) => encoder.push_rows(rows, &mut self.ids, &mut self.ends)?,
        }
        self.total += self.ids.len() as u64;
        Ok(())
    }

    fn tokens(&mut self, _row: Option<&mut dyn Iterator<Item = &str>>) -> Result<(), EngineError> {
        Ok(())
    }
}

fn scan<R: RowReceiver<Error = EngineError>>(
    session: &Session,
    scanner: &Scanner,
    files: &[CorpusFile],
    receiver: &mut R,
) -> Result<f64, EngineError> {
    let started = Instant::now();
    for file in files {
        for row_group in 0..file.row_groups.len() {
            let mut reader = scanner.read(file, row_group)?;
            while let Some(batch) = session.handle().block_on(reader.next())? {
                reader.rows(&batch, receiver)?;
            }
        }
    }
    Ok(started.elapsed().as_secs_f64())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, column, tokenizers @ ..] = arguments.as_slice() else {
        return Err("give FOLDER COLUMN [TOKENIZER [LEMMA]]...".into());
    };
    let limit = ByteSize(4 << 30);
    let session = Session::new(1, limit, None)?;
    let rows = RowSpec {
        text: column.clone(),
        ..RowSpec::default()
    };
    let scanner = Scanner::new(session.context().clone(), rows, limit);
    let files = input::expand(std::slice::from_ref(folder))?
        .iter()
        .map(|file| session.wait(scanner.open(file)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut bytes = Bytes::default();
    scan(&session, &scanner, &files, &mut bytes)?;
    bytes = Bytes::default();
    let seconds = scan(&session, &scanner, &files, &mut bytes)?;
    println!(
        "decode alone: {:.0} MB/s of text",
        bytes.0 as f64 / seconds / 1e6
    );
    let mut rest = tokenizers.iter().peekable();
    while let Some(tokenizer) = rest.next() {
        let lemma = rest
            .next_if(|next| next.contains(':'))
            .map(|lemma| lemma.parse())
            .transpose()?;
        let spec = FeatureSpec {
            tokenizer: tokenizer.parse()?,
            lemma,
            ..FeatureSpec::default()
        };
        let extractor = Arc::new(FeatureExtractor::new(&spec)?);
        let new = |encoder| Tokens {
            encoder,
            ids: Vec::new(),
            ends: Vec::new(),
            total: 0,
        };
        let mut collect = new(Encoder::Collect(DictionaryBuilder::new(&extractor)));
        let first = scan(&session, &scanner, &files, &mut collect)?;
        let Encoder::Collect(builder) = collect.encoder else {
            unreachable!()
        };
        let rule = VocabularyRule {
            size: Some(50_000),
            min_count: 1,
        };
        let dictionary = builder.finish();
        let vocabulary = Arc::new(Vocabulary::from_counts(
            Dictionary::merge::<EngineError>([&dictionary]),
            &rule,
        )?);
        let mut look_up = new(Encoder::LookUp(IdEncoder::new(&extractor, &vocabulary)));
        let second = scan(&session, &scanner, &files, &mut look_up)?;
        println!(
            "{tokenizer}: {} tokens; decode + tokenize + terms {:.1} M tokens/s; decode + tokenize + ids {:.1} M tokens/s",
            collect.total,
            collect.total as f64 / first / 1e6,
            look_up.total as f64 / second / 1e6,
        );
    }
    Ok(())
}
