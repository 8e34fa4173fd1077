//! What the client asks of the Nix on its machine: which store it uses ([`StoreLocation`]), what the store knows of its
//! paths ([`Daemon`], [`closure`]), and their bytes ([`dump`]). Doesn't know pushgate's server, doesn't read `nix.conf`,
//! and opens neither Nix's database nor the output of its commands, which differ from version to version.

pub mod closure;
mod connection;
mod daemon;
pub mod dump;
mod nar_copy;
mod wire;

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Component, Path, PathBuf},
};

use pushgate_formats::{StorePath, store_path::STORE_DIR};

pub use connection::StoreError;
pub use daemon::{Daemon, PathInfo};
pub use wire::WireError;

const STATE_DIR: &str = "/nix/var/nix";
/// Symlinks followed before a path is said to be a loop, as in the kernel.
const MAX_LINKS: usize = 40;

#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    #[error(
        "`{0}` names no Nix store on this machine; use `auto`, `daemon`, `local`, `unix://SOCKET` or the root \
         directory of a store"
    )]
    Unknown(String),
    #[error("the store directory of `{0}` isn't {STORE_DIR}; paths of other stores can't be pushed")]
    OtherStoreDir(String),
    #[error("`{path}` is not in the Nix store; name a path below {STORE_DIR} or a link to one")]
    NotInStore { path: String },
    #[error("`{path}` is not a path in the Nix store: {why}")]
    NotAStorePath { path: String, why: String },
    #[error("`{path}` can't be read")]
    Unreadable {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` leads through more than {MAX_LINKS} links")]
    LinkLoop { path: String },
}

/// How the store is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Through this socket; with `or_spawn`, where nobody listens on it, through a daemon of one's own.
    Socket { path: PathBuf, or_spawn: bool },
    /// Through a daemon of one's own for this store.
    Spawn { uri: OsString },
}

/// Which store, and where its files lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLocation {
    reach: Reach,
    /// The directory that holds what is called `/nix/store` in names.
    store_dir: PathBuf,
}

impl StoreLocation {
    /// The store that Nix's own commands would use, by `NIX_REMOTE`, `NIX_DAEMON_SOCKET_PATH` and `NIX_STATE_DIR`.
    pub fn from_env() -> Result<Self, LocationError> {
        let uri = std::env::var_os("NIX_REMOTE").unwrap_or_default();
        Self::with_env(&uri, |name| std::env::var_os(name))
    }

    /// The store with this URI, as in Nix's `--store`: `auto`, `daemon`, `local`, `unix://SOCKET`, the root of a
    /// chroot store (`/tmp/x`, `local?root=/tmp/x`). Stores on other machines are refused.
    pub fn from_uri(uri: &str) -> Result<Self, LocationError> {
        Self::with_env(uri.as_ref(), |name| std::env::var_os(name))
    }

    fn with_env(
        uri: &std::ffi::OsStr,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, LocationError> {
        let shown = || uri.to_string_lossy().into_owned();
        let (base, query) = match uri.as_bytes().iter().position(|b| *b == b'?') {
            Some(at) => (&uri.as_bytes()[..at], &uri.as_bytes()[at + 1..]),
            None => (uri.as_bytes(), &b""[..]),
        };
        let set = |name| env(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
        let socket = || {
            set("NIX_DAEMON_SOCKET_PATH").unwrap_or_else(|| {
                set("NIX_STATE_DIR").unwrap_or_else(|| STATE_DIR.into()).join("daemon-socket/socket")
            })
        };
        // a daemon of one's own gets an absolute root, whatever its working directory
        let spawn = |base: &[u8]| {
            let mut uri = base.to_vec();
            if !query.is_empty() {
                uri.push(b'?');
                uri.extend_from_slice(query);
            }
            Reach::Spawn { uri: OsString::from_vec(uri) }
        };
        let mut root = None;
        let reach = match base {
            b"" | b"auto" if query.is_empty() => Reach::Socket { path: socket(), or_spawn: true },
            b"daemon" | b"unix://" => Reach::Socket { path: socket(), or_spawn: false },
            b"" | b"auto" | b"local" | b"local://" => spawn(b"local"),
            _ if base.starts_with(b"unix://") => {
                let path = OsString::from_vec(base[b"unix://".len()..].to_vec()).into();
                Reach::Socket { path, or_spawn: false }
            }
            _ if base.contains(&b'/') && !base.windows(3).any(|w| w == b"://") => {
                let absolute = std::path::absolute(OsString::from_vec(base.to_vec()))
                    .map_err(|source| LocationError::Unreadable { path: shown(), source })?;
                let reach = spawn(absolute.as_os_str().as_bytes());
                root = Some(absolute);
                reach
            }
            _ => return Err(LocationError::Unknown(shown())),
        };

        let mut real = None;
        for (name, value) in parameters(query) {
            match name {
                b"root" if root.is_none() && !value.is_empty() => {
                    root = Some(absolute(value).ok_or_else(|| LocationError::Unknown(shown()))?);
                }
                b"real" => real = Some(absolute(value).ok_or_else(|| LocationError::Unknown(shown()))?),
                b"store" if value != STORE_DIR.as_bytes() => {
                    return Err(LocationError::OtherStoreDir(shown()));
                }
                _ => {} // the daemon's affair
            }
        }
        let store_dir = real.unwrap_or_else(|| match root {
            Some(root) => root.join(&STORE_DIR[1..]),
            None => STORE_DIR.into(),
        });
        Ok(Self { reach, store_dir })
    }

    pub(crate) fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Where the files of a path lie.
    pub fn physical(&self, path: &StorePath) -> PathBuf {
        self.store_dir.join(path.base_name())
    }

    /// The store path that a person means by `text`: a store path, something inside one (`/nix/store/X/bin/y` means
    /// `X`), or a link to either (`./result`). Looks only at links, not at whether the path is valid.
    pub fn resolve_root(&self, text: &str) -> Result<StorePath, LocationError> {
        let unreadable = |source| LocationError::Unreadable { path: text.into(), source };
        if text.is_empty() {
            return Err(LocationError::NotInStore { path: text.into() });
        }
        let start = lexically_absolute(Path::new(text)).map_err(unreadable)?;
        // First what Nix does: follow the last component, so that `~/.nix-profile/bin/hello` means hello's own path
        // and not the profile's …
        let mut path = start.clone();
        for _ in 0..MAX_LINKS {
            if let Some(found) = self.entered(&path) {
                return found;
            }
            let Ok(target) = std::fs::read_link(&path) else { break };
            let parent = path.parent().unwrap_or(Path::new("/"));
            path = lexically_absolute(&parent.join(target)).map_err(unreadable)?;
        }
        // … then the links on the way, so that `./result/bin/y` is inside what `./result` leads to.
        let mut ahead: Vec<OsString> = start.components().rev().map(|c| c.as_os_str().into()).collect();
        let mut path = PathBuf::from("/");
        let mut links = 0;
        while let Some(component) = ahead.pop() {
            match Path::new(&component).components().next() {
                Some(Component::Normal(name)) => path.push(name),
                Some(Component::ParentDir) => {
                    path.pop();
                    continue;
                }
                _ => continue,
            }
            if let Some(found) = self.entered(&path) {
                return found;
            }
            let meta = path.symlink_metadata().map_err(unreadable)?;
            if meta.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    return Err(LocationError::LinkLoop { path: text.into() });
                }
                let target = std::fs::read_link(&path).map_err(unreadable)?;
                path.pop();
                if target.is_absolute() {
                    path = "/".into();
                }
                ahead.extend(target.components().rev().map(|c| OsString::from(c.as_os_str())));
            }
        }
        Err(LocationError::NotInStore { path: text.into() })
    }

    /// The store path that an absolute path is, or lies in.
    fn entered(&self, path: &Path) -> Option<Result<StorePath, LocationError>> {
        let inside = path.strip_prefix(STORE_DIR).or_else(|_| path.strip_prefix(&self.store_dir)).ok()?;
        let base = inside.components().next()?.as_os_str().to_string_lossy();
        Some(StorePath::from_base_name(&base).map_err(|why| LocationError::NotAStorePath {
            path: path.to_string_lossy().into_owned(),
            why: why.to_string(),
        }))
    }
}

/// Makes a path absolute and takes `.` and `..` out of its text, as Nix does, without looking at links.
fn lexically_absolute(path: &Path) -> io::Result<PathBuf> {
    let mut out = PathBuf::new();
    for component in std::path::absolute(path)?.components() {
        match component {
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    Ok(out)
}

/// A parameter's value as an absolute path. Nix takes nothing else for `root` and `real`.
fn absolute(value: Vec<u8>) -> Option<PathBuf> {
    value.starts_with(b"/").then(|| OsString::from_vec(value).into())
}

/// The parameters of a store URI, percent-decoded.
fn parameters(query: &[u8]) -> impl Iterator<Item = (&[u8], Vec<u8>)> {
    query.split(|b| *b == b'&').filter_map(|pair| {
        let at = pair.iter().position(|b| *b == b'=')?;
        Some((&pair[..at], percent_decode(&pair[at + 1..])))
    })
}

fn percent_decode(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|b| (*b as char).to_digit(16));
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out
}

/// Stores of their own for tests, made by the Nix on the machine.
#[cfg(test)]
pub(crate) mod testing {
    use std::{path::Path, process::Command};

    use super::*;

    /// A chroot store in a temporary directory.
    pub(crate) struct Store {
        pub(crate) dir: tempfile::TempDir,
    }

    impl Store {
        /// `None`, and a line that says so, where Nix isn't installed.
        pub(crate) fn new() -> Option<Self> {
            if Command::new("nix-store").arg("--version").output().is_err() {
                eprintln!("skipped: Nix isn't installed");
                return None;
            }
            Some(Self { dir: tempfile::tempdir().unwrap() })
        }

        pub(crate) fn root(&self) -> std::path::PathBuf {
            self.dir.path().join("root")
        }

        pub(crate) fn location(&self) -> StoreLocation {
            StoreLocation::from_uri(self.root().to_str().unwrap()).unwrap()
        }

        pub(crate) fn daemon(&self) -> Daemon {
            Daemon::connect(&self.location()).unwrap()
        }

        /// Runs a command of Nix's on this store and returns the lines that it prints.
        pub(crate) fn run(&self, program: &str, args: &[&str], stdin: &str) -> Vec<String> {
            use std::io::Write;
            let mut child = Command::new(program)
                .arg("--store")
                .arg(self.root())
                .args(args)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{program} {args:?}");
            String::from_utf8(output.stdout).unwrap().lines().map(Into::into).collect()
        }

        pub(crate) fn add(&self, path: &Path) -> StorePath {
            let lines = self.run("nix-store", &["--add", path.to_str().unwrap()], "");
            StorePath::parse(&lines[0]).unwrap()
        }

        /// Adds a file with these contents.
        pub(crate) fn add_text(&self, name: &str, text: &str) -> StorePath {
            let file = self.dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            self.add(&file)
        }

        /// The store path that an expression evaluates to.
        pub(crate) fn eval(&self, expression: &str) -> StorePath {
            let lines =
                self.run("nix-instantiate", &["--eval", "--read-write-mode", "--expr", expression], "");
            StorePath::parse(lines[0].trim_matches('"')).unwrap()
        }

        /// The derivation that an expression evaluates to.
        pub(crate) fn instantiate(&self, expression: &str) -> StorePath {
            let lines = self.run("nix-instantiate", &["--expr", expression], "");
            StorePath::parse(&lines[0]).unwrap()
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const X: &str = "/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x";

    fn path() -> StorePath {
        StorePath::parse(X).unwrap()
    }

    fn located(uri: &str, env: &[(&str, &str)]) -> Result<StoreLocation, LocationError> {
        StoreLocation::with_env(uri.as_ref(), |name| {
            env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into())
        })
    }

    #[rstest]
    #[case("", &[], "/nix/var/nix/daemon-socket/socket", true, X)]
    #[case("auto", &[("NIX_STATE_DIR", "/s")], "/s/daemon-socket/socket", true, X)]
    #[case("daemon", &[("NIX_STATE_DIR", "/s"), ("NIX_DAEMON_SOCKET_PATH", "/d")], "/d", false, X)]
    #[case("unix:///run/x?root=/r%20r", &[], "/run/x", false, "/r r/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x")]
    fn sockets(
        #[case] uri: &str,
        #[case] env: &[(&str, &str)],
        #[case] socket: &str,
        #[case] or_spawn: bool,
        #[case] physical: &str,
    ) {
        let location = located(uri, env).unwrap();
        assert_eq!(location.reach, Reach::Socket { path: socket.into(), or_spawn });
        assert_eq!(location.physical(&path()), Path::new(physical));
    }

    #[rstest]
    #[case("local", "local", X)]
    #[case("/r", "/r", "/r/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x")]
    #[case("local?root=/r", "local?root=/r", "/r/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x")]
    #[case("auto?root=/r", "local?root=/r", "/r/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x")]
    #[case("local?real=/q&root=/r", "local?real=/q&root=/r", "/q/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x")]
    fn daemons_of_ones_own(#[case] uri: &str, #[case] passed: &str, #[case] physical: &str) {
        let location = located(uri, &[]).unwrap();
        assert_eq!(location.reach, Reach::Spawn { uri: passed.into() });
        assert_eq!(location.physical(&path()), Path::new(physical));
    }

    #[rstest]
    #[case("ssh-ng://host")]
    #[case("https://cache.nixos.org")]
    #[case("s3://bucket")]
    #[case("nonsense")]
    #[case("local?root=relative")]
    #[case("local?store=/gnu/store")]
    fn stores_elsewhere(#[case] uri: &str) {
        let error = located(uri, &[]).unwrap_err();
        assert!(error.to_string().contains(&format!("`{uri}`")), "{error}");
    }

    #[test]
    fn roots() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let location = located(at("root").to_str().unwrap(), &[]).unwrap();
        let y = "/nix/store/1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-y";
        std::fs::create_dir_all(location.physical(&path()).join("bin")).unwrap();
        std::fs::write(location.physical(&path()).join("bin/tool"), "").unwrap();
        symlink(X, at("result")).unwrap();
        symlink(location.physical(&path()), at("physical")).unwrap();
        symlink("result", at("indirect")).unwrap();
        symlink(".", at("here")).unwrap();
        symlink("loop", at("loop")).unwrap();
        std::fs::create_dir_all(at("profile/bin")).unwrap();
        symlink(format!("{y}/bin/tool"), at("profile/bin/tool")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        symlink(at("root/nix/store/.links"), at("odd")).unwrap();

        let resolve = |text: &str| location.resolve_root(text).map(|p| p.absolute());
        let under = |name: &str| resolve(at(name).to_str().unwrap());
        for text in [
            X,
            &format!("{X}/"),
            &format!("{X}/bin/tool"),
            "/nix/../nix/./store//0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x",
        ] {
            assert_eq!(resolve(text).unwrap(), X, "{text}");
        }
        for name in [
            "result",
            "physical",
            "indirect",
            "indirect/bin/tool",
            "physical/bin/tool",
            "result/not/there",
            "here/here/result",
            "here/../here/indirect/bin",
        ] {
            assert_eq!(under(name).unwrap(), X, "{name}");
        }
        assert_eq!(under("profile/bin/tool").unwrap(), y);
        assert!(matches!(under("file"), Err(LocationError::NotInStore { .. })));
        assert!(matches!(under("absent"), Err(LocationError::Unreadable { .. })));
        assert!(matches!(under("loop"), Err(LocationError::LinkLoop { .. })));
        assert!(matches!(under("loop/x"), Err(LocationError::LinkLoop { .. })));
        assert!(matches!(under("odd"), Err(LocationError::NotAStorePath { .. })));
        assert!(matches!(resolve(""), Err(LocationError::NotInStore { .. })));
        assert!(matches!(
            resolve("/nix/store"),
            Err(LocationError::NotInStore { .. } | LocationError::Unreadable { .. })
        ));
    }
}
