//! Tokens for stock Nix, made by the submitter whose they are.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, State},
};
use pushgate_formats::api::TokenMade;

use crate::{app::App, db::EnrolledKey, error::ApiError, push::signature::may_push, tokens};

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
    let token = tokens::make(app.db.as_ref(), key.identity, &cache.name, now, key.expires).await?;
    tracing::info!(submitter = key.identity_name, cache = cache.name, "token made");
    Ok(Json(TokenMade { login: key.identity_name, token }))
}
