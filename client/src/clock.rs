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

/// A time that people can read: `2026-11-24 11:38:05Z`.
pub fn utc(seconds: u64) -> String {
    pushgate_formats::date::rfc3339(seconds).replace('T', " ")
}

/// The beginning of a day that is written as [`utc`] writes it: `2031-12-24`. `None` for a day that isn't.
pub fn date(text: &str) -> Option<u64> {
    let mut parts =
        text.split('-').map(|part| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<u64>()));
    let mut part = || parts.next()??.ok();
    let (year, month, day) = (part()?, part()?, part()?);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Howard Hinnant's days_from_civil, the other way round of the above
    let from_march = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (from_march / 400, from_march % 400);
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = days * 86_400;
    // 30 February comes back as another day
    (utc(seconds).split(' ').next() == Some(text)).then_some(seconds)
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

    #[rstest]
    #[case("1970-01-01", Some(0))]
    #[case("2000-02-29", Some(951_782_400))]
    #[case("2100-03-01", Some(4_107_542_400))]
    #[case("2100-02-29", None)]
    #[case("2031-2-3", None)]
    #[case("2031-13-01", None)]
    #[case("1969-12-31", None)]
    #[case("2031-12-24-1", None)]
    #[case("+2031-12-24", None)]
    #[case("", None)]
    fn dates(#[case] text: &str, #[case] seconds: Option<u64>) {
        assert_eq!(date(text), seconds);
    }

    #[rstest]
    #[case(0, "1970-01-01 00:00:00Z")]
    #[case(951_782_399, "2000-02-28 23:59:59Z")]
    #[case(951_782_400, "2000-02-29 00:00:00Z")]
    #[case(1_709_251_199, "2024-02-29 23:59:59Z")]
    #[case(1_735_689_599, "2024-12-31 23:59:59Z")]
    #[case(4_107_542_400, "2100-03-01 00:00:00Z")]
    #[case(u64::MAX, "9999-12-31 23:59:59Z")]
    fn times(#[case] seconds: u64, #[case] words: &str) {
        assert_eq!(utc(seconds), words);
    }
}
