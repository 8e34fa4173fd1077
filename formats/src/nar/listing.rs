//! The `.ls` listing of a NAR, as Nix writes it beside a narinfo (`write-nar-listing=true`): JSON with the types, sizes
//! and offsets of all files, so that a client can fetch one file of a NAR. Streams while the NAR is parsed; collects
//! nothing and knows nothing of where the listing goes.
//!
//! JSON is text and names in a NAR are bytes. Nix 2.8 prints such bytes as they are, which no JSON reader need accept,
//! and a replacement character would name a file that isn't there. So a NAR with a name or target that is not UTF-8
//! has no listing here; clients do without, as they do where a cache writes none.

use std::io::{self, Write};

use super::Visitor;
use crate::store_path::shown;

#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    #[error("the listing can't be written")]
    Io(#[source] io::Error),
    #[error("`{0}` is not UTF-8, so the NAR can't be listed")]
    NotUtf8(String),
    #[error("the NAR's root node is not complete")]
    Incomplete,
}

/// Writes the listing of the NAR that it visits: `{"version":1,"root":{…}}`, without white space. Each event is a few
/// small writes: give it a buffer. After a failure it writes no more and keeps the error for
/// [`finish`](Self::finish); the visit goes on.
#[derive(Debug)]
pub struct ListingWriter<W> {
    out: W,
    /// For each open directory, whether it has an entry already.
    open: Vec<bool>,
    complete: bool,
    failed: Option<ListingError>,
}

impl<W: Write> ListingWriter<W> {
    /// Writes nothing yet.
    pub fn new(out: W) -> Self {
        Self { out, open: Vec::new(), complete: false, failed: None }
    }

    /// Flushes and gives back where the listing went, which is of use only if the parser too has finished well.
    pub fn finish(mut self) -> Result<W, ListingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if !self.complete {
            return Err(ListingError::Incomplete);
        }
        self.out.flush().map_err(ListingError::Io)?;
        Ok(self.out)
    }

    fn attempt(&mut self, write: impl FnOnce(&mut Self) -> Result<(), ListingError>) {
        if self.failed.is_none() {
            self.failed = write(self).err();
        }
    }

    fn raw(&mut self, text: &str) -> Result<(), ListingError> {
        self.out.write_all(text.as_bytes()).map_err(ListingError::Io)
    }

    fn string(&mut self, bytes: &[u8]) -> Result<(), ListingError> {
        let text = str::from_utf8(bytes).map_err(|_| ListingError::NotUtf8(shown(bytes)))?;
        serde_json::to_writer(&mut self.out, text).map_err(|error| ListingError::Io(error.into()))
    }

    /// What stands before a node: the key of the entry, or the head of the listing.
    fn key(&mut self, name: Option<&[u8]>) -> Result<(), ListingError> {
        let Some(name) = name else { return self.raw(r#"{"version":1,"root":"#) };
        if let Some(has_entry) = self.open.last_mut()
            && std::mem::replace(has_entry, true)
        {
            self.raw(",")?;
        }
        self.string(name)?;
        self.raw(":")
    }

    fn end_node(&mut self) -> Result<(), ListingError> {
        if self.open.is_empty() {
            self.raw("}")?;
            self.complete = true;
        }
        Ok(())
    }
}

impl<W: Write> Visitor for ListingWriter<W> {
    fn directory(&mut self, name: Option<&[u8]>) {
        self.attempt(|this| {
            this.key(name)?;
            this.open.push(false);
            this.raw(r#"{"type":"directory","entries":{"#)
        });
    }

    fn end_directory(&mut self) {
        self.attempt(|this| {
            this.open.pop();
            this.raw("}}")?;
            this.end_node()
        });
    }

    fn file(&mut self, name: Option<&[u8]>, executable: bool, size: u64, offset: u64) {
        self.attempt(|this| {
            this.key(name)?;
            let executable = if executable { r#","executable":true"# } else { "" };
            write!(this.out, r#"{{"type":"regular","size":{size}{executable},"narOffset":{offset}}}"#)
                .map_err(ListingError::Io)
        });
    }

    fn end_file(&mut self) {
        self.attempt(Self::end_node);
    }

    fn symlink(&mut self, name: Option<&[u8]>, target: &[u8]) {
        self.attempt(|this| {
            this.key(name)?;
            this.raw(r#"{"type":"symlink","target":"#)?;
            this.string(target)?;
            this.raw("}")?;
            this.end_node()
        });
    }
}
