//! Health, metrics, and what answers where no route does.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    Json,
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use metrics::Counter;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::json;

use crate::{app::App, error::ApiError};

/// The process runs.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Database and blob store answer, and every policy file is in force.
pub async fn readyz(State(app): State<Arc<App>>) -> Response {
    let database = tokio::time::timeout(Duration::from_secs(2), app.db.ping()).await;
    let database = matches!(database, Ok(Ok(())));
    let blobs = app.blobs.clone();
    let blobs = tokio::task::spawn_blocking(move || blobs.probe()).await.is_ok_and(|p| p.is_ok());
    // anybody may ask: what is wrong, and in which file, stands in the log
    let problems: Vec<String> =
        app.caches.all().iter().filter(|c| c.policy_problem().is_some()).map(|c| c.name.clone()).collect();
    // a broken policy file is reported, but the last good one is in force: the gateway is ready
    let status = if database && blobs { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({ "database": database, "blobs": blobs, "policyProblems": problems });
    (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

/// The process's one recorder; tests run several gateways in a process.
pub fn recorder() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().ok()).as_ref()
}

/// Prometheus' text format.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    for cache in app.caches.all() {
        let broken = f64::from(u8::from(cache.policy_problem().is_some()));
        metrics::gauge!("pushgate_policy_broken", "cache" => cache.name.clone()).set(broken);
    }
    let busy = app.uploads.taken();
    metrics::gauge!("pushgate_uploads_under_way").set(busy as f64);
    let text = recorder().map(PrometheusHandle::render).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4"), (header::CACHE_CONTROL, "no-store")], text)
        .into_response()
}

/// Counts requests by route and status.
pub async fn count(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    counter(route.as_ref().map_or("none", MatchedPath::as_str), response.status().as_u16()).increment(1);
    response
}

/// Kept: to look one up by its labels costs more than all else that a request for a small file needs here.
fn counter(route: &str, status: u16) -> Counter {
    type Counters = HashMap<u16, HashMap<String, Counter>>;
    static COUNTERS: OnceLock<RwLock<Counters>> = OnceLock::new();
    let counters = COUNTERS.get_or_init(RwLock::default);
    let known = counters.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(counter) = known.get(&status).and_then(|routes| routes.get(route)) {
        return counter.clone();
    }
    drop(known);
    // without a recorder it would count nothing for ever
    recorder();
    let counter = metrics::counter!(
        "pushgate_requests_total", "route" => route.to_owned(), "status" => status.to_string()
    );
    let mut known = counters.write().unwrap_or_else(PoisonError::into_inner);
    known.entry(status).or_default().entry(route.to_owned()).or_insert(counter).clone()
}

pub async fn not_found(uri: Uri) -> ApiError {
    ApiError::not_found("page", uri.path())
}

pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let path = crate::error::clean(uri.path());
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!("`{method}` can't be done to `{path}`"),
    )
}
