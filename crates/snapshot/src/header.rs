//! The safetensors header: 8 bytes of length, a JSON object, then the data of all tensors without holes.
//!
//! In: the first bytes of a file and its length. Out: the tensors in the order of their data. Everything
//! the header claims is checked against the file's length before anything is allocated for it.

use crate::dtype::DType;
use crate::error::{HeaderFault, SnapshotError};
use crate::source::{RangeSource, join};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, HashSet};

/// The longest header that is read: the limit of the reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One tensor as the header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape; empty for a scalar.
    pub shape: Vec<u64>,
    /// First byte, from the start of the data.
    pub start: u64,
    /// Byte after the last, from the start of the data.
    pub end: u64,
}

impl TensorInfo {
    /// Number of elements: 1 for a scalar, 0 when a dimension is 0.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Number of bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// A checked header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The tensors in the order of their data.
    pub tensors: Vec<TensorInfo>,
    /// The free-form `__metadata__` of the file.
    pub metadata: BTreeMap<String, String>,
    /// Where the data starts in the file.
    pub data_start: u64,
    /// The bytes of the JSON object with its padding, as read.
    pub(crate) raw: Vec<u8>,
}

/// Bytes needed for a type and shape; `None` when it is more than 2^64 bits or not whole bytes.
#[must_use]
pub fn byte_length(dtype: DType, shape: &[u64]) -> Option<u64> {
    // A dimension of 0 makes the tensor empty, whatever the others say.
    if shape.contains(&0) {
        return Some(0);
    }
    let elements = shape
        .iter()
        .try_fold(1_u64, |product, &length| product.checked_mul(length))?;
    let bits = elements.checked_mul(dtype.bits())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut raw = RawHeader::default();
                let mut seen_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if std::mem::replace(&mut seen_metadata, true) {
                            return Err(A::Error::custom("`__metadata__` appears twice"));
                        }
                        raw.metadata = map
                            .next_value::<Option<BTreeMap<String, String>>>()?
                            .unwrap_or_default();
                    } else {
                        let tensor = map.next_value::<RawTensor>().map_err(|error| {
                            A::Error::custom(format!("tensor `{name}`: {error}"))
                        })?;
                        raw.tensors.push((name, tensor));
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The length of the JSON object, from the first 8 bytes of a file of `file_bytes` bytes.
///
/// # Errors
/// [`HeaderFault::TooShort`] and [`HeaderFault::TooLong`].
pub fn header_length(first: &[u8], file_bytes: u64) -> Result<u64, HeaderFault> {
    let (true, Some(first)) = (file_bytes >= 8, first.first_chunk::<8>()) else {
        return Err(HeaderFault::TooShort {
            size_bytes: file_bytes,
        });
    };
    let header_bytes = u64::from_le_bytes(*first);
    let limit_bytes = MAX_HEADER_BYTES.min(file_bytes - 8);
    if header_bytes > limit_bytes {
        return Err(HeaderFault::TooLong {
            header_bytes,
            limit_bytes,
        });
    }
    Ok(header_bytes)
}

/// Parses and checks the JSON object of a file of `file_bytes` bytes.
///
/// # Errors
/// The first [`HeaderFault`] found, tensors in the order of their data.
pub fn parse_header(json: &[u8], file_bytes: u64) -> Result<Header, HeaderFault> {
    let as_json = |message: String| HeaderFault::Json { message };
    if json.first() != Some(&b'{') {
        return Err(as_json("it does not start with `{`".to_owned()));
    }
    let text = std::str::from_utf8(json).map_err(|error| as_json(error.to_string()))?;
    let raw: RawHeader = serde_json::from_str(text).map_err(|error| as_json(error.to_string()))?;

    let mut names = HashSet::with_capacity(raw.tensors.len());
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, tensor) in &raw.tensors {
        if !names.insert(name.as_str()) {
            return Err(HeaderFault::Duplicate {
                tensor: name.clone(),
            });
        }
        let dtype = DType::ALL
            .into_iter()
            .find(|dtype| dtype.name() == tensor.dtype)
            .ok_or_else(|| HeaderFault::UnknownType {
                tensor: name.clone(),
                dtype: tensor.dtype.clone(),
            })?;
        let (start, end) = tensor.data_offsets;
        tensors.push(TensorInfo {
            name: name.clone(),
            dtype,
            shape: tensor.shape.clone(),
            start,
            end,
        });
    }
    tensors.sort_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));

    let mut expected = 0;
    for tensor in &tensors {
        if tensor.start != expected {
            return Err(HeaderFault::Offsets {
                tensor: tensor.name.clone(),
                start: tensor.start,
                expected,
            });
        }
        let needed = byte_length(tensor.dtype, &tensor.shape);
        if tensor.end < tensor.start || needed != Some(tensor.end - tensor.start) {
            return Err(HeaderFault::Size {
                tensor: tensor.name.clone(),
                found: tensor.end.saturating_sub(tensor.start),
                needed: needed.map_or_else(
                    || "more than 2^64 or no whole number".to_owned(),
                    |n| n.to_string(),
                ),
            });
        }
        expected = tensor.end;
    }
    let data_start = 8 + json.len() as u64;
    let end = data_start.saturating_add(expected);
    if end != file_bytes {
        return Err(HeaderFault::Length {
            expected: end,
            found: file_bytes,
        });
    }
    Ok(Header {
        tensors,
        metadata: raw.metadata,
        data_start,
        raw: json.to_vec(),
    })
}

/// Reads and checks the header of one file of a source.
///
/// # Errors
/// [`SnapshotError::Read`] and [`SnapshotError::Header`], both naming the file.
pub fn read_header(source: &dyn RangeSource, name: &str) -> Result<Header, SnapshotError> {
    let path = || join(&source.location(), name);
    let read = |error| SnapshotError::read(path(), error);
    let invalid = |fault| SnapshotError::Header {
        path: path(),
        fault,
    };
    let size = source.stat(name).map_err(read)?.size;
    let mut first = [0; 8];
    if size >= 8 {
        source.read_at(name, 0, &mut first).map_err(read)?;
    }
    let length = header_length(&first, size).map_err(invalid)?;
    let mut json = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    source.read_at(name, 8, &mut json).map_err(read)?;
    parse_header(&json, size).map_err(invalid)
}

/// Writes a header: the length, the JSON object, and spaces until the data is aligned to 8 bytes.
///
/// The tensors keep their order; their offsets are taken as they are.
#[must_use]
pub fn write_header(tensors: &[TensorInfo], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut object = String::from("{");
    let mut first = true;
    let mut entry = |key: &str, value: String| {
        if !std::mem::take(&mut first) {
            object.push(',');
        }
        object.push_str(&serde_json::Value::from(key).to_string());
        object.push(':');
        object.push_str(&value);
    };
    if !metadata.is_empty() {
        let metadata: serde_json::Map<_, _> = metadata
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().into()))
            .collect();
        entry(
            "__metadata__",
            serde_json::Value::Object(metadata).to_string(),
        );
    }
    for tensor in tensors {
        let shape = serde_json::Value::from(tensor.shape.clone());
        let value = format!(
            r#"{{"dtype":"{}","shape":{shape},"data_offsets":[{},{}]}}"#,
            tensor.dtype, tensor.start, tensor.end
        );
        entry(&tensor.name, value);
    }
    object.push('}');
    while object.len() % 8 != 0 {
        object.push(' ');
    }
    let mut bytes = (object.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(object.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, data: u64) -> Result<Header, HeaderFault> {
        parse_header(json.as_bytes(), 8 + json.len() as u64 + data)
    }

    #[test]
    fn a_written_header_reads_back() {
        let tensors = vec![
            TensorInfo {
                name: "a\"\u{e9}".into(),
                dtype: DType::BF16,
                shape: vec![3, 5],
                start: 0,
                end: 30,
            },
            TensorInfo {
                name: "empty".into(),
                dtype: DType::F32,
                shape: vec![0, 7],
                start: 30,
                end: 30,
            },
            TensorInfo {
                name: "scalar".into(),
                dtype: DType::I64,
                shape: vec![],
                start: 30,
                end: 38,
            },
        ];
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = write_header(&tensors, &metadata);
        assert_eq!(bytes.len() % 8, 0);
        let header = parse_header(&bytes[8..], bytes.len() as u64 + 38).unwrap();
        assert_eq!((header.tensors, header.metadata), (tensors, metadata));
        assert_eq!(header.data_start, bytes.len() as u64);
    }

    #[test]
    fn each_lie_has_its_own_fault() {
        let ok = r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert!(parse(ok, 8).is_ok());
        assert!(matches!(parse(ok, 7), Err(HeaderFault::Length { .. })));
        assert!(matches!(parse(ok, 9), Err(HeaderFault::Length { .. })));
        let twice = r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"t":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
        assert!(matches!(
            parse(twice, 16),
            Err(HeaderFault::Duplicate { .. })
        ));
        let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        assert!(matches!(
            parse(overlap, 12),
            Err(HeaderFault::Offsets { .. })
        ));
        let hole = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        assert!(matches!(parse(hole, 12), Err(HeaderFault::Offsets { .. })));
        let backwards = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,-8]}}"#;
        assert!(matches!(parse(backwards, 8), Err(HeaderFault::Json { .. })));
        let product =
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#;
        assert!(matches!(parse(product, 8), Err(HeaderFault::Size { .. })));
        let unknown = r#"{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}"#;
        assert!(matches!(
            parse(unknown, 8),
            Err(HeaderFault::UnknownType { .. })
        ));
        let odd = r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#;
        assert!(matches!(parse(odd, 1), Err(HeaderFault::Size { .. })));
        assert!(matches!(parse(" {}", 0), Err(HeaderFault::Json { .. })));
        assert!(matches!(
            header_length(&[0; 4], 4),
            Err(HeaderFault::TooShort { .. })
        ));
        assert!(matches!(
            header_length(&u64::MAX.to_le_bytes(), 1 << 40),
            Err(HeaderFault::TooLong { .. })
        ));
        let err = header_length(&200_000_000_u64.to_le_bytes(), 1 << 40);
        assert_eq!(
            err,
            Err(HeaderFault::TooLong {
                header_bytes: 200_000_000,
                limit_bytes: MAX_HEADER_BYTES
            })
        );
    }
}
