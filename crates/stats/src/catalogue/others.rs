//! Functions that are neither measures of four counts nor aggregates.

use super::measures::BASE;
use super::{Accepts, Default, Parameter};

/// What a [`FunctionDoc`] is in SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One value a row from that row.
    Scalar,
    /// One value a row from its partition: needs `OVER (…)`.
    Window,
}

/// A function of the catalogue.
#[derive(Debug)]
pub struct FunctionDoc {
    /// SQL name.
    pub name: &'static str,
    /// Scalar or window.
    pub kind: Kind,
    /// What it is, in one line.
    pub title: &'static str,
    /// The arguments before the parameters: name and type.
    pub arguments: &'static [(&'static str, &'static str)],
    /// The formula, in plain text.
    pub formula: &'static str,
    /// The values it can take.
    pub range: &'static str,
    /// NULLs, edges, bad input.
    pub limits: &'static str,
    /// Author, year.
    pub source: &'static str,
    /// The constants after the arguments.
    pub parameters: &'static [Parameter],
    /// A query that shows it.
    pub example: &'static str,
}

/// `benjamini_hochberg`.
pub static BENJAMINI_HOCHBERG: FunctionDoc = FunctionDoc {
    name: "benjamini_hochberg",
    kind: Kind::Window,
    title: "p-values adjusted for many tests: the false discovery rate at which each is still called",
    arguments: &[("p", "number")],
    formula: "min over ranks j ≥ i of p_(j) · m / j, at most 1, over the partition",
    range: "0 … 1; with scale 'ln' −∞ … 0",
    limits: "NULL, NaN and values outside the range are no tests: NULL, and not counted in m",
    source: "Benjamini & Hochberg 1995",
    parameters: &[Parameter {
        name: "scale",
        default: Default::Text("p"),
        accepts: Accepts::Word(&["p", "ln"]),
        help: "'ln' takes and gives natural logarithms, as fisher_exact does",
    }],
    example: "SELECT *, benjamini_hochberg(fisher_exact(n_xy, n_x, n_y, n), 'ln') OVER () AS ln_q FROM pmi",
};

/// `count_problem`.
pub static COUNT_PROBLEM: FunctionDoc = FunctionDoc {
    name: "count_problem",
    kind: Kind::Scalar,
    title: "Why a measure is NULL for these counts, in words",
    arguments: &[
        ("n_xy", "number"),
        ("n_x", "number"),
        ("n_y", "number"),
        ("n", "number"),
    ],
    formula: "the first rule of the domain that is broken",
    range: "a text, or NULL when the counts are in order",
    limits: "a count is NULL: says so",
    source: "",
    parameters: &[],
    example: "SELECT *, count_problem(n_xy, n_x, n_y, n) FROM pmi WHERE pmi IS NULL",
};

/// `bootstrap_weight`.
pub static BOOTSTRAP_WEIGHT: FunctionDoc = FunctionDoc {
    name: "bootstrap_weight",
    kind: Kind::Scalar,
    title: "How often a document comes in one bootstrap replicate: a block bootstrap that merges",
    arguments: &[
        ("key", "integer or text: the document"),
        ("replicate", "integer"),
    ],
    formula: "a Poisson(1) number from a hash of (key, replicate, seed)",
    range: "0, 1, 2, …",
    limits: "NULL in, NULL out",
    source: "Hanley & MacGibbon 2006; Chamandy, Muralidharan, Najmi & Naidu 2012",
    parameters: &[Parameter {
        name: "seed",
        default: Default::Number(0.0),
        accepts: Accepts::Number {
            min: 0.0,
            max: 9_007_199_254_740_991.0,
            above: false,
        },
        help: "another seed, another bootstrap",
    }],
    example: "SELECT r, sum(bootstrap_weight(doc, r) * n_xy) AS n_xy \
              FROM by_document, generate_series(1, 200) AS t(r) GROUP BY r",
};

/// `vector_entropy`.
pub static VECTOR_ENTROPY: FunctionDoc = FunctionDoc {
    name: "vector_entropy",
    kind: Kind::Scalar,
    title: "Entropy of the numbers of one list, normalized: attention entropy of one row",
    arguments: &[("vector", "list of numbers")],
    formula: "−Σ (v/S) · log(v/S), S = Σ v",
    range: "0 … log(length)",
    limits: "an empty list, a sum of 0, a NULL, negative, NaN or infinite entry: NULL",
    source: "Shannon 1948; for attention Clark, Khandelwal, Levy & Manning 2019",
    parameters: &[BASE],
    example: "SELECT layer, head, avg(vector_entropy(attention)) FROM 'attention.parquet' GROUP BY layer, head",
};

/// `bin_index`.
pub static BIN_INDEX: FunctionDoc = FunctionDoc {
    name: "bin_index",
    kind: Kind::Scalar,
    title: "The bin of a number",
    arguments: &[("value", "number"), ("edges", "list of numbers, rising")],
    formula: "how many edges are at most the value",
    range: "0 … number of edges",
    limits: "a NULL or NaN value, NULL edges, edges with NULL or NaN or not rising: NULL",
    source: "",
    parameters: &[],
    example: "SELECT bin_index(0.3, [0.0, 0.5])",
};

/// `bin_vector`.
pub static BIN_VECTOR: FunctionDoc = FunctionDoc {
    name: "bin_vector",
    kind: Kind::Scalar,
    title: "The bins of all numbers of a list, as one text: the state of a layer for mutual_information",
    arguments: &[
        ("vector", "list of numbers"),
        ("edges", "list of numbers, rising"),
    ],
    formula: "bin_index of each entry, joined by commas",
    range: "text",
    limits: "a NULL or NaN entry: NULL; edges as in bin_index",
    source: "Chelombiev, Houghton & O'Donnell 2019",
    parameters: &[],
    example: "WITH e AS (SELECT equal_count_edges(activation, 30) AS edges FROM acts) \
              SELECT mutual_information(bin_vector(activation, edges), label, NULL, 2) FROM acts, e",
};

/// `von_neumann_entropy`.
pub static VON_NEUMANN_ENTROPY: FunctionDoc = FunctionDoc {
    name: "von_neumann_entropy",
    kind: Kind::Scalar,
    title: "Von Neumann entropy of a covariance matrix",
    arguments: &[("matrix", "list of lists of numbers")],
    formula: "−Σ λ · log(λ) over the eigenvalues λ, divided by their sum",
    range: "0 … log(side)",
    limits: "not square, not symmetric, a NULL or NaN, an eigenvalue clearly below 0, or all 0: NULL",
    source: "von Neumann 1932",
    parameters: &[BASE],
    example: "SELECT von_neumann_entropy(moments(activation)['covariance']) FROM acts",
};

/// `effective_rank`.
pub static EFFECTIVE_RANK: FunctionDoc = FunctionDoc {
    name: "effective_rank",
    kind: Kind::Scalar,
    title: "Effective rank of a covariance matrix: how many directions carry the variance",
    arguments: &[("matrix", "list of lists of numbers")],
    formula: "exp(von_neumann_entropy(matrix))",
    range: "1 … side",
    limits: "as von_neumann_entropy",
    source: "Roy & Vetterli 2007",
    parameters: &[],
    example: "SELECT layer, effective_rank(moments(activation)['covariance']) FROM acts GROUP BY layer",
};

/// `matrix_entries`.
pub static MATRIX_ENTRIES: FunctionDoc = FunctionDoc {
    name: "matrix_entries",
    kind: Kind::Scalar,
    title: "The entries of a matrix as rows, for unnest",
    arguments: &[("matrix", "list of lists of numbers")],
    formula: "a list of (row, column, value), both counted from 1",
    range: "list of structs",
    limits: "NULL in, NULL out",
    source: "",
    parameters: &[],
    example: "SELECT e['row'], e['column'], e['value'] \
              FROM (SELECT unnest(matrix_entries(correlation_matrix(activation))) AS e FROM acts)",
};

/// All of them, in the order of the reference page.
pub static OTHERS: &[&FunctionDoc] = &[
    &BENJAMINI_HOCHBERG,
    &COUNT_PROBLEM,
    &BOOTSTRAP_WEIGHT,
    &VECTOR_ENTROPY,
    &BIN_INDEX,
    &BIN_VECTOR,
    &VON_NEUMANN_ENTROPY,
    &EFFECTIVE_RANK,
    &MATRIX_ENTRIES,
];
