//! What is written is read back by the `parquet` crate, and equal pairs give equal bytes.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use object_store::memory::InMemory;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::PageIndexPolicy;
use proptest::prelude::*;

use super::*;

type Pair = (u32, u32, u64);

fn write(pairs: &[Pair], cut: usize) -> Result<(Vec<u8>, DataFile), StoreError> {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let local = Some(folder.path().to_owned());
    let place = ObjectPath::from("pairs");
    let mut writer = PairsWriter::create(&store, &place, local, "p", runtime.handle())?;
    for row in pairs.chunk_by(|one, two| one.0 == two.0) {
        // A row may come in parts.
        for part in row.chunks(cut) {
            let right: Vec<u32> = part.iter().map(|pair| pair.1).collect();
            let counts: Vec<u64> = part.iter().map(|pair| pair.2).collect();
            writer.row(part[0].0, &right, &counts)?;
        }
    }
    let file = writer.finish()?;
    let bytes = std::fs::read(folder.path().join("p")).unwrap();
    assert_eq!(bytes.len() as u64, file.size);
    Ok((bytes, file))
}

fn read(bytes: Vec<u8>) -> (Vec<Pair>, ArrowReaderMetadata) {
    let bytes = bytes::Bytes::from(bytes);
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let metadata = ArrowReaderMetadata::load(&bytes, options).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata.clone())
        .build()
        .unwrap();
    let mut pairs = Vec::new();
    for batch in reader {
        let batch: RecordBatch = batch.unwrap();
        assert_eq!(batch.schema().fields(), schema::PAIRS.fields());
        let left = batch.column(0).as_primitive::<Int32Type>();
        let right = batch.column(1).as_primitive::<Int32Type>();
        let counts = batch.column(2).as_primitive::<Int64Type>();
        pairs.extend((0..batch.num_rows()).map(|row| {
            (
                left.value(row) as u32,
                right.value(row) as u32,
                counts.value(row) as u64,
            )
        }));
    }
    (pairs, metadata)
}

/// Rows of pairs that fill some pages: every left id has `width` partners.
fn pairs(lefts: u32, width: u32, large: u64) -> Vec<Pair> {
    (0..lefts)
        .flat_map(|left| {
            (0..width).map(move |index| {
                let count =
                    1 + u64::from((left.wrapping_mul(2_654_435_761) >> 20) ^ (index * 7)) % 9;
                let right = left + index * (1 + left % 3);
                (left, right, if index % 1000 == 999 { large } else { count })
            })
        })
        .collect()
}

#[test]
fn several_row_groups_read_back_with_their_page_index() {
    let pairs = pairs(1_200, 900, 5);
    let (bytes, file) = write(&pairs, 900).unwrap();
    let (back, metadata) = read(bytes);
    assert!(back == pairs);
    let metadata = metadata.metadata();
    assert_eq!((file.rows, metadata.num_row_groups()), (1_080_000, 2));
    assert_eq!(
        file.stats,
        r#"{"maxValues":{"count":9,"left_id":1199,"right_id":3896},"minValues":{"count":1,"left_id":0,"right_id":0},"nullCount":{"count":0,"left_id":0,"right_id":0},"numRecords":1080000}"#
    );
    let locations = metadata.offset_index().unwrap()[0][0].page_locations();
    assert_eq!(locations.len(), ROW_GROUP_ROWS / PAGE_ROWS);
    assert_eq!(locations[3].first_row_index, 3 * PAGE_ROWS as i64);
    let group = metadata.row_group(1);
    assert_eq!(group.num_rows(), 1_080_000 - ROW_GROUP_ROWS as i64);
    assert!(group.sorting_columns().is_some());
}

#[test]
fn nothing_is_a_file_too() {
    let (bytes, file) = write(&[], 1).unwrap();
    assert_eq!(file.rows, 0);
    assert!(read(bytes).0.is_empty());
}

#[test]
fn what_signed_columns_cannot_hold_is_refused() {
    for pair in [(1 << 31, 7, 1), (1, 1 << 31, 1), (1, 2, 1 << 63)] {
        let error = write(&[pair], 1).unwrap_err();
        assert!(matches!(error, StoreError::PairRange { .. }), "{error}");
    }
    let most = [(i32::MAX as u32, i32::MAX as u32, i64::MAX as u64)];
    assert_eq!(read(write(&most, 1).unwrap().0).0, most);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn bytes_do_not_depend_on_how_rows_come(lefts in 0_u32..40, width in 1_u32..1_500, cut in 1_usize..900, large in prop_oneof![Just(1), Just(1 << 40)]) {
        let pairs = pairs(lefts, width, large);
        let (whole, _) = write(&pairs, usize::MAX).unwrap();
        let (parts, _) = write(&pairs, cut).unwrap();
        prop_assert!(whole == parts);
        prop_assert!(read(parts).0 == pairs);
    }
}
