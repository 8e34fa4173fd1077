//! The rebuild sample for those who check it: epochs, and the draws of each. While an epoch is open its seed isn't told, nor
//! what it drew.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
};
use pushgate_formats::sample::{Draws, Epoch};
use serde::Deserialize;

use super::admin::{Asked, asked};
use crate::{app::App, caches::Cache, error::ApiError, push::rebuild::sample::shown};

/// Epochs listed at most.
const EPOCHS: u32 = 1000;
/// Draws on one page.
const PAGE: u32 = 5000;

#[derive(Debug, Deserialize)]
pub struct After {
    #[serde(default)]
    after: i64,
}

/// `GET /api/v1/caches/CACHE/epochs`, newest first.
pub async fn epochs(
    State(app): State<Arc<App>>,
    Extension(cache): Extension<Arc<Cache>>,
) -> Result<Json<Vec<Epoch>>, ApiError> {
    let rows = app.db.epochs(&cache.name, EPOCHS).await?;
    Ok(Json(rows.iter().map(|row| shown(&cache.name, row)).collect()))
}

/// `GET /api/v1/caches/CACHE/epochs/NUMBER?after=DRAW`
pub async fn draws(
    State(app): State<Arc<App>>,
    Extension(cache): Extension<Arc<Cache>>,
    Path((_, number)): Path<(String, String)>,
    page: Asked<After>,
) -> Result<Json<Draws>, ApiError> {
    let after = asked(page)?.after;
    let unknown = || ApiError::not_found("epoch", &number);
    let number: u64 = number.parse().map_err(|_| unknown())?;
    let rows = app.db.epochs(&cache.name, u32::MAX).await?;
    let row = rows.iter().find(|row| row.number == number).ok_or_else(unknown)?;
    if row.closed.is_none() {
        let message = format!("the epoch `{number}` is open: its draws are told when its seed is");
        return Err(ApiError::new(StatusCode::CONFLICT, "epoch-open", message));
    }
    let draws = app.db.draws_of(&cache.name, number, after, PAGE).await?;
    let after = draws.last().filter(|_| draws.len() == PAGE as usize).map(|(id, _)| *id);
    let draws = draws.into_iter().map(|(_, draw)| draw).collect();
    Ok(Json(Draws { epoch: shown(&cache.name, row), draws, after }))
}
