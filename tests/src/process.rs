//! Real processes: the gateway, the client and the verifier as they were built, and several versions of Nix, each in directories of
//! their own that are removed with them. Doesn't forge anything, and looks into no process but through what it prints,
//! serves and keeps on the disk.

mod nginx;
mod nix;
mod nix_version;
mod recorder;
mod toolset;
mod verifier;
mod web;

use std::{
    env,
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use pushgate_formats::{
    api::{PathState, PathStatus},
    keys::{PublicKey, SecretKey},
};
use reqwest::StatusCode;
use serde::Deserialize;
use tempfile::TempDir;

pub use nginx::Nginx;
pub use nix::Nix;
pub use nix_version::NixVersion;
pub use recorder::Recorder;
pub use toolset::toolset;
pub use verifier::{SMALL, Verifier};
pub use web::{Answer, Web};

/// Longest wait for another process. It ends at once when what is waited for happens: being slow fails nothing.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for something that another process does without telling.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        pause(Duration::from_millis(2));
    }
}

#[expect(clippy::disallowed_methods, reason = "other processes give no event to wait for")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Nothing of this process's environment that could change what is tested: settings, stores, proxies.
fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null());
    for name in ["PATH", "TMPDIR"] {
        command.envs(env::var_os(name).map(|value| (name, value)));
    }
    command
}

/// What a command that ended said.
#[derive(Debug)]
pub struct Ran {
    pub what: String,
    /// The exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    fn of(command: &Command, output: Output) -> Self {
        Self {
            what: format!("{command:?}"),
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Panics unless it ended with this code.
    #[track_caller]
    pub fn ended_with(self, code: i32) -> Self {
        let Self { what, out, err, .. } = &self;
        assert_eq!(self.code, Some(code), "{what}\n--- stdout\n{out}--- stderr\n{err}");
        self
    }

    /// Its output's lines, if it succeeded.
    #[track_caller]
    pub fn lines(self) -> Vec<String> {
        self.ended_with(0).out.lines().map(str::to_owned).collect()
    }

    /// Its output's only line, if it succeeded.
    #[track_caller]
    pub fn line(self) -> String {
        let lines = self.lines();
        let [line] = lines.as_slice() else { panic!("not one line: {lines:?}") };
        line.clone()
    }
}

fn run(mut command: Command) -> Ran {
    match command.output() {
        Ok(output) => Ran::of(&command, output),
        Err(e) => panic!("{command:?} can't be run: {e}"),
    }
}

struct Programs {
    gateway: PathBuf,
    client: PathBuf,
    verifier: PathBuf,
}

/// The programs beside this test, built again where they are older than their sources.
fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let test = env::current_exe().expect("the path of this test");
        // target/PROFILE/deps/TEST
        let dir = test.ancestors().nth(2).expect("a test lies three directories deep").to_owned();
        let found = Programs {
            gateway: dir.join("pushgate-gateway"),
            client: dir.join("pushgate"),
            verifier: dir.join("pushgate-verifier"),
        };
        let root = workspace();
        // whoever changed only one of them builds only that
        let fresh = |program: &Path, sources: &[&str]| {
            let shared = ["Cargo.lock", "Cargo.toml", "formats"];
            let newest = shared.iter().chain(sources).filter_map(|s| newest(&root.join(s))).max();
            fs::metadata(program).and_then(|m| m.modified()).ok() >= newest
        };
        let gateway = fresh(&found.gateway, &["policies", "gateway", "migrations"]);
        let client = fresh(&found.client, &["policies", "client"]);
        if !(gateway && client && fresh(&found.verifier, &["verifier/src", "verifier/Cargo.toml"])) {
            let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut build = Command::new(cargo);
            build.args(["build", "--quiet", "--locked", "--bins"]);
            build.args(["-p", "pushgate-gateway", "-p", "pushgate-client", "-p", "pushgate-verifier"]);
            build.arg("--target-dir").arg(dir.parent().expect("the target directory"));
            if dir.ends_with("release") {
                build.arg("--release");
            }
            let status = build.current_dir(&root).status().expect("cargo can be run");
            assert!(status.success(), "the programs can't be built");
        }
        found
    })
}

/// The workspace's root.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member lies in the workspace").to_owned()
}

/// The time of the last change below a path.
fn newest(path: &Path) -> Option<SystemTime> {
    let meta = fs::metadata(path).ok()?;
    if !meta.is_dir() {
        return meta.modified().ok();
    }
    fs::read_dir(path).ok()?.filter_map(|entry| newest(&entry.ok()?.path())).max()
}

/// A policy file that says no more than that it is one: no upstreams, so that nothing is asked of the Internet.
pub fn policy(cache: &str, more: &str) -> String {
    // keys of the whole file come before the first table
    format!(
        r#"version = 1
cache = "{cache}"
{more}
[[rule]]
name = "contents"
match = {{ content-addressed = true }}
require = "content-address"
[[rule]]
name = "rest"
match = {{}}
require = "derivation"
"#
    )
}

/// A `pushgate-gateway serve` and its data directory. Killed when dropped.
pub struct Gateway {
    dir: TempDir,
    child: Option<Child>,
    port: u16,
    /// What it printed for `nix.conf`.
    pub printed: Vec<String>,
    /// Size of the file system that its data are on, where they have one of their own.
    disk: Option<String>,
}

impl Gateway {
    /// Starts from an empty directory, with a policy without upstreams.
    pub fn start() -> Self {
        Self::with_policy("")
    }

    /// Starts from an empty directory, with these lines in the policy of `main`.
    pub fn with_policy(more: &str) -> Self {
        Self::with(more, "")
    }

    /// Starts from an empty directory, with these lines in the policy of `main` and this configuration file.
    pub fn with(more: &str, config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut gateway = Self { dir, child: None, port: 0, printed: vec![], disk: None };
        gateway.set_policy("main", more);
        fs::write(gateway.config_file(), config).expect("the configuration file");
        gateway.restart();
        gateway
    }

    /// Starts from an empty directory, with this policy file for `main` and this configuration file.
    pub fn with_policy_file(policy: &str, config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut gateway = Self { dir, child: None, port: 0, printed: vec![], disk: None };
        gateway.set_policy_file("main", policy);
        fs::write(gateway.config_file(), config).expect("the configuration file");
        gateway.restart();
        gateway
    }

    /// Starts with its data on a file system of its own, of this size. Mounting needs root, or user namespaces.
    pub fn on_a_disk_of(size: &str, config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut gateway = Self { dir, child: None, port: 0, printed: vec![], disk: Some(size.to_owned()) };
        fs::create_dir_all(gateway.place()).expect("the data directory");
        fs::write(gateway.dir.path().join("main.toml"), policy("main", "")).expect("the policy file");
        fs::write(gateway.config_file(), config).expect("the configuration file");
        gateway.restart();
        gateway
    }

    /// The data directory. On a file system of its own only the gateway sees it there: looked at through its eyes.
    pub fn data(&self) -> PathBuf {
        match (&self.disk, &self.child) {
            (Some(_), Some(child)) => {
                PathBuf::from(format!("/proc/{}/root{}", child.id(), self.place().display()))
            }
            _ => self.place(),
        }
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A cache's published files.
    pub fn public(&self, cache: &str) -> PathBuf {
        self.data().join("blobs").join(cache)
    }

    /// Writes a cache's policy file. A gateway that runs takes it up in its own time.
    pub fn set_policy(&self, cache: &str, more: &str) {
        self.set_policy_file(cache, &policy(cache, more));
    }

    /// The same with nothing added.
    pub fn set_policy_file(&self, cache: &str, text: &str) {
        let dir = self.data().join("policies");
        fs::create_dir_all(&dir).expect("the policy directory");
        fs::write(dir.join(format!("{cache}.toml")), text).expect("the policy file");
    }

    /// Starts it, on the port that it had before, and waits until it is ready.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the gateway runs already");
        let start = Instant::now();
        while !self.spawn() {
            // somebody may have been given the port for a moment
            assert!(start.elapsed() < PATIENCE, "the gateway doesn't start:\n{}", self.log());
            pause(Duration::from_millis(50));
        }
        wait_for("the gateway to be ready", || {
            (Web::new().try_get(&self.url("/readyz"))?.status == StatusCode::OK).then_some(())
        });
    }

    fn spawn(&mut self) -> bool {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file()).expect("a log file");
        let mut serve = match &self.disk {
            None => command(&programs().gateway),
            Some(size) => {
                const MOUNT: &str = r#"mount -t tmpfs -o size="$0" none "$1" && mkdir "$1/policies" &&
                    cp "$2" "$1/policies/main.toml" && shift 2 && exec "$@""#;
                let mut unshare = command("unshare");
                unshare.args(["--map-root-user", "--mount", "sh", "-c", MOUNT, size]).arg(self.place());
                unshare.arg(self.dir.path().join("main.toml")).arg(&programs().gateway);
                unshare
            }
        };
        serve.arg("serve").arg("--data-dir").arg(self.place());
        serve.arg("--listen").arg(format!("127.0.0.1:{}", self.port));
        serve.arg("--config").arg(self.config_file());
        let mut child =
            serve.stdout(Stdio::piped()).stderr(log).spawn().expect("the gateway's program can be run");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        self.printed = out.lines().take(2).map_while(Result::ok).collect();
        let Some(url) = self.printed.first().and_then(|line| line.strip_prefix("extra-substituters = "))
        else {
            let status = child.wait().expect("its exit code");
            assert!(self.port != 0, "the gateway ended with {status}:\n{}", self.log());
            return false;
        };
        let address = url.strip_prefix("http://").and_then(|rest| rest.split('/').next());
        let port = address.and_then(|address| address.rsplit(':').next()?.parse().ok());
        self.port = port.unwrap_or_else(|| panic!("no port in `{url}`"));
        self.child = Some(child);
        true
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    /// Most memory that it had so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let child = self.child.as_ref().expect("the gateway runs");
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// What it logged since its first start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// As a crash does it: SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the gateway runs");
        child.kill().expect("it can be killed");
        child.wait().expect("its exit code");
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        let child = self.child.as_ref().expect("the gateway runs");
        let mut kill = command("kill");
        kill.arg("-TERM").arg(child.id().to_string());
        run(kill).ended_with(0);
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(&mut self) {
        self.terminate();
        let status = self.child.take().expect("the gateway runs").wait().expect("its exit code");
        assert!(status.success(), "the gateway ended with {status}:\n{}", self.log());
    }

    /// The memory that it has right now.
    pub fn memory_kib(&self) -> u64 {
        let id = self.child.as_ref().expect("the gateway runs").id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("the gateway runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its size");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// An address below it.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// A cache's address, as for Nix.
    pub fn cache_url(&self, cache: &str) -> String {
        self.url(&format!("/{cache}"))
    }

    /// Runs one of its commands beside it.
    pub fn admin(&self, args: &[&str]) -> Ran {
        let mut admin = match (&self.disk, &self.child) {
            (Some(_), Some(child)) => {
                let mut nsenter = command("nsenter");
                nsenter.args(["--user", "--mount", "--preserve-credentials", "--target"]);
                nsenter.arg(child.id().to_string()).arg(&programs().gateway);
                nsenter
            }
            _ => command(&programs().gateway),
        };
        admin.args(args).arg("--data-dir").arg(self.place());
        run(admin)
    }

    /// A cache's public key, as for Nix.
    pub fn key(&self, cache: &str) -> String {
        let lines = self.admin(&["cache", "list"]).lines();
        let found = lines.iter().find_map(|line| line.strip_prefix(cache)?.strip_prefix('\t'));
        found.unwrap_or_else(|| panic!("no cache `{cache}` in {lines:?}")).to_owned()
    }

    pub fn public_key(&self, cache: &str) -> PublicKey {
        PublicKey::parse(&self.key(cache)).expect("a public key")
    }

    /// Adds a cache with a policy without upstreams.
    pub fn add_cache(&self, name: &str) {
        self.set_policy(name, "");
        self.admin(&["cache", "add", name]).ended_with(0);
    }

    /// Enrols somebody; `more` are further arguments of `invite`.
    pub fn enrol(&self, name: &str, more: &[&str]) -> Submitter {
        let code = self.admin(&[&["invite", name], more].concat()).line();
        let submitter = Submitter::stranger();
        submitter.run(&["join", &self.url(""), "--invite", &code, "--name", &format!("{name}-1")]).lines();
        submitter
    }

    /// A number that it counts, over all labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = Web::new().get(&self.url("/metrics")).text();
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        values.sum::<f64>() as u64
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the gateway\n{}", self.log());
        }
    }
}

/// Somebody with a configuration directory and a key.
pub struct Submitter {
    dir: TempDir,
}

/// What `pushgate push --json` prints, as a program reads it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    pub gateway: String,
    pub cache: String,
    pub pushes: Vec<String>,
    pub paths: Vec<PathStatus>,
    pub failed: Vec<Failed>,
    pub notices: Vec<String>,
    pub sent: Sent,
    pub timed_out: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    pub path: String,
    pub message: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sent {
    pub nars: u64,
    pub nar_bytes: u64,
    pub body_bytes: u64,
}

impl Report {
    /// The state of one path.
    #[track_caller]
    pub fn of(&self, path: &str) -> &PathStatus {
        let found = self.paths.iter().find(|status| status.path.absolute() == path);
        found.unwrap_or_else(|| panic!("nothing is said of {path}: {self:#?}"))
    }

    /// The paths in one state.
    pub fn in_state(&self, state: PathState) -> Vec<String> {
        self.paths.iter().filter(|p| p.state == state).map(|p| p.path.absolute()).collect()
    }
}

impl Submitter {
    /// Somebody who has joined no gateway.
    pub fn stranger() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// `pushgate ARGS`, with no store but an empty one.
    pub fn run(&self, args: &[&str]) -> Ran {
        run(self.command(None, args))
    }

    /// `pushgate ARGS` on somebody's store.
    pub fn run_on(&self, nix: &Nix, args: &[&str]) -> Ran {
        run(self.command(Some(nix), args))
    }

    /// `pushgate push --json` of paths, if it ends with this code.
    #[track_caller]
    pub fn push_ending_with(&self, code: i32, nix: &Nix, paths: &[String], more: &[&str]) -> Report {
        let mut args = vec!["push", "--json"];
        args.extend(more);
        args.extend(paths.iter().map(String::as_str));
        let ran = self.run_on(nix, &args).ended_with(code);
        serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e} in\n{}\n{}", ran.out, ran.err))
    }

    /// `pushgate push --json` of paths, if all is accepted.
    #[track_caller]
    pub fn push(&self, nix: &Nix, paths: &[String]) -> Report {
        self.push_ending_with(0, nix, paths, &[])
    }

    /// Starts `pushgate ARGS` and doesn't wait for it.
    pub fn spawn(&self, nix: &Nix, args: &[&str]) -> Running {
        let mut command = self.command(Some(nix), args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("the client's program can be run");
        Running { child: Some(child), what: format!("{command:?}") }
    }

    /// The same with its standard error in a file, to be read meanwhile.
    pub fn spawn_saying(&self, nix: &Nix, args: &[&str], err: &Path) -> Running {
        let mut command = self.command(Some(nix), args);
        command.stdout(Stdio::piped()).stderr(fs::File::create(err).expect("a file"));
        let child = command.spawn().expect("the client's program can be run");
        Running { child: Some(child), what: format!("{command:?}") }
    }

    /// Starts `pushgate ARGS`, which doesn't end by itself, and gives what it prints, line by line. Killed when dropped.
    pub fn follow(&self, args: &[&str]) -> Lines {
        let mut command = self.command(None, args);
        command.stdout(Stdio::piped());
        let mut child = command.spawn().expect("the client's program can be run");
        let out = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Lines { _running: Running { child: Some(child), what: format!("{command:?}") }, out }
    }

    fn command(&self, nix: Option<&Nix>, args: &[&str]) -> Command {
        let mut command = command(&programs().client);
        let home = self.dir.path();
        command.args(args).env("XDG_CONFIG_HOME", home).env("HOME", home).env("USER", "somebody");
        match nix {
            Some(nix) => nix.environment(&mut command),
            None => {
                command.env("NIX_REMOTE", home.join("no-store"));
            }
        }
        command
    }

    /// Where settings and keys are.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("pushgate")
    }

    /// The secret key.
    pub fn key(&self) -> SecretKey {
        let files = fs::read_dir(self.config()).expect("settings").filter_map(|e| Some(e.ok()?.path()));
        let keys: Vec<_> = files.filter(|file| file.extension().is_some_and(|e| e == "key")).collect();
        let [file] = keys.as_slice() else { panic!("not one key: {keys:?}") };
        SecretKey::parse(&fs::read_to_string(file).expect("the key's file")).expect("a secret key")
    }
}

/// The lines of a command that goes on.
pub struct Lines {
    _running: Running,
    out: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Iterator for Lines {
    type Item = std::io::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.out.next()
    }
}

/// A command under way. Killed when dropped.
pub struct Running {
    child: Option<Child>,
    what: String,
}

impl Running {
    pub fn kill(mut self) {
        self.end();
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let child = self.child.as_mut().expect("it was started");
        child.try_wait().expect("its state").is_some()
    }

    /// Waits until it ends by itself.
    pub fn finish(mut self) -> Ran {
        let output = self.child.take().expect("it was started").wait_with_output().expect("its output");
        Ran { what: self.what.clone(), ..Ran::of(&Command::new(""), output) }
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Incompressible bytes, the same for the same seed, as a file for Nix to take in.
pub fn noise_file(dir: &Path, name: &str, seed: u64, bytes: usize) -> PathBuf {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut contents = Vec::with_capacity(bytes + 8);
    while contents.len() < bytes {
        // xorshift64*: no pattern that zstd would find
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        contents.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    contents.truncate(bytes);
    let file = dir.join(name);
    fs::write(&file, contents).expect("a file");
    file
}

/// A port on which nobody listens.
pub fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// Reads a whole file.
#[track_caller]
pub fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The names in a directory; none where there is no such.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}
