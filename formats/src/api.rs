//! The JSON types of the API, shared by gateway and client. Plain data: what a value means is decided by the stage that
//! takes it.
//!
//! Unknown fields are refused in what is signed, so that nobody signs what the gateway doesn't understand, and ignored
//! in answers, so that old clients understand new gateways.

use serde::{Deserialize, Serialize};

use crate::{
    hash::Sha256,
    keys::Signature,
    store_path::{StorePath, shown},
};

/// Most paths in one announcement; a client splits larger closures.
pub const MAX_PATHS: usize = 20_000;
/// Most derivations named in one announcement.
pub const MAX_DERIVATIONS: usize = 200_000;
/// Most derivations that one announcement asks to have built.
pub const MAX_BUILDS: usize = 2_000;
/// Most references of one path.
pub const MAX_REFERENCES: usize = 20_000;
/// Largest announcement body, in bytes.
pub const MAX_ANNOUNCEMENT: usize = 48 << 20;
/// Longest time for which an announcement may be valid, in seconds.
pub const MAX_VALIDITY: u64 = 3600;
/// How far a client's clock may be ahead of the gateway's, in seconds.
pub const CLOCK_SKEW: u64 = 300;

/// What an identity may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Pushes.
    Submitter,
    /// Rebuilds.
    Verifier,
    /// Decides about identities and claims.
    Admin,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Submitter, Self::Verifier, Self::Admin];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Submitter => "submitter",
            Self::Verifier => "verifier",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| format!("`{}` is none of submitter, verifier, admin", shown(text.as_bytes())))
    }
}

/// Whom a signed message is meant for; both are pinned when the client joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audience {
    /// The gateway's random id.
    pub gateway: String,
    pub cache: String,
}

/// A push announcement: the payload of a DSSE envelope of type [`crate::dsse::ANNOUNCEMENT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Announcement {
    /// Always 1.
    pub version: u32,
    pub audience: Audience,
    /// 16 to 64 hexadecimal digits, used once per key.
    pub nonce: String,
    /// Seconds since 1970, UTC.
    pub issued: u64,
    /// Seconds since 1970, UTC; at most [`MAX_VALIDITY`] after `issued`.
    pub expires: u64,
    pub paths: Vec<AnnouncedPath>,
    /// Every derivation in the derivation closures of the paths, as far as the submitter has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub derivations: Vec<StorePath>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub realisations: Vec<AnnouncedRealisation>,
    /// The paths are inputs of rebuilds and builds: content-addressed, kept in quarantine for verifiers, never published.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inputs: bool,
    /// Derivations, among `derivations`, that verifiers are to build. The announcement needs no paths then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub builds: Vec<StorePath>,
}

/// One claim: "store path P has NAR hash H, NAR size S, references R".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnnouncedPath {
    pub path: StorePath,
    pub nar_hash: Sha256,
    /// Bytes.
    pub nar_size: u64,
    /// Sorted, without duplicates; base names are not used here.
    pub references: Vec<StorePath>,
    /// The derivation that is said to have made it: tells the gateway where to look, proves nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deriver: Option<StorePath>,
    /// Nix's CA field: tells which method to check, proves nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// By the announcing key over the Nix fingerprint of this claim.
    pub signature: Signature,
}

/// A claim that an output of a floating content-addressed derivation is a certain path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnnouncedRealisation {
    /// `sha256:HEX!OUTPUT`.
    pub id: String,
    pub out_path: StorePath,
}

/// What a path of a push has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathState {
    /// The gateway waits for the bytes.
    Wanted,
    /// The bytes are here and being checked.
    Checking,
    /// Accepted, and waits for what `waits_for` names.
    Held,
    /// Readable at the cache's public URL.
    Published,
    /// An upstream that the policy names has it: nothing to send.
    Upstream,
    /// Refused, for the reason in `code`.
    Rejected,
}

impl PathState {
    /// Whether nothing more will happen to the path by itself.
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Held | Self::Published | Self::Upstream | Self::Rejected)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Checking => "checking",
            Self::Held => "held",
            Self::Published => "published",
            Self::Upstream => "upstream",
            Self::Rejected => "rejected",
        }
    }
}

/// A path and what it has come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathStatus {
    pub path: StorePath,
    pub state: PathState,
    /// Stable reason code where the state is `held` or `rejected`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The reason in words, naming the value and whose fault it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What a held or wanted path waits for: store paths, or words such as `bytes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<String>,
}

/// The state of a push: the answer to an announcement and to questions about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushStatus {
    pub push: String,
    pub cache: String,
    /// Seconds since 1970, UTC: when what is still held or wanted then is given up.
    pub expires: u64,
    pub paths: Vec<PathStatus>,
    /// NARs that the gateway wants, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted: Vec<Sha256>,
    /// Derivations whose text the gateway wants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted_derivations: Vec<StorePath>,
    /// Paths that verifiers need for rebuilds and builds of this push and that aren't to be had elsewhere: sources and fixed
    /// outputs, to be sent with an announcement of `inputs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted_inputs: Vec<StorePath>,
    /// Builds that the push asked for, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub builds: Vec<crate::jobs::BuildStatus>,
    /// Realisations that the push claims; they are held until something else than their submitter backs them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub realisations: Vec<RealisationStatus>,
    /// Things that the submitter should know but that refuse nothing, such as an upstream that can't be reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
}

/// A realisation and what it has come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RealisationStatus {
    /// `sha256:HEX!OUTPUT`.
    pub id: String,
    pub out_path: StorePath,
    pub state: PathState,
    pub code: String,
}

/// The answer to an announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announced {
    #[serde(flatten)]
    pub status: PushStatus,
    /// Bearer token for this push's uploads and questions about it.
    pub token: String,
}

/// What became of one NAR of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NarResult {
    pub nar_hash: Sha256,
    /// Absent where the NAR was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// The answer to an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Uploaded {
    pub nars: Vec<NarResult>,
}

/// What became of the derivations sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DerivationsTaken {
    /// How many were new and good.
    pub taken: usize,
    /// Those refused, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<ErrorBody>,
    /// Inputs of derivations sent that the gateway still lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<StorePath>,
}

/// A question for what a push would have to send (`POST /api/v1/caches/CACHE/missing`), by which a client finds out
/// what it need not even announce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MissingQuery {
    /// At most [`MAX_PATHS`].
    pub paths: Vec<MissingPath>,
}

/// One path of a [`MissingQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MissingPath {
    pub path: StorePath,
    pub nar_hash: Sha256,
}

/// The answer to a [`MissingQuery`]: only what the public cache shows anyway, and what upstreams are known to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Missing {
    /// Neither published with this NAR hash nor known to be at an upstream.
    pub missing: Vec<StorePath>,
    /// Not published here, but known to be at an upstream.
    pub upstream: Vec<StorePath>,
}

/// An error with a stable code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub code: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// The body of every answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    pub error: ErrorBody,
}

/// Payload of a DSSE envelope of type [`crate::dsse::ENROLMENT`], signed by the key that enrols.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// The invite code.
    pub code: String,
    /// `NAME:base64`.
    pub key: String,
}

/// The answer to an enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The gateway's random id, to be pinned.
    pub gateway: String,
    /// The identity's name.
    pub submitter: String,
    pub role: String,
    pub caches: Vec<CacheInfo>,
}

/// A cache, as clients need to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheInfo {
    pub name: String,
    /// `NAME:base64`, for `trusted-public-keys`.
    pub public_key: String,
}

/// What anybody may know about a gateway (`GET /api/v1/gateway`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayInfo {
    pub gateway: String,
    pub version: String,
    /// Seconds since 1970, UTC: lets a client find out that its clock is off.
    pub time: u64,
    pub caches: Vec<CacheInfo>,
    /// Most paths in one announcement; absent where it is [`MAX_PATHS`].
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "maxPaths")]
    pub max_paths: Option<usize>,
}

/// Payload of a DSSE envelope of type [`crate::dsse::REQUEST`], sent base 64 encoded as
/// `Authorization: DSSE …` with a read request. Short-lived, and good for this one method and path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedRequest {
    pub gateway: String,
    pub method: String,
    /// Path and query as sent.
    pub path: String,
    /// Seconds since 1970, UTC.
    pub issued: u64,
    /// Seconds since 1970, UTC; at most 300 after `issued`.
    pub expires: u64,
}

/// A push in a submitter's list (`GET /api/v1/pushes`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushSummary {
    /// Of several pushes, the newest one.
    pub push: String,
    /// `announcement`, or `narinfo`: what stock Nix pushed, path by path, counted together for each day and cache.
    #[serde(default = "announcement")]
    pub kind: String,
    pub cache: String,
    /// Seconds since 1970, UTC.
    pub created: u64,
    /// Number of paths in each state, by the state's word.
    pub counts: std::collections::BTreeMap<String, u64>,
}

fn announcement() -> String {
    "announcement".to_owned()
}

/// A token for stock Nix (`POST /api/v1/caches/CACHE/tokens`), as a netrc file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenMade {
    /// The submitter's name.
    pub login: String,
    pub token: String,
}

/// How NARs are framed in the body of `POST /api/v1/pushes/ID/nars`.
///
/// The body is a sequence of records. A record is a header of 33 bytes — the 32 bytes of the NAR hash and one byte for the
/// compression — and then chunks: a length as 4 bytes, little-endian, and as many bytes. A length of zero ends the
/// record; [`frame::ABORT`] ends it too and says that the sender couldn't read the path to its end.
pub mod frame {
    /// Bytes of a record's header.
    pub const HEADER: usize = 33;
    /// The NAR as it is.
    pub const NONE: u8 = 0;
    /// One or more zstd frames.
    pub const ZSTD: u8 = 1;
    /// Largest chunk, in bytes.
    pub const MAX_CHUNK: u32 = 1 << 20;
    /// In place of a length: the record is given up.
    pub const ABORT: u32 = u32::MAX;
}
