//! Brings claims as far as they can get: provenance, decision, references, closure, and publishes those that have all
//! proofs. One task for each cache does it, for whatever pushes were reported since it last looked, in batches: on the
//! hot path, after a restart, when something that a claim waited for arrived. Owners take turns, and a large push is judged
//! in parts, so that nobody waits for another's whole queue.
//!
//! `facts` asks database and upstreams, `evaluate` judges by the answers and asks nobody, `settle` carries out.

mod again;
mod evaluate;
mod facts;
mod settle;
mod turns;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{
    publish::PublishError,
    rebuild::demand::Ask,
    recover,
    session::{Session, SessionError},
};
use crate::{app::App, caches::Cache, db::DbError};
use evaluate::evaluate;
pub use evaluate::{conflicts_with_published, withdrawn};
use facts::{gather, look_up};
pub use settle::reveal;
use settle::{settle, step_back};
use turns::Turns;

/// Pushes judged together at most.
const BATCH: usize = 64;
/// Claims judged together at most.
const PART: usize = 2000;
/// Paths of pushes judged together at most, but for one push: what is asked for a push grows with all of its paths.
const PATHS: usize = 10 * PART;
/// How long a push whose judgement failed waits for another.
const AGAIN: Duration = Duration::from_secs(2);
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
    #[error(transparent)]
    Rebuild(#[from] super::rebuild::RebuildError),
    #[error("blob store")]
    Io(#[from] std::io::Error),
    #[error("a judging task died")]
    Task(#[from] tokio::task::JoinError),
    #[error("the quarantined bytes of a path are damaged")]
    Damaged(Arc<Session>, usize),
    #[error("another gateway published the same path at the same time")]
    Raced,
    #[error("the policy, or what people say of the paths or of each other, changed during the judgement")]
    Outdated,
}

/// The task of one cache. Ends when the gateway stops.
pub async fn run(app: Arc<App>, cache: Arc<Cache>, mut queue: mpsc::UnboundedReceiver<String>) {
    let (mut reported, mut turns) = (Vec::new(), Turns::default());
    // judged in part: where they stopped would be forgotten with them
    let mut unfinished: HashMap<String, Arc<Session>> = HashMap::new();
    let mut stopping = app.stopping.subscribe();
    // behind which held claim the judgement by a new policy goes on
    let mut again: Option<i64> = None;
    loop {
        let mut stop = *stopping.borrow();
        if !stop {
            let idle = turns.is_empty() && again.is_none();
            stop = tokio::select! {
                biased;
                () = cache.policy_changed() => {
                    again = Some(0);
                    false
                }
                n = queue.recv_many(&mut reported, BATCH), if idle => n == 0,
                () = recover::stopped(&mut stopping) => true,
                // there is something to do already
                () = std::future::ready(()), if !idle => false,
            };
        }
        if let Some(after) = again.filter(|_| !stop) {
            match again::step(&app, &cache, after).await {
                Ok(next) => {
                    again = next;
                    if again.is_none() {
                        cache.tell_judged_again();
                    }
                }
                Err(e) => {
                    tracing::error!(
                        cache = cache.name,
                        error = &e as &dyn std::error::Error,
                        "held claims can't be judged by the new policy; tried again"
                    );
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        // what is reported but not judged when the gateway stops is found again at the next start
        while let Ok(id) = queue.try_recv() {
            reported.push(id);
        }
        let owners = app.db.owners(&reported).await.unwrap_or_else(|e| {
            tracing::warn!(
                error = &e as &dyn std::error::Error,
                "pushes are judged in the order that they came"
            );
            HashMap::new()
        });
        for id in reported.drain(..) {
            turns.add(owners.get(&id).cloned().unwrap_or_default(), id);
        }
        let ids: Vec<(String, bool)> =
            turns.next(BATCH).into_iter().map(|id| (id.clone(), cache.taken(&id))).collect();
        if !ids.is_empty() {
            let held: Vec<Arc<Session>> = ids.iter().filter_map(|(id, _)| unfinished.remove(id)).collect();
            match judge(&app, &cache, &ids).await {
                Ok(left) => unfinished.extend(left.into_iter().map(|session| (session.id.clone(), session))),
                // one of them may be at fault: each by itself, so that it holds up no other
                Err(_) if !stop => {
                    for (id, new) in ids {
                        match judge(&app, &cache, &[(id.clone(), new)]).await {
                            Ok(left) => unfinished.extend(left.into_iter().map(|s| (s.id.clone(), s))),
                            Err(e) => {
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
                }
                Err(_) => {}
            }
            drop(held);
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
            () = recover::stopped(&mut stopping) => {}
        }
    });
}

/// Judges a part of these pushes, each with whether something new is to be judged. Gives those whose judgement goes on.
async fn judge(
    app: &Arc<App>,
    cache: &Arc<Cache>,
    ids: &[(String, bool)],
) -> Result<Vec<Arc<Session>>, JudgeError> {
    let started = tokio::time::Instant::now();
    // nothing is published upon what isn't visible
    recover::finish_unrevealed(app).await?;
    let mut sessions = Vec::new();
    let mut paths = 0;
    for (id, new) in ids {
        if paths > PATHS {
            if *new {
                cache.report(id)
            } else {
                cache.go_on(id)
            }
            continue;
        }
        // one at least has to come in, whatever else is under way
        let session = match sessions.is_empty() {
            true => app.sessions.get_waiting(app, id).await,
            false => app.sessions.get(app, id).await,
        };
        match session {
            Ok(Some(session)) => {
                let mut progress = session.progress();
                progress.again |= *new && progress.judged > 0;
                drop(progress);
                paths += session.signed.len();
                sessions.push(session);
            }
            Ok(None) => {}
            Err(SessionError::NoMemory) if !sessions.is_empty() => cache.report(id),
            Err(SessionError::Evidence { push, why }) => {
                // not the fault of the other pushes, and nothing that trying again mends
                tracing::error!(push, why, "a stored push is not valid evidence; it is left alone");
            }
            Err(e) => return Err(e.into()),
        }
    }
    let mut facts = gather(app, cache, &sessions).await?;
    let next = std::mem::take(&mut facts.next);
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
        Ok(round) => settle(app, cache, round, (&facts.policy, facts.seen)).await,
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
            return Ok(vec![]);
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
        app.rebuilds.ask(Ask::Builds(cache.clone()));
    }
    for session in sessions.iter().filter(|session| session.inputs) {
        // whoever waits for these inputs is this submitter
        let paths: Vec<_> = session.signed.iter().map(|signed| signed.path().clone()).collect();
        for id in app.db.own_pushes_waiting_on(&cache.name, session.identity, &paths).await? {
            cache.report(&id);
        }
        app.rebuilds.ask(Ask::Builds(cache.clone()));
    }
    sessions.retain(|session| {
        session.notify();
        goes_on(cache, session, next.get(&session.id).copied().unwrap_or(0))
    });
    Ok(sessions)
}

/// Notes where the judgement of a push goes on, and has it go on. False where it has come to its end.
fn goes_on(cache: &Cache, session: &Session, next: usize) -> bool {
    let mut progress = session.progress();
    progress.judged = next;
    // what came in the middle may be about what was judged before it came
    let again = next == 0 && std::mem::take(&mut progress.again);
    drop(progress);
    if next > 0 || again {
        cache.go_on(&session.id);
    }
    next > 0
}
