//! Association measures and information estimators, as plain functions and as DataFusion SQL functions.
//!
//! In: counts of a pair, `(n_xy, n_x, n_y, n)`. Out: a score, or nothing where the counts are impossible or the formula
//! leaves the value open. [`catalogue`] lists every function with formula, range, limits and source; [`register_all`]
//! gives them to a DataFusion session.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod base;
mod block;
pub mod catalogue;
mod cells;
mod codec;
mod eigen;
mod error;
mod estimators;
mod exact_sum;
mod measures;
mod multiple;
mod pure;
mod random;
mod special;
mod udf;

pub use base::Base;
pub use catalogue::{Given, Measure, Parameter, measure, measures};
pub use cells::problem;
pub use eigen::{effective_rank, symmetric_eigenvalues, von_neumann_entropy};
pub use error::{ErrorKind, StatsError};
pub use multiple::{benjamini_hochberg, benjamini_hochberg_ln};
pub use pure::*;
pub use udf::{all_aggregate_functions, all_scalar_functions, all_window_functions, register_all};
