//! What people decide, signed by a key of their own: who may come in, who is stopped, which claims stand. Plain data and
//! its form; who may decide what, and what comes of it, is the gateway's business.
//!
//! No secret is in an act. Whoever invites somebody, or makes a token, draws it and sends its sha256: so an act can be kept
//! as evidence and sent twice, and neither the gateway's answer nor its database lets anyone in.

#[cfg(test)]
mod tests;
mod views;

use serde::{Deserialize, Serialize};

use crate::{
    api::{MAX_VALIDITY, Role},
    hash::Sha256,
    keys::KeyName,
    store_path::{StorePath, shown},
};

pub use views::{ActDone, Event, Events, IdentityInfo, KeyInfo, TokenInfo};

/// Longest reason, in bytes.
pub const MAX_REASON: usize = 2000;
/// Most groups of one identity.
pub const MAX_GROUPS: usize = 100;
/// Most caches that one key is bound to.
pub const MAX_CACHES: usize = 100;
/// Largest envelope of an act, in bytes.
pub const MAX_ACT: usize = 64 << 10;
/// How long an old key stays good after a rotation, unless it is said otherwise: 7 days, in seconds.
pub const ROTATION_GRACE: u64 = 7 * 86_400;

/// What somebody decides: the payload of a DSSE envelope of type [`crate::dsse::ACT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Act {
    /// Always 1.
    pub version: u32,
    /// The gateway's random id, pinned at join.
    pub gateway: String,
    /// 16 to 64 hexadecimal digits, used once per key.
    pub nonce: String,
    /// Seconds since 1970, UTC.
    pub issued: u64,
    /// Seconds since 1970, UTC; at most [`MAX_VALIDITY`] after `issued`.
    pub expires: u64,
    /// Why, in the person's words: up to [`MAX_REASON`] bytes. Empty only where [`Deed::needs_reason`] says so.
    pub reason: String,
    /// What is decided.
    pub what: Deed,
}

/// The kinds of acts. Times are seconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Deed {
    /// Lets somebody enrol one key. For a name that is known, the key is added to it.
    Invite {
        name: String,
        role: Role,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        groups: Vec<String>,
        /// Absent: every cache.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        caches: Option<Vec<String>>,
        /// sha256 of the one-time code.
        code: Sha256,
        /// Until when the code is good.
        code_expires: u64,
        /// Until when the key will be good; absent: until it is revoked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_expires: Option<u64>,
    },
    /// Sets all groups of an identity.
    Groups {
        name: String,
        groups: Vec<String>,
    },
    /// Says who stands behind an identity; without an owner it vouches for nobody.
    Owner {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
    },
    /// Stops an identity until it is let go again: what it has pushed and isn't published is held.
    Freeze {
        name: String,
    },
    Unfreeze {
        name: String,
    },
    /// Ends a key for good, and all tokens of its identity.
    RevokeKey {
        key: KeyName,
    },
    /// Lets the identity of a key enrol another one, and has the old one run out.
    Rotate {
        key: KeyName,
        /// sha256 of the one-time code for the new key.
        code: Sha256,
        /// Until when the code is good.
        code_expires: u64,
        /// Until when the old key stays good; an earlier end of it stays as it is.
        old_expires: u64,
        /// Until when the new key will be good; absent: until it is revoked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_expires: Option<u64>,
    },
    /// Makes a token with which stock Nix pushes for a submitter.
    MakeToken {
        name: String,
        cache: String,
        /// sha256 of the token.
        token: Sha256,
        /// Until when it is good; absent: until it is revoked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_expires: Option<u64>,
    },
    /// Ends one token of a submitter, or all.
    RevokeToken {
        name: String,
        /// sha256 of the token; absent: all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<Sha256>,
    },
    /// Says yes to a claim.
    Approve {
        cache: String,
        path: StorePath,
        nar_hash: Sha256,
        /// When it stops to count; absent: never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<u64>,
    },
    /// Says no to a claim.
    Reject {
        cache: String,
        path: StorePath,
        nar_hash: Sha256,
        /// When it stops to count; absent: never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<u64>,
    },
    /// Lets a claim do without something that the policy asks for.
    Waive {
        cache: String,
        path: StorePath,
        nar_hash: Sha256,
        /// When it stops to count; absent: never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<u64>,
        /// Always `rebuilds`.
        waives: String,
    },
    /// Says which of several contents of a path stands.
    Settle {
        cache: String,
        path: StorePath,
        /// That of the contents that stand.
        nar_hash: Sha256,
    },
}

impl Deed {
    /// The word for the kind, as in JSON.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Invite { .. } => "invite",
            Self::Groups { .. } => "groups",
            Self::Owner { .. } => "owner",
            Self::Freeze { .. } => "freeze",
            Self::Unfreeze { .. } => "unfreeze",
            Self::RevokeKey { .. } => "revoke-key",
            Self::Rotate { .. } => "rotate",
            Self::MakeToken { .. } => "make-token",
            Self::RevokeToken { .. } => "revoke-token",
            Self::Approve { .. } => "approve",
            Self::Reject { .. } => "reject",
            Self::Waive { .. } => "waive",
            Self::Settle { .. } => "settle",
        }
    }

    /// Whether a person has to say why: those after him have to be able to judge it.
    pub const fn needs_reason(&self) -> bool {
        match self {
            Self::Owner { .. }
            | Self::Freeze { .. }
            | Self::RevokeKey { .. }
            | Self::Approve { .. }
            | Self::Reject { .. }
            | Self::Waive { .. }
            | Self::Settle { .. } => true,
            Self::Invite { .. }
            | Self::Groups { .. }
            | Self::Unfreeze { .. }
            | Self::Rotate { .. }
            | Self::MakeToken { .. }
            | Self::RevokeToken { .. } => false,
        }
    }

    /// The cache, path and contents that it is about, if it is about a claim.
    pub const fn claim(&self) -> Option<(&String, &StorePath, Sha256)> {
        match self {
            Self::Approve { cache, path, nar_hash, .. }
            | Self::Reject { cache, path, nar_hash, .. }
            | Self::Waive { cache, path, nar_hash, .. }
            | Self::Settle { cache, path, nar_hash } => Some((cache, path, *nar_hash)),
            _ => None,
        }
    }
}

/// Why an act has not the right form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActError {
    #[error("the act is not what the protocol describes: {0}")]
    Malformed(String),
    #[error("the act `{0}` needs a reason: say why")]
    ReasonMissing(&'static str),
    #[error("the reason has {0} bytes; {MAX_REASON} are allowed")]
    ReasonTooLong(usize),
    #[error("`{0}` can't be a name: 1 to 100 of the characters a-z, A-Z, 0-9, `.`, `_`, `+`, `-`")]
    Name(String),
    #[error("`{0}` can't be an owner: 1 to 100 of the characters a-z, A-Z, 0-9, `.`, `_`, `+`, `-`, `@`")]
    Owner(String),
    #[error(
        "`{0}` can't be a group: 1 to 100 of the characters a-z, A-Z, 0-9, `.`, `_`, `+`, `-`, without `@`"
    )]
    Group(String),
    #[error("{found} {what}; {most} are allowed")]
    TooMany { what: &'static str, found: usize, most: usize },
}

impl ActError {
    /// Stable.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::TooMany { .. } => "act-malformed",
            Self::ReasonMissing(_) => "reason-missing",
            Self::ReasonTooLong(_) => "reason-too-long",
            Self::Name(_) => "name-invalid",
            Self::Owner(_) => "owner-invalid",
            Self::Group(_) => "group-invalid",
        }
    }
}

/// Checks the name of an identity.
pub fn check_name(name: &str) -> Result<(), ActError> {
    KeyName::new(name).map(drop).map_err(|_| ActError::Name(shown(name.as_bytes())))
}

/// Checks who is to stand behind an identity. ASCII alone: two owners that look alike would count as two.
pub fn check_owner(owner: &str) -> Result<(), ActError> {
    // as a name, but for the `@` of a mail address
    let good = owner.len() <= 100 && KeyName::new(&owner.replace('@', "-")).is_ok();
    if good { Ok(()) } else { Err(ActError::Owner(shown(owner.as_bytes()))) }
}

/// Checks groups; in policy files they are written with an `@` before their name.
pub fn check_groups(groups: &[String]) -> Result<(), ActError> {
    most("groups", groups.len(), MAX_GROUPS)?;
    let bad = groups.iter().find(|group| KeyName::new(group).is_err());
    bad.map_or(Ok(()), |group| Err(ActError::Group(shown(group.as_bytes()))))
}

const fn most(what: &'static str, found: usize, most: usize) -> Result<(), ActError> {
    if found <= most { Ok(()) } else { Err(ActError::TooMany { what, found, most }) }
}

/// The parser's words, which may repeat any of the input's.
fn malformed(error: serde_json::Error) -> ActError {
    ActError::Malformed(shown(error.to_string().as_bytes()))
}

impl Act {
    /// Reads a payload and checks its form. Whether it is in time and meant for this gateway, and by whom, isn't looked at.
    pub fn parse(payload: &[u8]) -> Result<Self, ActError> {
        let act: Self = serde_json::from_slice(payload).map_err(malformed)?;
        act.check()?;
        Ok(act)
    }

    fn check(&self) -> Result<(), ActError> {
        let malformed = |why: String| Err(ActError::Malformed(why));
        if self.version != 1 {
            return malformed(format!("version `{}` is not known", self.version));
        }
        if !(16..=64).contains(&self.nonce.len()) || !self.nonce.bytes().all(|b| b.is_ascii_hexdigit()) {
            return malformed("the nonce is not 16 to 64 hexadecimal digits".into());
        }
        if self.expires.saturating_sub(self.issued) > MAX_VALIDITY {
            let valid = self.expires - self.issued;
            return malformed(format!("it is valid for {valid} seconds; {MAX_VALIDITY} are allowed"));
        }
        if self.reason.len() > MAX_REASON {
            return Err(ActError::ReasonTooLong(self.reason.len()));
        }
        if self.reason.trim().is_empty() && self.what.needs_reason() {
            return Err(ActError::ReasonMissing(self.what.kind()));
        }
        match &self.what {
            Deed::Invite { name, owner, groups, caches, .. } => {
                check_name(name)?;
                owner.as_deref().map_or(Ok(()), check_owner)?;
                check_groups(groups)?;
                most("caches", caches.as_ref().map_or(0, Vec::len), MAX_CACHES)
            }
            Deed::Groups { name, groups } => check_name(name).and_then(|()| check_groups(groups)),
            Deed::Owner { name, owner } => {
                check_name(name)?;
                owner.as_deref().map_or(Ok(()), check_owner)
            }
            Deed::Freeze { name }
            | Deed::Unfreeze { name }
            | Deed::MakeToken { name, .. }
            | Deed::RevokeToken { name, .. } => check_name(name),
            Deed::Waive { waives, .. } if waives != "rebuilds" => {
                malformed(format!("`{}` can't be waived; `rebuilds` can", shown(waives.as_bytes())))
            }
            Deed::RevokeKey { .. }
            | Deed::Rotate { .. }
            | Deed::Approve { .. }
            | Deed::Reject { .. }
            | Deed::Waive { .. }
            | Deed::Settle { .. } => Ok(()),
        }
    }
}
