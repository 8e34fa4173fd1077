//! Announcing pushes, sending derivations, asking what became of it.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, Query, Request, State},
    http::{StatusCode, header::CONTENT_ENCODING},
};
use pushgate_formats::{
    StorePath,
    api::{
        Announced, DerivationsTaken, ErrorBody, MAX_ANNOUNCEMENT, MAX_PATHS, Missing, MissingQuery,
        PathStatus, PushStatus, PushSummary,
    },
};
use serde::Deserialize;

use crate::{
    app::App,
    caches::Cache,
    db::EnrolledKey,
    error::ApiError,
    identities::push_token,
    push::{self, derivations, session::Session},
};

/// Longest that a question waits for a change, in seconds.
const MAX_WAIT: u64 = 30;
/// Pushes listed at most.
const LISTED: u32 = 50;

/// Reads a whole body of bounded size, which must come as it is.
pub async fn read_body(request: Request, most: usize, code: &'static str) -> Result<Bytes, ApiError> {
    plain_encoding(&request)?;
    let reading = axum::body::to_bytes(request.into_body(), most);
    let read = tokio::time::timeout(Duration::from_secs(120), reading).await.map_err(|_| {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "upload-too-slow", "the body took more than 120 seconds")
    })?;
    read.map_err(|e| {
        let text = e.to_string();
        if text.contains("length limit") {
            let code = if code == "announcement-malformed" { "announcement-too-large" } else { code };
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, code, format!("the body has more than {most} bytes"))
        } else {
            ApiError::bad_request(code, format!("the body can't be read: {text}"))
        }
    })
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

async fn cache(app: &App, name: &str) -> Result<Arc<Cache>, ApiError> {
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
    let raw = read_body(request, 8 << 20, "query-malformed").await?;
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
    let raw = read_body(request, MAX_ANNOUNCEMENT, "announcement-malformed").await?;
    let session = push::announce(&app, &cache, raw.into()).await?;
    Ok(Json(Announced { token: push_token(&app.secret, &session.id), status: session.status() }))
}

/// `POST /api/v1/pushes/PUSH/derivations`
pub async fn derivations(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Arc<Session>>,
    request: Request,
) -> Result<Json<DerivationsTaken>, ApiError> {
    let raw = read_body(request, derivations::MAX_BODY as usize, "derivations-too-large").await?;
    let sent = tokio::task::spawn_blocking(move || derivations::read_body(&raw))
        .await
        .map_err(|e| ApiError::unavailable(&e))?
        .map_err(|e| ApiError::bad_request(e.code(), e.to_string()))?;
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
) -> Json<PushStatus> {
    let mut changed = session.watch();
    let mut stopping = app.stopping.subscribe();
    let reached = async {
        while !session.is_settled(query.until == Until::Terminal) {
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = crate::push::recover::stopped(&mut stopping) => return,
            }
        }
    };
    // over or not, the answer is the state as it is
    let _ = tokio::time::timeout(Duration::from_secs(query.wait.min(MAX_WAIT)), reached).await;
    Json(session.status())
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
