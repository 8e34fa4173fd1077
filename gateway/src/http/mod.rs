//! The HTTP edge. All routes stand on this page, each with who may use it; a handler parses, calls a stage, renders.

pub mod access;
pub mod health;
pub mod identity;
mod limited;
pub mod public;
pub mod pushes;
pub mod upload;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::Method,
    middleware::{from_fn, from_fn_with_state},
    routing::{MethodRouter, get, post},
};

use crate::app::App;
pub use access::Access;

/// One route: method, path, who may use it, and what answers.
struct Route(Method, &'static str, Access, MethodRouter<Arc<App>>);

/// Every route of the gateway.
fn routes() -> Vec<Route> {
    use Access::{Anybody, Push, PushOrOwner, Signed, Submitter};
    let read = |path, handler| Route(Method::GET, path, Anybody, handler);
    vec![
        read("/healthz", get(health::healthz)),
        read("/readyz", get(health::readyz)),
        read("/metrics", get(health::metrics)),
        read("/api/v1/gateway", get(identity::gateway)),
        Route(Method::POST, "/api/v1/enrol", Signed, post(identity::enrol)),
        Route(Method::POST, "/api/v1/caches/{cache}/missing", Anybody, post(pushes::missing)),
        Route(Method::POST, "/api/v1/caches/{cache}/pushes", Signed, post(pushes::announce)),
        Route(Method::GET, "/api/v1/caches/{cache}/paths/{path}", Submitter, get(pushes::path)),
        Route(Method::GET, "/api/v1/pushes", Submitter, get(pushes::list)),
        Route(Method::GET, "/api/v1/pushes/{push}", PushOrOwner, get(pushes::status)),
        Route(Method::POST, "/api/v1/pushes/{push}/derivations", Push, post(pushes::derivations)),
        Route(Method::POST, "/api/v1/pushes/{push}/nars", Push, post(upload::nars)),
        read("/{cache}/{*file}", get(public::file)),
    ]
}

/// The authorisation table: method, path, who may use it.
pub fn table() -> Vec<(Method, &'static str, Access)> {
    routes().into_iter().map(|Route(method, path, access, _)| (method, path, access)).collect()
}

/// The whole service.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for Route(_, path, access, handler) in routes() {
        // outermost: what isn't allowed isn't read
        let guarded = handler.layer(from_fn_with_state((app.clone(), access), access::guard));
        router = router.route(path, guarded);
    }
    router
        .fallback(health::not_found)
        .method_not_allowed_fallback(health::method_not_allowed)
        // each handler bounds its own body
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(health::count))
        .layer(tower_http::catch_panic::CatchPanicLayer::new())
        .with_state(app)
}

/// Serves until `stop` resolves; then takes no new connections, lets requests under way finish for at most 30 seconds,
/// and stops the judges at the end of their batch.
pub async fn serve(
    app: Arc<App>,
    listener: tokio::net::TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    use axum::serve::ListenerExt;
    let listener = limited::Limited::new(listener, app.config.limits.connections).tap_io(|io| {
        // answers are small and awaited: waiting to fill a segment only delays them
        let _ = io.stream().set_nodelay(true);
    });
    let (told, mut heard) = tokio::sync::watch::channel(false);
    let stopping = app.clone();
    let serving = axum::serve(listener, router(app.clone())).with_graceful_shutdown(async move {
        stop.await;
        tracing::info!("stopping");
        // those who wait for a push to change are answered now
        stopping.stopping.send_replace(true);
        told.send_replace(true);
    });
    let late = async move {
        // an error means that serving ended by itself
        let _ = heard.wait_for(|t| *t).await;
        tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    };
    let result = tokio::select! {
        result = serving => result,
        () = late => {
            tracing::warn!("some requests did not finish in 30 seconds; their pushes can be taken up again");
            Ok(())
        }
    };
    app.stop().await;
    result
}
