//! A driver's sign that it lives, for folders that are worth something only while it does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::folder::{make_folder, read};
use super::place::{self, exists};
use crate::error::EngineError;
use crate::progress::StopFlag;

/// How often a driver says that it lives.
const BEAT: Duration = Duration::from_secs(20);

/// The file that says so: seconds since 1970.
pub(super) const ALIVE: &str = "alive";

/// Says that a driver lives, until it is dropped.
pub(super) struct Beat {
    stop: Arc<StopFlag>,
    thread: Option<JoinHandle<()>>,
}

impl Beat {
    /// Makes the folder of a driver's plans, and says so in it from now on.
    pub(super) fn start(plans: &Path) -> Result<Self, EngineError> {
        make_folder(plans)?;
        let alive = plans.join(ALIVE);
        place::write_over(&alive, now().to_string())?;
        let stop = Arc::new(StopFlag::default());
        let ends = stop.clone();
        let thread = std::thread::spawn(move || {
            loop {
                std::thread::park_timeout(BEAT);
                if ends.is_set() {
                    return;
                }
                // A beat that is missed is made up for by the next.
                let _ = place::write_over(&alive, now().to_string());
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It only writes a file.
            let _ = thread.join();
        }
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// Whether a folder's driver has said nothing for longer than `most`; one that never said anything
/// began at `started`.
pub(super) fn is_dead(plans: &Path, started: u64, most: Duration) -> bool {
    let alive: PathBuf = plans.join(ALIVE);
    let told = match read::<u64>(&alive) {
        Ok(told) => told.unwrap_or(started),
        // It goes away just now, or is written.
        Err(_) if !exists(&alive).unwrap_or(true) => return false,
        Err(_) => started,
    };
    now().saturating_sub(told) > most.as_secs()
}

/// Removes a folder of plans. A unit that still runs may write into it meanwhile, and then ends.
pub(super) fn remove_plans(plans: &Path) {
    for _ in 0..20 {
        let _ = place::remove_all(plans);
        if place::is_remote(plans) || !plans.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
