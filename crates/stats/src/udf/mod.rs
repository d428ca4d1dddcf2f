//! The functions as DataFusion sees them.

mod aggregate;
mod constant;
mod measure;
mod others;
mod window;

use std::sync::Arc;

use datafusion_common::Result;
use datafusion_expr::registry::FunctionRegistry;
use datafusion_expr::{AggregateUDF, ScalarUDF, WindowUDF};

/// Every scalar function: one for each of [`crate::measures`], and the scalar ones of [`crate::catalogue::OTHERS`].
pub fn all_scalar_functions() -> Vec<ScalarUDF> {
    let mut functions: Vec<ScalarUDF> = crate::measures()
        .iter()
        .map(|measure| ScalarUDF::from(measure::MeasureUdf::new(measure)))
        .collect();
    functions.push(ScalarUDF::from(measure::CountProblem::new()));
    functions.extend(others::all().into_iter().map(ScalarUDF::from));
    functions
}

/// Every aggregate function.
pub fn all_aggregate_functions() -> Vec<AggregateUDF> {
    let specs = crate::catalogue::AGGREGATES.iter();
    specs
        .map(|spec| AggregateUDF::from(aggregate::SpecUdaf::new(spec)))
        .collect()
}

/// Every window function.
pub fn all_window_functions() -> Vec<WindowUDF> {
    vec![WindowUDF::from(window::BenjaminiHochberg::new())]
}

/// Registers everything with a session. A function of the same name that was there before is replaced.
///
/// # Errors
/// When the registry is read-only.
pub fn register_all(registry: &mut dyn FunctionRegistry) -> Result<()> {
    for function in all_scalar_functions() {
        registry.register_udf(Arc::new(function))?;
    }
    for function in all_aggregate_functions() {
        registry.register_udaf(Arc::new(function))?;
    }
    for function in all_window_functions() {
        registry.register_udwf(Arc::new(function))?;
    }
    Ok(())
}
