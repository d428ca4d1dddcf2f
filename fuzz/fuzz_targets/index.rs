//! Any bytes as an index over two good shards: an error, or a snapshot of just their three tensors.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pmill_fuzz::Memory;
use pmill_snapshot::{Snapshot, SnapshotPath};
use std::sync::Arc;

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let first = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let second = r#"{"c":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let source = Memory(vec![
        ("m-1.safetensors".to_owned(), file(first, 8)),
        ("m-2.safetensors".to_owned(), file(second, 4)),
        ("model.safetensors.index.json".to_owned(), bytes.to_vec()),
    ]);
    if let Ok(snapshot) = Snapshot::open(&SnapshotPath::new(Arc::new(source), None)) {
        assert!((1..=3).contains(&snapshot.tensors().count()));
    }
});
