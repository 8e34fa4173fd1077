//! `GET` and `HEAD /CACHE/push/FILE`.

use std::{io::Read, sync::Arc};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::File;
use crate::{
    app::App,
    blobs::PackRange,
    error::ApiError,
    limits::Place,
    push::{
        quarantine::Quarantined,
        stock::{Pusher, answers, beside, narinfo::file_name},
    },
};

/// Bytes read at a time.
const PIECE: usize = 256 << 10;

/// The handler. What isn't there is 404, and nobody may remember that.
pub async fn read(
    State(app): State<Arc<App>>,
    Extension(pusher): Extension<Pusher>,
    Path((_, name)): Path<(String, String)>,
    method: Method,
) -> Result<Response, ApiError> {
    let absent = || ApiError::not_found("file", &format!("{}/push/{name}", pusher.cache.name));
    let head = method == Method::HEAD;
    let (content_type, text) = match File::of(&name).ok_or_else(absent)? {
        File::Info => ("text/x-nix-cache-info", Some(crate::app::CACHE_INFO.to_owned())),
        File::NarInfo(part) => ("text/x-nix-narinfo", answers::narinfo(&app, &pusher, &part, head).await?),
        File::Realisation(id) => (
            "application/json",
            beside::realisation(&app, &pusher, &id).await?.map(|row| beside::realisation_text(&row)),
        ),
        File::Trace(derivation, output) => {
            let id = beside::trace_id(&derivation, &output);
            let row = beside::realisation(&app, &pusher, &id).await?;
            ("application/json", row.map(|row| beside::trace_text(&row)))
        }
        File::Nar(hash, compression) => {
            let nar =
                answers::nar(&app, &pusher, &file_name(&hash, compression)).await?.ok_or_else(absent)?;
            let place = app.small_place(pusher.identity, pusher.owner.as_deref())?;
            return Ok(stream(&app, nar, head, place));
        }
        // made by the gateway when it publishes, and read at the public prefix
        File::Listing(_) | File::DebugInfo | File::Log(_) | File::OtherNar(_) => return Err(absent()),
    };
    let text = text.ok_or_else(absent)?;
    let length = HeaderValue::from(text.len());
    let body = if head { Body::empty() } else { Body::from(text) };
    let mut response = (StatusCode::OK, [(header::CONTENT_TYPE, content_type)], body).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    Ok(private(response))
}

/// Whose it is to read depends on the token.
fn private(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    response
}

/// A submitter's own NAR file, out of quarantine. No thread waits for its reader: each piece is read when it is asked for.
fn stream(app: &Arc<App>, nar: Quarantined, head: bool, place: Place) -> Response {
    let length = HeaderValue::from(nar.range.length);
    let body = if head { Body::empty() } else { pieces(app, nar.range, Some(place)) };
    let mut response =
        (StatusCode::OK, [(header::CONTENT_TYPE, "application/x-nix-nar")], body).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    private(response)
}

/// The bytes of a NAR out of quarantine.
pub(in crate::http) fn packed(app: &Arc<App>, range: PackRange) -> Body {
    pieces(app, range, None)
}

fn pieces(app: &Arc<App>, range: PackRange, place: Option<Place>) -> Body {
    let blobs = app.blobs.clone();
    let begin = move || blobs.read_pack(&range);
    Body::from_stream(futures_util::stream::try_unfold((None, Some(begin), place), next_piece))
}

type Source = Box<dyn Read + Send>;

/// The next piece, with what goes on from there.
async fn next_piece<B: FnOnce() -> std::io::Result<Source> + Send + 'static>(
    (source, begin, place): (Option<Source>, Option<B>, Option<Place>),
) -> std::io::Result<Option<(Bytes, (Option<Source>, Option<B>, Option<Place>))>> {
    let read = tokio::task::spawn_blocking(move || {
        let mut source = match (source, begin) {
            (Some(source), _) => source,
            (None, Some(begin)) => begin()?,
            // one of the two is always there
            (None, None) => return Ok(None),
        };
        let mut piece = vec![0; PIECE];
        let n = source.read(&mut piece)?;
        piece.truncate(n);
        Ok((n > 0).then(|| (Bytes::from(piece), source)))
    });
    let read = read.await.unwrap_or_else(|e| Err(std::io::Error::other(e)))?;
    Ok(read.map(|(piece, source)| (piece, (Some(source), None, place))))
}
