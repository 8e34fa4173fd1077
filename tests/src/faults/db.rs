//! The database with faults: every method that writes is a point at which one can come.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
};

use async_trait::async_trait;
use pushgate_formats::{
    Sha256, StorePath,
    acts::{ActDone, TokenInfo},
    jobs::BuiltOutput,
    keys::{KeyName, PublicKey},
    sample::Draw,
};
use pushgate_gateway::db::*;

use super::{Faults, Kind, Todo};

/// See the module's documentation.
pub struct FaultyDb {
    inner: Arc<dyn Db>,
    faults: Arc<Faults>,
}

fn fault() -> DbError {
    DbError::Sqlx(sqlx::Error::Io(io::Error::other("a fault of the test's making")))
}

impl FaultyDb {
    pub fn new(inner: Arc<dyn Db>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }

    async fn write<T>(&self, what: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(entered) = self.faults.enter(what) else { return std::future::pending().await };
        let answer = match entered.todo {
            Todo::Go => call.await,
            Todo::Strike(Kind::NotStored) => Err(fault()),
            Todo::Strike(Kind::Stored) => call.await.and(Err(fault())),
            Todo::Strike(kind) => {
                if kind != Kind::KilledBefore {
                    // as it ends: the process may die whether it succeeded or not
                    let _ = call.await;
                }
                self.faults.die();
                Err(fault())
            }
        };
        drop(entered);
        // the dead aren't answered
        if self.faults.is_dead() { std::future::pending().await } else { answer }
    }

    async fn read<T>(&self, _: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let answer = call.await;
        if self.faults.is_dead() { std::future::pending().await } else { answer }
    }
}

/// One line for each method of the seam: whether it writes, and its signature.
macro_rules! seam {
    ($( $how:ident fn $name:ident(&$self:ident $(, $arg:ident: $ty:ty)*) -> $ret:ty; )*) => {
        #[async_trait]
        impl Db for FaultyDb {
            $(
                async fn $name(&$self $(, $arg: $ty)*) -> Result<$ret> {
                    $self.$how(stringify!($name), $self.inner.$name($($arg),*)).await
                }
            )*
        }
    };
}

seam! {
    write fn gateway(&self, fresh: GatewayRow, now: u64) -> GatewayRow;
    read fn ping(&self) -> ();

    read fn caches(&self) -> Vec<CacheRow>;
    write fn add_cache(&self, row: &CacheRow) -> bool;

    write fn act(&self, event: &NewEvent, signed: Option<&SignedAct>, change: &Change) -> Acted;
    read fn act_by_digest(&self, digest: &Sha256) -> Option<ActDone>;
    write fn add_event(&self, event: &NewEvent) -> u64;
    read fn events(&self, after: Option<u64>, cache: Option<&str>, most: u32) -> Vec<EventRow>;
    read fn events_of_path(&self, cache: &str, path: &StorePath) -> Vec<EventRow>;
    read fn identities(&self) -> Vec<IdentityRow>;
    read fn tokens(&self, identity: Option<&str>) -> Vec<TokenInfo>;
    read fn open_pushes_of(&self, identity: &str) -> Vec<(String, String)>;
    read fn is_invite(&self, code: &Sha256) -> bool;
    write fn redeem(&self, code: &Sha256, key: &PublicKey, now: u64) -> Redeemed;
    read fn key(&self, key: &[u8; 32]) -> Option<EnrolledKey>;
    read fn key_named(&self, name: &KeyName) -> Option<EnrolledKey>;
    read fn keys(&self) -> Vec<EnrolledKey>;

    write fn add_push(&self, push: &PushRow, claims: &[NewClaim], realisations: &[RealisationRow]) -> PushAdded;
    read fn push_by_digest(&self, digest: &Sha256) -> Option<PushRow>;
    read fn push(&self, id: &str) -> Option<PushRow>;
    read fn claims(&self, push: &str) -> Vec<ClaimRow>;
    read fn claims_beside(&self, push: &str) -> Vec<ClaimRow>;
    read fn claims_of_path(&self, cache: &str, path: &StorePath) -> Vec<ClaimRow>;
    read fn realisations(&self, push: &str) -> Vec<RealisationRow>;
    read fn pushes_of(&self, identity: i64, most: u32) -> Vec<PushCounts>;
    read fn open_pushes(&self) -> Vec<(String, String)>;
    read fn pushes_waiting_on(&self, cache: &str, paths: &[StorePath]) -> Vec<String>;
    read fn rival_claims(&self, cache: &str, paths: &[StorePath]) -> Vec<ClaimRow>;

    read fn quarantined(&self, identity: i64, nars: &[Sha256]) -> Vec<QuarantineRow>;
    write fn add_quarantined(&self, identity: i64, rows: &[QuarantineRow], expires: u64, now: u64) -> HashSet<Sha256>;
    read fn sent_since(&self, identity: i64, since: u64) -> u64;
    write fn drop_quarantined(&self, identity: i64, nar: &Sha256) -> ();
    read fn quarantine_bytes(&self, identity: i64) -> u64;
    read fn quarantine_total(&self) -> u64;
    read fn open_of(&self, identity: i64) -> Open;
    read fn owners(&self, pushes: &[String]) -> HashMap<String, String>;
    read fn packs(&self) -> HashSet<String>;
    write fn sweep(&self, now: u64) -> Swept;
    write fn forget(&self, before: u64, now: u64) -> Forgotten;

    read fn derivations_sent(&self, identity: i64, paths: &[StorePath]) -> HashSet<StorePath>;
    read fn derivations(&self, paths: &[StorePath]) -> Vec<DerivationRow>;
    write fn add_derivations(&self, identity: i64, rows: &[DerivationRow], now: u64) -> u64;
    write fn use_derivations(&self, identity: i64, paths: &[StorePath], now: u64) -> ();
    write fn add_facts(&self, rows: &[DerivationRow]) -> ();

    read fn token(&self, hash: &Sha256) -> Option<TokenHolder>;
    write fn add_stock_nar(&self, row: &StockNarRow) -> ();
    read fn stock_nar(&self, identity: i64, cache: &str, file: &str) -> Option<QuarantineRow>;
    write fn release_stock_nar(&self, identity: i64, cache: &str, file: &str, until: u64) -> ();
    read fn own_claims(&self, cache: &str, identity: i64, hash_part: &str) -> Vec<ClaimRow>;
    read fn own_pushes_waiting_on(&self, cache: &str, identity: i64, paths: &[StorePath]) -> Vec<String>;
    write fn add_realisation(&self, cache: &str, push: &str, row: &RealisationRow) -> bool;
    read fn own_realisations(&self, cache: &str, identity: i64, id: &str) -> Vec<RealisationRow>;
    read fn has_derivation(&self, cache: &str, identity: i64, derivation: &StorePath) -> bool;
    read fn derivations_at_hand(&self, cache: &str, identity: i64, paths: &[StorePath]) -> HashSet<StorePath>;
    write fn add_build_log(&self, row: &BuildLogRow, expires: u64) -> ();
    read fn ready_build_logs(&self, most: u32) -> Vec<BuildLogRow>;
    read fn build_log_bytes(&self, identity: i64) -> u64;
    write fn drop_build_logs(&self, rows: &[BuildLogRow]) -> ();

    read fn published(&self, cache: &str, hash_parts: &[&str]) -> HashMap<String, PublishedRow>;
    read fn published_hashes(&self, cache: &str, hash_parts: &[&str]) -> HashMap<String, (StorePath, Sha256)>;
    read fn withdrawn(&self, cache: &str, hash_parts: &[&str]) -> HashMap<String, PublishedRow>;
    read fn withdrawn_paths(&self, cache: &str) -> Vec<StorePath>;
    write fn commit(&self, judged: &Judged) -> Committed;
    read fn unseen(&self, cache: &str) -> Vec<PublishedRow>;
    read fn outdated(&self, cache: &str, seen: u64, paths: &[StorePath]) -> bool;
    write fn add_evidence(&self, rows: &[NewEvidence], now: u64) -> Vec<StorePath>;
    read fn evidence(&self, cache: &str, paths: &[StorePath]) -> Vec<EvidenceRow>;
    write fn add_policy(&self, cache: &str, digest: &Sha256, text: &str, now: u64) -> ();
    read fn held_decisions(&self, cache: &str, after: i64, most: u32) -> Vec<HeldDecision>;
    write fn update_held(&self, judged: &Judged) -> ();
    write fn due_pushes(&self, now: u64) -> Vec<(String, String)>;
    read fn open_pushes_of_path(&self, cache: &str, path: &StorePath) -> Vec<String>;
    read fn decisions(&self, cache: &str, after: i64, most: u32) -> Vec<DecisionRow>;
    read fn last_decision(&self, claim: i64) -> Option<DecisionRow>;
    read fn held_claims(&self, cache: &str, after: i64, most: u32) -> Vec<ClaimShown>;
    read fn claims_shown(&self, cache: &str, paths: &[StorePath]) -> Vec<ClaimShown>;
    read fn conflict_paths(&self, cache: &str, after: Option<&StorePath>, most: u32) -> Vec<StorePath>;
    write fn mark_visible(&self, cache: &str, paths: &[StorePath]) -> ();

    read fn upstream_paths(&self, url: &str, key: &PublicKey, paths: &[StorePath]) -> Vec<UpstreamRow>;
    write fn add_upstream_paths(&self, url: &str, key: &PublicKey, rows: &[UpstreamRow], now: u64) -> ();

    write fn add_jobs(&self, jobs: &[NewJob], now: u64) -> ();
    read fn jobs_of(&self, cache: &str, derivations: &[StorePath]) -> Vec<JobRow>;
    read fn job(&self, id: &str) -> Option<JobRow>;
    write fn take_jobs(&self, takers: &[Taker], now: u64, until: u64) -> Vec<Option<JobRow>>;
    write fn extend_lease(&self, job: &str, token: &Sha256, until: u64) -> bool;
    // looks every moment, and writes only where a lease ran out
    read fn return_jobs(&self, now: u64, attempts: u32) -> Vec<JobRow>;
    write fn end_job(&self, job: &str, token: &Sha256, end: &JobEnd, now: u64) -> bool;
    write fn cancel_job(&self, job: &str, code: &str, message: &str, now: u64) -> ();
    write fn add_job_log(&self, job: &str, at: u64, bytes: &[u8], most: u64) -> u64;
    read fn job_log(&self, job: &str, from: u64, most: u64) -> Vec<u8>;
    read fn rebuilds(&self, cache: &str, paths: &[StorePath]) -> Vec<RebuildRow>;
    read fn built(&self, job: &str) -> Vec<BuiltOutput>;
    read fn attestations(&self, jobs: &[String]) -> Vec<AttestationRow>;
    write fn wait_on(&self, cache: &str, push: &str, claim: i64, paths: &[StorePath]) -> ();
    write fn add_builds(&self, builds: &[BuildRow], now: u64) -> ();
    read fn builds(&self, push: &str) -> Vec<BuildRow>;
    read fn waiting_builds(&self, cache: &str, now: u64) -> Vec<BuildRow>;
    write fn update_build(&self, build: &BuildRow) -> ();
    read fn builds_of(&self, identity: i64, since: u64) -> (u64, u64);
    write fn add_difference(&self, cache: &str, row: &DifferenceRow) -> ();
    read fn differences(&self, cache: &str, path: &StorePath) -> Vec<DifferenceRow>;
    write fn add_mismatch(&self, row: &MismatchRow, event: &NewEvent, due: Due) -> bool;
    read fn mismatches_of(&self, identity: i64) -> (Option<u64>, u64);

    read fn is_idle(&self) -> bool;
    write fn add_audit(&self, job: &NewJob, now: u64) -> bool;
    write fn begin_audit(&self, audit: i64, job: &NewJob, now: u64) -> ();
    read fn open_audits(&self, cache: &str) -> Vec<AuditRow>;
    read fn open_audit(&self, cache: &str, derivation: &StorePath) -> Option<AuditRow>;
    read fn drawn_audits(&self, cache: &str, since: u64) -> (u64, Option<u64>);
    write fn end_audit(&self, audit: i64, outcome: AuditOutcome, event: Option<&NewEvent>) -> bool;
    write fn add_incident(&self, row: &IncidentRow, mismatch: Option<&MismatchRow>, event: &NewEvent) -> bool;
    read fn incident(&self, cache: &str, path: &StorePath) -> Option<IncidentRow>;
    read fn dependants_of(&self, cache: &str, path: &StorePath, most: usize) -> Vec<StorePath>;

    read fn epoch(&self, cache: &str) -> Option<EpochRow>;
    read fn epochs(&self, cache: &str, most: u32) -> Vec<EpochRow>;
    write fn open_epoch(&self, cache: &str, row: &EpochRow) -> bool;
    write fn close_epoch(&self, cache: &str, row: &EpochRow, now: u64) -> bool;
    read fn draws(&self, cache: &str, paths: &[StorePath]) -> Vec<DrawRow>;
    read fn draws_of(&self, cache: &str, epoch: u64, after: i64, most: u32) -> Vec<(i64, Draw)>;
    read fn reputations(&self, identities: &[i64]) -> HashMap<i64, Reputation>;
    read fn dependants(&self, cache: &str, pnames: &[&str]) -> HashMap<String, u32>;

    read fn leaf_of(&self, cache: &str, path: &StorePath) -> Option<(u64, Vec<u8>)>;
    read fn leaf_count(&self, cache: &str) -> u64;
    read fn leaves(&self, cache: &str, from: u64, most: u32) -> Vec<(u64, Vec<u8>, Sha256)>;
}
