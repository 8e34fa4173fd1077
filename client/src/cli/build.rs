//! Arguments of `build`.

use clap::Args;

use super::Gateway;

/// Build at the cache instead of here
///
/// A verifier of the gateway builds it, from the derivation that this machine evaluates; what comes of it is published if the
/// cache's rules allow, and fetched into this machine's store. Nothing is built here, and what the cache or its upstreams have
/// isn't built at all. Sources that are on this machine only are sent. Logs go to standard error; the paths of the outputs are
/// all that stands on standard output.
///
///   pushgate build .#hello
///   pushgate build default.nix -A hello
///   pushgate build /nix/store/…-hello-2.12.drv
///
/// Exit codes: 0 everything is published or held, 1 a build failed, the result couldn't be fetched, or another error, 2 wrong
/// arguments, 3 something was rejected, or may not be built for you, 4 time ran out.
#[derive(Debug, Args)]
pub struct Build {
    /// What to build: an installable of a flake, a file in the Nix language, or a derivation (.drv)
    #[arg(value_name = "INSTALLABLE|FILE|DRV", required_unless_present_any = ["attrs", "expr"])]
    pub what: Option<String>,
    /// An attribute of the file or expression; may be repeated
    #[arg(short = 'A', long = "attr", value_name = "ATTR")]
    pub attrs: Vec<String>,
    /// An expression in the Nix language, instead of a file
    #[arg(
        short = 'E',
        long = "expr",
        value_name = "EXPR",
        conflicts_with = "what",
        allow_hyphen_values = true
    )]
    pub expr: Option<String>,
    /// Name of the cache at the gateway
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub cache: String,
    /// Don't fetch the result
    #[arg(long)]
    pub no_substitute: bool,
    /// Wait until nothing is held any more: everything is published or rejected
    #[arg(long)]
    pub wait: bool,
    /// How long to wait for builds and decisions, in seconds; builds go on without you
    #[arg(long, value_name = "SECS", default_value_t = 43_200, value_parser = clap::value_parser!(u64).range(..=31_536_000))]
    pub timeout: u64,
    /// Print one JSON document instead of paths
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub gateway: Gateway,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(args: &[&str]) -> Result<Build, clap::Error> {
        let all = ["pushgate", "build"].iter().chain(args);
        match Cli::try_parse_from(all)?.command {
            Command::Build(build) => Ok(build),
            _ => panic!("not a build"),
        }
    }

    #[test]
    fn what_to_build_is_named_in_one_way() {
        let build = parse(&["x.nix", "-A", "a", "-A", "b"]).unwrap();
        assert_eq!((build.what.as_deref(), build.attrs.len()), (Some("x.nix"), 2));
        assert_eq!((build.cache.as_str(), build.wait, build.no_substitute), ("main", false, false));
        assert!(parse(&["-A", "a"]).unwrap().what.is_none());
        assert_eq!(parse(&["-E", "-1"]).unwrap().expr.as_deref(), Some("-1"));
        for wrong in [&[][..], &["x.nix", "-E", "1"], &["a", "b"]] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }
}
