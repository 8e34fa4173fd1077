//! What is published, its leaves, and the results of judgements in SQLite.

use pushgate_formats::log_leaf;
use serde_json::json;
use sqlx::SqliteConnection;

use super::*;

/// Whether something was said since an event that may forbid publishing these paths, or what they refer to may be withdrawn. What can only speak for a claim isn't
/// looked for, or those who approve could keep the judge from its work.
async fn outdated<'a>(
    connection: &mut SqliteConnection,
    cache: &str,
    seen: u64,
    paths: impl Iterator<Item = &'a StorePath>,
) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM events WHERE id > ?1 AND (kind IN ('freeze', 'revoke-key', 'groups', 'owner') \
         OR (kind IN ('reject', 'settle') AND cache = ?2 AND path IN (SELECT value FROM json_each(?3))) \
         OR (kind = 'audit-mismatch' AND cache = ?2)) LIMIT 1",
    )
    .bind(sql(seen))
    .bind(cache)
    .bind(Value::from_iter(paths.map(StorePath::base_name)).to_string())
    .fetch_optional(connection)
    .await?;
    Ok(found.is_some())
}

fn published_row(row: &SqliteRow) -> Result<PublishedRow> {
    Ok(PublishedRow {
        path: path(&row.try_get::<String, _>(0)?)?,
        nar_hash: sha256(&row.try_get::<String, _>(1)?)?,
        references: refs(&row.try_get::<String, _>(2)?)?,
        narinfo: row.try_get(3)?,
    })
}

impl Sqlite {
    pub(super) async fn list_published(
        &self,
        cache: &str,
        hash_parts: &[&str],
    ) -> Result<HashMap<String, PublishedRow>> {
        let rows = sqlx::query(
            "SELECT published.path, nar_hash, refs, narinfo FROM json_each(?2) AS asked \
             CROSS JOIN published ON cache = ?1 AND hash_part = asked.value AND withdrawn IS NULL",
        )
        .bind(cache)
        .bind(Value::from_iter(hash_parts.iter().copied()).to_string())
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(|row| published_row(row).map(|r| (r.path.hash_part().to_owned(), r))).collect()
    }

    pub(super) async fn list_withdrawn_of(
        &self,
        cache: &str,
        hash_parts: &[&str],
    ) -> Result<HashMap<String, PublishedRow>> {
        let rows = sqlx::query(
            "SELECT published.path, nar_hash, refs, narinfo FROM json_each(?2) AS asked \
             CROSS JOIN published ON cache = ?1 AND hash_part = asked.value AND withdrawn IS NOT NULL",
        )
        .bind(cache)
        .bind(Value::from_iter(hash_parts.iter().copied()).to_string())
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(|row| published_row(row).map(|r| (r.path.hash_part().to_owned(), r))).collect()
    }

    pub(super) async fn list_published_hashes(
        &self,
        cache: &str,
        hash_parts: &[&str],
    ) -> Result<HashMap<String, (StorePath, Sha256)>> {
        let rows = sqlx::query(
            "SELECT published.path, nar_hash FROM json_each(?2) AS asked \
             CROSS JOIN published ON cache = ?1 AND hash_part = asked.value AND withdrawn IS NULL",
        )
        .bind(cache)
        .bind(Value::from_iter(hash_parts.iter().copied()).to_string())
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                let found = path(row.try_get(0)?)?;
                Ok((found.hash_part().to_owned(), (found, sha256(row.try_get(1)?)?)))
            })
            .collect()
    }

    /// One transaction: publications with their leaves, the claims' new states, the conflicts. A crash leaves all or
    /// nothing; narinfos are written only after it.
    pub(super) async fn commit_judged(&self, judged: &Judged) -> Result<Committed> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        if !judged.publications.is_empty() {
            // in the same transaction: an act that was answered before this counts
            let paths = judged.publications.iter().map(|p| &p.row.path);
            if outdated(&mut tx, &judged.cache, judged.seen, paths).await? {
                return Ok(Committed::Outdated);
            }
            if !append(&mut tx, judged).await? {
                return Ok(Committed::Raced);
            }
            sample::count_published(&mut tx, judged).await?;
        }
        if !judged.draws.is_empty() {
            sample::add_draws(&mut tx, judged).await?;
        }
        if !judged.claims.is_empty() {
            update_claims(&mut tx, judged).await?;
        }
        if !judged.conflicts.is_empty() {
            let rows = Value::from_iter(
                judged.conflicts.iter().map(|(p, h, c)| json!([p.base_name(), h.base32(), c])),
            );
            sqlx::query(
                "INSERT OR IGNORE INTO conflicts (cache, path, nar_hash, claim, found) \
                 SELECT ?1, value ->> 0, value ->> 1, value ->> 2, ?2 FROM json_each(?3)",
            )
            .bind(&judged.cache)
            .bind(sql(judged.now))
            .bind(rows.to_string())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(Committed::Done)
    }

    pub(super) async fn is_outdated(&self, cache: &str, seen: u64, paths: &[StorePath]) -> Result<bool> {
        outdated(&mut *self.read.acquire().await?, cache, seen, paths.iter()).await
    }

    pub(super) async fn list_unseen(&self, cache: &str) -> Result<Vec<PublishedRow>> {
        let rows = sqlx::query(
            "SELECT path, nar_hash, refs, narinfo FROM published WHERE cache = ? AND visible = 0 AND withdrawn IS NULL ORDER BY seq",
        )
        .bind(cache)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(published_row).collect()
    }

    pub(super) async fn set_visible(&self, cache: &str, paths: &[StorePath]) -> Result<()> {
        sqlx::query(
            "UPDATE published SET visible = 1 WHERE cache = ? AND hash_part IN (SELECT value FROM json_each(?))",
        )
        .bind(cache)
        .bind(Value::from_iter(paths.iter().map(StorePath::hash_part)).to_string())
        .execute(&self.write)
        .await?;
        Ok(())
    }

    pub(super) async fn find_leaf_of(&self, cache: &str, path: &StorePath) -> Result<Option<(u64, Vec<u8>)>> {
        let row = sqlx::query(
            "SELECT l.seq, l.body FROM published p JOIN leaves l ON l.cache = p.cache AND l.seq = p.seq \
             WHERE p.cache = ? AND p.hash_part = ? AND p.path = ?",
        )
        .bind(cache)
        .bind(path.hash_part())
        .bind(path.base_name())
        .fetch_optional(&self.read)
        .await?;
        row.map(|row| Ok((time(row.try_get(0)?), row.try_get(1)?))).transpose()
    }

    pub(super) async fn count_leaves(&self, cache: &str) -> Result<u64> {
        let last: Option<i64> = sqlx::query_scalar("SELECT max(seq) FROM leaves WHERE cache = ?")
            .bind(cache)
            .fetch_one(&self.read)
            .await?;
        Ok(last.map_or(0, |last| time(last) + 1))
    }

    pub(super) async fn list_leaves(
        &self,
        cache: &str,
        from: u64,
        most: u32,
    ) -> Result<Vec<(u64, Vec<u8>, Sha256)>> {
        let rows = sqlx::query(
            "SELECT seq, body, hash FROM leaves WHERE cache = ? AND seq >= ? ORDER BY seq LIMIT ?",
        )
        .bind(cache)
        .bind(sql(from))
        .bind(most)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| Ok((time(row.try_get(0)?), row.try_get(1)?, sha256(&row.try_get::<String, _>(2)?)?)))
            .collect()
    }
}

/// Appends publications and leaves; false where a path is published already.
async fn append(tx: &mut SqliteConnection, judged: &Judged) -> Result<bool> {
    let last = sqlx::query("SELECT seq, hash FROM leaves WHERE cache = ? ORDER BY seq DESC LIMIT 1")
        .bind(&judged.cache)
        .fetch_optional(&mut *tx)
        .await?;
    let (mut seq, mut hash) = match last {
        Some(row) => (row.try_get::<i64, _>(0)? + 1, sha256(&row.try_get::<String, _>(1)?)?),
        None => (0, log_leaf::CHAIN_START),
    };
    let mut rows = Vec::with_capacity(judged.publications.len());
    for publication in &judged.publications {
        let row = &publication.row;
        hash = log_leaf::chain(&hash, &publication.leaf);
        // canonical JSON is UTF-8; it travels as text inside the JSON parameter and is stored as bytes
        let leaf = String::from_utf8_lossy(&publication.leaf);
        rows.push(json!([
            row.path.hash_part(),
            row.path.base_name(),
            row.nar_hash.base32(),
            paths_json(&row.references),
            row.narinfo,
            seq,
            leaf,
            hash.base32(),
        ]));
        seq += 1;
    }
    let wanted = rows.len() as u64;
    let rows = Value::from(rows).to_string();
    let done = sqlx::query(
        "INSERT INTO published (cache, hash_part, path, nar_hash, refs, narinfo, seq, created) \
         SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, ?2 \
         FROM json_each(?3) WHERE true ON CONFLICT DO NOTHING",
    )
    .bind(&judged.cache)
    .bind(sql(judged.now))
    .bind(&rows)
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() != wanted {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO leaves (cache, seq, body, hash) \
         SELECT ?1, value ->> 5, CAST(value ->> 6 AS BLOB), value ->> 7 FROM json_each(?2)",
    )
    .bind(&judged.cache)
    .bind(&rows)
    .execute(&mut *tx)
    .await?;
    let derivers = judged.publications.iter().filter_map(|p| {
        let lines = p.row.narinfo.lines();
        lines.filter_map(|line| line.strip_prefix("Deriver: ")).next().map(str::to_owned)
    });
    let mut derivers: BTreeSet<String> = derivers.collect();
    // a published derivation is evidence for whoever names it
    let published = judged.publications.iter().map(|p| &p.row.path).filter(|p| p.is_derivation());
    derivers.extend(published.map(|p| p.base_name().to_owned()));
    if !derivers.is_empty() {
        // what shows a published path to be right isn't forgotten
        sqlx::query(
            "UPDATE derivations SET evidence = 1 WHERE evidence = 0 AND path IN (SELECT value FROM json_each(?))",
        )
        .bind(Value::from_iter(derivers).to_string())
        .execute(&mut *tx)
        .await?;
    }
    Ok(true)
}

async fn update_claims(tx: &mut SqliteConnection, judged: &Judged) -> Result<()> {
    let rows = Value::from_iter(judged.claims.iter().map(|c| {
        let waits = Value::from(c.waits.clone()).to_string();
        json!([c.id, c.state.as_str(), c.code, c.message, waits, c.again])
    }));
    // what is published stays so, whatever a later judgement that raced with this one says
    sqlx::query(
        "UPDATE claims SET state = j.value ->> 1, code = j.value ->> 2, message = j.value ->> 3, \
         waits = j.value ->> 4, again = j.value ->> 5, decided = ?1 FROM json_each(?2) AS j \
         WHERE claims.id = j.value ->> 0 AND claims.state <> 'published'",
    )
    .bind(sql(judged.now))
    .bind(rows.to_string())
    .execute(&mut *tx)
    .await?;
    evidence::add_decisions(tx, judged).await?;
    let ids = Value::from_iter(judged.claims.iter().map(|c| c.id)).to_string();
    sqlx::query("DELETE FROM claim_waits WHERE claim IN (SELECT value FROM json_each(?))")
        .bind(ids)
        .execute(&mut *tx)
        .await?;
    let waits: Vec<Value> =
        judged.claims.iter().flat_map(|c| c.waits_on.iter().map(|p| json!([p.base_name(), c.id]))).collect();
    if !waits.is_empty() {
        sqlx::query(
            "INSERT OR IGNORE INTO claim_waits (cache, path, claim, push) \
             SELECT ?1, j.value ->> 0, c.id, c.push FROM json_each(?2) AS j JOIN claims c ON c.id = j.value ->> 1",
        )
        .bind(&judged.cache)
        .bind(Value::from(waits).to_string())
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}
