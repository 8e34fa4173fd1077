//! Rows of the rebuild sample: seeds by epoch, draws, and what weighs in them.

use pushgate_formats::{
    Sha256, StorePath,
    sample::{Draw, Seed},
};

/// An epoch with its seed: secret until it is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRow {
    pub number: u64,
    pub seed: Seed,
    /// Seconds since 1970.
    pub opened: u64,
    pub closed: Option<u64>,
}

/// What is known of a submitter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reputation {
    /// Published with a rebuild: what isn't known to be right doesn't end a probation.
    pub claims: u32,
    /// Published with a rebuild, since the last confirmed mismatch.
    pub matches: u32,
    /// Whether a mismatch was ever confirmed.
    pub mismatched: bool,
}

/// A draw that is made.
#[derive(Debug, Clone)]
pub struct NewDraw {
    pub identity: i64,
    pub draw: Draw,
}

/// The draw of a claim.
#[derive(Debug, Clone)]
pub struct DrawRow {
    pub path: StorePath,
    pub nar_hash: Sha256,
    pub drawn: bool,
}
