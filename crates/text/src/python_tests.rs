//! The `whitespace` and `qu-xie` rules against Python itself, where there is a `python3`.
//!
//! With `PMILL_TEXT_LINES=FILE` the lines of that file are compared too (real captions, say), and the
//! fast road is held to the plain one on them for every tokenizer.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::{
    DictionaryBuilder, FeatureExtractor, FeatureSpec, Lemma, Scratch, Tokenizer,
    english_stop_words, is_numeric,
};

/// Runs Python with `input` on its stdin; `None` without Python.
fn python(arguments: &[&str], input: String) -> Option<String> {
    let started = Command::new("python3")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        eprintln!("skipped: no python3");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let mut output = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut output)
        .unwrap();
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    Some(output)
}

fn oracle(arguments: &[&str], lines: &[String]) -> Option<Vec<Vec<String>>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/python_oracle.py");
    let input: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
    let output = python(&[&[script], arguments].concat(), input)?;
    let rows: Vec<Vec<String>> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), lines.len());
    Some(rows)
}

/// Whether `python3` has the Unicode version of the tables.
fn same_unicode() -> bool {
    let script = "import unicodedata; print(unicodedata.unidata_version)";
    match python(&["-c", script], String::new()) {
        Some(version) if version.trim() == crate::unicode_tables::UNICODE_VERSION => true,
        Some(version) => {
            eprintln!("skipped: this python3 has Unicode {}", version.trim());
            false
        }
        None => false,
    }
}

/// Each character of Unicode (without private and unassigned planes) alone, within words, and around a capital sigma, whose small form
/// depends on its neighbours.
fn every_character() -> Vec<String> {
    let is_empty_plane = |c: char| ('\u{E100}'..'\u{F900}').contains(&c) || c >= '\u{31400}';
    let characters: Vec<char> = ('\0'..=char::MAX)
        .filter(|&c| c != '\n' && !is_empty_plane(c))
        .collect();
    let around = |c: &char| format!("{c} a{c}b {c}{c} {c}Σ bΣ{c} a{c}Σ aΣ{c}b Σ{c}Σ ");
    characters
        .chunks(24)
        .map(|group| group.iter().map(around).collect())
        .collect()
}

/// Hand-made lines, and those of `PMILL_TEXT_LINES`.
fn lines() -> Vec<String> {
    let mut lines: Vec<String> = [
        "",
        "   ",
        "Two dogs, three mice & the women's glasses_cases: 50% off!",
        "ΟΔΥΣΣΕΥΣ ΣΑΣ. ΑΣ’Α ΑΣ1 İSTANBUL DİĞER ǅ ẞ",
        "½ Ⅷ 一二 三毛 1.5 ⅔x ٣ ４２ x² ²",
        "naïve cafe\u{301}s, e\u{301}tude; शब्द ਪੰਜਾਬੀ ไทย 日本語 한국어 עִבְרִית",
        "buses axes boxes wolves ladies men geese churches quizzes ss s es ses glasses series us",
    ]
    .map(str::to_owned)
    .to_vec();
    if let Some(path) = std::env::var_os("PMILL_TEXT_LINES") {
        let text = std::fs::read_to_string(path).unwrap();
        lines.extend(text.split('\n').map(str::to_owned));
    }
    lines
}

/// Holds the plain road to Python's features (if given) and the fast road to the plain one.
fn check(spec: &FeatureSpec, lines: &[String], expected: Option<&[Vec<String>]>) {
    let extractor = Arc::new(FeatureExtractor::new(spec).unwrap());
    let mut scratch = Scratch::default();
    let mut builder = DictionaryBuilder::new(&extractor);
    let (mut out, mut row_ends) = (Vec::new(), vec![0]);
    builder
        .push_rows(
            lines.iter().map(|line| Some(line.as_str())),
            &mut out,
            &mut row_ends,
        )
        .unwrap();
    let dictionary = builder.finish();
    for (index, line) in lines.iter().enumerate() {
        let mut plain = Vec::new();
        extractor
            .for_each_feature(line, &mut scratch, |feature| plain.push(feature.to_owned()))
            .unwrap();
        let fast = &out[row_ends[index]..row_ends[index + 1]];
        let fast: Vec<&str> = fast
            .iter()
            .map(|&local| dictionary.entry(local).term)
            .collect();
        assert_eq!(fast, plain, "{spec:?}, line {index}: {line:?}");
        if let Some(expected) = expected {
            assert_eq!(plain, expected[index], "{spec:?}, line {index}: {line:?}");
        }
    }
    eprintln!(
        "{}: {} lines, {} features",
        spec.tokenizer,
        lines.len(),
        out.len()
    );
}

fn qu_xie(folder: &Path, lemma: Option<&Path>, lines: &[String]) {
    let stop: String = english_stop_words().flat_map(|word| [word, "\n"]).collect();
    let stop_path = folder.join("stop.txt");
    std::fs::write(&stop_path, stop).unwrap();
    let mut arguments = vec!["qu-xie", stop_path.to_str().unwrap()];
    arguments.extend(lemma.map(|path| path.to_str().unwrap()));
    let Some(expected) = oracle(&arguments, lines) else {
        return;
    };
    let spec = FeatureSpec {
        tokenizer: Tokenizer::QuXie,
        lemma: lemma.map(|path| Lemma::WordNet(path.to_owned())),
        ..FeatureSpec::default()
    };
    check(&spec, lines, Some(&expected));
}

fn whitespace(lines: &[String]) {
    let Some(expected) = oracle(&["whitespace"], lines) else {
        return;
    };
    let spec = FeatureSpec {
        tokenizer: Tokenizer::Whitespace,
        ..FeatureSpec::default()
    };
    check(&spec, lines, Some(&expected));
}

#[test]
fn whitespace_is_pythons_split() {
    whitespace(&lines());
}

#[test]
fn qu_xie_is_the_rule_in_python() {
    let folder = tempfile::tempdir().unwrap();
    qu_xie(folder.path(), None, &lines());
    std::fs::write(
        folder.path().join("index.noun"),
        "  1 licence\nbus n 1\nax n 1\naxis n 1\nbox n 1\nwolf n 1\nlady n 1\nman n 1\nchurch n 1\nglass n 1\n\
         glasses n 1\nseries n 1\ndog n 1\nmouse n 1\nes n 1\n",
    )
    .unwrap();
    std::fs::write(
        folder.path().join("noun.exc"),
        "axes ax axis\ngeese goose\nmice mouse\nwomen woman\n",
    )
    .unwrap();
    qu_xie(folder.path(), Some(folder.path()), &lines());
    if let Some(wordnet) = crate::test_support::wordnet() {
        qu_xie(folder.path(), Some(&wordnet), &lines());
    }
}

#[test]
fn every_character_is_cut_and_lowered_as_in_python() {
    if !same_unicode() {
        return;
    }
    let lines = every_character();
    whitespace(&lines);
    qu_xie(tempfile::tempdir().unwrap().path(), None, &lines);
}

#[test]
fn numeric_characters_are_pythons() {
    if !same_unicode() {
        return;
    }
    let line: String = ('\0'..=char::MAX)
        .filter(|&c| c != '\n' && c != ' ')
        .flat_map(|c| [c, ' '])
        .collect();
    let Some(expected) = oracle(&["isnumeric"], std::slice::from_ref(&line)) else {
        return;
    };
    let found: Vec<&str> = line.split(' ').filter(|word| is_numeric(word)).collect();
    assert_eq!(found, expected[0]);
    assert_eq!(found.len(), 1872);
}

#[test]
fn the_roads_agree_on_lines_for_every_tokenizer() {
    for tokenizer in [
        Tokenizer::Words,
        Tokenizer::Icu,
        Tokenizer::QuXie,
        Tokenizer::Whitespace,
    ] {
        let spec = FeatureSpec {
            tokenizer,
            ..FeatureSpec::default()
        };
        check(&spec, &lines(), None);
    }
}
