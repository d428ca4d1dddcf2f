//! Any bytes as a safetensors file: an error, or tensors that lie side by side inside the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pmill_fuzz::Memory;
use pmill_snapshot::read_header;

fuzz_target!(|bytes: &[u8]| {
    let source = Memory(vec![("x".to_owned(), bytes.to_vec())]);
    let Ok(header) = read_header(&source, "x") else {
        return;
    };
    let data: u64 = header.tensors.iter().map(|tensor| tensor.bytes()).sum();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    assert_eq!(8 + header_bytes + data, bytes.len() as u64);
    let mut spans: Vec<_> = header
        .tensors
        .iter()
        .map(|tensor| (tensor.start, tensor.end))
        .collect();
    spans.sort_unstable();
    assert!(spans.windows(2).all(|pair| pair[0].1 == pair[1].0));
});
