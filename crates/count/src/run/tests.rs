//! Run files under damage: an error, never a panic, never a wrong row.

use proptest::prelude::*;

use super::*;
use crate::{Accumulator, CountError, ErrorKind, PairColumns, RowSink};

const VOCABULARY: u32 = 40_000;

/// Rows of all lengths, one longer than a chunk.
fn columns(seed: u64) -> PairColumns {
    let mut columns = PairColumns::default();
    let mut state = seed;
    let mut draw = |end: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    for left in (0..600_u32).step_by(1 + seed as usize % 3) {
        let stride = if left == 30 {
            2
        } else {
            1 + draw(9_000) as u32
        };
        let first = draw(5) as u32;
        for right in (first..VOCABULARY).step_by(stride as usize) {
            columns.left.push(left);
            columns.right.push(right);
            let bytes = 1 + draw(4);
            columns.counts.push(1 + draw(1 << (8 * bytes - 1)));
        }
    }
    columns
}

fn write(columns: &PairColumns, compression: Compression) -> (Vec<u8>, RunSummary) {
    let mut writer = RunWriter::new(Vec::new(), VOCABULARY, compression).unwrap();
    let mut start = 0;
    for row in columns.left.chunk_by(|one, other| one == other) {
        let end = start + row.len();
        writer
            .row(
                row[0],
                &columns.right[start..end],
                &columns.counts[start..end],
            )
            .unwrap();
        start = end;
    }
    writer.finish().unwrap()
}

fn read(bytes: &[u8], range: std::ops::Range<u32>) -> Result<PairColumns, CountError> {
    let mut readers = [RunReader::open(
        "the run",
        SeekSource(std::io::Cursor::new(bytes)),
    )?];
    let mut columns = PairColumns::default();
    merge_runs(
        &mut readers,
        range,
        &mut Accumulator::new(VOCABULARY),
        &mut columns,
    )?;
    assert!(readers[0].held_bytes() < RunReader::<&[u8]>::buffer_bytes() + (1 << 16));
    Ok(columns)
}

#[test]
fn a_run_comes_back_whole_and_in_parts() {
    for compression in [Compression::Packed, Compression::Zstd(1)] {
        let columns = columns(1);
        let (bytes, summary) = write(&columns, compression);
        assert_eq!(
            (summary.bytes, summary.pairs),
            (bytes.len() as u64, columns.len() as u64)
        );
        assert_eq!(read(&bytes, 0..VOCABULARY).unwrap(), columns);
        let mut parts = PairColumns::default();
        for range in [0..1, 1..30, 30..31, 31..31, 31..599, 599..VOCABULARY] {
            let part = read(&bytes, range).unwrap();
            parts.left.extend(part.left);
            parts.right.extend(part.right);
            parts.counts.extend(part.counts);
        }
        assert_eq!(parts, columns);
    }
}

#[test]
fn an_empty_run_is_a_run() {
    let (bytes, summary) = write(&PairColumns::default(), Compression::Packed);
    assert_eq!((summary.rows, summary.pairs), (0, 0));
    assert!(read(&bytes, 0..VOCABULARY).unwrap().is_empty());
}

#[test]
fn every_cut_is_an_error() {
    let (bytes, _) = write(&columns(2), Compression::Packed);
    let cuts = (0..120)
        .chain((120..bytes.len()).step_by(997))
        .chain(bytes.len() - 120..bytes.len());
    for cut in cuts {
        let error = read(&bytes[..cut], 0..VOCABULARY).unwrap_err();
        assert!(
            matches!(error, CountError::RunCorrupt { ref run, .. } if run == "the run"),
            "{cut}: {error}"
        );
        assert_eq!(error.kind(), ErrorKind::User);
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(read(&longer, 0..VOCABULARY).is_err());
}

#[test]
fn a_source_that_fails_is_not_a_damaged_run() {
    struct Away;
    impl RunSource for Away {
        fn size(&mut self) -> std::io::Result<u64> {
            Ok(1_000)
        }
        fn read_at(&mut self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::TimedOut.into())
        }
    }
    let error = RunReader::open("far run", Away).err().unwrap();
    assert!(matches!(error, CountError::RunRead { .. }));
    assert_eq!(error.kind(), ErrorKind::NotNow);
}

#[test]
fn a_later_version_is_named() {
    let (mut bytes, _) = write(&columns(3), Compression::Packed);
    bytes[8] = 9;
    let sum = crc32fast::hash(&bytes[..16]);
    bytes[16..20].copy_from_slice(&sum.to_le_bytes());
    let error = read(&bytes, 0..VOCABULARY).unwrap_err();
    assert!(matches!(
        error,
        CountError::RunVersion {
            found: 9,
            supported: 1,
            ..
        }
    ));
}

#[test]
fn rows_out_of_order_are_refused() {
    let mut writer = RunWriter::new(Vec::new(), 10, Compression::Packed).unwrap();
    writer.row(3, &[1, 2], &[1, 1]).unwrap();
    for (left, right, counts) in [
        (3, vec![1], vec![1]),
        (2, vec![1], vec![1]),
        (4, vec![2, 2], vec![1, 1]),
        (4, vec![2, 1], vec![1, 1]),
        (4, vec![1], vec![0]),
        (4, vec![1], vec![1, 1]),
        (4, vec![10], vec![1]),
        (10, vec![1], vec![1]),
    ] {
        let error = writer.row(left, &right, &counts).unwrap_err();
        assert!(matches!(error, CountError::RowOrder { .. }));
        assert_eq!(error.kind(), ErrorKind::Bug);
    }
}

/// Sets the checksums right again after a change, so that the checks behind them are reached.
fn forge(bytes: &mut [u8]) {
    let trailer = bytes.len() - format::TRAILER_BYTES;
    let Some(index) = format::u64_at(bytes, trailer).map(|offset| offset as usize) else {
        return;
    };
    if index > trailer {
        return;
    }
    for entry in (index..trailer).step_by(format::ENTRY_BYTES) {
        let (Some(offset), Some(length)) = (
            format::u64_at(bytes, entry),
            format::u32_at(bytes, entry + 8),
        ) else {
            return;
        };
        let end = offset.saturating_add(u64::from(length)) as usize;
        if end <= index && length >= 4 {
            let sum = crc32fast::hash(&bytes[offset as usize..end - 4]);
            bytes[end - 4..end].copy_from_slice(&sum.to_le_bytes());
        }
    }
    let sum = crc32fast::hash(&bytes[index..trailer + 20]);
    bytes[trailer + 20..trailer + 24].copy_from_slice(&sum.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_flipped_byte_is_an_error(seed in 4_u64..7, at in any::<prop::sample::Index>(), flip in 1_u8..=255, zstd: bool, tail: bool) {
        let compression = if zstd { Compression::Zstd(1) } else { Compression::Packed };
        let (mut bytes, _) = write(&columns(seed), compression);
        let at = if tail { bytes.len() - 1 - at.index(400) } else { at.index(bytes.len()) };
        bytes[at] ^= flip;
        prop_assert!(read(&bytes, 0..VOCABULARY).is_err());
    }

    #[test]
    fn a_forged_file_gives_sorted_rows_or_an_error(
        seed in 4_u64..7, at in any::<prop::sample::Index>(), value: u8, zstd: bool, place in 0_u8..3) {
        let compression = if zstd { Compression::Zstd(1) } else { Compression::Packed };
        let (mut bytes, _) = write(&columns(seed), compression);
        let at = match place {
            0 => bytes.len() - 9 - at.index(200),
            1 => format::HEADER_BYTES + at.index(300),
            _ => at.index(bytes.len()),
        };
        bytes[at] = value;
        forge(&mut bytes);
        if let Ok(columns) = read(&bytes, 0..VOCABULARY) {
            let keys: Vec<_> = columns.left.iter().zip(&columns.right).collect();
            prop_assert!(keys.windows(2).all(|two| two[0] < two[1]));
            prop_assert!(columns.right.iter().all(|&right| right < VOCABULARY));
        }
    }
}
