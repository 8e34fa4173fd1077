//! Rows of what is looked at again after its publication. Knows nothing of what follows from it.

use pushgate_formats::{Sha256, StorePath};

use super::{DbError, Result};

/// What an audit came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditOutcome {
    Match,
    /// Verifiers agree on something else than what is published.
    Mismatch,
    /// They don't agree.
    Inconclusive,
    /// Nothing was built.
    Failed,
}

impl AuditOutcome {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Mismatch => "mismatch",
            Self::Inconclusive => "inconclusive",
            Self::Failed => "failed",
        }
    }
}

/// An audit whose outcome isn't known yet.
#[derive(Debug, Clone)]
pub struct AuditRow {
    pub id: i64,
    pub derivation: StorePath,
    /// Whether it was asked for, and not drawn.
    pub due: bool,
    /// The first one; `None` where it hasn't begun.
    pub job: Option<String>,
    pub created: u64,
}

/// A published path of which verifiers agree that its derivation yields something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncidentRow {
    pub cache: String,
    pub path: StorePath,
    /// As published.
    pub nar_hash: Sha256,
    pub rebuilt: Sha256,
    /// Names of those who got that.
    pub verifiers: Vec<String>,
    /// What refers to the path, directly or not.
    pub dependants: Vec<StorePath>,
    pub found: u64,
    /// Whether the path is no longer served.
    pub withdrawn: bool,
}

/// Audits that are due since a key claimed something wrong: of what it published since a time, at most so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub since: u64,
    pub most: u32,
}

pub(super) fn names(text: &str) -> Result<Vec<String>> {
    serde_json::from_str(text).map_err(|_| DbError::Corrupt { what: "a list of names", value: text.into() })
}
