//! The facts of a decision as they are stored and replayed: owned, with a stable JSON form.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use pushgate_formats::{
    Sha256, StorePath,
    content_address::Method,
    derivation::FixedLeaf,
    hash::{HashError, NixHash},
};
use serde::{Deserialize, Serialize};

use crate::{
    Needs,
    facts::{
        Approval, Built, CiIdentity, Claim, Decision, Evidence, Fact, Identity, Moment, Provenance, Rebuild,
        Refusal, UpstreamFact, Voucher, Waiver,
    },
};

/// An identity at the time of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RecordedIdentity {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// See [`Built`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RecordedBuilt {
    pub derivation: StorePath,
    pub output: String,
    pub system: String,
    pub builder: String,
    /// The variables that the policy in force then asked for; `null` where the derivation has none of that name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Option<String>>,
}

/// See [`FixedLeaf`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RecordedSource {
    pub path: StorePath,
    /// `flat` or `recursive`; others can't be fixed outputs.
    pub method: Cow<'static, str>,
    /// `sha256-…`, as in SRI.
    pub hash: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

/// Everything that a decision rested on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Recorded {
    pub cache: String,
    pub path: StorePath,
    pub nar_hash: Sha256,
    /// Bytes.
    pub nar_size: u64,
    pub submitter: RecordedIdentity,
    pub content_addressed: Fact<bool>,
    pub built: Fact<RecordedBuilt>,
    /// `unknown` where the policy in force then didn't ask.
    pub sources: Fact<Vec<RecordedSource>>,
    pub provenance: Provenance,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<UpstreamFact>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rebuilds: Vec<Rebuild>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub submitters: Vec<Voucher>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waivers: Vec<Waiver>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ci: Vec<CiIdentity>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fetched: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drawn: bool,
    /// When it was decided and since when it waited, in seconds since 1970.
    pub now: u64,
    pub announced: u64,
}

/// A decision without its words: what two decisions are compared by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// `publish`, `hold` or `reject`.
    pub decision: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

impl Outcome {
    pub fn of(decision: &Decision) -> Self {
        let (word, rule, code) = match decision {
            Decision::Publish { rule, .. } => ("publish", Some(rule), None),
            Decision::Hold { rule, code, .. } => ("hold", rule.as_ref(), Some(*code)),
            Decision::Reject { rule, code, .. } => ("reject", rule.as_ref(), Some(*code)),
        };
        Self { decision: Cow::Borrowed(word), rule: rule.cloned(), code: code.map(str::to_owned) }
    }
}

fn leaf(source: &RecordedSource) -> Result<FixedLeaf, HashError> {
    let method = if source.method == "flat" { Method::Flat } else { Method::Recursive };
    let hash = NixHash::parse(&source.hash)?;
    Ok(FixedLeaf { path: source.path.clone(), method, hash, urls: source.urls.clone() })
}

impl From<&FixedLeaf> for RecordedSource {
    fn from(leaf: &FixedLeaf) -> Self {
        let method = if leaf.method == Method::Flat { "flat" } else { "recursive" };
        let hash = leaf.hash.sri();
        Self { path: leaf.path.clone(), method: method.into(), hash, urls: leaf.urls.clone() }
    }
}

impl Recorded {
    /// Keeps what a decision rested on. `asked`: the variables of the environment that were looked for.
    pub fn of(claim: &Claim<'_>, evidence: &Evidence, moment: Moment, asked: &BTreeSet<String>) -> Self {
        let built = claim.built.map(|b| RecordedBuilt {
            derivation: b.derivation.clone(),
            output: b.output.to_owned(),
            system: b.system.to_owned(),
            builder: b.builder.to_owned(),
            env: asked.iter().map(|name| (name.clone(), b.env.get(name).cloned())).collect(),
        });
        let Evidence {
            provenance,
            upstreams,
            rebuilds,
            submitters,
            approvals,
            waivers,
            refusal,
            ci,
            fetched,
            drawn,
        } = evidence.clone();
        Self {
            cache: claim.cache.to_owned(),
            path: claim.path.clone(),
            nar_hash: claim.nar_hash,
            nar_size: claim.nar_size,
            submitter: RecordedIdentity {
                name: claim.submitter.name.to_owned(),
                owner: claim.submitter.owner.map(str::to_owned),
                groups: claim.submitter.groups.to_vec(),
            },
            content_addressed: claim.content_addressed,
            built,
            sources: claim.sources.map(|all| all.iter().map(RecordedSource::from).collect()),
            provenance,
            upstreams,
            rebuilds,
            submitters,
            approvals,
            waivers,
            refusal,
            ci,
            fetched,
            drawn,
            now: moment.now,
            announced: moment.announced,
        }
    }

    /// Whether everything that a policy asks for was looked up for this decision.
    pub fn covers(&self, needs: &Needs) -> bool {
        let built = match &self.built {
            Fact::Known(b) => needs.env.iter().all(|name| b.env.contains_key(name)),
            Fact::Absent | Fact::Unknown => true,
        };
        let sources = !needs.sources || self.sources != Fact::Unknown || self.built == Fact::Unknown;
        let upstreams = needs.upstreams.iter().all(|url| self.upstreams.iter().any(|fact| fact.url == *url));
        let submitters = !needs.submitters || !self.submitters.is_empty();
        built && sources && upstreams && submitters
    }

    /// The facts again, at some time; `env` is what the policy asks for. A variable that wasn't looked at then makes the
    /// whole of `built` unknown: nothing is taken for absent that may be there.
    pub fn replay<T>(
        &self,
        now: u64,
        env: &BTreeSet<String>,
        judge: impl FnOnce(&Claim<'_>, &Evidence, Moment) -> T,
    ) -> T {
        let variables: BTreeMap<String, String> = match &self.built {
            Fact::Known(b) => b.env.iter().filter_map(|(k, v)| Some((k.clone(), v.clone()?))).collect(),
            _ => BTreeMap::new(),
        };
        let built = match &self.built {
            Fact::Known(b) if env.iter().any(|name| !b.env.contains_key(name)) => Fact::Unknown,
            Fact::Known(b) => Fact::Known(Built {
                derivation: &b.derivation,
                output: &b.output,
                system: &b.system,
                builder: &b.builder,
                env: &variables,
            }),
            Fact::Absent => Fact::Absent,
            Fact::Unknown => Fact::Unknown,
        };
        let sources = match &self.sources {
            // a hash that can't be read is no fact
            Fact::Known(all) => match all.iter().map(leaf).collect::<Result<Vec<_>, _>>() {
                Ok(leaves) => Fact::Known(leaves),
                Err(_) => Fact::Unknown,
            },
            Fact::Absent => Fact::Absent,
            Fact::Unknown => Fact::Unknown,
        };
        let claim = Claim {
            cache: &self.cache,
            path: &self.path,
            nar_hash: self.nar_hash,
            nar_size: self.nar_size,
            submitter: Identity {
                name: &self.submitter.name,
                owner: self.submitter.owner.as_deref(),
                groups: &self.submitter.groups,
            },
            content_addressed: self.content_addressed,
            built,
            sources: match &sources {
                Fact::Known(leaves) => Fact::Known(leaves.as_slice()),
                Fact::Absent => Fact::Absent,
                Fact::Unknown => Fact::Unknown,
            },
        };
        let evidence = Evidence {
            provenance: self.provenance.clone(),
            upstreams: self.upstreams.clone(),
            rebuilds: self.rebuilds.clone(),
            submitters: self.submitters.clone(),
            approvals: self.approvals.clone(),
            waivers: self.waivers.clone(),
            refusal: self.refusal.clone(),
            ci: self.ci.clone(),
            fetched: self.fetched.clone(),
            drawn: self.drawn,
        };
        judge(&claim, &evidence, Moment { now, announced: self.announced })
    }
}
