//! Stage 7: has derivations built by verifiers, and compares what they got. A verifier is never told what anybody claims; it
//! attests to what it built, and the comparison is the gateway's.
//!
//! `demand` turns held claims, and builds that were asked for, into jobs; `inputs` finds out what a build needs and where it is;
//! `lease` gives jobs out; `view` serves a job its inputs; `result` checks attestations; `nars` takes what verifiers built;
//! `audit` has published paths built again; `standing` says what rebuilds mean for a claim, `sample` which claims are drawn for one; `follow` carries out what follows from a mismatch.

pub mod audit;
pub mod builds;
pub mod demand;
pub mod follow;
pub mod inputs;
pub mod lease;
pub mod nars;
pub mod result;
pub mod sample;
pub mod standing;
pub mod view;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use hmac::{Hmac, KeyInit, Mac};
use pushgate_formats::{
    StorePath,
    keys::{KeyName, SecretKey},
};
use tokio::sync::{Semaphore, mpsc, watch};

use super::session::SessionError;
use crate::{app::App, db::DbError};
use inputs::{Plan, Planned};

#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("blob store")]
    Io(#[from] std::io::Error),
    /// What the database holds isn't what it was when it was checked.
    #[error("stored evidence can't be read any more: {0}")]
    Evidence(String),
}

impl From<RebuildError> for crate::error::ApiError {
    fn from(error: RebuildError) -> Self {
        match error {
            RebuildError::Db(e) => e.into(),
            RebuildError::Session(e) => e.into(),
            other => Self::unavailable(&other),
        }
    }
}

/// Plans kept in memory; others are made again.
const KEPT: usize = 256;

/// What stage 7 has under way.
pub struct Rebuilds {
    asks: mpsc::UnboundedSender<demand::Ask>,
    takers: mpsc::Sender<lease::Waiting>,
    /// Changes when a job may be there to be taken.
    work: watch::Sender<()>,
    /// Changes when a job's state or log did.
    told: watch::Sender<()>,
    /// By job.
    plans: quick_cache::sync::Cache<String, Arc<Plan>>,
    /// Comparisons at once.
    comparing: Arc<Semaphore>,
    /// Verifiers that asked for work lately, by identity.
    askers: Mutex<HashMap<i64, audit::Asker>>,
    /// Held while audits are drawn or carried on.
    auditing: tokio::sync::Mutex<()>,
    /// Whether audits may have come to something that nobody has looked at.
    unfollowed: AtomicBool,
    /// Whether narinfos of what is withdrawn may still be there.
    withdrawing: AtomicBool,
}

/// The other ends: what the tasks of stage 7 take.
pub struct Ends {
    asks: mpsc::UnboundedReceiver<demand::Ask>,
    takers: mpsc::Receiver<lease::Waiting>,
}

impl Rebuilds {
    pub fn new() -> (Self, Ends) {
        let (asks, asked) = mpsc::unbounded_channel();
        let (takers, taking) = mpsc::channel(4096);
        let rebuilds = Self {
            asks,
            takers,
            work: watch::channel(()).0,
            told: watch::channel(()).0,
            plans: quick_cache::sync::Cache::new(KEPT),
            comparing: Arc::new(Semaphore::new(1)),
            askers: Mutex::default(),
            auditing: tokio::sync::Mutex::default(),
            unfollowed: AtomicBool::new(true),
            withdrawing: AtomicBool::new(false),
        };
        (rebuilds, Ends { asks: asked, takers: taking })
    }

    /// Asks for what a claim, or a build, needs now.
    pub fn ask(&self, ask: demand::Ask) {
        // the task is gone only when the gateway stops; it's asked again after the next start
        let _ = self.asks.send(ask);
    }

    /// Wakes those who wait for a job.
    pub fn tell_of_work(&self) {
        self.work.send_replace(());
    }

    /// Wakes those who wait for news of a job.
    pub fn tell(&self) {
        self.told.send_replace(());
    }

    fn askers(&self) -> MutexGuard<'_, HashMap<i64, audit::Asker>> {
        // each change is of one entry
        self.askers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes with the state or the log of any job.
    pub fn news(&self) -> watch::Receiver<()> {
        self.told.subscribe()
    }
}

/// Starts the tasks of stage 7.
pub fn start(app: &Arc<App>, ends: Ends) {
    app.background.spawn(demand::run(app.clone(), ends.asks));
    app.background.spawn(lease::run(app.clone(), ends.takers));
    app.background.spawn(lease::take_back(app.clone()));
    app.background.spawn(sample::tend(app.clone()));
    app.background.spawn(audit::run(app.clone()));
}

/// The key that signs a job's view: made from the gateway's secret, so that it's stored nowhere.
fn view_key(app: &App, job: &str) -> SecretKey {
    // HMAC takes keys of any length, and its output has the 32 bytes of a seed
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&app.secret).expect("any key length is good");
    mac.update(b"pushgate view key\0");
    mac.update(job.as_bytes());
    let seed: [u8; 32] = mac.finalize().into_bytes().into();
    let name = KeyName::new(&format!("job-{job}")).expect("ids are hexadecimal digits");
    SecretKey::from_seed(name, &seed)
}

/// What a job's build needs, as it is now.
async fn plan_of(app: &App, job: &crate::db::JobRow) -> Result<Result<Arc<Plan>, String>, RebuildError> {
    if let Some(plan) = app.rebuilds.plans.get(&job.id) {
        return Ok(Ok(plan));
    }
    let cache = app.caches.get(app.db.as_ref(), &job.cache).await.ok().flatten();
    let Some(cache) = cache else { return Ok(Err(format!("the cache `{}` is gone", job.cache))) };
    match inputs::plan(app, &cache, job.identity, &job.derivation).await? {
        Planned::Ready(plan) => {
            let plan = Arc::from(plan);
            app.rebuilds.plans.insert(job.id.clone(), Arc::clone(&plan));
            Ok(Ok(plan))
        }
        Planned::Lacks(lacks) => {
            let all = lacks.all();
            let some: Vec<String> = all.iter().take(5).map(StorePath::absolute).collect();
            Ok(Err(format!("{} of its inputs aren't here any more: {}", all.len(), some.join(", "))))
        }
        Planned::Never { message, .. } => Ok(Err(message)),
    }
}
