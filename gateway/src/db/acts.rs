//! Rows of what people decide: events, acts, and what an act changes. Knows nothing of who may decide what.

use pushgate_formats::{
    Sha256, StorePath,
    acts::{ActDone, Event, IdentityInfo, KeyInfo},
    keys::{KeyName, PublicKey},
};

use super::{InviteRow, NewEvidence, Role, TokenRow};

/// Who did what the gateway did by itself.
pub const GATEWAY: &str = "gateway";
/// Who did what a command on the gateway's host did. No identity can have a name with a space.
pub const GATEWAY_HOST: &str = "gateway host";

/// An event to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    pub time: u64,
    /// An identity's name, [`GATEWAY`] or [`GATEWAY_HOST`].
    pub who: String,
    /// The key that signed it.
    pub key: Option<KeyName>,
    pub kind: String,
    pub cache: Option<String>,
    pub path: Option<StorePath>,
    pub nar_hash: Option<Sha256>,
    /// The identity or key that it was done to.
    pub subject: Option<String>,
    /// What exactly, in words.
    pub detail: String,
    /// The person's reason.
    pub why: String,
    /// JSON of the DSSE envelope, as sent.
    pub envelope: Option<Vec<u8>>,
}

impl NewEvent {
    /// With nothing but what every event has.
    pub fn new(time: u64, who: &str, kind: &str) -> Self {
        Self {
            time,
            who: who.to_owned(),
            key: None,
            kind: kind.to_owned(),
            cache: None,
            path: None,
            nar_hash: None,
            subject: None,
            detail: String::new(),
            why: String::new(),
            envelope: None,
        }
    }
}

/// An event on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    pub id: u64,
    pub event: NewEvent,
}

impl From<EventRow> for Event {
    fn from(EventRow { id, event }: EventRow) -> Self {
        Self {
            id,
            time: event.time,
            who: event.who,
            key: event.key.map(|key| key.to_string()),
            kind: event.kind,
            cache: event.cache,
            path: event.path,
            nar_hash: event.nar_hash,
            subject: event.subject,
            detail: event.detail,
            why: event.why,
        }
    }
}

/// What makes a signed act the one that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedAct {
    /// Of the envelope.
    pub digest: Sha256,
    pub key: PublicKey,
    pub nonce: String,
}

/// What an act changes beside its event.
#[derive(Debug, Clone)]
pub enum Change {
    /// The event is all.
    Nothing,
    /// A person's word about a claim.
    Evidence(NewEvidence),
    Invite(InviteRow),
    Groups {
        name: String,
        groups: Vec<String>,
    },
    Owner {
        name: String,
        owner: Option<String>,
    },
    Frozen {
        name: String,
        frozen: bool,
    },
    /// An earlier revocation keeps its time. The identity's tokens go with the key: who had it may have made them.
    RevokeKey(KeyName),
    /// The invite is for the identity of the key.
    Rotate {
        key: KeyName,
        old_expires: u64,
        invite: InviteRow,
    },
    MakeToken(TokenRow),
    RevokeTokens {
        name: String,
        /// All, where there is none.
        token: Option<Sha256>,
    },
}

/// What came of an act. But for the first two nothing was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acted {
    Done(ActDone),
    /// The same envelope was taken before; what came of it then.
    Known(ActDone),
    /// The key has signed something else with this nonce.
    NonceUsed,
    /// The key that signed it was revoked, or its identity frozen, while it was being looked at.
    Barred,
    /// There is no such identity, key or token.
    Absent,
    /// No admin would be left who can act.
    LastAdmin,
    /// An invite or token with this hash exists.
    CodeUsed,
    /// The identity has 100 good tokens.
    TooManyTokens,
    /// The identity has said the same of the same contents 16 times.
    TooManyWords,
}

/// An identity with its keys.
#[derive(Debug, Clone)]
pub struct IdentityRow {
    pub name: String,
    pub role: Role,
    pub owner: Option<String>,
    pub groups: Vec<String>,
    pub frozen: bool,
    pub created: u64,
    pub keys: Vec<KeyRow>,
    /// When the tokens run out that aren't revoked.
    pub tokens: Vec<Option<u64>>,
    pub last_push: Option<u64>,
}

/// An enrolled key.
#[derive(Debug, Clone)]
pub struct KeyRow {
    pub key: PublicKey,
    /// `None`: every cache.
    pub caches: Option<Vec<String>>,
    pub created: u64,
    pub expires: Option<u64>,
    pub revoked: Option<u64>,
}

impl IdentityRow {
    /// As it is shown at this time.
    pub fn info(self, now: u64) -> IdentityInfo {
        let key = |key: KeyRow| KeyInfo {
            key: key.key.to_string(),
            caches: key.caches,
            created: key.created,
            expires: key.expires,
            revoked: key.revoked,
        };
        let good = self.tokens.iter().filter(|expires| expires.is_none_or(|e| e > now)).count();
        IdentityInfo {
            name: self.name,
            role: self.role,
            owner: self.owner,
            groups: self.groups,
            frozen: self.frozen,
            created: self.created,
            keys: self.keys.into_iter().map(key).collect(),
            tokens: good as u64,
            last_push: self.last_push,
        }
    }
}
