//! The gateway's HTTP interface as functions. Knows addresses, retries and how large an answer may be; doesn't know
//! what a push is, nor which key signs what. What a server says is data to be judged: it's bounded when read, and made
//! printable where it enters ([`error::printable`]).

mod admin;
mod build;
mod error;
mod review;

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use pushgate_formats::{
    StorePath,
    api::{
        Announced, DerivationsTaken, Enrolled, ErrorAnswer, GatewayInfo, Missing, MissingQuery, PathStatus,
        PushStatus, PushSummary, SignedRequest, TokenMade, Uploaded,
    },
    dsse::{self, Envelope},
    keys::SecretKey,
};
use reqwest::{
    Body, Client, RequestBuilder, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect,
};
use serde::de::DeserializeOwned;

pub use build::LogPiece;
pub use error::{ApiError, Refusal, is_hidden, printable};

/// Largest answer read. That of a push of 20,000 paths has some 8 MiB.
const MAX_ANSWER: usize = 64 << 20;
/// How long a question may take beyond the time that it asks the gateway to wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same at first contact, with a question that costs a gateway nothing.
const FIRST_PATIENCE: Duration = Duration::from_secs(15);
/// A line over which a large announcement may go, in bytes per second.
const SLOWEST_LINE: u64 = 32 << 10;
/// The longest pause that a gateway can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// A pause that is longer is told of.
const LONG_PAUSE: Duration = Duration::from_secs(10);
/// How long one waits for a place with the same question; how long a place takes to become free depends on others.
const MAX_TURNS: Duration = Duration::from_secs(900);
/// How long a signed request is good for, in seconds.
pub(crate) const SIGNED_REQUEST_VALIDITY: u64 = 120;

/// How often a request is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tries {
    /// At first contact, where a wrong address is as likely as a gateway that is just starting.
    Few,
    /// In the midst of a push: long enough for a gateway to be restarted.
    Many,
}

impl Tries {
    /// The pause after the `n`th failure (from 0), or `None` to give up.
    pub fn pause(self, n: u32) -> Option<Duration> {
        let most = match self {
            Self::Few => 2,
            Self::Many => 6,
        };
        // 0.25 + 0.5 + … + 8 s: about 16 s altogether
        (n < most).then(|| Duration::from_millis(250 << n))
    }
}

/// The pause before asking for a place for the `n`th time (from 1): longer each time up to 5 s, and not the same for all who
/// were sent away together.
pub(crate) fn turn_pause(n: u32) -> Duration {
    let mut random = [0; 1];
    // without random bytes they just come back together
    let _ = getrandom::fill(&mut random);
    Duration::from_secs(u64::from(n.clamp(1, 5))) + Duration::from_millis(4 * u64::from(random[0]))
}

/// The state that a question about a push waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Every path is held, published, at an upstream or rejected.
    Settled,
    /// No path is held any more either.
    Terminal,
}

impl Until {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Terminal => "terminal",
        }
    }
}

/// A push's id and the token for it, both checked to be fit for a request line.
#[derive(Clone)]
pub struct PushHandle {
    pub id: String,
    authorization: HeaderValue,
}

impl PushHandle {
    fn new(id: &str, token: &str) -> Option<Self> {
        let mut authorization = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        authorization.set_sensitive(true);
        is_push_id(id).then(|| Self { id: id.to_owned(), authorization })
    }
}

/// Whether the text can be a push's id. Keeps a server from sending the client to another route.
pub fn is_push_id(text: &str) -> bool {
    (1..=100).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// A gateway's interface.
#[derive(Clone)]
pub struct Api {
    base: String,
    http: Client,
}

impl Api {
    /// For the gateway with this address, which [`crate::config::normal_url`] has made.
    pub fn new(base: &str) -> Result<Self, ApiError> {
        let mut builder = Client::builder()
            .user_agent(concat!("pushgate/", env!("CARGO_PKG_VERSION")))
            // one connection for each upload: over a single HTTP/2 connection they would share one window
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(10))
            .tcp_keepalive(Duration::from_secs(20))
            // the gateway closes what is idle for 30 seconds: don't send on such a connection
            .pool_idle_timeout(Duration::from_secs(20))
            // a POST that is redirected would arrive as a GET, and tokens at another host
            .redirect(redirect::Policy::none());
        if base.starts_with("http://") {
            // reading the system's certificates takes longer than a small push
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|e| ApiError::unreachable(base, &e))?;
        Ok(Self { base: base.to_owned(), http })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    /// What anybody may know about the gateway.
    pub async fn gateway(&self) -> Result<GatewayInfo, ApiError> {
        let url = self.url("/api/v1/gateway");
        self.ask(Tries::Few, || self.http.get(&url).timeout(FIRST_PATIENCE)).await
    }

    /// Enrols with a sealed [`pushgate_formats::api::Enrolment`].
    pub async fn enrol(&self, envelope: &Envelope) -> Result<Enrolled, ApiError> {
        let url = self.url("/api/v1/enrol");
        let body = json(envelope);
        self.ask(Tries::Few, || self.post_json(&url, body.clone())).await
    }

    /// Which paths would have to be sent.
    pub async fn missing(&self, cache: &str, query: &MissingQuery) -> Result<Missing, ApiError> {
        let url = self.url(&format!("/api/v1/caches/{cache}/missing"));
        let body = json(query);
        self.ask(Tries::Many, || self.post_json(&url, body.clone())).await
    }

    /// Announces with the bytes of a sealed envelope. Sent again after a failure as it is: the gateway knows an
    /// announcement by its digest.
    pub async fn announce(&self, cache: &str, envelope: Bytes) -> Result<(PushHandle, PushStatus), ApiError> {
        let url = self.url(&format!("/api/v1/caches/{cache}/pushes"));
        let Announced { status, token } =
            self.ask(Tries::Many, || self.post_json(&url, envelope.clone())).await?;
        let handle = PushHandle::new(&status.push, &token)
            .ok_or_else(|| ApiError::not_a_gateway(&url, "the id or token of a push is malformed"))?;
        Ok((handle, status))
    }

    /// Sends one body of derivations; not repeated here, since only the caller can make the body again.
    pub async fn send_derivations(
        &self,
        push: &PushHandle,
        body: Body,
    ) -> Result<DerivationsTaken, ApiError> {
        self.send(push, "derivations", body).await
    }

    /// Sends one body of NARs; not repeated here, since only the caller can make the body again.
    pub async fn send_nars(&self, push: &PushHandle, body: Body) -> Result<Uploaded, ApiError> {
        self.send(push, "nars", body).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        push: &PushHandle,
        what: &str,
        body: Body,
    ) -> Result<T, ApiError> {
        let url = self.url(&format!("/api/v1/pushes/{}/{what}", push.id));
        // no time limit: how long a body takes depends on the line, and the caller watches its progress
        let request = self
            .http
            .post(&url)
            .header(AUTHORIZATION, push.authorization.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(body);
        self.once(request).await.map_err(|(error, _)| error)
    }

    /// The state of a push; waits at the gateway for up to `wait` seconds until it is as wanted.
    pub async fn push(&self, push: &PushHandle, wait: u64, until: Until) -> Result<PushStatus, ApiError> {
        let url = self.url(&format!("/api/v1/pushes/{}?wait={wait}&until={}", push.id, until.as_str()));
        self.ask(Tries::Many, || {
            self.http
                .get(&url)
                .header(AUTHORIZATION, push.authorization.clone())
                .timeout(PATIENCE + Duration::from_secs(wait))
        })
        .await
    }

    /// Own pushes, newest first.
    pub async fn pushes(&self, signer: &Signer<'_>) -> Result<Vec<PushSummary>, ApiError> {
        self.signed_get("/api/v1/pushes", signer).await
    }

    /// The state of an own push.
    pub async fn own_push(&self, id: &str, signer: &Signer<'_>) -> Result<PushStatus, ApiError> {
        self.signed_get(&format!("/api/v1/pushes/{id}"), signer).await
    }

    /// What became of a path in a cache.
    pub async fn path(
        &self,
        cache: &str,
        path: &StorePath,
        signer: &Signer<'_>,
    ) -> Result<PathStatus, ApiError> {
        self.signed_get(&format!("/api/v1/caches/{cache}/paths/{}", in_url(path.base_name())), signer).await
    }

    async fn signed_get<T: DeserializeOwned>(&self, path: &str, signer: &Signer<'_>) -> Result<T, ApiError> {
        let url = self.url(path);
        let header = signer.header("GET", path);
        self.ask(Tries::Few, || self.http.get(&url).header(AUTHORIZATION, header.clone()).timeout(PATIENCE))
            .await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn post_json(&self, url: &str, body: Bytes) -> RequestBuilder {
        let patience = PATIENCE + Duration::from_secs(body.len() as u64 / SLOWEST_LINE);
        self.http.post(url).header(CONTENT_TYPE, "application/json").timeout(patience).body(body)
    }

    /// Has a token made for stock Nix.
    pub async fn make_token(&self, cache: &str, signer: &Signer<'_>) -> Result<TokenMade, ApiError> {
        let path = format!("/api/v1/caches/{cache}/tokens");
        let (url, header) = (self.url(&path), signer.header("POST", &path));
        self.ask(Tries::Few, || self.http.post(&url).header(AUTHORIZATION, header.clone()).timeout(PATIENCE))
            .await
    }

    /// Sends a request that may be repeated, again and again while that can help.
    async fn ask<T: DeserializeOwned>(
        &self,
        tries: Tries,
        make: impl Fn() -> RequestBuilder,
    ) -> Result<T, ApiError> {
        self.repeat(tries, make, |url, answer| self.json(url, answer)).await
    }

    /// The same for answers of any form; `read` says what is in one.
    async fn repeat<T>(
        &self,
        tries: Tries,
        make: impl Fn() -> RequestBuilder,
        read: impl Fn(&str, Answer) -> Result<T, Failed>,
    ) -> Result<T, ApiError> {
        let began = Instant::now();
        let (mut failures, mut turns) = (0, 0);
        loop {
            let answer = self.answer(make()).await.and_then(|(url, answer)| read(&url, answer));
            let (error, retry_after) = match answer {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let pause = if error.is_turn() && began.elapsed() < MAX_TURNS {
                turns += 1;
                turn_pause(turns).max(retry_after.unwrap_or_default())
            } else {
                let Some(pause) = tries.pause(failures).filter(|_| error.is_transient()) else {
                    return Err(error);
                };
                failures += 1;
                retry_after.unwrap_or(pause)
            };
            if pause > LONG_PAUSE {
                // silence for a minute looks like a hang
                tracing::warn!("{error}; trying again in {} s", pause.as_secs());
            } else {
                tracing::debug!(%error, ?pause, "trying again");
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends a request once.
    async fn once<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failed> {
        let (url, answer) = self.answer(request).await?;
        self.json(&url, answer)
    }

    fn json<T: DeserializeOwned>(&self, url: &str, answer: Answer) -> Result<T, Failed> {
        let body = answer.good(&self.base, url)?.body;
        serde_json::from_slice(&body).map_err(|e| {
            tracing::debug!(why = printable(&e.to_string()), "unusable answer");
            (ApiError::not_a_gateway(url, "its answer is not of the expected form"), None)
        })
    }

    /// Sends a request and reads the answer, whatever it is. Returns the address too.
    async fn answer(&self, request: RequestBuilder) -> Result<(String, Answer), Failed> {
        let failed = |e: reqwest::Error| (ApiError::unreachable(&self.base, &e), None);
        let response = request.send().await.map_err(failed)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let url = response.url().to_string();
        let body = bounded(response).await.map_err(|e| match e {
            Ok(error) => failed(error),
            Err(()) => (ApiError::not_a_gateway(&url, "its answer is larger than 64 MiB"), None),
        })?;
        Ok((url, Answer { status, headers, body }))
    }
}

/// What went wrong, and the pause that the gateway asked for.
type Failed = (ApiError, Option<Duration>);

/// An answer of whatever is at the address.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    /// The answer, unless it is an error.
    fn good(self, base: &str, url: &str) -> Result<Self, Failed> {
        let status = self.status;
        if status.is_success() {
            return Ok(self);
        }
        if status.is_redirection() {
            return Err((ApiError::Redirected { url: base.to_owned() }, None));
        }
        let error = match serde_json::from_slice::<ErrorAnswer>(&self.body) {
            Ok(answer) => ApiError::Refused(Refusal::new(status.as_u16(), answer.error)),
            // a proxy in front of a gateway that is away says so in its own words
            Err(_) if is_busy(status) => ApiError::Busy { url: base.to_owned(), status: status.as_u16() },
            Err(_) => ApiError::not_a_gateway(url, &format!("it answers {}", status.as_u16())),
        };
        Err((error, retry_after(&self.headers)))
    }
}

/// Who signs questions, for whom, and when.
pub struct Signer<'a> {
    pub key: &'a SecretKey,
    /// The gateway's pinned id.
    pub gateway: &'a str,
    /// Seconds since 1970.
    pub now: u64,
}

impl Signer<'_> {
    /// The `Authorization` header of a request.
    fn header(&self, method: &str, path: &str) -> HeaderValue {
        let request = SignedRequest {
            gateway: self.gateway.to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            issued: self.now,
            expires: self.now + SIGNED_REQUEST_VALIDITY,
        };
        let envelope = Envelope::seal(dsse::REQUEST, &json(&request), self.key);
        let mut header = HeaderValue::from_str(&format!("DSSE {}", STANDARD.encode(json(&envelope))))
            .expect("base 64 is fit for a header");
        header.set_sensitive(true);
        header
    }
}

/// The JSON of a plain structure.
pub(crate) fn json(value: &impl serde::Serialize) -> Bytes {
    // the API's types have string keys and no serialiser that fails
    serde_json::to_vec(value).expect("the API's types have a JSON form").into()
}

/// A store path's base name in a URL's path: of its alphabet only `?` means something there.
fn in_url(base_name: &str) -> String {
    base_name.replace('?', "%3F")
}

const fn is_busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// Reads a body of at most [`MAX_ANSWER`] bytes; `Err(Err(()))` for a larger one.
async fn bounded(mut response: Response) -> Result<Vec<u8>, Result<reqwest::Error, ()>> {
    let announced = response.content_length().unwrap_or(0);
    if announced > MAX_ANSWER as u64 {
        return Err(Err(()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Ok)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(Err(()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use pushgate_formats::keys::KeyName;

    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let all = |tries: Tries| (0..).map_while(|n| tries.pause(n)).sum::<Duration>();
        assert_eq!(all(Tries::Few), Duration::from_millis(750));
        assert_eq!(all(Tries::Many), Duration::from_millis(15_750));
    }

    #[test]
    fn whoever_is_sent_away_comes_back_more_and_more_slowly() {
        for (n, least) in [(0, 1), (1, 1), (2, 2), (5, 5), (1000, 5)] {
            let pause = turn_pause(n);
            assert!(
                pause >= Duration::from_secs(least) && pause < Duration::from_secs(least + 2),
                "{n} {pause:?}"
            );
        }
        let some: std::collections::HashSet<Duration> = (0..50).map(|_| turn_pause(1)).collect();
        assert!(some.len() > 5, "all come back together: {some:?}");
    }

    #[test]
    fn ids_that_would_lead_elsewhere() {
        assert!(is_push_id("01jd-A_b"));
        for id in ["", "a/b", "..", "a?b", "a b", "a\r\nb", &"a".repeat(101)] {
            assert!(!is_push_id(id), "{id}");
        }
        assert!(PushHandle::new("a", "to\nken").is_none());
    }

    #[test]
    fn a_signed_request_is_bound_to_method_path_and_gateway() {
        let key = SecretKey::from_seed(KeyName::new("alice-1").unwrap(), &[7; 32]);
        let header = Signer { key: &key, gateway: "5f5f", now: 1000 }.header("GET", "/api/v1/pushes");
        let envelope = STANDARD.decode(header.to_str().unwrap().strip_prefix("DSSE ").unwrap()).unwrap();
        let envelope: Envelope = serde_json::from_slice(&envelope).unwrap();
        let payload = envelope.unverified_payload(dsse::REQUEST).unwrap();
        envelope.verify(&payload, &key.public()).unwrap();
        let request: SignedRequest = serde_json::from_slice(&payload).unwrap();
        assert_eq!(
            request,
            SignedRequest {
                gateway: "5f5f".into(),
                method: "GET".into(),
                path: "/api/v1/pushes".into(),
                issued: 1000,
                expires: 1120,
            }
        );
    }
}
