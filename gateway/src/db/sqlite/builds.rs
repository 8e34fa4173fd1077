//! Builds that pushes asked for, what claims wait for, differences and what follows from them, in SQLite.

use base64::{Engine, engine::general_purpose::STANDARD};
use sqlx::SqliteConnection;

use super::*;

/// Largest report of a difference, in bytes.
const MAX_REPORT: usize = 4 << 20;

fn build_row(row: &SqliteRow) -> Result<BuildRow> {
    let waits = list(&row.try_get::<String, _>(7)?)?;
    Ok(BuildRow {
        push: row.try_get(0)?,
        cache: row.try_get(1)?,
        identity: row.try_get(2)?,
        derivation: path(&row.try_get::<String, _>(3)?)?,
        job: row.try_get(4)?,
        code: row.try_get(5)?,
        message: row.try_get(6)?,
        waits: waits.iter().map(|text| path(text)).collect::<Result<_>>()?,
        expires: time(row.try_get(8)?),
    })
}

const COLUMNS: &str =
    "SELECT push, cache, identity, derivation, job, code, message, waits, expires FROM builds";

impl Sqlite {
    pub(super) async fn insert_waits(
        &self,
        cache: &str,
        push: &str,
        claim: i64,
        paths: &[StorePath],
    ) -> Result<()> {
        sqlx::query(
            "INSERT INTO claim_waits (cache, path, claim, push) SELECT ?, value, ?, ? FROM json_each(?) \
             WHERE true ON CONFLICT DO NOTHING",
        )
        .bind(cache)
        .bind(claim)
        .bind(push)
        .bind(paths_json(paths))
        .execute(&self.write)
        .await?;
        Ok(())
    }

    pub(super) async fn insert_builds(&self, builds: &[BuildRow], now: u64) -> Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        for (position, build) in builds.iter().enumerate() {
            sqlx::query(
                "INSERT INTO builds (push, position, cache, identity, derivation, code, message, expires, created) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )
            .bind(&build.push)
            .bind(position as i64)
            .bind(&build.cache)
            .bind(build.identity)
            .bind(build.derivation.base_name())
            .bind(&build.code)
            .bind(&build.message)
            .bind(sql(build.expires))
            .bind(sql(now))
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    pub(super) async fn list_builds(&self, push: &str) -> Result<Vec<BuildRow>> {
        let query = format!("{COLUMNS} WHERE push = ? ORDER BY position");
        let rows = sqlx::query(sqlx::AssertSqlSafe(query)).bind(push).fetch_all(&self.read).await?;
        rows.iter().map(build_row).collect()
    }

    pub(super) async fn list_waiting_builds(&self, cache: &str, now: u64) -> Result<Vec<BuildRow>> {
        let query = format!(
            "{COLUMNS} WHERE cache = ? AND job IS NULL AND code IS NULL AND expires > ? ORDER BY created, position LIMIT 10000"
        );
        let rows =
            sqlx::query(sqlx::AssertSqlSafe(query)).bind(cache).bind(sql(now)).fetch_all(&self.read).await?;
        rows.iter().map(build_row).collect()
    }

    pub(super) async fn change_build(&self, build: &BuildRow) -> Result<()> {
        sqlx::query(
            "UPDATE builds SET job = ?, code = ?, message = ?, waits = ? WHERE push = ? AND derivation = ?",
        )
        .bind(&build.job)
        .bind(&build.code)
        .bind(&build.message)
        .bind(paths_json(&build.waits))
        .bind(&build.push)
        .bind(build.derivation.base_name())
        .execute(&self.write)
        .await?;
        Ok(())
    }

    pub(super) async fn count_builds_of(&self, identity: i64, since: u64) -> Result<(u64, u64)> {
        let open: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM builds b JOIN jobs j ON j.id = b.job \
             WHERE b.identity = ? AND j.state IN ('open', 'leased')",
        )
        .bind(identity)
        .fetch_one(&self.read)
        .await?;
        let recent: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM builds WHERE identity = ? AND created >= ? AND ifnull(code, '') <> 'build-not-permitted'",
        )
        .bind(identity)
        .bind(sql(since))
        .fetch_one(&self.read)
        .await?;
        Ok((time(open), time(recent)))
    }

    pub(super) async fn insert_difference(&self, cache: &str, row: &DifferenceRow) -> Result<()> {
        let report = row.report.as_ref().map(|text| zstd::bulk::compress(text.as_bytes(), 3)).transpose();
        sqlx::query(
            "INSERT INTO differences (cache, path, claimed, rebuilt, report, problem, found) VALUES (?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (cache, path, claimed, rebuilt) DO UPDATE SET report = excluded.report, problem = excluded.problem \
             WHERE differences.report IS NULL",
        )
        .bind(cache)
        .bind(row.path.base_name())
        .bind(row.claimed.base32())
        .bind(row.rebuilt.base32())
        .bind(report.map_err(sqlx::Error::Io)?)
        .bind(&row.problem)
        .bind(sql(row.found))
        .execute(&self.write)
        .await?;
        Ok(())
    }

    pub(super) async fn list_differences(
        &self,
        cache: &str,
        about: &StorePath,
    ) -> Result<Vec<DifferenceRow>> {
        let rows = sqlx::query(
            "SELECT path, claimed, rebuilt, report, problem, found FROM differences WHERE cache = ? AND path = ? \
             ORDER BY found DESC LIMIT 100",
        )
        .bind(cache)
        .bind(about.base_name())
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                let report = row.try_get::<Option<Vec<u8>>, _>(3)?;
                let report = report.map(|raw| zstd::bulk::decompress(&raw, MAX_REPORT)).transpose();
                let report = report.map_err(sqlx::Error::Io)?.map(String::from_utf8).transpose();
                Ok(DifferenceRow {
                    path: path(&row.try_get::<String, _>(0)?)?,
                    claimed: sha256(&row.try_get::<String, _>(1)?)?,
                    rebuilt: sha256(&row.try_get::<String, _>(2)?)?,
                    report: report.map_err(|_| corrupt("a report", "bytes that are no text"))?,
                    problem: row.try_get(4)?,
                    found: time(row.try_get(5)?),
                })
            })
            .collect()
    }

    /// One transaction: a crash leaves the mismatch unrecorded, and then it is found again, or all of it done.
    pub(super) async fn insert_mismatch(
        &self,
        row: &MismatchRow,
        event: &NewEvent,
        due: Due,
    ) -> Result<bool> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        if !record_mismatch(&mut tx, row, event.time).await? {
            return Ok(false);
        }
        audits::add_due(&mut tx, &row.cache, &row.key, (due, event.time)).await?;
        events::insert(&mut tx, event).await?;
        tx.commit().await?;
        Ok(true)
    }

    pub(super) async fn count_mismatches_of(&self, identity: i64) -> Result<(Option<u64>, u64)> {
        let row = sqlx::query("SELECT max(found), count(*) FROM mismatches WHERE identity = ?")
            .bind(identity)
            .fetch_one(&self.read)
            .await?;
        Ok((row.try_get::<Option<i64>, _>(0)?.map(time), time(row.try_get(1)?)))
    }
}

/// Records a mismatch with what follows from it; false where that is recorded already.
pub(super) async fn record_mismatch(tx: &mut SqliteConnection, row: &MismatchRow, now: u64) -> Result<bool> {
    let key = STANDARD.encode(row.key.bytes());
    let done = sqlx::query(
        "INSERT INTO mismatches (cache, path, nar_hash, identity, key, follows, found) VALUES (?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT DO NOTHING",
    )
    .bind(&row.cache)
    .bind(row.path.base_name())
    .bind(row.nar_hash.base32())
    .bind(row.identity)
    .bind(&key)
    .bind(row.follows)
    .bind(sql(now))
    .execute(&mut *tx)
    .await?;
    let new = done.rows_affected() > 0;
    if new {
        follow(tx, row, &key, now).await?;
    }
    Ok(new)
}

async fn follow(tx: &mut SqliteConnection, row: &MismatchRow, key: &str, now: u64) -> Result<()> {
    sqlx::query(
        "INSERT INTO reputations (identity, mismatched) VALUES (?, 1) \
         ON CONFLICT (identity) DO UPDATE SET matches = 0, mismatched = 1",
    )
    .bind(row.identity)
    .execute(&mut *tx)
    .await?;
    match row.follows {
        "hold-key" => {
            sqlx::query("UPDATE keys SET held = ? WHERE public = ? AND held IS NULL")
                .bind(sql(now))
                .bind(key)
                .execute(&mut *tx)
                .await?;
        }
        "freeze" => {
            sqlx::query("UPDATE identities SET frozen = 1 WHERE id = ?")
                .bind(row.identity)
                .execute(&mut *tx)
                .await?;
        }
        _ => {}
    }
    Ok(())
}
