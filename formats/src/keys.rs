//! Nix's ed25519 keys and signatures in Nix's own spelling: `NAME:base64`. Knows nothing of who may use a key for what.
//!
//! Keys are told apart by their bytes; the name is only a label that a signature carries (Nix's
//! `src/libstore/crypto.cc`).

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::store_path::shown;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("`{0}` is not a key name: 1 to 100 of the characters a-z, A-Z, 0-9, `.`, `_`, `+`, `-`")]
    Name(String),
    #[error("`{0}` has no `:` between the key's name and its base 64")]
    NoColon(String),
    #[error("the {what} `{name}` is not {bytes} bytes in base 64")]
    Length { what: &'static str, name: String, bytes: usize },
    #[error("the public key `{0}` is not a usable point of the curve")]
    Weak(String),
    #[error("the secret key `{0}` has a public half that is not its own")]
    Halves(String),
    #[error("the signature by `{0}` does not fit what it should sign")]
    Mismatch(String),
}

/// The name in front of a key or signature: 1 to 100 characters of a safe alphabet, so that it can stand in a file
/// name, a log line and a narinfo.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct KeyName(String);

impl KeyName {
    pub fn new(name: &str) -> Result<Self, KeyError> {
        let good = !name.is_empty()
            && name.len() <= 100
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b));
        if good { Ok(Self(name.to_owned())) } else { Err(KeyError::Name(shown(name.as_bytes()))) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyName {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// Splits `NAME:base64` and decodes exactly `N` bytes.
fn split<const N: usize>(what: &'static str, text: &str) -> Result<(KeyName, [u8; N]), KeyError> {
    let (name, digits) = text.split_once(':').ok_or_else(|| KeyError::NoColon(shown(text.as_bytes())))?;
    let name = KeyName::new(name)?;
    let mut out = [0u8; N];
    match STANDARD.decode_slice(digits, &mut out) {
        Ok(n) if n == N => Ok((name, out)),
        _ => Err(KeyError::Length { what, name: name.0, bytes: N }),
    }
}

/// A public key with its name, as `trusted-public-keys` has it.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: KeyName,
    key: VerifyingKey,
}

impl PublicKey {
    /// Parses `NAME:base64(32 bytes)`. Refuses points of small order, for which signatures prove nothing.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split::<32>("public key", text)?;
        Self::from_bytes(name, &bytes)
    }

    pub fn from_bytes(name: KeyName, bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(bytes)
            .ok()
            .filter(|k| !k.is_weak())
            .ok_or_else(|| KeyError::Weak(name.0.clone()))?;
        Ok(Self { name, key })
    }

    pub const fn name(&self) -> &KeyName {
        &self.name
    }

    pub fn bytes(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// Verifies strictly (no malleable signatures). The signature's name is not compared: keys are known by bytes.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), KeyError> {
        self.key
            .verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.bytes))
            .map_err(|_| KeyError::Mismatch(signature.name.0.clone()))
    }

    /// Verifies many signatures by this key; the error has the index of the first that fails.
    ///
    /// Batches are about twice as fast as single checks. The batch equation is the cofactorless one with random
    /// coefficients: what it refuses is checked again one by one, so that the culprit is named.
    pub fn verify_many(&self, messages: &[&[u8]], signatures: &[Signature]) -> Result<(), usize> {
        let parsed: Vec<_> =
            signatures.iter().map(|s| ed25519_dalek::Signature::from_bytes(&s.bytes)).collect();
        let keys = vec![self.key; parsed.len()];
        if messages.len() > 3 && ed25519_dalek::verify_batch(messages, &parsed, &keys).is_ok() {
            return Ok(());
        }
        for (i, (message, signature)) in messages.iter().zip(&parsed).enumerate() {
            self.key.verify_strict(message, signature).map_err(|_| i)?;
        }
        Ok(())
    }
}

/// `NAME:base64`.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A secret key. Its bytes are never printed by `Debug`, and wiped when it goes.
pub struct SecretKey {
    name: KeyName,
    key: SigningKey,
}

impl SecretKey {
    /// Makes a key from 32 random bytes, which the caller takes from the system's generator.
    pub fn from_seed(name: KeyName, seed: &[u8; 32]) -> Self {
        Self { name, key: SigningKey::from_bytes(seed) }
    }

    /// Parses Nix's secret key file, `NAME:base64(seed ‖ public)`; white space at its end is let pass.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim_ascii_end();
        // the text is secret: errors may name the key's name, never what follows it
        let Some((name, _)) = text.split_once(':') else {
            return Err(KeyError::NoColon("(secret key)".into()));
        };
        let shown_name = shown(name.as_bytes());
        let (name, bytes) = split::<64>("secret key", text)?;
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| KeyError::Halves(shown_name))?;
        Ok(Self { name, key })
    }

    /// The text of Nix's secret key file, without a line end.
    pub fn to_file_text(&self) -> String {
        format!("{}:{}", self.name, STANDARD.encode(self.key.to_keypair_bytes()))
    }

    pub const fn name(&self) -> &KeyName {
        &self.name
    }

    pub fn public(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature { name: self.name.clone(), bytes: self.key.sign(message).to_bytes() }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.name)
    }
}

/// A signature with the name of the key that is said to have made it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signature {
    pub name: KeyName,
    pub bytes: [u8; 64],
}

impl Signature {
    /// Parses `NAME:base64(64 bytes)`.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split::<64>("signature", text)?;
        Ok(Self { name, bytes })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SecretKey {
        SecretKey::from_seed(KeyName::new("alice-1").unwrap(), &[n; 32])
    }

    #[test]
    fn file_text_round_trip_and_foreign_half() {
        let secret = key(3);
        let text = secret.to_file_text();
        assert_eq!(SecretKey::parse(&format!("{text}\n")).unwrap().public(), secret.public());
        let (_, digits) = text.split_once(':').unwrap();
        let mut bytes = STANDARD.decode(digits).unwrap();
        bytes[40] ^= 1;
        let forged = format!("alice-1:{}", STANDARD.encode(&bytes));
        assert!(matches!(SecretKey::parse(&forged), Err(KeyError::Halves(_))));
    }

    #[test]
    fn small_order_points_are_refused() {
        // the neutral element: every message has a valid signature under it
        let mut neutral = [0u8; 32];
        neutral[0] = 1;
        let text = format!("x:{}", STANDARD.encode(neutral));
        assert!(matches!(PublicKey::parse(&text), Err(KeyError::Weak(_))));
    }

    #[test]
    fn verify_many_names_the_first_bad_one() {
        let secret = key(9);
        let messages: Vec<Vec<u8>> = (0u8..20).map(|i| vec![i; 30]).collect();
        let mut signatures: Vec<_> = messages.iter().map(|m| secret.sign(m)).collect();
        let views: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        assert_eq!(secret.public().verify_many(&views, &signatures), Ok(()));
        signatures[13].bytes[5] ^= 1;
        signatures[17].bytes[5] ^= 1;
        assert_eq!(secret.public().verify_many(&views, &signatures), Err(13));
        assert_eq!(key(8).public().verify_many(&views, &signatures), Err(0));
    }

    #[test]
    fn bad_spellings() {
        for text in ["", "a", "a:", ":AAAA", "a b:AAAA", "a:!!!!", "a:AAAA"] {
            assert!(PublicKey::parse(text).is_err(), "{text}");
            assert!(Signature::parse(text).is_err(), "{text}");
            assert!(SecretKey::parse(text).is_err(), "{text}");
        }
    }
}
