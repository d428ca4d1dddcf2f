//! Tests of the crate from outside: exact arithmetic, simulation, SQL, the reference page.
#![allow(clippy::unwrap_used)]

mod columns;
mod coverage;
mod exact;
mod merge;
mod page;
mod slt;
