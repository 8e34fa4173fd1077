//! A push from a closure to its outcome: asks what is missing, announces it, sends what is wanted, waits. Doesn't print,
//! and doesn't judge: what is accepted is the gateway's decision alone.

mod announce;
mod compress;
mod derivations;
mod framing;
mod inputs;
mod line;
mod plan;
mod report;
mod send;
mod upload;
mod wait;

use std::{collections::HashMap, io, time::Duration};

use pushgate_formats::{
    StorePath,
    api::{MAX_PATHS, MissingPath, MissingQuery, PathState, PathStatus},
};
use tokio::{
    task::{JoinError, spawn_blocking},
    time::Instant,
};

pub(crate) use inputs::Inputs;
pub use inputs::is_kept;
pub use report::{Failed, Report, Traffic};
pub(crate) use send::{Parcel, Pushed, Sender};

use self::wait::Waited;
use crate::{
    api::{ApiError, Until, printable},
    nix::{
        Daemon, LocationError, PathInfo, StoreError, StoreLocation,
        closure::{ClosureError, closure},
    },
    progress::Progress,
    session::{Session, SessionError},
};

/// Most requests at once: each may hold a NAR of 4 MiB before and after compression.
pub const MAX_JOBS: usize = 16;
/// What's chosen by default on machines with many cores, for the sake of memory.
const MAX_DEFAULT_JOBS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Location(#[from] LocationError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// After everything was sent, only the outcome isn't known.
    #[error("everything was sent, ask later what became of it (`pushgate status {push}`)")]
    Outcome {
        #[source]
        error: ApiError,
        push: String,
    },
    #[error("zstd can't be used")]
    Compression(#[source] io::Error),
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
    #[error("a part of the client ended unexpectedly: {0}")]
    Internal(String),
}

impl From<JoinError> for PushError {
    fn from(error: JoinError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// What to push, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Store paths, or links to such.
    pub roots: Vec<String>,
    pub cache: String,
    /// Wait until nothing is held any more.
    pub wait: bool,
    pub timeout: Duration,
    /// Requests at once; chosen by the number of cores when absent.
    pub jobs: Option<usize>,
    /// Compression level of zstd; chosen by the speed of the line when absent.
    pub level: Option<i32>,
}

/// So many roots are asked for by themselves before their closures are read; of more it would cost too much twice.
const FEW_ROOTS: usize = 64;

/// How many requests are sent at once when nobody says.
fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, MAX_DEFAULT_JOBS)
}

/// Pushes the closures of the roots.
pub async fn push(session: &Session, options: &Options, progress: &Progress) -> Result<Report, PushError> {
    progress.doing("reading the store");
    let roots = options.roots.clone();
    let local = spawn_blocking(move || Local::open(&roots));
    // both take a moment, and the first error is the one to show
    let (greeting, opened) = tokio::join!(session.greet(), local);
    let (mut local, roots) = opened??;
    let greeting = greeting?;
    tracing::debug!(roots = roots.len(), "read the roots");

    let mut report = Report::new(session.gateway.url.clone(), options.cache.clone());
    report.notices.extend(greeting.cache(session, &options.cache)?);
    // what a published path refers to is served with it, so roots that are there need no look at their closures
    let mut states = already_there(session, &options.cache, &roots).await?;
    let mut paths = roots;
    if paths.is_empty() || paths.iter().any(|root| !states.contains_key(&root.path)) {
        (local, paths) = spawn_blocking(move || local.closure()).await??;
        tracing::debug!(paths = paths.len(), "read the closure");
        progress.doing(format!("asking which of {} paths are missing", paths.len()));
        states = already_there(session, &options.cache, &paths).await?;
    }
    tracing::debug!(present = states.len(), "asked what is missing");
    let order: Vec<StorePath> = paths.iter().map(|info| info.path.clone()).collect();
    let missing: Vec<PathInfo> = paths.into_iter().filter(|info| !states.contains_key(&info.path)).collect();

    if !missing.is_empty() {
        let there: std::collections::HashSet<StorePath> = states.keys().cloned().collect();
        local = spawn_blocking(move || local.keep(|root| !there.contains(root))).await??;
    }
    let most = greeting.max_paths();
    let mut sender = Sender::new(session, greeting, options.cache.clone(), local.daemon, progress.clone());
    (sender.jobs, sender.level) = (options.jobs, options.level);
    let mut pushes = Vec::new();
    for paths in plan::announcements(missing, most) {
        progress.doing(format!("announcing {} paths", paths.len()));
        pushes.push(sender.send(Parcel { paths, ..Parcel::default() }).await?);
    }

    let deadline = Instant::now() + options.timeout;
    let until = if options.wait { Until::Terminal } else { Until::Settled };
    let mut inputs = Inputs::default();
    for Pushed { handle, mut lost, derivations, .. } in pushes {
        report.pushes.push(handle.id.clone());
        let Waited { status, timed_out, .. } = loop {
            let waited =
                wait::wait(&session.api, &handle, until, deadline, &lost, Some(&inputs), progress).await;
            let waited = waited.map_err(|error| PushError::Outcome { error, push: handle.id.clone() })?;
            if !waited.wants_inputs {
                break waited;
            }
            sender.serve(&mut inputs, &waited.status.wanted_inputs, &derivations, deadline).await;
        };
        report.timed_out |= timed_out;
        report.notices.extend(status.notices.iter().map(|notice| printable(notice)));
        for status in status.paths {
            // one that was lost on the way may have come with another push, or have been decided without its bytes
            if let Some(message) = lost.remove(&status.path).filter(|_| status.state == PathState::Wanted) {
                report.failed.push(Failed { path: status.path.clone(), message });
            }
            states.insert(status.path.clone(), status);
        }
    }
    report.notices.append(&mut sender.notices);
    report.traffic = sender.traffic;
    sender.close();
    for path in order {
        let status = states.remove(&path).unwrap_or_else(|| {
            // what nobody vouches for isn't accepted
            let message = "the gateway doesn't say what became of it".into();
            report.failed.push(Failed { path: path.clone(), message });
            status_of(path, PathState::Wanted)
        });
        report.paths.push(status);
    }
    let mut seen = std::collections::HashSet::new();
    report.notices.retain(|notice| seen.insert(notice.clone()));
    progress.finish();
    Ok(report)
}

/// The store on this machine, with what is pushed kept from being collected.
struct Local {
    daemon: Daemon,
    roots: Vec<StorePath>,
}

impl Local {
    /// Opens the store and reads what it knows of the roots themselves; nothing where they are many or one is not valid:
    /// then their closures tell.
    fn open(roots: &[String]) -> Result<(Self, Vec<PathInfo>), PushError> {
        let location = StoreLocation::from_env()?;
        // links are followed while the daemon starts
        let (daemon, roots) = std::thread::scope(|scope| {
            let resolving = scope.spawn(|| {
                roots.iter().map(|root| location.resolve_root(root)).collect::<Result<Vec<_>, _>>()
            });
            let daemon = Daemon::connect(&location);
            (daemon, resolving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (roots, mut daemon) = (roots?, daemon?);
        let infos = if roots.len() <= FEW_ROOTS {
            daemon.path_infos(&roots)?.into_iter().collect::<Option<Vec<_>>>().unwrap_or_default()
        } else {
            Vec::new()
        };
        Ok((Self { daemon, roots }, infos))
    }

    /// Reads the closures of the roots, references first.
    fn closure(mut self) -> Result<(Self, Vec<PathInfo>), PushError> {
        let paths = closure(&mut self.daemon, self.roots.clone())?;
        Ok((self, paths))
    }

    /// Keeps roots, and with each all that it refers to, from being collected while they are sent.
    fn keep(mut self, sent: impl Fn(&StorePath) -> bool) -> Result<Self, PushError> {
        let roots: Vec<StorePath> = self.roots.iter().filter(|root| sent(root)).cloned().collect();
        self.daemon.add_temp_roots(&roots)?;
        Ok(self)
    }
}

/// Asks which paths the cache, or an upstream of it, has, and returns their states.
async fn already_there(
    session: &Session,
    cache: &str,
    paths: &[PathInfo],
) -> Result<HashMap<StorePath, PathStatus>, PushError> {
    let mut states = HashMap::new();
    for part in paths.chunks(MAX_PATHS) {
        let ask = |info: &PathInfo| MissingPath { path: info.path.clone(), nar_hash: info.nar_hash };
        let answer =
            session.api.missing(cache, &MissingQuery { paths: part.iter().map(ask).collect() }).await?;
        let missing: std::collections::HashSet<_> = answer.missing.into_iter().collect();
        let upstream: std::collections::HashSet<_> = answer.upstream.into_iter().collect();
        for info in part.iter().filter(|info| !missing.contains(&info.path)) {
            let state =
                if upstream.contains(&info.path) { PathState::Upstream } else { PathState::Published };
            states.insert(info.path.clone(), status_of(info.path.clone(), state));
        }
    }
    Ok(states)
}

fn status_of(path: StorePath, state: PathState) -> PathStatus {
    PathStatus { path, state, code: None, message: None, waits_for: Vec::new() }
}
