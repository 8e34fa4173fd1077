//! The NAR of a file tree, byte for byte as `nix-store --dump` writes it (without the case hack, which only changes
//! names on macOS). Doesn't know the Nix store, nor what the NAR is for; whoever reads it checks its hash.

use std::{
    ffi::{CString, OsStr},
    fs::{File, Metadata},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, readlinkat, statat};

/// Directories inside each other. A NAR that is nested deeper is refused by those who read it.
pub const MAX_DEPTH: usize = 64;

/// Everything goes through one buffer of this size, files' contents too: small ones then need a single read and no
/// copy, and the receiver gets few large writes.
const BUFFER: usize = 512 << 10;
/// Less room than this isn't worth a read while more of a file is to come.
const LEAST_READ: usize = 256 << 10;
/// Bytes of a directory's entries read at a time.
const ENTRIES: usize = 32 << 10;
const OWNER_EXECUTES: u32 = 0o100;

#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The tree, or a part of it, was removed: collected, perhaps.
    #[error("`{0}` is gone; was it garbage-collected?")]
    Vanished(PathBuf),
    #[error("`{0}` changed while it was read; push it again when nothing writes to it")]
    Changed(PathBuf),
    #[error("`{path}` is {kind}, and a NAR can only hold files, directories and links")]
    Unsupported { path: PathBuf, kind: &'static str },
    #[error("`{0}` lies more than {MAX_DEPTH} directories deep")]
    TooDeep(PathBuf),
    #[error("`{path}` can't be read")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the NAR can't be passed on")]
    Sink(#[source] io::Error),
}

/// Where a NAR goes: takes a full buffer, and may keep it in exchange for another of the same length.
pub trait Taker {
    fn take(&mut self, buffer: &mut Vec<u8>, filled: usize) -> io::Result<()>;
}

impl<W: Write + ?Sized> Taker for W {
    fn take(&mut self, buffer: &mut Vec<u8>, filled: usize) -> io::Result<()> {
        self.write_all(&buffer[..filled])
    }
}

/// Writes the NAR of the tree at `path` to `out` and returns its size.
pub fn dump(path: &Path, out: &mut (impl Write + ?Sized)) -> Result<u64, DumpError> {
    Dumper::new().dump(path, out)
}

/// Dumps one tree after another with the same buffers.
pub struct Dumper {
    buffer: Vec<u8>,
    /// For directories' entries, as the kernel gives them.
    entries: Vec<u8>,
}

impl Default for Dumper {
    fn default() -> Self {
        Self::new()
    }
}

impl Dumper {
    pub fn new() -> Self {
        Self::with_buffer(vec![0; BUFFER])
    }

    /// With a buffer of at least 512 KiB.
    pub fn with_buffer(buffer: Vec<u8>) -> Self {
        assert!(buffer.len() >= BUFFER, "a buffer of {} bytes", buffer.len());
        Self { buffer, entries: Vec::with_capacity(ENTRIES) }
    }

    /// Writes the NAR of the tree at `path` to `out` and returns its size. After an error what was written is the
    /// beginning of no NAR in particular.
    pub fn dump(&mut self, path: &Path, out: &mut (impl Taker + ?Sized)) -> Result<u64, DumpError> {
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| read_error(path, io::ErrorKind::InvalidInput.into()))?;
        let kind = kind_at(CWD, &name).map_err(|e| read_error(path, e))?;
        let mut nar = Nar { buffer: &mut self.buffer, filled: 0, written: 0, out };
        nar.strings(&[b"nix-archive-1"])?;
        walk(&mut nar, &mut self.entries, path.to_owned(), &name, kind)?;
        nar.flush()?;
        Ok(nar.written)
    }
}

/// A directory that is being walked. What is in it is opened by name, not by path: that saves the kernel the way there,
/// which costs more than many a file.
struct Directory {
    fd: OwnedFd,
    /// What is left, in descending order, so that the next is the last.
    entries: Vec<(CString, FileType)>,
}

/// Walks with a stack of its own: the depth of the tree is somebody else's choice.
fn walk(
    nar: &mut Nar<'_, impl Taker + ?Sized>,
    buffer: &mut Vec<u8>,
    mut path: PathBuf,
    name: &CString,
    kind: FileType,
) -> Result<(), DumpError> {
    let mut open: Vec<Directory> = Vec::new();
    open.extend(node(nar, buffer, CWD, name, &path, kind)?);
    loop {
        let depth = open.len();
        let Some(directory) = open.last_mut() else { break };
        if let Some((name, kind)) = directory.entries.pop() {
            nar.strings(&[b"entry", b"(", b"name", name.as_bytes(), b"node"])?;
            path.push(OsStr::from_bytes(name.as_bytes()));
            let parent = directory.fd.as_fd();
            // some file systems don't list what is what
            let kind = match kind {
                FileType::Unknown => kind_at(parent, &name).map_err(|e| read_error(&path, e))?,
                known => known,
            };
            if kind.is_dir() && depth == MAX_DEPTH {
                return Err(DumpError::TooDeep(path));
            }
            if let Some(directory) = node(nar, buffer, parent, &name, &path, kind)? {
                open.push(directory);
                continue;
            }
        } else {
            nar.strings(&[b")"])?; // of the directory
            open.pop();
            if depth == 1 {
                break;
            }
        }
        nar.strings(&[b")"])?; // of the entry
        path.pop();
    }
    Ok(())
}

fn kind_at(parent: BorrowedFd<'_>, name: &CString) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode))
}

/// Writes a file or a link whole, of a directory the beginning, and returns the directory. `path` is only for messages.
fn node(
    nar: &mut Nar<'_, impl Taker + ?Sized>,
    buffer: &mut Vec<u8>,
    parent: BorrowedFd<'_>,
    name: &CString,
    path: &Path,
    kind: FileType,
) -> Result<Option<Directory>, DumpError> {
    // what became a link, or a pipe that nobody writes to, since it was listed is not waited for nor followed
    let open = |more: OFlags| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | more;
        openat(parent, name, flags, Mode::empty()).map_err(|e| match e {
            rustix::io::Errno::LOOP => DumpError::Changed(path.to_owned()),
            e => read_error(path, e.into()),
        })
    };
    match kind {
        FileType::RegularFile => regular(nar, open(OFlags::empty())?.into(), path)?,
        FileType::Symlink => {
            let target = readlinkat(parent, name, Vec::new()).map_err(|e| read_error(path, e.into()))?;
            nar.strings(&[b"(", b"type", b"symlink", b"target", target.as_bytes(), b")"])?;
        }
        FileType::Directory => {
            nar.strings(&[b"(", b"type", b"directory"])?;
            let fd = open(OFlags::DIRECTORY)?;
            let mut entries = Vec::new();
            let mut listing = RawDir::new(&fd, buffer.spare_capacity_mut());
            while let Some(entry) = listing.next() {
                let entry = entry.map_err(|e| read_error(path, e.into()))?;
                if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    entries.push((entry.file_name().to_owned(), entry.file_type()));
                }
            }
            entries.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
            return Ok(Some(Directory { fd, entries }));
        }
        kind => return Err(DumpError::Unsupported { path: path.to_owned(), kind: name_of(kind) }),
    }
    Ok(None)
}

const fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::Socket => "a socket",
        FileType::Fifo => "a pipe",
        FileType::BlockDevice | FileType::CharacterDevice => "a device",
        _ => "of an unknown kind",
    }
}

/// Writes a regular file. One read suffices for a small one: it asks for a byte more than the file has, and so also
/// sees that there is none.
fn regular(nar: &mut Nar<'_, impl Taker + ?Sized>, mut file: File, path: &Path) -> Result<(), DumpError> {
    let meta: Metadata = file.metadata().map_err(|e| read_error(path, e))?;
    let changed = || DumpError::Changed(path.to_owned());
    if !meta.is_file() {
        return Err(changed());
    }
    nar.strings(&[b"(", b"type", b"regular"])?;
    if meta.mode() & OWNER_EXECUTES != 0 {
        nar.strings(&[b"executable", b""])?;
    }
    nar.strings(&[b"contents"])?;
    nar.number(meta.len())?;
    let mut left = meta.len();
    loop {
        let want = usize::try_from(left.saturating_add(1)).unwrap_or(usize::MAX);
        let room = nar.room(want.min(LEAST_READ))?;
        let want = want.min(room.len());
        let got = match file.read(&mut room[..want]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            got => got.map_err(|e| read_error(path, e))?,
        };
        if got as u64 > left || (got == 0 && left > 0) {
            return Err(changed());
        }
        nar.filled += got;
        left -= got as u64;
        // a read of a regular file that returns less than it was asked for has met the end
        if left == 0 && got < want {
            break;
        }
    }
    nar.pad(meta.len())?;
    nar.strings(&[b")"])
}

fn read_error(path: &Path, source: io::Error) -> DumpError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => DumpError::Vanished(path),
        _ => DumpError::Unreadable { path, source },
    }
}

/// A NAR on its way out.
struct Nar<'a, W: Taker + ?Sized> {
    buffer: &'a mut Vec<u8>,
    filled: usize,
    /// Bytes that have left the buffer.
    written: u64,
    out: &'a mut W,
}

impl<W: Taker + ?Sized> Nar<'_, W> {
    fn flush(&mut self) -> Result<(), DumpError> {
        self.out.take(self.buffer, self.filled).map_err(DumpError::Sink)?;
        self.written += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    /// The free part of the buffer, of at least this size.
    fn room(&mut self, least: usize) -> Result<&mut [u8], DumpError> {
        if self.buffer.len() - self.filled < least {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    fn bytes(&mut self, mut bytes: &[u8]) -> Result<(), DumpError> {
        loop {
            // names and targets are shorter than the buffer, but that is the file system's promise, not ours
            let room = self.room(bytes.len().min(BUFFER))?;
            let count = bytes.len().min(room.len());
            room[..count].copy_from_slice(&bytes[..count]);
            self.filled += count;
            bytes = &bytes[count..];
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    fn number(&mut self, value: u64) -> Result<(), DumpError> {
        self.bytes(&value.to_le_bytes())
    }

    fn pad(&mut self, len: u64) -> Result<(), DumpError> {
        self.bytes(&[0; 8][..(len.wrapping_neg() % 8) as usize])
    }

    fn strings(&mut self, strings: &[&[u8]]) -> Result<(), DumpError> {
        for string in strings {
            self.number(string.len() as u64)?;
            self.bytes(string)?;
            self.pad(string.len() as u64)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsString,
        fs::{self, Permissions},
        os::unix::{
            ffi::OsStringExt,
            fs::{PermissionsExt, symlink},
        },
        process::Command,
    };

    use super::{super::testing::Store, *};

    fn dumped(path: &Path) -> Vec<u8> {
        let mut nar = Vec::new();
        let size = dump(path, &mut nar).unwrap();
        assert_eq!(size, nar.len() as u64);
        nar
    }

    fn by_nix(path: &Path) -> Vec<u8> {
        let output = Command::new("nix-store").arg("--dump").arg(path).output().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    /// Every kind of thing, sizes around the padding and the buffer, names that sort differently as text.
    fn tree(dir: &Path) -> PathBuf {
        let root = dir.join("tree");
        fs::create_dir_all(root.join("empty")).unwrap();
        fs::create_dir_all(root.join("deep/er/and/deeper")).unwrap();
        for size in (0..10).chain([
            4095,
            LEAST_READ - 1,
            BUFFER - 200,
            BUFFER - 1,
            BUFFER,
            BUFFER + 1,
            3 * BUFFER + 5,
        ]) {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            fs::write(root.join(format!("deep/er/{size}")), bytes).unwrap();
        }
        for (name, mode) in [("run", 0o755), ("owner", 0o744), ("group", 0o654), ("read", 0o444)] {
            fs::write(root.join(name), name).unwrap();
            fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
        }
        for name in [
            &b"Z"[..],
            b"a",
            b"a-",
            b"a.b",
            b"ab",
            b"\xff\xfe",
            "ä".as_bytes(),
            b"x~nix~case~hack~1",
            b"new\nline",
        ] {
            fs::write(root.join("deep").join(OsString::from_vec(name.into())), name).unwrap();
        }
        symlink("../nowhere at all", root.join("dangling")).unwrap();
        symlink("run", root.join("link")).unwrap();
        symlink("deep", root.join("link-to-directory")).unwrap();
        root
    }

    #[test]
    fn same_as_nix_on_trees() {
        let Some(store) = Store::new() else { return };
        let root = tree(store.dir.path());
        for path in [
            root.clone(),
            root.join("run"),
            root.join("read"),
            root.join("link"),
            root.join("link-to-directory"),
            root.join("empty"),
            root.join("deep/er/0"),
        ] {
            assert!(dumped(&path) == by_nix(&path), "{}", path.display());
        }
        // a buffer that was used before leaves nothing behind
        let mut dumper = Dumper::new();
        for path in [root.clone(), root.join("empty"), root.join("deep")] {
            let mut nar = Vec::new();
            dumper.dump(&path, &mut nar).unwrap();
            assert!(nar == by_nix(&path), "{}", path.display());
        }
    }

    #[test]
    fn same_as_nix_on_store_paths() {
        let Some(store) = Store::new() else { return };
        let root = tree(store.dir.path());
        for added in [store.add(&root), store.add(&root.join("run")), store.add_text("text", "some text")] {
            let mut daemon = store.daemon();
            let info = daemon.path_info(&added).unwrap().unwrap();
            let mut sent = Vec::new();
            daemon.nar_from_path(&info, &mut sent).unwrap();
            let nar = dumped(&store.location().physical(&added));
            assert!(nar == sent, "{added}");
            assert_eq!(pushgate_formats::Sha256::of(&nar), info.nar_hash);
            assert_eq!(nar.len() as u64, info.nar_size);
        }
    }

    #[test]
    fn what_a_nar_cannot_hold() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = dump(dir.path(), &mut io::sink()).unwrap_err();
        assert!(
            matches!(&error, DumpError::Unsupported { path, kind: "a socket" } if *path == socket),
            "{error}"
        );
    }

    #[test]
    fn gone() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent");
        assert!(matches!(dump(&absent, &mut io::sink()), Err(DumpError::Vanished(p)) if p == absent));

        // a file that goes while its tree is dumped: the first one fills the buffer, and so writes
        struct Remover(PathBuf);
        impl Write for Remover {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = fs::remove_file(&self.0);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        fs::write(dir.path().join("a"), vec![0; 2 * BUFFER]).unwrap();
        fs::write(dir.path().join("b"), "b").unwrap();
        let b = dir.path().join("b");
        assert!(matches!(dump(dir.path(), &mut Remover(b.clone())), Err(DumpError::Vanished(p)) if p == b));
    }

    #[test]
    fn changed() {
        struct Resizer(PathBuf, u64);
        impl Write for Resizer {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                File::options().write(true).open(&self.0)?.set_len(self.1)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        for size in [0, BUFFER as u64, 3 * BUFFER as u64 - 1, 3 * BUFFER as u64 + 1, 9 * BUFFER as u64] {
            fs::write(&file, vec![0; 3 * BUFFER]).unwrap();
            let got = dump(&file, &mut Resizer(file.clone(), size));
            assert!(matches!(&got, Err(DumpError::Changed(p)) if *p == file), "{size}: {got:?}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().to_owned();
        for _ in 1..MAX_DEPTH {
            path.push("d");
        }
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("file"), "").unwrap();
        assert!(dump(dir.path(), &mut io::sink()).is_ok());
        path.push("d");
        fs::create_dir(&path).unwrap();
        assert!(matches!(dump(dir.path(), &mut io::sink()), Err(DumpError::TooDeep(p)) if p == path));
    }

    #[test]
    fn a_failing_receiver() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(dump(dir.path(), &mut Full), Err(DumpError::Sink(_))));
    }
}
