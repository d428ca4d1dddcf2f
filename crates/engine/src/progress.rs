//! What a running job tells: phases, bytes and rows done, notes, and whether to stop.

use std::sync::atomic::{AtomicBool, Ordering};

/// Receives what a job tells of itself; all methods may be called from several threads.
pub trait Progress: Send + Sync {
    /// A phase begins that will take `total` steps of `unit` (bytes, ranges).
    fn phase(&self, name: &'static str, total: u64, unit: Unit);
    /// Steps done, and rows read with them.
    fn advance(&self, steps: u64, rows: u64);
    /// Something that a person should know.
    fn note(&self, text: &str);
    /// A unit failed and is tried again.
    fn retried(&self) {}
    /// Whether anybody sees what is told; if not, nothing is read just to tell it.
    fn is_watched(&self) -> bool {
        true
    }
}

/// What a phase counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of input.
    Bytes,
    /// Ranges of left ids, files, units.
    Parts,
}

/// Tells nobody.
#[derive(Debug, Default, Clone, Copy)]
pub struct Quiet;

impl Progress for Quiet {
    fn phase(&self, _name: &'static str, _total: u64, _unit: Unit) {}
    fn advance(&self, _steps: u64, _rows: u64) {}
    fn note(&self, _text: &str) {}
    fn is_watched(&self) -> bool {
        false
    }
}

/// Set once, by Ctrl-C or by the first worker that fails; everybody looks at it.
#[derive(Debug, Default)]
pub struct StopFlag(AtomicBool);

impl StopFlag {
    /// Asks everybody to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
