//! The `pmill` binary.
fn main() {}
