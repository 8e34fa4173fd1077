//! The rebuild sample in SQLite: epochs, draws, what weighs in them.

use pushgate_formats::{
    log_leaf,
    sample::{Draw, Epoch, Seed},
};
use serde_json::json;
use sqlx::SqliteConnection;

use super::*;

fn seed(raw: Vec<u8>) -> Result<Seed> {
    raw.try_into().map(Seed).map_err(|_| corrupt("a seed", "bytes of another length"))
}

fn leaf(cache: &str, row: &EpochRow, closed: Option<u64>) -> Vec<u8> {
    let epoch = Epoch {
        cache: cache.to_owned(),
        closed,
        commitment: row.seed.commitment(),
        kind: "epoch".to_owned(),
        number: row.number,
        opened: row.opened,
        seed: closed.map(|_| row.seed),
        v: 1,
    };
    epoch.to_bytes()
}

/// Appends leaves that aren't about a publication.
pub(super) async fn append_leaves(tx: &mut SqliteConnection, cache: &str, leaves: &[Vec<u8>]) -> Result<()> {
    let last = sqlx::query("SELECT seq, hash FROM leaves WHERE cache = ? ORDER BY seq DESC LIMIT 1")
        .bind(cache)
        .fetch_optional(&mut *tx)
        .await?;
    let (mut seq, mut hash) = match last {
        Some(row) => (row.try_get::<i64, _>(0)? + 1, sha256(&row.try_get::<String, _>(1)?)?),
        None => (0, log_leaf::CHAIN_START),
    };
    for leaf in leaves {
        hash = log_leaf::chain(&hash, leaf);
        sqlx::query("INSERT INTO leaves (cache, seq, body, hash) VALUES (?, ?, ?, ?)")
            .bind(cache)
            .bind(seq)
            .bind(leaf)
            .bind(hash.base32())
            .execute(&mut *tx)
            .await?;
        seq += 1;
    }
    Ok(())
}

/// Stores draws with their leaves; a claim that has drawn keeps its draw.
pub(super) async fn add_draws(tx: &mut SqliteConnection, judged: &Judged) -> Result<()> {
    let mut leaves = Vec::new();
    for NewDraw { identity, draw } in &judged.draws {
        let body = draw.to_bytes();
        let done = sqlx::query(
            "INSERT INTO draws (cache, path, nar_hash, identity, epoch, drawn, body) VALUES (?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT DO NOTHING",
        )
        .bind(&judged.cache)
        .bind(draw.path.base_name())
        .bind(draw.nar_hash.base32())
        .bind(identity)
        .bind(sql(draw.epoch))
        .bind(draw.drawn)
        .bind(&body)
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() > 0 {
            leaves.push(body);
        }
    }
    append_leaves(tx, &judged.cache, &leaves).await
}

/// Counts what is published for those whose claims it was and for the packages that it refers to.
pub(super) async fn count_published(tx: &mut SqliteConnection, judged: &Judged) -> Result<()> {
    for identity in &judged.matched {
        sqlx::query(
            "INSERT INTO reputations (identity, claims, matches) VALUES (?, 1, 1) \
             ON CONFLICT (identity) DO UPDATE SET claims = claims + 1, matches = matches + 1",
        )
        .bind(identity)
        .execute(&mut *tx)
        .await?;
    }
    let mut dependants: HashMap<&str, u32> = HashMap::new();
    for publication in &judged.publications {
        let row = &publication.row;
        let others = row.references.iter().filter(|reference| **reference != row.path);
        let pnames: BTreeSet<&str> =
            others.map(|reference| pushgate_policies::names::package(reference.name()).0).collect();
        for pname in pnames {
            *dependants.entry(pname).or_default() += 1;
        }
    }
    if dependants.is_empty() {
        return Ok(());
    }
    let rows = Value::from_iter(dependants.iter().map(|(pname, count)| json!([pname, count])));
    sqlx::query(
        "INSERT INTO packages (cache, pname, dependants) SELECT ?, value ->> 0, value ->> 1 FROM json_each(?) \
         WHERE true ON CONFLICT (cache, pname) DO UPDATE SET dependants = dependants + excluded.dependants",
    )
    .bind(&judged.cache)
    .bind(rows.to_string())
    .execute(&mut *tx)
    .await?;
    Ok(())
}

impl Sqlite {
    pub(super) async fn list_epochs(&self, cache: &str, most: u32) -> Result<Vec<EpochRow>> {
        let rows = sqlx::query(
            "SELECT number, seed, opened, closed FROM epochs WHERE cache = ? ORDER BY number DESC LIMIT ?",
        )
        .bind(cache)
        .bind(most)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(EpochRow {
                    number: time(row.try_get(0)?),
                    seed: seed(row.try_get(1)?)?,
                    opened: time(row.try_get(2)?),
                    closed: row.try_get::<Option<i64>, _>(3)?.map(time),
                })
            })
            .collect()
    }

    pub(super) async fn insert_epoch(&self, cache: &str, row: &EpochRow) -> Result<bool> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query(
            "INSERT INTO epochs (cache, number, seed, opened) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(cache)
        .bind(sql(row.number))
        .bind(row.seed.0.as_slice())
        .bind(sql(row.opened))
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        append_leaves(&mut tx, cache, &[leaf(cache, row, None)]).await?;
        tx.commit().await?;
        Ok(true)
    }

    pub(super) async fn end_epoch(&self, cache: &str, row: &EpochRow, now: u64) -> Result<bool> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let done =
            sqlx::query("UPDATE epochs SET closed = ? WHERE cache = ? AND number = ? AND closed IS NULL")
                .bind(sql(now))
                .bind(cache)
                .bind(sql(row.number))
                .execute(&mut *tx)
                .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        append_leaves(&mut tx, cache, &[leaf(cache, row, Some(now))]).await?;
        tx.commit().await?;
        Ok(true)
    }

    pub(super) async fn list_draws(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<DrawRow>> {
        let rows = sqlx::query(
            "SELECT d.path, d.nar_hash, d.drawn FROM json_each(?2) AS asked \
             CROSS JOIN draws d ON d.cache = ?1 AND d.path = asked.value",
        )
        .bind(cache)
        .bind(paths_json(paths))
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(DrawRow {
                    path: path(&row.try_get::<String, _>(0)?)?,
                    nar_hash: sha256(&row.try_get::<String, _>(1)?)?,
                    drawn: row.try_get(2)?,
                })
            })
            .collect()
    }

    pub(super) async fn list_draws_of(
        &self,
        cache: &str,
        epoch: u64,
        after: i64,
        most: u32,
    ) -> Result<Vec<(i64, Draw)>> {
        let rows = sqlx::query(
            "SELECT id, body FROM draws WHERE cache = ? AND epoch = ? AND id > ? ORDER BY id LIMIT ?",
        )
        .bind(cache)
        .bind(sql(epoch))
        .bind(after)
        .bind(most)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                let body: Vec<u8> = row.try_get(1)?;
                let draw = serde_json::from_slice(&body)
                    .map_err(|_| corrupt("a draw", String::from_utf8_lossy(&body)))?;
                Ok((row.try_get(0)?, draw))
            })
            .collect()
    }

    pub(super) async fn list_reputations(&self, identities: &[i64]) -> Result<HashMap<i64, Reputation>> {
        let rows = sqlx::query(
            "SELECT identity, claims, matches, mismatched FROM reputations \
             WHERE identity IN (SELECT value FROM json_each(?))",
        )
        .bind(json!(identities).to_string())
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                let found = Reputation {
                    claims: row.try_get(1)?,
                    matches: row.try_get(2)?,
                    mismatched: row.try_get(3)?,
                };
                Ok((row.try_get(0)?, found))
            })
            .collect()
    }

    pub(super) async fn count_dependants(
        &self,
        cache: &str,
        pnames: &[&str],
    ) -> Result<HashMap<String, u32>> {
        let rows = sqlx::query(
            "SELECT pname, dependants FROM packages WHERE cache = ? AND pname IN (SELECT value FROM json_each(?))",
        )
        .bind(cache)
        .bind(json!(pnames).to_string())
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }
}
