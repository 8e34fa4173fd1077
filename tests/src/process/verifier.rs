//! A verifier as its operator runs it. Knows nothing of what it builds.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    path::PathBuf,
    process::{Child, Stdio},
};

use tempfile::TempDir;

use super::{Gateway, command, names, programs, run, wait_for};

/// Bounds that a small build stays far below.
pub const SMALL: &str = "systems = ['x86_64-linux']\nstop-after = 1\n[limits]\ntime = 60\nsilence = 60\nlog = '1 MiB'\n\
                         output = '32 MiB'\nmemory = '512 MiB'\nprocesses = 200\ndisk = '256 MiB'\n";

/// A `pushgate-verifier run` and its directory. Killed when dropped, with everything that it started. Its sandbox needs
/// root.
pub struct Verifier {
    dir: TempDir,
    name: String,
    child: Option<Child>,
}

impl Verifier {
    /// Joins a gateway with an invite for a verifier of this owner, and runs with [`SMALL`] bounds.
    pub fn start(gateway: &Gateway, name: &str, owner: &str) -> Self {
        Self::start_with(gateway, &gateway.url(""), name, owner, SMALL)
    }

    /// The same through an address of the gateway's, with this configuration file.
    pub fn start_with(gateway: &Gateway, url: &str, name: &str, owner: &str, config: &str) -> Self {
        let mut verifier = Self::join(gateway, url, name, owner, config);
        verifier.restart();
        verifier
    }

    /// Joins, and doesn't run yet.
    pub fn join(gateway: &Gateway, url: &str, name: &str, owner: &str, config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("pushgate-verifier-").tempdir();
        let verifier = Self { dir: dir.expect("a temporary directory"), name: name.to_owned(), child: None };
        fs::write(verifier.config_file(), config).expect("the configuration file");
        let code = gateway.admin(&["invite", name, "--role", "verifier", "--owner", owner]).line();
        let mut join = command(&programs().verifier);
        join.args(["join", url, "--invite", &code, "--work-dir"]).arg(verifier.work_dir());
        run(join).ended_with(0);
        verifier
    }

    fn work_dir(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it, and waits until it asks for jobs.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the verifier runs already");
        let before = self.log().len();
        let log = OpenOptions::new().create(true).append(true).open(self.log_file()).expect("a log file");
        let mut run = command(&programs().verifier);
        run.arg("run").arg("--work-dir").arg(self.work_dir()).arg("--config").arg(self.config_file());
        let mut child =
            run.stdout(Stdio::null()).stderr(log).spawn().expect("the verifier's program can be run");
        wait_for("the verifier to be ready", || {
            let ended = child.try_wait().expect("its state");
            assert!(
                ended.is_none(),
                "the verifier ended ({ended:?}); its sandbox needs root:\n{}",
                self.log()
            );
            self.log()[before..].contains(" at a time").then_some(())
        });
        self.child = Some(child);
    }

    /// As a crash does it: SIGKILL, to the verifier alone.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the verifier runs");
        child.kill().expect("it can be killed");
        child.wait().expect("its exit code");
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("its state").is_none())
    }

    /// What it logged since its first start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Derivations whose builds it has begun, as often as it has.
    pub fn began(&self, name: &str) -> usize {
        let end = format!("-{name}.drv");
        self.log().lines().filter(|line| line.contains(" begins ") && line.ends_with(&end)).count()
    }

    /// Directories of jobs.
    pub fn jobs(&self) -> Vec<String> {
        names(&self.work_dir().join("jobs"))
    }

    /// Processes beside the verifier that have something to do with its directory: by their command lines or by what is
    /// mounted where they are, which finds builders too.
    pub fn processes(&self) -> BTreeSet<u32> {
        let own = self.child.as_ref().map(Child::id);
        let place = self.dir.path().file_name().expect("it has a name").as_encoded_bytes();
        let concerns = |id: &u32| {
            ["cmdline", "mountinfo"].iter().any(|file| {
                let text = fs::read(format!("/proc/{id}/{file}")).unwrap_or_default();
                text.windows(place.len()).any(|window| window == place)
            })
        };
        let all = names("/proc".as_ref()).into_iter().filter_map(|name| name.parse().ok());
        all.filter(|id| Some(*id) != own).filter(concerns).collect()
    }

    /// Waits until nothing of any job is left, neither process nor directory.
    pub fn idle(&self) {
        wait_for("a verifier without a job", || {
            (self.jobs().is_empty() && self.processes().is_empty()).then_some(())
        });
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // what a namespace's first process started ends with it, a moment later
        for _ in 0..20 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for id in left {
                let _ = command("kill").arg("-KILL").arg(id.to_string()).stderr(Stdio::null()).status();
            }
            super::pause(std::time::Duration::from_millis(20));
        }
        if std::thread::panicking() {
            eprintln!("--- log of the verifier {}\n{}", self.name, self.log());
        }
    }
}
