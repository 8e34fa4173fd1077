//! What stock Nix sends beside paths: build logs, and realisations of content-addressed derivations. Only those of the
//! submitter's own push are taken. A realisation is a claim of its own and stays private; a log is text that its sender
//! vouches for, and is published with the path that it is about.

use std::sync::Arc;

use pushgate_formats::{StorePath, api::PathState};
use serde::{Deserialize, Serialize};

use super::Pusher;
use crate::{
    app::App,
    db::{BuildLogRow, RealisationRow},
    error::ApiError,
    push::{announce::is_realisation_id, unproven_realisation},
};

/// Largest realisation read, in bytes.
pub const MAX_REALISATION: usize = 64 << 10;
/// Bytes of a submitter's waiting build logs with which no further one is taken.
const MAX_LOGS: u64 = 64 << 20;
/// Build logs in memory at once while they are published.
const LOGS: u32 = 1;

/// `realisations/ID.doi`, as Nix writes it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Realisation {
    #[serde(default)]
    dependent_realisations: serde_json::Map<String, serde_json::Value>,
    id: String,
    /// A base name.
    out_path: String,
    #[serde(default)]
    signatures: Vec<serde_json::Value>,
}

fn malformed(why: impl std::fmt::Display) -> ApiError {
    ApiError::bad_request("realisation-malformed", format!("the realisation can't be read: {why}"))
}

/// Takes a realisation, for a path that this submitter pushed. It is held: its submitter's word alone never publishes it.
pub async fn take_realisation(app: &App, pusher: &Pusher, id: &str, text: &[u8]) -> Result<(), ApiError> {
    let sent: Realisation = serde_json::from_slice(text).map_err(malformed)?;
    if sent.id != id || !is_realisation_id(id) {
        return Err(malformed(format!("its name `{}` is not its id", crate::error::clean(id))));
    }
    add(app, pusher, id, &sent.out_path).await
}

/// Takes an entry of the build trace, which newer Nix has in place of a realisation.
pub async fn take_trace(
    app: &App,
    pusher: &Pusher,
    derivation: &StorePath,
    output: &str,
    text: &[u8],
) -> Result<(), ApiError> {
    if !app.db.has_derivation(&pusher.cache.name, pusher.identity, derivation).await? {
        return Err(ApiError::forbidden(format!(
            "you pushed neither `{derivation}` nor an output of it to `{}`",
            pusher.cache.name
        )));
    }
    let sent: serde_json::Value = serde_json::from_slice(text).map_err(malformed)?;
    let path =
        sent.get("outPath").and_then(|p| p.as_str()).ok_or_else(|| malformed("it has no `outPath`"))?;
    add(app, pusher, &trace_id(derivation, output), path).await
}

/// Under which id an entry of the build trace is kept.
pub fn trace_id(derivation: &StorePath, output: &str) -> String {
    format!("{}^{output}", derivation.base_name())
}

async fn add(app: &App, pusher: &Pusher, id: &str, path: &str) -> Result<(), ApiError> {
    let base = path.strip_prefix("/nix/store/").unwrap_or(path);
    let path = StorePath::from_base_name(base)
        .map_err(|e| ApiError::bad_request("store-path-invalid", e.to_string()))?;
    let claims = app.db.own_claims(&pusher.cache.name, pusher.identity, path.hash_part()).await?;
    let own = claims.into_iter().find(|c| c.path == path && c.state != PathState::Rejected);
    let own = own.ok_or_else(|| {
        ApiError::forbidden(format!(
            "the realisation is about `{path}`, which is no path that you pushed to `{}`",
            pusher.cache.name
        ))
    })?;
    let row = unproven_realisation(id, &path);
    if !app.db.add_realisation(&pusher.cache.name, &own.push, &row).await? {
        let message = format!("no more realisations of `{path}` are taken");
        return Err(ApiError::new(http::StatusCode::INSUFFICIENT_STORAGE, "quota-exceeded", message));
    }
    metrics::counter!("pushgate_realisations_taken_total").increment(1);
    Ok(())
}

/// A realisation that this submitter sent.
pub async fn realisation(app: &App, pusher: &Pusher, id: &str) -> Result<Option<RealisationRow>, ApiError> {
    Ok(app.db.own_realisations(&pusher.cache.name, pusher.identity, id).await?.into_iter().next())
}

/// A realisation as Nix reads it back, without signatures: nobody's word but the submitter's stands behind it.
pub fn realisation_text(row: &RealisationRow) -> String {
    let text = Realisation {
        dependent_realisations: Default::default(),
        id: row.id.clone(),
        out_path: row.path.base_name().to_owned(),
        signatures: vec![],
    };
    // plain data
    serde_json::to_string(&text).unwrap_or_default()
}

/// An entry of the build trace as newer Nix reads it back.
pub fn trace_text(row: &RealisationRow) -> String {
    serde_json::json!({ "outPath": row.path.base_name(), "signatures": [] }).to_string()
}

/// Whether a log of this derivation is taken from a submitter: he sent it or claims an output of it. Asked before the log
/// is read.
pub async fn may_have_log(app: &Arc<App>, pusher: &Pusher, derivation: &StorePath) -> Result<(), ApiError> {
    app.disk_has_room().await?;
    if app.db.has_derivation(&pusher.cache.name, pusher.identity, derivation).await? {
        return Ok(());
    }
    Err(ApiError::forbidden(format!(
        "the log is of `{derivation}`, and you pushed neither that derivation nor an output of it to `{}`",
        pusher.cache.name
    )))
}

/// Takes the log of a build that [`may_have_log`] allows.
pub async fn take_log(
    app: &Arc<App>,
    pusher: &Pusher,
    derivation: StorePath,
    text: Vec<u8>,
) -> Result<(), ApiError> {
    let policy = pusher.cache.policy();
    let waiting = app.db.build_log_bytes(pusher.identity).await?;
    if waiting > MAX_LOGS {
        let message = format!(
            "your build logs that wait for their paths have {waiting} bytes; {MAX_LOGS} are allowed: push the paths first"
        );
        return Err(ApiError::new(http::StatusCode::INSUFFICIENT_STORAGE, "quota-exceeded", message));
    }
    let row = BuildLogRow { cache: pusher.cache.name.clone(), derivation, identity: pusher.identity, text };
    app.db.add_build_log(&row, app.clock.now() + policy.limits.quarantine_ttl).await?;
    // with the next round of whoever tidies up
    app.sweep.notify_one();
    Ok(())
}

/// Publishes the logs whose paths are published by now. The first one stays: a log isn't rewritten. A crash between file
/// and row leaves both, and the next time drops the row.
pub async fn publish_logs(app: &Arc<App>) -> Result<(), ApiError> {
    // one at a time, whoever asks
    let _one = app.publishing_logs.lock().await;
    loop {
        let rows = app.db.ready_build_logs(LOGS).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let blobs = app.blobs.clone();
        let rows = tokio::task::spawn_blocking(move || {
            for row in &rows {
                let name = format!("log/{}", row.derivation.base_name());
                if !blobs.is_published(&row.cache, &name)? {
                    blobs.publish_bytes(&row.cache, &name, &row.text)?;
                }
            }
            blobs.sync().map(|()| rows)
        })
        .await
        .map_err(|e| ApiError::unavailable(&e))??;
        app.db.drop_build_logs(&rows).await?;
    }
}
