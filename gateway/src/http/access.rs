//! Who may use a route: checked before anything of the request's body is read. Handlers find the caller in the request's
//! extensions and check nothing again.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    RequestExt,
    extract::{Path, Request},
    http::header::AUTHORIZATION,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::Either;
use pushgate_formats::Sha256;
use tower::{Layer, Service, ServiceExt};

use crate::{
    acts::{claims::may_review, may_administer},
    app::App,
    db::{EnrolledKey, JobRow, Role, TokenHolder},
    error::ApiError,
    identities::{is_push_token, signed_request},
    push::{session::Session, signature::may_push, stock::Pusher},
    tokens,
};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No credentials are looked at.
    Anybody,
    /// The body is signed, and the handler's stage checks the signature.
    Signed,
    /// An enrolled submitter, by a signed request.
    Submitter,
    /// The holder of the push's token, while the push is under way and its key may push.
    Push,
    /// The holder of the push's token, or the submitter whose push it is.
    PushOrOwner,
    /// An admin who may act, by a signed request.
    Admin,
    /// A submitter or an admin, by a signed request.
    Member,
    /// An admin who may act, or one whom the cache's policy asks for approvals, by a signed request.
    Reviewer,
    /// A verifier, by a signed request.
    Verifier,
    /// The verifier that has the job's lease, or has done it, by the lease's token.
    Job,
    /// The holder of a submitter's token for this cache, as stock Nix has it from its netrc file.
    Token,
}

impl Access {
    /// Whether nothing of the request says who may come.
    const fn is_open(self) -> bool {
        matches!(self, Self::Anybody | Self::Signed)
    }
}

/// The layer in front of every route.
#[derive(Clone)]
pub struct Guard {
    app: Arc<App>,
    access: Access,
}

impl Guard {
    pub const fn new(app: Arc<App>, access: Access) -> Self {
        Self { app, access }
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: self.clone(), inner }
    }
}

/// A handler behind its guard.
#[derive(Clone)]
pub struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S> Service<Request> for Guarded<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<S::Future, Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        // public files are asked for tens of thousands of times a second
        if self.guard.access.is_open() {
            return Either::Left(self.inner.call(request));
        }
        let (Guard { app, access }, inner) = (self.guard.clone(), self.inner.clone());
        Either::Right(Box::pin(async move {
            match admit(&app, access, &mut request).await {
                Ok(()) => inner.oneshot(request).await,
                Err(refused) => Ok(refused.into_response()),
            }
        }))
    }
}

/// Whether a request may go to its handler; what the handler has to know of who asks goes into its extensions.
async fn admit(app: &Arc<App>, access: Access, request: &mut Request) -> Result<(), ApiError> {
    let params = request.extract_parts::<Path<HashMap<String, String>>>().await;
    // in a path that isn't UTF-8 there is no parameter that anything could have
    let params = params.map(|Path(params)| params).unwrap_or_default();
    let credentials = Credentials::of(request);
    match access {
        Access::Anybody | Access::Signed => {}
        Access::Submitter => {
            let key = submitter(app, &credentials).await?;
            request.extensions_mut().insert(key);
        }
        Access::Admin => {
            let key = admin(app, &credentials).await?;
            request.extensions_mut().insert(key);
        }
        Access::Member => {
            let key = signer(app, &credentials).await?;
            if key.role == Role::Verifier {
                return Err(ApiError::forbidden(format!("`{}` is a verifier", key.identity_name)));
            }
            request.extensions_mut().insert(key);
        }
        Access::Verifier => {
            let key = by_key_alone(app, &credentials).await?;
            if key.role != Role::Verifier {
                let message = format!("`{}` is a {}, not a verifier", key.identity_name, key.role.as_str());
                return Err(ApiError::forbidden(message));
            }
            if key.frozen {
                return Err(ApiError::new(
                    http::StatusCode::FORBIDDEN,
                    "identity-frozen",
                    format!("`{}` is frozen by an admin", key.identity_name),
                ));
            }
            request.extensions_mut().insert(key);
        }
        Access::Job => {
            let id = params.get("job").map_or("", String::as_str);
            let (job, key) = job(app, &credentials, id).await?;
            request.extensions_mut().insert(job);
            request.extensions_mut().insert(key);
        }
        Access::Reviewer => {
            let key = by_key_alone(app, &credentials).await?;
            let name = params.get("cache").map_or("", String::as_str);
            let cache = app.caches.get(app.db.as_ref(), name).await.map_err(|e| ApiError::unavailable(&e))?;
            let cache = cache.ok_or_else(|| ApiError::not_found("cache", name))?;
            may_review(&cache, &key)?;
            request.extensions_mut().insert(cache);
            request.extensions_mut().insert(key);
        }
        Access::Push => {
            let id = params.get("push").map_or("", String::as_str);
            let session = by_token(app, &credentials, id).await?.ok_or_else(no_token)?;
            if session.is_settled(true) {
                return Err(ApiError::forbidden(format!("the push `{id}` has ended")));
            }
            let key = app.db.key(&session.key.bytes()).await?.ok_or_else(no_token)?;
            may_push(&key, &session.cache.name, app.clock.now())?;
            request.extensions_mut().insert(session);
            request.extensions_mut().insert(key);
        }
        Access::PushOrOwner => {
            let id = params.get("push").map_or("", String::as_str);
            let session = match by_token(app, &credentials, id).await? {
                Some(session) => session,
                None => {
                    let key = submitter(app, &credentials).await?;
                    let session = app.sessions.get(app, id).await?;
                    // another's push and one that never was look alike
                    session
                        .filter(|s| s.identity == key.identity)
                        .ok_or_else(|| ApiError::not_found("push of yours", id))?
                }
            };
            request.extensions_mut().insert(session);
        }
        Access::Token => {
            let name = params.get("cache").map_or("", String::as_str);
            let holder = token_holder(app, &credentials, name).await?;
            let cache = match app.caches.get(app.db.as_ref(), name).await {
                Ok(Some(cache)) => cache,
                Ok(None) => return Err(ApiError::not_found("cache", name)),
                Err(e) => return Err(ApiError::unavailable(&e)),
            };
            let pusher = Pusher {
                identity: holder.identity,
                name: holder.name,
                owner: holder.owner,
                groups: holder.groups,
                cache,
            };
            request.extensions_mut().insert(pusher);
        }
    }
    Ok(())
}

fn no_token() -> ApiError {
    ApiError::forbidden("this needs the token of the push, as the answer to its announcement has it")
}

/// Whose token a request carries: `Basic` from a netrc file, or `Bearer`.
async fn token_holder(app: &App, credentials: &Credentials, cache: &str) -> Result<TokenHolder, ApiError> {
    let missing = || {
        ApiError::new(
            http::StatusCode::UNAUTHORIZED,
            "token-missing",
            "this needs a token, in a netrc file with the submitter's name as login: `pushgate token` makes one",
        )
    };
    if let Some(token) = &credentials.bearer {
        return tokens::check(app, cache, None, token).await;
    }
    let basic = credentials.basic.as_deref().ok_or_else(missing)?;
    let text = STANDARD.decode(basic).ok().and_then(|raw| String::from_utf8(raw).ok()).ok_or_else(missing)?;
    let (login, token) = text.split_once(':').ok_or_else(missing)?;
    tokens::check(app, cache, Some(login), token).await
}

/// What of a request says who asks. Taken out of it, since a request's body can't be shared between threads.
struct Credentials {
    basic: Option<String>,
    bearer: Option<String>,
    dsse: Option<String>,
    method: String,
    /// Path and query.
    target: String,
}

impl Credentials {
    fn of(request: &Request) -> Self {
        let value = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        let scheme = |wanted: &str| {
            let (found, rest) = value?.split_once(' ')?;
            found.eq_ignore_ascii_case(wanted).then(|| rest.trim().to_owned())
        };
        Self {
            basic: scheme("basic"),
            bearer: scheme("bearer"),
            dsse: scheme("dsse"),
            method: request.method().as_str().to_owned(),
            target: request.uri().path_and_query().map_or_else(String::new, |p| p.as_str().to_owned()),
        }
    }
}

/// The job whose token a request carries, with its verifier's key: as bearer, or as the password that Nix has in its netrc
/// file.
async fn job(app: &App, credentials: &Credentials, id: &str) -> Result<(JobRow, EnrolledKey), ApiError> {
    let missing = || {
        ApiError::new(
            http::StatusCode::UNAUTHORIZED,
            "token-missing",
            "this needs the token of the job's lease",
        )
    };
    let basic = || {
        let text = String::from_utf8(STANDARD.decode(credentials.basic.as_deref()?).ok()?).ok()?;
        Some(text.split_once(':')?.1.to_owned())
    };
    let token = credentials.bearer.clone().or_else(basic).ok_or_else(missing)?;
    let lost = || {
        let message = "this isn't the token of the job's lease: it ran out, or the job was given to another";
        ApiError::new(http::StatusCode::FORBIDDEN, "lease-lost", message)
    };
    let row = app.db.job(id).await?.ok_or_else(lost)?;
    let given = Sha256::of(token.as_bytes());
    // of two hashes: how long the comparison takes tells nothing of the token
    if row.token != Some(given) {
        return Err(lost());
    }
    let key = row.key.as_ref().ok_or_else(lost)?;
    let key = app.db.key(&key.bytes()).await?.ok_or_else(lost)?;
    let expired = key.expires.is_some_and(|expires| expires <= app.clock.now());
    if key.revoked.is_some() || key.frozen || expired || key.role != Role::Verifier {
        return Err(ApiError::new(
            http::StatusCode::FORBIDDEN,
            "key-revoked",
            format!("the key `{}` counts no more", key.key.name()),
        ));
    }
    Ok((row, key))
}

/// The push, if the request carries its token. A wrong token is refused, none at all is `None`.
async fn by_token(app: &App, credentials: &Credentials, id: &str) -> Result<Option<Arc<Session>>, ApiError> {
    let Some(token) = &credentials.bearer else { return Ok(None) };
    if !is_push_token(&app.secret, id, token) {
        return Err(no_token());
    }
    match app.sessions.get(app, id).await? {
        Some(session) => Ok(Some(session)),
        None => Err(ApiError::not_found("push", id)),
    }
}

/// Whose key signed the request.
async fn signer(app: &App, credentials: &Credentials) -> Result<EnrolledKey, ApiError> {
    let header = credentials.dsse.as_deref().ok_or_else(|| {
        ApiError::new(
            http::StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "this needs a request signed by an enrolled key",
        )
    })?;
    signed_request(app, &credentials.method, &credentials.target, header).await
}

async fn submitter(app: &App, credentials: &Credentials) -> Result<EnrolledKey, ApiError> {
    let key = signer(app, credentials).await?;
    if key.role != Role::Submitter {
        return Err(ApiError::forbidden(format!(
            "`{}` is a {}, not a submitter",
            key.identity_name,
            key.role.as_str()
        )));
    }
    Ok(key)
}

async fn admin(app: &App, credentials: &Credentials) -> Result<EnrolledKey, ApiError> {
    let key = by_key_alone(app, credentials).await?;
    may_administer(&key)?;
    Ok(key)
}

/// Whose key signed the request, where tokens, which are for pushes, have nothing to do.
async fn by_key_alone(app: &App, credentials: &Credentials) -> Result<EnrolledKey, ApiError> {
    if credentials.bearer.is_some() || credentials.basic.is_some() {
        return Err(ApiError::forbidden("no token opens this; it needs a request signed by an enrolled key"));
    }
    signer(app, credentials).await
}
