//! The table of measures: words for people, a kernel for machines.

use super::{Accepts, Default, Measure, Parameter, Values};
use crate::block::{CountBlock, Measured};
use crate::cells::Cells;
use crate::measures::fisher::{self, Alternative};
use crate::measures::{deviation, information, interval, overlap};
use crate::special::two_sided_z;

pub(super) const BASE: Parameter = Parameter {
    name: "base",
    default: Default::Text("e"),
    accepts: Accepts::Base,
    help: "base of the logarithm: 'e' gives nats, 2 bits",
};

const PAIR_SMOOTHING: Parameter = Parameter {
    name: "pair_smoothing",
    default: Default::Number(1.0),
    accepts: Accepts::Number {
        min: 0.0,
        max: 1e30,
        above: false,
    },
    help: "added to n_xy",
};

const UNIGRAM_SMOOTHING: Parameter = Parameter {
    name: "unigram_smoothing",
    default: Default::Number(1000.0),
    accepts: Accepts::Number {
        min: 0.0,
        max: 1e30,
        above: false,
    },
    help: "added to n_x and to n_y",
};

/// Makes a kernel: a function that computes the expression for each row of a block, after the parameters were prepared
/// once for the block.
macro_rules! kernel {
    ($neither:expr, |$cells:ident, $values:ident| $body:expr) => {
        kernel!($neither, Values::clone, |$cells, $values| $body)
    };
    ($neither:expr, $prepare:expr, |$cells:ident, $values:ident| $body:expr) => {{
        struct Body(Values);
        impl Measured for Body {
            #[inline(always)]
            fn at<C: Cells>(&self, $cells: C) -> f64 {
                let $values = &self.0;
                let _ = $values;
                $body
            }
        }
        fn run(values: &Values, block: &CountBlock, out: &mut [f64]) {
            block.apply($neither, out, Body($prepare(values)));
        }
        run
    }};
}

const CONFIDENCE: Parameter = Parameter {
    name: "confidence",
    default: Default::Number(0.95),
    accepts: Accepts::Number {
        min: 0.0,
        max: 0.999_999_999,
        above: true,
    },
    help: "share of intervals that hold the true value",
};

/// `[confidence, ln base]` becomes `[normal quantile, ln base, probability beyond each end]`.
fn prepare_bound(values: &Values) -> Values {
    let mut prepared = *values;
    prepared[0] = two_sided_z(values[0]);
    prepared[2] = 0.5 * (1.0 - values[0]);
    prepared
}

const ANY_CONTEXT: &str = "";
const INDEPENDENT: &str = "assumes independent contexts: right for documents and rows; window events of one text \
     depend on each other, so the value overstates the evidence";

/// All measures.
pub static MEASURES: &[Measure] = &[
    Measure {
        name: "pmi",
        title: "Pointwise mutual information: how many times as often as by chance, as a logarithm",
        formula: "log(n_xy · n / (n_x · n_y))",
        range: "−∞ … log(n)",
        limits: "n_xy = 0: −∞; n_x = 0 or n_y = 0: NULL",
        source: "Fano 1961, Transmission of Information; Church & Hanks 1990, eq. 1",
        parameters: &[BASE],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| information::pmi(cells) / values[0]),
    },
    Measure {
        name: "npmi",
        title: "Normalized PMI: PMI over the information of the pair",
        formula: "ln(n_xy · n / (n_x · n_y)) / −ln(n_xy / n)",
        range: "−1 … 1",
        limits: "n_xy = 0: −1; n_xy = n: NULL (0/0); n_x = 0 or n_y = 0: NULL",
        source: "Bouma 2009, eq. 7",
        parameters: &[],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| information::npmi(cells)),
    },
    Measure {
        name: "ppmi",
        title: "Positive PMI: PMI, or 0 where it is negative",
        formula: "max(0, pmi)",
        range: "0 … log(n)",
        limits: "n_xy = 0: 0; n_x = 0 or n_y = 0: NULL",
        source: "Niwa & Nitta 1994; Bullinaria & Levy 2007",
        parameters: &[BASE],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| information::ppmi(cells) / values[0]),
    },
    Measure {
        name: "sppmi",
        title: "Shifted positive PMI: what skip-gram with k negative samples factorizes",
        formula: "max(0, pmi − log(k))",
        range: "0 … log(n)",
        limits: "n_xy = 0: 0; n_x = 0 or n_y = 0: NULL",
        source: "Levy & Goldberg 2014, eq. 11",
        parameters: &[
            Parameter {
                name: "k",
                default: Default::Number(5.0),
                accepts: Accepts::Number {
                    min: 0.0,
                    max: 1e30,
                    above: true,
                },
                help: "number of negative samples",
            },
            BASE,
        ],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| information::sppmi(cells, values[0])
            / values[1]),
    },
    Measure {
        name: "pmi_k",
        title: "PMI with the joint probability to the power k: PMI², PMI³",
        formula: "log(p_xy^k / (p_x · p_y))",
        range: "−∞ … log(n); at most 0 for k ≥ 2",
        limits: "n_xy = 0: −∞; n_x = 0 or n_y = 0: NULL",
        source: "Daille 1994; Role & Nadif 2011, eq. 5",
        parameters: &[
            Parameter {
                name: "k",
                default: Default::Number(2.0),
                accepts: Accepts::Number {
                    min: 0.0,
                    max: 1000.0,
                    above: true,
                },
                help: "the power",
            },
            BASE,
        ],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| information::pmi_k(cells, values[0])
            / values[1]),
    },
    Measure {
        name: "cpmi",
        title: "PMI with context-distribution smoothing: y's probability is n_y^alpha over their sum",
        formula: "log((n_xy / n_x) / (n_y^alpha / smoothed_total))",
        range: "−∞ … ∞",
        limits: "n_xy = 0: −∞; n_x = 0 or n_y = 0: NULL; n_y^alpha above smoothed_total: NULL",
        source: "Levy, Goldberg & Dagan 2015, eq. 3",
        parameters: &[
            Parameter {
                name: "smoothed_total",
                default: Default::Required,
                accepts: Accepts::Number {
                    min: 0.0,
                    max: 1e30,
                    above: true,
                },
                help: "sum of n_y^alpha over all y: SELECT sum(power(count, alpha)) FROM vocab",
            },
            Parameter {
                name: "alpha",
                default: Default::Number(0.75),
                accepts: Accepts::Number {
                    min: 0.0,
                    max: 1.0,
                    above: false,
                },
                help: "the exponent; 1 is plain PMI when smoothed_total = n",
            },
            BASE,
        ],
        needs_neither: false,
        event_space_note: "made for window contexts, where the n_y add up to n",
        kernel: kernel!(false, |cells, values| {
            information::cpmi(cells, values[1], values[0]) / values[2]
        }),
    },
    Measure {
        name: "pmi_smoothed",
        title: "PMI with additive smoothing",
        formula: "log((n_xy + pair_smoothing) · n / ((n_x + unigram_smoothing)(n_y + unigram_smoothing)))",
        range: "−∞ … ∞",
        limits: "n_xy = 0 with pair_smoothing = 0: −∞; 0/0: NULL",
        source: "Church & Gale 1991 (additive smoothing)",
        parameters: &[PAIR_SMOOTHING, UNIGRAM_SMOOTHING, BASE],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| {
            information::pmi_smoothed(cells, values[0], values[1]) / values[2]
        }),
    },
    Measure {
        name: "qu_xie",
        title: "The caption score of Qu & Xie: smoothed as PMI, without the factor n, so it ranks but is no PMI",
        formula: "log((n_xy + pair_smoothing) / ((n_x + unigram_smoothing)(n_y + unigram_smoothing)))",
        range: "−∞ … ∞",
        limits: "n_xy = 0 with pair_smoothing = 0: −∞; 0/0: NULL",
        source: "Qu & Xie 2025, published code",
        parameters: &[PAIR_SMOOTHING, UNIGRAM_SMOOTHING, BASE],
        needs_neither: false,
        event_space_note: "the published code uses sums of pair counts as n_x and n_y (marginals = pairs)",
        kernel: kernel!(false, |cells, values| {
            information::qu_xie(cells, values[0], values[1]) / values[2]
        }),
    },
    Measure {
        name: "lmi",
        title: "Local mutual information: PMI times the count of the pair",
        formula: "n_xy · log(n_xy · n / (n_x · n_y))",
        range: "about −n/e … n·log(n)",
        limits: "n_xy = 0: 0; n_x = 0 or n_y = 0: NULL",
        source: "Evert 2005, section 3.1.5",
        parameters: &[BASE],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| information::lmi(cells) / values[0]),
    },
    Measure {
        name: "lfmd",
        title: "Log-frequency biased mutual dependency (PMI³)",
        formula: "log(p_xy² / (p_x · p_y)) + log(p_xy)",
        range: "−∞ … 0",
        limits: "n_xy = 0: −∞; n_x = 0 or n_y = 0: NULL",
        source: "Thanopoulos, Fakotakis & Kokkinakis 2002",
        parameters: &[BASE],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| information::lfmd(cells) / values[0]),
    },
    Measure {
        name: "log_dice",
        title: "logDice: Dice on a scale of doublings, the same for any corpus size",
        formula: "14 + log2(2 · n_xy / (n_x + n_y))",
        range: "−∞ … 14",
        limits: "n_xy = 0: −∞; n_x = n_y = 0: NULL",
        source: "Rychlý 2008",
        parameters: &[],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| overlap::log_dice(cells)),
    },
    Measure {
        name: "dice",
        title: "Dice coefficient",
        formula: "2 · n_xy / (n_x + n_y)",
        range: "0 … 1",
        limits: "n_x = n_y = 0: NULL",
        source: "Dice 1945",
        parameters: &[],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| overlap::dice(cells)),
    },
    Measure {
        name: "jaccard",
        title: "Jaccard index: contexts with both over contexts with either",
        formula: "n_xy / (n_x + n_y − n_xy)",
        range: "0 … 1",
        limits: "n_x = n_y = 0: NULL",
        source: "Jaccard 1912",
        parameters: &[],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| overlap::jaccard(cells)),
    },
    Measure {
        name: "cosine",
        title: "Cosine of the two occurrence vectors (Ochiai coefficient)",
        formula: "n_xy / √(n_x · n_y)",
        range: "0 … 1",
        limits: "n_x = 0 or n_y = 0: NULL",
        source: "Ochiai 1957",
        parameters: &[],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| overlap::cosine(cells)),
    },
    Measure {
        name: "overlap",
        title: "Overlap coefficient: share of the rarer one",
        formula: "n_xy / min(n_x, n_y)",
        range: "0 … 1",
        limits: "n_x = 0 or n_y = 0: NULL",
        source: "Szymkiewicz 1934; Simpson 1943",
        parameters: &[],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| overlap::overlap(cells)),
    },
    Measure {
        name: "confidence",
        title: "Confidence of x → y: p(y | x)",
        formula: "n_xy / n_x",
        range: "0 … 1",
        limits: "n_x = 0: NULL",
        source: "Agrawal, Imieliński & Swami 1993",
        parameters: &[],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| overlap::confidence(cells)),
    },
    Measure {
        name: "lift",
        title: "Lift (interest): how many times as often as by chance",
        formula: "n_xy · n / (n_x · n_y)",
        range: "0 … n",
        limits: "n_xy = 0: 0; n_x = 0 or n_y = 0: NULL",
        source: "Brin, Motwani, Ullman & Tsur 1997",
        parameters: &[],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| overlap::lift(cells)),
    },
    Measure {
        name: "leverage",
        title: "Leverage: joint probability above chance",
        formula: "n_xy/n − (n_x/n)(n_y/n)",
        range: "−0.25 … 0.25",
        limits: "none: defined for every table",
        source: "Piatetsky-Shapiro 1991",
        parameters: &[],
        needs_neither: false,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(false, |cells, values| overlap::leverage(cells)),
    },
    Measure {
        name: "conviction",
        title: "Conviction of x → y: how many times as often x would come without y by chance",
        formula: "(n_x / n)(1 − n_y / n) / ((n_x − n_xy) / n)",
        range: "0 … ∞; 1 at independence",
        limits: "n_xy = n_x: ∞; n_xy = n_x and n_y = n, or n_x = 0: NULL (0/0)",
        source: "Brin, Motwani, Ullman & Tsur 1997, section 2.2",
        parameters: &[],
        needs_neither: true,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(true, |cells, values| overlap::conviction(cells)),
    },
    Measure {
        name: "delta_p",
        title: "ΔP of x → y: p(y | x) − p(y | not x); swap n_x and n_y for the other direction",
        formula: "a / (a + b) − c / (c + d)",
        range: "−1 … 1",
        limits: "n_x = 0 or n_x = n: NULL",
        source: "Allan 1980; Gries 2013",
        parameters: &[],
        needs_neither: true,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(true, |cells, values| deviation::delta_p(cells)),
    },
    Measure {
        name: "odds_ratio",
        title: "Odds ratio of the 2 × 2 table",
        formula: "a · d / (b · c)",
        range: "0 … ∞; 1 at independence",
        limits: "b · c = 0 < a · d: ∞; a · d = b · c = 0: NULL",
        source: "Cornfield 1951",
        parameters: &[],
        needs_neither: true,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(true, |cells, values| overlap::odds_ratio(cells)),
    },
    Measure {
        name: "t_score",
        title: "t-score: count above chance in its own standard deviations",
        formula: "(n_xy − e) / √n_xy, e = n_x · n_y / n",
        range: "−∞ … √n",
        limits: "n_xy = 0: −∞; n_x = 0 or n_y = 0: NULL",
        source: "Church, Gale, Hanks & Hindle 1991",
        parameters: &[],
        needs_neither: false,
        event_space_note: INDEPENDENT,
        kernel: kernel!(false, |cells, values| deviation::t_score(cells)),
    },
    Measure {
        name: "z_score",
        title: "z-score: count above chance in the expected standard deviations",
        formula: "(n_xy − e) / √e, e = n_x · n_y / n",
        range: "−√n … n",
        limits: "n_x = 0 or n_y = 0: NULL",
        source: "Dennis 1965; Berry-Rogghe 1973",
        parameters: &[],
        needs_neither: false,
        event_space_note: INDEPENDENT,
        kernel: kernel!(false, |cells, values| deviation::z_score(cells)),
    },
    Measure {
        name: "phi",
        title: "φ coefficient: the correlation of the two yes/no variables",
        formula: "(a·d − b·c) / √(n_x · n_y · (n − n_x) · (n − n_y))",
        range: "−1 … 1",
        limits: "a margin of 0 or n: NULL",
        source: "Yule 1912",
        parameters: &[],
        needs_neither: true,
        event_space_note: ANY_CONTEXT,
        kernel: kernel!(true, |cells, values| deviation::phi(cells)),
    },
    Measure {
        name: "chi_squared",
        title: "Pearson's χ² of the 2 × 2 table, without Yates' correction",
        formula: "n · (a·d − b·c)² / (n_x · n_y · (n − n_x) · (n − n_y))",
        range: "0 … n",
        limits: "a margin of 0 or n: NULL",
        source: "Pearson 1900",
        parameters: &[],
        needs_neither: true,
        event_space_note: INDEPENDENT,
        kernel: kernel!(true, |cells, values| deviation::chi_squared(cells)),
    },
    Measure {
        name: "log_likelihood_ratio",
        title: "Log-likelihood ratio G²; compare with χ² of one degree of freedom",
        formula: "2 · Σ O · ln(O / E) over the four cells",
        range: "0 … 2·n·ln(2)",
        limits: "a margin of 0 or n: NULL",
        source: "Dunning 1993",
        parameters: &[],
        needs_neither: true,
        event_space_note: INDEPENDENT,
        kernel: kernel!(true, |cells, values| deviation::log_likelihood_ratio(cells)),
    },
    Measure {
        name: "poisson_stirling",
        title: "Poisson significance by Stirling's formula",
        formula: "n_xy · (log(n_xy · n / (n_x · n_y)) − 1)",
        range: "−n_xy … n·log(n)",
        limits: "n_xy = 0: 0; n_x = 0 or n_y = 0: NULL",
        source: "Quasthoff & Wolff 2002; NLTK takes base 2",
        parameters: &[BASE],
        needs_neither: false,
        event_space_note: INDEPENDENT,
        kernel: kernel!(false, |cells, values| information::poisson_stirling(
            cells, values[0]
        )),
    },
    Measure {
        name: "gensim_default",
        title: "gensim's default phrase score: uses the number of types, not n",
        formula: "(n_xy − min_count) / n_x / n_y · vocabulary_size",
        range: "−∞ … ∞",
        limits: "n_x = 0 or n_y = 0: NULL",
        source: "Mikolov, Sutskever, Chen, Corrado & Dean 2013, eq. 6; gensim original_scorer",
        parameters: &[
            Parameter {
                name: "vocabulary_size",
                default: Default::Required,
                accepts: Accepts::Number {
                    min: 0.0,
                    max: 1e30,
                    above: true,
                },
                help: "number of types (gensim's len_vocab)",
            },
            Parameter {
                name: "min_count",
                default: Default::Number(5.0),
                accepts: Accepts::Number {
                    min: 0.0,
                    max: 1e30,
                    above: false,
                },
                help: "discount, as gensim's min_count",
            },
        ],
        needs_neither: false,
        event_space_note: "gensim counts adjacent tokens: n_x and n_y are token counts, n is not used",
        kernel: kernel!(false, |cells, values| {
            overlap::gensim_default(cells, values[0], values[1])
        }),
    },
    Measure {
        name: "fisher_exact",
        title: "Fisher's exact test: the natural logarithm of p, which does not vanish for strong pairs",
        formula: "ln Σ P(table) over the tables of the same margins that are at least as extreme",
        range: "−∞ … 0",
        limits: "a margin of 0 or n: 0 (only one table); counts that are not whole: NULL",
        source: "Fisher 1922; two-sided as in R and SciPy: all tables that are no more probable",
        parameters: &[Parameter {
            name: "alternative",
            default: Default::Text("two-sided"),
            accepts: Accepts::Word(fisher::ALTERNATIVES),
            help: "'greater' asks whether the pair comes more often than by chance",
        }],
        needs_neither: true,
        event_space_note: INDEPENDENT,
        kernel: kernel!(true, |cells, values| {
            fisher::fisher_exact(cells, Alternative::from_place(values[0]))
        }),
    },
    Measure {
        name: "pmi_variance",
        title: "Variance of the PMI estimate, in nats²",
        formula: "n_xy ≥ 5: 1/n_xy − 1/n_x − 1/n_y + 2·n_xy/(n_x·n_y) − 1/n; below: ψ′(n_xy + ½) − ψ′(n_min + 1) \
                  + max(0, (2·n_xy/n_min − 1)/n_max − 1/n)",
        range: "0 … 5",
        limits: "n_xy = 0: the posterior's variance; n_x = 0 or n_y = 0: NULL",
        source: "delta method on the multinomial; below 5 a Beta posterior under Jeffreys' prior",
        parameters: &[],
        needs_neither: true,
        event_space_note: INDEPENDENT,
        kernel: kernel!(true, |cells, values| interval::pmi_variance(cells)),
    },
    Measure {
        name: "pmi_lower",
        title: "Lower end of the confidence interval of the PMI",
        formula: "n_xy ≥ 5: pmi − z·√pmi_variance; below: quantile of the Beta(n_xy + ½, n_min − n_xy + ½) posterior of \
                  the share of the rarer one, widened by the variance of the other margin",
        range: "−∞ … pmi",
        limits: "n_xy = 0: −∞; n_x = 0 or n_y = 0: NULL",
        source: "delta method; Brown, Cai & DasGupta 2001 (Jeffreys interval); Zou & Donner 2008 (combination)",
        parameters: &[CONFIDENCE, BASE],
        needs_neither: true,
        event_space_note: INDEPENDENT,
        kernel: kernel!(true, prepare_bound, |cells, values| {
            interval::pmi_bound(cells, values[0], values[2], false) / values[1]
        }),
    },
    Measure {
        name: "pmi_upper",
        title: "Upper end of the confidence interval of the PMI",
        formula: "as pmi_lower, the other end",
        range: "pmi … ∞",
        limits: "n_xy = 0: finite, from the posterior; n_x = 0 or n_y = 0: NULL",
        source: "as pmi_lower",
        parameters: &[CONFIDENCE, BASE],
        needs_neither: true,
        event_space_note: INDEPENDENT,
        kernel: kernel!(true, prepare_bound, |cells, values| {
            interval::pmi_bound(cells, values[0], values[2], true) / values[1]
        }),
    },
];
