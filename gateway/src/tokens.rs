//! Tokens for stock Nix: what stands in a netrc file. One is bound to a submitter and a cache, opens that cache's push prefix
//! and nothing else, and is stored as its hash. It lets its holder send; whose word a path has, its signature says.

use pushgate_formats::{Sha256, base32};

use crate::{
    app::App,
    db::{Acted, Change, Db, DbError, GATEWAY_HOST, NewEvent, Role, TokenHolder, TokenRow},
    error::{ApiError, clean},
};

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("no submitter `{0}` is enrolled; `pushgate-gateway invite` makes an invite")]
    NoSubmitter(String),
    #[error("there is no cache `{0}`")]
    NoCache(String),
    #[error("there are 100 good tokens already; revoke them with `pushgate-gateway token NAME --revoke`")]
    TooMany,
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Makes a token; gives the text, which is stored nowhere. The event says who wants it and for whom.
pub async fn make(
    db: &dyn Db,
    event: NewEvent,
    identity: i64,
    cache: &str,
    expires: Option<u64>,
) -> Result<String, TokenError> {
    // no character that a netrc file or a shell could stumble over
    let token = base32::encode(&crate::random::bytes::<20>());
    let hash = Sha256::of(token.as_bytes());
    let row = TokenRow { hash, identity, cache: cache.to_owned(), created: event.time, expires };
    match db.act(&event, None, &Change::MakeToken(row)).await? {
        Acted::TooManyTokens => Err(TokenError::TooMany),
        // 160 random bits are another's token never
        _ => Ok(token),
    }
}

/// The event of a token for an identity.
pub fn made(now: u64, who: &str, name: &str, cache: &str) -> NewEvent {
    NewEvent {
        cache: Some(cache.to_owned()),
        subject: Some(name.to_owned()),
        ..NewEvent::new(now, who, "make-token")
    }
}

/// The enrolled submitter of a name.
pub(crate) async fn submitter(db: &dyn Db, name: &str) -> Result<i64, TokenError> {
    let keys = db.keys().await?;
    let found = keys.iter().find(|k| k.identity_name == name && k.role == Role::Submitter);
    found.map(|k| k.identity).ok_or_else(|| TokenError::NoSubmitter(clean(name)))
}

/// Makes a token for a submitter by name, good for `ttl` seconds or until it is revoked.
pub async fn make_for(
    db: &dyn Db,
    name: &str,
    cache: &str,
    now: u64,
    ttl: Option<u64>,
) -> Result<String, TokenError> {
    let identity = submitter(db, name).await?;
    if !db.caches().await?.iter().any(|c| c.name == cache) {
        return Err(TokenError::NoCache(clean(cache)));
    }
    let expires = ttl.map(|ttl| now.saturating_add(ttl));
    make(db, made(now, GATEWAY_HOST, name, cache), identity, cache, expires).await
}

/// Revokes all tokens of a submitter; gives how many were good before.
pub async fn revoke(db: &dyn Db, name: &str, now: u64) -> Result<u64, TokenError> {
    submitter(db, name).await?;
    let event = NewEvent {
        subject: Some(name.to_owned()),
        detail: "all tokens".into(),
        ..NewEvent::new(now, GATEWAY_HOST, "revoke-token")
    };
    let change = Change::RevokeTokens { name: name.to_owned(), token: None };
    match db.act(&event, None, &change).await? {
        Acted::Done(done) => Ok(done.changed),
        _ => Err(TokenError::NoSubmitter(clean(name))),
    }
}

/// Finds out whose token it is. `login` is the user name that came with it, if one did.
pub async fn check(
    app: &App,
    cache: &str,
    login: Option<&str>,
    token: &str,
) -> Result<TokenHolder, ApiError> {
    let refused = |code: &'static str, message: String| {
        // 403 means "not there" to Nix, which would go on and send everything
        ApiError::new(http::StatusCode::UNAUTHORIZED, code, message)
    };
    // the lookup is by hash: what it takes tells nothing of other tokens
    let holder = app.db.token(&Sha256::of(token.as_bytes())).await?;
    let holder = holder.filter(|h| login.is_none_or(|login| login == h.name)).ok_or_else(|| {
        refused("token-invalid", "the token is not known, or not of the login name that came with it".into())
    })?;
    if holder.revoked.is_some() {
        return Err(refused("token-revoked", format!("the token of `{}` was revoked", holder.name)));
    }
    if holder.expires.is_some_and(|e| e <= app.clock.now()) {
        return Err(refused("token-expired", format!("the token of `{}` has expired", holder.name)));
    }
    if holder.cache != cache {
        let message = format!("the token is for the cache `{}`, not for `{}`", holder.cache, clean(cache));
        return Err(refused("token-not-for-cache", message));
    }
    if holder.frozen {
        return Err(ApiError::with_code(
            http::StatusCode::UNAUTHORIZED,
            "identity-frozen",
            format!("`{}` is frozen by an admin", holder.name),
        ));
    }
    if holder.role != Role::Submitter {
        let role = holder.role.as_str();
        return Err(ApiError::forbidden(format!("`{}` is a {role}, not a submitter", holder.name)));
    }
    Ok(holder)
}
