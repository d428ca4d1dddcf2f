//! Arguments of table functions: by name or by place, constants only, each checked with a message that names it.

use datafusion::common::{ScalarValue, plan_datafusion_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::planner::{
    RelationPlanner, RelationPlannerContext, RelationPlanning,
};
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, FunctionArg, FunctionArgExpr, Ident, ObjectName, TableFactor, Value,
};
use pmill_stats::catalogue::{TABLE_FUNCTIONS, TableFunctionDoc};

use crate::error::nearest_name;

/// Brings `name => value` to its place, NULL where nothing is given; also makes the names of our functions
/// indifferent to case, as SQL's are.
#[derive(Debug)]
pub(super) struct NamedArguments;

impl RelationPlanner for NamedArguments {
    fn plan_relation(
        &self,
        mut relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        if let TableFactor::Table {
            name,
            args: Some(given),
            ..
        } = &mut relation
            && let [part] = name.0.as_slice()
            && let Some(ident) = part.as_ident()
            && let function = context.normalize_ident(ident.clone())
            && let Some(doc) = TABLE_FUNCTIONS.iter().find(|doc| doc.name == function)
        {
            given.args = in_place(doc, std::mem::take(&mut given.args))?;
            *name = ObjectName::from(vec![Ident::new(function)]);
        }
        Ok(RelationPlanning::Original(Box::new(relation)))
    }
}

fn in_place(doc: &TableFunctionDoc, given: Vec<FunctionArg>) -> Result<Vec<FunctionArg>> {
    let mut places: Vec<Option<FunctionArgExpr>> = vec![None; doc.arguments.len()];
    let mut named = false;
    let signature = || {
        let names: Vec<&str> = doc.arguments.iter().map(|argument| argument.name).collect();
        format!("{}({})", doc.name, names.join(", "))
    };
    for (place, argument) in given.into_iter().enumerate() {
        let (name, value) = match argument {
            FunctionArg::Unnamed(value) => {
                if named {
                    return plan_err!(
                        "{}: an argument without a name stands after one with a name",
                        doc.name
                    );
                }
                match places.get_mut(place) {
                    Some(slot) => *slot = Some(value),
                    None => return plan_err!("too many arguments: {}", signature()),
                }
                continue;
            }
            FunctionArg::Named { name, arg, .. } => (name.value, arg),
            FunctionArg::ExprNamed { name, arg, .. } => (name.to_string(), arg),
        };
        named = true;
        let name = name.trim_matches('"').to_ascii_lowercase();
        let known = doc.arguments.iter().map(|argument| argument.name);
        let Some(place) = known.clone().position(|argument| argument == name) else {
            let nearest = nearest_name(&name, known)
                .map(|name| format!(" (did you mean `{name}`?)"))
                .unwrap_or_default();
            return plan_err!("no argument `{name}`{nearest}: {}", signature());
        };
        if places[place].replace(value).is_some() {
            return plan_err!("{}: `{name}` is given twice", doc.name);
        }
    }
    let null = || FunctionArgExpr::Expr(SqlExpr::Value(Value::Null.into()));
    let used = places
        .iter()
        .rposition(Option::is_some)
        .map_or(0, |last| last + 1);
    places.truncate(used);
    Ok(places
        .into_iter()
        .map(|value| FunctionArg::Unnamed(value.unwrap_or_else(null)))
        .collect())
}

/// The constants of one call.
pub(super) struct Arguments<'a> {
    doc: &'static TableFunctionDoc,
    values: &'a [Expr],
}

impl<'a> Arguments<'a> {
    /// # Errors
    /// When there are too many, or a required one is missing.
    pub(super) fn new(doc: &'static TableFunctionDoc, values: &'a [Expr]) -> Result<Self> {
        let arguments = Self { doc, values };
        if values.len() > doc.arguments.len() {
            return plan_err!(
                "{} takes {} arguments, found {}",
                doc.name,
                doc.arguments.len(),
                values.len()
            );
        }
        for argument in doc.arguments {
            let given = arguments
                .expression(argument.name)
                .is_some_and(|value| !matches!(value, Expr::Literal(value, _) if value.is_null()));
            if argument.default.is_none() && !given {
                return plan_err!(
                    "{}: `{}` is missing: {}",
                    doc.name,
                    argument.name,
                    argument.help
                );
            }
        }
        Ok(arguments)
    }

    /// The argument as it stands in the query.
    pub(super) fn expression(&self, name: &str) -> Option<&'a Expr> {
        let place = self
            .doc
            .arguments
            .iter()
            .position(|argument| argument.name == name);
        debug_assert!(
            place.is_some(),
            "{name} is no argument of {}",
            self.doc.name
        );
        self.values.get(place?)
    }

    fn constant(&self, name: &str) -> Result<Option<&'a ScalarValue>> {
        match self.expression(name) {
            None => Ok(None),
            Some(Expr::Literal(value, _)) => Ok((!value.is_null()).then_some(value)),
            Some(other) => plan_err!(
                "{}: `{name}` must be a constant, found {other}",
                self.doc.name
            ),
        }
    }

    fn wrong<T>(&self, name: &str, found: &ScalarValue, expected: &str) -> Result<T> {
        plan_err!(
            "{}: `{name}` is {found}, expected {expected}",
            self.doc.name
        )
    }

    /// A text.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(value) = self.constant(name)? else {
            return Ok(None);
        };
        match value.try_as_str() {
            Some(Some(text)) => Ok(Some(text.to_owned())),
            _ => self.wrong(name, value, "a text"),
        }
    }

    /// A text that must be given.
    pub(super) fn required_text(&self, name: &str) -> Result<String> {
        self.text(name)?
            .ok_or_else(|| plan_datafusion_err!("{}: `{name}` is missing", self.doc.name))
    }

    /// A text, or a list of texts.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<String>> {
        let Some(value) = self.constant(name)? else {
            return Ok(Vec::new());
        };
        if let Some(Some(text)) = value.try_as_str() {
            return Ok(vec![text.to_owned()]);
        }
        let ScalarValue::List(list) = value else {
            return self.wrong(name, value, "a text or a list of texts");
        };
        let mut texts = Vec::new();
        for items in ScalarValue::convert_array_to_scalar_vec(list.as_ref())?
            .into_iter()
            .flatten()
        {
            for item in items {
                match item.try_as_str() {
                    Some(Some(text)) => texts.push(text.to_owned()),
                    _ => return self.wrong(name, value, "a text or a list of texts"),
                }
            }
        }
        Ok(texts)
    }

    /// Yes or no.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.constant(name)? {
            None => Ok(None),
            Some(ScalarValue::Boolean(Some(flag))) => Ok(Some(*flag)),
            Some(value) => self.wrong(name, value, "true or false"),
        }
    }

    /// A number, 0 or more.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.constant(name)? else {
            return Ok(None);
        };
        let number = value
            .data_type()
            .is_numeric()
            .then(|| value.cast_to(&datafusion::arrow::datatypes::DataType::Float64));
        match number.transpose()? {
            Some(ScalarValue::Float64(Some(number))) if number >= 0.0 && number.is_finite() => {
                Ok(Some(number))
            }
            _ => self.wrong(name, value, "a number, 0 or more"),
        }
    }

    /// A whole number, 0 or more.
    pub(super) fn whole<T: TryFrom<u64>>(&self, name: &str) -> Result<Option<T>> {
        let Some(number) = self.number(name)? else {
            return Ok(None);
        };
        let whole = (number.fract() == 0.0 && number < 9e15)
            .then(|| T::try_from(number as u64).ok())
            .flatten();
        match (whole, self.constant(name)?) {
            (Some(whole), _) => Ok(Some(whole)),
            (None, Some(value)) => self.wrong(name, value, "a whole number in range"),
            (None, None) => Ok(None),
        }
    }

    /// A word of a settings type; what it may be is told by the type.
    pub(super) fn word<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match serde_json::from_value(serde_json::Value::String(text.clone())) {
            Ok(value) => Ok(Some(value)),
            Err(error) => plan_err!("{}: `{name}` is '{text}': {error}", self.doc.name),
        }
    }
}
