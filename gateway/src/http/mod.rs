//! The HTTP edge. All routes stand on this page, each with who may use it; a handler parses, calls a stage, renders.

pub mod access;
mod activity;
pub mod admin;
mod files;
pub mod health;
pub mod identity;
pub mod jobs;
mod limited;
mod patience;
pub mod public;
pub mod pushes;
pub mod review;
pub mod sample;
pub mod stock;
pub mod tokens;
pub mod upload;

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::Method,
    middleware::from_fn,
    routing::{MethodRouter, get, post, put},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};

use tower::ServiceExt;

use crate::{app::App, push::recover};
pub use access::Access;
use activity::{Noting, State};

/// One route: method, path, who may use it, and what answers.
struct Route(Method, &'static str, Access, MethodRouter<Arc<App>>);

/// Every route of the gateway.
fn routes() -> Vec<Route> {
    use Access::{
        Admin, Anybody, Job, Member, Push, PushOrOwner, Reviewer, Signed, Submitter, Token, Verifier,
    };
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
        Route(
            Method::GET,
            "/api/v1/pushes/{push}/builds/{derivation}/log",
            PushOrOwner,
            get(jobs::build_log),
        ),
        Route(Method::POST, "/api/v1/jobs/lease", Verifier, post(jobs::lease)),
        Route(Method::POST, "/api/v1/jobs/{job}/heartbeat", Job, post(jobs::heartbeat)),
        Route(Method::POST, "/api/v1/jobs/{job}/log", Job, post(jobs::log)),
        Route(Method::POST, "/api/v1/jobs/{job}/result", Job, post(jobs::result)),
        Route(Method::PUT, "/api/v1/jobs/{job}/nars/{hash}", Job, put(jobs::nar)),
        Route(Method::GET, "/api/v1/jobs/{job}/view/{*file}", Job, get(jobs::view)),
        Route(Method::POST, "/api/v1/caches/{cache}/tokens", Submitter, post(tokens::make)),
        Route(Method::POST, "/api/v1/acts", Signed, post(admin::act)),
        Route(Method::GET, "/api/v1/caches/{cache}/paths/{path}/why", Member, get(review::why)),
        Route(
            Method::GET,
            "/api/v1/caches/{cache}/paths/{path}/differences",
            Member,
            get(review::differences),
        ),
        Route(Method::GET, "/api/v1/caches/{cache}/held", Reviewer, get(review::held)),
        Route(Method::GET, "/api/v1/caches/{cache}/conflicts", Reviewer, get(review::conflicts)),
        Route(Method::GET, "/api/v1/caches/{cache}/decisions", Reviewer, get(review::decisions)),
        Route(Method::GET, "/api/v1/caches/{cache}/epochs", Reviewer, get(sample::epochs)),
        Route(Method::GET, "/api/v1/caches/{cache}/epochs/{epoch}", Reviewer, get(sample::draws)),
        Route(Method::GET, "/api/v1/admin/identities", Admin, get(admin::identities)),
        Route(Method::GET, "/api/v1/admin/tokens", Admin, get(admin::tokens)),
        Route(Method::GET, "/api/v1/admin/events", Admin, get(admin::events)),
        Route(Method::GET, "/{cache}/push/{*file}", Token, get(stock::read)),
        Route(Method::PUT, "/{cache}/push/{*file}", Token, put(stock::put)),
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
        let guarded = handler.layer(access::Guard::new(app.clone(), access));
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

/// How long requests under way may take once the gateway stops.
const LAST_REQUESTS: Duration = Duration::from_secs(30);
/// How often an HTTP/2 connection is asked whether anybody is there, and how long it has to answer.
const PING: Duration = Duration::from_secs(30);
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 32;
/// Bytes of bodies that one HTTP/2 connection may send ahead of being read, and of one request.
const WINDOWS: (u32, u32) = (128 << 10, 64 << 10);
/// Bytes of an answer that are held for one HTTP/2 request.
const AHEAD: usize = 64 << 10;

/// Serves until `stop` resolves; then takes no new connections, lets requests under way finish for at most 30 seconds,
/// and stops the judges at the end of their batch.
pub async fn serve(
    app: Arc<App>,
    listener: tokio::net::TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let limits = &app.config.limits;
    let patience = Duration::from_secs(limits.header_timeout.max(1));
    let places = limited::raise_files(limits.connections);
    let pace =
        patience::Pace { idle: Duration::from_secs(limits.download_idle.max(1)), rate: limits.download_rate };
    let mut listener = limited::Limited::new(listener, places, patience, pace);
    let protocol = protocol(patience);
    let router = router(app.clone());
    // on HTTP/2, where it doesn't show at the socket who takes too little
    let least = limits.download_rate.saturating_mul(patience.as_secs());
    // each connection holds one end: at the other it shows when all are closed
    let (open, mut closed) = tokio::sync::mpsc::channel::<()>(1);
    let mut stop = pin!(stop);
    loop {
        let connection = tokio::select! {
            () = &mut stop => break,
            connection = listener.accept() => connection,
        };
        let (activity, outbox) = (connection.activity(), connection.outbox());
        let service = router.clone().map_request(move |mut request: http::Request<_>| {
            // other protocols have frames of their own around a body's bytes
            if request.version() <= http::Version::HTTP_11 {
                request.extensions_mut().insert(outbox.clone());
            }
            request
        });
        let noting = TowerToHyperService::new(Noting::new(service, activity.clone()));
        let serving = protocol.serve_connection(TokioIo::new(connection), noting).into_owned();
        let (open, mut stopping) = (open.clone(), app.stopping.subscribe());
        tokio::spawn(async move {
            let _open = open;
            let mut serving = pin!(serving);
            let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + patience, patience);
            let (mut told, mut stopped) = (false, false);
            loop {
                tokio::select! {
                    ended = serving.as_mut() => {
                        // the other side's doing: it broke off, or kept silent for too long
                        if let Err(error) = ended {
                            tracing::trace!(error, "a connection ended");
                        }
                        return;
                    }
                    () = recover::stopped(&mut stopping), if !stopped => {
                        serving.as_mut().graceful_shutdown();
                        stopped = true;
                    }
                    _ = tick.tick() => match activity.look(least) {
                        State::Busy => {}
                        // it may end in good order
                        State::Idle if !told => {
                            serving.as_mut().graceful_shutdown();
                            told = true;
                        }
                        State::Idle | State::Stalled => return,
                    },
                }
            }
        });
    }
    drop(open);
    drop(listener);
    tracing::info!("stopping");
    // those who wait for a push to change are answered now
    app.stopping.send_replace(true);
    if tokio::time::timeout(LAST_REQUESTS, closed.recv()).await.is_err() {
        tracing::warn!("some requests did not finish in 30 seconds; their pushes can be taken up again");
    }
    app.stop().await;
    Ok(())
}

/// How connections are spoken to. Without a timer hyper waits for ever, and silent connections keep their places.
fn protocol(patience: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // runs between requests as well
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.min(patience))
        .keep_alive_timeout(PING.min(patience))
        .initial_connection_window_size(WINDOWS.0)
        .initial_stream_window_size(WINDOWS.1)
        .max_send_buf_size(AHEAD)
        .max_concurrent_streams(STREAMS);
    builder
}
