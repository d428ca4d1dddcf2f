//! Window functions: one value a row, from all rows of the partition.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion_common::{Result, exec_err, plan_err};
use datafusion_expr::function::{PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion_expr::{PartitionEvaluator, Signature, Volatility, WindowUDFImpl};

use super::constant;
use crate::catalogue::{BENJAMINI_HOCHBERG, Given, values_of};

/// `benjamini_hochberg(p [, scale]) OVER (PARTITION BY …)`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct BenjaminiHochberg {
    signature: Signature,
}

impl BenjaminiHochberg {
    pub(crate) fn new() -> BenjaminiHochberg {
        let signature = Signature::user_defined(Volatility::Immutable)
            .with_parameter_names(vec!["p", "scale"])
            .expect("two different names");
        BenjaminiHochberg { signature }
    }
}

impl WindowUDFImpl for BenjaminiHochberg {
    fn name(&self) -> &str {
        BENJAMINI_HOCHBERG.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, found: &[DataType]) -> Result<Vec<DataType>> {
        let [p, scale @ ..] = found else {
            return plan_err!("benjamini_hochberg takes (p, scale), found no arguments");
        };
        if scale.len() > 1 || !(p.is_numeric() || p.is_null()) {
            return plan_err!("benjamini_hochberg takes (p, scale), p a number, found {found:?}");
        }
        let mut types = vec![DataType::Float64];
        for scale in scale {
            types.push(constant::coerced(
                self.name(),
                &BENJAMINI_HOCHBERG.parameters[0],
                scale,
            )?);
        }
        Ok(types)
    }

    fn field(&self, args: WindowUDFFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(args.name(), DataType::Float64, true)))
    }

    fn partition_evaluator(
        &self,
        args: PartitionEvaluatorArgs,
    ) -> Result<Box<dyn PartitionEvaluator>> {
        let scale = match args.input_exprs().get(1) {
            Some(expr) => {
                super::aggregate::constant_expression(self.name(), "scale", expr.as_ref())?
            }
            None => Given::Nothing,
        };
        let values = values_of(self.name(), BENJAMINI_HOCHBERG.parameters, &[scale])?;
        Ok(Box::new(Evaluator {
            logarithms: values[0] != 0.0,
        }))
    }
}

#[derive(Debug)]
struct Evaluator {
    logarithms: bool,
}

impl PartitionEvaluator for Evaluator {
    fn evaluate_all(&mut self, values: &[ArrayRef], num_rows: usize) -> Result<ArrayRef> {
        let Some(p) = values
            .first()
            .and_then(|array| array.as_primitive_opt::<Float64Type>())
        else {
            return exec_err!("benjamini_hochberg: p is not Float64");
        };
        let p: Vec<Option<f64>> = p.iter().take(num_rows).collect();
        let adjusted = if self.logarithms {
            crate::benjamini_hochberg_ln(&p)
        } else {
            crate::benjamini_hochberg(&p)
        };
        Ok(Arc::new(Float64Array::from(adjusted)))
    }
}
