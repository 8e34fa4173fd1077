//! Jobs and rebuilds in SQLite.

use base64::{Engine, engine::general_purpose::STANDARD};
use pushgate_formats::{
    jobs::Purpose,
    keys::{KeyName, Signature},
};
use serde_json::json;
use sqlx::SqliteConnection;

use super::*;

const COLUMNS: &str = "SELECT j.id, j.cache, j.derivation, j.turn, j.purpose, j.system, j.identity, j.except_owner, j.only_by, \
     j.limits, j.state, j.attempts, j.token, j.verifier, v.name, j.owner, k.name, j.key, j.expires, j.code, j.message, \
     j.exit_code, j.log_length, j.created, j.ended FROM jobs j LEFT JOIN identities v ON v.id = j.verifier \
     LEFT JOIN keys k ON k.public = j.key";

/// A key from its name and its bytes in base 64.
fn public_key(name: &str, bytes: &str) -> Result<PublicKey> {
    let key = || {
        let raw: [u8; 32] = STANDARD.decode(bytes).ok()?.try_into().ok()?;
        PublicKey::from_bytes(KeyName::new(name).ok()?, &raw).ok()
    };
    key().ok_or_else(|| corrupt("a key", bytes))
}

fn purpose(text: &str) -> Result<Purpose> {
    Purpose::ALL.into_iter().find(|p| p.as_str() == text).ok_or_else(|| corrupt("a job's purpose", text))
}

fn signature(text: &str) -> Result<Signature> {
    Signature::parse(text).map_err(|_| corrupt("a signature", text))
}

fn job_row(row: &SqliteRow) -> Result<JobRow> {
    let key = match (row.try_get::<Option<String>, _>(16)?, row.try_get::<Option<String>, _>(17)?) {
        (Some(name), Some(bytes)) => Some(public_key(&name, &bytes)?),
        _ => None,
    };
    let limits: String = row.try_get(9)?;
    Ok(JobRow {
        id: row.try_get(0)?,
        cache: row.try_get(1)?,
        derivation: path(&row.try_get::<String, _>(2)?)?,
        turn: row.try_get(3)?,
        purpose: purpose(&row.try_get::<String, _>(4)?)?,
        system: row.try_get(5)?,
        identity: row.try_get(6)?,
        except_owner: row.try_get(7)?,
        only_by: row.try_get(8)?,
        limits: serde_json::from_str(&limits).map_err(|_| corrupt("a job's limits", &limits))?,
        state: JobState::parse(&row.try_get::<String, _>(10)?)?,
        attempts: row.try_get(11)?,
        token: row.try_get::<Option<String>, _>(12)?.as_deref().map(sha256).transpose()?,
        verifier: row.try_get(13)?,
        verifier_name: row.try_get(14)?,
        owner: row.try_get(15)?,
        key,
        expires: row.try_get::<Option<i64>, _>(18)?.map(time),
        code: row.try_get(19)?,
        message: row.try_get(20)?,
        exit_code: row.try_get(21)?,
        log_length: time(row.try_get(22)?),
        created: time(row.try_get(23)?),
        ended: row.try_get::<Option<i64>, _>(24)?.map(time),
    })
}

async fn find(db: impl sqlx::SqliteExecutor<'_>, id: &str) -> Result<Option<JobRow>> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE j.id = ?")))
        .bind(id)
        .fetch_optional(db)
        .await?;
    row.as_ref().map(job_row).transpose()
}

/// Jobs looked at for one verifier at most, in their order.
const LOOKED_AT: i64 = 1000;

async fn lease_one(tx: &mut SqliteConnection, taker: &Taker, now: u64, until: u64) -> Result<Option<JobRow>> {
    let systems = Value::from_iter(taker.systems.iter().map(String::as_str)).to_string();
    let features = Value::from_iter(taker.features.iter().map(String::as_str)).to_string();
    let id: Option<String> = sqlx::query_scalar(
        "SELECT id FROM (SELECT * FROM jobs WHERE state = 'open' ORDER BY priority, number LIMIT ?1) j \
         WHERE j.after <= ?2 AND j.system IN (SELECT value FROM json_each(?3)) \
         AND NOT EXISTS (SELECT 1 FROM json_each(j.features) f WHERE f.value NOT IN (SELECT value FROM json_each(?4))) \
         AND CASE WHEN j.only_by IS NOT NULL THEN j.only_by = ?5 ELSE ifnull(j.except_owner <> ?6, 1) \
           AND (j.purpose = 'build' OR NOT EXISTS (SELECT 1 FROM jobs k WHERE k.cache = j.cache AND k.derivation = j.derivation \
             AND k.id <> j.id AND (k.state IN ('leased', 'done') AND k.owner = ?6 \
               OR k.state = 'failed' AND k.verifier = ?5))) END \
         ORDER BY j.priority, j.number LIMIT 1",
    )
    .bind(LOOKED_AT)
    .bind(sql(now))
    .bind(systems)
    .bind(features)
    .bind(taker.identity)
    .bind(&taker.owner)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(id) = id else { return Ok(None) };
    sqlx::query(
        "UPDATE jobs SET state = 'leased', attempts = attempts + 1, token = ?, verifier = ?, key = ?, owner = ?, \
         expires = ?, log_length = 0 WHERE id = ?",
    )
    .bind(taker.token.base32())
    .bind(taker.identity)
    .bind(STANDARD.encode(taker.key.bytes()))
    .bind(&taker.owner)
    .bind(sql(until))
    .bind(&id)
    .execute(&mut *tx)
    .await?;
    // the log of the attempt before is nobody's
    sqlx::query("DELETE FROM job_logs WHERE job = ?").bind(&id).execute(&mut *tx).await?;
    find(&mut *tx, &id).await
}

impl Sqlite {
    pub(super) async fn insert_jobs(&self, jobs: &[NewJob], now: u64) -> Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        for job in jobs {
            let features = Value::from_iter(job.features.iter().map(String::as_str)).to_string();
            sqlx::query(
                "INSERT INTO jobs (id, cache, derivation, turn, purpose, priority, system, features, identity, \
                 except_owner, only_by, limits, state, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open', ?) \
                 ON CONFLICT DO NOTHING",
            )
            .bind(&job.id)
            .bind(&job.cache)
            .bind(job.derivation.base_name())
            .bind(job.turn)
            .bind(job.purpose.as_str())
            .bind(job.priority)
            .bind(&job.system)
            .bind(features)
            .bind(job.identity)
            .bind(&job.except_owner)
            .bind(job.only_by)
            .bind(serde_json::to_string(&job.limits).unwrap_or_else(|_| "{}".to_owned()))
            .bind(sql(now))
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    pub(super) async fn list_jobs_of(&self, cache: &str, derivations: &[StorePath]) -> Result<Vec<JobRow>> {
        let query = format!(
            "{COLUMNS} WHERE j.cache = ? AND j.derivation IN (SELECT value FROM json_each(?)) ORDER BY j.number"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(cache)
            .bind(paths_json(derivations))
            .fetch_all(&self.read)
            .await?;
        rows.iter().map(job_row).collect()
    }

    pub(super) async fn find_job(&self, id: &str) -> Result<Option<JobRow>> {
        find(&self.read, id).await
    }

    /// One transaction for all that ask at once. A crash leaves leases that nobody knows, which run out.
    pub(super) async fn lease_jobs(
        &self,
        takers: &[Taker],
        now: u64,
        until: u64,
    ) -> Result<Vec<Option<JobRow>>> {
        let open: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM jobs WHERE state = 'open' AND after <= ? LIMIT 1")
                .bind(sql(now))
                .fetch_optional(&self.read)
                .await?;
        if open.is_none() {
            return Ok(vec![None; takers.len()]);
        }
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let mut leased = Vec::with_capacity(takers.len());
        for taker in takers {
            leased.push(lease_one(&mut tx, taker, now, until).await?);
        }
        tx.commit().await?;
        Ok(leased)
    }

    pub(super) async fn lengthen_lease(&self, job: &str, token: &Sha256, until: u64) -> Result<bool> {
        let done = sqlx::query("UPDATE jobs SET expires = ? WHERE id = ? AND token = ? AND state = 'leased'")
            .bind(sql(until))
            .bind(job)
            .bind(token.base32())
            .execute(&self.write)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    pub(super) async fn take_back_jobs(&self, now: u64, attempts: u32) -> Result<Vec<JobRow>> {
        let lost: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM jobs WHERE state = 'leased' AND expires <= ? LIMIT 1")
                .bind(sql(now))
                .fetch_optional(&self.read)
                .await?;
        if lost.is_none() {
            return Ok(vec![]);
        }
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let ids: Vec<String> = sqlx::query_scalar(
            "UPDATE jobs SET state = CASE WHEN attempts < ?1 THEN 'open' ELSE 'failed' END, token = NULL, expires = NULL, \
             code = 'verifier-lost', message = 'the verifier was not heard of any more', \
             ended = CASE WHEN attempts < ?1 THEN NULL ELSE ?2 END \
             WHERE state = 'leased' AND expires <= ?2 RETURNING id",
        )
        .bind(attempts)
        .bind(sql(now))
        .fetch_all(&mut *tx)
        .await?;
        let mut changed = Vec::new();
        for id in ids {
            changed.extend(find(&mut *tx, &id).await?);
        }
        tx.commit().await?;
        Ok(changed)
    }

    pub(super) async fn finish_job(&self, id: &str, token: &Sha256, end: &JobEnd, now: u64) -> Result<bool> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let (state, code, message, exit_code, after) = match end {
            JobEnd::Built { .. } => (JobState::Done, None, None, None, 0),
            JobEnd::Failed { code, message, exit_code } => {
                (JobState::Failed, Some(code), Some(message), *exit_code, 0)
            }
            JobEnd::Returned { code, message, after } => {
                (JobState::Open, Some(code), Some(message), None, *after)
            }
        };
        let ended = (state != JobState::Open).then(|| sql(now));
        // the token of what is done stays: by it the NARs are sent
        let done = sqlx::query(
            "UPDATE jobs SET state = ?1, code = ?2, message = ?3, exit_code = ?4, after = ?5, ended = ?6, \
             token = CASE WHEN ?1 = 'done' THEN token END, expires = NULL WHERE id = ?7 AND token = ?8 AND state = 'leased'",
        )
        .bind(state.as_str())
        .bind(code)
        .bind(message)
        .bind(exit_code)
        .bind(sql(after))
        .bind(ended)
        .bind(id)
        .bind(token.base32())
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        if let JobEnd::Built { outputs, attestation, addressed } = end {
            let envelope = zstd::bulk::compress(attestation, 3).map_err(sqlx::Error::Io)?;
            sqlx::query("INSERT INTO attestations (job, envelope, addressed) VALUES (?, ?, ?)")
                .bind(id)
                .bind(envelope)
                .bind(paths_json(addressed))
                .execute(&mut *tx)
                .await?;
            for output in outputs {
                sqlx::query(
                    "INSERT INTO rebuilds (job, cache, derivation, output, path, nar_hash, nar_size, refs, ca, signature, \
                     identity, key, created) SELECT id, cache, derivation, ?, ?, ?, ?, ?, ?, ?, verifier, key, ? \
                     FROM jobs WHERE id = ?",
                )
                .bind(&output.name)
                .bind(output.path.base_name())
                .bind(output.nar_hash.base32())
                .bind(sql(output.nar_size))
                .bind(paths_json(&output.references))
                .bind(&output.ca)
                .bind(output.signature.to_string())
                .bind(sql(now))
                .bind(id)
                .execute(&mut *tx)
                .await?;
            }
        }
        tx.commit().await?;
        Ok(true)
    }

    pub(super) async fn drop_job(&self, id: &str, code: &str, message: &str, now: u64) -> Result<()> {
        sqlx::query(
            "UPDATE jobs SET state = 'cancelled', code = ?, message = ?, ended = ?, expires = NULL \
             WHERE id = ? AND state IN ('open', 'leased')",
        )
        .bind(code)
        .bind(message)
        .bind(sql(now))
        .bind(id)
        .execute(&self.write)
        .await?;
        Ok(())
    }

    pub(super) async fn append_job_log(&self, id: &str, at: u64, bytes: &[u8], most: u64) -> Result<u64> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let length: i64 = sqlx::query_scalar("SELECT log_length FROM jobs WHERE id = ?")
            .bind(id)
            .fetch_one(&mut *tx)
            .await?;
        let length = time(length);
        let to = length.saturating_add(bytes.len() as u64);
        if at != length || bytes.is_empty() || to > most {
            return Ok(length);
        }
        sqlx::query("INSERT INTO job_logs (job, start, bytes) VALUES (?, ?, ?)")
            .bind(id)
            .bind(sql(length))
            .bind(bytes)
            .execute(&mut *tx)
            .await?;
        sqlx::query("UPDATE jobs SET log_length = ? WHERE id = ?")
            .bind(sql(to))
            .bind(id)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(to)
    }

    pub(super) async fn read_job_log(&self, id: &str, from: u64, most: u64) -> Result<Vec<u8>> {
        let rows = sqlx::query(
            "SELECT start, bytes FROM job_logs WHERE job = ?1 AND start + length(bytes) > ?2 AND start < ?3 ORDER BY start",
        )
        .bind(id)
        .bind(sql(from))
        .bind(sql(from.saturating_add(most)))
        .fetch_all(&self.read)
        .await?;
        let mut log = Vec::new();
        for row in rows {
            let (start, bytes): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            let skip = usize::try_from(from.saturating_sub(time(start))).unwrap_or(usize::MAX);
            log.extend_from_slice(bytes.get(skip..).unwrap_or_default());
        }
        log.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(log)
    }

    pub(super) async fn list_rebuilds(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<RebuildRow>> {
        let rows = sqlx::query(
            "SELECT r.job, j.purpose, j.identity, r.derivation, r.path, r.nar_hash, r.nar_size, r.signature, r.identity, \
             i.name, i.owner, r.created, r.refs \
             FROM json_each(?2) AS asked CROSS JOIN rebuilds r ON r.cache = ?1 AND r.path = asked.value \
             JOIN jobs j ON j.id = r.job JOIN identities i ON i.id = r.identity JOIN keys k ON k.public = r.key \
             WHERE i.frozen = 0 AND i.role = 'verifier' AND k.revoked IS NULL ORDER BY r.id",
        )
        .bind(cache)
        .bind(paths_json(paths))
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(RebuildRow {
                    job: row.try_get(0)?,
                    purpose: purpose(&row.try_get::<String, _>(1)?)?,
                    asked_by: row.try_get(2)?,
                    derivation: path(&row.try_get::<String, _>(3)?)?,
                    path: path(&row.try_get::<String, _>(4)?)?,
                    nar_hash: sha256(&row.try_get::<String, _>(5)?)?,
                    nar_size: time(row.try_get(6)?),
                    references: refs(&row.try_get::<String, _>(12)?)?,
                    signature: signature(&row.try_get::<String, _>(7)?)?,
                    verifier: row.try_get(8)?,
                    verifier_name: row.try_get(9)?,
                    owner: row.try_get(10)?,
                    created: time(row.try_get(11)?),
                })
            })
            .collect()
    }

    pub(super) async fn list_built(&self, job: &str) -> Result<Vec<BuiltOutput>> {
        let rows = sqlx::query(
            "SELECT output, path, nar_hash, nar_size, refs, ca, signature FROM rebuilds WHERE job = ? ORDER BY output",
        )
        .bind(job)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(BuiltOutput {
                    name: row.try_get(0)?,
                    path: path(&row.try_get::<String, _>(1)?)?,
                    nar_hash: sha256(&row.try_get::<String, _>(2)?)?,
                    nar_size: time(row.try_get(3)?),
                    references: refs(&row.try_get::<String, _>(4)?)?,
                    ca: row.try_get(5)?,
                    signature: signature(&row.try_get::<String, _>(6)?)?,
                })
            })
            .collect()
    }

    pub(super) async fn list_attestations(&self, jobs: &[String]) -> Result<Vec<AttestationRow>> {
        let rows = sqlx::query(
            "SELECT job, envelope, addressed FROM attestations WHERE job IN (SELECT value FROM json_each(?))",
        )
        .bind(json!(jobs).to_string())
        .fetch_all(&self.read)
        .await?;
        let most = pushgate_formats::jobs::MAX_RESULT;
        rows.iter()
            .map(|row| {
                let raw: Vec<u8> = row.try_get(1)?;
                let addressed = refs(&row.try_get::<String, _>(2)?)?;
                Ok(AttestationRow {
                    job: row.try_get(0)?,
                    envelope: zstd::bulk::decompress(&raw, most).map_err(sqlx::Error::Io)?,
                    addressed: addressed.into_iter().collect(),
                })
            })
            .collect()
    }
}
