//! What runs below a process, and what is left of a job, from `/proc`. Doesn't know which of it is allowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Processes below a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processes and their threads.
    pub threads: u64,
    /// Bytes of memory that is nobody else's.
    pub memory: u64,
}

fn all() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The parent from `/proc/PID/stat`; the name before it may have any character, so it is read from behind.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// What runs below a process. All of a PID namespace is below its first process, whatever left its parents.
pub fn below(pid: u32) -> Usage {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for one in all() {
        if let Some(parent) =
            std::fs::read_to_string(format!("/proc/{one}/stat")).ok().as_deref().and_then(parent)
        {
            children.entry(parent).or_default().push(one);
        }
    }
    let mut usage = Usage::default();
    let mut todo = children.remove(&pid).unwrap_or_default();
    while let Some(one) = todo.pop() {
        todo.extend(children.remove(&one).unwrap_or_default());
        let Ok(status) = std::fs::read_to_string(format!("/proc/{one}/status")) else { continue };
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        usage.threads += number("Threads:").unwrap_or(1);
        usage.memory += 1024 * (number("RssAnon:").unwrap_or(0) + number("RssShmem:").unwrap_or(0));
    }
    usage
}

/// Processes that have something to do with a directory: in their command line, as working directory or root, or mounted.
/// The last finds builders, whose command line and root are those of the sandbox.
pub fn within(dir: &Path) -> BTreeSet<u32> {
    let own = std::process::id();
    let place = Place::of(dir);
    let concerns = |pid: u32| {
        let file = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).unwrap_or_default();
        link("cwd").starts_with(dir)
            || link("root").starts_with(dir)
            || contains(&file("cmdline"), dir.as_os_str().as_encoded_bytes())
            || place.as_ref().is_some_and(|place| place.is_shown(&file("mountinfo")))
    };
    all().filter(|pid| *pid != own && concerns(*pid)).collect()
}

/// A directory as tables of mounts have it, which is the same in every mount namespace: its device, and where it is on that.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    device: String,
    path: PathBuf,
}

impl Place {
    fn of(dir: &Path) -> Option<Self> {
        Self::in_table(dir, &std::fs::read_to_string("/proc/self/mountinfo").ok()?)
    }

    /// By the mount that lies deepest above the directory, the last of them where some hide others.
    fn in_table(dir: &Path, table: &str) -> Option<Self> {
        let mounts = table.lines().filter_map(fields);
        let (device, root, point) =
            mounts.filter(|(.., point)| dir.starts_with(point)).max_by_key(|(.., point)| point.len())?;
        let path = Path::new(root).join(dir.strip_prefix(point).ok()?);
        Some(Self { device: device.to_owned(), path })
    }

    /// Whether a mount of the table shows something of the directory.
    fn is_shown(&self, table: &[u8]) -> bool {
        let table = String::from_utf8_lossy(table);
        table
            .lines()
            .filter_map(fields)
            .any(|(device, root, _)| device == self.device && Path::new(root).starts_with(&self.path))
    }
}

/// Device, root and mount point of a line of `mountinfo` (proc(5)).
fn fields(line: &str) -> Option<(&str, &str, &str)> {
    let mut fields = line.split(' ').skip(2);
    Some((fields.next()?, fields.next()?, fields.next()?))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Kills what has to do with a directory until nothing is left; false where something is after ten seconds.
pub fn end(dir: &Path) -> bool {
    let began = Instant::now();
    loop {
        let left = within(dir);
        if left.is_empty() {
            return true;
        }
        if began.elapsed() > Duration::from_secs(10) {
            tracing::error!(?left, dir = %dir.display(), "processes that can't be killed");
            return false;
        }
        for pid in left {
            let pid = pid.try_into().ok().and_then(Pid::from_raw);
            // one that is gone by now is as good as killed
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses() {
        assert_eq!(parent("12 (a) R 7 (b) S 3 12"), Some(3));
        assert_eq!(parent("12 (a b) S 1 12 12 0"), Some(1));
        assert_eq!(parent(""), None);
    }

    #[test]
    fn mounts_of_a_directory() {
        let table = "1 0 254:0 / / rw - ext4 x rw\n2 1 254:1 /sub /data rw - ext4 y rw\n";
        let place = Place::in_table(Path::new("/data/v/jobs/j1"), table).unwrap();
        assert_eq!(place, Place { device: "254:1".into(), path: "/sub/v/jobs/j1".into() });
        assert!(place.is_shown(b"9 8 254:1 /sub/v/jobs/j1/root/nix/store/x.chroot / rw - ext4 y rw\n"));
        assert!(!place.is_shown(b"9 8 254:1 /sub/v/jobs/j10/root / rw - ext4 y rw\n"));
        assert!(!place.is_shown(b"9 8 254:0 /sub/v/jobs/j1/root / rw - ext4 y rw\n"));
        assert!(!place.is_shown(table.as_bytes()));
    }

    #[test]
    fn a_process_is_found_by_its_directory_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap().join("jobs/j1");
        std::fs::create_dir_all(&place).unwrap();
        let mut child = std::process::Command::new("sleep").arg("100").current_dir(&place).spawn().unwrap();
        assert!(below(std::process::id()).threads >= 1);
        assert_eq!(within(&place), BTreeSet::from([child.id()]));
        let reaper = std::thread::spawn(move || child.wait());
        assert!(end(&place));
        reaper.join().unwrap().unwrap();
    }
}
