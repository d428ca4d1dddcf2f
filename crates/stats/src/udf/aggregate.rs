//! Every aggregate of the catalogue as one kind of DataFusion aggregate: columns are coerced, rows with a null left
//! out, constants read once; the state between partitions is one LargeBinary.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion_common::{Result, ScalarValue, exec_err, plan_err};
use datafusion_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion_expr::{Accumulator, AggregateUDFImpl, ColumnarValue, Signature, Volatility};
use datafusion_physical_expr_common::physical_expr::PhysicalExpr;

use super::constant;
use super::measure::coerced_count;
use crate::StatsError;
use crate::catalogue::{Given, values_of};
use crate::estimators::{AggregateSpec, ColumnKind, ColumnSpec, Estimator};

/// One aggregate of the catalogue.
pub(crate) struct SpecUdaf {
    spec: &'static AggregateSpec,
    signature: Signature,
}

impl std::fmt::Debug for SpecUdaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SpecUdaf").field(&self.spec.name).finish()
    }
}

impl PartialEq for SpecUdaf {
    fn eq(&self, other: &Self) -> bool {
        self.spec.name == other.spec.name
    }
}
impl Eq for SpecUdaf {}
impl std::hash::Hash for SpecUdaf {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.spec.name.hash(state);
    }
}

impl SpecUdaf {
    pub(crate) fn new(spec: &'static AggregateSpec) -> SpecUdaf {
        let columns = spec.columns.iter().map(|column| column.name);
        let names = columns.chain(spec.parameters.iter().map(|parameter| parameter.name));
        let signature = Signature::user_defined(Volatility::Immutable)
            .with_parameter_names(names.collect())
            .expect("the catalogue's test checks that parameter names differ");
        SpecUdaf { spec, signature }
    }
}

fn coerced_column(function: &str, column: &ColumnSpec, found: &DataType) -> Result<DataType> {
    let refuse = |expected: &str| {
        plan_err!(
            "{function}: `{}` has type {found}, expected {expected}",
            column.name
        )
    };
    if let DataType::Dictionary(_, value) = found {
        return coerced_column(function, column, value);
    }
    match column.kind {
        ColumnKind::Count => coerced_count(function, column.name, found),
        ColumnKind::Number if found.is_numeric() || found.is_null() => Ok(DataType::Float64),
        ColumnKind::Number if *found == DataType::Boolean => Ok(DataType::Float64),
        ColumnKind::Number => refuse("a number"),
        ColumnKind::Key => match found {
            DataType::UInt64 => Ok(DataType::UInt64),
            found if found.is_integer() || *found == DataType::Boolean => Ok(DataType::Int64),
            DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => Ok(DataType::Int64),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => {
                Ok(DataType::Utf8View)
            }
            _ => refuse("a category (integer, text, yes/no or date); put numbers into bins first"),
        },
        ColumnKind::Vector => match found {
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)
                if item.data_type().is_numeric() =>
            {
                Ok(DataType::List(Arc::new(Field::new_list_field(
                    DataType::Float64,
                    true,
                ))))
            }
            _ => refuse("a list of numbers"),
        },
    }
}

/// The value of an expression that must be a constant.
pub(crate) fn constant_expression(
    function: &str,
    name: &str,
    expression: &dyn PhysicalExpr,
) -> Result<Given> {
    let nothing = RecordBatch::new_empty(Arc::new(Schema::empty()));
    // A column cannot be evaluated without a table.
    match expression.evaluate(&nothing) {
        Ok(ColumnarValue::Scalar(value)) => constant::given(function, name, &value),
        _ => plan_err!("{function}: parameter `{name}` must be a constant, found a column"),
    }
}

fn constant_value(
    function: &str,
    name: &str,
    args: &AccumulatorArgs,
    place: usize,
) -> Result<Given> {
    constant_expression(function, name, args.exprs[place].as_ref())
}

impl AggregateUDFImpl for SpecUdaf {
    fn name(&self) -> &str {
        self.spec.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok((self.spec.returns)())
    }

    fn coerce_types(&self, found: &[DataType]) -> Result<Vec<DataType>> {
        let (columns, parameters) = (self.spec.columns, self.spec.parameters);
        let required = columns.iter().filter(|column| !column.optional).count();
        if found.len() < required || found.len() > columns.len() + parameters.len() {
            let names = self.signature.parameter_names.clone().unwrap_or_default();
            return plan_err!(
                "{} takes ({}), found {} arguments",
                self.name(),
                names.join(", "),
                found.len()
            );
        }
        let mut types = Vec::with_capacity(found.len());
        for (place, found) in found.iter().enumerate() {
            types.push(match columns.get(place) {
                Some(column) => coerced_column(self.name(), column, found)?,
                None => constant::coerced(self.name(), &parameters[place - columns.len()], found)?,
            });
        }
        Ok(types)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let spec = self.spec;
        if args.is_distinct {
            return plan_err!("{} does not take DISTINCT", spec.name);
        }
        let mut used_columns = 0;
        for (place, column) in spec.columns.iter().enumerate().take(args.exprs.len()) {
            // An optional column given as NULL is left out.
            let left_out = column.optional
                && matches!(
                    constant_value(spec.name, column.name, &args, place),
                    Ok(Given::Nothing)
                );
            if !left_out {
                used_columns = place + 1;
            }
        }
        let mut given = Vec::new();
        for (index, parameter) in spec.parameters.iter().enumerate() {
            let place = spec.columns.len() + index;
            if place < args.exprs.len() {
                given.push(constant_value(spec.name, parameter.name, &args, place)?);
            }
        }
        let values = values_of(spec.name, spec.parameters, &given)?;
        let estimator = (spec.make)(&values);
        Ok(Box::new(SpecAccumulator {
            function: spec.name,
            used_columns,
            estimator,
        }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let name = format_state_name(args.name, "state");
        Ok(vec![Arc::new(Field::new(
            name,
            DataType::LargeBinary,
            true,
        ))])
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

#[derive(Debug)]
struct SpecAccumulator {
    function: &'static str,
    used_columns: usize,
    estimator: Box<dyn Estimator>,
}

impl Accumulator for SpecAccumulator {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let columns = &values[..self.used_columns];
        let mut nulls: Option<NullBuffer> = None;
        for column in columns {
            nulls = NullBuffer::union(nulls.as_ref(), column.logical_nulls().as_ref());
        }
        let Some(nulls) = nulls.filter(|nulls| nulls.null_count() > 0) else {
            return self.estimator.update(columns);
        };
        let keep = arrow::array::BooleanArray::new(nulls.into_inner(), None);
        let kept: Vec<ArrayRef> = columns
            .iter()
            .map(|column| arrow::compute::filter(column, &keep))
            .collect::<std::result::Result<_, _>>()?;
        self.estimator.update(&kept)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.estimator.evaluate()
    }

    fn size(&self) -> usize {
        std::mem::size_of_val(self)
            + std::mem::size_of_val(&*self.estimator)
            + self.estimator.held_bytes()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::LargeBinary(Some(
            self.estimator.encode(),
        ))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let Some(states) = states
            .first()
            .and_then(|states| states.as_binary_opt::<i64>())
        else {
            return exec_err!("{}: the state is not binary", self.function);
        };
        for state in states.iter().flatten() {
            self.estimator
                .merge(state)
                .ok_or_else(|| StatsError::State {
                    function: self.function.to_owned(),
                    reason: "it ends early or names a cell that is not there".to_owned(),
                })?;
        }
        Ok(())
    }
}
