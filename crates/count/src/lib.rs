//! pmill count
