//! The reference page, written from the catalogue: `docs/functions.md` is this text, and a test says when it is stale.

use std::fmt::Write;

use super::others::Kind;
use super::{AGGREGATES, ColumnKind, MEASURES, OTHERS, Parameter};

const INTRODUCTION: &str = "\
# Functions

Every statistical function that pmill adds to SQL: association measures of a pair, estimators over many rows, and helpers. \
They are there in `pmill sql`, in the servers and on a cluster; `pmill score --measure` takes the names of the measures.

This page is written from the program (`UPDATE_PAGE=1 cargo test -p pmill-stats page`); a test fails when it is stale.

## What the counts mean

A measure is a function of four counts over the same *contexts*: `n_xy` contexts with both features, `n_x` with x, `n_y` \
with y, `n` in all. What one context is, the count table says:

| context | one event is | `n_x`, `n_y` | `n` |
| --- | --- | --- | --- |
| `document` | a row of the corpus | rows that hold the feature | rows |
| `row` | a row, features from two columns | rows that hold the feature on its side | rows |
| `window` | a weighted pair of positions | row sum and column sum of the pair counts | sum of all pair counts |

Programs differ here and so do their scores: gensim's default score uses the number of types in the place of `n`, text2vec \
the number of pair events. The tests of significance (`t_score`, `z_score`, `chi_squared`, `log_likelihood_ratio`, \
`fisher_exact`) and the intervals (`pmi_variance`, `pmi_lower`, `pmi_upper`) assume that contexts are independent. Documents \
nearly are; window events of one text are not, and a score from them overstates the evidence. For windows take a bootstrap \
by document, as below. The weights come from a hash, so the sums of parts of a corpus add up to those of the whole.

```sql
-- by_document(doc, x, y, c): weighted window counts of each document
WITH drawn AS (
  SELECT r, x, y, sum(bootstrap_weight(doc, r) * c) AS n_xy
  FROM by_document CROSS JOIN (SELECT unnest(range(1, 401)) AS r) GROUP BY r, x, y),
scored AS (
  SELECT x, y, pmi(n_xy, sum(n_xy) OVER (PARTITION BY r, x), sum(n_xy) OVER (PARTITION BY r, y),
                   sum(n_xy) OVER (PARTITION BY r)) AS score FROM drawn)
SELECT x, y, percentile_cont(0.025) WITHIN GROUP (ORDER BY score) AS low,
             percentile_cont(0.975) WITHIN GROUP (ORDER BY score) AS high
FROM scored GROUP BY x, y
```

## One rule for bad input

Constants (a base, a confidence, a correction) are settings: a wrong one is an error that names it. Data never is: a measure \
is **NULL** when a count is NULL, when the counts are impossible, and when the formula leaves the value open (0/0). Possible \
counts are `0 ≤ n_xy ≤ n_x, n_y ≤ n` and `n > 0`, each 0 or within 1e-30 … 1e30; measures marked *table* also need \
`n_x + n_y − n_xy ≤ n`. `count_problem(n_xy, n_x, n_y, n)` says which rule a row breaks. No function returns NaN. Limits at \
zero counts are given below.

Int64 and UInt64 counts are used as they are, exact up to 2^64 − 1; smaller integers likewise; floats and decimals as the \
nearest f64 (fractional window weights are floats). PMI, and every difference from chance, is computed from \
`n_xy · n − n_x · n_y` without rounding it, so that scores near zero have all their digits.

Logarithms are natural unless `base` says otherwise. Arguments may be named: `pmi(n_xy, n_x, n_y, n, base => 2)`. An optional \
argument before another may be NULL: `mutual_information(x, y, NULL, 2)`.

Exact quantiles, also by unit, are the engine's `percentile_cont(q) WITHIN GROUP (ORDER BY v)`; equally large bins its \
`ntile`.

Aggregates merge exactly: counts are added as integers and floats without rounding until the end, so the number of files, \
threads and machines does not change a bit of the result. The exceptions are `moments` and `correlation_matrix`, whose last \
digits may depend on the order of rows.
";

fn parameter_rows(out: &mut String, parameters: &[Parameter]) {
    for parameter in parameters {
        let _ = writeln!(
            out,
            "- `{}`: {}; {}; default {}",
            parameter.name,
            parameter.help,
            parameter.expected(),
            parameter.default_text()
        );
    }
}

fn line(out: &mut String, name: &str, text: &str) {
    if !text.is_empty() {
        let _ = writeln!(out, "- {name}: {text}");
    }
}

fn parameter_names(parameters: &[Parameter]) -> String {
    parameters.iter().fold(String::new(), |names, parameter| {
        let required = parameter.default == super::Default::Required;
        names
            + &if required {
                format!(", {}", parameter.name)
            } else {
                format!(" [, {}]", parameter.name)
            }
    })
}

/// The whole reference page as Markdown.
pub fn reference_page() -> String {
    let mut out = String::from(INTRODUCTION);
    out.push_str("\n## Measures of a pair\n\n`a = n_xy`, `b = n_x − n_xy`, `c = n_y − n_xy`, `d = n − n_x − n_y + n_xy`.\n");
    for measure in MEASURES {
        let _ = writeln!(out, "\n### {}\n\n{}.\n", measure.name, measure.title);
        let _ = writeln!(
            out,
            "`{}(n_xy, n_x, n_y, n{})`\n",
            measure.name,
            parameter_names(measure.parameters)
        );
        line(&mut out, "formula", &format!("`{}`", measure.formula));
        parameter_rows(&mut out, measure.parameters);
        line(&mut out, "range", measure.range);
        line(&mut out, "limits", measure.limits);
        line(
            &mut out,
            "counts",
            if measure.needs_neither { "*table*" } else { "" },
        );
        line(&mut out, "contexts", measure.event_space_note);
        line(&mut out, "source", measure.source);
    }
    out.push_str("\n## Aggregates\n");
    for spec in AGGREGATES {
        let mut columns = String::new();
        for column in spec.columns {
            let comma = if columns.is_empty() { "" } else { ", " };
            match column.optional {
                true => columns.push_str(&format!(" [{comma}{}]", column.name)),
                false => columns.push_str(&format!("{comma}{}", column.name)),
            }
        }
        let _ = writeln!(out, "\n### {}\n\n{}.\n", spec.name, spec.title);
        let _ = writeln!(
            out,
            "`{}({columns}{})`\n",
            spec.name,
            parameter_names(spec.parameters)
        );
        for column in spec.columns {
            let kind = match column.kind {
                ColumnKind::Count => "a count or weight, 0 or more",
                ColumnKind::Key => "a category: integer, text, yes/no or date",
                ColumnKind::Number => "a number",
                ColumnKind::Vector => "a list of numbers",
            };
            let optional = if column.optional {
                "; may be left out"
            } else {
                ""
            };
            let _ = writeln!(out, "- `{}`: {kind}{optional}", column.name);
        }
        parameter_rows(&mut out, spec.parameters);
        line(&mut out, "formula", &format!("`{}`", spec.formula));
        line(&mut out, "range", spec.range);
        line(&mut out, "limits", spec.limits);
        line(&mut out, "source", spec.source);
    }
    for (kind, heading) in [
        (Kind::Window, "Window functions"),
        (Kind::Scalar, "Other functions"),
    ] {
        let _ = writeln!(out, "\n## {heading}");
        for doc in OTHERS.iter().filter(|doc| doc.kind == kind) {
            let names: Vec<&str> = doc.arguments.iter().map(|(name, _)| *name).collect();
            let over = if kind == Kind::Window {
                " OVER (PARTITION BY …)"
            } else {
                ""
            };
            let _ = writeln!(out, "\n### {}\n\n{}.\n", doc.name, doc.title);
            let _ = writeln!(
                out,
                "`{}({}{}){over}`\n",
                doc.name,
                names.join(", "),
                parameter_names(doc.parameters)
            );
            for (name, what) in doc.arguments {
                let _ = writeln!(out, "- `{name}`: {what}");
            }
            parameter_rows(&mut out, doc.parameters);
            line(&mut out, "formula", doc.formula);
            line(&mut out, "range", doc.range);
            line(&mut out, "limits", doc.limits);
            line(&mut out, "source", doc.source);
            let _ = writeln!(out, "\n```sql\n{}\n```", doc.example);
        }
    }
    out
}
