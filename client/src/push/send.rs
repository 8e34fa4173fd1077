//! Announces paths and sends what the gateway wants of them, one announcement at a time. Doesn't know why it is these
//! paths, and doesn't wait for what they come to.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use pushgate_formats::{
    Sha256, StorePath,
    api::{Audience, PushStatus},
};
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
};

use super::{
    PushError, announce, default_jobs, derivations,
    line::Line,
    plan,
    report::Traffic,
    upload::{Sent, Uploader},
};
use crate::{
    api::{PushHandle, printable},
    clock,
    nix::{Daemon, PathInfo, StoreLocation},
    progress::Progress,
    session::{Greeting, Session},
};

/// What one announcement is about.
#[derive(Debug, Default)]
pub(crate) struct Parcel {
    /// References first.
    pub(crate) paths: Vec<PathInfo>,
    /// Derivations to be named with all that they are built from, beside those of the paths.
    pub(crate) derivations: Vec<StorePath>,
    /// Derivations, among those, that verifiers are to build.
    pub(crate) builds: Vec<StorePath>,
    /// The paths are what verifiers need.
    pub(crate) inputs: bool,
    /// The bytes of the paths aren't on this machine: a verifier has sent them.
    pub(crate) bytes_elsewhere: bool,
}

/// What was announced, and sent as far as that went.
pub(crate) struct Pushed {
    pub(crate) handle: PushHandle,
    /// As it was before anything was sent.
    pub(crate) status: PushStatus,
    /// Paths whose bytes didn't get there, with the reason.
    pub(crate) lost: HashMap<StorePath, String>,
    /// Whose derivation closures were named.
    pub(crate) derivations: Vec<StorePath>,
}

/// Sends from the store on this machine to one cache.
pub(crate) struct Sender<'a> {
    pub(crate) session: &'a Session,
    pub(crate) greeting: Greeting,
    pub(crate) cache: String,
    pub(crate) progress: Progress,
    /// Requests at once; chosen by the number of cores when absent.
    pub(crate) jobs: Option<usize>,
    /// Compression level of zstd; chosen by the speed of the line when absent.
    pub(crate) level: Option<i32>,
    pub(crate) notices: Vec<String>,
    pub(crate) traffic: Traffic,
    location: StoreLocation,
    /// Its temporary roots keep what is sent from being collected. Absent while a thread asks it.
    daemon: Option<Daemon>,
}

impl<'a> Sender<'a> {
    pub(crate) fn new(
        session: &'a Session,
        greeting: Greeting,
        cache: String,
        daemon: Daemon,
        progress: Progress,
    ) -> Self {
        let location = daemon.location().clone();
        Self {
            session,
            greeting,
            cache,
            progress,
            jobs: None,
            level: None,
            notices: Vec::new(),
            traffic: Traffic::default(),
            location,
            daemon: Some(daemon),
        }
    }

    /// Asks the store, on a thread that may block.
    pub(crate) async fn ask_store<T, E>(
        &mut self,
        ask: impl FnOnce(&mut Daemon) -> Result<T, E> + Send + 'static,
    ) -> Result<T, PushError>
    where
        T: Send + 'static,
        E: Into<PushError> + Send + 'static,
    {
        let asking = self.start(ask)?;
        self.answer(asking).await
    }

    fn start<T: Send + 'static>(
        &mut self,
        ask: impl FnOnce(&mut Daemon) -> T + Send + 'static,
    ) -> Result<JoinHandle<(Daemon, T)>, PushError> {
        let gone = || PushError::Internal("the connection to the store is gone".into());
        let mut daemon = self.daemon.take().ok_or_else(gone)?;
        Ok(spawn_blocking(move || {
            let answer = ask(&mut daemon);
            (daemon, answer)
        }))
    }

    async fn answer<T, E: Into<PushError>>(
        &mut self,
        asking: JoinHandle<(Daemon, Result<T, E>)>,
    ) -> Result<T, PushError> {
        let (daemon, answer) = asking.await?;
        self.daemon = Some(daemon);
        answer.map_err(Into::into)
    }

    /// Announces and sends what the gateway wants.
    pub(crate) async fn send(&mut self, parcel: Parcel) -> Result<Pushed, PushError> {
        let Parcel { paths, mut derivations, builds, inputs, bytes_elsewhere } = parcel;
        derivations.extend(derivations::derivers(&paths));
        let roots = derivations.clone();
        let listing = self.start(move |daemon| derivations::list(daemon, roots))?;
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(PushError::Random)?;
        // Signing and sealing keep this thread busy (some 25 µs per path, on all cores); nothing else runs on it meanwhile.
        let claims = announce::sign(&paths, &self.session.key);
        tracing::debug!("signed");
        let list = self.answer(listing).await?;
        tracing::debug!(derivations = list.derivations.len(), "read the derivations");
        self.notices.extend(about_derivations(&list));

        let named = list.derivations.iter().map(|listed| listed.path.clone()).collect();
        let audience = Audience { gateway: self.session.gateway.id.clone(), cache: self.cache.clone() };
        let said = announce::Said { paths: claims, derivations: named, inputs, builds };
        let envelope = announce::seal(audience, said, &self.session.key, clock::now(), nonce);
        let announced = self.session.api.announce(&self.cache, envelope).await;
        let (push, status) = announced.map_err(|e| self.greeting.explain(e))?;
        tracing::debug!(push = push.id, wanted = status.wanted.len(), "announced");

        let bodies = derivations::bodies(list.derivations, &status.wanted_derivations);
        let (open, ready) = watch::channel(false);
        let uploader = Uploader {
            api: self.session.api.clone(),
            push,
            location: self.location.clone(),
            progress: self.progress.clone(),
            jobs: self.jobs.unwrap_or_else(default_jobs),
            line: Arc::new(Line::new(self.level)),
            ready,
        };
        let progress = &self.progress;
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
        let nars = if bytes_elsewhere { Vec::new() } else { plan::wanted(&paths, &status.wanted) };
        let send_nars = async {
            if nars.is_empty() {
                return Ok(Sent::default());
            }
            progress.sending(format!("sending {} paths", nars.len()), nars.iter().map(|nar| nar.size).sum());
            uploader.nars(plan::requests(nars, uploader.jobs)).await
        };
        // the first NARs are compressed while the gateway checks the derivations
        let (notices, sent) = tokio::try_join!(send_derivations, send_nars)?;
        self.notices.extend(notices.iter().map(|notice| printable(notice)));
        tracing::debug!(nars = sent.nars, bytes = sent.body_bytes, "sent the NARs");
        self.traffic.add(&sent);
        let mut lost = lost(&paths, sent);
        if bytes_elsewhere {
            lost.extend(not_there(&paths, &status.wanted));
        }
        Ok(Pushed { handle: uploader.push, status, lost, derivations })
    }

    /// Lets the daemon go, and with it what keeps paths from being collected; nobody has to wait for it to be gone.
    pub(crate) fn close(self) {
        let daemon = self.daemon;
        std::thread::spawn(move || drop(daemon));
    }
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

/// The paths whose bytes a verifier should have sent.
fn not_there(paths: &[PathInfo], wanted: &[Sha256]) -> HashMap<StorePath, String> {
    let wanted: HashSet<&Sha256> = wanted.iter().collect();
    let why = "the gateway hasn't got the bytes that a verifier built; build it again";
    let paths = paths.iter().filter(|info| wanted.contains(&info.nar_hash));
    paths.map(|info| (info.path.clone(), why.to_owned())).collect()
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
