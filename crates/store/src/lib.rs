//! pmill store
