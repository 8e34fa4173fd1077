//! What pushes bring along, in SQLite: quarantined NARs, derivations, facts about upstreams.

use futures_util::TryStreamExt as _;
use serde_json::json;

use super::{forget::by_identity, *};

/// Rows of one insertion with blobs, which JSON can't carry.
const ROWS: usize = 200;
/// Texts of derivations that are read at once. Bytes.
const TEXTS: usize = 16 << 20;

pub(super) fn quarantine_row(row: &SqliteRow) -> Result<QuarantineRow> {
    Ok(QuarantineRow {
        nar_hash: sha256(&row.try_get::<String, _>(0)?)?,
        pack: row.try_get(1)?,
        start: time(row.try_get(2)?),
        length: time(row.try_get(3)?),
        compression: row.try_get(4)?,
        examined: row.try_get(5)?,
    })
}

impl Sqlite {
    pub(super) async fn list_quarantined(
        &self,
        identity: i64,
        nars: &[Sha256],
    ) -> Result<Vec<QuarantineRow>> {
        let rows = sqlx::query(
            "SELECT nar_hash, pack, start, length, compression, examined FROM json_each(?2) AS asked \
             CROSS JOIN quarantine ON identity = ?1 AND nar_hash = asked.value",
        )
        .bind(identity)
        .bind(Value::from_iter(nars.iter().map(Sha256::base32)).to_string())
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(quarantine_row).collect()
    }

    pub(super) async fn insert_quarantined(
        &self,
        identity: i64,
        rows: &[QuarantineRow],
        expires: u64,
        now: u64,
    ) -> Result<HashSet<Sha256>> {
        let lengths: HashMap<String, u64> = rows.iter().map(|r| (r.nar_hash.base32(), r.length)).collect();
        let rows = Value::from_iter(
            rows.iter()
                .map(|r| json!([r.nar_hash.base32(), r.pack, r.start, r.length, r.compression, r.examined])),
        );
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let new: Vec<String> = sqlx::query_scalar(
            "INSERT INTO quarantine (identity, nar_hash, pack, start, length, compression, examined, expires) \
             SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, ?2 \
             FROM json_each(?3) WHERE true ON CONFLICT (identity, nar_hash) DO NOTHING RETURNING nar_hash",
        )
        .bind(identity)
        .bind(sql(expires))
        .bind(rows.to_string())
        .fetch_all(&mut *tx)
        .await?;
        let sent: u64 = new.iter().filter_map(|hash| lengths.get(hash)).sum();
        sqlx::query(
            "INSERT INTO sent (identity, hour, bytes) VALUES (?, ?, ?) \
             ON CONFLICT (identity, hour) DO UPDATE SET bytes = bytes + excluded.bytes",
        )
        .bind(identity)
        .bind(sql(now / 3600))
        .bind(sql(sent))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        new.iter().map(|h| sha256(h)).collect()
    }

    pub(super) async fn sum_sent(&self, identity: i64, since: u64) -> Result<u64> {
        let sum: i64 =
            sqlx::query_scalar("SELECT coalesce(sum(bytes), 0) FROM sent WHERE identity = ? AND hour >= ?")
                .bind(identity)
                .bind(sql(since / 3600))
                .fetch_one(&self.read)
                .await?;
        Ok(time(sum))
    }

    pub(super) async fn delete_quarantined(&self, identity: i64, nar: &Sha256) -> Result<()> {
        sqlx::query("DELETE FROM quarantine WHERE identity = ? AND nar_hash = ?")
            .bind(identity)
            .bind(nar.base32())
            .execute(&self.write)
            .await?;
        Ok(())
    }

    pub(super) async fn sum_quarantined(&self, identity: i64) -> Result<u64> {
        let sum: Option<i64> = sqlx::query_scalar(
            "SELECT derivation_bytes + coalesce((SELECT sum(length) FROM quarantine WHERE identity = ?1), 0) \
             FROM identities WHERE id = ?1",
        )
        .bind(identity)
        .fetch_one(&self.read)
        .await?;
        Ok(time(sum.unwrap_or(0)))
    }

    pub(super) async fn list_packs(&self) -> Result<HashSet<String>> {
        let packs: Vec<String> =
            sqlx::query_scalar("SELECT DISTINCT pack FROM quarantine").fetch_all(&self.write).await?;
        Ok(packs.into_iter().collect())
    }

    /// One transaction. A crash after it leaves packs without rows, which the sweep at the next start removes.
    pub(super) async fn sweep_expired(&self, now: u64) -> Result<Swept> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let pushes: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT p.id FROM pushes p JOIN claims c ON c.push = p.id \
             WHERE p.expires <= ? AND c.state IN ('wanted', 'checking', 'held')",
        )
        .bind(sql(now))
        .fetch_all(&mut *tx)
        .await?;
        let ids = Value::from(pushes.clone()).to_string();
        let ended = sqlx::query(
            "UPDATE claims SET state = 'rejected', decided = ?1, \
             message = 'gave up waiting: ' || coalesce(message, 'the bytes never came'), \
             code = CASE WHEN state = 'held' THEN coalesce(code, 'hold-expired') ELSE 'push-expired' END \
             WHERE push IN (SELECT value FROM json_each(?2)) AND state IN ('wanted', 'checking', 'held')",
        )
        .bind(sql(now))
        .bind(&ids)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM claim_waits WHERE push IN (SELECT value FROM json_each(?))")
            .bind(&ids)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM sent WHERE hour < ?")
            .bind(sql((now / 3600).saturating_sub(48)))
            .execute(&mut *tx)
            .await?;
        for table in ["stock_nars", "build_logs"] {
            sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM {table} WHERE expires <= ?")))
                .bind(sql(now))
                .execute(&mut *tx)
                .await?;
        }
        let before: Vec<String> =
            sqlx::query_scalar("SELECT DISTINCT pack FROM quarantine").fetch_all(&mut *tx).await?;
        let gone = sqlx::query(
            "DELETE FROM quarantine WHERE NOT EXISTS (SELECT 1 FROM claims c WHERE c.nar_hash = quarantine.nar_hash \
             AND c.identity = quarantine.identity AND c.state IN ('wanted', 'checking', 'held')) \
             AND NOT EXISTS (SELECT 1 FROM stock_nars s WHERE s.nar_hash = quarantine.nar_hash \
             AND s.identity = quarantine.identity) \
             RETURNING identity, length",
        )
        .fetch_all(&mut *tx)
        .await?;
        let after: HashSet<String> = sqlx::query_scalar("SELECT DISTINCT pack FROM quarantine")
            .fetch_all(&mut *tx)
            .await?
            .into_iter()
            .collect();
        tx.commit().await?;
        Ok(Swept {
            freed: by_identity(&gone)?,
            pushes,
            expired_claims: ended.rows_affected(),
            packs: before.into_iter().filter(|p| !after.contains(p)).collect(),
        })
    }

    pub(super) async fn sum_all_quarantined(&self) -> Result<u64> {
        let sum: i64 = sqlx::query_scalar(
            "SELECT coalesce((SELECT sum(derivation_bytes) FROM identities), 0) \
             + coalesce((SELECT sum(length) FROM quarantine), 0)",
        )
        .fetch_one(&self.read)
        .await?;
        Ok(time(sum))
    }

    pub(super) async fn touch_derivations(&self, identity: i64, paths: &[StorePath], now: u64) -> Result<()> {
        // a day more or less doesn't matter, and most pushes then write nothing
        sqlx::query(
            "UPDATE derivation_senders SET used = ?1 WHERE identity = ?2 AND used < ?3 \
             AND path IN (SELECT value FROM json_each(?4))",
        )
        .bind(sql(now))
        .bind(identity)
        .bind(sql(now.saturating_sub(86_400)))
        .bind(paths_json(paths))
        .execute(&self.write)
        .await?;
        Ok(())
    }

    pub(super) async fn list_derivations_sent(
        &self,
        identity: i64,
        paths: &[StorePath],
    ) -> Result<HashSet<StorePath>> {
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT d.path FROM json_each(?2) AS asked \
             CROSS JOIN derivation_senders d ON identity = ?1 AND d.path = asked.value",
        )
        .bind(identity)
        .bind(paths_json(paths))
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(|p| path(p)).collect()
    }

    /// Some of them, where all would be more than [`TEXTS`] bytes: at least one of those that are here.
    pub(super) async fn list_derivations(&self, paths: &[StorePath]) -> Result<Vec<DerivationRow>> {
        let asked = paths_json(paths);
        let mut rows = sqlx::query(
            "SELECT d.path, text, facts FROM json_each(?) AS asked CROSS JOIN derivations d ON d.path = asked.value",
        )
        .bind(asked)
        .fetch(&self.read);
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.try_next().await? {
            let base: String = row.try_get(0)?;
            let text: &[u8] = row.try_get(1)?;
            let mut text = zstd::bulk::decompress(text, pushgate_formats::derivation::MAX_DERIVATION)
                .map_err(|_| corrupt("a derivation", base.as_str()))?;
            // it was made with room for the largest
            text.shrink_to_fit();
            bytes += text.len();
            found.push(DerivationRow { path: path(&base)?, text, facts: row.try_get(2)? });
            if bytes >= TEXTS {
                break;
            }
        }
        Ok(found)
    }

    /// One transaction: a crash leaves all of the batch or nothing of it.
    pub(super) async fn insert_derivations(
        &self,
        identity: i64,
        rows: &[DerivationRow],
        now: u64,
    ) -> Result<u64> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let mut compressor = zstd::bulk::Compressor::new(1).map_err(sqlx::Error::Io)?;
        let known: Vec<String> = sqlx::query_scalar(
            "SELECT d.path FROM json_each(?) AS asked CROSS JOIN derivations d ON d.path = asked.value",
        )
        .bind(paths_json(rows.iter().map(|r| &r.path)))
        .fetch_all(&mut *tx)
        .await?;
        let known: HashSet<String> = known.into_iter().collect();
        let mut texts = Vec::with_capacity(rows.len());
        for row in rows {
            texts.push(compressor.compress(&row.text).map_err(sqlx::Error::Io)?);
        }
        let new = rows.iter().zip(&texts).filter(|(row, _)| !known.contains(row.path.base_name()));
        let bytes: u64 = new.map(|(_, text)| text.len() as u64).sum();
        sqlx::query("UPDATE identities SET derivation_bytes = derivation_bytes + ? WHERE id = ?")
            .bind(sql(bytes))
            .bind(identity)
            .execute(&mut *tx)
            .await?;
        // many rows a statement: each statement is a trip to the database's thread and back
        for (rows, texts) in rows.chunks(ROWS).zip(texts.chunks(ROWS)) {
            let mut query = sqlx::QueryBuilder::new("INSERT INTO derivations (path, text, facts, payer) ");
            query.push_values(rows.iter().zip(texts), |mut values, (row, text)| {
                values
                    .push_bind(row.path.base_name())
                    .push_bind(text)
                    .push_bind(row.facts.as_deref())
                    .push_bind(identity);
            });
            query.push(" ON CONFLICT (path) DO UPDATE SET facts = coalesce(facts, excluded.facts)");
            query.build().execute(&mut *tx).await?;
        }
        sqlx::query(
            "INSERT INTO derivation_senders (identity, path, used) SELECT ?1, value, ?3 FROM json_each(?2) \
             WHERE true ON CONFLICT DO UPDATE SET used = excluded.used",
        )
        .bind(identity)
        .bind(paths_json(rows.iter().map(|r| &r.path)))
        .bind(sql(now))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(bytes)
    }

    pub(super) async fn set_facts(&self, rows: &[DerivationRow]) -> Result<()> {
        let rows = Value::from_iter(rows.iter().map(|r| json!([r.path.base_name(), r.facts])));
        sqlx::query(
            "UPDATE derivations SET facts = j.value ->> 1 FROM json_each(?) AS j \
             WHERE derivations.path = j.value ->> 0 AND facts IS NULL",
        )
        .bind(rows.to_string())
        .execute(&self.write)
        .await?;
        Ok(())
    }

    pub(super) async fn list_upstream_paths(
        &self,
        url: &str,
        key: &PublicKey,
        paths: &[StorePath],
    ) -> Result<Vec<UpstreamRow>> {
        let rows = sqlx::query(
            "SELECT u.path, nar_hash, refs FROM json_each(?3) AS asked \
             CROSS JOIN upstream_paths u ON u.path = asked.value AND url = ?1 AND public_key = ?2",
        )
        .bind(url)
        .bind(key.to_string())
        .bind(paths_json(paths))
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(UpstreamRow {
                    path: path(&row.try_get::<String, _>(0)?)?,
                    nar_hash: sha256(&row.try_get::<String, _>(1)?)?,
                    references: refs(&row.try_get::<String, _>(2)?)?,
                })
            })
            .collect()
    }

    pub(super) async fn insert_upstream_paths(
        &self,
        url: &str,
        key: &PublicKey,
        rows: &[UpstreamRow],
        now: u64,
    ) -> Result<()> {
        let rows = Value::from_iter(
            rows.iter().map(|r| json!([r.path.base_name(), r.nar_hash.base32(), paths_json(&r.references)])),
        );
        sqlx::query(
            "INSERT OR REPLACE INTO upstream_paths (url, public_key, path, nar_hash, refs, found) \
             SELECT ?1, ?2, value ->> 0, value ->> 1, value ->> 2, ?3 FROM json_each(?4)",
        )
        .bind(url)
        .bind(key.to_string())
        .bind(sql(now))
        .bind(rows.to_string())
        .execute(&self.write)
        .await?;
        Ok(())
    }
}
