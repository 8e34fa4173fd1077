//! `PUT /CACHE/push/FILE`.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::{Path, Request, State},
    http::{
        StatusCode,
        header::{CONTENT_ENCODING, CONTENT_LENGTH},
    },
};
use pushgate_formats::{
    Sha256,
    api::{PathState, PathStatus},
    narinfo::MAX_NARINFO,
};

use super::File;
use crate::{
    app::App,
    db::MAX_BUILD_LOG,
    error::{ApiError, clean},
    http::{
        pushes::plain_encoding,
        upload::{Rate, next_pieces},
    },
    limits::Counted,
    push::{
        intake::Compression,
        quarantine::Quarantined,
        stock::{
            self, Pusher,
            beside::{self, MAX_REALISATION},
            encoding,
            nar::{NarFile, NarFileError},
        },
    },
};

/// Largest listing or index that is read, in bytes. Both are dropped.
const MAX_DROPPED: u64 = 64 << 20;
/// Longest that reading a small file takes.
const READING: Duration = Duration::from_secs(120);

/// The handler. Nix takes only 200, 201, 204, 206 and 304 for good; the body is for people.
pub async fn put(
    State(app): State<Arc<App>>,
    Extension(pusher): Extension<Pusher>,
    Path((_, name)): Path<(String, String)>,
    request: Request,
) -> Result<String, ApiError> {
    let file = File::of(&name).ok_or_else(|| {
        ApiError::forbidden(format!("`{}` is no file that stock Nix puts into a cache", clean(&name)))
    })?;
    match file {
        File::Info => Err(ApiError::forbidden("nix-cache-info is the gateway's own")),
        File::NarInfo(part) => {
            let text = small(&app, &pusher, request, MAX_NARINFO, "narinfo-malformed").await?;
            Ok(words(&stock::take_narinfo(&app, &pusher, &part, text).await?))
        }
        File::Nar(hash, compression) => nar(app, pusher, (hash, compression), request).await,
        File::OtherNar(suffix) => Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "compression-invalid",
            format!("NARs packed as `.{suffix}` are not taken: use compression=zstd, xz or none"),
        )),
        // the gateway makes its own from the bytes, when they are published; which path it is for can't be told yet, but
        // one that is published is nobody's push any more
        File::Listing(part) => {
            if !app.db.published_hashes(&pusher.cache.name, &[part.as_str()]).await?.is_empty() {
                return Err(ApiError::forbidden(format!(
                    "the path `{part}` is published, and its listing with it"
                )));
            }
            dropped(&app, &pusher, request).await
        }
        File::DebugInfo => dropped(&app, &pusher, request).await,
        File::Log(derivation) => {
            beside::may_have_log(&app, &pusher, &derivation).await?;
            let text = small(&app, &pusher, request, MAX_BUILD_LOG, "log-too-large").await?;
            beside::take_log(&app, &pusher, derivation, text).await?;
            Ok("taken\n".to_owned())
        }
        File::Realisation(id) => {
            let text = small(&app, &pusher, request, MAX_REALISATION, "realisation-malformed").await?;
            beside::take_realisation(&app, &pusher, &id, &text).await?;
            Ok("held\n".to_owned())
        }
        File::Trace(derivation, output) => {
            let text = small(&app, &pusher, request, MAX_REALISATION, "realisation-malformed").await?;
            beside::take_trace(&app, &pusher, &derivation, &output, &text).await?;
            Ok("held\n".to_owned())
        }
    }
}

/// What became of a path, for whoever looks at the answer.
fn words(status: &PathStatus) -> String {
    let mut text = format!("{} {}", status.path, status.state.as_str());
    if status.state == PathState::Held
        && let Some(message) = &status.message
    {
        text += &format!(": {message}");
    }
    text + "\n"
}

/// Reads a small file, whole and decoded.
async fn small(
    app: &App,
    pusher: &Pusher,
    request: Request,
    most: usize,
    code: &'static str,
) -> Result<Vec<u8>, ApiError> {
    // until it is read: not while it is judged
    let _place = app.small_place(pusher.identity, pusher.owner.as_deref())?;
    let encoding = request.headers().get(CONTENT_ENCODING);
    let encoding = encoding.map(|value| clean(&String::from_utf8_lossy(value.as_bytes())));
    let too_large = |size: &dyn std::fmt::Display| {
        let message = format!("the body has {size} bytes; {most} are allowed");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, code, message)
    };
    if let Some(length) = content_length(&request).filter(|length| *length > most as u64) {
        return Err(too_large(&length));
    }
    // as sent and decoded
    let expected = match (&encoding, content_length(&request)) {
        (None, Some(length)) => 2 * length,
        _ => 2 * most as u64,
    };
    let _held = app.memory.take(expected).ok_or_else(ApiError::no_memory)?;
    let mut body = request.into_body().into_data_stream();
    let mut rate = Rate::new(app);
    let read = async {
        let mut raw = Vec::new();
        while let Some(pieces) = next_pieces(&mut body, &mut rate).await? {
            for piece in pieces {
                if raw.len() + piece.len() > most {
                    return Err(too_large(&format_args!("more than {most}")));
                }
                raw.extend_from_slice(&piece);
            }
        }
        Ok(raw)
    };
    let raw = tokio::time::timeout(READING, read).await.unwrap_or_else(|_| Err(too_slow()))?;
    let decoded = tokio::task::spawn_blocking(move || encoding::decode(encoding.as_deref(), &raw, most))
        .await
        .map_err(|e| ApiError::unavailable(&e))?;
    decoded.map_err(|e| {
        let status = match e {
            encoding::EncodingError::Unknown(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            encoding::EncodingError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            encoding::EncodingError::Broken { .. } => StatusCode::BAD_REQUEST,
        };
        let code = if status == StatusCode::PAYLOAD_TOO_LARGE { code } else { e.code() };
        ApiError::new(status, code, e.to_string())
    })
}

fn too_slow() -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        "upload-too-slow",
        format!("the body took more than {} seconds", READING.as_secs()),
    )
}

fn content_length(request: &Request) -> Option<u64> {
    request.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads what isn't kept, so that the connection can go on.
async fn dropped(app: &App, pusher: &Pusher, request: Request) -> Result<String, ApiError> {
    let _place = app.small_place(pusher.identity, pusher.owner.as_deref())?;
    let mut body = request.into_body().into_data_stream();
    let mut rate = Rate::new(app);
    let read = async {
        let mut read = 0;
        while let Some(pieces) = next_pieces(&mut body, &mut rate).await? {
            read += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
            if read > MAX_DROPPED {
                let message = format!("the body has more than {MAX_DROPPED} bytes");
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", message));
            }
        }
        Ok("made by the gateway itself\n".to_owned())
    };
    tokio::time::timeout(READING, read).await.unwrap_or_else(|_| Err(too_slow()))
}

/// Takes a NAR file, within the limits that all uploads have.
async fn nar(
    app: Arc<App>,
    pusher: Pusher,
    named: (Sha256, Compression),
    request: Request,
) -> Result<String, ApiError> {
    plain_encoding(&request)?;
    let limits = pusher.limits();
    let place = app.place_of(pusher.identity, pusher.owner.as_deref(), &limits)?;
    app.disk_has_room().await?;
    let (submitter, budget) = app.submitter(pusher.identity, &limits).await?;
    let announced = content_length(&request);
    let body = request.into_body();
    // a task of its own: what came whole is kept also when the client is gone
    let task = tokio::spawn(async move {
        let _held = (place, submitter, budget.clone());
        let named = (Some(named.0), named.1);
        let file = NarFile::begin(&app, named, limits.nar_size, budget, announced)?;
        let (nar, counted) = receive(&app, file, body).await?;
        metrics::counter!("pushgate_nars_taken_total").increment(1);
        metrics::counter!("pushgate_bytes_taken_total").increment(nar.range.length);
        stock::nar::store(&app, &pusher, nar, counted).await?;
        Ok("taken; its narinfo says what it is\n".to_owned())
    });
    task.await.map_err(|e| ApiError::unavailable(&e))?
}

/// Reads a NAR file's bytes into quarantine, within the limits that all uploads have.
pub(in crate::http) async fn receive(
    app: &Arc<App>,
    mut file: NarFile,
    body: Body,
) -> Result<(Arc<Quarantined>, Counted), ApiError> {
    let mut stream = body.into_data_stream();
    let mut rate = Rate::new(app);
    while let Some(pieces) = next_pieces(&mut stream, &mut rate).await? {
        let permit = app.examining.clone().acquire_owned().await;
        let disk = app.clone();
        file = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            // each time: others fill the disk too
            if !disk.disk.has_room() {
                return Err(NarFileError::DiskFull);
            }
            pieces.iter().try_for_each(|piece| file.feed(piece))?;
            Ok(file)
        })
        .await
        .map_err(|e| ApiError::unavailable(&e))??;
    }
    tokio::task::spawn_blocking(move || file.finish())
        .await
        .map_err(|e| ApiError::unavailable(&e))?
        .map_err(ApiError::from)
}
