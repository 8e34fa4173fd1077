//! The seam to the blob store: quarantined packs, which are private, and the published files of each cache, which form a
//! complete static binary cache. Knows nothing of signatures, policy or the database.
//!
//! The methods block; stages call them off the async threads. What is read for the public comes as a stream.

pub mod directory;
mod unchanged;

use std::{
    fs::File,
    io::{self, Read},
};

use async_trait::async_trait;
use bytes::Bytes;
use pushgate_formats::Sha256;

/// A pack being written: compressed NARs of one upload, one after the other. Dropped unfinished, it leaves nothing.
pub trait PackWriter: Send {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Bytes written so far.
    fn position(&self) -> u64;
    /// Takes back what was written after `position`.
    fn rollback(&mut self, position: u64) -> io::Result<()>;
    /// Makes the pack durable and gives its name. `whole` is the sha256 of all that was written, where it is known: a store
    /// that can tell that nothing of it has changed since need not read it again to publish it.
    fn finish(self: Box<Self>, whole: Option<&Sha256>) -> io::Result<String>;
}

/// Where a NAR lies in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRange {
    pub pack: String,
    pub start: u64,
    pub length: u64,
}

/// A published file, opened.
pub struct PublicFile {
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970, UTC.
    pub modified: u64,
    pub body: PublicBody,
}

/// Contents of a published file.
pub enum PublicBody {
    /// Small enough to be read whole.
    Whole(Bytes),
    /// A file of this machine.
    File(File),
}

#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    fn begin_pack(&self) -> io::Result<Box<dyn PackWriter>>;
    /// Reads a NAR's compressed bytes back.
    fn read_pack(&self, range: &PackRange) -> io::Result<Box<dyn Read + Send>>;
    /// Removes packs; those that are gone already are no error.
    fn remove_packs(&self, packs: &[String]) -> io::Result<()>;
    /// Gives up the space of ranges that nothing will read any more, where the store can; what lies beside them in their
    /// packs stays as it is.
    fn free(&self, ranges: &[PackRange]) -> io::Result<()>;
    /// Every finished pack.
    fn packs(&self) -> io::Result<Vec<String>>;

    /// Publishes quarantined bytes as `name`, if they still have this sha256: they are hashed again on the way, so that
    /// what is published is what was checked; but for a pack that was hashed while it was written and that is known not to
    /// have changed since. Nothing stays visible of a failed attempt. Publishing the same again is
    /// no error. Durable only after [`Blobs::sync`].
    fn publish_pack(&self, cache: &str, name: &str, from: &PackRange, hash: &Sha256) -> io::Result<()>;
    /// Publishes a file, whole or not at all, in place of an earlier one. Durable only after [`Blobs::sync`].
    fn publish_stream(&self, cache: &str, name: &str, contents: &mut dyn Read) -> io::Result<()>;
    /// The same for contents in memory.
    fn publish_bytes(&self, cache: &str, name: &str, mut contents: &[u8]) -> io::Result<()> {
        self.publish_stream(cache, name, &mut contents)
    }
    /// Takes a published file back, at once; one that isn't there is no error. Durable only after [`Blobs::sync`].
    fn withdraw(&self, cache: &str, name: &str) -> io::Result<()>;
    /// Whether a file is published.
    fn is_published(&self, cache: &str, name: &str) -> io::Result<bool>;
    /// Makes everything published and withdrawn so far durable.
    fn sync(&self) -> io::Result<()>;

    /// Opens a published file for reading; `None` where there is none. `name` was checked by the caller to be one of
    /// the forms that a binary cache has. Never waits for a disk in the thread that polls it.
    async fn open(&self, cache: &str, name: &str) -> io::Result<Option<PublicFile>>;

    /// Removes what a crash left half-written. Called once at start, before anything else.
    fn clean(&self) -> io::Result<()>;
    /// A cheap check that the store can be written to.
    fn probe(&self) -> io::Result<()>;
}
