//! Acts, and what admins look at: identities, tokens, events.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Query, Request, State, rejection::QueryRejection},
};
use pushgate_formats::acts::{Event, Events, IdentityInfo, MAX_ACT, TokenInfo};
use serde::Deserialize;

use super::pushes::read_body;
use crate::{
    acts,
    app::App,
    error::{ApiError, clean},
    push::recover,
};

/// Most events in one answer.
pub const PAGE: u32 = 1000;
/// Events shown to those who don't say where to begin.
const NEWEST: u32 = 100;
/// Longest wait for events, in seconds.
const MAX_WAIT: u64 = 30;

/// `POST /api/v1/acts`
pub async fn act(State(app): State<Arc<App>>, request: Request) -> Result<Json<serde_json::Value>, ApiError> {
    let raw = read_body(request, MAX_ACT, "act-malformed").await?;
    Ok(Json(acts::take(&app, &raw).await?))
}

/// `GET /api/v1/admin/identities`
pub async fn identities(State(app): State<Arc<App>>) -> Result<Json<Vec<IdentityInfo>>, ApiError> {
    let now = app.clock.now();
    Ok(Json(app.db.identities().await?.into_iter().map(|row| row.info(now)).collect()))
}

/// What follows the `?`, or a refusal like all others.
pub(super) type Asked<T> = Result<Query<T>, QueryRejection>;

pub(super) fn asked<T>(query: Asked<T>) -> Result<T, ApiError> {
    match query {
        Ok(Query(query)) => Ok(query),
        Err(e) => Err(ApiError::bad_request("query-malformed", clean(&e.body_text()))),
    }
}

#[derive(Debug, Deserialize)]
pub struct Whose {
    name: Option<String>,
}

/// `GET /api/v1/admin/tokens?name=NAME`
pub async fn tokens(
    State(app): State<Arc<App>>,
    whose: Asked<Whose>,
) -> Result<Json<Vec<TokenInfo>>, ApiError> {
    let whose = asked(whose)?;
    Ok(Json(app.db.tokens(whose.name.as_deref()).await?))
}

#[derive(Debug, Deserialize)]
pub struct Wanted {
    after: Option<u64>,
    cache: Option<String>,
    /// Seconds.
    #[serde(default)]
    wait: u64,
}

/// `GET /api/v1/admin/events?after=ID&cache=CACHE&wait=SECS`
pub async fn events(State(app): State<Arc<App>>, wanted: Asked<Wanted>) -> Result<Json<Events>, ApiError> {
    let wanted = asked(wanted)?;
    let most = if wanted.after.is_some() { PAGE } else { NEWEST };
    let (mut news, mut stopping) = (app.news(), app.stopping.subscribe());
    let over = tokio::time::sleep(Duration::from_secs(wanted.wait.min(MAX_WAIT)));
    tokio::pin!(over);
    loop {
        // what is written after this question wakes
        news.mark_unchanged();
        let rows = app.db.events(wanted.after, wanted.cache.as_deref(), most).await?;
        let events: Vec<Event> = rows.into_iter().map(Event::from).collect();
        if !events.is_empty() || wanted.wait == 0 {
            return Ok(Json(Events { events }));
        }
        tokio::select! {
            changed = news.changed() => if changed.is_ok() { continue },
            () = &mut over => {}
            () = recover::stopped(&mut stopping) => {}
        }
        return Ok(Json(Events { events }));
    }
}
