//! Derivations and views, made with Nix in a chroot store of the tests' own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use pushgate_formats::{
    StorePath,
    derivation::{Derivation, Output},
    jobs::{Job, JobLimits, Purpose},
    keys::{KeyName, SecretKey},
};

/// A store that is filled by hand.
pub(crate) struct Store {
    dir: tempfile::TempDir,
    pub(crate) tools: StorePath,
    key: SecretKey,
}

static JOBS: AtomicU32 = AtomicU32::new(0);

impl Store {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pushgate-verifier-store").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["conf", "home", "tmp", "tools/bin"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        let settings = "sandbox = true\nsandbox-fallback = false\nbuild-users-group = nixbld\nsubstituters =\n\
                        experimental-features = nix-command ca-derivations\n";
        std::fs::write(at("conf/nix.conf"), settings).unwrap();
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
        std::fs::copy(
            busybox.expect("a static busybox (apt-get install busybox-static)"),
            at("tools/bin/busybox"),
        )
        .unwrap();
        for applet in [
            "sh", "cat", "mkdir", "sleep", "dd", "yes", "wget", "ls", "ln", "chmod", "truncate", "true", "id",
        ] {
            std::os::unix::fs::symlink("busybox", at("tools/bin").join(applet)).unwrap();
        }
        let key = SecretKey::from_seed(KeyName::new("view-1").unwrap(), &[7; 32]);
        std::fs::write(at("view.sec"), key.to_file_text()).unwrap();
        let tools = run(dir.path(), "nix-store", &["--add", &at("tools").to_string_lossy()]);
        Self { tools: StorePath::parse(&tools).unwrap(), dir, key }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        run(self.dir.path(), program, arguments)
    }

    /// The derivation that an expression gives. In it, `sh NAME ATTRS SCRIPT` is one that runs a script.
    pub(crate) fn derivation(&self, expression: &str) -> StorePath {
        let text = format!(
            r#"let tools = builtins.storePath {}; sh = name: attrs: script: derivation ({{
                 inherit name; system = "x86_64-linux"; builder = "${{tools}}/bin/sh";
                 args = [ "-c" "PATH=${{tools}}/bin\n${{script}}" ]; }} // attrs); in {expression}"#,
            self.tools
        );
        StorePath::parse(&self.run("nix-instantiate", &["--expr", &text])).unwrap()
    }

    /// A derivation that runs a script and has no inputs but the tools.
    pub(crate) fn script(&self, name: &str, script: &str) -> StorePath {
        self.derivation(&format!("sh \"{name}\" {{}} ''{script}''"))
    }

    pub(crate) fn read(&self, derivation: &StorePath) -> Derivation {
        let path = self.dir.path().join("root/nix/store").join(derivation.base_name());
        Derivation::parse(&std::fs::read(path).unwrap()).unwrap()
    }

    /// A binary cache of the derivation's closure and of what its inputs give.
    pub(crate) fn view(&self, derivation: &StorePath) -> (PathBuf, Vec<StorePath>) {
        let number = JOBS.fetch_add(1, Ordering::SeqCst);
        let view = self.dir.path().join(format!("view-{number}"));
        let to =
            format!("file://{}?secret-key={}", view.display(), self.dir.path().join("view.sec").display());
        self.run("nix", &["copy", "--derivation", "--to", &to, &derivation.absolute()]);
        self.run("nix", &["copy", "--to", &to, &self.tools.absolute()]);
        let mut inputs = vec![self.tools.clone()];
        for (input, names) in self.read(derivation).input_drvs {
            self.run("nix-store", &["--realise", &input.absolute()]);
            for (name, output) in self.read(&input).outputs {
                if let (true, Output::InputAddressed(path) | Output::Fixed { path, .. }) =
                    (names.contains(&name), output)
                {
                    self.run("nix", &["copy", "--to", &to, &path.absolute()]);
                    inputs.push(path);
                }
            }
        }
        (view, inputs)
    }

    /// A job for the derivation, and its view.
    pub(crate) fn job(&self, derivation: &StorePath) -> (Job, PathBuf) {
        let (view, inputs) = self.view(derivation);
        let number = JOBS.fetch_add(1, Ordering::SeqCst);
        let read = self.read(derivation);
        let outputs: BTreeMap<_, _> = read
            .outputs
            .iter()
            .map(|(name, output)| {
                let path = match output {
                    Output::InputAddressed(path) | Output::Fixed { path, .. } => Some(path.clone()),
                    _ => None,
                };
                (name.to_string(), path)
            })
            .collect();
        let job = Job {
            job: format!("job-{number}-{}", std::process::id()),
            token: format!("token-{number}"),
            lease: 6,
            purpose: Purpose::Rebuild,
            gateway: crate::gateway::ID.into(),
            derivation: derivation.clone(),
            system: read.system,
            outputs,
            view: format!("/api/v1/jobs/job-{number}-{}/view", std::process::id()),
            view_key: self.key.public().to_string(),
            inputs,
            limits: JobLimits::default(),
        };
        (job, view)
    }
}

fn run(dir: &Path, program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program)
        .args(["--store", &dir.join("root").to_string_lossy()])
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", dir.join("home"))
        .env("TMPDIR", dir.join("tmp"))
        .env("NIX_CONF_DIR", dir.join("conf"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}
