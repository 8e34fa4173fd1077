//! What verifiers ask and report, and the logs of builds that submitters asked for.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::{Body, Bytes},
    extract::{Path, Query, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use pushgate_formats::{
    Sha256, StorePath,
    jobs::{
        Beat, JobResult, LeaseQuery, Leased, LogTaken, MAX_LOG_PIECE, MAX_QUERY, MAX_RESULT, MAX_WAIT,
        ResultTaken,
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{
    files::Pieces,
    pushes::read_body_held,
    stock::{put::receive, read::packed},
};
use crate::{
    app::App,
    blobs::PublicBody,
    db::{EnrolledKey, JobRow, JobState, MAX_BUILD_LOG},
    error::ApiError,
    push::{
        intake::Compression,
        rebuild::{
            builds, lease, nars, result,
            view::{self, Served, ViewError},
        },
        session::Session,
        stock::nar::NarFile,
    },
};

#[derive(Debug, Default, Deserialize)]
pub struct Wait {
    /// Seconds.
    #[serde(default)]
    wait: u64,
}

async fn json<T: DeserializeOwned>(app: &App, request: Request, most: usize) -> Result<T, ApiError> {
    const CODE: &str = "body-malformed";
    let (raw, _held) = read_body_held(app, request, most, CODE, 3).await?;
    serde_json::from_slice(&raw)
        .map_err(|e| ApiError::bad_request(CODE, format!("the body can't be read: {e}")))
}

/// `POST /api/v1/jobs/lease?wait=SECONDS`
pub async fn lease(
    State(app): State<Arc<App>>,
    Extension(key): Extension<EnrolledKey>,
    Query(query): Query<Wait>,
    request: Request,
) -> Result<Json<Leased>, ApiError> {
    let asked: LeaseQuery = json(&app, request, MAX_QUERY).await?;
    let wait = Duration::from_secs(query.wait.min(MAX_WAIT));
    Ok(Json(Leased { job: lease::lease(&app, &key, asked, wait).await? }))
}

/// The job's lease, which has to run.
fn leased(job: &JobRow) -> Result<Sha256, ApiError> {
    match (job.state, job.token) {
        (JobState::Leased, Some(token)) => Ok(token),
        _ => Err(lost(job)),
    }
}

fn lost(job: &JobRow) -> ApiError {
    let message = format!("the lease of job `{}` is over", job.id);
    ApiError::new(StatusCode::CONFLICT, "lease-lost", message)
}

/// `POST /api/v1/jobs/JOB/heartbeat`
pub async fn heartbeat(
    State(app): State<Arc<App>>,
    Extension(job): Extension<JobRow>,
) -> Result<Json<Beat>, ApiError> {
    if job.state == JobState::Cancelled {
        return Ok(Json(Beat { cancelled: true }));
    }
    let token = leased(&job)?;
    match app.db.extend_lease(&job.id, &token, app.clock.now() + lease::LEASE).await? {
        true => Ok(Json(Beat { cancelled: false })),
        false => Err(lost(&job)),
    }
}

#[derive(Debug, Deserialize)]
pub struct At {
    at: u64,
}

/// `POST /api/v1/jobs/JOB/log?at=OFFSET`
pub async fn log(
    State(app): State<Arc<App>>,
    Extension(job): Extension<JobRow>,
    Query(At { at }): Query<At>,
    request: Request,
) -> Result<Json<LogTaken>, ApiError> {
    leased(&job)?;
    let (bytes, _held) = read_body_held(&app, request, MAX_LOG_PIECE, "log-piece-too-large", 1).await?;
    let most = job.limits.log.unwrap_or(MAX_BUILD_LOG as u64).min(MAX_BUILD_LOG as u64);
    let length = app.db.add_job_log(&job.id, at, &bytes, most).await?;
    app.rebuilds.tell();
    Ok(Json(LogTaken { length }))
}

/// `POST /api/v1/jobs/JOB/result`
pub async fn result(
    State(app): State<Arc<App>>,
    Extension(job): Extension<JobRow>,
    Extension(key): Extension<EnrolledKey>,
    request: Request,
) -> Result<Json<ResultTaken>, ApiError> {
    if job.state == JobState::Done {
        // its first answer was lost, maybe before anybody was told
        result::ended(&app, &job).await.map_err(ApiError::from)?;
        let outputs = app.db.built(&job.id).await?;
        return Ok(Json(ResultTaken { wanted: nars::wanted(&app, &job, &outputs).await? }));
    }
    leased(&job)?;
    let found: JobResult = json(&app, request, MAX_RESULT).await?;
    Ok(Json(result::take(&app, &job, &key, found).await?))
}

/// `PUT /api/v1/jobs/JOB/nars/HASH`: a zstd-compressed NAR that the job's attestation names.
pub async fn nar(
    State(app): State<Arc<App>>,
    Extension(job): Extension<JobRow>,
    Path((_, hash)): Path<(String, String)>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let unknown = || ApiError::not_found("NAR in the attestation of the job", &hash);
    let wanted = Sha256::from_base32(&hash).ok_or_else(unknown)?;
    if job.state != JobState::Done {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "result-missing",
            "the job's result comes before its NARs",
        ));
    }
    let outputs = app.db.built(&job.id).await?;
    let output = outputs.iter().find(|output| output.nar_hash == wanted).ok_or_else(unknown)?;
    let identity = nars::keeper(&job).ok_or_else(unknown)?;
    let limits = nars::limits(&app, &job, output.nar_size);
    let place = app.place_of(identity, job.owner.as_deref(), &limits)?;
    app.disk_has_room().await?;
    let (submitter, budget) = app.submitter(identity, &limits).await?;
    let body = request.into_body();
    let task = tokio::spawn(async move {
        let _held = (place, submitter, budget.clone());
        let file = NarFile::begin(&app, (None, Compression::Zstd), limits.nar_size, budget, None)?;
        let (nar, counted) = receive(&app, file, body).await?;
        if nar.examined.nar_hash != wanted {
            let message = format!("the NAR hash is `{}`, attested was `{wanted}`", nar.examined.nar_hash);
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "nar-hash-mismatch", message));
        }
        nars::store(&app, &job, nar, counted).await?;
        Ok(StatusCode::NO_CONTENT)
    });
    task.await.map_err(|e| ApiError::unavailable(&e))?
}

/// `GET` and `HEAD /api/v1/jobs/JOB/view/FILE`
pub async fn view(
    State(app): State<Arc<App>>,
    Extension(job): Extension<JobRow>,
    Path((_, name)): Path<(String, String)>,
    method: Method,
) -> Result<Response, ApiError> {
    leased(&job)?;
    let head = method == Method::HEAD;
    let served = view::serve(&app, &job, &name).await.map_err(|e| match e {
        ViewError::Rebuild(e) => e.into(),
        e @ ViewError::Unavailable(_) => {
            ApiError::new(StatusCode::CONFLICT, "inputs-unavailable", e.to_string())
        }
        e @ ViewError::Upstream { .. } => {
            ApiError::new(StatusCode::BAD_GATEWAY, "upstream-unavailable", e.to_string())
        }
    })?;
    let served = served.ok_or_else(|| ApiError::not_found("file of the job", &name))?;
    let nar = "application/x-nix-nar";
    let (content_type, body) = match served {
        Served::Info => ("text/x-nix-cache-info", Body::from(crate::app::CACHE_INFO)),
        Served::NarInfo(text) => ("text/x-nix-narinfo", Body::from(text)),
        Served::Bytes(bytes) => (nar, Body::from(bytes)),
        Served::Published(file) => match file.body {
            PublicBody::Whole(bytes) => (nar, Body::from(bytes)),
            PublicBody::File(opened) => (nar, Body::new(Pieces::new(opened, 0, file.size))),
        },
        Served::Quarantined(range) => (nar, packed(&app, range)),
        Served::Upstream(file) => (
            nar,
            Body::from_stream(futures_util::stream::try_unfold(file, |mut file| async move {
                Ok::<_, std::io::Error>(file.next().await?.map(|piece| (piece, file)))
            })),
        ),
    };
    let body = if head { Body::empty() } else { body };
    let mut response = (StatusCode::OK, [(header::CONTENT_TYPE, content_type)], body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    Ok(response)
}

#[derive(Debug, Default, Deserialize)]
pub struct From {
    #[serde(default)]
    from: u64,
    /// Seconds.
    #[serde(default)]
    wait: u64,
}

/// Bytes of a log in one answer.
const LOG_PIECE: u64 = 1 << 20;
/// Says that the log has come to its end.
const ENDED: &str = "pushgate-log-ended";

/// `GET /api/v1/pushes/PUSH/builds/DERIVATION/log?from=OFFSET&wait=SECONDS`: a build's log from an offset on, as soon as there
/// is some.
pub async fn build_log(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Arc<Session>>,
    Path((_, derivation)): Path<(String, String)>,
    Query(From { from, wait }): Query<From>,
) -> Result<Response, ApiError> {
    let unknown = || ApiError::not_found("build of the push", &derivation);
    let derivation = StorePath::from_base_name(&derivation).map_err(|_| unknown())?;
    let deadline = Instant::now() + Duration::from_secs(wait.min(MAX_WAIT));
    let (mut news, mut stopping) = (app.rebuilds.news(), app.stopping.subscribe());
    loop {
        news.mark_unchanged();
        let (job, ended) = builds::job_of(&app, &session, &derivation).await?.ok_or_else(unknown)?;
        let log = match &job {
            Some(job) => app.db.job_log(job, from, LOG_PIECE).await?,
            None => vec![],
        };
        // what is read after the end is all that there is
        let over = ended && (log.len() as u64) < LOG_PIECE;
        if !log.is_empty() || over || Instant::now() >= deadline {
            let mut response =
                ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Bytes::from(log)).into_response();
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            headers.insert(
                header::CONTENT_SECURITY_POLICY,
                HeaderValue::from_static("default-src 'none'; sandbox"),
            );
            if over {
                headers.insert(ENDED, HeaderValue::from_static("true"));
            }
            return Ok(response);
        }
        tokio::select! {
            _ = news.changed() => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = crate::push::recover::stopped(&mut stopping) => return Err(ApiError::busy("the gateway stops")),
        }
    }
}
