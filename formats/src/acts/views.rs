//! What the gateway answers to those who act: what was done, by whom, and who there is.

use serde::{Deserialize, Serialize};

use crate::{api::Role, hash::Sha256, store_path::StorePath};

/// The answer to an act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActDone {
    /// The event that records it.
    pub event: u64,
    /// How many keys, tokens or identities it changed; 0 where all was so already.
    pub changed: u64,
}

/// Something that happened and stays on record (`GET /api/v1/admin/events`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Grows with each event; numbers may be left out.
    pub id: u64,
    /// Seconds since 1970, UTC.
    pub time: u64,
    /// An identity's name; `gateway`, or `gateway host` for a command that was run there.
    pub who: String,
    /// The name of the key that signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// [`super::Deed::kind`], `enrolled`, or another word.
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<StorePath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nar_hash: Option<Sha256>,
    /// The identity or key that it was done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What exactly, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The person's reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// A page of events, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Events {
    pub events: Vec<Event>,
}

/// An identity, as an admin sees it (`GET /api/v1/admin/identities`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityInfo {
    pub name: String,
    pub role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    pub groups: Vec<String>,
    pub frozen: bool,
    /// Seconds since 1970, UTC.
    pub created: u64,
    pub keys: Vec<KeyInfo>,
    /// Tokens that are good.
    pub tokens: u64,
    /// Seconds since 1970, UTC; absent where it never pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_push: Option<u64>,
}

/// An enrolled key. Times are seconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyInfo {
    /// `NAME:base64`.
    pub key: String,
    /// Absent: every cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caches: Option<Vec<String>>,
    pub created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
}

/// A token for stock Nix (`GET /api/v1/admin/tokens`). Times are seconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenInfo {
    /// sha256 of the token.
    pub token: Sha256,
    /// The submitter's name.
    pub name: String,
    pub cache: String,
    pub created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
}
