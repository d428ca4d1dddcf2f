//! Panics of libraries that are given what strangers wrote, as errors.
//!
//! A decoder that meets a broken file, or a protocol library that meets a broken frame, may panic. What
//! runs under [`catch`] or [`guard`] gives its panic back as text, and nothing is printed.

use std::any::Any;
use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::Once;

use futures::FutureExt;

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Calls `work`; a panic in it becomes its message.
///
/// # Errors
/// The message of the panic; empty if it has none.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    quietly(|| std::panic::catch_unwind(AssertUnwindSafe(work))).map_err(message)
}

/// Polls `work` to its end; a panic in it becomes its message.
///
/// # Errors
/// The message of the panic; empty if it has none.
pub async fn guard<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let work = AssertUnwindSafe(work).catch_unwind();
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| quietly(|| work.as_mut().poll(context)))
        .await
        .map_err(message)
}

/// While `work` runs on this thread, panics are not printed: they are caught.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CATCHING.with(Cell::get) {
                before(info);
            }
        }));
    });
    let outer = CATCHING.with(|flag| flag.replace(true));
    let result = work();
    CATCHING.with(|flag| flag.set(outer));
    result
}

fn message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(catch(|| 1), Ok(1));
        assert_eq!(catch(|| -> u8 { panic!("at {}", 7) }), Err("at 7".into()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let after_a_pause = async {
            tokio::task::yield_now().await;
            panic!("late")
        };
        let result: Result<u8, String> = runtime.block_on(guard(after_a_pause));
        assert_eq!(result, Err("late".into()));
        assert_eq!(runtime.block_on(guard(async { 2 })), Ok(2));
    }
}
