//! What a worker keeps of the plan that it works at, for all of its units.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::error::EngineError;

/// The value of the plan at hand; another plan's takes its place.
pub(super) struct Kept<T>(Mutex<Option<(PathBuf, Arc<T>)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Kept<T> {
    /// The value of the plan in `root`, opened when it is another than before.
    pub(super) fn get(
        &self,
        root: &Path,
        open: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<Arc<T>, EngineError> {
        let poisoned = |_| EngineError::Bug("a unit panicked while it loaded its plan".into());
        let mut kept = self.0.lock().map_err(poisoned)?;
        if let Some((of, value)) = &*kept
            && of == root
        {
            return Ok(value.clone());
        }
        // It may be large: it goes before its successor comes.
        *kept = None;
        let value = Arc::new(open()?);
        *kept = Some((root.to_owned(), value.clone()));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_opened_once_until_another_comes() {
        let kept = Kept::default();
        let mut opened = Vec::new();
        for name in ["a", "a", "b", "a"] {
            let value = kept.get(Path::new(name), || {
                opened.push(name);
                Ok(name)
            });
            assert_eq!(*value.unwrap(), name);
        }
        assert_eq!(opened, ["a", "b", "a"]);
        let failed = kept.get(Path::new("c"), || Err(EngineError::Interrupted));
        assert!(failed.is_err());
        assert_eq!(*kept.get(Path::new("c"), || Ok("c")).unwrap(), "c");
    }
}
