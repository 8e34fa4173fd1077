//! What a decision may depend on: the claim and what is known of it, and the evidence that was checked. Plain values: how
//! a fact was checked is the gateway's business, what follows from it is [`crate::decide`]'s.

use std::{collections::BTreeMap, fmt};

use pushgate_formats::{Sha256, StorePath, derivation::FixedLeaf};
use serde::{Deserialize, Serialize};

use crate::rule::count;

/// Something that may be known, known not to exist, or not known yet.
///
/// The difference matters: a rule about a fact that isn't known yet holds the claim, so that withholding a fact never leads
/// to a laxer rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact<T> {
    Known(T),
    /// There is none: a source has no derivation, so no system.
    Absent,
    /// Not known yet: its derivation isn't here.
    Unknown,
}

impl<T> Fact<T> {
    /// The same fact about a part or another form of the value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Self::Known(value) => Fact::Known(f(value)),
            Self::Absent => Fact::Absent,
            Self::Unknown => Fact::Unknown,
        }
    }
}

/// An enrolled identity, as far as decisions look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    pub name: &'a str,
    /// Set by the admin; one without counts for none of `rebuilds`, `submitters`, `approvals`.
    pub owner: Option<&'a str>,
    /// Groups given at enrolment; those of the policy file are added by the decision.
    pub groups: &'a [String],
}

/// What the derivation says of how the path is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built<'a> {
    pub derivation: &'a StorePath,
    /// Name of the output, such as `out` or `dev`.
    pub output: &'a str,
    /// Such as `x86_64-linux`.
    pub system: &'a str,
    /// The builder's path, as text; what isn't UTF-8 is shown as U+FFFD.
    pub builder: &'a str,
    /// Those variables of the environment that the policy's rules ask for ([`crate::Policy::needs`]); what isn't UTF-8 in
    /// a value is U+FFFD.
    pub env: &'a BTreeMap<String, String>,
}

/// What is claimed, as far as a decision may depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    pub cache: &'a str,
    pub path: &'a StorePath,
    pub nar_hash: Sha256,
    /// Bytes of the NAR.
    pub nar_size: u64,
    pub submitter: Identity<'a>,
    /// Whether the store path is a hash of the contents.
    pub content_addressed: Fact<bool>,
    pub built: Fact<Built<'a>>,
    /// The fixed-output leaves of the derivation closure: hashes are facts, URLs the submitter's words.
    pub sources: Fact<&'a [FixedLeaf]>,
}

/// How the path is bound to what made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

/// What a named upstream says of the path, its signature checked against the pinned key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UpstreamFact {
    /// As in the policy.
    pub url: String,
    pub says: UpstreamSays,
}

/// See [`UpstreamFact`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamSays {
    Same,
    /// It has the path with another NAR hash.
    Other(Sha256),
    Absent,
    /// It didn't answer, or not sensibly: neither for nor against the claim; asked again later.
    Unknown,
}

/// How a verifier's builds of the claim's derivation came out, all that it has finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Each gave the claim's NAR hash.
    Match,
    /// Each gave one and the same other NAR hash.
    Mismatch,
    /// They differ from each other: not reproducible even on the verifier.
    Inconclusive,
    /// None was finished.
    Failed,
}

/// What a verifier reports, its attestations checked: one for each verifier that has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rebuild {
    pub verifier: String,
    pub owner: Option<String>,
    pub outcome: Outcome,
    /// Whether every input, down to upstream paths, was itself rebuilt with a match.
    pub inputs_rebuilt: bool,
    /// What it got, the last time; `None` where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nar_hash: Option<Sha256>,
    /// How many finished builds are behind it.
    #[serde(default = "one")]
    pub builds: u32,
}

const fn one() -> u32 {
    1
}

/// Who claims the same NAR hash for the same path and has sent the bytes, the claim's own submitter included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Voucher {
    pub submitter: String,
    pub owner: Option<String>,
}

/// A signed yes of a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Approval {
    pub by: String,
    pub owner: Option<String>,
    /// Groups given at enrolment.
    pub groups: Vec<String>,
    /// Seconds since 1970; counts until then.
    pub until: Option<u64>,
    pub reason: String,
}

/// An admin's word that a claim may go without what its derivation can't give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Waiver {
    pub by: String,
    pub owner: Option<String>,
    /// The policy word that is waived, such as `rebuilds`.
    pub word: String,
    /// Seconds since 1970; counts until then.
    pub until: Option<u64>,
    pub reason: String,
}

/// An admin's no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    pub by: String,
    /// Seconds since 1970; counts until then.
    pub until: Option<u64>,
    pub reason: String,
}

/// An identity at a CI service that attests to the NAR hash, from a checked sigstore bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CiIdentity {
    pub issuer: String,
    /// The certificate's subject: a workflow's address or a mail address.
    pub subject: String,
    /// By name, such as `repository`, `ref`, `workflow`.
    pub claims: BTreeMap<String, String>,
}

/// The checked facts about a claim.
#[derive(Debug, Clone)]
pub struct Evidence {
    pub provenance: Provenance,
    /// In the policy's order; one that wasn't asked yet isn't here.
    pub upstreams: Vec<UpstreamFact>,
    pub rebuilds: Vec<Rebuild>,
    pub submitters: Vec<Voucher>,
    pub approvals: Vec<Approval>,
    pub waivers: Vec<Waiver>,
    pub refusal: Option<Refusal>,
    pub ci: Vec<CiIdentity>,
    /// URL and hash (SRI) of sources that a verifier attested to have fetched.
    pub fetched: Vec<(String, String)>,
    /// Whether the claim was drawn for a rebuild.
    pub drawn: bool,
}

impl Evidence {
    /// Nothing but how the path is bound to what made it.
    pub const fn only(provenance: Provenance) -> Self {
        Self {
            provenance,
            upstreams: Vec::new(),
            rebuilds: Vec::new(),
            submitters: Vec::new(),
            approvals: Vec::new(),
            waivers: Vec::new(),
            refusal: None,
            ci: Vec::new(),
            fetched: Vec::new(),
            drawn: false,
        }
    }
}

/// The time, and since when the claim waits: both in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub now: u64,
    pub announced: u64,
}

/// Something that a held claim waits for. Its `Display` is what `status` and `why` show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// The text of this derivation.
    Derivation(StorePath),
    /// Any derivation: the claim names none.
    AnyDerivation,
    /// A person: nothing that arrives by itself can settle it.
    Person,
    Rebuilds {
        have: u32,
        need: u32,
        inputs: bool,
    },
    /// Verifiers of so many further owners, to tell what a mismatch means.
    Confirmations {
        have: u32,
        need: u32,
    },
    /// By this verifier, to tell whether it differs from itself.
    SecondBuild(String),
    Submitters {
        have: u32,
        need: u32,
    },
    Approvals {
        have: u32,
        need: u32,
        from: String,
    },
    /// That an upstream has the same path; `None`: any that the policy names.
    Upstream {
        url: Option<String>,
    },
    /// A CI identity, as the rule describes it.
    Ci(String),
    /// That the fetch of a source be attested.
    Fetch(String),
    /// One of several, each of which would do.
    Any(Vec<Vec<Wait>>),
    /// So many of several.
    Several {
        need: u32,
        of: Vec<Vec<Wait>>,
    },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |of: &[Vec<Self>], word: &str| {
            let texts: Vec<String> = of
                .iter()
                .map(|waits| {
                    let texts: Vec<String> = waits.iter().map(ToString::to_string).collect();
                    if waits.len() > 1 { format!("({})", texts.join(" and ")) } else { texts.concat() }
                })
                .collect();
            texts.join(word)
        };
        match self {
            Self::Derivation(path) => f.write_str(&path.absolute()),
            Self::AnyDerivation => f.write_str("derivation"),
            Self::Person => f.write_str("person"),
            Self::Rebuilds { have, need, inputs } => {
                let inputs = if *inputs { " with rebuilt inputs" } else { "" };
                write!(f, "{}{inputs} ({have} of {need})", count(*need, "rebuild"))
            }
            Self::Confirmations { have, need } => {
                write!(f, "{} of the mismatch ({have} of {need})", count(*need, "confirmation"))
            }
            Self::SecondBuild(verifier) => write!(f, "a second build by `{verifier}`"),
            Self::Submitters { have, need } => write!(f, "{} ({have} of {need})", count(*need, "submitter")),
            Self::Approvals { have, need, from } => {
                write!(f, "{} from `{from}` ({have} of {need})", count(*need, "approval"))
            }
            Self::Upstream { url: Some(url) } => write!(f, "upstream `{url}`"),
            Self::Upstream { url: None } => f.write_str("any upstream"),
            Self::Ci(identity) => f.write_str(identity),
            Self::Fetch(source) => write!(f, "an attested fetch of {source}"),
            Self::Any(of) => f.write_str(&list(of, " or ")),
            Self::Several { need, of } => write!(f, "{need} of {}", list(of, ", ")),
        }
    }
}

/// What the policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Publish {
        /// Name of the rule.
        rule: String,
        /// Policy words of the evidence that it rests on, such as `derivation` or `rebuilds`.
        evidence: Vec<String>,
    },
    Hold {
        /// `None` where it can't be told yet which rule decides.
        rule: Option<String>,
        /// Stable and kebab-case.
        code: &'static str,
        message: String,
        waits: Vec<Wait>,
        /// Seconds since 1970: when the rule gives up.
        until: Option<u64>,
        /// Seconds since 1970: when the decision may change by time alone, such as when an approval runs out.
        again: Option<u64>,
    },
    Reject {
        rule: Option<String>,
        code: &'static str,
        message: String,
    },
}
