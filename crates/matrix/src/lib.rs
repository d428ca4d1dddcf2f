//! Sparse matrices from count tables: export formats, truncated SVD, embeddings.

#![cfg_attr(test, allow(clippy::unwrap_used))]
