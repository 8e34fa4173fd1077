//! The client's one look at the clock. Everything else takes the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970, UTC; 0 for a clock set before that.
#[expect(clippy::disallowed_methods, reason = "the one place where the client reads the clock")]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How far this machine's clock is from the gateway's, in words: `2 min 5 s ahead of`.
pub fn offset_in_words(ours: u64, theirs: u64) -> String {
    let off = ours.abs_diff(theirs);
    let amount = match (off / 86_400, off / 3600 % 24, off / 60 % 60, off % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} days {hours} h"),
    };
    format!("{amount} {}", if ours >= theirs { "ahead of" } else { "behind" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(100, 100, "0 s ahead of")]
    #[case(225, 100, "2 min 5 s ahead of")]
    #[case(100, 10_960, "3 h 1 min behind")]
    #[case(200_000, 0, "2 days 7 h ahead of")]
    fn offsets(#[case] ours: u64, #[case] theirs: u64, #[case] words: &str) {
        assert_eq!(offset_in_words(ours, theirs), words);
    }
}
