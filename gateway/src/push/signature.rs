//! Stage 2: who says so? The submitter's key, the audience, the validity, and a signature over each path's fingerprint.
//! Knows nothing of contents.

use std::sync::Arc;

use pushgate_formats::{
    Sha256, StorePath, api,
    keys::{KeyError, KeyName, PublicKey, Signature},
    narinfo::{UnverifiedNarInfo, fingerprint},
};

use super::announce::{Announcement, Claim, Sealed};
use crate::db::{Db, DbError, EnrolledKey, Role};

#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    #[error("no enrolled key has the name `{0}`; join the gateway first")]
    KeyUnknown(String),
    #[error("the signature by `{0}` does not fit the announcement")]
    Invalid(String),
    #[error("`{path}` has no signature by a key of `{submitter}`{others}; only the submitter's own counts")]
    Missing { path: StorePath, submitter: String, others: String },
    #[error("the signature over `{path}` does not fit: it is not by `{key}`, or not over what is announced")]
    Fingerprint { path: StorePath, key: KeyName },
    #[error("the key `{0}` was revoked")]
    Revoked(KeyName),
    #[error("the key `{key}` expired {ago} seconds ago")]
    Expired { key: KeyName, ago: u64 },
    #[error("the key `{key}` is not for the cache `{cache}`")]
    NotForCache { key: KeyName, cache: String },
    #[error("`{0}` is frozen by an admin")]
    Frozen(String),
    #[error("`{name}` is a {role}, not a submitter")]
    Role { name: String, role: &'static str },
    #[error("the announcement is for the {what} `{found}`, this is `{here}`")]
    Audience { what: &'static str, found: String, here: String },
    #[error(
        "the announcement ended {ago} seconds ago (issued {issued}, it is {now}): is the submitter's clock right?"
    )]
    Stale { ago: u64, issued: u64, now: u64 },
    #[error("the announcement was issued {ahead} seconds in the future: the submitter's clock is ahead")]
    Future { ahead: u64 },
    #[error("the announcement is valid for {0} seconds; {most} are allowed", most = api::MAX_VALIDITY)]
    TooLong(u64),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl SignatureError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::KeyUnknown(_) => "key-unknown",
            Self::Missing { .. } => "signature-missing",
            Self::Invalid(_) | Self::Fingerprint { .. } => "signature-invalid",
            Self::Revoked(_) => "key-revoked",
            Self::Expired { .. } => "key-expired",
            Self::NotForCache { .. } => "key-not-for-cache",
            Self::Frozen(_) => "identity-frozen",
            Self::Role { .. } => "forbidden",
            Self::Audience { .. } => "audience-mismatch",
            Self::Stale { .. } => "announcement-expired",
            Self::Future { .. } => "announcement-from-future",
            Self::TooLong(_) => "announcement-malformed",
            Self::Db(_) => "unavailable",
        }
    }
}

/// Proof that an enrolled submitter's key signed this claim, for this cache. Carries the claim, so that later stages
/// take it from nowhere else.
#[derive(Debug, Clone)]
pub struct SignatureValid {
    claim: Arc<Claim>,
    key: PublicKey,
}

impl SignatureValid {
    pub fn claim(&self) -> &Arc<Claim> {
        &self.claim
    }
    pub fn path(&self) -> &StorePath {
        &self.claim.path
    }
    pub fn nar_hash(&self) -> Sha256 {
        self.claim.nar_hash
    }
    /// The submitter's signature over the Nix fingerprint, under its key's enrolled name.
    pub fn signature(&self) -> Signature {
        Signature { name: self.key.name().clone(), bytes: self.claim.signature.bytes }
    }
    pub const fn key(&self) -> &PublicKey {
        &self.key
    }
}

/// The enrolled key that an envelope names. Names are not searched through.
pub async fn signer(db: &dyn Db, keyid: &str) -> Result<EnrolledKey, SignatureError> {
    let unknown =
        || SignatureError::KeyUnknown(keyid.chars().take(100).flat_map(char::escape_debug).collect());
    let name = KeyName::new(keyid).map_err(|_| unknown())?;
    db.key_named(&name).await?.ok_or_else(unknown)
}

/// Checks a new announcement that [`verify`] found to be by `key`: the signature goes first, so that nothing is told to
/// those who can't sign.
pub fn check(
    key: &EnrolledKey,
    gateway: &str,
    cache: &str,
    now: u64,
    announcement: &Announcement,
) -> Result<(), SignatureError> {
    may_push(key, cache, now)?;
    let audience = announcement.audience();
    for (what, found, here) in [("gateway", &audience.gateway, gateway), ("cache", &audience.cache, cache)] {
        if found != here {
            let found = found.chars().take(100).flat_map(char::escape_debug).collect();
            return Err(SignatureError::Audience { what, found, here: here.to_owned() });
        }
    }
    let (issued, expires) = (announcement.issued(), announcement.expires());
    if issued > now.saturating_add(api::CLOCK_SKEW) {
        return Err(SignatureError::Future { ahead: issued - now });
    }
    if expires <= now {
        return Err(SignatureError::Stale { ago: now - expires, issued, now });
    }
    if expires.saturating_sub(issued) > api::MAX_VALIDITY {
        return Err(SignatureError::TooLong(expires - issued));
    }
    Ok(())
}

/// Whether a key may push to a cache now. Asked at the announcement, at each upload, and again before publishing, so
/// that a revocation takes effect at once.
pub fn may_push(key: &EnrolledKey, cache: &str, now: u64) -> Result<(), SignatureError> {
    let name = || key.key.name().clone();
    if key.revoked.is_some() {
        return Err(SignatureError::Revoked(name()));
    }
    if let Some(expires) = key.expires.filter(|e| *e <= now) {
        return Err(SignatureError::Expired { key: name(), ago: now - expires });
    }
    if key.frozen {
        return Err(SignatureError::Frozen(key.identity_name.clone()));
    }
    if key.role != Role::Submitter {
        return Err(SignatureError::Role { name: key.identity_name.clone(), role: key.role.as_str() });
    }
    if key.caches.as_ref().is_some_and(|caches| !caches.iter().any(|c| c == cache)) {
        return Err(SignatureError::NotForCache { key: name(), cache: cache.to_owned() });
    }
    Ok(())
}

/// Checks the envelope's signature alone, over the payload's bytes: what comes before the payload is parsed.
pub fn verify_envelope(sealed: &Sealed, key: &PublicKey) -> Result<(), SignatureError> {
    sealed.verify(key).map_err(|_| SignatureError::Invalid(key.name().to_string()))
}

/// Checks the envelope's signature and those over the fingerprints; what both a new announcement and one read back from
/// the database go through.
pub fn verify(announcement: &Announcement, key: &PublicKey) -> Result<Vec<SignatureValid>, SignatureError> {
    verify_envelope(announcement.sealed(), key)?;
    let claims = announcement.claims();
    let prints: Vec<String> =
        claims.iter().map(|c| fingerprint(&c.path, &c.nar_hash, c.nar_size, &c.references)).collect();
    let messages: Vec<&[u8]> = prints.iter().map(String::as_bytes).collect();
    let signatures: Vec<Signature> = claims.iter().map(|c| c.signature.clone()).collect();
    key.verify_many(&messages, &signatures)
        .map_err(|i| SignatureError::Fingerprint { path: claims[i].path.clone(), key: key.name().clone() })?;
    Ok(claims.iter().map(|c| SignatureValid { claim: Arc::new(c.clone()), key: key.clone() }).collect())
}

/// Picks, of the signatures of a narinfo, the first that names a key of this submitter which may push. Those of others
/// count for nothing: anybody could have copied them.
pub async fn own_signature(
    db: &dyn Db,
    identity: (i64, &str),
    cache: &str,
    now: u64,
    info: &UnverifiedNarInfo,
) -> Result<(EnrolledKey, Signature), SignatureError> {
    let mut bad = None;
    let mut others = Vec::new();
    for signature in &info.signatures {
        match db.key_named(&signature.name).await? {
            Some(key) if key.identity == identity.0 => match may_push(&key, cache, now) {
                Ok(()) => return Ok((key, signature.clone())),
                Err(e) => bad = bad.or(Some(e)),
            },
            _ => others.push(format!("`{}`", signature.name)),
        }
    }
    let others = match others.len() {
        0 => String::new(),
        _ => format!(" (there are some by {})", others.join(", ")),
    };
    let missing =
        || SignatureError::Missing { path: info.path.clone(), submitter: identity.1.to_owned(), others };
    Err(bad.unwrap_or_else(missing))
}

/// Checks one claim's signature over its fingerprint; what both a new narinfo and one read back from the database go
/// through.
pub fn verify_claim(claim: Claim, key: &PublicKey) -> Result<SignatureValid, SignatureError> {
    let print = fingerprint(&claim.path, &claim.nar_hash, claim.nar_size, &claim.references);
    key.verify(print.as_bytes(), &claim.signature)
        .map_err(|_| SignatureError::Fingerprint { path: claim.path.clone(), key: key.name().clone() })?;
    Ok(SignatureValid { claim: Arc::new(claim), key: key.clone() })
}

impl From<KeyError> for SignatureError {
    fn from(error: KeyError) -> Self {
        Self::Invalid(error.to_string())
    }
}
