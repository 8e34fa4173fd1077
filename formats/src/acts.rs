//! What people decide, signed by a key of their own: who may come in, who is stopped, which claims stand. Plain data and
//! its form; who may decide what, and what comes of it, is the gateway's business.
//!
//! No secret is in an act. Whoever invites somebody, or makes a token, draws it and sends its sha256: so an act can be kept
//! as evidence and sent twice, and neither the gateway's answer nor its database lets anyone in.

use serde::{Deserialize, Serialize};

use crate::{
    api::{MAX_VALIDITY, Role},
    hash::Sha256,
    keys::KeyName,
    store_path::{StorePath, shown},
};

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

/// The answer to an act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActDone {
    /// The event that records it.
    pub event: u64,
    /// How many keys, tokens or identities it changed; 0 where all was so already.
    pub changed: u64,
}

/// Something that happened and stays on record (`GET /api/v1/admin/events`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Grows with each event; numbers may be left out.
    pub id: u64,
    /// Seconds since 1970, UTC.
    pub time: u64,
    /// An identity's name; `gateway`, or `gateway host` for a command that was run there.
    pub who: String,
    /// The name of the key that signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// [`Deed::kind`], `enrolled`, or another word.
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<StorePath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nar_hash: Option<Sha256>,
    /// The identity or key that it was done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What exactly, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The person's reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// A page of events, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Events {
    pub events: Vec<Event>,
}

/// An identity, as an admin sees it (`GET /api/v1/admin/identities`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityInfo {
    pub name: String,
    pub role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    pub groups: Vec<String>,
    pub frozen: bool,
    /// Seconds since 1970, UTC.
    pub created: u64,
    pub keys: Vec<KeyInfo>,
    /// Tokens that are good.
    pub tokens: u64,
    /// Seconds since 1970, UTC; absent where it never pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_push: Option<u64>,
}

/// An enrolled key. Times are seconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyInfo {
    /// `NAME:base64`.
    pub key: String,
    /// Absent: every cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caches: Option<Vec<String>>,
    pub created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
}

/// A token for stock Nix (`GET /api/v1/admin/tokens`). Times are seconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenInfo {
    /// sha256 of the token.
    pub token: Sha256,
    /// The submitter's name.
    pub name: String,
    pub cache: String,
    pub created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn act(what: &str, reason: &str) -> String {
        let nonce = "ab".repeat(16);
        format!(
            r#"{{"version":1,"gateway":"5f","nonce":"{nonce}","issued":1000,"expires":1600,"reason":"{reason}","what":{what}}}"#
        )
    }

    fn path() -> String {
        StorePath::from_digest(&[1; 20], "hello-2.12").unwrap().to_string()
    }

    #[test]
    fn every_kind_reads_as_it_prints() {
        let (hash, path) = (Sha256::of(b"x"), StorePath::from_digest(&[1; 20], "hello-2.12").unwrap());
        let (name, cache, key) = ("alice".to_owned(), "main".to_owned(), KeyName::new("alice-1").unwrap());
        let all = [
            Deed::Invite {
                name: name.clone(),
                role: Role::Admin,
                owner: Some("a@example.org".into()),
                groups: vec!["core".into()],
                caches: Some(vec![cache.clone()]),
                code: hash,
                code_expires: 7,
                key_expires: Some(8),
            },
            Deed::Groups { name: name.clone(), groups: vec![] },
            Deed::Owner { name: name.clone(), owner: None },
            Deed::Freeze { name: name.clone() },
            Deed::Unfreeze { name: name.clone() },
            Deed::RevokeKey { key: key.clone() },
            Deed::Rotate { key, code: hash, code_expires: 7, old_expires: 8, key_expires: None },
            Deed::MakeToken { name: name.clone(), cache: cache.clone(), token: hash, token_expires: None },
            Deed::RevokeToken { name, token: Some(hash) },
            Deed::Approve { cache: cache.clone(), path: path.clone(), nar_hash: hash, until: Some(9) },
            Deed::Reject { cache: cache.clone(), path: path.clone(), nar_hash: hash, until: None },
            Deed::Waive {
                cache: cache.clone(),
                path: path.clone(),
                nar_hash: hash,
                until: Some(9),
                waives: "rebuilds".into(),
            },
            Deed::Settle { cache, path, nar_hash: hash },
        ];
        for what in all {
            let act = Act {
                version: 1,
                gateway: "5f".into(),
                nonce: "0".repeat(32),
                issued: 1,
                expires: 2,
                reason: "because".into(),
                what,
            };
            let text = serde_json::to_string(&act).unwrap();
            assert!(text.contains(&format!(r#""act":"{}""#, act.what.kind())), "{text}");
            assert_eq!(Act::parse(text.as_bytes()), Ok(act));
        }
    }

    #[rstest]
    #[case::unknown_kind(r#"{"act":"publish","name":"alice"}"#, "why", "act-malformed")]
    #[case::unknown_field(r#"{"act":"freeze","name":"alice","until":3}"#, "why", "act-malformed")]
    #[case::twice(r#"{"act":"freeze","name":"alice","name":"bob"}"#, "why", "act-malformed")]
    #[case::two_kinds(r#"{"act":"freeze","act":"unfreeze","name":"alice"}"#, "why", "act-malformed")]
    #[case::missing_field(r#"{"act":"groups","name":"alice"}"#, "why", "act-malformed")]
    #[case::bad_name(r#"{"act":"freeze","name":"al ice"}"#, "why", "name-invalid")]
    #[case::no_name(r#"{"act":"freeze","name":""}"#, "why", "name-invalid")]
    #[case::bad_key(r#"{"act":"revoke-key","key":"a:b"}"#, "why", "act-malformed")]
    #[case::lookalike(r#"{"act":"owner","name":"alice","owner":"аlice"}"#, "why", "owner-invalid")]
    #[case::at_in_group(r#"{"act":"groups","name":"alice","groups":["@core"]}"#, "", "group-invalid")]
    #[case::bad_role(r#"{"act":"invite","name":"alice","role":"root"}"#, "", "act-malformed")]
    #[case::no_reason(r#"{"act":"freeze","name":"alice"}"#, "", "reason-missing")]
    #[case::blank_reason(r#"{"act":"freeze","name":"alice"}"#, " \\n", "reason-missing")]
    fn refused(#[case] what: &str, #[case] reason: &str, #[case] code: &str) {
        assert_eq!(Act::parse(act(what, reason).as_bytes()).unwrap_err().code(), code);
    }

    #[test]
    fn bounds() {
        let freeze = r#"{"act":"freeze","name":"alice"}"#;
        let code = |text: String| Act::parse(text.as_bytes()).err().map(|e| e.code());
        assert_eq!(code(act(freeze, &"x".repeat(MAX_REASON))), None);
        assert_eq!(code(act(freeze, &"x".repeat(MAX_REASON + 1))), Some("reason-too-long"));
        let good = act(freeze, "why");
        for (from, to) in [
            (r#""version":1"#, r#""version":2"#),
            ("abababababababab", "zzzzzzzzzzzzzzzz"),
            (r#""expires":1600"#, r#""expires":4601"#),
            (r#""reason""#, r#""more":1,"reason""#),
        ] {
            assert_eq!(code(good.replace(from, to)), Some("act-malformed"), "{to}");
        }
        let many: Vec<_> = (0..=MAX_GROUPS).map(|n| format!("g{n}")).collect();
        let groups = format!(r#"{{"act":"groups","name":"a","groups":{}}}"#, serde_json::json!(many));
        assert_eq!(code(act(&groups, "")), Some("act-malformed"));
        let waive = |what: &str| {
            let (path, hash) = (path(), Sha256::of(b"x"));
            let hash = serde_json::to_string(&hash).unwrap();
            format!(r#"{{"act":"waive","cache":"main","path":"{path}","narHash":{hash},"waives":"{what}"}}"#)
        };
        assert_eq!(code(act(&waive("rebuilds"), "why")), None);
        assert_eq!(code(act(&waive("signature"), "why")), Some("act-malformed"));
    }
}
