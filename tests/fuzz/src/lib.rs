//! What the fuzz targets drive.
//!
//! `formats` and `policies` are linked. Of the gateway and the client only those files are compiled in that read bytes of
//! others ([`push`], [`nix`]) or bound them ([`limits`], [`config`]), from where they are and as they are: linking the crates would build TLS, SQLite and two HTTP
//! stacks for nothing. What these files ask of the rest of the gateway is answered by a few lines here
//! ([`app`], [`blobs`], [`db`], [`error`], [`push::session`]).

mod alloc;
pub mod app;
pub mod blobs;
#[path = "../../../gateway/src/config.rs"]
#[allow(dead_code, reason = "the targets need a part of it")]
pub mod config;
pub mod db;
pub mod error;
#[path = "../../../gateway/src/limits.rs"]
#[allow(dead_code, reason = "the targets need a part of it")]
pub mod limits;
pub mod push;

#[path = "../../../client/src/nix/mod.rs"]
#[allow(dead_code, reason = "the targets need a part of it")]
pub mod nix;

use pushgate_formats::{
    Sha256,
    keys::{KeyName, SecretKey},
};

/// Cuts an input into pieces whose sizes depend on nothing but the input: so a finding stays one, and a seed is just the
/// bytes that it is about.
pub fn pieces(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut state = number(data) | 1;
    std::iter::from_fn(move || {
        if data.is_empty() {
            return None;
        }
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        // mostly small, now and then longer than any buffer
        let most = 1 << (state >> 60).min(12);
        let size = 1 + (state >> 32) as usize % most;
        let (piece, rest) = data.split_at(size.min(data.len()));
        data = rest;
        Some(piece)
    })
}

/// A number that follows from the input, for choices that a seed's bytes shouldn't have to spell out.
pub fn number(data: &[u8]) -> u64 {
    // FNV-1a: a hash of cryptographic strength would be most of a short run
    data.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

/// The key of the one who sends what is fuzzed.
pub fn key() -> SecretKey {
    SecretKey::from_seed(KeyName::new("fuzz-1").expect("a key's name"), &[7; 32])
}

/// Whether a code is spelt as all codes are.
pub fn assert_code(code: &str) {
    assert!(!code.is_empty() && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{code}");
}

/// What is shown of an error must neither grow with the input nor hold control characters.
pub fn assert_message(error: &dyn std::fmt::Display) {
    let text = error.to_string();
    assert!(text.len() < 4000, "{} bytes of message", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// sha256 of bytes.
pub fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256::of(bytes)
}
