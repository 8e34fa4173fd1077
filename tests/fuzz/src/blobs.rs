//! In place of the gateway's blob store: packs in memory.

use std::{
    collections::HashMap,
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
};

use pushgate_formats::Sha256;

pub trait PackWriter: Send {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn position(&self) -> u64;
    fn rollback(&mut self, position: u64) -> io::Result<()>;
    fn finish(self: Box<Self>, whole: Option<&Sha256>) -> io::Result<String>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRange {
    pub pack: String,
    pub start: u64,
    pub length: u64,
}

pub trait Blobs: Send + Sync + 'static {
    fn begin_pack(&self) -> io::Result<Box<dyn PackWriter>>;
    fn read_pack(&self, range: &PackRange) -> io::Result<Box<dyn Read + Send>>;
    fn remove_packs(&self, packs: &[String]) -> io::Result<()>;
    fn free(&self, ranges: &[PackRange]) -> io::Result<()>;
}

type Packs = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// Finished packs, by name.
#[derive(Default)]
pub struct Memory {
    packs: Packs,
}

impl Memory {
    /// The bytes of a range.
    pub fn bytes(&self, range: &PackRange) -> Vec<u8> {
        let packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        packs[&range.pack][range.start as usize..][..range.length as usize].to_vec()
    }

    /// Bytes of all packs.
    pub fn size(&self) -> u64 {
        let packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        packs.values().map(|pack| pack.len() as u64).sum()
    }
}

impl Blobs for Memory {
    fn begin_pack(&self) -> io::Result<Box<dyn PackWriter>> {
        Ok(Box::new(Pack { bytes: Vec::new(), packs: self.packs.clone() }))
    }

    fn read_pack(&self, range: &PackRange) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::Cursor::new(self.bytes(range))))
    }

    fn remove_packs(&self, names: &[String]) -> io::Result<()> {
        let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().for_each(|name| drop(packs.remove(name)));
        Ok(())
    }

    fn free(&self, _ranges: &[PackRange]) -> io::Result<()> {
        Ok(())
    }
}

struct Pack {
    bytes: Vec<u8>,
    packs: Packs,
}

impl PackWriter for Pack {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn position(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn rollback(&mut self, position: u64) -> io::Result<()> {
        assert!(position <= self.position());
        self.bytes.truncate(position as usize);
        Ok(())
    }

    fn finish(self: Box<Self>, whole: Option<&Sha256>) -> io::Result<String> {
        assert!(whole.is_none_or(|hash| *hash == Sha256::of(&self.bytes)));
        let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        let name = packs.len().to_string();
        packs.insert(name.clone(), self.bytes);
        Ok(name)
    }
}
