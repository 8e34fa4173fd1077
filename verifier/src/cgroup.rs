//! Control groups (cgroups v2) for jobs, where this process may make them: then memory and processes of a build are counted
//! together and exactly. Where it may not, limits of single processes and a look at all of them every half second have to do.
//!
//! Needs a group that is the verifier's own, as `Delegate=yes` makes it under systemd. A group with processes in it can't
//! have limited children, so the verifier itself moves to a child.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The child to which the verifier moves.
const OWN: &str = "pushgate-verifier.own";

/// Where groups for jobs are made.
#[derive(Debug, Clone)]
pub struct Groups {
    base: PathBuf,
}

/// The group of a job; removed with the value, with all that is in it.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

impl Groups {
    /// The groups below this process's own; the reason where there can't be any.
    pub fn own() -> Result<Self, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).ok_or("no cgroups v2")?;
        let base = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
        // a verifier that was started again in the same group is in the child already
        let base = if base.ends_with(OWN) { base.parent().unwrap_or(&base).to_owned() } else { base };
        Self::at(base)
    }

    fn at(base: PathBuf) -> Result<Self, String> {
        let failed = |e: io::Error| format!("`{}`: {e}", base.display());
        let known = fs::read_to_string(base.join("cgroup.controllers")).map_err(failed)?;
        for controller in ["memory", "pids"] {
            if !known.split_whitespace().any(|one| one == controller) {
                return Err(format!("`{}` has no controller `{controller}`", base.display()));
            }
        }
        let own = base.join(OWN);
        fs::create_dir_all(&own).map_err(failed)?;
        fs::write(own.join("cgroup.procs"), "0").map_err(failed)?;
        fs::write(base.join("cgroup.subtree_control"), "+memory +pids").map_err(failed)?;
        Ok(Self { base })
    }

    /// A group for a job, with what an earlier one of that name left.
    pub fn make(&self, job: &str, memory: u64, processes: u64) -> io::Result<Group> {
        let group = Group { path: self.base.join(format!("job-{job}")) };
        group.end();
        fs::create_dir_all(&group.path)?;
        fs::write(group.path.join("memory.max"), memory.to_string())?;
        // absent without swap accounting
        let _ = fs::write(group.path.join("memory.swap.max"), "0");
        fs::write(group.path.join("memory.oom.group"), "1")?;
        fs::write(group.path.join("pids.max"), processes.to_string())?;
        Ok(group)
    }
}

impl Group {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the kernel ended something for its memory.
    pub fn ran_out_of_memory(&self) -> bool {
        self.counts("memory.events", "oom_kill")
    }

    /// Whether something couldn't be started.
    pub fn ran_out_of_processes(&self) -> bool {
        self.counts("pids.events", "max")
    }

    fn counts(&self, file: &str, name: &str) -> bool {
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        text.lines()
            .any(|line| line.split_once(' ').is_some_and(|(n, value)| n == name && value.trim() != "0"))
    }

    fn end(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        for _ in 0..100 {
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::park_timeout(std::time::Duration::from_millis(20));
                }
                _ => return,
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(controllers: &str) -> (tempfile::TempDir, Result<Groups, String>) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        let groups = Groups::at(dir.path().to_owned());
        (dir, groups)
    }

    #[test]
    fn without_its_controllers_there_are_none() {
        let (dir, groups) = groups("cpu memory\n");
        assert!(groups.unwrap_err().contains("no controller `pids`"));
        assert!(!dir.path().join(OWN).exists());
    }

    #[test]
    fn a_group_has_its_limits_and_tells_what_struck() {
        let (dir, groups) = groups("cpu memory pids\n");
        let group = groups.unwrap().make("j1", 5 << 20, 7).unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!(read("cgroup.subtree_control"), "+memory +pids");
        assert_eq!((read("job-j1/memory.max").as_str(), read("job-j1/pids.max").as_str()), ("5242880", "7"));
        assert!(!group.ran_out_of_memory() && !group.ran_out_of_processes());
        fs::write(group.path().join("memory.events"), "oom 1\noom_kill 2\n").unwrap();
        fs::write(group.path().join("pids.events"), "max 0\n").unwrap();
        assert!(group.ran_out_of_memory() && !group.ran_out_of_processes());
    }
}
