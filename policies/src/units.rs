//! Sizes and durations as people write them in policy and configuration files.

use serde::{Deserialize, Deserializer, de::Error};

/// Longest duration, in seconds: 100 years. Times are added to it, and kept in databases whose numbers have a sign.
pub(crate) const MAX_DURATION: u64 = 36_525 * 86_400;
/// Largest size, in bytes: sizes are signed in Nix's database and in ours.
pub(crate) const MAX_SIZE: u64 = i64::MAX as u64;

/// Parses `"4 GiB"`: a whole number and one of B, KiB, MiB, GiB, TiB. Gives bytes.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let scale: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(scale).filter(|bytes| *bytes <= MAX_SIZE)
}

/// Parses `"7d"`: a whole number and one of s, m, h, d, w. Gives seconds.
pub fn duration(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let scale: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    number.checked_mul(scale).filter(|seconds| *seconds <= MAX_DURATION)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

/// What is said of a text that isn't a size.
pub(crate) fn not_a_size(text: &str) -> String {
    format!(
        "`{text}` is not a size; write a whole number and B, KiB, MiB, GiB or TiB, as in `\"4 GiB\"`, \
         less than 8388608 TiB"
    )
}

/// What is said of a text that isn't a duration.
pub(crate) fn not_a_duration(text: &str) -> String {
    format!(
        "`{text}` is not a duration; write a whole number and s, m, h, d or w, as in `\"7d\"`, \
         at most 100 years"
    )
}

/// For `deserialize_with`: see [`size`].
pub fn de_size<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let text = String::deserialize(d)?;
    size(&text).ok_or_else(|| D::Error::custom(not_a_size(&text)))
}

/// For `deserialize_with`: see [`duration`].
pub fn de_duration<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let text = String::deserialize(d)?;
    duration(&text).ok_or_else(|| D::Error::custom(not_a_duration(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("4 GiB", Some(4 << 30))]
    #[case("4GiB", Some(4 << 30))]
    #[case("0 B", Some(0))]
    #[case("4 GB", None)]
    #[case("-1 B", None)]
    #[case("1.5 GiB", None)]
    #[case("99999999999 TiB", None)]
    #[case("8388607 TiB", Some(8_388_607 << 40))]
    #[case("8388608 TiB", None)]
    #[case("18446744073709551615 B", None)]
    #[case("", None)]
    fn sizes(#[case] text: &str, #[case] bytes: Option<u64>) {
        assert_eq!(size(text), bytes);
    }

    #[rstest]
    #[case("7d", Some(604_800))]
    #[case("90 s", Some(90))]
    #[case("2w", Some(1_209_600))]
    #[case("36525d", Some(MAX_DURATION))]
    #[case("36526d", None)]
    #[case("18446744073709551615 s", None)]
    #[case("7", None)]
    #[case("d", None)]
    #[case("7 days", None)]
    fn durations(#[case] text: &str, #[case] seconds: Option<u64>) {
        assert_eq!(duration(text), seconds);
    }
}
