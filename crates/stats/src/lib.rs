//! pmill stats
