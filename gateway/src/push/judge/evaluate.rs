//! Judges claims by facts that were looked up before. Blocks, since bytes may have to be read again; asks nobody.

use std::{collections::HashMap, sync::Arc};

use pushgate_formats::{StorePath, api::PathState};

use super::{JudgeError, facts::Facts};
use crate::{
    blobs::Blobs,
    push::{
        announce::Claim,
        closure, decide,
        derivations::Resolved,
        intake::{DigestWanted, NarIntact, Plan},
        provenance::{self, ProvenanceKind},
        publish::{PublishError, Publishable},
        quarantine::{Quarantined, ScanSet, examine_again},
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
    let unsent = |i: &usize| progress.claims[*i].state == PathState::Wanted;
    session.order.iter().copied().filter(unsent).collect()
}

/// What such a claim has come to without its bytes, if its path is published.
fn settled_without_bytes(session: &Session, i: usize, facts: &Facts) -> Option<Outcome> {
    let claim = session.signed[i].claim();
    let (path, nar_hash) = facts.taken.get(claim.path.hash_part())?;
    Some(if *path == claim.path && *nar_hash == claim.nar_hash {
        Outcome::State(ClaimState::plain(PathState::Published), vec![])
    } else {
        Outcome::Conflict(conflicts_with_published(claim, path, nar_hash))
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
                Some(nar) => evaluate_claim(session, i, nar, facts, blobs)?,
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
                Outcome::Conflict(state) => {
                    let claim = session.signed[i].claim();
                    round.conflicts.push((claim.path.clone(), claim.nar_hash, session.ids[i]));
                    round.states.push((session.clone(), i, state, vec![]));
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

enum Outcome {
    Publish(Box<Publishable>),
    State(ClaimState, Vec<StorePath>),
    Conflict(ClaimState),
}

fn rejected(code: &str, message: String) -> Outcome {
    Outcome::State(ClaimState::with(PathState::Rejected, code, message, vec![]), vec![])
}

fn evaluate_claim(
    session: &Arc<Session>,
    i: usize,
    mut nar: NarIntact,
    facts: &mut Facts,
    blobs: &dyn Blobs,
) -> Result<Outcome, JudgeError> {
    let signed = &session.signed[i];
    let claim = signed.claim();
    if let Some(state) = facts.barred.get(&session.id) {
        return Ok(Outcome::State(state.clone(), vec![]));
    }
    // invariant 3: what is published under this hash keeps its name and NAR hash
    if let Some((path, nar_hash)) = facts.taken.get(claim.path.hash_part()) {
        if *path == claim.path && *nar_hash == claim.nar_hash {
            return Ok(Outcome::State(ClaimState::plain(PathState::Published), vec![]));
        }
        return Ok(Outcome::Conflict(conflicts_with_published(claim, path, nar_hash)));
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
    let admitted = match decide::decide(&facts.policy, &provenance, claim.nar_size) {
        decide::Verdict::Admitted(admitted) => admitted,
        decide::Verdict::Held { code, message, waits } => {
            let waits_on = match provenance.kind() {
                ProvenanceKind::Unproven { missing } => missing.clone(),
                _ => vec![],
            };
            return Ok(Outcome::State(ClaimState::with(PathState::Held, code, message, waits), waits_on));
        }
        decide::Verdict::Rejected { code, message } => return Ok(rejected(code, message)),
    };
    let scope = Scope { resolved, complete, scan: &scan };
    let references = loop {
        match references::check(signed, &nar, &provenance, &scope, &mut facts.knowledge) {
            Ok(references::Verdict::Exact(references)) => break references,
            Ok(references::Verdict::Rescan) => {
                nar = examined_again(session, i, &nar, &scan, None, blobs)?;
            }
            Ok(references::Verdict::Unknown { waits }) => {
                let message = format!(
                    "whether the references of `{}` are right can't be told before those of {} of its inputs are known",
                    claim.path,
                    waits.len()
                );
                let names = waits.iter().take(20).map(StorePath::absolute).collect();
                let state = ClaimState::with(PathState::Held, "references-unknown", message, names);
                return Ok(Outcome::State(state, waits.into_iter().take(WAITS).collect()));
            }
            Err(e) => return Ok(rejected(e.code(), e.to_string())),
        }
    };
    let rival = facts
        .rivals
        .get(&claim.path)
        .and_then(|rivals| rivals.iter().find(|(id, hash)| *id != session.ids[i] && *hash != claim.nar_hash));
    if rival.is_some() {
        // not with which: nobody learns what others have sent
        let message = format!(
            "`{}` is claimed with another NAR hash than `{}` by another push: one of them has to be shown wrong",
            claim.path, claim.nar_hash
        );
        return Ok(Outcome::Conflict(ClaimState::with(
            PathState::Held,
            "conflicts-with-claim",
            message,
            vec!["person".to_owned()],
        )));
    }
    let closure = match closure::check(&references, facts.policy.closure, &facts.served) {
        Ok(closure) => closure,
        Err(open) => {
            open.iter().for_each(|path| facts.knowledge.want(path));
            let message = format!(
                "`{}` refers to {} paths that are neither published nor at an upstream",
                claim.path,
                open.len()
            );
            let names = open.iter().take(20).map(StorePath::absolute).collect();
            let state = ClaimState::with(PathState::Held, "closure-open", message, names);
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
    ClaimState::with(PathState::Held, "conflicts-with-published", message, vec!["person".to_owned()])
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
