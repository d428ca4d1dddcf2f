//! End-to-end tests of the `pmill` binary that need nothing but the binary: no Python, no data.
//!
//! The binary is the one that `PMILL_BIN` names, or `pmill` in the folder that Cargo builds into.
//! The larger tests, against reference programs and real data, are in `tests/python`.

#![allow(clippy::unwrap_used)]

mod messages;
mod pmill;
mod road;
