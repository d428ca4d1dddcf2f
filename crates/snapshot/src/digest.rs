//! Content digests that do not depend on files, slicing or threads.
//!
//! A tensor's bytes are cut into slices of 2^20 elements (2^20 bytes for types below a byte); its digest is
//! the BLAKE3 hash of the BLAKE3 hashes of its slices. A snapshot's digest is the BLAKE3 hash over its
//! tensors in the order of their names: name, type, shape and digest. So the same weights in one file or in
//! ten have the same digest.

use crate::dtype::DType;
use serde::{Deserialize, Serialize};

/// Elements of a slice.
pub const SLICE_ELEMENTS: u64 = 1 << 20;

/// A BLAKE3 hash, written in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        blake3::Hash::from_hex(&text)
            .map(|hash| Self(*hash.as_bytes()))
            .map_err(serde::de::Error::custom)
    }
}

/// What a hasher has come to.
pub(crate) fn finish(hasher: &blake3::Hasher) -> Digest {
    Digest(*hasher.finalize().as_bytes())
}

/// Hash of some bytes.
pub(crate) fn of(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// Digest of a tensor from those of its slices, in order.
pub(crate) fn of_slices(slices: &[Digest]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for slice in slices {
        hasher.update(&slice.0);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// Digest of a snapshot from those of its tensors.
pub(crate) fn of_tensors<'a>(
    tensors: impl Iterator<Item = (&'a str, DType, &'a [u64], Digest)>,
) -> Digest {
    let mut sorted: Vec<_> = tensors.collect();
    sorted.sort_by_key(|(name, ..)| *name);
    let mut hasher = blake3::Hasher::new();
    for (name, dtype, shape, digest) in sorted {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(dtype.name().as_bytes());
        hasher.update(&(shape.len() as u64).to_le_bytes());
        shape.iter().for_each(|length| {
            hasher.update(&length.to_le_bytes());
        });
        hasher.update(&digest.0);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// Bytes of one slice of a tensor of this type.
pub(crate) fn slice_bytes(dtype: DType) -> u64 {
    if dtype.bits() < 8 {
        SLICE_ELEMENTS
    } else {
        SLICE_ELEMENTS * (dtype.bits() / 8)
    }
}

/// Digest of a whole tensor that is in memory.
pub(crate) fn of_tensor(bytes: &[u8], dtype: DType) -> Digest {
    let slice = usize::try_from(slice_bytes(dtype)).unwrap_or(usize::MAX);
    of_slices(&bytes.chunks(slice).map(of).collect::<Vec<_>>())
}
