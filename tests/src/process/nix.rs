//! Nix with a store of its own.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::{NixVersion, Ran, command};

/// A store of its own, and a Nix to work with it.
pub struct Nix {
    dir: TempDir,
    version: NixVersion,
    settings: String,
}

impl Nix {
    /// An empty store in which things are built, by the Nix on this machine. Nothing is substituted.
    pub fn builder() -> Self {
        Self::builder_with(NixVersion::Here)
    }

    /// The same for any version.
    pub fn builder_with(version: NixVersion) -> Self {
        let settings = format!(
            "substitute = false\nsubstituters =\nsandbox = true\nsandbox-paths = {}\nmax-jobs = 2",
            version.sandbox_paths()
        );
        Self::with(version, &settings)
    }

    /// An empty store that trusts these keys and fetches from these caches only, with the Nix on this machine.
    pub fn consumer(substituters: &[String], keys: &[String]) -> Self {
        Self::consumer_with(NixVersion::Here, substituters, keys)
    }

    /// The same for any version.
    pub fn consumer_with(version: NixVersion, substituters: &[String], keys: &[String]) -> Self {
        let settings = format!(
            "require-sigs = true\nsubstitute = true\nmax-jobs = 0\nsubstituters = {}\ntrusted-public-keys = {}",
            substituters.join(" "),
            keys.join(" ")
        );
        Self::with(version, &settings)
    }

    fn with(version: NixVersion, settings: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let settings = format!(
            "experimental-features = nix-command ca-derivations\nbuilders =\nbuild-users-group =\n\
             fsync-metadata = false\nkeep-derivations = false\nconnect-timeout = 20\ndownload-attempts = 1\n{settings}\n"
        );
        let nix = Self { dir, version, settings };
        nix.run("nix-store", &["--init"]).ended_with(0);
        nix
    }

    pub fn version(&self) -> NixVersion {
        self.version
    }

    /// Of commands that work with this store, Nix's own or others that call Nix.
    pub(super) fn environment(&self, command: &mut Command) {
        self.version.environment(command);
        // a home of its own also has an own record of what caches are known to have
        command.env("HOME", self.dir.path().join("home"));
        command.env("NIX_REMOTE", self.root()).env("NIX_CONFIG", &self.settings);
    }

    /// The store's root directory.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A directory for files beside the store.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where a path's files lie.
    pub fn physical(&self, path: &str) -> PathBuf {
        self.root().join(path.strip_prefix('/').expect("an absolute path"))
    }

    /// One of Nix's commands on this store.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Ran {
        let mut command = command(program);
        command.args(args).current_dir(self.dir.path());
        self.environment(&mut command);
        match command.output() {
            Ok(output) => Ran::of(&command, output),
            Err(e) => {
                panic!("`{program}` can't be run ({e}): these tests need Nix, which scripts/test installs")
            }
        }
    }

    /// Builds an expression and gives its output paths, one for each `--attr`, or of the expression itself.
    #[track_caller]
    pub fn build(&self, expression: &str) -> Vec<String> {
        self.run("nix-build", &["--quiet", "--no-out-link", "-E", expression]).lines()
    }

    /// The derivation of an expression.
    #[track_caller]
    pub fn instantiate(&self, expression: &str) -> String {
        self.run("nix-instantiate", &["-E", expression]).line()
    }

    /// `nix-store --query ARGS PATHS`, a line for each answer.
    #[track_caller]
    pub fn query(&self, args: &[&str], paths: &[String]) -> Vec<String> {
        let mut all = vec!["--query"];
        all.extend(args);
        all.extend(paths.iter().map(String::as_str));
        self.run("nix-store", &all).lines()
    }

    /// The paths and all that they need.
    #[track_caller]
    pub fn closure(&self, paths: &[String]) -> Vec<String> {
        self.query(&["--requisites"], paths)
    }

    /// Each path's NAR hash, as the store's database has it.
    #[track_caller]
    pub fn hashes(&self, paths: &[String]) -> BTreeMap<String, String> {
        paths.iter().cloned().zip(self.query(&["--hash"], paths)).collect()
    }

    /// A path's NAR, from its files.
    #[track_caller]
    pub fn dump(&self, path: &str) -> Vec<u8> {
        let mut command = command("nix-store");
        command.arg("--dump").arg(self.physical(path));
        let output = command.output().expect("nix-store can be run");
        assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Fetches paths with all that they need.
    pub fn fetch(&self, paths: &[String]) -> Ran {
        let mut args = vec!["--realise"];
        args.extend(paths.iter().map(String::as_str));
        self.run("nix-store", &args)
    }

    /// Fails unless this store has the paths with all that they need, all files as they are in the other.
    #[track_caller]
    pub fn assert_has_all_of(&self, other: &Self, paths: &[String]) {
        let all = other.closure(paths);
        assert_eq!(self.closure(paths).len(), all.len());
        assert_eq!(self.hashes(&all), other.hashes(&all));
        // hashes in the database are as they were told; this reads the files
        self.run("nix-store", &["--verify", "--check-contents"]).ended_with(0);
        for path in all.iter().take(40) {
            assert!(self.dump(path) == other.dump(path), "the contents of {path} differ");
        }
    }

    /// Takes a path out of the store.
    #[track_caller]
    pub fn delete(&self, path: &str) {
        self.run("nix-store", &["--delete", path]).ended_with(0);
    }
}

impl Drop for Nix {
    fn drop(&mut self) {
        // Nix takes the write permission from directories in its store: without it they can't be removed
        let _ = Command::new("chmod").arg("-R").arg("u+w").arg(self.dir.path()).status();
    }
}
