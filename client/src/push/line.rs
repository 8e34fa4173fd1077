//! How hard to compress: as hard as pays on this line. Where the line takes all that quick compression gives, compressing
//! harder only makes everybody wait; where it doesn't, the cores have nothing better to do. Doesn't know what is sent.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI32, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Levels of zstd chosen by themselves, and up to how many bytes a second a line is slow enough for each. Two cores make
/// about 200, 100 and 40 MB of compressed data a second of them. Higher levels need tens of megabytes of memory a core.
const LEVELS: [(i32, u64); 3] = [(1, u64::MAX), (3, 60_000_000), (6, 15_000_000)];
/// How long the line is watched before each choice.
const WINDOW: Duration = Duration::from_millis(250);

/// The line to the gateway, as those see it who compress for it.
pub(super) struct Line {
    level: AtomicI32,
    /// `None` where the level was given.
    window: Option<Mutex<Window>>,
}

/// What came since the last choice.
struct Window {
    since: Instant,
    bytes: u64,
    /// How long senders have waited for room.
    waited: Duration,
}

impl Line {
    /// With a fixed level, or one that follows the line.
    pub(super) fn new(level: Option<i32>) -> Self {
        let window = Window { since: Instant::now(), bytes: 0, waited: Duration::ZERO };
        Self {
            level: AtomicI32::new(level.unwrap_or(LEVELS[0].0)),
            window: level.is_none().then(|| Mutex::new(window)),
        }
    }

    /// The level for what is compressed next.
    pub(super) fn level(&self) -> i32 {
        self.level.load(Relaxed)
    }

    /// Counts what was sent, and how long it had to wait for room.
    pub(super) fn sent(&self, bytes: usize, waited: Duration) {
        let Some(window) = &self.window else { return };
        // plain numbers: whoever panicked left them usable
        let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
        window.bytes += bytes as u64;
        window.waited += waited;
        let now = Instant::now();
        if let Some(level) = window.choose(now, self.level()) {
            self.level.store(level, Relaxed);
            *window = Window { since: now, bytes: 0, waited: Duration::ZERO };
        }
    }
}

impl Window {
    /// The next level, once it is time to choose one.
    fn choose(&self, now: Instant, level: i32) -> Option<i32> {
        let passed = now.duration_since(self.since);
        if passed < WINDOW {
            return None;
        }
        if self.waited < passed / 2 {
            // the line takes all there is: one step down, since a moment's calm says little
            let at = LEVELS.iter().position(|(l, _)| *l == level).unwrap_or_default();
            return Some(LEVELS[at.saturating_sub(1)].0);
        }
        let rate = (self.bytes as f64 / passed.as_secs_f64()) as u64;
        LEVELS.iter().rev().find(|(_, most)| rate <= *most).map(|(level, _)| *level)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::too_early(100, 0, 100, 1, None)]
    #[case::loopback_waits_for_nobody(1000, 200_000_000, 0, 1, Some(1))]
    #[case::a_gateway_that_is_busy(1000, 100_000_000, 900, 1, Some(1))]
    #[case::a_local_network(1000, 50_000_000, 900, 1, Some(3))]
    #[case::a_slow_line(1000, 1_000_000, 900, 1, Some(6))]
    #[case::waits_of_several_add_up(1000, 1_000_000, 3600, 3, Some(6))]
    #[case::cores_are_slower_than_the_line(1000, 1_000_000, 100, 6, Some(3))]
    #[case::and_again(1000, 1_000_000, 100, 3, Some(1))]
    fn levels(
        #[case] ms: u64,
        #[case] bytes: u64,
        #[case] waited_ms: u64,
        #[case] level: i32,
        #[case] expected: Option<i32>,
    ) {
        let since = Instant::now();
        let window = Window { since, bytes, waited: Duration::from_millis(waited_ms) };
        assert_eq!(window.choose(since + Duration::from_millis(ms), level), expected);
    }

    #[test]
    fn a_given_level_stays() {
        let line = Line::new(Some(19));
        line.sent(1, Duration::from_secs(100));
        assert_eq!(line.level(), 19);
    }
}
