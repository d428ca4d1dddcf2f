//! Looks into a footer that the decoder could not read, to say why.
//!
//! A file with a plain footer and encrypted columns has the field `encryption_algorithm` in its
//! `FileMetaData` (parquet.thrift, field 8). The fields are walked by Thrift's compact protocol;
//! nothing is built from them.

/// Whether the footer says that columns are encrypted. `false` too when it cannot be walked.
#[must_use]
pub fn names_encryption(footer: &[u8]) -> bool {
    const ENCRYPTION_ALGORITHM: i64 = 8;
    let mut walk = Walk::new(footer);
    let mut field = 0;
    while let Some((id, kind)) = walk.field(field) {
        if id == ENCRYPTION_ALGORITHM {
            return true;
        }
        field = id;
        if walk.skip(kind, 0).is_none() {
            return false;
        }
    }
    false
}

/// Structs inside structs go no deeper than this in a sound footer.
const DEEPEST: u32 = 32;

/// Walks the fields of a struct in Thrift's compact protocol.
pub(crate) struct Walk<'a> {
    bytes: &'a [u8],
}

impl<'a> Walk<'a> {
    /// A walk from the first field.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// What was not walked yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// The value of an integer field of this type; `None` if it is no integer.
    pub(crate) fn integer(&mut self, kind: u8) -> Option<i64> {
        matches!(kind, 4..=6).then(|| self.varint())?.map(zigzag)
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn take(&mut self, length: u64) -> Option<()> {
        self.bytes = self.bytes.get(usize::try_from(length).ok()?..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Id and type of the next field; `None` at the end of the struct.
    pub(crate) fn field(&mut self, last: i64) -> Option<(i64, u8)> {
        let head = self.byte()?;
        let kind = head & 0x0f;
        if kind == 0 {
            return None;
        }
        let id = match head >> 4 {
            0 => zigzag(self.varint()?),
            step => last + i64::from(step),
        };
        Some((id, kind))
    }

    /// Steps over a value of this type.
    pub(crate) fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match kind {
            1 | 2 => Some(()),
            3 => self.take(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.take(8),
            8 => {
                let length = self.varint()?;
                self.take(length)
            }
            9 | 10 => {
                let head = self.byte()?;
                let length = match head >> 4 {
                    15 => self.varint()?,
                    short => u64::from(short),
                };
                // A bool in a list takes a byte; elsewhere its value is its type.
                let kind = if matches!(head & 0x0f, 1 | 2) {
                    3
                } else {
                    head & 0x0f
                };
                (0..length).try_for_each(|_| self.skip(kind, depth + 1))
            }
            12 => {
                let mut last = 0;
                while let Some((id, kind)) = self.field(last) {
                    last = id;
                    self.skip(kind, depth + 1)?;
                }
                Some(())
            }
            _ => None,
        }
    }
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::names_encryption;

    #[test]
    fn the_field_is_found_behind_others() {
        // version i32 = 2; list of two strings as field 2; field 8, a struct.
        let footer = [0x15, 4, 0x19, 0x28, 1, b'a', 2, b'b', b'c', 0x6c, 0, 0];
        assert!(names_encryption(&footer));
        assert!(!names_encryption(&footer[..9]));
    }

    #[test]
    fn any_bytes_are_walked_to_an_end() {
        proptest::proptest!(|(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200))| {
            let _ = names_encryption(&bytes);
        });
        assert!(!names_encryption(&[0x1c; 4096]));
        // A list that claims 2^60 elements of no bytes each must not be walked for ever.
        assert!(!names_encryption(&[
            0x19, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f
        ]));
    }
}
