//! Nix archives (NAR): a parser that takes bytes as they come, a writer, and the `.ls` listing. One tree has exactly
//! one NAR, and only that one is accepted: what `nix-store --dump` prints (`src/libutil/archive.cc` of Nix).
//!
//! Knows nothing of files on disk, of compression, of hashes or of store paths; what is done with the tree is the
//! [`Visitor`]'s business.

mod listing;
mod parser;
mod writer;

#[cfg(test)]
mod tests;

pub use listing::{ListingError, ListingWriter};
pub use parser::Parser;
pub use writer::{WriteError, Writer};

use crate::store_path::shown;

/// First field of every NAR.
pub const MAGIC: &[u8] = b"nix-archive-1";
/// Longest name of a directory entry, in bytes: Linux's `NAME_MAX`. Longer ones can't be unpacked.
pub const MAX_NAME: usize = 255;
/// Longest target of a symbolic link, in bytes: Linux's `PATH_MAX` without the final NUL.
pub const MAX_TARGET: usize = 4095;
/// Most directories open at once, the root among them. Nix recurses once per level, both packing and unpacking.
pub const MAX_DEPTH: usize = 64;
/// Largest file, in bytes: Nix's database has signed 64-bit sizes.
pub const MAX_FILE: u64 = i64::MAX as u64;
/// Nix on macOS appends this and a number to names that differ only in case, and takes it off again when packing. Two
/// names of the NAR can become one on such a machine, so none may hold it.
pub const CASE_HACK: &[u8] = b"~nix~case~hack~";

/// What is wrong with a NAR, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}, at byte {offset} of the NAR")]
pub struct NarError {
    /// Bytes from the start of the NAR to the field at fault (to its length prefix), to the padding byte that is not
    /// zero, to the first byte after the root node, or to the end of a NAR that is cut short.
    pub offset: u64,
    pub kind: NarErrorKind,
}

impl NarError {
    /// The stable code of a rejection for this reason.
    pub const fn code(&self) -> &'static str {
        match self.kind {
            NarErrorKind::TrailingBytes => "nar-trailing-bytes",
            _ => "nar-malformed",
        }
    }
}

/// The rule that is broken. Text from the NAR is escaped and shortened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarErrorKind {
    /// Also for fields that are known but stand out of their order.
    #[error("`{found}` stands where {expected} belongs")]
    Unexpected { expected: &'static str, found: String },
    #[error("{what} has length `{length}`, more than {most} bytes")]
    TooLong { what: &'static str, length: u64, most: u64 },
    #[error("a padding byte is `{0:#04x}` instead of zero")]
    Padding(u8),
    #[error("a name is empty")]
    NameEmpty,
    #[error("`{0}` names no entry of a directory")]
    NameDots(String),
    #[error("name `{0}` holds a slash or a NUL")]
    NameByte(String),
    #[error("name `{0}` holds `~nix~case~hack~`")]
    NameCaseHack(String),
    #[error("name `{name}` comes after `{previous}`, names must be in the order of their bytes")]
    NameOrder { previous: String, name: String },
    #[error("name `{0}` occurs twice in a directory")]
    NameTwice(String),
    #[error("a symbolic link has an empty target")]
    TargetEmpty,
    #[error("target `{0}` of a symbolic link holds a NUL")]
    TargetNul(String),
    #[error("more than {MAX_DEPTH} directories are nested")]
    TooDeep,
    #[error("there are bytes after the root node")]
    TrailingBytes,
    #[error("the NAR ends before its root node does")]
    Truncated,
}

/// What a [`Parser`] tells of a tree, in the order of the NAR. A `name` is `None` for the root only; else it has passed
/// every rule for names, but it is bytes, not necessarily UTF-8.
///
/// An event says that the NAR was well-formed up to it; whether the whole NAR is shows only at [`Parser::finish`].
#[expect(unused_variables, reason = "the default bodies ignore the event")]
pub trait Visitor {
    /// A directory begins; its entries follow up to the matching [`end_directory`](Self::end_directory).
    fn directory(&mut self, name: Option<&[u8]>) {}
    fn end_directory(&mut self) {}
    /// A regular file begins. `size` is in bytes; `offset` is where the contents begin, in bytes from the start of the
    /// NAR.
    fn file(&mut self, name: Option<&[u8]>, executable: bool, size: u64, offset: u64) {}
    /// The next bytes of the file, cut wherever the input was; never empty, and not called for an empty file.
    fn contents(&mut self, bytes: &[u8]) {}
    fn end_file(&mut self) {}
    fn symlink(&mut self, name: Option<&[u8]>, target: &[u8]) {}
}

/// Only the grammar is checked.
impl Visitor for () {}

macro_rules! visit_each {
    ($($visitor:ident $index:tt),+) => {
        /// Each visitor hears every event, in the order of the tuple.
        impl<$($visitor: Visitor),+> Visitor for ($($visitor,)+) {
            #[inline]
            fn directory(&mut self, name: Option<&[u8]>) {
                $(self.$index.directory(name);)+
            }
            #[inline]
            fn end_directory(&mut self) {
                $(self.$index.end_directory();)+
            }
            #[inline]
            fn file(&mut self, name: Option<&[u8]>, executable: bool, size: u64, offset: u64) {
                $(self.$index.file(name, executable, size, offset);)+
            }
            #[inline]
            fn contents(&mut self, bytes: &[u8]) {
                $(self.$index.contents(bytes);)+
            }
            #[inline]
            fn end_file(&mut self) {
                $(self.$index.end_file();)+
            }
            #[inline]
            fn symlink(&mut self, name: Option<&[u8]>, target: &[u8]) {
                $(self.$index.symlink(name, target);)+
            }
        }
    };
}

visit_each!(A 0, B 1);
visit_each!(A 0, B 1, C 2);

/// So that a tuple can hold borrowed visitors.
impl<V: Visitor + ?Sized> Visitor for &mut V {
    #[inline]
    fn directory(&mut self, name: Option<&[u8]>) {
        (**self).directory(name);
    }
    #[inline]
    fn end_directory(&mut self) {
        (**self).end_directory();
    }
    #[inline]
    fn file(&mut self, name: Option<&[u8]>, executable: bool, size: u64, offset: u64) {
        (**self).file(name, executable, size, offset);
    }
    #[inline]
    fn contents(&mut self, bytes: &[u8]) {
        (**self).contents(bytes);
    }
    #[inline]
    fn end_file(&mut self) {
        (**self).end_file();
    }
    #[inline]
    fn symlink(&mut self, name: Option<&[u8]>, target: &[u8]) {
        (**self).symlink(name, target);
    }
}

/// The open directories: of each only the name of its latest entry, which is all that order and uniqueness need.
/// Never more than [`MAX_DEPTH`] names of [`MAX_NAME`] bytes; buffers are used again.
#[derive(Debug, Default)]
struct OpenDirectories {
    latest: Vec<Vec<u8>>,
    depth: usize,
}

impl OpenDirectories {
    fn check_depth(&self) -> Result<(), NarErrorKind> {
        if self.depth == MAX_DEPTH { Err(NarErrorKind::TooDeep) } else { Ok(()) }
    }

    fn open(&mut self) -> Result<(), NarErrorKind> {
        self.check_depth()?;
        match self.latest.get_mut(self.depth) {
            Some(name) => name.clear(),
            None => self.latest.push(Vec::new()),
        }
        self.depth += 1;
        Ok(())
    }

    /// To be called for an open directory only, as [`next_name`](Self::next_name).
    fn close(&mut self) {
        self.depth -= 1;
    }

    fn is_empty(&self) -> bool {
        self.depth == 0
    }

    /// Name of the latest entry of the innermost directory; `None` at the root.
    fn name(&self) -> Option<&[u8]> {
        self.depth.checked_sub(1).map(|i| self.latest[i].as_slice())
    }

    fn next_name(&mut self, name: &[u8]) -> Result<(), NarErrorKind> {
        check_name(name)?;
        let previous = &mut self.latest[self.depth - 1];
        // no name is empty, so any first name comes after the empty one
        match name.cmp(previous) {
            std::cmp::Ordering::Greater => {}
            std::cmp::Ordering::Equal => return Err(NarErrorKind::NameTwice(shown(name))),
            std::cmp::Ordering::Less => {
                return Err(NarErrorKind::NameOrder { previous: shown(previous), name: shown(name) });
            }
        }
        previous.clear();
        previous.extend_from_slice(name);
        Ok(())
    }
}

/// Whether a directory entry may have this name, its neighbours aside.
pub fn check_name(name: &[u8]) -> Result<(), NarErrorKind> {
    if name.is_empty() {
        return Err(NarErrorKind::NameEmpty);
    }
    check_length("a name", name.len() as u64, MAX_NAME)?;
    if name == b"." || name == b".." {
        return Err(NarErrorKind::NameDots(shown(name)));
    }
    if name.iter().any(|b| matches!(b, 0 | b'/')) {
        return Err(NarErrorKind::NameByte(shown(name)));
    }
    if name.contains(&b'~') && name.windows(CASE_HACK.len()).any(|part| part == CASE_HACK) {
        return Err(NarErrorKind::NameCaseHack(shown(name)));
    }
    Ok(())
}

/// Whether a symbolic link may have this target. Where it points to is not looked at: links out of the store are
/// normal, and the NAR's reader doesn't follow them.
pub fn check_target(target: &[u8]) -> Result<(), NarErrorKind> {
    if target.is_empty() {
        return Err(NarErrorKind::TargetEmpty);
    }
    check_length("a link's target", target.len() as u64, MAX_TARGET)?;
    if target.contains(&0) {
        return Err(NarErrorKind::TargetNul(shown(target)));
    }
    Ok(())
}

fn check_length(what: &'static str, length: u64, most: usize) -> Result<(), NarErrorKind> {
    if length > most as u64 {
        return Err(NarErrorKind::TooLong { what, length, most: most as u64 });
    }
    Ok(())
}
