//! Stage 3: one pass over a NAR's bytes: bounded decompression, grammar, sha256, size, the reference scan, the listing,
//! and whatever hashes its content address needs. Push-style: takes chunks as they come, blocks on nothing, keeps memory
//! constant. Knows nothing of where the bytes come from or go to.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    sync::Arc,
};

use pushgate_formats::{
    HashAlgo, NixHash, Sha256, StorePath,
    api::MAX_REFERENCES,
    content_address::{
        ContentAddress, ContentHasher, Measure, Measured, SelfReferenceHasher, SelfReferenceHashes,
    },
    derivation::{Derivation, MAX_DERIVATION},
    nar::{self, ListingWriter, NarError, Visitor},
    refscan::Scanner,
};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::{
    decompress::{CompressionError, Decompressor},
    quarantine::ScanSet,
    signature::SignatureValid,
};
use crate::limits::{Held, Memory};

/// Paths found in one NAR that are kept. More than a claim can declare: a built output with so many is never right, and
/// for others they don't matter.
pub const MAX_HITS: usize = MAX_REFERENCES + 1;

/// Listings larger than this, compressed, are not kept: the path is published without one. Bytes.
const MAX_LISTING: usize = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    #[error("the NAR is larger than the {0} bytes that were announced")]
    TooLarge(u64),
    #[error("the NAR has {found} bytes, announced were {claimed}")]
    Size { found: u64, claimed: u64 },
    #[error("the NAR's hash is `{found}`, announced was `{claimed}`")]
    Hash { found: Sha256, claimed: Sha256 },
    #[error(transparent)]
    Nar(#[from] NarError),
    #[error(transparent)]
    Compression(#[from] CompressionError),
}

impl IntakeError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "nar-too-large",
            Self::Size { .. } => "nar-size-mismatch",
            Self::Hash { .. } => "nar-hash-mismatch",
            Self::Nar(e) => e.code(),
            Self::Compression(_) => "compression-invalid",
        }
    }
}

/// How the bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    Zstd,
    Xz,
}

impl Compression {
    /// All that are taken.
    pub const ALL: [Self; 3] = [Self::None, Self::Zstd, Self::Xz];

    /// As narinfo's `Compression` field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == text)
    }

    /// What is appended to `.nar` in a file's name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Zstd => ".zst",
            Self::Xz => ".xz",
        }
    }
}

/// A hash beside the NAR hash that a content address may need.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DigestWanted {
    /// Of the contents of the single file that the NAR consists of.
    Flat(HashAlgoName),
    /// Of the NAR, by another algorithm than sha256.
    Nar(HashAlgoName),
    /// sha256 of the NAR with the path's own hash masked.
    Modulo(StorePath),
}

/// A hash algorithm by its name, for serde.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HashAlgoName {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

impl From<HashAlgo> for HashAlgoName {
    fn from(algo: HashAlgo) -> Self {
        match algo {
            HashAlgo::Md5 => Self::Md5,
            HashAlgo::Sha1 => Self::Sha1,
            HashAlgo::Sha256 => Self::Sha256,
            HashAlgo::Sha512 => Self::Sha512,
        }
    }
}

impl From<HashAlgoName> for HashAlgo {
    fn from(algo: HashAlgoName) -> Self {
        match algo {
            HashAlgoName::Md5 => Self::Md5,
            HashAlgoName::Sha1 => Self::Sha1,
            HashAlgoName::Sha256 => Self::Sha256,
            HashAlgoName::Sha512 => Self::Sha512,
        }
    }
}

impl DigestWanted {
    /// What has to be measured to check a path's content address; `None` where the NAR hash suffices or nothing helps.
    pub fn for_address(path: &StorePath, address: &ContentAddress, self_reference: bool) -> Option<Self> {
        match address.measure(self_reference) {
            Measure::File(algo) => Some(Self::Flat(algo.into())),
            Measure::Nar(HashAlgo::Sha256) | Measure::Git => None,
            Measure::Nar(algo) => Some(Self::Nar(algo.into())),
            Measure::NarModuloSelf => Some(Self::Modulo(path.clone())),
        }
    }
}

/// What to look for in the pass.
#[derive(Clone, Default)]
pub struct Plan {
    pub scan: Option<Arc<ScanSet>>,
    pub digests: BTreeSet<DigestWanted>,
    /// Keep the contents if the NAR is a single file of at most [`MAX_DERIVATION`] bytes: it may be a derivation.
    pub capture: bool,
    /// Bytes after which to give up.
    pub limit: u64,
}

/// A digest that was found: [`Measured`], in a form that can be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DigestFound {
    File {
        hash: String,
        executable: bool,
    },
    /// The NAR is not a single file.
    NotFile,
    Nar(String),
    /// With the positions of the self-references, and the form without them that some versions of Nix had.
    Modulo {
        with_positions: Sha256,
        without_positions: Sha256,
        hits: u64,
    },
    /// More self-references than are counted.
    TooManySelfReferences,
}

impl DigestFound {
    /// `None` where it can't be told, or was stored by something else than this program.
    pub fn measured(&self) -> Option<Measured> {
        Some(match self {
            Self::File { hash, executable } => {
                Measured::File { hash: NixHash::parse(hash).ok()?, executable: *executable }
            }
            Self::NotFile => Measured::NotFile,
            Self::Nar(hash) => Measured::Nar(NixHash::parse(hash).ok()?),
            Self::Modulo { with_positions, without_positions, hits } => {
                Measured::NarModuloSelf(SelfReferenceHashes {
                    with_positions: *with_positions,
                    without_positions: *without_positions,
                    hits: *hits,
                })
            }
            Self::TooManySelfReferences => return None,
        })
    }
}

/// What the pass found. Stored with the quarantined bytes; the listing and contents are not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Examined {
    pub nar_hash: Sha256,
    /// Bytes.
    pub nar_size: u64,
    /// sha256 of the compressed bytes.
    pub file_hash: Sha256,
    /// Compressed bytes.
    pub file_size: u64,
    /// Digest of the set of candidates that was scanned for.
    pub scanned: Option<Sha256>,
    /// Which of them occur.
    pub hits: BTreeSet<StorePath>,
    #[serde(with = "digest_pairs")]
    pub digests: BTreeMap<DigestWanted, DigestFound>,
    /// Where the NAR is a file with a derivation's form: what the derivation refers to.
    pub derivation_references: Option<BTreeSet<StorePath>>,
    /// Whether a derivation was looked for at all: the same bytes may have come for a path of another name.
    #[serde(default)]
    pub derivation_sought: bool,
    /// The `.ls` listing; `None` where it is too large or names can't be told in JSON, or where others of the same upload
    /// take the room: then it is made again at publishing.
    #[serde(skip)]
    pub listing: Option<Listing>,
    /// Contents of the single file, where they were asked for and have a derivation's form. An upload takes them out.
    #[serde(skip)]
    pub contents: Option<Vec<u8>>,
    /// For as long as this is in memory.
    #[serde(skip)]
    held: Option<Arc<Held>>,
}

impl Examined {
    /// Accounts for the memory that this takes; false where there isn't so much.
    pub fn hold(&mut self, memory: &Memory) -> bool {
        self.held = memory.take(self.memory()).map(Arc::new);
        self.held.is_some()
    }

    /// Bytes of memory, as estimated: nearly all of it are paths with their share of a tree, and the listing.
    pub fn memory(&self) -> u64 {
        const EACH: usize = 120;
        let paths = self.hits.len() + self.derivation_references.as_ref().map_or(0, BTreeSet::len);
        let digests = self.digests.len() * 512;
        (1024 + paths * EACH + digests + self.listing.as_ref().map_or(0, Listing::size)) as u64
    }
}

/// A `.ls` listing in memory.
#[derive(Debug, Clone)]
pub enum Listing {
    Plain(Vec<u8>),
    Zstd(Vec<u8>),
}

impl Listing {
    /// Bytes in memory.
    pub const fn size(&self) -> usize {
        match self {
            Self::Plain(bytes) | Self::Zstd(bytes) => bytes.capacity(),
        }
    }

    /// The text, to be written in pieces.
    pub fn reader(&self) -> std::io::Result<Box<dyn std::io::Read + '_>> {
        Ok(match self {
            Self::Plain(text) => Box::new(text.as_slice()),
            Self::Zstd(packed) => Box::new(zstd::stream::read::Decoder::new(packed.as_slice())?),
        })
    }
}

/// JSON has no maps with such keys: as a list of pairs.
mod digest_pairs {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<DigestWanted, DigestFound>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<BTreeMap<DigestWanted, DigestFound>, D::Error> {
        Vec::deserialize(d).map(|pairs| pairs.into_iter().collect())
    }
}

/// The pass over one NAR.
pub struct Examiner {
    decompressor: Decompressor,
    pass: Pass,
    file: sha2::Sha256,
    file_size: u64,
}

impl Examiner {
    pub fn new(compression: Compression, plan: Plan) -> Self {
        Self {
            decompressor: Decompressor::new(compression),
            pass: Pass::new(plan),
            file: sha2::Sha256::new(),
            file_size: 0,
        }
    }

    /// Takes compressed bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), IntakeError> {
        self.file.update(bytes);
        self.file_size += bytes.len() as u64;
        let pass = &mut self.pass;
        self.decompressor.feed(bytes, |plain| pass.feed(plain))
    }

    /// Ends the pass. Whether hash and size are those that were claimed is not known here: see [`NarIntact`].
    pub fn finish(self) -> Result<Examined, IntakeError> {
        self.decompressor.finish()?;
        let mut examined = self.pass.finish()?;
        examined.file_hash = Sha256(self.file.finalize().into());
        examined.file_size = self.file_size;
        Ok(examined)
    }
}

struct Pass {
    parser: nar::Parser,
    hasher: sha2::Sha256,
    size: u64,
    limit: u64,
    scan: Option<(Arc<ScanSet>, Scanner)>,
    nar_digests: Vec<(DigestWanted, NarDigest)>,
    derivation_sought: bool,
    visitor: (ListingWriter<BoundedZstd>, Contents),
}

impl Pass {
    fn new(plan: Plan) -> Self {
        let flat = plan.digests.iter().filter_map(|d| match d {
            DigestWanted::Flat(algo) => Some((d.clone(), ContentHasher::new((*algo).into()))),
            _ => None,
        });
        let nar = plan.digests.iter().filter_map(|d| match d {
            DigestWanted::Nar(algo) => {
                Some((d.clone(), NarDigest::Plain(Box::new(ContentHasher::new((*algo).into())))))
            }
            DigestWanted::Modulo(path) => {
                Some((d.clone(), NarDigest::Modulo(Box::new(SelfReferenceHasher::new(path)))))
            }
            DigestWanted::Flat(_) => None,
        });
        Self {
            parser: nar::Parser::new(),
            hasher: sha2::Sha256::new(),
            size: 0,
            limit: plan.limit,
            nar_digests: nar.collect(),
            derivation_sought: plan.capture,
            visitor: (
                ListingWriter::new(BoundedZstd::default()),
                Contents {
                    flat: flat.collect(),
                    capture: plan.capture.then(Vec::new),
                    single: false,
                    executable: false,
                    inside: 0,
                },
            ),
            scan: plan.scan.map(|set| {
                let scanner = Scanner::new(set.candidates().clone());
                (set, scanner)
            }),
        }
    }

    fn feed(&mut self, plain: &[u8]) -> Result<(), IntakeError> {
        self.size += plain.len() as u64;
        if self.size > self.limit {
            return Err(IntakeError::TooLarge(self.limit));
        }
        self.parser.feed(plain, &mut self.visitor)?;
        self.hasher.update(plain);
        if let Some((_, scanner)) = &mut self.scan {
            scanner.feed(plain);
        }
        for (_, digest) in &mut self.nar_digests {
            match digest {
                NarDigest::Plain(hasher) => hasher.feed(plain),
                NarDigest::Modulo(hasher) => hasher.feed(plain),
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Examined, IntakeError> {
        self.parser.finish()?;
        let (listing, contents) = self.visitor;
        let derivation_sought = self.derivation_sought;
        let mut digests: BTreeMap<_, _> = self
            .nar_digests
            .into_iter()
            .map(|(wanted, digest)| {
                let found = match digest {
                    NarDigest::Plain(hasher) => DigestFound::Nar(hasher.finish().to_string()),
                    NarDigest::Modulo(hasher) => match hasher.finish() {
                        Ok(both) => DigestFound::Modulo {
                            with_positions: both.with_positions,
                            without_positions: both.without_positions,
                            hits: both.hits,
                        },
                        Err(_) => DigestFound::TooManySelfReferences,
                    },
                };
                (wanted, found)
            })
            .collect();
        for (wanted, hasher) in contents.flat {
            let found = if contents.single {
                DigestFound::File { hash: hasher.finish().to_string(), executable: contents.executable }
            } else {
                DigestFound::NotFile
            };
            digests.insert(wanted, found);
        }
        let text = contents.capture.filter(|_| contents.single);
        let derivation_references =
            text.as_deref().and_then(|t| Derivation::parse(t).ok()).map(|d| d.references());
        // nothing else is of use, and it may be large
        let text = text.filter(|_| derivation_references.is_some());
        Ok(Examined {
            nar_hash: Sha256(self.hasher.finalize().into()),
            nar_size: self.size,
            file_hash: Sha256([0; 32]),
            file_size: 0,
            scanned: self.scan.as_ref().map(|(set, _)| set.digest()),
            hits: self.scan.map(|(_, s)| s.found().take(MAX_HITS).cloned().collect()).unwrap_or_default(),
            digests,
            listing: listing.finish().ok().and_then(BoundedZstd::finish),
            derivation_references,
            derivation_sought,
            contents: text,
            held: None,
        })
    }
}

enum NarDigest {
    Plain(Box<ContentHasher>),
    Modulo(Box<SelfReferenceHasher>),
}

/// Hashes and keeps the contents of a NAR that is a single file.
struct Contents {
    flat: Vec<(DigestWanted, ContentHasher)>,
    capture: Option<Vec<u8>>,
    single: bool,
    executable: bool,
    inside: u32,
}

impl Visitor for Contents {
    fn directory(&mut self, _name: Option<&[u8]>) {
        self.inside += 1;
    }
    fn file(&mut self, _name: Option<&[u8]>, executable: bool, size: u64, _offset: u64) {
        self.single = self.inside == 0;
        self.executable = executable;
        // bounded before it is kept
        if !self.single || size > MAX_DERIVATION as u64 {
            self.capture = None;
        }
    }
    fn contents(&mut self, bytes: &[u8]) {
        if self.single {
            self.flat.iter_mut().for_each(|(_, h)| h.feed(bytes));
            if let Some(kept) = &mut self.capture {
                kept.extend_from_slice(bytes);
            }
        }
    }
}

/// Compresses into memory, up to [`MAX_LISTING`]. Small texts are kept plain until they have some size, so that a
/// thousand small NARs don't each pay for a compressor.
#[derive(Default)]
struct BoundedZstd {
    plain: Vec<u8>,
    packed: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    overflow: bool,
}

impl BoundedZstd {
    const PLAIN: usize = 64 << 10;

    /// What was written; `None` where it was too much.
    fn finish(self) -> Option<Listing> {
        let Some(encoder) = self.packed else { return Some(Listing::Plain(self.plain)) };
        let packed = encoder.finish().ok()?;
        (!self.overflow && packed.len() <= MAX_LISTING).then_some(Listing::Zstd(packed))
    }
}

impl Write for BoundedZstd {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.overflow {
            return Ok(bytes.len());
        }
        if let Some(encoder) = &mut self.packed {
            encoder.write_all(bytes)?;
            if encoder.get_ref().len() > MAX_LISTING {
                self.overflow = true;
            }
        } else {
            self.plain.extend_from_slice(bytes);
            if self.plain.len() > Self::PLAIN {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
                encoder.write_all(&std::mem::take(&mut self.plain))?;
                self.packed = Some(encoder);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Proof that the gateway holds, in quarantine and for this submitter, bytes that are exactly the NAR that was claimed.
#[derive(Debug, Clone)]
pub struct NarIntact {
    path: StorePath,
    nar_hash: Sha256,
    nar: Arc<super::quarantine::Quarantined>,
}

impl NarIntact {
    /// Compares what the pass found with what was signed.
    pub fn check(
        signed: &SignatureValid,
        nar: &Arc<super::quarantine::Quarantined>,
    ) -> Result<Self, IntakeError> {
        let (claim, found) = (signed.claim(), &nar.examined);
        if found.nar_size != claim.nar_size {
            return Err(IntakeError::Size { found: found.nar_size, claimed: claim.nar_size });
        }
        if found.nar_hash != claim.nar_hash {
            return Err(IntakeError::Hash { found: found.nar_hash, claimed: claim.nar_hash });
        }
        Ok(Self { path: claim.path.clone(), nar_hash: claim.nar_hash, nar: nar.clone() })
    }

    pub fn path(&self) -> &StorePath {
        &self.path
    }
    pub const fn nar_hash(&self) -> Sha256 {
        self.nar_hash
    }
    pub fn nar(&self) -> &Arc<super::quarantine::Quarantined> {
        &self.nar
    }
}

#[cfg(test)]
#[path = "intake/tests.rs"]
mod tests;
