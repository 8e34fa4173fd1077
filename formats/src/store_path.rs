//! Store paths: `/nix/store/HASH-NAME`, parsed once and then only ever a [`StorePath`]. Knows nothing of what lies at
//! the path. Rules as in Nix's `src/libstore/path.cc` (`checkName`) and NIX's `store-path` manual page.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::base32;

/// The one store directory that pushgate handles: it is part of every store path's hash.
pub const STORE_DIR: &str = "/nix/store";
/// Characters in the hash part: 20 bytes in base 32.
pub const HASH_CHARS: usize = 32;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 211;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    #[error("`{0}` is not below {STORE_DIR}")]
    OutsideStore(String),
    #[error("`{0}` has no 32-character hash followed by `-`")]
    Hash(String),
    #[error("`{path}`: {why}")]
    Name { path: String, why: &'static str },
}

/// What hostile text is shown as in a message: bounded, control characters escaped.
pub(crate) fn shown(text: &[u8]) -> String {
    const MOST: usize = 240;
    let cut = &text[..text.len().min(MOST)];
    let mut out = cut.escape_ascii().to_string();
    if text.len() > MOST {
        out.push('…');
    }
    out
}

/// A valid store path. Ordered as its text is, which is the order that Nix's formats want references in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    /// `HASH-NAME`, validated.
    base: Arc<str>,
}

impl StorePath {
    /// Parses an absolute path `/nix/store/HASH-NAME` (nothing after the name).
    pub fn parse(absolute: &str) -> Result<Self, StorePathError> {
        let base = absolute
            .strip_prefix(STORE_DIR)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| StorePathError::OutsideStore(shown(absolute.as_bytes())))?;
        Self::from_base_name(base)
    }

    /// Parses `HASH-NAME`, as narinfo's `References` has it.
    pub fn from_base_name(base: &str) -> Result<Self, StorePathError> {
        let bytes = base.as_bytes();
        if bytes.len() < HASH_CHARS + 2
            || bytes[HASH_CHARS] != b'-'
            || !bytes[..HASH_CHARS].iter().all(|b| base32::is_digit(*b))
        {
            return Err(StorePathError::Hash(shown(bytes)));
        }
        check_name(&base[HASH_CHARS + 1..])
            .map_err(|why| StorePathError::Name { path: shown(bytes), why })?;
        Ok(Self { base: base.into() })
    }

    /// Puts a path together from its 20-byte digest and a name.
    pub fn from_digest(digest: &[u8; 20], name: &str) -> Result<Self, StorePathError> {
        Self::from_base_name(&format!("{}-{name}", base32::encode(digest)))
    }

    /// `HASH-NAME`.
    pub fn base_name(&self) -> &str {
        &self.base
    }

    /// The 32 characters of the hash part.
    pub fn hash_part(&self) -> &str {
        &self.base[..HASH_CHARS]
    }

    /// The 20 bytes of the hash part.
    pub fn digest(&self) -> [u8; 20] {
        // every 32 digits make 20 bytes without spare bits, and the digits were checked when this was made
        base32::decode(self.hash_part().as_bytes()).expect("checked digits")
    }

    /// The name after the hash.
    pub fn name(&self) -> &str {
        &self.base[HASH_CHARS + 1..]
    }

    /// `/nix/store/HASH-NAME`.
    pub fn absolute(&self) -> String {
        format!("{STORE_DIR}/{}", self.base)
    }

    /// Whether the name ends in `.drv`.
    pub fn is_derivation(&self) -> bool {
        self.name().ends_with(".drv")
    }
}

/// Checks a store path's name: `[0-9a-zA-Z+\-._?=]`, 1 to 211 bytes, not `.`, `..`, nor starting `.-` or `..-`.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("the name is empty");
    }
    if name.len() > MAX_NAME {
        return Err("the name is longer than 211 bytes");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b)) {
        return Err("the name has a character that store paths can't have");
    }
    if name == "." || name == ".." || name.starts_with(".-") || name.starts_with("..-") {
        return Err("the name is `.` or `..`, alone or before a dash");
    }
    Ok(())
}

/// Whether 32 characters are a valid hash part.
pub fn is_hash_part(text: &str) -> bool {
    text.len() == HASH_CHARS && text.bytes().all(base32::is_digit)
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE_DIR}/{}", self.base)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

impl std::str::FromStr for StorePath {
    type Err = StorePathError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
}

/// As JSON: the absolute path.
impl Serialize for StorePath {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StorePath {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const HASH: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr";

    #[rstest]
    #[case("glibc-2.40")]
    #[case("a")]
    #[case("+-._?=0Z")]
    #[case(".a")]
    #[case("...")]
    fn good_names(#[case] name: &str) {
        let path = StorePath::from_base_name(&format!("{HASH}-{name}")).unwrap();
        assert_eq!(path.name(), name);
        assert_eq!(StorePath::parse(&path.absolute()), Ok(path.clone()));
        assert_eq!(StorePath::from_digest(&path.digest(), name), Ok(path));
    }

    #[rstest]
    #[case("")]
    #[case(".")]
    #[case("..")]
    #[case(".-a")]
    #[case("..-a")]
    #[case("a/b")]
    #[case("a\0")]
    #[case("a\n")]
    #[case("gl\u{456}bc")]
    #[case("a b")]
    fn bad_names(#[case] name: &str) {
        assert!(StorePath::from_base_name(&format!("{HASH}-{name}")).is_err());
    }

    #[test]
    fn lengths() {
        let longest = format!("{HASH}-{}", "a".repeat(211));
        assert!(StorePath::from_base_name(&longest).is_ok());
        assert!(matches!(
            StorePath::from_base_name(&format!("{longest}a")),
            Err(StorePathError::Name { .. })
        ));
    }

    #[rstest]
    #[case("/nix/store")]
    #[case("/nix/store/")]
    #[case("/nix/storex/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a")]
    #[case("/nix/store//0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a")]
    #[case("/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5p-aa")]
    #[case("/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pe-a")]
    #[case("/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a/bin")]
    #[case("/gnu/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a")]
    fn bad_paths(#[case] path: &str) {
        assert!(StorePath::parse(path).is_err());
    }
}
