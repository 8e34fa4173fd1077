//! Which packs are what this process has written, so that their bytes need not be read again. Reading a file right after it
//! was written comes from the same pages of memory and proves nothing more than that nobody has written to it since; and that
//! the kernel tells: each write to a file, however it is made, sets its time of change (`ctime`), which no program can set
//! itself. In doubt, and always after a restart, the bytes are read.
//!
//! It tells from when the pack is finished. While it is written it has a name that nobody is told, in a directory that is the
//! gateway's alone; whoever may write there, or set the system's clock, may as well write to what is published.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    os::unix::fs::MetadataExt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use pushgate_formats::Sha256;
use rustix::time::{ClockId, clock_gettime};

/// Packs remembered at most: each costs some 200 bytes.
const MOST: usize = 20_000;
/// From this size on reading a pack takes longer than waiting for the kernel's clock to tick. Bytes.
const WORTH_A_TICK: u64 = 16 << 20;
/// Longest that a tick takes.
const TICK: Duration = Duration::from_millis(10);

/// Which file, of which size, changed last when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Whether two looks at a file were at the same one, with the same contents as far as times tell. A new link changes the time
/// of change, but not that of the last write.
pub(super) fn same_file(one: &Metadata, other: &Metadata) -> bool {
    let (one, other) = (Stamp::of(one), Stamp::of(other));
    Stamp { changed: other.changed, ..one } == other
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Unchanged(Mutex<HashMap<String, (Stamp, Sha256)>>);

impl Unchanged {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Stamp, Sha256)>> {
        // every change under the lock is one call
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a pack as it is now, if a later write to it would show. To be called when it is durable: what is written to
    /// it by way of a mapping shows from then on, too.
    pub(super) fn note(&self, pack: &str, file: &File, written: u64, hash: &Sha256) {
        // A write sets the time of the last tick of the kernel's coarse clock. Once that has gone past the time of change, no
        // later write can have the same one.
        let settled = || {
            let now = clock_gettime(ClockId::RealtimeCoarse);
            let stamp = Stamp::of(&file.metadata().ok()?);
            (stamp.changed < (now.tv_sec, now.tv_nsec)).then_some(stamp)
        };
        let mut stamp = settled();
        if stamp.is_none() && written >= WORTH_A_TICK {
            #[expect(clippy::disallowed_methods, reason = "it is the clock that is waited for")]
            std::thread::sleep(TICK);
            stamp = settled();
        }
        let Some(stamp) = stamp.filter(|stamp| stamp.size == written) else { return };
        let mut packs = self.lock();
        if packs.len() < MOST {
            packs.insert(pack.to_owned(), (stamp, *hash));
        }
    }

    /// Whether the pack has this hash and is as it was noted. It is asked once: publishing changes the time of change.
    pub(super) fn is(&self, pack: &str, now: &Metadata, hash: &Sha256) -> bool {
        self.lock().remove(pack).is_some_and(|(stamp, noted)| stamp == Stamp::of(now) && noted == *hash)
    }

    pub(super) fn forget(&self, pack: &str) {
        self.lock().remove(pack);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, OpenOptions},
        os::unix::fs::FileExt,
        path::Path,
    };

    use rstest::rstest;

    use super::*;

    fn overwrite(path: &Path) {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"y", 0).unwrap();
    }

    #[rstest]
    #[case::nothing(|_: &Path| (), true)]
    #[case::a_byte(overwrite, false)]
    #[case::a_byte_and_its_time(|path: &Path| {
        let before = fs::metadata(path).unwrap().modified().unwrap();
        overwrite(path);
        OpenOptions::new().write(true).open(path).unwrap().set_modified(before).unwrap();
    }, false)]
    #[case::another_file(|path: &Path| {
        fs::copy(path, path.with_extension("new")).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }, false)]
    #[case::longer(|path: &Path| {
        OpenOptions::new().append(true).open(path).unwrap().set_len(9).unwrap();
    }, false)]
    fn every_change_shows(#[case] change: fn(&Path), #[case] same: bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pack");
        let hash = Sha256::of(b"x");
        // also one that is made at once
        for _ in 0..200 {
            fs::write(&path, b"xxxx").unwrap();
            let file = File::open(&path).unwrap();
            let unchanged = Unchanged::default();
            unchanged.note("pack", &file, 4, &hash);
            let noted = !unchanged.lock().is_empty();
            change(&path);
            let now = fs::metadata(&path).unwrap();
            assert!(!unchanged.is("pack", &now, &hash) || (noted && same));
        }
    }

    #[test]
    fn a_pack_is_known_once_and_by_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pack");
        fs::write(&path, b"x").unwrap();
        #[expect(clippy::disallowed_methods, reason = "it is the clock that is waited for")]
        std::thread::sleep(2 * TICK);
        let (unchanged, hash) = (Unchanged::default(), Sha256::of(b"x"));
        let file = File::open(&path).unwrap();
        let now = fs::metadata(&path).unwrap();
        let note = || unchanged.note("pack", &file, 1, &hash);
        note();
        assert!(unchanged.is("pack", &now, &hash) && !unchanged.is("pack", &now, &hash));
        note();
        assert!(!unchanged.is("pack", &now, &Sha256::of(b"y")));
        // not all that was written
        unchanged.note("pack", &file, 2, &hash);
        assert!(!unchanged.is("pack", &now, &hash));
        note();
        unchanged.forget("pack");
        assert!(!unchanged.is("pack", &now, &hash));
    }
}
