//! Files in memory, which notice a read that no file of their size can ask for.

use pmill_snapshot::{RangeSource, SourceFile};
use std::io;

/// A folder in memory.
#[derive(Debug)]
pub struct Memory(pub Vec<(String, Vec<u8>)>);

impl Memory {
    fn file(&self, name: &str) -> io::Result<&[u8]> {
        let found = self.0.iter().find(|(other, _)| other == name);
        found
            .map(|(_, bytes)| bytes.as_slice())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl RangeSource for Memory {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn list(&self) -> io::Result<Vec<SourceFile>> {
        self.0.iter().map(|(name, _)| self.stat(name)).collect()
    }

    fn stat(&self, name: &str) -> io::Result<SourceFile> {
        Ok(SourceFile {
            name: name.to_owned(),
            size: self.file(name)?.len() as u64,
            version: String::new(),
        })
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = self.file(name)?;
        assert!(
            buffer.len() <= bytes.len().max(8),
            "a read of {} bytes from a file of {}",
            buffer.len(),
            bytes.len()
        );
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start
            .checked_add(buffer.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
