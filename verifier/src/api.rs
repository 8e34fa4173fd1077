//! The gateway's job routes as functions. Knows addresses and how large an answer may be; doesn't know what a job is
//! worth, nor when to give up.

use std::{error::Error, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use pushgate_formats::{
    Sha256,
    api::{Enrolled, ErrorAnswer, GatewayInfo, SignedRequest},
    dsse::{self, Envelope},
    jobs::{Beat, JobResult, LeaseQuery, Leased, LogTaken, ResultTaken},
    keys::SecretKey,
};
use reqwest::{
    Body, Client, RequestBuilder, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
    redirect,
};
use serde::{Serialize, de::DeserializeOwned};

/// Largest answer read: a lease that names some ten thousand inputs has a megabyte.
const MAX_ANSWER: usize = 16 << 20;
/// Longest text of a server that is shown.
const MAX_SHOWN: usize = 1000;
/// How long an answer may take beyond the time that it is asked to wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a signed request is good for, in seconds.
const SIGNED_REQUEST_VALIDITY: u64 = 120;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error("the gateway `{url}` can't be reached: {why}")]
    Unreachable { url: String, why: String },
    #[error("the gateway `{url}` is too busy (status {status})")]
    Busy { url: String, status: u16 },
    #[error("the gateway refuses: {message} [{code}]")]
    Refused { status: u16, code: String, message: String },
    #[error("`{url}` is not a gateway that this verifier understands: {why}")]
    NotAGateway { url: String, why: String },
}

impl ApiError {
    /// Whether the gateway has decided: the same request comes to the same end.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status < 500)
    }

    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// Text of a server, fit for a terminal and a log line.
pub fn printable(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let shown: String = text.chars().map(|c| if c == '\n' || c == '\t' { ' ' } else { c }).collect();
    shown.chars().filter(|c| !hidden(*c)).take(MAX_SHOWN).collect()
}

/// One spelling for a gateway's address. `None` for what is no address.
pub fn normal_url(text: &str) -> Option<String> {
    let url = reqwest::Url::parse(text.trim()).ok()?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    plain.then(|| url.as_str().trim_end_matches('/').to_owned())
}

/// A gateway's interface.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    http: Client,
}

/// A job's id and the token of its lease, both checked to be fit for a request line.
#[derive(Debug, Clone)]
pub struct JobHandle {
    pub id: String,
    authorization: HeaderValue,
}

impl JobHandle {
    /// `None` for an id or token that would lead elsewhere.
    pub fn new(id: &str, token: &str) -> Option<Self> {
        let mut authorization = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        authorization.set_sensitive(true);
        let fit = (1..=100).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        fit.then(|| Self { id: id.to_owned(), authorization })
    }
}

impl Api {
    /// For the gateway with this address, which [`normal_url`] has made.
    pub fn new(base: &str) -> Result<Self, ApiError> {
        let mut builder = Client::builder()
            .user_agent(concat!("pushgate-verifier/", env!("CARGO_PKG_VERSION")))
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
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|e| unreachable(base, &e))?;
        Ok(Self { base: base.to_owned(), http })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    /// What anybody may know about the gateway.
    pub async fn gateway(&self) -> Result<GatewayInfo, ApiError> {
        self.ask(self.http.get(self.url("/api/v1/gateway")).timeout(PATIENCE)).await
    }

    /// Enrols with a sealed [`pushgate_formats::api::Enrolment`].
    pub async fn enrol(&self, envelope: &Envelope) -> Result<Enrolled, ApiError> {
        let request = self.http.post(self.url("/api/v1/enrol")).timeout(PATIENCE);
        self.ask(with_json(request, envelope)).await
    }

    /// Asks for a job; the gateway waits up to `wait` seconds for one.
    pub async fn lease(
        &self,
        query: &LeaseQuery,
        wait: u64,
        signer: &Signer<'_>,
    ) -> Result<Leased, ApiError> {
        let path = format!("/api/v1/jobs/lease?wait={wait}");
        let request = self
            .http
            .post(self.url(&path))
            .header(AUTHORIZATION, signer.header("POST", &path))
            .timeout(PATIENCE + Duration::from_secs(wait));
        self.ask(with_json(request, query)).await
    }

    pub async fn heartbeat(&self, job: &JobHandle) -> Result<Beat, ApiError> {
        self.ask(self.post(job, "heartbeat").timeout(PATIENCE)).await
    }

    /// Sends a piece of the log, which begins at the offset.
    pub async fn log(&self, job: &JobHandle, at: u64, piece: Vec<u8>) -> Result<LogTaken, ApiError> {
        let request = self.post(job, &format!("log?at={at}")).timeout(PATIENCE);
        self.ask(request.header(CONTENT_TYPE, "application/octet-stream").body(piece)).await
    }

    pub async fn result(&self, job: &JobHandle, result: &JobResult) -> Result<ResultTaken, ApiError> {
        // a statement may have megabytes
        self.ask(with_json(self.post(job, "result").timeout(PATIENCE * 5), result)).await
    }

    /// Sends a compressed NAR. Not repeated here: only the caller can make the body again.
    pub async fn nar(&self, job: &JobHandle, hash: &Sha256, body: Body) -> Result<(), ApiError> {
        let url = self.url(&format!("/api/v1/jobs/{}/nars/{}", job.id, hash.base32()));
        let request = self.http.put(url).header(AUTHORIZATION, job.authorization.clone());
        let response = request
            .header(CONTENT_TYPE, "application/zstd")
            .body(body)
            .send()
            .await
            .map_err(|e| unreachable(&self.base, &e))?;
        self.success(response).await.map(drop)
    }

    fn post(&self, job: &JobHandle, what: &str) -> RequestBuilder {
        let url = self.url(&format!("/api/v1/jobs/{}/{what}", job.id));
        self.http.post(url).header(AUTHORIZATION, job.authorization.clone())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ApiError> {
        let response = request.send().await.map_err(|e| unreachable(&self.base, &e))?;
        let body = self.success(response).await?;
        serde_json::from_slice(&body).map_err(|e| {
            tracing::debug!(why = printable(&e.to_string()), "unusable answer");
            self.not_a_gateway("its answer is not of the expected form")
        })
    }

    /// The body of an answer that says yes.
    async fn success(&self, mut response: Response) -> Result<Vec<u8>, ApiError> {
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| unreachable(&self.base, &e))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(self.not_a_gateway("its answer is larger than 16 MiB"));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(body);
        }
        let busy = matches!(status.as_u16(), 408 | 425 | 429 | 502 | 503 | 504);
        Err(match serde_json::from_slice::<ErrorAnswer>(&body) {
            // a proxy in front of a gateway that is away says so in its own words
            _ if busy => ApiError::Busy { url: self.base.clone(), status: status.as_u16() },
            Ok(answer) => ApiError::Refused {
                status: status.as_u16(),
                code: printable(&answer.error.code),
                message: printable(&answer.error.message),
            },
            Err(_) if status == StatusCode::UNAUTHORIZED || status == StatusCode::GONE => ApiError::Refused {
                status: status.as_u16(),
                code: "unknown".into(),
                message: format!("status {}", status.as_u16()),
            },
            Err(_) => self.not_a_gateway(&format!("it answers {}", status.as_u16())),
        })
    }

    fn not_a_gateway(&self, why: &str) -> ApiError {
        ApiError::NotAGateway { url: self.base.clone(), why: why.to_owned() }
    }
}

/// Who signs requests, for whom, and when.
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
pub(crate) fn json(value: &impl Serialize) -> Bytes {
    // the wire types have string keys and no serialiser that fails
    serde_json::to_vec(value).expect("the wire types have a JSON form").into()
}

fn with_json(request: RequestBuilder, value: &impl Serialize) -> RequestBuilder {
    request.header(CONTENT_TYPE, "application/json").body(json(value))
}

fn unreachable(base: &str, error: &reqwest::Error) -> ApiError {
    let why = if error.is_timeout() {
        "no answer in time".to_owned()
    } else {
        // the outer errors only say that sending failed
        let mut cause: &dyn Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        printable(&cause.to_string())
    };
    ApiError::Unreachable { url: base.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use pushgate_formats::keys::KeyName;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a/b", "t")]
    #[case("..", "t")]
    #[case("", "t")]
    #[case("a", "t\r\nx: y")]
    fn handles_that_would_lead_elsewhere(#[case] id: &str, #[case] token: &str) {
        assert!(JobHandle::new(id, token).is_none());
    }

    #[test]
    fn a_lease_request_is_bound_to_method_path_and_gateway() {
        let key = SecretKey::from_seed(KeyName::new("v-1").unwrap(), &[7; 32]);
        let header =
            Signer { key: &key, gateway: "5f", now: 1000 }.header("POST", "/api/v1/jobs/lease?wait=5");
        let envelope = STANDARD.decode(header.to_str().unwrap().strip_prefix("DSSE ").unwrap()).unwrap();
        let envelope: Envelope = serde_json::from_slice(&envelope).unwrap();
        let payload = envelope.unverified_payload(dsse::REQUEST).unwrap();
        envelope.verify(&payload, &key.public()).unwrap();
        let request: SignedRequest = serde_json::from_slice(&payload).unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/api/v1/jobs/lease?wait=5"));
        assert_eq!((request.issued, request.expires), (1000, 1120));
    }

    #[test]
    fn what_is_final() {
        let refused = |status| ApiError::Refused { status, code: "c".into(), message: "m".into() };
        assert!(refused(401).is_final() && refused(409).is_final());
        assert!(!refused(500).is_final());
        assert!(!ApiError::Busy { url: "u".into(), status: 503 }.is_final());
    }
}
