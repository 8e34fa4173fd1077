//! Who the gateway is, and enrolment.

use std::sync::Arc;

use axum::{Json, extract::State};
use pushgate_formats::{
    api::{CacheInfo, Enrolled, GatewayInfo, MAX_PATHS},
    dsse::Envelope,
};

use super::pushes::{most_paths, read_body};
use crate::{app::App, error::ApiError, identities};

async fn caches(app: &App) -> Result<Vec<CacheInfo>, ApiError> {
    let rows = app.db.caches().await?;
    Ok(rows
        .into_iter()
        .map(|row| CacheInfo { name: row.name, public_key: row.public_key.to_string() })
        .collect())
}

/// `GET /api/v1/gateway`
pub async fn gateway(State(app): State<Arc<App>>) -> Result<Json<GatewayInfo>, ApiError> {
    Ok(Json(GatewayInfo {
        gateway: app.gateway_id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: app.clock.now(),
        caches: caches(&app).await?,
        max_paths: Some(most_paths(&app)).filter(|most| *most < MAX_PATHS),
    }))
}

/// `POST /api/v1/enrol`
pub async fn enrol(
    State(app): State<Arc<App>>,
    request: axum::extract::Request,
) -> Result<Json<Enrolled>, ApiError> {
    let raw = read_body(request, 64 << 10, "enrolment-malformed").await?;
    let envelope: Envelope = serde_json::from_slice(&raw)
        .map_err(|e| ApiError::bad_request("enrolment-malformed", format!("no DSSE envelope: {e}")))?;
    let (submitter, role) = identities::enrol(&app, &envelope).await?;
    Ok(Json(Enrolled {
        gateway: app.gateway_id.clone(),
        submitter,
        role: role.as_str().to_owned(),
        caches: caches(&app).await?,
    }))
}
