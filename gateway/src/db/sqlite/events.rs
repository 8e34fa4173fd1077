//! Events, and what admins see of identities and tokens, in SQLite.

use base64::{Engine, engine::general_purpose::STANDARD};
use pushgate_formats::{acts::TokenInfo, keys::KeyName};
use sqlx::SqliteConnection;

use super::*;

const COLUMNS: &str =
    "SELECT id, time, who, key, kind, cache, path, nar_hash, subject, detail, why, envelope FROM events";

fn event_row(row: &SqliteRow) -> Result<EventRow> {
    let text = |column: usize| row.try_get::<Option<String>, _>(column);
    let key = text(3)?.map(|k| KeyName::new(&k).map_err(|_| corrupt("a key's name", k))).transpose()?;
    let event = NewEvent {
        time: time(row.try_get(1)?),
        who: row.try_get(2)?,
        key,
        kind: row.try_get(4)?,
        cache: text(5)?,
        path: text(6)?.map(|p| path(&p)).transpose()?,
        nar_hash: text(7)?.map(|h| sha256(&h)).transpose()?,
        subject: text(8)?,
        detail: row.try_get(9)?,
        why: row.try_get(10)?,
        envelope: row.try_get(11)?,
    };
    Ok(EventRow { id: time(row.try_get(0)?), event })
}

/// Adds an event to a transaction; gives its number.
pub(super) async fn insert(tx: &mut SqliteConnection, event: &NewEvent) -> Result<i64> {
    let id = sqlx::query_scalar(
        "INSERT INTO events (time, who, key, kind, cache, path, nar_hash, subject, detail, why, envelope) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
    )
    .bind(sql(event.time))
    .bind(&event.who)
    .bind(event.key.as_ref().map(KeyName::as_str))
    .bind(&event.kind)
    .bind(&event.cache)
    .bind(event.path.as_ref().map(StorePath::base_name))
    .bind(event.nar_hash.map(|h| h.base32()))
    .bind(&event.subject)
    .bind(&event.detail)
    .bind(&event.why)
    .bind(&event.envelope)
    .fetch_one(tx)
    .await?;
    Ok(id)
}

impl Sqlite {
    pub(super) async fn insert_event(&self, event: &NewEvent) -> Result<u64> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let id = insert(&mut tx, event).await?;
        tx.commit().await?;
        Ok(time(id))
    }

    pub(super) async fn list_events(
        &self,
        after: Option<u64>,
        cache: Option<&str>,
        most: u32,
    ) -> Result<Vec<EventRow>> {
        // an index has the rows of one cache in their order; without one the row numbers are the order
        let which = if cache.is_some() { "cache = ?1" } else { "?1 IS NULL" };
        let order = if after.is_some() { "ASC" } else { "DESC" };
        let text = format!("{COLUMNS} WHERE {which} AND id > ?2 ORDER BY id {order} LIMIT ?3");
        let rows = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(cache)
            .bind(after.map_or(0, sql))
            .bind(most)
            .fetch_all(&self.read)
            .await?;
        let mut events: Vec<EventRow> = rows.iter().map(event_row).collect::<Result<_>>()?;
        if after.is_none() {
            events.reverse();
        }
        Ok(events)
    }

    pub(super) async fn list_events_of_path(&self, cache: &str, path: &StorePath) -> Result<Vec<EventRow>> {
        let rows =
            sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE cache = ? AND path = ? ORDER BY id")))
                .bind(cache)
                .bind(path.base_name())
                .fetch_all(&self.read)
                .await?;
        rows.iter().map(event_row).collect()
    }

    pub(super) async fn list_identities(&self) -> Result<Vec<IdentityRow>> {
        let rows = sqlx::query(
            "SELECT i.name, i.role, i.owner, i.groups, i.frozen, i.created, \
             (SELECT max(created) FROM pushes p WHERE p.identity = i.id), \
             (SELECT json_group_array(json_array(k.name, k.public, k.caches, k.created, k.expires, k.revoked)) \
              FROM (SELECT * FROM keys WHERE identity = i.id ORDER BY created, name) k), \
             (SELECT json_group_array(t.expires) FROM tokens t WHERE t.identity = i.id AND t.revoked IS NULL) \
             FROM identities i ORDER BY i.name",
        )
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(identity_row).collect()
    }

    pub(super) async fn list_tokens(&self, identity: Option<&str>) -> Result<Vec<TokenInfo>> {
        let rows = sqlx::query(
            "SELECT t.hash, i.name, t.cache, t.created, t.expires, t.revoked \
             FROM tokens t JOIN identities i ON i.id = t.identity WHERE ?1 IS NULL OR i.name = ?1 \
             ORDER BY i.name, t.created, t.hash",
        )
        .bind(identity)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(TokenInfo {
                    token: sha256(&row.try_get::<String, _>(0)?)?,
                    name: row.try_get(1)?,
                    cache: row.try_get(2)?,
                    created: time(row.try_get(3)?),
                    expires: row.try_get::<Option<i64>, _>(4)?.map(time),
                    revoked: row.try_get::<Option<i64>, _>(5)?.map(time),
                })
            })
            .collect()
    }

    pub(super) async fn list_open_pushes_of(&self, identity: &str) -> Result<Vec<(String, String)>> {
        let rows = sqlx::query(
            "SELECT DISTINCT c.cache, c.push FROM claims c JOIN identities i ON i.id = c.identity \
             WHERE i.name = ?1 AND c.state IN ('wanted', 'checking', 'held') \
             UNION SELECT c.cache, c.push FROM claims c INDEXED BY claims_held \
             CROSS JOIN evidence e ON e.cache = c.cache AND e.path = c.path \
             JOIN identities i ON i.id = e.identity WHERE i.name = ?1 AND c.state = 'held'",
        )
        .bind(identity)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }
}

/// A key as the query puts it: name, public half, caches, created, expires, revoked.
type KeyColumns = (String, String, Option<String>, i64, Option<i64>, Option<i64>);

fn identity_row(row: &SqliteRow) -> Result<IdentityRow> {
    let (keys, tokens): (String, String) = (row.try_get(7)?, row.try_get(8)?);
    let columns: Vec<KeyColumns> = serde_json::from_str(&keys).map_err(|_| corrupt("keys", keys.as_str()))?;
    let keys = columns.into_iter().map(|(name, public, caches, created, expires, revoked)| {
        Ok(KeyRow {
            key: public_key(&format!("{name}:{public}"))?,
            caches: caches.map(|c| list(&c)).transpose()?,
            created: time(created),
            expires: expires.map(time),
            revoked: revoked.map(time),
        })
    });
    let expiries: Vec<Option<i64>> =
        serde_json::from_str(&tokens).map_err(|_| corrupt("tokens", tokens.as_str()))?;
    Ok(IdentityRow {
        name: row.try_get(0)?,
        role: role(&row.try_get::<String, _>(1)?)?,
        owner: row.try_get(2)?,
        groups: list(&row.try_get::<String, _>(3)?)?,
        frozen: row.try_get(4)?,
        created: time(row.try_get(5)?),
        keys: keys.collect::<Result<_>>()?,
        tokens: expiries.into_iter().map(|e| e.map(time)).collect(),
        last_push: row.try_get::<Option<i64>, _>(6)?.map(time),
    })
}

/// Bytes of a key as the tables have them.
pub(super) fn key_bytes(key: &PublicKey) -> String {
    STANDARD.encode(key.bytes())
}
