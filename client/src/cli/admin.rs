//! The command line of `pushgate admin`.

use clap::{Args, Subcommand};
use pushgate_formats::{
    Sha256,
    acts::{MAX_REASON, ROTATION_GRACE, check_groups, check_name, check_owner},
    api::Role,
    keys::KeyName,
};

use super::{
    Gateway,
    claims::{Conflict, Held},
};
use crate::session::is_cache_name;

/// Look after those who push and what they push: let them in, stop them, decide, see what was done
///
/// For admins: whoever joined with an invite for the role admin. The first one is invited on the gateway's host, with
/// `pushgate-gateway invite NAME --role admin`. Whom a policy asks for approvals may look at what is held, and approve. What you do is signed by your key and kept on record with your reason.
///
/// Exit codes: 0 done, 1 error, 2 wrong arguments.
#[derive(Debug, Args)]
pub struct Admin {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Who may push, rebuild or administer
    #[command(subcommand, visible_alias = "identity")]
    Submitter(Submitter),
    /// Tokens with which stock Nix pushes for a submitter
    #[command(subcommand)]
    Token(Token),
    /// Claims that wait for people: list, approve, reject, waive
    #[command(subcommand)]
    Held(Held),
    /// Paths that are claimed with contents that differ
    #[command(subcommand)]
    Conflict(Conflict),
    Events(Events),
    /// Which claims were drawn for a rebuild, and whether that was honest
    #[command(subcommand)]
    Sample(Sample),
}

impl Command {
    /// Which gateway it is for.
    pub const fn gateway(&self) -> &Gateway {
        match self {
            Self::Submitter(
                Submitter::Invite(Invite { common, .. })
                | Submitter::List(List { common })
                | Submitter::Groups(Groups { common, .. })
                | Submitter::Owner(Owner { common, .. })
                | Submitter::Freeze(Freeze { common, .. })
                | Submitter::Unfreeze(Unfreeze { common, .. })
                | Submitter::RevokeKey(RevokeKey { common, .. })
                | Submitter::Rotate(Rotate { common, .. }),
            )
            | Self::Token(
                Token::List(TokenList { common, .. })
                | Token::Make(TokenMake { common, .. })
                | Token::Revoke(TokenRevoke { common, .. }),
            )
            | Self::Events(Events { common, .. })
            | Self::Sample(
                Sample::List(SampleList { common, .. }) | Sample::Replay(SampleReplay { common, .. }),
            ) => &common.gateway,
            Self::Held(command) => &command.common().gateway,
            Self::Conflict(command) => &command.common().gateway,
        }
    }
}

/// What every command has.
#[derive(Debug, Args)]
pub struct Common {
    /// Print JSON instead of lines
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub gateway: Gateway,
}

#[derive(Debug, Subcommand)]
pub enum Sample {
    List(SampleList),
    Replay(SampleReplay),
}

/// List the epochs of the sample, newest first, each with the hash of its seed
#[derive(Debug, Args)]
pub struct SampleList {
    #[arg(long, value_name = "CACHE", default_value = "main", value_parser = cache)]
    pub cache: String,
    #[command(flatten)]
    pub common: Common,
}

/// Draw again all that an epoch drew, and say whether every draw was honest
///
/// Once an epoch is over, its seed is revealed. Its hash was logged before the first draw, so that the gateway couldn't
/// choose it afterwards. Ends with 1 where a draw doesn't follow from it.
#[derive(Debug, Args)]
pub struct SampleReplay {
    /// The epoch's number
    pub epoch: u64,
    #[arg(long, value_name = "CACHE", default_value = "main", value_parser = cache)]
    pub cache: String,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Subcommand)]
pub enum Submitter {
    Invite(Invite),
    /// List everybody with their keys
    List(List),
    Groups(Groups),
    Owner(Owner),
    Freeze(Freeze),
    Unfreeze(Unfreeze),
    RevokeKey(RevokeKey),
    Rotate(Rotate),
}

/// Let somebody enrol a key, by a one-time code
///
/// Prints the code alone on a line; it is kept nowhere, so pass it on. For a name that is enrolled already, the code adds a
/// key to it and leaves owner and groups as they are.
#[derive(Debug, Args)]
pub struct Invite {
    /// A name for the one who is invited, such as alice or ci-runner-1
    #[arg(value_parser = name)]
    pub name: String,
    /// What he may do: submitter, verifier or admin
    #[arg(long, value_name = "ROLE", default_value = "submitter")]
    pub role: Role,
    /// Who stands behind him; people of one owner count once, and without an owner he vouches for nobody
    #[arg(long, value_name = "OWNER", value_parser = owner)]
    pub owner: Option<String>,
    /// A group that policy files name; may be given several times
    #[arg(long = "group", value_name = "GROUP", value_parser = group)]
    pub groups: Vec<String>,
    /// A cache that the key is for; may be given several times; by default all
    #[arg(long = "cache", value_name = "CACHE", value_parser = cache)]
    pub caches: Vec<String>,
    /// Days for which the key will be good; by default until it is revoked
    #[arg(long, value_name = "N", value_parser = days())]
    pub key_days: Option<u64>,
    /// Hours for which the code is good
    #[arg(long, value_name = "N", default_value_t = 168, value_parser = clap::value_parser!(u64).range(1..=8760))]
    pub hours: u64,
    #[command(flatten)]
    pub reason: MayReason,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    pub common: Common,
}

/// Set all groups of somebody
#[derive(Debug, Args)]
pub struct Groups {
    #[arg(value_parser = name)]
    pub name: String,
    /// The groups from now on, without `@`
    #[arg(value_name = "GROUP", value_parser = group, required_unless_present = "none")]
    pub groups: Vec<String>,
    /// No groups at all
    #[arg(long, conflicts_with = "groups")]
    pub none: bool,
    #[command(flatten)]
    pub reason: MayReason,
    #[command(flatten)]
    pub common: Common,
}

/// Say who stands behind somebody
#[derive(Debug, Args)]
pub struct Owner {
    #[arg(value_parser = name)]
    pub name: String,
    /// Such as alice@example.org; people of one owner count once
    #[arg(value_name = "OWNER", value_parser = owner, required_unless_present = "none")]
    pub owner: Option<String>,
    /// Nobody: without an owner he vouches for nobody
    #[arg(long, conflicts_with = "owner")]
    pub none: bool,
    #[command(flatten)]
    pub reason: Reason,
    #[command(flatten)]
    pub common: Common,
}

/// Stop somebody until he is let go again; what he has pushed and isn't published is held
#[derive(Debug, Args)]
pub struct Freeze {
    #[arg(value_parser = name)]
    pub name: String,
    #[command(flatten)]
    pub reason: Reason,
    #[command(flatten)]
    pub common: Common,
}

/// Let somebody go who was frozen; his pushes are judged again
#[derive(Debug, Args)]
pub struct Unfreeze {
    #[arg(value_parser = name)]
    pub name: String,
    #[command(flatten)]
    pub reason: MayReason,
    #[command(flatten)]
    pub common: Common,
}

/// End a key for good, and all tokens of its owner; what it published stays
#[derive(Debug, Args)]
pub struct RevokeKey {
    /// The key's name, as `list` prints it
    #[arg(value_parser = key)]
    pub key: KeyName,
    #[command(flatten)]
    pub reason: Reason,
    #[command(flatten)]
    pub common: Common,
}

/// Replace a key: prints a code for a new one, and the old one runs out
#[derive(Debug, Args)]
pub struct Rotate {
    /// The old key's name, as `list` prints it
    #[arg(value_parser = key)]
    pub key: KeyName,
    /// Days for which the old key stays good
    #[arg(long, value_name = "N", default_value_t = ROTATION_GRACE / 86_400, value_parser = clap::value_parser!(u64).range(0..=3650))]
    pub grace_days: u64,
    /// Days for which the new key will be good; by default until it is revoked
    #[arg(long, value_name = "N", value_parser = days())]
    pub key_days: Option<u64>,
    /// Hours for which the code is good
    #[arg(long, value_name = "N", default_value_t = 168, value_parser = clap::value_parser!(u64).range(1..=8760))]
    pub hours: u64,
    #[command(flatten)]
    pub reason: MayReason,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Subcommand)]
pub enum Token {
    List(TokenList),
    Make(TokenMake),
    Revoke(TokenRevoke),
}

/// List tokens, by their sha256: the tokens themselves are kept nowhere
#[derive(Debug, Args)]
pub struct TokenList {
    /// Whose; by default everybody's
    #[arg(value_parser = name)]
    pub name: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

/// Make a token for a submitter, for a netrc file with his name as login; prints it alone on a line
#[derive(Debug, Args)]
pub struct TokenMake {
    #[arg(value_parser = name)]
    pub name: String,
    /// Name of the cache that the token is for
    #[arg(long, value_name = "CACHE", default_value = "main", value_parser = cache)]
    pub cache: String,
    /// Days for which the token will be good; by default until it is revoked
    #[arg(long, value_name = "N", value_parser = days())]
    pub days: Option<u64>,
    #[command(flatten)]
    pub reason: MayReason,
    #[command(flatten)]
    pub common: Common,
}

/// End tokens of a submitter for good
#[derive(Debug, Args)]
pub struct TokenRevoke {
    #[arg(value_parser = name)]
    pub name: String,
    /// One token, by its sha256 as `list` prints it
    #[arg(value_name = "SHA256", value_parser = sha256, required_unless_present = "all")]
    pub token: Option<Sha256>,
    /// All tokens of the submitter
    #[arg(long, conflicts_with = "token")]
    pub all: bool,
    #[command(flatten)]
    pub reason: MayReason,
    #[command(flatten)]
    pub common: Common,
}

/// Show what was done, by whom, when and why
///
/// Without --after, the newest hundred events. With --json, one JSON object a line.
#[derive(Debug, Args)]
pub struct Events {
    /// Go on showing events as they come
    #[arg(long)]
    pub follow: bool,
    /// Only events after the one with this number; 0 for all
    #[arg(long, value_name = "N")]
    pub after: Option<u64>,
    /// Only events about this cache
    #[arg(long, value_name = "CACHE", value_parser = cache)]
    pub cache: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

/// A reason that has to be given.
#[derive(Debug, Args)]
pub struct Reason {
    /// Why; those after you read it
    #[arg(long = "reason", value_name = "TEXT", value_parser = reason)]
    pub text: String,
}

/// A reason that may be given.
#[derive(Debug, Args)]
pub struct MayReason {
    /// Why, if there is something to say
    #[arg(long = "reason", value_name = "TEXT", value_parser = reason)]
    pub text: Option<String>,
}

fn days() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=36_500)
}

fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned()).map_err(|e| e.to_string())
}

fn owner(text: &str) -> Result<String, String> {
    check_owner(text).map(|()| text.to_owned()).map_err(|e| e.to_string())
}

fn group(text: &str) -> Result<String, String> {
    check_groups(&[text.to_owned()]).map(|()| text.to_owned()).map_err(|e| e.to_string())
}

pub(super) fn cache(text: &str) -> Result<String, String> {
    if is_cache_name(text) { Ok(text.to_owned()) } else { Err("no cache can have this name".to_owned()) }
}

/// A key's name; the whole key, as it is printed, will do as well.
fn key(text: &str) -> Result<KeyName, String> {
    KeyName::new(text.split(':').next().unwrap_or_default()).map_err(|e| e.to_string())
}

fn sha256(text: &str) -> Result<Sha256, String> {
    Sha256::from_base32(text).ok_or_else(|| "this is no sha256 in 52 base 32 digits".to_owned())
}

fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("say why, in some words".to_owned()),
        text if text.len() > MAX_REASON => Err(format!("{} bytes; {MAX_REASON} are allowed", text.len())),
        text => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use crate::cli::Cli;

    #[rstest]
    #[case::no_reason("submitter freeze alice")]
    #[case::blank_reason("submitter freeze alice --reason=_")]
    #[case::owner_without_reason("submitter owner alice bob")]
    #[case::revocation_without_reason("submitter revoke-key alice-1")]
    #[case::no_groups("submitter groups alice")]
    #[case::groups_and_none("submitter groups alice core --none")]
    #[case::at("submitter groups alice @core")]
    #[case::name("submitter freeze al/ice --reason x")]
    #[case::role("submitter invite alice --role root")]
    #[case::which_token("token revoke alice")]
    #[case::no_token("token revoke alice 1234")]
    #[case::cache("events --cache ../x")]
    #[case::after("events --after -1")]
    #[case::approval_without_reason("held approve 0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x")]
    #[case::until("held approve x --reason y --until soon")]
    #[case::nar_hash("held reject x --reason y --nar-hash 1")]
    #[case::settle_which("conflict settle x --reason y")]
    fn wrong_usage_ends_with_2(#[case] args: &str) {
        let args = args.split(' ').map(|arg| arg.replace('_', " "));
        let args = ["pushgate", "admin"].map(str::to_owned).into_iter().chain(args);
        assert_eq!(Cli::try_parse_from(args).unwrap_err().exit_code(), 2);
    }
}
