//! What clients do while faults come. A scenario remembers how far it is, as a client does; what it is told to do again it
//! does as that client would.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use pushgate_formats::{
    Sha256, StorePath,
    api::{Announced, DerivationsTaken, ErrorAnswer, PathState, PathStatus, PushStatus, Uploaded},
};
use serde::de::DeserializeOwned;

use super::Life;
use crate::forge::{Draft, Item, Packing, StockUser, framed, packed_derivations, random_hex};

/// The gateway couldn't be reached, or said that it can't now.
#[derive(Debug)]
pub struct Again(pub String);

/// Pushes, and what must come of them.
#[async_trait]
pub trait Scenario: Send + Sync + 'static {
    /// Goes on from where it was, to its end, or until something fails that a client tries again: then it is called again.
    async fn drive(&self, gateway: &Life) -> Result<(), Again>;

    /// What is published when it is over, and nothing else.
    fn published(&self) -> BTreeSet<StorePath>;

    /// The gateway was killed.
    fn killed(&self) {}

    /// Called before each write to the blob store of the gateway with this data directory.
    fn before(&self, _what: &'static str, _data: &Path) {}
}

/// What clients do after the gateway was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// They go on with the push that they had announced.
    GoOn,
    /// They are gone, and others push the same paths.
    StartAnew,
}

/// Pushes by the gateway's own interface: one step after the other, the pushes of a step at once.
pub struct OwnPushes {
    http: reqwest::Client,
    steps: Vec<Vec<Arc<OwnPush>>>,
    after: After,
}

/// One client's push.
struct OwnPush {
    draft: Mutex<Draft>,
    announced: Mutex<Option<Announced>>,
    /// NARs of which the gateway has said that it took them.
    taken: Mutex<BTreeSet<Sha256>>,
    over: AtomicBool,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OwnPushes {
    pub fn new(http: reqwest::Client, steps: Vec<Vec<Draft>>, after: After) -> Self {
        let push = |draft| {
            Arc::new(OwnPush {
                draft: Mutex::new(draft),
                announced: Mutex::default(),
                taken: Mutex::default(),
                over: AtomicBool::new(false),
            })
        };
        let steps = steps.into_iter().map(|drafts| drafts.into_iter().map(push).collect()).collect();
        Self { http, steps, after }
    }
}

#[async_trait]
impl Scenario for OwnPushes {
    async fn drive(&self, gateway: &Life) -> Result<(), Again> {
        for step in &self.steps {
            let mut pushes = tokio::task::JoinSet::new();
            for push in step.iter().filter(|push| !push.over.load(Relaxed)) {
                let (push, http, url) = (push.clone(), self.http.clone(), gateway.url.clone());
                pushes.spawn(async move { push.go_on(&http, &url).await });
            }
            let mut failed = Ok(());
            while let Some(pushed) = pushes.join_next().await {
                failed = failed.and(pushed.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())));
            }
            failed?;
        }
        Ok(())
    }

    fn published(&self) -> BTreeSet<StorePath> {
        let paths = |push: &Arc<OwnPush>| {
            lock(&push.draft).body.paths.iter().map(|p| p.path.clone()).collect::<Vec<_>>()
        };
        self.steps.iter().flatten().flat_map(paths).collect()
    }

    fn killed(&self) {
        if self.after == After::StartAnew {
            for push in self.steps.iter().flatten().filter(|push| !push.over.load(Relaxed)) {
                lock(&push.draft).body.nonce = random_hex();
                *lock(&push.announced) = None;
            }
        }
    }
}

impl OwnPush {
    async fn go_on(&self, http: &reqwest::Client, url: &str) -> Result<(), Again> {
        let known = lock(&self.announced).clone();
        let announced = match known {
            Some(announced) => announced,
            None => {
                let sealed = lock(&self.draft).sealed();
                let request = http.post(format!("{url}/api/v1/caches/main/pushes")).body(sealed);
                let announced: Announced = answer(request).await?;
                *lock(&self.announced) = Some(announced.clone());
                announced
            }
        };
        let push = format!("{url}/api/v1/pushes/{}", announced.status.push);
        let ask = |query: &str| {
            answer::<PushStatus>(http.get(format!("{push}{query}")).bearer_auth(&announced.token))
        };
        // each time round something was sent that was damaged in the gateway's store since
        for _ in 0..100 {
            let status = ask("").await?;
            self.check_taken(&status);
            if status.paths.iter().all(|p| p.state == PathState::Published) {
                // perhaps by another push
                self.over.store(true, Relaxed);
                return Ok(());
            }
            let (texts, nars) = self.wanted(&status);
            if let Some(texts) = texts {
                let request = http.post(format!("{push}/derivations")).bearer_auth(&announced.token);
                let taken: DerivationsTaken = answer(request.body(texts)).await?;
                assert!(taken.refused.is_empty(), "{taken:?}");
            }
            for part in nars {
                let body = part.iter().flat_map(|(hash, nar)| framed(hash, nar, true)).collect::<Vec<_>>();
                let request = http.post(format!("{push}/nars")).bearer_auth(&announced.token).body(body);
                let uploaded: Uploaded = answer(request).await?;
                for nar in uploaded.nars {
                    // what another upload brought meanwhile isn't wanted any more
                    let code = nar.error.as_ref().map(|e| e.code.as_str());
                    assert!(matches!(code, None | Some("nar-not-wanted")), "{nar:?}");
                    if code.is_none() {
                        lock(&self.taken).insert(nar.nar_hash);
                    }
                }
            }
            // not for long: what is damaged is wanted again, and waits for this client
            let status = ask("?wait=1").await?;
            // held for a moment, where what it refers to was damaged and comes again
            let goes_on = |p: &PathStatus| match p.state {
                PathState::Wanted | PathState::Checking | PathState::Published => true,
                PathState::Held => p.code.as_deref() == Some("closure-open"),
                _ => false,
            };
            assert!(status.paths.iter().all(goes_on), "{:#?}", status.paths);
        }
        panic!("the push never ends: {:#?}", ask("").await?);
    }

    /// Nothing that was taken is asked for again, unless it says why.
    fn check_taken(&self, status: &PushStatus) {
        let mut taken = lock(&self.taken);
        let draft = lock(&self.draft);
        for path in status.paths.iter().filter(|p| p.state == PathState::Wanted) {
            let claim = draft.body.paths.iter().find(|c| c.path == path.path).expect("a path of the push");
            if path.code.as_deref() == Some("quarantine-damaged") {
                taken.remove(&claim.nar_hash);
            }
            assert!(!taken.contains(&claim.nar_hash), "what was taken is lost: {path:?}");
        }
    }

    /// The body with derivations that are wanted, and NARs in two parts, so that there is a moment between them.
    fn wanted(&self, status: &PushStatus) -> Wanted {
        let draft = lock(&self.draft);
        let texts: Vec<_> = (draft.body.derivations.iter())
            .filter(|d| status.wanted_derivations.contains(d))
            .map(|d| (d, &draft.texts[d]))
            .collect();
        let texts = (!texts.is_empty()).then(|| packed_derivations(texts));
        let nars: Vec<_> = status.wanted.iter().map(|hash| (*hash, draft.nars[hash].clone())).collect();
        let parts = nars.chunks(nars.len().div_ceil(2).max(1)).map(<[_]>::to_vec).collect();
        (texts, parts)
    }
}

/// The body with derivations, and NARs by their hashes, in parts.
type Wanted = (Option<Vec<u8>>, Vec<Vec<(Sha256, Vec<u8>)>>);

/// An answer, or why to ask again, as the real client sees it. Any other refusal fails the test.
async fn answer<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, Again> {
    let unreachable = |e: reqwest::Error| Again(format!("{e:?}"));
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    let body = response.bytes().await.map_err(unreachable)?;
    if status.is_success() {
        return Ok(serde_json::from_slice(&body).expect("the answer's JSON"));
    }
    let error: ErrorAnswer = serde_json::from_slice(&body).expect("an error's JSON");
    let transient = matches!(status.as_u16(), 408 | 429 | 503) || error.error.code == "upload-cut-off";
    // another push brought the same paths meanwhile, and this one is over: its state tells
    let ended = error.error.code == "forbidden" && error.error.message.ends_with("has ended");
    assert!(transient || ended, "{status}: {:?}", error.error);
    Err(Again(format!("{status}: {:?}", error.error)))
}

/// Copies by stock Nix: for each path its NAR file and then its narinfo, again after a 5xx or a broken connection, and not
/// where the gateway says that it has it.
pub struct StockCopy {
    http: reqwest::Client,
    user: StockUser,
    items: Vec<Item>,
}

impl StockCopy {
    /// Of these paths, each after those that it refers to.
    pub fn new(http: reqwest::Client, user: &StockUser, items: Vec<Item>) -> Self {
        Self { http, user: user.clone(), items }
    }

    async fn send(
        &self,
        method: reqwest::Method,
        url: &str,
        name: &str,
        body: Vec<u8>,
    ) -> Result<bool, Again> {
        let request = self.http.request(method, format!("{url}/main/push/{name}")).body(body);
        let request = request.header("authorization", self.user.authorization());
        let response = request.send().await.map_err(|e| Again(format!("{e:?}")))?;
        let status = response.status();
        let text = response.text().await.map_err(|e| Again(format!("{e:?}")))?;
        match status.as_u16() {
            200 => Ok(true),
            404 => Ok(false),
            500.. => Err(Again(text)),
            other => panic!("{name}: {other}: {text}"),
        }
    }
}

#[async_trait]
impl Scenario for StockCopy {
    async fn drive(&self, gateway: &Life) -> Result<(), Again> {
        use reqwest::Method;
        for item in &self.items {
            let info = self.user.narinfo(item, Packing::Xz);
            let name = format!("{}.narinfo", item.path.hash_part());
            if self.send(Method::GET, &gateway.url, &name, vec![]).await? {
                continue;
            }
            if !self.send(Method::HEAD, &gateway.url, &info.url, vec![]).await? {
                self.send(Method::PUT, &gateway.url, &info.url, Packing::Xz.pack(&item.nar)).await?;
            }
            self.send(Method::PUT, &gateway.url, &name, info.print().into_bytes()).await?;
        }
        // what was taken is published in the end, without another word from the client
        for item in &self.items {
            let url = format!("{}/main/{}.narinfo", gateway.url, item.path.hash_part());
            let answer = self.http.get(url).send().await.map_err(|e| Again(format!("{e:?}")))?;
            if answer.status() != 200 {
                return Err(Again(format!("{} isn't published yet", item.path)));
            }
        }
        Ok(())
    }

    fn published(&self) -> BTreeSet<StorePath> {
        self.items.iter().map(|item| item.path.clone()).collect()
    }
}
