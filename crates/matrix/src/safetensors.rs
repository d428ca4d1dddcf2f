//! The safetensors layout: eight bytes with the length of a JSON header, the header, the tensors.
//!
//! The library of that name would do, but its dependency turns on features that the whole engine is
//! then built with once more; this is all of the format that vectors need.

use std::collections::HashMap;

/// What the JSON header says of one tensor.
#[derive(serde::Serialize, serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// Tensors (name, type, shape, bytes), in this order, as one file.
pub(crate) fn encode(tensors: &[(&str, &str, Vec<usize>, &[u8])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert(
        "__metadata__".to_owned(),
        serde_json::json!({"format": "pmill-vectors/1"}),
    );
    let mut end = 0;
    for (name, dtype, shape, bytes) in tensors {
        let entry = serde_json::json!({
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [end, end + bytes.len()],
        });
        header.insert((*name).to_owned(), entry);
        end += bytes.len();
    }
    let mut text = serde_json::Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(text.as_bytes());
    for (.., bytes) in tensors {
        file.extend_from_slice(bytes);
    }
    file
}

/// The tensors of a file.
pub(crate) struct Tensors<'a> {
    entries: HashMap<String, Entry>,
    data: &'a [u8],
}

impl<'a> Tensors<'a> {
    /// `None` when the bytes are no such file.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let header: HashMap<String, serde_json::Value> =
            serde_json::from_slice(rest.get(..length)?).ok()?;
        let entries = header
            .into_iter()
            .filter(|(name, _)| name != "__metadata__")
            .map(|(name, entry)| Some((name, serde_json::from_value(entry).ok()?)))
            .collect::<Option<_>>()?;
        Some(Self {
            entries,
            data: rest.get(length..)?,
        })
    }

    /// Shape and bytes of a tensor of this type (`F64`, `F32`, `U8`) whose shape and bytes agree.
    pub(crate) fn get(&self, name: &str, dtype: &str) -> Option<(&[usize], &'a [u8])> {
        let entry = self
            .entries
            .get(name)
            .filter(|entry| entry.dtype == dtype)?;
        let [from, to] = entry.data_offsets;
        let bytes = self.data.get(from..to)?;
        let size: usize = match dtype {
            "F64" => 8,
            "F32" => 4,
            "U8" => 1,
            _ => return None,
        };
        let numbers = entry
            .shape
            .iter()
            .try_fold(size, |product, side| product.checked_mul(*side))?;
        (numbers == bytes.len()).then_some((&entry.shape[..], bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_or_lying_file_gives_nothing() {
        let file = encode(&[
            ("a", "F32", vec![1], &[0, 0, 128, 63]),
            ("b", "U8", vec![2], b"xy"),
        ]);
        let read = Tensors::decode(&file).unwrap();
        assert_eq!(read.get("a", "F32"), Some((&[1][..], &[0, 0, 128, 63][..])));
        assert_eq!(read.get("a", "F64"), None);
        for length in 0..file.len() {
            let whole = Tensors::decode(&file[..length])
                .and_then(|t| t.get("b", "U8").map(|b| b.1.to_vec()));
            assert_eq!(whole, None, "{length}");
        }
        let lying = encode(&[("a", "F32", vec![9], &[0; 4])]);
        assert_eq!(Tensors::decode(&lying).unwrap().get("a", "F32"), None);
    }
}
