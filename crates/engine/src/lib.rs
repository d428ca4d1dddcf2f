//! pmill engine
