//! What people look at before they decide: held claims, conflicts, and what speaks for and against each. Plain data.

use serde::{Deserialize, Serialize};

use crate::{api::PathState, difference::Report, hash::Sha256, store_path::StorePath};

/// Evidence about a claim, in the order that it came. Times are seconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvidenceInfo {
    /// `submitter`, `approval`, `waiver`, `refusal`, `settlement`.
    pub kind: String,
    pub nar_hash: Sha256,
    pub by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    pub at: u64,
    /// Counts until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What the policy decided last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionInfo {
    /// Digest of the policy that decided.
    pub policy: Sha256,
    /// `publish`, `hold` or `reject`.
    pub decision: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// A claim, as those see it who decide about it. Times are seconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimInfo {
    pub claim: i64,
    pub push: String,
    pub path: StorePath,
    pub nar_hash: Sha256,
    /// Bytes; absent where the policy hasn't looked at the claim yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nar_size: Option<u64>,
    pub submitter: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    pub announced: u64,
    /// When what is still held is given up.
    pub expires: u64,
    pub state: PathState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<DecisionInfo>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<EvidenceInfo>,
}

/// A page of held claims, oldest first (`GET /api/v1/caches/CACHE/held`), or with `?path=HASH-NAME` the open claims of
/// one path: those too whose bytes are still awaited or checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldClaims {
    pub claims: Vec<ClaimInfo>,
    /// Where the next page begins, if there may be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<i64>,
}

/// Claims of one path with different contents (`GET /api/v1/caches/CACHE/conflicts`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    pub path: StorePath,
    /// What is published, and stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Sha256>,
    /// Newest first.
    pub claims: Vec<ClaimInfo>,
}

/// How a path came to be published, from its log leaf. Times are seconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedInfo {
    pub nar_hash: Sha256,
    pub rule: String,
    /// Policy words of what it rests on.
    pub evidence: Vec<String>,
    /// Digest of the policy that decided.
    pub policy: Sha256,
    /// Name of the key whose claim it was.
    pub submitter_key: String,
    pub time: u64,
    /// Number of its leaf.
    pub leaf: u64,
    /// What verifiers found against it since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<Incident>,
}

/// Verifiers agree that a published path isn't what its derivation yields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// Seconds since 1970, UTC.
    pub at: u64,
    /// NAR hash of what they got.
    pub rebuilt: Sha256,
    /// Who got it.
    pub verifiers: Vec<String>,
    /// Whether the path is no longer served.
    pub withdrawn: bool,
    /// Published paths that refer to it, directly or not: at most 10,000.
    pub dependants: Vec<StorePath>,
}

/// A rebuild that came out differently than a claim says. Times are seconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DifferenceInfo {
    pub claimed: Sha256,
    pub rebuilt: Sha256,
    /// Who got the rebuilt one.
    pub verifiers: Vec<String>,
    pub at: u64,
    /// Absent while it isn't made yet, or where it can't be,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether a verifier also made a page of it, with diffoscope.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub html: bool,
}

/// How rebuilds of a path differ from its claims, newest first (`GET /api/v1/caches/CACHE/paths/HASH-NAME/differences`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Differences {
    pub differences: Vec<DifferenceInfo>,
}
