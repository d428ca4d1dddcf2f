//! What the parser of `datafusion-pg-catalog` leaves and the engine cannot run, in the questions that
//! clients ask of the system tables: said in another way with the same answer.

use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::cast::as_string_array;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, create_udf,
};
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::{
    self, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName,
    SetExpr, Statement, TableFactor, Value, VisitMut, VisitorMut,
};

/// System tables of things that a warehouse has none of: defaults, sequences, collations of columns.
const NOTHING: [&str; 3] = ["pg_attrdef", "pg_sequence", "pg_collation"];

/// Rewrites a statement in place.
pub(crate) fn rewrite(statement: &mut Statement) {
    // The visitor never breaks off.
    let _ = VisitMut::visit(statement, &mut Rewriter);
}

struct Rewriter;

impl VisitorMut for Rewriter {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Like {
                pattern,
                escape_char,
                ..
            }
            | Expr::ILike {
                pattern,
                escape_char,
                ..
            } => unescape(pattern, escape_char),
            // What is asked of nothing is NULL, and so is a choice between nothing and nothing.
            Expr::Subquery(query) if asks_nothing(query) => *expr = null(),
            // A column of `pg_class` that there is not: no table has options.
            Expr::CompoundIdentifier(parts)
                if parts.last().is_some_and(|part| part.value == "reloptions") =>
            {
                *expr = null();
            }
            Expr::Case {
                conditions,
                else_result,
                ..
            } if conditions.iter().all(|when| is_null(&when.result))
                && else_result.as_deref().is_none_or(is_null) =>
            {
                *expr = null();
            }
            Expr::Function(function) => subscripts(function),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn null() -> Expr {
    Expr::Cast {
        kind: ast::CastKind::Cast,
        expr: Box::new(Expr::Value(Value::Null.into())),
        data_type: ast::DataType::Text,
        array: false,
        format: None,
    }
}

fn is_null(expr: &Expr) -> bool {
    match expr {
        Expr::Value(value) => value.value == Value::Null,
        Expr::Cast { expr, .. } => is_null(expr),
        _ => false,
    }
}

/// Whether a query reads one of [`NOTHING`] first.
fn asks_nothing(query: &ast::Query) -> bool {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return false;
    };
    let Some(TableFactor::Table { name, .. }) = select.from.first().map(|from| &from.relation)
    else {
        return false;
    };
    let last = name.0.last().and_then(|part| part.as_ident());
    last.is_some_and(|name| NOTHING.contains(&name.value.as_str()))
}

/// `x LIKE pattern ESCAPE '/'` → `x LIKE like_pattern(pattern, '/')`: the engine knows the backslash only.
fn unescape(pattern: &mut Box<Expr>, escape_char: &mut Option<ast::ValueWithSpan>) {
    let Some(escape) = escape_char.take() else {
        return;
    };
    if escape.value == Value::SingleQuotedString("\\".to_owned()) {
        return;
    }
    let old = std::mem::replace(pattern.as_mut(), Expr::Value(Value::Null.into()));
    **pattern = call(LIKE_PATTERN, vec![old, Expr::Value(escape)]);
}

/// `generate_subscripts(array, 1)` in a SELECT list → `unnest(generate_series(1, cardinality))`.
fn subscripts(function: &mut Function) {
    let is_ours = function
        .name
        .0
        .last()
        .and_then(|part| part.as_ident())
        .is_some_and(|name| name.value.eq_ignore_ascii_case("generate_subscripts"));
    let FunctionArguments::List(list) = &function.args else {
        return;
    };
    let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(array))) = list.args.first() else {
        return;
    };
    if !is_ours {
        return;
    }
    let length = Expr::Cast {
        kind: ast::CastKind::Cast,
        expr: Box::new(call("array_length", vec![array.clone()])),
        data_type: ast::DataType::BigInt(None),
        array: false,
        format: None,
    };
    let one = Expr::Value(Value::Number("1".to_owned(), false).into());
    let all = call("generate_series", vec![one, length]);
    if let Expr::Function(new) = call("unnest", vec![all]) {
        *function = new;
    }
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(ast::FunctionArgumentList {
            duplicate_treatment: None,
            args: arguments
                .into_iter()
                .map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)))
                .collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

const LIKE_PATTERN: &str = "like_pattern";

/// Registers the functions that rewritten statements and clients call.
pub(super) fn install(context: &SessionContext) {
    context.register_udf(create_udf(
        LIKE_PATTERN,
        vec![DataType::Utf8, DataType::Utf8],
        DataType::Utf8,
        Volatility::Immutable,
        Arc::new(|arguments| {
            let arrays = ColumnarValue::values_to_arrays(arguments)?;
            let (patterns, escapes) = (as_string_array(&arrays[0])?, as_string_array(&arrays[1])?);
            let out = patterns
                .iter()
                .zip(escapes)
                .map(|(pattern, escape)| {
                    pattern
                        .zip(escape)
                        .map(|(p, e)| backslashed(p, e))
                        .transpose()
                })
                .collect::<Result<StringArray>>()?;
            Ok(ColumnarValue::Array(Arc::new(out) as ArrayRef))
        }),
    ));
    for name in ["pg_get_serial_sequence", "pg_get_indexdef"] {
        context.register_udf(ScalarUDF::from(Absent::new(name)));
    }
    context.register_udf(create_udf(
        "current_setting",
        vec![DataType::Utf8],
        DataType::Utf8,
        Volatility::Stable,
        Arc::new(|arguments| {
            let arrays = ColumnarValue::values_to_arrays(arguments)?;
            let names = as_string_array(&arrays[0])?;
            let values: StringArray = names.iter().map(|name| setting(name?)).collect();
            Ok(ColumnarValue::Array(Arc::new(values) as ArrayRef))
        }),
    ));
}

/// The settings of PostgreSQL that clients ask for; NULL for any other.
fn setting(name: &str) -> Option<&'static str> {
    Some(match name {
        "server_version" => super::catalog::SERVER_VERSION,
        "default_table_access_method" => "heap",
        "search_path" => "public",
        "client_encoding" | "server_encoding" => "UTF8",
        "transaction_read_only" | "default_transaction_read_only" => "on",
        _ => return None,
    })
}

/// A pattern with its own escape character, said with backslashes. No escape character is an empty one.
pub(crate) fn backslashed(pattern: &str, escape: &str) -> Result<String> {
    let mut letters = escape.chars();
    let escape = letters.next();
    if letters.next().is_some() {
        return Err(DataFusionError::Execution(
            "ESCAPE takes one character".to_owned(),
        ));
    }
    let mut out = String::with_capacity(pattern.len());
    let mut letters = pattern.chars();
    while let Some(mut letter) = letters.next() {
        let mut literal = letter == '\\';
        if Some(letter) == escape {
            letter = letters.next().ok_or_else(|| {
                DataFusionError::Execution(
                    "the LIKE pattern must not end with its escape character".to_owned(),
                )
            })?;
            literal = matches!(letter, '%' | '_' | '\\');
        }
        if literal {
            out.push('\\');
        }
        out.push(letter);
    }
    Ok(out)
}

/// A function about things that a warehouse has none of: NULL whatever is asked.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Absent {
    name: &'static str,
    signature: Signature,
}

impl Absent {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            signature: Signature::variadic_any(Volatility::Stable),
        }
    }
}

impl ScalarUDFImpl for Absent {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(None)))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    fn rewritten(sql: &str) -> String {
        let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap();
        rewrite(&mut statements[0]);
        statements[0].to_string()
    }

    #[test]
    fn questions_are_said_another_way() {
        for (asked, said) in [
            (
                "SELECT 1 FROM t WHERE a NOT LIKE $1 || '%' ESCAPE '/'",
                "SELECT 1 FROM t WHERE a NOT LIKE like_pattern($1 || '%', '/')",
            ),
            (
                "SELECT 1 FROM t WHERE a ILIKE 'x' ESCAPE '\\'",
                "SELECT 1 FROM t WHERE a ILIKE 'x'",
            ),
            (
                "SELECT CASE WHEN a THEN (SELECT b FROM pg_catalog.pg_attrdef WHERE c = d) END FROM t",
                "SELECT CAST(NULL AS TEXT) FROM t",
            ),
            (
                "SELECT CASE WHEN a THEN 1 ELSE NULL END, (SELECT b FROM u) FROM t",
                "SELECT CASE WHEN a THEN 1 ELSE NULL END, (SELECT b FROM u) FROM t",
            ),
            (
                "SELECT 1 FROM pg_class WHERE pg_class.reloptions IS NULL",
                "SELECT 1 FROM pg_class WHERE CAST(NULL AS TEXT) IS NULL",
            ),
            (
                "SELECT generate_subscripts(k, 1) FROM t",
                "SELECT unnest(generate_series(1, CAST(array_length(k) AS BIGINT))) FROM t",
            ),
        ] {
            assert_eq!(rewritten(asked), said);
        }
    }

    #[test]
    fn patterns_keep_their_meaning() {
        for (pattern, escape, backslash) in [
            ("pg/_%", "/", "pg\\_%"),
            ("a//b", "/", "a/b"),
            ("a\\b%", "/", "a\\\\b%"),
            ("100#%", "#", "100\\%"),
            ("a\\_", "", "a\\\\_"),
        ] {
            assert_eq!(backslashed(pattern, escape).unwrap(), backslash);
        }
        assert!(backslashed("a/", "/").is_err());
        assert!(backslashed("a", "//").is_err());
    }
}
