//! What a person wants to have built, as derivations: a `.drv`, a file or expression in the Nix language, an installable of
//! a flake. Stock Nix evaluates; nothing is built on this machine.

use std::{path::Path, process::Stdio};

use pushgate_formats::StorePath;
use tokio::process::Command;

use crate::nix::{LocationError, StoreLocation};

/// What Nix says at each instantiation, and what nobody here has to care about: the derivations are read at once.
const ROOT_WARNING: &str = "you did not specify '--add-root'";

#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error(
        "name what to build: an installable such as `.#hello`, a `.drv`, a file such as `default.nix`, or `-E EXPR`"
    )]
    Nothing,
    #[error("`-A` chooses from a file or an expression; in `{0}` the attribute stands behind the `#`")]
    AttributeOfFlake(String),
    #[error("`-E` is what to build; name no `{0}` beside it")]
    ExpressionAndFile(String),
    #[error(transparent)]
    Location(#[from] LocationError),
    #[error("`{program}` can't be run; is Nix installed?")]
    NoNix {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("`{program}` can't evaluate it, see above")]
    Evaluation { program: &'static str },
    #[error("`{program}` answers `{answer}`, which is not a derivation")]
    NotADerivation { program: &'static str, answer: String },
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A `.drv`, or a link to one.
    Derivation(String),
    /// Arguments of `nix-instantiate`.
    Instantiate(Vec<String>),
    /// An attribute of a flake, with the `#`.
    Flake(String),
}

impl Target {
    /// Tells from the arguments what is meant. `exists` says whether there is a file or directory.
    pub fn parse(
        what: Option<&str>,
        attrs: &[String],
        expr: Option<&str>,
        exists: impl Fn(&Path) -> bool,
    ) -> Result<Self, TargetError> {
        let chosen = || attrs.iter().flat_map(|attr| ["-A".to_owned(), attr.clone()]);
        if let Some(expr) = expr {
            return match what {
                Some(what) => Err(TargetError::ExpressionAndFile(what.into())),
                None => Ok(Self::Instantiate(
                    ["--expr".to_owned(), expr.to_owned()].into_iter().chain(chosen()).collect(),
                )),
            };
        }
        let what = match what {
            Some(what) => what,
            None if attrs.is_empty() => return Err(TargetError::Nothing),
            None => "./default.nix",
        };
        // a choice of outputs means nothing here: a build makes all
        let base = what.split(['^', '!']).next().unwrap_or(what);
        if base.ends_with(".drv") && attrs.is_empty() {
            return Ok(Self::Derivation(base.into()));
        }
        let path = Path::new(what);
        let is_file = !what.contains('#') && (what.ends_with(".nix") || path.is_absolute() && exists(path))
            || exists(&path.join("default.nix")) && (!attrs.is_empty() || !exists(&path.join("flake.nix")));
        if is_file {
            // neither an option nor something to be looked for in NIX_PATH
            let file =
                if path.is_absolute() || what.starts_with('.') { what.into() } else { format!("./{what}") };
            return Ok(Self::Instantiate(std::iter::once(file).chain(chosen()).collect()));
        }
        if !attrs.is_empty() {
            return Err(TargetError::AttributeOfFlake(what.into()));
        }
        Ok(Self::Flake(match base.split_once('#') {
            Some((_, attr)) if !attr.is_empty() => base.to_owned(),
            Some((flake, _)) => format!("{flake}#default"),
            None => format!("{base}#default"),
        }))
    }

    /// The command that evaluates it; none where nothing has to be evaluated.
    fn command(&self) -> Option<(&'static str, Vec<String>)> {
        // evaluation may not build either
        let pure = ["--option", "allow-import-from-derivation", "false"];
        match self {
            Self::Derivation(_) => None,
            Self::Instantiate(args) => {
                Some(("nix-instantiate", pure.into_iter().map(str::to_owned).chain(args.clone()).collect()))
            }
            Self::Flake(installable) => {
                let args = ["--extra-experimental-features", "nix-command flakes", "eval", "--raw"];
                let installable = format!("{installable}.drvPath");
                let args = args.into_iter().chain(pure).map(str::to_owned);
                Some(("nix", args.chain([installable]).collect()))
            }
        }
    }

    /// The derivations, after whatever evaluation that takes. What Nix says goes to standard error.
    pub async fn derivations(&self, location: &StoreLocation) -> Result<Vec<StorePath>, TargetError> {
        let Some((program, args)) = self.command() else {
            let Self::Derivation(text) = self else { return Err(TargetError::Nothing) };
            return Ok(vec![location.resolve_root(text)?]);
        };
        let quiet = program == "nix-instantiate";
        let mut command = Command::new(program);
        command.args(&args).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command.stderr(if quiet { Stdio::piped() } else { Stdio::inherit() });
        let run = command.spawn().map_err(|source| TargetError::NoNix { program, source })?;
        let output = run.wait_with_output().await.map_err(|source| TargetError::NoNix { program, source })?;
        let said = String::from_utf8_lossy(&output.stderr);
        for line in said.lines().filter(|line| !line.contains(ROOT_WARNING)) {
            eprintln!("{line}");
        }
        if !output.status.success() {
            return Err(TargetError::Evaluation { program });
        }
        derivations_in(program, &String::from_utf8_lossy(&output.stdout))
    }
}

/// The derivations that an evaluation printed, each once.
fn derivations_in(program: &'static str, printed: &str) -> Result<Vec<StorePath>, TargetError> {
    let mut found = Vec::new();
    for line in printed.lines() {
        let path = StorePath::parse(line.split('!').next().unwrap_or(line)).ok();
        let Some(path) = path.filter(StorePath::is_derivation) else {
            return Err(TargetError::NotADerivation { program, answer: line.escape_debug().to_string() });
        };
        if !found.contains(&path) {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(TargetError::NotADerivation { program, answer: String::new() });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::nix::testing::Store;

    const DRV: &str = "/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x.drv";

    fn parse(what: &str, attrs: &[&str], there: &[&str]) -> Result<Target, TargetError> {
        let attrs: Vec<String> = attrs.iter().map(|attr| (*attr).to_owned()).collect();
        let what = (!what.is_empty()).then_some(what);
        Target::parse(what, &attrs, None, |path| there.iter().any(|file| Path::new(file) == path))
    }

    fn instantiate(args: &[&str]) -> Target {
        Target::Instantiate(args.iter().map(|arg| (*arg).to_owned()).collect())
    }

    #[rstest]
    #[case(DRV, &[], &[], Target::Derivation(DRV.into()))]
    #[case("./x.drv^out", &[], &[], Target::Derivation("./x.drv".into()))]
    #[case("x.nix", &["a", "b"], &[], instantiate(&["./x.nix", "-A", "a", "-A", "b"]))]
    #[case("../x.nix", &[], &[], instantiate(&["../x.nix"]))]
    #[case("", &["a"], &[], instantiate(&["./default.nix", "-A", "a"]))]
    #[case("dir", &[], &["dir/default.nix"], instantiate(&["./dir"]))]
    #[case("dir", &[], &["dir/default.nix", "dir/flake.nix"], Target::Flake("dir#default".into()))]
    #[case(".#x", &[], &["./default.nix"], Target::Flake(".#x".into()))]
    #[case("nixpkgs#hello^out,dev", &[], &[], Target::Flake("nixpkgs#hello".into()))]
    #[case(".", &[], &["./flake.nix"], Target::Flake(".#default".into()))]
    #[case("nixpkgs#", &[], &[], Target::Flake("nixpkgs#default".into()))]
    fn what_is_meant(
        #[case] what: &str,
        #[case] attrs: &[&str],
        #[case] there: &[&str],
        #[case] target: Target,
    ) {
        assert_eq!(parse(what, attrs, there).unwrap(), target);
    }

    #[test]
    fn what_can_t_be_meant() {
        assert!(matches!(parse("", &[], &[]), Err(TargetError::Nothing)));
        assert!(matches!(parse("nixpkgs#hello", &["x"], &[]), Err(TargetError::AttributeOfFlake(_))));
        let both = Target::parse(Some("x.nix"), &[], Some("1"), |_| false);
        assert!(matches!(both, Err(TargetError::ExpressionAndFile(_))));
    }

    #[test]
    fn evaluating_never_builds() {
        for target in [instantiate(&["./x.nix"]), Target::Flake(".#x".into())] {
            let (_, args) = target.command().unwrap();
            assert!(args.windows(2).any(|two| two == ["allow-import-from-derivation", "false"]), "{args:?}");
        }
        let (program, args) = Target::Flake(".#x".into()).command().unwrap();
        assert_eq!((program, args[1].as_str()), ("nix", "nix-command flakes"));
        assert_eq!(args.last().unwrap(), ".#x.drvPath");
    }

    #[test]
    fn what_an_evaluation_prints() {
        let read = |text: &str| derivations_in("nix", text);
        let path = StorePath::parse(DRV).unwrap();
        assert_eq!(read(&format!("{DRV}!dev\n{DRV}\n")).unwrap(), std::slice::from_ref(&path));
        assert_eq!(read(DRV).unwrap(), [path]);
        for wrong in ["", "/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x\n", "\u{1b}[31m"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_derivation_is_taken_as_it_is() {
        let Some(store) = Store::new() else { return };
        let drv = store.instantiate(r#"derivation { name = "a"; system = "none"; builder = "/bin/sh"; }"#);
        let target = Target::Derivation(drv.absolute());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(target.derivations(&store.location())).unwrap();
        assert_eq!(found, [drv]);
    }
}
