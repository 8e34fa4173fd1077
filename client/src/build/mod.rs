//! Builds at the cache: a verifier builds what this machine has only evaluated, this client claims what came of it as it
//! claims what it built itself, and the gateway's policy decides. Follows it to the end, with logs, and fetches the result.
//! Doesn't print: what a person should know is told, piece by piece, as [`News`].

mod board;
mod log;
mod plan;
mod run;
mod substitute;
mod target;

use std::{sync::Arc, time::Duration};

use pushgate_formats::{StorePath, api::PathStatus, jobs::BuildStatus};
use serde::Serialize;
use tokio::{task::spawn_blocking, time::Instant};

pub use target::{Target, TargetError};

use self::{
    plan::Plan,
    run::{End, Run},
};
use crate::{
    api::ApiError,
    nix::{Daemon, LocationError, StoreLocation, closure::ClosureError},
    progress::Progress,
    push::{Failed, PushError, Sender},
    session::{Session, SessionError},
};

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Push(#[from] PushError),
    #[error(transparent)]
    Location(#[from] LocationError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("`{0}` is not a derivation; name a path that ends with `.drv`")]
    NotADerivation(StorePath),
    #[error("the derivation `{0}` isn't in this store; evaluate it again")]
    Missing(StorePath),
    #[error(
        "what is under way goes on at the cache (`pushgate status {push}`); the same command again follows it"
    )]
    Outcome {
        #[source]
        error: ApiError,
        push: String,
    },
}

impl BuildError {
    /// Whether the policy doesn't let the submitter ask for builds at all.
    pub fn is_refusal(&self) -> bool {
        // what an announcement is answered comes explained
        let Self::Push(PushError::Session(SessionError::Api(error))) = self else { return false };
        error.code() == Some("build-not-permitted")
    }
}

impl From<ClosureError> for BuildError {
    fn from(error: ClosureError) -> Self {
        Self::Push(error.into())
    }
}

/// What to build, and how.
#[derive(Debug, Clone)]
pub struct Options {
    pub target: Target,
    pub cache: String,
    /// Wait until nothing is held any more.
    pub wait: bool,
    /// Fetch the result.
    pub substitute: bool,
    pub timeout: Duration,
    /// Logs keep their colours.
    pub colours: bool,
}

/// What a person sees while builds go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Verifiers were asked for these, which makes so many altogether.
    Asked {
        derivations: Vec<StorePath>,
        total: usize,
    },
    /// A build came to another state; if it failed, these can't begin.
    Build {
        status: BuildStatus,
        blocks: Vec<StorePath>,
    },
    /// An output came to another state; if it isn't published, these can't begin.
    Output {
        status: PathStatus,
        blocks: Vec<StorePath>,
    },
    /// A line of a build's log, fit for a terminal.
    Log {
        name: String,
        line: String,
    },
    Note(String),
}

/// Takes news.
pub type Tell = Arc<dyn Fn(News) + Send + Sync>;

/// What came of it; also the document of `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub gateway: String,
    pub cache: String,
    /// What was to be built.
    pub derivations: Vec<StorePath>,
    /// Pushes that asked for builds; none where the cache had everything.
    pub pushes: Vec<String>,
    pub builds: Vec<BuildStatus>,
    /// What was built and claimed.
    pub paths: Vec<PathStatus>,
    /// What couldn't be claimed.
    pub failed: Vec<Failed>,
    /// Outputs of what was to be built that the cache has.
    pub outputs: Vec<StorePath>,
    /// Whether they are in this machine's store.
    pub substituted: bool,
    /// Whether they should be and Nix couldn't fetch them.
    pub fetch_failed: bool,
    /// The command that fetches them, where that is still to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetch: Option<String>,
    pub notices: Vec<String>,
    /// Whether waiting ended for want of time.
    pub timed_out: bool,
    /// Whether waiting was interrupted from the keyboard.
    pub interrupted: bool,
}

/// The derivation's name, without `.drv`.
pub fn name(derivation: &StorePath) -> &str {
    derivation.name().strip_suffix(".drv").unwrap_or(derivation.name())
}

/// Has something built at the cache.
pub async fn build(
    session: &Session,
    options: &Options,
    progress: &Progress,
    tell: Tell,
) -> Result<Report, BuildError> {
    let location = StoreLocation::from_env()?;
    let roots = options.target.derivations(&location).await?;
    if let Some(other) = roots.iter().find(|root| !root.is_derivation()) {
        return Err(BuildError::NotADerivation(other.clone()));
    }
    progress.doing("reading the store");
    let connecting = spawn_blocking(move || Daemon::connect(&location));
    let (greeting, daemon) = tokio::join!(session.greet(), connecting);
    let daemon = daemon.map_err(PushError::from)?.map_err(PushError::from)?;
    let greeting = greeting?;
    let notice = greeting.cache(session, &options.cache)?;
    let mut sender = Sender::new(session, greeting, options.cache.clone(), daemon, progress.clone());
    sender.notices.extend(notice);

    let wanted = roots.clone();
    let (plan, missing) = sender
        .ask_store(move |daemon| {
            // held while the connection lasts: nobody else refers to what was only evaluated
            daemon.add_temp_roots(&wanted).map_err(ClosureError::from)?;
            Plan::read(daemon, wanted)
        })
        .await?;
    if let Some(root) = missing.into_iter().find(|path| plan.roots().contains(path)) {
        return Err(BuildError::Missing(root));
    }
    let mut run = Run::new(sender, plan, options, tell);
    let deadline = Instant::now() + options.timeout;
    let end = tokio::select! {
        end = run.follow(deadline) => end?,
        _ = tokio::signal::ctrl_c() => End::Interrupted,
    };
    run.report(options, end, progress).await
}
