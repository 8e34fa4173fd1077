//! Who may use a route: checked before anything of the request's body is read. Handlers find the caller in the request's
//! extensions and check nothing again.

use std::{collections::HashMap, sync::Arc};

use axum::{
    extract::{Path, Request, State},
    http::header::AUTHORIZATION,
    middleware::Next,
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{
    app::App,
    db::{EnrolledKey, Role, TokenHolder},
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
    /// The holder of a submitter's token for this cache, as stock Nix has it from its netrc file.
    Token,
}

/// The middleware in front of every route.
pub async fn guard(
    State((app, access)): State<(Arc<App>, Access)>,
    Path(params): Path<HashMap<String, String>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let credentials = Credentials::of(&request);
    match access {
        Access::Anybody | Access::Signed => {}
        Access::Submitter => {
            let key = submitter(&app, &credentials).await?;
            request.extensions_mut().insert(key);
        }
        Access::Push => {
            let id = params.get("push").map_or("", String::as_str);
            let session = by_token(&app, &credentials, id).await?.ok_or_else(no_token)?;
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
            let session = match by_token(&app, &credentials, id).await? {
                Some(session) => session,
                None => {
                    let key = submitter(&app, &credentials).await?;
                    let session = app.sessions.get(&app, id).await?;
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
            let holder = token_holder(&app, &credentials, name).await?;
            let cache = match app.caches.get(app.db.as_ref(), name).await {
                Ok(Some(cache)) => cache,
                Ok(None) => return Err(ApiError::not_found("cache", name)),
                Err(e) => return Err(ApiError::unavailable(&e)),
            };
            let pusher = Pusher { identity: holder.identity, name: holder.name, owner: holder.owner, cache };
            request.extensions_mut().insert(pusher);
        }
    }
    Ok(next.run(request).await)
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

async fn submitter(app: &App, credentials: &Credentials) -> Result<EnrolledKey, ApiError> {
    let header = credentials.dsse.as_deref().ok_or_else(|| {
        ApiError::new(
            http::StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "this needs a request signed by an enrolled key",
        )
    })?;
    let key = signed_request(app, &credentials.method, &credentials.target, header).await?;
    if key.role != Role::Submitter {
        return Err(ApiError::forbidden(format!(
            "`{}` is a {}, not a submitter",
            key.identity_name,
            key.role.as_str()
        )));
    }
    Ok(key)
}
