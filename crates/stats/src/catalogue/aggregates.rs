//! The table of aggregate functions.

use arrow::datatypes::DataType;

use super::measures::BASE;
use super::{Accepts, Default, Parameter};
use crate::estimators::correlation::{self, Pairs, Pearson};
use crate::estimators::divergence::{ClassConditional, JensenShannon, Sums};
use crate::estimators::entropy::Entropy;
use crate::estimators::moments::{self, Moments};
use crate::estimators::quantiles::{self, Quantiles, UnitTops};
use crate::estimators::table::TableEstimator;
use crate::estimators::table_measures as measure;
use crate::estimators::vectors::{self, Edges, Top};
use crate::estimators::{AggregateSpec, ColumnKind, ColumnSpec};

const fn column(name: &'static str, kind: ColumnKind) -> ColumnSpec {
    ColumnSpec {
        name,
        kind,
        optional: false,
    }
}

const COUNT: ColumnSpec = column("count", ColumnKind::Count);
const X: ColumnSpec = column("x", ColumnKind::Key);
const Y: ColumnSpec = column("y", ColumnKind::Key);
const Z: ColumnSpec = column("z", ColumnKind::Key);
const WEIGHT: ColumnSpec = ColumnSpec {
    name: "count",
    kind: ColumnKind::Count,
    optional: true,
};
const P: ColumnSpec = column("p", ColumnKind::Number);
const Q: ColumnSpec = column("q", ColumnKind::Number);

const CORRECTION: Parameter = Parameter {
    name: "correction",
    default: Default::Text("none"),
    accepts: Accepts::Word(measure::CORRECTIONS),
    help: "'miller-madow' adds the first-order bias, (categories − 1) / (2 N) nats for each entropy",
};

fn number() -> DataType {
    DataType::Float64
}

const BAD_COUNTS: &str = "no rows, or all counts 0: NULL; a negative, NaN or infinite count: NULL; \
     rows with a NULL are left out";
const BAD_CELLS: &str = "no rows, or all counts 0: NULL; a negative or NaN count: NULL; rows with a NULL are left \
     out; the counts add up to 2^64 at most (fractions in steps of 2^-64); count left out or NULL: 1 a row; the \
     distinct cells are kept in memory";
const BAD_NUMBERS: &str = "fewer than 2 rows, or a constant column: NULL; NaN, infinite or outside ±1e70 (or nearer to 0 \
     than 1e-70): NULL; rows with a NULL are left out";
const BAD_VECTORS: &str = "fewer rows than needed, vectors of different lengths, a NULL, NaN or infinite entry: NULL; a \
     constant entry correlates as NULL; the last digits may depend on the order of the rows";

const SHARE: Parameter = Parameter {
    name: "share",
    default: Default::Number(0.5),
    accepts: Accepts::Number {
        min: 0.0,
        max: 1.0,
        above: false,
    },
    help: "share of the values below; 0.5 is the median",
};
const TOP_K: Parameter = Parameter {
    name: "k",
    default: Default::Number(10.0),
    accepts: Accepts::Number {
        min: 1.0,
        max: 1_000_000.0,
        above: false,
    },
    help: "how many",
};

/// All aggregate functions.
pub static AGGREGATES: &[AggregateSpec] = &[
    AggregateSpec {
        name: "entropy",
        title: "Entropy of a column of counts or probabilities, one row a category",
        formula: "−Σ (c/N) · log(c/N), N = Σ c",
        range: "0 … log(categories)",
        limits: BAD_COUNTS,
        source: "Shannon 1948; Miller 1955 (correction)",
        columns: &[COUNT],
        parameters: &[BASE, CORRECTION],
        make: Entropy::make,
        returns: number,
    },
    AggregateSpec {
        name: "joint_entropy",
        title: "Entropy of the pairs (x, y)",
        formula: "−Σ (c/N) · log(c/N) over the cells",
        range: "0 … log(cells)",
        limits: BAD_CELLS,
        source: "Shannon 1948; Miller 1955 (correction)",
        columns: &[X, Y, WEIGHT],
        parameters: &[BASE, CORRECTION],
        make: |values| TableEstimator::boxed("joint_entropy", 2, values, measure::joint_entropy),
        returns: number,
    },
    AggregateSpec {
        name: "conditional_entropy",
        title: "Entropy of x when y is known, H(x | y)",
        formula: "−Σ (c/N) · log(c / n_y) over the cells",
        range: "0 … H(x)",
        limits: BAD_CELLS,
        source: "Shannon 1948; Miller 1955 (correction)",
        columns: &[X, Y, WEIGHT],
        parameters: &[BASE, CORRECTION],
        make: |values| {
            TableEstimator::boxed(
                "conditional_entropy",
                2,
                values,
                measure::conditional_entropy,
            )
        },
        returns: number,
    },
    AggregateSpec {
        name: "mutual_information",
        title: "Mutual information of two columns",
        formula: "Σ (c/N) · log(c · N / (n_x · n_y)) over the cells",
        range: "0 … min(H(x), H(y)); with the correction it may fall below 0",
        limits: BAD_CELLS,
        source: "Shannon 1948; Miller 1955 (correction)",
        columns: &[X, Y, WEIGHT],
        parameters: &[BASE, CORRECTION],
        make: |values| {
            TableEstimator::boxed("mutual_information", 2, values, measure::mutual_information)
        },
        returns: number,
    },
    AggregateSpec {
        name: "normalized_mutual_information",
        title: "Mutual information over the average of the two entropies",
        formula: "I(x; y) / average(H(x), H(y))",
        range: "0 … 1",
        limits: "both columns constant: NULL (0/0); else as mutual_information",
        source: "Strehl & Ghosh 2002; Vinh, Epps & Bailey 2010",
        columns: &[X, Y, WEIGHT],
        parameters: &[Parameter {
            name: "average",
            default: Default::Text("arithmetic"),
            accepts: Accepts::Word(measure::AVERAGES),
            help: "how the two entropies are averaged; scikit-learn's default is the arithmetic mean",
        }],
        make: |values| {
            TableEstimator::boxed(
                "normalized_mutual_information",
                2,
                values,
                measure::normalized_mutual_information,
            )
        },
        returns: number,
    },
    AggregateSpec {
        name: "variation_of_information",
        title: "Distance of two groupings",
        formula: "H(x | y) + H(y | x)",
        range: "0 … log(N)",
        limits: BAD_CELLS,
        source: "Meilă 2003; Miller 1955 (correction)",
        columns: &[X, Y, WEIGHT],
        parameters: &[BASE, CORRECTION],
        make: |values| {
            TableEstimator::boxed(
                "variation_of_information",
                2,
                values,
                measure::variation_of_information,
            )
        },
        returns: number,
    },
    AggregateSpec {
        name: "conditional_mutual_information",
        title: "Mutual information of x and y when z is known",
        formula: "Σ_z (n_z/N) · I(x; y | z)",
        range: "0 … min(H(x|z), H(y|z)); with the correction it may fall below 0",
        limits: BAD_CELLS,
        source: "Cover & Thomas 1991, eq. 2.60; Miller 1955 (correction)",
        columns: &[X, Y, Z, WEIGHT],
        parameters: &[BASE, CORRECTION],
        make: |values| {
            TableEstimator::boxed(
                "conditional_mutual_information",
                3,
                values,
                measure::conditional_mutual_information,
            )
        },
        returns: number,
    },
    AggregateSpec {
        name: "cramers_v",
        title: "Cramér's V: χ² on a scale of 0 to 1",
        formula: "√(χ² / (N · (min(rows, columns) − 1)))",
        range: "0 … 1",
        limits: "a column of one category: NULL (0/0); else as mutual_information",
        source: "Cramér 1946; Bergsma 2013 (correction)",
        columns: &[X, Y, WEIGHT],
        parameters: &[Parameter {
            name: "correction",
            default: Default::Text("none"),
            accepts: Accepts::Word(measure::CRAMER_CORRECTIONS),
            help: "'bergsma' takes off what chance alone would give",
        }],
        make: |values| TableEstimator::boxed("cramers_v", 2, values, measure::cramers_v),
        returns: number,
    },
    AggregateSpec {
        name: "kl_divergence",
        title: "Kullback–Leibler divergence of p from q, one row a category",
        formula: "Σ p · log(p/q), both normalized",
        range: "0 … ∞",
        limits: "p > 0 where q = 0: ∞; p or q adds up to 0, or no rows: NULL; a negative, NaN or infinite value: \
                 NULL; rows with a NULL are left out",
        source: "Kullback & Leibler 1951",
        columns: &[P, Q],
        parameters: &[BASE],
        make: Sums::kullback_leibler,
        returns: number,
    },
    AggregateSpec {
        name: "js_divergence",
        title: "Jensen–Shannon divergence of p and q (not its square root)",
        formula: "½ KL(p, m) + ½ KL(q, m), m = (p + q)/2, both normalized",
        range: "0 … log(2)",
        limits: "p or q adds up to 0, or no rows: NULL; a negative, NaN or infinite value: NULL; rows with a NULL are \
                 left out; the distinct pairs (p, q) are kept in memory",
        source: "Lin 1991",
        columns: &[P, Q],
        parameters: &[BASE],
        make: JensenShannon::make,
        returns: number,
    },
    AggregateSpec {
        name: "cauchy_schwarz_divergence",
        title: "Cauchy–Schwarz divergence of p and q",
        formula: "−log(Σ p·q / √(Σ p² · Σ q²))",
        range: "0 … ∞",
        limits: "nothing in common: ∞; a value outside 0 and 1e-100 … 1e100: NULL; p or q all 0, or no rows: NULL; \
                 rows with a NULL are left out",
        source: "Jenssen, Principe, Erdogmus & Eltoft 2006",
        columns: &[P, Q],
        parameters: &[BASE],
        make: Sums::cauchy_schwarz,
        returns: number,
    },
    AggregateSpec {
        name: "class_conditional_mi",
        title: "What an example's predicted distribution tells beyond its class",
        formula: "(1/n) · [Σ_y n_y · H(Q_y) − Σ_x H(P_x)], Q_y the mean of the class's P_x",
        range: "0 … log(outcomes)",
        limits: "no rows: NULL; a vector with a negative, NaN or NULL entry, of another length, or with a sum off 1 by \
                 more than 0.02: NULL; rows with a NULL are left out",
        source: "concavity of entropy; Cover & Thomas 1991, theorem 2.7.3",
        columns: &[
            column("class", ColumnKind::Key),
            column("probabilities", ColumnKind::Vector),
        ],
        parameters: &[BASE],
        make: ClassConditional::make,
        returns: number,
    },
    AggregateSpec {
        name: "pearson",
        title: "Pearson's correlation of two columns, by exact sums",
        formula: "cov(x, y) / √(var(x) · var(y))",
        range: "−1 … 1",
        limits: BAD_NUMBERS,
        source: "Pearson 1896",
        columns: &[
            column("x", ColumnKind::Number),
            column("y", ColumnKind::Number),
        ],
        parameters: &[],
        make: Pearson::make,
        returns: number,
    },
    AggregateSpec {
        name: "point_biserial",
        title: "Correlation of a yes/no column with a number",
        formula: "pearson(flag, y), flag 0 or 1",
        range: "−1 … 1",
        limits: "a flag that is neither 0 nor 1: NULL; else as pearson",
        source: "Tate 1954",
        columns: &[
            column("flag", ColumnKind::Number),
            column("y", ColumnKind::Number),
        ],
        parameters: &[],
        make: Pearson::point_biserial,
        returns: number,
    },
    AggregateSpec {
        name: "spearman",
        title: "Spearman's rank correlation, ties with their mean rank",
        formula: "pearson(rank(x), rank(y))",
        range: "−1 … 1",
        limits: "as pearson; all pairs of a group are kept in memory (16 bytes each)",
        source: "Spearman 1904",
        columns: &[
            column("x", ColumnKind::Number),
            column("y", ColumnKind::Number),
        ],
        parameters: &[],
        make: Pairs::spearman,
        returns: number,
    },
    AggregateSpec {
        name: "bootstrap_ci",
        title: "A statistic of two columns with its bootstrap interval",
        formula: "percentiles of the statistic over resampled rows",
        range: "struct(estimate, lower, upper)",
        limits: "no rows or a bad value: NULL; a statistic that is undefined (as pearson), or for half of the resamples: its fields are NULL; all pairs of a group are kept in memory",
        source: "Efron 1979; Efron & Tibshirani 1993, chapter 13",
        columns: &[
            column("x", ColumnKind::Number),
            column("y", ColumnKind::Number),
        ],
        parameters: &[
            Parameter {
                name: "statistic",
                default: Default::Text("pearson"),
                accepts: Accepts::Word(correlation::STATISTICS),
                help: "'binned_pearson' correlates the means of equally large bins along x, 'gap' is the mean of y at the top \
                   of x less that at the bottom",
            },
            Parameter {
                name: "confidence",
                default: Default::Number(0.95),
                accepts: Accepts::Number {
                    min: 0.0,
                    max: 0.999_999_999,
                    above: true,
                },
                help: "share of intervals that hold the true value",
            },
            Parameter {
                name: "replicates",
                default: Default::Number(1000.0),
                accepts: Accepts::Number {
                    min: 1.0,
                    max: 1_000_000.0,
                    above: false,
                },
                help: "how many times the rows are drawn again",
            },
            Parameter {
                name: "seed",
                default: Default::Number(0.0),
                accepts: Accepts::Number {
                    min: 0.0,
                    max: 9_007_199_254_740_991.0,
                    above: false,
                },
                help: "another seed, another draw",
            },
            Parameter {
                name: "cut",
                default: Default::Number(0.0),
                accepts: Accepts::Number {
                    min: 0.0,
                    max: 1_000_000.0,
                    above: false,
                },
                help: "number of bins (binned_pearson, 20 when 0) or share at each end (gap, 0.05 when 0)",
            },
        ],
        make: Pairs::bootstrap_ci,
        returns: correlation::interval_type,
    },
    AggregateSpec {
        name: "ntile_summary",
        title: "Equally large bins along x, each with its ends and means",
        formula: "SQL ntile(bins) ordered by x; ties in an order that does not depend on the size of y",
        range: "list of struct(bin, rows, x_min, x_max, x_mean, y_mean)",
        limits: "no rows or a bad value: NULL; fewer rows than bins: one bin a row",
        source: "",
        columns: &[
            column("x", ColumnKind::Number),
            column("y", ColumnKind::Number),
        ],
        parameters: &[Parameter {
            name: "bins",
            default: Default::Number(20.0),
            accepts: Accepts::Number {
                min: 1.0,
                max: 1_000_000.0,
                above: false,
            },
            help: "how many bins",
        }],
        make: Pairs::ntile_summary,
        returns: correlation::tiles_type,
    },
    AggregateSpec {
        name: "moments",
        title: "Rows, mean and covariance of a column of vectors",
        formula: "Chan's update of mean and scatter; covariance = scatter / (rows − ddof)",
        range: "struct(rows, mean, covariance)",
        limits: BAD_VECTORS,
        source: "Chan, Golub & LeVeque 1983",
        columns: &[column("vector", ColumnKind::Vector)],
        parameters: &[Parameter {
            name: "ddof",
            default: Default::Number(1.0),
            accepts: Accepts::Number {
                min: 0.0,
                max: 1.0,
                above: false,
            },
            help: "1 for a sample, 0 for the whole population",
        }],
        make: Moments::moments,
        returns: moments::moments_type,
    },
    AggregateSpec {
        name: "correlation_matrix",
        title: "Pearson's correlation of each entry with each, of one column of vectors or of two",
        formula: "scatter_ij / √(scatter_ii · scatter_jj)",
        range: "matrix of −1 … 1",
        limits: BAD_VECTORS,
        source: "Pearson 1896; Chan, Golub & LeVeque 1983",
        columns: &[
            column("vector", ColumnKind::Vector),
            ColumnSpec {
                name: "other",
                kind: ColumnKind::Vector,
                optional: true,
            },
        ],
        parameters: &[],
        make: Moments::correlation,
        returns: vectors::matrix_type,
    },
    AggregateSpec {
        name: "equal_count_edges",
        title: "Bin edges that cut the distinct values of all entries into equally many",
        formula: "edge j = sorted distinct value number ⌊j · m / bins⌋",
        range: "rising list of at most bins − 1 edges",
        limits: "no values, a NULL or NaN entry: NULL; fewer distinct values than bins: one bin a value; all distinct values are kept in memory",
        source: "Chelombiev, Houghton & O'Donnell 2019",
        columns: &[column("vector", ColumnKind::Vector)],
        parameters: &[Parameter {
            name: "bins",
            default: Default::Number(30.0),
            accepts: Accepts::Number {
                min: 1.0,
                max: 1_000_000.0,
                above: false,
            },
            help: "how many bins",
        }],
        make: Edges::make,
        returns: vectors::list_type,
    },
    AggregateSpec {
        name: "top_k",
        title: "The k largest values with their labels",
        formula: "ORDER BY value DESC, label LIMIT k, within the group",
        range: "list of struct(value, label)",
        limits: "no rows, or a NaN: NULL; rows with a NULL are left out",
        source: "",
        columns: &[
            column("value", ColumnKind::Number),
            column("label", ColumnKind::Key),
        ],
        parameters: &[TOP_K],
        make: Top::make,
        returns: vectors::top_type,
    },
    AggregateSpec {
        name: "exact_quantile",
        title: "Exact quantile of a column",
        formula: "v_(⌊h⌋) + (h − ⌊h⌋) · (v_(⌊h⌋+1) − v_(⌊h⌋)), h = share · (rows − 1), v sorted from 0",
        range: "smallest … largest value",
        limits: "no rows, or a NaN: NULL; rows with a NULL are left out; all values of a group are kept in memory (8 bytes each)",
        source: "Hyndman & Fan 1996, type 7 (as NumPy's default)",
        columns: &[column("value", ColumnKind::Number)],
        parameters: &[SHARE],
        make: Quantiles::of_numbers,
        returns: number,
    },
    AggregateSpec {
        name: "unit_quantile",
        title: "Exact quantile of each entry of a column of vectors: of each unit",
        formula: "exact_quantile of entry 1, of entry 2, …",
        range: "list of numbers, one a unit",
        limits: "no rows, vectors of different lengths, a NULL or NaN entry: NULL; all values of a group are kept in memory (8 bytes each)",
        source: "Hyndman & Fan 1996, type 7 (as NumPy's default)",
        columns: &[column("vector", ColumnKind::Vector)],
        parameters: &[SHARE],
        make: Quantiles::of_units,
        returns: vectors::list_type,
    },
    AggregateSpec {
        name: "unit_top_k",
        title: "The k largest values of each entry of a column of vectors, with their labels",
        formula: "top_k of entry 1, of entry 2, …",
        range: "list, one a unit, of lists of struct(value, label)",
        limits: "no rows, vectors of different lengths, a NULL or NaN entry: NULL; k values and labels a unit are kept in memory",
        source: "",
        columns: &[
            column("vector", ColumnKind::Vector),
            column("label", ColumnKind::Key),
        ],
        parameters: &[TOP_K],
        make: UnitTops::make,
        returns: quantiles::unit_tops_type,
    },
];
