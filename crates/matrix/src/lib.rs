//! Sparse matrices of count tables: files that trainers read, truncated SVD, word vectors.
//!
//! ```text
//! rows (id, columns, values) ─▶ formats ─▶ staged folder ─ rename ─▶ folder that a trainer reads
//! bands of rows ─▶ store (memory or scratch file) ─▶ svd ─▶ vectors ─▶ word2vec, safetensors
//! ```
//!
//! Rows come in rising order and their columns rise; where they come from is the caller's affair.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bands;
mod error;
pub mod evaluate;
pub mod formats;
pub mod npy;
pub mod random;
mod safetensors;
pub mod staging;
pub mod svd;
mod tall;
mod tsqr;
pub mod vectors;

pub use error::{ErrorKind, MatrixError};

/// A pool of `threads` threads for products and factorizations.
///
/// # Errors
/// When the threads cannot be started.
pub fn pool(threads: usize) -> Result<rayon::ThreadPool, MatrixError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .build()
        .map_err(|error| MatrixError::Setting(format!("cannot start {threads} threads: {error}")))
}
