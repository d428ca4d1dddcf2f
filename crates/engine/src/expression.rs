//! SQL over the columns of one file: which rows are counted, and what their text is.
//!
//! `text` is a column, or an expression over columns that gives text or a list of text; `filter` is
//! a condition. Both are evaluated batch by batch by DataFusion, on just the columns that they name,
//! so they mean the same in every unit, thread and process.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::DFSchema;
use datafusion::common::config::Dialect;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, Volatility};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::prelude::{SessionContext, ident};

use crate::column::{TextColumn, is_text, is_text_list};
use crate::error::FileFault;

/// What is read of a file's rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowSpec {
    /// A column (a name, or a path through structs), or an SQL expression over columns.
    pub text: String,
    /// An SQL condition; rows for which it is not true are not there at all.
    pub filter: Option<String>,
    /// A column, or an SQL expression: what the counts are kept apart by.
    pub slice: Option<String>,
}

/// Whether rows can be kept apart by values of this type: each value has one text.
fn is_slice(data_type: &DataType) -> bool {
    is_text(data_type)
        || data_type.is_integer()
        || matches!(
            data_type,
            DataType::Boolean | DataType::Date32 | DataType::Date64
        )
}

/// A [`RowSpec`] resolved against one file's schema.
#[derive(Debug, Clone)]
pub struct RowPlan {
    /// The top-level columns that are read, in the file's order.
    pub columns: Vec<usize>,
    /// How to read rows out of the column that [`RowPlan::apply`] gives.
    pub column: TextColumn,
    text: Option<Arc<dyn PhysicalExpr>>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    slice: Option<Arc<dyn PhysicalExpr>>,
}

/// What a [`RowPlan`] makes of a batch.
pub struct Rows {
    /// The column that [`RowPlan::column`] reads, for the rows that are kept.
    pub text: ArrayRef,
    /// The slice of each of them; `None` when there are no slices.
    pub slices: Option<StringArray>,
}

impl RowPlan {
    /// Resolves `spec` in a file's schema. `stored` is the schema that batches will have for its
    /// columns (the decoder may be told to give other string types than the file's).
    ///
    /// # Errors
    /// A column that is not there, an expression that does not parse or has another type.
    pub fn resolve(
        context: &SessionContext,
        spec: &RowSpec,
        schema: &Schema,
        stored: impl Fn(&Field) -> Field,
    ) -> Result<Self, FileFault> {
        let plain = TextColumn::find(schema, &spec.text);
        if let (Ok(column), None, None) = (&plain, &spec.filter, &spec.slice) {
            return Ok(Self::plain(column.clone()));
        }
        let read = Schema::new(
            schema
                .fields()
                .iter()
                .map(|f| stored(f))
                .collect::<Vec<_>>(),
        );
        let filter = spec
            .filter
            .as_deref()
            .map(|sql| parse(context, "where", sql, &read))
            .transpose()?;
        let text = match &plain {
            Ok(_) => None,
            Err(fault) if is_name(&spec.text) => return Err(fault.clone()),
            Err(_) => Some(parse(context, "text", &spec.text, &read)?),
        };
        let slice = match &spec.slice {
            None => None,
            Some(name) if read.index_of(name).is_ok() => Some(ident(name)),
            Some(sql) => {
                Some(parse(context, "slice", sql, &read).map_err(
                    |wrong| match TextColumn::find(schema, sql) {
                        Err(missing @ FileFault::NoColumn { .. }) if is_name(sql) => missing,
                        _ => wrong,
                    },
                )?)
            }
        };
        let mut columns: Vec<usize> = filter
            .iter()
            .chain(&text)
            .chain(&slice)
            .flat_map(|expr| expr.column_refs())
            .filter_map(|column| read.index_of(&column.name).ok())
            .chain(plain.as_ref().ok().map(|column| column.root))
            .collect();
        columns.sort_unstable();
        columns.dedup();
        let projected = read
            .project(&columns)
            .map_err(|error| fault("text", &spec.text, error.to_string()))?;
        let compile = |what, sql: &str, expr: Option<Expr>, fits: fn(&DataType) -> bool, wanted| {
            expr.map(|expr| compile(context, what, sql, expr, &projected, fits, wanted))
                .transpose()
        };
        let filter = compile(
            "where",
            spec.filter.as_deref().unwrap_or_default(),
            filter,
            |found| *found == DataType::Boolean,
            "a condition",
        )?;
        let text = compile(
            "text",
            &spec.text,
            text,
            |found| is_text(found) || is_text_list(found),
            "text or a list of text",
        )?;
        let slice = compile(
            "slice",
            spec.slice.as_deref().unwrap_or_default(),
            slice,
            is_slice,
            "text, a whole number, a truth value or a date",
        )?;
        let column = match plain {
            Ok(column) => column.with_root(columns.binary_search(&column.root).unwrap_or(0)),
            Err(_) => TextColumn::whole(),
        };
        Ok(Self {
            columns,
            column,
            text,
            filter,
            slice,
        })
    }

    /// The plan that reads one column of every row.
    #[must_use]
    pub fn plain(column: TextColumn) -> Self {
        Self {
            columns: vec![column.root],
            column: column.with_root(0),
            text: None,
            filter: None,
            slice: None,
        }
    }

    /// The rows that are kept.
    ///
    /// # Errors
    /// When an expression fails on a value.
    pub fn apply(&self, batch: &RecordBatch) -> Result<Rows, DataFusionError> {
        let kept = match &self.filter {
            None => None,
            Some(filter) => {
                let keep = filter.evaluate(batch)?.into_array(batch.num_rows())?;
                let keep: &BooleanArray = keep.as_any().downcast_ref().ok_or_else(|| {
                    DataFusionError::Execution("`where` gave no condition".into())
                })?;
                Some(arrow::compute::filter_record_batch(batch, keep)?)
            }
        };
        let batch = kept.as_ref().unwrap_or(batch);
        let text = match &self.text {
            None => batch.column(self.column.root).clone(),
            Some(text) => text.evaluate(batch)?.into_array(batch.num_rows())?,
        };
        let slices = match &self.slice {
            None => None,
            Some(slice) => {
                let values = slice.evaluate(batch)?.into_array(batch.num_rows())?;
                // Bytes that are no text are an error, not null.
                let strict = CastOptions {
                    safe: false,
                    ..CastOptions::default()
                };
                let text = cast_with_options(&values, &DataType::Utf8, &strict)?;
                Some(text.as_string::<i32>().clone())
            }
        };
        Ok(Rows { text, slices })
    }

    /// Whether rows can be left out.
    #[must_use]
    pub fn filters(&self) -> bool {
        self.filter.is_some()
    }

    /// Whether rows are kept apart.
    #[must_use]
    pub fn slices(&self) -> bool {
        self.slice.is_some()
    }
}

/// Whether `text` can only be a column's name or path, and no expression.
fn is_name(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | ' '))
        && !text.contains(" - ")
}

fn parse(
    context: &SessionContext,
    what: &'static str,
    sql: &str,
    schema: &Schema,
) -> Result<Expr, FileFault> {
    let wrong = |error: DataFusionError| {
        let reason = error.strip_backtrace();
        let hint = if schema.fields().iter().any(|f| {
            f.name().chars().any(char::is_uppercase) && reason.contains(&f.name().to_lowercase())
        }) {
            "; a name with capitals stands in double quotes"
        } else {
            ""
        };
        fault(
            what,
            sql,
            format!("{}{hint}", reason.lines().next().unwrap_or_default()),
        )
    };
    let schema = DFSchema::try_from(schema.clone()).map_err(wrong)?;
    let mut state = context.state();
    // The dialect that has lambdas: array_transform(list, item -> …).
    state.config_mut().options_mut().sql_parser.dialect = Dialect::DuckDB;
    let expr = state.create_logical_expr(sql, &schema).map_err(wrong)?;
    if !is_steady(&expr) {
        return Err(fault(
            what,
            sql,
            "it can give another value in another run (random, now, …), and counts must not".into(),
        ));
    }
    Ok(expr)
}

/// Whether the expression gives the same value whenever it is evaluated.
fn is_steady(expr: &Expr) -> bool {
    use datafusion::common::tree_node::TreeNode;
    !expr
        .exists(|part| {
            Ok(matches!(part, Expr::ScalarFunction(function)
                if function.func.signature().volatility != Volatility::Immutable))
        })
        .unwrap_or(true)
}

fn compile(
    context: &SessionContext,
    what: &'static str,
    sql: &str,
    expr: Expr,
    schema: &Schema,
    fits: fn(&DataType) -> bool,
    wanted: &str,
) -> Result<Arc<dyn PhysicalExpr>, FileFault> {
    let wrong = |error: DataFusionError| fault(what, sql, error.strip_backtrace());
    let df_schema = DFSchema::try_from(schema.clone()).map_err(wrong)?;
    let state = context.state();
    // Some functions, as coalesce, are there only until they are simplified away.
    let simplify = SimplifyContext::builder()
        .with_schema(Arc::new(df_schema.clone()))
        .with_config_options(Arc::clone(state.config_options()))
        .build();
    let simplifier = ExprSimplifier::new(simplify);
    let compiled = simplifier
        .coerce(expr, &df_schema)
        .and_then(|expr| simplifier.simplify(expr))
        .and_then(|expr| state.create_physical_expr(expr, &df_schema))
        .map_err(wrong)?;
    let found = compiled.data_type(schema).map_err(wrong)?;
    if fits(&found) {
        Ok(compiled)
    } else {
        Err(fault(
            what,
            sql,
            format!(
                "it gives {found}, expected {wanted} (CAST(… AS VARCHAR) makes text of a number)"
            ),
        ))
    }
}

fn fault(what: &'static str, sql: &str, reason: String) -> FileFault {
    FileFault::Expression {
        what,
        sql: sql.to_owned(),
        reason,
    }
}

/// The schema of the columns that are read.
#[must_use]
pub fn projected(
    schema: &Schema,
    columns: &[usize],
    stored: impl Fn(&Field) -> Field,
) -> SchemaRef {
    let fields: Vec<Field> = columns
        .iter()
        .map(|index| stored(schema.field(*index)))
        .collect();
    Arc::new(Schema::new(fields))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, Int64Array, ListArray};
    use arrow::datatypes::Int16Type;

    use super::*;

    fn context() -> SessionContext {
        SessionContext::new()
    }

    fn batch() -> RecordBatch {
        let experts = ListArray::from_iter_primitive::<Int16Type, _, _>([
            Some([Some(3), Some(7)]),
            Some([Some(0), Some(1)]),
            None,
        ]);
        RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef),
            ("layer", Arc::new(Int32Array::from(vec![0, 4, 0]))),
            (
                "TEXT",
                Arc::new(StringArray::from(vec![Some("a b"), None, Some("c")])),
            ),
            ("experts", Arc::new(experts)),
        ])
        .unwrap()
    }

    fn rows(text: &str, filter: Option<&str>) -> Result<Vec<Option<String>>, FileFault> {
        let batch = batch();
        let spec = RowSpec {
            text: text.into(),
            filter: filter.map(str::to_owned),
            slice: None,
        };
        let plan = RowPlan::resolve(&context(), &spec, &batch.schema(), Clone::clone)?;
        let read = batch.project(&plan.columns).unwrap();
        let mut kept = crate::column::tests::Kept::default();
        plan.column
            .rows(&plan.apply(&read).unwrap().text, &mut kept)
            .unwrap();
        Ok(kept.0)
    }

    fn some(rows: &[&str]) -> Vec<Option<String>> {
        rows.iter().map(|row| Some((*row).to_owned())).collect()
    }

    #[test]
    fn an_expression_gives_text_and_a_condition_takes_rows_out() {
        assert_eq!(
            rows("TEXT", Some("layer = 0")).unwrap(),
            some(&["a b", "c"])
        );
        assert_eq!(rows("TEXT", Some("layer > 9")).unwrap(), some(&[]));
        assert_eq!(
            rows("concat(\"TEXT\", ' @', id)", Some("\"TEXT\" IS NOT NULL")).unwrap(),
            some(&["a b @1", "c @3"])
        );
        // A null is a row without text.
        assert_eq!(rows("\"TEXT\" || ' x'", None).unwrap()[1], None);
    }

    #[test]
    fn lists_are_made_into_tokens() {
        assert_eq!(
            rows(
                "array_transform(experts, e -> concat('L', layer, '.E', e))",
                None
            )
            .unwrap(),
            [
                Some("L0.E3|L0.E7".to_owned()),
                Some("L4.E0|L4.E1".to_owned()),
                None
            ]
        );
    }

    fn slices(slice: &str) -> Result<Vec<Option<String>>, FileFault> {
        let batch = batch();
        let spec = RowSpec {
            text: "TEXT".into(),
            filter: Some("id <> 2".into()),
            slice: Some(slice.into()),
        };
        let plan = RowPlan::resolve(&context(), &spec, &batch.schema(), Clone::clone)?;
        let read = batch.project(&plan.columns).unwrap();
        let slices = plan.apply(&read).unwrap().slices.unwrap();
        Ok(slices.iter().map(|key| key.map(str::to_owned)).collect())
    }

    #[test]
    fn a_slice_is_a_column_or_an_expression_of_the_kept_rows() {
        assert_eq!(slices("layer").unwrap(), some(&["0", "0"]));
        assert_eq!(slices("TEXT").unwrap(), some(&["a b", "c"]));
        assert_eq!(slices("id > 2").unwrap(), some(&["false", "true"]));
        assert_eq!(
            slices("nullif(id, 1)").unwrap(),
            [None, Some("3".to_owned())]
        );
        let message = |slice: &str| slices(slice).unwrap_err().to_string();
        assert!(message("layr").contains("did you mean `layer`"));
        assert!(message("id * 0.5").contains("expected text, a whole number"));
        assert!(message("random() > 0.5").contains("another run"));
        assert!(message("experts").contains("`slice`"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let message =
            |text: &str, filter: Option<&str>| rows(text, filter).unwrap_err().to_string();
        assert!(message("TXT", None).contains("did you mean `TEXT`"));
        assert!(message("TEXT", Some("id")).contains("expected a condition"));
        assert!(message("concat(TEXT, 'x')", None).contains("double quotes"));
        assert!(message("id + 1", None).contains("expected text"));
        assert!(message("TEXT", Some("random() < 0.5")).contains("another run"));
        assert!(message("TEXT", Some("layer =")).contains("`where`"));
    }
}
