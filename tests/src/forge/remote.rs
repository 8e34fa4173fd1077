//! The protocol's client against any gateway, in this process or not: behaves as a good client does when it is sent away or
//! cut off. For load; lies are told by [`super::Forge`].

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use pushgate_formats::{
    Sha256,
    api::{Announced, Announcement, Audience, ErrorAnswer, GatewayInfo, PathState, PushStatus, Uploaded},
};
use serde::de::DeserializeOwned;

use super::{Draft, Submitter, framed, random_hex};

/// Longest that a push is tried.
const PATIENCE: Duration = Duration::from_secs(300);

/// A gateway by its address.
#[derive(Debug, Clone)]
pub struct Remote {
    pub url: String,
    gateway: String,
}

/// What happened on the way of pushes.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answers that said to come again.
    pub sent_away: AtomicUsize,
    /// Requests that broke off, or found nobody.
    pub cut_off: AtomicUsize,
    /// NARs that were answered as taken.
    pub taken: AtomicUsize,
}

enum Failed {
    /// Come again.
    Away,
    Cut,
    Refused(String),
}

impl Remote {
    /// Asks who answers there.
    pub async fn new(url: &str) -> Self {
        let info = reqwest::get(format!("{url}/api/v1/gateway")).await.expect("a gateway");
        let info: GatewayInfo = info.json().await.expect("its id");
        Self { url: url.to_owned(), gateway: info.gateway }
    }

    /// Begins an announcement. `now` is the time, in seconds since 1970.
    pub fn draft(&self, by: &Submitter, now: u64) -> Draft {
        Draft {
            body: Announcement {
                version: 1,
                audience: Audience { gateway: self.gateway.clone(), cache: "main".to_owned() },
                nonce: random_hex(),
                issued: now,
                expires: now + 1800,
                paths: vec![],
                derivations: vec![],
                realisations: vec![],
                inputs: false,
                builds: vec![],
            },
            key: by.key.clone(),
            nars: Default::default(),
            texts: Default::default(),
            zstd: true,
        }
    }

    async fn once<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, Failed> {
        let response = request.send().await.map_err(|_| Failed::Cut)?;
        let status = response.status();
        let body = response.bytes().await.map_err(|_| Failed::Cut)?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body).expect("the answer's JSON"));
        }
        let error = serde_json::from_slice::<ErrorAnswer>(&body).expect("an error's JSON").error;
        match status.as_u16() {
            429 | 503 => Err(Failed::Away),
            _ if error.code == "upload-cut-off" => Err(Failed::Cut),
            _ => Err(Failed::Refused(format!("{status} {error:?}"))),
        }
    }

    /// Repeats a request until it is answered.
    async fn asked<T: DeserializeOwned>(tally: &Tally, make: impl Fn() -> reqwest::RequestBuilder) -> T {
        let began = Instant::now();
        loop {
            let pause = match Self::once(make()).await {
                Ok(answer) => return answer,
                Err(Failed::Away) => {
                    tally.sent_away.fetch_add(1, Relaxed);
                    500
                }
                Err(Failed::Cut) => {
                    tally.cut_off.fetch_add(1, Relaxed);
                    100
                }
                Err(Failed::Refused(why)) => panic!("{why}"),
            };
            assert!(began.elapsed() < PATIENCE, "it is never answered");
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Announces, sends what is wanted and waits until nothing is open, over a connection of its own. Repeats whatever is
    /// cut off. What was answered as taken must never be wanted again.
    pub async fn push(&self, draft: &Draft, tally: &Tally) -> PushStatus {
        let http = reqwest::Client::builder().no_proxy().http1_only().build().expect("a client");
        let url = format!("{}/api/v1/caches/main/pushes", self.url);
        let sealed = draft.sealed();
        let Announced { mut status, token } =
            Self::asked(tally, || http.post(&url).body(sealed.clone())).await;
        let push = format!("{}/api/v1/pushes/{}", self.url, status.push);
        let (began, mut taken) = (Instant::now(), BTreeSet::<Sha256>::new());
        while !status.paths.iter().all(|p| p.state.is_settled()) {
            assert!(began.elapsed() < PATIENCE, "it is never settled: {status:?}");
            for hash in &status.wanted {
                assert!(!taken.contains(hash), "{hash} was taken and is wanted again");
            }
            if !status.wanted.is_empty() {
                let body: Vec<u8> = (status.wanted.iter())
                    .flat_map(|hash| framed(hash, &draft.nars[hash], draft.zstd))
                    .collect();
                let upload = http.post(format!("{push}/nars")).bearer_auth(&token).body(body);
                match Self::once::<Uploaded>(upload).await {
                    Ok(uploaded) => {
                        let good = uploaded.nars.iter().filter(|nar| nar.error.is_none());
                        taken.extend(good.map(|nar| nar.nar_hash));
                    }
                    Err(Failed::Away) => {
                        tally.sent_away.fetch_add(1, Relaxed);
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    Err(Failed::Cut) => {
                        tally.cut_off.fetch_add(1, Relaxed);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    Err(Failed::Refused(why)) => panic!("{why}"),
                }
            }
            let wait = format!("{push}?wait=10");
            let question = if status.wanted.is_empty() { &wait } else { &push };
            status = Self::asked(tally, || http.get(question).bearer_auth(&token)).await;
        }
        tally.taken.fetch_add(taken.len(), Relaxed);
        status
    }
}

/// Whether every path of a push is published.
pub fn all_published(status: &PushStatus) -> bool {
    status.paths.iter().all(|p| p.state == PathState::Published)
}
