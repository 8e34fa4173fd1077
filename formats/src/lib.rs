//! Nix formats, signatures and pushgate's wire types. Pure: takes bytes, gives values or errors; opens no file, no
//! socket, asks no clock.

pub mod acts;
pub mod api;
pub mod attestation;
pub mod base32;
pub mod content_address;
pub mod date;
pub mod derivation;
pub mod difference;
pub mod dsse;
pub mod hash;
pub mod jobs;
pub mod keys;
pub mod log_leaf;
pub mod nar;
pub mod narinfo;
#[cfg(test)]
mod properties;
pub mod refscan;
pub mod review;
pub mod sample;
pub mod store_path;

pub use hash::{HashAlgo, NixHash, Sha256};
pub use store_path::StorePath;
