//! SQLite: the embedded default. One writing connection, several reading ones; write-ahead log; every commit is on disk
//! before it is answered (`synchronous = FULL`).
//!
//! Batches travel as one JSON parameter that `json_each` unfolds, so that a statement's cost doesn't grow with the rows.

mod acts;
mod audits;
mod builds;
mod events;
mod evidence;
mod forget;
mod identities;
mod jobs;
mod publications;
mod pushes;
mod sample;
mod stock;
mod supplies;

use std::{collections::BTreeSet, os::unix::fs::OpenOptionsExt, path::Path, time::Duration};

use async_trait::async_trait;
use pushgate_formats::{
    Sha256, StorePath,
    acts::{ActDone, TokenInfo},
    jobs::BuiltOutput,
    keys::{KeyName, PublicKey},
    sample::Draw,
};
use serde_json::Value;
use sqlx::{
    Row, SqlSafeStr, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};

use super::*;

/// The migrations, embedded: number, name, text. (`sqlx::migrate!` would need sqlx's macros, which build SQLite twice.)
const MIGRATIONS: [(i64, &str, &str); 7] = [
    (1, "start", include_str!("../../../../migrations/sqlite/0001_start.sql")),
    (2, "stock", include_str!("../../../../migrations/sqlite/0002_stock.sql")),
    (3, "forgetting", include_str!("../../../../migrations/sqlite/0003_forgetting.sql")),
    (4, "rows", include_str!("../../../../migrations/sqlite/0004_rows.sql")),
    (5, "people", include_str!("../../../../migrations/sqlite/0005_people.sql")),
    (6, "evidence", include_str!("../../../../migrations/sqlite/0006_evidence.sql")),
    (7, "rebuilds", include_str!("../../../../migrations/sqlite/0007_rebuilds.sql")),
];

fn migrator() -> Migrator {
    Migrator::with_migrations(
        MIGRATIONS
            .iter()
            .map(|(number, name, text)| {
                let text = sqlx::AssertSqlSafe(*text).into_sql_str();
                Migration::new(*number, (*name).into(), MigrationType::Simple, text, false)
            })
            .collect(),
    )
}

/// A SQLite database.
pub struct Sqlite {
    read: SqlitePool,
    write: SqlitePool,
}

impl Sqlite {
    /// Opens the file, makes it where it is missing, and brings its schema up to date.
    pub async fn open(file: &Path) -> Result<Self> {
        // it holds what upload tokens are made with; SQLite gives its other files the mode of this one
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(file)
            .map_err(sqlx::Error::Io)?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // another process (an `invite` beside `serve`) may hold the write lock for a moment
            .busy_timeout(Duration::from_secs(20))
            .pragma("cache_size", "-8192")
            // pages, 16 MiB: a page that is written again before is copied into the database once
            .pragma("wal_autocheckpoint", "4000")
            .pragma("journal_size_limit", "67108864");
        let write = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        migrator().run(&write).await?;
        let read = SqlitePoolOptions::new().max_connections(4).connect_with(options.read_only(true)).await?;
        Ok(Self { read, write })
    }
}

/// Reads a column that may be a value that this program never writes.
fn corrupt(what: &'static str, value: impl Into<String>) -> DbError {
    DbError::Corrupt { what, value: value.into() }
}

fn path(text: &str) -> Result<StorePath> {
    StorePath::from_base_name(text).map_err(|_| corrupt("a store path", text))
}

fn sha256(text: &str) -> Result<Sha256> {
    Sha256::from_base32(text).ok_or_else(|| corrupt("a sha256", text))
}

fn time(value: i64) -> u64 {
    value.max(0).cast_unsigned()
}

fn sql(value: u64) -> i64 {
    // times and sizes stay far below 2^63
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn list(text: &str) -> Result<Vec<String>> {
    serde_json::from_str(text).map_err(|_| corrupt("a list", text))
}

fn paths_json<'a>(paths: impl IntoIterator<Item = &'a StorePath>) -> String {
    Value::from_iter(paths.into_iter().map(StorePath::base_name)).to_string()
}

fn refs(text: &str) -> Result<BTreeSet<StorePath>> {
    list(text)?.iter().map(|t| path(t)).collect()
}

fn state(text: &str) -> Result<PathState> {
    serde_json::from_value(Value::from(text)).map_err(|_| corrupt("a state", text))
}

fn public_key(text: &str) -> Result<PublicKey> {
    PublicKey::parse(text).map_err(|_| corrupt("a public key", text))
}

#[async_trait]
impl Db for Sqlite {
    async fn gateway(&self, fresh: GatewayRow, now: u64) -> Result<GatewayRow> {
        sqlx::query("INSERT OR IGNORE INTO gateway (one, id, secret, created) VALUES (1, ?, ?, ?)")
            .bind(fresh.id)
            .bind(fresh.secret)
            .bind(sql(now))
            .execute(&self.write)
            .await?;
        let row = sqlx::query("SELECT id, secret FROM gateway").fetch_one(&self.write).await?;
        Ok(GatewayRow { id: row.try_get(0)?, secret: row.try_get(1)? })
    }

    async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT id FROM gateway").fetch_one(&self.read).await?;
        Ok(())
    }

    async fn caches(&self) -> Result<Vec<CacheRow>> {
        self.list_caches().await
    }
    async fn add_cache(&self, row: &CacheRow) -> Result<bool> {
        self.insert_cache(row).await
    }
    async fn act(&self, event: &NewEvent, signed: Option<&SignedAct>, change: &Change) -> Result<Acted> {
        self.carry_out(event, signed, change).await
    }
    async fn act_by_digest(&self, digest: &Sha256) -> Result<Option<ActDone>> {
        self.known_act(digest).await
    }
    async fn add_event(&self, event: &NewEvent) -> Result<u64> {
        self.insert_event(event).await
    }
    async fn events(&self, after: Option<u64>, cache: Option<&str>, most: u32) -> Result<Vec<EventRow>> {
        self.list_events(after, cache, most).await
    }
    async fn events_of_path(&self, cache: &str, path: &StorePath) -> Result<Vec<EventRow>> {
        self.list_events_of_path(cache, path).await
    }
    async fn identities(&self) -> Result<Vec<IdentityRow>> {
        self.list_identities().await
    }
    async fn tokens(&self, identity: Option<&str>) -> Result<Vec<TokenInfo>> {
        self.list_tokens(identity).await
    }
    async fn open_pushes_of(&self, identity: &str) -> Result<Vec<(String, String)>> {
        self.list_open_pushes_of(identity).await
    }
    async fn is_invite(&self, code: &Sha256) -> Result<bool> {
        self.has_invite(code).await
    }
    async fn redeem(&self, code: &Sha256, key: &PublicKey, now: u64) -> Result<Redeemed> {
        self.redeem_invite(code, key, now).await
    }
    async fn key(&self, key: &[u8; 32]) -> Result<Option<EnrolledKey>> {
        self.key_by_bytes(key).await
    }
    async fn key_named(&self, name: &KeyName) -> Result<Option<EnrolledKey>> {
        self.key_by_name(name).await
    }
    async fn keys(&self) -> Result<Vec<EnrolledKey>> {
        self.list_keys().await
    }

    async fn add_push(
        &self,
        push: &PushRow,
        claims: &[NewClaim],
        realisations: &[RealisationRow],
    ) -> Result<PushAdded> {
        self.insert_push(push, claims, realisations).await
    }
    async fn push_by_digest(&self, digest: &Sha256) -> Result<Option<PushRow>> {
        self.one_push("digest", &digest.base32()).await
    }
    async fn push(&self, id: &str) -> Result<Option<PushRow>> {
        self.one_push("id", id).await
    }
    async fn claims(&self, push: &str) -> Result<Vec<ClaimRow>> {
        self.claims_of_push(push).await
    }
    async fn claims_beside(&self, push: &str) -> Result<Vec<ClaimRow>> {
        self.list_claims_beside(push).await
    }
    async fn claims_of_path(&self, cache: &str, path: &StorePath) -> Result<Vec<ClaimRow>> {
        self.list_claims_of_path(cache, path).await
    }
    async fn realisations(&self, push: &str) -> Result<Vec<RealisationRow>> {
        self.list_realisations(push).await
    }
    async fn pushes_of(&self, identity: i64, most: u32) -> Result<Vec<PushCounts>> {
        self.list_pushes_of(identity, most).await
    }
    async fn open_pushes(&self) -> Result<Vec<(String, String)>> {
        self.list_open_pushes().await
    }
    async fn pushes_waiting_on(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<String>> {
        self.list_pushes_waiting_on(cache, paths).await
    }
    async fn rival_claims(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<ClaimRow>> {
        self.list_rival_claims(cache, paths).await
    }

    async fn quarantined(&self, identity: i64, nars: &[Sha256]) -> Result<Vec<QuarantineRow>> {
        self.list_quarantined(identity, nars).await
    }
    async fn add_quarantined(
        &self,
        identity: i64,
        rows: &[QuarantineRow],
        expires: u64,
        now: u64,
    ) -> Result<HashSet<Sha256>> {
        self.insert_quarantined(identity, rows, expires, now).await
    }
    async fn sent_since(&self, identity: i64, since: u64) -> Result<u64> {
        self.sum_sent(identity, since).await
    }
    async fn drop_quarantined(&self, identity: i64, nar: &Sha256) -> Result<()> {
        self.delete_quarantined(identity, nar).await
    }
    async fn quarantine_bytes(&self, identity: i64) -> Result<u64> {
        self.sum_quarantined(identity).await
    }
    async fn quarantine_total(&self) -> Result<u64> {
        self.sum_all_quarantined().await
    }
    async fn open_of(&self, identity: i64) -> Result<Open> {
        self.count_open(identity).await
    }
    async fn owners(&self, pushes: &[String]) -> Result<HashMap<String, String>> {
        self.list_owners(pushes).await
    }
    async fn packs(&self) -> Result<HashSet<String>> {
        self.list_packs().await
    }
    async fn sweep(&self, now: u64) -> Result<Swept> {
        self.sweep_expired(now).await
    }
    async fn forget(&self, pushes: u64, derivations: u64) -> Result<Forgotten> {
        self.forget_ended(pushes, derivations).await
    }

    async fn derivations_sent(&self, identity: i64, paths: &[StorePath]) -> Result<HashSet<StorePath>> {
        self.list_derivations_sent(identity, paths).await
    }
    async fn derivations(&self, paths: &[StorePath]) -> Result<Vec<DerivationRow>> {
        self.list_derivations(paths).await
    }
    async fn add_derivations(&self, identity: i64, rows: &[DerivationRow], now: u64) -> Result<u64> {
        self.insert_derivations(identity, rows, now).await
    }
    async fn use_derivations(&self, identity: i64, paths: &[StorePath], now: u64) -> Result<()> {
        self.touch_derivations(identity, paths, now).await
    }

    async fn add_facts(&self, rows: &[DerivationRow]) -> Result<()> {
        self.set_facts(rows).await
    }

    async fn token(&self, hash: &Sha256) -> Result<Option<TokenHolder>> {
        self.find_token(hash).await
    }
    async fn add_stock_nar(&self, row: &StockNarRow) -> Result<()> {
        self.insert_stock_nar(row).await
    }
    async fn stock_nar(&self, identity: i64, cache: &str, file: &str) -> Result<Option<QuarantineRow>> {
        self.find_stock_nar(identity, cache, file).await
    }
    async fn release_stock_nar(&self, identity: i64, cache: &str, file: &str, until: u64) -> Result<()> {
        self.shorten_stock_nar(identity, cache, file, until).await
    }
    async fn own_claims(&self, cache: &str, identity: i64, hash_part: &str) -> Result<Vec<ClaimRow>> {
        self.list_own_claims(cache, identity, hash_part).await
    }
    async fn own_pushes_waiting_on(
        &self,
        cache: &str,
        identity: i64,
        paths: &[StorePath],
    ) -> Result<Vec<String>> {
        self.list_own_pushes_waiting_on(cache, identity, paths).await
    }
    async fn add_realisation(&self, cache: &str, push: &str, row: &RealisationRow) -> Result<bool> {
        self.insert_realisation(cache, push, row).await
    }
    async fn own_realisations(&self, cache: &str, identity: i64, id: &str) -> Result<Vec<RealisationRow>> {
        self.list_own_realisations(cache, identity, id).await
    }
    async fn has_derivation(&self, cache: &str, identity: i64, derivation: &StorePath) -> Result<bool> {
        self.names_derivation(cache, identity, derivation).await
    }
    async fn derivations_at_hand(
        &self,
        cache: &str,
        identity: i64,
        paths: &[StorePath],
    ) -> Result<HashSet<StorePath>> {
        self.list_derivations_at_hand(cache, identity, paths).await
    }
    async fn add_build_log(&self, row: &BuildLogRow, expires: u64) -> Result<()> {
        self.insert_build_log(row, expires).await
    }
    async fn ready_build_logs(&self, most: u32) -> Result<Vec<BuildLogRow>> {
        self.list_ready_build_logs(most).await
    }
    async fn build_log_bytes(&self, identity: i64) -> Result<u64> {
        self.sum_build_logs(identity).await
    }
    async fn drop_build_logs(&self, rows: &[BuildLogRow]) -> Result<()> {
        self.delete_build_logs(rows).await
    }

    async fn published(&self, cache: &str, hash_parts: &[&str]) -> Result<HashMap<String, PublishedRow>> {
        self.list_published(cache, hash_parts).await
    }
    async fn published_hashes(
        &self,
        cache: &str,
        hash_parts: &[&str],
    ) -> Result<HashMap<String, (StorePath, Sha256)>> {
        self.list_published_hashes(cache, hash_parts).await
    }
    async fn withdrawn(&self, cache: &str, hash_parts: &[&str]) -> Result<HashMap<String, PublishedRow>> {
        self.list_withdrawn_of(cache, hash_parts).await
    }
    async fn withdrawn_paths(&self, cache: &str) -> Result<Vec<StorePath>> {
        self.list_withdrawn(cache).await
    }
    async fn commit(&self, judged: &Judged) -> Result<Committed> {
        self.commit_judged(judged).await
    }
    async fn outdated(&self, cache: &str, seen: u64, paths: &[StorePath]) -> Result<bool> {
        self.is_outdated(cache, seen, paths).await
    }
    async fn add_evidence(&self, rows: &[NewEvidence], now: u64) -> Result<Vec<StorePath>> {
        self.insert_evidence(rows, now).await
    }
    async fn evidence(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<EvidenceRow>> {
        self.list_evidence(cache, paths).await
    }
    async fn add_policy(&self, cache: &str, digest: &Sha256, text: &str, now: u64) -> Result<()> {
        self.insert_policy(cache, digest, text, now).await
    }
    async fn held_decisions(&self, cache: &str, after: i64, most: u32) -> Result<Vec<HeldDecision>> {
        self.list_held_decisions(cache, after, most).await
    }
    async fn update_held(&self, judged: &Judged) -> Result<()> {
        self.update_held_claims(judged).await
    }
    async fn due_pushes(&self, now: u64) -> Result<Vec<(String, String)>> {
        self.take_due_pushes(now).await
    }
    async fn open_pushes_of_path(&self, cache: &str, path: &StorePath) -> Result<Vec<String>> {
        self.list_open_pushes_of_path(cache, path).await
    }
    async fn decisions(&self, cache: &str, after: i64, most: u32) -> Result<Vec<DecisionRow>> {
        self.list_decisions(cache, after, most).await
    }
    async fn last_decision(&self, claim: i64) -> Result<Option<DecisionRow>> {
        self.find_last_decision(claim).await
    }
    async fn held_claims(&self, cache: &str, after: i64, most: u32) -> Result<Vec<ClaimShown>> {
        self.list_held_claims(cache, after, most).await
    }
    async fn claims_shown(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<ClaimShown>> {
        self.list_claims_shown(cache, paths).await
    }
    async fn conflict_paths(
        &self,
        cache: &str,
        after: Option<&StorePath>,
        most: u32,
    ) -> Result<Vec<StorePath>> {
        self.list_conflict_paths(cache, after, most).await
    }

    async fn unseen(&self, cache: &str) -> Result<Vec<PublishedRow>> {
        self.list_unseen(cache).await
    }
    async fn mark_visible(&self, cache: &str, paths: &[StorePath]) -> Result<()> {
        self.set_visible(cache, paths).await
    }

    async fn upstream_paths(
        &self,
        url: &str,
        key: &PublicKey,
        paths: &[StorePath],
    ) -> Result<Vec<UpstreamRow>> {
        self.list_upstream_paths(url, key, paths).await
    }
    async fn add_upstream_paths(
        &self,
        url: &str,
        key: &PublicKey,
        rows: &[UpstreamRow],
        now: u64,
    ) -> Result<()> {
        self.insert_upstream_paths(url, key, rows, now).await
    }

    async fn add_jobs(&self, jobs: &[NewJob], now: u64) -> Result<()> {
        self.insert_jobs(jobs, now).await
    }
    async fn jobs_of(&self, cache: &str, derivations: &[StorePath]) -> Result<Vec<JobRow>> {
        self.list_jobs_of(cache, derivations).await
    }
    async fn job(&self, id: &str) -> Result<Option<JobRow>> {
        self.find_job(id).await
    }
    async fn take_jobs(&self, takers: &[Taker], now: u64, until: u64) -> Result<Vec<Option<JobRow>>> {
        self.lease_jobs(takers, now, until).await
    }
    async fn extend_lease(&self, job: &str, token: &Sha256, until: u64) -> Result<bool> {
        self.lengthen_lease(job, token, until).await
    }
    async fn return_jobs(&self, now: u64, attempts: u32) -> Result<Vec<JobRow>> {
        self.take_back_jobs(now, attempts).await
    }
    async fn end_job(&self, job: &str, token: &Sha256, end: &JobEnd, now: u64) -> Result<bool> {
        self.finish_job(job, token, end, now).await
    }
    async fn cancel_job(&self, job: &str, code: &str, message: &str, now: u64) -> Result<()> {
        self.drop_job(job, code, message, now).await
    }
    async fn add_job_log(&self, job: &str, at: u64, bytes: &[u8], most: u64) -> Result<u64> {
        self.append_job_log(job, at, bytes, most).await
    }
    async fn job_log(&self, job: &str, from: u64, most: u64) -> Result<Vec<u8>> {
        self.read_job_log(job, from, most).await
    }
    async fn rebuilds(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<RebuildRow>> {
        self.list_rebuilds(cache, paths).await
    }
    async fn built(&self, job: &str) -> Result<Vec<BuiltOutput>> {
        self.list_built(job).await
    }
    async fn attestations(&self, jobs: &[String]) -> Result<Vec<AttestationRow>> {
        self.list_attestations(jobs).await
    }
    async fn wait_on(&self, cache: &str, push: &str, claim: i64, paths: &[StorePath]) -> Result<()> {
        self.insert_waits(cache, push, claim, paths).await
    }
    async fn add_builds(&self, builds: &[BuildRow], now: u64) -> Result<()> {
        self.insert_builds(builds, now).await
    }
    async fn builds(&self, push: &str) -> Result<Vec<BuildRow>> {
        self.list_builds(push).await
    }
    async fn waiting_builds(&self, cache: &str, now: u64) -> Result<Vec<BuildRow>> {
        self.list_waiting_builds(cache, now).await
    }
    async fn update_build(&self, build: &BuildRow) -> Result<()> {
        self.change_build(build).await
    }
    async fn builds_of(&self, identity: i64, since: u64) -> Result<(u64, u64)> {
        self.count_builds_of(identity, since).await
    }
    async fn add_difference(&self, cache: &str, row: &DifferenceRow) -> Result<()> {
        self.insert_difference(cache, row).await
    }
    async fn differences(&self, cache: &str, path: &StorePath) -> Result<Vec<DifferenceRow>> {
        self.list_differences(cache, path).await
    }
    async fn add_mismatch(&self, row: &MismatchRow, event: &NewEvent, due: Due) -> Result<bool> {
        self.insert_mismatch(row, event, due).await
    }
    async fn mismatches_of(&self, identity: i64) -> Result<(Option<u64>, u64)> {
        self.count_mismatches_of(identity).await
    }

    async fn is_idle(&self) -> Result<bool> {
        self.has_no_other_work().await
    }
    async fn add_audit(&self, job: &NewJob, now: u64) -> Result<bool> {
        self.insert_audit(job, now).await
    }
    async fn begin_audit(&self, audit: i64, job: &NewJob, now: u64) -> Result<()> {
        self.start_audit(audit, job, now).await
    }
    async fn open_audits(&self, cache: &str) -> Result<Vec<AuditRow>> {
        self.list_open_audits(cache).await
    }
    async fn open_audit(&self, cache: &str, derivation: &StorePath) -> Result<Option<AuditRow>> {
        self.find_open_audit(cache, derivation).await
    }
    async fn drawn_audits(&self, cache: &str, since: u64) -> Result<(u64, Option<u64>)> {
        self.count_drawn_audits(cache, since).await
    }
    async fn end_audit(&self, audit: i64, outcome: AuditOutcome, event: Option<&NewEvent>) -> Result<bool> {
        self.finish_audit(audit, outcome, event).await
    }
    async fn add_incident(
        &self,
        row: &IncidentRow,
        mismatch: Option<&MismatchRow>,
        event: &NewEvent,
    ) -> Result<bool> {
        self.insert_incident(row, mismatch, event).await
    }
    async fn incident(&self, cache: &str, path: &StorePath) -> Result<Option<IncidentRow>> {
        self.find_incident(cache, path).await
    }
    async fn dependants_of(&self, cache: &str, path: &StorePath, most: usize) -> Result<Vec<StorePath>> {
        self.list_dependants_of(cache, path, most).await
    }

    async fn epoch(&self, cache: &str) -> Result<Option<EpochRow>> {
        Ok(self.list_epochs(cache, 1).await?.pop())
    }
    async fn epochs(&self, cache: &str, most: u32) -> Result<Vec<EpochRow>> {
        self.list_epochs(cache, most).await
    }
    async fn open_epoch(&self, cache: &str, row: &EpochRow) -> Result<bool> {
        self.insert_epoch(cache, row).await
    }
    async fn close_epoch(&self, cache: &str, row: &EpochRow, now: u64) -> Result<bool> {
        self.end_epoch(cache, row, now).await
    }
    async fn draws(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<DrawRow>> {
        self.list_draws(cache, paths).await
    }
    async fn draws_of(&self, cache: &str, epoch: u64, after: i64, most: u32) -> Result<Vec<(i64, Draw)>> {
        self.list_draws_of(cache, epoch, after, most).await
    }
    async fn reputations(&self, identities: &[i64]) -> Result<HashMap<i64, Reputation>> {
        self.list_reputations(identities).await
    }
    async fn dependants(&self, cache: &str, pnames: &[&str]) -> Result<HashMap<String, u32>> {
        self.count_dependants(cache, pnames).await
    }

    async fn leaf_of(&self, cache: &str, path: &StorePath) -> Result<Option<(u64, Vec<u8>)>> {
        self.find_leaf_of(cache, path).await
    }
    async fn leaf_count(&self, cache: &str) -> Result<u64> {
        self.count_leaves(cache).await
    }
    async fn leaves(&self, cache: &str, from: u64, most: u32) -> Result<Vec<(u64, Vec<u8>, Sha256)>> {
        self.list_leaves(cache, from, most).await
    }
}
