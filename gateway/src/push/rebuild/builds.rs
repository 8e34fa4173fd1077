//! Builds that submitters ask for: a verifier builds, the submitter claims the result, and the policy decides of that claim as
//! of any other.

use std::{collections::HashMap, sync::Arc};

use pushgate_formats::{
    StorePath,
    jobs::{BuildState, BuildStatus, JobLimits, Purpose},
};

use super::{
    RebuildError,
    demand::{Ask, job, priority, wants},
    inputs::{self, Planned},
};
use crate::{
    app::App,
    caches::Cache,
    db::{BuildRow, EnrolledKey, JobRow, JobState, MAX_BUILD_LOG, NewJob},
    error::ApiError,
    push::{evidence::identity, session::Session},
};

/// Code of a build whose outputs are there already.
const PUBLISHED: &str = "published";
/// Code of a build that the policy doesn't let the submitter ask for.
pub const NOT_PERMITTED: &str = "build-not-permitted";

/// Whether the policy lets a submitter ask for so many builds now.
pub async fn permit(app: &App, cache: &Cache, key: &EnrolledKey, asked: usize) -> Result<(), ApiError> {
    if asked == 0 {
        return Ok(());
    }
    let policy = cache.policy();
    let Some(limits) = policy.builds_for(&identity(key)) else {
        let message = format!(
            "the policy of `{}` lets `{}` ask for no builds: no `[[build]]` names it",
            policy.cache, key.identity_name
        );
        return Err(ApiError::new(http::StatusCode::FORBIDDEN, NOT_PERMITTED, message));
    };
    let (_, recent) = app.db.builds_of(key.identity, app.clock.now().saturating_sub(86_400)).await?;
    if recent + asked as u64 > u64::from(limits.per_day) {
        let message = format!(
            "`{}` has asked for {recent} builds within 24 hours, with these {asked} more than the {} that are allowed",
            key.identity_name, limits.per_day
        );
        let mut error = ApiError::new(http::StatusCode::TOO_MANY_REQUESTS, "too-many-builds", message);
        error.retry_after = Some(3600);
        return Err(error);
    }
    Ok(())
}

/// Takes the builds that a push asks for. Repeatable: those that are there stay as they are.
pub async fn add(app: &Arc<App>, session: &Session) -> Result<(), RebuildError> {
    if session.builds.is_empty() {
        return Ok(());
    }
    let row = |derivation: &StorePath| BuildRow {
        push: session.id.clone(),
        cache: session.cache.name.clone(),
        identity: session.identity,
        derivation: derivation.clone(),
        job: None,
        code: None,
        message: None,
        waits: vec![],
        expires: session.expires,
    };
    let rows: Vec<BuildRow> = session.builds.iter().map(row).collect();
    app.db.add_builds(&rows, app.clock.now()).await?;
    app.rebuilds.ask(Ask::Builds(session.cache.clone()));
    Ok(())
}

/// Begins those builds of a cache that can begin.
pub(super) async fn begin(app: &Arc<App>, cache: &Arc<Cache>) -> Result<(), RebuildError> {
    let rows = app.db.waiting_builds(&cache.name, app.clock.now()).await?;
    // one count for each submitter
    let mut open: HashMap<i64, u64> = HashMap::new();
    let mut wanted: HashMap<String, Vec<StorePath>> = HashMap::new();
    let mut sessions: HashMap<String, Arc<Session>> = HashMap::new();
    for row in rows {
        let Some(session) = app.sessions.get_waiting(app, &row.push).await? else { continue };
        sessions.insert(session.id.clone(), session.clone());
        let policy = cache.policy();
        let limits = policy.builds_for(&identity(&session.submitter)).cloned();
        let mut new = row.clone();
        match limits {
            None => {
                new.code = Some(NOT_PERMITTED.to_owned());
                new.message = Some("the policy doesn't let the submitter ask for builds any more".to_owned());
            }
            Some(limits) => {
                let under_way = match open.get(&row.identity) {
                    Some(count) => *count,
                    None => app.db.builds_of(row.identity, u64::MAX >> 1).await?.0,
                };
                open.insert(row.identity, under_way);
                if under_way >= u64::from(limits.at_once) {
                    continue;
                }
                match inputs::plan(app, cache, Some(row.identity), &row.derivation).await? {
                    Planned::Never { code, message } => {
                        new.code = Some(code.to_owned());
                        new.message = Some(message);
                    }
                    Planned::Lacks(lacks) => {
                        new.waits = lacks.all();
                        new.waits.truncate(100);
                        wanted.entry(row.push.clone()).or_default().extend(lacks.wanted);
                    }
                    Planned::Ready(plan) if !limits.takes(&plan.system) => {
                        new.code = Some(NOT_PERMITTED.to_owned());
                        new.message = Some(format!(
                            "the policy lets the submitter ask for no builds for `{}`",
                            plan.system
                        ));
                    }
                    Planned::Ready(plan) => {
                        new.waits = vec![];
                        if is_published(app, cache, plan.outputs.values().flatten()).await? {
                            new.code = Some(PUBLISHED.to_owned());
                        } else if let Some(job) = under_way_already(app, cache, &row).await? {
                            new.job = Some(job);
                        } else {
                            let jobs =
                                app.db.jobs_of(&cache.name, std::slice::from_ref(&row.derivation)).await?;
                            let turn = jobs.iter().map(|job| job.turn + 1).max().unwrap_or(0);
                            let limits = JobLimits {
                                time: Some(limits.time),
                                log: Some(limits.log.min(MAX_BUILD_LOG as u64)),
                                output: Some(policy.limits_for(&identity(&session.submitter)).nar_size),
                                silence: None,
                            };
                            let made = NewJob {
                                identity: Some(row.identity),
                                limits,
                                ..job(&cache.name, &plan, (Purpose::Build, priority::BUILD), turn)
                            };
                            app.db.add_jobs(std::slice::from_ref(&made), app.clock.now()).await?;
                            // a crash here leaves a job that nobody asked for: it's built, and its result claimed by nobody
                            new.job = Some(made.id);
                            open.insert(row.identity, under_way + 1);
                        }
                    }
                }
            }
        }
        if new != row {
            app.db.update_build(&new).await?;
        }
    }
    for (id, session) in &sessions {
        let mut inputs = wanted.remove(id).unwrap_or_default();
        inputs.sort();
        inputs.dedup();
        wants(session, None, inputs, vec![])?;
    }
    app.rebuilds.tell_of_work();
    app.sessions.tell_builders();
    Ok(())
}

/// A job that this submitter has asked for before and that is being done, or whose results are still here.
async fn under_way_already(app: &App, cache: &Cache, row: &BuildRow) -> Result<Option<String>, RebuildError> {
    let jobs = app.db.jobs_of(&cache.name, std::slice::from_ref(&row.derivation)).await?;
    let own = |job: &&JobRow| job.purpose == Purpose::Build && job.identity == Some(row.identity);
    for job in jobs.iter().rev().filter(own) {
        let good = match job.state {
            JobState::Open | JobState::Leased => true,
            JobState::Done => {
                let outputs = app.db.built(&job.id).await?;
                super::nars::wanted(app, job, &outputs).await?.is_empty()
            }
            JobState::Failed | JobState::Cancelled => false,
        };
        if good {
            return Ok(Some(job.id.clone()));
        }
    }
    Ok(None)
}

async fn is_published<'a>(
    app: &App,
    cache: &Cache,
    outputs: impl Iterator<Item = &'a StorePath>,
) -> Result<bool, RebuildError> {
    let outputs: Vec<&StorePath> = outputs.collect();
    let parts: Vec<&str> = outputs.iter().map(|path| path.hash_part()).collect();
    let published = app.db.published_hashes(&cache.name, &parts).await?;
    Ok(!outputs.is_empty()
        && outputs.iter().all(|path| published.get(path.hash_part()).is_some_and(|(p, _)| p == *path)))
}

/// The job of a build, if there is one, and whether the build is over; `None` where the push has no such build.
pub async fn job_of(
    app: &App,
    session: &Session,
    derivation: &StorePath,
) -> Result<Option<(Option<String>, bool)>, RebuildError> {
    let row = app.db.builds(&session.id).await?.into_iter().find(|row| row.derivation == *derivation);
    let Some(row) = row else { return Ok(None) };
    let Some(id) = row.job else { return Ok(Some((None, row.code.is_some()))) };
    let over = app.db.job(&id).await?.is_none_or(|job| !job.state.is_pending());
    Ok(Some((Some(id), over)))
}

/// What became of the builds of a push.
pub async fn status(app: &App, session: &Session) -> Result<Vec<BuildStatus>, RebuildError> {
    if session.builds.is_empty() {
        return Ok(vec![]);
    }
    let mut all = Vec::new();
    for row in app.db.builds(&session.id).await? {
        let job = match &row.job {
            Some(id) => app.db.job(id).await?,
            None => None,
        };
        all.push(one(app, row, job).await?);
    }
    Ok(all)
}

async fn one(app: &App, row: BuildRow, job: Option<JobRow>) -> Result<BuildStatus, RebuildError> {
    let mut status = BuildStatus {
        derivation: row.derivation,
        state: BuildState::Waiting,
        verifier: None,
        code: row.code.clone(),
        message: row.message,
        exit_code: None,
        waits_for: row.waits,
        outputs: vec![],
    };
    match row.code.as_deref() {
        Some(PUBLISHED) => status.state = BuildState::Built,
        Some(NOT_PERMITTED) => status.state = BuildState::Refused,
        Some(_) => status.state = BuildState::Failed,
        None => {}
    }
    let Some(job) = job else { return Ok(status) };
    status.verifier = job.verifier_name.clone().filter(|_| job.state != JobState::Open);
    status.waits_for = vec![];
    match job.state {
        JobState::Open => {
            status.state = BuildState::Queued;
            (status.code, status.message) = (job.code, job.message);
        }
        JobState::Leased => status.state = BuildState::Building,
        JobState::Done => {
            let outputs = app.db.built(&job.id).await?;
            // until its bytes are here nothing can be claimed
            let here = super::nars::wanted(app, &job, &outputs).await?.is_empty();
            status.state = if here { BuildState::Built } else { BuildState::Building };
            status.outputs = if here { outputs } else { vec![] };
        }
        JobState::Failed | JobState::Cancelled => {
            status.state = BuildState::Failed;
            (status.code, status.message, status.exit_code) = (job.code, job.message, job.exit_code);
        }
    }
    Ok(status)
}
