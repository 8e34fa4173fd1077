//! What a gateway answers about decisions: recorded ones, and why a path is what it is.

use pushgate_formats::{
    Sha256, StorePath,
    review::{ClaimInfo, PublishedInfo},
};
use serde::{Deserialize, Serialize};

use crate::{
    explain::Explanation,
    record::{Outcome, Recorded},
};

/// A decision with all that it rested on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RecordedDecision {
    pub id: i64,
    /// Seconds since 1970, UTC.
    pub made: u64,
    /// Whether a later one was made of the same claim: it isn't what the claim has come to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub superseded: bool,
    /// Digest of the policy that decided.
    pub policy: Sha256,
    pub outcome: Outcome,
    pub facts: Recorded,
}

/// A page of decisions, oldest first (`GET /api/v1/caches/CACHE/decisions`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RecordedDecisions {
    pub decisions: Vec<RecordedDecision>,
    /// Where the next page begins, if there may be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<i64>,
}

/// A claim, with what the policy in force says of each of its rules about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyClaim {
    #[serde(flatten)]
    pub claim: ClaimInfo,
    /// Absent where the policy wasn't asked yet, and of all but the newest twenty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

/// Why a path is what it is (`GET /api/v1/caches/CACHE/paths/HASH-NAME/why`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    pub path: StorePath,
    pub cache: String,
    /// Digest of the policy in force.
    pub policy: Sha256,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<PublishedInfo>,
    /// Newest first: all of them for those who review, else one's own.
    pub claims: Vec<WhyClaim>,
}
