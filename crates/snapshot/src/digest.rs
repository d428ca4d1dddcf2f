//! Content digests that do not depend on files, slicing or threads.
//!
//! A tensor's bytes are cut into slices of 2^20 elements (2^20 bytes for types below a byte); its digest is
//! the hash of the hashes of its slices. A snapshot's digest is the hash over its tensors in the order of
//! their names: name, type, shape and digest. So the same weights in one file or in ten have the same digest.
//!
//! Two hashes: XXH3 finds what happened by accident and costs a small part of the reading; BLAKE3 also stands
//! against somebody who wants another snapshot to pass for this one. The hash of a hash takes its bytes in
//! the order in which they are written in hexadecimal.

use crate::dtype::DType;
use serde::{Deserialize, Serialize};
use twox_hash::xxhash3_128;

/// Elements of a slice.
pub const SLICE_ELEMENTS: u64 = 1 << 20;

/// How content is digested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Algorithm {
    /// XXH3 of 128 bits (`xxhsum -H2`): against accidents.
    #[default]
    #[serde(rename = "xxh3-128", alias = "xxh3")]
    Xxh3,
    /// BLAKE3 (`b3sum`): against adversaries too, at 5 to 10 times the cost.
    #[serde(rename = "blake3")]
    Blake3,
}

impl std::str::FromStr for Algorithm {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "xxh3-128" | "xxh3" => Ok(Self::Xxh3),
            "blake3" => Ok(Self::Blake3),
            _ => Err(format!("`{name}`: expected xxh3-128 or blake3")),
        }
    }
}

impl Algorithm {
    /// The name before a digest's colon.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xxh3 => "xxh3-128",
            Self::Blake3 => "blake3",
        }
    }
}

/// A hash with its algorithm's name, such as `xxh3-128:99aa06d3014798d86001c324468d497f` (of no bytes).
///
/// 64 hexadecimal digits without a name are read as BLAKE3, as they were written before the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Digest {
    /// XXH3 of 128 bits.
    Xxh3(u128),
    /// BLAKE3.
    Blake3([u8; 32]),
}

impl Digest {
    /// What it was made with.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Xxh3(_) => Algorithm::Xxh3,
            Self::Blake3(_) => Algorithm::Blake3,
        }
    }

    /// The digits alone.
    #[must_use]
    pub fn hex(&self) -> String {
        match self {
            Self::Xxh3(hash) => format!("{hash:032x}"),
            Self::Blake3(hash) => blake3::Hash::from_bytes(*hash).to_hex().to_string(),
        }
    }

    /// What stands for a digest that is still to come.
    pub(crate) fn zero(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Xxh3 => Self::Xxh3(0),
            Algorithm::Blake3 => Self::Blake3([0; 32]),
        }
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl std::str::FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a digest: expected xxh3-128: and 32 hex digits, or blake3: and 64 hex digits"
            )
        };
        let (name, digits) = text.split_once(':').unwrap_or(("blake3", text));
        // `from_str_radix` would take a sign.
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        match name {
            "xxh3-128" if digits.len() == 32 => u128::from_str_radix(digits, 16)
                .map(Self::Xxh3)
                .map_err(|_| wrong()),
            "blake3" => blake3::Hash::from_hex(digits)
                .map(|hash| Self::Blake3(*hash.as_bytes()))
                .map_err(|_| wrong()),
            _ => Err(wrong()),
        }
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
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A hash that grows.
pub(crate) enum Hasher {
    Xxh3(Box<xxhash3_128::Hasher>),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Xxh3 => Self::Xxh3(Box::default()),
            Algorithm::Blake3 => Self::Blake3(Box::default()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Xxh3(hasher) => hasher.write(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    fn update_digest(&mut self, digest: &Digest) {
        match digest {
            Digest::Xxh3(hash) => self.update(&hash.to_be_bytes()),
            Digest::Blake3(hash) => self.update(hash),
        }
    }

    /// Gives the digest and begins anew.
    pub fn finish(&mut self) -> Digest {
        match self {
            Self::Xxh3(hasher) => {
                let digest = Digest::Xxh3(hasher.finish_128());
                **hasher = xxhash3_128::Hasher::default();
                digest
            }
            Self::Blake3(hasher) => {
                let digest = Digest::Blake3(*hasher.finalize().as_bytes());
                hasher.reset();
                digest
            }
        }
    }
}

/// Hash of some bytes.
pub(crate) fn of(bytes: &[u8], algorithm: Algorithm) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

/// Digest of a tensor from those of its slices, in order.
pub(crate) fn of_slices(slices: &[Digest], algorithm: Algorithm) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    for slice in slices {
        hasher.update_digest(slice);
    }
    hasher.finish()
}

/// Digest of a snapshot from those of its tensors.
pub(crate) fn of_tensors<'a>(
    tensors: impl Iterator<Item = (&'a str, DType, &'a [u64], Digest)>,
    algorithm: Algorithm,
) -> Digest {
    let mut sorted: Vec<_> = tensors.collect();
    sorted.sort_by_key(|(name, ..)| *name);
    let mut hasher = Hasher::new(algorithm);
    for (name, dtype, shape, digest) in sorted {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(dtype.name().as_bytes());
        hasher.update(&(shape.len() as u64).to_le_bytes());
        shape
            .iter()
            .for_each(|length| hasher.update(&length.to_le_bytes()));
        hasher.update_digest(&digest);
    }
    hasher.finish()
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
pub(crate) fn of_tensor(bytes: &[u8], dtype: DType, algorithm: Algorithm) -> Digest {
    let slice = usize::try_from(slice_bytes(dtype)).unwrap_or(usize::MAX);
    let slices: Vec<Digest> = bytes
        .chunks(slice)
        .map(|slice| of(slice, algorithm))
        .collect();
    of_slices(&slices, algorithm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_written_with_their_name_and_read_back() {
        // As xxhsum -H2 and b3sum print them for no bytes.
        let empty = [
            (Algorithm::Xxh3, "xxh3-128:99aa06d3014798d86001c324468d497f"),
            (
                Algorithm::Blake3,
                "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
            ),
        ];
        for (algorithm, text) in empty {
            let digest = of(&[], algorithm);
            assert_eq!(digest.to_string(), text);
            assert_eq!(text.parse(), Ok(digest));
            assert_eq!(Hasher::new(algorithm).finish(), digest);
        }
    }

    #[test]
    fn digits_alone_are_blake3_as_they_were_before_the_names() {
        let digest: Digest = "0b".repeat(32).parse().unwrap();
        assert_eq!(digest, Digest::Blake3([0x0b; 32]));
        let (short, sign) = ("0b".repeat(16), format!("xxh3-128:+{}", "1".repeat(31)));
        for wrong in [
            &short,
            &sign,
            &format!("blake3:{short}"),
            &format!("md5:{short}"),
        ] {
            let error = wrong.parse::<Digest>().unwrap_err();
            assert!(error.contains("expected xxh3-128:"), "{error}");
        }
    }

    #[test]
    fn pieces_and_a_second_use_change_nothing() {
        let bytes: Vec<u8> = (0..3_000_u32)
            .map(|number| (number * 7 % 251) as u8)
            .collect();
        for algorithm in [Algorithm::Xxh3, Algorithm::Blake3] {
            let mut hasher = Hasher::new(algorithm);
            for _ in 0..2 {
                bytes.chunks(313).for_each(|piece| hasher.update(piece));
                assert_eq!(hasher.finish(), of(&bytes, algorithm));
            }
        }
    }
}
