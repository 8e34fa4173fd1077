//! `POST /api/v1/pushes/PUSH/nars`: reads the body under limits of number, time and rate, and hands it to the intake in
//! blocking pieces. Goes on without its client: what came whole is kept.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::{Body, BodyDataStream, Bytes},
    extract::{Request, State},
    http::StatusCode,
};
use futures_util::{FutureExt, StreamExt};
use pushgate_formats::{Sha256, api::Uploaded};
use tokio::time::Instant;

use super::pushes::plain_encoding;
use crate::{
    app::App,
    db::EnrolledKey,
    error::ApiError,
    limits::Held,
    push::{
        quarantine,
        session::Session,
        upload::{Finished, Upload, UploadError},
    },
};

/// Bytes gathered before they are handed to a blocking thread.
const PIECE: usize = 512 << 10;

/// Bytes of derivations' texts from which they are handed over before the upload ends, and that are handed over at once.
const TEXTS: usize = 16 << 20;

/// The handler.
pub async fn nars(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Arc<Session>>,
    Extension(key): Extension<EnrolledKey>,
    request: Request,
) -> Result<Json<Uploaded>, ApiError> {
    plain_encoding(&request)?;
    let limits = session.limits();
    let place = app.place(&key, &limits)?;
    let (submitter, budget) = app.submitter(session.identity, &limits).await?;
    let body = request.into_body();
    // a task of its own: when the client goes away the request is dropped, the NARs that came whole are not
    let task = tokio::spawn(async move {
        // the budget too: until the rows are written nothing else counts these bytes
        let _held = (place, submitter, budget.clone());
        let upload = Upload::new(&app, session.clone(), budget);
        receive(&app, &session, upload, body).await
    });
    task.await.map_err(|e| ApiError::unavailable(&e))?
}

async fn receive(
    app: &Arc<App>,
    session: &Arc<Session>,
    mut upload: Upload,
    body: Body,
) -> Result<Json<Uploaded>, ApiError> {
    let mut stream = body.into_data_stream();
    let mut rate = Rate::new(app);
    let (mut problem, mut ahead) = (None, None);
    loop {
        let next = match ahead.take() {
            Some(next) => next,
            None => next_pieces(&mut stream, &mut rate).await,
        };
        let pieces = match next {
            Ok(Some(pieces)) => pieces,
            Ok(None) => break,
            Err(e) => {
                problem = Some(e);
                break;
            }
        };
        let feeding = async {
            let permit = app.examining.clone().acquire_owned().await;
            let disk = app.clone();
            tokio::task::spawn_blocking(move || {
                let _permit = permit;
                // each time: others fill the disk too
                let fed = if disk.disk.has_room() {
                    pieces.iter().try_for_each(|piece| upload.feed(piece))
                } else {
                    Err(UploadError::DiskFull)
                };
                (upload, fed)
            })
            .await
        };
        let mut feeding = std::pin::pin!(feeding);
        // The next is taken meanwhile, so that the sender and the examination keep each other busy. Given up, the question
        // for it has taken nothing yet.
        let fed = loop {
            tokio::select! {
                biased;
                fed = &mut feeding => break fed,
                next = next_pieces(&mut stream, &mut rate), if ahead.is_none() => ahead = Some(next),
            }
        };
        let (back, fed) = fed.map_err(|e| ApiError::unavailable(&e))?;
        upload = back;
        // early, so that any number of them can come in one upload
        if upload.text_bytes() >= TEXTS {
            store_derivations(app, session, upload.take_texts()).await?;
        }
        match fed {
            Ok(()) => {}
            Err(UploadError::Io(e)) => return Err(e.into()),
            Err(UploadError::DiskFull) => {
                problem = Some(ApiError::disk_full());
                break;
            }
            Err(UploadError::NoMemory) => {
                problem = Some(ApiError::no_memory());
                break;
            }
            Err(e @ UploadError::Framing(_)) => {
                problem = Some(ApiError::bad_request("upload-malformed", e.to_string()));
                break;
            }
        }
    }
    if problem.is_none() && !upload.is_complete() {
        problem = Some(ApiError::bad_request("upload-malformed", "the body ends in the middle of a record"));
    }
    let texts = upload.take_texts();
    let Finished { nars, results, mut counted } = tokio::task::spawn_blocking(move || upload.finish())
        .await
        .map_err(|e| ApiError::unavailable(&e))??;
    if !nars.is_empty() {
        let bytes: u64 = nars.iter().map(|n| n.range.length).sum();
        metrics::counter!("pushgate_nars_taken_total").increment(nars.len() as u64);
        metrics::counter!("pushgate_bytes_taken_total").increment(bytes);
        store_derivations(app, session, texts).await?;
        let (nars, twice) = quarantine::store(
            app.db.as_ref(),
            &app.blobs,
            session.identity,
            (session.expires, app.clock.now()),
            nars,
        )
        .await?;
        counted.give_back(twice);
        counted.keep();
        for nar in &nars {
            session.arrived(nar);
        }
        session.cache.report(&session.id);
    }
    record_refusals(app, session, &results).await?;
    match problem {
        Some(problem) => Err(problem),
        None => Ok(Json(Uploaded { nars: results })),
    }
}

/// A .drv that was pushed as a store path is a derivation that its submitter sent. Texts come by the hashes of NARs that
/// were found to be what was claimed.
async fn store_derivations(
    app: &Arc<App>,
    session: &Arc<Session>,
    (texts, _held): (Vec<(Sha256, Vec<u8>)>, Held),
) -> Result<(), ApiError> {
    if texts.is_empty() {
        return Ok(());
    }
    let (mut sent, mut bytes, mut any) = (Vec::new(), 0, false);
    // one whose text doesn't fit its path is refused here, and its claim when it is judged
    let take = async |sent| {
        let now = app.clock.now();
        let taken =
            app.derivations.take(app.db.as_ref(), session.identity, &session.derivations, sent, now).await?;
        app.stored(session.identity, taken.stored).await;
        Ok::<_, ApiError>(())
    };
    for (nar, text) in &texts {
        let claims = session.by_nar.get(nar).into_iter().flatten().map(|i| session.signed[*i].path());
        // one text may be claimed under many names, each with a copy of it
        for path in claims.filter(|path| path.is_derivation()) {
            any = true;
            bytes += text.len();
            sent.push((path.clone(), text.clone()));
            if bytes >= TEXTS {
                take(std::mem::take(&mut sent)).await?;
                bytes = 0;
            }
        }
    }
    if !sent.is_empty() {
        take(sent).await?;
    }
    if any {
        // those announced aren't wanted any more, and what they yield may be referred to
        crate::push::refresh_derivations(app, session).await?;
        let paths: Vec<_> = (texts.iter())
            .flat_map(|(nar, _)| session.by_nar.get(nar).into_iter().flatten())
            .map(|i| session.signed[*i].path().clone())
            .filter(pushgate_formats::StorePath::is_derivation)
            .collect();
        crate::push::derivations_came(app, session.identity, &paths).await?;
    }
    Ok(())
}

/// Claims whose NAR was refused are refused with it, unless sending again may help.
async fn record_refusals(
    app: &Arc<App>,
    session: &Arc<Session>,
    results: &[pushgate_formats::api::NarResult],
) -> Result<(), ApiError> {
    const AGAIN: [&str; 5] =
        ["nar-aborted", "quota-exceeded", "daily-quota-exceeded", "gateway-full", "nar-not-wanted"];
    let mut claims = Vec::new();
    {
        let mut progress = session.progress();
        for result in results {
            let Some(error) = result.error.as_ref().filter(|e| !AGAIN.contains(&e.code.as_str())) else {
                continue;
            };
            for i in session.by_nar.get(&result.nar_hash).into_iter().flatten() {
                if progress.claims[*i].state == pushgate_formats::api::PathState::Wanted {
                    let state = crate::push::session::ClaimState::with(
                        pushgate_formats::api::PathState::Rejected,
                        &error.code,
                        error.message.clone(),
                        vec![],
                    );
                    claims.push(session.update(*i, &state, vec![]));
                    progress.claims[*i] = state;
                }
            }
        }
        // sizes that don't fit were found when the NAR arrived
        for nar in results.iter().filter(|r| r.error.is_none()) {
            for i in session.by_nar.get(&nar.nar_hash).into_iter().flatten() {
                if progress.claims[*i].state == pushgate_formats::api::PathState::Rejected {
                    claims.push(session.update(*i, &progress.claims[*i], vec![]));
                }
            }
        }
    }
    Ok(crate::push::end(app, session, claims).await?)
}

/// Measures how fast a body comes.
pub(super) struct Rate {
    idle: Duration,
    /// When the whole of it has to be over.
    end: Instant,
    least: u64,
    since: Instant,
    bytes: u64,
}

impl Rate {
    pub(super) fn new(app: &App) -> Self {
        let idle = Duration::from_secs(app.config.limits.upload_idle.max(1));
        let end = Instant::now() + Duration::from_secs(app.config.limits.upload_time);
        Self { idle, end, least: app.config.limits.upload_rate, since: Instant::now(), bytes: 0 }
    }

    /// Counts bytes; false where too few came in the last period.
    fn count(&mut self, bytes: usize) -> bool {
        self.bytes += bytes as u64;
        if self.since.elapsed() < self.idle {
            return true;
        }
        let enough = self.bytes >= self.least.saturating_mul(self.since.elapsed().as_secs());
        (self.since, self.bytes) = (Instant::now(), 0);
        enough
    }
}

/// The next pieces of the body: at least one, and whatever else is there already, up to [`PIECE`] bytes.
pub(super) async fn next_pieces(
    stream: &mut BodyDataStream,
    rate: &mut Rate,
) -> Result<Option<Vec<Bytes>>, ApiError> {
    let slow = || {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "upload-too-slow",
            "the upload came too slowly and was given up; what came whole is kept, send the rest again",
        )
    };
    if Instant::now() >= rate.end {
        return Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "upload-too-long",
            "the upload took too long in all and was given up; what came whole is kept, send the rest in smaller uploads",
        ));
    }
    let cut = |e: axum::Error| ApiError::bad_request("upload-cut-off", format!("the upload broke off: {e}"));
    let first = match tokio::time::timeout(rate.idle, stream.next()).await {
        Err(_) => return Err(slow()),
        Ok(None) => return Ok(None),
        Ok(Some(piece)) => piece.map_err(cut)?,
    };
    let mut size = first.len();
    let mut pieces = vec![first];
    while size < PIECE {
        match stream.next().now_or_never() {
            Some(Some(Ok(piece))) => {
                size += piece.len();
                pieces.push(piece);
            }
            Some(Some(Err(e))) => return Err(cut(e)),
            // the end shows again at the next call
            Some(None) | None => break,
        }
    }
    if rate.count(size) { Ok(Some(pieces)) } else { Err(slow()) }
}
