//! Acts that are about identities, keys and tokens, by admins.

use pushgate_formats::acts::{Act, ActDone, Deed};

use super::{ActsError, absent, event, record};
use crate::{
    app::App,
    db::{Change, EnrolledKey, NewEvent, TokenRow},
    error::{ApiError, clean},
    identities::{Invite, InviteError, invite_in_words, invite_row},
    tokens::{self, TokenError},
};

/// Carries out an act of an admin. `envelope` is the JSON of the DSSE envelope, as sent.
pub(super) async fn act(
    app: &App,
    key: &EnrolledKey,
    act: &Act,
    envelope: &[u8],
) -> Result<ActDone, ApiError> {
    let Plan { change, subject, cache, detail } = plan(app, act).await?;
    let event = NewEvent { subject: Some(subject.clone()), cache, detail, ..event(app, key, act, envelope) };
    let done = record(app, key, act, &event, &change).await?;
    // Whom it is done to may push less now, or again; whom he vouches for may have changed. A crash before this is made
    // good at the next start, which looks at all open pushes.
    let concerns_pushes = matches!(
        act.what,
        Deed::Groups { .. }
            | Deed::Owner { .. }
            | Deed::Freeze { .. }
            | Deed::Unfreeze { .. }
            | Deed::RevokeKey { .. }
    );
    if concerns_pushes {
        app.report_pushes_of(&subject).await;
    }
    Ok(done)
}

/// What an act comes to.
struct Plan {
    change: Change,
    /// Whom it is done to.
    subject: String,
    cache: Option<String>,
    /// What exactly, in words.
    detail: String,
}

impl Plan {
    fn new(subject: &str, detail: String, change: Change) -> Self {
        Self { change, subject: subject.to_owned(), cache: None, detail }
    }
}

async fn plan(app: &App, act: &Act) -> Result<Plan, ApiError> {
    let (db, now) = (app.db.as_ref(), app.clock.now());
    Ok(match &act.what {
        Deed::Invite { name, role, owner, groups, caches, code, code_expires, key_expires } => {
            let invite = Invite {
                name: name.clone(),
                role: *role,
                owner: owner.clone(),
                groups: groups.clone(),
                caches: caches.clone(),
                ttl: 0,
                key_expires: *key_expires,
            };
            let row = invite_row(db, now, invite, *code, *code_expires).await?;
            Plan::new(name, invite_in_words(&row), Change::Invite(row))
        }
        Deed::Groups { name, groups } => {
            let detail = if groups.is_empty() { "none".into() } else { groups.join(" ") };
            Plan::new(name, detail, Change::Groups { name: name.clone(), groups: groups.clone() })
        }
        Deed::Owner { name, owner } => {
            let detail = owner.clone().unwrap_or_else(|| "nobody".into());
            Plan::new(name, detail, Change::Owner { name: name.clone(), owner: owner.clone() })
        }
        Deed::Freeze { name } => {
            Plan::new(name, String::new(), Change::Frozen { name: name.clone(), frozen: true })
        }
        Deed::Unfreeze { name } => {
            Plan::new(name, String::new(), Change::Frozen { name: name.clone(), frozen: false })
        }
        Deed::RevokeKey { key } => {
            let known = db.key_named(key).await?.ok_or_else(|| absent(&act.what))?;
            Plan::new(&known.identity_name, format!("the key {key}"), Change::RevokeKey(key.clone()))
        }
        Deed::Rotate { key, code, code_expires, old_expires, key_expires } => {
            let known = db.key_named(key).await?.ok_or_else(|| absent(&act.what))?;
            // owner and groups are the identity's, and stay
            let invite = Invite {
                name: known.identity_name.clone(),
                role: known.role,
                owner: None,
                groups: vec![],
                caches: known.caches,
                ttl: 0,
                key_expires: *key_expires,
            };
            let invite = invite_row(db, now, invite, *code, *code_expires).await?;
            let change = Change::Rotate { key: key.clone(), old_expires: *old_expires, invite };
            Plan::new(&known.identity_name, format!("the key {key}"), change)
        }
        Deed::MakeToken { name, cache, token, token_expires } => {
            let identity = tokens::submitter(db, name).await?;
            if !db.caches().await?.iter().any(|c| c.name == *cache) {
                return Err(ApiError::not_found("cache", cache));
            }
            let row = TokenRow {
                hash: *token,
                identity,
                cache: cache.clone(),
                created: now,
                expires: *token_expires,
            };
            Plan { cache: Some(cache.clone()), ..Plan::new(name, String::new(), Change::MakeToken(row)) }
        }
        Deed::RevokeToken { name, token } => {
            let detail = token.map_or_else(|| "all tokens".into(), |t| format!("the token {}", t.base32()));
            Plan::new(name, detail, Change::RevokeTokens { name: name.clone(), token: *token })
        }
        Deed::Approve { .. } | Deed::Reject { .. } | Deed::Waive { .. } | Deed::Settle { .. } => {
            return Err(absent(&act.what).into());
        }
    })
}

impl From<InviteError> for ApiError {
    fn from(error: InviteError) -> Self {
        match error {
            InviteError::Db(e) => e.into(),
            InviteError::Form(e) => ActsError::Form(e).into(),
            InviteError::OtherRole { .. } => {
                Self::new(http::StatusCode::CONFLICT, "role-mismatch", error.to_string())
            }
            InviteError::NoCache(_) => Self::new(http::StatusCode::NOT_FOUND, "not-found", error.to_string()),
        }
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Db(e) => e.into(),
            TokenError::TooMany => {
                Self::new(http::StatusCode::CONFLICT, "too-many-tokens", error.to_string())
            }
            TokenError::NoSubmitter(name) => {
                let what = "submitter";
                ActsError::Absent { what, code: "identity-unknown", name: clean(&name) }.into()
            }
            TokenError::NoCache(name) => Self::not_found("cache", &name),
        }
    }
}
