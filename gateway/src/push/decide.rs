//! Stage 6: asks the policy. The decision itself is a pure function in the `policies` crate; here its "publish" becomes a
//! proof.

use std::sync::Arc;

use pushgate_formats::{Sha256, StorePath};
use pushgate_policies::{self as policies, Decision, Policy, Wait};

use super::provenance::{Provenance, ProvenanceKind};

/// Proof that the policy admits this path with this NAR hash.
#[derive(Debug, Clone)]
pub struct Admitted {
    path: StorePath,
    nar_hash: Sha256,
    rule: &'static str,
    evidence: Vec<&'static str>,
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
    pub const fn rule(&self) -> &'static str {
        self.rule
    }
    /// Policy words of the evidence that it rests on.
    pub fn evidence(&self) -> &[&'static str] {
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

/// Judges one claim.
pub fn decide(policy: &Arc<Policy>, provenance: &Provenance, nar_size: u64) -> Verdict {
    let claim = policies::Claim { path: provenance.path(), nar_size };
    let evidence = policies::Evidence {
        provenance: match provenance.kind() {
            ProvenanceKind::Derivation { .. } => policies::Provenance::Derivation,
            ProvenanceKind::ContentAddress { weak: false, .. } => policies::Provenance::ContentAddress,
            ProvenanceKind::ContentAddress { weak: true, .. } => policies::Provenance::ContentAddressWeak,
            ProvenanceKind::Unproven { missing } => {
                policies::Provenance::Unproven { missing: missing.clone() }
            }
        },
    };
    match policies::decide(policy, &claim, &evidence) {
        Decision::Publish { rule, evidence } => Verdict::Admitted(Admitted {
            path: provenance.path().clone(),
            nar_hash: provenance.nar_hash(),
            rule,
            evidence,
            policy: policy.digest,
        }),
        Decision::Hold { code, message, waits } => {
            let waits = waits
                .into_iter()
                .map(|wait| match wait {
                    Wait::Derivation(path) => path.absolute(),
                    Wait::AnyDerivation => "derivation".to_owned(),
                    Wait::Person => "person".to_owned(),
                })
                .collect();
            Verdict::Held { code, message, waits }
        }
        Decision::Reject { code, message } => Verdict::Rejected { code, message },
    }
}
