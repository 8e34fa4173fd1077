//! The streaming hashes that contents are addressed by: of any algorithm, and sha256 modulo self-references. They take
//! bytes in pieces of any size and know nothing of what the bytes mean. The second is as in Nix's
//! `src/libstore/references.cc` (`HashModuloSink`).

use sha2::Digest;

use super::{ContentAddressError, MAX_SELF_REFERENCES};
use crate::{HashAlgo, NixHash, Sha256, StorePath, store_path::HASH_CHARS};

/// A streaming hash of any algorithm.
pub enum ContentHasher {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl ContentHasher {
    pub fn new(algo: HashAlgo) -> Self {
        match algo {
            HashAlgo::Md5 => Self::Md5(Digest::new()),
            HashAlgo::Sha1 => Self::Sha1(Digest::new()),
            HashAlgo::Sha256 => Self::Sha256(Digest::new()),
            HashAlgo::Sha512 => Self::Sha512(Digest::new()),
        }
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub fn finish(self) -> NixHash {
        let hash = match self {
            Self::Md5(hasher) => NixHash::new(HashAlgo::Md5, &hasher.finalize()),
            Self::Sha1(hasher) => NixHash::new(HashAlgo::Sha1, &hasher.finalize()),
            Self::Sha256(hasher) => NixHash::new(HashAlgo::Sha256, &hasher.finalize()),
            Self::Sha512(hasher) => NixHash::new(HashAlgo::Sha512, &hasher.finalize()),
        };
        // each hasher gives a digest of its own algorithm's length
        hash.expect("the algorithm's length")
    }
}

/// The hashes modulo self-reference of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelfReferenceHashes {
    /// Nix up to 2.16 and from 2.35 on: the offsets of the hits are hashed after the bytes.
    pub with_positions: Sha256,
    /// Nix 2.17 to 2.34.
    pub without_positions: Sha256,
    /// How often the path's own hash part was found.
    pub hits: u64,
}

/// Hashes a stream with each occurrence of the path's own hash part replaced by NULs. Constant memory but for the
/// offsets, of which there are at most [`MAX_SELF_REFERENCES`].
pub struct SelfReferenceHasher {
    needle: [u8; HASH_CHARS],
    /// How far the window may move on, by its last byte (Horspool): 32 on most bytes, 1 at worst.
    skip: [u8; 256],
    sha: sha2::Sha256,
    /// Bytes not hashed yet: up to 31 between calls.
    buffer: Vec<u8>,
    /// Offset of the buffer's first byte in the stream.
    base: u64,
    offsets: Vec<u64>,
    too_many: bool,
}

impl SelfReferenceHasher {
    const PIECE: usize = 32 * 1024;

    pub fn new(path: &StorePath) -> Self {
        let mut needle = [0; HASH_CHARS];
        needle.copy_from_slice(path.hash_part().as_bytes());
        let mut skip = [HASH_CHARS as u8; 256];
        for (i, byte) in needle[..HASH_CHARS - 1].iter().enumerate() {
            skip[usize::from(*byte)] = (HASH_CHARS - 1 - i) as u8;
        }
        let buffer = Vec::with_capacity(Self::PIECE + HASH_CHARS);
        Self { needle, skip, sha: sha2::Sha256::new(), buffer, base: 0, offsets: Vec::new(), too_many: false }
    }

    /// Takes the next bytes, in pieces of any size.
    pub fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(Self::PIECE) {
            self.buffer.extend_from_slice(piece);
            self.scan();
        }
    }

    fn scan(&mut self) {
        let (mut at, mut hashed) = (0, 0);
        while at + HASH_CHARS <= self.buffer.len() {
            let window = &self.buffer[at..at + HASH_CHARS];
            if *window == self.needle {
                self.sha.update(&self.buffer[hashed..at]);
                self.sha.update([0; HASH_CHARS]);
                if self.offsets.len() < MAX_SELF_REFERENCES {
                    self.offsets.push(self.base + at as u64);
                } else {
                    self.too_many = true;
                }
                at += HASH_CHARS;
                hashed = at;
            } else {
                at += usize::from(self.skip[usize::from(window[HASH_CHARS - 1])]);
            }
        }
        // A hit may begin in the last 31 bytes: they wait for the next piece. After a skip all before `at` is done.
        let done = at.min(self.buffer.len()).max(hashed);
        self.sha.update(&self.buffer[hashed..done]);
        self.base += done as u64;
        self.buffer.drain(..done);
    }

    /// The hashes of all that was fed.
    pub fn finish(mut self) -> Result<SelfReferenceHashes, ContentAddressError> {
        if self.too_many {
            return Err(ContentAddressError::TooManySelfReferences);
        }
        self.sha.update(&self.buffer);
        let without_positions = Sha256(self.sha.clone().finalize().into());
        for offset in &self.offsets {
            self.sha.update(format!("|{offset}").as_bytes());
        }
        let with_positions = Sha256(self.sha.finalize().into());
        Ok(SelfReferenceHashes { with_positions, without_positions, hits: self.offsets.len() as u64 })
    }
}
