//! The time, injected: stages ask this clock and no other, so that tests can set it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Gives seconds since 1970, UTC.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Seconds that tests have added.
    ahead: Arc<AtomicU64>,
}

impl Clock {
    /// Seconds since 1970, UTC.
    pub fn now(&self) -> u64 {
        #[expect(clippy::disallowed_methods, reason = "this is the injected clock's source")]
        let system = std::time::SystemTime::now();
        // before 1970 no signature could be valid anyway
        let seconds = system.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        seconds + self.ahead.load(Ordering::Relaxed)
    }

    /// Moves the clock forward, for tests of what runs out.
    pub fn advance(&self, seconds: u64) {
        self.ahead.fetch_add(seconds, Ordering::Relaxed);
    }
}
