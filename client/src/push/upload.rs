//! Sends the NARs of one push: several requests at once, each repeated while that can help. Doesn't know why the gateway
//! wants them, nor what they come to in the end: the status says that.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pushgate_formats::{
    StorePath,
    api::{ErrorBody, Uploaded},
};
use reqwest::Body;
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
};

use super::{
    PushError,
    compress::{PackError, Packer, pack_large},
    derivations::{self, Listed},
    framing::{self, Pieces, Sink},
    line::Line,
    plan::{Nar, Work},
};
use crate::{
    api::{Api, ApiError, PushHandle, Tries, Until, turn_pause},
    nix::StoreLocation,
    progress::Progress,
};

/// A gateway that takes no byte, and gives no answer, for so long isn't waited for.
const STALL: Duration = Duration::from_secs(180);

/// Shortest pause where the gateway has no room: it isn't made in a moment.
const NO_ROOM: Duration = Duration::from_secs(10);

/// Large NARs under way at once. One alone keeps all cores busy, but for its end, when the gateway makes it durable.
const LARGE_AT_ONCE: usize = 2;

/// Sends what one push needs.
#[derive(Clone)]
pub(super) struct Uploader {
    pub(super) api: Api,
    pub(super) push: PushHandle,
    pub(super) location: StoreLocation,
    pub(super) progress: Progress,
    /// Requests at once.
    pub(super) jobs: usize,
    /// Says how hard to compress.
    pub(super) line: Arc<Line>,
    /// True once the gateway has the derivations, and with them knows what to scan NARs for. Until then NARs are
    /// compressed as far as there is room, and not sent.
    pub(super) ready: watch::Receiver<bool>,
}

/// What came of sending.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// NARs that the gateway took.
    pub(super) nars: u64,
    /// Bytes of these NARs.
    pub(super) nar_bytes: u64,
    /// Bytes of all bodies.
    pub(super) body_bytes: u64,
    /// NARs that couldn't be sent, and why.
    pub(super) unsent: Vec<(Nar, String)>,
    /// NARs that the gateway didn't take.
    pub(super) refused: Vec<(Nar, ErrorBody)>,
}

impl Sent {
    pub(super) fn add(&mut self, other: Self) {
        self.nars += other.nars;
        self.nar_bytes += other.nar_bytes;
        self.body_bytes += other.body_bytes;
        self.unsent.extend(other.unsent);
        self.refused.extend(other.refused);
    }
}

/// How often a request was repeated.
#[derive(Debug, Default)]
struct Attempts {
    /// Since something arrived.
    failures: u32,
    /// Because all places were taken.
    turns: u32,
}

type Queue<T> = Arc<Mutex<VecDeque<T>>>;

fn next<T>(queue: &Queue<T>) -> Option<T> {
    // a thread that panicked while it held the lock has only taken an item
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

impl Uploader {
    /// Sends NARs: large ones two at a time, batches of small ones beside them.
    pub(super) async fn nars(&self, work: Work) -> Result<Sent, PushError> {
        let mut tasks = JoinSet::new();
        let batches = Arc::new(Mutex::new(work.batches));
        let large = Arc::new(Mutex::new(work.large));
        let at_once = LARGE_AT_ONCE.min(large.lock().map_or(1, |queue| queue.len()));
        for _ in 0..at_once {
            let (uploader, large) = (self.clone(), large.clone());
            tasks.spawn(async move {
                let mut sent = Sent::default();
                while let Some(nar) = next(&large) {
                    sent.add(uploader.large(nar, at_once).await?);
                }
                Ok::<_, PushError>(sent)
            });
        }
        let jobs = self.jobs.min(batches.lock().map_or(1, |queue| queue.len()));
        for _ in 0..jobs {
            let (uploader, batches) = (self.clone(), batches.clone());
            let mut packer = Packer::new().map_err(PushError::Compression)?;
            tasks.spawn(async move {
                let mut sent = Sent::default();
                while let Some(batch) = next(&batches) {
                    let (used, one) = uploader.batch(packer, batch).await?;
                    packer = used;
                    sent.add(one);
                }
                Ok(sent)
            });
        }
        let mut all = Sent::default();
        while let Some(sent) = tasks.join_next().await {
            // the first error ends the others: dropping the set aborts them, and their bodies with them
            all.add(sent.map_err(|e| PushError::Internal(e.to_string()))??);
        }
        Ok(all)
    }

    /// Sends a batch of small NARs in one request.
    async fn batch(&self, mut packer: Packer, batch: Vec<Nar>) -> Result<(Packer, Sent), PushError> {
        let mut all = Sent::default();
        let mut left = batch;
        let mut attempts = Attempts::default();
        loop {
            let (location, progress) = (self.location.clone(), self.progress.clone());
            let batch = left.clone();
            let produce = move |sink: &mut Sink| {
                let mut unsent = Vec::new();
                for nar in batch {
                    match packer.pack(&location.physical(&nar.path), &nar, sink) {
                        Ok(()) => progress.sent(nar.size),
                        Err(PackError::Closed(_)) => break,
                        Err(error) => unsent.push((nar, error.to_string())),
                    }
                }
                let _ = sink.flush(); // fails only where the request has ended
                (packer, unsent)
            };
            let (answer, bytes, (used, unsent)) =
                stream(|body| self.api.send_nars(&self.push, body), self, self.ready.clone(), produce)
                    .await?;
            packer = used;
            all.body_bytes += bytes;
            left.retain(|nar| !unsent.iter().any(|(gone, _)| gone == nar));
            all.unsent.extend(unsent);
            if self.judge(answer, &mut left, &mut attempts, &mut all).await? {
                return Ok((packer, all));
            }
        }
    }

    /// Sends a large NAR in a request of its own.
    async fn large(&self, nar: Nar, at_once: usize) -> Result<Sent, PushError> {
        let mut all = Sent::default();
        let mut left = vec![nar.clone()];
        let mut attempts = Attempts::default();
        loop {
            let (location, progress) = (self.location.clone(), self.progress.clone());
            let one = nar.clone();
            let produce = move |sink: &mut Sink| {
                let packed = pack_large(&location.physical(&one.path), &one, at_once, sink, &|bytes| {
                    progress.sent(bytes)
                });
                let _ = sink.flush(); // fails only where the request has ended
                match packed {
                    Ok(()) | Err(PackError::Closed(_)) => None,
                    Err(error) => Some(error.to_string()),
                }
            };
            let (answer, bytes, unsent) =
                stream(|body| self.api.send_nars(&self.push, body), self, self.ready.clone(), produce)
                    .await?;
            all.body_bytes += bytes;
            if let Some(why) = unsent {
                left.clear();
                all.unsent.push((nar.clone(), why));
            }
            if self.judge(answer, &mut left, &mut attempts, &mut all).await? {
                return Ok(all);
            }
        }
    }

    /// Takes the gateway's answer to a request for `left`. Says whether that was all; otherwise `left` is what is
    /// wanted still and the pause before the next attempt is over.
    async fn judge(
        &self,
        answer: Result<Uploaded, ApiError>,
        left: &mut Vec<Nar>,
        attempts: &mut Attempts,
        all: &mut Sent,
    ) -> Result<bool, PushError> {
        let mut no_room = Vec::new();
        let error = match answer {
            Ok(answer) => {
                for result in answer.nars {
                    // a record that was given up is refused too, but why is known better here
                    let Some(nar) = left.iter().find(|nar| nar.hash == result.nar_hash) else { continue };
                    match result.error {
                        None => {
                            all.nars += 1;
                            all.nar_bytes += nar.size;
                        }
                        Some(error) if error.code == "gateway-full" => no_room.push((nar.clone(), error)),
                        Some(error) => all.refused.push((nar.clone(), error)),
                    }
                }
                let Some(pause) = Tries::Many.pause(attempts.failures).filter(|_| !no_room.is_empty()) else {
                    all.refused.extend(no_room);
                    return Ok(true);
                };
                attempts.failures += 1;
                left.retain(|nar| no_room.iter().any(|(full, _)| full == nar));
                tokio::time::sleep(pause.max(NO_ROOM)).await;
                return Ok(false);
            }
            Err(error) => error,
        };
        if self.has_ended(&error).await? {
            return Ok(true);
        }
        if error.is_turn() {
            // other pushes of the same submitter take their turns too; theirs end, or are given up by the gateway
            attempts.turns += 1;
            tokio::time::sleep(turn_pause(attempts.turns)).await;
            // most are sent away before anything was read
            if error.code() != Some("gateway-busy") {
                return Ok(false);
            }
        } else {
            let Some(pause) = Tries::Many.pause(attempts.failures).filter(|_| error.is_transient()) else {
                return Err(error.into());
            };
            attempts.failures += 1;
            let full = matches!(error.code(), Some("disk-full" | "gateway-full"));
            let pause = if full { pause.max(NO_ROOM) } else { pause };
            tracing::debug!(%error, ?pause, "sending again");
            tokio::time::sleep(pause).await;
        }
        // what arrived before the connection broke need not be sent again
        let wanted = self.api.push(&self.push, 0, Until::Settled).await?.wanted;
        let arrived: Vec<Nar> = left.extract_if(.., |nar| !wanted.contains(&nar.hash)).collect();
        if !arrived.is_empty() {
            // it goes on, if haltingly
            attempts.failures = 0;
        } else if error.code() == Some("upload-too-long") {
            // nor would it arrive the next time
            return Err(error.into());
        }
        all.nars += arrived.len() as u64;
        all.nar_bytes += arrived.iter().map(|nar| nar.size).sum::<u64>();
        Ok(left.is_empty())
    }

    /// Whether a refusal means that nothing is wanted any more: another push may have brought the same paths meanwhile, and
    /// this one has ended with that. What came of it, its state tells.
    async fn has_ended(&self, error: &ApiError) -> Result<bool, PushError> {
        if error.code() != Some("forbidden") {
            return Ok(false);
        }
        Ok(self.api.push(&self.push, 0, Until::Settled).await?.wanted.is_empty())
    }

    /// Sends derivations, one body after another, and returns what the person should know about them.
    pub(super) async fn derivations(&self, bodies: Vec<Vec<Listed>>) -> Result<Vec<String>, PushError> {
        let mut notices = Vec::new();
        for body in bodies {
            let body = Arc::new(body);
            let (mut failures, mut turns) = (0, 0);
            let (taken, unread) = loop {
                let (location, listed) = (self.location.clone(), body.clone());
                let produce = move |sink: &mut Sink| derivations::write(&location, &listed, sink);
                let (answer, _, unread) = stream(
                    |body| self.api.send_derivations(&self.push, body),
                    self,
                    watch::channel(true).1,
                    produce,
                )
                .await?;
                match (answer, unread) {
                    (Ok(taken), unread) => break (taken, unread.map_err(PushError::Compression)?),
                    (Err(error), _) if error.is_turn() => {
                        turns += 1;
                        tokio::time::sleep(turn_pause(turns)).await;
                    }
                    (Err(error), _) => {
                        if self.has_ended(&error).await? {
                            return Ok(notices);
                        }
                        let pause = Tries::Many.pause(failures).filter(|_| error.is_transient());
                        let Some(pause) = pause else { return Err(error.into()) };
                        failures += 1;
                        tokio::time::sleep(pause).await;
                    }
                }
            };
            notices.extend(unread.iter().map(|path: &StorePath| format!("the derivation `{path}` is gone")));
            notices.extend(taken.refused.into_iter().map(|error| {
                let about = error.path.map(|path| format!("`{path}`: ")).unwrap_or_default();
                format!("a derivation was refused: {about}{} [{}]", error.message, error.code)
            }));
        }
        Ok(notices)
    }
}

/// Sends a body that a thread produces while it is sent. Returns the answer, the number of bytes sent and what the
/// thread returned.
async fn stream<T, R, F>(
    send: impl FnOnce(Body) -> F,
    uploader: &Uploader,
    mut ready: watch::Receiver<bool>,
    produce: impl FnOnce(&mut Sink) -> R + Send + 'static,
) -> Result<(Result<T, ApiError>, u64, R), PushError>
where
    F: Future<Output = Result<T, ApiError>>,
    R: Send + 'static,
{
    let (mut sink, pieces) = framing::body(uploader.line.clone());
    // the sink is dropped with the closure, which ends the body
    let producer = spawn_blocking(move || produce(&mut sink));
    // an error means that nobody is left to say so: the request will tell
    let _ = ready.wait_for(|ready| *ready).await;
    let answer = watched(send(Body::wrap_stream(pieces.clone())), &pieces, &uploader.api).await;
    // with the answer the request is over, whether or not the whole body was read
    pieces.close();
    let produced = producer.await.map_err(|e| PushError::Internal(e.to_string()))?;
    Ok((answer, pieces.sent(), produced))
}

/// Waits for an answer for as long as bytes move.
async fn watched<T>(
    request: impl Future<Output = Result<T, ApiError>>,
    pieces: &Pieces,
    api: &Api,
) -> Result<T, ApiError> {
    let mut request = std::pin::pin!(request);
    let mut seen = 0;
    loop {
        if let Ok(answer) = tokio::time::timeout(STALL, &mut request).await {
            return answer;
        }
        let now = pieces.sent();
        if now == seen {
            return Err(ApiError::Stalled { url: api.base().to_owned(), seconds: STALL.as_secs() });
        }
        seen = now;
    }
}
