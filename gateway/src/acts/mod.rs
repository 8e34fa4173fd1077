//! Acts: what people decide, signed by a key of their own. Here an act is read, its signature, audience and time are
//! checked, and it goes to whoever carries its kind out. Knows nothing of what an act changes.
//!
//! An act is recorded as an event in the same transaction as what it changes, and the same envelope sent again is answered
//! as at first.

pub mod claims;
mod identities;

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use pushgate_formats::{
    Sha256,
    acts::{Act, ActDone, ActError, Deed},
    api::CLOCK_SKEW,
    dsse::{self, DsseError, Envelope},
    keys::KeyName,
};
use serde_json::Value;

use crate::{
    app::App,
    db::{Acted, Change, DbError, EnrolledKey, GATEWAY_HOST, NewEvent, Role, SignedAct},
    error::{ApiError, clean},
    push::recover,
};

/// How often events are looked for that commands on the gateway's host wrote.
const LOOK: Duration = Duration::from_secs(2);

/// Why an act is not taken up.
#[derive(Debug, thiserror::Error)]
pub enum ActsError {
    #[error("no DSSE envelope of an act: {0}")]
    Envelope(String),
    #[error("the envelope carries no signature")]
    Unsigned,
    #[error("no enrolled key has the name `{0}`; join the gateway first")]
    KeyUnknown(String),
    #[error("the signature by `{0}` does not fit the act")]
    Signature(KeyName),
    #[error("the key `{0}` was revoked")]
    Revoked(KeyName),
    #[error("the key `{0}` has expired")]
    Expired(KeyName),
    #[error("`{0}` is frozen by an admin")]
    Frozen(String),
    #[error("the key `{0}` was revoked, or its identity frozen, at the same time")]
    Barred(KeyName),
    #[error("the act is for the gateway `{found}`, this is `{here}`")]
    Audience { found: String, here: String },
    #[error("the act ended {ago} seconds ago (issued {issued}, it is {now}): is the sender's clock right?")]
    Stale { ago: u64, issued: u64, now: u64 },
    #[error("the act was issued {ahead} seconds in the future: the sender's clock is ahead")]
    Future { ahead: u64 },
    #[error("the nonce `{nonce}` was used for another act by `{key}`")]
    NonceUsed { nonce: String, key: KeyName },
    #[error("`{name}` is a {role}, not an admin")]
    NotAdmin { name: String, role: &'static str },
    #[error("there is no {what} `{name}`")]
    Absent { what: &'static str, code: &'static str, name: String },
    #[error("no admin would be left who can act; enrol another key of an admin first")]
    LastAdmin,
    #[error("an invite or token with this hash exists already; draw another code")]
    CodeUsed,
    #[error("`{0}` has 100 good tokens already; revoke some first")]
    TooManyTokens(String),
    #[error("`{0}` has said this of these contents 16 times already, and what was said is kept")]
    TooManyWords(String),
    #[error(transparent)]
    Form(#[from] ActError),
}

impl ActsError {
    /// Stable.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Envelope(_) => "act-malformed",
            Self::Unsigned => "signature-missing",
            Self::KeyUnknown(_) => "key-unknown",
            Self::Signature(_) => "signature-invalid",
            Self::Revoked(_) => "key-revoked",
            Self::Expired(_) => "key-expired",
            Self::Frozen(_) => "identity-frozen",
            Self::Audience { .. } => "audience-mismatch",
            Self::Stale { .. } => "act-expired",
            Self::Future { .. } => "act-from-future",
            Self::NonceUsed { .. } => "nonce-reused",
            Self::NotAdmin { .. } | Self::Barred(_) => "forbidden",
            Self::Absent { code, .. } => code,
            Self::LastAdmin => "last-admin",
            Self::CodeUsed => "code-used",
            Self::TooManyTokens(_) => "too-many-tokens",
            Self::TooManyWords(_) => "too-many-words",
            Self::Form(e) => e.code(),
        }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Envelope(_) | Self::Unsigned | Self::Form(_) => StatusCode::BAD_REQUEST,
            Self::Absent { .. } => StatusCode::NOT_FOUND,
            Self::NonceUsed { .. }
            | Self::LastAdmin
            | Self::CodeUsed
            | Self::TooManyTokens(_)
            | Self::TooManyWords(_) => StatusCode::CONFLICT,
            _ => StatusCode::FORBIDDEN,
        }
    }
}

impl From<ActsError> for ApiError {
    fn from(error: ActsError) -> Self {
        Self::new(error.status(), error.code(), error.to_string())
    }
}

/// Takes an act, by the JSON of its envelope.
pub async fn take(app: &Arc<App>, raw: &[u8]) -> Result<Value, ApiError> {
    let (key, act) = verify(app, raw).await?;
    // the same envelope again, also after its time: whoever lost the answer gets it, and nothing is done twice
    if let Some(done) = app.db.act_by_digest(&Sha256::of(raw)).await? {
        return Ok(answer(done));
    }
    in_time(&act, app.clock.now())?;
    let kind = act.what.kind();
    let done = if act.what.claim().is_some() {
        claims::act(app, &key, &act, raw).await?
    } else {
        may_administer(&key)?;
        answer(identities::act(app, &key, &act, raw).await?)
    };
    tracing::info!(by = key.identity_name, kind, reason = clean(&act.reason), "act");
    Ok(done)
}

/// Whose act it is, and what it says. The signature goes first, so that nothing is told to those who can't sign.
async fn verify(app: &App, raw: &[u8]) -> Result<(EnrolledKey, Act), ApiError> {
    let unusable = |e: &dyn std::fmt::Display| ActsError::Envelope(clean(&e.to_string()));
    let envelope: Envelope = serde_json::from_slice(raw).map_err(|e| unusable(&e))?;
    let payload = envelope.unverified_payload(dsse::ACT).map_err(|e| unusable(&e))?;
    let signature = envelope.only_signature().map_err(|e| match e {
        DsseError::Unsigned => ActsError::Unsigned,
        e => unusable(&e),
    })?;
    let key = match KeyName::new(&signature.keyid) {
        Ok(name) => app.db.key_named(&name).await?,
        Err(_) => None,
    };
    let key = key.ok_or_else(|| ActsError::KeyUnknown(clean(&signature.keyid)))?;
    let name = || key.key.name().clone();
    envelope.verify(&payload, &key.key).map_err(|_| ActsError::Signature(name()))?;
    if key.revoked.is_some() {
        return Err(ActsError::Revoked(name()).into());
    }
    if key.expires.is_some_and(|e| e <= app.clock.now()) {
        return Err(ActsError::Expired(name()).into());
    }
    may_act(&key)?;
    let act = Act::parse(&payload).map_err(ActsError::Form)?;
    if act.gateway != app.gateway_id {
        let (found, here) = (clean(&act.gateway), app.gateway_id.clone());
        return Err(ActsError::Audience { found, here }.into());
    }
    Ok((key, act))
}

fn may_act(key: &EnrolledKey) -> Result<(), ActsError> {
    if key.frozen { Err(ActsError::Frozen(key.identity_name.clone())) } else { Ok(()) }
}

/// Whether a good key's identity may do what only admins may.
pub fn may_administer(key: &EnrolledKey) -> Result<(), ActsError> {
    may_act(key)?;
    if key.role == Role::Admin {
        Ok(())
    } else {
        Err(ActsError::NotAdmin { name: key.identity_name.clone(), role: key.role.as_str() })
    }
}

fn in_time(act: &Act, now: u64) -> Result<(), ActsError> {
    if act.issued > now.saturating_add(CLOCK_SKEW) {
        return Err(ActsError::Future { ahead: act.issued - now });
    }
    if act.expires <= now {
        return Err(ActsError::Stale { ago: now - act.expires, issued: act.issued, now });
    }
    Ok(())
}

fn answer(done: ActDone) -> Value {
    // two numbers
    serde_json::to_value(done).unwrap_or_default()
}

/// The event of an act, to which its carrier adds what it knows: whom it is done to, and what exactly.
pub fn event(app: &App, key: &EnrolledKey, act: &Act, envelope: &[u8]) -> NewEvent {
    let claim = act.what.claim();
    NewEvent {
        key: Some(key.key.name().clone()),
        cache: claim.map(|(cache, _, _)| cache.clone()),
        path: claim.map(|(_, path, _)| path.clone()),
        nar_hash: claim.map(|(_, _, hash)| hash),
        why: act.reason.clone(),
        envelope: Some(envelope.to_vec()),
        ..NewEvent::new(app.clock.now(), &key.identity_name, act.what.kind())
    }
}

/// Records an act with its event and carries its change out, all in one transaction. The same envelope at the same time is
/// carried out once, and answered twice.
pub async fn record(
    app: &App,
    key: &EnrolledKey,
    act: &Act,
    event: &NewEvent,
    change: &Change,
) -> Result<ActDone, ApiError> {
    let envelope = event.envelope.as_deref().unwrap_or_default();
    let nonce = act.nonce.to_ascii_lowercase();
    let signed = SignedAct { digest: Sha256::of(envelope), key: key.key.clone(), nonce: nonce.clone() };
    let refused = match app.db.act(event, Some(&signed), change).await? {
        Acted::Done(done) => {
            app.tell_of_events();
            return Ok(done);
        }
        Acted::Known(done) => return Ok(done),
        Acted::NonceUsed => ActsError::NonceUsed { nonce, key: key.key.name().clone() },
        Acted::Barred => ActsError::Barred(key.key.name().clone()),
        Acted::Absent => absent(&act.what),
        Acted::LastAdmin => ActsError::LastAdmin,
        Acted::CodeUsed => ActsError::CodeUsed,
        Acted::TooManyWords => ActsError::TooManyWords(key.identity_name.clone()),
        Acted::TooManyTokens => ActsError::TooManyTokens(event.subject.clone().unwrap_or_default()),
    };
    Err(refused.into())
}

/// Says that what an act is done to isn't there.
fn absent(what: &Deed) -> ActsError {
    let missing = |what, code, name: &str| ActsError::Absent { what, code, name: clean(name) };
    match what {
        Deed::RevokeKey { key } | Deed::Rotate { key, .. } => {
            missing("enrolled key that is good with the name", "not-found", key.as_str())
        }
        Deed::RevokeToken { token: Some(token), .. } => {
            missing("token of this submitter with the hash", "not-found", &token.to_string())
        }
        Deed::Groups { name, .. }
        | Deed::Owner { name, .. }
        | Deed::Freeze { name }
        | Deed::Unfreeze { name }
        | Deed::MakeToken { name, .. }
        | Deed::RevokeToken { name, .. } => missing("identity", "identity-unknown", name),
        _ => missing("such", "not-found", what.kind()),
    }
}

/// Looks for events that commands on the gateway's host wrote, which is another process: tells those who wait for events,
/// and has the pushes of those concerned judged again.
pub async fn follow_host(app: Arc<App>) {
    let mut stopping = app.stopping.subscribe();
    tokio::select! {
        () = recover::stopped(&mut stopping) => {}
        () = follow(&app) => {}
    }
}

async fn follow(app: &App) {
    let mut last = None;
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(e) = look(app, &mut last).await {
            tracing::debug!(error = &e as &dyn std::error::Error, "events can't be read");
        }
    }
}

async fn look(app: &App, last: &mut Option<u64>) -> Result<(), DbError> {
    let Some(after) = *last else {
        // what happened before the start, the start has looked at
        *last = Some(app.db.events(None, None, 1).await?.last().map_or(0, |e| e.id));
        return Ok(());
    };
    let events = app.db.events(Some(after), None, 100).await?;
    let Some(newest) = events.last() else { return Ok(()) };
    *last = Some(newest.id);
    app.tell_of_events();
    for event in events.into_iter().map(|row| row.event) {
        if event.who == GATEWAY_HOST
            && let Some(identity) = &event.subject
        {
            app.report_pushes_of(identity).await;
        }
    }
    Ok(())
}
