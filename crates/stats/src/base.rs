//! The base of a logarithm.

/// The base of a logarithm; scores in base 2 are bits, in base e nats.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Base {
    /// Natural logarithm: nats. The default everywhere.
    #[default]
    E,
    /// Bits.
    Two,
    /// Decimal digits.
    Ten,
    /// Any other base; [`Base::new`] checks it.
    Other(f64),
}

impl Base {
    /// A base from a number: finite and above 1 (below 1 all signs would turn around). `None` otherwise.
    /// ```
    /// use pmill_stats::Base;
    /// assert_eq!(Base::new(2.0), Some(Base::Two));
    /// assert_eq!(Base::new(1.0), None);
    /// ```
    pub fn new(base: f64) -> Option<Base> {
        if base == std::f64::consts::E {
            return Some(Base::E);
        }
        if base == 2.0 {
            return Some(Base::Two);
        }
        if base == 10.0 {
            return Some(Base::Ten);
        }
        (base > 1.0 && base.is_finite()).then_some(Base::Other(base))
    }

    /// The base's natural logarithm: what nats are divided by.
    pub fn ln(self) -> f64 {
        match self {
            Base::E => 1.0,
            Base::Two => std::f64::consts::LN_2,
            Base::Ten => std::f64::consts::LN_10,
            Base::Other(base) => base.ln(),
        }
    }

    /// The base as SQL text: `'e'`, `2`, `10`, ….
    pub fn to_sql(self) -> String {
        match self {
            Base::E => "'e'".to_owned(),
            Base::Two => "2".to_owned(),
            Base::Ten => "10".to_owned(),
            Base::Other(base) => format!("{base:?}"),
        }
    }
}

impl std::str::FromStr for Base {
    type Err = crate::StatsError;

    /// Reads `e`, or a number that [`Base::new`] takes.
    fn from_str(text: &str) -> Result<Base, Self::Err> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("e") {
            return Ok(Base::E);
        }
        text.parse()
            .ok()
            .and_then(Base::new)
            .ok_or_else(|| crate::StatsError::Parameter {
                function: "logarithm".to_owned(),
                parameter: "base".to_owned(),
                found: format!("`{text}`"),
                expected: "`e` or a number above 1, such as 2 or 10".to_owned(),
            })
    }
}
