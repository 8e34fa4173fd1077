//! Announcing pushes, sending derivations, asking what became of it.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::{Path, Query, Request, State},
    http::{StatusCode, header::CONTENT_ENCODING},
};
use futures_util::StreamExt;
use pushgate_formats::{
    StorePath,
    api::{
        Announced, DerivationsTaken, ErrorBody, MAX_ANNOUNCEMENT, MAX_PATHS, Missing, MissingQuery,
        PathStatus, PushStatus, PushSummary,
    },
};
use serde::Deserialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{
    app::App,
    caches::Cache,
    db::{EnrolledKey, PushKind},
    error::ApiError,
    identities::push_token,
    limits::Held,
    push::{self, derivations, session::Session},
};

/// Longest that a question waits for a change, in seconds.
const MAX_WAIT: u64 = 30;
/// The same for a push with builds.
const BUILDS_WAIT: u64 = 1;
/// Questions for what is missing, read and answered at once.
pub const QUESTIONS: usize = 4;
/// Longest that a large body waits for its turn to be read.
const TURN: Duration = Duration::from_secs(60);
/// Longest that reading a body takes.
const READING: Duration = Duration::from_secs(120);
/// How long a body may take to begin in earnest.
const BEGINNING: Duration = Duration::from_secs(10);
/// Bytes per second below which a body is given up after that.
const SLOWEST: u64 = 16 << 10;
/// Pushes listed at most.
const LISTED: u32 = 50;

/// Bytes by which memory for a body is asked for.
const STEP: usize = 64 << 10;
/// What an announcement takes while it is read, for each of its bytes: as sent, its payload, the parsed payload, the claims.
const ANNOUNCING: u64 = 6;
/// Bytes of a path in an announcement, with common references and derivations.
const PATH: usize = 1500;
/// The same for a question and its answer.
const ASKING: u64 = 4;

/// Reads a whole body of bounded size, which must come as it is, and not slowly: others may wait for its place.
pub async fn read_body(request: Request, most: usize, code: &'static str) -> Result<Vec<u8>, ApiError> {
    read(request, most, code, |_| true).await
}

/// [`read_body`], with memory for it: so many times its size.
pub async fn read_body_held(
    app: &App,
    request: Request,
    most: usize,
    code: &'static str,
    times: u64,
) -> Result<(Vec<u8>, Held), ApiError> {
    let mut held = Held::default();
    let room = |bytes: usize| app.memory.take(bytes as u64 * times).map(|more| held.add(more)).is_some();
    let raw = read(request, most, code, room).await?;
    Ok((raw, held))
}

async fn read(
    request: Request,
    most: usize,
    code: &'static str,
    mut room: impl FnMut(usize) -> bool,
) -> Result<Vec<u8>, ApiError> {
    plain_encoding(&request)?;
    let began = Instant::now();
    let mut body = request.into_body().into_data_stream();
    let mut read = Vec::new();
    let mut asked = 0;
    loop {
        let patience = BEGINNING + Duration::from_secs(read.len() as u64 / SLOWEST);
        let next = tokio::time::timeout_at(began + patience.min(READING), body.next());
        let chunk = match next.await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(e))) => {
                return Err(ApiError::bad_request(code, format!("the body can't be read: {e}")));
            }
            Ok(None) => return Ok(read),
            Err(_) => {
                let message = format!(
                    "the body took more than {} seconds, or came at less than {SLOWEST} bytes a second",
                    READING.as_secs()
                );
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "upload-too-slow", message));
            }
        };
        if read.len() + chunk.len() > most {
            let code = if code == "announcement-malformed" { "announcement-too-large" } else { code };
            let message = format!("the body has more than {most} bytes");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, code, message));
        }
        while asked < read.len() + chunk.len() {
            if !room(STEP) {
                return Err(ApiError::no_memory());
            }
            asked += STEP;
        }
        read.extend_from_slice(&chunk);
    }
}

/// Waits for a place among those whose bodies are in memory, first come first served.
async fn turn(
    places: &Arc<Semaphore>,
    code: &'static str,
    what: &str,
) -> Result<OwnedSemaphorePermit, ApiError> {
    match tokio::time::timeout(TURN, places.clone().acquire_owned()).await {
        Ok(permit) => permit.map_err(|e| ApiError::unavailable(&e)),
        Err(_) => {
            let message =
                format!("too many {what} are being read; this one waited {} seconds", TURN.as_secs());
            let mut error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, code, message);
            error.retry_after = Some(5);
            Err(error)
        }
    }
}

/// A body that is encoded once more could hide what it expands to.
pub fn plain_encoding(request: &Request) -> Result<(), ApiError> {
    match request.headers().get(CONTENT_ENCODING) {
        None => Ok(()),
        Some(value) => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "encoding-unsupported",
            format!(
                "`Content-Encoding: {}` is not taken here",
                crate::error::clean(&String::from_utf8_lossy(value.as_bytes()))
            ),
        )),
    }
}

/// Largest announcement, in bytes: one that memory would never suffice for is refused at once.
fn largest_announcement(app: &App) -> usize {
    let fits = app.memory.all() / (ANNOUNCING + push::session::TIMES);
    MAX_ANNOUNCEMENT.min(usize::try_from(fits).unwrap_or(usize::MAX))
}

/// Most paths in an announcement that clients are told of.
pub fn most_paths(app: &App) -> usize {
    app.config.limits.paths.min((largest_announcement(app) / PATH).max(1))
}

pub(super) async fn cache(app: &App, name: &str) -> Result<Arc<Cache>, ApiError> {
    match app.caches.get(app.db.as_ref(), name).await {
        Ok(Some(cache)) => Ok(cache),
        Ok(None) => Err(ApiError::not_found("cache", name)),
        Err(e) => Err(ApiError::unavailable(&e)),
    }
}

/// `POST /api/v1/caches/CACHE/missing`
pub async fn missing(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<Missing>, ApiError> {
    let cache = cache(&app, &name).await?;
    let _turn = turn(&app.asking, "too-many-questions", "questions").await?;
    let (raw, _held) = read_body_held(&app, request, 8 << 20, "query-malformed", ASKING).await?;
    let query: MissingQuery =
        serde_json::from_slice(&raw).map_err(|e| ApiError::bad_request("query-malformed", e.to_string()))?;
    if query.paths.len() > MAX_PATHS {
        let message = format!("{} paths are asked for; {MAX_PATHS} are allowed", query.paths.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "query-too-large", message));
    }
    Ok(Json(push::missing(&app, &cache, &query.paths).await?))
}

/// `POST /api/v1/caches/CACHE/pushes`
pub async fn announce(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<Announced>, ApiError> {
    let cache = cache(&app, &name).await?;
    // before the body: as many are in memory as have their turn
    let turn = turn(&app.announcing, "too-many-announcements", "announcements").await?;
    app.disk_has_room().await?;
    let most = largest_announcement(&app);
    let (raw, held) = read_body_held(&app, request, most, "announcement-malformed", ANNOUNCING).await?;
    let session = push::announce(&app, &cache, raw, (turn, held)).await?;
    let mut status = session.status();
    status.builds = push::rebuild::builds::status(&app, &session).await?;
    Ok(Json(Announced { token: push_token(&app.secret, &session.id), status }))
}

/// `POST /api/v1/pushes/PUSH/derivations`
pub async fn derivations(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Arc<Session>>,
    request: Request,
) -> Result<Json<DerivationsTaken>, ApiError> {
    app.disk_has_room().await?;
    let code = "derivations-too-large";
    let (raw, mut held) = read_body_held(&app, request, derivations::MAX_BODY as usize, code, 1).await?;
    let memory = app.memory.clone();
    let (sent, _held) = tokio::task::spawn_blocking(move || {
        // the texts, and what they are parsed into
        let room = |bytes: u64| memory.take(3 * bytes + 256).map(|more| held.add(more)).is_some();
        let sent = derivations::read_body_within(&raw, room);
        (sent, held)
    })
    .await
    .map_err(|e| ApiError::unavailable(&e))?;
    let sent = sent.map_err(|e| match e {
        derivations::BodyError::NoMemory => ApiError::no_memory(),
        e => ApiError::bad_request(e.code(), e.to_string()),
    })?;
    let taken = push::take_derivations(&app, &session, sent).await?;
    let refused = taken
        .refused
        .iter()
        .map(|(path, e)| ErrorBody {
            code: e.code().to_owned(),
            message: e.to_string(),
            path: Some(path.absolute()),
        })
        .collect();
    Ok(Json(DerivationsTaken { taken: taken.taken, refused, missing: taken.missing.into_iter().collect() }))
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// Nothing more happens by itself.
    #[default]
    Settled,
    /// Published or refused.
    Terminal,
}

#[derive(Debug, Deserialize)]
pub struct Wait {
    /// Seconds.
    #[serde(default)]
    wait: u64,
    #[serde(default)]
    until: Until,
}

/// `GET /api/v1/pushes/PUSH`
pub async fn status(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Arc<Session>>,
    Query(query): Query<Wait>,
) -> Result<Json<PushStatus>, ApiError> {
    let mut changed = session.watch();
    let mut stopping = app.stopping.subscribe();
    // of builds something is new at any time, also between two questions
    let most = if session.builds.is_empty() { MAX_WAIT } else { BUILDS_WAIT };
    let reached = async {
        while !session.is_settled(query.until == Until::Terminal) {
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = crate::push::recover::stopped(&mut stopping) => return,
            }
        }
    };
    // over or not, the answer is the state as it is
    let _ = tokio::time::timeout(Duration::from_secs(query.wait.min(most)), reached).await;
    let mut status = session.status();
    status.builds = push::rebuild::builds::status(&app, &session).await?;
    if session.kind == PushKind::NarInfo {
        // the list counts the paths of a day together: here they are
        let rows = app.db.claims_beside(&session.id).await?;
        status.paths = rows.into_iter().map(PathStatus::from).collect();
    }
    Ok(Json(status))
}

/// `GET /api/v1/pushes`
pub async fn list(
    State(app): State<Arc<App>>,
    Extension(key): Extension<EnrolledKey>,
) -> Result<Json<Vec<PushSummary>>, ApiError> {
    let pushes = app.db.pushes_of(key.identity, LISTED).await?;
    Ok(Json(
        pushes
            .into_iter()
            .map(|p| PushSummary {
                push: p.id,
                kind: p.kind.as_str().to_owned(),
                cache: p.cache,
                created: p.created,
                counts: p.counts.into_iter().collect(),
            })
            .collect(),
    ))
}

/// `GET /api/v1/caches/CACHE/paths/HASH-NAME`
pub async fn path(
    State(app): State<Arc<App>>,
    Extension(key): Extension<EnrolledKey>,
    Path((name, path)): Path<(String, String)>,
) -> Result<Json<PathStatus>, ApiError> {
    let cache = cache(&app, &name).await?;
    let path = StorePath::from_base_name(&path)
        .map_err(|e| ApiError::bad_request("store-path-invalid", e.to_string()))?;
    let status = push::path_status(&app, &cache, key.identity, &path).await?;
    status.map(Json).ok_or_else(|| ApiError::not_found("claim of yours of the path", &path.absolute()))
}
