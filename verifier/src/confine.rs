//! Namespaces and limits for one command and all that it starts: `pushgate-verifier confine`. Doesn't know what it runs.
//!
//! Two processes stand between the verifier and Nix. The outer one sets the limits, makes the namespaces and waits. The
//! inner one is the first of a PID namespace: when it ends, the kernel ends all that lives in there, also what runs as
//! other users and what has left its parents. It ends when its standard input does, which is a pipe that the verifier
//! holds open: so a verifier that is killed takes its builds along.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Resource, Rlimit, WaitOptions, setrlimit, setsid, wait},
    thread::UnshareFlags,
};

/// What is said for a command that was killed with its namespace.
const KILLED: i32 = 137;

/// How a command is confined.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Confinement {
    /// Leave it the network
    #[arg(long)]
    pub network: bool,
    /// Most processes and threads of a user
    #[arg(long)]
    pub processes: Option<u64>,
    /// Most bytes of private memory of a process
    #[arg(long)]
    pub memory: Option<u64>,
    /// Most bytes of a file
    #[arg(long)]
    pub file_size: Option<u64>,
    /// The control group to go to
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
    /// Set by the outer process
    #[arg(long, hide = true)]
    pub inner: bool,
}

impl Confinement {
    /// As arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut all: Vec<OsString> = vec!["confine".into()];
        if self.network {
            all.push("--network".into());
        }
        let numbers =
            [("--processes", self.processes), ("--memory", self.memory), ("--file-size", self.file_size)];
        for (name, value) in numbers {
            if let Some(value) = value {
                all.push(format!("{name}={value}").into());
            }
        }
        if let Some(cgroup) = &self.cgroup {
            all.extend(["--cgroup".into(), cgroup.into()]);
        }
        all
    }

    /// Runs the command confined; its end is this process's.
    pub fn run(&self, command: &[OsString]) -> ExitCode {
        let done = if self.inner { self.inside(command) } else { self.outside(command) };
        let code = done.unwrap_or_else(|error| {
            eprintln!("error: a build can't be confined: {error}");
            126
        });
        // what Nix says fits into a byte
        ExitCode::from(u8::try_from(code).unwrap_or(126))
    }

    fn outside(&self, command: &[OsString]) -> Result<i32, ConfineError> {
        let failed = |what| move |error: rustix::io::Errno| ConfineError { what, source: error.into() };
        setsid().map_err(failed("no session of its own"))?;
        if let Some(cgroup) = &self.cgroup {
            let procs = cgroup.join("cgroup.procs");
            let joined =
                std::fs::OpenOptions::new().write(true).open(procs).and_then(|mut f| f.write_all(b"0"));
            joined.map_err(|source| ConfineError { what: "no control group", source })?;
        }
        let limits = [
            (Resource::Core, Some(0)),
            (Resource::Nproc, self.processes),
            (Resource::Data, self.memory),
            (Resource::Fsize, self.file_size),
        ];
        for (resource, limit) in limits {
            if limit.is_some() {
                setrlimit(resource, Rlimit { current: limit, maximum: limit })
                    .map_err(failed("a limit can't be set"))?;
            }
        }
        let mut namespaces = UnshareFlags::NEWPID | UnshareFlags::NEWNS | UnshareFlags::NEWIPC;
        if !self.network {
            namespaces |= UnshareFlags::NEWNET;
        }
        #[expect(
            deprecated,
            reason = "its danger is in `FILES`, which isn't asked for, and its heir is marked unsafe"
        )]
        rustix::thread::unshare(namespaces).map_err(failed("no namespaces of its own"))?;
        let mut inner = Command::new("/proc/self/exe");
        inner.args(self.arguments()).arg("--inner").arg("--").args(command);
        let status = inner.status().map_err(|source| ConfineError { what: "no first process", source })?;
        Ok(code(status))
    }

    fn inside(&self, command: &[OsString]) -> Result<i32, ConfineError> {
        let failed = |what| move |error: rustix::io::Errno| ConfineError { what, source: error.into() };
        // what is mounted in here stays in here
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(failed("mounts can't be made private"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", "/proc", "proc", flags, None).map_err(failed("no `/proc` of its own"))?;
        std::thread::spawn(|| {
            // ends with the pipe; nothing is ever written to it
            let _ = io::stdin().read(&mut [0]);
            std::process::exit(KILLED);
        });
        let (program, arguments) = command.split_first().expect("clap demands a command");
        let child = Command::new(program).args(arguments).stdin(Stdio::null()).spawn();
        let child = child.map_err(|source| ConfineError { what: "the command can't be started", source })?;
        // the first process inherits all orphans, and has to take note of their end
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) if pid.as_raw_pid().cast_unsigned() == child.id() => {
                    return Ok(code(ExitStatus::from_raw(status.as_raw())));
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed("the command got lost")(error)),
            }
        }
    }
}

/// An exit code as shells have it.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct ConfineError {
    what: &'static str,
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn arguments_are_read_back() {
        let how = Confinement {
            network: true,
            processes: Some(7),
            memory: Some(1 << 30),
            file_size: None,
            cgroup: Some("/sys/fs/cgroup/x".into()),
            inner: false,
        };
        let mut line: Vec<OsString> = vec!["pushgate-verifier".into()];
        line.extend(how.arguments());
        line.extend(["--".into(), "nix-store".into(), "--version".into()]);
        let Command::Confine(read) = Cli::parse_from(line).command else { panic!("not `confine`") };
        assert_eq!(read.how, how);
        assert_eq!(read.command, ["nix-store", "--version"]);
    }
}
