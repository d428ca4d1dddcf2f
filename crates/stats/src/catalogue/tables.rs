//! Functions that give a table, for `FROM`. They read a warehouse or count files, so the engine runs them; what they
//! take and give is written here, for the reference page, `pmill functions` and the engine's reading of arguments.

/// An argument of a table function: a constant, by place or by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    /// Its name in named notation: `cooccur('a.parquet', 'TEXT', window => 5)`.
    pub name: &'static str,
    /// Its value when it is left out or NULL, as SQL text, or in words; `None` when it must be given.
    pub default: Option<&'static str>,
    /// What it means, in one line.
    pub help: &'static str,
}

/// A function for `FROM`.
#[derive(Debug)]
pub struct TableFunctionDoc {
    /// SQL name.
    pub name: &'static str,
    /// What it gives, in one line.
    pub title: &'static str,
    /// The arguments in their order.
    pub arguments: &'static [Argument],
    /// The columns of the table: name and meaning.
    pub columns: &'static [(&'static str, &'static str)],
    /// The formula, in plain text.
    pub formula: &'static str,
    /// Bad input, memory, disk.
    pub limits: &'static str,
    /// Author, year.
    pub source: &'static str,
    /// A query that shows it.
    pub example: &'static str,
}

const fn required(name: &'static str, help: &'static str) -> Argument {
    Argument {
        name,
        default: None,
        help,
    }
}

const fn optional(name: &'static str, default: &'static str, help: &'static str) -> Argument {
    Argument {
        name,
        default: Some(default),
        help,
    }
}

/// `cooccur`.
pub static COOCCUR: TableFunctionDoc = TableFunctionDoc {
    name: "cooccur",
    title: "Pairs straight from Parquet files, counted as `pmill count` counts them, inside a query",
    arguments: &[
        required(
            "files",
            "a path, glob, folder or file:// URI, or a list of them",
        ),
        required(
            "column",
            "the text column; a path through structs as meta.caption",
        ),
        optional("context", "'document'", "'document' or 'window'"),
        optional("window", "10", "how many tokens apart (context window)"),
        optional(
            "weight",
            "'uniform'",
            "'uniform', 'harmonic' or 'dynamic' (context window)",
        ),
        optional(
            "side",
            "'symmetric'",
            "'symmetric', 'left' or 'right' (context window)",
        ),
        optional("vocab_size", "all", "the most frequent terms, so many"),
        optional("min_count", "1", "terms that occur this often"),
        optional("vocab", "none", "a file of terms, one a line"),
        optional(
            "tokenizer",
            "'words'",
            "'words', 'whitespace', 'icu', 'qu-xie' or 'huggingface:PATH'",
        ),
        optional("stop_words", "'none'", "'english', 'none' or a file"),
        optional(
            "min_length",
            "0",
            "features of fewer code points are dropped",
        ),
        optional("drop_numeric", "false", "whether numbers are dropped"),
        optional("lemma", "none", "'wordnet:FOLDER' or 'file:PATH'"),
        optional("phrases", "none", "a file of phrases, one a line"),
        optional(
            "concepts",
            "none",
            "a file of concepts, one a line; nothing else is a feature",
        ),
        optional(
            "out_of_vocabulary",
            "'removed'",
            "'removed' or 'gap' (context window)",
        ),
        optional("subsample", "none", "word2vec's threshold (context window)"),
        optional(
            "max_features_per_document",
            "all",
            "the most frequent distinct features of a row (context document)",
        ),
        optional(
            "marginals",
            "'documents' for the context document, else 'pairs'",
            "what n_x, n_y and n count",
        ),
        optional(
            "min_pair_count",
            "0",
            "pairs with a smaller n_xy are left out",
        ),
        optional("on_bad_file", "'fail'", "'fail' or 'skip'"),
    ],
    columns: &[
        ("left", "a feature"),
        ("right", "the other; a symmetric pair comes once"),
        ("n_xy", "contexts with both"),
        ("n_x", "contexts with left"),
        ("n_y", "contexts with right"),
        ("n", "all contexts"),
    ],
    formula: "the counts of pmill count and pmill score, see docs/counting.md",
    limits: "files are counted when the query runs, once for each time the function stands in it; counting takes up to half \
             of the session's memory limit, and temporary files of about the size of the count table, which go when the query \
             ends; a bad file, column or setting is an error",
    source: "",
    example: "SELECT \"left\", \"right\", npmi(n_xy, n_x, n_y, n) AS score \
              FROM cooccur('captions/*.parquet', 'TEXT', context => 'window', window => 5) ORDER BY score DESC LIMIT 10",
};

/// `neighbours`.
pub static NEIGHBOURS: TableFunctionDoc = TableFunctionDoc {
    name: "neighbours",
    title: "The k features that score highest with one word",
    arguments: &[
        required("job", "the job's name"),
        required("word", "the feature, as it stands in the job's vocab"),
        optional("k", "10", "how many"),
        optional(
            "measure",
            "'npmi'",
            "a score column of the job's pmi, or a measure, with parameters as 'sppmi(k=10)'",
        ),
        optional(
            "min_pair_count",
            "0",
            "pairs with a smaller n_xy are left out",
        ),
        optional(
            "slice",
            "none",
            "the slice, for a job that is counted by slice",
        ),
    ],
    columns: &[
        ("rank", "1, 2, …"),
        ("neighbour", "the other feature"),
        ("score", "the measure, x = the word, y = the neighbour"),
        ("n_xy", "contexts with both"),
        ("n_x", "contexts with the word"),
        ("n_y", "contexts with the neighbour"),
        ("n", "all contexts"),
    ],
    formula: "the k largest scores; equal ones by n_xy, then by the neighbour's bytes",
    limits: "a score column of pmi is taken as it was scored (base, smoothing), unless the measure tells x from y; anything \
             else is computed from the counts. A job that is not scored is asked for its counts, and so is a slice. Directed windows: neighbours \
             on the right of the word. A word that is not in the vocabulary is an error; one without pairs gives no row; pairs \
             whose score is NULL are left out. A job with a sketch: partners among its exact terms, and a word beyond them is an error",
    source: "",
    example: "SELECT * FROM neighbours('captions', 'dog', 5, measure => 'log_likelihood_ratio')",
};

/// `drift`.
pub static DRIFT: TableFunctionDoc = TableFunctionDoc {
    name: "drift",
    title: "How pairs changed from one job (a) to another (b) that were counted with the same settings, or between two slices or versions of one",
    arguments: &[
        required("a", "the job before; 'job@3' is its version 3"),
        required("b", "the job after"),
        optional(
            "to",
            "none",
            "a slice: then a is one job, b and this are the two slices of it that are compared",
        ),
        optional(
            "min_pair_count",
            "0",
            "pairs with a smaller n_xy in both together are left out",
        ),
        optional(
            "slice_a",
            "none",
            "the slice of a, when a is counted by slice",
        ),
        optional("slice_b", "none", "the slice of b"),
    ],
    columns: &[
        ("left", "a feature"),
        ("right", "the other"),
        (
            "n_xy_a",
            "contexts with both in a; then n_x_a, n_y_a, n_a, and the same of b",
        ),
        (
            "pmi_a",
            "PMI in a, and pmi_b in b; −∞ for a pair that is not there",
        ),
        (
            "pmi_difference",
            "pmi_b − pmi_a; NULL when one side has no such pair",
        ),
        ("pmi_z", "pmi_difference over its standard error"),
        (
            "log_odds_difference",
            "log odds of the pair in b less those in a; finite also for new and vanished pairs",
        ),
        ("log_odds_z", "log_odds_difference over its standard error"),
        (
            "js",
            "what the pair adds to the Jensen–Shannon divergence of the two distributions over pairs, in nats",
        ),
    ],
    formula: "pmi_z = (pmi_b − pmi_a) / √(pmi_variance(a) + pmi_variance(b)); log odds = ln((n_xy + ½) / (n − n_xy + ½)) with \
              variance 1/(n_xy + ½) + 1/(n − n_xy + ½); js = ½ p ln(p/m) + ½ q ln(q/m), p = n_xy_a / Σ n_xy_a, q likewise of b, \
              m = (p + q)/2: sum(js) is the divergence over the rows without min_pair_count, and js_divergence(n_xy_a, n_xy_b) \
              that over any rows",
    limits: "only features in both vocabularies are compared, so that a count of 0 is an observed one; jobs whose settings \
             differ are refused, with the difference, and jobs with a sketch; |z| above 1.96 is 5 % of the pairs by chance alone: benjamini_hochberg \
             over 2·(1 − Φ(|z|)) corrects for many pairs; the two must not share documents (as two versions of a job that grew do: then z is too small); window events depend on each \
             other, so their z is too large, and only its order is to be trusted. The pairs of both jobs are added up by \
             DataFusion within the session's memory limit, spilling to disk",
    source: "Anscombe 1956 and Gart & Zweifel 1967 (½ and the variance); Lin 1991; pmi_variance as there",
    example: "SELECT \"left\", \"right\", n_xy_a, n_xy_b, log_odds_z FROM drift('y2023', 'y2024') ORDER BY abs(log_odds_z) DESC LIMIT 20",
};

/// `absent_pairs`.
pub static ABSENT_PAIRS: TableFunctionDoc = TableFunctionDoc {
    name: "absent_pairs",
    title: "The pairs of a job's vocabulary that never met: those with n_xy = 0",
    arguments: &[required("job", "the job's name")],
    columns: &[
        ("left", "a feature"),
        ("right", "the other; a symmetric pair comes once"),
        ("n_x", "contexts with left"),
        ("n_y", "contexts with right"),
        ("n", "all contexts"),
    ],
    formula: "all pairs of the vocabulary without those of the job's pairs; n_x, n_y and n as in neighbours",
    limits: "v features have about v²/2 pairs, twice as many with directed windows: the rows are streamed, and no more than \
             the vocabulary is held. Of a job with a sketch only pairs of its exact terms: of others it cannot be said that they \
             never met. For windows a feature that never met itself comes too. Jobs of two columns are refused",
    source: "",
    example: "SELECT \"left\", \"right\", n_x * n_y / n AS expected FROM absent_pairs('captions') ORDER BY expected DESC LIMIT 20",
};

/// `estimate`.
pub static ESTIMATE: TableFunctionDoc = TableFunctionDoc {
    name: "estimate",
    title: "The counts of named pairs, also of those that a job keeps in a sketch only",
    arguments: &[
        required("job", "the job's name"),
        required("left", "a feature, or a list of features"),
        required(
            "right",
            "the other; two lists are of the same length and taken in turn, one word goes with all of the other list",
        ),
    ],
    columns: &[
        ("left", "a feature"),
        ("right", "the other"),
        (
            "n_xy",
            "contexts with both; never less than the truth when it is approximate",
        ),
        (
            "n_xy_low",
            "with the chance that pmill inspect tells, the truth is not below; n_xy when that is exact",
        ),
        ("n_x", "contexts with left, exact"),
        ("n_y", "contexts with right, exact"),
        ("n", "all contexts, exact"),
        ("approximate", "whether n_xy is an estimate of the sketch"),
    ],
    formula: "n_xy of a sketched pair: the smallest of its D cells; n_xy_low = max(0, n_xy − e/W · sum of the sketched counts), \
              W cells a hash row, which holds with probability 1 − e^−D",
    limits: "a row for each pair in the order asked, with n_xy = 0 for an exact pair that never met; a sketched pair that never \
             met may have any n_xy up to the error. A word that is not in the vocabulary is an error. One hash row of the sketch \
             is held at a time. Jobs of slices and of two columns are refused",
    source: "Cormode & Muthukrishnan 2005, Theorem 1",
    example: "SELECT *, pmi(n_xy, n_x, n_y, n) AS pmi FROM estimate('wide', 'aardvark', ['ant', 'zebra'])",
};

/// `matrix_rows`.
pub static MATRIX_ROWS: TableFunctionDoc = TableFunctionDoc {
    name: "matrix_rows",
    title: "The entries of a matrix as a table",
    arguments: &[required(
        "matrix",
        "a list of lists of numbers, or a query in brackets that gives one",
    )],
    columns: &[
        ("row", "from 1"),
        ("column", "from 1"),
        ("value", "the entry; NULL where it has none"),
    ],
    formula: "unnest(matrix_entries(matrix))",
    limits: "a NULL matrix has no rows; for one matrix a group, unnest matrix_entries in the query of the groups",
    source: "",
    example: "SELECT * FROM matrix_rows((SELECT correlation_matrix(activation) FROM acts)) WHERE \"row\" < \"column\"",
};

/// All of them, in the order of the reference page.
pub static TABLE_FUNCTIONS: &[&TableFunctionDoc] = &[
    &COOCCUR,
    &NEIGHBOURS,
    &DRIFT,
    &ABSENT_PAIRS,
    &ESTIMATE,
    &MATRIX_ROWS,
];
