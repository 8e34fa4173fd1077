//! Stage 6: asks the policy. The decision itself is a pure function in the `policies` crate; here its "publish" becomes a
//! proof.

use std::sync::Arc;

use pushgate_formats::{Sha256, StorePath};
use pushgate_policies::{
    Policy,
    facts::{self, Decision, Fact, Identity, Moment},
};

use super::provenance::{Provenance, ProvenanceKind};

/// Proof that the policy admits this path with this NAR hash.
#[derive(Debug, Clone)]
pub struct Admitted {
    path: StorePath,
    nar_hash: Sha256,
    rule: String,
    evidence: Vec<String>,
    policy: Sha256,
}

impl Admitted {
    pub fn path(&self) -> &StorePath {
        &self.path
    }
    pub const fn nar_hash(&self) -> Sha256 {
        self.nar_hash
    }
    /// The rule that decided.
    pub fn rule(&self) -> &str {
        &self.rule
    }
    /// Policy words of the evidence that it rests on.
    pub fn evidence(&self) -> &[String] {
        &self.evidence
    }
    /// Digest of the policy that decided.
    pub const fn policy(&self) -> Sha256 {
        self.policy
    }
}

/// What the policy says.
#[derive(Debug)]
pub enum Verdict {
    Admitted(Admitted),
    /// `waits` are words or store paths.
    Held {
        code: &'static str,
        message: String,
        waits: Vec<String>,
    },
    Rejected {
        code: &'static str,
        message: String,
    },
}

/// Judges one claim. Who sent it and how it is built is not told yet: rules about that hold it.
pub fn decide(policy: &Arc<Policy>, provenance: &Provenance, nar_size: u64) -> Verdict {
    let (content_addressed, bound) = match provenance.kind() {
        ProvenanceKind::Derivation { .. } => (Fact::Known(false), facts::Provenance::Derivation),
        ProvenanceKind::ContentAddress { weak: false, .. } => {
            (Fact::Known(true), facts::Provenance::ContentAddress)
        }
        ProvenanceKind::ContentAddress { weak: true, .. } => {
            (Fact::Known(true), facts::Provenance::ContentAddressWeak)
        }
        ProvenanceKind::Unproven { missing } => {
            (Fact::Unknown, facts::Provenance::Unproven { missing: missing.clone() })
        }
    };
    let claim = facts::Claim {
        cache: &policy.cache,
        path: provenance.path(),
        nar_hash: provenance.nar_hash(),
        nar_size,
        submitter: Identity { name: "", owner: None, groups: &[] },
        content_addressed,
        built: Fact::Unknown,
        sources: Fact::Unknown,
    };
    let moment = Moment { now: 0, announced: 0 };
    match pushgate_policies::decide(policy, &claim, &facts::Evidence::only(bound), moment) {
        Decision::Publish { rule, evidence } => Verdict::Admitted(Admitted {
            path: provenance.path().clone(),
            nar_hash: provenance.nar_hash(),
            rule,
            evidence,
            policy: policy.digest,
        }),
        Decision::Hold { code, message, waits, .. } => {
            let waits = waits.iter().map(ToString::to_string).collect();
            Verdict::Held { code, message, waits }
        }
        Decision::Reject { code, message, .. } => Verdict::Rejected { code, message },
    }
}
