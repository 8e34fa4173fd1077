//! Follows builds: asks how they are, shows their logs, sends what they need, claims what came of them, and asks for more where
//! something is lacking. Which builds, and whether there is more to wait for, [`Plan`] and [`Board`] say.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream};
use pushgate_formats::{
    Sha256, StorePath,
    api::{MAX_BUILDS, MissingPath, MissingQuery, PathState, PushStatus},
    jobs::BuildState,
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::{BuildError, News, Options, Report, Tell, board::Board, log, plan::Plan, substitute};
use crate::{
    api::{ApiError, Until, printable},
    progress::Progress,
    push::{Failed, Inputs, Parcel, Pushed, Sender},
};

/// How long a question about a push waits at the gateway, in seconds: what one push brings about, another shows.
const WAIT: u64 = 3;
/// The least time between two rounds of questions.
const LEAST_ROUND: Duration = Duration::from_millis(300);
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

/// How following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Over,
    TimedOut,
    Interrupted,
}

/// Builds under way.
pub(super) struct Run<'a> {
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

impl<'a> Run<'a> {
    pub(super) fn new(sender: Sender<'a>, plan: Plan, options: &Options, tell: Tell) -> Self {
        Self {
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
        }
    }

    /// Follows builds until nothing more will happen, or the deadline.
    pub(super) async fn follow(&mut self, deadline: Instant) -> Result<End, BuildError> {
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
            let rest = derivations.split_off(derivations.len().min(MAX_BUILDS));
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
            // Of a quick one the log is all that is seen. One that was followed to its end already isn't shown again.
            let is_unseen = matches!(status.state, BuildState::Built | BuildState::Failed)
                && !self.logs.contains_key(derivation);
            if status.state == BuildState::Building || is_unseen {
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

    /// Has the result fetched, and says what came of everything.
    pub(super) async fn report(
        mut self,
        options: &Options,
        end: End,
        progress: &Progress,
    ) -> Result<Report, BuildError> {
        self.logs.values().for_each(|(_, task)| task.abort());
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
