//! Stage 6: asks the policy. The decision itself is a pure function in the `policies` crate; here its "publish" becomes a
//! proof, and what it rested on a row.

use std::sync::Arc;

use pushgate_formats::{Sha256, StorePath, sample::Draw};
use pushgate_policies::{
    self as policies, Policy,
    facts::{Decision, Moment, Wait},
    rebuilds::RebuildStanding,
    record::{Outcome, Recorded},
};

use super::{
    derivations::Resolved,
    evidence::{Known, Origin},
    provenance::Provenance,
    rebuild::standing::Witness,
    session::Session,
    signature::SignatureValid,
};
use crate::db::{Decided, EnrolledKey, NewDecision};

/// Proof that the policy admits this path with this NAR hash.
#[derive(Debug, Clone)]
pub struct Admitted {
    path: StorePath,
    nar_hash: Sha256,
    rule: String,
    evidence: Vec<String>,
    policy: Sha256,
    witnesses: Vec<Witness>,
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
    /// Verifiers that got the same, and aren't the claimant's.
    pub fn witnesses(&self) -> &[Witness] {
        &self.witnesses
    }
    /// Whether a verifier got these contents, be it that the rule asks for it or that only a conflict did. One that got others
    /// keeps a claim from being admitted.
    pub fn is_rebuilt(&self) -> bool {
        self.evidence.iter().any(|word| word == "rebuilds") || !self.witnesses.is_empty()
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
        /// Derivations among what it waits for.
        derivations: Vec<StorePath>,
    },
    Rejected {
        code: &'static str,
        message: String,
    },
}

/// A verdict with what is stored of it.
pub struct Judgement {
    pub verdict: Verdict,
    pub decision: NewDecision,
    /// Seconds since 1970: when time alone may change it.
    pub again: Option<u64>,
    /// What it needs of verifiers, where it isn't admitted.
    pub rebuilds: Option<RebuildStanding>,
    /// Whether it is drawn for a rebuild, and the draw where it is new.
    pub drawn: bool,
    pub draw: Option<Draw>,
}

/// What a decision is asked of.
pub struct Asked<'a> {
    pub policy: &'a Arc<Policy>,
    pub session: &'a Session,
    pub signed: &'a SignatureValid,
    pub submitter: &'a EnrolledKey,
    pub provenance: &'a Provenance,
    pub resolved: &'a Resolved,
    pub known: &'a Known,
    /// Draws for the same submitter's claims that this judgement makes before it.
    pub draws_before: u32,
}

/// Judges one claim.
pub fn decide(asked: &Asked<'_>) -> Judgement {
    let Asked { policy, session, signed, submitter, provenance, resolved, known, .. } = asked;
    let claim = signed.claim();
    let origin = Origin::of(provenance, claim.deriver.as_ref(), resolved, known);
    let facts = origin.claim(&session.cache.name, provenance, claim.nar_size, submitter);
    let mut evidence = known.evidence(provenance, submitter);
    let (drawn, draw) = known.draw(policy, &facts, provenance, (session.identity, asked.draws_before));
    evidence.drawn = drawn;
    let moment = Moment { now: known.now, announced: session.announced };
    let decision = policies::decide(policy, &facts, &evidence, moment);
    let recorded = Recorded::of(&facts, &evidence, moment, &known.needs.env);
    let stored = stored_outcome(policy, Outcome::of(&decision), &recorded);
    let mut again = None;
    let rebuilds = match &decision {
        Decision::Publish { .. } => None,
        _ => Some(policies::rebuilds::stands(policy, &facts, &evidence, moment)),
    };
    let verdict = match decision {
        Decision::Publish { rule, evidence } => Verdict::Admitted(Admitted {
            path: provenance.path().clone(),
            nar_hash: provenance.nar_hash(),
            rule,
            evidence,
            policy: policy.digest,
            witnesses: known.witnesses(provenance, submitter),
        }),
        Decision::Hold { code, message, waits, until, again: change, .. } => {
            again = [until, change, known.ask_again(provenance.path())].into_iter().flatten().min();
            let (waits, derivations) = waits_shown(&waits);
            Verdict::Held { code, message, waits, derivations }
        }
        Decision::Reject { code, message, .. } => Verdict::Rejected { code, message },
    };
    Judgement { verdict, decision: stored, again, rebuilds, draw, drawn }
}

/// A decision as it is kept.
pub fn stored_outcome(policy: &Policy, outcome: Outcome, recorded: &Recorded) -> NewDecision {
    // strings and numbers only
    let text = |recorded: &Recorded| serde_json::to_string(recorded).unwrap_or_default();
    let timeless = text(&Recorded { now: 0, ..recorded.clone() });
    NewDecision {
        decided: Decided { policy: policy.digest, facts: Sha256::of(timeless.as_bytes()), outcome },
        facts: text(recorded),
    }
}

/// Waits as `status` shows them, and the derivations among them.
pub fn waits_shown(waits: &[Wait]) -> (Vec<String>, Vec<StorePath>) {
    let derivations = waits.iter().filter_map(|wait| match wait {
        Wait::Derivation(path) => Some(path.clone()),
        _ => None,
    });
    (waits.iter().map(Wait::to_string).collect(), derivations.collect())
}
