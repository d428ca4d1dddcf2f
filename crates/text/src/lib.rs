//! pmill text
