//! How a claim stands to what a rule requires: which parts are met, and what the others wait for.
//!
//! Nobody vouches for himself: a verifier, a further submitter, an approver and who waives count only with an owner, other
//! than the claim's, and each owner once.

use std::collections::BTreeSet;

use crate::{
    facts::{CiIdentity, Claim, Evidence, Fact, Moment, Outcome, Provenance, UpstreamSays, Wait},
    rule::{Requirement, Sigstore, SourceEntry},
};

/// The word under which a rebuild can be waived.
pub(crate) const REBUILDS: &str = "rebuilds";

/// What a claim that was drawn for a rebuild needs beside what its rule says.
pub(crate) const DRAWN: Requirement = Requirement::Rebuilds { n: 1, inputs_rebuilt: false };

/// All that a requirement is judged by.
#[derive(Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) claim: &'a Claim<'a>,
    pub(crate) evidence: &'a Evidence,
    pub(crate) moment: Moment,
}

/// How a claim stands to a requirement or a part of it.
#[derive(Debug)]
pub(crate) struct Standing<'r> {
    pub(crate) requirement: &'r Requirement,
    pub(crate) met: bool,
    /// Of something that is counted.
    pub(crate) have: Option<u32>,
    /// Policy words of the evidence, where it is met.
    pub(crate) words: BTreeSet<&'static str>,
    /// What it waits for, where it isn't.
    pub(crate) waits: Vec<Wait>,
    /// Why a claim is held that lacks it.
    pub(crate) code: &'static str,
    pub(crate) parts: Vec<Self>,
}

/// Codes of holds, with what needs to be settled first in front.
const CODES: [&str; 9] = [
    "needs-derivation",
    "needs-content-address",
    "content-address-weak",
    "needs-sources",
    "needs-sigstore",
    "needs-upstream",
    "needs-rebuild",
    "needs-submitters",
    "needs-approval",
];

/// The code that stands for several.
pub(crate) fn first_code<'a>(codes: impl IntoIterator<Item = &'a str>) -> &'static str {
    let given: Vec<&str> = codes.into_iter().collect();
    // every requirement's code is in the list
    CODES.into_iter().find(|code| given.contains(code)).unwrap_or("needs-evidence")
}

impl Case<'_> {
    /// What the claim's own vouching is told by: his owner, or his name where he has none.
    fn claimant(&self) -> &str {
        self.claim.submitter.owner.unwrap_or(self.claim.submitter.name)
    }

    /// Whether somebody of this owner is somebody else than the claim's submitter.
    pub(crate) fn is_other(&self, owner: Option<&str>) -> bool {
        owner.is_some_and(|owner| owner != self.claimant())
    }

    const fn runs(&self, until: Option<u64>) -> bool {
        match until {
            Some(until) => until > self.moment.now,
            None => true,
        }
    }

    /// Whether somebody else has said that no rebuild is needed.
    pub(crate) fn rebuild_is_waived(&self) -> bool {
        let mut waivers = self.evidence.waivers.iter();
        waivers.any(|w| w.word == REBUILDS && self.is_other(w.owner.as_deref()) && self.runs(w.until))
    }

    /// Different owners whose verifiers got the same.
    pub(crate) fn rebuilds(&self, inputs_rebuilt: bool) -> u32 {
        let matching = self.evidence.rebuilds.iter().filter(|rebuild| {
            rebuild.outcome == Outcome::Match
                && (rebuild.inputs_rebuilt || !inputs_rebuilt)
                && self.is_other(rebuild.owner.as_deref())
        });
        number(matching.filter_map(|rebuild| rebuild.owner.as_deref()))
    }

    /// Different owners who claim the same, the claim's own included if it has one.
    fn submitters(&self) -> u32 {
        let own = self.claim.submitter.owner;
        let owners = self.evidence.submitters.iter().filter_map(|voucher| voucher.owner.as_deref());
        number(owners.filter(|owner| own == Some(*owner) || self.is_other(Some(owner))))
    }

    fn approvals(&self, from: &crate::rule::Group) -> u32 {
        let approvals = self.evidence.approvals.iter().filter(|approval| {
            self.runs(approval.until)
                && self.is_other(approval.owner.as_deref())
                && from.has(&approval.by, &approval.groups)
        });
        number(approvals.filter_map(|approval| approval.owner.as_deref()))
    }

    /// Judges a requirement.
    pub(crate) fn stand<'r>(&self, requirement: &'r Requirement) -> Standing<'r> {
        let leaf = |met: bool, word: &'static str, code: &'static str, waits: Vec<Wait>| Standing {
            requirement,
            met,
            have: None,
            words: if met { BTreeSet::from([word]) } else { BTreeSet::new() },
            waits: if met { vec![] } else { waits },
            code,
            parts: vec![],
        };
        let provenance = &self.evidence.provenance;
        match requirement {
            Requirement::Nothing => leaf(true, "nothing", "", vec![]),
            Requirement::Derivation => {
                let met = *provenance == Provenance::Derivation;
                leaf(met, "derivation", "needs-derivation", derivations(provenance))
            }
            Requirement::ContentAddress => match provenance {
                Provenance::ContentAddressWeak => {
                    leaf(false, "content-address", "content-address-weak", vec![Wait::Person])
                }
                _ => self.content_address(requirement, *provenance == Provenance::ContentAddress),
            },
            Requirement::ContentAddressWeak => match provenance {
                Provenance::ContentAddressWeak => leaf(true, "content-address-weak", "", vec![]),
                _ => self.content_address(requirement, *provenance == Provenance::ContentAddress),
            },
            Requirement::Upstream(wanted) => {
                let mut upstreams = self.evidence.upstreams.iter();
                let met = upstreams.any(|upstream| {
                    upstream.says == UpstreamSays::Same
                        && wanted.as_ref().is_none_or(|url| *url == upstream.url)
                });
                leaf(met, "upstream", "needs-upstream", vec![Wait::Upstream { url: wanted.clone() }])
            }
            Requirement::Rebuilds { n, inputs_rebuilt } => {
                let (have, need, inputs) = (self.rebuilds(*inputs_rebuilt), *n, *inputs_rebuilt);
                let waived = have < need && self.rebuild_is_waived();
                let word = if waived { "waiver" } else { REBUILDS };
                let waits = vec![Wait::Rebuilds { have, need, inputs }];
                Standing { have: Some(have), ..leaf(waived || have >= need, word, "needs-rebuild", waits) }
            }
            Requirement::Submitters { n } => {
                let (have, need) = (self.submitters(), *n);
                let waits = vec![Wait::Submitters { have, need }];
                Standing { have: Some(have), ..leaf(have >= need, "submitters", "needs-submitters", waits) }
            }
            Requirement::Approvals { n, from } => {
                let (have, need) = (self.approvals(from), *n);
                let waits = vec![Wait::Approvals { have, need, from: from.name.clone() }];
                Standing { have: Some(have), ..leaf(have >= need, "approvals", "needs-approval", waits) }
            }
            Requirement::Sigstore(sigstore) => {
                let met = self.evidence.ci.iter().any(|identity| sigstore.fits(identity));
                leaf(met, "sigstore", "needs-sigstore", vec![Wait::Ci(sigstore.to_string())])
            }
            Requirement::Sources(entries) => self.sources(requirement, entries),
            Requirement::All(parts) => self.several(requirement, parts, parts.len()),
            Requirement::Any(parts) => self.several(requirement, parts, 1),
            Requirement::AtLeast { n, of } => self.several(requirement, of, *n as usize),
        }
    }

    fn content_address<'r>(&self, requirement: &'r Requirement, met: bool) -> Standing<'r> {
        let provenance = &self.evidence.provenance;
        let waits = match provenance {
            // the derivation of a fixed output tells it too
            Provenance::Unproven { .. } => derivations(provenance),
            _ => vec![Wait::Person],
        };
        Standing {
            requirement,
            met,
            have: None,
            words: if met { BTreeSet::from(["content-address"]) } else { BTreeSet::new() },
            waits: if met { vec![] } else { waits },
            code: "needs-content-address",
            parts: vec![],
        }
    }

    fn sources<'r>(&self, requirement: &'r Requirement, entries: &[SourceEntry]) -> Standing<'r> {
        let (met, code, waits) = match self.claim.sources {
            Fact::Unknown => (false, "needs-derivation", derivations(&self.evidence.provenance)),
            // no derivation, so nothing whose sources could be told
            Fact::Absent => (false, "needs-sources", vec![Wait::Person]),
            Fact::Known(leaves) => {
                let mut waits = vec![];
                for leaf in leaves {
                    let sri = leaf.hash.sri();
                    let fits = entries.iter().any(|entry| match &entry.hash {
                        Some(hash) => *hash == leaf.hash,
                        None => self.evidence.fetched.iter().any(|(url, hash)| {
                            *hash == sri && entry.urls.as_ref().is_some_and(|urls| urls.matches(url))
                        }),
                    });
                    if fits {
                        continue;
                    }
                    let fetchable = leaf.urls.iter().find(|url| {
                        let mut open = entries.iter().filter(|entry| entry.hash.is_none());
                        open.any(|entry| entry.urls.as_ref().is_some_and(|urls| urls.matches(url)))
                    });
                    waits.push(match fetchable {
                        Some(url) => Wait::Fetch(format!("`{url}` with hash `{sri}`")),
                        None => Wait::Person,
                    });
                }
                waits.dedup();
                (waits.is_empty(), "needs-sources", waits)
            }
        };
        let words = if met { BTreeSet::from(["sources"]) } else { BTreeSet::new() };
        Standing { requirement, met, have: None, words, waits, code, parts: vec![] }
    }

    fn several<'r>(
        &self,
        requirement: &'r Requirement,
        parts: &'r [Requirement],
        need: usize,
    ) -> Standing<'r> {
        let parts: Vec<Standing<'r>> = parts.iter().map(|part| self.stand(part)).collect();
        let have = parts.iter().filter(|part| part.met).count();
        let met = have >= need;
        let words =
            parts.iter().filter(|part| part.met && met).flat_map(|part| part.words.iter().copied()).collect();
        let lacking: Vec<&Standing<'_>> = parts.iter().filter(|part| !part.met && !met).collect();
        let each = || lacking.iter().map(|part| part.waits.clone()).collect::<Vec<_>>();
        let waits = match need.saturating_sub(have) {
            0 => vec![],
            // nothing to choose
            missing if missing >= lacking.len() => each().concat(),
            1 => vec![Wait::Any(each())],
            missing => vec![Wait::Several { need: missing as u32, of: each() }],
        };
        let code = first_code(lacking.iter().map(|part| part.code));
        Standing { requirement, met, have: Some(have as u32), words, waits, code, parts }
    }
}

/// How many different ones there are.
pub(crate) fn number<'a>(owners: impl Iterator<Item = &'a str>) -> u32 {
    u32::try_from(owners.collect::<BTreeSet<_>>().len()).unwrap_or(u32::MAX)
}

/// What would tell how the path is made.
pub(crate) fn derivations(provenance: &Provenance) -> Vec<Wait> {
    match provenance {
        Provenance::Unproven { missing } if !missing.is_empty() => {
            missing.iter().cloned().map(Wait::Derivation).collect()
        }
        _ => vec![Wait::AnyDerivation],
    }
}

impl Sigstore {
    /// Whether this identity is one of those described.
    pub fn fits(&self, identity: &CiIdentity) -> bool {
        self.issuer.matches(&identity.issuer)
            && self.subject.as_ref().is_none_or(|texts| texts.matches(&identity.subject))
            && self
                .claims
                .iter()
                .all(|(name, texts)| identity.claims.get(name).is_some_and(|value| texts.matches(value)))
    }
}
