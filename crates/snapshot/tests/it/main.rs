//! Whole merges through the public API, with files written and read back by the `safetensors` crate.
#![allow(clippy::unwrap_used)]

mod compare;
mod failures;
mod mixing;
mod moved;
mod mutated;
mod objects;
mod real_files;
mod refusals;
mod restart;
mod support;
