//! Stock Nix's commands with settings of their own: nothing of the host's configuration, environment or daemon. Knows how
//! they are called; doesn't know why.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt::Write,
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use pushgate_formats::{Sha256, StorePath, hash::hex_decode};
use tokio::process::{Child, Command};

use crate::{config::Config, confine::Confinement};

/// Where a job's files are, below its directory.
#[derive(Debug, Clone)]
pub struct Layout {
    pub dir: PathBuf,
}

impl Layout {
    /// The chroot store.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// A store path as it lies on the disk.
    pub fn real(&self, path: &StorePath) -> PathBuf {
        self.store().join(path.base_name())
    }

    pub fn store(&self) -> PathBuf {
        self.root().join("nix/store")
    }

    pub fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn conf(&self, phase: Phase) -> PathBuf {
        self.dir.join(match phase {
            Phase::Fetch => "conf-fetch",
            Phase::Build => "conf-build",
        })
    }

    /// Makes the directories.
    pub fn make(&self) -> io::Result<()> {
        for dir in [self.tmp(), self.dir.join("home"), self.conf(Phase::Fetch), self.conf(Phase::Build)] {
            std::fs::create_dir_all(dir)?;
        }
        Ok(())
    }
}

/// Which settings a command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The job's view may be asked; nothing is built.
    Fetch,
    /// Nobody may be asked.
    Build,
}

/// From where a job's inputs come.
#[derive(Debug, Clone)]
pub struct View {
    pub url: String,
    pub key: String,
    pub netrc: String,
}

/// Bounds that Nix itself watches.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub time: u64,
    pub silence: u64,
    pub log: u64,
    pub shm: u64,
}

/// Settings of every command. What isn't named here has Nix's own default: the configuration of the host isn't read.
pub fn settings(config: &Config, system: &str, bounds: &Bounds, view: Option<(&View, &Path)>) -> String {
    let mut text = String::new();
    let mut set = |name: &str, value: &str| {
        // writing to a String can't fail
        let _ = writeln!(text, "{name} = {value}");
    };
    set("sandbox", "true");
    set("sandbox-fallback", "false");
    set("filter-syscalls", "true");
    set("allow-new-privileges", "false");
    set("restrict-eval", "false");
    set("build-users-group", &config.build_users_group);
    set("allowed-impure-host-deps", "");
    set("extra-sandbox-paths", &config.sandbox_paths.join(" "));
    set("sandbox-dev-shm-size", &bounds.shm.to_string());
    set("builders", "");
    set("post-build-hook", "");
    set("max-jobs", "1");
    set("cores", &config.cores.to_string());
    set("system", system);
    set("extra-platforms", &config.systems.join(" "));
    let features: Vec<_> = config.features.iter().map(String::as_str).collect();
    set("system-features", &features.join(" "));
    set("timeout", &bounds.time.to_string());
    set("max-silent-time", &bounds.silence.to_string());
    set("max-build-log-size", &bounds.log.to_string());
    set("keep-failed", "false");
    set("fallback", "false");
    set("require-sigs", "true");
    set("auto-optimise-store", "false");
    set("min-free", "0");
    set("secret-key-files", "");
    set("hashed-mirrors", "");
    match view {
        Some((view, netrc)) => {
            // only to have such derivations read, so that they can be refused by their name
            set("experimental-features", "ca-derivations");
            set("substituters", &view.url);
            set("trusted-public-keys", &view.key);
            set("netrc-file", &netrc.display().to_string());
            set("connect-timeout", "15");
            set("download-attempts", "7");
            set("narinfo-cache-negative-ttl", "0");
        }
        None => {
            set("experimental-features", "");
            set("substitute", "false");
            set("substituters", "");
            set("trusted-public-keys", "");
            set("netrc-file", "/dev/null");
        }
    }
    text
}

/// Nix for one job.
#[derive(Debug, Clone)]
pub struct Nix {
    pub layout: Layout,
    bin: Option<PathBuf>,
}

impl Nix {
    pub fn new(layout: Layout, config: &Config) -> Self {
        Self { layout, bin: config.nix.clone() }
    }

    /// Writes the settings of both phases. The file with the token is for root alone.
    pub fn configure(
        &self,
        config: &Config,
        system: &str,
        bounds: &Bounds,
        view: Option<&View>,
    ) -> io::Result<()> {
        let conf = |phase| self.layout.conf(phase).join("nix.conf");
        std::fs::write(conf(Phase::Build), settings(config, system, bounds, None))?;
        if let Some(view) = view {
            let netrc = self.layout.conf(Phase::Fetch).join("netrc");
            crate::key::write_new(&netrc, view.netrc.as_bytes())?;
            std::fs::write(conf(Phase::Fetch), settings(config, system, bounds, Some((view, &netrc))))?;
        }
        Ok(())
    }

    /// What a command of Nix is called.
    pub fn program(&self, name: &str) -> OsString {
        self.bin.as_ref().map_or_else(|| name.into(), |bin| bin.join(name).into())
    }

    /// A command with the settings of a phase and an environment of its own.
    fn environment(&self, command: &mut std::process::Command, phase: Phase) {
        let dir = &self.layout.dir;
        command.env_clear();
        for name in ["PATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "NIX_SSL_CERT_FILE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("HOME", dir.join("home"))
            .env("TMPDIR", self.layout.tmp())
            .env("NIX_CONF_DIR", self.layout.conf(phase))
            .env("NIX_USER_CONF_FILES", "")
            .env("LC_ALL", "C")
            // Nix's evaluator asks for a quarter of the machine otherwise, which the bounds of a build may not have room for
            .env("GC_INITIAL_HEAP_SIZE", "4194304")
            .current_dir(dir);
    }

    /// A confined command, its output piped. It and all that it starts end with the value.
    pub fn confined(
        &self,
        phase: Phase,
        how: &Confinement,
        program: &str,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> io::Result<Child> {
        let mut command = Command::new("/proc/self/exe");
        self.environment(command.as_std_mut(), phase);
        command
            .args(how.arguments())
            .arg("--")
            .arg(self.program(program))
            .arg("--store")
            .arg(self.layout.root());
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true).spawn()
    }

    /// A small question, which isn't confined: it starts nothing and reads what is in the store.
    pub async fn ask(&self, program: &str, arguments: &[&str]) -> Result<String, NixError> {
        let mut command = Command::new(self.program(program));
        self.environment(command.as_std_mut(), Phase::Build);
        command.arg("--store").arg(self.layout.root());
        let out = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await;
        let out = out.map_err(|source| NixError::Start { program: program.into(), source })?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            return Err(NixError::Failed { program: program.into(), said: tail(&said) });
        }
        String::from_utf8(out.stdout).map_err(|_| NixError::Words(program.into()))
    }

    /// The command that prints the NAR of a path as it lies on the disk: the database isn't asked.
    pub fn dump(&self, path: &StorePath) -> std::process::Command {
        let mut command = std::process::Command::new(self.program("nix-store"));
        self.environment(&mut command, Phase::Build);
        command.arg("--store").arg(self.layout.root()).arg("--dump").arg(self.layout.real(path));
        command
    }

    /// Version, such as `2.26.3`.
    pub async fn version(&self) -> Result<String, NixError> {
        let said = self.ask("nix-store", &["--version"]).await?;
        said.split_whitespace().last().map(str::to_owned).ok_or_else(|| NixError::Words("nix-store".into()))
    }

    /// All valid paths of the store.
    pub async fn valid(&self) -> Result<BTreeMap<StorePath, Valid>, NixError> {
        parse_registration(&self.ask("nix-store", &["--dump-db"]).await?)
            .ok_or_else(|| NixError::Words("nix-store --dump-db".into()))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NixError {
    #[error("`{program}` can't be started; is Nix installed?")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` failed: {said}")]
    Failed { program: String, said: String },
    #[error("`{0}` says something else than expected")]
    Words(String),
}

/// The last words of a command.
pub fn tail(said: &str) -> String {
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(5)..].join(" ");
    crate::api::printable(&crate::nix_log::plain(&last))
}

/// What the store's database says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Valid {
    pub nar_hash: Sha256,
    pub nar_size: u64,
    pub references: BTreeSet<StorePath>,
}

/// Reads what `nix-store --dump-db` prints: for each path its own line, the hash in hexadecimal digits, the size, the
/// deriver, the number of references, and these. The same since 2.0.
fn parse_registration(text: &str) -> Option<BTreeMap<StorePath, Valid>> {
    let mut lines = text.lines();
    let mut all = BTreeMap::new();
    while let Some(path) = lines.next() {
        let path = StorePath::parse(path).ok()?;
        let hash = lines.next()?;
        let nar_hash = Sha256(hex_decode(hash.strip_prefix("sha256:").unwrap_or(hash))?.try_into().ok()?);
        let nar_size = lines.next()?.parse().ok()?;
        lines.next()?;
        let count: usize = lines.next()?.parse().ok()?;
        let references = (0..count).map(|_| StorePath::parse(lines.next()?).ok()).collect::<Option<_>>()?;
        all.insert(path, Valid { nar_hash, nar_size, references });
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration() {
        let (a, b) = (
            "/nix/store/93hswik0brc6ppfajxk7zb4h1hkh5cb6-b",
            "/nix/store/hjyqsljnsa1h365vyjk3s0g5zzf8vcc2-t",
        );
        let hash = "21180f159c3768b9e6c946c4b71bd40a229a86a05abccbf23c10c846e0dfef69";
        let text = format!("{a}\n{hash}\n1982400\n\n0\n{b}\n{hash}\n608\n{a}.drv\n2\n{a}\n{b}\n");
        let all = parse_registration(&text).unwrap();
        let [a, b] = [a, b].map(|path| StorePath::parse(path).unwrap());
        assert_eq!(all[&a].nar_size, 1_982_400);
        assert_eq!(all[&b].nar_hash.hex(), hash);
        assert_eq!(all[&b].references, BTreeSet::from([a, b]));
        assert_eq!(parse_registration(""), Some(BTreeMap::new()));
        assert_eq!(parse_registration(&text[..text.len() - 60]), None);
    }

    #[test]
    fn only_fetching_knows_anybody() {
        let bounds = Bounds { time: 1, silence: 1, log: 1, shm: 1 };
        let view = View { url: "http://g/v".into(), key: "k:A".into(), netrc: "tok3n".into() };
        let config = Config::default();
        let fetch = settings(&config, "x86_64-linux", &bounds, Some((&view, Path::new("/n"))));
        assert!(fetch.contains("substituters = http://g/v\n") && !fetch.contains("tok3n"), "{fetch}");
        let build = settings(&config, "x86_64-linux", &bounds, None);
        assert!(build.contains("substitute = false\n") && !build.contains("http"), "{build}");
    }
}
