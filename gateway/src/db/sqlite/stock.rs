//! Tokens, and what stock Nix sends beside paths, in SQLite.

use serde_json::json;

use super::*;

impl Sqlite {
    pub(super) async fn find_token(&self, hash: &Sha256) -> Result<Option<TokenHolder>> {
        let row = sqlx::query(
            "SELECT t.identity, i.name, i.role, i.frozen, t.cache, t.expires, t.revoked, i.owner, i.groups \
             FROM tokens t JOIN identities i ON i.id = t.identity WHERE t.hash = ?",
        )
        .bind(hash.base32())
        .fetch_optional(&self.read)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(TokenHolder {
            identity: row.try_get(0)?,
            name: row.try_get(1)?,
            role: role(&row.try_get::<String, _>(2)?)?,
            frozen: row.try_get(3)?,
            cache: row.try_get(4)?,
            expires: row.try_get::<Option<i64>, _>(5)?.map(time),
            revoked: row.try_get::<Option<i64>, _>(6)?.map(time),
            owner: row.try_get(7)?,
            groups: list(&row.try_get::<String, _>(8)?)?,
        }))
    }

    pub(super) async fn insert_stock_nar(&self, row: &StockNarRow) -> Result<()> {
        sqlx::query(
            "INSERT INTO stock_nars (identity, cache, file, nar_hash, expires) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT (identity, cache, file) DO UPDATE SET expires = max(expires, excluded.expires)",
        )
        .bind(row.identity)
        .bind(&row.cache)
        .bind(&row.file)
        .bind(row.nar_hash.base32())
        .bind(sql(row.expires))
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Only together with its bytes: a crash between the two rows leaves one that says nothing.
    pub(super) async fn find_stock_nar(
        &self,
        identity: i64,
        cache: &str,
        file: &str,
    ) -> Result<Option<QuarantineRow>> {
        let row = sqlx::query(
            "SELECT q.nar_hash, q.pack, q.start, q.length, q.compression, q.examined FROM stock_nars s \
             JOIN quarantine q ON q.identity = s.identity AND q.nar_hash = s.nar_hash \
             WHERE s.identity = ? AND s.cache = ? AND s.file = ?",
        )
        .bind(identity)
        .bind(cache)
        .bind(file)
        .fetch_optional(&self.read)
        .await?;
        row.as_ref().map(supplies::quarantine_row).transpose()
    }

    pub(super) async fn shorten_stock_nar(
        &self,
        identity: i64,
        cache: &str,
        file: &str,
        until: u64,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE stock_nars SET expires = min(expires, ?) WHERE identity = ? AND cache = ? AND file = ?",
        )
        .bind(sql(until))
        .bind(identity)
        .bind(cache)
        .bind(file)
        .execute(&self.write)
        .await?;
        Ok(())
    }

    pub(super) async fn list_own_claims(
        &self,
        cache: &str,
        identity: i64,
        hash_part: &str,
    ) -> Result<Vec<ClaimRow>> {
        // base names begin with the hash part and `-`, which `.` comes after
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{} WHERE c.cache = ?1 AND c.path > ?2 || '-' AND c.path < ?2 || '.' AND c.identity = ?3 \
             ORDER BY c.id DESC LIMIT 100",
            pushes::CLAIM_COLUMNS
        )))
        .bind(cache)
        .bind(hash_part)
        .bind(identity)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(pushes::claim_row).collect()
    }

    pub(super) async fn list_own_pushes_waiting_on(
        &self,
        cache: &str,
        identity: i64,
        paths: &[StorePath],
    ) -> Result<Vec<String>> {
        Ok(sqlx::query_scalar(
            "SELECT DISTINCT w.push FROM json_each(?3) AS asked \
             CROSS JOIN claim_waits w ON w.cache = ?1 AND w.path = asked.value \
             JOIN pushes p ON p.id = w.push WHERE p.identity = ?2",
        )
        .bind(cache)
        .bind(identity)
        .bind(paths_json(paths))
        .fetch_all(&self.read)
        .await?)
    }

    pub(super) async fn insert_realisation(
        &self,
        cache: &str,
        push: &str,
        row: &RealisationRow,
    ) -> Result<bool> {
        // they are read with their push
        sqlx::query(
            "INSERT OR IGNORE INTO realisations (cache, id, path, push, state, code) \
             SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE (SELECT count(*) FROM realisations WHERE push = ?4) < 64 \
             AND EXISTS (SELECT 1 FROM pushes WHERE id = ?4 AND forgotten = 0)",
        )
        .bind(cache)
        .bind(&row.id)
        .bind(row.path.base_name())
        .bind(push)
        .bind(row.state.as_str())
        .bind(&row.code)
        .execute(&self.write)
        .await?;
        let there: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM realisations WHERE cache = ? AND id = ? AND path = ? AND push = ?",
        )
        .bind(cache)
        .bind(&row.id)
        .bind(row.path.base_name())
        .bind(push)
        .fetch_optional(&self.write)
        .await?;
        Ok(there.is_some())
    }

    pub(super) async fn list_own_realisations(
        &self,
        cache: &str,
        identity: i64,
        id: &str,
    ) -> Result<Vec<RealisationRow>> {
        let rows = sqlx::query(
            "SELECT r.id, r.path, r.state, r.code FROM realisations r JOIN pushes p ON p.id = r.push \
             WHERE r.cache = ? AND r.id = ? AND p.identity = ? ORDER BY p.created DESC LIMIT 10",
        )
        .bind(cache)
        .bind(id)
        .bind(identity)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(pushes::realisation_row).collect()
    }

    pub(super) async fn names_derivation(
        &self,
        cache: &str,
        identity: i64,
        derivation: &StorePath,
    ) -> Result<bool> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM derivation_senders WHERE identity = ?1 AND path = ?3) \
             OR EXISTS (SELECT 1 FROM claims WHERE cache = ?2 AND deriver = ?3 AND identity = ?1 \
             AND state <> 'rejected')",
        )
        .bind(identity)
        .bind(cache)
        .bind(derivation.base_name())
        .fetch_optional(&self.read)
        .await?;
        Ok(found.is_some())
    }

    pub(super) async fn list_derivations_at_hand(
        &self,
        cache: &str,
        identity: i64,
        paths: &[StorePath],
    ) -> Result<HashSet<StorePath>> {
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT d.path FROM json_each(?3) AS asked CROSS JOIN derivations d ON d.path = asked.value WHERE \
             EXISTS (SELECT 1 FROM derivation_senders s WHERE s.identity = ?1 AND s.path = d.path) OR \
             EXISTS (SELECT 1 FROM published p WHERE p.cache = ?2 AND p.hash_part = substr(d.path, 1, 32) \
             AND p.path = d.path)",
        )
        .bind(identity)
        .bind(cache)
        .bind(paths_json(paths))
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(|p| path(p)).collect()
    }

    pub(super) async fn sum_build_logs(&self, identity: i64) -> Result<u64> {
        let sum: i64 = sqlx::query_scalar("SELECT coalesce(sum(size), 0) FROM build_logs WHERE identity = ?")
            .bind(identity)
            .fetch_one(&self.read)
            .await?;
        Ok(time(sum))
    }

    pub(super) async fn insert_build_log(&self, row: &BuildLogRow, expires: u64) -> Result<()> {
        let text = zstd::bulk::compress(&row.text, 3).map_err(sqlx::Error::Io)?;
        sqlx::query(
            "INSERT INTO build_logs (cache, derivation, identity, text, size, expires) VALUES (?, ?, ?, ?, ?, ?) \
             ON CONFLICT (cache, derivation, identity) \
             DO UPDATE SET text = excluded.text, size = excluded.size, expires = excluded.expires",
        )
        .bind(&row.cache)
        .bind(row.derivation.base_name())
        .bind(row.identity)
        .bind(text)
        .bind(sql(row.text.len() as u64))
        .bind(sql(expires))
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Those of which an output was published by their sender, and whose narinfo — the gateway's own words — names the
    /// derivation and his signature. Claiming the same afterwards, or one's own word for a deriver, would let anybody put a
    /// log beside another's package.
    pub(super) async fn list_ready_build_logs(&self, most: u32) -> Result<Vec<BuildLogRow>> {
        let rows = sqlx::query(
            "SELECT l.cache, l.derivation, l.identity, l.text FROM build_logs l WHERE EXISTS ( \
             SELECT 1 FROM claims c JOIN published p ON p.cache = c.cache AND p.hash_part = substr(c.path, 1, 32) \
             WHERE c.cache = l.cache AND c.deriver = l.derivation AND c.identity = l.identity \
             AND c.state = 'published' AND p.visible AND EXISTS (SELECT 1 FROM keys k WHERE k.identity = l.identity \
             AND instr(p.narinfo, char(10) || 'Sig: ' || k.name || ':') > 0) \
             AND instr(p.narinfo, char(10) || 'Deriver: ' || l.derivation || char(10)) > 0) LIMIT ?",
        )
        .bind(most)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                let text: Vec<u8> = row.try_get(3)?;
                let derivation: String = row.try_get(1)?;
                Ok(BuildLogRow {
                    cache: row.try_get(0)?,
                    identity: row.try_get(2)?,
                    text: zstd::bulk::decompress(&text, MAX_BUILD_LOG)
                        .map_err(|_| corrupt("a build log", &derivation))?,
                    derivation: path(&derivation)?,
                })
            })
            .collect()
    }

    pub(super) async fn delete_build_logs(&self, rows: &[BuildLogRow]) -> Result<()> {
        let rows = Value::from_iter(
            rows.iter().map(|row| json!([row.cache, row.derivation.base_name(), row.identity])),
        );
        sqlx::query(
            "DELETE FROM build_logs WHERE (cache, derivation, identity) IN \
             (SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?))",
        )
        .bind(rows.to_string())
        .execute(&self.write)
        .await?;
        Ok(())
    }
}
