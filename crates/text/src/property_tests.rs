//! The fast road against the plain one, on random text.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use crate::road::MemoLimits;
use crate::{
    DictionaryBuilder, FeatureExtractor, FeatureSpec, IdEncoder, Lemma, OUT_OF_VOCABULARY, Scratch,
    StopWords, TermCount, TextError, Tokenizer, Vocabulary, VocabularyRule,
};

/// Resource files that the specs below name.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "index.noun",
            "  licence\ndog n 1\nman n 1\nb n 1\nab n 1\nbus n 1\nsigma n 1\nσ n 1\n",
        );
        write("noun.exc", "bs b ab\nmen man\n");
        write(
            "lemmas.tsv",
            "dogs\tdog\nσς\tσ\nb\tlonger than fifteen bytes\nthe\ta\n",
        );
        write("stop.txt", "a of\nthe σ\n");
        write(
            "terms.txt",
            "a b\na b c\na b c d\nb c\nstatue of liberty\thead\ndog\n東京 都\n1.5 a\ndon't a\nσς a\nB A\tup\n",
        );
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Words, separators and single characters that once in a while meet.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => proptest::sample::select(vec![
            "a", "b", "c", "d", "A", "B", "of", "the", "dog", "dogs", "men", "bs", "bus", "statue", "liberty",
            "don't", "1.5", "3,000", "a:b", "x_y", "__", "'a'", "a.b.", "½", "Ⅷ", "一二", "東京", "東京都に行く",
            "ภาษาไทย", "ΟΔΟΣ", "ΑΣ", "Σ", "İstanbul", "ß", "ﬁne", "e\u{301}", "naïve", "ＡＢＣ", "한국어",
            "longer-than-fifteen-bytes", "longerthanfifteenbytes", "LONGERTHANFIFTEENBYTES", "0123456789012345",
            "exactly15bytes_", "exactly16bytes__", "🙂", "👩\u{200D}👧", "\u{200D}🅰", "a\u{AD}b", "'é", "a.é", "é.a",
            "=\u{338}", "!\u{200D}🅰", "a\u{308}", "\u{308}a", "1\u{2044}2", "№5", "ʰΣ", "Σʰ", "ΑΣ\u{301}", "א\"ב", "א'",
        ]).prop_map(str::to_owned),
        4 => proptest::sample::select(vec![
            " ", " ", " ", " ", "  ", "-", ".", ",", "'", ":", ";", "_", "\t", "\n", "\u{B}", "\u{1C}", "\u{1F}",
            "\u{85}", "\u{A0}", "\u{1680}", "\u{2003}", "\u{2028}", "\u{3000}", "\u{180E}", "\u{200B}", "\u{200D}",
            "\u{FEFF}", "\0", "\u{7F}", "’", "。", "·", "¨",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,3}",
        1 => any::<char>().prop_map(String::from),
        1 => "[ -~]{0,24}",
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

#[derive(Debug, Clone)]
struct Choice {
    tokenizer: Tokenizer,
    stop: u8,
    min_length: Option<u32>,
    drop_numeric: bool,
    lemma: u8,
    terms: u8,
}

fn choice() -> impl Strategy<Value = Choice> {
    let tokenizer = proptest::sample::select(vec![
        Tokenizer::Words,
        Tokenizer::Whitespace,
        Tokenizer::QuXie,
        Tokenizer::Icu,
    ]);
    let min_length = proptest::sample::select(vec![None, Some(0), Some(2), Some(3)]);
    (
        tokenizer,
        0..4_u8,
        min_length,
        any::<bool>(),
        0..3_u8,
        0..3_u8,
    )
        .prop_map(
            |(tokenizer, stop, min_length, drop_numeric, lemma, terms)| Choice {
                tokenizer,
                stop,
                min_length,
                drop_numeric,
                lemma,
                terms,
            },
        )
}

fn extractor(choice: &Choice, files: &Files) -> Arc<FeatureExtractor> {
    let file = |name: &str| files.path().join(name);
    let spec = FeatureSpec {
        tokenizer: choice.tokenizer.clone(),
        stop_words: match choice.stop {
            0 => None,
            1 => Some(StopWords::Off),
            2 => Some(StopWords::English),
            _ => Some(StopWords::File(file("stop.txt"))),
        },
        min_length: choice.min_length,
        drop_numeric: choice.drop_numeric,
        lemma: match choice.lemma {
            0 => None,
            1 => Some(Lemma::WordNet(files.path().to_owned())),
            _ => Some(Lemma::File(file("lemmas.tsv"))),
        },
        phrases: (choice.terms == 1).then(|| file("terms.txt")),
        concepts: (choice.terms == 2).then(|| file("terms.txt")),
    };
    Arc::new(FeatureExtractor::new(&spec).unwrap())
}

/// The features of rows by the plain road. A row of tokens is a row of text cut at blanks.
fn plain(extractor: &FeatureExtractor, rows: &[String], tokens: bool) -> Vec<Vec<String>> {
    let mut scratch = Scratch::default();
    rows.iter()
        .map(|row| {
            let mut features = Vec::new();
            let each = |feature: &str| features.push(feature.to_owned());
            if tokens {
                extractor.for_each_feature_of_tokens(row.split(' '), &mut scratch, each);
            } else {
                extractor.for_each_feature(row, &mut scratch, each).unwrap();
            }
            features
        })
        .collect()
}

/// Holds both users of the fast road to the plain one, with text rows or token rows by `tokens`.
fn check(choice: &Choice, rows: &[String], limits: MemoLimits, tokens: impl Fn(usize) -> bool) {
    let files = Files::new();
    let extractor = extractor(choice, &files);
    let as_text = plain(&extractor, rows, false);
    let as_tokens = plain(&extractor, rows, true);
    let expected: Vec<&Vec<String>> = (0..rows.len())
        .map(|row| {
            if tokens(row) {
                &as_tokens[row]
            } else {
                &as_text[row]
            }
        })
        .collect();

    let mut builder = DictionaryBuilder::with_limits(&extractor, limits);
    let mut local = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let mut out = vec![7];
        if tokens(index) {
            builder.push_tokens_row(row.split(' '), &mut out).unwrap();
        } else {
            builder.push_row(row, &mut out).unwrap();
        }
        assert_eq!(out.remove(0), 7, "rows are appended");
        local.push(out);
    }
    assert_eq!(builder.rows(), rows.len() as u64);
    let dictionary = builder.finish();
    for (row, expected) in local.iter().zip(&expected) {
        let terms: Vec<&str> = row
            .iter()
            .map(|&index| dictionary.entry(index).term)
            .collect();
        assert_eq!(&terms, *expected, "{choice:?}");
    }
    for entry in dictionary.iter() {
        let times =
            |row: &&Vec<String>| row.iter().filter(|term| *term == entry.term).count() as u64;
        assert_eq!(entry.tokens, expected.iter().map(times).sum::<u64>());
        assert_eq!(
            entry.documents,
            expected.iter().filter(|row| times(row) > 0).count() as u64
        );
        assert!(entry.tokens > 0, "a term that no row holds: {}", entry.term);
    }

    // Many rows in one call.
    let mut builder = DictionaryBuilder::with_limits(&extractor, limits);
    let (mut out, mut row_ends) = (vec![7], Vec::new());
    for rows in rows.chunks(4) {
        let rows = rows.iter().map(|row| Some(row.as_str()));
        builder
            .push_rows(rows.chain([None]), &mut out, &mut row_ends)
            .unwrap();
    }
    let together = builder.finish();
    let mut start = 1;
    let mut ends = row_ends.iter();
    for rows in as_text.chunks(4) {
        for expected in rows.iter().chain([&Vec::new()]) {
            let end = *ends.next().unwrap();
            let found = out[start..end]
                .iter()
                .map(|&index| together.entry(index).term);
            assert!(found.eq(expected.iter()), "{choice:?}");
            start = end;
        }
    }
    assert_eq!((ends.next(), start), (None, out.len()));

    // Every second term is out of the vocabulary.
    let known = dictionary.iter_sorted().step_by(2).map(|entry| entry.term);
    let vocabulary = Arc::new(Vocabulary::from_terms(known).unwrap());
    let mut encoder = IdEncoder::with_limits(&extractor, &vocabulary, limits);
    let remap = vocabulary.remap(&dictionary);
    for (index, row) in rows.iter().enumerate() {
        let mut out = Vec::new();
        if tokens(index) {
            encoder.push_tokens_row(row.split(' '), &mut out).unwrap();
        } else {
            encoder.push_row(row, &mut out).unwrap();
        }
        let expected: Vec<u32> = local[index]
            .iter()
            .map(|&local| remap[local as usize])
            .collect();
        assert_eq!(out, expected);
    }
}

const TINY: MemoLimits = MemoLimits {
    short_bytes: 64,
    piece_bytes: 256,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_fast_road_gives_the_features_of_the_plain_one(choice in choice(), rows in proptest::collection::vec(text(), 0..6)) {
        check(&choice, &rows, MemoLimits::default(), |_| false);
    }

    #[test]
    fn forgetting_changes_nothing(choice in choice(), rows in proptest::collection::vec(text(), 0..8)) {
        check(&choice, &rows, TINY, |_| false);
    }

    #[test]
    fn rows_of_tokens_and_of_text_mix(choice in choice(), rows in proptest::collection::vec(text(), 0..6)) {
        check(&choice, &rows, MemoLimits::default(), |row| row % 2 == 0);
    }

    #[test]
    fn a_merged_vocabulary_is_that_of_all_rows(
        rows in proptest::collection::vec(text(), 0..12),
        cuts in proptest::collection::vec(0..12_usize, 0..4),
        size in proptest::option::of(0..12_u32),
        min_count in 0..4_u64,
    ) {
        let extractor = Arc::new(FeatureExtractor::new(&FeatureSpec::default()).unwrap());
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(rows.len())).collect();
        cuts.extend([0, rows.len()]);
        cuts.sort_unstable();
        let dictionaries: Vec<_> = cuts.windows(2).map(|range| {
            let mut builder = DictionaryBuilder::new(&extractor);
            for row in &rows[range[0]..range[1]] {
                builder.push_row(row, &mut Vec::new()).unwrap();
            }
            builder.finish()
        }).collect();
        let merged = crate::Dictionary::merge::<TextError>(&dictionaries);
        let vocabulary = Vocabulary::from_counts(merged, &VocabularyRule { size, min_count }).unwrap();

        let mut expected: std::collections::BTreeMap<String, (u64, u64)> = Default::default();
        for row in plain(&extractor, &rows, false) {
            let distinct: std::collections::BTreeSet<&String> = row.iter().collect();
            for term in &row {
                expected.entry(term.clone()).or_default().0 += 1;
            }
            for term in distinct {
                expected.entry(term.clone()).or_default().1 += 1;
            }
        }
        let mut expected: Vec<_> = expected.into_iter().filter(|(_, counts)| counts.0 >= min_count).collect();
        expected.sort_by(|left, right| right.1.0.cmp(&left.1.0).then(left.0.cmp(&right.0)));
        expected.truncate(size.map_or(usize::MAX, |size| size as usize));
        let found: Vec<_> = (0..vocabulary.len() as u32)
            .map(|id| (vocabulary.term(id).to_owned(), (vocabulary.tokens(id), vocabulary.documents(id))))
            .collect();
        prop_assert_eq!(&found, &expected);
        for (id, (term, _)) in expected.iter().enumerate() {
            prop_assert_eq!(vocabulary.lookup(term), Some(id as u32));
        }

        // A given set of terms gets the same ids and counts from the stream.
        let given = Vocabulary::from_terms(expected.iter().map(|(term, _)| term.as_str())).unwrap();
        let merged = crate::Dictionary::merge::<TextError>(&dictionaries);
        let counted = given.with_counts(merged).unwrap();
        for id in 0..vocabulary.len() as u32 {
            prop_assert_eq!(counted.term(id), vocabulary.term(id));
            prop_assert_eq!(counted.tokens(id), vocabulary.tokens(id));
            prop_assert_eq!(counted.documents(id), vocabulary.documents(id));
        }
    }
}

#[test]
fn rows_longer_than_a_block_are_cut_without_a_seam() {
    let words = "Don't stop; naïve ΟΔΟΣ 東京 3,000 running_dogs ".repeat(6000);
    let solid = "é\u{301}xyz".repeat(30_000);
    for tokenizer in [
        Tokenizer::Words,
        Tokenizer::Whitespace,
        Tokenizer::QuXie,
        Tokenizer::Icu,
    ] {
        let choice = Choice {
            tokenizer,
            stop: 1,
            min_length: None,
            drop_numeric: false,
            lemma: 0,
            terms: 0,
        };
        let files = Files::new();
        let extractor = extractor(&choice, &files);
        for row in [&words, &solid] {
            let expected = plain(&extractor, std::slice::from_ref(row), false).remove(0);
            let mut builder = DictionaryBuilder::new(&extractor);
            let mut out = Vec::new();
            builder.push_row(row, &mut out).unwrap();
            let dictionary = builder.finish();
            let found: Vec<&str> = out
                .iter()
                .map(|&index| dictionary.entry(index).term)
                .collect();
            assert!(
                found == expected,
                "{choice:?}: {} and {} features",
                found.len(),
                expected.len()
            );
        }
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_marked_and_a_dropped_one_is_not() {
    let spec = FeatureSpec {
        stop_words: Some(StopWords::English),
        ..FeatureSpec::default()
    };
    let extractor = Arc::new(FeatureExtractor::new(&spec).unwrap());
    let counts = vec![Ok::<_, TextError>(TermCount {
        term: "dog".into(),
        tokens: 1,
        documents: 1,
    })];
    let vocabulary = Arc::new(Vocabulary::from_counts(counts, &VocabularyRule::default()).unwrap());
    let mut out = Vec::new();
    IdEncoder::new(&extractor, &vocabulary)
        .push_row("The Dog and a cat", &mut out)
        .unwrap();
    assert_eq!(out, [0, OUT_OF_VOCABULARY]);
}
