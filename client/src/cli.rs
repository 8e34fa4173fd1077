//! The command line: names, help and limits of arguments. Doesn't do anything with them.

pub mod admin;
pub mod build;
pub mod claims;
pub mod replay;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use pushgate_formats::api::Role;

use crate::push::MAX_JOBS;

/// Share what Nix built with others, through a gateway that checks everything before it publishes it
///
/// Nix keeps everything that it builds in /nix/store. A binary cache is a web server from which other machines fetch such
/// paths instead of building them again. A pushgate gateway fills such a cache: it takes paths from people that it knows,
/// checks them, and publishes those that its rules allow.
///
/// PUSHGATE_LOG=debug in the environment tells on standard error what goes on.
#[derive(Debug, Parser)]
#[command(name = "pushgate", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Join(Join),
    Push(Push),
    Build(build::Build),
    Status(Status),
    Why(claims::Why),
    Token(Token),
    Admin(admin::Admin),
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// Make yourself known to a gateway, once per machine
///
/// Makes a key that stays on this machine and enrols it with the invite that the gateway's admin gave you. Settings and
/// key are kept in ~/.config/pushgate, or $XDG_CONFIG_HOME/pushgate.
///
/// Exit codes: 0 joined, 1 error, 2 wrong arguments.
#[derive(Debug, Args)]
pub struct Join {
    /// The gateway's address, such as https://cache.example.org
    pub url: String,
    /// The one-time code from the gateway's admin; in the environment, other users of this machine can't see it
    #[arg(long, value_name = "CODE", env = "PUSHGATE_INVITE", hide_env_values = true)]
    pub invite: String,
    /// A name for the key; by default from user and host, such as alice-laptop-1
    #[arg(long, value_name = "KEYNAME")]
    pub name: Option<String>,
    /// Make another key for a gateway that you joined before, and use that one from now on
    #[arg(long)]
    pub again: bool,
    /// What the invite is for, where you have joined the same gateway in another role: submitter or admin
    #[arg(long = "as", value_name = "ROLE")]
    pub role: Option<Role>,
}

/// Send store paths, and all that they need, to a gateway
///
/// Only what the cache doesn't have yet is sent. The command ends when the gateway has checked everything; what its rules
/// hold back for later (for somebody to rebuild or approve it, say) counts as accepted.
///
/// Exit codes: 0 everything is published or held, 1 error, 2 wrong arguments, 3 something was rejected, 4 time ran out.
#[derive(Debug, Args)]
pub struct Push {
    /// What to push: paths in /nix/store, or links to them such as ./result
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<String>,
    /// Name of the cache at the gateway
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub cache: String,
    /// Wait until nothing is held any more: everything is published or rejected
    #[arg(long)]
    pub wait: bool,
    /// How long to wait for the gateway's decisions, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(..=31_536_000))]
    pub timeout: u64,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
    /// How many uploads run at once; by default as many as there are cores, from 2 to 8
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=MAX_JOBS as i64))]
    pub jobs: Option<u8>,
    /// How hard to compress: 1 is fast, 19 is small; by default 1, 3 or 6 as the line to the gateway is fast or slow
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=19))]
    pub compression_level: Option<i32>,
    /// Print a line for every path, also in large pushes
    #[arg(long, short)]
    pub verbose: bool,
    #[command(flatten)]
    pub gateway: Gateway,
}

/// Ask what became of your pushes
///
/// Exit codes: 0 here is the answer, 1 error, 2 wrong arguments, 3 something of what you asked for was rejected.
#[derive(Debug, Args)]
pub struct Status {
    /// A push, by the id that `push` prints, or a path; without it, your recent pushes
    #[arg(value_name = "PUSH|PATH")]
    pub what: Option<String>,
    /// Name of the cache, for a path
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub cache: String,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
    /// Print a line for every path, also of large pushes
    #[arg(long, short)]
    pub verbose: bool,
    #[command(flatten)]
    pub gateway: Gateway,
}

/// Make a token, so that stock Nix can push for you
///
/// `nix copy --to` authenticates itself by a netrc file: put the line that --netrc prints into one that only you can read
/// and name it in nix.conf (netrc-file). Each path still needs a signature by the key that you joined with, whose file is
/// named on standard error:
///
///   nix copy --to 'https://cache.example.org/main/push?secret-key=KEYFILE' ./result
///
/// Exit codes: 0 the token is printed, 1 error, 2 wrong arguments.
#[derive(Debug, Args)]
pub struct Token {
    /// Name of the cache that the token is for
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub cache: String,
    /// Print a line for a netrc file instead of the token alone
    #[arg(long)]
    pub netrc: bool,
    #[command(flatten)]
    pub gateway: Gateway,
}

/// Check, test, explain and try policy files, before a gateway uses them
///
/// A policy file says what a gateway publishes, holds and refuses. These commands read files on this machine; only replay
/// asks a gateway, and changes nothing there.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    Check(PolicyFiles),
    Test(PolicyTests),
    Explain(Box<PolicyExplain>),
    Replay(replay::Replay),
    Schema(PolicySchema),
}

/// Find mistakes in policy files
///
/// Exit codes: 0 a gateway would take all of them, 1 one is broken or can't be read, 2 wrong arguments.
#[derive(Debug, Args)]
pub struct PolicyFiles {
    /// Policy files, or directories of them
    #[arg(value_name = "FILE|DIR", required = true)]
    pub files: Vec<PathBuf>,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
    /// Say too what nobody enrolled at the gateway could meet; needs an admin's key
    #[arg(long)]
    pub enrolled: bool,
    #[command(flatten)]
    pub gateway: Gateway,
}

/// Run the tests that policy files have
///
/// Exit codes: 0 all passed, 1 one failed, or a file is broken or can't be read, 2 wrong arguments.
#[derive(Debug, Args)]
pub struct PolicyTests {
    /// Policy files, or directories of them
    #[arg(value_name = "FILE|DIR", required = true)]
    pub files: Vec<PathBuf>,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
}

/// Tell which rule of a policy file decides a path, why, and what is missing
///
/// The path needn't exist: a name such as glibc-2.40 will do. For example:
///
///   pushgate policy explain --policy main.toml glibc-2.40 --submitter alice --evidence derivation --evidence rebuilds=1
///
/// Without --policy the gateway is asked: it explains by its own policy, and by what it knows, the claims of the path that
/// you may see.
///
/// Exit codes: 0 here is the answer, 1 error, 2 wrong arguments.
#[derive(Debug, Args)]
pub struct PolicyExplain {
    /// A store path, or the name of one
    #[arg(value_name = "PATH|NAME")]
    pub path: String,
    /// The policy file
    #[arg(long, value_name = "FILE", requires = "submitter")]
    pub policy: Option<PathBuf>,
    /// Who pushes it
    #[arg(long, value_name = "NAME", requires = "policy")]
    pub submitter: Option<String>,
    /// The submitter's owner
    #[arg(long, value_name = "OWNER", requires = "policy")]
    pub owner: Option<String>,
    /// A group that the submitter was given at enrolment; may be repeated
    #[arg(long = "group", value_name = "GROUP", requires = "policy")]
    pub groups: Vec<String>,
    /// What is known of it: derivation, content-address, rebuilds=N, submitters=N, approvals=N@GROUP, upstream, drawn, waiver,
    /// or a table as in a policy file's test; may be repeated
    #[arg(long, value_name = "EVIDENCE", requires = "policy")]
    pub evidence: Vec<String>,
    /// The system that it is built for; with the derivation, x86_64-linux where not given
    #[arg(long, value_name = "SYSTEM", requires = "policy")]
    pub system: Option<String>,
    /// The derivation's output that it is
    #[arg(long, value_name = "OUTPUT", requires = "policy")]
    pub output: Option<String>,
    /// A variable of the derivation's environment; may be repeated
    #[arg(long, value_name = "NAME=VALUE", requires = "policy")]
    pub env: Vec<String>,
    /// Size of its NAR, such as 4GiB
    #[arg(long, value_name = "SIZE", requires = "policy")]
    pub size: Option<String>,
    /// Name of the cache at the gateway
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub cache: String,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub gateway: Gateway,
}

/// Print the JSON schema of policy files, by which editors complete and check them
///
/// Exit codes: 0 the schema is printed, 1 error, 2 wrong arguments.
#[derive(Debug, Args)]
pub struct PolicySchema {
    /// Changes nothing: the schema is JSON
    #[arg(long)]
    pub json: bool,
}

/// Which gateway, where several were joined.
#[derive(Debug, Args)]
pub struct Gateway {
    /// Address of the gateway, if you joined several; by default the first that you joined
    #[arg(long = "gateway", value_name = "URL", env = "PUSHGATE_GATEWAY")]
    pub url: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_of_push() {
        let Command::Push(push) = Cli::try_parse_from(["pushgate", "push", "a", "b"]).unwrap().command else {
            panic!("not a push");
        };
        assert_eq!((push.cache.as_str(), push.timeout, push.wait, push.json), ("main", 600, false, false));
        assert_eq!((push.paths.len(), push.jobs, push.compression_level), (2, None, None));
    }

    #[test]
    fn wrong_usage_ends_with_2() {
        for args in [
            &["pushgate", "push"][..],
            &["pushgate", "push", "--jobs", "0", "a"],
            &["pushgate", "push", "--jobs", "17", "a"],
            &["pushgate", "push", "--compression-level", "20", "a"],
            &["pushgate", "frobnicate"],
            &["pushgate"],
        ] {
            assert_eq!(Cli::try_parse_from(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }
}
