//! Rows of evidence and of the decisions made upon it. Knows nothing of what follows from them.

use pushgate_formats::{Sha256, StorePath, keys::PublicKey};
use pushgate_policies::record::{Outcome, RecordedIdentity};

use super::{ClaimRow, DbError, Result, Role};

/// A decision without what it rested on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Digest of the policy that made it.
    pub policy: Sha256,
    /// Digest of what it rested on, but for the time.
    pub facts: Sha256,
    pub outcome: Outcome,
}

/// A decision to be stored.
#[derive(Debug, Clone)]
pub struct NewDecision {
    pub decided: Decided,
    /// JSON of [`pushgate_policies::record::Recorded`].
    pub facts: String,
}

/// A stored decision of a claim that is still held.
#[derive(Debug, Clone)]
pub struct HeldDecision {
    pub claim: i64,
    pub push: String,
    /// The claim's own code: another than the decision's where something beside the policy holds it.
    pub code: Option<String>,
    pub message: Option<String>,
    /// As he is now.
    pub submitter: RecordedIdentity,
    pub decided: Decided,
    /// JSON of [`pushgate_policies::record::Recorded`].
    pub facts: String,
}

/// A stored decision, for replay.
#[derive(Debug, Clone)]
pub struct DecisionRow {
    pub id: i64,
    pub decided: Decided,
    /// JSON of [`pushgate_policies::record::Recorded`].
    pub facts: String,
    pub made: u64,
    /// Whether a later one was made of the same claim.
    pub superseded: bool,
}

/// Kinds of evidence that people give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EvidenceKind {
    /// He claims it too, and has sent the bytes.
    Submitter,
    Approval,
    Waiver,
    Refusal,
    /// Of claims that differ, this one stands.
    Settlement,
}

impl EvidenceKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Submitter => "submitter",
            Self::Approval => "approval",
            Self::Waiver => "waiver",
            Self::Refusal => "refusal",
            Self::Settlement => "settlement",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        [Self::Submitter, Self::Approval, Self::Waiver, Self::Refusal, Self::Settlement]
            .into_iter()
            .find(|k| k.as_str() == text)
            .ok_or_else(|| DbError::Corrupt { what: "a kind of evidence", value: text.into() })
    }
}

/// Evidence to be added.
#[derive(Debug, Clone)]
pub struct NewEvidence {
    pub cache: String,
    pub path: StorePath,
    pub nar_hash: Sha256,
    pub kind: EvidenceKind,
    pub identity: i64,
    pub key: PublicKey,
    /// Seconds since 1970; counts until then.
    pub until: Option<u64>,
    /// Of a waiver: the requirement.
    pub word: Option<String>,
    pub reason: String,
    /// The signed act.
    pub envelope: Option<Vec<u8>>,
}

/// Evidence as it counts: of an identity that isn't frozen, by a key that isn't revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceRow {
    pub path: StorePath,
    pub nar_hash: Sha256,
    pub kind: EvidenceKind,
    pub by: String,
    pub role: Role,
    pub owner: Option<String>,
    pub groups: Vec<String>,
    pub until: Option<u64>,
    pub word: Option<String>,
    pub reason: String,
    pub created: u64,
}

/// A claim with what an admin sees of it.
#[derive(Debug, Clone)]
pub struct ClaimShown {
    pub claim: ClaimRow,
    /// Bytes; known from the first decision on.
    pub nar_size: Option<u64>,
    pub submitter: String,
    pub owner: Option<String>,
    /// Seconds since 1970: when it was announced, and when it is given up.
    pub announced: u64,
    pub expires: u64,
}
