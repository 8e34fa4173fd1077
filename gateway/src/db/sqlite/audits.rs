//! Audits, incidents and withdrawals in SQLite.

use std::collections::HashSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use sqlx::SqliteConnection;

use super::*;

/// Rows that one step of a walk over everything reads.
const STEP: i64 = 5000;

fn audit_row(row: &SqliteRow) -> Result<AuditRow> {
    Ok(AuditRow {
        id: row.try_get(0)?,
        derivation: path(&row.try_get::<String, _>(1)?)?,
        due: row.try_get(2)?,
        job: row.try_get(3)?,
        created: time(row.try_get(4)?),
    })
}

impl Sqlite {
    pub(super) async fn has_no_other_work(&self) -> Result<bool> {
        let open: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM jobs WHERE state = 'open' AND purpose <> 'audit' LIMIT 1")
                .fetch_optional(&self.read)
                .await?;
        Ok(open.is_none())
    }

    /// One transaction: a crash leaves neither the audit nor its job, or both.
    pub(super) async fn insert_audit(&self, job: &NewJob, now: u64) -> Result<bool> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query(
            "INSERT INTO audits (cache, derivation, due, job, created) VALUES (?, ?, 0, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&job.cache)
        .bind(job.derivation.base_name())
        .bind(&job.id)
        .bind(sql(now))
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        jobs::insert(&mut tx, job, now).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// The same for one that was due.
    pub(super) async fn start_audit(&self, audit: i64, job: &NewJob, now: u64) -> Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query("UPDATE audits SET job = ? WHERE id = ? AND job IS NULL AND outcome IS NULL")
            .bind(&job.id)
            .bind(audit)
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() > 0 {
            jobs::insert(&mut tx, job, now).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    pub(super) async fn list_open_audits(&self, cache: &str) -> Result<Vec<AuditRow>> {
        let rows = sqlx::query(
            "SELECT id, derivation, due, job, created FROM audits WHERE cache = ? AND outcome IS NULL ORDER BY id",
        )
        .bind(cache)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(audit_row).collect()
    }

    pub(super) async fn find_open_audit(
        &self,
        cache: &str,
        derivation: &StorePath,
    ) -> Result<Option<AuditRow>> {
        let row = sqlx::query(
            "SELECT id, derivation, due, job, created FROM audits WHERE cache = ? AND derivation = ? AND outcome IS NULL",
        )
        .bind(cache)
        .bind(derivation.base_name())
        .fetch_optional(&self.read)
        .await?;
        row.as_ref().map(audit_row).transpose()
    }

    pub(super) async fn count_drawn_audits(&self, cache: &str, since: u64) -> Result<(u64, Option<u64>)> {
        let row = sqlx::query(
            "SELECT count(*), max(created) FROM audits WHERE cache = ? AND due = 0 AND created > ?",
        )
        .bind(cache)
        .bind(sql(since))
        .fetch_one(&self.read)
        .await?;
        Ok((time(row.try_get(0)?), row.try_get::<Option<i64>, _>(1)?.map(time)))
    }

    pub(super) async fn finish_audit(
        &self,
        audit: i64,
        outcome: AuditOutcome,
        event: Option<&NewEvent>,
    ) -> Result<bool> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query("UPDATE audits SET outcome = ? WHERE id = ? AND outcome IS NULL")
            .bind(outcome.as_str())
            .bind(audit)
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        if let Some(event) = event {
            events::insert(&mut tx, event).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// One transaction: the incident, its event, what it means for the submitter, and the withdrawal. A crash leaves none of
    /// it, and it is found again, or all, and then the file is still to be removed.
    pub(super) async fn insert_incident(
        &self,
        row: &IncidentRow,
        mismatch: Option<&MismatchRow>,
        event: &NewEvent,
    ) -> Result<bool> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query(
            "INSERT INTO incidents (cache, path, nar_hash, rebuilt, verifiers, dependants, found) \
             VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&row.cache)
        .bind(row.path.base_name())
        .bind(row.nar_hash.base32())
        .bind(row.rebuilt.base32())
        .bind(Value::from(row.verifiers.clone()).to_string())
        .bind(paths_json(&row.dependants))
        .bind(sql(row.found))
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        if let Some(mismatch) = mismatch {
            builds::record_mismatch(&mut tx, mismatch, event.time).await?;
        }
        if row.withdrawn {
            sqlx::query(
                "UPDATE published SET withdrawn = ? WHERE cache = ? AND hash_part = ? AND path = ? AND withdrawn IS NULL",
            )
            .bind(sql(row.found))
            .bind(&row.cache)
            .bind(row.path.hash_part())
            .bind(row.path.base_name())
            .execute(&mut *tx)
            .await?;
        }
        events::insert(&mut tx, event).await?;
        tx.commit().await?;
        Ok(true)
    }

    pub(super) async fn find_incident(&self, cache: &str, about: &StorePath) -> Result<Option<IncidentRow>> {
        let row = sqlx::query(
            "SELECT i.nar_hash, i.rebuilt, i.verifiers, i.dependants, i.found, p.withdrawn IS NOT NULL FROM incidents i \
             LEFT JOIN published p ON p.cache = i.cache AND p.hash_part = substr(i.path, 1, 32) AND p.path = i.path \
             WHERE i.cache = ? AND i.path = ?",
        )
        .bind(cache)
        .bind(about.base_name())
        .fetch_optional(&self.read)
        .await?;
        row.map(|row| {
            Ok(IncidentRow {
                cache: cache.to_owned(),
                path: about.clone(),
                nar_hash: sha256(&row.try_get::<String, _>(0)?)?,
                rebuilt: sha256(&row.try_get::<String, _>(1)?)?,
                verifiers: crate::db::audits::names(&row.try_get::<String, _>(2)?)?,
                dependants: refs(&row.try_get::<String, _>(3)?)?.into_iter().collect(),
                found: time(row.try_get(4)?),
                withdrawn: row.try_get(5)?,
            })
        })
        .transpose()
    }

    pub(super) async fn list_withdrawn(&self, cache: &str) -> Result<Vec<StorePath>> {
        let rows: Vec<String> =
            sqlx::query_scalar("SELECT path FROM published WHERE cache = ? AND withdrawn IS NOT NULL")
                .bind(cache)
                .fetch_all(&self.read)
                .await?;
        rows.iter().map(|text| path(text)).collect()
    }

    /// Walks over all that is published, in the order in which it was: what refers to a path nearly always comes after it. What
    /// came before it (the path was at an upstream then) takes another walk.
    pub(super) async fn list_dependants_of(
        &self,
        cache: &str,
        on: &StorePath,
        most: usize,
    ) -> Result<Vec<StorePath>> {
        let mut on: HashSet<String> = [on.base_name().to_owned()].into();
        let mut found = Vec::new();
        loop {
            let (before, mut after) = (found.len(), 0);
            loop {
                let rows: Vec<(i64, String, String)> = sqlx::query_as(
                    "SELECT rowid, path, refs FROM published WHERE cache = ? AND rowid > ? ORDER BY rowid LIMIT ?",
                )
                .bind(cache)
                .bind(after)
                .bind(STEP)
                .fetch_all(&self.read)
                .await?;
                let Some((last, ..)) = rows.last() else { break };
                after = *last;
                for (_, name, references) in &rows {
                    if on.contains(name) {
                        continue;
                    }
                    if refs(references)?.iter().any(|reference| on.contains(reference.base_name())) {
                        found.push(path(name)?);
                        if found.len() >= most {
                            return Ok(found);
                        }
                        on.insert(name.clone());
                    }
                }
            }
            if found.len() == before {
                return Ok(found);
            }
        }
    }
}

/// Notes that what a key has published lately is due for a rebuild. What is being audited already isn't noted again.
pub(super) async fn add_due(
    tx: &mut SqliteConnection,
    cache: &str,
    key: &PublicKey,
    (due, now): (Due, u64),
) -> Result<()> {
    let narinfos: Vec<String> = sqlx::query_scalar(
        // by the pushes of the key: leaves have no index by it
        "SELECT DISTINCT p.narinfo FROM pushes u JOIN claims c ON c.push = u.id AND c.state = 'published' \
         JOIN published p ON p.cache = c.cache AND p.hash_part = substr(c.path, 1, 32) AND p.path = c.path \
         JOIN leaves l ON l.cache = p.cache AND l.seq = p.seq \
         WHERE u.identity = (SELECT identity FROM keys WHERE public = ?1) AND u.key = ?1 AND c.cache = ?2 AND p.created >= ?3 \
         AND p.withdrawn IS NULL AND p.narinfo LIKE '%' || char(10) || 'Deriver: %' \
         AND json_extract(CAST(l.body AS TEXT), '$.submitterKey') = ?4 ORDER BY p.seq DESC LIMIT ?5",
    )
    .bind(STANDARD.encode(key.bytes()))
    .bind(cache)
    .bind(sql(due.since))
    .bind(key.name().to_string())
    .bind(due.most)
    .fetch_all(&mut *tx)
    .await?;
    let derivers: BTreeSet<&str> =
        narinfos.iter().flat_map(|text| text.lines().filter_map(|l| l.strip_prefix("Deriver: "))).collect();
    sqlx::query(
        "INSERT INTO audits (cache, derivation, due, created) SELECT ?, value, 1, ? FROM json_each(?) \
         WHERE true ON CONFLICT DO NOTHING",
    )
    .bind(cache)
    .bind(sql(now))
    .bind(Value::from_iter(derivers).to_string())
    .execute(&mut *tx)
    .await?;
    Ok(())
}
