//! Runs a closure on several threads at once, and brings home the first error or panic.

use crate::error::EngineError;
use crate::progress::StopFlag;

/// Runs `work(worker)` on `threads` scoped threads. An error in one sets `stop`, which the others
/// are expected to look at; the error that set it is the one returned.
///
/// # Errors
/// The first error; a panic as [`EngineError::Bug`].
pub fn run<T: Send>(
    threads: usize,
    stop: &StopFlag,
    work: impl Fn(usize) -> Result<T, EngineError> + Sync,
) -> Result<Vec<T>, EngineError> {
    let first = std::sync::Mutex::new(None);
    let results: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1))
            .map(|worker| {
                let (work, first) = (&work, &first);
                scope.spawn(move || {
                    work(worker)
                        .map_err(|error| {
                            // Kept before the others are told to stop, so that it comes first.
                            if let Ok(mut first) = first.lock() {
                                first.get_or_insert(error);
                            }
                            stop.set();
                        })
                        .ok()
                })
            })
            .collect();
        handles
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect()
    });
    if let Ok(Some(error)) = first.into_inner() {
        return Err(error);
    }
    let mut values = Vec::with_capacity(results.len());
    for result in results {
        match result {
            Ok(Some(value)) => values.push(value),
            Ok(None) => {}
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no message");
                return Err(EngineError::Bug(format!("a worker panicked: {text}")));
            }
        }
    }
    Ok(values)
}
