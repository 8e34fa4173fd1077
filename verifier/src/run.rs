//! The loop: asks for jobs, does them, some at a time, until it is told to stop.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use pushgate_formats::jobs::{Job, LeaseQuery, MAX_WAIT};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use crate::{
    api::{Api, ApiError, Signer},
    clock,
    config::Config,
    job::{Worker, cleanup},
    key,
    sandbox::{self, Sandbox},
    workdir::WorkDir,
};

/// How long a question waits at the gateway for a job: less than proxies let a request wait.
const WAIT: u64 = if MAX_WAIT < 25 { MAX_WAIT } else { 25 };

/// Runs until it is told to stop.
pub async fn run(dir: &WorkDir, config: Config, once: bool) -> anyhow::Result<()> {
    let joined = dir.joined()?;
    let key = key::read(&dir.path().join(&joined.key_file))?;
    for left in cleanup::leftovers(&dir.jobs())? {
        tracing::warn!(dir = %left.display(), "removed what an earlier run had left");
    }
    let Sandbox { groups, nix_version, limits } = sandbox::check(dir, &config).await?;
    eprintln!("builds run in: {limits}");
    eprintln!("nix {nix_version}; systems {}; {} at a time", config.systems.join(", "), config.jobs);
    let api = Arc::new(Api::new(&joined.url)?);
    let worker = Arc::new(Worker {
        api,
        joined,
        key,
        jobs_dir: dir.jobs(),
        groups,
        sandbox: limits,
        nix_version,
        fetches: Semaphore::new(1),
        config,
    });
    work(worker, once).await
}

/// What a signal has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wish {
    None,
    /// Take nothing more.
    Stop,
    /// End what runs.
    GiveUp,
}

/// Each slot asks for a job of its own and does it. A question isn't dropped because another slot's job has ended: the
/// gateway may have answered it just now, and that job would wait until its lease has run out.
async fn work(worker: Arc<Worker>, once: bool) -> anyhow::Result<()> {
    let (wish, stop) = watch::channel(Wish::None);
    let wish = Arc::new(wish);
    let (give_up, given_up) = watch::channel(false);
    tokio::spawn(listen(wish.clone(), worker.config.stop_after())?);
    let mut gives_up = stop.clone();
    tokio::spawn(async move {
        if gives_up.wait_for(|wish| *wish == Wish::GiveUp).await.is_ok() {
            give_up.send_replace(true);
        }
    });
    let mut slots = JoinSet::new();
    for _ in 0..if once { 1 } else { worker.config.jobs } {
        slots.spawn(slot(worker.clone(), once, stop.clone(), given_up.clone()));
    }
    let mut outcome = Ok(());
    while let Some(ended) = slots.join_next().await {
        let ended = ended.map_err(anyhow::Error::from).flatten();
        if ended.is_err() && outcome.is_ok() {
            // what is wrong with one is wrong with all: they end what they have and take no more
            wish.send_if_modified(|wish| std::mem::replace(wish, Wish::Stop.max(*wish)) == Wish::None);
            outcome = ended;
        }
    }
    outcome
}

async fn slot(
    worker: Arc<Worker>,
    once: bool,
    mut stop: watch::Receiver<Wish>,
    given_up: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut identity = Identity::Unknown;
    loop {
        let job = tokio::select! {
            job = next(&worker, &mut identity) => job?,
            _ = stop.wait_for(|wish| *wish != Wish::None) => return Ok(()),
        };
        worker.run(job, given_up.clone()).await;
        if once {
            return Ok(());
        }
    }
}

/// Turns signals into wishes: the first stops, and some time later or with the second all is given up.
fn listen(wish: Arc<watch::Sender<Wish>>, stop_after: Duration) -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        eprintln!(
            "stopping: no more jobs; what runs has {} s, or until the next signal",
            stop_after.as_secs()
        );
        wish.send_replace(Wish::Stop);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = tokio::time::sleep(stop_after) => {}
        }
        wish.send_replace(Wish::GiveUp);
    })
}

/// Whether what answers at the address was seen to be the gateway that was joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    Unknown,
    Pinned,
}

/// The next job. Waits for as long as it takes; fails only where waiting is of no use.
async fn next(worker: &Worker, identity: &mut Identity) -> anyhow::Result<Job> {
    let mut skills = BTreeSet::new();
    if !worker.config.fetch.is_empty() {
        skills.insert("fetch".to_owned());
    }
    let query = LeaseQuery {
        // what isn't run by Nix itself is refused, which is an answer
        systems: worker.config.systems.iter().cloned().chain(["builtin".to_owned()]).collect(),
        features: worker.config.features.clone(),
        skills,
    };
    let mut failures = 0;
    loop {
        match ask(worker, identity, &query).await? {
            Ok(Some(job)) => return Ok(job),
            Ok(None) => failures = 0,
            Err(error) => {
                tracing::warn!(%error, "no job; trying again");
                tokio::time::sleep(clock::pause(failures, clock::random())).await;
                failures += 1;
            }
        }
    }
}

async fn ask(
    worker: &Worker,
    identity: &mut Identity,
    query: &LeaseQuery,
) -> anyhow::Result<Result<Option<Job>, ApiError>> {
    if *identity == Identity::Unknown {
        let info = match worker.api.gateway().await {
            Ok(info) => info,
            Err(error) => return Ok(Err(error)),
        };
        anyhow::ensure!(
            info.gateway == worker.joined.id,
            "`{}` is not the gateway that was joined: it has another id; ask its admin",
            worker.joined.url
        );
        *identity = Identity::Pinned;
    }
    let signer = Signer { key: &worker.key, gateway: &worker.joined.id, now: clock::now() };
    match worker.api.lease(query, WAIT, &signer).await {
        Ok(leased) => Ok(Ok(leased.job)),
        // a key that isn't known, is revoked, or isn't a verifier's stays so until a person does something; a clock that
        // is off may be set right any time
        Err(error)
            if matches!(
                error.code(),
                Some("key-unknown" | "key-revoked" | "key-expired" | "not-permitted")
            ) =>
        {
            Err(error.into())
        }
        Err(error) => {
            if matches!(error, ApiError::Unreachable { .. }) {
                // who knows who answers next
                *identity = Identity::Unknown;
            }
            Ok(Err(error))
        }
    }
}
