//! Brings claims as far as they can get: provenance, decision, references, closure, and publishes those that have all
//! proofs. One task for each cache does it, for whatever pushes were reported since it last looked, in one batch: on the
//! hot path, after a restart, when something that a claim waited for arrived.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use pushgate_formats::{StorePath, api::PathState, derivation::Kind};
use pushgate_policies::{Closure, Policy};
use tokio::sync::mpsc;

use super::{
    closure::{self, Served},
    decide,
    derivations::{self, Resolved},
    intake::{DigestWanted, NarIntact, Plan},
    provenance::{self, ProvenanceKind},
    publish::{PublishError, Publishable, Published},
    quarantine::{Quarantined, ScanSet, examine_again},
    references::{self, Knowledge, Scope},
    session::{ClaimState, Session, SessionError},
    signature::{SignatureError, may_push},
};
use crate::{
    app::App,
    blobs::Blobs,
    caches::Cache,
    db::{ClaimUpdate, Committed, DbError, Judged, NewPublication},
};

/// Pushes judged together at most.
const BATCH: usize = 64;
/// How long a push whose judgement failed waits for another.
const AGAIN: Duration = Duration::from_secs(2);
/// Paths that one claim waits on at most; when they have come the others are found.
const WAITS: usize = 64;
/// Claims of one NAR that refer to themselves at most: bytes hold one path's hash, so more than one are lies, and each
/// costs a pass over the bytes.
const SELVES: usize = 4;
/// Rounds of looking up what a judgement found that it needs.
const ROUNDS: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("blob store")]
    Io(#[from] std::io::Error),
    #[error("a judging task died")]
    Task(#[from] tokio::task::JoinError),
    #[error("the quarantined bytes of a path are damaged")]
    Damaged(Arc<Session>, usize),
    #[error("another gateway published the same path at the same time")]
    Raced,
}

/// The task of one cache. Ends when the gateway stops.
pub async fn run(app: Arc<App>, cache: Arc<Cache>, mut queue: mpsc::UnboundedReceiver<String>) {
    let mut reported = Vec::new();
    let mut stopping = app.stopping.subscribe();
    loop {
        let stop = tokio::select! {
            n = queue.recv_many(&mut reported, BATCH) => n == 0,
            () = super::recover::stopped(&mut stopping) => {
                // what is reported but not judged is found again at the next start
                while reported.len() < BATCH && let Ok(id) = queue.try_recv() {
                    reported.push(id);
                }
                true
            }
        };
        let ids: BTreeSet<String> = reported.drain(..).collect();
        ids.iter().for_each(|id| cache.taken(id));
        if !ids.is_empty() && judge(&app, &cache, &ids).await.is_err() && !stop {
            // one of them may be at fault: each by itself, so that it holds up no other
            for id in ids {
                let alone = BTreeSet::from([id.clone()]);
                if let Err(e) = judge(&app, &cache, &alone).await {
                    tracing::error!(
                        cache = cache.name,
                        push = id,
                        error = &e as &dyn std::error::Error,
                        "judging failed; the push is judged again with those that are open"
                    );
                    metrics::counter!("pushgate_judge_failures_total", "cache" => cache.name.clone())
                        .increment(1);
                    try_again(&app, &cache, id);
                }
            }
        }
        if stop {
            return;
        }
    }
}

/// Reports a push again in a moment, unless the gateway stops.
fn try_again(app: &Arc<App>, cache: &Arc<Cache>, id: String) {
    let (cache, mut stopping) = (cache.clone(), app.stopping.subscribe());
    app.background.spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => cache.report(&id),
            () = super::recover::stopped(&mut stopping) => {}
        }
    });
}

/// What a round found.
#[derive(Default)]
struct Round {
    publish: Vec<(Arc<Session>, usize, Publishable)>,
    /// (session, claim, new state, paths whose publication may change it)
    states: Vec<(Arc<Session>, usize, ClaimState, Vec<StorePath>)>,
    conflicts: Vec<(StorePath, pushgate_formats::Sha256, i64)>,
    lookups: Vec<StorePath>,
    /// By push: see [`super::session::Progress::evidence`].
    evidence: HashMap<String, u64>,
}

/// What is known while a batch is judged.
struct Facts {
    policy: Arc<Policy>,
    /// By push: the claims that the facts are about. What arrives later is judged later: nothing was looked up for it.
    open: HashMap<String, HashSet<usize>>,
    evidence: HashMap<String, u64>,
    served: Served,
    /// Published under the hash part, whatever the name.
    taken: HashMap<String, (StorePath, pushgate_formats::Sha256)>,
    knowledge: Knowledge,
    resolved: HashMap<String, Resolved>,
    /// By push: what NARs have to be scanned for, and whether the derivations have no gaps.
    scan: HashMap<String, (Arc<ScanSet>, bool)>,
    /// Held claims of the same paths, by anybody.
    rivals: HashMap<StorePath, Vec<(i64, pushgate_formats::Sha256)>>,
    /// By push: what its claims come to because its key may not push any more.
    barred: HashMap<String, ClaimState>,
}

async fn judge(app: &Arc<App>, cache: &Arc<Cache>, ids: &BTreeSet<String>) -> Result<(), JudgeError> {
    let started = tokio::time::Instant::now();
    // nothing is published upon what isn't visible
    super::recover::finish_unrevealed(app).await?;
    let mut sessions = Vec::new();
    for id in ids {
        match app.sessions.get(app, id).await {
            Ok(Some(session)) => sessions.push(session),
            Ok(None) => {}
            Err(SessionError::Evidence { push, why }) => {
                // not the fault of the other pushes, and nothing that trying again mends
                tracing::error!(push, why, "a stored push is not valid evidence; it is left alone");
            }
            Err(e) => return Err(e.into()),
        }
    }
    let mut facts = gather(app, cache, &sessions).await?;
    let mut rounds = 0;
    let round = loop {
        let (sessions, blobs) = (sessions.clone(), app.blobs.clone());
        let (round, back) = tokio::task::spawn_blocking(move || {
            let mut facts = facts;
            let round = evaluate(&sessions, &mut facts, blobs.as_ref());
            (round, facts)
        })
        .await?;
        facts = back;
        rounds += 1;
        match round {
            Ok(round) if !round.lookups.is_empty() && rounds <= ROUNDS => {
                look_up(app, cache, &mut facts, &round.lookups, true).await?;
            }
            round => break round,
        }
    };
    let settled = match round {
        Ok(round) => settle(app, cache, round).await,
        Err(e) => Err(e),
    };
    let published = match settled {
        // nothing was committed: the damaged one steps back, and the others are judged again without it
        Err(JudgeError::Damaged(session, i)) => {
            step_back(app, &session, i).await?;
            for session in sessions {
                cache.report(&session.id);
                session.notify();
            }
            return Ok(());
        }
        other => other?,
    };
    if !published.is_empty() {
        metrics::counter!("pushgate_published_total", "cache" => cache.name.clone())
            .increment(published.len() as u64);
        tracing::info!(
            cache = cache.name,
            paths = published.len(),
            ms = started.elapsed().as_millis(),
            "published"
        );
        for id in app.db.pushes_waiting_on(&cache.name, &published).await? {
            cache.report(&id);
        }
    }
    for session in sessions {
        session.notify();
    }
    Ok(())
}

/// Collects what the judgement needs from the database, in a few questions for the whole batch.
async fn gather(app: &App, cache: &Cache, sessions: &[Arc<Session>]) -> Result<Facts, JudgeError> {
    let mut facts = Facts {
        policy: cache.policy(),
        open: HashMap::new(),
        evidence: HashMap::new(),
        served: Served::default(),
        taken: HashMap::new(),
        knowledge: Knowledge::default(),
        resolved: HashMap::new(),
        scan: HashMap::new(),
        rivals: HashMap::new(),
        barred: HashMap::new(),
    };
    let (mut paths, mut own) = (BTreeSet::new(), BTreeSet::new());
    for session in sessions {
        let key = app.db.key(&session.key.bytes()).await?;
        let allowed = key.map_or_else(
            || Err(SignatureError::KeyUnknown(session.key.name().to_string())),
            |key| may_push(&key, &cache.name, app.clock.now()),
        );
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
        paths.extend(unsent_claims(session).into_iter().map(|i| session.signed[i].path().clone()));
        let (mut derivers, mut built) = (false, BTreeSet::new());
        // before anything is looked up: what comes meanwhile makes the judgement out of date
        facts.evidence.insert(session.id.clone(), session.progress().evidence);
        let open = facts.open.entry(session.id.clone()).or_default();
        open.extend(open_claims(session));
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
            let sent =
                app.db.derivations_sent(session.identity, &built.into_iter().collect::<Vec<_>>()).await?;
            let mut resolved = app.derivations.resolve(app.db.as_ref(), &session.derivations).await?;
            // a deriver counts for this submitter only if he sent it: nobody learns what others have sent
            let announced: BTreeSet<&StorePath> = session.derivations.iter().collect();
            let more: Vec<StorePath> = sent.iter().filter(|d| !announced.contains(d)).cloned().collect();
            resolve_unannounced(app, session.identity, more, &mut resolved).await?;
            for derivation in &session.progress().wanted_derivations {
                resolved.known.remove(derivation);
                resolved.missing.insert(derivation.clone());
            }
            // what sources refer to may be mentioned as well
            paths.extend(resolved.known.values().flat_map(|k| &k.sources).cloned());
            facts.resolved.insert(session.id.clone(), resolved);
        }
    }
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

/// Adds derivations that a submitter sent without announcing them with this push, and of their inputs those that he sent
/// too.
async fn resolve_unannounced(
    app: &App,
    identity: i64,
    mut more: Vec<StorePath>,
    resolved: &mut Resolved,
) -> Result<(), JudgeError> {
    while !more.is_empty() {
        let found = app.derivations.resolve(app.db.as_ref(), &more).await?.known;
        let inputs: BTreeSet<StorePath> = found
            .values()
            .filter(|k| k.facts.kind() != Kind::Fixed)
            .flat_map(|k| k.inputs.keys())
            .filter(|input| !resolved.known.contains_key(*input) && !found.contains_key(*input))
            .cloned()
            .collect();
        resolved.known.extend(found);
        let inputs: Vec<StorePath> = inputs.into_iter().collect();
        more = app.db.derivations_sent(identity, &inputs).await?.into_iter().collect();
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
async fn look_up(
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

/// Claims that have their bytes and aren't settled for good, each after those that it refers to.
fn open_claims(session: &Session) -> Vec<usize> {
    let progress = session.progress();
    let open = |i: &usize| {
        matches!(progress.claims[*i].state, PathState::Checking | PathState::Held)
            && progress.nars[*i].is_some()
    };
    session.order.iter().copied().filter(open).collect()
}

/// Claims whose bytes nobody seems to send: the client went away, and another push may have brought the path. None while
/// something of the push is being checked, which is when its client is there.
fn unsent_claims(session: &Session) -> Vec<usize> {
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
fn evaluate(sessions: &[Arc<Session>], facts: &mut Facts, blobs: &dyn Blobs) -> Result<Round, JudgeError> {
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
    claim: &super::announce::Claim,
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

fn damaged_state(claim: &super::announce::Claim) -> ClaimState {
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

/// Asks again for a NAR whose stored bytes are damaged. A crash between the two writes leaves a row that the next
/// judgement finds damaged again.
async fn step_back(app: &Arc<App>, session: &Arc<Session>, i: usize) -> Result<(), JudgeError> {
    let claim = session.signed[i].claim().clone();
    app.db.drop_quarantined(session.identity, &claim.nar_hash).await?;
    let state = damaged_state(&claim);
    let claims = vec![session.update(i, &state, vec![])];
    let (cache, now) = (session.cache.name.clone(), app.clock.now());
    app.db.commit(&Judged { cache, now, claims, ..Judged::default() }).await?;
    let mut progress = session.progress();
    progress.claims[i] = state;
    progress.nars[i] = None;
    Ok(())
}

/// Carries a round out: places NARs, commits, reveals narinfos, tells the sessions. Gives the paths published.
async fn settle(app: &Arc<App>, cache: &Arc<Cache>, round: Round) -> Result<Vec<StorePath>, JudgeError> {
    if round.publish.is_empty() && round.states.is_empty() {
        return Ok(vec![]);
    }
    let now = app.clock.now();
    let Round { publish, states, conflicts, evidence, .. } = round;
    // 1. bytes. A crash from here to the commit leaves NARs that nothing names.
    let (publishing, blobs, composing) = (!publish.is_empty(), app.blobs.clone(), cache.clone());
    let (publish, publications) = tokio::task::spawn_blocking(move || -> Result<_, JudgeError> {
        let publications = place(&publish, &composing, blobs.as_ref(), now)?;
        if publishing {
            blobs.sync()?;
        }
        Ok((publish, publications))
    })
    .await??;
    // 2. leaves and rows, with the claims' new states.
    let published_state = ClaimState::plain(PathState::Published);
    let mut claims: Vec<ClaimUpdate> =
        publish.iter().map(|(session, i, _)| session.update(*i, &published_state, vec![])).collect();
    claims.extend(states.iter().filter_map(|(session, i, state, waits_on)| {
        let unchanged = session.progress().claims[*i] == *state;
        (!unchanged).then(|| session.update(*i, state, waits_on.iter().take(WAITS).cloned().collect()))
    }));
    let judged = Judged { cache: cache.name.clone(), now, publications, claims, conflicts };
    if app.db.commit(&judged).await? == Committed::Raced {
        return Err(JudgeError::Raced);
    }
    // 3. narinfos, in the order of the leaves, references first. A crash here is mended at the next start.
    let published: Vec<Published> =
        judged.publications.into_iter().map(|p| Published::committed(p.row)).collect();
    let paths: Vec<StorePath> = published.iter().map(|p| p.path().clone()).collect();
    let revealed = reveal(app, cache, published).await;
    for (session, i, _) in publish {
        session.progress().claims[i] = ClaimState::plain(PathState::Published);
        session.progress().nars[i] = None;
    }
    let mut over = false;
    for (session, i, state, _) in states {
        let mut progress = session.progress();
        if state.state == PathState::Held && evidence.get(&session.id) != Some(&progress.evidence) {
            // out of date: the push is reported already to be judged again
            continue;
        }
        over |= matches!(state.state, PathState::Rejected | PathState::Published);
        if matches!(state.state, PathState::Rejected | PathState::Wanted | PathState::Published) {
            progress.nars[i] = None;
        }
        progress.claims[i] = state;
    }
    if over || !paths.is_empty() {
        app.sweep.notify_one();
    }
    // committed is published, come what may: the narinfos that couldn't be written are tried again
    if let Err(e) = revealed {
        tracing::error!(
            cache = cache.name,
            error = &e as &dyn std::error::Error,
            "narinfos can't be written"
        );
        app.unrevealed.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    Ok(paths)
}

/// Puts NARs in place and composes narinfos, on all cores: files are many and small.
fn place(
    publish: &[(Arc<Session>, usize, Publishable)],
    cache: &Cache,
    blobs: &dyn Blobs,
    now: u64,
) -> Result<Vec<NewPublication>, JudgeError> {
    let one = |(session, i, publishable): &(Arc<Session>, usize, Publishable)| {
        if let Err(e) = publishable.place_nar(cache, blobs) {
            tracing::error!(path = %publishable.path(), error = %e, "a checked NAR can't be published");
            let damaged = e.is_damage();
            return Err(if damaged { JudgeError::Damaged(session.clone(), *i) } else { e.into() });
        }
        Ok(publishable.compose(cache, now))
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = publish.len().div_ceil(threads).max(16);
    std::thread::scope(|scope| {
        let shares: Vec<_> = publish
            .chunks(share)
            .map(|share| scope.spawn(move || share.iter().map(one).collect::<Result<Vec<_>, _>>()))
            .collect();
        let mut all = Vec::with_capacity(publish.len());
        for share in shares {
            // a panic goes on where it would have without threads
            all.extend(share.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// Writes narinfos, to be marked as visible once they are durable: what the hot path and recovery both go through.
pub async fn reveal(app: &Arc<App>, cache: &Arc<Cache>, published: Vec<Published>) -> Result<(), JudgeError> {
    if published.is_empty() {
        return Ok(());
    }
    let paths: Vec<StorePath> = published.iter().map(|p| p.path().clone()).collect();
    let (blobs, name) = (app.blobs.clone(), cache.name.clone());
    tokio::task::spawn_blocking(move || published.iter().try_for_each(|p| p.reveal(&name, blobs.as_ref())))
        .await??;
    app.revealed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((cache.name.clone(), paths));
    Ok(())
}
