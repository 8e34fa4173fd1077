//! What a judgement rests on, collected beforehand in a few questions for the whole batch.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use pushgate_formats::{StorePath, api::PathState, derivation::Kind};
use pushgate_policies::{Closure, Policy};

use super::{
    JudgeError, PART,
    evaluate::{open_claims, open_part, unsent_claims},
};
use crate::{
    app::App,
    caches::Cache,
    db::EnrolledKey,
    push::{
        closure::Served,
        derivations::{self, Resolved},
        evidence,
        quarantine::ScanSet,
        references::{self, Knowledge},
        session::{ClaimState, Session},
        signature::{SignatureError, may_push},
    },
};

/// What is known while a batch is judged.
pub(super) struct Facts {
    pub(super) policy: Arc<Policy>,
    /// The newest event before anything was looked up.
    pub(super) seen: u64,
    /// By push: the claims that the facts are about. What arrives later is judged later: nothing was looked up for it.
    pub(super) open: HashMap<String, HashSet<usize>>,
    /// By push: where its judgement goes on; 0 where this is its end.
    pub(super) next: HashMap<String, usize>,
    pub(super) evidence: HashMap<String, u64>,
    pub(super) served: Served,
    /// Published under the hash part, whatever the name.
    pub(super) taken: HashMap<String, (StorePath, pushgate_formats::Sha256)>,
    /// Was published under the hash part, and was withdrawn.
    pub(super) withdrawn: HashMap<String, (StorePath, pushgate_formats::Sha256)>,
    pub(super) knowledge: Knowledge,
    pub(super) resolved: HashMap<String, Resolved>,
    /// By push: what NARs have to be scanned for, and whether the derivations have no gaps.
    pub(super) scan: HashMap<String, (Arc<ScanSet>, bool)>,
    /// Held claims of the same paths, by anybody.
    pub(super) rivals: HashMap<StorePath, Vec<(i64, pushgate_formats::Sha256)>>,
    /// By push: what its claims come to because its key may not push any more.
    pub(super) barred: HashMap<String, ClaimState>,
    /// By push: whose it is.
    pub(super) submitters: HashMap<String, Arc<EnrolledKey>>,
    /// What speaks for and against the claims.
    pub(super) known: evidence::Known,
}

/// Collects what the judgement needs from the database, in a few questions for the whole batch.
pub(super) async fn gather(app: &App, cache: &Cache, sessions: &[Arc<Session>]) -> Result<Facts, JudgeError> {
    let mut facts = Facts {
        policy: cache.policy(),
        seen: app.db.events(None, None, 1).await?.last().map_or(0, |event| event.id),
        open: HashMap::new(),
        next: HashMap::new(),
        evidence: HashMap::new(),
        served: Served::default(),
        taken: HashMap::new(),
        withdrawn: HashMap::new(),
        knowledge: Knowledge::default(),
        resolved: HashMap::new(),
        scan: HashMap::new(),
        rivals: HashMap::new(),
        barred: HashMap::new(),
        submitters: HashMap::new(),
        known: evidence::Known::default(),
    };
    let (mut paths, mut own) = (BTreeSet::new(), BTreeSet::new());
    // claims without bytes: they may be published by another, or settled
    let mut unsent: Vec<StorePath> = Vec::new();
    let shares = shares(sessions);
    for session in sessions {
        let key = app.db.key(&session.key.bytes()).await?;
        let allowed = match &key {
            None => Err(SignatureError::KeyUnknown(session.key.name().to_string())),
            Some(key) => may_push(key, &cache.name, app.clock.now()),
        };
        if key.as_ref().is_some_and(|key| key.held.is_some()) && allowed.is_ok() {
            let message = format!(
                "the key `{}` is held since verifiers got other contents than it claimed",
                session.key.name()
            );
            let held = ClaimState::with(PathState::Held, "key-held", message, vec!["person".to_owned()]);
            facts.barred.insert(session.id.clone(), held);
        }
        facts.submitters.extend(key.map(|key| (session.id.clone(), Arc::new(key))));
        match allowed {
            // what a key signed while it was good stays signed
            Ok(()) | Err(SignatureError::Expired { .. }) => {}
            Err(e) => {
                let (code, message) = (e.code(), format!("not published before this happened: {e}"));
                // a frozen submitter may be let go again
                let barred = match e {
                    SignatureError::Frozen(_) => {
                        ClaimState::with(PathState::Held, code, message, vec!["person".to_owned()])
                    }
                    _ => ClaimState::with(PathState::Rejected, code, message, vec![]),
                };
                facts.barred.insert(session.id.clone(), barred);
            }
        }
        unsent.extend(unsent_claims(session).into_iter().map(|i| session.signed[i].path().clone()));
        let (mut derivers, mut built) = (false, BTreeSet::new());
        // before anything is looked up: what comes meanwhile makes the judgement out of date
        facts.evidence.insert(session.id.clone(), session.progress().evidence);
        let (part, next) = open_part(session, shares.get(&session.id).copied().unwrap_or(0));
        facts.next.insert(session.id.clone(), next);
        let open = facts.open.entry(session.id.clone()).or_default();
        open.extend(part);
        for i in open.iter() {
            let claim = session.signed[*i].claim();
            own.insert(claim.path.clone());
            paths.insert(claim.path.clone());
            paths.extend(claim.references.iter().cloned());
            if let Some(deriver) = &claim.deriver {
                built.insert(deriver.clone());
                derivers = true;
            }
        }
        if derivers {
            let sent = app
                .db
                .derivations_at_hand(&cache.name, session.identity, &built.into_iter().collect::<Vec<_>>())
                .await?;
            let mut resolved = app.derivations.resolve(app.db.as_ref(), &session.derivations).await?;
            // a deriver counts for this submitter only if he sent it or all can read it: nobody learns what others have sent
            let announced: BTreeSet<&StorePath> = session.derivations.iter().collect();
            let more: Vec<StorePath> = sent.iter().filter(|d| !announced.contains(d)).cloned().collect();
            resolve_unannounced(app, cache, session.identity, more, &mut resolved).await?;
            for derivation in &session.progress().wanted_derivations {
                resolved.known.remove(derivation);
                resolved.missing.insert(derivation.clone());
            }
            // what sources refer to may be mentioned as well
            paths.extend(resolved.known.values().flat_map(|k| &k.sources).cloned());
            facts.resolved.insert(session.id.clone(), resolved);
        }
    }
    let sent: Vec<evidence::Sent<'_>> = (sessions.iter())
        .flat_map(|session| {
            let open = facts.open.get(&session.id).into_iter().flatten();
            open.map(move |i| (session, session.signed[*i].claim()))
        })
        .map(|(session, claim)| evidence::Sent {
            path: &claim.path,
            nar_hash: claim.nar_hash,
            deriver: claim.deriver.as_ref(),
            session,
        })
        .collect();
    facts.known = evidence::Known::gather(app, cache, &facts.policy, &sent, &unsent).await?;
    paths.extend(unsent);
    let own: Vec<StorePath> = own.into_iter().collect();
    for row in app.db.rival_claims(&cache.name, &own).await? {
        facts.rivals.entry(row.path).or_default().push((row.id, row.nar_hash));
    }
    look_up(app, cache, &mut facts, &paths.into_iter().collect::<Vec<_>>(), false).await?;
    for session in sessions {
        let scope = scan_set(session, &mut facts);
        facts.scan.insert(session.id.clone(), scope);
    }
    // what the sources' closures lead to beyond what was looked up is asked for only where a claim needs it
    facts.knowledge.take_wanted();
    Ok(facts)
}

/// How many claims of each push are judged now: the same number of each, and more where others have fewer, so that a large
/// one doesn't hold up the small ones beside it, nor those that come after it.
fn shares(sessions: &[Arc<Session>]) -> HashMap<String, usize> {
    let mut counts: Vec<(usize, &Arc<Session>)> =
        sessions.iter().map(|session| (open_claims(session).len(), session)).collect();
    counts.sort_by_key(|(count, _)| *count);
    let (mut left, mut pushes) = (PART, counts.len());
    let share = |(count, session): (usize, &Arc<Session>)| {
        let share = count.min((left / pushes).max(1));
        left = left.saturating_sub(share);
        pushes -= 1;
        (session.id.clone(), share)
    };
    counts.into_iter().map(share).collect()
}

/// Adds derivations that a submitter sent without announcing them with this push, and of their inputs those that he sent
/// too.
async fn resolve_unannounced(
    app: &App,
    cache: &Cache,
    identity: i64,
    mut more: Vec<StorePath>,
    resolved: &mut Resolved,
) -> Result<(), JudgeError> {
    let mut asked: BTreeSet<StorePath> = BTreeSet::new();
    let mut unchecked = false;
    while !more.is_empty() {
        let found = app.derivations.resolve(app.db.as_ref(), &more).await?;
        // some came before their inputs: they are checked together, once all that he sent of the closure are known
        unchecked |= more.iter().any(|path| !found.known.contains_key(path));
        asked.extend(more);
        let inputs: BTreeSet<StorePath> = found
            .known
            .values()
            .filter(|k| k.facts.kind() != Kind::Fixed)
            .flat_map(|k| k.inputs.keys())
            .chain(&found.missing)
            .filter(|input| !resolved.known.contains_key(*input) && !asked.contains(*input))
            .cloned()
            .collect();
        resolved.known.extend(found.known);
        let inputs: Vec<StorePath> = inputs.into_iter().collect();
        more = app.db.derivations_at_hand(&cache.name, identity, &inputs).await?.into_iter().collect();
    }
    if unchecked {
        let asked: Vec<StorePath> = asked.into_iter().collect();
        let found = app.derivations.resolve(app.db.as_ref(), &asked).await?;
        resolved.known.extend(found.known);
        resolved.missing.extend(found.missing);
    }
    Ok(())
}

/// What a push's NARs have to be scanned for: all that its built outputs could refer to, as far as it is known now. The
/// session's own set is taken where it holds all of that, so that NARs aren't read twice.
fn scan_set(session: &Session, facts: &mut Facts) -> (Arc<ScanSet>, bool) {
    let empty = Resolved::default();
    let resolved = facts.resolved.get(&session.id).unwrap_or(&empty);
    let mut members = derivations::outputs_and_sources(&resolved.known);
    let sources: BTreeSet<&StorePath> = resolved.known.values().flat_map(|k| &k.sources).collect();
    members.extend(facts.knowledge.closure(sources).0);
    for signed in &session.signed {
        members.insert(signed.path().clone());
        members.extend(signed.claim().references.iter().cloned());
    }
    let complete = references::is_complete(&resolved.known);
    let mut progress = session.progress();
    if let Some(scan) = progress.scan.as_ref().filter(|scan| members.is_subset(scan.members())) {
        return (scan.clone(), complete);
    }
    let scan = Arc::new(ScanSet::new(members));
    progress.scan = Some(scan.clone());
    (scan, complete)
}

/// Finds out what is published or at an upstream of these paths. Upstreams are asked only where the judgement turned out
/// to need it.
pub(super) async fn look_up(
    app: &App,
    cache: &Cache,
    facts: &mut Facts,
    paths: &[StorePath],
    ask: bool,
) -> Result<(), JudgeError> {
    let parts: Vec<&str> = paths.iter().map(StorePath::hash_part).collect();
    for (part, row) in app.db.published(&cache.name, &parts).await? {
        facts.taken.insert(part, (row.path.clone(), row.nar_hash));
        facts.served.published.insert(row.path.clone(), row.nar_hash);
        facts.knowledge.learn(row.path, Some(Arc::new(row.references)));
    }
    for (part, row) in app.db.withdrawn(&cache.name, &parts).await? {
        facts.withdrawn.insert(part, (row.path, row.nar_hash));
    }
    let open: Vec<StorePath> =
        paths.iter().filter(|p| !facts.served.published.contains_key(*p)).cloned().collect();
    if facts.policy.closure == Closure::Upstreams && !open.is_empty() {
        let upstreams = &facts.policy.upstreams;
        let found = if ask {
            app.upstreams.ask(app.db.as_ref(), upstreams, &open).await?.found
        } else {
            app.upstreams.remembered(app.db.as_ref(), upstreams, &open).await?
        };
        for (path, fact) in found {
            facts.knowledge.learn(path.clone(), Some(Arc::new(fact.references.clone())));
            facts.served.upstream.insert(path);
        }
    }
    if ask {
        for path in open {
            if !facts.knowledge.is_looked_up(&path) {
                facts.knowledge.learn(path, None);
            }
        }
    }
    Ok(())
}
