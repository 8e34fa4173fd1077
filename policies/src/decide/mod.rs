//! The decision: a pure, total function of policy, claim, evidence and time. The facts that every rule needs (signature,
//! NAR, references, closure) are proofs of their own and not asked here; realisations of content-addressed outputs are
//! claims of their own and aren't judged here either.

use crate::{
    Policy,
    facts::{Claim, Decision, Evidence, Moment, Provenance, UpstreamSays, Wait},
    matching::Found,
    rebuilds::{Contradiction, Verdict},
    rule::{OnMismatch, Requirement, Rule, Then},
    standing::{Case, DRAWN, Standing, derivations},
};

/// Judges a claim. Total: every combination has an answer. Pure: the same arguments, the same answer.
pub fn decide(policy: &Policy, claim: &Claim<'_>, evidence: &Evidence, moment: Moment) -> Decision {
    let limit = policy.limits_for(&claim.submitter).nar_size;
    if claim.nar_size > limit {
        let message = format!(
            "the NAR of `{}` has {} bytes; the policy of `{}` allows {limit}",
            claim.path, claim.nar_size, policy.cache
        );
        return Decision::Reject { rule: None, code: "nar-too-large", message };
    }
    let case = Case { claim, evidence, moment };
    if let Some(refusal) =
        evidence.refusal.as_ref().filter(|r| r.until.is_none_or(|until| until > moment.now))
    {
        let message = format!("`{}` refused `{}`: {}", refusal.by, claim.path, refusal.reason);
        return Decision::Reject { rule: None, code: "refused-by-admin", message };
    }
    match policy.find(claim) {
        Found::Nothing => {
            let message = format!("no rule of the policy of `{}` is for `{}`", policy.cache, claim.path);
            Decision::Reject { rule: None, code: "not-permitted", message }
        }
        Found::Unknown(i) => unknown(&policy.rules[i], &case),
        Found::Rule(i) => judge(&policy.rules[i], &case, policy.rebuilds.confirm),
    }
}

/// A claim of which it can't be told yet whether this rule, the first that may match, does.
fn unknown(rule: &Rule, case: &Case<'_>) -> Decision {
    let message = match &case.evidence.provenance {
        provenance @ Provenance::Unproven { .. } => needs_derivation(case.claim, provenance),
        _ => format!(
            "whether the rule `{}` is for `{}` can't be told before more of its derivations are here",
            rule.name, case.claim.path
        ),
    };
    Decision::Hold {
        rule: None,
        code: "needs-derivation",
        message,
        waits: derivations(&case.evidence.provenance),
        until: None,
        again: None,
    }
}

/// A claim that this rule is for.
fn judge(rule: &Rule, case: &Case<'_>, confirm: u32) -> Decision {
    let (claim, evidence) = (case.claim, case.evidence);
    let reject = |code, message| Decision::Reject { rule: Some(rule.name.clone()), code, message };
    let requirement = match &rule.then {
        Then::Deny(reason) => {
            return reject("not-permitted", format!("the rule `{}` denies it: {reason}", rule.name));
        }
        Then::Require(requirement) => requirement,
    };
    if let Some(limit) = rule.nar_size.filter(|limit| claim.nar_size > *limit) {
        let message = format!(
            "the NAR of `{}` has {} bytes; the rule `{}` allows {limit}",
            claim.path, claim.nar_size, rule.name
        );
        return reject("nar-too-large", message);
    }
    let standing = case.stand(requirement);
    let drawn = evidence.drawn.then(|| case.stand(&DRAWN));
    let both = || [Some(&standing), drawn.as_ref()].into_iter().flatten();
    let contradiction = Contradiction::of(case, confirm);
    let refuted = matches!(contradiction.verdict, Verdict::Confirmed { .. });
    let rebuilt = rebuilt_otherwise(case, &contradiction);
    if let (Some((code, message, _)), true, OnMismatch::Reject) = (&rebuilt, refuted, rule.on_mismatch) {
        return reject(code, message.clone());
    }
    let (code, message, waits) = if let Some(held) = otherwise_upstream(case).or(rebuilt) {
        held
    } else if both().all(|standing| standing.met) {
        let mut words: Vec<&str> = both().flat_map(|standing| standing.words.iter().copied()).collect();
        words.sort_unstable();
        words.dedup();
        let evidence = words.into_iter().map(str::to_owned).collect();
        return Decision::Publish { rule: rule.name.clone(), evidence };
    } else {
        lacking(rule, case, both().filter(|standing| !standing.met).collect())
    };
    let until = rule.hold.map(|seconds| case.moment.announced.saturating_add(seconds));
    if until.is_some_and(|until| until <= case.moment.now) {
        let message =
            format!("the rule `{}` has held `{}` for as long as it does: {message}", rule.name, claim.path);
        return reject("hold-expired", message);
    }
    let again = again(requirement, case, until);
    Decision::Hold { rule: Some(rule.name.clone()), code, message, waits, until, again }
}

type Held = (&'static str, String, Vec<Wait>);

/// What an upstream says otherwise: no rule publishes it, whatever else speaks for it.
fn otherwise_upstream(case: &Case<'_>) -> Option<Held> {
    let claim = case.claim;
    case.evidence.upstreams.iter().find_map(|upstream| {
        let UpstreamSays::Other(hash) = upstream.says else { return None };
        let message = format!(
            "`{}` has `{}` with the NAR hash `{hash}`, not `{}`",
            upstream.url, claim.path, claim.nar_hash
        );
        Some(("conflicts-with-upstream", message, vec![Wait::Person]))
    })
}

/// What rebuilds say otherwise. A waiver lets a claim go without them, and past what they leave open; it can't make true
/// what they have shown to be wrong.
fn rebuilt_otherwise(case: &Case<'_>, contradiction: &Contradiction<'_>) -> Option<Held> {
    let (claim, verifiers) = (case.claim, contradiction.verifiers());
    let waived = case.rebuild_is_waived();
    match contradiction.verdict {
        Verdict::Confirmed { got } => {
            let message = format!(
                "`{}` was claimed with the NAR hash `{}`, but its derivation yields `{got}`: so found {verifiers}",
                claim.path, claim.nar_hash
            );
            Some(("rebuild-mismatch", message, vec![Wait::Person]))
        }
        Verdict::Unconfirmed if !waived => {
            let message = format!("a rebuild of `{}` by {verifiers} came out differently", claim.path);
            Some(("rebuild-mismatch", message, contradiction.waits()))
        }
        Verdict::Irreproducible if !waived => {
            let message = format!(
                "rebuilds of `{}` differ from each other, so that it isn't reproducible: {verifiers} got something else",
                claim.path
            );
            Some(("rebuild-inconclusive", message, vec![Wait::Person]))
        }
        _ => None,
    }
}

/// What a claim that isn't contradicted still lacks.
fn lacking(rule: &Rule, case: &Case<'_>, lacking: Vec<&Standing<'_>>) -> Held {
    let (claim, provenance) = (case.claim, &case.evidence.provenance);
    let code = crate::standing::first_code(lacking.iter().map(|standing| standing.code));
    let mut waits: Vec<Wait> = vec![];
    for wait in lacking.iter().flat_map(|standing| &standing.waits) {
        if !waits.contains(wait) {
            waits.push(wait.clone());
        }
    }
    let message = match code {
        "needs-derivation" if matches!(provenance, Provenance::Unproven { .. }) => {
            needs_derivation(claim, provenance)
        }
        "content-address-weak" => {
            format!("the contents of `{}` hash to it only by md5 or sha1, which can be forged", claim.path)
        }
        _ => format!("of `{}`, {}", claim.path, asks(rule, case)),
    };
    (code, message, waits)
}

/// `the rule `x` requires 1 rebuild`.
fn asks(rule: &Rule, case: &Case<'_>) -> String {
    let drawn = if case.evidence.drawn { ", and it was drawn for a rebuild" } else { "" };
    match &rule.then {
        Then::Require(requirement) => format!("the rule `{}` requires {requirement}{drawn}", rule.name),
        Then::Deny(reason) => format!("the rule `{}` denies it: {reason}", rule.name),
    }
}

fn needs_derivation(claim: &Claim<'_>, provenance: &Provenance) -> String {
    match provenance {
        Provenance::Unproven { missing } if !missing.is_empty() => format!(
            "{} of the derivations that should prove `{}` were not sent: `pushgate push` sends them, and \
             `nix copy --derivation` to the address for pushes does",
            missing.len(),
            claim.path
        ),
        _ => format!(
            "`{}` names no deriver and is not content-addressed: nothing shows what made it",
            claim.path
        ),
    }
}

/// When time alone may change a hold: it ends, or something that counts runs out.
fn again(requirement: &Requirement, case: &Case<'_>, until: Option<u64>) -> Option<u64> {
    let evidence = case.evidence;
    let mut approvals = false;
    requirement.walk(&mut |part| approvals |= matches!(part, Requirement::Approvals { .. }));
    let approvals = evidence.approvals.iter().filter(|_| approvals).filter_map(|approval| approval.until);
    let waivers = evidence.waivers.iter().filter_map(|waiver| waiver.until);
    let future = approvals.chain(waivers).chain(until).filter(|at| *at > case.moment.now);
    future.min()
}

#[cfg(test)]
mod tests;
