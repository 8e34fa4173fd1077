//! Pushes and claims in SQLite.

use serde_json::json;

use super::*;

/// Columns of a claim with its last decision; names of claims alone are unambiguous in what follows it.
pub(super) const CLAIM_COLUMNS: &str = "SELECT c.id, c.push, c.path, c.nar_hash, c.identity, c.state, c.code, c.message, \
     c.waits, d.policy, d.digest, d.decision, d.rule, d.code FROM claims c LEFT JOIN decisions d ON d.id = c.decision";

pub(super) fn claim_row(row: &SqliteRow) -> Result<ClaimRow> {
    Ok(ClaimRow {
        id: row.try_get(0)?,
        push: row.try_get(1)?,
        path: path(&row.try_get::<String, _>(2)?)?,
        nar_hash: sha256(&row.try_get::<String, _>(3)?)?,
        identity: row.try_get(4)?,
        state: state(&row.try_get::<String, _>(5)?)?,
        code: row.try_get(6)?,
        message: row.try_get(7)?,
        waits: list(&row.try_get::<String, _>(8)?)?,
        decided: super::evidence::decided(row, 9)?,
    })
}

pub(super) fn realisation_row(row: &SqliteRow) -> Result<RealisationRow> {
    Ok(RealisationRow {
        id: row.try_get(0)?,
        path: path(&row.try_get::<String, _>(1)?)?,
        state: state(&row.try_get::<String, _>(2)?)?,
        code: row.try_get(3)?,
    })
}

impl Sqlite {
    /// One transaction: a crash leaves no push, or the whole push with all its claims.
    pub(super) async fn insert_push(
        &self,
        push: &PushRow,
        claims: &[NewClaim],
        realisations: &[RealisationRow],
    ) -> Result<PushAdded> {
        // an envelope is mostly base 64 of repetitive JSON
        let envelope = zstd::bulk::compress(&push.envelope, 1).map_err(sqlx::Error::Io)?;
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let known: Option<String> = sqlx::query_scalar(
            "SELECT CASE WHEN digest = ?1 THEN 'push' ELSE 'nonce' END FROM pushes \
             WHERE digest = ?1 OR (key = ?2 AND nonce = ?3) ORDER BY digest = ?1 DESC LIMIT 1",
        )
        .bind(push.digest.base32())
        .bind(key_text(&push.key))
        .bind(&push.nonce)
        .fetch_optional(&mut *tx)
        .await?;
        match known.as_deref() {
            Some("push") => return Ok(PushAdded::Known),
            Some(_) => return Ok(PushAdded::NonceUsed),
            None => {}
        }
        sqlx::query(
            "INSERT INTO pushes (id, digest, identity, key, cache, nonce, kind, envelope, created, expires) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&push.id)
        .bind(push.digest.base32())
        .bind(push.identity)
        .bind(key_text(&push.key))
        .bind(&push.cache)
        .bind(&push.nonce)
        .bind(push.kind.as_str())
        .bind(envelope)
        .bind(sql(push.created))
        .bind(sql(push.expires))
        .execute(&mut *tx)
        .await?;
        let rows = Value::from_iter(claims.iter().map(|c| {
            let deriver = c.deriver.as_ref().map(StorePath::base_name);
            json!([c.path.base_name(), c.nar_hash.base32(), c.state.as_str(), deriver])
        }));
        let mut ids: Vec<i64> = sqlx::query_scalar(
            "INSERT INTO claims (push, cache, path, nar_hash, identity, state, deriver) \
             SELECT ?1, ?2, value ->> 0, value ->> 1, ?3, value ->> 2, value ->> 3 FROM json_each(?4) ORDER BY key \
             RETURNING id",
        )
        .bind(&push.id)
        .bind(&push.cache)
        .bind(push.identity)
        .bind(rows.to_string())
        .fetch_all(&mut *tx)
        .await?;
        // the only writer in its transaction: ids were given in the order of insertion
        ids.sort_unstable();
        if !realisations.is_empty() {
            let rows = Value::from_iter(
                realisations.iter().map(|r| json!([r.id, r.path.base_name(), r.state.as_str(), r.code])),
            );
            sqlx::query(
                "INSERT OR IGNORE INTO realisations (cache, id, path, push, state, code) \
                 SELECT ?1, value ->> 0, value ->> 1, ?2, value ->> 2, value ->> 3 FROM json_each(?3)",
            )
            .bind(&push.cache)
            .bind(&push.id)
            .bind(rows.to_string())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(PushAdded::Added(ids))
    }

    pub(super) async fn one_push(&self, column: &'static str, value: &str) -> Result<Option<PushRow>> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT p.id, p.digest, p.identity, k.name || ':' || k.public, p.cache, p.nonce, p.envelope, p.created, \
             p.expires, p.kind FROM pushes p JOIN keys k ON k.public = p.key WHERE p.{column} = ?"
        )))
        .bind(value)
        .fetch_optional(&self.read)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let envelope: Vec<u8> = row.try_get(6)?;
        Ok(Some(PushRow {
            id: row.try_get(0)?,
            digest: sha256(&row.try_get::<String, _>(1)?)?,
            identity: row.try_get(2)?,
            key: public_key(&row.try_get::<String, _>(3)?)?,
            cache: row.try_get(4)?,
            nonce: row.try_get(5)?,
            envelope: zstd::bulk::decompress(&envelope, pushgate_formats::api::MAX_ANNOUNCEMENT * 2)
                .map_err(|_| corrupt("an envelope", value))?,
            created: time(row.try_get(7)?),
            expires: time(row.try_get(8)?),
            kind: PushKind::parse(&row.try_get::<String, _>(9)?)?,
        }))
    }

    pub(super) async fn claims_of_push(&self, push: &str) -> Result<Vec<ClaimRow>> {
        let rows =
            sqlx::query(sqlx::AssertSqlSafe(format!("{CLAIM_COLUMNS} WHERE c.push = ? ORDER BY c.id")))
                .bind(push)
                .fetch_all(&self.read)
                .await?;
        rows.iter().map(claim_row).collect()
    }

    pub(super) async fn list_claims_of_path(&self, cache: &str, path: &StorePath) -> Result<Vec<ClaimRow>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{CLAIM_COLUMNS} WHERE c.cache = ? AND c.path = ? ORDER BY c.id DESC LIMIT 100"
        )))
        .bind(cache)
        .bind(path.base_name())
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(claim_row).collect()
    }

    pub(super) async fn list_realisations(&self, push: &str) -> Result<Vec<RealisationRow>> {
        let rows = sqlx::query("SELECT id, path, state, code FROM realisations WHERE push = ?")
            .bind(push)
            .fetch_all(&self.read)
            .await?;
        rows.iter().map(realisation_row).collect()
    }

    /// Newest first. A push of stock Nix is one path: all those of a day to one cache count as one, under the newest.
    pub(super) async fn list_pushes_of(&self, identity: i64, most: u32) -> Result<Vec<PushCounts>> {
        let rows = sqlx::query(
            "WITH mine AS (SELECT rowid AS n, *, CASE kind WHEN 'narinfo' THEN cache || ' ' || created / 86400 ELSE id END \
             AS together FROM pushes WHERE identity = ?1 ORDER BY created DESC, n DESC LIMIT 20000), \
             shown AS (SELECT together, max(n) AS n FROM mine GROUP BY together ORDER BY n DESC LIMIT ?2) \
             SELECT p.id, p.cache, p.created, c.state, count(*), p.kind FROM shown s JOIN pushes p ON p.rowid = s.n \
             JOIN mine m ON m.together = s.together JOIN claims c ON c.push = m.id \
             GROUP BY s.n, c.state ORDER BY s.n DESC",
        )
        .bind(identity)
        .bind(most)
        .fetch_all(&self.read)
        .await?;
        let mut out: Vec<PushCounts> = Vec::new();
        for row in &rows {
            let id: String = row.try_get(0)?;
            if out.last().is_none_or(|p| p.id != id) {
                let (cache, created) = (row.try_get(1)?, time(row.try_get(2)?));
                let kind = PushKind::parse(&row.try_get::<String, _>(5)?)?;
                out.push(PushCounts { id, kind, cache, created, counts: Vec::new() });
            }
            let (state, count) = (row.try_get(3)?, time(row.try_get(4)?));
            out.last_mut().into_iter().for_each(|p| p.counts.push((String::clone(&state), count)));
        }
        Ok(out)
    }

    pub(super) async fn list_claims_beside(&self, push: &str) -> Result<Vec<ClaimRow>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{CLAIM_COLUMNS} WHERE c.push IN (SELECT m.id FROM pushes p JOIN pushes m ON m.identity = p.identity \
             AND m.cache = p.cache AND m.kind = p.kind AND m.created / 86400 = p.created / 86400 \
             WHERE p.id = ? AND p.kind = 'narinfo') ORDER BY c.id DESC LIMIT 20000"
        )))
        .bind(push)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(claim_row).collect()
    }

    pub(super) async fn count_open(&self, identity: i64) -> Result<Open> {
        let row = sqlx::query(
            "WITH open AS (SELECT push, count(*) AS paths FROM claims \
             WHERE identity = ? AND state IN ('wanted', 'checking', 'held') GROUP BY push) \
             SELECT coalesce(sum(p.kind = 'announcement'), 0), coalesce(sum(paths), 0), \
             coalesce(sum(length(p.envelope)), 0) FROM open JOIN pushes p ON p.id = open.push",
        )
        .bind(identity)
        .fetch_one(&self.read)
        .await?;
        Ok(Open { pushes: time(row.try_get(0)?), paths: time(row.try_get(1)?), bytes: time(row.try_get(2)?) })
    }

    pub(super) async fn list_owners(&self, pushes: &[String]) -> Result<HashMap<String, String>> {
        let rows = sqlx::query(
            "SELECT p.id, coalesce('owner ' || i.owner, 'identity ' || i.id) FROM json_each(?) AS asked \
             CROSS JOIN pushes p ON p.id = asked.value JOIN identities i ON i.id = p.identity",
        )
        .bind(Value::from(pushes).to_string())
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    pub(super) async fn list_open_pushes(&self) -> Result<Vec<(String, String)>> {
        let rows = sqlx::query(
            "SELECT DISTINCT p.cache, p.id FROM claims c JOIN pushes p ON p.id = c.push \
             WHERE c.state IN ('wanted', 'checking', 'held') ORDER BY p.created",
        )
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    pub(super) async fn list_pushes_waiting_on(
        &self,
        cache: &str,
        paths: &[StorePath],
    ) -> Result<Vec<String>> {
        Ok(sqlx::query_scalar(
            "SELECT push FROM claim_waits WHERE cache = ?1 AND path IN (SELECT value FROM json_each(?2)) \
             UNION SELECT push FROM claims WHERE cache = ?1 AND path IN (SELECT value FROM json_each(?2)) \
             AND state IN ('wanted', 'checking', 'held')",
        )
        .bind(cache)
        .bind(paths_json(paths))
        .fetch_all(&self.read)
        .await?)
    }

    pub(super) async fn list_rival_claims(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<ClaimRow>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{CLAIM_COLUMNS} WHERE c.cache = ? AND c.state = 'held' AND c.path IN (SELECT value FROM json_each(?)) \
             AND c.code NOT IN ('conflicts-with-published', 'withdrawn') AND (d.decision = 'publish' OR d.code <> 'needs-derivation')"
        )))
        .bind(cache)
        .bind(paths_json(paths))
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(claim_row).collect()
    }
}

/// The key's bytes as the `keys` table has them.
pub(super) fn key_text(key: &PublicKey) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(key.bytes())
}
