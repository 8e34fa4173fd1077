//! The verifier's one look at the clock, and its one source of randomness for pauses. Everything else takes both as
//! arguments or calls these.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970, UTC; 0 for a clock set before that.
#[expect(clippy::disallowed_methods, reason = "the one place where the verifier reads the clock")]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A random byte; 0 where the system has none, which makes pauses equal and nothing worse.
pub fn random() -> u8 {
    let mut byte = [0];
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

/// The pause after the `n`th failure (from 0): doubles from a quarter second to half a minute, and up to half as long
/// again by chance, so that verifiers which lost a gateway together don't come back together.
pub fn pause(n: u32, random: u8) -> Duration {
    let base = Duration::from_millis(250 << n.min(7)).min(Duration::from_secs(30));
    base + base * u32::from(random) / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        assert_eq!(pause(0, 0), Duration::from_millis(250));
        assert_eq!(pause(3, 0), Duration::from_secs(2));
        assert_eq!(pause(u32::MAX, 0), Duration::from_secs(30));
        assert!(pause(40, 255) < Duration::from_secs(45));
        assert!(pause(1, 200) > pause(1, 100));
    }
}
