//! What differs between the NAR that a submitter claims and the one that a rebuild gave: file by file, with the first
//! bytes that differ. Both are read once, in step, in constant memory; what a report may hold is bounded too.
//!
//! Both NARs are foreign, and so is every name, target and byte in a report: they are escaped here, and whoever shows
//! them has only his own markup to think of. Knows nothing of hashes, of compression, or of which side is right.

mod list;
mod pull;
#[cfg(test)]
mod tests;
mod text;
mod walk;

use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::nar::NarError;
pub use walk::compare;

/// Most files that a report lists.
pub const MAX_FILES: usize = 200;
/// Longest report, in bytes of JSON.
pub const MAX_JSON: usize = 64 * 1024;
/// Longest path or target in a report, in bytes before they are escaped; of a longer one the middle is left out.
pub const MAX_SHOWN: usize = 512;
/// Bytes shown around the first difference: up to so many before it, and of each side so many from it on.
pub const WINDOW_BEFORE: usize = 24;
pub const WINDOW_AFTER: usize = 40;

/// Whose NAR it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Claimed,
    Rebuilt,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Claimed => "claimed",
            Self::Rebuilt => "rebuilt",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DifferenceError {
    #[error("the {side} NAR is malformed")]
    Malformed { side: Side, source: NarError },
    #[error("the {side} NAR can't be read")]
    Read { side: Side, source: io::Error },
}

impl DifferenceError {
    /// The side at fault.
    pub const fn side(&self) -> Side {
        match self {
            Self::Malformed { side, .. } | Self::Read { side, .. } => *side,
        }
    }
}

/// What differs, in the order of the NARs. Directories that both have count like files, and are always the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether the NARs are the same, byte for byte.
    pub identical: bool,
    /// Of all that differs, listed or not.
    pub counts: Counts,
    /// The first ones: at most [`MAX_FILES`], and no more than fit into [`MAX_JSON`].
    pub files: Vec<FileDifference>,
    /// Whether more differ than are listed,
    pub truncated: bool,
    /// and how many.
    pub omitted: u64,
}

/// How many paths differ in which way. Each counts once, by what weighs most: a file of another size and mode under
/// `size`. A directory that only one side has counts once too, whatever is in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    pub same: u64,
    pub added: u64,
    pub removed: u64,
    pub r#type: u64,
    pub size: u64,
    pub contents: u64,
    pub mode: u64,
    pub target: u64,
}

impl Counts {
    fn add(&mut self, kind: Kind) {
        let count = match kind {
            Kind::Added => &mut self.added,
            Kind::Removed => &mut self.removed,
            Kind::Type => &mut self.r#type,
            Kind::Size => &mut self.size,
            Kind::Contents => &mut self.contents,
            Kind::Mode => &mut self.mode,
            Kind::Target => &mut self.target,
        };
        *count = count.saturating_add(1);
    }

    /// How many paths differ.
    pub fn different(&self) -> u64 {
        let Self { same: _, added, removed, r#type, size, contents, mode, target } = *self;
        [added, removed, r#type, size, contents, mode, target].into_iter().fold(0, u64::saturating_add)
    }
}

/// In which way a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Only the rebuild has it.
    Added,
    /// Only the claim has it.
    Removed,
    /// A file here is a directory or a link there.
    Type,
    /// Files of different sizes, which so differ in their contents.
    Size,
    /// Files of the same size.
    Contents,
    /// Files of which one is executable, with the same contents.
    Mode,
    /// Links to different targets.
    Target,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileDifference {
    /// From the root of the store path, without a slash at the start: empty for the root itself. Characters that aren't
    /// printable are escaped as in Rust (`\n`, `\u{202e}`), bytes that aren't UTF-8 as `\xff`, a backslash as two: no
    /// two paths read the same, as long as they aren't cut.
    pub path: String,
    /// Whether the middle of the path is left out; `…` stands there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub path_cut: bool,
    pub kind: Kind,
    /// Absent where it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed: Option<Entry>,
    /// Absent where it was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuilt: Option<Entry>,
    /// Of two files whose contents differ the first byte that does, or the end of the shorter one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_offset: Option<u64>,
    /// What stands there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EntryType {
    Regular,
    Directory,
    Symlink,
}

/// What is at a path on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub r#type: EntryType,
    /// Of a file, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
    /// Of a link; escaped and cut as paths are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Of a directory: how many files, links and directories it holds at all depths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
}

/// Bytes of both files around the first that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Where the window begins, in bytes from the start of the file.
    pub offset: u64,
    /// Text, escaped as paths are, or hexadecimal digits; empty where the file has ended.
    pub claimed: String,
    pub rebuilt: String,
    /// Whether both are text.
    pub text: bool,
}
