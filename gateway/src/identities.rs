//! Who may do what: invites, enrolment, push tokens, signed read requests. Knows nothing of pushes' contents.

use std::sync::Mutex;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use pushgate_formats::{
    Sha256,
    acts::{ActError, check_groups, check_name, check_owner},
    api::{CLOCK_SKEW, Enrolment, SignedRequest},
    base32,
    dsse::{self, Envelope},
    keys::{KeyName, PublicKey},
};
use subtle::ConstantTimeEq;

use crate::{
    app::App,
    db::{Acted, Change, Db, DbError, EnrolledKey, GATEWAY_HOST, InviteRow, NewEvent, Redeemed, Role},
    error::ApiError,
};

/// How long an invite is good for, in seconds.
pub const INVITE_TTL: u64 = 7 * 86_400;
/// Longest validity of a signed read request, in seconds.
const REQUEST_TTL: u64 = 300;

/// What an invite is for.
#[derive(Debug, Clone)]
pub struct Invite {
    pub name: String,
    pub role: Role,
    pub owner: Option<String>,
    pub groups: Vec<String>,
    pub caches: Option<Vec<String>>,
    /// Seconds.
    pub ttl: u64,
    pub key_expires: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    #[error(transparent)]
    Form(#[from] ActError),
    #[error("`{name}` is enrolled as {role} already")]
    OtherRole { name: String, role: &'static str },
    #[error("there is no cache `{0}`")]
    NoCache(String),
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Makes an invite for a command on the gateway's host; gives the code, which is stored nowhere.
pub async fn invite(db: &dyn Db, now: u64, invite: Invite) -> Result<String, InviteError> {
    // no character that a shell or an option parser could stumble over
    let code = base32::encode(&crate::random::bytes::<20>());
    let expires = now.saturating_add(invite.ttl);
    let row = invite_row(db, now, invite, Sha256::of(code.as_bytes()), expires).await?;
    let event = NewEvent {
        subject: Some(row.name.clone()),
        detail: invite_in_words(&row),
        ..NewEvent::new(now, GATEWAY_HOST, "invite")
    };
    // 160 random bits are another's code never
    db.act(&event, None, &Change::Invite(row)).await?;
    Ok(code)
}

/// Checks an invite. For a name that is enrolled already it adds a key to it, and leaves owner and groups alone.
pub(crate) async fn invite_row(
    db: &dyn Db,
    now: u64,
    invite: Invite,
    code: Sha256,
    expires: u64,
) -> Result<InviteRow, InviteError> {
    check_name(&invite.name)?;
    invite.owner.as_deref().map_or(Ok(()), check_owner)?;
    check_groups(&invite.groups)?;
    if let Some(known) = db.keys().await?.into_iter().find(|k| k.identity_name == invite.name)
        && known.role != invite.role
    {
        return Err(InviteError::OtherRole { name: invite.name, role: known.role.as_str() });
    }
    let caches = db.caches().await?;
    for name in invite.caches.iter().flatten() {
        if !caches.iter().any(|c| c.name == *name) {
            return Err(InviteError::NoCache(crate::error::clean(name)));
        }
    }
    Ok(InviteRow {
        code,
        name: invite.name,
        role: invite.role,
        owner: invite.owner,
        groups: invite.groups,
        caches: invite.caches,
        created: now,
        expires,
        key_expires: invite.key_expires,
    })
}

/// What an invite is for, as its event says it.
pub(crate) fn invite_in_words(invite: &InviteRow) -> String {
    let mut words = format!("as {}", invite.role.as_str());
    if let Some(owner) = &invite.owner {
        words += &format!(", owner {owner}");
    }
    for (what, names) in [("groups", Some(&invite.groups)), ("caches", invite.caches.as_ref())] {
        if let Some(names) = names.filter(|names| !names.is_empty()) {
            words += &format!(", {what} {}", names.join(" "));
        }
    }
    words
}

/// Revokes a key for a command on the gateway's host. False where no such key is enrolled.
pub async fn revoke_key(db: &dyn Db, name: &KeyName, now: u64) -> Result<bool, DbError> {
    let identity = db.key_named(name).await?.map(|key| key.identity_name);
    let event = NewEvent {
        subject: identity,
        detail: format!("the key {name}"),
        ..NewEvent::new(now, GATEWAY_HOST, "revoke-key")
    };
    let acted = db.act(&event, None, &Change::RevokeKey(name.clone())).await?;
    Ok(matches!(acted, Acted::Done(_)))
}

/// Counts failed attempts at invites, over all comers: a code has 160 random bits, this only keeps the log quiet.
pub struct Attempts {
    most: u32,
    window: Mutex<(u64, u32)>,
}

impl Attempts {
    pub fn new(most: u32) -> Self {
        Self { most, window: Mutex::new((0, 0)) }
    }

    fn lock(&self, now: u64) -> std::sync::MutexGuard<'_, (u64, u32)> {
        // both numbers are set together
        let mut window = self.window.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if window.0 != now / 60 {
            *window = (now / 60, 0);
        }
        window
    }

    fn is_over(&self, now: u64) -> bool {
        self.lock(now).1 >= self.most
    }

    fn failed(&self, now: u64) {
        self.lock(now).1 += 1;
    }
}

/// Enrols a key by an invite.
pub async fn enrol(app: &App, envelope: &Envelope) -> Result<(String, Role), ApiError> {
    let now = app.clock.now();
    let malformed = |e: &dyn std::fmt::Display| ApiError::bad_request("enrolment-malformed", e.to_string());
    let payload = envelope.unverified_payload(dsse::ENROLMENT).map_err(|e| malformed(&e))?;
    let enrolment: Enrolment = serde_json::from_slice(&payload).map_err(|e| malformed(&e))?;
    let code = Sha256::of(enrolment.code.as_bytes());
    // whoever guesses is slowed down, whoever has an invite isn't kept out by him
    let exists = app.db.is_invite(&code).await?;
    if !exists && app.invites.is_over(now) {
        let mut error = ApiError::new(
            http::StatusCode::TOO_MANY_REQUESTS,
            "invite-attempts",
            "too many invites that don't exist were tried; try again in a minute",
        );
        error.retry_after = Some(60);
        return Err(error);
    }
    let key = PublicKey::parse(&enrolment.key).map_err(|e| malformed(&e))?;
    // whoever enrols a key has to have its secret half
    envelope.verify(&payload, &key).map_err(|e| ApiError::forbidden(e.to_string())).map_err(|mut e| {
        e.code = "signature-invalid".into();
        e
    })?;
    match app.db.redeem(&code, &key, now).await? {
        Redeemed::Enrolled { identity, role } => {
            tracing::info!(identity, role = role.as_str(), key = %key, "enrolled");
            app.tell_of_events();
            Ok((identity, role))
        }
        Redeemed::Invalid => {
            app.invites.failed(now);
            Err(ApiError::new(
                http::StatusCode::FORBIDDEN,
                "invite-invalid",
                "the invite doesn't exist, was used, or ran out; ask the admin for another",
            ))
        }
        Redeemed::NameTaken => Err(ApiError::new(
            http::StatusCode::CONFLICT,
            "key-name-reserved",
            format!("`{}` is the name of another key; choose another name", key.name()),
        )),
        Redeemed::KeyTaken => Err(ApiError::new(
            http::StatusCode::CONFLICT,
            "key-enrolled",
            format!("the key `{}` is enrolled already, or is a cache's", key.name()),
        )),
    }
}

/// The bearer token of a push: it can be made again by any gateway with the same database, and is stored nowhere.
pub fn push_token(secret: &[u8], push: &str) -> String {
    URL_SAFE_NO_PAD.encode(token_mac(secret, push))
}

fn token_mac(secret: &[u8], push: &str) -> Vec<u8> {
    // HMAC takes keys of any length
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret).expect("any key length is good");
    mac.update(b"pushgate push token\0");
    mac.update(push.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// Checks a push token in constant time.
pub fn is_push_token(secret: &[u8], push: &str, token: &str) -> bool {
    URL_SAFE_NO_PAD.decode(token).is_ok_and(|given| given.ct_eq(&token_mac(secret, push)).into())
}

/// Who signed a read request (`Authorization: DSSE …`).
pub async fn signed_request(
    app: &App,
    method: &str,
    path_and_query: &str,
    header: &str,
) -> Result<EnrolledKey, ApiError> {
    let bad = |why: &str| ApiError::new(http::StatusCode::UNAUTHORIZED, "request-signature-invalid", why);
    let raw = base64::engine::general_purpose::STANDARD
        .decode(header)
        .map_err(|_| bad("the signed request is not base 64"))?;
    let envelope: Envelope =
        serde_json::from_slice(&raw).map_err(|_| bad("the signed request is no DSSE envelope"))?;
    let payload = envelope.unverified_payload(dsse::REQUEST).map_err(|e| bad(&e.to_string()))?;
    let request: SignedRequest =
        serde_json::from_slice(&payload).map_err(|_| bad("the signed request can't be read"))?;
    let keyid = envelope.only_signature().map_err(|e| bad(&e.to_string()))?.keyid.clone();
    let key = match KeyName::new(&keyid) {
        Ok(name) => app.db.key_named(&name).await?,
        Err(_) => None,
    };
    let key = key.ok_or_else(|| {
        ApiError::new(
            http::StatusCode::UNAUTHORIZED,
            "key-unknown",
            format!("no enrolled key has the name `{}`", crate::error::clean(&keyid)),
        )
    })?;
    envelope.verify(&payload, &key.key).map_err(|e| bad(&e.to_string()))?;
    let now = app.clock.now();
    if key.revoked.is_some() {
        return Err(ApiError::new(
            http::StatusCode::FORBIDDEN,
            "key-revoked",
            format!("the key `{}` was revoked", key.key.name()),
        ));
    }
    if key.expires.is_some_and(|e| e <= now) {
        return Err(ApiError::new(
            http::StatusCode::FORBIDDEN,
            "key-expired",
            format!("the key `{}` has expired", key.key.name()),
        ));
    }
    if request.gateway != app.gateway_id {
        return Err(ApiError::new(
            http::StatusCode::FORBIDDEN,
            "audience-mismatch",
            "the signed request is for another gateway",
        ));
    }
    if request.method != method || request.path != path_and_query {
        return Err(bad("the signed request is for another method or path"));
    }
    let in_time = request.issued <= now.saturating_add(CLOCK_SKEW)
        && request.expires > now
        && request.expires.saturating_sub(request.issued) <= REQUEST_TTL;
    if !in_time {
        return Err(bad("the signed request is not valid now: is the submitter's clock right?"));
    }
    Ok(key)
}
