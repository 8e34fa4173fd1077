//! Builds at the cache: a verifier builds what this machine has only evaluated, this client claims what came of it as it
//! claims what it built itself, and the gateway's policy decides. Follows it to the end, with logs, and fetches the result.
//! Doesn't print: what a person should know is told, piece by piece, as [`News`].

mod board;
mod log;
mod plan;
mod substitute;
mod target;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream};
use pushgate_formats::{
    Sha256, StorePath,
    api::{MissingPath, MissingQuery, PathState, PathStatus, PushStatus},
    jobs::{BuildState, BuildStatus},
};
use serde::Serialize;
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

pub use target::{Target, TargetError};

use self::{board::Board, plan::Plan};
use crate::{
    api::{ApiError, Until, printable},
    nix::{Daemon, LocationError, StoreLocation, closure::ClosureError},
    progress::Progress,
    push::{Failed, Inputs, Parcel, PushError, Pushed, Sender},
    session::{Session, SessionError},
};

/// How long a question about a push waits at the gateway, in seconds: what one push brings about, another shows.
const WAIT: u64 = 3;
/// The least time between two rounds of questions.
const LEAST_ROUND: Duration = Duration::from_secs(1);
/// A gateway that can't be reached for so long isn't waited for.
const LONGEST_SILENCE: Duration = Duration::from_secs(300);
/// The pause between two rounds of attempts meanwhile.
const SILENT_PAUSE: Duration = Duration::from_secs(10);
/// How often the store is looked at for what it lacked.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// What a log still has to say when its build is over is waited for.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Questions at once for what the cache has.
const AT_ONCE: usize = 16;

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
    let mut run = Run {
        sender,
        plan,
        tell,
        wait: options.wait,
        colours: options.colours,
        board: Board::default(),
        asks: Vec::new(),
        claims: Vec::new(),
        logs: HashMap::new(),
        inputs: Inputs::default(),
        looked: Instant::now(),
        notices: Vec::new(),
    };
    let deadline = Instant::now() + options.timeout;
    let end = tokio::select! {
        end = run.follow(deadline) => end?,
        _ = tokio::signal::ctrl_c() => End::Interrupted,
    };
    run.logs.values().for_each(|(_, task)| task.abort());
    run.report(options, end, progress).await
}

/// How following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Over,
    TimedOut,
    Interrupted,
}

/// Builds under way.
struct Run<'a> {
    sender: Sender<'a>,
    plan: Plan,
    tell: Tell,
    wait: bool,
    colours: bool,
    board: Board,
    /// Pushes that asked for builds.
    asks: Vec<Pushed>,
    /// Pushes that claim what was built, as long as they aren't decided.
    claims: Vec<Pushed>,
    /// Of each build, what ends its log's follower, and that.
    logs: HashMap<StorePath, (watch::Sender<bool>, JoinHandle<()>)>,
    inputs: Inputs,
    /// When the store was last looked at for inputs.
    looked: Instant,
    /// All that was told as a note.
    notices: Vec<String>,
}

impl Run<'_> {
    async fn follow(&mut self, deadline: Instant) -> Result<End, BuildError> {
        let outputs = self.plan.root_outputs();
        self.sender.progress.doing("asking what the cache has");
        let there = self.published(outputs).await?;
        let first = self.plan.first(&there);
        self.ask_for(first).await?;
        let mut heard = Instant::now();
        while !self.board.is_over(&self.plan, self.wait) {
            let asked = Instant::now();
            if asked >= deadline {
                return Ok(End::TimedOut);
            }
            match self.round(deadline).await {
                Ok(()) => heard = Instant::now(),
                Err(BuildError::Api(error)) => {
                    let again = Instant::now() + SILENT_PAUSE;
                    if !error.is_transient() || again > heard + LONGEST_SILENCE {
                        let push = self.asks.last().map(|push| push.handle.id.clone()).unwrap_or_default();
                        return Err(BuildError::Outcome { error, push });
                    }
                    self.sender.progress.doing("waiting for the gateway, which can't be reached");
                    tokio::time::sleep_until(again.min(deadline)).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.tell_notices();
            let going = self.board.statuses().filter(|status| !status.state.is_over()).count();
            self.sender.progress.doing(match going {
                0 => "waiting for decisions".to_owned(),
                _ => format!("waiting for {going} of {} builds", self.board.len()),
            });
            tokio::time::sleep_until((asked + LEAST_ROUND).min(deadline)).await;
        }
        Ok(End::Over)
    }

    /// Asks once how everything is, and does what follows from it.
    async fn round(&mut self, deadline: Instant) -> Result<(), BuildError> {
        let wait = WAIT.min(deadline.saturating_duration_since(Instant::now()).as_secs());
        let api = &self.sender.session.api;
        let open =
            |at: &usize| self.asks[*at].derivations.iter().any(|asked| !self.board.is_build_over(asked));
        let open: Vec<usize> = (0..self.asks.len()).filter(open).collect();
        let asks = open.iter().map(|at| api.push(&self.asks[*at].handle, wait, Until::Terminal));
        let claims = self.claims.iter().map(|push| api.push(&push.handle, wait, Until::Settled));
        let (asks, claims) = tokio::join!(join_all(asks), join_all(claims));
        let asks = asks.into_iter().collect::<Result<Vec<_>, _>>()?;
        let claims = claims.into_iter().collect::<Result<Vec<_>, _>>()?;

        for (at, status) in open.into_iter().zip(&asks) {
            self.learn_builds(at, status).await;
        }
        let pushes = std::mem::take(&mut self.claims);
        for (push, status) in pushes.into_iter().zip(&claims) {
            if self.learn_claims(&push, status) {
                self.claims.push(push);
            }
        }
        for status in asks.iter().chain(&claims) {
            self.serve(status, deadline).await;
        }
        self.claim_built().await?;
        let waited_for = self.board.waited_for();
        let lacking = self.plan.lacking(&waited_for);
        if !lacking.is_empty() {
            self.ask_further(lacking).await?;
        }
        Ok(())
    }

    /// Which of the paths the cache has published.
    async fn published(&self, paths: Vec<StorePath>) -> Result<HashSet<StorePath>, ApiError> {
        let (api, cache) = (&self.sender.session.api, self.sender.cache.as_str());
        let ask = |path: StorePath| async move {
            api.is_published(cache, &path).await.map(|there| there.then_some(path))
        };
        let answers: Vec<_> = stream::iter(paths).map(ask).buffer_unordered(AT_ONCE).collect().await;
        answers.into_iter().filter_map(Result::transpose).collect()
    }

    /// Asks for the builds of what builds wait for, unless it turned up at the cache or an upstream meanwhile.
    async fn ask_further(&mut self, lacking: BTreeSet<StorePath>) -> Result<(), BuildError> {
        let outputs: Vec<StorePath> = lacking.iter().filter(|path| !path.is_derivation()).cloned().collect();
        let mut there = self.published(outputs.clone()).await?;
        if !outputs.is_empty() {
            // an upstream's paths are listed whatever contents are asked for, and these aren't known
            let ask = |path| MissingPath { path, nar_hash: Sha256([0; 32]) };
            let query = MissingQuery { paths: outputs.into_iter().map(ask).collect() };
            let answer = self.sender.session.api.missing(&self.sender.cache, &query).await?;
            there.extend(answer.upstream);
        }
        let lacking = lacking.into_iter().filter(|path| !there.contains(path)).collect();
        let more = self.plan.further(&lacking);
        self.ask_for(more).await
    }

    /// Announces builds and sends their derivations.
    async fn ask_for(&mut self, mut derivations: Vec<StorePath>) -> Result<(), BuildError> {
        while !derivations.is_empty() {
            let rest = derivations.split_off(derivations.len().min(pushgate_formats::api::MAX_BUILDS));
            self.sender.progress.doing(format!("asking for {} builds", derivations.len()));
            let parcel =
                Parcel { derivations: derivations.clone(), builds: derivations.clone(), ..Parcel::default() };
            let pushed = self.sender.send(parcel).await?;
            self.board.asked(&derivations);
            let total = self.board.len();
            (self.tell)(News::Asked { derivations: std::mem::replace(&mut derivations, rest), total });
            self.asks.push(pushed);
        }
        self.tell_notices();
        Ok(())
    }

    /// Claims what verifiers have built, all in one push.
    async fn claim_built(&mut self) -> Result<(), BuildError> {
        let mut parcel = Parcel { bytes_elsewhere: true, ..Parcel::default() };
        let mut outputs = Vec::new();
        for status in self.board.to_claim() {
            match self.plan.claimable(&status.derivation, &status.outputs) {
                Ok(paths) => {
                    outputs.push((
                        status.derivation.clone(),
                        paths.iter().map(|info| info.path.clone()).collect(),
                    ));
                    parcel.derivations.push(status.derivation);
                    parcel.paths.extend(paths);
                }
                Err(why) => {
                    let why = format!("what was built from `{}` isn't claimed: {why}", status.derivation);
                    self.note(why.clone());
                    self.board.unclaimable(&status.derivation, why);
                }
            }
        }
        if parcel.paths.is_empty() {
            return Ok(());
        }
        let pushed = self.sender.send(parcel).await?;
        for (derivation, paths) in outputs {
            self.board.claimed(&derivation, paths);
        }
        if self.learn_claims(&pushed, &pushed.status) {
            self.claims.push(pushed);
        }
        Ok(())
    }

    /// Takes what a push says of its builds.
    async fn learn_builds(&mut self, at: usize, status: &PushStatus) {
        for status in &status.builds {
            if !self.board.learn_build(status.clone()) {
                continue;
            }
            let derivation = &status.derivation;
            if matches!(status.state, BuildState::Building | BuildState::Failed) {
                self.follow_log(at, derivation);
            }
            if status.state.is_over()
                && let Some((over, task)) = self.logs.get_mut(derivation)
            {
                // first its last words, then what came of it
                over.send_replace(true);
                let _ = tokio::time::timeout(LAST_WORDS, task).await;
                self.logs.remove(derivation);
            }
            let is_bad = matches!(status.state, BuildState::Failed | BuildState::Refused);
            let blocks = if is_bad { self.board.blocked_by(&self.plan, derivation) } else { vec![] };
            (self.tell)(News::Build { status: status.clone(), blocks });
        }
    }

    fn follow_log(&mut self, at: usize, derivation: &StorePath) {
        if self.logs.get(derivation).is_some_and(|(_, task)| !task.is_finished()) {
            return;
        }
        let (over, is_over) = watch::channel(false);
        let (api, push) = (self.sender.session.api.clone(), self.asks[at].handle.clone());
        let following = log::follow(api, push, derivation.clone(), self.colours, is_over, self.tell.clone());
        self.logs.insert(derivation.clone(), (over, tokio::spawn(following)));
    }

    /// Takes what a push says of its claims; says whether there may be more to hear.
    fn learn_claims(&mut self, push: &Pushed, status: &PushStatus) -> bool {
        for path in &status.paths {
            if !self.board.learn_claim(path.clone(), push.lost.get(&path.path)) {
                continue;
            }
            let is_bad = matches!(path.state, PathState::Held | PathState::Rejected);
            let maker = self.board.maker(&path.path).filter(|_| is_bad);
            let blocks = maker.map_or_else(Vec::new, |maker| self.board.blocked_by(&self.plan, maker));
            // what is only on its way is no news
            if path.state.is_settled() {
                (self.tell)(News::Output { status: path.clone(), blocks });
            }
        }
        self.note_all(&status.notices);
        let is_final =
            |state| matches!(state, PathState::Published | PathState::Upstream | PathState::Rejected);
        status.paths.iter().any(|path| !is_final(path.state))
    }

    /// Sends what verifiers need for the builds of a push.
    async fn serve(&mut self, status: &PushStatus, deadline: Instant) {
        self.note_all(&status.notices);
        let wanted = &status.wanted_inputs;
        let may_have_come = self.inputs.are_lacking(wanted) && self.looked.elapsed() > LOOK_AGAIN;
        if self.inputs.are_new(wanted) || may_have_come {
            self.looked = Instant::now();
            let roots = self.plan.roots().to_vec();
            self.sender.serve(&mut self.inputs, wanted, &roots, deadline).await;
        }
    }

    fn note_all(&mut self, notices: &[String]) {
        notices.iter().for_each(|notice| self.note(printable(notice)));
    }

    /// Tells of something once.
    fn note(&mut self, text: String) {
        if !self.notices.contains(&text) {
            self.notices.push(text.clone());
            (self.tell)(News::Note(text));
        }
    }

    fn tell_notices(&mut self) {
        for notice in std::mem::take(&mut self.sender.notices) {
            self.note(notice);
        }
    }

    /// The outputs of the roots that the cache has.
    async fn outputs(&self) -> Result<Vec<StorePath>, ApiError> {
        let known = self.plan.root_outputs();
        let built = self.plan.roots().iter().filter_map(|root| self.board.outputs(root)).flatten();
        let mut outputs: Vec<StorePath> = known.iter().chain(built).cloned().collect();
        let mut seen = HashSet::new();
        outputs.retain(|path| seen.insert(path.clone()));
        let there = self.published(outputs.clone()).await?;
        outputs.retain(|path| there.contains(path));
        Ok(outputs)
    }

    async fn report(
        mut self,
        options: &Options,
        end: End,
        progress: &Progress,
    ) -> Result<Report, BuildError> {
        self.tell_notices();
        let outputs = if end == End::Interrupted { Vec::new() } else { self.outputs().await? };
        let gateway = &self.sender.session.gateway;
        // what was pinned when the gateway was joined, not what it says now
        let key = gateway.caches.iter().find(|cache| cache.name == options.cache);
        let url = format!("{}/{}", gateway.url, options.cache);
        let has_outputs = !outputs.is_empty();
        let (mut substituted, mut fetch) = (false, None);
        if key.is_none() && has_outputs {
            self.note(format!(
                "the key of the cache `{}` wasn't there when you joined, so nothing is fetched from it; join again",
                options.cache
            ));
        }
        if let Some(key) = key.filter(|_| has_outputs) {
            progress.finish();
            if options.substitute {
                substituted = substitute::substitute(&url, &key.public_key, &outputs).await;
            }
            if !substituted {
                fetch = Some(substitute::command(&url, &key.public_key, &outputs));
            }
        }
        let failed = self.board.failures().into_iter().map(|(path, message)| Failed { path, message });
        let report = Report {
            gateway: gateway.url.clone(),
            cache: options.cache.clone(),
            derivations: self.plan.roots().to_vec(),
            pushes: self.asks.iter().map(|push| push.handle.id.clone()).collect(),
            builds: self.board.statuses().cloned().collect(),
            paths: self.board.claims().cloned().collect(),
            failed: failed.collect(),
            outputs,
            substituted,
            fetch_failed: options.substitute && !substituted && has_outputs,
            fetch,
            notices: self.notices,
            timed_out: end == End::TimedOut,
            interrupted: end == End::Interrupted,
        };
        self.sender.close();
        Ok(report)
    }
}
