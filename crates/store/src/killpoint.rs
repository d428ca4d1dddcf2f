//! Points at which a test can kill the process, in debug builds only.
//!
//! `PMILL_KILL_AT=N` ends the process at the N-th point that it reaches (from 1), as SIGKILL would:
//! nothing is unwound, flushed or cleaned. `PMILL_KILL_LOG=FILE` appends the name of every point
//! reached. Release builds have neither: [`reach`] is empty there.

#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicU64, Ordering};

/// Says that `point` has been reached. Names say what has just become true.
#[cfg(debug_assertions)]
pub fn reach(point: &str) {
    static REACHED: AtomicU64 = AtomicU64::new(0);
    let number = REACHED.fetch_add(1, Ordering::Relaxed) + 1;
    if let Some(path) = std::env::var_os("PMILL_KILL_LOG") {
        use std::io::Write;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path);
        // A test that asks for a log and gets none fails by itself.
        let _ = log.and_then(|mut log| writeln!(log, "{point}"));
    }
    let at = std::env::var("PMILL_KILL_AT").ok();
    if at.and_then(|at| at.parse().ok()) == Some(number) {
        std::process::abort();
    }
}

/// Says that the unit `name` begins. `PMILL_KILL_UNIT=NAME` ends the process there,
/// `PMILL_HANG_UNIT=NAME` holds the thread for ever, in debug builds only.
#[cfg(debug_assertions)]
pub fn unit(name: &str) {
    let is = |variable| std::env::var(variable).is_ok_and(|value| value == name);
    if is("PMILL_KILL_UNIT") {
        std::process::abort();
    }
    while is("PMILL_HANG_UNIT") {
        std::thread::sleep(std::time::Duration::from_secs(3600));
    }
}

/// Nothing, in release builds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_point: &str) {}

/// Nothing, in release builds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn unit(_name: &str) {}
