//! Compiles the messages of `proto/`.

fn main() {}
