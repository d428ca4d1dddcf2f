//! pmill snapshot
