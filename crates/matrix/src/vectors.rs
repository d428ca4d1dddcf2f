//! Word vectors: made, written (word2vec text and binary, safetensors), read, and asked for
//! neighbours. They are held in memory: four bytes a number.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use rayon::prelude::*;

use crate::error::MatrixError;
use crate::formats::glove_token;
use crate::safetensors;
use crate::staging::create;

/// Terms and their vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// By id.
    pub terms: Vec<String>,
    /// Numbers of a vector.
    pub dimensions: usize,
    /// Row after row.
    pub numbers: Vec<f32>,
    /// Of the matrix that the vectors come from; may be empty.
    pub singular_values: Vec<f64>,
}

/// Name of the file in an output folder.
pub const SAFETENSORS: &str = "vectors.safetensors";

impl Vectors {
    /// Vectors from left singular vectors: column i times its singular value to the power `weight`.
    #[must_use]
    pub fn from_svd(terms: Vec<String>, svd: crate::svd::Svd, weight: f64) -> Self {
        let dimensions = svd.singular_values.len();
        let scale: Vec<f64> = svd
            .singular_values
            .iter()
            .map(|sigma| sigma.powf(weight))
            .collect();
        let numbers = svd
            .left
            .chunks(dimensions.max(1))
            .flat_map(|row| row.iter().zip(&scale).map(|(x, s)| (x * s) as f32))
            .collect();
        Self {
            terms,
            dimensions,
            numbers,
            singular_values: svd.singular_values,
        }
    }

    /// A term's vector, by id.
    #[must_use]
    pub fn vector(&self, id: usize) -> &[f32] {
        &self.numbers[id * self.dimensions..][..self.dimensions]
    }

    /// Ids by term.
    #[must_use]
    pub fn index(&self) -> HashMap<&str, usize> {
        let terms = self.terms.iter().enumerate();
        terms.map(|(id, term)| (term.as_str(), id)).collect()
    }

    /// word2vec's text: `terms dimensions`, then a line a term.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_word2vec(&self, folder: &Path, name: &str) -> Result<(), MatrixError> {
        let mut file = create(folder, name)?;
        let mut write = || -> std::io::Result<()> {
            writeln!(file, "{} {}", self.terms.len(), self.dimensions)?;
            for (id, term) in self.terms.iter().enumerate() {
                write!(file, "{}", glove_token(term))?;
                for number in self.vector(id) {
                    write!(file, " {number}")?;
                }
                writeln!(file)?;
            }
            file.flush()
        };
        write().map_err(MatrixError::io("write", &folder.join(name)))
    }

    /// word2vec's binary: the same head, then term, blank, float32 numbers (little-endian), line end.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_word2vec_binary(&self, folder: &Path, name: &str) -> Result<(), MatrixError> {
        let mut file = create(folder, name)?;
        let mut write = || -> std::io::Result<()> {
            writeln!(file, "{} {}", self.terms.len(), self.dimensions)?;
            for (id, term) in self.terms.iter().enumerate() {
                write!(file, "{} ", glove_token(term))?;
                for number in self.vector(id) {
                    file.write_all(&number.to_le_bytes())?;
                }
                writeln!(file)?;
            }
            file.flush()
        };
        write().map_err(MatrixError::io("write", &folder.join(name)))
    }

    /// safetensors: `vectors` (F32, terms x dimensions), `singular_values` (F64), and `terms` (U8):
    /// the terms as a JSON list.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_safetensors(&self, folder: &Path, name: &str) -> Result<(), MatrixError> {
        let terms =
            serde_json::to_vec(&self.terms).map_err(|error| MatrixError::Bug(error.to_string()))?;
        let numbers: Vec<u8> = self.numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let sigmas: Vec<u8> = self
            .singular_values
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        // The widest numbers first, so that every tensor begins at a multiple of its number's size.
        let mut file = create(folder, name)?;
        let bytes = safetensors::encode(&[
            (
                "singular_values",
                "F64",
                vec![self.singular_values.len()],
                &sigmas,
            ),
            (
                "vectors",
                "F32",
                vec![self.terms.len(), self.dimensions],
                &numbers,
            ),
            ("terms", "U8", vec![terms.len()], &terms),
        ]);
        file.write_all(&bytes)
            .and_then(|()| file.flush())
            .map_err(MatrixError::io("write", &folder.join(name)))
    }

    /// Reads what [`Vectors::write_safetensors`] wrote; a folder stands for the file in it.
    ///
    /// # Errors
    /// When it is not there, or not such a file.
    pub fn read(path: &Path) -> Result<Self, MatrixError> {
        let path = if path.is_dir() {
            path.join(SAFETENSORS)
        } else {
            path.to_owned()
        };
        let wrong = |reason: String| MatrixError::Content {
            path: path.display().to_string(),
            place: String::new(),
            reason,
        };
        let bytes = std::fs::read(&path).map_err(MatrixError::io("read", &path))?;
        let file = safetensors::Tensors::decode(&bytes).ok_or_else(|| {
            wrong("it is no safetensors file; give one that `pmill embed` wrote".into())
        })?;
        let tensor = |name: &str, kind: &str| {
            file.get(name, kind).ok_or_else(|| {
                wrong(format!(
                    "it has no tensor `{name}` of type {kind}; give one that `pmill embed` wrote"
                ))
            })
        };
        let (shape, vectors) = tensor("vectors", "F32")?;
        let (_, terms) = tensor("terms", "U8")?;
        let terms: Vec<String> = serde_json::from_slice(terms)
            .map_err(|error| wrong(format!("its terms are no JSON list: {error}")))?;
        let [rows, dimensions] = shape[..] else {
            return Err(wrong("`vectors` is not a matrix".into()));
        };
        if rows != terms.len() {
            return Err(wrong(format!("{} terms for {rows} vectors", terms.len())));
        }
        let (numbers, _) = vectors.as_chunks::<4>();
        let (sigmas, _) = file
            .get("singular_values", "F64")
            .map_or(&[][..], |(_, bytes)| bytes)
            .as_chunks::<8>();
        Ok(Self {
            terms,
            dimensions,
            numbers: numbers.iter().map(|x| f32::from_le_bytes(*x)).collect(),
            singular_values: sigmas.iter().map(|x| f64::from_le_bytes(*x)).collect(),
        })
    }

    /// The cosine of two vectors; `None` when one is zero.
    #[must_use]
    pub fn cosine(&self, a: usize, b: usize) -> Option<f64> {
        let dot = |x: &[f32], y: &[f32]| -> f64 {
            let products = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y));
            products.sum()
        };
        let (x, y) = (self.vector(a), self.vector(b));
        let norm = (dot(x, x) * dot(y, y)).sqrt();
        (norm > 0.0).then(|| dot(x, y) / norm)
    }

    /// The `count` terms of largest cosine with `id`, it itself left out; equal ones by id.
    #[must_use]
    pub fn neighbours(&self, id: usize, count: usize) -> Vec<(usize, f64)> {
        let mut found: Vec<(usize, f64)> = (0..self.terms.len())
            .into_par_iter()
            .filter(|other| *other != id)
            .filter_map(|other| Some((other, self.cosine(id, other)?)))
            .collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found.truncate(count);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> Vectors {
        Vectors {
            terms: ["a", "new york", "c", "zero"].map(str::to_owned).to_vec(),
            dimensions: 2,
            numbers: vec![1.0, 0.0, 1.0, 0.1, -1.0, 0.5, 0.0, 0.0],
            singular_values: vec![3.0, 2.0],
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        vectors().write_safetensors(path, SAFETENSORS).unwrap();
        assert_eq!(Vectors::read(path).unwrap(), vectors());
        vectors().write_word2vec(path, "v.txt").unwrap();
        let text = std::fs::read_to_string(path.join("v.txt")).unwrap();
        assert_eq!(text, "4 2\na 1 0\nnew_york 1 0.1\nc -1 0.5\nzero 0 0\n");
        vectors().write_word2vec_binary(path, "v.bin").unwrap();
        let bytes = std::fs::read(path.join("v.bin")).unwrap();
        assert!(bytes.starts_with(b"4 2\na \x00\x00\x80\x3f\x00\x00\x00\x00\nnew_york "));
        std::fs::write(path.join("bad"), b"not one").unwrap();
        let error = Vectors::read(&path.join("bad")).unwrap_err().to_string();
        assert!(error.contains("no safetensors file"), "{error}");
    }

    #[test]
    fn neighbours_come_by_cosine_and_zero_has_none() {
        let vectors = vectors();
        let near: Vec<usize> = vectors.neighbours(0, 5).iter().map(|n| n.0).collect();
        assert_eq!(near, [1, 2]);
        assert!(vectors.neighbours(3, 5).is_empty());
        assert_eq!(vectors.cosine(0, 3), None);
    }
}
