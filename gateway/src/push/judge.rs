//! Brings claims as far as they can get: provenance, decision, references, closure, and publishes those that have all
//! proofs. One task for each cache does it, for whatever pushes were reported since it last looked, in one batch: on the
//! hot path, after a restart, when something that a claim waited for arrived.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use pushgate_formats::{StorePath, api::PathState};
use pushgate_policies::{Closure, Policy};
use tokio::sync::mpsc;

use super::{
    closure::{self, Served},
    decide,
    derivations::Resolved,
    intake::{NarIntact, Plan},
    provenance::{self, ProvenanceKind},
    publish::{PublishError, Publishable, Published},
    quarantine::{Quarantined, ReexamineError, examine_again},
    references::{self, Knowledge},
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
    let mut pause = Duration::from_millis(200);
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
        if !ids.is_empty() {
            match judge(&app, &cache, &ids).await {
                Ok(()) => pause = Duration::from_millis(200),
                Err(e) => {
                    tracing::error!(
                        cache = cache.name,
                        error = &e as &dyn std::error::Error,
                        "judging failed; will be tried again"
                    );
                    metrics::counter!("pushgate_judge_failures_total", "cache" => cache.name.clone())
                        .increment(1);
                    for id in ids {
                        // the sender is part of the cache and lives as long as it
                        let _ = cache.judge.send(id);
                    }
                    if !stop {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_secs(20));
                    }
                }
            }
        }
        if stop {
            return;
        }
    }
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
    /// Held claims of the same paths, by anybody.
    rivals: HashMap<StorePath, Vec<(i64, pushgate_formats::Sha256)>>,
    /// By push: what its claims come to because its key may not push any more.
    barred: HashMap<String, ClaimState>,
}

async fn judge(app: &Arc<App>, cache: &Arc<Cache>, ids: &BTreeSet<String>) -> Result<(), JudgeError> {
    let started = tokio::time::Instant::now();
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
                let _ = cache.judge.send(session.id.clone());
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
            let _ = cache.judge.send(id);
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
            if !more.is_empty() {
                resolved.known.extend(app.derivations.resolve(app.db.as_ref(), &more).await?.known);
            }
            for derivation in &session.progress().wanted_derivations {
                resolved.known.remove(derivation);
                resolved.missing.insert(derivation.clone());
            }
            facts.resolved.insert(session.id.clone(), resolved);
        }
    }
    let own: Vec<StorePath> = own.into_iter().collect();
    for row in app.db.rival_claims(&cache.name, &own).await? {
        facts.rivals.entry(row.path).or_default().push((row.id, row.nar_hash));
    }
    look_up(app, cache, &mut facts, &paths.into_iter().collect::<Vec<_>>(), false).await?;
    Ok(facts)
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
    for session in sessions {
        facts.knowledge.forget_assumed();
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
                    facts.knowledge.learn(path.clone(), Some(Arc::new(references)));
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
    let provenance = loop {
        match provenance::check(signed, &nar, resolved) {
            Ok(provenance::Verdict::Found(provenance)) => break provenance,
            Ok(provenance::Verdict::Needs(wanted)) => {
                let mut plan = session.plan(&claim.nar_hash);
                plan.digests = nar.nar().examined.digests.keys().cloned().chain([wanted]).collect();
                match examined_again(session, i, &nar, plan, blobs)? {
                    Some(better) => nar = better,
                    None => return Err(JudgeError::Damaged(session.clone(), i)),
                }
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
    let scan = session.progress().scan.clone();
    let references = loop {
        let verdict =
            references::check(signed, &nar, &provenance, scan.as_deref(), resolved, &mut facts.knowledge);
        match verdict {
            Ok(references::Verdict::Exact(references)) => break references,
            Ok(references::Verdict::Rescan) => {
                let mut plan = session.plan(&claim.nar_hash);
                // this very set: the session's may grow while this runs
                plan.scan = scan.clone();
                plan.digests = nar.nar().examined.digests.keys().cloned().collect();
                match examined_again(session, i, &nar, plan, blobs)? {
                    Some(better) => nar = better,
                    None => return Err(JudgeError::Damaged(session.clone(), i)),
                }
            }
            Ok(references::Verdict::Unknown { waits }) => {
                let message = format!(
                    "whether the references of `{}` are right can't be told before those of {} of its inputs are known",
                    claim.path,
                    waits.len()
                );
                let names = waits.iter().take(20).map(StorePath::absolute).collect();
                let state = ClaimState::with(PathState::Held, "references-unknown", message, names);
                return Ok(Outcome::State(state, waits));
            }
            Err(e) => return Ok(rejected(e.code(), e.to_string())),
        }
    };
    facts.knowledge.assume(claim.path.clone(), Arc::new(claim.references.clone()));
    let rival = facts
        .rivals
        .get(&claim.path)
        .and_then(|rivals| rivals.iter().find(|(id, hash)| *id != session.ids[i] && *hash != claim.nar_hash));
    if let Some((_, other)) = rival {
        let message = format!(
            "`{}` is claimed with NAR hash `{}` here and with `{other}` by another push: one of them has to be shown wrong",
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
            return Ok(Outcome::State(state, open.into_iter().collect()));
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

/// Reads a NAR again with another plan and remembers what was found; `None` where its bytes changed.
fn examined_again(
    session: &Session,
    i: usize,
    nar: &NarIntact,
    plan: Plan,
    blobs: &dyn Blobs,
) -> Result<Option<NarIntact>, JudgeError> {
    let old = nar.nar();
    let examined = match examine_again(blobs, old, plan) {
        Ok(examined) => examined,
        Err(ReexamineError::Changed) => return Ok(None),
        Err(ReexamineError::Io(e)) => return Err(e.into()),
    };
    let fresh = Arc::new(Quarantined { range: old.range.clone(), compression: old.compression, examined });
    let better = NarIntact::check(&session.signed[i], &fresh).ok();
    if let Some(better) = &better {
        session.progress().nars[i] = Some(better.clone());
    }
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
        (!unchanged).then(|| session.update(*i, state, waits_on.clone()))
    }));
    let judged = Judged { cache: cache.name.clone(), now, publications, claims, conflicts };
    if app.db.commit(&judged).await? == Committed::Raced {
        return Err(JudgeError::Raced);
    }
    // 3. narinfos, in the order of the leaves, references first. A crash here is mended at the next start.
    let published: Vec<Published> =
        judged.publications.into_iter().map(|p| Published::committed(p.row)).collect();
    let paths: Vec<StorePath> = published.iter().map(|p| p.path().clone()).collect();
    reveal(app, cache, published).await?;
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
