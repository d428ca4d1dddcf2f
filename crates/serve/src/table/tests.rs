use datafusion::prelude::{col, lit};

use super::*;

#[test]
fn filters_say_which_terms_can_pass() {
    let terms = |filter: Expr| terms_of(&filter, "left");
    let one = |text: &str| Some(vec![text.to_owned()]);
    assert_eq!(terms(col("left").eq(lit("dog"))), one("dog"));
    assert_eq!(terms(lit("dog").eq(col("left"))), one("dog"));
    assert_eq!(
        terms(col("left").in_list(vec![lit("a"), lit("b")], false)),
        Some(vec!["a".to_owned(), "b".to_owned()])
    );
    let pair = |left: &str, right: &str| col("left").eq(lit(left)).and(col("right").eq(lit(right)));
    assert_eq!(
        terms(pair("a", "x").or(pair("b", "y"))),
        Some(vec!["a".to_owned(), "b".to_owned()])
    );
    for silent in [
        col("left").in_list(vec![lit("a")], true),
        col("right").eq(lit("dog")),
        col("left").gt(lit("dog")),
        col("left").eq(col("right")),
        col("left").eq(lit("a")).or(col("right").eq(lit("b"))),
        col("left").eq(lit(1)),
    ] {
        assert_eq!(terms(silent.clone()), None, "{silent}");
    }
}

#[test]
fn a_selection_covers_every_row_of_the_file_once() {
    let run = |rows| Run { file: 0, rows };
    let selectors: Vec<RowSelector> = selection(&[run(2..5), run(9..10)], 10).into();
    assert_eq!(
        selectors,
        [
            RowSelector::skip(2),
            RowSelector::select(3),
            RowSelector::skip(4),
            RowSelector::select(1)
        ]
    );
    let all: Vec<RowSelector> = selection(&[run(0..7)], 7).into();
    assert_eq!(all, [RowSelector::select(7)]);
}
