//! Claims that nobody made: what a policy file's tests and `pushgate policy explain` judge.

mod run;

use std::collections::BTreeMap;

use pushgate_formats::{Sha256, StorePath, derivation::FixedLeaf};

pub use run::{Expect, Expected, TestCase, TestResult};

use crate::{
    Policy,
    explain::{Explanation, explain},
    facts::{
        Approval, Built, CiIdentity, Claim, Decision, Evidence, Fact, Identity, Moment, Outcome, Provenance,
        Rebuild, Refusal, UpstreamFact, UpstreamSays, Voucher, Waiver,
    },
    rule::Members,
};

/// When a scenario plays; nothing depends on it.
const NOW: u64 = 1_700_000_000;
/// What is claimed.
const CLAIMED: &[u8] = b"the claimed contents";
/// System of what is built, where none is given.
pub const SYSTEM: &str = "x86_64-linux";
/// Builder of what is built, where none is given.
pub const BUILDER: &str = "/bin/sh";

/// A claim with evidence, as the given part of a test describes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    pub path: StorePath,
    pub submitter: String,
    pub owner: Option<String>,
    /// Given at enrolment.
    pub groups: Vec<String>,
    /// Bytes of the NAR. Default: 1.
    pub size: u64,
    /// Default: what the evidence says, unknown where it says nothing.
    pub content_addressed: Option<bool>,
    pub output: Option<String>,
    pub system: Option<String>,
    pub builder: Option<String>,
    pub env: BTreeMap<String, String>,
    pub sources: Option<Vec<FixedLeaf>>,
    pub evidence: Vec<Given>,
    pub unknown: Vec<Unknown>,
    /// Seconds since the claim was announced. Default: 0.
    pub waited: u64,
}

/// A piece of evidence as tests name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    Derivation,
    ContentAddress,
    ContentAddressWeak,
    /// `None`: the first upstream of the policy.
    Upstream {
        url: Option<String>,
        says: Says,
    },
    Rebuilds {
        n: u32,
        outcome: Outcome,
        inputs_rebuilt: bool,
        /// Default: an owner of each one's own.
        owner: Option<String>,
        /// Stands for what was got instead; the same word is the same contents.
        got: Option<String>,
        /// How many builds each has finished. Default: 1; 2 where they differ from each other.
        builds: Option<u32>,
    },
    /// So many different owners in all, the submitter's own included if he has one.
    Submitters {
        n: u32,
    },
    Approvals {
        n: u32,
        from: String,
        /// Default: members of the group.
        by: Option<String>,
        /// Default: the approver's name.
        owner: Option<String>,
    },
    Waiver,
    Refusal(String),
    Sigstore(CiIdentity),
    /// URL and hash of a source.
    Fetched(String, String),
    Drawn,
}

/// What an upstream says in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    Same,
    Other,
    Absent,
    Unknown,
}

/// Facts that a test declares unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Output, system, builder, environment.
    Built,
    Sources,
    ContentAddressed,
}

impl Scenario {
    /// A claim of which nothing is known but who sent it.
    pub fn new(path: StorePath, submitter: &str) -> Self {
        Self {
            path,
            submitter: submitter.to_owned(),
            owner: None,
            groups: vec![],
            size: 1,
            content_addressed: None,
            output: None,
            system: None,
            builder: None,
            env: BTreeMap::new(),
            sources: None,
            evidence: vec![],
            unknown: vec![],
            waited: 0,
        }
    }

    /// A path as people write it: a store path, its last part, or a name alone.
    pub fn path(text: &str) -> Option<StorePath> {
        StorePath::parse(text)
            .or_else(|_| StorePath::from_base_name(text))
            .or_else(|_| StorePath::from_digest(&[0; 20], text))
            .ok()
    }

    /// What the policy says of it.
    pub fn judge(&self, policy: &Policy) -> Decision {
        self.play(policy, |claim, evidence, moment| crate::decide(policy, claim, evidence, moment))
    }

    /// What the policy says of it, and why.
    pub fn explain(&self, policy: &Policy) -> Explanation {
        self.play(policy, |claim, evidence, moment| explain(policy, claim, evidence, moment))
    }

    fn play<T>(&self, policy: &Policy, act: impl FnOnce(&Claim<'_>, &Evidence, Moment) -> T) -> T {
        let has = |given: &Given| self.evidence.contains(given);
        let by_content = has(&Given::ContentAddress) || has(&Given::ContentAddressWeak);
        let named =
            self.output.is_some() || self.system.is_some() || self.builder.is_some() || !self.env.is_empty();
        let is_built = named || has(&Given::Derivation);
        let derivation = StorePath::from_digest(&[1; 20], &format!("{}.drv", self.path.name()))
            // only too long a name can't get an ending; which derivation it is decides nothing
            .unwrap_or_else(|_| self.path.clone());
        let built = Built {
            derivation: &derivation,
            output: self.output.as_deref().unwrap_or("out"),
            system: self.system.as_deref().unwrap_or(SYSTEM),
            builder: self.builder.as_deref().unwrap_or(BUILDER),
            env: &self.env,
        };
        // what has no derivation has nothing that one would tell
        let otherwise = || if by_content { Fact::Absent } else { Fact::Unknown };
        let built = if is_built { Fact::Known(built) } else { otherwise().map(|()| built) };
        let sources = match &self.sources {
            Some(leaves) => Fact::Known(leaves.as_slice()),
            None if is_built => Fact::Known(&[][..]),
            None => otherwise().map(|()| &[][..]),
        };
        let content_addressed = match self.content_addressed {
            Some(is) => Fact::Known(is),
            None if by_content => Fact::Known(true),
            None if has(&Given::Derivation) => Fact::Known(false),
            None => Fact::Unknown,
        };
        let known = |fact: Unknown| !self.unknown.contains(&fact);
        let claim = Claim {
            cache: &policy.cache,
            path: &self.path,
            nar_hash: Sha256::of(CLAIMED),
            nar_size: self.size,
            submitter: Identity { name: &self.submitter, owner: self.owner.as_deref(), groups: &self.groups },
            content_addressed: if known(Unknown::ContentAddressed) {
                content_addressed
            } else {
                Fact::Unknown
            },
            built: if known(Unknown::Built) { built } else { Fact::Unknown },
            sources: if known(Unknown::Sources) { sources } else { Fact::Unknown },
        };
        let moment = Moment { now: NOW, announced: NOW.saturating_sub(self.waited) };
        act(&claim, &self.facts(policy, derivation.clone()), moment)
    }

    fn facts(&self, policy: &Policy, derivation: StorePath) -> Evidence {
        let mut facts = Evidence::only(Provenance::Unproven { missing: vec![derivation] });
        facts.submitters.push(Voucher { submitter: self.submitter.clone(), owner: self.owner.clone() });
        for given in &self.evidence {
            self.add(given, policy, &mut facts);
        }
        facts
    }

    fn add(&self, given: &Given, policy: &Policy, facts: &mut Evidence) {
        match given {
            Given::Derivation => facts.provenance = Provenance::Derivation,
            Given::ContentAddress => facts.provenance = Provenance::ContentAddress,
            Given::ContentAddressWeak => facts.provenance = Provenance::ContentAddressWeak,
            Given::Upstream { url, says } => {
                let says = match says {
                    Says::Same => UpstreamSays::Same,
                    Says::Other => UpstreamSays::Other(Sha256::of(b"other contents")),
                    Says::Absent => UpstreamSays::Absent,
                    Says::Unknown => UpstreamSays::Unknown,
                };
                let url = url.as_ref().or_else(|| policy.upstreams.first().map(|upstream| &upstream.url));
                facts.upstreams.extend(url.map(|url| UpstreamFact { url: url.clone(), says }));
            }
            Given::Rebuilds { n, outcome, inputs_rebuilt, owner, got, builds } => {
                let other = got.as_deref().unwrap_or("other contents");
                let (nar_hash, usual) = match outcome {
                    Outcome::Match => (Some(Sha256::of(CLAIMED)), 1),
                    Outcome::Mismatch => (Some(Sha256::of(other.as_bytes())), 1),
                    Outcome::Inconclusive => (Some(Sha256::of(other.as_bytes())), 2),
                    Outcome::Failed => (None, 0),
                };
                // each table adds verifiers to those before it
                let before = u32::try_from(facts.rebuilds.len()).unwrap_or(u32::MAX);
                facts.rebuilds.extend((1..=*n).map(|i| before.saturating_add(i)).map(|i| Rebuild {
                    verifier: format!("verifier-{i}"),
                    owner: Some(owner.clone().unwrap_or_else(|| format!("verifier-owner-{i}"))),
                    outcome: *outcome,
                    inputs_rebuilt: *inputs_rebuilt,
                    nar_hash,
                    builds: builds.unwrap_or(usual),
                }));
            }
            Given::Submitters { n } => {
                let others = n.saturating_sub(u32::from(self.owner.is_some()));
                facts.submitters.extend((1..=others).map(|i| Voucher {
                    submitter: format!("submitter-{i}"),
                    owner: Some(format!("submitter-owner-{i}")),
                }));
            }
            Given::Approvals { n, from, by, owner } => {
                let members =
                    policy.groups.iter().find(|group| group.name == *from).map(|group| &group.members);
                let mut names: Vec<String> = match (by, members) {
                    (Some(by), _) => vec![by.clone()],
                    (None, Some(Members::Listed(members))) => {
                        members.iter().filter(|member| **member != self.submitter).cloned().collect()
                    }
                    (None, _) => (1..=*n).map(|i| format!("approver-{i}")).collect(),
                };
                names.truncate(*n as usize);
                facts.approvals.extend(names.into_iter().map(|by| Approval {
                    owner: Some(owner.clone().unwrap_or_else(|| by.clone())),
                    by,
                    groups: vec![from.clone()],
                    until: None,
                    reason: "a test".into(),
                }));
            }
            Given::Waiver => facts.waivers.push(Waiver {
                by: "admin".into(),
                owner: Some("admin-owner".into()),
                word: "rebuilds".into(),
                until: None,
                reason: "a test".into(),
            }),
            Given::Refusal(reason) => {
                facts.refusal = Some(Refusal { by: "admin".into(), until: None, reason: reason.clone() });
            }
            Given::Sigstore(identity) => facts.ci.push(identity.clone()),
            Given::Fetched(url, hash) => facts.fetched.push((url.clone(), hash.clone())),
            Given::Drawn => facts.drawn = true,
        }
    }
}
