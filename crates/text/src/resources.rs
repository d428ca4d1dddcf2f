//! Reads the small files that a spec names, and says what they hold in one digest.

use std::path::{Path, PathBuf};

use crate::TextError;

/// A resource file in memory.
pub(crate) struct Resource {
    what: &'static str,
    path: PathBuf,
    text: String,
    digest: String,
}

impl Resource {
    /// Reads a UTF-8 file; a byte order mark at its start is not content, but counts in the digest.
    pub(crate) fn read(what: &'static str, path: &Path) -> Result<Self, TextError> {
        let bytes = std::fs::read(path).map_err(|source| TextError::Read {
            what,
            path: path.to_owned(),
            source,
        })?;
        let digest = digest(&bytes);
        let mut text = String::from_utf8(bytes).map_err(|error| TextError::NotUtf8 {
            what,
            path: path.to_owned(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        if text.starts_with('\u{FEFF}') {
            text.drain(..'\u{FEFF}'.len_utf8());
        }
        Ok(Self {
            what,
            path: path.to_owned(),
            text,
            digest,
        })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// BLAKE3 of the file's bytes, in hexadecimal.
    pub(crate) fn digest(&self) -> String {
        self.digest.clone()
    }

    /// Lines with their numbers from 1, without line ends.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
    }

    pub(crate) fn bad_line(&self, line: usize, expected: impl Into<String>) -> TextError {
        TextError::BadLine {
            what: self.what,
            path: self.path.clone(),
            line,
            expected: expected.into(),
        }
    }
}

/// BLAKE3 in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
