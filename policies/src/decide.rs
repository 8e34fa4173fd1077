//! The decision: a pure, total function of policy, claim and evidence.
//!
//! There is one built-in rule for now: a claim by an enrolled submitter is published when a derivation provably yields its
//! path, or when its contents hash to it. The facts that every rule needs (signature, NAR, references, closure) are
//! proofs of their own and not asked here.

use pushgate_formats::StorePath;

use crate::Policy;

/// Name of the built-in rule in decisions and log leaves.
pub const RULE_BUILT_IN: &str = "built-in";

/// What is claimed, as far as a decision may depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    pub path: &'a StorePath,
    /// Bytes of the NAR.
    pub nar_size: u64,
}

/// How the path is bound to what made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provenance {
    /// A derivation, checked with its whole closure, yields exactly this path.
    Derivation,
    /// The store path is a hash of the contents.
    ContentAddress,
    /// The same, by an algorithm for which collisions can be made.
    ContentAddressWeak,
    /// Not known, and what is lacking: derivations by path, or none where the claim names no deriver.
    Unproven { missing: Vec<StorePath> },
}

/// The checked facts about a claim.
#[derive(Debug, Clone)]
pub struct Evidence {
    pub provenance: Provenance,
}

/// Something that a held claim waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// The text of this derivation.
    Derivation(StorePath),
    /// Any derivation: the claim names none.
    AnyDerivation,
    /// A person: nothing that arrives by itself can settle it.
    Person,
}

/// What the policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Publish { rule: &'static str, evidence: Vec<&'static str> },
    Hold { code: &'static str, message: String, waits: Vec<Wait> },
    Reject { code: &'static str, message: String },
}

/// Judges a claim. Total: every combination has an answer. Pure: the same arguments, the same answer.
pub fn decide(policy: &Policy, claim: &Claim<'_>, evidence: &Evidence) -> Decision {
    if claim.nar_size > policy.limits.nar_size {
        return Decision::Reject {
            code: "nar-too-large",
            message: format!(
                "the NAR of `{}` has {} bytes; the policy of `{}` allows {}",
                claim.path, claim.nar_size, policy.cache, policy.limits.nar_size
            ),
        };
    }
    match &evidence.provenance {
        Provenance::Derivation => Decision::Publish { rule: RULE_BUILT_IN, evidence: vec!["derivation"] },
        Provenance::ContentAddress => {
            Decision::Publish { rule: RULE_BUILT_IN, evidence: vec!["content-address"] }
        }
        Provenance::ContentAddressWeak => Decision::Hold {
            code: "content-address-weak",
            message: format!(
                "the contents of `{}` hash to it only by md5 or sha1, which can be forged",
                claim.path
            ),
            waits: vec![Wait::Person],
        },
        Provenance::Unproven { missing } if missing.is_empty() => Decision::Hold {
            code: "needs-derivation",
            message: format!(
                "`{}` names no deriver and is not content-addressed: nothing shows what made it",
                claim.path
            ),
            waits: vec![Wait::AnyDerivation],
        },
        Provenance::Unproven { missing } => Decision::Hold {
            code: "needs-derivation",
            message: format!(
                "{} of the derivations that should prove `{}` were not sent: `pushgate push` sends them, and \
                 `nix copy --derivation` to the address for pushes does",
                missing.len(),
                claim.path
            ),
            waits: missing.iter().cloned().map(Wait::Derivation).collect(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::starting_policy;

    fn path() -> StorePath {
        StorePath::from_base_name("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a").unwrap()
    }

    fn judge(provenance: Provenance, nar_size: u64) -> Decision {
        let policy = Policy::parse(&starting_policy("main"), "main.toml", "main").unwrap();
        decide(&policy, &Claim { path: &path(), nar_size }, &Evidence { provenance })
    }

    #[test]
    fn proven_claims_are_published() {
        for (provenance, word) in
            [(Provenance::Derivation, "derivation"), (Provenance::ContentAddress, "content-address")]
        {
            assert_eq!(judge(provenance, 1), Decision::Publish { rule: RULE_BUILT_IN, evidence: vec![word] });
        }
    }

    #[test]
    fn unproven_and_weak_claims_are_held() {
        let code = |p| match judge(p, 1) {
            Decision::Hold { code, waits, .. } => (code, waits),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            code(Provenance::Unproven { missing: vec![] }),
            ("needs-derivation", vec![Wait::AnyDerivation])
        );
        assert_eq!(
            code(Provenance::Unproven { missing: vec![path()] }),
            ("needs-derivation", vec![Wait::Derivation(path())])
        );
        assert_eq!(code(Provenance::ContentAddressWeak), ("content-address-weak", vec![Wait::Person]));
    }

    #[test]
    fn the_limit_is_the_policys() {
        assert!(matches!(judge(Provenance::Derivation, 4 << 30), Decision::Publish { .. }));
        assert!(matches!(
            judge(Provenance::Derivation, (4 << 30) + 1),
            Decision::Reject { code: "nar-too-large", .. }
        ));
    }
}
