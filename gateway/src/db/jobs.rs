//! Rows of what verifiers are asked to build and of what came of it. Knows nothing of what follows from them.

use std::collections::BTreeSet;

use pushgate_formats::{
    Sha256, StorePath,
    jobs::{BuiltOutput, JobLimits, Purpose},
    keys::{PublicKey, Signature},
};

use super::{DbError, Result};

/// A job to be given out.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub id: String,
    pub cache: String,
    pub derivation: StorePath,
    /// How many jobs of this derivation there were before: asking twice makes one.
    pub turn: u32,
    pub purpose: Purpose,
    /// Lower ones first.
    pub priority: u8,
    pub system: String,
    pub features: BTreeSet<String>,
    /// Whose inputs it may use; `None`: only what is public.
    pub identity: Option<i64>,
    /// Whose verifiers would count for nothing.
    pub except_owner: Option<String>,
    /// Of a second build: who made the first.
    pub only_by: Option<i64>,
    pub limits: JobLimits,
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    Open,
    Leased,
    Done,
    Failed,
    Cancelled,
}

impl JobState {
    const ALL: [Self; 5] = [Self::Open, Self::Leased, Self::Done, Self::Failed, Self::Cancelled];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Leased => "leased",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| DbError::Corrupt { what: "a job's state", value: text.into() })
    }

    /// Whether it is still to be done.
    pub const fn is_pending(self) -> bool {
        matches!(self, Self::Open | Self::Leased)
    }
}

/// A job as it is stored.
#[derive(Debug, Clone)]
pub struct JobRow {
    pub id: String,
    pub cache: String,
    pub derivation: StorePath,
    pub turn: u32,
    pub purpose: Purpose,
    pub system: String,
    pub identity: Option<i64>,
    pub except_owner: Option<String>,
    pub only_by: Option<i64>,
    pub limits: JobLimits,
    pub state: JobState,
    pub attempts: u32,
    /// sha256 of the lease's token.
    pub token: Option<Sha256>,
    /// Who has it, or had it last: identity, name, owner, and the key.
    pub verifier: Option<i64>,
    pub verifier_name: Option<String>,
    pub owner: Option<String>,
    pub key: Option<PublicKey>,
    /// Seconds since 1970: of the lease.
    pub expires: Option<u64>,
    pub code: Option<String>,
    pub message: Option<String>,
    pub exit_code: Option<i32>,
    pub log_length: u64,
    pub created: u64,
    pub ended: Option<u64>,
}

/// A verifier that asks for a job.
#[derive(Debug, Clone)]
pub struct Taker {
    pub identity: i64,
    pub key: PublicKey,
    pub owner: String,
    /// sha256 of the token that its lease gets.
    pub token: Sha256,
    pub systems: BTreeSet<String>,
    pub features: BTreeSet<String>,
}

/// How a job ended.
#[derive(Debug, Clone)]
pub enum JobEnd {
    Built {
        outputs: Vec<BuiltOutput>,
        /// JSON of the DSSE envelope.
        attestation: Vec<u8>,
        /// Inputs that were shown to hash to their paths.
        addressed: Vec<StorePath>,
    },
    Failed {
        code: String,
        message: String,
        exit_code: Option<i32>,
    },
    /// Given out again, not before this time.
    Returned {
        code: String,
        message: String,
        after: u64,
    },
}

/// A rebuild as it counts: by a verifier that isn't frozen, with a key that isn't revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebuildRow {
    pub job: String,
    pub purpose: Purpose,
    /// Who asked for it, where somebody did.
    pub asked_by: Option<i64>,
    pub derivation: StorePath,
    pub path: StorePath,
    pub nar_hash: Sha256,
    pub nar_size: u64,
    pub references: BTreeSet<StorePath>,
    pub signature: Signature,
    pub verifier: i64,
    pub verifier_name: String,
    pub owner: Option<String>,
    pub created: u64,
}

/// A build that a push asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRow {
    pub push: String,
    pub cache: String,
    pub identity: i64,
    pub derivation: StorePath,
    pub job: Option<String>,
    pub code: Option<String>,
    pub message: Option<String>,
    pub waits: Vec<StorePath>,
    pub expires: u64,
}

/// What is known of a difference.
#[derive(Debug, Clone)]
pub struct DifferenceRow {
    pub path: StorePath,
    pub claimed: Sha256,
    pub rebuilt: Sha256,
    /// JSON of the report.
    pub report: Option<String>,
    pub problem: Option<String>,
    pub found: u64,
}

/// A confirmed mismatch.
#[derive(Debug, Clone)]
pub struct MismatchRow {
    pub cache: String,
    pub path: StorePath,
    pub nar_hash: Sha256,
    pub identity: i64,
    pub key: PublicKey,
    pub follows: &'static str,
}

/// A stored attestation.
#[derive(Debug, Clone)]
pub struct AttestationRow {
    pub job: String,
    /// JSON of the DSSE envelope.
    pub envelope: Vec<u8>,
    /// Inputs that were shown to hash to their paths.
    pub addressed: Vec<StorePath>,
}
