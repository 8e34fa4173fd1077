//! The seam to the database: what is stored, as rows, and the questions asked of it. Knows no stage of the push: rows
//! come from stages and go back to them, and a row is never a proof.
//!
//! Every method is one transaction. Methods take whole batches, so that a push of a thousand paths costs a handful of
//! statements.

mod acts;
mod audits;
mod evidence;
mod jobs;
mod sample;
pub mod sqlite;

use std::collections::{BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use pushgate_formats::{
    Sha256, StorePath,
    acts::{ActDone, TokenInfo},
    api::{PathState, PathStatus, RealisationStatus},
    jobs::BuiltOutput,
    keys::{KeyName, PublicKey},
    sample::Draw,
};

pub use acts::{Acted, Change, EventRow, GATEWAY, GATEWAY_HOST, IdentityRow, KeyRow, NewEvent, SignedAct};
pub use audits::{AuditOutcome, AuditRow, Due, IncidentRow};
pub use evidence::{
    ClaimShown, Decided, DecisionRow, EvidenceKind, EvidenceRow, HeldDecision, NewDecision, NewEvidence,
};
pub use jobs::{
    AttestationRow, BuildRow, DifferenceRow, JobEnd, JobRow, JobState, MismatchRow, NewJob, RebuildRow, Taker,
};
pub use pushgate_formats::api::Role;
pub use sample::{DrawRow, EpochRow, NewDraw, Reputation};

/// A fault of the database. The caller can't mend it: it is answered as `unavailable` and logged.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("database")]
    Sqlx(#[from] sqlx::Error),
    #[error("database migration")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The row can't have been written by this program.
    #[error("the database holds `{value}` where {what} is expected")]
    Corrupt { what: &'static str, value: String },
}

pub type Result<T, E = DbError> = std::result::Result<T, E>;

fn role(text: &str) -> Result<Role> {
    text.parse().map_err(|_| DbError::Corrupt { what: "a role", value: text.into() })
}

/// The gateway's own constants, made once.
#[derive(Debug, Clone)]
pub struct GatewayRow {
    pub id: String,
    pub secret: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct CacheRow {
    pub name: String,
    pub public_key: PublicKey,
    pub created: u64,
}

/// An invite. The code itself isn't stored, only its sha256.
#[derive(Debug, Clone)]
pub struct InviteRow {
    pub code: Sha256,
    pub name: String,
    pub role: Role,
    pub owner: Option<String>,
    pub groups: Vec<String>,
    /// `None`: every cache.
    pub caches: Option<Vec<String>>,
    pub created: u64,
    pub expires: u64,
    pub key_expires: Option<u64>,
}

/// What came of redeeming an invite.
#[derive(Debug, PartialEq, Eq)]
pub enum Redeemed {
    Enrolled {
        identity: String,
        role: Role,
    },
    /// Unknown, used or expired: not told apart, so that guessing learns nothing.
    Invalid,
    /// The name is another key's or a cache key's.
    NameTaken,
    /// The same key is enrolled already.
    KeyTaken,
}

/// A key with the identity that it belongs to.
#[derive(Debug, Clone)]
pub struct EnrolledKey {
    pub key: PublicKey,
    pub identity: i64,
    pub identity_name: String,
    pub role: Role,
    pub owner: Option<String>,
    pub groups: Vec<String>,
    pub frozen: bool,
    /// `None`: every cache.
    pub caches: Option<Vec<String>>,
    pub expires: Option<u64>,
    pub revoked: Option<u64>,
    /// Since when nothing that it has sent is published: verifiers got other contents than it claimed.
    pub held: Option<u64>,
}

/// Largest build log, in bytes.
pub const MAX_BUILD_LOG: usize = 8 << 20;

/// A token of a submitter for one cache's push prefix. The token itself isn't stored, only its sha256.
#[derive(Debug, Clone)]
pub struct TokenRow {
    pub hash: Sha256,
    pub identity: i64,
    pub cache: String,
    pub created: u64,
    pub expires: Option<u64>,
}

/// Whose token it is.
#[derive(Debug, Clone)]
pub struct TokenHolder {
    pub identity: i64,
    pub name: String,
    pub role: Role,
    pub owner: Option<String>,
    pub groups: Vec<String>,
    pub frozen: bool,
    pub cache: String,
    pub expires: Option<u64>,
    pub revoked: Option<u64>,
}

/// A NAR file that stock Nix sent; its bytes are in quarantine.
#[derive(Debug, Clone)]
pub struct StockNarRow {
    pub identity: i64,
    pub cache: String,
    /// As in the URL, without `nar/`.
    pub file: String,
    pub nar_hash: Sha256,
    /// Until when it keeps its bytes without a claim.
    pub expires: u64,
}

/// A build log that waits for its derivation's output to be published.
#[derive(Debug, Clone)]
pub struct BuildLogRow {
    pub cache: String,
    pub derivation: StorePath,
    pub identity: i64,
    pub text: Vec<u8>,
}

/// What a push was announced by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushKind {
    /// A signed announcement of any number of paths.
    Announcement,
    /// The signed narinfo of one path, from stock Nix.
    NarInfo,
}

impl PushKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Announcement => "announcement",
            Self::NarInfo => "narinfo",
        }
    }

    fn parse(text: &str) -> Result<Self> {
        [Self::Announcement, Self::NarInfo]
            .into_iter()
            .find(|k| k.as_str() == text)
            .ok_or_else(|| DbError::Corrupt { what: "a kind of push", value: text.into() })
    }
}

/// A push, as announced.
#[derive(Debug, Clone)]
pub struct PushRow {
    pub id: String,
    /// Of the envelope.
    pub digest: Sha256,
    pub identity: i64,
    pub key: PublicKey,
    pub cache: String,
    pub nonce: String,
    pub kind: PushKind,
    /// What it was announced by: JSON of a DSSE envelope, or a narinfo's text.
    pub envelope: Vec<u8>,
    pub created: u64,
    pub expires: u64,
}

/// A claim at the moment of its announcement.
#[derive(Debug, Clone)]
pub struct NewClaim {
    pub path: StorePath,
    pub nar_hash: Sha256,
    /// A hint only.
    pub deriver: Option<StorePath>,
    pub state: PathState,
}

/// What a claim has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRow {
    pub id: i64,
    pub push: String,
    pub path: StorePath,
    pub nar_hash: Sha256,
    pub identity: i64,
    pub state: PathState,
    pub code: Option<String>,
    pub message: Option<String>,
    pub waits: Vec<String>,
    /// The last decision that the policy made of it.
    pub decided: Option<Decided>,
}

impl From<ClaimRow> for PathStatus {
    fn from(claim: ClaimRow) -> Self {
        let waits_for = match claim.state {
            PathState::Wanted => vec!["bytes".to_owned()],
            _ => claim.waits,
        };
        let ClaimRow { path, state, code, message, .. } = claim;
        Self { path, state, code, message, waits_for }
    }
}

/// A claim's new state.
#[derive(Debug, Clone)]
pub struct ClaimUpdate {
    pub id: i64,
    pub state: PathState,
    pub code: Option<String>,
    pub message: Option<String>,
    pub waits: Vec<String>,
    /// Paths whose publication lets the claim be judged again.
    pub waits_on: Vec<StorePath>,
    /// What the policy decided, where that is new.
    pub decision: Option<NewDecision>,
    /// Seconds since 1970: when time alone may change it.
    pub again: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum PushAdded {
    /// The claims' ids, in order.
    Added(Vec<i64>),
    /// The same envelope was announced before.
    Known,
    NonceUsed,
}

/// A NAR in quarantine.
#[derive(Debug, Clone)]
pub struct QuarantineRow {
    pub nar_hash: Sha256,
    pub pack: String,
    pub start: u64,
    pub length: u64,
    pub compression: String,
    /// JSON of `push::intake::Examined`.
    pub examined: String,
}

#[derive(Debug, Clone)]
pub struct DerivationRow {
    pub path: StorePath,
    pub text: Vec<u8>,
    /// JSON of `formats::derivation::Facts`.
    pub facts: Option<String>,
}

/// A published path.
#[derive(Debug, Clone)]
pub struct PublishedRow {
    pub path: StorePath,
    pub nar_hash: Sha256,
    pub references: BTreeSet<StorePath>,
    /// The narinfo's text as it is served.
    pub narinfo: String,
}

/// A publication to be committed: the row and its leaf.
#[derive(Debug, Clone)]
pub struct NewPublication {
    pub row: PublishedRow,
    /// Canonical JSON of the leaf.
    pub leaf: Vec<u8>,
}

/// One judgement's results, written at once.
#[derive(Debug, Default)]
pub struct Judged {
    pub cache: String,
    pub now: u64,
    pub publications: Vec<NewPublication>,
    /// The newest event when the judgement began to look things up: what people have said since against what is published
    /// here isn't in it.
    pub seen: u64,
    pub claims: Vec<ClaimUpdate>,
    /// Claims that differ from another claim or what is published: path, NAR hash, claim.
    pub conflicts: Vec<(StorePath, Sha256, i64)>,
    /// Draws of the sample, each with its leaf; one that is there already stays.
    pub draws: Vec<NewDraw>,
    /// Whose claims are published upon a rebuild, once for each.
    pub matched: Vec<i64>,
}

/// What came of committing a judgement.
#[derive(Debug, PartialEq, Eq)]
pub enum Committed {
    Done,
    /// Another publication took one of the paths meanwhile; nothing was written.
    Raced,
    /// Somebody refused or settled one of the paths since the judgement began, or an identity counts for less; nothing was
    /// written.
    Outdated,
}

#[derive(Debug, Clone)]
pub struct UpstreamRow {
    pub path: StorePath,
    pub nar_hash: Sha256,
    pub references: BTreeSet<StorePath>,
}

#[derive(Debug, Clone)]
pub struct RealisationRow {
    pub id: String,
    pub path: StorePath,
    pub state: PathState,
    pub code: String,
}

impl From<RealisationRow> for RealisationStatus {
    fn from(row: RealisationRow) -> Self {
        Self { id: row.id, out_path: row.path, state: row.state, code: row.code }
    }
}

/// A push and how many of its claims are in each state; those of narinfos together, by cache.
#[derive(Debug, Clone)]
pub struct PushCounts {
    /// Of several pushes, the newest one.
    pub id: String,
    pub kind: PushKind,
    pub cache: String,
    pub created: u64,
    pub counts: Vec<(String, u64)>,
}

/// What a submitter has that isn't settled for good.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    pub pushes: u64,
    pub paths: u64,
    /// Of the pushes' announcements, as stored.
    pub bytes: u64,
}

/// What was forgotten of pushes that ended long ago.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    pub pushes: u64,
    pub claims: u64,
    pub derivations: u64,
    /// Bytes by which submitters' counts in quarantine shrank.
    pub freed: Vec<(i64, u64)>,
    /// Whether there may be more to forget.
    pub more: bool,
}

/// What the sweeper found to be over.
#[derive(Debug, Default)]
pub struct Swept {
    /// Bytes by which submitters' counts in quarantine shrank.
    pub freed: Vec<(i64, u64)>,
    /// Pushes with a claim that ran out.
    pub pushes: Vec<String>,
    pub expired_claims: u64,
    /// Packs that nothing refers to any more.
    pub packs: Vec<String>,
}

#[async_trait]
pub trait Db: Send + Sync + 'static {
    /// The gateway's constants; stores `fresh` where there are none.
    async fn gateway(&self, fresh: GatewayRow, now: u64) -> Result<GatewayRow>;
    /// A cheap question, to see whether the database answers.
    async fn ping(&self) -> Result<()>;

    async fn caches(&self) -> Result<Vec<CacheRow>>;
    /// False where the name is taken, or the key's name is a submitter's.
    async fn add_cache(&self, row: &CacheRow) -> Result<bool>;

    /// Records what somebody decided and carries it out: the event, the act if one was signed, and what it changes, all or
    /// nothing.
    async fn act(&self, event: &NewEvent, signed: Option<&SignedAct>, change: &Change) -> Result<Acted>;
    /// What came of an act, by the digest of its envelope.
    async fn act_by_digest(&self, digest: &Sha256) -> Result<Option<ActDone>>;
    /// Records something that changes nothing else; gives the event's number.
    async fn add_event(&self, event: &NewEvent) -> Result<u64>;
    /// Events after the one with this number, oldest first; without a number the newest.
    async fn events(&self, after: Option<u64>, cache: Option<&str>, most: u32) -> Result<Vec<EventRow>>;
    /// All events about a path in a cache, oldest first.
    async fn events_of_path(&self, cache: &str, path: &StorePath) -> Result<Vec<EventRow>>;
    async fn identities(&self) -> Result<Vec<IdentityRow>>;
    /// Tokens of one identity, or of all.
    async fn tokens(&self, identity: Option<&str>) -> Result<Vec<TokenInfo>>;
    /// Pushes with a claim that isn't settled for good of an identity, or of which it has said something: (cache, push).
    async fn open_pushes_of(&self, identity: &str) -> Result<Vec<(String, String)>>;

    /// Whether an invite with this code was ever made, used or not.
    async fn is_invite(&self, code: &Sha256) -> Result<bool>;
    /// Uses up an invite and enrols the key, both or neither.
    async fn redeem(&self, code: &Sha256, key: &PublicKey, now: u64) -> Result<Redeemed>;
    async fn key(&self, key: &[u8; 32]) -> Result<Option<EnrolledKey>>;
    /// Looks a key up by the name that it enrolled with.
    async fn key_named(&self, name: &KeyName) -> Result<Option<EnrolledKey>>;
    async fn keys(&self) -> Result<Vec<EnrolledKey>>;

    async fn add_push(
        &self,
        push: &PushRow,
        claims: &[NewClaim],
        realisations: &[RealisationRow],
    ) -> Result<PushAdded>;
    async fn push_by_digest(&self, digest: &Sha256) -> Result<Option<PushRow>>;
    async fn push(&self, id: &str) -> Result<Option<PushRow>>;
    async fn claims(&self, push: &str) -> Result<Vec<ClaimRow>>;
    /// The claims of all pushes of stock Nix that [`Db::pushes_of`] counts together with this one, newest first.
    async fn claims_beside(&self, push: &str) -> Result<Vec<ClaimRow>>;
    async fn claims_of_path(&self, cache: &str, path: &StorePath) -> Result<Vec<ClaimRow>>;
    async fn realisations(&self, push: &str) -> Result<Vec<RealisationRow>>;
    async fn pushes_of(&self, identity: i64, most: u32) -> Result<Vec<PushCounts>>;
    /// Pushes with a claim that is not settled for good: (cache, push).
    async fn open_pushes(&self) -> Result<Vec<(String, String)>>;
    /// Pushes with claims that wait on one of these paths, or that are open claims of one.
    async fn pushes_waiting_on(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<String>>;
    /// Held claims of these paths, by any submitter, that lack nothing but references or a settled conflict. One that
    /// nothing shows to be right is no rival: anybody could block a path with it.
    async fn rival_claims(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<ClaimRow>>;

    async fn quarantined(&self, identity: i64, nars: &[Sha256]) -> Result<Vec<QuarantineRow>>;
    /// Adds NARs; one that is there already stays where it is. Gives those that were new.
    async fn add_quarantined(
        &self,
        identity: i64,
        rows: &[QuarantineRow],
        expires: u64,
        now: u64,
    ) -> Result<HashSet<Sha256>>;
    /// Bytes of NARs (compressed) that came from an identity since then, to the hour.
    async fn sent_since(&self, identity: i64, since: u64) -> Result<u64>;
    /// Forgets a NAR whose stored bytes turned out to be damaged.
    async fn drop_quarantined(&self, identity: i64, nar: &Sha256) -> Result<()>;
    /// Compressed bytes that an identity has in quarantine, its derivations included.
    async fn quarantine_bytes(&self, identity: i64) -> Result<u64>;
    /// The same over all identities.
    async fn quarantine_total(&self) -> Result<u64>;
    /// What an identity has open.
    async fn open_of(&self, identity: i64) -> Result<Open>;
    /// Who stands behind pushes: the owner, or the identity where it has none.
    async fn owners(&self, pushes: &[String]) -> Result<HashMap<String, String>>;
    /// Every pack that a quarantined NAR lies in.
    async fn packs(&self) -> Result<HashSet<String>>;
    /// Ends claims that ran out, forgets NARs that nothing needs, and names packs that are free.
    async fn sweep(&self, now: u64) -> Result<Swept>;
    /// Forgets some of the pushes that ran out before the one time, and of the derivations that were last used before the
    /// other, unless they are evidence.
    async fn forget(&self, pushes: u64, derivations: u64) -> Result<Forgotten>;

    async fn derivations_sent(&self, identity: i64, paths: &[StorePath]) -> Result<HashSet<StorePath>>;
    /// Some of these derivations: an answer ends when its texts have some size, and the rest is asked for again.
    async fn derivations(&self, paths: &[StorePath]) -> Result<Vec<DerivationRow>>;
    /// Gives the number of bytes by which the identity's count in quarantine grew.
    async fn add_derivations(&self, identity: i64, rows: &[DerivationRow], now: u64) -> Result<u64>;
    /// Notes that an identity's derivations are of use.
    async fn use_derivations(&self, identity: i64, paths: &[StorePath], now: u64) -> Result<()>;

    /// Stores facts of derivations that are here already.
    async fn add_facts(&self, rows: &[DerivationRow]) -> Result<()>;

    async fn token(&self, hash: &Sha256) -> Result<Option<TokenHolder>>;
    /// Names a NAR file that is about to be in quarantine, or keeps its bytes for longer.
    async fn add_stock_nar(&self, row: &StockNarRow) -> Result<()>;
    /// The bytes of a NAR file that a submitter sent by its name.
    async fn stock_nar(&self, identity: i64, cache: &str, file: &str) -> Result<Option<QuarantineRow>>;
    /// Has a NAR file keep its bytes no longer than `until`: its claim does from now on.
    async fn release_stock_nar(&self, identity: i64, cache: &str, file: &str, until: u64) -> Result<()>;
    /// A submitter's own claims of paths with this hash part, newest first.
    async fn own_claims(&self, cache: &str, identity: i64, hash_part: &str) -> Result<Vec<ClaimRow>>;
    /// An identity's own pushes with claims that wait on one of these paths.
    async fn own_pushes_waiting_on(
        &self,
        cache: &str,
        identity: i64,
        paths: &[StorePath],
    ) -> Result<Vec<String>>;
    /// False where the push has 64 already, or was forgotten.
    async fn add_realisation(&self, cache: &str, push: &str, row: &RealisationRow) -> Result<bool>;
    async fn own_realisations(&self, cache: &str, identity: i64, id: &str) -> Result<Vec<RealisationRow>>;
    /// Whether a submitter sent this derivation, or claims one of its outputs and isn't refused.
    async fn has_derivation(&self, cache: &str, identity: i64, derivation: &StorePath) -> Result<bool>;
    /// Of these derivations, those that a submitter sent, and those that are published in the cache: what anybody can read
    /// may be evidence for anybody.
    async fn derivations_at_hand(
        &self,
        cache: &str,
        identity: i64,
        paths: &[StorePath],
    ) -> Result<HashSet<StorePath>>;
    /// Stores a build log, in place of an earlier one by the same submitter.
    async fn add_build_log(&self, row: &BuildLogRow, expires: u64) -> Result<()>;
    /// Build logs of which an output is published and visible.
    async fn ready_build_logs(&self, most: u32) -> Result<Vec<BuildLogRow>>;
    /// Bytes of a submitter's build logs that wait.
    async fn build_log_bytes(&self, identity: i64) -> Result<u64>;
    async fn drop_build_logs(&self, rows: &[BuildLogRow]) -> Result<()>;

    /// What is published and wasn't withdrawn since, by hash part.
    async fn published(&self, cache: &str, hash_parts: &[&str]) -> Result<HashMap<String, PublishedRow>>;
    /// What was published and is withdrawn: it keeps its hash part and its NAR hash for ever, and counts for nothing else.
    async fn withdrawn(&self, cache: &str, hash_parts: &[&str]) -> Result<HashMap<String, PublishedRow>>;
    /// All of that.
    async fn withdrawn_paths(&self, cache: &str) -> Result<Vec<StorePath>>;
    /// The same with the NAR hashes, and nothing else.
    async fn published_hashes(
        &self,
        cache: &str,
        hash_parts: &[&str],
    ) -> Result<HashMap<String, (StorePath, Sha256)>>;
    async fn commit(&self, judged: &Judged) -> Result<Committed>;
    /// Whether somebody refused or settled one of these paths since an event, or an identity may count for less.
    async fn outdated(&self, cache: &str, seen: u64, paths: &[StorePath]) -> Result<bool>;

    /// Adds evidence; gives those that are new.
    async fn add_evidence(&self, rows: &[NewEvidence], now: u64) -> Result<Vec<StorePath>>;
    /// What counts for these paths now, in the order that it came.
    async fn evidence(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<EvidenceRow>>;
    /// Keeps the text of a policy that comes into force.
    async fn add_policy(&self, cache: &str, digest: &Sha256, text: &str, now: u64) -> Result<()>;
    /// Held claims with their last decisions, in the order of their ids, beginning behind one.
    async fn held_decisions(&self, cache: &str, after: i64, most: u32) -> Result<Vec<HeldDecision>>;
    /// Writes new states of claims that are held, and of those only.
    async fn update_held(&self, judged: &Judged) -> Result<()>;
    /// Pushes with claims that time alone may have changed by now: (cache, push). Each is given once.
    async fn due_pushes(&self, now: u64) -> Result<Vec<(String, String)>>;
    /// Pushes with a claim of this path that isn't settled for good.
    async fn open_pushes_of_path(&self, cache: &str, path: &StorePath) -> Result<Vec<String>>;
    /// Decisions of a cache in the order that they were made, beginning behind one: at most so many, and fewer where they
    /// rest on much. None only where there are no more.
    async fn decisions(&self, cache: &str, after: i64, most: u32) -> Result<Vec<DecisionRow>>;
    /// The last decision of a claim.
    async fn last_decision(&self, claim: i64) -> Result<Option<DecisionRow>>;
    /// Held claims, oldest first, beginning behind one.
    async fn held_claims(&self, cache: &str, after: i64, most: u32) -> Result<Vec<ClaimShown>>;
    /// Claims of these paths, by anybody, newest first.
    async fn claims_shown(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<ClaimShown>>;
    /// Paths with claims that differ and that nobody has settled, in order, behind one.
    async fn conflict_paths(
        &self,
        cache: &str,
        after: Option<&StorePath>,
        most: u32,
    ) -> Result<Vec<StorePath>>;
    /// Published, but perhaps not yet visible: in the order of their leaves.
    async fn unseen(&self, cache: &str) -> Result<Vec<PublishedRow>>;
    async fn mark_visible(&self, cache: &str, paths: &[StorePath]) -> Result<()>;

    async fn upstream_paths(
        &self,
        url: &str,
        key: &PublicKey,
        paths: &[StorePath],
    ) -> Result<Vec<UpstreamRow>>;
    async fn add_upstream_paths(
        &self,
        url: &str,
        key: &PublicKey,
        rows: &[UpstreamRow],
        now: u64,
    ) -> Result<()>;

    /// Adds jobs; one that is there already by its derivation and turn is left as it is.
    async fn add_jobs(&self, jobs: &[NewJob], now: u64) -> Result<()>;
    async fn jobs_of(&self, cache: &str, derivations: &[StorePath]) -> Result<Vec<JobRow>>;
    async fn job(&self, id: &str) -> Result<Option<JobRow>>;
    /// Leases jobs, at most one to each of these verifiers, in their order. A verifier gets none of a derivation that another of
    /// its owner has or had, but for a second build of its own.
    async fn take_jobs(&self, takers: &[Taker], now: u64, until: u64) -> Result<Vec<Option<JobRow>>>;
    /// Extends a lease; false where it isn't this one any more.
    async fn extend_lease(&self, job: &str, token: &Sha256, until: u64) -> Result<bool>;
    /// Takes leases back that ran out: their jobs are given out again, or fail after so many attempts. Gives those that
    /// changed.
    async fn return_jobs(&self, now: u64, attempts: u32) -> Result<Vec<JobRow>>;
    /// Ends the leased job, with its rebuilds and their attestation; false where the lease isn't this one any more.
    async fn end_job(&self, job: &str, token: &Sha256, end: &JobEnd, now: u64) -> Result<bool>;
    /// Ends a job that nobody has taken or that nobody needs.
    async fn cancel_job(&self, job: &str, code: &str, message: &str, now: u64) -> Result<()>;
    /// Adds to a job's log, from a byte on; gives the log's length. What doesn't begin where the log ends, or would make it
    /// longer than `most`, isn't taken.
    async fn add_job_log(&self, job: &str, at: u64, bytes: &[u8], most: u64) -> Result<u64>;
    /// A piece of a job's log.
    async fn job_log(&self, job: &str, from: u64, most: u64) -> Result<Vec<u8>>;
    /// What verifiers got for these paths, oldest first, as far as it counts.
    async fn rebuilds(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<RebuildRow>>;
    /// The outputs of a job.
    async fn built(&self, job: &str) -> Result<Vec<BuiltOutput>>;
    /// The attestations of these jobs.
    async fn attestations(&self, jobs: &[String]) -> Result<Vec<AttestationRow>>;
    /// Has a claim judged again when one of these paths is published.
    async fn wait_on(&self, cache: &str, push: &str, claim: i64, paths: &[StorePath]) -> Result<()>;
    /// Adds builds that a push asks for, in order.
    async fn add_builds(&self, builds: &[BuildRow], now: u64) -> Result<()>;
    async fn builds(&self, push: &str) -> Result<Vec<BuildRow>>;
    /// Builds that have no job yet and wait for something.
    async fn waiting_builds(&self, cache: &str, now: u64) -> Result<Vec<BuildRow>>;
    /// Notes a build's job, what it waits for, or why there is none.
    async fn update_build(&self, build: &BuildRow) -> Result<()>;
    /// How many builds an identity has under way, and how many it has asked for since a time.
    async fn builds_of(&self, identity: i64, since: u64) -> Result<(u64, u64)>;
    async fn add_difference(&self, cache: &str, row: &DifferenceRow) -> Result<()>;
    async fn differences(&self, cache: &str, path: &StorePath) -> Result<Vec<DifferenceRow>>;
    /// Records a confirmed mismatch with what follows from it for its key or submitter, and which of the key's paths are due for
    /// an audit, all or nothing; false where that is recorded already.
    async fn add_mismatch(&self, row: &MismatchRow, event: &NewEvent, due: Due) -> Result<bool>;
    /// Confirmed mismatches of an identity: the newest one's time, and how many.
    async fn mismatches_of(&self, identity: i64) -> Result<(Option<u64>, u64)>;

    /// Whether no verifier is asked for anything but audits.
    async fn is_idle(&self) -> Result<bool>;
    /// Adds an audit that was drawn, with its job, both or neither; false where its derivation is being audited.
    async fn add_audit(&self, job: &NewJob, now: u64) -> Result<bool>;
    /// Adds the job of an audit that was due and hasn't begun.
    async fn begin_audit(&self, audit: i64, job: &NewJob, now: u64) -> Result<()>;
    /// Audits without an outcome, oldest first.
    async fn open_audits(&self, cache: &str) -> Result<Vec<AuditRow>>;
    async fn open_audit(&self, cache: &str, derivation: &StorePath) -> Result<Option<AuditRow>>;
    /// How many audits were drawn after a time, and when the last one was.
    async fn drawn_audits(&self, cache: &str, since: u64) -> Result<(u64, Option<u64>)>;
    /// Writes an audit's outcome and its event, both or neither; false where it has one.
    async fn end_audit(&self, audit: i64, outcome: AuditOutcome, event: Option<&NewEvent>) -> Result<bool>;
    /// Records an incident with its event, what it means for the submitter, and, if it says so, the withdrawal of the path, all or
    /// nothing; false where it is recorded already.
    async fn add_incident(
        &self,
        row: &IncidentRow,
        mismatch: Option<&MismatchRow>,
        event: &NewEvent,
    ) -> Result<bool>;
    async fn incident(&self, cache: &str, path: &StorePath) -> Result<Option<IncidentRow>>;
    /// Published paths that refer to one, directly or not: at most so many.
    async fn dependants_of(&self, cache: &str, path: &StorePath, most: usize) -> Result<Vec<StorePath>>;

    /// The newest epoch of a cache's sample.
    async fn epoch(&self, cache: &str) -> Result<Option<EpochRow>>;
    /// Epochs of a cache, newest first.
    async fn epochs(&self, cache: &str, most: u32) -> Result<Vec<EpochRow>>;
    /// Opens an epoch, its leaf first, both or neither; false where that number is open already.
    async fn open_epoch(&self, cache: &str, row: &EpochRow) -> Result<bool>;
    /// Closes an epoch and reveals its seed in a leaf, both or neither; false where that is done.
    async fn close_epoch(&self, cache: &str, row: &EpochRow, now: u64) -> Result<bool>;
    async fn draws(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<DrawRow>>;
    /// Draws of an epoch in the order that they were made, beginning behind one, each with its number.
    async fn draws_of(&self, cache: &str, epoch: u64, after: i64, most: u32) -> Result<Vec<(i64, Draw)>>;
    async fn reputations(&self, identities: &[i64]) -> Result<HashMap<i64, Reputation>>;
    /// Published paths that refer to one of these packages.
    async fn dependants(&self, cache: &str, pnames: &[&str]) -> Result<HashMap<String, u32>>;

    /// The leaf of a published path: its number and body.
    async fn leaf_of(&self, cache: &str, path: &StorePath) -> Result<Option<(u64, Vec<u8>)>>;
    /// How many leaves the log of a cache has.
    async fn leaf_count(&self, cache: &str) -> Result<u64>;
    /// The log of one cache from a leaf on: (sequence number, body, chain hash).
    async fn leaves(&self, cache: &str, from: u64, most: u32) -> Result<Vec<(u64, Vec<u8>, Sha256)>>;
}
