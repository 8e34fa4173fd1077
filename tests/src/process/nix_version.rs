//! The versions of Nix that tests run: the one on this machine, and those that `tests/nix/versions` made.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Whose Nix. A test that runs each of them has a case for each, with the name that `scripts/test` leaves out where one
/// can't be made:
///
/// ```ignore
/// #[rstest]
/// #[case::nix_here(NixVersion::Here)]
/// #[case::nix_of_trixie(NixVersion::Trixie)]
/// #[case::nix_of_forky(NixVersion::Forky)]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NixVersion {
    /// The one on this machine, whichever it is (Debian bookworm has 2.8).
    Here,
    /// Debian trixie's: 2.26.
    Trixie,
    /// Debian forky's: 2.34.
    Forky,
}

impl NixVersion {
    pub const ALL: [Self; 3] = [Self::Here, Self::Trixie, Self::Forky];

    /// The directory of its commands; `None` where they are those of `PATH`.
    ///
    /// Panics where it wasn't made: a test of it that does nothing would count as one that passed.
    pub(super) fn commands(self) -> Option<PathBuf> {
        let suite = match self {
            Self::Here => return None,
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        };
        let dir = env::var_os("PUSHGATE_NIX_DIR").map_or_else(
            || {
                let test = env::current_exe().expect("the path of this test");
                // TARGET/PROFILE/deps/TEST
                test.ancestors().nth(3).expect("a test lies in the target directory").join("nix-versions")
            },
            PathBuf::from,
        );
        let made = dir.join(suite);
        assert!(
            made.join("version").exists(),
            "there is no Nix of Debian {suite} in `{}`: run `tests/nix/versions`",
            dir.display()
        );
        Some(made.join("bin"))
    }

    /// Lets a command find its programs before those of this machine.
    pub(super) fn environment(self, command: &mut Command) {
        if let Some(bin) = self.commands() {
            let mut path = vec![bin];
            path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
            command.env("PATH", env::join_paths(path).expect("directories without colons"));
        }
    }

    /// What its builders see of the system that it runs on: `/bin/sh` and what that needs. On merged-usr systems `/bin` and
    /// the like are links.
    pub(super) fn sandbox_paths(self) -> String {
        if self != Self::Here {
            return "/bin=/usr/bin /lib=/usr/lib /lib64=/usr/lib64 /usr".to_owned();
        }
        let mut dirs = vec!["/bin", "/lib", "/lib64", "/usr"];
        if real("/bin/sh").is_some_and(|sh| sh.starts_with("/nix")) {
            dirs.push("/nix/store");
        }
        let paths = dirs.into_iter().filter_map(|dir| Some(format!("{dir}={}", real(dir)?.display())));
        paths.collect::<Vec<_>>().join(" ")
    }
}

fn real(path: &str) -> Option<PathBuf> {
    Path::new(path).canonicalize().ok()
}
