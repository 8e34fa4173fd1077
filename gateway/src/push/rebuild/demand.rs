//! Turns what claims are held for, and builds that were asked for, into jobs: as many as are needed and not yet under way, once
//! everything that the build needs is here. One task does it, so that nothing is asked twice.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use pushgate_formats::{
    StorePath,
    jobs::{JobLimits, Purpose},
};
use pushgate_policies::rebuilds::{RebuildStanding, Verdict};
use tokio::sync::mpsc;

use super::{
    RebuildError, audit, builds, follow,
    inputs::{self, Plan, Planned},
};
use crate::{
    app::App,
    caches::Cache,
    db::{JobRow, JobState, NewJob},
    push::{recover, session::Session},
};

/// Failed jobs of one derivation after which no other verifier is asked for a claim, and failed second builds after which
/// their verifier isn't.
pub(super) const FAILURES: usize = 3;

/// Paths that one claim waits on at most.
const WAITS: usize = 64;
/// Unpublished inputs that `status` names of one claim.
const SHOWN: usize = 20;

/// Something that stage 7 is asked for.
pub enum Ask {
    Claim(Box<Need>),
    /// Looks at the builds of a cache that wait.
    Builds(Arc<Cache>),
    /// Carries on the audit of a derivation, if there is one.
    Audit(Arc<Cache>, StorePath),
}

/// What a held claim needs of verifiers.
pub struct Need {
    pub session: Arc<Session>,
    /// Of the claim, in the order of the announcement.
    pub index: usize,
    pub derivation: StorePath,
    /// The claimant's, or his name: verifiers of his don't count.
    pub owner: Option<String>,
    /// Whether only the sample asks for it.
    pub drawn: bool,
    pub standing: RebuildStanding,
    /// How many rebuilds of the path that rests on.
    pub known: usize,
}

/// How urgent work is: lower ones first.
pub mod priority {
    /// Somebody waits at a terminal.
    pub const BUILD: u8 = 0;
    /// A claim is held because its rule says so.
    pub const RULE: u8 = 1;
    /// A claim is held because it was drawn.
    pub const SAMPLE: u8 = 2;
    /// Nobody waits.
    pub const AUDIT: u8 = 3;
}

/// Takes asks one after the other.
pub async fn run(app: Arc<App>, mut asks: mpsc::UnboundedReceiver<Ask>) {
    let mut stopping = app.stopping.subscribe();
    let mut asked = Vec::new();
    loop {
        tokio::select! {
            n = asks.recv_many(&mut asked, 1024) => if n == 0 { return },
            () = recover::stopped(&mut stopping) => return,
        }
        // the same claim may have been judged several times meanwhile: what was found last counts
        let mut needs: HashMap<(String, usize), Box<Need>> = HashMap::new();
        let mut caches: HashMap<String, Arc<Cache>> = HashMap::new();
        let mut audits: HashMap<(String, StorePath), Arc<Cache>> = HashMap::new();
        for ask in asked.drain(..) {
            match ask {
                Ask::Claim(need) => {
                    needs.insert((need.session.id.clone(), need.index), need);
                }
                Ask::Builds(cache) => {
                    caches.insert(cache.name.clone(), cache);
                }
                Ask::Audit(cache, derivation) => {
                    audits.insert((cache.name.clone(), derivation), cache);
                }
            }
        }
        for need in needs.into_values() {
            if *stopping.borrow() {
                return;
            }
            // asked again whenever the claim is judged, at the latest with all that is open
            if let Err(e) = claim(&app, &need).await {
                let path = need.session.signed[need.index].path();
                tracing::error!(%path, error = &e as &dyn std::error::Error, "a rebuild can't be asked for");
            }
        }
        for ((_, derivation), cache) in audits {
            audit::follow(&app, &cache, &derivation).await;
        }
        for cache in caches.into_values() {
            if let Err(e) = builds::begin(&app, &cache).await {
                tracing::error!(
                    cache = cache.name,
                    error = &e as &dyn std::error::Error,
                    "builds can't be begun"
                );
            }
        }
    }
}

/// What is under way for a derivation, and how it went before.
struct Jobs(Vec<JobRow>);

impl Jobs {
    fn pending(&self) -> impl Iterator<Item = &JobRow> {
        self.0.iter().filter(|job| job.state.is_pending())
    }

    fn failed(&self) -> impl Iterator<Item = &JobRow> {
        self.0.iter().filter(|job| job.state == JobState::Failed && job.purpose == Purpose::Rebuild)
    }

    fn next_turn(&self) -> u32 {
        self.0.iter().map(|job| job.turn + 1).max().unwrap_or(0)
    }
}

async fn claim(app: &Arc<App>, need: &Need) -> Result<(), RebuildError> {
    let (session, index) = (&need.session, need.index);
    let claim = session.signed[index].claim();
    let cache = &session.cache;
    if let Verdict::Confirmed { got } = &need.standing.verdict {
        follow::confirmed(app, need, *got).await?;
        return Ok(());
    }
    let jobs = Jobs(app.db.jobs_of(&cache.name, std::slice::from_ref(&need.derivation)).await?);
    // Read after the jobs: a job that is no longer pending there has its rebuild here. Whoever judged without it asks for too
    // much, and the claim is judged again with it.
    let rebuilds = app.db.rebuilds(&cache.name, std::slice::from_ref(&claim.path)).await?;
    if rebuilds.len() != need.known {
        return Ok(());
    }
    let failures = jobs.failed().filter(|job| job.only_by.is_none());
    // those that may come to count for this claimant
    let counts = |job: &&JobRow| {
        job.only_by.is_none()
            && match job.state {
                JobState::Leased => job.owner != need.owner,
                _ => job.except_owner == need.owner,
            }
    };
    let pending = jobs.pending().filter(counts).count();
    // each operator's verifiers speak once, and only of the build
    let failures: BTreeSet<&Option<String>> = failures
        .filter(|job| job.code.as_deref() != Some("attestation-invalid"))
        .map(|job| &job.owner)
        .collect();
    let further = match failures.len() < FAILURES {
        true => (need.standing.further as usize).saturating_sub(pending),
        false => 0,
    };
    let mut again = Vec::new();
    for row in &rebuilds {
        let failures = jobs.failed().filter(|job| job.only_by == Some(row.verifier));
        let asked = jobs.pending().any(|job| job.only_by == Some(row.verifier))
            // it would fail forever
            || failures.count() >= FAILURES;
        if need.standing.again.contains(&row.verifier_name) && !asked && !again.contains(&row.verifier) {
            again.push(row.verifier);
        }
    }
    if further == 0 && again.is_empty() {
        return wants(session, Some(index), vec![], vec![]);
    }
    let plan = match inputs::plan(app, cache, Some(session.identity), &need.derivation).await? {
        Planned::Ready(plan) => plan,
        Planned::Never { code, message } => {
            tracing::info!(path = %claim.path, code, message, "no verifier can build it");
            let mut progress = session.progress();
            if !progress.notices.contains(&message) {
                progress.notices.push(message);
            }
            drop(progress);
            session.notify();
            return Ok(());
        }
        Planned::Lacks(lacks) => {
            let mut all = lacks.all();
            // when these have come the others are found
            all.truncate(WAITS);
            app.db.wait_on(&cache.name, &session.id, session.ids[index], &all).await?;
            let unpublished = lacks.unpublished.into_iter().take(SHOWN).collect();
            return wants(session, Some(index), lacks.wanted.into_iter().collect(), unpublished);
        }
    };
    let priority = if need.drawn { priority::SAMPLE } else { priority::RULE };
    let mut new = Vec::new();
    let by = again.into_iter().map(Some).chain(std::iter::repeat_n(None, further));
    for (turn, only_by) in (jobs.next_turn()..).zip(by) {
        new.push(NewJob {
            identity: Some(session.identity),
            except_owner: need.owner.clone().filter(|_| only_by.is_none()),
            only_by,
            ..job(&cache.name, &plan, (Purpose::Rebuild, priority), turn)
        });
    }
    app.db.add_jobs(&new, app.clock.now()).await?;
    app.rebuilds.tell_of_work();
    metrics::counter!("pushgate_rebuilds_asked_total", "cache" => cache.name.clone())
        .increment(new.len() as u64);
    wants(session, Some(index), vec![], vec![])
}

/// A job for a plan, with nothing that makes it special.
pub(super) fn job(cache: &str, plan: &Plan, (purpose, priority): (Purpose, u8), turn: u32) -> NewJob {
    NewJob {
        id: crate::random::hex(12),
        cache: cache.to_owned(),
        derivation: plan.derivation.clone(),
        turn,
        purpose,
        priority,
        system: plan.system.clone(),
        features: plan.features.clone(),
        identity: None,
        except_owner: None,
        only_by: None,
        limits: JobLimits::default(),
    }
}

/// Notes which inputs a claim, or the push's builds, want, and what has to be published before; tells those who wait for news.
pub(super) fn wants(
    session: &Session,
    of: Option<usize>,
    inputs: Vec<StorePath>,
    unpublished: Vec<StorePath>,
) -> Result<(), RebuildError> {
    let mut progress = session.progress();
    let mut changed = match inputs.is_empty() {
        true => progress.wanted_inputs.remove(&of).is_some(),
        false => progress.wanted_inputs.insert(of, inputs.clone()) != Some(inputs),
    };
    if let Some(index) = of {
        changed |= match unpublished.is_empty() {
            true => progress.unpublished.remove(&index).is_some(),
            false => progress.unpublished.insert(index, unpublished.clone()) != Some(unpublished),
        };
    }
    drop(progress);
    if changed {
        session.notify();
    }
    Ok(())
}
