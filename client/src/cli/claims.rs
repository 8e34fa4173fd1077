//! The command line of `pushgate admin held` and `pushgate admin conflict`, and of `pushgate why`.

use clap::{Args, Subcommand};
use pushgate_formats::Sha256;
use pushgate_policies::units::duration;

use super::{
    Gateway,
    admin::{Common, Reason, cache},
};
use crate::clock;

/// Ask why a path is what it is: which rule published it, or what it waits for and until when
///
/// Submitters see their own claims of the path, those who decide about claims see all.
///
/// Exit codes: 0 here is the answer, 1 error, 2 wrong arguments, 3 it isn't published and was rejected (not with --diff).
#[derive(Debug, Args)]
pub struct Why {
    /// A path in /nix/store, or a link to one such as ./result
    pub path: String,
    /// Name of the cache
    #[arg(long, value_name = "CACHE", default_value = "main", value_parser = cache)]
    pub cache: String,
    /// Show instead how rebuilds differ from what was claimed, file by file
    #[arg(long)]
    pub diff: bool,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub gateway: Gateway,
}

#[derive(Debug, Subcommand)]
pub enum Held {
    List(HeldList),
    /// Say yes to a claim
    ///
    /// Counts where a rule asks for approvals from a group that you are in, and never for claims of your own owner.
    Approve(Decide),
    /// Say no to a claim, and to all later ones with the same contents; for admins
    Reject(Decide),
    /// Let a claim do without the rebuilds that its rule asks for; for admins
    Waive(Decide),
}

#[derive(Debug, Subcommand)]
pub enum Conflict {
    List(ConflictList),
    Settle(Settle),
}

impl Held {
    pub const fn common(&self) -> &Common {
        match self {
            Self::List(HeldList { common, .. }) => common,
            Self::Approve(args) | Self::Reject(args) | Self::Waive(args) => &args.claim.common,
        }
    }
}

impl Conflict {
    pub const fn common(&self) -> &Common {
        match self {
            Self::List(ConflictList { common, .. }) => common,
            Self::Settle(args) => &args.claim.common,
        }
    }
}

/// List what is held, oldest first: since when, whose, what it waits for
///
/// With --json, one JSON object a line.
#[derive(Debug, Args)]
pub struct HeldList {
    /// Name of the cache
    #[arg(long, value_name = "CACHE", default_value = "main", value_parser = cache)]
    pub cache: String,
    /// Only claims of this path, with all that is known of them
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

/// Which claim.
#[derive(Debug, Args)]
pub struct Claim {
    /// A path in /nix/store, or a link to one such as ./result
    pub path: String,
    /// Name of the cache
    #[arg(long, value_name = "CACHE", default_value = "main", value_parser = cache)]
    pub cache: String,
    #[command(flatten)]
    pub reason: Reason,
    #[command(flatten)]
    pub common: Common,
}

// no words of its own: each command that has these arguments says what it does
#[derive(Debug, Args)]
pub struct Decide {
    #[command(flatten)]
    pub claim: Claim,
    /// Which contents, where several are claimed: sha256:… as `list` prints it
    #[arg(long, value_name = "HASH", value_parser = nar_hash)]
    pub nar_hash: Option<Sha256>,
    /// Until when it counts: 30d, or a date such as 2031-12-24; by default for good
    #[arg(long, value_name = "WHEN", value_parser = until)]
    pub until: Option<Until>,
}

/// Show paths that are claimed with contents that differ, side by side
#[derive(Debug, Args)]
pub struct ConflictList {
    /// Name of the cache
    #[arg(long, value_name = "CACHE", default_value = "main", value_parser = cache)]
    pub cache: String,
    #[command(flatten)]
    pub common: Common,
}

/// Say which contents of a path stand; claims of others are rejected
///
/// What is published stays: there only its own contents can be said to stand.
#[derive(Debug, Args)]
pub struct Settle {
    #[command(flatten)]
    pub claim: Claim,
    /// The contents that stand: sha256:… as `list` prints it
    #[arg(long, value_name = "HASH", value_parser = nar_hash)]
    pub nar_hash: Sha256,
}

/// Until when something counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Seconds from now.
    In(u64),
    /// Seconds since 1970.
    At(u64),
}

impl Until {
    pub const fn from(self, now: u64) -> u64 {
        match self {
            Self::In(seconds) => now.saturating_add(seconds),
            Self::At(then) => then,
        }
    }
}

fn until(text: &str) -> Result<Until, String> {
    let parsed = duration(text).filter(|seconds| *seconds > 0).map(Until::In);
    parsed.or_else(|| clock::date(text).map(Until::At)).ok_or_else(|| {
        "write how long, as 12h, 30d or 8w, or the day on which it ends (at its beginning, UTC), as 2031-12-24"
            .to_owned()
    })
}

fn nar_hash(text: &str) -> Result<Sha256, String> {
    let plain = || Sha256::from_base32(text);
    Sha256::parse(text)
        .ok()
        .or_else(plain)
        .ok_or_else(|| "this is no sha256, such as sha256:1b4v…".to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("30d", Some(Until::In(30 * 86_400)))]
    #[case("12h", Some(Until::In(43_200)))]
    #[case("1970-01-03", Some(Until::At(2 * 86_400)))]
    #[case("0d", None)]
    #[case("2031-02-30", None)]
    #[case("tomorrow", None)]
    fn times(#[case] text: &str, #[case] expected: Option<Until>) {
        assert_eq!(until(text).ok(), expected);
    }

    #[test]
    fn hashes_in_every_spelling() {
        let hash = Sha256::of(b"x");
        for text in [hash.to_string(), hash.base32(), format!("sha256:{}", hash.hex())] {
            assert_eq!(nar_hash(&text), Ok(hash), "{text}");
        }
        assert!(nar_hash("sha1:00").is_err());
    }
}
