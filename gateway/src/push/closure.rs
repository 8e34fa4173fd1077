//! Invariant 4: every reference of a published path is published in the same cache, or at an upstream that the policy
//! names. Knows nothing of what the references contain.

use std::collections::{BTreeSet, HashMap, HashSet};

use pushgate_formats::{Sha256, StorePath};
use pushgate_policies::Closure;

use super::references::ReferencesExact;

/// What is served, as far as it was looked up for a judgement.
#[derive(Debug, Default)]
pub struct Served {
    /// Published in this cache.
    pub published: HashMap<StorePath, Sha256>,
    /// At an upstream, its signature checked.
    pub upstream: HashSet<StorePath>,
    /// Being published with this judgement, before what refers to it.
    pub batch: HashMap<StorePath, Sha256>,
}

/// Proof that all references of this path are served.
#[derive(Debug, Clone)]
pub struct ClosureServed {
    path: StorePath,
    nar_hash: Sha256,
}

impl ClosureServed {
    pub fn path(&self) -> &StorePath {
        &self.path
    }
    pub const fn nar_hash(&self) -> Sha256 {
        self.nar_hash
    }
}

/// Checks the references; the error lists those that aren't served.
pub fn check(
    references: &ReferencesExact,
    mode: Closure,
    served: &Served,
) -> Result<ClosureServed, BTreeSet<StorePath>> {
    let open: BTreeSet<StorePath> = references
        .references()
        .iter()
        .filter(|reference| {
            let here = *reference == references.path()
                || served.batch.contains_key(*reference)
                || served.published.contains_key(*reference);
            let there = mode == Closure::Upstreams && served.upstream.contains(*reference);
            !here && !there
        })
        .cloned()
        .collect();
    if open.is_empty() {
        Ok(ClosureServed { path: references.path().clone(), nar_hash: references.nar_hash() })
    } else {
        Err(open)
    }
}
