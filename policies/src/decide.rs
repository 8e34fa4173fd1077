//! temporary
use crate::{
    Policy,
    facts::{Claim, Decision, Evidence, Moment, Provenance, Wait},
};

#[derive(Default)]
pub struct Needs {
    pub env: Vec<String>,
    pub sources: bool,
    pub upstreams: bool,
    pub submitters: bool,
    pub approvers: std::collections::BTreeSet<String>,
}
static NEEDS: Needs = Needs {
    env: Vec::new(),
    sources: false,
    upstreams: false,
    submitters: false,
    approvers: std::collections::BTreeSet::new(),
};
impl Policy {
    pub fn needs(&self) -> &Needs {
        &NEEDS
    }
}
impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Derivation(p) => f.write_str(&p.absolute()),
            Self::AnyDerivation => f.write_str("derivation"),
            Self::Person => f.write_str("person"),
            _ => write!(f, "{self:?}"),
        }
    }
}
pub fn decide(_policy: &Policy, claim: &Claim<'_>, evidence: &Evidence, _m: Moment) -> Decision {
    match &evidence.provenance {
        Provenance::Derivation => {
            Decision::Publish { rule: "built-in".into(), evidence: vec!["derivation".into()] }
        }
        Provenance::ContentAddress => {
            Decision::Publish { rule: "built-in".into(), evidence: vec!["content-address".into()] }
        }
        Provenance::ContentAddressWeak => Decision::Hold {
            rule: None,
            code: "content-address-weak",
            message: "weak".into(),
            waits: vec![Wait::Person],
            until: None,
            again: None,
        },
        Provenance::Unproven { missing } => Decision::Hold {
            rule: None,
            code: "needs-derivation",
            message: format!("{}", claim.path),
            waits: missing.iter().cloned().map(Wait::Derivation).collect(),
            until: None,
            again: None,
        },
    }
}

impl Policy {
    pub fn is_member(&self, i: &crate::facts::Identity<'_>, g: &str) -> bool {
        i.groups.iter().any(|x| x == g)
    }
}
pub fn explain(
    _policy: &Policy,
    _claim: &Claim<'_>,
    _evidence: &Evidence,
    _m: Moment,
) -> crate::explain::Explanation {
    crate::explain::Explanation {}
}
