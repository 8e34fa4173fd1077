//! The forging client: drafts of announcements, framed uploads, and what the gateway answers.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use pushgate_formats::{
    Sha256, StorePath,
    api::{
        Announced, AnnouncedPath, AnnouncedRealisation, Announcement, Audience, DerivationsTaken, Enrolled,
        Enrolment, ErrorAnswer, PathState, PathStatus, PushStatus, SignedRequest, Uploaded, frame,
    },
    dsse::{self, Envelope},
    keys::{KeyName, SecretKey},
};
use serde::de::DeserializeOwned;

use super::{Forge, Item, Package, random_hex};

/// Somebody with a key; enrolled or not.
#[derive(Debug, Clone)]
pub struct Submitter {
    pub key: Arc<SecretKey>,
}

impl Submitter {
    /// A fresh key of this name.
    pub fn new(name: &str) -> Self {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("random bytes");
        Self::from_seed(name, &seed)
    }

    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Self {
        let name = KeyName::new(name).expect("a key's name");
        Self { key: Arc::new(SecretKey::from_seed(name, seed)) }
    }
}

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub status: u16,
    pub code: String,
    pub message: String,
    pub path: Option<String>,
}

/// An announcement being drawn up, with the bytes that belong to it.
#[derive(Debug, Clone)]
pub struct Draft {
    pub body: Announcement,
    pub key: Arc<SecretKey>,
    /// Bytes to send, by the NAR hash in their record's header.
    pub nars: BTreeMap<Sha256, Vec<u8>>,
    pub texts: BTreeMap<StorePath, Vec<u8>>,
    pub zstd: bool,
}

impl Draft {
    /// Begins an announcement for the cache `main` of this gateway, right in every field.
    pub fn new(gateway: &str, now: u64, by: &Submitter) -> Self {
        Self {
            body: Announcement {
                version: 1,
                audience: Audience { gateway: gateway.to_owned(), cache: "main".to_owned() },
                nonce: random_hex(),
                issued: now,
                expires: now + 600,
                paths: vec![],
                derivations: vec![],
                realisations: vec![],
                inputs: false,
                builds: vec![],
            },
            key: by.key.clone(),
            nars: BTreeMap::new(),
            texts: BTreeMap::new(),
            zstd: true,
        }
    }

    /// Announces a path with its bytes.
    pub fn item(mut self, item: &Item) -> Self {
        self.body.paths.push(item.announced(&self.key));
        self.nars.insert(item.nar_hash, item.nar.clone());
        self
    }

    /// Lists the derivations of the package and has their texts ready.
    pub fn derivations(mut self, package: &Package) -> Self {
        for (path, text) in &package.closure {
            if self.texts.insert(path.clone(), text.clone()).is_none() {
                self.body.derivations.push(path.clone());
            }
        }
        self
    }

    /// All outputs of a package with its derivations.
    pub fn package(mut self, package: &Package) -> Self {
        for item in package.outputs.values() {
            self = self.item(item);
        }
        self.derivations(package)
    }

    pub fn realisation(mut self, id: &str, path: &StorePath) -> Self {
        self.body.realisations.push(AnnouncedRealisation { id: id.to_owned(), out_path: path.clone() });
        self
    }

    /// Changes the announcement; signatures over fingerprints stay as they are.
    pub fn with(mut self, change: impl FnOnce(&mut Announcement)) -> Self {
        change(&mut self.body);
        self
    }

    /// Changes the last path announced; its signature stays as it is.
    pub fn with_last(self, change: impl FnOnce(&mut AnnouncedPath)) -> Self {
        self.with(|body| change(body.paths.last_mut().expect("a path")))
    }

    /// Leaves the texts out, so that they are announced but not sent.
    pub fn without_texts(mut self) -> Self {
        self.texts.clear();
        self
    }

    pub fn envelope(&self) -> Envelope {
        let payload = serde_json::to_vec(&self.body).expect("plain data");
        Envelope::seal(dsse::ANNOUNCEMENT, &payload, &self.key)
    }

    /// The JSON of the signed envelope.
    pub fn sealed(&self) -> Vec<u8> {
        serde_json::to_vec(&self.envelope()).expect("plain data")
    }

    /// Signs what the announcement becomes when its JSON is changed by hand: forms that the types can't have.
    pub fn sealed_after(&self, change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut body = serde_json::to_value(&self.body).expect("plain data");
        change(&mut body);
        let payload = serde_json::to_vec(&body).expect("plain data");
        serde_json::to_vec(&Envelope::seal(dsse::ANNOUNCEMENT, &payload, &self.key)).expect("plain data")
    }
}

/// One record of an upload, with a right header and whole.
pub fn framed(nar_hash: &Sha256, nar: &[u8], zstd: bool) -> Vec<u8> {
    if zstd {
        framed_as(nar_hash, frame::ZSTD, &zstd::bulk::compress(nar, 1).expect("zstd"))
    } else {
        framed_as(nar_hash, frame::NONE, nar)
    }
}

/// One record with any header and contents.
pub fn framed_as(nar_hash: &Sha256, compression: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = nar_hash.0.to_vec();
    out.push(compression);
    for chunk in contents.chunks(frame::MAX_CHUNK as usize) {
        out.extend((chunk.len() as u32).to_le_bytes());
        out.extend(chunk);
    }
    out.extend(0u32.to_le_bytes());
    out
}

/// The body in which derivations are sent.
pub fn packed_derivations<'a>(texts: impl IntoIterator<Item = (&'a StorePath, &'a Vec<u8>)>) -> Vec<u8> {
    let mut plain = Vec::new();
    for (path, text) in texts {
        let name = path.base_name();
        plain.extend((name.len() as u16).to_le_bytes());
        plain.extend(name.as_bytes());
        plain.extend((text.len() as u32).to_le_bytes());
        plain.extend(text);
    }
    zstd::bulk::compress(&plain, 1).expect("zstd")
}

/// A push that was carried out as far as it goes.
#[derive(Debug)]
pub struct Pushed {
    pub announced: Announced,
    pub derivations: Option<DerivationsTaken>,
    pub uploaded: Option<Uploaded>,
    pub status: PushStatus,
}

impl Pushed {
    pub fn of(&self, path: &StorePath) -> &PathStatus {
        self.status.paths.iter().find(|p| p.path == *path).expect("a path of the push")
    }

    #[track_caller]
    pub fn assert_published(&self, path: &StorePath) {
        self.assert(path, PathState::Published, None);
    }

    #[track_caller]
    pub fn assert_rejected(&self, path: &StorePath, code: &str) {
        self.assert(path, PathState::Rejected, Some(code));
    }

    #[track_caller]
    pub fn assert_held(&self, path: &StorePath, code: &str) {
        self.assert(path, PathState::Held, Some(code));
    }

    #[track_caller]
    fn assert(&self, path: &StorePath, state: PathState, code: Option<&str>) {
        let found = self.of(path);
        assert_eq!((found.state, found.code.as_deref()), (state, code), "{found:?}");
    }
}

pub(super) async fn answer<T: DeserializeOwned>(response: reqwest::Response) -> Result<T, Refused> {
    let status = response.status();
    let body = response.bytes().await.expect("a body");
    if status.is_success() {
        return Ok(serde_json::from_slice(&body).expect("the answer's JSON"));
    }
    let error: ErrorAnswer = serde_json::from_slice(&body)
        .unwrap_or_else(|e| panic!("{status} without an error's body: {e}: {}", body.escape_ascii()));
    let error = error.error;
    assert!(!error.message.is_empty(), "{} says nothing", error.code);
    Err(Refused { status: status.as_u16(), code: error.code, message: error.message, path: error.path })
}

impl Forge {
    /// Begins an announcement that is right in every field.
    pub fn draft(&self, by: &Submitter) -> Draft {
        Draft::new(&self.app.gateway_id, self.clock.now(), by)
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        token: Option<&str>,
        body: Vec<u8>,
    ) -> Result<T, Refused> {
        let mut request = self.http.post(format!("{}/api/v1/{path}", self.url)).body(body);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        answer(request.send().await.expect("an answer")).await
    }

    /// Enrols a key by an invite's code.
    pub async fn enrol(&self, key: &SecretKey, code: &str) -> Result<Enrolled, Refused> {
        let enrolment = Enrolment { code: code.to_owned(), key: key.public().to_string() };
        let payload = serde_json::to_vec(&enrolment).expect("plain data");
        self.enrol_with(&Envelope::seal(dsse::ENROLMENT, &payload, key)).await
    }

    pub async fn enrol_with(&self, envelope: &Envelope) -> Result<Enrolled, Refused> {
        self.post("enrol", None, serde_json::to_vec(envelope).expect("plain data")).await
    }

    /// Remembers that a path was claimed.
    pub(super) fn note(&self, path: &StorePath) {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
    }

    pub async fn announce(&self, draft: &Draft) -> Result<Announced, Refused> {
        draft.body.paths.iter().for_each(|p| self.note(&p.path));
        self.announce_raw("main", draft.sealed()).await
    }

    /// Sends these bytes as an announcement.
    pub async fn announce_raw(&self, cache: &str, body: Vec<u8>) -> Result<Announced, Refused> {
        self.post(&format!("caches/{cache}/pushes"), None, body).await
    }

    /// Sends an upload's body, whatever it is.
    pub async fn upload(&self, push: &str, token: &str, body: Vec<u8>) -> Result<Uploaded, Refused> {
        self.post(&format!("pushes/{push}/nars"), Some(token), body).await
    }

    pub async fn send_derivations<'a>(
        &self,
        push: &str,
        token: &str,
        texts: impl IntoIterator<Item = (&'a StorePath, &'a Vec<u8>)>,
    ) -> Result<DerivationsTaken, Refused> {
        self.send_derivations_raw(push, token, packed_derivations(texts)).await
    }

    /// Sends these bytes as derivations.
    pub async fn send_derivations_raw(
        &self,
        push: &str,
        token: &str,
        body: Vec<u8>,
    ) -> Result<DerivationsTaken, Refused> {
        self.post(&format!("pushes/{push}/derivations"), Some(token), body).await
    }

    /// A push from beginning to end, as far as it gets: sends the texts and NARs that are wanted and that the draft has,
    /// and waits until every path is settled. A refused request is in the test's way, so it panics.
    pub async fn push(&self, draft: &Draft) -> Pushed {
        let announced = self.announce(draft).await.expect("the announcement is taken");
        self.complete(draft, announced).await
    }

    /// The rest of a push that was announced.
    pub async fn complete(&self, draft: &Draft, announced: Announced) -> Pushed {
        let id = &announced.status.push;
        // in the order of the announcement: inputs first
        let texts: Vec<_> = (draft.body.derivations.iter())
            .filter(|d| announced.status.wanted_derivations.contains(d))
            .filter_map(|d| Some((d, draft.texts.get(d)?)))
            .collect();
        let derivations = if texts.is_empty() {
            None
        } else {
            let taken = self.send_derivations(id, &announced.token, texts).await;
            Some(taken.expect("the derivations are read"))
        };
        let nars: Vec<u8> = (announced.status.wanted.iter())
            .filter_map(|hash| Some(framed(hash, draft.nars.get(hash)?, draft.zstd)))
            .flatten()
            .collect();
        let uploaded = if nars.is_empty() {
            None
        } else {
            match self.upload(id, &announced.token, nars).await {
                Ok(uploaded) => Some(uploaded),
                // derivations that were refused have ended the push
                Err(refused) if refused.code == "forbidden" => None,
                Err(refused) => panic!("{refused:?}"),
            }
        };
        let status = self.status(&announced, "?wait=20").await.expect("the status");
        Pushed { announced, derivations, uploaded, status }
    }

    /// What became of a push, asked with its token.
    pub async fn status(&self, push: &Announced, query: &str) -> Result<PushStatus, Refused> {
        self.status_by(&push.status.push, &push.token, query).await
    }

    pub async fn status_by(&self, push: &str, token: &str, query: &str) -> Result<PushStatus, Refused> {
        let request = self.http.get(format!("{}/api/v1/pushes/{push}{query}", self.url)).bearer_auth(token);
        answer(request.send().await.expect("an answer")).await
    }

    /// Waits until a path of a push is what it should become by itself.
    pub async fn becomes(&self, push: &mut Pushed, path: &StorePath, state: PathState, code: Option<&str>) {
        for _ in 0..200 {
            push.status = self.status(&push.announced, "").await.expect("the status");
            let found = push.of(path);
            if (found.state, found.code.as_deref()) == (state, code) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("expected {state:?} {code:?}, it stays {:?}", push.of(path));
    }

    /// A read request signed by a key; `change` may bend what is signed.
    pub async fn signed_get<T: DeserializeOwned>(
        &self,
        by: &Submitter,
        path: &str,
        change: impl FnOnce(&mut SignedRequest),
    ) -> Result<T, Refused> {
        let header = self.signed(by, "GET", path, change);
        let request = self.http.get(format!("{}{path}", self.url)).header("authorization", header);
        answer(request.send().await.expect("an answer")).await
    }

    /// What stands in `Authorization` of a request that a key signs.
    pub(super) fn signed(
        &self,
        by: &Submitter,
        method: &str,
        path: &str,
        change: impl FnOnce(&mut SignedRequest),
    ) -> String {
        let now = self.clock.now();
        let mut request = SignedRequest {
            gateway: self.app.gateway_id.clone(),
            method: method.to_owned(),
            path: path.to_owned(),
            issued: now,
            expires: now + 60,
        };
        change(&mut request);
        let payload = serde_json::to_vec(&request).expect("plain data");
        let envelope = Envelope::seal(dsse::REQUEST, &payload, &by.key);
        format!("DSSE {}", STANDARD.encode(serde_json::to_vec(&envelope).expect("plain data")))
    }

    /// Asks which paths are missing.
    pub async fn missing(&self, items: &[&Item]) -> pushgate_formats::api::Missing {
        let paths = items
            .iter()
            .map(|i| pushgate_formats::api::MissingPath { path: i.path.clone(), nar_hash: i.nar_hash })
            .collect();
        let query = pushgate_formats::api::MissingQuery { paths };
        let body = serde_json::to_vec(&query).expect("plain data");
        self.post("caches/main/missing", None, body).await.expect("an answer")
    }
}
