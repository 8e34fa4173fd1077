//! A directory as blob store: `quarantine/` (mode 0700) and a directory for each cache, which any web server can serve.
//!
//! Whatever becomes visible is written under `quarantine/tmp/` and renamed, so that a crash leaves whole files or none.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSliceMut, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use pushgate_formats::Sha256;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::{Errno, ReadWriteFlags, preadv2},
};
use sha2::Digest;

use super::{
    Blobs, PackRange, PackWriter, PublicBody, PublicFile,
    unchanged::{Unchanged, same_file},
};

/// Files up to this size are read whole, in bytes: those that get a validator from their contents, and NARs for which a
/// call that sends them costs more than one that copies them.
const WHOLE: u64 = 64 << 10;
const WHOLE_NAR: u64 = 4 << 10;
/// Bytes hashed at a time.
const PIECE: usize = 256 << 10;

/// See the module's documentation.
pub struct Directory {
    root: PathBuf,
    /// For the names of packs and temporary files: random at start, counted from there.
    prefix: String,
    counter: AtomicU64,
    unchanged: Arc<Unchanged>,
}

impl Directory {
    /// Opens the directory and makes what is missing in it.
    pub fn open(root: &Path) -> io::Result<Self> {
        let quarantine = root.join("quarantine");
        fs::create_dir_all(root)?;
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&quarantine)?;
        fs::set_permissions(&quarantine, fs::Permissions::from_mode(0o700))?;
        private.create(quarantine.join("packs"))?;
        private.create(quarantine.join("tmp"))?;
        Ok(Self {
            root: root.to_owned(),
            prefix: crate::random::hex(8),
            counter: AtomicU64::new(0),
            unchanged: Arc::default(),
        })
    }

    fn fresh_name(&self) -> String {
        format!("{}-{:08}", self.prefix, self.counter.fetch_add(1, Ordering::Relaxed))
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("quarantine/tmp").join(self.fresh_name())
    }

    fn pack(&self, name: &str) -> PathBuf {
        self.root.join("quarantine/packs").join(name)
    }

    fn public(&self, cache: &str, name: &str) -> PathBuf {
        self.root.join(cache).join(name)
    }

    /// [`Directory::reveal`] for a link: renaming it over another link to the same file does nothing and leaves it there.
    fn reveal_link(&self, tmp: Temporary, cache: &str, name: &str) -> io::Result<()> {
        let again = Temporary(tmp.0.clone());
        let revealed = self.reveal(tmp, cache, name);
        drop(again);
        revealed
    }

    /// Renames a finished temporary file to its public name; makes the directories on first use.
    fn reveal(&self, tmp: Temporary, cache: &str, name: &str) -> io::Result<()> {
        let to = self.public(cache, name);
        match fs::rename(&tmp.0, &to) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = to.parent() {
                    fs::create_dir_all(parent)?;
                }
                fs::rename(&tmp.0, &to)?;
            }
            other => other?,
        }
        tmp.disarm();
        Ok(())
    }
}

/// A file that is removed unless it was renamed away.
struct Temporary(PathBuf);

impl Temporary {
    /// The file was renamed: there is nothing left to remove.
    fn disarm(mut self) {
        self.0.clear();
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        // gone after a rename; otherwise the start-up sweep gets what can't be removed now
        let _ = fs::remove_file(&self.0);
    }
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

struct DirectoryPack {
    file: File,
    position: u64,
    tmp: Temporary,
    to: PathBuf,
    name: String,
    unchanged: Arc<Unchanged>,
}

impl PackWriter for DirectoryPack {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn rollback(&mut self, position: u64) -> io::Result<()> {
        self.file.set_len(position)?;
        self.file.seek(SeekFrom::Start(position))?;
        self.position = position;
        Ok(())
    }

    /// A crash before the rename leaves a temporary file, one after it a pack that no row names: both are swept.
    fn finish(self: Box<Self>, whole: Option<&Sha256>) -> io::Result<String> {
        let Self { file, position, tmp, to, name, unchanged } = *self;
        file.sync_data()?;
        fs::rename(&tmp.0, &to)?;
        tmp.disarm();
        if let Some(parent) = to.parent() {
            File::open(parent)?.sync_all()?;
        }
        // smaller ones are read to be copied
        if let Some(hash) = whole.filter(|_| position > PIECE as u64) {
            unchanged.note(&name, &file, position, hash);
        }
        Ok(name)
    }
}

#[async_trait]
impl Blobs for Directory {
    fn begin_pack(&self) -> io::Result<Box<dyn PackWriter>> {
        let name = self.fresh_name();
        let tmp = Temporary(self.root.join("quarantine/tmp").join(&name));
        // published by hard link when it is a pack of its own, hence the mode; the directory above keeps it private
        let file = create(&tmp.0, 0o644)?;
        Ok(Box::new(DirectoryPack {
            file,
            position: 0,
            to: self.pack(&name),
            tmp,
            name,
            unchanged: self.unchanged.clone(),
        }))
    }

    fn read_pack(&self, range: &PackRange) -> io::Result<Box<dyn Read + Send>> {
        let mut file = File::open(self.pack(&range.pack))?;
        file.seek(SeekFrom::Start(range.start))?;
        Ok(Box::new(file.take(range.length)))
    }

    fn remove_packs(&self, packs: &[String]) -> io::Result<()> {
        for pack in packs {
            self.unchanged.forget(pack);
            match fs::remove_file(self.pack(pack)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    fn free(&self, ranges: &[PackRange]) -> io::Result<()> {
        for range in ranges.iter().filter(|range| range.length > 0) {
            let file = OpenOptions::new().write(true).open(self.pack(&range.pack))?;
            let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&file, hole, range.start, range.length) {
                // the pack frees it when it goes
                Err(rustix::io::Errno::OPNOTSUPP) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn packs(&self) -> io::Result<Vec<String>> {
        fs::read_dir(self.root.join("quarantine/packs"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn publish_pack(&self, cache: &str, name: &str, from: &PackRange, hash: &Sha256) -> io::Result<()> {
        let source = File::open(self.pack(&from.pack))?;
        let meta = source.metadata()?;
        let whole = from.start == 0 && meta.size() == from.length;
        let tmp = Temporary(self.tmp());
        // small ones are read once; a large one that is a pack of its own is hashed where it lies, unless it is as it was
        // written, and linked
        if whole && from.length > PIECE as u64 {
            if !self.unchanged.is(&from.pack, &meta, hash) {
                check(&mut Read::by_ref(&mut &source), io::sink(), from.length, hash)?;
            }
            match fs::hard_link(self.pack(&from.pack), &tmp.0) {
                Ok(()) if same_file(&meta, &fs::symlink_metadata(&tmp.0)?) => {
                    return self.reveal_link(tmp, cache, name);
                }
                // by its name it is another now than the one that was opened
                Ok(()) => return Err(changed()),
                // some file systems have no links: copy
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(e),
                Err(_) => {}
            }
        }
        if from.length <= PIECE as u64 {
            let mut bytes = vec![0; from.length as usize];
            source.read_exact_at(&mut bytes, from.start)?;
            check(&mut bytes.as_slice(), io::sink(), from.length, hash)?;
            create(&tmp.0, 0o644)?.write_all(&bytes)?;
        } else {
            let mut source = source;
            source.seek(SeekFrom::Start(from.start))?;
            check(&mut source, create(&tmp.0, 0o644)?, from.length, hash)?;
        }
        self.reveal(tmp, cache, name)
    }

    fn publish_stream(&self, cache: &str, name: &str, contents: &mut dyn Read) -> io::Result<()> {
        let tmp = Temporary(self.tmp());
        io::copy(contents, &mut create(&tmp.0, 0o644)?)?;
        self.reveal(tmp, cache, name)
    }

    fn withdraw(&self, cache: &str, name: &str) -> io::Result<()> {
        match fs::remove_file(self.public(cache, name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn is_published(&self, cache: &str, name: &str) -> io::Result<bool> {
        self.public(cache, name).try_exists()
    }

    fn sync(&self) -> io::Result<()> {
        // one call for any number of files: a thousand small ones would otherwise cost a thousand waits
        Ok(rustix::fs::syncfs(File::open(&self.root)?)?)
    }

    async fn open(&self, cache: &str, name: &str) -> io::Result<Option<PublicFile>> {
        let path = self.public(cache, name);
        let whole = if name.starts_with("nar/") { WHOLE_NAR } else { WHOLE };
        let opened = match open_cached(&path, whole) {
            Some(opened) => opened,
            None => {
                let open = move || open_public(File::open(path)?, whole, ReadWriteFlags::empty());
                tokio::task::spawn_blocking(open).await.map_err(io::Error::other)?
            }
        };
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn clean(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("quarantine/tmp"))? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    fn probe(&self) -> io::Result<()> {
        let tmp = Temporary(self.tmp());
        create(&tmp.0, 0o600)?.write_all(b"probe")
    }
}

/// Copies `length` bytes and compares their sha256.
fn check(from: &mut impl Read, mut to: impl Write, length: u64, expected: &Sha256) -> io::Result<()> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; PIECE.min(length.max(1) as usize)];
    let mut left = length;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = from.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    if hasher.finalize().as_slice() == expected.0 { Ok(()) } else { Err(changed()) }
}

fn changed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the quarantined bytes changed since they were checked")
}

/// Opens a file from what the kernel has in memory; `None` where it would have to wait for the disk, or can't tell. The kernel
/// is the one cache of public files: what it has is what lies in the directory now, and a name that isn't there becomes
/// one that is as soon as it is renamed into place.
fn open_cached(path: &Path, whole: u64) -> Option<io::Result<PublicFile>> {
    // what isn't a file, such as a pipe, must not be waited for either
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED) {
        Ok(file) => match open_public(file.into(), whole, ReadWriteFlags::NOWAIT) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => None,
            opened => Some(opened),
        },
        Err(Errno::NOENT) => Some(Err(io::ErrorKind::NotFound.into())),
        Err(_) => None,
    }
}

/// What is to be known of an open file; small ones are read.
fn open_public(file: File, whole: u64, flags: ReadWriteFlags) -> io::Result<PublicFile> {
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let size = meta.size();
    let modified = u64::try_from(meta.mtime()).unwrap_or(0);
    if size > whole {
        return Ok(PublicFile { size, modified, body: PublicBody::File(file) });
    }
    let mut bytes = vec![0; size as usize];
    let mut read = 0;
    while read < bytes.len() {
        match preadv2(&file, &mut [IoSliceMut::new(&mut bytes[read..])], read as u64, flags)? {
            // published files are never written to: somebody else's doing
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => read += n,
        }
    }
    Ok(PublicFile { size, modified, body: PublicBody::Whole(bytes.into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(blobs: &Directory, parts: &[&[u8]]) -> String {
        let mut pack = blobs.begin_pack().unwrap();
        for part in parts {
            pack.write(part).unwrap();
        }
        // as an upload does it
        let whole = (parts.len() == 1).then(|| Sha256::of(parts[0]));
        pack.finish(whole.as_ref()).unwrap()
    }

    #[test]
    fn only_unchanged_bytes_are_published() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Directory::open(dir.path()).unwrap();
        for big in [3, PIECE + 7] {
            let (first, second) = (vec![1u8; big], vec![2u8; big]);
            for parts in [vec![first.as_slice(), &second], vec![second.as_slice()]] {
                let name = pack(&blobs, &parts);
                let start = (parts.len() - 1) as u64 * big as u64;
                let range = PackRange { pack: name.clone(), start, length: big as u64 };
                let hash = Sha256::of(&second);
                blobs.publish_pack("main", "nar/good", &range, &hash).unwrap();
                assert_eq!(fs::read(dir.path().join("main/nar/good")).unwrap(), second);
                fs::remove_file(dir.path().join("main/nar/good")).unwrap();

                let file = OpenOptions::new()
                    .write(true)
                    .open(dir.path().join("quarantine/packs").join(name))
                    .unwrap();
                file.write_all_at(b"\0", start + 1).unwrap();
                let error = blobs.publish_pack("main", "nar/bad", &range, &hash).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                assert!(!blobs.is_published("main", "nar/bad").unwrap());
            }
        }
        assert_eq!(fs::read_dir(dir.path().join("quarantine/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_pack_that_is_as_it_was_written_is_linked_and_known_once() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Directory::open(dir.path()).unwrap();
        let bytes = vec![7; 17 << 20];
        let name = pack(&blobs, &[&bytes]);
        let path = dir.path().join("quarantine/packs").join(&name);
        let range = PackRange { pack: name.clone(), start: 0, length: bytes.len() as u64 };
        let hash = Sha256::of(&bytes);
        // large enough to be noted whatever the clock says
        assert!(blobs.unchanged.is(&name, &fs::metadata(&path).unwrap(), &hash));
        blobs.unchanged.note(&name, &File::open(&path).unwrap(), range.length, &hash);
        for name in ["nar/one", "nar/one", "nar/two"] {
            blobs.publish_pack("main", name, &range, &hash).unwrap();
            let published = fs::metadata(dir.path().join("main").join(name)).unwrap();
            assert_eq!(published.ino(), fs::metadata(&path).unwrap().ino());
        }
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"x", 1 << 20).unwrap();
        assert!(blobs.publish_pack("main", "nar/three", &range, &hash).is_err());
        assert!(!blobs.is_published("main", "nar/three").unwrap());
        assert_eq!(fs::read_dir(dir.path().join("quarantine/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_freed_leaves_its_neighbours() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Directory::open(dir.path()).unwrap();
        let part = |byte| vec![byte; 64 << 10];
        let name = pack(&blobs, &[&part(1), &part(2), &part(3)]);
        let path = dir.path().join("quarantine/packs").join(&name);
        let before = fs::metadata(&path).unwrap();
        blobs.free(&[PackRange { pack: name, start: 64 << 10, length: 64 << 10 }]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [part(1), part(0), part(3)].concat());
        let after = fs::metadata(&path).unwrap();
        assert!(after.blocks() < before.blocks(), "{} {}", before.blocks(), after.blocks());
    }

    #[test]
    fn a_dropped_pack_leaves_nothing_and_a_rollback_takes_back() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Directory::open(dir.path()).unwrap();
        blobs.begin_pack().unwrap().write(b"abc").unwrap();
        assert_eq!(fs::read_dir(dir.path().join("quarantine/tmp")).unwrap().count(), 0);
        assert!(blobs.packs().unwrap().is_empty());
        let mut writer = blobs.begin_pack().unwrap();
        writer.write(b"abcdef").unwrap();
        writer.rollback(2).unwrap();
        writer.write(b"X").unwrap();
        assert_eq!(writer.position(), 3);
        let name = writer.finish(None).unwrap();
        let mut text = String::new();
        blobs
            .read_pack(&PackRange { pack: name, start: 0, length: 3 })
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "abX");
    }
}
