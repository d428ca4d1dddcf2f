//! The engine: from Parquet files to committed tables.
//!
//! ```text
//! input ─ scan ─ units ─ vocabulary ─ map ─ reduce ─ commit
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod column;
pub mod error;
pub mod input;
pub mod memory;
pub mod scan;
