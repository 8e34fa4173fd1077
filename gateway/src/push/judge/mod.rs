//! Brings claims as far as they can get: provenance, decision, references, closure, and publishes those that have all
//! proofs. One task for each cache does it, for whatever pushes were reported since it last looked, in one batch: on the
//! hot path, after a restart, when something that a claim waited for arrived.
//!
//! `facts` asks database and upstreams, `evaluate` judges by the answers and asks nobody, `settle` carries out.

mod evaluate;
mod facts;
mod settle;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{
    publish::PublishError,
    recover,
    session::{Session, SessionError},
};
use crate::{app::App, caches::Cache, db::DbError};
pub use evaluate::conflicts_with_published;
use evaluate::evaluate;
use facts::{gather, look_up};
pub use settle::reveal;
use settle::{settle, step_back};

/// Pushes judged together at most.
const BATCH: usize = 64;
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
            () = recover::stopped(&mut stopping) => {
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
            () = recover::stopped(&mut stopping) => {}
        }
    });
}

async fn judge(app: &Arc<App>, cache: &Arc<Cache>, ids: &BTreeSet<String>) -> Result<(), JudgeError> {
    let started = tokio::time::Instant::now();
    // nothing is published upon what isn't visible
    recover::finish_unrevealed(app).await?;
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
