//! Bounds on what a submitter may send, and how long things are kept.

use crate::{Policy, facts::Identity, names::Texts, rule::Group};

/// Bounds on what a submitter may send. `None`: the gateway's own setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest NAR, in bytes. Default: 4 GiB.
    pub nar_size: u64,
    /// How long a push may wait in quarantine, in seconds. Default: 7 days.
    pub quarantine_ttl: u64,
    /// Most bytes (compressed) that one submitter may have in quarantine. Default: 64 GiB.
    pub quarantine_size: u64,
    /// Most paths in one push.
    pub paths_per_push: Option<u64>,
    /// Most bytes (compressed) that one submitter may send within 24 hours.
    pub bytes_per_day: Option<u64>,
    /// Most uploads of one submitter at a time.
    pub uploads_at_once: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nar_size: 4 << 30,
            quarantine_ttl: 7 * 86_400,
            quarantine_size: 64 << 30,
            paths_per_push: None,
            bytes_per_day: None,
            uploads_at_once: None,
        }
    }
}

/// A `[[limit]]` table: bounds for some submitters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmitterLimit {
    pub names: Texts,
    pub groups: Vec<Group>,
    pub nar_size: Option<u64>,
    pub quarantine_size: Option<u64>,
    pub paths_per_push: Option<u64>,
    pub bytes_per_day: Option<u64>,
    pub uploads_at_once: Option<u64>,
}

impl SubmitterLimit {
    fn is_for(&self, identity: &Identity<'_>) -> bool {
        self.names.matches(identity.name) || self.groups.iter().any(|g| g.has(identity.name, identity.groups))
    }
}

/// How long what is published stays. Read and checked; acted upon by collection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention {
    /// Seconds after which a path that nobody has fetched goes. Default: never.
    pub unused: Option<u64>,
    /// Bytes (compressed) above which the paths go that were fetched longest ago. Default: no bound.
    pub size: Option<u64>,
    /// Package names that stay in any case.
    pub keep: Texts,
}

impl Policy {
    /// What this submitter may send. Each bound comes from the first `[[limit]]` that is for him and has it, else from
    /// `[limits]`.
    pub fn limits_for(&self, identity: &Identity<'_>) -> Limits {
        let mut limits = self.limits.clone();
        // the first comes last, so that it stays
        for limit in self.submitter_limits.iter().rev().filter(|limit| limit.is_for(identity)) {
            limits.nar_size = limit.nar_size.unwrap_or(limits.nar_size);
            limits.quarantine_size = limit.quarantine_size.unwrap_or(limits.quarantine_size);
            limits.paths_per_push = limit.paths_per_push.or(limits.paths_per_push);
            limits.bytes_per_day = limit.bytes_per_day.or(limits.bytes_per_day);
            limits.uploads_at_once = limit.uploads_at_once.or(limits.uploads_at_once);
        }
        limits
    }
}
