//! Who may ask for builds at the cache, and how much. What is built needs a rule as all else that is pushed.

use crate::{Policy, facts::Identity, names::Texts, rule::Group};

/// A `[[build]]` table: these may ask for builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLimits {
    pub names: Texts,
    pub groups: Vec<Group>,
    /// Systems for which they may. Default: all that a verifier can build.
    pub system: Option<Texts>,
    /// Most derivations of one submitter that are queued or building. Default: 16.
    pub at_once: u32,
    /// Most builds of one submitter within 24 hours. Default: 500.
    pub per_day: u32,
    /// Longest build, in seconds. Default: 4 hours.
    pub time: u64,
    /// Largest log, in bytes. Default: 8 MiB.
    pub log: u64,
}

impl BuildLimits {
    pub const AT_ONCE: u32 = 16;
    pub const PER_DAY: u32 = 500;
    pub const TIME: u64 = 4 * 3600;
    pub const LOG: u64 = 8 << 20;

    /// Whether they may ask for builds for this system.
    pub fn takes(&self, system: &str) -> bool {
        self.system.as_ref().is_none_or(|systems| systems.matches(system))
    }
}

impl Policy {
    /// Whether this submitter may ask for builds, and how much: the first `[[build]]` that is for him. `None`: he may not.
    pub fn builds_for(&self, identity: &Identity<'_>) -> Option<&BuildLimits> {
        self.builds.iter().find(|build| {
            build.names.matches(identity.name)
                || build.groups.iter().any(|group| group.has(identity.name, identity.groups))
        })
    }
}
