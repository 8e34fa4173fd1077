//! The program under test, and what the system has of it.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use crate::gateway::Gateway;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pushgate-verifier");

/// A verifier's directory, and the process that runs in it.
pub(crate) struct Verifier {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

/// Bounds that tests reach soon.
pub(crate) const CONFIG: &str = "systems = ['x86_64-linux']\nstop-after = 1\n[limits]\ntime = 60\nsilence = 30\nlog = '1 MiB'\n\
                          output = '8 MiB'\nmemory = '256 MiB'\nprocesses = 100\ndisk = '64 MiB'\n";

pub(crate) fn command(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output().unwrap()
}

impl Verifier {
    /// Joined and not running.
    pub(crate) async fn joined(gateway: &Gateway) -> Self {
        let dir = tempfile::Builder::new().prefix("pushgate-verifier").tempdir().unwrap();
        let this = Self { dir, child: None };
        this.config(CONFIG);
        let (url, work_dir) = (gateway.url(), this.work_dir());
        let out = tokio::task::spawn_blocking(move || {
            command(&["join", &url, "--invite", "invite", "--work-dir", work_dir.to_str().unwrap()])
        });
        let out = out.await.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        this
    }

    /// Joined and running.
    pub(crate) async fn running(gateway: &Gateway) -> Self {
        let mut this = Self::joined(gateway).await;
        this.start(&[]);
        this
    }

    /// Writes the configuration; with the Nix in the directory `PUSHGATE_VERIFIER_NIX`, to run the tests with another one.
    pub(crate) fn config(&self, text: &str) {
        let nix = std::env::var("PUSHGATE_VERIFIER_NIX").ok().filter(|_| !text.contains("nix = "));
        let nix = nix.map(|dir| format!("nix = '{dir}'\n")).unwrap_or_default();
        std::fs::write(self.dir.path().join("config.toml"), nix + text).unwrap();
    }

    pub(crate) fn work_dir(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub(crate) fn arguments(&self) -> Vec<String> {
        let config = self.dir.path().join("config.toml");
        ["run", "--work-dir", self.work_dir().to_str().unwrap(), "--config", config.to_str().unwrap()]
            .map(str::to_owned)
            .to_vec()
    }

    pub(crate) fn start(&mut self, more: &[&str]) {
        let mut command = Command::new(PROGRAM);
        command.args(self.arguments()).args(more).stdin(Stdio::null());
        self.child = Some(command.spawn().unwrap());
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = self.child.as_ref().unwrap().id();
        let pid = rustix::process::Pid::from_raw(id.cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; true where it ended well.
    pub(crate) async fn ended(&mut self) -> bool {
        let mut child = self.child.take().unwrap();
        let wait = tokio::task::spawn_blocking(move || child.wait().unwrap().success());
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it ends within a minute").unwrap()
    }

    /// Directories of jobs.
    pub(crate) fn jobs(&self) -> Vec<PathBuf> {
        let jobs = std::fs::read_dir(self.work_dir().join("jobs")).unwrap();
        jobs.map(|entry| entry.unwrap().path()).filter(|path| !is_trial(path)).collect()
    }

    /// Waits until no job has a directory.
    pub(crate) async fn idle(&self) {
        until("no directory of a job is left", || self.jobs().is_empty()).await;
    }
}

fn is_trial(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("trial."))
}

impl Drop for Verifier {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..600 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not so within half a minute: {what}")
}

/// Whether a process with this word in its command line runs.
pub(crate) fn runs(word: &str) -> bool {
    let own = std::process::id().to_string();
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        entry.file_name().to_string_lossy() != own
            && line.split(|b| *b == 0).any(|argument| argument == word.as_bytes())
    })
}
