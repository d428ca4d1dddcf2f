//! Parquet's encoding `DELTA_BINARY_PACKED`, written fast.
//!
//! In: the values of one page. Out: a header, then blocks of 128 differences, each with its
//! smallest difference and four groups of 32 in as few bits as the group needs
//! (parquet-format, Encodings.md, "Delta encoding"). The crate `parquet` writes the same bytes one
//! value and one bit run at a time, ten times slower; here the shifts of a group are constants.

/// Differences in a block.
const BLOCK: usize = 128;
/// Differences that share a bit width.
const GROUP: usize = 32;

/// Appends a page of values, of a column of 32 or 64 bits; 64-bit columns come here when all of
/// their values are below 2³¹, which does not change a bit of the encoding.
pub(crate) fn encode(values: &[i32], out: &mut Vec<u8>) {
    header(
        values.len(),
        values.first().map_or(0, |&v| i64::from(v)),
        out,
    );
    let mut deltas = [0_i32; BLOCK];
    for start in (0..values.len().saturating_sub(1)).step_by(BLOCK) {
        let end = (start + BLOCK).min(values.len() - 1);
        let filled = end - start;
        let (from, to) = (&values[start..end], &values[start + 1..=end]);
        for ((delta, from), to) in deltas.iter_mut().zip(from).zip(to) {
            *delta = to.wrapping_sub(*from);
        }
        let smallest = deltas[..filled].iter().copied().min().unwrap_or(0);
        // What lies behind the last difference is padding: it must not ask for bits.
        deltas[filled..].fill(smallest);
        zigzag(i64::from(smallest), out);
        let widths_at = out.len();
        out.extend_from_slice(&[0; BLOCK / GROUP]);
        let (groups, _) = deltas.as_chunks::<GROUP>();
        for (index, group) in groups[..filled.div_ceil(GROUP)].iter().enumerate() {
            let offsets = group.map(|delta| delta.wrapping_sub(smallest) as u32);
            let width = 32 - offsets.iter().fold(0, |all, one| all | one).leading_zeros();
            out[widths_at + index] = width as u8;
            let mut words = [0; GROUP];
            PACK[width as usize](&offsets, &mut words);
            let bytes = words.map(u32::to_le_bytes);
            out.extend_from_slice(&bytes.as_flattened()[..4 * width as usize]);
        }
    }
}

/// Appends a page of any 64-bit values, bit by bit: counts beyond 2³¹ are rare.
pub(crate) fn encode_wide(values: &[i64], out: &mut Vec<u8>) {
    header(values.len(), values.first().copied().unwrap_or(0), out);
    let deltas: Vec<i64> = values
        .windows(2)
        .map(|two| two[1].wrapping_sub(two[0]))
        .collect();
    for block in deltas.chunks(BLOCK) {
        let smallest = block.iter().copied().min().unwrap_or(0);
        zigzag(smallest, out);
        let widths_at = out.len();
        out.extend_from_slice(&[0; BLOCK / GROUP]);
        for (index, group) in block.chunks(GROUP).enumerate() {
            let offset = |delta: &i64| delta.wrapping_sub(smallest) as u64;
            let all = group.iter().map(offset).fold(0, |all, one| all | one);
            let width = 64 - all.leading_zeros();
            out[widths_at + index] = width as u8;
            let start = out.len();
            out.resize(start + width as usize * GROUP / 8, 0);
            for (place, value) in group.iter().map(offset).enumerate() {
                for bit in (0..width as usize).filter(|bit| value >> bit & 1 == 1) {
                    let at = place * width as usize + bit;
                    out[start + at / 8] |= 1 << (at % 8);
                }
            }
        }
    }
}

fn header(values: usize, first: i64, out: &mut Vec<u8>) {
    varint(BLOCK as u64, out);
    varint((BLOCK / GROUP) as u64, out);
    varint(values as u64, out);
    zigzag(first, out);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64, out: &mut Vec<u8>) {
    varint((value << 1 ^ value >> 63) as u64, out);
}

/// Packs 32 values of `W` bits into the first `W` words, lowest bits first.
fn pack<const W: usize>(values: &[u32; GROUP], words: &mut [u32; GROUP]) {
    let (mut held, mut bits, mut word) = (0_u64, 0, 0);
    for &value in values {
        held |= u64::from(value) << bits;
        bits += W;
        if bits >= 32 {
            words[word] = held as u32;
            word += 1;
            held >>= 32;
            bits -= 32;
        }
    }
}

type Pack = fn(&[u32; GROUP], &mut [u32; GROUP]);

macro_rules! widths {
    ($($width:literal)*) => { [$(pack::<$width> as Pack),*] };
}

/// By width.
static PACK: [Pack; 33] = widths!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The plain decoder, by the words of the specification; `bits` is the column's width.
    fn decode(bytes: &[u8], bits: u32) -> Vec<i64> {
        let mut rest = bytes.iter().copied();
        let varint = |rest: &mut dyn Iterator<Item = u8>| {
            let (mut value, mut shift) = (0_u64, 0);
            loop {
                let byte = rest.next().unwrap();
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        };
        let signed = |value: u64| (value >> 1) as i64 ^ -((value & 1) as i64);
        assert_eq!((varint(&mut rest), varint(&mut rest)), (128, 4));
        let count = varint(&mut rest) as usize;
        let wrap = |value: i64| {
            if bits == 32 {
                i64::from(value as i32)
            } else {
                value
            }
        };
        let mut values = vec![signed(varint(&mut rest))];
        while values.len() < count {
            let smallest = signed(varint(&mut rest));
            let widths: Vec<u8> = rest.by_ref().take(4).collect();
            for width in widths {
                if values.len() >= count {
                    assert_eq!(width, 0);
                    continue;
                }
                let packed: Vec<u8> = rest.by_ref().take(usize::from(width) * 4).collect();
                assert_eq!(packed.len(), usize::from(width) * 4);
                for place in 0..32 {
                    let bit = |bit: usize| {
                        let at = place * usize::from(width) + bit;
                        u64::from(packed[at / 8] >> (at % 8) & 1) << bit
                    };
                    let offset: u64 = (0..usize::from(width)).map(bit).sum();
                    let last = values[values.len() - 1];
                    values.push(wrap(
                        last.wrapping_add(smallest).wrapping_add(offset as i64),
                    ));
                }
            }
        }
        assert_eq!(rest.next(), None);
        values.truncate(count);
        values
    }

    fn values() -> impl Strategy<Value = Vec<i32>> {
        let value = prop_oneof![8 => 0..9_i32, 3 => 0..5000_i32, 1 => any::<i32>(), 1 => Just(i32::MAX), 1 => Just(i32::MIN)];
        let calm = proptest::collection::vec(0..40_i32, 1..700);
        prop_oneof![proptest::collection::vec(value, 1..700), calm]
    }

    proptest! {
        #[test]
        fn a_page_reads_back(values in values()) {
            let mut bytes = Vec::new();
            encode(&values, &mut bytes);
            let wide: Vec<i64> = values.iter().copied().map(i64::from).collect();
            prop_assert_eq!(decode(&bytes, 32), wide);
        }

        #[test]
        fn a_wide_page_reads_back(values in values(), shift in 0..33_u32) {
            let values: Vec<i64> = values.into_iter().map(|value| i64::from(value) << shift).collect();
            let mut bytes = Vec::new();
            encode_wide(&values, &mut bytes);
            prop_assert_eq!(decode(&bytes, 64), values);
        }

        #[test]
        fn both_ways_write_the_same_bytes(values in values()) {
            let values: Vec<i32> = values.into_iter().map(|value| value & i32::MAX).collect();
            let wide: Vec<i64> = values.iter().copied().map(i64::from).collect();
            let (mut bytes, mut wide_bytes) = (Vec::new(), Vec::new());
            encode(&values, &mut bytes);
            encode_wide(&wide, &mut wide_bytes);
            prop_assert_eq!(bytes, wide_bytes);
        }
    }
}
