//! What several tests need.

use std::path::{Path, PathBuf};

/// The folder of shared data sets, if this machine has it: `$PMILL_SHARED/data`, or `shared/data`
/// beside the repository. Says so when it is missing, so that a skipped test is seen.
pub(crate) fn shared_data() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = std::env::var_os("PMILL_SHARED")
        .map_or_else(beside, PathBuf::from)
        .join("data");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: no shared data at {}", folder.display());
    None
}

/// WordNet's folder, if this machine has it.
pub(crate) fn wordnet() -> Option<PathBuf> {
    let folder = PathBuf::from("/usr/share/wordnet");
    if folder.join("index.noun").is_file() && folder.join("noun.exc").is_file() {
        return Some(folder);
    }
    eprintln!("skipped: no WordNet at {}", folder.display());
    None
}
