//! Judges claims by facts that were looked up before. Blocks, since bytes may have to be read again; asks nobody.

use std::{collections::HashMap, sync::Arc};

use pushgate_formats::{StorePath, api::PathState};

use super::{JudgeError, facts::Facts};
use crate::{
    blobs::Blobs,
    db::{ClaimUpdate, Decided, NewDecision, NewDraw},
    push::{
        announce::Claim,
        closure,
        decide::{self, Judgement},
        derivations::Resolved,
        intake::{DigestWanted, NarIntact, Plan},
        provenance::{self, ProvenanceKind},
        publish::{PublishError, Publishable},
        quarantine::{Quarantined, ScanSet, examine_again},
        rebuild::demand::Need,
        references::{self, Scope},
        session::{ClaimState, Session},
    },
};

/// Paths that one claim waits on at most; when they have come the others are found.
pub(super) const WAITS: usize = 64;
/// Largest listing that is kept of a NAR that was read again. Bytes.
const LISTING: usize = 2 << 10;
/// Claims of one NAR that refer to themselves at most: bytes hold one path's hash, so more than one are lies, and each
/// costs a pass over the bytes.
const SELVES: usize = 4;

/// What a round found.
#[derive(Default)]
pub(super) struct Round {
    pub(super) publish: Vec<(Arc<Session>, usize, Publishable)>,
    /// (session, claim, new state, paths whose publication may change it)
    pub(super) states: Vec<(Arc<Session>, usize, ClaimState, Vec<StorePath>)>,
    pub(super) conflicts: Vec<(StorePath, pushgate_formats::Sha256, i64)>,
    pub(super) lookups: Vec<StorePath>,
    /// By push: see [`super::session::Progress::evidence`].
    pub(super) evidence: HashMap<String, u64>,
    /// By push and claim: what the policy decided, where that is new, and when time alone may change it.
    pub(super) decisions: HashMap<(String, usize), (Option<NewDecision>, Option<u64>)>,
    /// What held claims need of verifiers.
    pub(super) needs: Vec<Need>,
    pub(super) draws: Vec<NewDraw>,
}

impl Round {
    /// Remembers a decision for when the claim's state is written.
    fn note(&mut self, session: &Session, i: usize, decision: NewDecision, again: Option<u64>) {
        let known = session.progress().claims[i].decided.as_ref() == Some(&decision.decided);
        self.decisions.insert((session.id.clone(), i), ((!known).then_some(decision), again));
    }

    /// When a claim that waits for something outside of this cache is judged again at the latest.
    fn look_again(&mut self, session: &Session, i: usize, at: u64) {
        let (_, again) = self.decisions.entry((session.id.clone(), i)).or_default();
        *again = Some(again.map_or(at, |before| before.min(at)));
    }

    /// Whether the claim's row has to be written although its state is what it was.
    pub(super) fn is_new(&self, session: &Session, i: usize) -> bool {
        let found = self.decisions.get(&(session.id.clone(), i));
        found.is_some_and(|(decision, again)| decision.is_some() || again.is_some())
    }

    /// The claim's new row, with what was decided of it.
    pub(super) fn update(
        &mut self,
        session: &Session,
        i: usize,
        state: &ClaimState,
        waits_on: Vec<StorePath>,
    ) -> ClaimUpdate {
        let (decision, again) = self.decisions.remove(&(session.id.clone(), i)).unwrap_or_default();
        ClaimUpdate { decision, again, ..session.update(i, state, waits_on) }
    }
}

/// Claims that have their bytes and aren't settled for good, each after those that it refers to.
pub(super) fn open_claims(session: &Session) -> Vec<usize> {
    let progress = session.progress();
    let open = |i: &usize| {
        matches!(progress.claims[*i].state, PathState::Checking | PathState::Held)
            && progress.nars[*i].is_some()
    };
    session.order.iter().copied().filter(open).collect()
}

/// The next of them, at most so many, and where in [`Session::order`] the rest begins; 0 where there is none.
pub(super) fn open_part(session: &Session, most: usize) -> (Vec<usize>, usize) {
    let open: std::collections::HashSet<usize> = open_claims(session).into_iter().collect();
    let from = session.progress().judged;
    let mut part = Vec::new();
    for (at, i) in session.order.iter().enumerate().skip(from).filter(|(_, i)| open.contains(i)) {
        if part.len() == most {
            return (part, at);
        }
        part.push(*i);
    }
    (part, 0)
}

/// Claims whose bytes nobody seems to send: the client went away, and another push may have brought the path. None while
/// something of the push is being checked, which is when its client is there.
pub(super) fn unsent_claims(session: &Session) -> Vec<usize> {
    let progress = session.progress();
    if progress.claims.iter().any(|c| c.state == PathState::Checking) {
        return vec![];
    }
    let unsent = |i: &usize| {
        let claim = &progress.claims[*i];
        // one that differs from what is published may be settled
        claim.state == PathState::Wanted
            || (progress.nars[*i].is_none()
                && matches!(claim.code.as_deref(), Some(CONFLICTS_WITH_PUBLISHED | WITHDRAWN)))
    };
    session.order.iter().copied().filter(unsent).collect()
}

/// What such a claim has come to without its bytes, if its path is published.
fn settled_without_bytes(session: &Session, i: usize, facts: &Facts) -> Option<Outcome> {
    let claim = session.signed[i].claim();
    if let Some(outcome) = was_withdrawn(claim, facts) {
        return Some(outcome);
    }
    let (path, nar_hash) = facts.taken.get(claim.path.hash_part())?;
    Some(if *path == claim.path && *nar_hash == claim.nar_hash {
        Outcome::State(ClaimState::plain(PathState::Published), vec![])
    } else {
        differs_from_published(claim, path, nar_hash, facts)
    })
}

/// Judges every open claim of the batch. Blocks; asks nobody.
pub(super) fn evaluate(
    sessions: &[Arc<Session>],
    facts: &mut Facts,
    blobs: &dyn Blobs,
) -> Result<Round, JudgeError> {
    let mut round = Round::default();
    facts.served.batch.clear();
    facts.knowledge.begin_round();
    for session in sessions {
        let mut open = open_claims(session);
        open.retain(|i| facts.open.get(&session.id).is_some_and(|looked_up| looked_up.contains(i)));
        for i in unsent_claims(session).into_iter().chain(open) {
            let nar = session.progress().nars[i].clone();
            let outcome = match nar {
                Some(nar) => evaluate_claim(session, i, nar, facts, &mut round, blobs)?,
                None => match settled_without_bytes(session, i, facts) {
                    Some(outcome) => outcome,
                    None => continue,
                },
            };
            match outcome {
                Outcome::Publish(publishable) => {
                    let (path, nar_hash) = (publishable.path().clone(), publishable.nar_hash());
                    let references = session.signed[i].claim().references.clone();
                    facts.knowledge.publishing(path.clone(), Arc::new(references));
                    facts.taken.insert(path.hash_part().to_owned(), (path.clone(), nar_hash));
                    facts.served.batch.insert(path, nar_hash);
                    round.publish.push((session.clone(), i, *publishable));
                }
                Outcome::State(state, waits_on) => round.states.push((session.clone(), i, state, waits_on)),
                Outcome::Conflict(state, waits_on) => {
                    let claim = session.signed[i].claim();
                    round.conflicts.push((claim.path.clone(), claim.nar_hash, session.ids[i]));
                    round.states.push((session.clone(), i, state, waits_on));
                }
            }
        }
    }
    for (_, _, publishable) in &round.publish {
        facts.taken.remove(publishable.path().hash_part());
    }
    round.lookups = facts.knowledge.take_wanted();
    round.evidence.clone_from(&facts.evidence);
    Ok(round)
}

/// Least seconds until a claim that waits for something outside is judged again.
const SOON: u64 = 30;

enum Outcome {
    Publish(Box<Publishable>),
    State(ClaimState, Vec<StorePath>),
    Conflict(ClaimState, Vec<StorePath>),
}

impl Outcome {
    /// The same, decided so.
    fn by(self, decided: Decided) -> Self {
        match self {
            Self::State(state, waits_on) => Self::State(state.by(decided), waits_on),
            Self::Conflict(state, waits_on) => Self::Conflict(state.by(decided), waits_on),
            publish @ Self::Publish(_) => publish,
        }
    }
}

fn rejected(code: &str, message: String) -> Outcome {
    Outcome::State(ClaimState::with(PathState::Rejected, code, message, vec![]), vec![])
}

fn evaluate_claim(
    session: &Arc<Session>,
    i: usize,
    mut nar: NarIntact,
    facts: &mut Facts,
    round: &mut Round,
    blobs: &dyn Blobs,
) -> Result<Outcome, JudgeError> {
    let signed = &session.signed[i];
    let claim = signed.claim();
    if let Some(state) = facts.barred.get(&session.id) {
        round.look_again(session, i, later(session, facts));
        return Ok(Outcome::State(state.clone(), vec![]));
    }
    if let Some(outcome) = was_withdrawn(claim, facts) {
        return Ok(outcome);
    }
    // invariant 3: what is published under this hash keeps its name and NAR hash
    if let Some((path, nar_hash)) = facts.taken.get(claim.path.hash_part()) {
        if *path == claim.path && *nar_hash == claim.nar_hash {
            return Ok(Outcome::State(ClaimState::plain(PathState::Published), vec![]));
        }
        return Ok(differs_from_published(claim, path, nar_hash, facts));
    }
    let empty = Resolved::default();
    let resolved = facts.resolved.get(&session.id).unwrap_or(&empty);
    let Some((scan, complete)) = facts.scan.get(&session.id).cloned() else {
        // made for every push of the batch
        return Ok(Outcome::State(session.progress().claims[i].clone(), vec![]));
    };
    let provenance = loop {
        match provenance::check(signed, &nar, resolved) {
            Ok(provenance::Verdict::Found(provenance)) => break provenance,
            Ok(provenance::Verdict::Needs(wanted)) => {
                let same_bytes = session.by_nar.get(&claim.nar_hash).into_iter().flatten();
                let selves =
                    same_bytes.map(|j| session.signed[*j].claim()).filter(|c| c.references.contains(&c.path));
                if selves.count() > SELVES {
                    let message = format!(
                        "more than {SELVES} paths with the NAR hash of `{}` refer to themselves; bytes hold one path's hash",
                        claim.path
                    );
                    return Ok(rejected("content-address-mismatch", message));
                }
                nar = examined_again(session, i, &nar, &scan, Some(wanted), blobs)?;
            }
            Err(e) => return Ok(rejected(e.code(), e.to_string())),
        }
    };
    if session.inputs {
        return Ok(input(claim, &provenance));
    }
    let Some(submitter) = facts.submitters.get(&session.id).cloned() else {
        // a push without an enrolled key is barred above
        return Ok(Outcome::State(session.progress().claims[i].clone(), vec![]));
    };
    let asked = decide::Asked {
        policy: &facts.policy,
        session,
        signed,
        submitter: &submitter,
        provenance: &provenance,
        resolved,
        known: &facts.known,
        drawn: (round.draws.iter())
            .find(|new| new.draw.path == claim.path && new.draw.nar_hash == claim.nar_hash)
            .map(|new| new.draw.drawn),
    };
    let Judgement { verdict, decision, again, rebuilds, drawn, draw } = decide::decide(&asked);
    let decided = decision.decided.clone();
    if let Some(draw) = draw {
        round.draws.push(NewDraw { identity: session.identity, draw });
    }
    round.note(session, i, decision, again);
    if let (Some(standing), ProvenanceKind::Derivation { derivation, .. }) = (rebuilds, provenance.kind()) {
        let owner = submitter.owner.clone().or_else(|| Some(submitter.identity_name.clone()));
        let (session, derivation) = (session.clone(), derivation.clone());
        let known = facts.known.rebuilds_of(&claim.path);
        round.needs.push(Need { session, index: i, derivation, owner, drawn, standing, known });
    }
    let settled = facts.known.settled(&claim.path);
    let admitted = match verdict {
        decide::Verdict::Admitted(admitted) => Ok(admitted),
        decide::Verdict::Rejected { code, message } => return Ok(rejected(code, message).by(decided)),
        decide::Verdict::Held { code, message, waits, derivations } => {
            let mut waits_on = derivations;
            if let ProvenanceKind::Unproven { missing } = provenance.kind() {
                waits_on.extend(missing.iter().cloned());
            }
            let state = ClaimState::with(PathState::Held, code, message, waits).by(decided.clone());
            if code == "needs-derivation" {
                // nothing shows it to be right: it is nobody's rival
                return Ok(Outcome::State(state, waits_on));
            }
            Err((state, waits_on))
        }
    };
    if settled.is_some_and(|stands| stands != claim.nar_hash) {
        let message = format!(
            "an admin settled that another NAR hash than `{}` is right for `{}`",
            claim.nar_hash, claim.path
        );
        return Ok(rejected("conflict-settled", message).by(decided));
    }
    let rival = (facts.rivals.get(&claim.path).into_iter().flatten())
        .any(|(id, hash)| *id != session.ids[i] && *hash != claim.nar_hash);
    let goes_ahead = settled.is_some() || admitted.as_ref().is_ok_and(decide::Admitted::is_rebuilt);
    if rival && !goes_ahead {
        // whatever its rule asks for: a rebuild may show which of them is right
        if let Some(need) = round.needs.last_mut().filter(|n| n.session.id == session.id && n.index == i)
            && !facts.known.is_rebuilt(&claim.path)
        {
            need.standing.further = need.standing.further.max(1);
        }
        // not with which: nobody learns what others have sent
        let message = format!(
            "`{}` is claimed with another NAR hash than `{}` by another push: one of them has to be shown wrong",
            claim.path, claim.nar_hash
        );
        let mut waits = vec!["person".to_owned()];
        let mut waits_on = vec![];
        if let Err((state, on)) = admitted {
            waits.extend(state.waits);
            waits_on = on;
        }
        let state = ClaimState::with(PathState::Held, "conflicts-with-claim", message, waits).by(decided);
        return Ok(Outcome::Conflict(state, waits_on));
    }
    let admitted = match admitted {
        Ok(admitted) => admitted,
        Err((state, waits_on)) => return Ok(Outcome::State(state, waits_on)),
    };
    let scope = Scope { resolved, complete, scan: &scan };
    let references = loop {
        match references::check(signed, &nar, &provenance, &scope, &mut facts.knowledge) {
            Ok(references::Verdict::Exact(references)) => break references,
            Ok(references::Verdict::Rescan) => {
                nar = examined_again(session, i, &nar, &scan, None, blobs)?;
            }
            Ok(references::Verdict::Unknown { waits }) => {
                round.look_again(session, i, later(session, facts));
                let message = format!(
                    "whether the references of `{}` are right can't be told before those of {} of its inputs are known",
                    claim.path,
                    waits.len()
                );
                let names = waits.iter().take(20).map(StorePath::absolute).collect();
                let state =
                    ClaimState::with(PathState::Held, "references-unknown", message, names).by(decided);
                return Ok(Outcome::State(state, waits.into_iter().take(WAITS).collect()));
            }
            Err(e) => return Ok(rejected(e.code(), e.to_string()).by(decided)),
        }
    };
    let closure = match closure::check(&references, facts.policy.closure, &facts.served) {
        Ok(closure) => closure,
        Err(open) => {
            open.iter().for_each(|path| facts.knowledge.want(path));
            round.look_again(session, i, later(session, facts));
            let message = format!(
                "`{}` refers to {} paths that are neither published nor at an upstream",
                claim.path,
                open.len()
            );
            let names = open.iter().take(20).map(StorePath::absolute).collect();
            let state = ClaimState::with(PathState::Held, "closure-open", message, names).by(decided);
            return Ok(Outcome::State(state, open.into_iter().take(WAITS).collect()));
        }
    };
    Ok(Outcome::Publish(Box::new(Publishable::new(
        signed.clone(),
        nar,
        references,
        provenance,
        closure,
        admitted,
    )?)))
}

/// Code of a claim that stays in quarantine as an input for verifiers.
pub(super) const KEPT_AS_INPUT: &str = "kept-as-input";

/// What becomes of a path that was sent as an input for verifiers: it stays if it is what its path says, and is never
/// published.
fn input(claim: &Claim, provenance: &provenance::Provenance) -> Outcome {
    match provenance.kind() {
        ProvenanceKind::ContentAddress { weak: false, .. } => {
            let message = format!("`{}` is kept for verifiers, and not published", claim.path);
            Outcome::State(ClaimState::with(PathState::Held, KEPT_AS_INPUT, message, vec![]), vec![])
        }
        ProvenanceKind::ContentAddress { weak: true, .. } => {
            let message = format!(
                "the contents of `{}` hash to it only by md5 or sha1, which can be forged",
                claim.path
            );
            rejected("content-address-weak", message)
        }
        ProvenanceKind::Unproven { missing } if !missing.is_empty() => {
            let message = format!("the derivation that should show what `{}` is was not sent", claim.path);
            let waits = missing.iter().map(StorePath::absolute).collect();
            let state = ClaimState::with(PathState::Held, "needs-derivation", message, waits);
            Outcome::State(state, missing.clone())
        }
        ProvenanceKind::Unproven { .. } | ProvenanceKind::Derivation { .. } => {
            let message = format!(
                "`{}` doesn't follow from its contents: verifiers take only inputs that do",
                claim.path
            );
            rejected("input-not-content-addressed", message)
        }
    }
}

/// When what nobody reports is looked at again: soon at first, every hour in the end. Seconds since 1970.
fn later(session: &Session, facts: &Facts) -> u64 {
    let now = facts.known.now;
    now + (now.saturating_sub(session.announced) / 4).clamp(SOON, 3600)
}

/// What becomes of a claim of what was withdrawn: the pair of path and NAR hash stays what it was.
fn was_withdrawn(claim: &Claim, facts: &Facts) -> Option<Outcome> {
    let (path, nar_hash) = facts.withdrawn.get(claim.path.hash_part())?;
    if facts.known.is_refused(&claim.path, claim.nar_hash) {
        let message = format!("an admin refused the NAR hash `{}` of `{}`", claim.nar_hash, claim.path);
        return Some(rejected("refused-by-admin", message));
    }
    Some(match *path == claim.path && *nar_hash == claim.nar_hash {
        true => Outcome::State(withdrawn(claim), vec![]),
        false => differs_from_published(claim, path, nar_hash, facts),
    })
}

/// Code of a claim of contents that were published and withdrawn.
pub(super) const WITHDRAWN: &str = "withdrawn";

/// The state of a claim of contents that were published and withdrawn.
pub fn withdrawn(claim: &Claim) -> ClaimState {
    let message = format!(
        "`{}` was published with this NAR hash and withdrawn: verifiers agree that its derivation yields something else",
        claim.path
    );
    ClaimState::with(PathState::Held, WITHDRAWN, message, vec!["person".to_owned()])
}

/// What becomes of a claim that differs from what is published.
fn differs_from_published(
    claim: &Claim,
    path: &StorePath,
    nar_hash: &pushgate_formats::Sha256,
    facts: &Facts,
) -> Outcome {
    if facts.known.settled(&claim.path) == Some(*nar_hash) {
        let message =
            format!("an admin settled that the published NAR hash `{nar_hash}` is right for `{path}`");
        return rejected("conflict-settled", message);
    }
    Outcome::Conflict(conflicts_with_published(claim, path, nar_hash), vec![])
}

/// Code of a claim that differs from what is published.
pub(super) const CONFLICTS_WITH_PUBLISHED: &str = "conflicts-with-published";

/// The state of a claim that differs from what is published.
pub fn conflicts_with_published(
    claim: &Claim,
    path: &StorePath,
    nar_hash: &pushgate_formats::Sha256,
) -> ClaimState {
    let message = if *path == claim.path {
        format!(
            "`{}` is published with NAR hash `{nar_hash}`, claimed is `{}`; the published one stays",
            claim.path, claim.nar_hash
        )
    } else {
        format!("`{}` has the hash part of `{path}`, which is published", claim.path)
    };
    ClaimState::with(PathState::Held, CONFLICTS_WITH_PUBLISHED, message, vec!["person".to_owned()])
}

pub(super) fn damaged_state(claim: &Claim) -> ClaimState {
    let message =
        format!("the quarantined NAR of `{}` was damaged in the gateway's store; send it again", claim.path);
    ClaimState::with(PathState::Wanted, "quarantine-damaged", message, vec![])
}

/// Reads a NAR again, for one more digest or another set of candidates, and remembers what was found for all claims of it:
/// one pass, however many they are.
fn examined_again(
    session: &Arc<Session>,
    i: usize,
    nar: &NarIntact,
    scan: &Arc<ScanSet>,
    wanted: Option<DigestWanted>,
    blobs: &dyn Blobs,
) -> Result<NarIntact, JudgeError> {
    let old = nar.nar();
    let claims = session.by_nar.get(&nar.nar_hash()).map(Vec::as_slice).unwrap_or_default();
    let plan = Plan {
        scan: Some(scan.clone()),
        digests: old.examined.digests.keys().cloned().chain(wanted).collect(),
        capture: claims.iter().any(|j| session.signed[*j].path().is_derivation()),
        limit: old.examined.nar_size,
    };
    let damaged = || JudgeError::Damaged(session.clone(), i);
    let examined = examine_again(blobs, old, plan).map_err(|e| match PublishError::from(e) {
        e if e.is_damage() => damaged(),
        e => e.into(),
    })?;
    let mut examined = examined;
    // unaccounted memory: a large one is made again at publishing
    examined.listing = examined.listing.filter(|listing| listing.size() <= LISTING);
    let fresh = Arc::new(Quarantined { range: old.range.clone(), compression: old.compression, examined });
    let mut progress = session.progress();
    for j in claims.iter().filter(|j| **j != i) {
        if progress.nars[*j].is_some()
            && let Ok(better) = NarIntact::check(&session.signed[*j], &fresh)
        {
            progress.nars[*j] = Some(better);
        }
    }
    let better = NarIntact::check(&session.signed[i], &fresh).map_err(|_| damaged())?;
    progress.nars[i] = Some(better.clone());
    Ok(better)
}
