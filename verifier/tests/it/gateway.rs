//! A gateway that knows the job routes and nothing else: gives out what a test queues, and keeps what comes back.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post, put},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use pushgate_formats::{
    Sha256,
    api::{Enrolled, Enrolment, GatewayInfo, SignedRequest},
    dsse::{ENROLMENT, Envelope, REQUEST},
    jobs::{Beat, Job, JobResult, LeaseQuery, Leased, LogTaken, MAX_LOG_PIECE, ResultTaken},
    keys::PublicKey,
};

/// The gateway's id.
pub(crate) const ID: &str = "5f5f5f5f";

#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) key: Option<PublicKey>,
    pub(crate) queue: VecDeque<Job>,
    pub(crate) tokens: BTreeMap<String, String>,
    pub(crate) views: BTreeMap<String, PathBuf>,
    pub(crate) results: BTreeMap<String, JobResult>,
    pub(crate) logs: BTreeMap<String, Vec<u8>>,
    pub(crate) nars: BTreeMap<Sha256, Vec<u8>>,
    pub(crate) cancelled: BTreeSet<String>,
    pub(crate) beats: BTreeMap<String, usize>,
    pub(crate) queries: Vec<LeaseQuery>,
}

#[derive(Default)]
struct Shared {
    kept: Mutex<Kept>,
    away: AtomicBool,
    role: Mutex<String>,
    /// Requests for what only a build with a network could ask for.
    touched: AtomicUsize,
}

#[derive(Clone)]
pub(crate) struct Gateway {
    shared: Arc<Shared>,
    pub(crate) port: u16,
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        *shared.role.lock().unwrap() = "verifier".into();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new()
            .route("/api/v1/gateway", get(info))
            .route("/api/v1/enrol", post(enrol))
            .route("/api/v1/jobs/lease", post(lease))
            .route("/api/v1/jobs/{job}/heartbeat", post(heartbeat))
            .route("/api/v1/jobs/{job}/log", post(log))
            .route("/api/v1/jobs/{job}/view/{*file}", get(view))
            .route("/api/v1/jobs/{job}/result", post(result))
            .route("/api/v1/jobs/{job}/nars/{hash}", put(nar))
            .route("/secret", get(secret))
            .route("/src/{file}", get(source))
            .layer(middleware::from_fn_with_state(shared.clone(), away))
            .layer(DefaultBodyLimit::disable())
            .with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { shared, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.shared.kept.lock().unwrap()
    }

    /// Answers nothing but 503 from now on, or again what it should.
    pub(crate) fn away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
    }

    pub(crate) fn role(&self, role: &str) {
        role.clone_into(&mut self.shared.role.lock().unwrap());
    }

    pub(crate) fn touched(&self) -> usize {
        self.shared.touched.load(Ordering::SeqCst)
    }

    pub(crate) fn queue(&self, job: Job, view: PathBuf) {
        let mut kept = self.kept();
        kept.tokens.insert(job.job.clone(), job.token.clone());
        kept.views.insert(job.job.clone(), view);
        kept.queue.push_back(job);
    }

    /// Waits for the result of a job.
    pub(crate) async fn result(&self, job: &str) -> JobResult {
        self.wait(job, |kept| kept.results.get(job).cloned()).await
    }

    pub(crate) fn log(&self, job: &str) -> String {
        String::from_utf8(self.kept().logs.get(job).cloned().unwrap_or_default()).unwrap()
    }

    pub(crate) async fn wait<T>(&self, what: &str, mut look: impl FnMut(&Kept) -> Option<T>) -> T {
        for _ in 0..1200 {
            if let Some(found) = look(&self.kept()) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what} didn't come within a minute; logs: {:?}", self.kept().logs.keys())
    }
}

type App = State<Arc<Shared>>;
type Answer<T> = Result<Json<T>, StatusCode>;

async fn away(State(shared): App, request: Request, next: Next) -> Response {
    match shared.away.load(Ordering::SeqCst) {
        true => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        false => next.run(request).await,
    }
}

async fn info() -> Json<GatewayInfo> {
    Json(GatewayInfo { gateway: ID.into(), version: "0".into(), time: 0, caches: vec![], max_paths: None })
}

async fn enrol(State(shared): App, Json(envelope): Json<Envelope>) -> Answer<Enrolled> {
    let payload = envelope.unverified_payload(ENROLMENT).map_err(|_| StatusCode::BAD_REQUEST)?;
    let asked: Enrolment = serde_json::from_slice(&payload).map_err(|_| StatusCode::BAD_REQUEST)?;
    let key = PublicKey::parse(&asked.key).map_err(|_| StatusCode::BAD_REQUEST)?;
    envelope.verify(&payload, &key).map_err(|_| StatusCode::UNAUTHORIZED)?;
    if asked.code != "invite" {
        return Err(StatusCode::UNAUTHORIZED);
    }
    shared.kept.lock().unwrap().key = Some(key);
    let role = shared.role.lock().unwrap().clone();
    Ok(Json(Enrolled { gateway: ID.into(), submitter: "v1".into(), role, caches: vec![] }))
}

async fn lease(
    State(shared): App,
    uri: axum::http::Uri,
    headers: HeaderMap,
    Json(query): Json<LeaseQuery>,
) -> Answer<Leased> {
    let read = || -> Option<(Envelope, Vec<u8>, SignedRequest)> {
        let text = headers.get("authorization")?.to_str().ok()?.strip_prefix("DSSE ")?;
        let envelope: Envelope = serde_json::from_slice(&STANDARD.decode(text).ok()?).ok()?;
        let payload = envelope.unverified_payload(REQUEST).ok()?;
        let request = serde_json::from_slice(&payload).ok()?;
        Some((envelope, payload, request))
    };
    let (envelope, payload, request) = read().ok_or(StatusCode::UNAUTHORIZED)?;
    let expected = (ID, "POST", uri.path_and_query().unwrap().as_str());
    assert_eq!((request.gateway.as_str(), request.method.as_str(), request.path.as_str()), expected);
    {
        let mut kept = shared.kept.lock().unwrap();
        envelope.verify(&payload, kept.key.as_ref().unwrap()).map_err(|_| StatusCode::UNAUTHORIZED)?;
        kept.queries.push(query);
    }
    for _ in 0..40 {
        if let Some(job) = shared.kept.lock().unwrap().queue.pop_front() {
            return Ok(Json(Leased { job: Some(job) }));
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    Ok(Json(Leased { job: None }))
}

fn authorised(kept: &Kept, job: &str, headers: &HeaderMap) -> Result<(), StatusCode> {
    let token = kept.tokens.get(job).ok_or(StatusCode::NOT_FOUND)?;
    let given = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let basic = format!("Basic {}", STANDARD.encode(format!("verifier:{token}")));
    let fits = given == format!("Bearer {token}") || given == basic;
    if fits { Ok(()) } else { Err(StatusCode::UNAUTHORIZED) }
}

async fn heartbeat(State(shared): App, Path(job): Path<String>, headers: HeaderMap) -> Answer<Beat> {
    let mut kept = shared.kept.lock().unwrap();
    authorised(&kept, &job, &headers)?;
    *kept.beats.entry(job.clone()).or_default() += 1;
    Ok(Json(Beat { cancelled: kept.cancelled.contains(&job) }))
}

#[derive(serde::Deserialize)]
struct At {
    at: u64,
}

async fn log(
    State(shared): App,
    Path(job): Path<String>,
    Query(At { at }): Query<At>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<LogTaken> {
    let mut kept = shared.kept.lock().unwrap();
    authorised(&kept, &job, &headers)?;
    assert!(body.len() <= MAX_LOG_PIECE);
    let log = kept.logs.entry(job).or_default();
    if at == log.len() as u64 {
        log.extend_from_slice(&body);
    }
    Ok(Json(LogTaken { length: log.len() as u64 }))
}

async fn view(
    State(shared): App,
    Path((job, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Vec<u8>, StatusCode> {
    let path = {
        let kept = shared.kept.lock().unwrap();
        authorised(&kept, &job, &headers)?;
        kept.views[&job].join(file)
    };
    std::fs::read(path).map_err(|_| StatusCode::NOT_FOUND)
}

async fn result(
    State(shared): App,
    Path(job): Path<String>,
    headers: HeaderMap,
    Json(result): Json<JobResult>,
) -> Answer<ResultTaken> {
    let mut kept = shared.kept.lock().unwrap();
    authorised(&kept, &job, &headers)?;
    let wanted = match &result {
        JobResult::Built { outputs, .. } => outputs.iter().map(|output| output.nar_hash).collect(),
        JobResult::Failed(_) => vec![],
    };
    kept.results.insert(job, result);
    Ok(Json(ResultTaken { wanted }))
}

async fn nar(
    State(shared): App,
    Path((job, hash)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<()> {
    let mut kept = shared.kept.lock().unwrap();
    authorised(&kept, &job, &headers)?;
    let hash = Sha256::from_base32(&hash).ok_or(StatusCode::BAD_REQUEST)?;
    let nar = zstd::decode_all(body.as_ref()).map_err(|_| StatusCode::BAD_REQUEST)?;
    kept.nars.insert(hash, nar);
    Ok(Json(()))
}

async fn secret(State(shared): App) -> &'static str {
    shared.touched.fetch_add(1, Ordering::SeqCst);
    "secret"
}

async fn source(State(_): App, Path(file): Path<String>) -> Response {
    match file.as_str() {
        "good" => "source\n".into_response(),
        "leads-to-secret" => Redirect::temporary("http://localhost:1/secret").into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
