//! The one list of everything this crate offers in SQL: the reference page, `pmill functions`, the check of
//! `pmill score --measure` and the registration all read it.

mod aggregates;
mod entry;
mod measures;
mod others;
mod page;
mod tables;

use crate::StatsError;
use crate::base::Base;
use crate::block::CountBlock;

pub use crate::estimators::{AggregateSpec, ColumnKind, ColumnSpec};
pub use aggregates::AGGREGATES;
pub use entry::{Entry, FunctionKind, entries};
pub use measures::MEASURES;
pub use others::*;
pub use page::reference_page;
pub use tables::*;

/// A parameter of a function after its counts or columns: a constant of the query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    /// Its name in named notation: `pmi(n_xy, n_x, n_y, n, base => 2)`.
    pub name: &'static str,
    /// What happens when it is left out or NULL.
    pub default: Default,
    /// What it may be.
    pub accepts: Accepts,
    /// What it means, in one line.
    pub help: &'static str,
}

/// The value of a parameter that is left out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Default {
    /// It must be given.
    Required,
    /// This number.
    Number(f64),
    /// This text.
    Text(&'static str),
}

/// The values that a parameter may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Accepts {
    /// The base of a logarithm: a number above 1, or the text `e`.
    Base,
    /// A finite number from `min` to `max`.
    Number {
        /// Smallest value.
        min: f64,
        /// Largest value.
        max: f64,
        /// Whether `min` itself is refused.
        above: bool,
    },
    /// One of these words.
    Word(&'static [&'static str]),
}

/// The largest number of parameters that a measure has.
pub(crate) const MOST_PARAMETERS: usize = 5;

/// Parameters that passed their check, as numbers: a base is its natural logarithm, a word its place in the list.
pub(crate) type Values = [f64; MOST_PARAMETERS];

/// Computes one measure for a block of rows. NaN in `out` means no value.
pub(crate) type Kernel = fn(&Values, &CountBlock, &mut [f64]);

/// A measure: a function of `(n_xy, n_x, n_y, n)` and constants.
#[derive(Clone, Copy)]
pub struct Measure {
    /// SQL name, column name and `--measure` word.
    pub name: &'static str,
    /// What it is, in one line.
    pub title: &'static str,
    /// The formula, in plain text. `a = n_xy`, `b = n_x − n_xy`, `c = n_y − n_xy`, `d = n − n_x − n_y + n_xy`.
    pub formula: &'static str,
    /// The values it can take.
    pub range: &'static str,
    /// The values at zero counts, and where there is none.
    pub limits: &'static str,
    /// Author, year, equation.
    pub source: &'static str,
    /// The constants after the four counts.
    pub parameters: &'static [Parameter],
    /// Whether it looks at contexts without x and without y: then `n_x + n_y − n_xy ≤ n` must hold.
    pub needs_neither: bool,
    /// What to know about contexts that are not independent or not documents; empty when nothing.
    pub event_space_note: &'static str,
    pub(crate) kernel: Kernel,
}

impl std::fmt::Debug for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Measure")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// All measures, in the order of the reference page.
pub fn measures() -> &'static [Measure] {
    MEASURES
}

/// The measure of this name; names are lower case.
/// ```
/// use pmill_stats::{Base, measure};
/// assert_eq!(measure("pmi").unwrap().sql_expression(Base::Two).unwrap(), "pmi(n_xy, n_x, n_y, n, 2)");
/// assert_eq!(measure("npmi").unwrap().sql_expression(Base::Two).unwrap(), "npmi(n_xy, n_x, n_y, n)");
/// assert!(measure("nmpi").is_none());
/// ```
pub fn measure(name: &str) -> Option<&'static Measure> {
    MEASURES.iter().find(|measure| measure.name == name)
}

impl Measure {
    /// Whether the result depends on a base of logarithm that the caller can choose.
    pub fn has_base(&self) -> bool {
        self.parameters
            .iter()
            .any(|parameter| parameter.accepts == Accepts::Base)
    }

    /// The parameters that have no default.
    pub fn required_parameters(&self) -> impl Iterator<Item = &'static Parameter> {
        self.parameters
            .iter()
            .filter(|parameter| parameter.default == Default::Required)
    }

    /// SQL that computes the measure from columns named `n_xy, n_x, n_y, n`, with defaults for the parameters.
    /// A measure without a base ignores `base`.
    ///
    /// # Errors
    /// [`StatsError::MissingParameter`] when a parameter has no default: use [`Measure::sql_expression_with`].
    pub fn sql_expression(&self, base: Base) -> Result<String, StatsError> {
        self.sql_expression_with(base, &[])
    }

    /// As [`Measure::sql_expression`], with parameters by name; a value is SQL text: a number or a quoted word.
    ///
    /// # Errors
    /// A name that the measure lacks, a missing parameter without default, or a value outside its range.
    pub fn sql_expression_with(
        &self,
        base: Base,
        given: &[(&str, &str)],
    ) -> Result<String, StatsError> {
        for (name, _) in given {
            if !self
                .parameters
                .iter()
                .any(|parameter| parameter.name == *name)
            {
                return Err(StatsError::UnknownParameter {
                    function: self.name.to_owned(),
                    parameter: (*name).to_owned(),
                    known: known_names(self.parameters),
                });
            }
        }
        let mut arguments: Vec<String> = ["n_xy", "n_x", "n_y", "n"].map(String::from).to_vec();
        let mut used = arguments.len();
        for parameter in self.parameters {
            let value = given.iter().find(|(name, _)| *name == parameter.name);
            let text = match value {
                Some((_, value)) => {
                    parameter.check(self.name, &Given::from_sql(value))?;
                    used = arguments.len() + 1;
                    (*value).to_owned()
                }
                None if parameter.accepts == Accepts::Base => {
                    if base != Base::E {
                        used = arguments.len() + 1;
                    }
                    base.to_sql()
                }
                None => {
                    parameter.check(self.name, &Given::Nothing)?;
                    "NULL".to_owned()
                }
            };
            arguments.push(text);
        }
        arguments.truncate(used);
        Ok(format!("{}({})", self.name, arguments.join(", ")))
    }

    /// Checks the parameters (in order; missing ones at the end take their defaults) and turns them into numbers.
    pub(crate) fn values(&self, given: &[Given]) -> Result<Values, StatsError> {
        values_of(self.name, self.parameters, given)
    }

    /// Computes the measure for one pair, with parameters in order as SQL would take them.
    /// `None` outside the domain and where the formula leaves the value open.
    ///
    /// # Errors
    /// A parameter outside its range, or missing without a default.
    /// ```
    /// use pmill_stats::{Given, measure};
    /// // 8 contexts, x and y in 4 each, always together: 2 times as often as chance, which is 1 bit.
    /// let pmi = measure("pmi").unwrap();
    /// assert_eq!(pmi.score(4.0, 4.0, 4.0, 8.0, &[Given::Number(2.0)]).unwrap(), Some(1.0));
    /// ```
    pub fn score(
        &self,
        n_xy: f64,
        n_x: f64,
        n_y: f64,
        n: f64,
        parameters: &[Given],
    ) -> Result<Option<f64>, StatsError> {
        let values = self.values(parameters)?;
        let mut out = [f64::NAN];
        (self.kernel)(
            &values,
            &CountBlock::of_floats(&[n_xy], &[n_x], &[n_y], &[n]),
            &mut out,
        );
        Ok((!out[0].is_nan()).then_some(out[0]))
    }

    /// As [`Measure::score`] for integer counts of any size: exact up to 2^64 − 1.
    ///
    /// # Errors
    /// As [`Measure::score`].
    pub fn score_u64(
        &self,
        n_xy: u64,
        n_x: u64,
        n_y: u64,
        n: u64,
        parameters: &[Given],
    ) -> Result<Option<f64>, StatsError> {
        let values = self.values(parameters)?;
        let mut out = [f64::NAN];
        (self.kernel)(
            &values,
            &CountBlock::of_integers(&[n_xy], &[n_x], &[n_y], &[n]),
            &mut out,
        );
        Ok((!out[0].is_nan()).then_some(out[0]))
    }
}

/// Checks parameters (in order; missing ones at the end take their defaults) and turns them into numbers.
pub(crate) fn values_of(
    function: &str,
    parameters: &[Parameter],
    given: &[Given],
) -> Result<Values, StatsError> {
    let mut values = [f64::NAN; MOST_PARAMETERS];
    for (index, parameter) in parameters.iter().enumerate() {
        values[index] = parameter.check(function, given.get(index).unwrap_or(&Given::Nothing))?;
    }
    Ok(values)
}

/// The value of a parameter as it was given.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// Left out, or NULL: the default holds.
    Nothing,
    /// A number.
    Number(f64),
    /// A word.
    Text(String),
}

impl Given {
    fn from_sql(text: &str) -> Given {
        let text = text.trim();
        if text.eq_ignore_ascii_case("null") {
            return Given::Nothing;
        }
        match text.parse() {
            Ok(number) => Given::Number(number),
            Err(_) => Given::Text(text.trim_matches('\'').to_owned()),
        }
    }
}

fn known_names(parameters: &[Parameter]) -> String {
    if parameters.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<&str> = parameters.iter().map(|parameter| parameter.name).collect();
    names.join(", ")
}

impl Parameter {
    /// What the parameter may be, in words.
    pub fn expected(&self) -> String {
        match self.accepts {
            Accepts::Base => "'e' or a number above 1".to_owned(),
            Accepts::Number { min, max, above } => {
                let low = if above {
                    format!("above {min}")
                } else {
                    format!("{min} or more")
                };
                if max.is_infinite() {
                    format!("a number, {low}")
                } else {
                    format!("a number, {low}, at most {max}")
                }
            }
            Accepts::Word(words) => format!("one of '{}'", words.join("', '")),
        }
    }

    /// The default in words: a value, or `required`.
    pub fn default_text(&self) -> String {
        match self.default {
            Default::Required => "required".to_owned(),
            Default::Number(number) => number.to_string(),
            Default::Text(text) => format!("'{text}'"),
        }
    }

    /// Turns what was given into a number: see [`Values`].
    pub(crate) fn check(&self, function: &str, given: &Given) -> Result<f64, StatsError> {
        let fallback;
        let given = match (given, self.default) {
            (Given::Nothing, Default::Required) => {
                return Err(StatsError::MissingParameter {
                    function: function.to_owned(),
                    parameter: self.name.to_owned(),
                    help: self.help.to_owned(),
                });
            }
            (Given::Nothing, Default::Number(number)) => {
                fallback = Given::Number(number);
                &fallback
            }
            (Given::Nothing, Default::Text(text)) => {
                fallback = Given::Text(text.to_owned());
                &fallback
            }
            (given, _) => given,
        };
        let value = match (self.accepts, given) {
            (Accepts::Base, Given::Number(number)) => Base::new(*number).map(Base::ln),
            (Accepts::Base, Given::Text(text)) => text.parse().ok().map(Base::ln),
            (Accepts::Number { min, max, above }, Given::Number(number)) => {
                let low_enough = if above { *number > min } else { *number >= min };
                (low_enough && *number <= max && number.is_finite()).then_some(*number)
            }
            (Accepts::Word(words), Given::Text(text)) => words
                .iter()
                .position(|word| word.eq_ignore_ascii_case(text))
                .map(|place| place as f64),
            _ => None,
        };
        value.ok_or_else(|| StatsError::Parameter {
            function: function.to_owned(),
            parameter: self.name.to_owned(),
            found: match given {
                Given::Nothing => "NULL".to_owned(),
                Given::Number(number) => number.to_string(),
                Given::Text(text) => format!("'{text}'"),
            },
            expected: self.expected(),
        })
    }
}
