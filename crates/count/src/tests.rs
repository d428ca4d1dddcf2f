//! The laws of counting, on random rows.

use proptest::prelude::*;

use crate::reference::{Row, Table, count, table_of};
use crate::*;

fn window(size: u32, weight: Weight, side: Side, out_of_vocabulary: OutOfVocabulary) -> Context {
    Context::Window(Window {
        size,
        weight,
        side,
        out_of_vocabulary,
    })
}

fn context() -> impl Strategy<Value = Context> {
    let weight = prop_oneof![
        Just(Weight::Uniform),
        Just(Weight::Harmonic),
        Just(Weight::Dynamic)
    ];
    let side =
        prop_oneof![2 => Just(Side::Symmetric), 1 => Just(Side::Left), 1 => Just(Side::Right)];
    let outside = prop_oneof![Just(OutOfVocabulary::Removed), Just(OutOfVocabulary::Gap)];
    let size = prop_oneof![3 => 1_u32..12, 2 => 12_u32..20, 2 => 20_u32..80];
    prop_oneof![
        1 => proptest::option::of(0_u32..9).prop_map(|max_features| Context::Document { max_features }),
        1 => Just(Context::Row),
        6 => (size, weight, side, outside).prop_map(|(size, weight, side, outside)| {
            let size = if weight == Weight::Harmonic { size.min(LARGEST_HARMONIC_WINDOW) } else { size };
            window(size, weight, side, outside)
        }),
    ]
}

/// Ids mostly small (so that they repeat), sometimes the largest, sometimes outside.
fn ids(vocabulary_size: u32) -> impl Strategy<Value = Vec<u32>> {
    let id = prop_oneof![
        8 => 0..vocabulary_size.min(12),
        3 => 0..vocabulary_size,
        1 => Just(vocabulary_size - 1),
        2 => Just(OUT_OF_VOCABULARY),
    ];
    prop_oneof![
        1 => Just(Vec::new()),
        6 => proptest::collection::vec(id.clone(), 0..24),
        2 => proptest::collection::vec(id, 24..150),
    ]
}

fn job() -> impl Strategy<Value = (CountSettings, Vec<Row>)> {
    let vocabulary_size = prop_oneof![6 => 1_u32..90, 1 => Just(NARROW_VOCABULARY), 1 => Just(NARROW_VOCABULARY + 1), 1 => Just(70_000_u32)];
    (context(), vocabulary_size).prop_flat_map(|(context, vocabulary_size)| {
        let settings = CountSettings {
            context,
            vocabulary_size,
        };
        let row = (ids(vocabulary_size), ids(vocabulary_size))
            .prop_map(|(left, right)| Row { left, right });
        (Just(settings), proptest::collection::vec(row, 0..12))
    })
}

fn push(block: &mut TokenBlock, row: &Row) {
    if block.settings().context == Context::Row {
        block.push_row_pair(&row.left, &row.right).unwrap();
    } else {
        block.push_row(&row.left).unwrap();
    }
}

fn block_of(settings: &CountSettings, rows: &[Row]) -> TokenBlock {
    let mut block = TokenBlock::new(settings).unwrap();
    rows.iter().for_each(|row| push(&mut block, row));
    block
}

fn columns_of(prepared: &PreparedBlock, parts: usize) -> PairColumns {
    let mut accumulator = Accumulator::new(prepared.settings().vocabulary_size);
    let mut columns = PairColumns::default();
    for range in prepared.plan_ranges(parts) {
        prepared
            .count_rows(range, &mut accumulator, &mut columns)
            .unwrap();
    }
    columns
}

fn run_of(settings: &CountSettings, rows: &[Row], compression: Compression) -> Vec<u8> {
    let prepared = block_of(settings, rows).prepare(1).unwrap();
    let mut writer = RunWriter::new(Vec::new(), settings.vocabulary_size, compression).unwrap();
    let mut accumulator = Accumulator::new(settings.vocabulary_size);
    prepared
        .count_rows(0..settings.vocabulary_size, &mut accumulator, &mut writer)
        .unwrap();
    writer.finish().unwrap().0
}

fn merged(settings: &CountSettings, runs: &[Vec<u8>], parts: u32) -> PairColumns {
    let mut columns = PairColumns::default();
    let mut accumulator = Accumulator::new(settings.vocabulary_size);
    let mut readers: Vec<_> = runs
        .iter()
        .map(|run| RunReader::open("run", run.as_slice()).unwrap())
        .collect();
    let cut = |part: u32| {
        (u64::from(settings.vocabulary_size) * u64::from(part) / u64::from(parts)) as u32
    };
    for part in 0..parts {
        merge_runs(
            &mut readers,
            cut(part)..cut(part + 1),
            &mut accumulator,
            &mut columns,
        )
        .unwrap();
    }
    columns
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_block_counts_what_nested_loops_count((settings, rows) in job(), parts in 1_usize..5, threads in 1_usize..4) {
        let prepared = block_of(&settings, &rows).prepare(threads).unwrap();
        prop_assert_eq!(table_of(&columns_of(&prepared, parts)), count(&settings, &rows));
    }

    #[test]
    fn any_split_into_blocks_and_runs_gives_the_same_table(
        (settings, rows) in job(), cuts in proptest::collection::vec(0_usize..12, 0..4), parts in 1_u32..4, turn in 0_usize..4, zstd: bool) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(rows.len())).collect();
        cuts.push(rows.len());
        cuts.sort_unstable();
        let compression = if zstd { Compression::Zstd(1) } else { Compression::Packed };
        let (mut start, mut runs) = (0, Vec::new());
        for cut in cuts {
            runs.push(run_of(&settings, &rows[start..cut], compression));
            start = cut;
        }
        let turn = turn % runs.len();
        runs.rotate_left(turn);
        prop_assert_eq!(table_of(&merged(&settings, &runs, parts)), count(&settings, &rows));
    }

    #[test]
    fn what_was_added_can_be_taken_away((settings, rows) in job(), cut in 0_usize..12) {
        let (kept, gone) = rows.split_at(cut.min(rows.len()));
        let (all, gone) = (run_of(&settings, &rows, Compression::Packed), run_of(&settings, gone, Compression::Packed));
        let mut readers = vec![
            RunReader::open("gone", gone.as_slice()).unwrap().subtracting(),
            RunReader::open("all", all.as_slice()).unwrap(),
        ];
        let mut columns = PairColumns::default();
        let mut accumulator = Accumulator::new(settings.vocabulary_size);
        merge_runs(&mut readers, 0..settings.vocabulary_size, &mut accumulator, &mut columns).unwrap();
        prop_assert_eq!(table_of(&columns), count(&settings, kept));
    }

    #[test]
    fn a_block_filled_in_pieces_counts_the_same((settings, rows) in job(), cuts in proptest::collection::vec(0_usize..12, 0..4), slack in 0_usize..40) {
        if settings.context == Context::Row {
            return Ok(());
        }
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(rows.len())).collect();
        cuts.extend([0, rows.len()]);
        cuts.sort_unstable();
        let parts: Vec<&[Row]> = cuts.windows(2).map(|two| &rows[two[0]..two[1]]).collect();
        let sizes: Vec<usize> = parts
            .iter()
            .map(|rows| rows.iter().map(|row| row.left.len() + 1).sum::<usize>() + slack)
            .collect();
        let mut block = TokenBlock::new(&settings).unwrap();
        let tallies: Vec<PieceTally> = block
            .pieces(&sizes)
            .unwrap()
            .into_iter()
            .zip(parts)
            .map(|(mut piece, rows)| {
                rows.iter().for_each(|row| piece.push_row(&row.left).unwrap());
                piece.finish()
            })
            .collect();
        block.close_pieces(&tallies);
        let whole = block_of(&settings, &rows);
        prop_assert_eq!(
            (block.rows(), block.tokens(), block.dropped_features(), block.out_of_vocabulary()),
            (whole.rows(), whole.tokens(), whole.dropped_features(), whole.out_of_vocabulary())
        );
        prop_assert_eq!(table_of(&columns_of(&block.prepare(2).unwrap(), 1)), count(&settings, &rows));
    }

    #[test]
    fn a_recycled_block_counts_afresh((settings, first) in job(), cut in 0_usize..12) {
        let second = &first[cut.min(first.len())..];
        let prepared = block_of(&settings, &first).prepare(2).unwrap();
        let mut block = prepared.recycle();
        second.iter().for_each(|row| push(&mut block, row));
        let prepared = block.prepare(2).unwrap();
        prop_assert_eq!(table_of(&columns_of(&prepared, 1)), count(&settings, second));
    }
}

#[test]
fn three_words_in_a_window_of_two_by_hand() {
    // 0 1 0 2: (0,1) at 1 twice, (0,0) at 2, (1,2) at 2, (0,2) at 1; the unit is lcm(1, 2) = 2.
    let settings = CountSettings {
        context: window(
            2,
            Weight::Harmonic,
            Side::Symmetric,
            OutOfVocabulary::Removed,
        ),
        vocabulary_size: 3,
    };
    let row = Row {
        left: vec![0, 1, 0, 2],
        right: vec![],
    };
    let columns = columns_of(&block_of(&settings, &[row]).prepare(1).unwrap(), 1);
    let expected: Table = [((0, 0), 1), ((0, 1), 4), ((0, 2), 2), ((1, 2), 1)].into();
    assert_eq!(table_of(&columns), expected);
}

#[test]
fn sums_beyond_32_bits_are_exact() {
    // One word, one row: n - d events at distance d, of 2520 / d units, 7.4 thousand a token.
    let settings = CountSettings {
        context: window(
            10,
            Weight::Harmonic,
            Side::Symmetric,
            OutOfVocabulary::Removed,
        ),
        vocabulary_size: 2,
    };
    let tokens = 700_000_u64;
    let row = Row {
        left: vec![1; tokens as usize],
        right: vec![],
    };
    let columns = columns_of(&block_of(&settings, &[row]).prepare(2).unwrap(), 2);
    let expected: u64 = (1..=10)
        .map(|distance| (tokens - distance) * (2520 / distance))
        .sum();
    assert!(expected > u64::from(u32::MAX));
    assert_eq!(columns.counts, [expected]);
    assert_eq!((columns.left, columns.right), (vec![1], vec![1]));
}

#[test]
fn an_id_beyond_the_vocabulary_is_refused_and_leaves_the_block_as_it_was() {
    for context in [
        window(2, Weight::Uniform, Side::Symmetric, OutOfVocabulary::Gap),
        Context::Document { max_features: None },
    ] {
        let settings = CountSettings {
            context,
            vocabulary_size: 4,
        };
        let mut block = TokenBlock::new(&settings).unwrap();
        block.push_row(&[0, 1, 2]).unwrap();
        let error = block.push_row(&[3, 4, 1]).unwrap_err();
        assert!(matches!(
            error,
            CountError::IdOutOfRange {
                id: 4,
                vocabulary_size: 4
            }
        ));
        block.push_row(&[3, 1]).unwrap();
        let rows = [vec![0, 1, 2], vec![3, 1]].map(|left| Row {
            left,
            right: vec![],
        });
        let columns = columns_of(&block.prepare(1).unwrap(), 1);
        assert_eq!(table_of(&columns), count(&settings, &rows));
    }
}

#[test]
fn dropped_features_are_counted() {
    let settings = CountSettings {
        context: Context::Document {
            max_features: Some(2),
        },
        vocabulary_size: 9,
    };
    let mut block = TokenBlock::new(&settings).unwrap();
    block.push_row(&[8, 1, 4, 1, OUT_OF_VOCABULARY, 0]).unwrap();
    assert_eq!(
        (
            block.dropped_features(),
            block.out_of_vocabulary(),
            block.rows()
        ),
        (2, 1, 1)
    );
    let columns = columns_of(&block.prepare(1).unwrap(), 1);
    assert_eq!((columns.left, columns.right), (vec![0], vec![1]));
}

#[test]
fn taking_away_too_much_names_the_pair() {
    let settings = CountSettings {
        context: Context::Document { max_features: None },
        vocabulary_size: 9,
    };
    let row = |ids: &[u32]| Row {
        left: ids.to_vec(),
        right: vec![],
    };
    let all = run_of(&settings, &[row(&[2, 5])], Compression::Packed);
    let gone = run_of(
        &settings,
        &[row(&[2, 5]), row(&[5, 2])],
        Compression::Packed,
    );
    let mut readers = vec![
        RunReader::open("all", all.as_slice()).unwrap(),
        RunReader::open("gone", gone.as_slice())
            .unwrap()
            .subtracting(),
    ];
    let error = merge_runs(
        &mut readers,
        0..9,
        &mut Accumulator::new(9),
        &mut PairTally::default(),
    )
    .unwrap_err();
    assert!(matches!(
        error,
        CountError::NegativeCount {
            left: 2,
            right: 5,
            count: 1,
            subtract: 2
        }
    ));
}

#[test]
fn a_merge_sum_beyond_64_bits_names_the_pair() {
    let mut writer = RunWriter::new(Vec::new(), 4, Compression::Packed).unwrap();
    writer.row(1, &[3], &[u64::MAX / 2 + 1]).unwrap();
    let run = writer.finish().unwrap().0;
    let mut readers = [&run, &run].map(|run| RunReader::open("run", run.as_slice()).unwrap());
    let error = merge_runs(
        &mut readers,
        0..4,
        &mut Accumulator::new(4),
        &mut PairTally::default(),
    )
    .unwrap_err();
    assert!(matches!(
        error,
        CountError::SumOverflow { left: 1, right: 3 }
    ));
}

#[test]
fn a_budget_holds_and_an_empty_block_takes_any_row() {
    let settings = CountSettings {
        context: window(
            10,
            Weight::Harmonic,
            Side::Symmetric,
            OutOfVocabulary::Removed,
        ),
        vocabulary_size: 1_000,
    };
    let budget = 100_000;
    let mut block = TokenBlock::with_budget(&settings, budget).unwrap();
    let mut rows = 0;
    while block.has_room(50) {
        block.push_row(&(0..50).collect::<Vec<u32>>()).unwrap();
        assert!(block.held_bytes() <= budget, "{}", block.held_bytes());
        rows += 1;
    }
    // 100,000 bytes less the index's 12 an id are room for 14 thousand tokens of 6 bytes.
    assert!((200..300).contains(&rows), "{rows}");
    assert!(
        TokenBlock::with_budget(&settings, 0)
            .unwrap()
            .has_room(1_000_000)
    );
}
