//! Tokens for stock Nix, made by the submitter whose they are.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
};
use pushgate_formats::api::TokenMade;

use crate::{
    app::App,
    db::{EnrolledKey, NewEvent},
    error::ApiError,
    push::signature::may_push,
    tokens,
    tokens::TokenError,
};

/// `POST /api/v1/caches/CACHE/tokens`
pub async fn make(
    State(app): State<Arc<App>>,
    Extension(key): Extension<EnrolledKey>,
    Path(name): Path<String>,
) -> Result<Json<TokenMade>, ApiError> {
    let cache = super::pushes::cache(&app, &name).await?;
    let now = app.clock.now();
    may_push(&key, &cache.name, now)?;
    // a token outlives no key that it was asked for with
    let event = NewEvent {
        key: Some(key.key.name().clone()),
        ..tokens::made(now, &key.identity_name, &key.identity_name, &cache.name)
    };
    let token = tokens::make(app.db.as_ref(), event, key.identity, &cache.name, key.expires).await;
    let token = token.map_err(|e| match e {
        TokenError::Db(e) => e.into(),
        e => ApiError::new(StatusCode::CONFLICT, "too-many-tokens", e.to_string()),
    })?;
    app.tell_of_events();
    tracing::info!(submitter = key.identity_name, cache = cache.name, "token made");
    Ok(Json(TokenMade { login: key.identity_name, token }))
}
