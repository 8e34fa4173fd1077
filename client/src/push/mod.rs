//! A push from a closure to its outcome: asks what is missing, announces it, sends what is wanted, waits. Doesn't print,
//! and doesn't judge: what is accepted is the gateway's decision alone.

mod announce;
mod compress;
mod derivations;
mod framing;
mod line;
mod plan;
mod report;
mod upload;
mod wait;

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use pushgate_formats::{
    Sha256, StorePath,
    api::{Audience, MAX_PATHS, MissingPath, MissingQuery, PathState, PathStatus},
};
use tokio::{
    sync::watch,
    task::{JoinError, spawn_blocking},
    time::Instant,
};

pub use report::{Failed, Report, Traffic};

use self::{
    line::Line,
    upload::{Sent, Uploader},
    wait::Waited,
};
use crate::{
    api::{ApiError, PushHandle, Until, printable},
    clock,
    nix::{
        Daemon, LocationError, PathInfo, StoreError, StoreLocation,
        closure::{ClosureError, closure},
    },
    progress::Progress,
    session::{Greeting, Session, SessionError},
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
    let mut pushes = Vec::new();
    for part in plan::announcements(missing, greeting.max_paths()) {
        let (back, announced) = one(session, options, &greeting, local, part, &mut report, progress).await?;
        local = back;
        pushes.push(announced);
    }

    let deadline = Instant::now() + options.timeout;
    let until = if options.wait { Until::Terminal } else { Until::Settled };
    for (handle, mut lost) in pushes {
        report.pushes.push(handle.id.clone());
        let Waited { status, timed_out } =
            wait::wait(&session.api, &handle, until, deadline, &lost, progress)
                .await
                .map_err(|error| PushError::Outcome { error, push: handle.id.clone() })?;
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
    // the temporary roots, which keep the paths from being collected, end with the connection; nobody has to wait for the
    // daemon to be gone
    std::thread::spawn(move || drop(local));
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
    location: StoreLocation,
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
        Ok((Self { daemon, location, roots }, infos))
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

/// Announces some paths and sends what the gateway wants of them. Returns the push, and the paths whose bytes didn't get
/// there with the reason.
async fn one(
    session: &Session,
    options: &Options,
    greeting: &Greeting,
    local: Local,
    paths: Vec<PathInfo>,
    report: &mut Report,
    progress: &Progress,
) -> Result<(Local, (PushHandle, HashMap<StorePath, String>)), PushError> {
    progress.doing(format!("announcing {} paths", paths.len()));
    let Local { mut daemon, location, roots } = local;
    let derivers = derivations::derivers(&paths);
    let listing = spawn_blocking(move || derivations::list(&mut daemon, derivers).map(|list| (daemon, list)));
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(PushError::Random)?;
    // Signing and sealing keep this thread busy (some 25 µs per path, on all cores); nothing else runs on it meanwhile.
    let claims = announce::sign(&paths, &session.key);
    tracing::debug!("signed");
    let (daemon, list) = listing.await??;
    tracing::debug!(derivations = list.derivations.len(), "read the derivations");
    report.notices.extend(about_derivations(&list));

    let named = list.derivations.iter().map(|listed| listed.path.clone()).collect();
    let audience = Audience { gateway: session.gateway.id.clone(), cache: options.cache.clone() };
    let envelope = announce::seal(audience, claims, named, &session.key, clock::now(), nonce);
    let (push, status) =
        session.api.announce(&options.cache, envelope).await.map_err(|e| greeting.explain(e))?;

    tracing::debug!(push = push.id, wanted = status.wanted.len(), "announced");

    let bodies = derivations::bodies(list.derivations, &status.wanted_derivations);
    let (open, ready) = watch::channel(false);
    let uploader = Uploader {
        api: session.api.clone(),
        push,
        location: location.clone(),
        progress: progress.clone(),
        jobs: options.jobs.unwrap_or_else(default_jobs),
        line: Arc::new(Line::new(options.level)),
        ready,
    };
    let send_derivations = async {
        let mut notices = Vec::new();
        if !bodies.is_empty() {
            progress.doing(format!("sending {} derivations", bodies.iter().map(Vec::len).sum::<usize>()));
            notices = uploader.derivations(bodies).await?;
        }
        tracing::debug!("sent the derivations");
        open.send_replace(true);
        Ok::<_, PushError>(notices)
    };
    let nars = plan::wanted(&paths, &status.wanted);
    let send_nars = async {
        if nars.is_empty() {
            return Ok(Sent::default());
        }
        progress.sending(format!("sending {} paths", nars.len()), nars.iter().map(|nar| nar.size).sum());
        uploader.nars(plan::requests(nars, uploader.jobs)).await
    };
    // the first NARs are compressed while the gateway checks the derivations
    let (notices, sent) = tokio::try_join!(send_derivations, send_nars)?;
    report.notices.extend(notices.iter().map(|notice| printable(notice)));
    tracing::debug!(nars = sent.nars, bytes = sent.body_bytes, "sent the NARs");
    report.traffic.add(&sent);
    Ok((Local { daemon, location, roots }, (uploader.push, lost(&paths, sent))))
}

/// The paths whose bytes didn't get to the gateway, and why.
fn lost(paths: &[PathInfo], sent: Sent) -> HashMap<StorePath, String> {
    let mut why: HashMap<Sha256, String> = HashMap::new();
    why.extend(sent.unsent.into_iter().map(|(nar, why)| (nar.hash, why)));
    why.extend(sent.refused.into_iter().map(|(nar, error)| {
        (nar.hash, format!("{} [{}]", printable(&error.message), printable(&error.code)))
    }));
    // several paths may have the same bytes
    paths.iter().filter_map(|info| Some((info.path.clone(), why.get(&info.nar_hash)?.clone()))).collect()
}

fn about_derivations(list: &derivations::List) -> Vec<String> {
    let mut notices = Vec::new();
    if let [first, ..] = list.missing.as_slice() {
        notices.push(format!(
            "{} no longer in this store, such as `{first}`: paths built from them may be held until somebody who has \
             them pushes",
            match list.missing.len() {
                1 => "1 derivation is".into(),
                many => format!("{many} derivations are"),
            }
        ));
    }
    if list.left_out > 0 {
        notices.push(format!(
            "{} derivations are too many for one push; push fewer paths at once",
            list.derivations.len() + list.left_out
        ));
    }
    notices
}
