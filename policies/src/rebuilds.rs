//! How the rebuilds of a claim stand: whether they contradict it, and what verifiers are to be asked for. Doesn't know who
//! could be asked: queues and verifiers are the gateway's business.
//!
//! A verifier that got another NAR hash than the claim's is asked to build a second time, and others are asked to confirm.
//! Then either they all got the same, and the claim's contents aren't what its derivation yields, or they differ, and the
//! derivation isn't reproducible: no number of further builds tells who is right.

use std::collections::BTreeSet;

use pushgate_formats::Sha256;

use crate::{
    Policy,
    facts::{Claim, Evidence, Moment, Outcome, Rebuild, Wait},
    matching::Found,
    rule::{OnMismatch, Requirement, Then},
    standing::{Case, DRAWN, Standing, number},
};

/// The `[rebuilds]` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilds {
    /// How many verifiers of further owners have to get what the first one got, for a mismatch to be confirmed. 0 to
    /// [`MAX_CONFIRM`]. Default: 2.
    pub confirm: u32,
    /// How many published paths verifiers without other work rebuild within 24 hours. Default: none.
    pub audit_per_day: u32,
    /// What follows where that is confirmed to differ. Default: `mark`.
    pub on_audit_mismatch: OnAuditMismatch,
}

/// What follows for a published path from rebuilds that are confirmed to differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnAuditMismatch {
    /// It is shown to everybody who asks, and stays.
    #[default]
    Mark,
    /// It is no longer served.
    Withdraw,
}

impl OnAuditMismatch {
    /// As policy files have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Mark => "mark",
            Self::Withdraw => "withdraw",
        }
    }
}

/// Most confirmations that a policy may ask for.
pub const MAX_CONFIRM: u32 = 4;

impl Default for Rebuilds {
    fn default() -> Self {
        Self { confirm: 2, audit_per_day: 0, on_audit_mismatch: OnAuditMismatch::Mark }
    }
}

/// How the rebuilds of a claim stand, and who is to build now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebuildStanding {
    /// How many more verifiers are needed now, each of an owner who hasn't reported and isn't the claim's.
    pub further: u32,
    /// Whether only rebuilds over rebuilt inputs meet what `further` is for.
    pub inputs_rebuilt: bool,
    /// Names of verifiers that should build a second time.
    pub again: Vec<String>,
    pub verdict: Verdict,
    /// Of the rule that decides; `None` where none does, or it can't be told yet.
    pub on_mismatch: Option<OnMismatch>,
}

/// Whether rebuilds contradict a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They don't.
    Nothing,
    /// One differs, and not all who were asked to confirm it have reported.
    Unconfirmed,
    /// All got this instead, so often that it is the claim that is wrong.
    Confirmed { got: Sha256 },
    /// They differ from each other.
    Irreproducible,
}

/// How the rebuilds of a claim stand that isn't rejected for its size or by an admin. A waiver in force means that nobody
/// is asked; the verdict is the same with and without one.
pub fn stands(policy: &Policy, claim: &Claim<'_>, evidence: &Evidence, moment: Moment) -> RebuildStanding {
    let case = Case { claim, evidence, moment };
    let contradiction = Contradiction::of(&case, policy.rebuilds.confirm);
    let mut standing = RebuildStanding {
        further: 0,
        inputs_rebuilt: false,
        again: vec![],
        verdict: contradiction.verdict,
        on_mismatch: None,
    };
    let requirement = match policy.find(claim) {
        Found::Rule(i) => {
            let rule = &policy.rules[i];
            let Then::Require(requirement) = &rule.then else { return standing };
            standing.on_mismatch = Some(rule.on_mismatch);
            Some(requirement)
        }
        Found::Unknown(_) => None,
        Found::Nothing => return standing,
    };
    // what is settled needs a person, not more builds
    let open = matches!(standing.verdict, Verdict::Nothing | Verdict::Unconfirmed);
    if !open || case.rebuild_is_waived() {
        return standing;
    }
    let required = requirement.map(|requirement| lacks(&case.stand(requirement))).unwrap_or_default();
    let drawn = if evidence.drawn { lacks(&case.stand(&DRAWN)).further } else { 0 };
    standing.further = required.further.max(drawn).max(contradiction.missing());
    standing.inputs_rebuilt = required.inputs_rebuilt;
    standing.again = contradiction.again;
    standing
}

/// How the rebuilds of something stand that is published: no rule is asked any more, and nobody waits. `claim` has a
/// submitter without a name, so that every verifier with an owner counts.
pub fn audited(policy: &Policy, claim: &Claim<'_>, evidence: &Evidence, moment: Moment) -> RebuildStanding {
    let case = Case { claim, evidence, moment };
    let contradiction = Contradiction::of(&case, policy.rebuilds.confirm);
    let open = contradiction.verdict == Verdict::Unconfirmed;
    RebuildStanding {
        further: if open { contradiction.missing() } else { 0 },
        inputs_rebuilt: false,
        again: if open { contradiction.again.clone() } else { vec![] },
        verdict: contradiction.verdict,
        on_mismatch: None,
    }
}

/// What rebuilds a requirement lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Lacks {
    further: u32,
    inputs_rebuilt: bool,
    /// Whether something else is lacking too, that no rebuild can meet.
    more: bool,
}

impl Lacks {
    /// All of these. Each verifier counts for every part, so the most that one part lacks is enough for all.
    fn all(parts: &[Self]) -> Self {
        Self {
            further: parts.iter().map(|part| part.further).max().unwrap_or(0),
            inputs_rebuilt: parts.iter().any(|part| part.inputs_rebuilt),
            more: parts.iter().any(|part| part.more),
        }
    }
}

fn lacks(standing: &Standing<'_>) -> Lacks {
    if standing.met {
        return Lacks::default();
    }
    let mut parts: Vec<Lacks> = standing.parts.iter().filter(|part| !part.met).map(lacks).collect();
    let met = standing.parts.len() - parts.len();
    let missing = match standing.requirement {
        Requirement::Rebuilds { n, inputs_rebuilt } => {
            let further = n.saturating_sub(standing.have.unwrap_or(0));
            return Lacks { further, inputs_rebuilt: *inputs_rebuilt, more: false };
        }
        Requirement::All(_) => parts.len(),
        Requirement::Any(_) => 1,
        Requirement::AtLeast { n, .. } => (*n as usize).saturating_sub(met),
        _ => return Lacks { more: true, ..Lacks::default() },
    };
    // of parts to choose from: first what rebuilds alone can meet, and of that what the fewest can
    parts.sort_by_key(|part| (part.further == 0, part.more, part.further));
    parts.truncate(missing);
    Lacks::all(&parts)
}

/// What rebuilds say against a claim.
pub(crate) struct Contradiction<'a> {
    pub(crate) verdict: Verdict,
    /// Those that differ from the claim or from themselves, in the order of the evidence.
    pub(crate) differing: Vec<&'a Rebuild>,
    /// Owners who reported beside the one whose verifier differs first.
    have: u32,
    /// How many are asked to.
    need: u32,
    /// Names of verifiers to build a second time.
    again: Vec<String>,
}

impl<'a> Contradiction<'a> {
    /// `confirm`: how many owners beside the first have to report. Somebody who counts for nothing (without an owner, or
    /// the claim's own) can still be right: his mismatch is a warning, for which others are asked, but confirms nothing.
    pub(crate) fn of(case: &Case<'a>, confirm: u32) -> Self {
        let evidence: &'a Evidence = case.evidence;
        let all = || evidence.rebuilds.iter();
        let counted = || all().filter(|rebuild| case.is_other(rebuild.owner.as_deref()));
        let differing: Vec<&Rebuild> =
            all().filter(|r| matches!(r.outcome, Outcome::Mismatch | Outcome::Inconclusive)).collect();
        let mut found = Self { verdict: Verdict::Nothing, differing, have: 0, need: 0, again: vec![] };
        if found.differing.is_empty() {
            return found;
        }
        // differing with what isn't known, or with the very claim, is a warning too
        let other = |rebuild: &Rebuild| match rebuild.outcome {
            Outcome::Mismatch => rebuild.nar_hash.filter(|hash| *hash != case.claim.nar_hash),
            _ => None,
        };
        let got: BTreeSet<Sha256> = counted().filter_map(other).collect();
        let owners = |of: &dyn Fn(&Rebuild) -> bool| {
            number(counted().filter(|rebuild| of(rebuild)).filter_map(|rebuild| rebuild.owner.as_deref()))
        };
        let matching = owners(&|rebuild| rebuild.outcome == Outcome::Match);
        let reported = owners(&|rebuild| rebuild.outcome == Outcome::Match || other(rebuild).is_some());
        if got.len() > 1 || counted().any(|rebuild| rebuild.outcome == Outcome::Inconclusive) {
            found.verdict = Verdict::Irreproducible;
            return found;
        }
        let twice = |rebuild: &Rebuild| rebuild.builds >= 2 || rebuild.outcome == Outcome::Inconclusive;
        let got = got.first().copied();
        let surely = match got {
            Some(_) => {
                (found.have, found.need) = (reported.saturating_sub(1), confirm);
                counted().any(|rebuild| other(rebuild).is_some() && twice(rebuild))
            }
            // only warnings: somebody who counts has to have looked, whatever `confirm` is
            None => {
                (found.have, found.need) = (matching, confirm.max(1));
                found.differing.iter().any(|rebuild| twice(rebuild))
            }
        };
        found.verdict = match got {
            _ if found.missing() > 0 || !surely => Verdict::Unconfirmed,
            Some(got) if matching == 0 => Verdict::Confirmed { got },
            _ => Verdict::Irreproducible,
        };
        let once = found.differing.iter().filter(|rebuild| !twice(rebuild));
        found.again = once.map(|rebuild| rebuild.verifier.clone()).collect();
        found
    }

    /// How many owners are still to report.
    fn missing(&self) -> u32 {
        if matches!(self.verdict, Verdict::Irreproducible) { 0 } else { self.need.saturating_sub(self.have) }
    }

    /// What an unconfirmed one waits for.
    pub(crate) fn waits(&self) -> Vec<Wait> {
        let mut waits = vec![];
        if self.missing() > 0 {
            waits.push(Wait::Confirmations { have: self.have, need: self.need });
        }
        waits.extend(self.again.iter().cloned().map(Wait::SecondBuild));
        waits.push(Wait::Person);
        waits
    }

    /// `` `a`, `b` ``: who differs.
    pub(crate) fn verifiers(&self) -> String {
        let names: Vec<String> =
            self.differing.iter().map(|rebuild| format!("`{}`", rebuild.verifier)).collect();
        names.join(", ")
    }
}

#[cfg(test)]
mod tests;
