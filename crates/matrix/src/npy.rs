//! NumPy's `.npy` format, version 1.0: a header of text, then the numbers, little-endian.
//!
//! Source: NumPy Enhancement Proposal 1 and `numpy.lib.format`.

/// Bytes of every header written here: a multiple of 64, so that a mapped array is aligned.
pub const HEADER_BYTES: usize = 128;

/// The header of a C-ordered array of type `descr` (`<i4`, `<f8`, …).
///
/// ```
/// let header = pmill_matrix::npy::header("<f8", &[3, 2]);
/// assert_eq!(header.len(), 128);
/// assert!(header.starts_with(b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (3, 2)"));
/// ```
#[must_use]
pub fn header(descr: &str, shape: &[u64]) -> [u8; HEADER_BYTES] {
    let sizes: Vec<String> = shape.iter().map(u64::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    let text = format!(
        "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}",
        sizes.join(", ")
    );
    let mut bytes = [b' '; HEADER_BYTES];
    bytes[..10].copy_from_slice(b"\x93NUMPY\x01\x00v\x00");
    bytes[10..10 + text.len()].copy_from_slice(text.as_bytes());
    bytes[HEADER_BYTES - 1] = b'\n';
    bytes
}
