//! The progress bar: on stderr, on a terminal only.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pmill_engine::progress::{Progress, StopFlag, Unit};

use crate::limits::Global;

/// A bar for each phase in turn, with bytes, rows/s and time left.
pub struct Bar {
    shown: bool,
    state: Mutex<Option<ProgressBar>>,
    rows: AtomicU64,
    /// Units that failed and were tried again, in all phases.
    retries: AtomicU64,
    began: Mutex<Instant>,
}

impl Bar {
    /// A bar, shown if a person watches.
    pub fn new(global: &Global) -> Self {
        Self {
            shown: !global.quiet && !global.json && std::io::stderr().is_terminal(),
            state: Mutex::new(None),
            rows: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            began: Mutex::new(Instant::now()),
        }
    }

    /// Takes the bar away before other text is written.
    pub fn clear(&self) {
        if let Ok(mut state) = self.state.lock()
            && let Some(bar) = state.take()
        {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn phase(&self, name: &'static str, total: u64, unit: Unit) {
        if !self.shown {
            return;
        }
        self.clear();
        self.rows.store(0, Ordering::Relaxed);
        if let Ok(mut began) = self.began.lock() {
            *began = Instant::now();
        }
        let template = match unit {
            Unit::Bytes => "{prefix:>7} {bar:30} {bytes}/{total_bytes} {msg} {eta} left",
            Unit::Parts => "{prefix:>7} {bar:30} {pos}/{len} {msg} {eta} left",
        };
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("█▌ "));
        }
        bar.set_prefix(name);
        bar.enable_steady_tick(Duration::from_millis(250));
        if let Ok(mut state) = self.state.lock() {
            *state = Some(bar);
        }
    }

    fn advance(&self, steps: u64, rows: u64) {
        if !self.shown {
            return;
        }
        let rows = self.rows.fetch_add(rows, Ordering::Relaxed) + rows;
        let Ok(state) = self.state.lock() else { return };
        if let Some(bar) = &*state {
            bar.inc(steps);
            let seconds = self
                .began
                .lock()
                .map_or(1.0, |began| began.elapsed().as_secs_f64());
            let rate = (rows as f64 / seconds.max(0.001)) as u64;
            bar.set_message(message(rate, self.retries.load(Ordering::Relaxed)));
        }
    }

    fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    fn is_watched(&self) -> bool {
        self.shown
    }

    fn note(&self, text: &str) {
        if let Ok(state) = self.state.lock()
            && let Some(bar) = &*state
        {
            bar.println(text);
        }
    }
}

/// What stands beside the bar.
fn message(rows_a_second: u64, retries: u64) -> String {
    let mut parts = Vec::new();
    if rows_a_second > 0 {
        parts.push(format!("{} rows/s", group(rows_a_second)));
    }
    if retries > 0 {
        parts.push(format!("{retries} retried"));
    }
    parts.join(", ")
}

/// A flag that Ctrl-C (or SIGTERM) sets; the second time the process ends at once.
pub fn stop_flag() -> Arc<StopFlag> {
    static FLAG: OnceLock<Arc<StopFlag>> = OnceLock::new();
    FLAG.get_or_init(|| {
        let flag = Arc::new(StopFlag::default());
        let seen = flag.clone();
        let installed = ctrlc::set_handler(move || {
            if seen.is_set() {
                std::process::exit(130);
            }
            seen.set();
        });
        if let Err(error) = installed {
            tracing::warn!(%error, "no handler for Ctrl-C");
        }
        flag
    })
    .clone()
}

/// 1234567 as `1,234,567`.
pub fn group(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn rates_and_retries_are_told_when_there_are_any() {
        assert_eq!(super::message(0, 0), "");
        assert_eq!(super::message(1500, 0), "1,500 rows/s");
        assert_eq!(super::message(1500, 2), "1,500 rows/s, 2 retried");
    }

    #[test]
    fn numbers_are_grouped_by_three() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(super::group(number), text);
        }
    }
}
