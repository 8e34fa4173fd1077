//! Gives jobs out: for a time that heartbeats extend, after which they are given to others. Verifiers that ask at the same
//! time are answered by one transaction.

use std::{sync::Arc, time::Duration};

use pushgate_formats::{
    Sha256,
    jobs::{Job, LeaseQuery, Purpose},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{RebuildError, inputs::Plan, plan_of, view_key};
use crate::{
    app::App,
    db::{DbError, EnrolledKey, JobRow, Taker},
    error::ApiError,
    push::recover,
};

/// How long a lease is good without a heartbeat, in seconds.
pub const LEASE: u64 = 60;
/// How often a job is given out before it fails.
pub const ATTEMPTS: u32 = 5;
/// Verifiers answered by one transaction at most.
const TOGETHER: usize = 64;
/// How often a waiting verifier looks although nothing was said: jobs that were given back wait for a time.
const LOOK: Duration = Duration::from_secs(2);

/// A verifier that waits for a job.
pub struct Waiting {
    taker: Taker,
    answer: oneshot::Sender<Result<Option<JobRow>, DbError>>,
}

/// Answers verifiers, as many together as ask.
pub async fn run(app: Arc<App>, mut takers: mpsc::Receiver<Waiting>) {
    let mut stopping = app.stopping.subscribe();
    let mut waiting = Vec::new();
    loop {
        tokio::select! {
            n = takers.recv_many(&mut waiting, TOGETHER) => if n == 0 { return },
            () = recover::stopped(&mut stopping) => return,
        }
        // whoever went away needs none
        waiting.retain(|w| !w.answer.is_closed());
        let asked: Vec<Taker> = waiting.iter().map(|w| w.taker.clone()).collect();
        let now = app.clock.now();
        match app.db.take_jobs(&asked, now, now + LEASE).await {
            Ok(jobs) => {
                for (waiting, job) in waiting.drain(..).zip(jobs) {
                    let _ = waiting.answer.send(Ok(job));
                }
            }
            Err(e) => {
                tracing::error!(error = &e as &dyn std::error::Error, "jobs can't be given out");
                // each asks again
                waiting.clear();
            }
        }
    }
}

/// How often leases that ran out are looked for.
const LOST: Duration = Duration::from_secs(2);

/// Takes leases back that ran out.
pub async fn take_back(app: Arc<App>) {
    let mut stopping = app.stopping.subscribe();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOST) => {}
            () = recover::stopped(&mut stopping) => return,
        }
        match app.db.return_jobs(app.clock.now(), ATTEMPTS).await {
            Ok(jobs) if jobs.is_empty() => {}
            Ok(jobs) => {
                for job in &jobs {
                    tracing::warn!(job = job.id, derivation = %job.derivation, "a verifier was lost; its job is given to others");
                    if !job.state.is_pending()
                        && let Err(e) = super::result::ended(&app, job).await
                    {
                        tracing::warn!(error = &e as &dyn std::error::Error, "told later");
                    }
                }
                app.rebuilds.tell_of_work();
                app.rebuilds.tell();
            }
            Err(e) => tracing::warn!(error = &e as &dyn std::error::Error, "lost leases can't be looked for"),
        }
    }
}

/// Waits for a job for a verifier.
pub async fn lease(
    app: &Arc<App>,
    key: &EnrolledKey,
    query: LeaseQuery,
    wait: Duration,
) -> Result<Option<Job>, ApiError> {
    let Some(owner) = key.owner.clone() else {
        let message = format!(
            "the verifier `{}` has no owner, so that what it builds would count for nothing: the admin sets one with its invite",
            key.identity_name
        );
        return Err(ApiError::new(http::StatusCode::FORBIDDEN, "verifier-without-owner", message));
    };
    let (deadline, mut stopping) = (Instant::now() + wait, app.stopping.subscribe());
    let mut work = app.rebuilds.work.subscribe();
    loop {
        work.mark_unchanged();
        let token = crate::random::hex(32);
        let taker = Taker {
            identity: key.identity,
            key: key.key.clone(),
            owner: owner.clone(),
            token: Sha256::of(token.as_bytes()),
            systems: query.systems.clone(),
            features: query.features.clone(),
        };
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { taker, answer };
        if app.rebuilds.takers.send(waiting).await.is_err() {
            return Ok(None);
        }
        // not answered: the gateway stops, or the database failed and has said so
        let job = match answered.await {
            Ok(job) => job?,
            Err(_) if *stopping.borrow() => return Ok(None),
            Err(_) => return Err(ApiError::busy("jobs can't be given out at the moment; try again")),
        };
        if let Some(row) = job {
            if let Some(job) = given(app, &row, token).await? {
                app.rebuilds.tell();
                return Ok(Some(job));
            }
            continue;
        }
        let look = Instant::now() + LOOK;
        tokio::select! {
            changed = work.changed() => if changed.is_err() { return Ok(None) },
            () = tokio::time::sleep_until(look.min(deadline)) => {}
            () = recover::stopped(&mut stopping) => return Ok(None),
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

/// Whether a claim of what a job builds is still to be decided.
async fn is_needed(app: &App, row: &JobRow, plan: &Plan) -> Result<bool, RebuildError> {
    for path in plan.outputs.values().flatten() {
        if !app.db.open_pushes_of_path(&row.cache, path).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A leased job in words, or none where it can't be done any more.
async fn given(app: &Arc<App>, row: &JobRow, token: String) -> Result<Option<Job>, RebuildError> {
    let plan = match plan_of(app, row).await? {
        Ok(plan) => plan,
        Err(why) => {
            app.db.cancel_job(&row.id, "inputs-unavailable", &why, app.clock.now()).await?;
            if let Some(job) = app.db.job(&row.id).await? {
                super::result::ended(app, &job).await?;
            }
            return Ok(None);
        }
    };
    if row.purpose == Purpose::Rebuild && !is_needed(app, row, &plan).await? {
        let why = "no claim waits for it any more";
        app.db.cancel_job(&row.id, "not-needed", why, app.clock.now()).await?;
        return Ok(None);
    }
    metrics::counter!("pushgate_leases_total", "purpose" => row.purpose.as_str()).increment(1);
    Ok(Some(Job {
        job: row.id.clone(),
        token,
        lease: LEASE,
        purpose: row.purpose,
        gateway: app.gateway_id.clone(),
        derivation: row.derivation.clone(),
        system: plan.system.clone(),
        outputs: plan.outputs.clone(),
        view: format!("/api/v1/jobs/{}/view", row.id),
        view_key: view_key(app, &row.id).public().to_string(),
        inputs: plan.direct.clone(),
        limits: row.limits,
    }))
}
