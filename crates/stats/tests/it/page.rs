//! The reference page is current, and the catalogue is in order.

use std::collections::HashSet;
use std::path::Path;

use pmill_stats::catalogue::{AGGREGATES, MEASURES, OTHERS, reference_page};

#[test]
fn the_reference_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/functions.md");
    let page = reference_page();
    if std::env::var_os("UPDATE_PAGE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == page,
        "docs/functions.md is stale: UPDATE_PAGE=1 cargo test -p pmill-stats page writes it anew"
    );
}

#[test]
fn every_function_has_a_name_of_its_own_and_is_registered() {
    let names: Vec<&str> = MEASURES
        .iter()
        .map(|measure| measure.name)
        .chain(AGGREGATES.iter().map(|spec| spec.name))
        .chain(OTHERS.iter().map(|doc| doc.name))
        .collect();
    let distinct: HashSet<&str> = names.iter().copied().collect();
    assert_eq!(distinct.len(), names.len());
    let mut registered: HashSet<String> = HashSet::new();
    registered.extend(
        pmill_stats::all_scalar_functions()
            .iter()
            .map(|f| f.name().to_owned()),
    );
    registered.extend(
        pmill_stats::all_aggregate_functions()
            .iter()
            .map(|f| f.name().to_owned()),
    );
    registered.extend(
        pmill_stats::all_window_functions()
            .iter()
            .map(|f| f.name().to_owned()),
    );
    assert_eq!(
        registered,
        names.iter().map(|name| (*name).to_owned()).collect()
    );
}

#[test]
fn no_name_hides_a_function_of_the_engine() {
    let session = datafusion::prelude::SessionContext::new();
    let state = session.state();
    let scalars = pmill_stats::all_scalar_functions();
    let hidden: Vec<&str> = scalars
        .iter()
        .map(|function| function.name())
        .filter(|name| {
            state.scalar_functions().contains_key(*name)
                || state.aggregate_functions().contains_key(*name)
        })
        .collect();
    assert!(hidden.is_empty(), "{hidden:?}");
    let aggregates = pmill_stats::all_aggregate_functions();
    let hidden = aggregates
        .iter()
        .filter(|function| state.aggregate_functions().contains_key(function.name()))
        .count();
    assert_eq!(hidden, 0);
}

#[test]
fn every_measure_gives_sql_or_names_what_it_needs() {
    use pmill_stats::{Base, StatsError, measure};
    for measure in MEASURES {
        match measure.sql_expression(Base::Two) {
            Ok(sql) => assert!(
                sql.starts_with(&format!("{}(n_xy, n_x, n_y, n", measure.name)),
                "{sql}"
            ),
            Err(error) => assert!(
                matches!(error, StatsError::MissingParameter { .. }),
                "{error}"
            ),
        }
    }
    let sppmi = measure("sppmi").unwrap();
    assert_eq!(
        sppmi.sql_expression_with(Base::E, &[("k", "10")]).unwrap(),
        "sppmi(n_xy, n_x, n_y, n, 10)"
    );
    assert_eq!(
        sppmi.sql_expression_with(Base::Two, &[]).unwrap(),
        "sppmi(n_xy, n_x, n_y, n, NULL, 2)"
    );
    let unknown = sppmi
        .sql_expression_with(Base::E, &[("q", "1")])
        .unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "sppmi has no parameter `q`, it has: k, base"
    );
    let wrong = sppmi
        .sql_expression_with(Base::E, &[("k", "-1")])
        .unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "sppmi: parameter `k` is -1, expected a number, above 0, at most 1000000000000000000000000000000"
    );
}

#[test]
fn bad_input_of_every_function_has_a_documented_result_in_sql() {
    use pmill_stats::catalogue::{FunctionKind, entries};
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt/every_function.slt");
    let tested = std::fs::read_to_string(path).unwrap();
    for entry in entries() {
        assert!(!entry.limits.is_empty(), "{}", entry.name);
        // Table functions need a warehouse: tests/python/test_table_functions.py has theirs.
        if entry.kind != FunctionKind::Table {
            assert!(
                tested.contains(&format!("{}(", entry.name)),
                "{}",
                entry.name
            );
        }
    }
}
