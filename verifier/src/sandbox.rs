//! Whether builds are confined on this machine: tried out, by a build that looks around, before any job is taken. Knows
//! nothing of jobs.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::io::AsyncReadExt;

use crate::{
    cgroup::Groups,
    config::Config,
    confine::Confinement,
    job::cleanup,
    nix::{Bounds, Layout, Nix, NixError, Phase},
    nix_log::{self, Lines, Told},
    workdir::WorkDir,
};

const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(
        "pushgate-verifier has to run as root: builds run as users of their own (`build-users-group`), in namespaces of their own"
    )]
    NotRoot,
    #[error("the kernel gives no {0} namespaces: `/proc/self/ns/{0}` isn't there")]
    Namespace(&'static str),
    #[error(
        "the group `{0}` doesn't exist: builds need users of their own (useradd --system --groups {0} …; see docs/verifier.md)"
    )]
    NoGroup(String),
    #[error("the group `{0}` has no members: builds need users of their own (see docs/verifier.md)")]
    NoUsers(String),
    #[error(transparent)]
    Nix(#[from] NixError),
    #[error("the trial build can't be made")]
    Io(#[from] std::io::Error),
    #[error("builds can't be confined here: {0}")]
    Trial(String),
}

/// What was found.
#[derive(Debug)]
pub struct Sandbox {
    pub groups: Option<Groups>,
    pub nix_version: String,
    /// In words, for attestations and people.
    pub limits: String,
}

/// Finds out what confines builds here, or what is missing.
pub async fn check(dir: &WorkDir, config: &Config) -> Result<Sandbox, SandboxError> {
    if !rustix::process::geteuid().is_root() {
        return Err(SandboxError::NotRoot);
    }
    for namespace in ["pid", "mnt", "net", "ipc", "user"] {
        if !Path::new("/proc/self/ns").join(namespace).exists() {
            return Err(SandboxError::Namespace(namespace));
        }
    }
    members(&config.build_users_group)?;
    let (groups, limits) = match Groups::own() {
        Ok(groups) => (Some(groups), "cgroups v2 (memory, processes)".to_owned()),
        Err(why) => {
            tracing::debug!(why, "no control groups");
            (None, "rlimits (memory and files of each process, processes of a user)".to_owned())
        }
    };
    // a name that no job has, and no other verifier's trial
    let layout = Layout { dir: dir.jobs().join(format!("trial.{}", std::process::id())) };
    cleanup::make(&layout)?;
    let nix = Nix::new(layout, config);
    let tried = trial(&nix, config).await;
    cleanup::remove(&nix.layout.dir).await;
    let nix_version = tried?;
    let limits = format!("nix sandbox in a pid, mount, ipc and network namespace; {limits}");
    Ok(Sandbox { groups, nix_version, limits })
}

/// Makes sure that there are users for builds.
fn members(group: &str) -> Result<(), SandboxError> {
    let text = fs::read_to_string("/etc/group").unwrap_or_default();
    match text.lines().find_map(|line| line.strip_prefix(group)?.strip_prefix(':')) {
        None => Err(SandboxError::NoGroup(group.to_owned())),
        Some(line) if line.rsplit(':').next().is_some_and(|users| !users.trim().is_empty()) => Ok(()),
        Some(_) => Err(SandboxError::NoUsers(group.to_owned())),
    }
}

/// Builds a derivation whose builder is this program: it looks around inside ([`crate::probe`]).
async fn trial(nix: &Nix, config: &Config) -> Result<String, SandboxError> {
    let version = nix.version().await?;
    let system = Config::default().systems.remove(0);
    let bounds = Bounds { time: 60, silence: 60, log: 1 << 20, shm: 1 << 20 };
    // only Nix's own way of confining is tried: what the operator lets builds see is his wish
    let plain = Config { sandbox_paths: Vec::new(), systems: vec![system.clone()], ..config.clone() };
    nix.configure(&plain, &system, &bounds, None)?;
    let tools = nix.layout.dir.join("trial");
    let builder = itself(&tools)?;
    let store = |said: String| said.trim().to_owned();
    let tools = store(nix.ask("nix-store", &["--add", &tools.to_string_lossy()]).await?);
    let host = TcpListener::bind(("127.0.0.1", 0))?;
    let file = nix.layout.dir.join("secret");
    fs::write(&file, "of the host\n")?;
    let arguments = [format!("--port={}", host.local_addr()?.port()), format!("--file={}", file.display())];
    let expression = expression(&tools, &system, &builder, &arguments);
    let derivation = store(nix.ask("nix-instantiate", &["--expr", &expression]).await?);
    let how = Confinement { processes: Some(4096), ..Confinement::default() };
    let arguments = ["--realise", &derivation, "--log-format", "internal-json"].map(Into::into);
    let mut child = nix.confined(Phase::Build, &how, "nix-store", arguments)?;
    let (Some(err), Some(mut out)) = (child.stderr.take(), child.stdout.take()) else {
        return Err(SandboxError::Trial("the trial build has no output".into()));
    };
    let mut lines = Lines::new(err);
    let work = async {
        let mut said = (None, Vec::new());
        while let Ok(Some(line)) = lines.next().await {
            match nix_log::parse(&line) {
                Told::Line(text) if text.starts_with(SAYS) => said.0 = Some(text),
                Told::Line(text) | Told::Error(text) | Told::Stray(text) => said.1.push(text),
                Told::Other => {}
            }
        }
        let mut paths = String::new();
        let _ = out.read_to_string(&mut paths).await;
        (child.wait().await, said, paths)
    };
    let (status, (found, said), paths) = tokio::time::timeout(PATIENCE, work).await.map_err(|_| {
        SandboxError::Trial(format!("the trial build took longer than {} s", PATIENCE.as_secs()))
    })?;
    if let Some(found) = found {
        return Err(SandboxError::Trial(found[SAYS.len()..].trim().to_owned()));
    }
    let confined = status.is_ok_and(|status| status.success()) && is_confined(nix, &paths);
    if confined { Ok(version) } else { Err(SandboxError::Trial(crate::nix::tail(&said.join("\n")))) }
}

/// What the probe's findings begin with.
pub const SAYS: &str = "probe: ";

fn is_confined(nix: &Nix, paths: &str) -> bool {
    pushgate_formats::StorePath::parse(paths.trim())
        .is_ok_and(|path| fs::read_to_string(nix.layout.real(&path)).is_ok_and(|text| text == "confined\n"))
}

/// Copies this program with the libraries that it runs on, by the names under which they are mapped right now: inside a
/// sandbox there are none. Gives the command line below the directory.
fn itself(dir: &Path) -> Result<Vec<String>, SandboxError> {
    fs::create_dir(dir)?;
    fs::copy("/proc/self/exe", dir.join("program"))?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut libraries: Vec<PathBuf> = maps
        .lines()
        .filter(|line| line.split_whitespace().nth(1).is_some_and(|mode| mode.contains('x')))
        .filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so")))
        .collect();
    libraries.dedup();
    let mut loader = None;
    for library in libraries {
        let Some(name) = library.file_name().map(|name| name.to_string_lossy().into_owned()) else {
            continue;
        };
        fs::copy(&library, dir.join(&name))?;
        if name.starts_with("ld-") || name.starts_with("ld.") {
            loader = Some(name);
        }
    }
    Ok(match loader {
        Some(loader) => vec![loader, "--library-path".into(), ".".into(), "program".into()],
        // linked statically
        None => vec!["program".into()],
    })
}

/// The trial in Nix's language. The command's files are below the tools; `.` stands for themselves.
fn expression(tools: &str, system: &str, builder: &[String], arguments: &[String]) -> String {
    let quoted =
        |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$"));
    let mut args: Vec<String> = builder[1..]
        .iter()
        .map(|word| match word.as_str() {
            "." => "\"${tools}\"".to_owned(),
            word if word.starts_with("--") => quoted(word),
            word => format!("\"${{tools}}/{word}\""),
        })
        .collect();
    args.push(quoted("probe"));
    args.extend(arguments.iter().map(|argument| quoted(argument)));
    args.push("\"--out=${placeholder \"out\"}\"".to_owned());
    format!(
        "let tools = builtins.storePath {tools}; in derivation {{ name = \"trial\"; system = {}; builder = \"${{tools}}/{}\"; args = [ {} ]; }}",
        quoted(system),
        builder[0],
        args.join(" ").replace("${placeholder", "${builtins.placeholder"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_is_not_there() {
        let error = members("no-such-group-of-builders").unwrap_err();
        assert!(error.to_string().contains("`no-such-group-of-builders` doesn't exist"), "{error}");
        // the first field only, and all of it
        assert!(matches!(members("roo"), Err(SandboxError::NoGroup(_))));
    }

    #[test]
    fn the_trial_names_its_files() {
        let builder = ["ld.so", "--library-path", ".", "program"].map(String::from);
        let text = expression("/nix/store/x-trial", "x86_64-linux", &builder, &["--file=/a\"b".into()]);
        assert!(text.contains("builder = \"${tools}/ld.so\""), "{text}");
        assert!(
            text.contains(
                "[ \"--library-path\" \"${tools}\" \"${tools}/program\" \"probe\" \"--file=/a\\\"b\""
            ),
            "{text}"
        );
    }
}
