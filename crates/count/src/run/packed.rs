//! Integers in 1, 2, 4 or 8 bytes, their lengths apart from their bytes.
//!
//! Four 2-bit lengths share a control byte; the bytes follow little-endian in a stream of their
//! own. Encoder and decoder write and read 8 bytes each time and step by the length, so neither
//! has a branch that depends on the data.

/// One stream while it is being written.
#[derive(Debug, Default)]
pub(super) struct PackedWriter {
    control: Vec<u8>,
    data: Vec<u8>,
    filled: usize,
    values: usize,
}

impl PackedWriter {
    /// Makes room for so many more values.
    fn reserve(&mut self, values: usize) {
        let needed = self.filled + values * 8 + 8;
        if self.data.len() < needed {
            self.data.resize(needed.next_power_of_two(), 0);
        }
        self.control.resize((self.values + values).div_ceil(4), 0);
    }

    pub(super) fn extend(&mut self, values: impl ExactSizeIterator<Item = u64>) {
        self.reserve(values.len());
        let (mut filled, mut index) = (self.filled, self.values);
        for value in values {
            let code = length_code(value);
            self.data[filled..filled + 8].copy_from_slice(&value.to_le_bytes());
            self.control[index / 4] |= code << (2 * (index % 4));
            filled += 1 << code;
            index += 1;
        }
        (self.filled, self.values) = (filled, index);
    }

    pub(super) fn data_bytes(&self) -> usize {
        self.filled
    }

    /// Control bytes, then data bytes.
    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.control);
        out.extend_from_slice(&self.data[..self.filled]);
    }

    pub(super) fn clear(&mut self) {
        self.control.clear();
        self.filled = 0;
        self.values = 0;
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.control.capacity() + self.data.capacity()
    }
}

/// 0, 1, 2 or 3 for values of 1, 2, 4 or 8 bytes.
#[inline(always)]
fn length_code(value: u64) -> u8 {
    u8::from(value > 0xff) + u8::from(value > 0xffff) + u8::from(value > 0xffff_ffff)
}

const MASKS: [u64; 4] = [0xff, 0xffff, 0xffff_ffff, u64::MAX];

/// Reads `values` integers: `data` starts with the control bytes and holds at least 8 bytes more
/// than the stream. Calls `each` with every value; `None` when the stream does not take
/// exactly `data_bytes`.
#[inline(always)]
pub(super) fn unpack(
    data: &[u8],
    values: usize,
    data_bytes: usize,
    mut each: impl FnMut(u64),
) -> Option<()> {
    let controls = values.div_ceil(4);
    let control = data.get(..controls)?;
    let data = data.get(controls..controls.checked_add(data_bytes)?.checked_add(8)?)?;
    let mut at = 0;
    for index in 0..values {
        let code = usize::from(control[index / 4] >> (2 * (index % 4)) & 3);
        let bytes = data.get(at..at + 8)?;
        let word = u64::from_le_bytes(bytes.try_into().ok()?);
        each(word & MASKS[code]);
        at += 1 << code;
    }
    (at == data_bytes).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_come_back(values in proptest::collection::vec(
            prop_oneof![0_u64..300, 0_u64..70_000, any::<u64>(), Just(u64::MAX)], 0..100)) {
            let mut writer = PackedWriter::default();
            let (first, second) = values.split_at(values.len() / 2);
            writer.extend(first.iter().copied());
            writer.extend(second.iter().copied());
            let mut bytes = Vec::new();
            writer.append_to(&mut bytes);
            bytes.extend([0; 8]);
            let mut read = Vec::new();
            prop_assert!(unpack(&bytes, values.len(), writer.data_bytes(), |value| read.push(value)).is_some());
            prop_assert_eq!(read, values);
        }
    }
}
