//! The reference page, written from the catalogue: `docs/functions.md` is this text, and a test says when it is stale.

use std::fmt::Write;

use super::entry::{FunctionKind, entries};

const INTRODUCTION: &str = "\
# Functions

Every statistical function that pmill adds to SQL: association measures of a pair, estimators over many rows, and helpers. \
They are there in `pmill sql`, in the servers and on a cluster; `pmill score --measure` takes the names of the measures.

This page is written from the program (`UPDATE_PAGE=1 cargo test -p pmill-stats page`); a test fails when it is stale. \
`pmill functions NAME` prints one entry, `pmill functions --json` all of them. [sql.md](sql.md) has worked examples.

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

Equally large bins are the engine's `ntile`. Activations may be lists, or wide columns made into lists: \
`moments(make_array(unit_0, unit_1, unit_2))`.

Aggregates merge exactly: counts are added as integers and floats without rounding until the end, so the number of files, \
threads and machines does not change a bit of the result. The exceptions are `moments` and `correlation_matrix`, whose last \
digits may depend on the order of rows.
";

/// The whole reference page as Markdown.
pub fn reference_page() -> String {
    let mut out = String::from(INTRODUCTION);
    let mut kind = None;
    for entry in entries() {
        if kind != Some(entry.kind) {
            kind = Some(entry.kind);
            let _ = writeln!(out, "\n## {}", entry.kind.heading());
            if entry.kind == FunctionKind::Measure {
                out.push_str("\n`a = n_xy`, `b = n_x − n_xy`, `c = n_y − n_xy`, `d = n − n_x − n_y + n_xy`.\n");
            }
        }
        let _ = write!(out, "\n{}", entry.markdown());
    }
    out
}
