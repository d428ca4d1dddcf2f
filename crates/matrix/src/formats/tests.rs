use super::*;

type Rows = Vec<(u32, Vec<u32>, Vec<f64>)>;

fn rows() -> Rows {
    vec![(0, vec![1, 2], vec![1.5, 0.1]), (2, vec![0], vec![3.0])]
}

const SHAPE: Shape = Shape {
    rows: 4,
    columns: 3,
    most_entries: 9,
};

fn pour(mut sink: Box<dyn RowSink>) {
    for (row, columns, values) in rows() {
        sink.row(row, &columns, &values).unwrap();
    }
    sink.finish().unwrap();
}

#[test]
fn glove_records_have_ids_from_one() {
    let folder = tempfile::tempdir().unwrap();
    let terms = [("a", 5), ("new york", 4), ("c", 1)];
    let sink = GloveSink::create(folder.path(), terms.into_iter()).unwrap();
    pour(Box::new(sink));
    let bytes = std::fs::read(folder.path().join("cooccurrence.bin")).unwrap();
    let records: Vec<(i32, i32, f64)> = bytes
        .chunks(16)
        .map(|r| {
            (
                i32::from_le_bytes(r[..4].try_into().unwrap()),
                i32::from_le_bytes(r[4..8].try_into().unwrap()),
                f64::from_le_bytes(r[8..].try_into().unwrap()),
            )
        })
        .collect();
    assert_eq!(records, [(1, 2, 1.5), (1, 3, 0.1), (3, 1, 3.0)]);
    let vocab = std::fs::read_to_string(folder.path().join("vocab.txt")).unwrap();
    assert_eq!(vocab, "a 5\nnew_york 4\nc 1\n");
}

#[test]
fn matrix_market_counts_its_entries_in_the_head() {
    let folder = tempfile::tempdir().unwrap();
    pour(Box::new(
        MatrixMarketSink::create(folder.path(), SHAPE, "two\nlines").unwrap(),
    ));
    let text = std::fs::read_to_string(folder.path().join("matrix.mtx")).unwrap();
    assert_eq!(
        text,
        "%%MatrixMarket matrix coordinate real general\n% two lines\n4 3                    3\n1 2 1.5\n1 3 0.1\n3 1 3\n"
    );
}

#[test]
fn csv_quotes_what_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    pour(Box::new(
        CsvSink::create(folder.path(), ["a", "b,c", "\"d"].into_iter()).unwrap(),
    ));
    let text = std::fs::read_to_string(folder.path().join("pairs.csv")).unwrap();
    assert_eq!(
        text,
        "left_id,right_id,left,right,value\n0,1,a,\"b,c\",1.5\n0,2,a,\"\"\"d\",0.1\n2,0,\"\"\"d\",a,3\n"
    );
    assert_eq!(escape_tab("a\tb\\"), "a\\tb\\\\");
}

#[test]
fn csr_rows_start_where_they_should() {
    let folder = tempfile::tempdir().unwrap();
    let sink = CsrSink::create(folder.path(), SHAPE, Precision::Single, None).unwrap();
    pour(Box::new(sink));
    let numbers = |name: &str| -> Vec<i32> {
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        bytes[npy::HEADER_BYTES..]
            .chunks(4)
            .map(|n| i32::from_le_bytes(n.try_into().unwrap()))
            .collect()
    };
    assert_eq!(numbers("indptr.npy"), [0, 2, 2, 3, 3]);
    assert_eq!(numbers("indices.npy"), [1, 2, 0]);
    let bits: Vec<i32> = [1.5_f32, 0.1, 3.0].map(|v| v.to_bits() as i32).to_vec();
    assert_eq!(numbers("data.npy"), bits);
    let header = std::fs::read_to_string(folder.path().join("header.json")).unwrap();
    assert!(header.contains("\"entries\": 3"), "{header}");
}

#[test]
fn rows_out_of_order_are_our_bug() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = CsrSink::create(folder.path(), SHAPE, Precision::Double, None).unwrap();
    sink.row(1, &[0], &[1.0]).unwrap();
    assert!(matches!(
        sink.row(1, &[0], &[1.0]),
        Err(MatrixError::Bug(_))
    ));
    assert!(matches!(
        sink.row(4, &[0], &[1.0]),
        Err(MatrixError::Bug(_))
    ));
}

use crate::npy;
