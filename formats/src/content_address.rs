//! Store paths that are a hash of their contents: the `CA:` field, the path that follows from it, and the streaming
//! hashes that contents are addressed by. Knows nothing of NAR's grammar: the caller measures the bytes and says what it found.
//! Rules as in Nix's `src/libstore/{content-address,store-dir-config}.cc`.

use std::{fmt, str::FromStr};

use crate::{
    HashAlgo, NixHash, Sha256, StorePath,
    hash::HashError,
    store_path::{STORE_DIR, StorePathError, shown},
};

mod hashers;
#[cfg(test)]
mod tests;

pub use hashers::{ContentHasher, SelfReferenceHasher, SelfReferenceHashes};

/// Most self-references that [`SelfReferenceHasher`] remembers: their offsets are hashed after the bytes, so each one
/// costs memory until the end.
pub const MAX_SELF_REFERENCES: usize = 1 << 20;

/// What of a file system object is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// The contents of one regular file that isn't executable.
    Flat,
    /// The NAR.
    Recursive,
    /// The contents of one file, as `builtins.toFile` and .drv files have it; may refer to other paths.
    Text,
    /// The hash that git gives to the tree or blob.
    Git,
}

impl Method {
    /// What Nix writes before the algorithm: nothing, `r:`, `text:` or `git:`.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Flat => "",
            Self::Recursive => "r:",
            Self::Text => "text:",
            Self::Git => "git:",
        }
    }

    /// Splits `r:sha256` and the like into a method and what follows it.
    pub fn split(text: &str) -> (Self, &str) {
        for method in [Self::Recursive, Self::Text, Self::Git] {
            if let Some(rest) = text.strip_prefix(method.prefix()) {
                return (method, rest);
            }
        }
        (Self::Flat, text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentAddressError {
    #[error("`{0}` is not a content address as Nix prints it (`text:sha256:…`, `fixed:r:sha256:…`)")]
    Malformed(String),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error(transparent)]
    Name(#[from] StorePathError),
    #[error("a `{method}` address can't use {algo}")]
    Algorithm { method: &'static str, algo: &'static str },
    #[error("a path addressed by `{0}` can't have references")]
    References(String),
    #[error("a path addressed by `{0}` can't refer to itself")]
    SelfReference(String),
    #[error("the path refers to itself more than {MAX_SELF_REFERENCES} times")]
    TooManySelfReferences,
    #[error("the contents of `{0}` are addressed by git's hash, which can't be recomputed here")]
    Git(StorePath),
    #[error("`{path}` should be `{computed}` by its content address")]
    Path { path: StorePath, computed: StorePath },
    #[error("the contents of `{path}` hash to `{computed}`, the content address says `{claimed}`")]
    Contents { path: StorePath, claimed: NixHash, computed: NixHash },
    #[error("`{0}` is addressed by the contents of one plain file, but is something else")]
    NotPlainFile(StorePath),
    #[error("`{0}` was measured in another way than its content address asks for")]
    Measure(StorePath),
}

impl ContentAddressError {
    /// The stable code for answers and logs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Hash(_) | Self::Algorithm { .. } => "content-address-malformed",
            Self::Name(_) => "store-path-invalid",
            Self::Git(_) => "content-address-unsupported",
            Self::TooManySelfReferences => "content-address-too-many-self-references",
            Self::References(_)
            | Self::SelfReference(_)
            | Self::Path { .. }
            | Self::Contents { .. }
            | Self::NotPlainFile(_)
            | Self::Measure(_) => "content-address-mismatch",
        }
    }
}

/// A content address: the `CA:` field of a narinfo. Only combinations that Nix has can be made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentAddress {
    method: Method,
    hash: NixHash,
}

impl ContentAddress {
    /// Text goes with sha256 only, git with sha1 and sha256.
    pub fn new(method: Method, hash: NixHash) -> Result<Self, ContentAddressError> {
        let fits = match method {
            Method::Flat | Method::Recursive => true,
            Method::Text => hash.algo() == HashAlgo::Sha256,
            Method::Git => matches!(hash.algo(), HashAlgo::Sha1 | HashAlgo::Sha256),
        };
        if fits {
            Ok(Self { method, hash })
        } else {
            Err(ContentAddressError::Algorithm { method: method.prefix(), algo: hash.algo().name() })
        }
    }

    /// Parses the one spelling that Nix prints: base 32 digits, no other prefix.
    pub fn parse(text: &str) -> Result<Self, ContentAddressError> {
        let malformed = || ContentAddressError::Malformed(shown(text.as_bytes()));
        let (method, rest) = match text.strip_prefix("fixed:") {
            Some(rest) => match Method::split(rest) {
                (Method::Text, _) => return Err(malformed()),
                split => split,
            },
            None => (Method::Text, text.strip_prefix("text:").ok_or_else(malformed)?),
        };
        let parsed = Self::new(method, NixHash::parse(rest)?)?;
        if parsed.to_string() == text { Ok(parsed) } else { Err(malformed()) }
    }

    pub const fn method(&self) -> Method {
        self.method
    }

    pub const fn hash(&self) -> &NixHash {
        &self.hash
    }

    /// Whether others can make contents with the same address: policy's `content-address-weak` instead of
    /// `content-address`. See also [`Form::WithoutPositions`].
    pub const fn is_weak(&self) -> bool {
        self.hash.algo().is_weak()
    }

    /// Whether a path with this address can have references at all: only text and recursive sha256.
    pub fn may_have_references(&self) -> bool {
        self.method == Method::Text
            || (self.method == Method::Recursive && self.hash.algo() == HashAlgo::Sha256)
    }

    /// What the caller has to measure of the bytes, so that [`check_path`] can decide.
    pub fn measure(&self, self_reference: bool) -> Measure {
        match self.method {
            Method::Flat | Method::Text => Measure::File(self.hash.algo()),
            Method::Recursive if self_reference => Measure::NarModuloSelf,
            Method::Recursive => Measure::Nar(self.hash.algo()),
            Method::Git => Measure::Git,
        }
    }

    /// As [`store_path_for`], for addresses without references.
    pub fn path(&self, name: &str) -> Result<StorePath, ContentAddressError> {
        store_path_for(name, self, [], false)
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fixed = if self.method == Method::Text { "" } else { "fixed:" };
        write!(f, "{fixed}{}{}", self.method.prefix(), self.hash)
    }
}

impl FromStr for ContentAddress {
    type Err = ContentAddressError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

pub(crate) fn sha256_hash(digest: Sha256) -> NixHash {
    // a sha256 has the length that is asked for
    NixHash::new(HashAlgo::Sha256, &digest.0).expect("32 bytes")
}

/// The store path of `digest` under a type (`text:…`, `source:…`, `output:out`): what all paths are made by.
pub(crate) fn make_store_path(kind: &str, digest: &Sha256, name: &str) -> Result<StorePath, StorePathError> {
    let whole = Sha256::of(format!("{kind}:sha256:{}:{STORE_DIR}:{name}", digest.hex()).as_bytes());
    let mut folded = [0u8; 20];
    for (i, byte) in whole.0.iter().enumerate() {
        folded[i % 20] ^= byte;
    }
    StorePath::from_digest(&folded, name)
}

/// The store path that contents with this address have. `references` are those to other paths, in any order; one to the
/// path itself is told by `self_reference`.
pub fn store_path_for<'a>(
    name: &str,
    address: &ContentAddress,
    references: impl IntoIterator<Item = &'a StorePath>,
    self_reference: bool,
) -> Result<StorePath, ContentAddressError> {
    let mut references: Vec<&StorePath> = references.into_iter().collect();
    references.sort_unstable();
    references.dedup();
    if !address.may_have_references() && !references.is_empty() {
        return Err(ContentAddressError::References(address.to_string()));
    }
    if self_reference && (!address.may_have_references() || address.method == Method::Text) {
        return Err(ContentAddressError::SelfReference(address.to_string()));
    }
    let sha256 = || <[u8; 32]>::try_from(address.hash.digest()).ok().map(Sha256);
    let (mut kind, digest) = match (address.method, address.hash.algo(), sha256()) {
        (Method::Text, _, Some(digest)) => ("text".to_owned(), digest),
        (Method::Recursive, HashAlgo::Sha256, Some(digest)) => ("source".to_owned(), digest),
        (method, algo, _) => {
            let inner = format!("fixed:out:{}{}:{}:", method.prefix(), algo.name(), address.hash.hex());
            ("output:out".to_owned(), Sha256::of(inner.as_bytes()))
        }
    };
    for reference in references {
        kind.push(':');
        kind.push_str(&reference.absolute());
    }
    if self_reference {
        kind.push_str(":self");
    }
    Ok(make_store_path(&kind, &digest, name)?)
}

/// What to measure of a path's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// The hash of the contents of the one regular file that the NAR consists of, and whether it is executable.
    File(HashAlgo),
    /// The hash of the NAR's bytes.
    Nar(HashAlgo),
    /// [`SelfReferenceHasher`] over the NAR's bytes.
    NarModuloSelf,
    /// Not computed here.
    Git,
}

/// What was measured, always of the bytes that were received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Measured {
    /// The NAR is one regular file.
    File {
        hash: NixHash,
        executable: bool,
    },
    /// The NAR is something else than one regular file, where [`Measure::File`] was asked for.
    NotFile,
    Nar(NixHash),
    NarModuloSelf(SelfReferenceHashes),
}

/// How the contents met the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// Without self-references.
    Plain,
    /// With self-references, whose offsets are hashed too.
    WithPositions,
    /// With self-references, whose offsets aren't hashed (Nix 2.17 to 2.34): others can make contents with the same
    /// hash by moving a self-reference to where NULs are, so policy treats this as `content-address-weak`.
    WithoutPositions,
}

/// Checks that the path is what its contents hash to, for a claimed address. `references` are all of the path's, its own
/// among them if it refers to itself. The address is only a hint of which rule applies: both the path and the bytes
/// must follow from it.
pub fn check_path<'a>(
    path: &StorePath,
    address: &ContentAddress,
    references: impl IntoIterator<Item = &'a StorePath>,
    measured: &Measured,
) -> Result<Form, ContentAddressError> {
    let mut self_reference = false;
    let others: Vec<&StorePath> = references
        .into_iter()
        .filter(|reference| {
            let own = *reference == path;
            self_reference |= own;
            !own
        })
        .collect();
    let computed = store_path_for(path.name(), address, others, self_reference)?;
    if computed != *path {
        return Err(ContentAddressError::Path { path: path.clone(), computed });
    }
    let (found, form) = match (address.measure(self_reference), measured) {
        (Measure::Git, _) => return Err(ContentAddressError::Git(path.clone())),
        // The address binds the contents only, so that an executable would be a second NAR for the same path.
        (Measure::File(_), Measured::NotFile | Measured::File { executable: true, .. }) => {
            return Err(ContentAddressError::NotPlainFile(path.clone()));
        }
        (Measure::File(algo), Measured::File { hash, .. }) if hash.algo() == algo => {
            (hash.clone(), Form::Plain)
        }
        (Measure::Nar(algo), Measured::Nar(hash)) if hash.algo() == algo => (hash.clone(), Form::Plain),
        (Measure::NarModuloSelf, Measured::NarModuloSelf(hashes)) => {
            let weak = hashes.without_positions.0 == address.hash.digest();
            let with = hashes.with_positions.0 == address.hash.digest();
            let (digest, form) = if weak && !with {
                (hashes.without_positions, Form::WithoutPositions)
            } else {
                (hashes.with_positions, Form::WithPositions)
            };
            (sha256_hash(digest), form)
        }
        _ => return Err(ContentAddressError::Measure(path.clone())),
    };
    if found == address.hash {
        Ok(form)
    } else {
        let claimed = address.hash.clone();
        Err(ContentAddressError::Contents { path: path.clone(), claimed, computed: found })
    }
}
