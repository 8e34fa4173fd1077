//! The writer: prints what `nix-store --dump` prints for the same tree, or nothing that looks complete. Reads no file
//! system; the caller walks the tree, in the order of the names' bytes.

use std::io::{self, Read, Write};

use super::{MAGIC, MAX_FILE, NarErrorKind, OpenDirectories};

/// Most bytes that [`Writer::file_from`] holds at once.
const COPY_BUFFER: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the NAR can't be written")]
    Io(#[source] io::Error),
    #[error("the contents of a file can't be read")]
    Read(#[source] io::Error),
    /// A name, target, size or depth that no NAR may have, or an entry out of order.
    #[error("no NAR can hold this: {0}")]
    Invalid(NarErrorKind),
    #[error("`{call}` can't follow here, {expected} is due")]
    Misuse { call: &'static str, expected: &'static str },
    #[error("a file has `{found}` bytes instead of the announced `{size}`")]
    FileShort { size: u64, found: u64 },
    #[error("a file has more bytes than the announced `{size}`")]
    FileLong { size: u64 },
}

/// A NAR being written. After an error the writer is of no further use: what it wrote is no NAR, and every call says so.
///
/// Calls per node: [`directory`](Self::directory), then [`entry`](Self::entry) and a node for each name, then
/// [`end`](Self::end); or [`file`](Self::file) and [`contents`](Self::contents) until its size is reached, which ends
/// the file; or [`file_from`](Self::file_from); or [`symlink`](Self::symlink).
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    next: Next,
    open: OpenDirectories,
    /// What the current call writes in one piece: fields without contents.
    fields: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Root,
    Node,
    EntryOrEnd,
    Contents {
        left: u64,
        padding: u8,
    },
    Finish,
    /// An earlier call failed, perhaps half way through a field.
    Nothing,
}

impl Next {
    const fn expected(self) -> &'static str {
        match self {
            Self::Root | Self::Node => "a directory, file or symbolic link",
            Self::EntryOrEnd => "an entry or the end of the directory",
            Self::Contents { .. } => "the rest of a file's contents",
            Self::Finish => "the end of the NAR",
            Self::Nothing => "nothing after a failed call",
        }
    }
}

impl<W: Write> Writer<W> {
    /// Writes nothing yet.
    pub fn new(out: W) -> Self {
        Self { out, next: Next::Root, open: OpenDirectories::default(), fields: Vec::new() }
    }

    /// Begins a directory.
    pub fn directory(&mut self) -> Result<(), WriteError> {
        self.node("directory", "directory")?;
        self.open.open().map_err(WriteError::Invalid)?;
        self.write(Next::EntryOrEnd)
    }

    /// Begins the next entry of the directory; its node must follow.
    pub fn entry(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.begin("entry", |next| next == Next::EntryOrEnd)?;
        self.open.next_name(name).map_err(WriteError::Invalid)?;
        for field in [b"entry".as_slice(), b"(", b"name", name, b"node"] {
            self.field(field);
        }
        self.write(Next::Node)
    }

    /// Ends the directory.
    pub fn end(&mut self) -> Result<(), WriteError> {
        self.begin("end", |next| next == Next::EntryOrEnd)?;
        self.open.close();
        self.end_node()
    }

    /// Writes a symbolic link.
    pub fn symlink(&mut self, target: &[u8]) -> Result<(), WriteError> {
        self.node("symlink", "symlink")?;
        super::check_target(target).map_err(WriteError::Invalid)?;
        self.field(b"target");
        self.field(target);
        self.end_node()
    }

    /// Begins a regular file of `size` bytes. One of no bytes is complete at once.
    pub fn file(&mut self, executable: bool, size: u64) -> Result<(), WriteError> {
        self.node("file", "regular")?;
        if size > MAX_FILE {
            let kind = NarErrorKind::TooLong { what: "a file's contents", length: size, most: MAX_FILE };
            return Err(WriteError::Invalid(kind));
        }
        if executable {
            self.field(b"executable");
            self.field(b"");
        }
        self.field(b"contents");
        self.fields.extend_from_slice(&size.to_le_bytes());
        if size == 0 {
            return self.end_node();
        }
        let padding = (size.next_multiple_of(8) - size) as u8;
        self.write(Next::Contents { left: size, padding })
    }

    /// Writes the next bytes of the file; with the last one the file is complete.
    pub fn contents(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let next = self.begin("contents", |next| match next {
            Next::Contents { .. } => true,
            // no bytes for a file that is complete, as one of size 0 is at once
            Next::EntryOrEnd | Next::Finish => bytes.is_empty(),
            Next::Root | Next::Node | Next::Nothing => false,
        })?;
        let Next::Contents { left, padding } = next else { return self.write(next) };
        let Some(left) = left.checked_sub(bytes.len() as u64) else {
            return Err(WriteError::Misuse {
                call: "contents",
                expected: "fewer bytes, to fit the file's size",
            });
        };
        self.out.write_all(bytes).map_err(WriteError::Io)?;
        if left > 0 {
            return self.write(Next::Contents { left, padding });
        }
        self.fields.resize(usize::from(padding), 0);
        self.end_node()
    }

    /// Writes a regular file whose contents are what `reader` gives up to its end: exactly `size` bytes.
    pub fn file_from(
        &mut self,
        executable: bool,
        size: u64,
        reader: &mut impl Read,
    ) -> Result<(), WriteError> {
        self.file(executable, size)?;
        // one byte more than announced is asked for, so that a file that has grown shows
        let mut buffer = vec![0; size.saturating_add(1).min(COPY_BUFFER as u64) as usize];
        let mut found = 0u64;
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.fail(WriteError::Read(error))),
            };
            if n as u64 > size - found {
                return Err(self.fail(WriteError::FileLong { size }));
            }
            if n == 0 && found < size {
                return Err(self.fail(WriteError::FileShort { size, found }));
            }
            if n == 0 {
                return Ok(());
            }
            self.contents(&buffer[..n])?;
            found += n as u64;
        }
    }

    /// Ends the NAR, which must be complete; flushes and gives back where it went.
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.begin("finish", |next| next == Next::Finish)?;
        self.out.flush().map_err(WriteError::Io)?;
        Ok(self.out)
    }

    fn fail(&mut self, error: WriteError) -> WriteError {
        self.next = Next::Nothing;
        error
    }

    /// Checks that the call may come now. Until [`write`](Self::write) the writer counts as failed, so that a call
    /// which returns early leaves it so.
    fn begin(&mut self, call: &'static str, fits: impl FnOnce(Next) -> bool) -> Result<Next, WriteError> {
        let next = std::mem::replace(&mut self.next, Next::Nothing);
        self.fields.clear();
        if fits(next) { Ok(next) } else { Err(WriteError::Misuse { call, expected: next.expected() }) }
    }

    fn node(&mut self, call: &'static str, kind: &str) -> Result<(), WriteError> {
        if self.begin(call, |next| matches!(next, Next::Root | Next::Node))? == Next::Root {
            self.field(MAGIC);
        }
        for field in ["(", "type", kind] {
            self.field(field.as_bytes());
        }
        Ok(())
    }

    /// Ends the node and, but for the root, the entry that it is in.
    fn end_node(&mut self) -> Result<(), WriteError> {
        self.field(b")");
        if self.open.is_empty() {
            return self.write(Next::Finish);
        }
        self.field(b")");
        self.write(Next::EntryOrEnd)
    }

    fn field(&mut self, bytes: &[u8]) {
        self.fields.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.fields.extend_from_slice(bytes);
        // not up to a multiple of the buffer's length: that may begin with the padding of a file
        let padding = bytes.len().next_multiple_of(8) - bytes.len();
        self.fields.resize(self.fields.len() + padding, 0);
    }

    fn write(&mut self, next: Next) -> Result<(), WriteError> {
        self.out.write_all(&self.fields).map_err(WriteError::Io)?;
        self.next = next;
        Ok(())
    }
}
