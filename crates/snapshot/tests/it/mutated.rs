//! Damaged headers and indexes: an error each, no panic, no more memory than the file has bytes.

use crate::support::*;
use pmill_snapshot::{RangeSource, Snapshot, SnapshotPath, SourceFile, read_header};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One file in memory that remembers the longest read asked of it.
#[derive(Debug, Default)]
struct Memory {
    files: Vec<(String, Vec<u8>)>,
    longest: AtomicUsize,
}

impl Memory {
    fn get(&self, name: &str) -> io::Result<&Vec<u8>> {
        self.files
            .iter()
            .find(|(file, _)| file == name)
            .map(|(_, bytes)| bytes)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl RangeSource for Memory {
    fn location(&self) -> String {
        "memory".into()
    }

    fn list(&self) -> io::Result<Vec<SourceFile>> {
        self.files.iter().map(|(name, _)| self.stat(name)).collect()
    }

    fn stat(&self, name: &str) -> io::Result<SourceFile> {
        Ok(SourceFile {
            name: name.into(),
            size: self.get(name)?.len() as u64,
            version: "1".into(),
        })
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.longest.fetch_max(buffer.len(), Ordering::Relaxed);
        let bytes = self.get(name)?.get(offset as usize..).unwrap_or_default();
        let bytes = bytes
            .get(..buffer.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

fn file(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

const HEADER: &str = concat!(
    r#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[3,5],"data_offsets":[0,60]},"#,
    r#""b.weight":{"dtype":"BF16","shape":[7],"data_offsets":[60,74]},"c":{"dtype":"I64","shape":[],"data_offsets":[74,82]}}   "#
);
const DATA: usize = 82;

/// Damages a header in a way that must not go unseen.
fn damage(random: &mut Random) -> (Vec<u8>, String) {
    let whole = file(HEADER, DATA);
    let replace = |from: &str, to: String| {
        assert!(HEADER.contains(from));
        (
            file(&HEADER.replacen(from, &to, 1), DATA),
            format!("{from} -> {to}"),
        )
    };
    match random.below(11) {
        0 => {
            let length = random.below(whole.len());
            (whole[..length].to_vec(), format!("cut to {length}"))
        }
        1 => {
            let more = 1 + random.below(100);
            (
                [whole, vec![0; more]].concat(),
                format!("{more} more bytes"),
            )
        }
        2 => {
            let mut bytes = whole;
            let length = loop {
                let length = if random.below(2) == 0 {
                    random.next()
                } else {
                    random.next() % 400
                };
                if length != HEADER.len() as u64 {
                    break length;
                }
            };
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            (bytes, format!("length {length}"))
        }
        3 => {
            let (from, old) = [
                ("[0,60]", (0, 60)),
                ("[60,74]", (60, 74)),
                ("[74,82]", (74, 82)),
            ][random.below(3)];
            let new = loop {
                let mut number = || {
                    if random.below(4) == 0 {
                        random.next()
                    } else {
                        random.next() % 100
                    }
                };
                let new = (number(), number());
                if new != old {
                    break new;
                }
            };
            replace(from, format!("[{},{}]", new.0, new.1))
        }
        4 => {
            let from = ["\"F32\"", "\"BF16\"", "\"I64\""][random.below(3)];
            let other = [
                "\"F33\"", "\"BOOL\"", "\"F4\"", "\"U8\"", "\"\"", "null", "7", "\"f32\"",
            ][random.below(8)];
            replace(from, other.to_owned())
        }
        5 => {
            let from = ["[3,5]", "[7]"][random.below(2)];
            let (a, b) = (random.next() >> random.below(64), 1 + random.next() % 9);
            let to = [
                format!("[{a},{b},{b}]"),
                format!("[{a},{a},{a}]"),
                "[-1]".into(),
                "[1.5]".into(),
                "[]".into(),
            ][random.below(5)]
            .clone();
            if to == "[15,1,1]" || to == "[7,1,1]" {
                replace(from, "{}".into())
            } else {
                replace(from, to)
            }
        }
        6 => replace(
            "\"b.weight\"",
            ["\"a.weight\"", "\"c\"", "\"__metadata__\"", "b"][random.below(4)].to_owned(),
        ),
        7 => {
            // A structural byte becomes another printable one.
            let places: Vec<usize> = HEADER
                .bytes()
                .enumerate()
                .filter(|(_, byte)| b"{}[]:".contains(byte))
                .map(|(place, _)| place)
                .collect();
            let place = places[random.below(places.len())];
            let mut bytes = whole;
            let new = loop {
                let new = 33 + random.below(94) as u8;
                if new != bytes[8 + place] {
                    break new;
                }
            };
            bytes[8 + place] = new;
            (bytes, format!("byte {place} -> {new}"))
        }
        8 => {
            let mut bytes = whole;
            bytes[8 + random.below(HEADER.len())] = 0x80 + random.below(0x80) as u8;
            (bytes, "not UTF-8".into())
        }
        9 => {
            let depth = 1 + random.below(100_000);
            (
                file(&format!("{{\"a\":{}", "[".repeat(depth)), DATA),
                format!("{depth} deep"),
            )
        }
        _ => {
            let length = random.below(300);
            let junk: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            (junk, "junk".into())
        }
    }
}

#[test]
fn ten_thousand_damaged_files_are_an_error_each() {
    let good = Memory {
        files: vec![("x".into(), file(HEADER, DATA))],
        ..Memory::default()
    };
    assert_eq!(read_header(&good, "x").unwrap().tensors.len(), 3);
    let mut random = Random(2026);
    for _ in 0..10_000 {
        let (bytes, what) = damage(&mut random);
        let official = safetensors::SafeTensors::deserialize(&bytes).is_ok();
        let size = bytes.len();
        let source = Memory {
            files: vec![("x".into(), bytes)],
            ..Memory::default()
        };
        let error = match read_header(&source, "x") {
            Ok(header) => panic!("{what}: read as {header:?} (official reader: {official})"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("memory/x"), "{error}");
        assert!(
            source.longest.load(Ordering::Relaxed) <= size.max(8),
            "{what}: a read longer than the file"
        );
    }
}

#[test]
fn any_flipped_byte_is_judged_as_the_official_reader_judges_it() {
    let whole = file(HEADER, DATA);
    let mut random = Random(1);
    for _ in 0..10_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random.below(3) {
            let place = random.below(8 + HEADER.len());
            bytes[place] ^= 1 << random.below(8);
        }
        let official = safetensors::SafeTensors::deserialize(&bytes).map(|tensors| tensors.len());
        let source = Memory {
            files: vec![("x".into(), bytes.clone())],
            ..Memory::default()
        };
        let ours = read_header(&source, "x").map(|header| header.tensors.len());
        let text = String::from_utf8_lossy(&bytes[8..8 + HEADER.len()]);
        match (&official, &ours) {
            (Ok(a), Ok(b)) => assert_eq!(a, b, "{text}"),
            (Err(_), Err(_)) => {}
            _ => panic!("official {official:?}, ours {ours:?}: {text}"),
        }
    }
}

const INDEX: &str = concat!(
    r#"{"metadata":{"total_size":82},"weight_map":{"a.weight":"m-1.safetensors","#,
    r#""b.weight":"m-1.safetensors","c":"m-2.safetensors"}}"#
);

fn open(index: &[u8]) -> Result<Snapshot, pmill_snapshot::SnapshotError> {
    let first = r#"{"a.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b.weight":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let second = r#"{"c":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let files = vec![
        ("m-1.safetensors".to_owned(), file(first, 8)),
        ("m-2.safetensors".to_owned(), file(second, 4)),
        ("model.safetensors.index.json".to_owned(), index.to_vec()),
    ];
    Snapshot::open(&SnapshotPath::new(
        Arc::new(Memory {
            files,
            ..Memory::default()
        }),
        None,
    ))
}

#[test]
fn damaged_indexes_are_an_error_each() {
    assert_eq!(open(INDEX.as_bytes()).unwrap().tensors().count(), 3);
    let mut random = Random(77);
    for _ in 0..10_000 {
        let (text, what): (Vec<u8>, String) = match random.below(5) {
            0 => {
                let length = random.below(INDEX.len());
                (
                    INDEX.as_bytes()[..length].to_vec(),
                    format!("cut to {length}"),
                )
            }
            1 => {
                let from = ["m-1.safetensors", "m-2.safetensors"][random.below(2)];
                let to = [
                    "m-3.safetensors",
                    "../m-1.safetensors",
                    "",
                    "/etc/passwd",
                    "m-1.bin",
                    "m-\\u0031x.safetensors",
                    "..",
                ][random.below(7)];
                (
                    INDEX.replacen(from, to, 1).into_bytes(),
                    format!("{from} -> {to}"),
                )
            }
            2 => {
                let from = ["\"a.weight\"", "\"b.weight\"", "\"c\""][random.below(3)];
                let to = ["\"d\"", "\"\"", "7"][random.below(3)];
                (
                    INDEX.replacen(from, to, 1).into_bytes(),
                    format!("{from} -> {to}"),
                )
            }
            3 => {
                let map = INDEX.find("weight_map").unwrap();
                let place = map + random.below(INDEX.len() - map);
                let mut bytes = INDEX.as_bytes().to_vec();
                bytes[place] ^= 1 << random.below(8);
                (bytes, format!("flip at {place}"))
            }
            _ => {
                let entry = [
                    "\"a.weight\":\"m-1.safetensors\",",
                    "\"b.weight\":\"m-1.safetensors\",",
                    ",\"c\":\"m-2.safetensors\"",
                ][random.below(3)];
                // Without `c` the second file would be a stray one, which is no error.
                let gone = random.below(2) == 0 && !entry.contains("\"c\"");
                let to = if gone { String::new() } else { entry.repeat(2) };
                (
                    INDEX.replacen(entry, &to, 1).into_bytes(),
                    format!("{entry} gone or twice"),
                )
            }
        };
        match open(&text) {
            Err(_) => {}
            Ok(_) => panic!("{what}: {}", String::from_utf8_lossy(&text)),
        }
    }
}
