//! Hashes in all the spellings that Nix reads: base 16, Nix's base 32, base 64, with `algo:` before, or as SRI
//! (`algo-base64`). Each spelling of a hash is decoded strictly; what is printed is always one fixed spelling.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::Digest;

use crate::{base32, store_path::shown};

/// The algorithms that store paths and derivations know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgo {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

impl HashAlgo {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512].into_iter().find(|a| a.name() == name)
    }

    /// Length of the digest, in bytes.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Whether collisions can be made: such hashes identify contents only against accident.
    pub const fn is_weak(self) -> bool {
        matches!(self, Self::Md5 | Self::Sha1)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    #[error("`{0}` names no hash algorithm; known are md5, sha1, sha256, sha512")]
    Algorithm(String),
    #[error("`{text}` is not a {algo} hash in base 16, base 32 or base 64")]
    Digits { text: String, algo: &'static str },
    #[error("`{0}` names no algorithm; write it as `sha256:…` or `sha256-…`")]
    NoAlgorithm(String),
}

/// A hash of any algorithm.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NixHash {
    algo: HashAlgo,
    digest: Vec<u8>,
}

impl NixHash {
    /// `None` when the length is not the algorithm's.
    pub fn new(algo: HashAlgo, digest: &[u8]) -> Option<Self> {
        (digest.len() == algo.digest_len()).then(|| Self { algo, digest: digest.to_vec() })
    }

    pub const fn algo(&self) -> HashAlgo {
        self.algo
    }

    pub fn digest(&self) -> &[u8] {
        &self.digest
    }

    /// Parses `algo:digits` (base 16, 32 or 64) or SRI `algo-base64`.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        if let Some((algo, digits)) = text.split_once(':') {
            return Self::parse_digits(algo_of(algo)?, digits);
        }
        if let Some((algo, digits)) = text.split_once('-') {
            let algo = algo_of(algo)?;
            return STANDARD
                .decode(digits)
                .ok()
                .and_then(|d| Self::new(algo, &d))
                .ok_or_else(|| HashError::Digits { text: shown(digits.as_bytes()), algo: algo.name() });
        }
        Err(HashError::NoAlgorithm(shown(text.as_bytes())))
    }

    /// Parses digits whose algorithm is known from elsewhere; the length tells the base.
    pub fn parse_digits(algo: HashAlgo, digits: &str) -> Result<Self, HashError> {
        let n = algo.digest_len();
        let digest = if digits.len() == n * 2 {
            hex_decode(digits)
        } else if digits.len() == base32::encoded_len(n) {
            match algo {
                HashAlgo::Md5 => base32::decode::<16>(digits.as_bytes()).map(|d| d.to_vec()),
                HashAlgo::Sha1 => base32::decode::<20>(digits.as_bytes()).map(|d| d.to_vec()),
                HashAlgo::Sha256 => base32::decode::<32>(digits.as_bytes()).map(|d| d.to_vec()),
                HashAlgo::Sha512 => base32::decode::<64>(digits.as_bytes()).map(|d| d.to_vec()),
            }
        } else if digits.len() == n.div_ceil(3) * 4 {
            STANDARD.decode(digits).ok()
        } else {
            None
        };
        digest
            .and_then(|d| Self::new(algo, &d))
            .ok_or_else(|| HashError::Digits { text: shown(digits.as_bytes()), algo: algo.name() })
    }

    /// Lower-case hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> String {
        hex_encode(&self.digest)
    }

    /// Base 32 digits, without the algorithm.
    pub fn base32(&self) -> String {
        base32::encode(&self.digest)
    }

    /// `algo-base64`.
    pub fn sri(&self) -> String {
        format!("{}-{}", self.algo.name(), STANDARD.encode(&self.digest))
    }
}

impl From<Sha256> for NixHash {
    fn from(digest: Sha256) -> Self {
        Self { algo: HashAlgo::Sha256, digest: digest.0.to_vec() }
    }
}

/// `algo:base32`, as narinfo and Nix's database print hashes.
impl fmt::Display for NixHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algo.name(), self.base32())
    }
}

impl fmt::Debug for NixHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn algo_of(name: &str) -> Result<HashAlgo, HashError> {
    HashAlgo::from_name(name).ok_or_else(|| HashError::Algorithm(shown(name.as_bytes())))
}

/// A sha256 digest: NAR hashes, file hashes, digests of announcements and leaves. Spelt `sha256:base32`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Parses any spelling of a sha256.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        let hash = NixHash::parse(text)?;
        <[u8; 32]>::try_from(hash.digest())
            .ok()
            .filter(|_| hash.algo() == HashAlgo::Sha256)
            .map(Self)
            .ok_or_else(|| HashError::Digits { text: shown(text.as_bytes()), algo: "sha256" })
    }

    /// 52 base 32 digits.
    pub fn base32(&self) -> String {
        base32::encode(&self.0)
    }

    /// Parses exactly 52 base 32 digits.
    pub fn from_base32(digits: &str) -> Option<Self> {
        base32::decode(digits.as_bytes()).map(Self)
    }

    /// 64 lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        hex_encode(&self.0)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.base32())
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As JSON: `sha256:` and 52 base 32 digits; no other spelling is read.
impl Serialize for Sha256 {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.strip_prefix("sha256:").and_then(Self::from_base32).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{}` is not `sha256:` and 52 base 32 digits",
                shown(text.as_bytes())
            ))
        })
    }
}

/// Lower-case hexadecimal digits.
pub fn hex_encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)] as char, DIGITS[usize::from(b & 15)] as char])
        .collect()
}

/// Hexadecimal digits of either case; `None` when odd in number or not digits.
pub fn hex_decode(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16);
    text.len().is_multiple_of(2).then_some(())?;
    text.as_bytes().chunks_exact(2).map(|p| Some((digit(p[0])? * 16 + digit(p[1])?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(HashAlgo::Md5)]
    #[case(HashAlgo::Sha1)]
    #[case(HashAlgo::Sha256)]
    #[case(HashAlgo::Sha512)]
    fn every_spelling_reads_as_the_same_hash(#[case] algo: HashAlgo) {
        let bytes: Vec<u8> = (0..algo.digest_len() as u8).map(|i| i.wrapping_mul(37) ^ 0xa5).collect();
        let hash = NixHash::new(algo, &bytes).unwrap();
        let name = algo.name();
        for text in [
            format!("{name}:{}", hash.hex()),
            format!("{name}:{}", hash.hex().to_uppercase()),
            format!("{name}:{}", hash.base32()),
            format!("{name}:{}", STANDARD.encode(&bytes)),
            hash.sri(),
            hash.to_string(),
        ] {
            assert_eq!(NixHash::parse(&text), Ok(hash.clone()), "{text}");
        }
    }

    #[rstest]
    #[case("")]
    #[case("sha256")]
    #[case("sha256:")]
    #[case("sha3:00")]
    #[case("sha256-0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73")]
    #[case("sha256:2mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73")]
    #[case("sha256: mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73")]
    fn bad(#[case] text: &str) {
        assert!(NixHash::parse(text).is_err());
    }
}
